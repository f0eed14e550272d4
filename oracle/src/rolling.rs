//! Statistics of the newest part of a series.

use std::collections::VecDeque;

use crate::config::{Stat, Window};

/// A window of a series, and what is known of its readings.
#[derive(Clone, Debug)]
pub struct Rolling {
    window: Window,
    /// Event time and value, from the oldest to the newest.
    entries: VecDeque<(i64, f64)>,
    moments: Moments,
    ewma: Option<f64>,
}

/// Count, mean and sum of squared differences from it, kept as readings come and go (Welford 1962).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Moments {
    n: u64,
    mean: f64,
    m2: f64,
    /// Readings added and removed since the last refresh.
    updates: u64,
    /// A removal took nearly all of m2, and with it its precision.
    collapsed: bool,
}

impl Rolling {
    /// An empty window.
    pub fn of(window: Window) -> Rolling {
        Rolling { window, entries: VecDeque::new(), moments: Moments::default(), ewma: None }
    }

    /// Which window it is.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Takes an accepted reading. `clock` is that of the series with the reading, `before` that without it.
    pub fn accept(&mut self, time: i64, value: f64, before: Option<i64>, clock: i64) {
        if time >= clock {
            self.ewma = Some(match (self.ewma, before) {
                (Some(ewma), Some(before)) => ewma + self.weight(time - before) * (value - ewma),
                _ => value,
            });
        }
        let outside = match self.window {
            Window::Time { us } => time <= clock.saturating_sub(us),
            Window::Count { n } => {
                self.entries.len() as u64 >= n && self.entries.front().is_some_and(|(oldest, _)| time < *oldest)
            }
        };
        if outside {
            return;
        }
        let place = self.entries.partition_point(|(entry, _)| *entry <= time);
        self.entries.insert(place, (time, value));
        self.moments.add(value);
        let mut evictions = 0;
        while let Some(&(time, value)) = self.entries.front()
            && match self.window {
                Window::Time { us } => time <= clock.saturating_sub(us),
                Window::Count { n } => self.entries.len() as u64 > n,
            }
        {
            self.entries.pop_front();
            self.moments.remove(value);
            evictions += 1;
        }
        self.moments.updates += 1 + evictions;
        if self.moments.updates >= self.moments.n.max(64) || self.moments.collapsed || self.moments.n == 1 {
            self.moments = Moments::default();
            for (_, value) in &self.entries {
                self.moments.add(*value);
            }
        }
    }

    /// What a new value weighs in the moving average, so long after the one before.
    fn weight(&self, after: i64) -> f64 {
        match self.window {
            Window::Time { us } => 1.0 - libm::exp(-after as f64 / us as f64),
            Window::Count { n } => 2.0 / (n as f64 + 1.0),
        }
    }

    /// A statistic; NaN if it is undefined.
    pub fn stat(&self, stat: Stat) -> f64 {
        let (Some((oldest, first)), Some((newest, last))) = (self.entries.front(), self.entries.back()) else {
            return f64::NAN;
        };
        let values = self.entries.iter().map(|(_, value)| *value);
        let x = match stat {
            Stat::Count => self.moments.n as f64,
            Stat::Mean => self.moments.mean,
            Stat::Stddev if self.moments.n > 1 => (self.moments.m2 / (self.moments.n - 1) as f64).sqrt(),
            Stat::Min => values.min_by(f64::total_cmp).unwrap_or(f64::NAN),
            Stat::Max => values.max_by(f64::total_cmp).unwrap_or(f64::NAN),
            Stat::Rate if newest > oldest => (last - first) / ((newest - oldest) as f64 / 1e6),
            Stat::Stddev | Stat::Rate => f64::NAN,
            Stat::Ewma => self.ewma.unwrap_or(f64::NAN),
        };
        // One NaN for all: which bits an overflow leaves in it is the processor's affair.
        if x.is_nan() { f64::NAN } else { x }
    }
}

impl Moments {
    fn add(&mut self, x: f64) {
        self.n += 1;
        let d = x - self.mean;
        self.mean += d / self.n as f64;
        self.m2 += d * (x - self.mean);
    }

    fn remove(&mut self, x: f64) {
        self.n -= 1;
        if self.n == 0 {
            self.mean = 0.0;
            self.m2 = 0.0;
            return;
        }
        let d = x - self.mean;
        self.mean -= d / self.n as f64;
        let mut next = self.m2 - d * (x - self.mean);
        if next < 0.0 {
            next = 0.0;
        }
        if next < self.m2 * 2_f64.powi(-20) {
            self.collapsed = true;
        }
        self.m2 = next;
    }
}
