//! What an operator has: Prometheus, probes, lag tools, a topic that grows, SIGTERM.

use crate::plant::Plant;
use crate::program::{free_port, journal, streamgauge, summary};
use crate::running::{Plain, ends, get, send};
use crate::servers::{Kafka, Prometheus};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const RULES: &str = r#"
[rules.hot]
metric = "temperature"
when.above = { warning = 30.0, critical = 38.0, hysteresis = 1.0 }
[rules.damp]
metric = "humidity"
when.above = 40.0
"#;

/// The number that a Prometheus query comes to; none while there is none.
fn number(prometheus: &Prometheus, query: &str) -> Option<f64> {
    prometheus.query(query)[0]["value"][1].as_str()?.parse().ok()
}

/// A figure of `/metrics` that has no labels.
fn figure(port: u16, name: &str) -> f64 {
    let (_, text) = get(port, "/metrics").expect("metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is not in {text}"))
}

/// What fires according to the journal.
fn firing(data: &Path) -> BTreeMap<String, Value> {
    let mut firing = BTreeMap::new();
    for line in journal(data) {
        let line: Value = serde_json::from_str(&line).expect("a line");
        let id = line["alert"].as_str().expect("an id").to_owned();
        match line["state"].as_str() {
            Some("firing") => firing.insert(id, line),
            _ => firing.remove(&id),
        };
    }
    firing
}

/// What a lag tool sees.
fn committed(kafka: &Kafka, topic: &str, partitions: usize) -> Vec<i64> {
    let consumer: BaseConsumer = kafka.client().set("group.id", format!("group-{topic}")).create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions as i32 {
        list.add_partition(topic, partition);
    }
    let offsets = consumer.committed_offsets(list, Duration::from_secs(30)).expect("offsets");
    let offset = |e: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match e.offset() {
        Offset::Offset(offset) => offset,
        _ => -1,
    };
    offsets.elements().iter().map(offset).collect()
}

fn total(kafka: &Kafka, topic: &str) -> i64 {
    ends(kafka, topic).iter().sum()
}

#[test]
fn prometheus_probes_lag_tools_and_growing_topics_are_served() {
    let (kafka, topic) = (Kafka::shared(), "operations");
    let mut plant = Plant::new(kafka, topic, RULES, "");
    plant.change("checkpoint.interval = \"1s\"", "checkpoint.interval = \"10s\"");
    let (data, port) = (plant.data(), plant.port);
    plant.produce(&["--create-partitions", "2", "--readings", "20000", "--sensors", "30"]);
    let mut running = plant.run_with(&["--summary", "json"], |_| {});
    running.until("readiness", || get(port, "/readyz").filter(|(status, _)| *status == 200));
    assert_eq!(get(port, "/healthz"), Some((200, "ok\n".to_owned())));

    let prometheus = Prometheus::scraping(&[port]);
    let sent = total(kafka, topic);
    let records = "sum(streamgauge_source_records_total)";
    running.until("a scrape", || number(&prometheus, "up").filter(|up| *up == 1.0));
    running.until("all records", || number(&prometheus, records).filter(|n| *n == sent as f64));
    assert_eq!(number(&prometheus, "max(abs(streamgauge_conservation_imbalance))"), Some(0.0));
    assert_eq!(number(&prometheus, "min(streamgauge_source_up)"), Some(1.0));

    let (_, metrics) = get(port, "/metrics").expect("metrics");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    promtool.stdin.take().expect("its input").write_all(metrics.as_bytes()).expect("written");
    let verdict = promtool.wait_with_output().expect("its verdict");
    let said = [verdict.stdout, verdict.stderr].concat();
    assert!(verdict.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));

    // Nothing comes any more: what fires, fires.
    let (alerts, expected) = running.until("alerts as in the journal", || {
        let (_, text) = get(port, "/api/v1/alerts?limit=10000")?;
        let answer: Value = serde_json::from_str(&text).ok()?;
        let expected = firing(&data);
        (answer["total"] == expected.len()).then(|| (answer["alerts"].clone(), expected))
    });
    let alerts = alerts.as_array().expect("a list");
    assert!(alerts.len() > 20, "only {} alerts fire", alerts.len());
    assert_eq!(alerts.len(), expected.len());
    for alert in alerts {
        let line = &expected[alert["alert"].as_str().expect("an id")];
        for (ours, theirs) in [
            ("rule", "rule"),
            ("severity", "severity"),
            ("sensor", "sensor"),
            ("metric", "metric"),
            ("start", "start"),
            ("since", "time"),
            ("value", "value"),
        ] {
            assert_eq!(alert[ours], line[theirs], "{ours} of {line}");
        }
    }
    running.until("committed offsets", || (committed(kafka, topic, 2) == ends(kafka, topic)).then_some(()));

    // While nothing comes, epochs are written down as ever, but completed together: each one by itself would wake every
    // worker some times.
    let (written, completed) = ("streamgauge_epoch_log_commit_seconds_count", "streamgauge_epochs_total");
    let figures = || (figure(port, written), figure(port, completed));
    let mut from = figures();
    let steps = running.until("epochs of 400 lines that are completed in few steps", || {
        let now = figures();
        let (lines, steps) = (now.0 - from.0, now.1 - from.1);
        if steps >= 25.0 {
            // A checkpoint is saved in steps of its own.
            from = now;
            return None;
        }
        (lines >= 400.0).then_some(steps)
    });
    assert!(steps >= 1.0);

    // A partition that is new is found, and read from its beginning.
    kafka.grow_topic(topic, 3);
    let now = jiff::Timestamp::now().as_millisecond();
    let reading = |n: i64| {
        let text = format!(
            r#"{{"unique_reading_id":"new-{n}","sensor_id":"new","type":"temperature","value":20,"timestamp":{}}}"#,
            now + n
        );
        (2, Some(text.into_bytes()), now + n)
    };
    send(kafka, topic, &(0..100).map(reading).collect::<Vec<Plain>>());
    running.until("the new partition", || {
        let query = format!("streamgauge_source_records_total{{topic=\"{topic}\",partition=\"2\"}}");
        number(&prometheus, &query).filter(|n| *n == 100.0)
    });

    let (status, said) = running.terminate();
    assert!(status.success(), "{status}: {said}");
    let line = said.lines().rev().find(|line| line.starts_with('{')).expect("a summary");
    let before: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(before["records"], sent + 100);
    let show = plant.succeed(&["state", "show", "--json"]).stdout;
    let show: Value = serde_json::from_slice(&show).expect("JSON");
    assert_eq!(show["manifest"]["cut"], u64::MAX, "no checkpoint at the end");
    // The page is gone with its program.
    assert_eq!(get(port, "/healthz"), None);

    let journal_before = journal(&data);
    let after = plant.run_until_end();
    for name in ["records", "accepted", "behind", "duplicates", "late", "future", "dead_letters", "alerts", "imbalance"]
    {
        assert_eq!(after[name], before[name], "{name}");
    }
    assert_eq!(journal(&data), journal_before);
}

#[test]
fn the_demo_ends_by_itself_with_everything_accounted_for() {
    let port = free_port();
    let output =
        streamgauge(&["demo", "--for", "8s", "--listen", &format!("127.0.0.1:{port}")]).output().expect("started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("nothing unaccounted for") && text.contains("exactly what the sensors sent"), "{text}");
    assert!(text.contains('▲'), "no alert in 8 s: {text}");
    let folder = text.split("in ").find_map(|t| t.split(',').next().filter(|t| t.contains("streamgauge-demo-")));
    let folder = folder.expect("a folder");
    assert!(!Path::new(folder).exists(), "{folder} was left behind");
}

#[test]
fn the_summary_is_one_line_of_json() {
    let (kafka, topic) = (Kafka::shared(), "summary");
    kafka.create_topic(topic, 1);
    let plant = Plant::new(kafka, topic, RULES, "");
    let output = plant.succeed(&["run", "--for", "1s", "--summary", "json"]);
    let summary = summary(&output);
    for name in
        ["records", "accepted", "duplicates", "late", "dead_letters", "alerts", "seconds", "cpu_seconds", "peak_rss_mb"]
    {
        assert!(summary[name].is_number(), "{name}: {summary}");
    }
}

#[test]
fn the_oracle_depends_on_nothing_that_it_judges() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(folder.join("oracle/Cargo.toml")).expect("the manifest");
    let manifest: toml::Table = text.parse().expect("TOML");
    let mut found = 0;
    let mut tables = vec![&manifest];
    while let Some(table) = tables.pop() {
        for (key, value) in table {
            let toml::Value::Table(inner) = value else { continue };
            tables.push(inner);
            if !key.ends_with("dependencies") {
                continue;
            }
            for (name, of) in inner {
                found += 1;
                let package = of.get("package").and_then(toml::Value::as_str).unwrap_or(name);
                assert!(of.get("path").is_none(), "oracle depends on a crate of this repository: {name}");
                assert!(!package.starts_with("streamgauge"), "oracle depends on {package}");
            }
        }
    }
    assert!(found > 3, "only {found} dependencies found");
}

#[test]
fn the_readme_says_what_became_of_abomonation() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(folder.join("README.md")).expect("README.md");
    let (_, section) = readme.split_once("## abomonation").expect("a section about abomonation");
    assert!(section.split("\n## ").next().is_some_and(|text| text.contains("RUSTSEC-")), "no advisory named");
    let lock = std::fs::read_to_string(folder.join("Cargo.lock")).expect("Cargo.lock");
    assert!(!lock.contains("name = \"abomonation\""), "the README says that it is left out");
}
