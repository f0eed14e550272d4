//! Which of the planted faults were found: the journal held against the truth.
//!
//! Only faults that the demo's rules look for count, and only those that have shown themselves before the end.

use crate::simulate::Truth;
use crate::simulate::faults::{Fault, FaultKind};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The rule that watches for silence; all others watch values.
const SILENT: &str = "silent";
/// A rule on the mean of 10 s may still begin to fire this long after what raised the mean.
const WINDOW_US: i64 = 10_000_000;
/// A deadline is looked at on whole seconds, and a journal line takes its time: a fault this close to the end is not held
/// against anyone.
const MARGIN_US: i64 = 2_000_000;

/// A line of the journal, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct Line {
    alert: String,
    rule: String,
    sensor: String,
    metric: String,
    state: String,
    start: i64,
    time: i64,
}

/// An alert from its beginning to its end.
#[derive(Debug, PartialEq, Eq)]
struct Episode {
    rule: String,
    sensor: String,
    metric: String,
    start: i64,
    end: i64,
}

/// Found, of so many that could be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Found.
    pub found: u64,
    /// Planted, and shown.
    pub planted: u64,
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Alerts begun.
    pub alerts: u64,
    /// Of those, the ones that no planted fault explains.
    pub unexplained: u64,
    /// By kind of fault.
    pub by_kind: BTreeMap<FaultKind, Tally>,
}

/// Reads a journal; lines that are none (the last may be cut) are left out.
pub fn lines(journal: &str) -> Vec<Line> {
    journal.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Holds a journal against the truth. `end`: when the last reading was sent; `silent_after`: the rule's deadline.
/// Microseconds.
pub fn score(truth: &Truth, lines: &[Line], end: i64, silent_after: i64) -> Score {
    let mut episodes: BTreeMap<&str, Episode> = BTreeMap::new();
    for line in lines {
        let episode = episodes.entry(&line.alert).or_insert_with(|| Episode {
            rule: line.rule.clone(),
            sensor: line.sensor.clone(),
            metric: line.metric.clone(),
            start: line.start,
            end: i64::MAX,
        });
        if line.state == "resolved" {
            episode.end = line.time;
        }
    }
    let explains = |fault: &Fault, e: &Episode| {
        if fault.sensor != e.sensor {
            return false;
        }
        match fault.kind {
            // The clock of a skewed sensor's series stands still: to the rule it is silent.
            FaultKind::Silence | FaultKind::SkewedClock => {
                e.rule == SILENT && (fault.from..fault.to + silent_after).contains(&e.start)
            }
            _ => {
                let slack = if e.rule.contains("mean") { WINDOW_US } else { 0 };
                e.rule != SILENT
                    && fault.metric.as_ref() == Some(&e.metric)
                    && e.start < fault.to + slack
                    && e.end >= fault.from
            }
        }
    };
    let shown = |fault: &Fault| match fault.kind {
        FaultKind::Silence => fault.to - fault.from > silent_after && fault.from + silent_after + MARGIN_US < end,
        FaultKind::Spike | FaultKind::Beyond => fault.readings > 0,
        FaultKind::Stuck | FaultKind::Drift | FaultKind::SkewedClock => false,
    };
    let faults: Vec<&Fault> = truth.faults.iter().chain(&truth.beyond).collect();
    let mut score = Score { alerts: episodes.len() as u64, ..Score::default() };
    for fault in faults.iter().filter(|f| shown(f)) {
        let tally = score.by_kind.entry(fault.kind).or_default();
        tally.planted += 1;
        tally.found += u64::from(episodes.values().any(|e| explains(fault, e)));
    }
    score.unexplained = episodes.values().filter(|e| !faults.iter().any(|f| explains(f, e))).count() as u64;
    score
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Plant, Simulator};

    fn fault(kind: FaultKind, sensor: &str, metric: Option<&str>, from: i64, to: i64) -> Fault {
        let (sensor, metric) = (sensor.into(), metric.map(Into::into));
        Fault { kind, sensor, metric, from: from * 1_000_000, to: to * 1_000_000, readings: 1 }
    }
    fn line(alert: &str, rule: &str, series: (&str, &str), state: &str, start: i64, time: i64) -> String {
        let (sensor, metric) = series;
        format!(
            r#"{{"epoch":1,"n":1,"time":{},"state":"{state}","rule":"{rule}","severity":"warning","sensor":"{sensor}","metric":"{metric}","value":null,"start":{},"ordinal":0,"behind":false,"alert":"{alert}","transition":0,"version":"0"}}"#,
            time * 1_000_000,
            start * 1_000_000
        )
    }

    #[test]
    fn only_what_was_found_counts_and_only_what_had_time_to_show() {
        let mut truth = Simulator::new(Plant::default()).unwrap().into_truth();
        truth.faults = vec![
            fault(FaultKind::Spike, "s-1", Some("pm10"), 10, 14),
            fault(FaultKind::Spike, "s-2", Some("pm10"), 10, 14),
            fault(FaultKind::Silence, "s-3", None, 10, 20),
            fault(FaultKind::Silence, "s-4", None, 95, 110), // its deadline lies beyond the end
            fault(FaultKind::SkewedClock, "s-5", None, 10, 20),
        ];
        truth.beyond = vec![fault(FaultKind::Beyond, "s-6", Some("co2"), 30, 31)];
        let journal = [
            line("a", "pm10-high", ("s-1", "pm10"), "firing", 11, 11),
            line("a", "pm10-high", ("s-1", "pm10"), "resolved", 11, 15),
            line("b", "pm10-high", ("s-2", "pm10"), "firing", 40, 40), // nothing planted then
            line("c", "silent", ("s-3", "temperature"), "firing", 14, 14),
            line("d", "silent", ("s-5", "temperature"), "firing", 15, 15),
            line("e", "co2-high", ("s-6", "co2"), "firing", 30, 30),
            "{\"epoch\":17,\"n\"".into(),
        ];
        let score = score(&truth, &lines(&journal.join("\n")), 100_000_000, 5_000_000);
        assert_eq!((score.alerts, score.unexplained), (5, 1));
        let tally = |found, planted| Tally { found, planted };
        let expected =
            [(FaultKind::Spike, tally(1, 2)), (FaultKind::Silence, tally(1, 1)), (FaultKind::Beyond, tally(1, 1))];
        assert_eq!(score.by_kind, BTreeMap::from(expected));
    }
}
