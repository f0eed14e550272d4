//! The numbers of a worker's series: dense, so that an operator's state is a vector.
//!
//! A name is hashed once per sender and series, when the sender announces its number; from then on the sender's number
//! is looked up in a table. Numbers are never stored and never compared between workers: state carries names.

use crate::key_group::{KEY_GROUPS, key_group};
use crate::{Reading, SeriesName, SeriesNo};
use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::hash::BuildHasher;
use std::rc::Rc;
use std::sync::Arc;

/// The dictionary as one worker's operators share it.
pub type SharedDictionary = Rc<RefCell<Dictionary>>;

/// A sender's number that it never announced.
const UNKNOWN: SeriesNo = SeriesNo::MAX;
/// A sender's number whose name waits for a series.
const WAITING: SeriesNo = SeriesNo::MAX - 1;

/// Names and numbers of one worker's series.
#[derive(Default)]
pub struct Dictionary {
    hasher: RandomState,
    /// Numbers by name. What is compared and moved about is half of the hash: the names lie all over the memory.
    by_name: HashTable<(u32, SeriesNo)>,
    names: Vec<SeriesName>,
    groups: Vec<u16>,
    /// Metrics are few: one text each, however many series.
    metrics: BTreeSet<Arc<str>>,
    /// By sender: the sender's number -> ours.
    senders: Vec<Vec<SeriesNo>>,
    /// Names that were announced and are no series here: by sender and its number. What is refused stays here and goes
    /// when the sender starts its numbering over, so that ever new names take no more than that.
    waiting: HashMap<(usize, SeriesNo), Box<SeriesName>, RandomState>,
    /// By group.
    in_group: Vec<Group>,
}

/// The series of a group.
#[derive(Default)]
struct Group {
    /// The first ones are in order of name.
    numbers: Vec<SeriesNo>,
    ordered: usize,
}

impl Dictionary {
    /// The number of a name, if it has one.
    pub fn find(&self, name: &SeriesName) -> Option<SeriesNo> {
        self.find_hashed(self.hash(name), name)
    }
    fn hash(&self, name: &SeriesName) -> u32 {
        self.hasher.hash_one(name) as u32
    }
    fn find_hashed(&self, hash: u32, name: &SeriesName) -> Option<SeriesNo> {
        let same = |(other, no): &(u32, SeriesNo)| *other == hash && self.names[*no as usize] == *name;
        self.by_name.find(spread(hash), same).map(|(_, no)| *no)
    }
    /// The number of a name; a new name gets the next one.
    pub fn intern(&mut self, name: &SeriesName) -> SeriesNo {
        let hash = self.hash(name);
        if let Some(no) = self.find_hashed(hash, name) {
            return no;
        }
        let no = self.names.len() as SeriesNo;
        assert!(no < WAITING, "a worker holds fewer than 2^32 - 2 series");
        let metric = self.metrics.get(&name.metric).cloned().unwrap_or_else(|| {
            self.metrics.insert(name.metric.clone());
            name.metric.clone()
        });
        let group = key_group(name.sensor.as_bytes());
        self.names.push(SeriesName { sensor: name.sensor.clone(), metric });
        self.groups.push(group);
        self.by_name.insert_unique(spread(hash), (hash, no), |(hash, _)| spread(*hash));
        if self.in_group.is_empty() {
            self.in_group.resize_with(usize::from(KEY_GROUPS), Group::default);
        }
        self.in_group[usize::from(group)].numbers.push(no);
        no
    }
    /// The name of a number.
    pub fn name(&self, no: SeriesNo) -> &SeriesName {
        &self.names[no as usize]
    }
    /// The key group of a number.
    pub fn group(&self, no: SeriesNo) -> u16 {
        self.groups[no as usize]
    }
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
    /// Makes the sender's number of a reading ours, and takes the name off it. A name announces its number, again too.
    /// A reading of a name that is no series here keeps its name, and the sender's number, until it is `settle`d.
    ///
    /// # Panics
    /// If the sender never announced the number: an invariant of the exchange is broken, and any answer would be wrong.
    pub fn resolve(&mut self, reading: &mut Reading) {
        let at = (reading.sender(), reading.series);
        if let Some(name) = reading.name.take() {
            match self.find(&name) {
                Some(no) => self.know(at, no),
                None => {
                    self.waiting.insert(at, name);
                    *self.entry(at) = WAITING;
                }
            }
        }
        match self.senders.get(at.0).and_then(|table| table.get(at.1 as usize)).copied() {
            Some(WAITING) => {
                let name = self.waiting.get(&at).cloned();
                match name.as_ref().and_then(|name| self.find(name)) {
                    // Another sender's reading has settled it.
                    Some(no) => {
                        self.know(at, no);
                        reading.series = no;
                    }
                    None => reading.name = name,
                }
            }
            Some(no) if no != UNKNOWN => reading.series = no,
            _ => panic!("worker {} sent a reading of its series {} without ever naming it", at.0, at.1),
        }
    }
    /// Makes the name that a resolved reading still carries a series.
    pub fn settle(&mut self, reading: &mut Reading) {
        if let Some(name) = reading.name.take() {
            let at = (reading.sender(), reading.series);
            reading.series = self.intern(&name);
            // Unless the sender has used the number for another name since.
            if self.waiting.get(&at) == Some(&name) {
                self.know(at, reading.series);
            }
        }
    }
    fn entry(&mut self, (sender, number): (usize, SeriesNo)) -> &mut SeriesNo {
        if self.senders.len() <= sender {
            self.senders.resize_with(sender + 1, Vec::new);
        }
        let table = &mut self.senders[sender];
        if table.len() <= number as usize {
            table.resize(number as usize + 1, UNKNOWN);
        }
        &mut table[number as usize]
    }
    fn know(&mut self, at: (usize, SeriesNo), no: SeriesNo) {
        self.waiting.remove(&at);
        *self.entry(at) = no;
    }
    /// The numbers of a group, in order of name.
    pub(crate) fn group_in_order(&mut self, group: u16) -> &[SeriesNo] {
        let Self { names, in_group, .. } = self;
        let Some(Group { numbers, ordered }) = in_group.get_mut(usize::from(group)) else { return &[] };
        if *ordered < numbers.len() {
            numbers.sort_by(|a, b| names[*a as usize].cmp(&names[*b as usize]));
            *ordered = numbers.len();
        }
        numbers
    }
    /// All numbers, in order of name.
    pub fn in_order(&mut self) -> impl Iterator<Item = SeriesNo> {
        for group in 0..KEY_GROUPS {
            self.group_in_order(group);
        }
        let names = &self.names;
        // The least of each group are few, however many series there are.
        let least = move |numbers| least(names, numbers);
        let mut next: BinaryHeap<_> = self.in_group.iter().filter_map(|group| least(&group.numbers)).collect();
        std::iter::from_fn(move || {
            let Reverse((_, numbers)) = next.pop()?;
            let (first, rest) = numbers.split_first()?;
            next.extend(least(rest));
            Some(*first)
        })
    }
    /// The numbers of a sensor, in order of metric.
    pub fn of_sensor(&mut self, sensor: &str) -> impl Iterator<Item = SeriesNo> {
        let group = key_group(sensor.as_bytes());
        self.group_in_order(group);
        let Self { names, in_group, .. } = &*self;
        let numbers = in_group.get(usize::from(group)).into_iter().flat_map(|group| &group.numbers);
        numbers.copied().filter(move |no| *names[*no as usize].sensor == *sensor)
    }
}

/// The first of some numbers, by its name, and all of them.
fn least<'a>(names: &'a [SeriesName], numbers: &'a [SeriesNo]) -> Option<Reverse<(&'a SeriesName, &'a [SeriesNo])>> {
    numbers.first().map(|first| Reverse((&names[*first as usize], numbers)))
}

/// Of half a hash a whole one, for a table that takes its upper bits, too.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(sensor: &str, metric: &str) -> SeriesName {
        SeriesName { sensor: sensor.into(), metric: metric.into() }
    }
    fn reading(sender: usize, number: SeriesNo, name: Option<SeriesName>) -> Reading {
        let mut r = Reading::new((0, 0, 0, 0), (number, 0), name.map(Box::new), (0, 0.0, 0));
        r.stamp(sender, false);
        r
    }
    fn resolved(d: &mut Dictionary, mut r: Reading) -> SeriesNo {
        d.resolve(&mut r);
        d.settle(&mut r);
        assert!(r.name.is_none());
        r.series
    }

    #[test]
    fn two_senders_may_number_alike_and_a_sender_may_start_over() {
        let mut d = Dictionary::default();
        assert_eq!(resolved(&mut d, reading(0, 5, Some(name("a", "t")))), 0);
        assert_eq!(resolved(&mut d, reading(1, 5, Some(name("b", "t")))), 1);
        assert_eq!(resolved(&mut d, reading(1, 0, Some(name("a", "t")))), 0);
        assert_eq!(resolved(&mut d, reading(0, 5, None)), 0);
        assert_eq!(resolved(&mut d, reading(1, 5, None)), 1);
        assert_eq!(resolved(&mut d, reading(1, 5, Some(name("a", "h")))), 2);
        assert_eq!(resolved(&mut d, reading(1, 5, None)), 2);
        assert_eq!(d.len(), 3);
        assert_eq!((d.name(2), d.group(2)), (&name("a", "h"), key_group(b"a")));
    }

    #[test]
    fn names_that_are_refused_take_no_number_and_are_told_again_with_each_reading() {
        let mut d = Dictionary::default();
        for round in 0..3 {
            for number in 0..100 {
                let mut r = reading(0, number, Some(name(&format!("{round}-{number}"), "t")));
                d.resolve(&mut r);
                assert!(r.name.is_some());
                let mut again = reading(0, number, None);
                d.resolve(&mut again);
                assert_eq!(again.name.as_deref(), Some(&name(&format!("{round}-{number}"), "t")));
            }
        }
        assert_eq!((d.len(), d.waiting.len()), (0, 100), "what a sender's numbers stood for before is gone");
    }

    #[test]
    fn a_name_that_becomes_a_series_is_known_to_every_sender_that_waits() {
        let mut d = Dictionary::default();
        let (mut one, mut other) = (reading(0, 3, Some(name("a", "t"))), reading(1, 7, Some(name("a", "t"))));
        d.resolve(&mut one);
        d.resolve(&mut other);
        d.settle(&mut one);
        assert_eq!(resolved(&mut d, reading(1, 7, None)), one.series);
        d.settle(&mut other);
        assert_eq!((other.series, d.len(), d.waiting.len()), (one.series, 1, 0));
    }

    #[test]
    fn a_reading_settles_its_own_name_although_its_number_has_another_by_now() {
        let mut d = Dictionary::default();
        let mut early = reading(0, 3, Some(name("a", "t")));
        d.resolve(&mut early);
        let mut late = reading(0, 3, Some(name("b", "t")));
        d.resolve(&mut late);
        d.settle(&mut early);
        assert_eq!(d.name(early.series), &name("a", "t"));
        let no = resolved(&mut d, reading(0, 3, None));
        assert_eq!(d.name(no), &name("b", "t"));
    }

    #[test]
    fn the_border_between_sensor_and_metric_tells_series_apart() {
        let mut d = Dictionary::default();
        assert_ne!(d.intern(&name("ab", "c")), d.intern(&name("a", "bc")));
    }

    #[test]
    #[should_panic(expected = "worker 3 sent a reading of its series 9 without ever naming it")]
    fn a_number_that_was_never_announced_stops_the_run() {
        Dictionary::default().resolve(&mut reading(3, 9, None));
    }

    #[test]
    fn a_groups_series_come_in_order_of_name_however_they_were_met() {
        let mut d = Dictionary::default();
        for metric in ["t", "h", "p"] {
            d.intern(&name("a", metric));
        }
        assert_eq!(d.group_in_order(key_group(b"a")), [1, 2, 0]);
        d.intern(&name("a", "l"));
        assert_eq!(d.group_in_order(key_group(b"a")), [1, 3, 2, 0]);
    }
}
