//! Rolling statistics of what was accepted.

use super::{Common, Passing, Size, groups, operator};
use crate::saving::Saving;
use operators::keyed::{Node, Out, Step};
use operators::rolling::Rolling;
use operators::state::StateError;

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
