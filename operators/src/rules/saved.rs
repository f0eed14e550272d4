//! How rules stand, as bytes: a table of rules, then each series with its clock and what stands under which key.
//!
//! What is restored is set aside until `apply` says that the rule still is the same; a rule that is gone can still be
//! named in the transition that ends its alert, because the table carries what an alert says of its rule.

use super::episode::{Episode, Life, Phase};
use super::{Aside, Condition, Missing, NEVER, RuleSpec, Rules};
use crate::state::{GroupStates, Reader, StateError, Writer, save_groups};
use crate::{Epoch, SeriesNo};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

const NAME: &str = "rules";
const VERSION: u16 = 1;

/// A rule on a series: its number if it applies, the rule, and how it stands.
type Standing<'a> = (Option<u32>, &'a RuleSpec, &'a Life);

impl Rules {
    /// Its state by key group.
    pub fn save(&self, out: &mut GroupStates) {
        let fresh: BTreeMap<SeriesNo, Epoch> = self.fresh.iter().rev().map(|(second, no)| (*no, *second)).collect();
        // What stands on a series: the rules that apply to it, and what was set aside and still matters. Rules that apply
        // are by far the most, and there are few of them: they are told apart by number, and no text is compared or copied
        // for a series that has no more than them.
        let ranks = self.ranks();
        let worth =
            |life: &Life, remembered| life.phase != Phase::Idle || life.past().iter().any(|e| e.end >= remembered);
        let standing = |no: SeriesNo| {
            let series = &self.series[no as usize];
            let remembered = series.clock.saturating_sub(self.allowed_lateness);
            // A rule that applies is written although it is idle: that its deadline is running is part of the state.
            let mut all: Vec<Standing> =
                series.slots.iter().map(|s| (Some(s.rule), &*self.rules[s.rule as usize], &s.life)).collect();
            match self.aside.get(&no) {
                Some(aside) => {
                    let aside = aside.iter().filter(|aside| worth(&aside.life, remembered));
                    all.extend(aside.map(|aside| (None, &*aside.rule, &aside.life)));
                    all.sort_by(|a, b| a.1.key.cmp(&b.1.key));
                }
                None => all.sort_by_key(|(number, _, _)| number.map(|number| ranks[number as usize])),
            }
            (all, remembered)
        };
        // A group's rules by key and version; the places of those that apply in it, by number.
        let table = RefCell::new((Vec::<(&str, &str)>::new(), vec![u32::MAX; self.rules.len()]));
        save_groups(
            out,
            &self.dictionary,
            |no| self.series.get(no as usize).is_some_and(|series| series.clock != NEVER),
            |no| 28 + self.series[no as usize].slots.len() * 21,
            |numbers| {
                let mut rules: Vec<(Option<u32>, &RuleSpec)> = Vec::new();
                let (keys, places) = &mut *table.borrow_mut();
                places.fill(u32::MAX);
                for no in numbers {
                    let applying = self.series[*no as usize].slots.iter().map(|slot| slot.rule);
                    for number in applying {
                        if std::mem::replace(&mut places[number as usize], 0) == u32::MAX {
                            rules.push((Some(number), &self.rules[number as usize]));
                        }
                    }
                    if self.aside.contains_key(no) {
                        rules.extend(
                            standing(*no).0.iter().filter(|(n, _, _)| n.is_none()).map(|(n, rule, _)| (*n, *rule)),
                        );
                    }
                }
                rules.sort_by(|a, b| (&a.1.key, &a.1.version).cmp(&(&b.1.key, &b.1.version)));
                keys.clear();
                let mut w = Writer::new(VERSION);
                let distinct = rules.chunk_by(|a, b| (&a.1.key, &a.1.version) == (&b.1.key, &b.1.version));
                w.u32(distinct.clone().count() as u32);
                for (place, same) in (0..).zip(distinct) {
                    // Of equals the last one met, as ever.
                    let Some((_, rule)) = same.last() else { continue };
                    for text in [&rule.key, &rule.name, &rule.version, &rule.severity] {
                        w.str(text);
                    }
                    keys.push((&rule.key, &rule.version));
                    same.iter().filter_map(|(number, _)| *number).for_each(|number| places[number as usize] = place);
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
                let (keys, places) = &*table.borrow();
                for (number, rule, life) in standing {
                    w.u32(match number {
                        Some(number) => places[number as usize],
                        None => keys.binary_search(&(&*rule.key, &*rule.version)).map_or(0, |place| place as u32),
                    });
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
    /// By rule: its place in the order of keys.
    fn ranks(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.rules.len() as u32).collect();
        order.sort_by(|a, b| self.rules[*a as usize].key.cmp(&self.rules[*b as usize].key));
        let mut ranks = vec![0; order.len()];
        (0..).zip(order).for_each(|(rank, rule)| ranks[rule as usize] = rank);
        ranks
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
