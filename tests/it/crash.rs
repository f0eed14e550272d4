//! kill -9 at random moments, and in the end nothing tells that it ever happened.

use crate::expected;
use crate::program::{free_port, journal, run_until_end, succeed};
use crate::running::{Running, records};
use crate::servers::{Kafka, Redis};
use base64::Engine;
use oracle::{ArchiveRow, Outcome};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use redis::streams::StreamRangeReply;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use streamgauge::config::{self, Overrides};

const TOPIC: &str = "crash";

fn settings(folder: &Path, kafka: &Kafka, redis: &Redis, port: u16) -> String {
    let (bootstrap, url, folder) = (&kafka.bootstrap, &redis.url, folder.display());
    format!(
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
topics = ["{TOPIC}"]
decode = {{ id = "/unique_reading_id", sensor = "/sensor_id", metric = "/type", value = "/value", time = "/timestamp" }}
[rules.hot]
metric = "temperature"
when.above = {{ warning = 34.0, critical = 38.0, hysteresis = 1.0 }}
[rules.dry]
metric = "humidity"
when.below = 30.0
for = "200ms"
[rules.warm]
metric = "temperature"
of.mean = "10s"
when.above = 23.0
[rules.swing]
metric = "humidity"
of.stddev = 5
when.above = 6.0
[rules.silent]
metric = "temperature"
when.missing.after = "3s"
[sinks]
alerts = {{ type = "redis_stream", url = "{url}" }}
last = {{ type = "redis_last", url = "{url}" }}
live = {{ type = "redis_timeseries", url = "{url}" }}
lake = {{ type = "parquet", path = "{folder}/lake" }}
"#
    )
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn killed_at_random_moments_it_says_what_it_would_have_said() {
    let seed = from_environment("SG_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let kills = from_environment("SG_KILLS").unwrap_or(20);
    println!(
        "SG_SEED={seed} SG_KILLS={kills} cargo test --release --features tls --test it -- crash:: kills at these moments"
    );
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let kafka = Kafka::shared();
    let redis = Redis::start_with_time_series();
    let port = free_port();
    let text = settings(folder, kafka, &redis, port);
    let config = folder.join("streamgauge.toml");
    std::fs::write(&config, &text).expect("a configuration");
    let config = config.display().to_string();
    let data = folder.join("data");
    let log = folder.join("log");

    let seeds = [seed.to_string(), (seed + 1).to_string()];
    let plant = ["produce", "--bootstrap-servers", &kafka.bootstrap, "--topic", TOPIC, "--create-partitions", "4"];
    let sensors =
        ["--sensors", "40", "--metrics", "temperature,humidity", "--malformed", "0.005", "--disorder", "0.02"];
    let before = ["--readings", "20000", "--timestamps", "event", "--seed", &seeds[0]];
    succeed(&[&plant[..], &sensors, &before].concat());
    let meanwhile = ["--rate", "1500", "--fault-every", "4s", "--seed", &seeds[1]];
    let producer = Running::start(&[&plant[..], &sensors, &meanwhile].concat(), &folder.join("produce.log"));

    let checkpoints = data.join("state/checkpoints");
    let mut before_the_first = 0;
    for n in 0..kills {
        let mut running = Running::start(&["run", "-c", &config], &log);
        // What is waited here is the moment of the kill, not for anything.
        match n % 4 {
            // Its first term has just been written down.
            0 if n == 0 => running.until("a term", || data.join("state/epochs/term-1").exists().then_some(())),
            0 => {
                running.until_up(port);
                std::thread::sleep(Duration::from_millis(random.u64(0..300)));
            }
            3 => std::thread::sleep(Duration::from_millis(random.u64(0..500))),
            _ => {
                running.until_up(port);
                std::thread::sleep(Duration::from_millis(random.u64(200..2_000)));
            }
        }
        running.kill9();
        let complete =
            |entry: std::io::Result<std::fs::DirEntry>| entry.is_ok_and(|e| e.path().join("manifest.json").exists());
        let whole =
            std::fs::read_dir(&checkpoints).map_or(0, |all| all.filter_map(|e| complete(e).then_some(())).count());
        // Checkpoint 0 is where the partitions began.
        before_the_first += usize::from(whole <= 1);
    }
    let mut last = Running::start(&["run", "-c", &config], &log);
    last.until_up(port);
    let (status, said) = producer.terminate();
    assert!(status.success(), "{said}");
    // The whole plant is silent now, and heard to be.
    let path = data.join("journal.jsonl");
    last.until("silence", || std::fs::read_to_string(&path).ok().filter(|text| text.contains(r#""rule":"silent""#)));
    last.kill9();
    let summary = run_until_end(Path::new(&config), &[]);
    assert_eq!(summary.get("undelivered"), None, "{summary}");

    let pure = config::load_texts(&[("crash.toml".into(), text)], &|_| None, &Overrides::default())
        .unwrap_or_else(|report| panic!("{report:?}"))
        .pure();
    let records = records(kafka, "plant", TOPIC);
    let expected = oracle::run(&expected::config(&pure), &records, &expected::lines(&data)).expect("the oracle");
    let journal = journal(&data);
    same_journal(&journal, &expected.journal);
    same_counts(&summary, &expected);
    same_stream(&redis, &journal);
    same_archive(&folder.join("lake"), &expected.archive);
    same_time_series(&redis, &expected.archive);
    same_last(&redis, &expected.archive);
    same_dead_letters(&config, &expected, &records);

    let sound = succeed(&["state", "verify", "-c", &config]);
    assert!(!String::from_utf8_lossy(&sound.stdout).contains("damaged"));
    // The epoch log, run again, says it once more.
    let again = folder.join("again");
    succeed(&["run", "-c", &config, "--replay", &again.display().to_string()]);
    same_journal(&crate::program::journal(&again), &journal);

    let counts = oracle::total(&expected.counts);
    println!("{} alert changes, {before_the_first} kills before the first checkpoint, {counts:?}", journal.len());
    assert!(before_the_first > 0);
    assert!(journal.len() > 200, "only {} alert changes", journal.len());
    assert!(
        counts.duplicates > 500 && counts.late > 50 && counts.behind > 50 && counts.dead_lettered > 50,
        "{counts:?}"
    );
}

fn same_journal(ours: &[String], theirs: &[String]) {
    if let Some(at) = ours.iter().zip(theirs).position(|(a, b)| a != b) {
        panic!("line {at}\n  program {}\n  oracle  {}", ours[at], theirs[at]);
    }
    let next = ours.len().min(theirs.len());
    assert_eq!(ours.len(), theirs.len(), "first more: {:?}", ours.get(next).or(theirs.get(next)));
}

fn same_counts(summary: &Value, expected: &Outcome) {
    let counts = oracle::total(&expected.counts);
    for (name, count) in [
        ("records", counts.records),
        ("accepted", counts.accepted),
        ("behind", counts.behind),
        ("duplicates", counts.duplicates),
        ("late", counts.late),
        ("future", counts.future),
        ("dead_letters", counts.dead_lettered + counts.dead_lettered_values),
        ("alerts", expected.journal.len() as u64),
        ("imbalance", 0),
    ] {
        assert_eq!(summary[name], count, "{name}: {summary}");
    }
}

/// Every transition once, in order, under its position.
fn same_stream(redis: &Redis, journal: &[String]) {
    let mut connection = redis.connection();
    let stream: StreamRangeReply =
        redis::cmd("XRANGE").arg("alerts").arg("-").arg("+").query(&mut connection).expect("the stream");
    for (entry, line) in stream.ids.iter().zip(journal) {
        let line: Value = serde_json::from_str(line).expect("a line");
        assert_eq!(entry.id, format!("{}-{}", line["epoch"], line["n"]));
        for field in ["alert", "state", "rule", "severity", "sensor", "metric", "version"] {
            assert_eq!(entry.get::<String>(field).as_deref(), line[field].as_str(), "{field} of {line}");
        }
        for field in ["transition", "time", "start", "ordinal", "behind"] {
            assert_eq!(entry.get::<String>(field), Some(line[field].to_string()), "{field} of {line}");
        }
        assert_eq!(entry.get::<f64>("value"), line["value"].as_f64(), "value of {line}");
    }
    assert_eq!(stream.ids.len(), journal.len());
}

/// Every row once, by a reader that knows nothing of us.
fn same_archive(lake: &Path, expected: &[ArchiveRow]) {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(lake).expect("the archive") {
        let path = entry.expect("a file").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(name.ends_with(".parquet") && !name.starts_with('.'), "{name} was left behind");
        let reader = SerializedFileReader::try_from(path.as_path()).expect("a Parquet file");
        for row in reader.get_row_iter(None).expect("its rows") {
            let row = row.expect("a row");
            let of: BTreeMap<&String, &Field> = row.get_column_iter().collect();
            let text = |name: &str| match of[&name.to_owned()] {
                Field::Str(text) => text.clone(),
                other => panic!("{name}: {other:?}"),
            };
            let whole = |name: &str| match of[&name.to_owned()] {
                Field::Long(n) | Field::TimestampMicros(n) => *n,
                Field::Int(n) => i64::from(*n),
                other => panic!("{name}: {other:?}"),
            };
            let is = |name: &str| of[&name.to_owned()] == &Field::Bool(true);
            let Field::Double(value) = of[&"value".to_owned()] else { panic!("no value") };
            rows.push(ArchiveRow {
                epoch: whole("epoch") as u64,
                source: text("source").into(),
                topic: text("topic").into(),
                partition: whole("partition") as i32,
                offset: whole("offset"),
                index: whole("index") as u16,
                sensor: text("sensor").into(),
                metric: text("metric").into(),
                time: whole("time"),
                value: *value,
                late: is("late"),
                future: is("future"),
                behind: is("behind"),
            });
        }
    }
    let mut expected = expected.to_vec();
    let place = |row: &ArchiveRow| (row.partition, row.offset, row.index);
    rows.sort_by_key(place);
    expected.sort_by_key(place);
    for (ours, theirs) in rows.iter().zip(&expected) {
        assert_eq!(ours, theirs);
        assert_eq!(ours.value.to_bits(), theirs.value.to_bits());
    }
    assert_eq!(rows.len(), expected.len());
}

/// One value per series and millisecond, and it is one of those that were read there.
fn same_time_series(redis: &Redis, archive: &[ArchiveRow]) {
    let mut expected: BTreeMap<String, BTreeMap<i64, BTreeSet<u64>>> = BTreeMap::new();
    for row in archive.iter().filter(|row| !row.future) {
        let series = expected.entry(format!("ts:{}:{}", row.sensor, row.metric)).or_default();
        series.entry(row.time.div_euclid(1000)).or_default().insert(row.value.to_bits());
    }
    let mut connection = redis.connection();
    let keys: BTreeSet<String> = redis::cmd("KEYS").arg("ts:*").query(&mut connection).expect("keys");
    assert_eq!(keys, expected.keys().cloned().collect());
    for (key, values) in expected {
        let found: Vec<(i64, f64)> =
            redis::cmd("TS.RANGE").arg(&key).arg("-").arg("+").query(&mut connection).expect("a series");
        assert_eq!(found.len(), values.len(), "{key}");
        for (ms, value) in found {
            assert!(values.get(&ms).is_some_and(|read| read.contains(&value.to_bits())), "{key} at {ms}: {value}");
        }
    }
}

/// The newest accepted reading of each series by event time.
fn same_last(redis: &Redis, archive: &[ArchiveRow]) {
    let mut expected: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for row in archive.iter().filter(|row| !(row.late || row.future || row.behind)) {
        let newest = expected.entry((&*row.sensor, &*row.metric)).or_insert(i64::MIN);
        *newest = (*newest).max(row.time);
    }
    let mut connection = redis.connection();
    for ((sensor, metric), time) in expected {
        let field = format!("{metric}:time");
        let found: Option<i64> =
            redis::cmd("HGET").arg(format!("last:{sensor}")).arg(&field).query(&mut connection).expect("a hash");
        assert_eq!(found, Some(time), "{sensor} {metric}");
    }
}

fn same_dead_letters(config: &str, expected: &Outcome, records: &[oracle::Record]) {
    let payloads: BTreeMap<(i32, i64), &oracle::Record> =
        records.iter().map(|record| ((record.partition, record.offset), record)).collect();
    let output = succeed(&["dead-letters", "list", "--json", "--limit", "1000000", "-c", config]);
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut ours = Vec::new();
    for letter in list["newest"].as_array().expect("a list") {
        let place =
            (letter["partition"].as_i64().expect("a partition") as i32, letter["offset"].as_i64().expect("an offset"));
        let bytes = base64::prelude::BASE64_STANDARD.decode(letter["bytes"].as_str().expect("bytes")).expect("base64");
        let payload = payloads[&place].payload.as_ref().expect("no tombstone");
        if letter["size"] != 0 {
            assert_eq!(&bytes, payload, "{letter}");
        }
        let reason = letter["reason"].as_str().expect("a reason").to_owned();
        ours.push((place, letter["index"].as_u64(), reason));
    }
    let mut theirs: Vec<_> = expected
        .dead_letters
        .iter()
        .map(|d| ((d.partition, d.offset), d.index.map(u64::from), d.reason.name()))
        .collect();
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
    let counted: u64 = list["counts"].as_array().expect("counts").iter().filter_map(|c| c["count"].as_u64()).sum();
    assert_eq!(counted, theirs.len() as u64);
}
