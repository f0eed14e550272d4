//! The judge: future, duplicate, late, accepted.

use super::{Clock, Common, Met, Passing, Size, Trip, operator};
use crate::dead_letters::RefusedReading;
use crate::decode::Reason;
use crate::epoch_log::Control;
use crate::ledger::Counts;
use crate::metrics::{ReadingCounts, SourceMetrics};
use crate::saving::Saving;
use crate::source::node::{Refused, Tally};
use operators::dictionary::SharedDictionary;
use operators::judge::{Judge, Refusal, Tally as Judgement};
use operators::keyed::{Arrived, Node, Out, Step};
use operators::state::{GroupStates, StateError};
use operators::{Batch, Epoch, Reading, SeriesName, SeriesNo, Stream};
use std::collections::BTreeMap;

/// Future, duplicate, late, accepted.
pub struct JudgeNode {
    common: Common,
    judge: Judge,
    clock: Clock,
    created: Vec<SeriesNo>,
    size: Size,
    saving: Saving,
    sources: Vec<SourceMetrics>,
    /// By partition: the readings of an epoch, in log order; buffers are kept from epoch to epoch.
    parts: BTreeMap<(Stream, u32), Vec<Reading>>,
}

impl JudgeNode {
    /// With the state of its key groups, if there is any.
    pub fn new<'a>(
        common: Common,
        mut judge: Judge,
        clock: Clock,
        groups: impl Iterator<Item = (u16, &'a [u8])>,
    ) -> Result<Self, StateError> {
        let mut created = Vec::new();
        for (group, bytes) in groups {
            judge.load(group, bytes, &mut created)?;
        }
        let sources = common.sources();
        let saving = common.saving(operator::JUDGE);
        Ok(Self { common, judge, clock, created, size: Size::default(), saving, sources, parts: BTreeMap::new() })
    }

    fn epoch(&mut self, epoch: Epoch, arrived: Arrived<Reading, Control, ()>, out: &mut Out<Passing, Tally, Met>) {
        let groups = arrived.first.iter().flatten().map(|reading| reading.group);
        self.common.saves(&mut self.saving, operator::JUDGE, |saving| saving.before(groups, &self.judge));
        let mut passing = Passing { batch: Batch { epoch, ..Batch::default() }, ..Passing::default() };
        let mut controls = arrived.second;
        controls.sort_unstable();
        controls.dedup();
        for control in controls {
            passing.term |= matches!(control, Control::Term { .. });
            passing.batch.counting = self.clock.apply(epoch, control).or(passing.batch.counting);
        }
        for container in arrived.first {
            // Readings come in runs of one partition, each partition from one sender in its order: log order is a
            // matter of putting runs behind one another, and nothing is compared.
            let mut readings = container.into_iter().peekable();
            while let Some(first) = readings.next() {
                let key = (first.stream, first.partition);
                let part = self.parts.entry(key).or_default();
                part.push(first);
                while let Some(next) = readings.next_if(|r| (r.stream, r.partition) == key) {
                    part.push(next);
                }
            }
        }
        let now = self.clock.counted.at(epoch);
        for ((stream, partition), part) in &mut self.parts {
            if part.is_empty() {
                continue;
            }
            debug_assert!(part.is_sorted_by_key(|r| (r.offset, r.index)), "a partition has one sender");
            let mut tally = Judgement::default();
            for mut reading in part.drain(..) {
                operators::hand::hold(*stream, *partition, reading.offset);
                assert!(self.common.trip != Some(Trip::Judge(*partition, reading.offset)), "a test asked for it");
                let refusal = match unknown(&self.judge, &self.common.dictionary, &mut reading) {
                    Some(name) => {
                        tally.refused += 1;
                        Some((Refusal::TooManySeries, *name))
                    }
                    None => self.judge.judge(now, &reading, &mut passing.batch, &mut tally).map(|refusal| {
                        let dictionary = self.common.dictionary.borrow();
                        (refusal, dictionary.name(reading.series).clone())
                    }),
                };
                if let Some((refusal, name)) = refusal {
                    let reason = match refusal {
                        Refusal::TooManySeries => Reason::TooManySeries,
                        Refusal::Conflict => Reason::Conflict,
                    };
                    self.sources[usize::from(*stream)].dead_letters(reason.as_str(), 1);
                    passing.refused.push(Refused {
                        stream: *stream,
                        partition: *partition,
                        offset: reading.offset,
                        index: Some(reading.index),
                        reason,
                        // The record's bytes may be on another worker: the reading as it was decoded stands for them.
                        bytes: Box::default(),
                        reading: Some(RefusedReading {
                            sensor: name.sensor,
                            metric: name.metric,
                            time: reading.time,
                            value: Some(reading.value),
                        }),
                    });
                }
            }
            self.sources[usize::from(*stream)].readings(&ReadingCounts {
                accepted: tally.accepted,
                behind: tally.behind,
                duplicates: tally.duplicates,
                conflicting: tally.conflicting,
                late: tally.late,
                future: tally.future,
                dead_letters: tally.refused,
                nulls: 0,
            });
            let counts = Counts {
                accepted: tally.accepted,
                behind: tally.behind,
                duplicates: tally.duplicates,
                conflicting: tally.conflicting,
                late: tally.late,
                future: tally.future,
                dead_lettered_values: tally.refused,
                ..Counts::default()
            };
            out.second.push((*stream, *partition, counts));
        }
        operators::hand::put_down();
        out.third.extend(met(&passing.batch.created, epoch));
        out.first.push(passing);
    }
}

fn met(series: &[SeriesNo], epoch: Epoch) -> impl Iterator<Item = Met> {
    series.iter().map(move |no| (*no, epoch, 1))
}

/// The name of a reading whose series is not known here and finds no room. So it takes no number: ever new names would
/// take ever more memory.
#[inline]
fn unknown(judge: &Judge, dictionary: &SharedDictionary, reading: &mut Reading) -> Option<Box<SeriesName>> {
    let name = reading.name.as_ref()?;
    let mut dictionary = dictionary.borrow_mut();
    if reading.future() || judge.has_room(reading.group) || dictionary.find(name).is_some() {
        dictionary.settle(reading);
    }
    reading.name.take()
}

impl Node for JudgeNode {
    type A = Reading;
    type B = Control;
    type C = ();
    type X = Passing;
    type Y = Tally;
    type Z = Met;

    fn begin(&mut self, out: &mut Out<Passing, Tally, Met>) {
        let created = std::mem::take(&mut self.created);
        if !created.is_empty() {
            out.third.extend(met(&created, 0));
            // Later operators know restored series from their own state; the sinks have yet to hear their names.
            out.first.push(Passing { batch: Batch { created, ..Batch::default() }, ..Passing::default() });
        }
    }
    fn arrive(&mut self, readings: &mut Vec<Reading>) {
        let mut dictionary = self.common.dictionary.borrow_mut();
        readings.iter_mut().for_each(|reading| dictionary.resolve(reading));
    }
    fn due(&self) -> Option<Epoch> {
        self.judge.second_due(&self.clock.counted)
    }
    fn go_on(&mut self) -> bool {
        self.common.saves(&mut self.saving, operator::JUDGE, |saving| saving.some(&self.judge))
    }
    fn step(&mut self, step: Step<Reading, Control, ()>, out: &mut Out<Passing, Tally, Met>) {
        match step {
            Step::Cut(cut) => {
                let began_us = self.common.now_us();
                self.saving.cut(cut, &self.judge);
                if self.common.worker == 0 {
                    self.common.save(cut, operator::CLOCK, GroupStates::from([(0, self.clock.save())]));
                }
                self.common.saved(operator::JUDGE, began_us);
            }
            Step::Second(second) => {
                let mut batch = Batch { epoch: second, ..Batch::default() };
                let (saving, dictionary) = (&mut self.saving, &self.common.dictionary);
                self.judge.second(second, &self.clock.counted, &mut batch.forgotten, |judge, series| {
                    let group = dictionary.borrow().group(series);
                    saving.before([group], judge);
                });
                if !batch.forgotten.is_empty() {
                    out.first.push(Passing { batch, ..Passing::default() });
                }
            }
            Step::Epoch(epoch, arrived) => self.epoch(epoch, arrived, out),
            Step::Passed(frontier) => {
                let judge = &self.judge;
                self.size.tell(frontier, &self.common.metrics, operator::JUDGE, || (judge.state_bytes(), judge.keys()));
            }
            Step::End => {}
        }
    }
}
