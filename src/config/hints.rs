//! What would be right: the help behind a mistake.

use super::tree::Value;

/// The known name that was probably meant.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (written.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&written.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// A list of names for a sentence.
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    match names.split_at_checked(12) {
        Some((some, rest)) if !rest.is_empty() => format!("{} and {} more", some.join(", "), rest.len()),
        _ => names.join(", "),
    }
}

/// Keys that other programs use for what has another name here.
const FALSE_FRIENDS: [(&str, &str); 10] = [
    ("brokers", "bootstrap_servers"),
    ("topic", "topics"),
    ("group", "group_id"),
    ("offset_reset", "auto_offset_reset"),
    ("labels", "match"),
    ("selector", "match"),
    ("duration", "for"),
    ("field", "path"),
    ("timestamp", "time"),
    ("lateness", "allowed_lateness"),
];

pub fn unknown_key(key: &str, known: &[&str], table: &str) -> Option<String> {
    if known.is_empty() {
        return None;
    }
    let friend =
        FALSE_FRIENDS.iter().find(|(other, ours)| *other == key && known.contains(ours)).map(|(_, ours)| *ours);
    if let Some(meant) = nearest(key, known.iter().copied()).or(friend) {
        return Some(format!("did you mean `{meant}`?"));
    }
    // Many would rather add a section than a key, and forget the `s`.
    if table.is_empty() && ["kafka", "redis", "rule", "sink"].contains(&key) {
        return Some("write [sources.NAME], [rules.NAME] or [sinks.NAME]".to_owned());
    }
    Some(format!("there are {}", list(known.iter().copied())))
}

pub fn missing_key(key: &str, path: &str) -> Option<String> {
    let help = match key {
        "type" if path.starts_with("sources.") => "write type = \"kafka\"",
        "type" => "write type = \"redis_stream\", or stdout, redis_last, redis_timeseries, parquet, kafka",
        "bootstrap_servers" => "write bootstrap_servers = \"localhost:9092\"",
        "topics" => "write topics = [\"sensor-data\"]",
        "topic" => "write topic = \"alerts\"",
        "decode" => {
            "write decode = { sensor = \"/sensor_id\", metric = \"/type\", value = \"/value\", time = \"/timestamp\" }"
        }
        "sensor" => "write sensor = \"/sensor_id\", the path of the sensor's name in a message",
        "time" => "write time = \"/timestamp\", the path of the event time in a message",
        "path" if path.starts_with("sources.") => "write path = \"/value\", where the value is in a message",
        "path" => "write path = \"readings\", the directory of the files",
        "when" => "write when.above = 35.0, when.below = 30.0 or when.missing.after = \"30s\"",
        "after" => "write after = \"30s\"",
        "url" => "write url = \"redis://localhost:6379\"",
        _ => return None,
    };
    Some(help.to_owned())
}

pub fn unknown_name(found: &str, known: &[&str]) -> Option<String> {
    match nearest(found.trim_matches('"'), known.iter().copied()) {
        Some(meant) => Some(format!("did you mean \"{meant}\"?")),
        None => Some(format!("there are {}", list(known.iter().copied()))),
    }
}

pub fn wrong_type(wants: &str, value: &Value) -> Option<String> {
    match value {
        Value::String(_, true) => None,
        Value::String(text, false) if wants.contains("number") => {
            let number: f64 = text.trim().parse().ok().filter(|number: &f64| number.is_finite())?;
            let whole = wants.starts_with("a whole") || wants.contains("readings");
            Some(if whole {
                format!("write {number}, without quotes")
            } else {
                format!("write {number:?}, without quotes")
            })
        }
        Value::String(text, false) if wants == "true or false" && (text == "true" || text == "false") => {
            Some(format!("write {text}, without quotes"))
        }
        Value::String(text, false) if wants == "a list" => Some(format!("write [{text:?}]")),
        Value::Integer(number) if wants.starts_with("a duration") && *number > 0 => {
            let other = if number % 60 == 0 { format!("{}m", number / 60) } else { format!("{number}ms") };
            Some(format!("write \"{number}s\" or \"{other}\""))
        }
        Value::Integer(0) if wants.starts_with("a duration") => Some("write \"0s\"".to_owned()),
        Value::Float(number) if wants.starts_with("a duration") => Some(format!("write \"{}ms\"", number * 1000.0)),
        Value::Float(number) if wants.starts_with("a whole") && number.fract() == 0.0 => {
            Some(format!("write {number}"))
        }
        Value::Integer(_) | Value::Float(_) | Value::Bool(_) if wants == "a string" || wants.starts_with("a path") => {
            let text = match value {
                Value::Integer(number) => number.to_string(),
                Value::Float(number) => format!("{number:?}"),
                Value::Bool(flag) => flag.to_string(),
                _ => String::new(),
            };
            Some(format!("write \"{text}\", in quotes"))
        }
        _ => None,
    }
}
