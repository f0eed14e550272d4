//! Where a record's parts lie: the settings of a source, with each path once.

use super::json_slow::Path;
use super::reason::Reason;
use super::time::Times;
use crate::config::{Decode, DedupKey, NullPolicy, Pointer};
use std::collections::BTreeMap;

/// How to read one source's records.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    /// The paths, each once; a field's number is its place here.
    pub paths: Vec<Path>,
    /// The fields that hold names.
    pub names: Vec<usize>,
    pub sensor: usize,
    pub time: usize,
    pub id: Option<usize>,
    pub shape: Shape,
    pub times: Times,
    pub null: NullPolicy,
    pub identity: DedupKey,
}

/// How many readings a record holds.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// One; the record names its metric. Some metrics' values are converted.
    Narrow { metric: usize, value: usize, conversions: BTreeMap<String, Conversion> },
    /// One of each mapped metric whose field is present; in the order of the names as bytes.
    Wide(Vec<Mapped>),
}

/// A mapped metric of a wide record.
#[derive(Clone, Debug)]
pub(super) struct Mapped {
    pub name: String,
    pub field: usize,
    pub conversion: Conversion,
}

/// What becomes of a number before it is a reading's value.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Conversion {
    pub scale: Option<f64>,
    pub offset: Option<f64>,
    pub valid: Option<[f64; 2]>,
}

impl Conversion {
    /// The value of a reading that was sent as `x`.
    pub fn apply(self, x: f64) -> Result<f64, Reason> {
        let value = match (self.scale, self.offset) {
            (None, None) => x,
            (scale, offset) => x * scale.unwrap_or(1.0) + offset.unwrap_or(0.0),
        };
        if !value.is_finite() {
            return Err(Reason::InvalidValue);
        }
        match self.valid {
            Some([low, high]) if !(low..=high).contains(&value) => Err(Reason::OutOfRange),
            _ => Ok(value),
        }
    }
}

impl Mapping {
    pub fn new(settings: &Decode, key: Option<DedupKey>) -> Result<Self, String> {
        let mut paths = Vec::new();
        let sensor = number(&settings.sensor, &mut paths);
        let time = number(&settings.time, &mut paths);
        let id = settings.id.as_ref().map(|id| number(id, &mut paths));
        let shape = match (&settings.metric, &settings.value, settings.is_wide()) {
            (Some(metric), Some(value), false) => {
                let conversions = settings.values.iter().map(|(name, scaling)| {
                    let (scale, offset, valid) = (scaling.scale, scaling.offset, scaling.valid);
                    (name.clone(), Conversion { scale, offset, valid })
                });
                Shape::Narrow {
                    metric: number(metric, &mut paths),
                    value: number(value, &mut paths),
                    conversions: conversions.collect(),
                }
            }
            (None, None, true) => {
                let mapped = settings.metrics.iter().map(|(name, field)| Mapped {
                    name: name.clone(),
                    field: number(&field.path, &mut paths),
                    conversion: Conversion { scale: field.scale, offset: field.offset, valid: field.valid },
                });
                Shape::Wide(mapped.collect())
            }
            _ => {
                return Err(
                    "a mapping is narrow or wide: name `metric` and `value`, or `metrics.<name>` for each field, \
                            and not both"
                        .into(),
                );
            }
        };
        if settings.metrics.len() > usize::from(u16::MAX) {
            return Err(format!("{} metrics are mapped; map {} at most", settings.metrics.len(), u16::MAX));
        }
        let identity = match (key, id) {
            (Some(DedupKey::Id), None) => {
                return Err("dedup.key is \"id\", but the mapping has none; name the field with the reading's id, \
                            such as `id = \"/id\"`, or take \"series_time\" or \"hash\""
                    .into());
            }
            (Some(key), _) => key,
            (None, Some(_)) => DedupKey::Id,
            (None, None) => DedupKey::SeriesTime,
        };
        let metric = if let Shape::Narrow { metric, .. } = shape { Some(metric) } else { None };
        let names = [Some(sensor), id, metric].into_iter().flatten().collect();
        let times = Times::new(settings.time_unit, settings.zone.as_deref())?;
        Ok(Self { paths, names, sensor, time, id, shape, times, null: settings.null, identity })
    }

    /// The names of the fields, if all of them lie at the top of the record.
    pub fn flat(&self) -> Option<impl Iterator<Item = &str>> {
        self.paths.iter().all(|path| path.len() == 1).then(|| self.paths.iter().flatten().map(String::as_str))
    }
}

/// The number of the field at `pointer`.
fn number(pointer: &Pointer, paths: &mut Vec<Path>) -> usize {
    let path = pointer.names();
    paths.iter().position(|known| *known == path).unwrap_or_else(|| {
        paths.push(path);
        paths.len() - 1
    })
}
