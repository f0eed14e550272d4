//! Why a record or a value of it is a dead letter.

use serde::{Deserialize, Serialize};

/// Why a record, or one value of it, is a dead letter. The names are part of the interface (metrics, files, `decode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The payload is larger than `max_record_bytes`.
    TooLarge,
    /// The payload is not one JSON object.
    NotJson,
    /// The sensor is absent or null.
    MissingSensor,
    /// The sensor is no text or whole number, empty, too long or with a control character.
    InvalidSensor,
    /// The time is absent or null.
    MissingTime,
    /// The time is not one.
    InvalidTime,
    /// A local time that the zone's clock skipped.
    SkippedTime,
    /// The mapping names an id, and it is absent or null.
    MissingId,
    /// The id is no text or whole number, empty or too long.
    InvalidId,
    /// The metric is absent or null.
    MissingMetric,
    /// The metric is no text or whole number, empty, too long or with a control character.
    InvalidMetric,
    /// The value is absent; of a wide record, all of them.
    MissingValue,
    /// A value: its series would be one too many in its key group.
    TooManySeries,
    /// A value: the same identity as an accepted reading's, and another time or value.
    Conflict,
    /// A value: null, where the mapping wants that refused.
    NullValue,
    /// A value: not a number, or not finite once scaled.
    InvalidValue,
    /// A value: outside the metric's `valid`.
    OutOfRange,
    /// The decoder panicked, which it must not: a bug of ours.
    Bug,
}

impl Reason {
    /// Every reason: those of records in the order in which they are checked, then those of values.
    pub const ALL: [Self; 18] = [
        Self::TooLarge,
        Self::NotJson,
        Self::MissingSensor,
        Self::InvalidSensor,
        Self::MissingTime,
        Self::InvalidTime,
        Self::SkippedTime,
        Self::MissingId,
        Self::InvalidId,
        Self::MissingMetric,
        Self::InvalidMetric,
        Self::MissingValue,
        Self::TooManySeries,
        Self::Conflict,
        Self::NullValue,
        Self::InvalidValue,
        Self::OutOfRange,
        Self::Bug,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::NotJson => "not_json",
            Self::MissingSensor => "missing_sensor",
            Self::InvalidSensor => "invalid_sensor",
            Self::MissingTime => "missing_time",
            Self::InvalidTime => "invalid_time",
            Self::SkippedTime => "skipped_time",
            Self::MissingId => "missing_id",
            Self::InvalidId => "invalid_id",
            Self::MissingMetric => "missing_metric",
            Self::InvalidMetric => "invalid_metric",
            Self::MissingValue => "missing_value",
            Self::TooManySeries => "too_many_series",
            Self::Conflict => "conflict",
            Self::NullValue => "null_value",
            Self::InvalidValue => "invalid_value",
            Self::OutOfRange => "out_of_range",
            Self::Bug => "bug",
        }
    }

    /// The reason of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// What would be right.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::TooLarge => "send less per message, or raise max_record_bytes",
            Self::NotJson => {
                "send one JSON object in UTF-8 per message, with nothing after it (NaN and Infinity are not JSON)"
            }
            Self::MissingSensor => "send the sensor's name, or point `sensor` at the field that holds it",
            Self::InvalidSensor => {
                "name a sensor by a text of 1 to 256 bytes without control characters, or by a whole number"
            }
            Self::MissingTime => "send the time of the reading, or point `time` at the field that holds it",
            Self::InvalidTime => {
                "send RFC 3339 such as \"2025-11-05T14:41:38Z\", or seconds, milli-, micro- or nanoseconds since 1970; \
                 local times want `zone`, numbers outside 2001-2286 want `time_unit`"
            }
            Self::SkippedTime => "the zone's clocks never showed this time: send UTC, or check `zone`",
            Self::MissingId => {
                "send the reading's id, or leave `id` out of the mapping to tell readings apart by series and time"
            }
            Self::InvalidId => "send an id of 1 to 256 bytes of text, or a whole number",
            Self::MissingMetric => "send the metric's name, or point `metric` at the field that holds it",
            Self::InvalidMetric => {
                "name a metric by a text of 1 to 64 bytes without control characters, or by a whole number"
            }
            Self::MissingValue => "send a value, or point the mapping at the field that holds it",
            Self::TooManySeries => "raise max_series, or find out why there are so many sensors",
            Self::Conflict => "give every reading an id of its own, or set on_conflict = \"first\"",
            Self::NullValue => "send a number, or set null = \"skip\"",
            Self::InvalidValue => "send a finite JSON number, without quotes",
            Self::OutOfRange => "check the sensor, its unit and scale, or widen `valid`",
            Self::Bug => "report it, with the message: it is a bug in streamgauge",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_one_name_here_and_in_files() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
            assert_eq!(Reason::from_name(reason.as_str()), Some(reason));
            assert!(!reason.advice().ends_with('.'));
        }
        assert_eq!(Reason::from_name("nonsense"), None);
    }
}
