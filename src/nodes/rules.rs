//! Rules, and the alerts that they raise.

use super::{Applies, Clock, Common, Passing, Size, groups, operator};
use crate::saving::Saving;
use operators::Epoch;
use operators::alert::{Alert, Transition};
use operators::counted::CountedTime;
use operators::keyed::{Node, Out, Step};
use operators::rules::Rules;
use operators::state::StateError;

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
