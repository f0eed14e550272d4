//! Five million readings of a simulated plant, against their truth and the oracle: the same answers whatever the
//! workers, processes and epochs.
//!
//! `SG_READINGS=200000` makes it a short one.

use crate::program::{free_port, journal, streamgauge, succeed};
use crate::servers::Kafka;
use crate::{expected, program};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamgauge::config::{self, Overrides};
use streamgauge::plan::Layout;
use streamgauge::seam::RealFs;
use streamgauge::simulate::Truth;
use streamgauge::{checkpoint, state_cmd};

const SEED: u64 = 20_261_123;
const PARTITIONS: i32 = 16;
const TOPIC: &str = "scale";

/// R10's Keyed: values, `for`, and windows that never run empty.
const JUDGED: &str = r#"
event_time = { allowed_lateness = "5s", max_clock_skew = "5m" }
dedup = { key = "id", window = "10m" }
rolling = { windows = ["60s"], last = [20] }
[sources.plant.decode]
id = "/unique_reading_id"
sensor = "/sensor_id"
metric = "/type"
value = "/value"
time = "/timestamp"
[rules.hot]
metric = "temperature"
when.above = { warning = 26.0, critical = 35.0, hysteresis = 1.0 }
[rules.warm]
metric = "temperature"
when.above = { warning = 22.0, hysteresis = 0.5 }
for = "5s"
[rules.dry]
metric = "humidity"
when.below = { warning = 30.0, hysteresis = 5.0 }
[rules.pressure]
metric = "pressure"
when.above = 1050.0
severity = "critical"
[rules.dust]
metric = "pm10"
when.above = { info = 50.0, warning = 80.0, hysteresis = 10.0 }
[rules.fine-dust-swings]
metric = "pm25"
of.stddev = 20
when.above = { warning = 4.0, hysteresis = 1.0 }
[rules.stuffy]
metric = "co2"
of.mean = 20
when.above = { warning = 650.0, hysteresis = 20.0 }
for = "3s"
"#;

fn readings() -> u64 {
    std::env::var("SG_READINGS").ok().map_or(5_000_000, |n| n.replace('_', "").parse().expect("SG_READINGS: a number"))
}

/// What a run is compared by.
struct Ran {
    data: PathBuf,
    config: PathBuf,
    summary: Value,
    journal: Vec<String>,
    /// SHA-256 of the journal without positions.
    canonical: String,
    rolling: RollingSums,
}

/// Every series' statistics: as a digest of their bits, and as sums over the series in order of name.
#[derive(Debug, PartialEq)]
struct RollingSums {
    digest: String,
    /// By window and statistic, as bits.
    sums: Vec<[u64; 7]>,
    rows: usize,
}

#[test]
fn five_million_readings_come_to_the_same_with_any_workers_processes_and_epochs() {
    let kafka = Kafka::shared();
    kafka.create_topic(TOPIC, PARTITIONS);
    let folder = tempfile::tempdir().expect("a folder");
    let truth = produce(kafka, folder.path());

    let runs = [
        ("1 worker, 20 ms", 1, 20),
        ("2 workers, 20 ms", 2, 20),
        ("4 workers, 20 ms", 4, 20),
        ("2 workers, 5 ms", 2, 5),
        ("2 workers, 100 ms", 2, 100),
    ];
    let mut first: Option<Ran> = None;
    for (n, (name, workers, tick)) in runs.into_iter().enumerate() {
        let (config, data) = configure(kafka, folder.path(), &n.to_string(), workers, tick);
        let path = config.display().to_string();
        let output = succeed(&["run", "-c", &path, "--until-end", "--summary", "json", "--log-level", "warn"]);
        balanced_throughout(name, &String::from_utf8_lossy(&output.stderr));
        let summary = program::summary(&output);
        let ran = ran(name, config, data, summary, &truth);
        if (workers, tick) == (2, 20) {
            equals_the_oracle(kafka, &ran);
        }
        same(&mut first, ran, name);
    }
    let name = "2 processes of 1 worker, the second two seconds late";
    let (config, data) = configure(kafka, folder.path(), "processes", 1, 20);
    let summary = two_processes(folder.path(), &config);
    same(&mut first, ran(name, config, data, summary, &truth), name);
}

/// Fills the topic; the truth about it.
fn produce(kafka: &Kafka, folder: &Path) -> Truth {
    let readings = readings();
    // Some 83 readings a series, whatever their number: 10,000 sensors where it is five million.
    let sensors = (readings / 500).max(10).to_string();
    let truth = folder.join("truth.json").display().to_string();
    println!(
        "{readings} readings of {sensors} sensors, seed {SEED} (SG_READINGS={readings} cargo test --release --features tls --test it -- scale:: repeats it)"
    );
    let begun = Instant::now();
    let (seed, count) = (SEED.to_string(), readings.to_string());
    let what = ["--readings", &count, "--sensors", &sensors, "--seed", &seed, "--start", "2025-01-01T00:00:00Z"];
    let how = ["--duplicates", "0.05", "--duplicates-within", "60s", "--disorder", "0.01", "--disorder-within", "10s"];
    let bad = ["--malformed", "0.001", "--beyond", "0.005", "--truth", &truth];
    let judged = ["--allowed-lateness", "5s", "--dedup-window", "10m", "--timestamps", "event"];
    let to = ["produce", "--bootstrap-servers", &kafka.bootstrap, "--topic", TOPIC];
    succeed(&[&to[..], &what, &how, &bad, &judged].concat());
    let text = std::fs::read(&truth).expect("the truth");
    let truth: Truth = serde_json::from_slice(&text).expect("the truth");
    println!(
        "produced {} records in {:.1} s: {:?}, {:?}",
        truth.records,
        begun.elapsed().as_secs_f64(),
        truth.outcome,
        truth.malformed
    );
    // Nothing here is about a plant in which nothing goes wrong.
    let (outcome, malformed) = (&truth.outcome, &truth.malformed);
    assert!(truth.duplicates > readings / 50 && outcome.duplicates > readings / 50, "{outcome:?}");
    assert!(outcome.late > readings / 1_000 && outcome.behind > readings / 1_000, "{outcome:?}");
    for kind in [malformed.garbage, malformed.truncated, malformed.err_value, malformed.missing_field] {
        assert!(kind > readings / 8_000, "{malformed:?}");
    }
    truth
}

/// A configuration with a data directory of its own.
fn configure(kafka: &Kafka, folder: &Path, name: &str, workers: usize, tick_ms: u64) -> (PathBuf, PathBuf) {
    let data = folder.join(format!("data-{name}"));
    let text = format!(
        "data_dir = {:?}\nworkers = {workers}\nserver.listen = \"127.0.0.1:0\"\nepochs.tick = \"{tick_ms}ms\"\n{}\
         [sources.plant]\ntype = \"kafka\"\nbootstrap_servers = \"{}\"\ntopics = [\"{TOPIC}\"]\n\
         group_id = \"scale-{name}\"\n{}",
        data.display(),
        &JUDGED[..JUDGED.find("[sources").expect("a source")],
        kafka.bootstrap,
        &JUDGED[JUDGED.find("[sources").expect("a source")..],
    );
    let config = folder.join(format!("{name}.toml"));
    std::fs::write(&config, text).expect("the configuration");
    (config, data)
}

/// Holds a run against the truth.
fn ran(name: &str, config: PathBuf, data: PathBuf, summary: Value, truth: &Truth) -> Ran {
    println!("{name}: {summary}");
    let count = |what: &str| summary[what].as_u64().unwrap_or_else(|| panic!("{name}: no {what} in {summary}"));
    let outcome = &truth.outcome;
    assert_eq!(count("records"), truth.records, "{name}: records");
    assert_eq!(count("accepted"), outcome.accepted, "{name}: accepted");
    assert_eq!(count("behind"), outcome.behind, "{name}: behind");
    assert_eq!(count("duplicates"), outcome.duplicates, "{name}: duplicates");
    assert_eq!(count("late"), outcome.late, "{name}: late");
    assert_eq!(count("future"), outcome.future, "{name}: future");
    let dead: u64 = truth.dead_letters.values().chain(truth.dead_values.values()).sum();
    assert_eq!(count("dead_letters"), dead, "{name}: dead letters");
    assert_eq!(summary["imbalance"], 0, "{name}: the conservation law");

    let journal = journal(&data);
    assert_eq!(count("alerts"), journal.len() as u64, "{name}: alerts");
    assert!(journal.len() as u64 > readings() / 500, "{name}: only {} alerts", journal.len());
    let mut digest = Sha256::new();
    for line in oracle::canonical(&journal) {
        digest.update(line.as_bytes());
        digest.update(b"\n");
    }
    let canonical = hex(digest);
    let rolling = rolling_sums(&data);
    println!("{name}: journal {canonical}, statistics {} of {} windows", rolling.digest, rolling.rows);
    Ran { data, config, summary, journal, canonical, rolling }
}

/// The conservation law, epoch by epoch: the summary's sums could hide two defects that cancel.
fn balanced_throughout(name: &str, log: &str) {
    assert!(!log.contains("the ledger does not balance"), "{name}: {log}");
}

/// Holds a run against the first.
fn same(first: &mut Option<Ran>, ran: Ran, name: &str) {
    let Some(first) = first else {
        *first = Some(ran);
        return;
    };
    if first.canonical != ran.canonical {
        let (a, b) = (oracle::canonical(&first.journal), oracle::canonical(&ran.journal));
        let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
        panic!(
            "{name}: another journal; {} and {} lines, from line {at}:\n {:?}\n {:?}",
            a.len(),
            b.len(),
            a.get(at),
            b.get(at)
        );
    }
    assert_eq!(first.rolling, ran.rolling, "{name}: rolling statistics");
    // Gigabytes of state in all, and only the first is needed again.
    std::fs::remove_dir_all(&ran.data).expect("removed");
}

fn rolling_sums(data: &Path) -> RollingSums {
    let layout = Layout::new(data.to_owned());
    let restored = checkpoint::newest(&RealFs, &layout.checkpoints).expect("sound").expect("a checkpoint");
    let mut digest = Sha256::new();
    let (mut sums, mut rows) = (Vec::<[f64; 7]>::new(), 0);
    for (name, windows) in state_cmd::rolling_stats(&RealFs, &layout, &restored).expect("statistics") {
        digest.update(name.sensor.as_bytes());
        digest.update([0]);
        digest.update(name.metric.as_bytes());
        digest.update([0]);
        sums.resize(windows.len(), [0.0; 7]);
        for ((_, s), sums) in windows.iter().zip(&mut sums) {
            rows += 1;
            let stats = [s.count as f64, s.mean, s.stddev, s.min, s.max, s.rate, s.ewma];
            for (sum, x) in sums.iter_mut().zip(stats) {
                digest.update(bits(x).to_le_bytes());
                // One that is undefined would leave nothing of the sum.
                *sum += if x.is_nan() { 0.0 } else { x };
            }
        }
    }
    assert!(rows > 0 && sums.iter().all(|s| s[0] > 0.0), "no statistics");
    RollingSums { digest: hex(digest), sums: sums.into_iter().map(|s| s.map(f64::to_bits)).collect(), rows }
}

fn bits(x: f64) -> u64 {
    if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() }
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A process that does not outlive the test.
struct Running {
    child: Child,
    name: String,
    folder: PathBuf,
}

impl Running {
    fn start(folder: &Path, name: &str, args: &[&str]) -> Running {
        let file = |end: &str| File::create(folder.join(format!("{name}.{end}"))).expect("a file");
        let child = streamgauge(args).stdout(file("out")).stderr(file("err")).spawn().expect("the program starts");
        Running { child, name: name.to_owned(), folder: folder.to_owned() }
    }
    fn said(&self, end: &str) -> String {
        std::fs::read_to_string(self.folder.join(format!("{}.{end}", self.name))).expect("what it said")
    }
    /// The summary, once it has ended well.
    fn summary(mut self, deadline: Instant) -> Value {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                break status;
            }
            assert!(Instant::now() < deadline, "{} has not ended: {}", self.name, self.said("err"));
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(status.success(), "{}: {status}\n{}", self.name, self.said("err"));
        let out = self.said("out");
        serde_json::from_str(out.lines().last().expect("a summary")).expect("a summary")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Does nothing to one that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The summary of process 0 of two.
fn two_processes(folder: &Path, config: &Path) -> Value {
    let hosts = folder.join("hosts");
    std::fs::write(&hosts, format!("127.0.0.1:{}\n127.0.0.1:{}\n", free_port(), free_port())).expect("hosts");
    let (hosts, config) = (hosts.display().to_string(), config.display().to_string());
    let start = |p: &str| {
        let all = ["run", "-c", &config, "--until-end", "--summary", "json", "--hostfile", &hosts, "-n", "2", "-p", p];
        Running::start(folder, &format!("process-{p}"), &all)
    };
    let first = start("0");
    // The subject, no synchronisation: the second comes late.
    std::thread::sleep(Duration::from_secs(2));
    let second = start("1");
    let deadline = Instant::now() + Duration::from_secs(600);
    let log = folder.join("process-0.err");
    let summary = first.summary(deadline);
    second.summary(deadline);
    balanced_throughout("2 processes", &std::fs::read_to_string(log).expect("what it said"));
    summary
}

/// The oracle makes of the same records and epochs the same journal, counts and statistics.
fn equals_the_oracle(kafka: &Kafka, ran: &Ran) {
    let begun = Instant::now();
    let loaded = config::load(std::slice::from_ref(&ran.config), &|_| None, &Overrides::default());
    let pure = loaded.unwrap_or_else(|report| panic!("{report:?}")).pure();
    // Five million rows that nobody reads.
    let config = oracle::config::Config { archive: false, ..expected::config(&pure) };
    let records: BTreeMap<_, _> = (0..PARTITIONS).map(|p| (oracle_partition(p), Log::open(kafka, p).fuse())).collect();
    let outcome = oracle::run_partitions(&config, records, &expected::lines(&ran.data)).expect("the oracle");

    if let Some(at) = ran.journal.iter().zip(&outcome.journal).position(|(a, b)| a != b) {
        panic!("line {at}\n  program {}\n  oracle  {}", ran.journal[at], outcome.journal[at]);
    }
    assert_eq!(ran.journal.len(), outcome.journal.len(), "lines of the journal");
    for (what, count) in expected::counts(&outcome) {
        assert_eq!(ran.summary[what], count, "{what}");
    }

    let layout = Layout::new(ran.data.clone());
    let restored = checkpoint::newest(&RealFs, &layout.checkpoints).expect("sound").expect("a checkpoint");
    let ours = state_cmd::rolling_stats(&RealFs, &layout, &restored).expect("statistics");
    let ours = ours.iter().flat_map(|(name, windows)| windows.iter().map(move |(_, s)| (name, s)));
    let mut compared = 0;
    for ((name, s), theirs) in ours.zip(&outcome.rolling) {
        assert_eq!((&*name.sensor, &*name.metric), (&*theirs.sensor, &*theirs.metric));
        let ours = [s.count as f64, s.mean, s.stddev, s.min, s.max, s.rate, s.ewma].map(bits);
        let all = [theirs.count, theirs.mean, theirs.stddev, theirs.min, theirs.max, theirs.rate, theirs.ewma];
        assert_eq!(ours, all.map(bits), "{} {} {:?}", theirs.sensor, theirs.metric, theirs.window);
        compared += 1;
    }
    assert_eq!((compared, ran.rolling.rows), (outcome.rolling.len(), outcome.rolling.len()), "windows");
    println!(
        "the oracle agrees, after {:.1} s: {} alert changes, {compared} windows",
        begun.elapsed().as_secs_f64(),
        ran.journal.len()
    );
}

fn oracle_partition(partition: i32) -> oracle::Partition {
    oracle::Partition { source: "plant".into(), topic: TOPIC.into(), partition }
}

/// A partition's records from its beginning to its end, by a consumer that knows nothing of the program.
struct Log {
    consumer: BaseConsumer,
    partition: oracle::Partition,
}

impl Log {
    fn open(kafka: &Kafka, partition: i32) -> Log {
        let mut settings = kafka.client();
        settings
            .set("group.id", "the-oracle")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            // There are sixteen, and each is drawn from a little at a time.
            .set("queued.max.messages.kbytes", "8192");
        let consumer: BaseConsumer = settings.create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(TOPIC, partition, Offset::Beginning).expect("a partition");
        consumer.assign(&list).expect("assigned");
        Log { consumer, partition: oracle_partition(partition) }
    }
}

impl Iterator for Log {
    type Item = oracle::Record;
    fn next(&mut self) -> Option<oracle::Record> {
        match self.consumer.poll(Duration::from_secs(60)).expect("a record within a minute") {
            Ok(m) => Some(oracle::Record {
                source: Arc::clone(&self.partition.source),
                topic: Arc::clone(&self.partition.topic),
                partition: m.partition(),
                offset: m.offset(),
                timestamp: m.timestamp().to_millis(),
                payload: m.payload().map(<[u8]>::to_vec),
            }),
            Err(KafkaError::PartitionEOF(_)) => None,
            Err(error) => panic!("{}: {error}", self.partition),
        }
    }
}
