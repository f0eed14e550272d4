//! Counted time: how much of epoch time has passed while nobody was deaf (R7, docs/semantics.md 4).
//!
//! Deadlines are kept as amounts of counted time, which no deafness moves, and turned into a whole second of epoch time
//! only when one asks which comes next.

use crate::Epoch;
use crate::state::{Reader, StateError, Writer};

/// Whole seconds are when deadlines are looked at.
pub const SECOND: Epoch = 1000;
const NAME: &str = "counted time";
const VERSION: u16 = 1;
/// Changes older than this before the newest are let go, ...
const KEPT_MS: u64 = 10_000;
/// ... but the newest few stay: a second that is due may lie in a long outage behind them.
const KEPT: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    epoch: Epoch,
    /// Milliseconds counted before `epoch`.
    counted: u64,
    counting: bool,
}

/// Which stretches of epoch time are counted; at first none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountedTime {
    /// In order of epoch.
    changes: Vec<Change>,
}

/// The first whole second at or after `epoch`.
fn second_from(epoch: Epoch) -> Epoch {
    epoch.div_ceil(SECOND).saturating_mul(SECOND)
}

impl CountedTime {
    /// From `epoch` on, time is counted, or not. Changes come in order of epoch.
    pub fn set(&mut self, epoch: Epoch, counting: bool) {
        debug_assert!(self.changes.last().is_none_or(|last| last.epoch <= epoch), "changes come in order of epoch");
        let epoch = self.changes.last().map_or(epoch, |last| last.epoch.max(epoch));
        if self.counting() == counting {
            return;
        }
        let counted = self.at(epoch);
        self.changes.push(Change { epoch, counted, counting });
        let old = self.changes[..self.changes.len().saturating_sub(KEPT)]
            .iter()
            .take_while(|change| change.epoch.saturating_add(KEPT_MS) < epoch)
            .count();
        self.changes.drain(..old);
    }
    /// Whether time is counted after the newest change.
    pub fn counting(&self) -> bool {
        self.changes.last().is_some_and(|last| last.counting)
    }
    /// The milliseconds before `epoch` that were counted. (Of an epoch before the changes that are still known: as at
    /// the oldest of them.)
    pub fn at(&self, epoch: Epoch) -> u64 {
        match self.changes.iter().rev().find(|change| change.epoch <= epoch) {
            Some(change) if change.counting => change.counted.saturating_add(epoch - change.epoch),
            Some(change) => change.counted,
            None => self.changes.first().map_or(0, |first| first.counted),
        }
    }
    /// The first whole second S at which `at(S) >= counted`, given that counting goes on as now; None if it is not
    /// reached and time is not counted.
    pub fn second_reaching(&self, counted: u64) -> Option<Epoch> {
        let after = self.changes.iter().position(|change| change.counted >= counted);
        let reached = match after {
            Some(0) if counted == 0 => return Some(0),
            Some(0) => return Some(second_from(self.changes[0].epoch)),
            Some(next) => self.changes[next - 1],
            None => match self.changes.last() {
                Some(last) if last.counting => *last,
                Some(_) => return None,
                None => return (counted == 0).then_some(0),
            },
        };
        Some(second_from(reached.epoch.saturating_add(counted - reached.counted)))
    }
    /// Its bytes.
    pub fn save(&self) -> Vec<u8> {
        let mut w = Writer::new(VERSION);
        w.u32(self.changes.len() as u32);
        for change in &self.changes {
            w.u64(change.epoch);
            w.u64(change.counted);
            w.u8(u8::from(change.counting));
        }
        w.into_bytes()
    }
    /// What `save` wrote.
    pub fn load(bytes: &[u8]) -> Result<Self, StateError> {
        let mut r = Reader::new(NAME, VERSION, bytes)?;
        let mut changes: Vec<Change> = Vec::new();
        for _ in 0..r.count(17)? {
            let change = Change { epoch: r.counted()?, counted: r.counted()?, counting: r.bool()? };
            if let Some(last) = changes.last() {
                let counted = if last.counting { change.epoch.wrapping_sub(last.epoch) } else { 0 };
                r.check(
                    last.epoch <= change.epoch
                        && change.counted == last.counted + counted
                        && change.counting != last.counting,
                    "changes are in order, alternate, and add up",
                )?;
            }
            changes.push(change);
        }
        r.finish()?;
        Ok(Self { changes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(changes: &[(Epoch, bool)]) -> CountedTime {
        let mut time = CountedTime::default();
        for (epoch, counting) in changes {
            time.set(*epoch, *counting);
        }
        time
    }

    #[test]
    fn only_hearing_stretches_are_counted() {
        let time = after(&[(1500, true), (1500, true), (2700, false), (5000, true)]);
        for (epoch, counted) in [(0, 0), (1500, 0), (1501, 1), (2700, 1200), (4999, 1200), (5000, 1200), (6000, 2200)] {
            assert_eq!(time.at(epoch), counted, "at {epoch}");
        }
    }

    #[test]
    fn the_second_that_reaches_a_target_is_the_first_that_does() {
        let hearing = after(&[(1500, true), (2700, false), (5000, true)]);
        let deaf = after(&[(1500, true), (2700, false)]);
        for (target, when_hearing, when_deaf) in [
            (0, Some(0), Some(0)),
            (1, Some(2000), Some(2000)),
            (500, Some(2000), Some(2000)),
            (501, Some(3000), Some(3000)), // reached at 2001; the next whole second lies in deafness
            (1200, Some(3000), Some(3000)),
            (1201, Some(6000), None),
            (2200, Some(6000), None),
            (2201, Some(7000), None),
        ] {
            assert_eq!(hearing.second_reaching(target), when_hearing, "{target} hearing");
            assert_eq!(deaf.second_reaching(target), when_deaf, "{target} deaf");
        }
        assert_eq!(CountedTime::default().second_reaching(1), None);
    }

    #[test]
    fn it_agrees_with_counting_every_millisecond() {
        let time = after(&[(300, true), (900, false), (1900, true), (2001, false), (2002, true), (6000, false)]);
        for target in 0..=time.at(9000) {
            let naive = (0..20).map(|s| s * SECOND).find(|s| time.at(*s) >= target);
            assert_eq!(time.second_reaching(target), naive, "{target}");
        }
    }

    #[test]
    fn old_changes_go_and_nothing_recent_changes() {
        let mut time = CountedTime::default();
        let mut counted = 0;
        for flap in 0..1000u64 {
            time.set(flap * 1000, true);
            time.set(flap * 1000 + 400, false);
            counted += 400;
            assert_eq!(time.at(flap * 1000 + 999), counted);
        }
        assert!(time.changes.len() <= 40, "{} changes kept", time.changes.len());
        assert_eq!(time.second_reaching(counted), Some(1_000_000));
        assert_eq!(CountedTime::load(&time.save()), Ok(time));
    }

    #[test]
    fn bytes_that_do_not_add_up_are_refused() {
        let good = after(&[(1500, true), (2700, false)]).save();
        for end in 0..good.len() {
            assert!(CountedTime::load(&good[..end]).is_err());
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(time) = CountedTime::load(&bad) {
                let _ = (time.at(u64::MAX), time.second_reaching(u64::MAX));
            }
        }
    }
}
