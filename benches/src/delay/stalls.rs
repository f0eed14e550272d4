//! How long checkpoints kept a worker from everything else, by streamgauge's own histogram.

use crate::figures::round;
use serde_json::{Value, json};
use std::fmt;

const FAMILY: &str = "streamgauge_checkpoint_stall_seconds";

/// One observation per worker and checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stalls {
    count: u64,
    mean_ms: f64,
    /// The least edge of the histogram that none went beyond.
    within_ms: f64,
}

impl Stalls {
    /// From the text of `/metrics`; none where there was no checkpoint yet.
    pub fn read(text: &str) -> Option<Self> {
        let value = |line: &str| line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
        let find = |name: String| text.lines().find(|line| line.starts_with(&name)).and_then(value);
        let count = find(format!("{FAMILY}_count "))?;
        let sum = find(format!("{FAMILY}_sum "))?;
        let edges = text.lines().filter_map(|line| {
            let edge =
                line.strip_prefix(FAMILY)?.strip_prefix("_bucket{le=\"")?.split_once('"')?.0.parse::<f64>().ok()?;
            Some((edge, value(line)?))
        });
        let within = edges.filter(|(_, n)| *n >= count).map(|(edge, _)| edge).fold(f64::INFINITY, f64::min);
        (count > 0.0).then(|| Self { count: count as u64, mean_ms: sum / count * 1e3, within_ms: within * 1e3 })
    }

    /// For `latest.json`.
    pub fn json(&self) -> Value {
        json!({ "count": self.count, "mean_ms": round(self.mean_ms, 2), "within_ms": self.within_ms })
    }
}

impl fmt::Display for Stalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, mean_ms, within_ms } = self;
        write!(
            f,
            "{mean_ms:>9.1} ms is what a checkpoint stalls a worker: {count} times, none longer than {within_ms} ms"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edge_is_the_least_that_holds_all() {
        let text = format!(
            "# TYPE {FAMILY} histogram\n{FAMILY}_bucket{{le=\"0.005\"}} 1\n{FAMILY}_bucket{{le=\"0.01\"}} 4\n\
             {FAMILY}_bucket{{le=\"0.02\"}} 4\n{FAMILY}_bucket{{le=\"+Inf\"}} 4\n{FAMILY}_sum 0.026\n{FAMILY}_count 4\n"
        );
        let stalls = Stalls::read(&text).unwrap();
        assert_eq!((stalls.count, stalls.within_ms), (4, 10.0));
        assert!((stalls.mean_ms - 6.5).abs() < 1e-9);
    }

    #[test]
    fn without_a_checkpoint_there_is_nothing_to_say() {
        assert_eq!(Stalls::read(""), None);
        assert_eq!(Stalls::read(&format!("{FAMILY}_sum 0\n{FAMILY}_count 0\n")), None);
    }
}
