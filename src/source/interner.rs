//! Numbers for the series that a worker meets in its partitions, so that names cross to other workers once.

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable};
use operators::key_group::key_group;
use operators::{SeriesName, SeriesNo};
use std::hash::BuildHasher;
use std::sync::Arc;

/// Beyond so many series the numbering starts over: whoever receives a number takes its newest name. It bounds the
/// memory that a stream of ever new sensors can take here, and on the receiving side.
const MAX_SERIES: u32 = 1 << 20;
/// And beyond so many metrics.
const MAX_METRICS: usize = u16::MAX as usize;

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
    hasher: RandomState,
    sensors: HashTable<Sensor>,
    /// By number. They are few: their texts stay in the cache, and comparing beats hashing.
    metrics: Vec<Arc<str>>,
    metric_numbers: HashMap<Arc<str>, u16, RandomState>,
    next: SeriesNo,
}

/// A sensor and its first series, in 32 bytes: half a cache line, so that a lookup waits for this and for the name.
struct Sensor {
    name: Arc<str>,
    #[allow(clippy::box_collection)] // Most sensors have one series: 8 bytes, not 24.
    more: Option<Box<Vec<(u16, SeriesNo)>>>,
    series: SeriesNo,
    metric: u16,
    group: u16,
}

impl Interner {
    /// The number of a series.
    #[inline]
    pub fn intern(&mut self, sensor: &str, metric: &str) -> Interned {
        let hash = self.hasher.hash_one(sensor);
        if let Some(known) = self.sensors.find(hash, |known| *known.name == *sensor) {
            let same = |number: u16| *self.metrics[usize::from(number)] == *metric;
            if same(known.metric) {
                return Interned { series: known.series, group: known.group, name: None };
            }
            let more = known.more.iter().flat_map(|more| more.iter());
            if let Some((_, series)) = more.copied().find(|(number, _)| same(*number)) {
                return Interned { series, group: known.group, name: None };
            }
        }
        self.meet(hash, sensor, metric)
    }

    /// A series that has no number yet.
    #[cold]
    fn meet(&mut self, hash: u64, sensor: &str, metric: &str) -> Interned {
        if self.next >= MAX_SERIES || self.metrics.len() >= MAX_METRICS {
            let hasher = std::mem::take(&mut self.hasher);
            *self = Self { hasher, ..Self::default() };
        }
        let series = self.next;
        self.next += 1;
        let number = self.metric(metric);
        let metric = self.metrics[usize::from(number)].clone();
        let Self { hasher, sensors, .. } = self;
        let (name, group) = match sensors.find_mut(hash, |known| *known.name == *sensor) {
            Some(known) => {
                known.more.get_or_insert_default().push((number, series));
                (known.name.clone(), known.group)
            }
            None => {
                let name: Arc<str> = sensor.into();
                let group = key_group(sensor.as_bytes());
                let new = Sensor { name: name.clone(), more: None, series, metric: number, group };
                sensors.insert_unique(hash, new, |known| hasher.hash_one(&*known.name));
                (name, group)
            }
        };
        Interned { series, group, name: Some(Box::new(SeriesName { sensor: name, metric })) }
    }

    /// The number of a metric.
    fn metric(&mut self, metric: &str) -> u16 {
        if let Some(number) = self.metric_numbers.get(metric) {
            return *number;
        }
        let (name, number) = (Arc::<str>::from(metric), self.metrics.len() as u16);
        self.metrics.push(name.clone());
        self.metric_numbers.insert(name, number);
        number
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
    fn a_sensors_series_are_told_apart_however_many_there_are() {
        let mut interner = Interner::default();
        for round in 0..2 {
            for metric in 0..50 {
                let interned = interner.intern("s-1", &format!("m-{metric}"));
                assert_eq!((interned.series, interned.name.is_some()), (metric, round == 0));
            }
        }
        assert_eq!(size_of::<Sensor>(), 32);
    }

    #[test]
    fn ever_new_metrics_start_the_numbering_over() {
        let mut interner = Interner::default();
        for n in 0..=MAX_METRICS {
            assert!(interner.intern("s-1", &format!("m-{n}")).series < MAX_METRICS as u32);
        }
        assert_eq!(interner.metrics.len(), 1);
        assert!(interner.intern("s-1", "m-0").name.is_some());
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
