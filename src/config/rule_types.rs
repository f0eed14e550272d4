//! The settings of a rule: what is judged, and on which series.

use super::types::Match;
use super::values::Interval;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// What is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSettings {
    /// The metric that is judged. Only a rule of `when.missing` may leave it out: it then watches every series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Which sensors: for each label of the inventory (and `sensor` itself) a glob or a list of globs; `*` is any text,
    /// `?` any character, `!x` excludes, as in `{ type = ["kiln", "boiler*"], sensor = "!k-7" }`. Left out: all.
    #[serde(default, rename = "match", skip_serializing_if = "Match::is_empty")]
    pub matches: Match,
    /// How bad it is; with levels (`when.above = { warning = 35.0, critical = 40.0 }`) each level is its own severity.
    /// Left out: `warning`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// The condition.
    pub when: When,
    /// What is compared instead of the reading itself: a rolling statistic, such as `of.mean = "60s"`, or `of.max = 100`
    /// for the last 100 readings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Of>,
    /// For how long, in event time, the condition must hold before the alert fires.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub hold: Option<Interval>,
    /// A sentence for people: `{sensor}`, `{metric}`, `{value}` and any label of the inventory stand for themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Worth looking at today.
    #[default]
    Warning,
    /// Worth waking someone.
    Critical,
}

impl Severity {
    /// As the configuration writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// A condition: exactly one of these keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Fires above a limit: `when.above = 35.0`, or with levels and a band in which nothing changes:
    /// `when.above = { warning = 35.0, critical = 40.0, hysteresis = 2.0 }`.
    Above(Limits),
    /// Fires below a limit, likewise.
    Below(Limits),
    /// Fires when a series has been silent: `when.missing.after = "30s"`.
    Missing(Missing),
}

/// A limit, or one for each severity.
#[derive(Clone, Debug, PartialEq)]
pub enum Limits {
    /// One number; the rule's `severity` says how bad.
    One(f64),
    /// One rule per level given.
    Levels(Levels),
}

/// A limit for each severity; at least one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Levels {
    /// Beyond it, worth knowing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<f64>,
    /// Beyond it, worth looking at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<f64>,
    /// Beyond it, worth waking someone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<f64>,
    /// How far back from its limit a value must come before an alert resolves: keeps a value that hovers at the limit
    /// from flapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hysteresis: Option<f64>,
}

impl Levels {
    /// The levels that are given, least bad first.
    pub fn given(&self) -> impl Iterator<Item = (Severity, f64)> {
        [(Severity::Info, self.info), (Severity::Warning, self.warning), (Severity::Critical, self.critical)]
            .into_iter()
            .filter_map(|(severity, limit)| Some((severity, limit?)))
    }
}

impl Serialize for Limits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(limit) => serializer.serialize_f64(*limit),
            Self::Levels(levels) => levels.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Limits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Limits;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a table of levels")
            }
            fn visit_f64<E>(self, limit: f64) -> Result<Limits, E> {
                Ok(Limits::One(limit))
            }
            fn visit_i64<E>(self, limit: i64) -> Result<Limits, E> {
                Ok(Limits::One(limit as f64))
            }
            fn visit_u64<E>(self, limit: u64) -> Result<Limits, E> {
                Ok(Limits::One(limit as f64))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Limits, A::Error> {
                Levels::deserialize(MapAccessDeserializer::new(map)).map(Limits::Levels)
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

impl JsonSchema for Limits {
    fn schema_name() -> Cow<'static, str> {
        "Limits".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let levels = generator.subschema_for::<Levels>();
        json_schema!({
            "title": "number or levels",
            "description": "A limit, or one for each severity.",
            "anyOf": [{ "type": "number" }, levels]
        })
    }
}

/// How long a series must have been silent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// For this long after its newest reading, in event time; time in which streamgauge itself could not hear is not
    /// counted.
    pub after: Interval,
}

/// A rolling statistic: exactly one of these keys. Its value is a stretch of event time (`"60s"`) or a number of
/// readings (`100`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Of {
    /// How many readings.
    Count(WindowText),
    /// Their mean.
    Mean(WindowText),
    /// Their sample standard deviation.
    Stddev(WindowText),
    /// The least.
    Min(WindowText),
    /// The greatest.
    Max(WindowText),
    /// Newest minus oldest value, per second.
    Rate(WindowText),
    /// Their exponentially weighted mean.
    Ewma(WindowText),
}

impl Of {
    /// The window that it looks at.
    pub fn window(&self) -> WindowText {
        match *self {
            Self::Count(w)
            | Self::Mean(w)
            | Self::Stddev(w)
            | Self::Min(w)
            | Self::Max(w)
            | Self::Rate(w)
            | Self::Ewma(w) => w,
        }
    }
    /// As the configuration writes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Count(_) => "count",
            Self::Mean(_) => "mean",
            Self::Stddev(_) => "stddev",
            Self::Min(_) => "min",
            Self::Max(_) => "max",
            Self::Rate(_) => "rate",
            Self::Ewma(_) => "ewma",
        }
    }
}

/// A window as a rule names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowText {
    /// The last stretch of event time.
    Time(Interval),
    /// The last so many readings.
    Last(u32),
}

impl Serialize for WindowText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Time(interval) => interval.serialize(serializer),
            Self::Last(readings) => serializer.serialize_u32(*readings),
        }
    }
}

impl<'de> Deserialize<'de> for WindowText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = WindowText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"60s\", or a number of readings such as 100")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<WindowText, E> {
                text.parse().map(WindowText::Time).map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, readings: u64) -> Result<WindowText, E> {
                u32::try_from(readings)
                    .map(WindowText::Last)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(readings), &self))
            }
            fn visit_i64<E: de::Error>(self, readings: i64) -> Result<WindowText, E> {
                u32::try_from(readings)
                    .map(WindowText::Last)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(readings), &self))
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

impl JsonSchema for WindowText {
    fn schema_name() -> Cow<'static, str> {
        "Window".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let time = generator.subschema_for::<Interval>();
        json_schema!({
            "title": "duration or number of readings",
            "anyOf": [time, { "type": "integer", "minimum": 1 }]
        })
    }
    fn inline_schema() -> bool {
        true
    }
}
