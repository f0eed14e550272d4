//! Fires when a series has been silent for too long after its clock; the next reading ends it.
//!
//! The alert begins at the deadline, whether the deadline was met by counted time or by a reading beyond it.

use super::episode::{Emit, Life, Phase};

/// A silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// How long after the series' clock, microseconds; above 0.
    pub after_us: i64,
}

impl Missing {
    /// An accepted reading at `time`, not behind.
    #[inline]
    pub(crate) fn on_reading(&self, life: &mut Life, time: i64, value: f64, emit: &mut Emit) {
        life.resolve(time, Some(value), emit);
    }
    /// How long after the series' clock it fires, unless it does.
    #[inline]
    pub(crate) fn deadline(&self, life: &Life) -> Option<i64> {
        (life.phase == Phase::Idle).then_some(self.after_us)
    }
    /// The deadline `at` is met.
    pub(crate) fn on_deadline(&self, life: &mut Life, at: i64, emit: &mut Emit) {
        let ordinal = life.ordinal(at);
        life.fire(at, at, ordinal, None, emit);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{lines, spec};
    use super::super::{Condition, episode::Life};
    use super::*;

    #[test]
    fn it_begins_at_the_deadline_and_never_ends_before_that() {
        let missing = Missing { after_us: 30 };
        let rule = spec("r", "1", Condition::Missing(missing.clone()));
        let (mut life, mut out) = (Life::default(), Vec::new());
        let mut emit = Emit { rule: &rule, series: 0, remembered: 0, out: &mut out };
        assert_eq!(missing.deadline(&life), Some(30));
        missing.on_deadline(&mut life, 130, &mut emit);
        assert_eq!(missing.deadline(&life), None);
        missing.on_reading(&mut life, 110, 1.5, &mut emit);
        missing.on_reading(&mut life, 111, 1.5, &mut emit);
        missing.on_deadline(&mut life, 130, &mut emit);
        assert_eq!(
            lines(&out),
            ["130 firing - start 130.0", "130 resolved 1.5 start 130.0", "130 firing - start 130.1"]
        );
    }
}
