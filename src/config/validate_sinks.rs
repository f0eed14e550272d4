//! What is wrong with a sink although its types are right.

use super::report::Report;
use super::types::*;
use super::validate_rules::placeholders;
use super::{Url, hints, validate};
use std::collections::{BTreeMap, BTreeSet};

/// Settings of a producer that its promise rests on, and why.
const OWNED: [(&str, &str); 6] = [
    ("bootstrap.servers", "it is the key `bootstrap_servers`"),
    ("metadata.broker.list", "it is the key `bootstrap_servers`"),
    ("enable.idempotence", "it is always on: without it, a retry may change the order"),
    ("acks", "an alert counts as delivered when all replicas in sync have it"),
    ("transactional.id", "what makes alerts arrive once is their id, not transactions"),
    ("message.timeout.ms", "an alert is never given up; it waits in its lane"),
];

/// Checks all sinks.
pub fn check(config: &Config, labels: &BTreeSet<&str>, report: &mut Report) {
    let mut destinations: BTreeMap<String, &str> = BTreeMap::new();
    for (name, sink) in &config.sinks {
        let path = format!("sinks.{name}");
        let lane = sink.lane();
        if lane.memory.bytes() == 0 || lane.memory > lane.capacity {
            let message =
                format!("`memory` is {}; it goes up to `capacity` ({}), and not down to 0", lane.memory, lane.capacity);
            report.error(&format!("{path}.memory"), message, "leave it out for 32 MiB");
        }
        let destination = match sink {
            SinkSettings::Stdout(_) => "stdout".to_owned(),
            SinkSettings::RedisStream(s) => {
                url(&path, &s.url, report);
                not_empty(&path, "key", &s.key, report);
                if s.maxlen == Some(0) {
                    let help = "leave it out to keep everything";
                    report.error(&format!("{path}.maxlen"), "`maxlen` is 0: no alert would stay", help);
                }
                format!("{} key {}", s.url.expose(), s.key)
            }
            SinkSettings::RedisLast(s) => {
                url(&path, &s.url, report);
                format!("{} prefix {}", s.url.expose(), s.prefix)
            }
            SinkSettings::RedisTimeseries(s) => {
                url(&path, &s.url, report);
                timeseries(&path, s, config, labels, report);
                format!("{} series {}", s.url.expose(), s.key)
            }
            SinkSettings::Parquet(s) => {
                if s.path.as_os_str().is_empty() {
                    report.error(&format!("{path}.path"), "`path` is empty", "write path = \"readings\"");
                }
                format!("directory {}", s.path.display())
            }
            SinkSettings::Kafka(s) => {
                validate::servers(&format!("{path}.bootstrap_servers"), &s.bootstrap_servers, report);
                validate::topic(&format!("{path}.topic"), &s.topic, report);
                validate::properties(&path, &s.properties, &OWNED, report);
                for (source, settings) in &config.sources {
                    let SourceSettings::Kafka(kafka) = settings;
                    if kafka.bootstrap_servers == s.bootstrap_servers && kafka.topics.contains(&s.topic) {
                        let message =
                            format!("sources.{source} reads the topic `{}`: it would read its own alerts", s.topic);
                        report.error(&format!("{path}.topic"), message, "name another topic");
                    }
                }
                format!("{} topic {}", s.bootstrap_servers, s.topic)
            }
        };
        if let Some(other) = destinations.insert(destination, name) {
            let message = format!("sinks.{other} writes to the same place: each alert or reading would be there twice");
            report.error(&path, message, "leave one of them out, or give it another key, prefix, path or topic");
        }
    }
}

fn not_empty(path: &str, key: &str, text: &str, report: &mut Report) {
    if text.is_empty() {
        report.error(&format!("{path}.{key}"), format!("`{key}` is empty"), "");
    }
}

fn url(path: &str, url: &Url, report: &mut Report) {
    let path = format!("{path}.url");
    let text = url.expose();
    if text.starts_with("rediss://") {
        let help = "write redis://, or put a TLS tunnel such as stunnel between";
        report.error(&path, "this streamgauge speaks no TLS to Redis", help);
    } else if !["redis://", "unix://", "redis+unix://"].iter().any(|scheme| text.starts_with(scheme)) {
        let bare = !text.contains("://") && !text.contains('@') && !text.is_empty();
        let help =
            if bare { format!("write \"redis://{text}\"") } else { "write \"redis://localhost:6379\"".to_owned() };
        report.error(&path, "`url` wants an address that begins with redis:// or unix://", help);
    } else if redis::parse_redis_url(text).is_none() {
        report.error(
            &path,
            "`url` is not an address",
            "write \"redis://localhost:6379\"; in a password, @ is %40 and / is %2F",
        );
    }
}

fn timeseries(path: &str, sink: &RedisTimeseriesSink, config: &Config, labels: &BTreeSet<&str>, report: &mut Report) {
    let key = format!("{path}.key");
    let names: Vec<_> = placeholders(&sink.key).collect();
    for wanted in ["sensor", "metric"] {
        if !names.contains(&Ok(wanted)) {
            let message = format!("`key` lacks {{{wanted}}}: several series would share one key");
            report.error(&key, message, "write \"ts:{sensor}:{metric}\"");
        }
    }
    for name in names.into_iter().filter(|name| !matches!(name, Ok("sensor" | "metric"))) {
        let what = name.map_or("a brace that is not closed".to_owned(), |name| format!("{{{name}}}"));
        report.error(&key, format!("`key` holds {what}"), "there are {sensor} and {metric}");
    }
    if let Some(retention) = sink.retention {
        validate::positive(&format!("{path}.retention"), retention, "30d", report);
    }
    for (index, label) in sink.labels.iter().enumerate() {
        let path = format!("{path}.labels[{index}]");
        if !validate::label(&path, label, report) {
            continue;
        }
        if matches!(label.as_str(), "sensor" | "metric") {
            report.warning(&path, format!("every series has the label `{label}` already"), "leave it out");
        } else if config.inventory.is_none() {
            let help = "name a CSV file of sensors with inventory = \"sensors.csv\"";
            report.warning(&path, format!("there is no inventory, so no sensor has the label `{label}`"), help);
        } else if !labels.contains(label.as_str()) {
            let help = format!("it has {}", hints::list(labels.iter().copied()));
            report.warning(&path, format!("the inventory has no label `{label}`"), help);
        }
    }
}
