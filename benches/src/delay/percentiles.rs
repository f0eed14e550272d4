//! Percentiles of delays: of all of them, by nearest rank, without buckets.

use serde_json::{Value, json};

/// Delays in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentiles {
    /// How many.
    pub count: usize,
    /// The middle.
    pub p50: f64,
    /// 99 of 100 are not longer.
    pub p99: f64,
    /// 999 of 1,000 are not longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Percentiles {
    /// Of delays in microseconds; none of none.
    pub fn of(mut us: Vec<u64>) -> Option<Self> {
        us.sort_unstable();
        let last = us.len().checked_sub(1)?;
        let at = |share: f64| us[((us.len() as f64 * share).ceil() as usize).clamp(1, last + 1) - 1] as f64 / 1e3;
        Some(Self { count: us.len(), p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) })
    }
    /// For `latest.json`.
    pub fn json(&self) -> Value {
        json!({ "alerts": self.count, "p50_ms": self.p50, "p99_ms": self.p99, "p99_9_ms": self.p999, "max_ms": self.max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_delays_that_occurred() {
        let p = Percentiles::of((1..=1_000).rev().map(|n| n * 1_000).collect()).unwrap();
        assert_eq!(p, Percentiles { count: 1_000, p50: 500.0, p99: 990.0, p999: 999.0, max: 1_000.0 });
        let one = Percentiles::of(vec![7_000]).unwrap();
        assert_eq!((one.p50, one.p999), (7.0, 7.0));
        assert_eq!(Percentiles::of(vec![]), None);
    }
}
