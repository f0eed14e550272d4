//! What a sample of messages says about a mapping: how many decode, and where the fields probably are that it misses.

use crate::config::{Decode, Pointer};
use crate::decode::{Decoder, Outcome, Reason, Times};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What became of a sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// How many messages with bytes there were.
    pub messages: usize,
    /// How many of them decode.
    pub decoded: usize,
    /// Into how many readings.
    pub readings: usize,
    /// Why the others do not, and why single values do not.
    pub reasons: BTreeMap<Reason, usize>,
    /// The metrics that were seen.
    pub metrics: BTreeSet<String>,
}

/// A field that the mapping misses in most messages: its key, what is wrong, what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The key of the mapping.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: String,
}

/// Decodes a sample.
pub fn look(decoder: &mut Decoder, messages: &[Vec<u8>]) -> Sample {
    let mut sample = Sample { messages: messages.len(), ..Sample::default() };
    for message in messages {
        match decoder.decode(Some(message)) {
            Outcome::Filtered => {}
            Outcome::DeadLetter(reason) => *sample.reasons.entry(reason).or_default() += 1,
            Outcome::Decoded(fanout) => {
                sample.decoded += 1;
                for value in fanout.values() {
                    match value.value {
                        Ok(_) => {
                            sample.readings += 1;
                            if !sample.metrics.contains(value.metric) {
                                sample.metrics.insert(value.metric.to_owned());
                            }
                        }
                        Err(crate::decode::ValueIssue::Null) => {}
                        Err(crate::decode::ValueIssue::DeadLetter(reason)) => {
                            *sample.reasons.entry(reason).or_default() += 1;
                        }
                    }
                }
            }
        }
    }
    sample
}

impl Sample {
    /// The counts of reasons in a sentence.
    pub fn why(&self) -> String {
        let reasons: Vec<_> =
            self.reasons.iter().map(|(reason, count)| format!("{count} {}", reason.as_str())).collect();
        reasons.join(", ")
    }

    /// What the mapping misses in at least half of the messages.
    pub fn missed(&self, topic: &str, decode: &Decode, messages: &[Vec<u8>]) -> Option<Missed> {
        let (reason, count) = self.reasons.iter().max_by_key(|(_, count)| **count)?;
        if count * 2 < self.messages {
            return None;
        }
        let (key, what, at) = match reason {
            Reason::MissingSensor | Reason::InvalidSensor => ("sensor", "a sensor", Some(&decode.sensor)),
            Reason::MissingTime | Reason::InvalidTime => ("time", "a time", Some(&decode.time)),
            Reason::MissingId | Reason::InvalidId => ("id", "an id", decode.id.as_ref()),
            Reason::MissingMetric | Reason::InvalidMetric => ("metric", "a metric", decode.metric.as_ref()),
            Reason::MissingValue | Reason::InvalidValue if !decode.is_wide() => {
                ("value", "a value", decode.value.as_ref())
            }
            Reason::MissingValue => ("metrics", "one of the mapped fields", None),
            _ => return None,
        };
        let at = at.map_or_else(String::new, |pointer| format!(" at {pointer}"));
        let (had, all) = (self.messages - count, self.messages);
        let message = format!("{had} of the {all} newest messages of `{topic}` have {what}{at}");
        let trees: Vec<Value> = messages.iter().filter_map(|message| serde_json::from_slice(message).ok()).collect();
        Some(Missed { key, message, help: self.help(key, decode, &trees) })
    }

    /// Where the field probably is.
    fn help(&self, key: &str, decode: &Decode, trees: &[Value]) -> String {
        let Some(first) = trees.first() else { return "none of them is JSON".to_owned() };
        let mut leaves = Vec::new();
        collect(first, String::new(), &mut leaves);
        let times = Times::new(decode.time_unit, decode.zone.as_deref());
        let fits = |path: &str, value: &Value| {
            let name = path.rsplit('/').next().unwrap_or_default().to_lowercase();
            let named = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
            match key {
                "time" => times.as_ref().is_ok_and(|times| match value {
                    Value::String(text) => times.text(text).is_ok(),
                    Value::Number(number) => number.as_i64().is_some_and(|whole| times.whole(whole).is_ok()),
                    _ => false,
                }),
                "sensor" => is_name(value) && named(&["sensor", "device", "station", "name", "id", "node"]),
                "id" => is_name(value) && named(&["id"]),
                "metric" => value.is_string() && named(&["metric", "type", "kind", "measure", "name", "quantity"]),
                _ => value.is_number() && named(&["val", "reading", "measure"]) || value.is_number() && name == "v",
            }
        };
        let everywhere =
            |path: &str| trees.iter().all(|tree| tree.pointer(path).is_some_and(|value| fits(path, value)));
        let found = leaves.iter().find(|(path, value)| fits(path, value) && everywhere(path));
        match found {
            Some((path, value)) => {
                // The program's own pointer type writes the path as a configuration would.
                let pointer = path.parse::<Pointer>().map_or_else(|_| path.clone(), |pointer| pointer.to_string());
                let zone = match (key, decode.zone.as_deref()) {
                    ("time", Some(_)) if names_no_zone(value) => "; keep `zone`, since it names none",
                    _ => "",
                };
                format!("all {} have {pointer}, such as {value}: write {key} = {pointer:?}{zone}", trees.len())
            }
            None => {
                let paths: Vec<&str> = leaves.iter().map(|(path, _)| path.as_str()).take(12).collect();
                format!("the first has {}", paths.join(", "))
            }
        }
    }
}

fn is_name(value: &Value) -> bool {
    value.is_string() || value.is_i64() || value.is_u64()
}

/// Whether a time is local: without `Z` or an offset.
fn names_no_zone(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.parse::<jiff::Timestamp>().is_err())
}

/// The values of a message that are neither lists nor objects, by path.
fn collect(value: &Value, path: String, leaves: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                collect(value, format!("{path}/{name}"), leaves);
            }
        }
        Value::Array(_) => {}
        leaf => leaves.push((path, leaf.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::DecodeLimits;

    fn mapping(toml: &str) -> Decode {
        toml::from_str(toml).unwrap()
    }

    fn sampled(decode: &Decode, messages: &[&str]) -> (Sample, Option<Missed>) {
        let mut decoder = Decoder::new(decode, DecodeLimits { max_record_bytes: 1 << 20 }, None).unwrap();
        let messages: Vec<_> = messages.iter().map(|message| message.as_bytes().to_vec()).collect();
        let sample = look(&mut decoder, &messages);
        let missed = sample.missed("stations", decode, &messages);
        (sample, missed)
    }

    const NARROW: &str = "sensor = '/sensor_id'\ntime = '/timestamp'\nmetric = '/type'\nvalue = '/value'\n";

    #[test]
    fn what_decodes_is_counted() {
        let message = r#"{"sensor_id":"a","timestamp":1700000000,"type":"t","value":1}"#;
        let (sample, missed) =
            sampled(&mapping(NARROW), &[message, &message.replace(":1}", ":\"ERR\"}"), message, "{"]);
        assert_eq!((sample.messages, sample.decoded, sample.readings), (4, 3, 2));
        assert_eq!(sample.why(), "1 not_json, 1 invalid_value");
        assert_eq!(sample.metrics.into_iter().collect::<Vec<_>>(), ["t"]);
        assert_eq!(missed, None);
    }

    #[test]
    fn a_field_that_lies_elsewhere_is_found() {
        let decode = mapping(&format!("{NARROW}zone = 'Europe/Berlin'\n"));
        let message = r#"{"sensor_id":"a","ts":"2025-11-05T14:41:38","type":"t","value":1}"#;
        let missed = sampled(&decode, &[message, message]).1.unwrap();
        assert_eq!(missed.key, "time");
        assert_eq!(missed.message, "0 of the 2 newest messages of `stations` have a time at /timestamp");
        assert_eq!(
            missed.help,
            "all 2 have /ts, such as \"2025-11-05T14:41:38\": write time = \"/ts\"; keep `zone`, since it names none"
        );
        let message = r#"{"dev":{"device":"a"},"timestamp":1700000000,"type":"t","value":1}"#;
        let missed = sampled(&mapping(NARROW), &[message]).1.unwrap();
        assert_eq!(missed.help, "all 1 have /dev/device, such as \"a\": write sensor = \"/dev/device\"");
        let message = r#"{"sensor_id":"a","timestamp":1700000000,"type":"t","x":true}"#;
        let missed = sampled(&mapping(NARROW), &[message]).1.unwrap();
        assert_eq!(missed.help, "the first has /sensor_id, /timestamp, /type, /x");
    }
}
