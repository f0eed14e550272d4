//! Judges readings one by one, and what is due in between.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::config::{Condition, Config, OnConflict, Stat, Window};
use crate::decode::{Decoded, Decoder, Identity, Readings, Value};
use crate::journal::{self, ArchiveRow, Counts, DeadLetter, Outcome, PartitionCounts, Reason, SeriesRolling, State};
use crate::journal::{Transition, alert_id};
use crate::log::Counted;
use crate::rolling::Rolling;
use crate::rules::{Accepted, Step, Watch, applies};
use crate::{Partition, Record};

/// The number of key groups.
const KEY_GROUPS: u64 = 4096;

/// The state of everything, after some epochs.
pub struct Judge<'a> {
    config: &'a Config,
    counted: &'a Counted,
    /// (source, topic) -> decoder of the source
    streams: HashMap<(&'a str, &'a str), usize>,
    decoders: Vec<Decoder>,
    partitions: BTreeMap<Partition, PartitionState>,
    /// Sensor -> metric -> place in `series`.
    names: HashMap<Arc<str>, HashMap<Arc<str>, usize>>,
    series: Vec<Series>,
    /// Key group -> how many of its series are live.
    live: HashMap<u64, u64>,
    /// The configured windows, then those that only rules name.
    windows: Vec<Window>,
    /// (what must have been counted, series): when to look at a series. Looking too early does no harm.
    agenda: BinaryHeap<Reverse<(u64, usize)>>,
    /// The first whole second, in milliseconds, that has not been looked at.
    next_second: u64,
    outcome: Outcome,
}

#[derive(Clone, Copy, Default)]
struct PartitionState {
    /// T, in milliseconds.
    newest: Option<i64>,
    counts: Counts,
}

struct Series {
    sensor: Arc<str>,
    metric: Arc<str>,
    group: u64,
    /// c
    clock: i64,
    /// counted(the epoch in which c last moved)
    moved: u64,
    /// Has accepted a reading, and is not forgotten since.
    live: bool,
    /// c when it was last forgotten.
    forgotten_at: Option<i64>,
    /// What it accepted: identity -> event time, value bits.
    accepted: HashMap<Identity, (i64, u64)>,
    /// When to let go of old ones.
    prune_at: usize,
    windows: Vec<Rolling>,
    watches: Vec<Watch>,
    /// Its entry in the agenda that counts.
    agenda: Option<u64>,
}

/// A reading and where it comes from.
struct Reading<'r> {
    epoch: u64,
    record: &'r Record,
    index: u16,
    sensor: &'r Arc<str>,
    metric: &'r Arc<str>,
    time: i64,
    value: f64,
    identity: Identity,
}

/// What became of a reading.
enum Verdict {
    Future,
    Duplicate { conflicting: bool },
    Late,
    Accepted { behind: bool },
    DeadLetter { reason: Reason },
}

impl<'a> Judge<'a> {
    /// Before the first epoch.
    pub fn of(config: &'a Config, counted: &'a Counted) -> Result<Judge<'a>, String> {
        let mut streams = HashMap::new();
        let mut decoders = Vec::new();
        for (place, source) in config.sources.iter().enumerate() {
            decoders.push(Decoder::of(config, &source.decode)?);
            streams.extend(source.topics.iter().map(|topic| ((source.name.as_str(), topic.as_str()), place)));
        }
        let mut windows = config.windows.clone();
        for rule in &config.rules {
            if let Condition::Threshold { of: Some((_, window)), .. } = rule.condition
                && !windows.contains(&window)
            {
                windows.push(window);
            }
        }
        Ok(Judge {
            config,
            counted,
            streams,
            decoders,
            partitions: BTreeMap::new(),
            names: HashMap::new(),
            series: Vec::new(),
            live: HashMap::new(),
            windows,
            agenda: BinaryHeap::new(),
            next_second: 0,
            outcome: Outcome::default(),
        })
    }

    /// Looks at all whole seconds up to this epoch, itself included, which were not looked at yet.
    ///
    /// Only those at which something may be due are visited: what is due depends on counted time alone.
    pub fn whole_seconds(&mut self, until: u64) {
        while let Some(Reverse((count, _))) = self.agenda.peek() {
            let reached = self.counted.reaches(*count).and_then(|epoch| epoch.checked_next_multiple_of(1000));
            let Some(second) = reached.map(|second| second.max(self.next_second)) else { break };
            if second > until {
                break;
            }
            let counted = self.counted.at(second);
            while let Some(&Reverse((count, place))) = self.agenda.peek()
                && count <= counted
            {
                self.agenda.pop();
                if self.series[place].agenda == Some(count) {
                    self.series[place].agenda = None;
                    self.look_at(place, second, counted);
                    self.schedule(place);
                }
            }
            self.next_second = second + 1000;
        }
    }

    /// The records of the epoch have been taken: a second is looked at before its epoch, never after.
    pub fn epoch_done(&mut self, epoch: u64) {
        self.next_second = self.next_second.max((epoch / 1000 + 1) * 1000);
    }

    /// Meets the deadlines of a series that are due at a second; then forgets it, if that is due.
    fn look_at(&mut self, place: usize, second: u64, counted: u64) {
        let series = &self.series[place];
        let silent_ms = counted - series.moved;
        let now = i128::from(series.clock) + i128::from(silent_ms) * 1000;
        self.meet_deadlines(place, second, now);
        let series = &mut self.series[place];
        if series.live && silent_ms >= self.config.series_ttl_ms {
            series.live = false;
            series.forgotten_at = Some(series.clock);
            series.accepted = HashMap::new();
            series.windows = Vec::new();
            series.watches.iter_mut().for_each(Watch::forget);
            *self.live.entry(series.group).or_default() -= 1;
        }
    }

    /// Meets the deadlines of a series up to an event time.
    fn meet_deadlines(&mut self, place: usize, epoch: u64, now: i128) {
        let series = &mut self.series[place];
        let mut steps = Vec::new();
        for (at, watch) in series.watches.iter_mut().enumerate() {
            let condition = &self.config.rules[watch.rule].condition;
            if let Some(after) = watch.due_after(condition, series.live) {
                let deadline = series.clock.saturating_add(after);
                if now >= i128::from(deadline) {
                    let mut met = Vec::new();
                    watch.meet(condition, deadline, &mut met);
                    steps.extend(met.into_iter().map(|step| (at, step)));
                }
            }
        }
        self.write_down(place, epoch, steps);
    }

    /// Puts the series on the agenda for the first thing that may become due.
    fn schedule(&mut self, place: usize) {
        let series = &mut self.series[place];
        let deadlines = series.watches.iter().filter_map(|watch| {
            let after = watch.due_after(&self.config.rules[watch.rule].condition, series.live)?;
            Some(after.unsigned_abs().div_ceil(1000))
        });
        let forgotten = series.live.then_some(self.config.series_ttl_ms);
        let Some(after) = deadlines.chain(forgotten).min() else { return };
        let count = series.moved.saturating_add(after);
        if series.agenda.is_none_or(|known| count < known) {
            series.agenda = Some(count);
            self.agenda.push(Reverse((count, place)));
        }
    }

    /// Takes the next record of a partition.
    pub fn record(&mut self, epoch: u64, partition: &Partition, record: &Record) -> Result<(), String> {
        let Some(&decoder) = self.streams.get(&(&*record.source, &*record.topic)) else {
            return Err(format!("the stream ({}, {}) is not configured", record.source, record.topic));
        };
        let decoded = self.decoders[decoder].decode(record);
        self.decoded(epoch, partition, record, decoded);
        Ok(())
    }

    /// Takes the next record of a partition, which is set aside.
    pub fn set_aside(&mut self, epoch: u64, partition: &Partition, record: &Record) {
        self.decoded(epoch, partition, record, Decoded::DeadLetter(Reason::Bug));
    }

    fn decoded(&mut self, epoch: u64, partition: &Partition, record: &Record, decoded: Decoded) {
        let mut state = self.partitions.get(partition).copied().unwrap_or_default();

        let stamp = record.timestamp.unwrap_or(epoch as i64);
        let newest = state.newest.map_or(stamp, |newest| newest.max(stamp));
        state.newest = Some(newest);

        state.counts.records += 1;
        match decoded {
            Decoded::Filtered => state.counts.filtered += 1,
            Decoded::DeadLetter(reason) => {
                state.counts.dead_lettered += 1;
                self.dead_letter(record, None, reason);
            }
            Decoded::Readings(readings) => {
                state.counts.decoded += 1;
                self.readings(epoch, record, &readings, newest, &mut state.counts);
            }
        }
        match self.partitions.get_mut(partition) {
            Some(kept) => *kept = state,
            None => drop(self.partitions.insert(partition.clone(), state)),
        }
    }

    fn readings(&mut self, epoch: u64, record: &Record, readings: &Readings, newest: i64, counts: &mut Counts) {
        let Readings { sensor, time, identity, values } = readings;
        for (index, (metric, value)) in (0..).zip(values) {
            counts.readings += 1;
            match *value {
                Value::Null => counts.nulls += 1,
                Value::Refused(reason) => {
                    counts.dead_lettered_values += 1;
                    self.dead_letter(record, Some(index), reason);
                }
                Value::Finite(value) => {
                    let reading =
                        Reading { epoch, record, index, sensor, metric, time: *time, value, identity: *identity };
                    self.reading(&reading, newest, counts);
                }
            }
        }
    }

    /// Judges, counts and archives a reading.
    fn reading(&mut self, reading: &Reading, newest: i64, counts: &mut Counts) {
        let verdict = self.verdict(reading, newest);
        match verdict {
            Verdict::Future => counts.future += 1,
            Verdict::Late => counts.late += 1,
            Verdict::Duplicate { conflicting } => {
                counts.duplicates += 1;
                counts.conflicting += u64::from(conflicting);
            }
            Verdict::Accepted { behind } => {
                counts.accepted += 1;
                counts.behind += u64::from(behind);
            }
            Verdict::DeadLetter { reason } => {
                counts.dead_lettered_values += 1;
                counts.conflicting += u64::from(reason == Reason::Conflict);
                self.dead_letter(reading.record, Some(reading.index), reason);
            }
        }
        let (late, future, behind) = match verdict {
            Verdict::Future => (false, true, false),
            Verdict::Late => (true, false, false),
            Verdict::Accepted { behind } => (false, false, behind),
            Verdict::Duplicate { .. } | Verdict::DeadLetter { .. } => return,
        };
        if self.config.archive {
            self.outcome.archive.push(ArchiveRow {
                epoch: reading.epoch,
                source: reading.record.source.clone(),
                topic: reading.record.topic.clone(),
                partition: reading.record.partition,
                offset: reading.record.offset,
                index: reading.index,
                sensor: reading.sensor.clone(),
                metric: reading.metric.clone(),
                time: reading.time,
                value: reading.value,
                late,
                future,
                behind,
            });
        }
    }

    /// Section 3, in its order; an accepted reading has its effect.
    fn verdict(&mut self, reading: &Reading, newest: i64) -> Verdict {
        let time = reading.time;
        let newest_us = i128::from(newest) * 1000;
        if i128::from(time) > newest_us + i128::from(self.config.max_clock_skew_us) {
            return Verdict::Future;
        }

        let known = self.names.get(reading.sensor).and_then(|metrics| metrics.get(reading.metric)).copied();
        let Some(place) = known.filter(|place| self.series[*place].live) else {
            let clock = known.map(|forgotten| self.series[forgotten].clock);
            if clock.is_some_and(|clock| time <= clock) {
                return Verdict::Late;
            }
            let group = xxh3_64(reading.sensor.as_bytes()) % KEY_GROUPS;
            let live = self.live.entry(group).or_default();
            if *live >= (u128::from(self.config.max_series) * 2).div_ceil(u128::from(KEY_GROUPS)) as u64 {
                return Verdict::DeadLetter { reason: Reason::TooManySeries };
            }
            *live += 1;
            let place = known.unwrap_or_else(|| self.new_series(reading, group));
            self.start(place);
            self.accept(place, reading, clock);
            return Verdict::Accepted { behind: false };
        };
        let series = &self.series[place];
        let clock = series.clock;
        if let Some(&(earlier, value)) = series.accepted.get(&reading.identity)
            && earlier >= clock.saturating_sub(self.config.dedup.window_us)
        {
            let conflicting = (earlier, value) != (time, reading.value.to_bits());
            return match self.config.dedup.on_conflict {
                OnConflict::DeadLetter if conflicting => Verdict::DeadLetter { reason: Reason::Conflict },
                _ => Verdict::Duplicate { conflicting },
            };
        }
        let before_it_was_forgotten = series.forgotten_at.is_some_and(|floor| time <= floor);
        if time < clock.saturating_sub(self.config.allowed_lateness_us) || before_it_was_forgotten {
            return Verdict::Late;
        }
        self.accept(place, reading, Some(clock));
        Verdict::Accepted { behind: time < clock }
    }

    /// A series by its name, which has accepted nothing yet.
    fn new_series(&mut self, reading: &Reading, group: u64) -> usize {
        let (sensor, metric) = (reading.sensor.clone(), reading.metric.clone());
        let rules = self.config.rules.iter().enumerate();
        let watches = rules.filter(|(_, rule)| applies(self.config, rule, &sensor, &metric));
        let series = Series {
            sensor: sensor.clone(),
            metric: metric.clone(),
            group,
            clock: i64::MIN,
            moved: 0,
            live: false,
            forgotten_at: None,
            accepted: HashMap::new(),
            prune_at: 64,
            windows: Vec::new(),
            watches: watches.map(|(place, _)| Watch::of(place)).collect(),
            agenda: None,
        };
        let place = self.series.len();
        self.series.push(series);
        self.names.entry(sensor).or_default().insert(metric, place);
        place
    }

    /// A series lives, for the first time or again, with empty windows.
    fn start(&mut self, place: usize) {
        self.series[place].windows = self.windows.iter().map(|window| Rolling::of(*window)).collect();
    }

    /// The effect of an accepted reading. `before` is the clock without it, if the series has one.
    fn accept(&mut self, place: usize, reading: &Reading, before: Option<i64>) {
        let &Reading { epoch, time, value, .. } = reading;
        let behind = before.is_some_and(|before| time < before);
        if before.is_some() && !behind {
            // Of a series that was forgotten only what fires has a deadline: it lives only after this.
            self.meet_deadlines(place, epoch, time.into());
        }
        let series = &mut self.series[place];
        series.live = true;
        if !behind {
            series.clock = time;
            series.moved = self.counted.at(epoch);
        }
        series.accepted.insert(reading.identity, (time, value.to_bits()));
        if series.accepted.len() > series.prune_at {
            // Only for the memory's sake: what is older is not asked for again.
            let oldest = series.clock.saturating_sub(self.config.dedup.window_us);
            series.accepted.retain(|_, (time, _)| *time >= oldest);
            series.prune_at = 2 * series.accepted.len().max(32);
        }
        for window in &mut series.windows {
            window.accept(time, value, before, series.clock);
        }
        let accepted = Accepted { time, value, windows: &series.windows };
        let oldest = series.clock.saturating_sub(self.config.allowed_lateness_us);
        let mut steps = Vec::new();
        for (at, watch) in series.watches.iter_mut().enumerate() {
            let condition = &self.config.rules[watch.rule].condition;
            let mut taken = Vec::new();
            if behind {
                watch.behind(condition, accepted, &mut taken);
            } else {
                watch.clock_moved(oldest);
                watch.reading(condition, accepted, &mut taken);
            }
            steps.extend(taken.into_iter().map(|step| (at, step)));
        }
        self.write_down(place, epoch, steps);
        self.schedule(place);
    }

    fn write_down(&mut self, place: usize, epoch: u64, steps: Vec<(usize, Step)>) {
        let series = &self.series[place];
        for (watch, step) in steps {
            let rule = &self.config.rules[series.watches[watch].rule];
            self.outcome.transitions.push(Transition {
                epoch,
                n: 0,
                time: step.time,
                state: step.state,
                key: rule.key.clone(),
                rule: rule.name.clone(),
                severity: rule.severity.clone(),
                sensor: series.sensor.clone(),
                metric: series.metric.clone(),
                value: step.value,
                start: step.start,
                ordinal: step.ordinal,
                behind: step.behind,
                alert: alert_id(&rule.key, &series.sensor, &series.metric, step.start, step.ordinal),
                transition: u8::from(step.state == State::Resolved),
                version: rule.version.clone(),
            });
        }
    }

    fn dead_letter(&mut self, record: &Record, index: Option<u16>, reason: Reason) {
        let Record { source, topic, partition, offset, .. } = record;
        let (source, topic) = (source.clone(), topic.clone());
        let (partition, offset) = (*partition, *offset);
        self.outcome.dead_letters.push(DeadLetter { source, topic, partition, offset, index, reason });
    }

    /// Everything that came out.
    pub fn outcome(self) -> Outcome {
        let Judge { config, partitions, mut series, mut outcome, .. } = self;
        journal::number(&mut outcome.transitions);
        outcome.journal = outcome.transitions.iter().map(Transition::line).collect();
        outcome.counts = partitions
            .into_iter()
            .map(|(partition, state)| PartitionCounts {
                source: partition.source,
                topic: partition.topic,
                partition: partition.partition,
                counts: state.counts,
            })
            .collect();
        series.sort_by(|a, b| (&a.sensor, &a.metric).cmp(&(&b.sensor, &b.metric)));
        for series in &series {
            // The configured windows come first; there are none if the series is forgotten.
            for rolling in series.windows.iter().take(config.windows.len()) {
                outcome.rolling.push(SeriesRolling {
                    sensor: series.sensor.clone(),
                    metric: series.metric.clone(),
                    window: rolling.window(),
                    count: rolling.stat(Stat::Count),
                    mean: rolling.stat(Stat::Mean),
                    stddev: rolling.stat(Stat::Stddev),
                    min: rolling.stat(Stat::Min),
                    max: rolling.stat(Stat::Max),
                    rate: rolling.stat(Stat::Rate),
                    ewma: rolling.stat(Stat::Ewma),
                });
            }
        }
        outcome
    }
}
