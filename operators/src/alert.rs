//! What rules hand on: a transition in a worker's own numbers, and the alert that it is everywhere else.
//!
//! An alert's identity is its rule's key, its series, its start and its ordinal, and nothing of where or when it was
//! computed: the same readings make the same identity on any worker, after any crash (R9, docs/semantics.md 7).

use crate::rules::RuleSpec;
use crate::{Dictionary, SeriesNo};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

/// Which transition of an alert it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// It has begun.
    Firing,
    /// It is over.
    Resolved,
}

impl AlertState {
    /// The transition's number: 0 firing, 1 resolved.
    pub fn number(self) -> u8 {
        self as u8
    }
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// A transition of an alert, on the worker that found it.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// Event time, microseconds since 1970.
    pub time: i64,
    /// Which transition.
    pub state: AlertState,
    /// The rule.
    pub rule: Rc<RuleSpec>,
    /// The series.
    pub series: SeriesNo,
    /// The reading's value or the judged statistic, where there is one.
    pub value: Option<f64>,
    /// The event time at which the condition first held.
    pub start: i64,
    /// How many earlier episodes of this rule and series have this start.
    pub ordinal: u32,
    /// Raised and resolved by a reading that came behind (R6).
    pub behind: bool,
}

impl Transition {
    /// The same in names.
    pub fn alert(&self, dictionary: &Dictionary) -> Alert {
        let name = dictionary.name(self.series);
        Alert {
            time: self.time,
            state: self.state,
            rule_key: self.rule.key.as_str().into(),
            rule: self.rule.name.as_str().into(),
            version: self.rule.version.as_str().into(),
            severity: self.rule.severity.as_str().into(),
            sensor: name.sensor.clone(),
            metric: name.metric.clone(),
            value: self.value,
            start: self.start,
            ordinal: self.ordinal,
            behind: self.behind,
        }
    }
}

/// A transition of an alert, in names: the same on any worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Event time, microseconds since 1970.
    pub time: i64,
    /// Which transition.
    pub state: AlertState,
    /// The rule's key: its name, and `:level` where it has levels.
    pub rule_key: Arc<str>,
    /// The rule's name.
    pub rule: Arc<str>,
    /// A hash of the rule's parameters.
    pub version: Arc<str>,
    /// How bad it is.
    pub severity: Arc<str>,
    /// The sensor.
    pub sensor: Arc<str>,
    /// The metric.
    pub metric: Arc<str>,
    /// The reading's value or the judged statistic, where there is one.
    pub value: Option<f64>,
    /// The event time at which the condition first held.
    pub start: i64,
    /// How many earlier episodes of this rule and series have this start.
    pub ordinal: u32,
    /// Raised and resolved by a reading that came behind (R6).
    pub behind: bool,
}

impl Alert {
    /// The order of an epoch's transitions in the journal.
    pub fn order(&self, other: &Self) -> Ordering {
        let key = |a: &Self| (a.start, a.ordinal, a.state);
        self.time
            .cmp(&other.time)
            .then_with(|| self.rule_key.cmp(&other.rule_key))
            .then_with(|| self.sensor.cmp(&other.sensor))
            .then_with(|| self.metric.cmp(&other.metric))
            .then_with(|| key(self).cmp(&key(other)))
    }
    /// The alert's identity: the same for all transitions of it.
    pub fn id(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        for text in [&self.rule_key, &self.sensor, &self.metric] {
            hasher.update(&(text.len() as u32).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(&self.start.to_le_bytes());
        hasher.update(&self.ordinal.to_le_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        id
    }
    /// The identity as 32 hex digits.
    pub fn id_hex(&self) -> String {
        let mut text = String::with_capacity(32);
        for byte in self.id() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(time: i64, rule: &str, sensor: &str, start: i64, ordinal: u32, state: AlertState) -> Alert {
        let text = |text: &str| Arc::<str>::from(text);
        Alert {
            time,
            state,
            rule_key: text(rule),
            rule: text(rule),
            version: text("00000000"),
            severity: text("warning"),
            sensor: text(sensor),
            metric: text("temperature"),
            value: None,
            start,
            ordinal,
            behind: false,
        }
    }

    #[test]
    fn an_alerts_identity_never_changes() {
        let firing = alert(1, "too-hot", "s-1", 1_700_000_000_000_000, 0, AlertState::Firing);
        assert_eq!(firing.id_hex(), "d8259a01e06fb2585c01631c17222827");
        let resolved = Alert { state: AlertState::Resolved, time: 9, value: Some(1.0), ..firing.clone() };
        assert_eq!(firing.id(), resolved.id());
        assert_ne!(firing.id(), Alert { ordinal: 1, ..firing.clone() }.id());
    }

    #[test]
    fn transitions_are_ordered_by_time_rule_series_start_ordinal_transition() {
        use AlertState::{Firing, Resolved};
        let sorted = [
            alert(1, "b", "z", 9, 9, Resolved),
            alert(2, "a", "y", 1, 0, Firing),
            alert(2, "a", "z", 1, 0, Resolved),
            alert(2, "a", "z", 2, 0, Firing),
            alert(2, "a", "z", 2, 0, Resolved),
            alert(2, "a", "z", 2, 1, Firing),
            alert(2, "b", "a", 0, 0, Firing),
        ];
        let mut mixed = sorted.to_vec();
        mixed.reverse();
        mixed.sort_by(Alert::order);
        assert_eq!(mixed, sorted);
    }
}
