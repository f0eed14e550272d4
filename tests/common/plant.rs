//! A plant, and the streamgauge that watches it: what tests of crashes, restarts and faults start alike.
#![allow(dead_code, reason = "each test binary includes this file and uses some of it")]

use crate::expected;
use crate::program::{free_pair, journal, run_until_end, succeed};
use crate::running::{Running, get, records};
use crate::same::{same_journal, what_must_be};
use crate::servers::Kafka;
use oracle::{Outcome, Record};
use serde_json::Value;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Rules with everything: levels, `for`, windows of both kinds, silence.
pub const RULES: &str = r#"
[rules.hot]
metric = "temperature"
when.above = { warning = 34.0, critical = 38.0, hysteresis = 1.0 }
[rules.dry]
metric = "humidity"
when.below = 30.0
for = "200ms"
[rules.swing]
metric = "humidity"
of.stddev = 5
when.above = 6.0
[rules.warm]
metric = "temperature"
of.mean = "10s"
when.above = 23.0
[rules.silent]
metric = "temperature"
when.missing.after = "3s"
"#;

/// Those of them that are a function of a sensor's records alone: R10, keyed.
pub fn keyed_rules() -> &'static str {
    RULES.split("[rules.warm]").next().expect("rules")
}

/// A topic, what is configured to read it, and the folder of what that writes.
pub struct Plant<'k> {
    /// Where the readings come from.
    pub kafka: &'k Kafka,
    /// Their topic.
    pub topic: String,
    /// Of page and metrics.
    pub port: u16,
    /// The configuration.
    pub text: String,
    folder: TempDir,
    feeds: Cell<u32>,
}

impl<'k> Plant<'k> {
    /// `rules` and `sinks` as a configuration has them; `LAKE` in it stands for the folder of an archive.
    pub fn new(kafka: &'k Kafka, topic: &str, rules: &str, sinks: &str) -> Plant<'k> {
        let (bootstrap, port) = (&kafka.bootstrap, free_pair());
        let mut folder = tempfile::tempdir().expect("a folder");
        // For who has to find out why: SG_KEEP=1 leaves everything where it is.
        if std::env::var_os("SG_KEEP").is_some() {
            folder.disable_cleanup(true);
            println!("{topic}: {}", folder.path().display());
        }
        let text = format!(
            r#"
data_dir = "{folder}/data"
workers = 2
server.listen = "127.0.0.1:{port}"
checkpoint.interval = "1s"
event_time = {{ allowed_lateness = "4s", max_clock_skew = "1m" }}
rolling = {{ windows = ["10s"], last = [5] }}
[sources.plant]
type = "kafka"
bootstrap_servers = "{bootstrap}"
topics = ["{topic}"]
group_id = "group-{topic}"
decode = {{ id = "/unique_reading_id", sensor = "/sensor_id", metric = "/type", value = "/value", time = "/timestamp" }}
{rules}
{sinks}"#,
            folder = folder.path().display()
        );
        let text = text.replace("LAKE", &folder.path().join("lake").display().to_string());
        let plant = Plant { kafka, topic: topic.to_owned(), port, text, folder, feeds: Cell::new(0) };
        plant.write_down();
        plant
    }

    /// Another value of a key outside all sections, such as `workers = 2`.
    pub fn change(&mut self, from: &str, to: &str) {
        assert!(self.text.contains(from), "{from} is not in the configuration");
        self.text = self.text.replacen(from, to, 1);
        self.write_down();
    }

    fn write_down(&self) {
        std::fs::write(self.config(), &self.text).expect("a configuration");
    }

    /// The folder of everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
    /// The configuration's file.
    pub fn config(&self) -> PathBuf {
        self.folder().join("streamgauge.toml")
    }
    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.folder().join("data")
    }
    /// The archive.
    pub fn lake(&self) -> PathBuf {
        self.folder().join("lake")
    }

    /// `streamgauge COMMAND... -c CONFIG`, to its end.
    pub fn succeed(&self, command: &[&str]) -> std::process::Output {
        succeed(&[command, &["-c", &self.config().display().to_string()]].concat())
    }

    /// Starts to watch.
    pub fn run(&self) -> Running {
        self.run_with(&[], |_| {})
    }

    /// The same, with more flags, and whatever the command is to be told beside them.
    pub fn run_with(&self, more: &[&str], tell: impl FnOnce(&mut Command)) -> Running {
        self.run_as("log", more, tell)
    }

    /// The same, with a name for what it says.
    pub fn run_as(&self, log: &str, more: &[&str], tell: impl FnOnce(&mut Command)) -> Running {
        let config = self.config().display().to_string();
        Running::start_with(&[&["run", "-c", &config], more].concat(), &self.folder().join(log), tell)
    }

    /// Watches until what is there has been read, in a run of its own; its summary.
    pub fn run_until_end(&self) -> Value {
        run_until_end(&self.config(), &[])
    }

    /// Forty sensors with two metrics, now and then a malformed record: `more` says how many readings, or how fast.
    pub fn produce(&self, more: &[&str]) {
        let command = self.producing(more);
        succeed(&command.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// The same while something else happens.
    pub fn feed(&self, more: &[&str]) -> Running {
        self.feeds.set(self.feeds.get() + 1);
        let log = self.folder().join(format!("feed-{}.log", self.feeds.get()));
        let command = self.producing(more);
        Running::start(&command.iter().map(String::as_str).collect::<Vec<_>>(), &log)
    }

    fn producing(&self, more: &[&str]) -> Vec<String> {
        let to = ["produce", "--bootstrap-servers", &self.kafka.bootstrap, "--topic", &self.topic];
        let default = |flag: &str, value: &str| {
            let said = more.contains(&flag);
            if said { Vec::new() } else { vec![flag.to_owned(), value.to_owned()] }
        };
        let defaults = [
            default("--create-partitions", "4"),
            default("--sensors", "40"),
            default("--metrics", "temperature,humidity"),
            default("--malformed", "0.005"),
            default("--disorder", "0.02"),
        ];
        let given = to.iter().chain(more).map(|word| (*word).to_owned());
        given.chain(defaults.into_iter().flatten()).collect()
    }

    /// The page's answer, once it is there.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.port, path)
    }

    /// The sum over all series of a family of metrics whose labels contain this text.
    pub fn metric(&self, family: &str, labels: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics")?;
        let of = |line: &&str| {
            line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
        };
        let numbers = text.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        numbers.reduce(|a, b| a + b)
    }

    /// What all the readings, in the epochs that were written down, must have come to.
    pub fn expected(&self) -> (Outcome, Vec<Record>) {
        let records = records(self.kafka, "plant", &self.topic);
        (what_must_be(&self.text, &records, &self.data()), records)
    }

    /// Reads to the end, and holds journal and counts against the oracle.
    pub fn equals_oracle(&self) -> Seen {
        let summary = self.run_until_end();
        assert_eq!(summary.get("undelivered"), None, "{summary}");
        let (expected, records) = self.expected();
        let journal = journal(&self.data());
        same_journal(&journal, &expected.journal);
        for (name, count) in expected::counts(&expected) {
            assert_eq!(summary[name], count, "{name}: {summary}");
        }
        Seen { journal, expected, records }
    }
}

/// What was written, and what had to be.
pub struct Seen {
    /// The journal's lines.
    pub journal: Vec<String>,
    /// What the oracle says.
    pub expected: Outcome,
    /// What the topic holds.
    pub records: Vec<Record>,
}

impl Seen {
    /// An equality of nothing shows nothing: at least so many alert changes, and some of everything that goes wrong.
    pub fn is_something(&self, alerts: usize) {
        let counts = oracle::total(&self.expected.counts);
        println!("{} alert changes, {counts:?}", self.journal.len());
        assert!(self.journal.len() >= alerts, "only {} alert changes", self.journal.len());
        let least = alerts as u64 / 10;
        for count in [counts.duplicates, counts.late, counts.behind, counts.dead_lettered] {
            assert!(count > least, "not more than {least} each: {counts:?}");
        }
    }
}
