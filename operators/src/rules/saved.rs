//! How rules stand, as bytes: a table of rules, then each series with its clock and what stands under which key.
//!
//! What is restored is set aside until `apply` says that the rule still is the same; a rule that is gone can still be
//! named in the transition that ends its alert, because the table carries what an alert says of its rule.

use super::episode::{Episode, Life, Phase};
use super::{Aside, Condition, Missing, NEVER, RuleSpec, Rules};
use crate::state::{GroupStates, Reader, StateError, Writer, save_groups};
use crate::{Epoch, SeriesNo};
use std::collections::BTreeMap;
use std::rc::Rc;

const NAME: &str = "rules";
const VERSION: u16 = 1;

impl Rules {
    /// Its state by key group.
    pub fn save(&self, out: &mut GroupStates) {
        let fresh: BTreeMap<SeriesNo, Epoch> = self.fresh.iter().rev().map(|(second, no)| (*no, *second)).collect();
        let standing = |no: SeriesNo| {
            let clock = self.series[no as usize].clock;
            let remembered = clock.saturating_sub(self.allowed_lateness);
            let slots = self.series[no as usize].slots.iter().map(|s| (&self.rules[s.rule as usize], &s.life));
            let aside = self.aside.get(&no).into_iter().flatten().map(|aside| (&aside.rule, &aside.life));
            let worth = move |life: &Life| life.phase != Phase::Idle || life.past().iter().any(|e| e.end >= remembered);
            // A rule that applies is written although it is idle: that its deadline is running is part of the state.
            let mut all: Vec<_> = slots.chain(aside.filter(|(_, life)| worth(life))).collect();
            all.sort_by(|a, b| a.0.key.cmp(&b.0.key));
            (all, remembered)
        };
        let table = std::cell::RefCell::new(BTreeMap::new());
        save_groups(
            out,
            &self.dictionary,
            |no| self.series.get(no as usize).is_some_and(|series| series.clock != NEVER),
            |numbers| {
                let mut table = table.borrow_mut();
                table.clear();
                for no in numbers {
                    for (rule, _) in standing(*no).0 {
                        table.insert((rule.key.clone(), rule.version.clone()), (0, rule.clone()));
                    }
                }
                let mut w = Writer::new(VERSION);
                w.u32(table.len() as u32);
                for (at, (number, rule)) in (0u32..).zip(table.values_mut()) {
                    *number = at;
                    for text in [&rule.key, &rule.name, &rule.version, &rule.severity] {
                        w.str(text);
                    }
                }
                w
            },
            |w, no| {
                let series = &self.series[no as usize];
                w.i64(series.clock);
                w.u64(series.moved);
                w.u64(fresh.get(&no).copied().unwrap_or(0));
                let (standing, remembered) = standing(no);
                w.u32(standing.len() as u32);
                let table = table.borrow();
                for (rule, life) in standing {
                    w.u32(table.get(&(rule.key.clone(), rule.version.clone())).map_or(0, |(number, _)| *number));
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
            },
        );
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
