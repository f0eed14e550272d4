//! What types cannot say: numbers that contradict each other, names that nothing has, settings that are ours.

use super::inventory::{Inventory, is_label};
use super::report::Report;
use super::types::*;
use super::{Interval, hints, validate_rules, validate_sinks};
use std::collections::{BTreeMap, BTreeSet};

/// Checks a whole configuration. `removed` are the paths that could not be read: what is missing because of them is not
/// told a second time.
pub fn check(config: &Config, inventory: &Inventory, removed: &BTreeSet<String>, report: &mut Report) {
    numbers(config, report);
    for section in ["sources", "rules", "sinks"] {
        let names: Vec<&String> = match section {
            "sources" => config.sources.keys().collect(),
            "rules" => config.rules.keys().collect(),
            _ => config.sinks.keys().collect(),
        };
        for name in names {
            self::name(section, name, report);
        }
    }
    if config.sources.is_empty() && !removed.iter().any(|path| path.starts_with("sources")) {
        let help = "add one: [sources.plant] with type = \"kafka\", bootstrap_servers, topics and decode";
        report.error("sources", "there is no source", help);
    }
    for (name, source) in &config.sources {
        match source {
            SourceSettings::Kafka(kafka) => self::kafka(name, kafka, report),
        }
        decode(&format!("sources.{name}.decode"), source.decode(), config, report);
    }
    shared_topics(config, report);
    let labels: BTreeSet<&str> = inventory.values().flat_map(|labels| labels.keys().map(String::as_str)).collect();
    let whole = !removed.iter().any(|path| path.starts_with("sources"));
    validate_rules::check(config, inventory, &labels, whole, report);
    validate_sinks::check(config, &labels, report);
}

/// A number must lie in a range.
fn numbers(config: &Config, report: &mut Report) {
    if !(1..=1024).contains(&config.workers) {
        let help = "one per free core is a good choice";
        report.error("workers", format!("`workers` is {}; it goes from 1 to 1024", config.workers), help);
    }
    if config.memory.bytes() < crate::memory::LEAST {
        let message = format!("`memory` is {}; less than 128 MiB is not enough for the program itself", config.memory);
        report.error("memory", message, "leave it out for 1 GiB");
    }
    let positive = [
        ("dedup.window", config.dedup.window, "10m"),
        ("limits.series_ttl", config.limits.series_ttl, "7d"),
        ("epochs.retention", config.epochs.retention, "7d"),
    ];
    for (path, interval, example) in positive {
        self::positive(path, interval, example, report);
    }
    for (index, window) in config.rolling.windows.iter().enumerate() {
        self::positive(&format!("rolling.windows[{index}]"), *window, "60s", report);
        if config.rolling.windows[..index].contains(window) {
            report.error(&format!("rolling.windows[{index}]"), format!("the window {window} is there twice"), "");
        }
    }
    for (index, readings) in config.rolling.last.iter().enumerate() {
        readings_window(&format!("rolling.last[{index}]"), *readings, report);
        if config.rolling.last[..index].contains(readings) {
            report.error(&format!("rolling.last[{index}]"), format!("the window {readings} is there twice"), "");
        }
    }
    for (path, interval, example) in
        [("mesh.join_timeout", config.mesh.join_timeout, "60s"), ("mesh.silence", config.mesh.silence, "10s")]
    {
        if !(Interval::seconds(1)..=Interval::days(1)).contains(&interval) {
            let key = path.trim_start_matches("mesh.");
            report.error(path, format!("`{key}` is {interval}; it goes from 1s to 1d"), format!("write \"{example}\""));
        }
    }
    let (tick, every) = (config.epochs.tick, config.checkpoint.interval);
    if !(Interval::millis(1)..=Interval::seconds(1)).contains(&tick) || tick.us() % 1000 != 0 {
        let help = "20ms suits most; shorter brings alerts sooner and costs more";
        report.error("epochs.tick", format!("`tick` is {tick}; it goes from 1ms to 1s, in whole milliseconds"), help);
    }
    if every < Interval::seconds(1) || every.us() % 1_000_000 != 0 {
        let message = format!("`interval` is {every}; checkpoints are at least 1s apart, in whole seconds");
        report.error("checkpoint.interval", message, "write \"30s\"");
    }
    if config.limits.series_ttl.us() % 1_000_000 != 0 {
        report.error("limits.series_ttl", "`series_ttl` is counted in whole seconds", "write \"7d\"");
    }
    if config.checkpoint.keep > 3 {
        report.error("checkpoint.keep", "more than 3 checkpoints cannot be kept", "write 3");
    }
    if config.checkpoint.keep == 0 {
        report.error("checkpoint.keep", "`keep` is 0: there would be nothing to restart from", "write 3");
    }
    if config.limits.max_series == 0 {
        report.error("limits.max_series", "`max_series` is 0: no reading would be accepted", "write 10_000_000");
    }
    let bytes = config.limits.max_record_bytes;
    if !(1..=256 << 20).contains(&bytes.bytes()) {
        let message = format!("`max_record_bytes` is {bytes}; it goes from 1 B to 256 MiB");
        report.error("limits.max_record_bytes", message, "write \"1 MiB\"");
    }
    let (lateness, window) = (config.event_time.allowed_lateness, config.dedup.window);
    if lateness > window {
        let message = format!(
            "allowed_lateness ({lateness}) is longer than dedup.window ({window}): a copy could come after its \
             original is forgotten and be accepted again"
        );
        let help = format!("raise dedup.window to \"{lateness}\", or lower allowed_lateness");
        report.error("event_time.allowed_lateness", message, help);
    }
    if let Some(DedupKey::Id) = config.dedup.key {
        for (name, _) in config.sources.iter().filter(|(_, source)| source.decode().id.is_none()) {
            let message = format!("duplicates are found by id, but sources.{name}.decode names no id");
            let help = "write id = \"/path\" there, or leave dedup.key out: each source then uses what it has";
            report.error("dedup.key", message, help);
        }
    }
}

pub(super) fn positive(path: &str, interval: Interval, example: &str, report: &mut Report) {
    if interval.is_zero() {
        let key = path.rsplit('.').next().unwrap_or(path);
        report.error(path, format!("`{key}` is no time at all"), format!("write a duration such as \"{example}\""));
    }
}

pub(super) fn readings_window(path: &str, readings: u32, report: &mut Report) {
    if !(1..=1_000_000).contains(&readings) {
        let message = format!("a window of {readings} readings; it goes from 1 to 1,000,000");
        report.error(path, message, "write 100");
    }
}

/// Names stand in metrics, file names and alert keys.
fn name(section: &str, name: &str, report: &mut Report) {
    let fine = (1..=64).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        && !name.starts_with('.');
    if !fine {
        let place = report.key(&format!("{section}.{name}"));
        let help = "letters, digits, `_`, `-` and `.`, at most 64".to_owned();
        report.add(super::Level::Error, place, format!("{name:?} is no name in {section}"), Some(help));
    }
}

/// Settings of librdkafka that are ours, and why.
const OWNED: [(&str, &str); 11] = [
    ("bootstrap.servers", "it is the key `bootstrap_servers`"),
    ("metadata.broker.list", "it is the key `bootstrap_servers`"),
    ("group.id", "it is the key `group_id`"),
    ("auto.offset.reset", "it is the key `auto_offset_reset`, and holds only where no checkpoint says otherwise"),
    ("enable.auto.commit", "offsets are committed after the sinks have answered, never by a timer"),
    ("auto.commit.interval.ms", "offsets are committed after the sinks have answered, never by a timer"),
    ("enable.auto.offset.store", "positions live in the checkpoint"),
    ("enable.partition.eof", "streamgauge must know when it has reached a partition's end"),
    ("partition.assignment.strategy", "partitions are assigned by offset, never by group rebalancing"),
    ("group.instance.id", "partitions are assigned by offset, never by group rebalancing"),
    ("group.protocol", "partitions are assigned by offset, never by group rebalancing"),
];

fn kafka(name: &str, kafka: &KafkaSource, report: &mut Report) {
    let path = format!("sources.{name}");
    servers(&format!("{path}.bootstrap_servers"), &kafka.bootstrap_servers, report);
    if kafka.topics.is_empty() {
        report.error(&format!("{path}.topics"), "`topics` is empty", "write topics = [\"sensor-data\"]");
    }
    for (index, topic) in kafka.topics.iter().enumerate() {
        let path = format!("{path}.topics[{index}]");
        self::topic(&path, topic, report);
        if kafka.topics[..index].contains(topic) {
            report.error(&path, format!("the topic `{topic}` is there twice"), "");
        }
    }
    if kafka.group_id.is_empty() {
        report.error(&format!("{path}.group_id"), "`group_id` is empty", "leave it out for \"streamgauge\"");
    }
    properties(&path, &kafka.properties, &OWNED, report);
}

pub(super) fn servers(path: &str, servers: &str, report: &mut Report) {
    for server in servers.split(',').map(str::trim) {
        let port = server.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
        match port.map(str::parse::<u16>) {
            Some(Ok(1..)) => {}
            _ if server.contains("://") => {
                let bare = server.split("://").nth(1).unwrap_or_default();
                let help = format!("write {bare:?}; TLS is properties.\"security.protocol\" = \"SSL\"");
                report.error(
                    path,
                    format!("`bootstrap_servers` takes host:port, without a scheme, found {server:?}"),
                    help,
                );
            }
            _ => {
                let host = server.split(':').next().filter(|host| !host.is_empty()).unwrap_or("localhost");
                let message = format!("`bootstrap_servers` wants host:port, found {server:?}");
                report.error(path, message, format!("write \"{host}:9092\""));
            }
        }
    }
}

pub(super) fn topic(path: &str, topic: &str, report: &mut Report) {
    let fine = (1..=249).contains(&topic.len())
        && topic.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        && !matches!(topic, "." | "..");
    if !fine {
        let help = "letters, digits, `.`, `_` and `-`, at most 249; patterns are not taken";
        report.error(path, format!("{topic:?} is no name for a topic"), help);
    }
}

/// Settings for librdkafka: ours are refused, and it is asked what it thinks of the others.
pub(super) fn properties(path: &str, properties: &Properties, owned: &[(&str, &str)], report: &mut Report) {
    for (name, value) in properties {
        let path = format!("{path}.properties.{name}");
        if let Some((_, why)) = owned.iter().find(|(ours, _)| ours == name) {
            report.error(&path, format!("`{name}` is set by streamgauge itself"), *why);
            continue;
        }
        let mut settings = rdkafka::ClientConfig::new();
        settings.set(name, value.expose());
        let Err(error) = settings.create_native_config() else { continue };
        let why = match &error {
            rdkafka::error::KafkaError::ClientConfig(_, why, _, _) => why.clone(),
            other => other.to_string(),
        };
        if why.starts_with("No such configuration property") {
            report.error(&path, format!("librdkafka has no setting `{name}`"), "");
        } else {
            // Its sentence may repeat the value, and the value may be a secret.
            let why = match value.expose() {
                "" => why,
                secret => why.replace(secret, "***"),
            };
            report.error(&path, format!("librdkafka refuses `{name}`: {why}"), "");
        }
    }
}

/// Two sources on one topic would each read all of it.
fn shared_topics(config: &Config, report: &mut Report) {
    let mut readers: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for (name, source) in &config.sources {
        let SourceSettings::Kafka(kafka) = source;
        for (index, topic) in kafka.topics.iter().enumerate() {
            let topic_of = (kafka.bootstrap_servers.as_str(), topic.as_str());
            match readers.insert(topic_of, name) {
                Some(other) if other != name => {
                    let message =
                        format!("sources.{other} reads the topic `{topic}` as well: each would see every record");
                    let help = "right if their decode differs; otherwise name it in one of them only";
                    report.warning(&format!("sources.{name}.topics[{index}]"), message, help);
                }
                _ => {}
            }
        }
    }
}

fn decode(path: &str, decode: &Decode, config: &Config, report: &mut Report) {
    let narrow = "metric and value for one reading a message";
    let wide = "metrics.<name> = { path = ... } for several";
    match (&decode.metric, &decode.value, decode.is_wide()) {
        (Some(_), Some(_), false) | (None, None, true) => {}
        (None, None, false) => {
            report.error(path, "`decode` does not say where values are", format!("write {narrow}, or {wide}"));
        }
        (Some(_), None, false) => {
            report.error(&format!("{path}.metric"), "`metric` without `value`", "write value = \"/value\" beside it");
        }
        (None, Some(_), false) => {
            let help =
                "write metric = \"/type\" beside it; if messages name no metric, metrics.<name> = { path = ... }";
            report.error(&format!("{path}.value"), "`value` without `metric`", help);
        }
        (_, _, true) => {
            report.error(path, "`decode` is narrow and wide at once", format!("write {narrow}, or {wide}, not both"));
        }
    }
    if decode.is_wide() && !decode.values.is_empty() {
        let help = "in a wide decode, scale, offset, unit and valid stand beside the path, in metrics.<name>";
        report.error(&format!("{path}.values"), "`values` belongs to a narrow decode", help);
    }
    if decode.metrics.len() > 4096 {
        report.error(&format!("{path}.metrics"), "more than 4096 metrics in one message", "split the source");
    }
    for (name, field) in &decode.metrics {
        let path = format!("{path}.metrics.{name}");
        metric_name(&path, name, report);
        scaling(&path, field.scale, field.offset, field.valid, report);
    }
    for (name, values) in &decode.values {
        let path = format!("{path}.values.{name}");
        metric_name(&path, name, report);
        scaling(&path, values.scale, values.offset, values.valid, report);
    }
    if let Some(zone) = &decode.zone
        && jiff::tz::TimeZoneDatabase::bundled().get(zone).is_err()
    {
        let zones: Vec<String> =
            jiff::tz::TimeZoneDatabase::bundled().available().map(|zone| zone.to_string()).collect();
        let help = match hints::nearest(zone, zones.iter().map(String::as_str)) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => "write a name of the IANA database, such as \"Europe/Berlin\" or \"UTC\"".to_owned(),
        };
        report.error(&format!("{path}.zone"), format!("there is no time zone {zone:?}"), help);
    }
    if let (Some(_), Some(DedupKey::SeriesTime | DedupKey::Hash)) = (&decode.id, config.dedup.key) {
        let help = "leave dedup.key out to use it, or leave the id out";
        report.warning(&format!("{path}.id"), "the id is checked but not used: dedup.key says otherwise", help);
    }
}

pub(super) fn metric_name(path: &str, name: &str, report: &mut Report) {
    if name.is_empty() || name.len() > 64 || name.chars().any(|c| c.is_ascii_control()) {
        let help = "1 to 64 bytes, no control characters";
        report.error(path, format!("{name:?} is no name for a metric"), help);
    }
}

fn scaling(path: &str, scale: Option<f64>, offset: Option<f64>, valid: Option<[f64; 2]>, report: &mut Report) {
    if scale.is_some_and(|scale| !scale.is_finite() || scale == 0.0) {
        let message = "`scale` must be a finite number other than 0";
        report.error(&format!("{path}.scale"), message, "leave it out to take values as they are");
    }
    if offset.is_some_and(|offset| !offset.is_finite()) {
        report.error(&format!("{path}.offset"), "`offset` must be a finite number", "");
    }
    match valid {
        Some([low, high]) if low.is_nan() || high.is_nan() => {
            report.error(&format!("{path}.valid"), "`valid` must be two numbers", "write [0.0, 100.0]");
        }
        Some([low, high]) if low > high => {
            let message = format!("`valid` begins at {low} and ends at {high}: no value lies between");
            report.error(&format!("{path}.valid"), message, format!("write [{high:?}, {low:?}]"));
        }
        _ => {}
    }
}

/// Whether a name may be that of a label; says so if not.
pub(super) fn label(path: &str, name: &str, report: &mut Report) -> bool {
    let fine = is_label(name);
    if !fine {
        let help = "letters, digits, `_`, `-` and `.`, beginning with a letter";
        report.error(path, format!("{name:?} is no name for a label"), help);
    }
    fine
}
