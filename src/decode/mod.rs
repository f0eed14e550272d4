//! From a record's bytes to its readings: the one place that knows what a payload looks like.
//!
//! There are two paths and one meaning. `json_fast` notes where the mapped fields of a flat record lie and gives up on
//! anything unusual; then `json_slow` reads the whole record as a tree. Both hand their fields to the checks in this file,
//! which are those of docs/semantics.md, section 2, in their order. Property tests and the fuzz target `decode_agree`
//! hold the two paths against each other. Nothing is allocated for a record that takes the fast path.

pub mod cmd;
mod fields;
mod json_fast;
mod json_slow;
mod mapping;
mod reason;
mod time;

use crate::config::{Decode, DedupKey, NullPolicy};
use fields::{Fields, Scalar};
use json_fast::Scanner;
use json_slow::Tree;
use mapping::{Conversion, Mapped, Mapping, Shape};
pub use reason::Reason;
pub use time::Times;
use xxhash_rust::xxh3::xxh3_128;

/// The longest name of a sensor, and the longest id, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// The longest name of a metric, in bytes.
const MAX_METRIC_BYTES: usize = 64;

/// How much a record may hold.
#[derive(Clone, Copy, Debug)]
pub struct DecodeLimits {
    /// A larger payload is a dead letter.
    pub max_record_bytes: usize,
}

/// What became of a record.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// It holds these readings.
    Decoded(Fanout<'a>),
    /// It has no payload.
    Filtered,
    /// It is refused, whole.
    DeadLetter(Reason),
}

/// What a decoded record holds.
#[derive(Clone, Copy, Debug)]
pub struct Fanout<'a> {
    /// The sensor's name: 1 to 256 bytes without control characters.
    pub sensor: &'a str,
    /// The event time, microseconds since 1970.
    pub time: i64,
    /// Equal if and only if the source says that it is the same reading; for `series_time` the bits of `time`.
    pub identity: u128,
    metrics: Metrics<'a>,
    found: &'a [Found],
}

#[derive(Clone, Copy, Debug)]
enum Metrics<'a> {
    One(&'a str),
    Mapped(&'a [Mapped]),
}

/// A present field of the record being decoded: which mapped metric, and its value.
#[derive(Clone, Copy, Debug)]
struct Found {
    mapped: u16,
    value: Result<f64, ValueIssue>,
}

/// One value of a decoded record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FieldValue<'a> {
    /// The metric's name: 1 to 64 bytes.
    pub metric: &'a str,
    /// The metric's place in `Decoder::mapped`, of a wide record: the same name as ever, so there is no need to hash it.
    pub mapped: Option<u16>,
    /// A finite number, or why there is none.
    pub value: Result<f64, ValueIssue>,
    /// Which of the record's present values this is.
    pub index: u16,
}

/// Why a present value is no reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueIssue {
    /// It is null: skipped and counted.
    Null,
    /// It is a dead letter by itself.
    DeadLetter(Reason),
}

impl<'a> Fanout<'a> {
    /// The present values, in the order of the metrics' names.
    pub fn values(&self) -> impl ExactSizeIterator<Item = FieldValue<'a>> + use<'a> {
        let metrics = self.metrics;
        self.found.iter().enumerate().map(move |(index, found)| {
            let (metric, mapped) = match metrics {
                Metrics::One(name) => (name, None),
                Metrics::Mapped(names) => (names[usize::from(found.mapped)].name.as_str(), Some(found.mapped)),
            };
            FieldValue { metric, mapped, value: found.value, index: index as u16 }
        })
    }
}

/// Decodes the records of one source, on one worker.
#[derive(Clone, Debug)]
pub struct Decoder {
    mapping: Mapping,
    limits: DecodeLimits,
    scanner: Option<Scanner>,
    tree: Tree,
    found: Vec<Found>,
}

impl Decoder {
    /// For records as `settings` describe them, told apart by `key`; the error says what is wrong and what would be right.
    ///
    /// Without a `key` it is the id where the mapping has one, else series and time.
    pub fn new(settings: &Decode, limits: DecodeLimits, key: Option<DedupKey>) -> Result<Self, String> {
        let mapping = Mapping::new(settings, key)?;
        let scanner = mapping.flat().map(Scanner::new);
        Ok(Self { mapping, limits, scanner, tree: Tree::default(), found: Vec::new() })
    }

    /// The same decoder without its fast path: slower, and never another answer.
    pub fn without_fast_path(mut self) -> Self {
        self.scanner = None;
        self
    }

    /// The names of the mapped metrics of wide records, in their order.
    pub fn mapped(&self) -> impl Iterator<Item = &str> {
        let mapped = match &self.mapping.shape {
            Shape::Narrow { .. } => &[],
            Shape::Wide(mapped) => mapped.as_slice(),
        };
        mapped.iter().map(|metric| metric.name.as_str())
    }

    /// What becomes of a record with this payload. The answer borrows from the payload and the decoder.
    pub fn decode<'a>(&'a mut self, payload: Option<&'a [u8]>) -> Outcome<'a> {
        let Some(payload) = payload else { return Outcome::Filtered };
        if payload.len() > self.limits.max_record_bytes {
            return Outcome::DeadLetter(Reason::TooLarge);
        }
        // Bytes that are not UTF-8 are JSON nowhere, neither in strings nor between them.
        let Ok(text) = std::str::from_utf8(payload) else { return Outcome::DeadLetter(Reason::NotJson) };
        let Self { mapping, scanner, tree, found, .. } = self;
        found.clear();
        let outcome = if let Some(scanner) = scanner
            && scanner.scan(text).is_some()
        {
            mapping.record(&scanner.fields(text), payload, found)
        } else if tree.parse(text, &mapping.paths, &mapping.names) {
            mapping.record(&tree.fields(&mapping.paths), payload, found)
        } else {
            Err(Reason::NotJson)
        };
        match outcome {
            Ok((sensor, time, identity, metrics)) => {
                Outcome::Decoded(Fanout { sensor, time, identity, metrics, found })
            }
            Err(reason) => Outcome::DeadLetter(reason),
        }
    }
}

impl Mapping {
    /// The checks, in the order in which they name a reason.
    fn record<'a>(
        &'a self,
        fields: &impl Fields<'a>,
        payload: &[u8],
        found: &mut Vec<Found>,
    ) -> Result<(&'a str, i64, u128, Metrics<'a>), Reason> {
        let name = name(fields);
        let sensor = name(self.sensor, MAX_NAME_BYTES, Reason::MissingSensor, Reason::InvalidSensor)?;
        let time = match fields.get(self.time) {
            Scalar::Absent | Scalar::Null => return Err(Reason::MissingTime),
            Scalar::Text(text) => self.times.text(text)?,
            Scalar::Whole { int: Some(int), .. } => self.times.whole(int)?,
            Scalar::Whole { value, .. } | Scalar::Fraction(value) => self.times.fraction(value)?,
            Scalar::Other => return Err(Reason::InvalidTime),
        };
        let id = match self.id {
            Some(id) => short_text(fields.get(id), MAX_NAME_BYTES, Reason::MissingId, Reason::InvalidId)?,
            None => "",
        };
        let metrics = match &self.shape {
            Shape::Narrow { metric, value, conversions } => {
                let metric = name(*metric, MAX_METRIC_BYTES, Reason::MissingMetric, Reason::InvalidMetric)?;
                let conversion = if conversions.is_empty() { None } else { conversions.get(metric) };
                let value = self.value(fields.get(*value), conversion).ok_or(Reason::MissingValue)?;
                found.push(Found { mapped: 0, value });
                Metrics::One(metric)
            }
            Shape::Wide(mapped) => {
                for (number, metric) in mapped.iter().enumerate() {
                    if let Some(value) = self.value(fields.get(metric.field), Some(&metric.conversion)) {
                        found.push(Found { mapped: number as u16, value });
                    }
                }
                if found.is_empty() {
                    return Err(Reason::MissingValue);
                }
                Metrics::Mapped(mapped)
            }
        };
        let identity = match self.identity {
            DedupKey::Id => xxh3_128(id.as_bytes()),
            DedupKey::SeriesTime => u128::from(time as u64),
            DedupKey::Hash => xxh3_128(payload),
        };
        Ok((sensor, time, identity, metrics))
    }

    /// The value of a field; `None` if it is absent.
    fn value(&self, field: Scalar<'_>, conversion: Option<&Conversion>) -> Option<Result<f64, ValueIssue>> {
        let x = match field {
            Scalar::Absent => return None,
            Scalar::Null if self.null == NullPolicy::DeadLetter => {
                return Some(Err(ValueIssue::DeadLetter(Reason::NullValue)));
            }
            Scalar::Null => return Some(Err(ValueIssue::Null)),
            Scalar::Text(_) | Scalar::Other => return Some(Err(ValueIssue::DeadLetter(Reason::InvalidValue))),
            Scalar::Whole { value, .. } | Scalar::Fraction(value) => value,
        };
        Some(conversion.copied().unwrap_or_default().apply(x).map_err(ValueIssue::DeadLetter))
    }
}

/// A text, or the text of a whole number, of 1 to `max` bytes.
#[inline]
fn short_text(field: Scalar<'_>, max: usize, missing: Reason, invalid: Reason) -> Result<&str, Reason> {
    match field {
        Scalar::Absent | Scalar::Null => Err(missing),
        Scalar::Text(text) | Scalar::Whole { text, .. } if (1..=max).contains(&text.len()) => Ok(text),
        _ => Err(invalid),
    }
}

/// Reads a short text without control characters: of a field, of so many bytes, or a reason why there is none.
#[inline]
fn name<'a, F: Fields<'a>>(fields: &F) -> impl Fn(usize, usize, Reason, Reason) -> Result<&'a str, Reason> {
    move |field, max, missing, invalid| {
        let text = short_text(fields.get(field), max, missing, invalid)?;
        if F::WITHOUT_CONTROLS {
            return Ok(text);
        }
        let control = text.bytes().any(|byte| byte < 0x20 || byte == 0x7f);
        if control { Err(invalid) } else { Ok(text) }
    }
}

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod tests;
