//! Which windows and statistics there are, and which of them the rules ask for.

use std::collections::BTreeMap;

/// A window's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Window {
    /// The last `us` microseconds of event time, up to the series' clock.
    Time {
        /// Above 0.
        us: i64,
    },
    /// The last `n` readings by event time.
    Count {
        /// Above 0.
        n: u32,
    },
}

/// A statistic of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stat {
    /// How many entries.
    Count,
    /// The mean.
    Mean,
    /// The sample standard deviation.
    Stddev,
    /// The smallest.
    Min,
    /// The largest.
    Max,
    /// The change from the oldest to the newest, per second.
    Rate,
    /// The exponentially weighted moving average.
    Ewma,
}

/// The statistics that rules ask for, by metric: what travels with each reading from `rolling` to `rules`.
#[derive(Clone, Debug)]
pub struct Plan {
    by_metric: BTreeMap<String, u32>,
    /// The first is empty: the plan of every metric that no rule asks about.
    lists: Vec<Vec<(usize, Stat)>>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { by_metric: BTreeMap::new(), lists: vec![Vec::new()] }
    }
}

impl Plan {
    /// Asks for a statistic of the window of this index, for all series of a metric; returns its place among the
    /// metric's features. Asking twice is asking once.
    pub fn ask(&mut self, metric: &str, window: usize, stat: Stat) -> usize {
        let next = self.lists.len() as u32;
        let number = *self.by_metric.entry(metric.to_owned()).or_insert(next);
        if number == next {
            self.lists.push(Vec::new());
        }
        let list = &mut self.lists[number as usize];
        list.iter().position(|asked| *asked == (window, stat)).unwrap_or_else(|| {
            list.push((window, stat));
            list.len() - 1
        })
    }
    /// What is asked for a metric, in the order of its features.
    pub fn features(&self, metric: &str) -> &[(usize, Stat)] {
        self.list(self.number(metric))
    }
    /// A metric's list's number, to be cached by series.
    pub(crate) fn number(&self, metric: &str) -> u32 {
        self.by_metric.get(metric).copied().unwrap_or(0)
    }
    pub(crate) fn list(&self, number: u32) -> &[(usize, Stat)] {
        &self.lists[number as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_twice_is_asking_once_and_unasked_metrics_have_nothing() {
        let mut plan = Plan::default();
        assert_eq!(plan.ask("t", 0, Stat::Mean), 0);
        assert_eq!(plan.ask("t", 1, Stat::Mean), 1);
        assert_eq!(plan.ask("h", 1, Stat::Max), 0);
        assert_eq!(plan.ask("t", 0, Stat::Mean), 0);
        assert_eq!(plan.features("t"), [(0, Stat::Mean), (1, Stat::Mean)]);
        assert_eq!(plan.features("h"), [(1, Stat::Max)]);
        assert_eq!(plan.features("p"), []);
    }
}
