//! A series: which readings it has seen, its last minute, and what is firing.

use super::parse::Reading;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// How many metrics there are.
pub const METRICS: usize = 6;
/// Their names.
pub const NAMES: [&str; METRICS] = ["temperature", "humidity", "pressure", "pm10", "pm25", "co2"];
/// Beyond these a value is an alert: (limit, whether above).
pub const LIMITS: [(f64, bool); METRICS] =
    [(35.0, true), (30.0, false), (1050.0, true), (80.0, true), (50.0, true), (1500.0, true)];
/// The metric whose last minute is judged, too.
pub const JUDGED: usize = 3;
/// Its mean may not be above this; odd, so that no rounding decides.
pub const MEAN_MAX: f64 = 35.00371;
/// Nor its sample deviation above this.
pub const DEVIATION_MAX: f64 = 4.00371;

const SECOND: i64 = 1_000_000;
const DEDUP: i64 = 600 * SECOND;
const WINDOW: i64 = 60 * SECOND;
const LATENESS: i64 = 30 * SECOND;

/// What became of a reading. (None is ever late: delays are shorter than the lateness that is allowed.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Duplicate,
    Accepted { behind: bool },
}

/// An alert as it begins or ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alert {
    pub rule: &'static str,
    pub firing: bool,
    pub start: i64,
    pub value: f64,
}

/// A firing alert's start, and the episodes that are over and may still matter.
#[derive(Default)]
struct Rule {
    firing: Option<i64>,
    past: Vec<(i64, i64)>,
}

impl Rule {
    fn present(&mut self, time: i64, beyond: bool) -> Option<(bool, i64)> {
        match (self.firing, beyond) {
            (None, true) => {
                self.firing = Some(time);
                Some((true, time))
            }
            (Some(start), false) => {
                self.firing = None;
                self.past.retain(|(_, end)| *end >= time - LATENESS);
                self.past.push((start, time));
                Some((false, start))
            }
            _ => None,
        }
    }
    fn covers(&self, time: i64) -> bool {
        self.firing.is_some_and(|start| start <= time) || self.past.iter().any(|(s, e)| *s <= time && time < *e)
    }
}

/// One sensor's one metric.
#[derive(Default)]
pub struct Series {
    newest: Option<i64>,
    /// Event times by identity, and both in order of acceptance, so that the old ones can be found.
    seen: HashMap<u128, i64>,
    order: VecDeque<(i64, u128)>,
    /// The last minute, by event time.
    window: VecDeque<(i64, f64)>,
    mean: f64,
    m2: f64,
    limit: Rule,
    high: Rule,
    swings: Rule,
}

impl Series {
    pub fn judge(&mut self, reading: &Reading<'_>, mut alert: impl FnMut(Alert)) -> Verdict {
        let time = reading.time;
        let clock = self.newest.unwrap_or(time);
        if self.seen.get(&reading.id).is_some_and(|seen| *seen >= clock - DEDUP) {
            return Verdict::Duplicate;
        }
        let behind = time < clock;
        let clock = clock.max(time);
        self.newest = Some(clock);
        while let Some((old, id)) = self.order.front().copied().filter(|(old, _)| *old < clock - DEDUP) {
            self.order.pop_front();
            if self.seen.get(&id) == Some(&old) {
                self.seen.remove(&id);
            }
        }
        self.seen.insert(reading.id, time);
        self.order.push_back((time, reading.id));
        self.roll(time, reading.value, clock);

        let (limit, above) = LIMITS[reading.metric];
        let beyond = if above { reading.value > limit } else { reading.value < limit };
        if behind {
            if beyond && !self.limit.covers(time) {
                self.limit.past.push((time, time));
                for firing in [true, false] {
                    alert(Alert { rule: "limit", firing, start: time, value: reading.value });
                }
            }
            return Verdict::Accepted { behind };
        }
        if let Some((firing, start)) = self.limit.present(time, beyond) {
            alert(Alert { rule: "limit", firing, start, value: reading.value });
        }
        if reading.metric == JUDGED {
            let (mean, deviation) = (self.mean(), self.deviation());
            if let Some((firing, start)) = self.high.present(time, mean > MEAN_MAX) {
                alert(Alert { rule: "mean", firing, start, value: mean });
            }
            if self.window.len() > 1
                && let Some((firing, start)) = self.swings.present(time, deviation > DEVIATION_MAX)
            {
                alert(Alert { rule: "deviation", firing, start, value: deviation });
            }
        }
        Verdict::Accepted { behind }
    }

    /// Enters a reading at its place and lets go of what is older than a minute; Welford's recurrence, both ways.
    fn roll(&mut self, time: i64, value: f64, clock: i64) {
        if time <= clock - WINDOW {
            return;
        }
        let place = self.window.iter().rposition(|(t, _)| *t <= time).map_or(0, |p| p + 1);
        self.window.insert(place, (time, value));
        let d = value - self.mean;
        self.mean += d / self.window.len() as f64;
        self.m2 += d * (value - self.mean);
        while let Some((_, old)) = self.window.front().copied().filter(|(t, _)| *t <= clock - WINDOW) {
            self.window.pop_front();
            let d = old - self.mean;
            self.mean -= d / self.window.len() as f64;
            self.m2 = (self.m2 - d * (old - self.mean)).max(0.0);
        }
        if self.window.len() == 1 {
            (self.mean, self.m2) = (value, 0.0);
        }
    }
    pub fn mean(&self) -> f64 {
        self.mean
    }
    pub fn deviation(&self) -> f64 {
        if self.window.len() < 2 { 0.0 } else { (self.m2 / (self.window.len() - 1) as f64).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(readings: &[(u128, i64, f64)]) -> (Series, Vec<String>) {
        let (mut series, mut out) = (Series::default(), Vec::new());
        for &(id, seconds, value) in readings {
            let reading = Reading { id, sensor: "s", metric: JUDGED, value, time: seconds * SECOND };
            let verdict = series.judge(&reading, |a| {
                out.push(format!("{} {} {}", a.rule, if a.firing { "firing" } else { "resolved" }, a.start / SECOND));
            });
            if verdict == Verdict::Duplicate {
                out.push("duplicate".into());
            }
        }
        (series, out)
    }

    #[test]
    fn a_copy_counts_once_until_it_is_forgotten() {
        assert_eq!(feed(&[(1, 0, 1.0), (2, 9, 1.0), (1, 0, 1.0)]).1, ["duplicate"]);
        assert_eq!(feed(&[(1, 0, 1.0), (2, 601, 1.0), (1, 602, 1.0)]).1, [""; 0]);
    }

    #[test]
    fn an_alert_begins_and_ends_and_one_behind_is_an_alert_of_its_own_outside_of_it() {
        let readings = [(1, 10, 1.0), (2, 20, 90.0), (3, 40, 1.0), (4, 30, 90.0), (5, 15, 90.0)];
        let limit: Vec<_> = feed(&readings).1.into_iter().filter(|t| t.starts_with("limit")).collect();
        assert_eq!(limit, ["limit firing 20", "limit resolved 20", "limit firing 15", "limit resolved 15"]);
    }

    #[test]
    fn the_last_minute_is_what_a_fresh_look_at_it_gives() {
        let readings: Vec<(u128, i64, f64)> =
            (0..500).map(|n| (n as u128, n * 7 + (n % 5) * 4, ((n * 37) % 101) as f64 / 4.0)).collect();
        let (series, _) = feed(&readings);
        let clock = readings.iter().map(|r| r.1).max().unwrap();
        let last: Vec<f64> = readings.iter().filter(|r| r.1 > clock - 60).map(|r| r.2).collect();
        let mean = last.iter().sum::<f64>() / last.len() as f64;
        let variance = last.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (last.len() - 1) as f64;
        assert!(last.len() > 5 && (series.mean() - mean).abs() < 1e-9, "{} {mean}", series.mean());
        assert!((series.deviation() - variance.sqrt()).abs() < 1e-9, "{} {}", series.deviation(), variance.sqrt());
    }
}
