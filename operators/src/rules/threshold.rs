//! Fires when a value or a statistic is beyond a limit, at once or for a while; resolves when it has come back.
//!
//! Two limits, not one: an alert begins beyond `limit` and ends at or within `limit` less the hysteresis. The band
//! between keeps a value that hovers at the limit from flapping.

use super::episode::{Emit, Life, Phase};
use crate::rolling::Window;

/// A limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// Whether values above the limit breach it, or below.
    pub above: bool,
    /// The limit; on it is not beyond it.
    pub limit: f64,
    /// How far within the limit a value must come back; not negative.
    pub hysteresis: f64,
    /// For how long the condition must hold before it fires, microseconds.
    pub for_us: i64,
    /// The judged statistic's place in its metric's plan; none: the reading's value.
    pub feature: Option<usize>,
    /// The window of the judged statistic.
    pub window: Option<Window>,
}

impl Threshold {
    fn breaches(&self, x: f64) -> bool {
        if self.above { x > self.limit } else { x < self.limit }
    }
    fn clears(&self, x: f64) -> bool {
        if self.above { x <= self.limit - self.hysteresis } else { x >= self.limit + self.hysteresis }
    }
    /// An accepted reading at `time`, not behind; `x` is the value or the statistic.
    #[inline]
    pub(crate) fn on_reading(&self, life: &mut Life, time: i64, x: f64, emit: &mut Emit) {
        if x.is_nan() {
            return; // Undefined: it satisfies no condition and changes nothing.
        }
        match life.phase {
            Phase::Idle if self.breaches(x) => {
                let ordinal = life.ordinal(time);
                if self.for_us == 0 {
                    life.fire(time, time, ordinal, Some(x), emit);
                } else {
                    life.phase = Phase::Pending { start: time, ordinal };
                }
            }
            Phase::Idle => {}
            Phase::Pending { start, ordinal } => {
                if !self.breaches(x) {
                    life.phase = Phase::Idle;
                } else if time.saturating_sub(start) >= self.for_us {
                    life.fire(time, start, ordinal, Some(x), emit);
                }
            }
            Phase::Firing { .. } => {
                if self.clears(x) {
                    life.resolve(time, Some(x), emit);
                }
            }
        }
    }
    /// An accepted reading that came behind: never the present, but perhaps an alert of its own (R6).
    pub(crate) fn on_behind(&self, life: &mut Life, time: i64, value: f64, emit: &mut Emit) {
        if self.feature.is_none() && self.for_us == 0 && self.breaches(value) && !life.covers(time) {
            life.flash(time, value, emit);
        }
    }
    /// How long after the series' clock its window has run empty, if that would resolve it.
    #[inline]
    pub(crate) fn deadline(&self, life: &Life) -> Option<i64> {
        match (life.phase, self.window) {
            (Phase::Firing { .. }, Some(Window::Time { us })) if self.feature.is_some() => Some(us),
            _ => None,
        }
    }
    /// The deadline `at` is met: the window is empty.
    pub(crate) fn on_deadline(&self, life: &mut Life, at: i64, emit: &mut Emit) {
        life.resolve(at, None, emit);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{lines, spec};
    use super::super::{Condition, episode::Life};
    use super::*;

    fn above(limit: f64, hysteresis: f64, for_us: i64) -> Threshold {
        Threshold { above: true, limit, hysteresis, for_us, feature: None, window: None }
    }
    /// Readings (time, value), a time below the newest being behind; the transitions as text.
    fn run(threshold: &Threshold, readings: &[(i64, f64)]) -> Vec<String> {
        let rule = spec("r", "1", Condition::Threshold(threshold.clone()));
        let (mut life, mut clock, mut out) = (Life::default(), i64::MIN, Vec::new());
        for (time, x) in readings {
            let behind = *time < clock;
            clock = clock.max(*time);
            let mut emit = Emit { rule: &rule, series: 0, remembered: clock.saturating_sub(100), out: &mut out };
            if behind {
                threshold.on_behind(&mut life, *time, *x, &mut emit);
            } else {
                threshold.on_reading(&mut life, *time, *x, &mut emit);
            }
        }
        lines(&out)
    }

    #[test]
    fn hovering_at_the_limit_fires_once() {
        let readings = [(1, 35.0), (2, 35.1), (3, 34.9), (4, 35.2), (5, 33.1), (6, 36.0), (7, 33.0), (8, 34.0)];
        assert_eq!(run(&above(35.0, 2.0, 0), &readings), ["2 firing 35.1 start 2.0", "7 resolved 33 start 2.0"]);
    }

    #[test]
    fn without_hysteresis_on_the_limit_is_back() {
        assert_eq!(
            run(&above(35.0, 0.0, 0), &[(1, 36.0), (2, 35.0), (3, 35.5)]),
            ["1 firing 36 start 1.0", "2 resolved 35 start 1.0", "3 firing 35.5 start 3.0"]
        );
    }

    #[test]
    fn below_is_above_mirrored() {
        let below = Threshold { above: false, ..above(30.0, 1.0, 0) };
        let readings = [(1, 30.0), (2, 29.0), (3, 30.5), (4, 31.0)];
        assert_eq!(run(&below, &readings), ["2 firing 29 start 2.0", "4 resolved 31 start 2.0"]);
    }

    #[test]
    fn with_for_it_fires_when_it_has_held_long_enough_and_started_when_it_began() {
        let readings = [(0, 9.0), (5, 9.0), (6, 1.0), (10, 9.0), (19, 9.0), (20, 9.5), (30, 1.0)];
        assert_eq!(run(&above(5.0, 0.0, 10), &readings), ["20 firing 9.5 start 10.0", "30 resolved 1 start 10.0"]);
    }

    #[test]
    fn an_undefined_statistic_changes_nothing() {
        let nan = f64::NAN;
        let readings = [(0, nan), (1, 9.0), (2, nan), (11, 9.0), (12, nan), (13, 1.0)];
        assert_eq!(run(&above(5.0, 0.0, 10), &readings), ["11 firing 9 start 1.0", "13 resolved 1 start 1.0"]);
    }

    #[test]
    fn equal_starts_take_the_next_ordinal() {
        assert_eq!(
            run(&above(5.0, 0.0, 0), &[(1, 9.0), (1, 1.0), (1, 8.0), (2, 1.0)]),
            ["1 firing 9 start 1.0", "1 resolved 1 start 1.0", "1 firing 8 start 1.1", "2 resolved 1 start 1.1"]
        );
    }

    #[test]
    fn a_reading_behind_is_an_alert_of_its_own_outside_every_episode() {
        let readings = [(10, 1.0), (8, 9.0), (8, 9.0), (20, 9.0), (30, 1.0), (20, 9.0), (29, 9.0), (15, 9.0), (9, 2.0)];
        assert_eq!(
            run(&above(5.0, 0.0, 0), &readings),
            [
                "8 firing 9 start 8.0 behind",
                "8 resolved 9 start 8.0 behind",
                "8 firing 9 start 8.1 behind",
                "8 resolved 9 start 8.1 behind",
                "20 firing 9 start 20.0",
                "30 resolved 1 start 20.0",
                "15 firing 9 start 15.0 behind",
                "15 resolved 9 start 15.0 behind",
            ]
        );
        let firing = [(10, 1.0), (20, 9.0), (30, 9.0), (25, 9.0), (15, 9.0)];
        let transitions = run(&above(5.0, 0.0, 0), &firing);
        assert_eq!(transitions[1..], ["15 firing 9 start 15.0 behind", "15 resolved 9 start 15.0 behind"]);
        assert_eq!(run(&above(5.0, 0.0, 3), &[(10, 1.0), (8, 9.0), (5, 9.0)]), [""; 0], "not with `for`");
    }
}
