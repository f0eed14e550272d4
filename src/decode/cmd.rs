//! `streamgauge decode`: one message, or a file of them, through a source's mapping.

use super::{DecodeLimits, Decoder, Fanout, Outcome, Reason, ValueIssue};
use crate::config::{Config, Decode};
use crate::error::Failure;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// Shows what a message decodes to, or why it is a dead letter and what would be right.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// The source whose mapping is used; needed if the configuration has several
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Print one JSON object per message
    #[arg(long)]
    pub json: bool,
    /// A file with one message, or with one on each line; "-" or nothing reads standard input
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Reads the messages and prints what becomes of each. Dead letters are an answer, not a failure.
pub fn run(args: &Args, config: &Config) -> Result<(), Failure> {
    let messages = match args.file.as_deref().filter(|file| file.as_os_str() != "-") {
        Some(file) => {
            std::fs::read(file).map_err(|error| Failure::configuration(format!("{}: {error}", file.display())))?
        }
        None => {
            let mut bytes = Vec::new();
            io::stdin()
                .read_to_end(&mut bytes)
                .map_err(|error| Failure::configuration(format!("standard input: {error}")))?;
            bytes
        }
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    match show(args, config, &messages, &mut out)?.and_then(|()| out.flush()) {
        // Whoever reads our output may have seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::configuration(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

fn show(args: &Args, config: &Config, input: &[u8], out: &mut impl Write) -> Result<io::Result<()>, Failure> {
    let (name, settings) = source(args.source.as_deref(), config)?;
    let limits = DecodeLimits {
        max_record_bytes: usize::try_from(config.limits.max_record_bytes.bytes()).unwrap_or(usize::MAX),
    };
    let mut decoder = Decoder::new(settings, limits, config.dedup.key)
        .map_err(|error| Failure::configuration(format!("sources.{name}.decode: {error}")))?;
    let mut print = |line: Option<usize>, message: &[u8]| {
        let outcome = decoder.decode(Some(message));
        if args.json {
            writeln!(out, "{}", as_json(settings, line, message, &outcome))
        } else {
            out.write_all(as_text(settings, line, message, &outcome).as_bytes())
        }
    };
    let lines = || input.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    let one_per_line = !is_object(input) && lines().any(|(_, line)| is_object(line));
    Ok(if one_per_line {
        lines().try_for_each(|(number, line)| print(Some(number + 1), line))
    } else {
        print(None, input)
    })
}

/// The source of this name, or the only one.
fn source<'c>(name: Option<&str>, config: &'c Config) -> Result<(&'c str, &'c Decode), Failure> {
    let names = || config.sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let found = match (name, config.sources.len()) {
        (Some(name), _) => config
            .sources
            .get_key_value(name)
            .ok_or_else(|| format!("--source: the configuration has no source {name:?}; it has {}", names())),
        (None, 1) => config.sources.iter().next().ok_or_else(String::new),
        (None, 0) => Err("the configuration has no source; add one under [sources]".to_owned()),
        (None, _) => Err(format!("the configuration has several sources; name one of {} with --source", names())),
    };
    found.map(|(name, source)| (name.as_str(), source.decode())).map_err(Failure::configuration)
}

fn is_object(text: &[u8]) -> bool {
    text.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
}

/// A metric's unit, if the mapping has one.
fn unit<'s>(settings: &'s Decode, metric: &str) -> Option<&'s str> {
    let of_field = settings.metrics.get(metric).and_then(|field| field.unit.as_deref());
    of_field.or_else(|| settings.values.get(metric).and_then(|scaling| scaling.unit.as_deref()))
}

/// A time as RFC 3339.
fn rfc_3339(time: i64) -> String {
    Timestamp::from_microsecond(time).map_or_else(|_| time.to_string(), |timestamp| timestamp.to_string())
}

/// What was found where the mapping looked, or why it is not JSON.
fn detail(settings: &Decode, message: &[u8], reason: Reason) -> String {
    let tree = match serde_json::from_slice::<Value>(message) {
        Ok(tree) => tree,
        Err(error) if reason == Reason::NotJson => return error.to_string(),
        Err(_) => Value::Null,
    };
    let pointer = match reason {
        Reason::MissingSensor | Reason::InvalidSensor => Some(&settings.sensor),
        Reason::MissingTime | Reason::InvalidTime | Reason::SkippedTime => Some(&settings.time),
        Reason::MissingId | Reason::InvalidId => settings.id.as_ref(),
        Reason::MissingMetric | Reason::InvalidMetric => settings.metric.as_ref(),
        Reason::MissingValue => settings.value.as_ref(),
        _ => None,
    };
    match (reason, pointer) {
        (Reason::TooLarge, _) => format!("it has {} bytes", message.len()),
        (Reason::NotJson, _) => format!("it is {}", kind(&tree)),
        (_, Some(pointer)) => match tree.pointer(pointer.as_str()) {
            Some(found) => format!("{pointer} holds {}", short(found)),
            None => format!("there is no {pointer}; there are {}", keys(&tree)),
        },
        (Reason::MissingValue, None) => {
            let wanted: Vec<_> = settings.metrics.values().map(|field| field.path.as_str()).collect();
            format!("there is none of {}; there are {}", wanted.join(", "), keys(&tree))
        }
        _ => String::new(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value in at most some 80 characters.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

fn keys(tree: &Value) -> String {
    let keys: Vec<_> =
        tree.as_object().into_iter().flat_map(Map::keys).take(20).map(|key| short(&json!(key))).collect();
    if keys.is_empty() { "no fields".into() } else { keys.join(", ") }
}

fn as_text(settings: &Decode, line: Option<usize>, message: &[u8], outcome: &Outcome<'_>) -> String {
    let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = match outcome {
        Outcome::Filtered => writeln!(text, "{place}filtered"),
        Outcome::DeadLetter(reason) => {
            let detail = detail(settings, message, *reason);
            writeln!(text, "{place}dead letter: {reason}: {detail}\n    help: {}", reason.advice())
        }
        Outcome::Decoded(Fanout { sensor, time, .. }) => {
            let Outcome::Decoded(fanout) = outcome else { return text };
            fanout.values().try_for_each(|value| {
                let metric = value.metric;
                write!(text, "{place}{sensor}  {metric}  ")?;
                match value.value {
                    Ok(x) => {
                        let unit = unit(settings, metric).map(|unit| format!(" {unit}")).unwrap_or_default();
                        writeln!(text, "{x}{unit}  {}  ({time})", rfc_3339(*time))
                    }
                    Err(ValueIssue::Null) => writeln!(text, "null: skipped, and counted"),
                    Err(ValueIssue::DeadLetter(reason)) => {
                        writeln!(text, "dead letter: {reason}\n    help: {}", reason.advice())
                    }
                }
            })
        }
    };
    text
}

fn as_json(settings: &Decode, line: Option<usize>, message: &[u8], outcome: &Outcome<'_>) -> Value {
    let mut object = match outcome {
        Outcome::Filtered => json!({ "outcome": "filtered" }),
        Outcome::DeadLetter(reason) => json!({
            "outcome": "dead_letter", "reason": reason, "detail": detail(settings, message, *reason), "help": reason.advice(),
        }),
        Outcome::Decoded(fanout) => {
            let readings: Vec<Value> = fanout
                .values()
                .map(|value| {
                    let metric = value.metric;
                    match value.value {
                        Ok(x) => json!({ "index": value.index, "metric": metric, "value": x, "unit": unit(settings, metric) }),
                        Err(ValueIssue::Null) => json!({ "index": value.index, "metric": metric, "null": true }),
                        Err(ValueIssue::DeadLetter(reason)) => json!({
                            "index": value.index, "metric": metric, "reason": reason, "help": reason.advice(),
                        }),
                    }
                })
                .collect();
            json!({
                "outcome": "decoded", "sensor": fanout.sensor, "time": rfc_3339(fanout.time), "time_us": fanout.time,
                "identity": format!("{:032x}", fanout.identity), "readings": readings,
            })
        }
    };
    if let (Some(line), Value::Object(members)) = (line, &mut object) {
        members.insert("line".into(), line.into());
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        serde_json::from_value(json!({ "sources": {
            "machines": { "kafka": { "bootstrap_servers": "k:9092", "topics": ["m"], "decode":
                { "sensor": "/s", "metric": "/m", "value": "/v", "time": "/t", "values": { "temperature": { "unit": "degC", "valid": [-40.0, 60.0] } } } } },
            "stations": { "kafka": { "bootstrap_servers": "k:9092", "topics": ["s"], "decode":
                { "sensor": "/s", "time": "/t", "metrics": { "pm10": { "path": "/pm/10" } } } } },
        } }))
        .unwrap()
    }

    fn shown(source: &str, json: bool, input: &str) -> String {
        let args = Args { source: Some(source.into()), json, file: None };
        let mut out = Vec::new();
        show(&args, &config(), input.as_bytes(), &mut out).unwrap().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_message_may_spread_over_lines_and_shows_value_unit_and_time() {
        let message = "{\n\"s\": \"b-17\", \"m\": \"temperature\",\n\"v\": 21.5,\n\"t\": \"2026-01-01T00:00:00Z\"\n}\n";
        assert_eq!(
            shown("machines", false, message),
            "b-17  temperature  21.5 degC  2026-01-01T00:00:00Z  (1767225600000000)\n"
        );
    }

    #[test]
    fn a_message_on_each_line_is_shown_with_its_line() {
        let messages = "{\"s\":1,\"t\":1767225600,\"pm\":{\"10\":7}}\n\n{\"s\":1,\"t\":1767225600,\"pm\":{\"10\":null}}\n{\"s\":1,\"t\":1767225600}\n{\"s\":1\n";
        let shown = shown("stations", false, messages);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "line 1: 1  pm10  7  2026-01-01T00:00:00Z  (1767225600000000)");
        assert_eq!(lines[1], "line 3: 1  pm10  null: skipped, and counted");
        assert_eq!(lines[2], "line 4: dead letter: missing_value: there is none of /pm/10; there are \"s\", \"t\"");
        assert!(
            lines[4].starts_with("line 5: dead letter: not_json: EOF while parsing an object at line 1"),
            "{shown}"
        );
    }

    #[test]
    fn a_dead_letter_says_what_was_found_and_what_would_be_right() {
        let found = |message: &str| shown("machines", false, message);
        assert!(
            found("{\"s\":1,\"m\":\"t\",\"v\":1,\"t\":\"ERR\"}")
                .starts_with("dead letter: invalid_time: /t holds \"ERR\"\n    help: send RFC 3339")
        );
        assert!(
            found("{\"sensor\":1}").starts_with("dead letter: missing_sensor: there is no /s; there are \"sensor\"\n")
        );
        assert!(found("[1]").starts_with("dead letter: not_json: it is an array\n"));
        let long = found(&format!("{{\"s\":\"{}\"}}", "ä".repeat(5000)));
        assert!(
            long.starts_with("dead letter: invalid_sensor: /s holds \"ää") && long.contains("(10002 bytes)"),
            "{long}"
        );
        assert!(
            found("{\"s\":1,\"m\":\"temperature\",\"v\":61,\"t\":1767225600}")
                .contains("dead letter: out_of_range\n    help: ")
        );
    }

    #[test]
    fn json_has_the_same_in_fields() {
        let messages = "{\"s\":\"b\",\"m\":\"temperature\",\"v\":1,\"t\":1767225600}\nERR\n{\"s\":\"b\",\"m\":\"temperature\",\"v\":61,\"t\":1767225600}\n";
        let shown = shown("machines", true, messages);
        let lines: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            lines[0]["readings"],
            json!([{ "index": 0, "metric": "temperature", "value": 1.0, "unit": "degC" }])
        );
        assert_eq!((&lines[0]["time"], &lines[0]["line"]), (&json!("2026-01-01T00:00:00Z"), &json!(1)));
        assert_eq!(lines[1]["reason"], "not_json");
        assert_eq!(lines[2]["readings"][0]["reason"], "out_of_range");
    }

    #[test]
    fn which_source_is_meant_must_be_clear() {
        let error = source(None, &config()).unwrap_err().to_string();
        assert!(error.contains("machines, stations"), "{error}");
        let error = source(Some("machine"), &config()).unwrap_err().to_string();
        assert!(error.contains("\"machine\"") && error.contains("machines, stations"), "{error}");
        assert!(source(None, &Config::default()).unwrap_err().to_string().contains("[sources]"));
    }
}
