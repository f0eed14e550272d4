//! Numbers for the series that a worker meets in its partitions, so that names cross to other workers once.

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use operators::key_group::key_group;
use operators::{SeriesName, SeriesNo};
use std::sync::Arc;

/// Beyond so many series the numbering starts over: whoever receives a number takes its newest name. It bounds the
/// memory that a stream of ever new sensors can take here, and on the receiving side.
const MAX_SERIES: u32 = 1 << 20;

/// A series as its sender numbers it.
pub struct Interned {
    /// The sender's number.
    pub series: SeriesNo,
    /// The sensor's key group.
    pub group: u16,
    /// Its name, where this number is used for the first time.
    pub name: Option<Box<SeriesName>>,
}

/// The sender's numbering.
#[derive(Default)]
pub struct Interner {
    sensors: HashMap<Arc<str>, Sensor, RandomState>,
    metrics: Vec<Arc<str>>,
    next: SeriesNo,
}

struct Sensor {
    group: u16,
    /// Number by metric: a sensor has a handful, and comparing beats hashing.
    series: Vec<(Arc<str>, SeriesNo)>,
}

impl Interner {
    /// The number of a series.
    pub fn intern(&mut self, sensor: &str, metric: &str) -> Interned {
        if self.next >= MAX_SERIES {
            self.sensors.clear();
            self.next = 0;
        }
        if let Some(known) = self.sensors.get(sensor)
            && let Some((_, series)) = known.series.iter().find(|(m, _)| **m == *metric)
        {
            return Interned { series: *series, group: known.group, name: None };
        }
        let metric = self.metric(metric);
        let series = self.next;
        self.next += 1;
        let (name, group) = match self.sensors.get_key_value(sensor) {
            Some((name, known)) => (name.clone(), known.group),
            None => {
                let name: Arc<str> = sensor.into();
                let group = key_group(sensor.as_bytes());
                self.sensors.insert(name.clone(), Sensor { group, series: Vec::with_capacity(1) });
                (name, group)
            }
        };
        if let Some(known) = self.sensors.get_mut(sensor) {
            known.series.push((metric.clone(), series));
        }
        Interned { series, group, name: Some(Box::new(SeriesName { sensor: name, metric })) }
    }

    /// The shared name of a metric; there are few, and where there are not, they are simply not shared.
    fn metric(&mut self, metric: &str) -> Arc<str> {
        if let Some(known) = self.metrics.iter().find(|m| ***m == *metric) {
            return known.clone();
        }
        let name: Arc<str> = metric.into();
        if self.metrics.len() < 256 {
            self.metrics.push(name.clone());
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_has_one_number_and_carries_its_name_once() {
        let mut interner = Interner::default();
        let first = interner.intern("s-1", "t");
        assert_eq!(first.name.map(|n| (n.sensor.to_string(), n.metric.to_string())), Some(("s-1".into(), "t".into())));
        let again = interner.intern("s-1", "t");
        assert!(again.name.is_none());
        assert_eq!((again.series, again.group), (first.series, first.group));
        let other = interner.intern("s-1", "u");
        assert!(other.name.is_some());
        assert_ne!(other.series, first.series);
        assert_eq!(other.group, first.group);
    }

    #[test]
    fn ever_new_sensors_start_the_numbering_over() {
        let mut interner = Interner::default();
        for n in 0..=MAX_SERIES {
            assert!(interner.intern(&format!("s-{n}"), "t").series < MAX_SERIES);
        }
        assert_eq!(interner.sensors.len(), 1);
        assert!(interner.intern("s-0", "t").name.is_some());
    }
}
