//! The nodes between source and sinks: each hands its epochs to an operator, and its state to the checkpointer.

use crate::checkpoint::{self, Piece};
use crate::dead_lane::DeadLetterLane;
use crate::dead_letters::RefusedReading;
use crate::decode::Reason;
use crate::epoch_log::Control;
use crate::error::Failure;
use crate::ledger::Counts;
use crate::metrics::{Metrics, PartitionMetrics, ReadingCounts, SourceMetrics};
use crate::process::Shared;
use crate::saving::Saving;
use crate::seam::Fs;
use crate::server::readiness::{Readiness, reason};
use crate::sink::{AlertBatch, JournalEntry, LaneHandle, RowBatch};
use crate::source::node::{Refused, Tally};
use crate::stall::Stall;
use crate::views::{self, Firing, LastVal, Site};
use crossbeam_channel::Sender;
use operators::alert::{Alert, AlertState, Transition};
use operators::counted::CountedTime;
use operators::dictionary::SharedDictionary;
use operators::judge::{Judge, Refusal, Tally as Judgement};
use operators::keyed::{Arrived, Node, Out, Step};
use operators::rolling::Rolling;
use operators::rules::Rules;
use operators::state::{GroupStates, StateError};
use operators::{Batch, Epoch, Reading, SeriesName, SeriesNo, Stream, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

/// The names of operators in checkpoints.
pub mod operator {
    /// Series, clocks, identities.
    pub const JUDGE: &str = "judge";
    /// Windows.
    pub const ROLLING: &str = "rolling";
    /// Alerts that are pending or firing.
    pub const RULES: &str = "rules";
    /// Counted time and who hears; the same on every worker.
    pub const CLOCK: &str = "clock";
    /// How many alert transitions there were.
    pub const ALERTS: &str = "alerts";
}

/// A batch on its way through one worker, and what goes with it.
#[derive(Clone, Debug, Default)]
pub struct Passing {
    /// The batch.
    pub batch: Batch,
    /// Readings that the judge refused.
    pub refused: Vec<Refused>,
    /// A term begins at this epoch: rules that are no longer announced end here.
    pub term: bool,
}

/// A series that the judge has met.
pub type Met = (SeriesNo, Epoch, isize);

/// A rule begins (+1) or ceases (-1) to apply to a series of this worker: (series, rule).
pub type Applies = ((SeriesNo, u32), Epoch, isize);

/// What every node of a worker needs.
#[derive(Clone)]
pub struct Common {
    /// Among all workers.
    pub worker: usize,
    /// Among those of this process.
    pub local: usize,
    /// What the process' workers share.
    pub shared: Arc<Shared>,
    /// What Prometheus is told.
    pub metrics: Arc<Metrics>,
    /// To the checkpointer.
    pub pieces: Sender<(Epoch, Piece)>,
    /// The worker's series.
    pub dictionary: SharedDictionary,
    /// (source, topic) by stream.
    pub streams: Arc<Vec<(String, String)>>,
    /// How long its cuts take.
    pub stall: Stall,
    /// How many bytes of state are saved at a time.
    pub slice: usize,
    /// A panic that a test asks for.
    pub trip: Option<Trip>,
}

/// A bug that tests put in: a record (partition, offset) at which something panics. No configuration, flag or variable
/// of the environment leads here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    /// The decoder.
    Decoder(u32, i64),
    /// The judge.
    Judge(u32, i64),
}

impl Common {
    fn save(&self, cut: Epoch, operator: &'static str, groups: GroupStates) {
        let _ = self.pieces.send((cut, Piece::state(operator, groups)));
    }
    fn saving(&self, operator: &'static str) -> Saving {
        Saving::new(operator, self.pieces.clone(), self.slice)
    }
    /// Saves some of an operator's open cut, if it has one, and notes how long that took; says whether something is left.
    fn saves(&self, saving: &mut Saving, operator: &str, save: impl FnOnce(&mut Saving)) -> bool {
        if saving.is_open() {
            let began_us = self.now_us();
            save(saving);
            self.saved(operator, began_us);
        }
        saving.is_open()
    }
    /// The moment at which a node begins to save.
    fn now_us(&self) -> u64 {
        self.shared.epochs.monotonic_us()
    }
    /// An operator has saved something for a cut.
    fn saved(&self, operator: &str, began_us: u64) {
        let took_us = self.now_us().saturating_sub(began_us);
        self.metrics.checkpoint_cut_seconds.with_label_values(&[operator]).observe(took_us as f64 * 1e-6);
        self.stall.add(took_us);
    }
    /// The last of the nodes that save anything has done so, for this time.
    fn stalled(&self) {
        if let Some(us) = self.stall.take() {
            self.metrics.checkpoint_stall_seconds.observe(us as f64 * 1e-6);
        }
    }
    fn sources(&self) -> Vec<SourceMetrics> {
        self.streams.iter().map(|(source, _)| self.metrics.source(source)).collect()
    }
}

/// An operator's size as Prometheus sees it: each worker adds what changed about its part, once a second.
#[derive(Default)]
struct Size {
    next: Epoch,
    bytes: i64,
    keys: i64,
}

impl Size {
    fn tell(&mut self, frontier: Epoch, metrics: &Metrics, operator: &str, size: impl FnOnce() -> (usize, u64)) {
        if frontier < self.next {
            return;
        }
        self.next = frontier + 1000;
        let (bytes, keys) = size();
        let (bytes, keys) = (bytes as i64, keys as i64);
        metrics.operator_state_bytes.with_label_values(&[operator]).add(bytes - self.bytes);
        metrics.operator_state_keys.with_label_values(&[operator]).add(keys - self.keys);
        (self.bytes, self.keys) = (bytes, keys);
    }
}

/// Counted time, and who hears.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// What is counted.
    pub counted: CountedTime,
    processes: u32,
    hearing: BTreeSet<u32>,
}

#[derive(Serialize, Deserialize)]
struct SavedClock {
    counted: Vec<u8>,
    processes: u32,
    hearing: BTreeSet<u32>,
}

impl Clock {
    /// Takes a control line; says whether time counts from here on, if that changed.
    fn apply(&mut self, epoch: Epoch, control: Control) -> Option<bool> {
        let before = self.counted.counting();
        match control {
            // A term's processes are deaf when it begins: the end of the one before made them so, and one that hears
            // already may have said so before process 0 had its first epoch.
            Control::Term { processes } => self.processes = processes,
            Control::Deaf { process } => {
                self.hearing.remove(&process);
            }
            Control::Hearing { process } => {
                self.hearing.insert(process);
            }
        }
        let counting = self.processes > 0 && (0..self.processes).all(|process| self.hearing.contains(&process));
        self.counted.set(epoch, counting);
        (counting != before).then_some(counting)
    }
    fn save(&self) -> Vec<u8> {
        let saved =
            SavedClock { counted: self.counted.save(), processes: self.processes, hearing: self.hearing.clone() };
        serde_json::to_vec(&saved).unwrap_or_default()
    }
    /// Reads back what `save` wrote.
    pub fn load(bytes: &[u8]) -> anyhow::Result<Self> {
        let saved: SavedClock = serde_json::from_slice(bytes)?;
        let counted = CountedTime::load(&saved.counted)?;
        Ok(Self { counted, processes: saved.processes, hearing: saved.hearing })
    }
}

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

/// The key groups in which a batch changes something behind the judge; some of them several times.
fn groups(batch: &Batch, dictionary: &SharedDictionary) -> impl Iterator<Item = u16> {
    let series = batch.forgotten.iter().copied().chain(batch.readings.iter().map(|reading| reading.series));
    series.map(|series| dictionary.borrow().group(series))
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

/// Rolling statistics.
pub struct RollingNode {
    common: Common,
    rolling: Rolling,
    size: Size,
    saving: Saving,
}

impl RollingNode {
    /// With the state of its key groups, if there is any.
    pub fn new<'a>(
        common: Common,
        mut rolling: Rolling,
        groups: impl Iterator<Item = (u16, &'a [u8])>,
    ) -> Result<Self, StateError> {
        for (group, bytes) in groups {
            rolling.load(group, bytes)?;
        }
        let saving = common.saving(operator::ROLLING);
        Ok(Self { common, rolling, size: Size::default(), saving })
    }
}

impl Node for RollingNode {
    type A = Passing;
    type B = ();
    type C = ();
    type X = Passing;
    type Y = ();
    type Z = ();

    fn go_on(&mut self) -> bool {
        self.common.saves(&mut self.saving, operator::ROLLING, |saving| saving.some(&self.rolling))
    }
    fn step(&mut self, step: Step<Passing, (), ()>, out: &mut Out<Passing, (), ()>) {
        match step {
            Step::Cut(cut) => {
                let began_us = self.common.now_us();
                self.saving.cut(cut, &self.rolling);
                self.common.saved(operator::ROLLING, began_us);
            }
            Step::Epoch(_, arrived) => {
                for mut passing in arrived.first.into_iter().flatten() {
                    self.common.saves(&mut self.saving, operator::ROLLING, |saving| {
                        saving.before(groups(&passing.batch, &self.common.dictionary), &self.rolling);
                    });
                    self.rolling.batch(&mut passing.batch);
                    out.first.push(passing);
                }
            }
            Step::Passed(frontier) => {
                let rolling = &self.rolling;
                self.size.tell(frontier, &self.common.metrics, operator::ROLLING, || {
                    (rolling.state_bytes(), rolling.keys())
                });
            }
            Step::Second(_) | Step::End => {}
        }
    }
}

/// Rules.
pub struct RulesNode {
    common: Common,
    rules: Rules,
    /// By number: how many series of this worker a rule watches.
    watched: Vec<prometheus::IntGauge>,
    size: Size,
    saving: Saving,
    counted: CountedTime,
    transitions: Vec<Transition>,
}

impl RulesNode {
    /// With the state of its key groups, if there is any.
    pub fn new<'a>(
        common: Common,
        mut rules: Rules,
        keys: impl Iterator<Item = &'a str>,
        clock: &Clock,
        groups: impl Iterator<Item = (u16, &'a [u8])>,
    ) -> Result<Self, StateError> {
        for (group, bytes) in groups {
            rules.load(group, bytes)?;
        }
        let watched = keys.map(|key| common.metrics.rule_series.with_label_values(&[key])).collect();
        let counted = clock.counted.clone();
        let saving = common.saving(operator::RULES);
        Ok(Self { common, rules, watched, size: Size::default(), saving, counted, transitions: Vec::new() })
    }

    fn hand_on(&mut self, out: &mut Vec<Alert>) {
        if !self.transitions.is_empty() {
            let dictionary = self.common.dictionary.borrow();
            out.extend(self.transitions.drain(..).map(|transition| transition.alert(&dictionary)));
        }
    }
}

impl Node for RulesNode {
    type A = Passing;
    type B = Applies;
    type C = ();
    type X = Passing;
    type Y = Alert;
    type Z = ();

    fn due(&self) -> Option<Epoch> {
        self.rules.second_due(&self.counted)
    }
    fn go_on(&mut self) -> bool {
        self.common.saves(&mut self.saving, operator::RULES, |saving| saving.some(&self.rules))
    }
    fn step(&mut self, step: Step<Passing, Applies, ()>, out: &mut Out<Passing, Alert, ()>) {
        match step {
            Step::Cut(cut) => {
                let began_us = self.common.now_us();
                self.saving.cut(cut, &self.rules);
                self.common.saved(operator::RULES, began_us);
            }
            Step::Second(second) => {
                let (saving, dictionary) = (&mut self.saving, &self.common.dictionary);
                self.rules.second(second, &self.counted, &mut self.transitions, |rules, series| {
                    let group = dictionary.borrow().group(series);
                    saving.before([group], rules);
                });
                self.hand_on(&mut out.second);
            }
            Step::Epoch(epoch, arrived) => {
                let mut applies = arrived.second;
                applies.sort_unstable();
                self.common.saves(&mut self.saving, operator::RULES, |saving| {
                    let passing = || arrived.first.iter().flatten();
                    if passing().any(|passing| passing.term) {
                        saving.before_all(&self.rules);
                    }
                    let of = |series| self.common.dictionary.borrow().group(series);
                    saving.before(applies.iter().map(|((series, _), _, _)| of(*series)), &self.rules);
                    passing().for_each(|passing| {
                        saving.before(groups(&passing.batch, &self.common.dictionary), &self.rules);
                    });
                });
                for ((series, rule), _, diff) in applies {
                    self.watched[rule as usize].add(diff as i64);
                    self.rules.apply(epoch, series, rule, diff > 0, &mut self.transitions);
                }
                for passing in arrived.first.into_iter().flatten() {
                    if let Some(counting) = passing.batch.counting {
                        self.counted.set(epoch, counting);
                    }
                    if passing.term {
                        self.rules.settle(epoch, &mut self.transitions);
                    }
                    self.rules.batch(&passing.batch, self.counted.at(epoch), &mut self.transitions);
                    out.first.push(passing);
                }
                self.hand_on(&mut out.second);
            }
            Step::Passed(frontier) => {
                let rules = &self.rules;
                self.size.tell(frontier, &self.common.metrics, operator::RULES, || (rules.state_bytes(), rules.keys()));
            }
            Step::End => {}
        }
    }
}

/// Where everything leaves the dataflow, once its epoch is complete: alerts (on worker 0), rows, dead letters, views.
pub struct OutboxNode {
    common: Common,
    lanes: LaneHandle,
    dead_letters: DeadLetterLane,
    site: Site,
    alerts: Alerts,
    names: Vec<(SeriesNo, SeriesName)>,
    named: Vec<bool>,
    last: Last,
}

/// How many alert transitions there were, and which alerts fire (worker 0). Part of the checkpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Alerts {
    /// Transitions since the state began.
    pub transitions: u64,
    /// By alert id.
    firing: BTreeMap<String, Firing>,
}

/// The newest accepted value of each series, as it stands and as the view has it.
struct Last {
    /// Milliseconds of epoch time between updates of the view; 0 for none.
    interval: Epoch,
    next: Epoch,
    series: Vec<Option<(i64, f64)>>,
    shown: Vec<Option<(i64, f64)>>,
    changed: Vec<SeriesNo>,
}

impl Last {
    fn set(&mut self, series: SeriesNo, time: i64, value: f64) {
        let no = series as usize;
        if self.series.len() <= no {
            self.series.resize(no + 1, None);
            self.shown.resize(no + 1, None);
        }
        if self.series[no] == self.shown[no] {
            self.changed.push(series);
        }
        self.series[no] = Some((time, value));
    }

    fn flush(&mut self, epoch: Epoch, out: &mut Vec<((SeriesNo, LastVal), Epoch, isize)>) {
        self.changed.sort_unstable();
        self.changed.dedup();
        for series in self.changed.drain(..) {
            let no = series as usize;
            let (new, old) = (self.series[no], self.shown[no]);
            if new == old {
                continue;
            }
            let val = |(time, value): (i64, f64)| (series, (time, value.to_bits()));
            out.extend(old.map(|old| (val(old), epoch, -1)));
            out.extend(new.map(|new| (val(new), epoch, 1)));
            self.shown[no] = new;
        }
    }
}

impl OutboxNode {
    /// `alerts`: those before; `last_ms`: how often the view of last values is brought up to date.
    pub fn new(
        common: Common,
        lanes: LaneHandle,
        dead_letters: DeadLetterLane,
        site: Site,
        alerts: Alerts,
        last_ms: Epoch,
    ) -> Self {
        let last = Last { interval: last_ms, next: 0, series: Vec::new(), shown: Vec::new(), changed: Vec::new() };
        Self { common, lanes, dead_letters, site, alerts, names: Vec::new(), named: Vec::new(), last }
    }

    fn alerts(&mut self, epoch: Epoch, mut alerts: Vec<Alert>, out: &mut Vec<(Firing, Epoch, isize)>) {
        alerts.sort_by(|a, b| a.order(b));
        self.alerts.transitions += alerts.len() as u64;
        for alert in &alerts {
            let labels = [&*alert.rule, &*alert.severity, alert.state.word()];
            self.common.metrics.alert_changes_total.with_label_values(&labels).inc();
            match alert.state {
                AlertState::Firing => {
                    let firing = views::firing(alert, &self.site);
                    self.gauge(&firing).inc();
                    self.alerts.firing.insert(firing.1.alert.clone(), firing.clone());
                    out.push((firing, epoch, 1));
                }
                AlertState::Resolved => {
                    if let Some(firing) = self.alerts.firing.remove(&alert.id_hex()) {
                        self.gauge(&firing).dec();
                        out.push((firing, epoch, -1));
                    }
                }
            }
        }
        let alerts = alerts.into_iter().zip(1..).map(|(alert, n)| JournalEntry { n, alert }).collect();
        self.lanes.push_alerts(AlertBatch { epoch, alerts });
    }

    fn gauge(&self, (key, _): &Firing) -> prometheus::IntGauge {
        self.common.metrics.alerts.with_label_values(&[&*key.rule, &*key.severity, AlertState::Firing.word()])
    }

    fn name(&mut self, series: SeriesNo) {
        let no = series as usize;
        if self.named.len() <= no {
            self.named.resize(no + 1, false);
        }
        if !std::mem::replace(&mut self.named[no], true) {
            self.names.push((series, self.common.dictionary.borrow().name(series).clone()));
        }
    }

    fn rows(&mut self, passing: Passing) {
        for refused in passing.refused {
            self.dead_letters.push(passing.batch.epoch, refused);
        }
        let rows = passing.batch.readings;
        if rows.is_empty() {
            return;
        }
        let wanted = self.lanes.wants_rows();
        for row in &rows {
            if wanted && self.named.get(row.series as usize).is_none_or(|named| !named) {
                self.name(row.series);
            }
            if self.last.interval > 0 && row.verdict == Verdict::Accepted {
                self.last.set(row.series, row.time, row.value);
            }
        }
        if wanted {
            self.lanes.push_rows(RowBatch {
                epoch: passing.batch.epoch,
                worker: self.common.local,
                names: std::mem::take(&mut self.names),
                rows,
                streams: self.common.streams.clone(),
            });
        }
    }
}

impl Node for OutboxNode {
    type A = Passing;
    type B = Alert;
    type C = Refused;
    type X = (Firing, Epoch, isize);
    type Y = ((SeriesNo, LastVal), Epoch, isize);
    type Z = ();

    fn begin(&mut self, out: &mut Out<Self::X, Self::Y, ()>) {
        for firing in self.alerts.firing.values() {
            self.gauge(firing).inc();
            out.first.push((firing.clone(), 0, 1));
        }
    }

    fn step(&mut self, step: Step<Passing, Alert, Refused>, out: &mut Out<Self::X, Self::Y, ()>) {
        match step {
            Step::Cut(cut) => {
                let began_us = self.common.now_us();
                self.lanes.cut(self.common.local, cut);
                self.dead_letters.cut(cut);
                if self.common.worker == 0 {
                    let alerts = serde_json::to_vec(&self.alerts).unwrap_or_default();
                    self.common.save(cut, operator::ALERTS, GroupStates::from([(0, alerts)]));
                }
                self.common.saved(operator::ALERTS, began_us);
                self.common.stalled();
            }
            Step::Epoch(epoch, arrived) => {
                for refused in arrived.third {
                    self.dead_letters.push(epoch, refused);
                }
                arrived.first.into_iter().flatten().for_each(|passing| self.rows(passing));
                if !arrived.second.is_empty() {
                    self.alerts(epoch, arrived.second, &mut out.first);
                }
            }
            Step::Passed(frontier) => {
                self.common.stalled();
                self.lanes.complete(self.common.local, frontier);
                if self.last.interval > 0 && frontier >= self.last.next && !self.last.changed.is_empty() {
                    self.last.next = (frontier / self.last.interval + 1) * self.last.interval;
                    self.last.flush(frontier - 1, &mut out.second);
                }
            }
            Step::Second(_) => {}
            Step::End => {
                self.lanes.end(self.common.local);
                self.dead_letters.end();
            }
        }
    }
}

/// The conservation law, checked for every partition and completed epoch, on worker 0.
pub struct LedgerNode {
    common: Common,
    readiness: Arc<Readiness>,
    totals: Totals,
    metrics: BTreeMap<(Stream, u32), PartitionMetrics>,
    broken: BTreeMap<(Stream, u32), (i64, i64)>,
    /// Where the totals are read when the run has ended.
    result: Sender<Totals>,
}

/// Counts of all partitions since the state began.
pub type Totals = BTreeMap<String, Counts>;

impl LedgerNode {
    /// Goes on from `totals`.
    pub fn new(common: Common, readiness: Arc<Readiness>, totals: Totals, result: Sender<Totals>) -> Self {
        Self { common, readiness, totals, metrics: BTreeMap::new(), broken: BTreeMap::new(), result }
    }

    fn epoch(&mut self, epoch: Epoch, tallies: Vec<Tally>) {
        let mut partitions: BTreeMap<(Stream, u32), Counts> = BTreeMap::new();
        for (stream, partition, counts) in tallies {
            *partitions.entry((stream, partition)).or_default() += counts;
        }
        for ((stream, partition), counts) in partitions {
            let (source, topic) = &self.common.streams[usize::from(stream)];
            let off = (counts.records_imbalance(), counts.readings_imbalance());
            let metrics = self
                .metrics
                .entry((stream, partition))
                .or_insert_with(|| self.common.metrics.partition(source, topic, partition));
            if off != (0, 0) {
                let broken = self.broken.entry((stream, partition)).or_default();
                *broken = (broken.0 + off.0, broken.1 + off.1);
                metrics.records_imbalance.set(broken.0);
                metrics.readings_imbalance.set(broken.1);
                tracing::error!(
                    epoch,
                    source,
                    topic,
                    partition,
                    records = off.0,
                    readings = off.1,
                    "the ledger does not balance"
                );
                let problem = format!(
                    "{source} {topic}/{partition}: {} records, {} readings unaccounted for",
                    broken.0, broken.1
                );
                self.readiness.set(reason::CONSERVATION, Some(problem));
            }
            *self.totals.entry(format!("{source}/{topic}/{partition}")).or_default() += counts;
        }
    }
}

impl Node for LedgerNode {
    type A = Tally;
    type B = ();
    type C = ();
    // It has none, but what it has checked is complete.
    type X = Infallible;
    type Y = ();
    type Z = ();

    fn step(&mut self, step: Step<Tally, (), ()>, _: &mut Out<Infallible, (), ()>) {
        match step {
            Step::Cut(cut) if self.common.worker == 0 => match serde_json::to_value(&self.totals) {
                Ok(totals) => {
                    let _ = self.common.pieces.send((cut, Piece::Totals(totals)));
                }
                Err(error) => self.common.shared.fail(Failure::state(format!("totals: {error}"))),
            },
            Step::Epoch(epoch, arrived) => self.epoch(epoch, arrived.first.into_iter().flatten().collect()),
            Step::End if self.common.worker == 0 => {
                let _ = self.result.send(std::mem::take(&mut self.totals));
            }
            _ => {}
        }
    }
}

/// How many alert transitions there were, by the newest checkpoint.
pub fn alerts_at_end(fs: &dyn Fs, checkpoints: &Path) -> u64 {
    let newest = checkpoint::newest(fs, checkpoints).ok().flatten();
    let alerts = newest.as_ref().and_then(|r| r.groups(operator::ALERTS, |_| true).next());
    alerts.and_then(|(_, bytes)| serde_json::from_slice::<Alerts>(bytes).ok()).map_or(0, |a| a.transitions)
}
