//! How rules stand, as bytes: a table of rules, then each series with its clock and what stands under which key.
//!
//! What is restored is set aside until `apply` says that the rule still is the same; a rule that is gone can still be
//! named in the transition that ends its alert, because the table carries what an alert says of its rule.

use super::episode::{Episode, Life, Phase};
use super::{Aside, Condition, Missing, NEVER, RuleSpec, Rules, Series, Slot};
use crate::state::{Reader, Saves, StateError, Writer, kept, write_series};
use crate::{Epoch, SeriesNo};
use std::rc::Rc;

const NAME: &str = "rules";
const VERSION: u16 = 1;

/// The rules as a table has them, made ready once: there is a table for each group.
pub(super) struct Texts {
    /// By rule: its place in the order of (key, version).
    ranks: Vec<u32>,
    /// By that place: the rule's number, and its texts as they are written.
    by_rank: Vec<(u32, Vec<u8>)>,
}

impl Texts {
    pub(super) fn new(rules: &[Rc<RuleSpec>]) -> Self {
        let mut order: Vec<u32> = (0..rules.len() as u32).collect();
        order.sort_by_key(|number| in_table(&rules[*number as usize]));
        let mut ranks = vec![0; order.len()];
        (0..).zip(&order).for_each(|(rank, number)| ranks[*number as usize] = rank);
        let written = |number: u32| {
            let mut w = Writer::default();
            write_rule(&mut w, &rules[number as usize]);
            (number, w.into_bytes())
        };
        Self { ranks, by_rank: order.into_iter().map(written).collect() }
    }
}

/// What a table is in order of.
fn in_table(rule: &RuleSpec) -> (&str, &str) {
    (&rule.key, &rule.version)
}

fn write_rule(w: &mut Writer, rule: &RuleSpec) {
    for text in [&rule.key, &rule.name, &rule.version, &rule.severity] {
        w.str(text);
    }
}

impl Saves for Rules {
    fn save_group(&self, group: u16, w: &mut Writer) {
        let keeps = |no| self.series.get(no as usize).is_some_and(|series: &Series| series.clock != NEVER);
        let kept = kept(&self.dictionary, group, keeps);
        if kept.is_empty() {
            return;
        }
        w.u16(VERSION);
        let applying = kept.iter().flat_map(|no| self.series[*no as usize].slots.iter().map(|slot| slot.rule));
        let mut ranks: Vec<u32> = applying.map(|number| self.texts.ranks[number as usize]).collect();
        ranks.sort_unstable();
        ranks.dedup();
        if self.aside.is_empty() || !kept.iter().any(|no| self.aside.contains_key(no)) {
            // Nearly always. No text is compared here.
            w.u32(ranks.len() as u32);
            ranks.iter().for_each(|rank| w.raw(&self.texts.by_rank[*rank as usize].1));
            let place = |slot: &Slot| ranks.partition_point(|rank| *rank < self.texts.ranks[slot.rule as usize]) as u32;
            self.write_series(w, &kept, place, |_| 0, |place| place);
            return;
        }
        let ruling = ranks.iter().map(|rank| &*self.rules[self.texts.by_rank[*rank as usize].0 as usize]);
        let aside = kept.iter().flat_map(|no| self.worth_keeping(*no).map(|aside| &*aside.rule));
        let mut table: Vec<&RuleSpec> = ruling.chain(aside).collect();
        table.sort_by_key(|rule| in_table(rule));
        table.dedup_by_key(|rule| in_table(rule));
        w.u32(table.len() as u32);
        table.iter().for_each(|rule| write_rule(w, rule));
        let place = |rule: &RuleSpec| table.partition_point(|other| in_table(other) < in_table(rule)) as u32;
        let key_place = |place: u32| table.partition_point(|rule| rule.key < table[place as usize].key) as u32;
        let slot_place = |slot: &Slot| place(&self.rules[slot.rule as usize]);
        self.write_series(w, &kept, slot_place, place, key_place);
    }
}

impl Rules {
    /// What was set aside on a series and still matters.
    fn worth_keeping(&self, no: SeriesNo) -> impl Iterator<Item = &Aside> {
        let remembered = self.remembered(no);
        let worth = move |life: &Life| life.phase != Phase::Idle || life.past().iter().any(|e| e.end >= remembered);
        self.aside.get(&no).into_iter().flatten().filter(move |aside| worth(&aside.life))
    }
    fn remembered(&self, no: SeriesNo) -> i64 {
        self.series[no as usize].clock.saturating_sub(self.allowed_lateness)
    }
    /// Each series with its clock and what stands on it. A rule that applies is written although it is idle: that its
    /// deadline is running is part of the state. All stand in order of key; `key_place` says the place of the first rule in
    /// the group's table with the key of the one at a place.
    fn write_series(
        &self,
        w: &mut Writer,
        kept: &[SeriesNo],
        slot_place: impl Fn(&Slot) -> u32,
        place: impl Fn(&RuleSpec) -> u32,
        key_place: impl Fn(u32) -> u32,
    ) {
        let mut standing: Vec<(u32, &Life)> = Vec::new();
        write_series(w, &self.dictionary, kept, |w, no| {
            let series = &self.series[no as usize];
            let remembered = self.remembered(no);
            w.i64(series.clock);
            w.u64(series.moved);
            w.u64(series.fresh);
            standing.clear();
            standing.extend(series.slots.iter().map(|slot| (slot_place(slot), &slot.life)));
            if !self.aside.is_empty() {
                standing.extend(self.worth_keeping(no).map(|aside| (place(&aside.rule), &aside.life)));
            }
            standing.sort_by_key(|(place, _)| key_place(*place));
            w.u32(standing.len() as u32);
            for (place, life) in &standing {
                w.u32(*place);
                let (phase, start, ordinal) = match life.phase {
                    Phase::Idle => (0, 0, 0),
                    Phase::Pending { start, ordinal } => (1, start, ordinal),
                    Phase::Firing { start, ordinal } => (2, start, ordinal),
                };
                w.u8(phase);
                w.i64(start);
                w.u32(ordinal);
                let past = || life.past().iter().filter(|e| e.end >= remembered);
                w.u32(past().count() as u32);
                for episode in past() {
                    w.i64(episode.start);
                    w.i64(episode.end);
                }
            }
        });
    }
    /// Takes a group's state; what stands is set aside until it is announced by `apply`, or over by `settle`.
    pub fn load(&mut self, group: u16, bytes: &[u8]) -> Result<(), StateError> {
        let mut r = Reader::new(NAME, VERSION, bytes)?;
        let mut table: Vec<Rc<RuleSpec>> = Vec::new();
        for _ in 0..r.count(16)? {
            let mut text = || r.str().map(str::to_owned);
            let (key, name, version, severity) = (text()?, text()?, text()?, text()?);
            // The condition is not restored, and never asked for: it stands in the rule that takes this up.
            let condition = Condition::Missing(Missing { after_us: i64::MAX });
            table.push(Rc::new(RuleSpec { key, name, version, severity, condition }));
        }
        self.settling = true;
        let dictionary = self.dictionary.clone();
        r.series(group, &dictionary, |r, no| {
            self.meet(no as usize);
            let series = &mut self.series[no as usize];
            r.check(series.clock == NEVER, "a group is restored once")?;
            series.clock = r.time()?;
            series.moved = r.counted()?;
            let fresh = r.u64()?;
            r.check(fresh == Epoch::MAX || fresh < 1 << 60, "a whole second is below 2^60 ms")?;
            if fresh > 0 {
                self.look_at(fresh, no);
            }
            for _ in 0..r.count(21)? {
                let number = r.u32()? as usize;
                let Some(rule) = table.get(number) else { return Err(r.invalid("a rule is in the table")) };
                let (phase, start, ordinal) = (r.u8()?, r.time()?, r.u32()?);
                let phase = match phase {
                    0 => Phase::Idle,
                    1 => Phase::Pending { start, ordinal },
                    2 => Phase::Firing { start, ordinal },
                    _ => return Err(r.invalid("a phase is 0, 1 or 2")),
                };
                let mut past = Vec::new();
                for _ in 0..r.count(16)? {
                    let episode = Episode { start: r.time()?, end: r.time()? };
                    r.check(episode.start <= episode.end, "an episode ends after it began")?;
                    past.push(episode);
                }
                let aside = Aside { rule: rule.clone(), life: Life::new(phase, past), restored: true };
                let all = self.aside.entry(no).or_default();
                r.check(all.iter().all(|other| !Rc::ptr_eq(&other.rule, rule)), "a rule stands once")?;
                all.push(aside);
            }
            Ok(())
        })?;
        r.finish()
    }
}
