//! The third keyed operator: which alerts begin and end (docs/semantics.md 6).
//!
//! A rule is a condition, one file each, on one series at a time. Which rules apply to a series is told from outside
//! (`apply`); how a rule stands on a series is kept here, with the series' clock, from which all deadlines are reckoned.
//! A deadline moves with every reading, so none is written down per reading: a heap holds for each series one moment
//! before which nothing can be due, and only when that has come is the series looked at.

mod episode;
mod missing;
mod saved;
mod threshold;

use crate::counted::{CountedTime, SECOND};
use crate::dictionary::SharedDictionary;
use crate::rolling::Plan;
use crate::{Batch, Epoch, SeriesNo, Transition, Verdict};
use episode::{Emit, Life, Phase};
pub use missing::Missing;
use saved::Texts;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
pub use threshold::Threshold;

/// What a rule watches for.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// A value or statistic beyond a limit.
    Threshold(Threshold),
    /// Silence.
    Missing(Missing),
}

/// A rule (or one level of a rule with levels).
#[derive(Clone, Debug, PartialEq)]
pub struct RuleSpec {
    /// The name, and `:level` where the rule has levels. Alerts are told apart by it.
    pub key: String,
    /// The name.
    pub name: String,
    /// A hash of the parameters: when it changes, the rule's alerts end.
    pub version: String,
    /// How bad its alerts are.
    pub severity: String,
    /// When they fire.
    pub condition: Condition,
}

/// The clock of a series that has none; no event time is as early.
const NEVER: i64 = i64::MIN;

/// A rule that applies to a series.
struct Slot {
    rule: u32,
    life: Life,
}

/// What became of a rule that does not apply (any more, or after a restart: yet).
struct Aside {
    rule: Rc<RuleSpec>,
    life: Life,
    /// Since a restart: its alert may still go on.
    restored: bool,
}

struct Series {
    /// The newest event time accepted.
    clock: i64,
    /// Counted time when the clock last moved.
    moved: u64,
    /// The earliest moment that the heap holds for it, `u64::MAX` if none.
    queued: u64,
    /// The whole second on which it is to be looked at, as `fresh` says first; 0 if it does not say any.
    fresh: Epoch,
    /// The number of the metric's list in the plan.
    features: u32,
    /// In order of the rules' numbers.
    slots: Vec<Slot>,
}

/// The operator: how the rules stand on all series of one worker.
pub struct Rules {
    rules: Vec<Rc<RuleSpec>>,
    allowed_lateness: i64,
    plan: Rc<Plan>,
    dictionary: SharedDictionary,
    /// By number.
    series: Vec<Series>,
    /// Counted time before which nothing is due for a series.
    deadlines: BinaryHeap<Reverse<(u64, SeriesNo)>>,
    /// Series that a rule with a deadline newly applies to, to be looked at on this whole second: the deadline may lie
    /// in the past.
    fresh: Vec<(Epoch, SeriesNo)>,
    /// The earliest of those seconds.
    fresh_first: Epoch,
    /// State was restored, and `settle` has not said from which epoch on.
    settling: bool,
    /// Pairs of a series and a rule that applies to it.
    pairs: u64,
    aside: BTreeMap<SeriesNo, Vec<Aside>>,
    /// The rules as they are saved.
    texts: Texts,
}

impl Condition {
    /// How long after the series' clock something is due by itself.
    #[inline]
    fn deadline(&self, life: &Life) -> Option<i64> {
        match self {
            Self::Threshold(threshold) => threshold.deadline(life),
            Self::Missing(missing) => missing.deadline(life),
        }
    }
    fn on_deadline(&self, life: &mut Life, at: i64, emit: &mut Emit) {
        match self {
            Self::Threshold(threshold) => threshold.on_deadline(life, at, emit),
            Self::Missing(missing) => missing.on_deadline(life, at, emit),
        }
    }
}

/// The first whole second that comes after an epoch.
fn second_after(epoch: Epoch) -> Epoch {
    (epoch / SECOND + 1).saturating_mul(SECOND)
}

/// The counted time at which a deadline `after` microseconds past the clock is reached.
fn target(moved: u64, after: i64) -> u64 {
    moved.saturating_add((after.max(0) as u64).div_ceil(1000))
}

impl Rules {
    /// Rules by number; none applies to any series yet.
    pub fn new(rules: Vec<Rc<RuleSpec>>, allowed_lateness: i64, plan: Rc<Plan>, dictionary: SharedDictionary) -> Self {
        Self {
            texts: Texts::new(&rules),
            rules,
            allowed_lateness,
            plan,
            dictionary,
            series: Vec::new(),
            deadlines: BinaryHeap::new(),
            fresh: Vec::new(),
            fresh_first: Epoch::MAX,
            settling: false,
            pairs: 0,
            aside: BTreeMap::new(),
        }
    }
    /// From `epoch` on, before its readings, a rule applies to a series, or no longer does.
    ///
    /// A rule that goes ends its alert. A rule that comes takes up what was restored under its key and version; what
    /// stands under its key with another version ends (if restored: when `settle` says at which epoch).
    pub fn apply(&mut self, epoch: Epoch, series: SeriesNo, rule: u32, add: bool, out: &mut Vec<Transition>) {
        self.meet(series as usize);
        let slots = &mut self.series[series as usize].slots;
        let place = slots.binary_search_by_key(&rule, |slot| slot.rule);
        match (place, add) {
            (Ok(place), false) => {
                let Slot { rule, life } = slots.remove(place);
                self.pairs -= 1;
                let rule = self.rules[rule as usize].clone();
                let life = self.end(series, &rule, life, out);
                self.put_aside(series, rule, life);
            }
            (Err(_), true) => self.begin(epoch, series, rule, out),
            (Ok(_), true) | (Err(_), false) => {}
        }
    }
    fn begin(&mut self, epoch: Epoch, series: SeriesNo, number: u32, out: &mut Vec<Transition>) {
        let rule = self.rules[number as usize].clone();
        let before = self.stood(series, &rule);
        let mut running = false;
        let life = match before {
            None => Life::default(),
            Some(before) if before.rule.version == rule.version => {
                // A restored deadline was running; that of a rule which comes back may long have passed.
                running = before.restored;
                before.life
            }
            Some(before) if before.restored => {
                let clock = self.series[series as usize].clock;
                let life = before.life.successor(clock);
                self.aside.entry(series).or_default().push(before);
                life
            }
            Some(before) => self.end(series, &before.rule, before.life, out),
        };
        let deadline = rule.condition.deadline(&life);
        let line = &mut self.series[series as usize];
        let place = line.slots.partition_point(|slot| slot.rule < number);
        line.slots.insert(place, Slot { rule: number, life });
        self.pairs += 1;
        match deadline {
            Some(after) if line.clock != NEVER && running => {
                let target = target(line.moved, after);
                self.queue(series, target);
            }
            Some(_) if line.clock != NEVER => {
                let second = if self.settling { Epoch::MAX } else { second_after(epoch) };
                self.look_at(second, series);
            }
            _ => {}
        }
    }
    /// Takes what stands under a key: another version that applies, or what was set aside.
    fn stood(&mut self, series: SeriesNo, rule: &RuleSpec) -> Option<Aside> {
        let slots = &mut self.series[series as usize].slots;
        if let Some(place) = slots.iter().position(|slot| self.rules[slot.rule as usize].key == rule.key) {
            let Slot { rule, life } = slots.remove(place);
            self.pairs -= 1;
            return Some(Aside { rule: self.rules[rule as usize].clone(), life, restored: false });
        }
        let all = self.aside.get_mut(&series)?;
        let same = all.iter().position(|aside| (&aside.rule.key, &aside.rule.version) == (&rule.key, &rule.version));
        let place = same.or_else(|| all.iter().position(|aside| aside.rule.key == rule.key))?;
        let taken = all.swap_remove(place);
        if all.is_empty() {
            self.aside.remove(&series);
        }
        Some(taken)
    }
    /// A rule is over on a series: what fires resolves, what is pending vanishes, what has been is kept.
    fn end(&self, series: SeriesNo, rule: &Rc<RuleSpec>, mut life: Life, out: &mut Vec<Transition>) -> Life {
        let clock = self.series[series as usize].clock;
        let remembered = clock.saturating_sub(self.allowed_lateness);
        life.resolve(clock, None, &mut Emit { rule, series, remembered, out });
        life.phase = Phase::Idle;
        life
    }
    fn put_aside(&mut self, series: SeriesNo, rule: Rc<RuleSpec>, life: Life) {
        if !life.past().is_empty() {
            self.aside.entry(series).or_default().push(Aside { rule, life, restored: false });
        }
    }
    /// All rules that still apply after a restart have been announced: from `epoch` on, before its readings, the alerts
    /// of the others are over.
    pub fn settle(&mut self, epoch: Epoch, out: &mut Vec<Transition>) {
        self.settling = false;
        for (second, series) in self.take_fresh() {
            self.look_at(if second == Epoch::MAX { second_after(epoch) } else { second }, series);
        }
        for (series, all) in std::mem::take(&mut self.aside) {
            for Aside { rule, life, .. } in all {
                let life = self.end(series, &rule, life, out);
                // A new version that applies has taken the memory over.
                let slots = &self.series[series as usize].slots;
                if !slots.iter().any(|slot| self.rules[slot.rule as usize].key == rule.key) {
                    self.put_aside(series, rule, life);
                }
            }
        }
    }
    /// Judges an epoch's accepted readings, when `now_counted` is the counted time of the epoch.
    pub fn batch(&mut self, batch: &Batch, now_counted: u64, out: &mut Vec<Transition>) {
        for no in &batch.forgotten {
            let slots = self.series.get_mut(*no as usize).map(|series| series.slots.iter_mut());
            for slot in slots.into_iter().flatten() {
                if let Phase::Pending { .. } = slot.life.phase {
                    slot.life.phase = Phase::Idle;
                }
            }
        }
        let mut features = batch.features.as_slice();
        for reading in &batch.readings {
            crate::hand::hold(reading.stream, reading.partition, reading.offset);
            let no = reading.series as usize;
            match reading.verdict {
                Verdict::Late | Verdict::Future => {}
                Verdict::Behind => self.behind(no, reading.time, reading.value, out),
                Verdict::Accepted => {
                    if self.series.len() <= no {
                        self.meet(no);
                    }
                    let series = &mut self.series[no];
                    let before = series.clock;
                    series.clock = reading.time;
                    series.moved = now_counted;
                    let count = self.plan.list(series.features).len();
                    let (own, rest) = features.split_at(count);
                    features = rest;
                    if !series.slots.is_empty() {
                        self.reading(no, before, reading.value, own, out);
                    }
                }
            }
        }
        crate::hand::put_down();
        debug_assert!(features.is_empty(), "the features are those of the plan");
    }
    /// An accepted reading that is not behind, of a series to which rules apply.
    fn reading(&mut self, no: usize, before: i64, value: f64, features: &[f64], out: &mut Vec<Transition>) {
        let Series { clock, moved, queued, slots, .. } = &mut self.series[no];
        let time = *clock;
        let series = no as SeriesNo;
        let remembered = time.saturating_sub(self.allowed_lateness);
        let mut nearest = i64::MAX;
        for Slot { rule, life } in slots {
            let rule = &self.rules[*rule as usize];
            let mut emit = Emit { rule, series, remembered, out };
            if before != NEVER
                && let Some(after) = rule.condition.deadline(life)
                && before.saturating_add(after) <= time
            {
                rule.condition.on_deadline(life, before.saturating_add(after), &mut emit);
            }
            match &rule.condition {
                Condition::Threshold(threshold) => {
                    let x = threshold.feature.map_or(value, |feature| features[feature]);
                    threshold.on_reading(life, time, x, &mut emit);
                }
                Condition::Missing(missing) => missing.on_reading(life, time, value, &mut emit),
            }
            if let Some(after) = rule.condition.deadline(life) {
                nearest = nearest.min(after);
            }
        }
        if nearest != i64::MAX {
            let target = target(*moved, nearest);
            if target < *queued {
                *queued = target;
                self.deadlines.push(Reverse((target, series)));
            }
        }
    }
    fn behind(&mut self, no: usize, time: i64, value: f64, out: &mut Vec<Transition>) {
        let Some(Series { clock, slots, .. }) = self.series.get_mut(no) else { return };
        for Slot { rule, life } in slots {
            let rule = &self.rules[*rule as usize];
            if let Condition::Threshold(threshold) = &rule.condition {
                let remembered = clock.saturating_sub(self.allowed_lateness);
                threshold.on_behind(life, time, value, &mut Emit { rule, series: no as SeriesNo, remembered, out });
            }
        }
    }
    fn queue(&mut self, series: SeriesNo, target: u64) {
        let queued = &mut self.series[series as usize].queued;
        if target < *queued {
            *queued = target;
            self.deadlines.push(Reverse((target, series)));
        }
    }
    /// A series is to be looked at on a whole second.
    fn look_at(&mut self, second: Epoch, series: SeriesNo) {
        if self.fresh.is_empty() {
            self.fresh_first = Epoch::MAX;
        }
        self.fresh_first = self.fresh_first.min(second);
        self.fresh.push((second, series));
        let known = &mut self.series[series as usize].fresh;
        if *known == 0 {
            *known = second;
        }
    }
    fn take_fresh(&mut self) -> Vec<(Epoch, SeriesNo)> {
        let fresh = std::mem::take(&mut self.fresh);
        fresh.iter().for_each(|(_, series)| self.series[*series as usize].fresh = 0);
        fresh
    }
    /// The next whole second at which something may be due.
    pub fn second_due(&self, counted: &CountedTime) -> Option<Epoch> {
        let fresh = (!self.fresh.is_empty() && self.fresh_first != Epoch::MAX).then_some(self.fresh_first);
        let due = self.deadlines.peek().and_then(|Reverse((target, _))| counted.second_reaching(*target));
        [fresh, due].into_iter().flatten().min()
    }
    /// Whole second `s`, after every epoch below it and before any other: meets the deadlines that `now` has reached.
    /// `before` sees each series in which something may change as it was.
    pub fn second(
        &mut self,
        s: Epoch,
        counted: &CountedTime,
        out: &mut Vec<Transition>,
        mut before: impl FnMut(&Self, SeriesNo),
    ) {
        let now = counted.at(s);
        if !self.fresh.is_empty() && self.fresh_first <= s {
            self.fresh.iter().filter(|(second, _)| *second <= s).for_each(|(_, series)| before(self, *series));
            for (second, series) in self.take_fresh() {
                if second <= s {
                    self.look(series, now, out);
                } else {
                    self.look_at(second, series);
                }
            }
        }
        while let Some(Reverse((target, series))) = self.deadlines.peek().copied() {
            if target > now {
                return;
            }
            self.deadlines.pop();
            // What no longer is the series' earliest moment was replaced by an earlier one.
            if self.series[series as usize].queued == target {
                before(self, series);
                self.series[series as usize].queued = u64::MAX;
                self.look(series, now, out);
            }
        }
    }
    /// Meets a series' deadlines that `now` has reached, and queues the next of the others.
    fn look(&mut self, series: SeriesNo, now: u64, out: &mut Vec<Transition>) {
        let Series { clock, moved, slots, .. } = &mut self.series[series as usize];
        let remembered = clock.saturating_sub(self.allowed_lateness);
        let mut next = u64::MAX;
        for Slot { rule, life } in slots {
            let rule = &self.rules[*rule as usize];
            let Some(after) = rule.condition.deadline(life) else { continue };
            let target = target(*moved, after);
            if target > now {
                next = next.min(target);
            } else {
                let at = clock.saturating_add(after);
                rule.condition.on_deadline(life, at, &mut Emit { rule, series, remembered, out });
            }
        }
        if next != u64::MAX {
            self.queue(series, next);
        }
    }
    #[cold]
    fn meet(&mut self, no: usize) {
        let dictionary = self.dictionary.borrow();
        while self.series.len() <= no {
            let features = self.plan.number(&dictionary.name(self.series.len() as SeriesNo).metric);
            self.series.push(Series {
                clock: NEVER,
                moved: 0,
                queued: u64::MAX,
                fresh: 0,
                features,
                slots: Vec::new(),
            });
        }
    }
    /// The rules, by number.
    pub fn rules(&self) -> &[Rc<RuleSpec>] {
        &self.rules
    }
    /// A series' clock, the newest event time that it has accepted.
    pub fn clock(&self, series: SeriesNo) -> Option<i64> {
        self.series.get(series as usize).map(|series| series.clock).filter(|clock| *clock != NEVER)
    }
    /// Pairs of a series and a rule that applies to it.
    pub fn keys(&self) -> u64 {
        self.pairs
    }
    /// Bytes of memory, but for what is remembered of episodes.
    pub fn state_bytes(&self) -> usize {
        self.series.capacity() * size_of::<Series>()
            + self.deadlines.capacity() * size_of::<(u64, SeriesNo)>()
            + self.pairs as usize * size_of::<Slot>()
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_support;
