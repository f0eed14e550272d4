//! The epoch log: which records are in which epoch, and which milliseconds are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Partition;

/// A line of the epoch log. Terms come one after the other; the lines of one term in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Line {
    /// The records of a partition, from where its range before ended, are in this epoch.
    Range {
        /// The epoch.
        epoch: u64,
        /// The source's name.
        source: Arc<str>,
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: i32,
        /// The offset after the last record of the range.
        next: i64,
        /// How many records there are.
        records: u64,
    },
    /// From this epoch on a process does not hear everything there is.
    Deaf {
        /// The epoch.
        epoch: u64,
        /// The process.
        process: u32,
    },
    /// From this epoch on it does.
    Hearing {
        /// The epoch.
        epoch: u64,
        /// The process.
        process: u32,
    },
    /// A record is a dead letter, whatever it holds and in whichever epoch it lies. In any place among the lines.
    SetAside {
        /// The source's name.
        source: Arc<str>,
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
    },
    /// A term begins, all its processes deaf.
    Term {
        /// How many there are.
        processes: u32,
    },
    /// The committed end of the term: this epoch is its last, lines beyond it are void.
    End {
        /// The epoch.
        epoch: u64,
    },
}

impl Line {
    fn epoch(&self) -> Option<u64> {
        match *self {
            Line::Range { epoch, .. } | Line::Deaf { epoch, .. } | Line::Hearing { epoch, .. } => Some(epoch),
            Line::Term { .. } | Line::End { .. } | Line::SetAside { .. } => None,
        }
    }
}

/// A range of offsets, from where the one before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The offset after its last record.
    pub next: i64,
    /// How many records it has.
    pub records: u64,
}

/// The epoch log, put in order.
#[derive(Clone, Debug)]
pub struct EpochLog {
    /// The ranges of every epoch that has some, in log order.
    pub epochs: BTreeMap<u64, BTreeMap<Partition, Range>>,
    /// Which time is counted.
    pub counted: Counted,
    /// The last complete epoch.
    pub end: u64,
    /// Records that are dead letters.
    pub set_aside: BTreeSet<(Partition, i64)>,
}

impl EpochLog {
    /// Puts lines in order, and refuses what no run can have written.
    pub fn of(lines: &[Line]) -> Result<EpochLog, String> {
        let counted = Counted::default();
        let mut log = EpochLog { epochs: BTreeMap::new(), counted, end: 0, set_aside: BTreeSet::new() };
        let mut others = Vec::new();
        for line in lines {
            match line.clone() {
                Line::SetAside { source, topic, partition, offset } => {
                    log.set_aside.insert((Partition { source, topic, partition }, offset));
                }
                other => others.push(other),
            }
        }
        let lines = &others;
        if let Some(line) = lines.first().filter(|line| !matches!(line, Line::Term { .. })) {
            return Err(format!("a line before the first term: {line:?}"));
        }
        let mut first = true;
        for term in lines.chunk_by(|_, line| !matches!(line, Line::Term { .. })) {
            log.term(term, first)?;
            first = false;
        }
        let mut ends: BTreeMap<&Partition, i64> = BTreeMap::new();
        for (epoch, ranges) in &log.epochs {
            for (partition, range) in ranges {
                if ends.insert(partition, range.next).is_some_and(|end| end > range.next) {
                    return Err(format!("epoch {epoch}: the range of {partition} ends before the one before it"));
                }
            }
        }
        Ok(log)
    }

    fn term(&mut self, lines: &[Line], first: bool) -> Result<(), String> {
        let [Line::Term { processes }, lines @ ..] = lines else { return Err("a term without its first line".into()) };
        if *processes == 0 {
            return Err("a term of no process".into());
        }
        let committed: Vec<u64> =
            lines.iter().filter_map(|line| if let Line::End { epoch } = line { Some(*epoch) } else { None }).collect();
        let end = match committed[..] {
            [] => lines.iter().filter_map(Line::epoch).max().unwrap_or(self.end),
            [end] => end,
            _ => return Err(format!("a term with several ends: {committed:?}")),
        };
        if end < self.end {
            return Err(format!("a term ends at {end}, the one before it at {}", self.end));
        }
        let mut lines: Vec<(u64, &Line)> = lines.iter().filter_map(|line| Some((line.epoch()?, line))).collect();
        lines.retain(|(epoch, _)| *epoch <= end);
        lines.sort_by_key(|(epoch, _)| *epoch);
        if let Some((epoch, _)) = lines.first().filter(|(epoch, _)| !first && *epoch <= self.end) {
            return Err(format!("a term has a line of epoch {epoch}, but the one before it ended at {}", self.end));
        }
        let mut deaf: BTreeSet<u32> = (0..*processes).collect();
        for (epoch, line) in lines {
            match line {
                Line::Range { source, topic, partition, next, records, .. } => {
                    let partition = Partition { source: source.clone(), topic: topic.clone(), partition: *partition };
                    let range = Range { next: *next, records: *records };
                    if self.epochs.entry(epoch).or_default().insert(partition.clone(), range).is_some() {
                        return Err(format!("epoch {epoch} has two ranges of {partition}"));
                    }
                }
                Line::Deaf { process, .. } | Line::Hearing { process, .. } if process >= processes => {
                    return Err(format!("epoch {epoch}: there is no process {process} in a term of {processes}"));
                }
                Line::Deaf { process, .. } => {
                    deaf.insert(*process);
                    self.counted.mark(epoch, false);
                }
                Line::Hearing { process, .. } => {
                    deaf.remove(process);
                    self.counted.mark(epoch, deaf.is_empty());
                }
                Line::Term { .. } | Line::End { .. } | Line::SetAside { .. } => {}
            }
        }
        self.counted.mark(end.saturating_add(1), false);
        self.end = end;
        Ok(())
    }
}

/// Epoch time, without that in which some process was deaf.
#[derive(Clone, Debug)]
pub struct Counted {
    /// In ascending order; the first is at 0.
    marks: Vec<Mark>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    /// From this epoch on ...
    from: u64,
    /// ... before which so many milliseconds were counted ...
    before: u64,
    /// ... time is counted or not.
    counting: bool,
}

impl Default for Counted {
    fn default() -> Counted {
        Counted { marks: vec![Mark { from: 0, before: 0, counting: false }] }
    }
}

impl Counted {
    fn mark(&mut self, from: u64, counting: bool) {
        let before = self.at(from);
        self.marks.pop_if(|mark| mark.from == from);
        self.marks.push(Mark { from, before, counting });
    }

    /// The number of milliseconds before an epoch that were counted.
    pub fn at(&self, epoch: u64) -> u64 {
        let mark = self.marks[self.marks.partition_point(|mark| mark.from <= epoch) - 1];
        mark.before + if mark.counting { epoch - mark.from } else { 0 }
    }

    /// The first epoch before which so many milliseconds were counted, if that is ever.
    pub fn reaches(&self, count: u64) -> Option<u64> {
        let after = self.marks.partition_point(|mark| mark.before < count);
        let Some(mark) = after.checked_sub(1).map(|last| self.marks[last]) else { return Some(0) };
        let last = after == self.marks.len();
        (mark.counting || !last).then(|| mark.from + (count - mark.before))
    }
}
