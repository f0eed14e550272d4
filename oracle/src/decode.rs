//! What a record says: readings, or the reason why it is a dead letter.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::tz::TimeZone;
use xxhash_rust::xxh3::xxh3_128;

use crate::Record;
use crate::config::{Adjust, Config, Decode, DedupKey, NullPolicy, Shape};
use crate::journal::Reason;
use crate::json::Json;
use crate::time::{time_of, zone_of};

/// What became of a record.
pub enum Decoded {
    /// A tombstone.
    Filtered,
    /// Refused as a whole.
    DeadLetter(Reason),
    /// Read.
    Readings(Readings),
}

/// The readings of one record; their place in `values` is their index in it.
pub struct Readings {
    /// The sensor's name.
    pub sensor: Arc<str>,
    /// The event time.
    pub time: i64,
    /// What identifies each of them in its series.
    pub identity: Identity,
    /// Metric and value.
    pub values: Vec<(Arc<str>, Value)>,
}

/// What stands where a value is expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A value.
    Finite(f64),
    /// Nothing, and that is fine.
    Null,
    /// A dead-lettered value.
    Refused(Reason),
}

/// What a reading has in common with its copies, and with no other reading of its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// XXH3-128 of the id's text.
    Id(u128),
    /// The event time.
    Time(i64),
    /// XXH3-128 of the payload.
    Payload(u128),
}

/// Decodes the records of one source.
pub struct Decoder {
    max_record_bytes: usize,
    sensor: Vec<String>,
    time: Vec<String>,
    id: Option<Vec<String>>,
    shape: Pointers,
    key: DedupKey,
    zone: Option<TimeZone>,
    mapping: Decode,
    names: HashSet<Arc<str>>,
}

enum Pointers {
    Narrow { metric: Vec<String>, value: Vec<String>, adjust: BTreeMap<String, Adjust> },
    Wide(Vec<(Arc<str>, Vec<String>, Adjust)>),
}

impl Decoder {
    /// For a source with this mapping.
    pub fn of(config: &Config, mapping: &Decode) -> Result<Decoder, String> {
        let by_default = if mapping.id.is_some() { DedupKey::Id } else { DedupKey::SeriesTime };
        Ok(Decoder {
            max_record_bytes: config.max_record_bytes,
            sensor: pointer_tokens(&mapping.sensor)?,
            time: pointer_tokens(&mapping.time)?,
            id: mapping.id.as_deref().map(pointer_tokens).transpose()?,
            shape: match &mapping.shape {
                Shape::Narrow { metric, value, adjust } => Pointers::Narrow {
                    metric: pointer_tokens(metric)?,
                    value: pointer_tokens(value)?,
                    adjust: adjust.clone(),
                },
                // A BTreeMap is in the order of the metric names as bytes.
                Shape::Wide { fields } => Pointers::Wide(
                    fields
                        .iter()
                        .map(|(metric, field)| {
                            Ok((metric.as_str().into(), pointer_tokens(&field.pointer)?, field.adjust))
                        })
                        .collect::<Result<_, String>>()?,
                ),
            },
            key: config.dedup.key.unwrap_or(by_default),
            zone: mapping.zone.as_deref().map(zone_of).transpose()?,
            mapping: mapping.clone(),
            names: HashSet::new(),
        })
    }

    /// What the record says.
    pub fn decode(&mut self, record: &Record) -> Decoded {
        match &record.payload {
            None => Decoded::Filtered,
            Some(payload) => match self.readings(payload) {
                Ok(readings) => Decoded::Readings(readings),
                Err(reason) => Decoded::DeadLetter(reason),
            },
        }
    }

    /// The checks in the order of the table: the first that fails names the reason.
    fn readings(&mut self, payload: &[u8]) -> Result<Readings, Reason> {
        if payload.len() > self.max_record_bytes {
            return Err(Reason::TooLarge);
        }
        let json = Json::of(payload).filter(|json| matches!(json, Json::Object(_))).ok_or(Reason::NotJson)?;

        let sensor = text_of(json.find(&self.sensor)).ok_or(Reason::MissingSensor)?;
        let sensor = sensor.filter(|name| is_name(name, 256)).ok_or(Reason::InvalidSensor)?;

        let time = json.find(&self.time).ok_or(Reason::MissingTime)?;
        let time = time_of(time, self.mapping.time_unit, self.zone.as_ref())?;

        let id = match &self.id {
            None => None,
            Some(pointer) => {
                let id = text_of(json.find(pointer)).ok_or(Reason::MissingId)?;
                Some(id.filter(|id| !id.is_empty() && id.len() <= 256).ok_or(Reason::InvalidId)?)
            }
        };

        let mut values = Vec::new();
        match &self.shape {
            Pointers::Narrow { metric, value, adjust } => {
                let metric = text_of(json.find(metric)).ok_or(Reason::MissingMetric)?;
                let metric = metric.filter(|name| is_name(name, 64)).ok_or(Reason::InvalidMetric)?;
                let value = json.find(value).ok_or(Reason::MissingValue)?;
                let adjust = adjust.get(metric).copied().unwrap_or_default();
                values.push((name(&mut self.names, metric), value_of(value, adjust, self.mapping.null)));
            }
            Pointers::Wide(fields) => {
                for (metric, pointer, adjust) in fields {
                    if let Some(value) = json.find(pointer) {
                        values.push((metric.clone(), value_of(value, *adjust, self.mapping.null)));
                    }
                }
                if values.is_empty() {
                    return Err(Reason::MissingValue);
                }
            }
        }
        let identity = match (self.key, id) {
            (DedupKey::Id, Some(id)) => Identity::Id(xxh3_128(id.as_bytes())),
            (DedupKey::Hash, _) => Identity::Payload(xxh3_128(payload)),
            (DedupKey::SeriesTime | DedupKey::Id, _) => Identity::Time(time),
        };
        Ok(Readings { sensor: name(&mut self.names, sensor), time, identity, values })
    }
}

/// The one copy of a name, so that millions of readings do not hold millions of copies.
fn name(names: &mut HashSet<Arc<str>>, text: &str) -> Arc<str> {
    match names.get(text) {
        Some(name) => name.clone(),
        None => {
            let name: Arc<str> = text.into();
            names.insert(name.clone());
            name
        }
    }
}

/// None if absent or null; Some(None) if neither a string nor a whole number; else its text.
fn text_of<'a>(field: Option<&'a Json>) -> Option<Option<&'a str>> {
    match field? {
        Json::Null => None,
        Json::String(text) => Some(Some(text)),
        Json::Number(text) => Some((!text.contains(['.', 'e', 'E'])).then_some(*text)),
        _ => Some(None),
    }
}

fn is_name(text: &str, bytes: usize) -> bool {
    !text.is_empty() && text.len() <= bytes && !text.chars().any(|c| c <= '\u{1f}' || c == '\u{7f}')
}

fn value_of(field: &Json, adjust: Adjust, null: NullPolicy) -> Value {
    let x: f64 = match field {
        Json::Null if null == NullPolicy::Skip => return Value::Null,
        Json::Null => return Value::Refused(Reason::NullValue),
        Json::Number(text) => text.parse().unwrap_or(f64::NAN),
        _ => return Value::Refused(Reason::InvalidValue),
    };
    let x = match (adjust.scale, adjust.offset) {
        (None, None) => x,
        (scale, offset) => x * scale.unwrap_or(1.0) + offset.unwrap_or(0.0),
    };
    match adjust.valid {
        _ if !x.is_finite() => Value::Refused(Reason::InvalidValue),
        Some((lo, hi)) if x < lo || x > hi => Value::Refused(Reason::OutOfRange),
        _ => Value::Finite(x),
    }
}

/// The tokens of a JSON pointer (RFC 6901).
pub fn pointer_tokens(pointer: &str) -> Result<Vec<String>, String> {
    let mut tokens = pointer.split('/');
    if tokens.next() != Some("") {
        return Err(format!("the JSON pointer {pointer:?} does not begin with /"));
    }
    Ok(tokens.map(|token| token.replace("~1", "/").replace("~0", "~")).collect())
}
