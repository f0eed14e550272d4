//! Two stations in Aberdeen through real Kafka: alerts equal the runs that an independent script lists, and the
//! archives hold each reading once.
//!
//! The data set is in perfect order and repeats nothing; so the same is done once more with a copy of it that a bad
//! gateway might have sent: rows repeated, delayed beyond and within `allowed_lateness`, cells missing or no numbers.

use crate::program::{journal, run_until_end, shared_data, succeed};
use crate::servers::{Kafka, Redis};
use fastrand::Rng;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const LATENESS_S: u32 = 3_600;
const WINDOW_S: u32 = 7_200;

/// A station's file: what it is called, and how the script and the configuration read it.
struct Station {
    file: &'static str,
    name: &'static str,
    /// metric=column
    columns: &'static str,
    /// name:metric:above|below:limit
    rules: [&'static str; 2],
}

const STATIONS: [Station; 2] = [
    Station {
        file: "bme280_15093.csv",
        name: "bme280",
        columns: "temperature=temperature,humidity=humidity,pressure=pressure",
        rules: ["heat:temperature:above:35", "dry:humidity:below:30"],
    },
    Station {
        file: "sds011_15092.csv",
        name: "sds011",
        columns: "pm10=P1,pm2_5=P2",
        rules: ["dust:pm10:above:80", "fine-dust:pm2_5:above:50"],
    },
];

/// rule, sensor, metric, start, end, behind
type RunOf = (String, String, String, i64, Option<i64>, bool);

/// What the script says of both stations together.
#[derive(Default)]
struct Expected {
    counts: BTreeMap<String, u64>,
    dead: u64,
    /// By `sensor:metric`: how many different times, and the sum of their values in order of time.
    archive: BTreeMap<String, (u64, f64)>,
    runs: Vec<RunOf>,
}

#[test]
fn the_stations_alert_and_are_archived_as_an_independent_script_says() {
    let Some(folder) = unpacked() else { return };
    let expected = compare(folder.path(), "whole");
    // Each row has all its values, at a time of its own.
    assert_eq!(expected.counts["accepted"], 161_601 * 3 + 178_326 * 2);
    assert!(expected.runs.len() > 400, "only {} runs", expected.runs.len());
}

#[test]
fn the_stations_behind_a_bad_gateway_alert_as_an_independent_script_says() {
    let Some(folder) = unpacked() else { return };
    let seed = std::env::var("SG_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    println!(
        "seed {seed} (SG_SEED={seed} cargo test --release --features tls --test it -- aberdeen::the_stations_behind repeats it)"
    );
    for station in &STATIONS {
        worsen(&folder.path().join(station.file), &mut Rng::with_seed(seed));
    }
    let expected = compare(folder.path(), "worse");
    for (what, least) in [("behind", 5_000), ("duplicates", 5_000), ("late", 5_000)] {
        assert!(expected.counts[what] > least, "{what}: {:?}", expected.counts);
    }
    assert!(expected.dead > 1_000, "only {} dead letters", expected.dead);
    assert!(expected.runs.iter().any(|run| run.5), "no alert behind");
}

/// The two files, in a folder of their own.
fn unpacked() -> Option<tempfile::TempDir> {
    let data = shared_data()?.join("air-quality-aberdeen");
    let folder = tempfile::tempdir().expect("a folder");
    for station in &STATIONS {
        let packed = data.join(format!("{}.gz", station.file));
        let output = Command::new("gzip").arg("-dc").arg(&packed).output().expect("gzip");
        assert!(output.status.success(), "{}: {}", packed.display(), String::from_utf8_lossy(&output.stderr));
        std::fs::write(folder.path().join(station.file), output.stdout).expect("a file");
    }
    Some(folder)
}

/// Delays, repeats and spoils rows. A row is about 2.5 minutes; `allowed_lateness` is 24 rows, the window 48.
fn worsen(path: &Path, random: &mut Rng) {
    let text = std::fs::read_to_string(path).expect("a CSV file");
    let (header, rows) = text.split_once('\n').expect("a header");
    let columns: Vec<&str> = header.split(';').collect();
    let place = |name: &str| columns.iter().position(|c| *c == name);
    let (time, sensor) = (place("timestamp").expect("a time"), place("sensor_id").expect("a sensor"));
    let values: Vec<usize> =
        ["temperature", "humidity", "pressure", "P1", "P2"].into_iter().filter_map(place).collect();
    // By the row that each is sent before.
    let mut sent: Vec<(usize, String)> = Vec::new();
    for (n, row) in rows.lines().enumerate() {
        let mut cells: Vec<&str> = row.split(';').collect();
        match random.u32(0..200) {
            0 => cells[values[random.usize(0..values.len())]] = "",
            1 => {
                cells[values[random.usize(0..values.len())]] =
                    random.choice(["ERR", "NaN", "1,5", "+3", "007"]).expect("one")
            }
            2 if random.u32(0..4) == 0 => {
                cells[time] = random.choice(["", "yesterday", "2018-13-01T00:00:00"]).expect("one")
            }
            3 if random.u32(0..4) == 0 => cells[sensor] = "",
            4 if random.u32(0..4) == 0 => values.iter().for_each(|value| cells[*value] = ""),
            _ => {}
        }
        let row = cells.join(";");
        let delay = if random.u32(0..20) == 0 { random.usize(1..60) } else { 0 };
        if random.u32(0..20) == 0 {
            sent.push((n + delay + random.usize(1..90), row.clone()));
        }
        sent.push((n + delay, row));
    }
    sent.sort_by_key(|(n, _)| *n);
    let rows: String = sent.into_iter().map(|(_, row)| row + "\n").collect();
    std::fs::write(path, format!("{header}\n{rows}")).expect("a file");
}

/// Sends both files through Kafka and the program, and holds alerts and archives against the script.
fn compare(folder: &Path, name: &str) -> Expected {
    let kafka = Kafka::shared();
    let redis = Redis::start_with_time_series();
    let topic = |station: &Station| format!("aberdeen-{name}-{}", station.name);
    let mut expected = Expected::default();
    for station in &STATIONS {
        let (file, topic) = (folder.join(station.file).display().to_string(), topic(station));
        kafka.create_topic(&topic, 3);
        let to = ["produce", "--bootstrap-servers", &kafka.bootstrap, "--topic", &topic, "--timestamps", "event"];
        let from = ["--from", &file, "--delimiter", ";", "--time-column", "timestamp", "--key-column", "sensor_id"];
        succeed(&[&to[..], &from].concat());
        expected.add(station, Path::new(&file));
    }
    expected.runs.sort();

    let (data, files) = (folder.join("data"), folder.join("readings"));
    let config = folder.join("aberdeen.toml");
    std::fs::write(&config, configuration(kafka, &redis, &data, &files, topic)).expect("the configuration");
    let summary = run_until_end(&config, &["--log-level", "warn"]);
    println!("{name}: {summary}");

    for what in ["accepted", "behind", "duplicates", "late"] {
        assert_eq!(summary[what], expected.counts[what], "{what}");
    }
    assert_eq!(summary["dead_letters"], expected.dead, "dead letters");
    assert_eq!((&summary["future"], &summary["imbalance"]), (&Value::from(0), &Value::from(0)));
    let alerts = alerts(&data);
    if let Some(at) = alerts.iter().zip(&expected.runs).position(|(a, b)| a != b) {
        panic!("alert {at}\n  program {:?}\n  script  {:?}", alerts[at], expected.runs[at]);
    }
    assert_eq!(alerts.len(), expected.runs.len(), "alerts");
    let mut by_rule: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for (rule, .., behind) in &alerts {
        let count = by_rule.entry(rule).or_default();
        count.0 += 1;
        count.1 += u32::from(*behind);
    }
    println!("{name}: alerts by rule, and those behind: {by_rule:?}");

    archives(&expected, &redis, &files, name);
    expected
}

impl Expected {
    /// Asks the script about a station.
    fn add(&mut self, station: &Station, file: &Path) {
        let output = python()
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/aberdeen_runs.py"))
            .arg(file)
            .args([LATENESS_S.to_string(), WINDOW_S.to_string(), station.columns.to_owned()])
            .args(station.rules)
            .output()
            .expect("python");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout).expect("the script's JSON");
        println!("script, {}: {} {}", station.name, said["counts"], said["dead"]);
        for (what, count) in said["counts"].as_object().expect("counts") {
            *self.counts.entry(what.clone()).or_default() += count.as_u64().expect("a count");
        }
        self.dead +=
            said["dead"]["records"].as_u64().expect("records") + said["dead"]["values"].as_u64().expect("values");
        self.archive.extend(
            serde_json::from_value::<BTreeMap<String, (u64, f64)>>(said["archive"].clone()).expect("an archive"),
        );
        self.runs.extend(serde_json::from_value::<Vec<RunOf>>(said["runs"].clone()).expect("runs"));
    }
}

/// The interpreter that tests/servers/install.sh has put pyarrow into.
fn python() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/venv/bin/python"))
}

fn configuration(
    kafka: &Kafka,
    redis: &Redis,
    data: &Path,
    files: &Path,
    topic: impl Fn(&Station) -> String,
) -> String {
    let mut text = format!(
        "data_dir = {data:?}\nworkers = 2\nserver.listen = \"127.0.0.1:0\"\n\
         event_time.allowed_lateness = \"{LATENESS_S}s\"\ndedup = {{ key = \"series_time\", window = \"{WINDOW_S}s\" }}\n\
         [sinks.series]\ntype = \"redis_timeseries\"\nurl = {:?}\n\
         [sinks.files]\ntype = \"parquet\"\npath = {files:?}\n",
        redis.url
    );
    for station in &STATIONS {
        let (name, topic) = (station.name, topic(station));
        text += &format!(
            "[sources.{name}]\ntype = \"kafka\"\nbootstrap_servers = {:?}\ntopics = [{topic:?}]\ngroup_id = {topic:?}\n\
             [sources.{name}.decode]\nsensor = \"/sensor_id\"\ntime = \"/timestamp\"\nzone = \"UTC\"\n",
            kafka.bootstrap
        );
        for pair in station.columns.split(',') {
            let (metric, column) = pair.split_once('=').expect("metric=column");
            text += &format!("metrics.{metric}.path = \"/{column}\"\n");
        }
        for rule in station.rules {
            let [rule, metric, way, limit] = rule.split(':').collect::<Vec<_>>()[..] else { panic!("{rule}") };
            text += &format!("[rules.{rule}]\nmetric = \"{metric}\"\nwhen.{way} = {limit}.0\n");
        }
    }
    text
}

/// The alerts of the journal: each is one firing, and at most one resolved, of an alert id.
fn alerts(data: &Path) -> Vec<RunOf> {
    let mut alerts: BTreeMap<String, RunOf> = BTreeMap::new();
    for line in journal(data) {
        let line: Value = serde_json::from_str(&line).expect("a line of the journal");
        let text = |key: &str| line[key].as_str().expect("text").to_owned();
        let (time, start) = (line["time"].as_i64().expect("a time"), line["start"].as_i64().expect("a time"));
        if line["state"] == "firing" {
            assert_eq!(time, start, "without `for` an alert fires when it starts: {line}");
            let behind = line["behind"].as_bool().expect("a flag");
            let run = (text("rule"), text("sensor"), text("metric"), start, None, behind);
            assert!(alerts.insert(text("alert"), run).is_none(), "fires twice: {line}");
        } else {
            let alert = alerts.get_mut(&text("alert")).unwrap_or_else(|| panic!("never fired: {line}"));
            assert_eq!((alert.3, alert.4), (start, None), "resolved twice, or with another start: {line}");
            alert.4 = Some(time);
        }
    }
    let mut alerts: Vec<RunOf> = alerts.into_values().collect();
    alerts.sort();
    alerts
}

/// Every reading that was accepted or late is in both archives, once.
fn archives(expected: &Expected, redis: &Redis, files: &Path, name: &str) {
    let mut connection = redis.connection();
    let keys: Vec<String> = redis::cmd("KEYS").arg("ts:*").query(&mut connection).expect("keys");
    let mut held = BTreeMap::new();
    for key in keys {
        let info: Vec<redis::Value> = redis::cmd("TS.INFO").arg(&key).query(&mut connection).expect("TS.INFO");
        let total = info.chunks(2).find_map(|pair| {
            let key: String = redis::from_redis_value(pair[0].clone()).ok()?;
            (key == "totalSamples").then(|| redis::from_redis_value::<u64>(pair[1].clone()).expect("a number"))
        });
        let samples: Vec<(i64, f64)> =
            redis::cmd("TS.RANGE").arg(&key).arg("-").arg("+").query(&mut connection).expect("TS.RANGE");
        assert!(samples.is_sorted_by(|a, b| a.0 < b.0), "{key}: each time once");
        assert_eq!(total, Some(samples.len() as u64), "{key}");
        let sum = samples.iter().fold(0.0, |sum, (_, value)| sum + value);
        held.insert(key.strip_prefix("ts:").expect("a prefix").to_owned(), (samples.len() as u64, sum));
    }
    assert_eq!(held, expected.archive, "RedisTimeSeries");

    let output = python().arg("-c").arg(READ_BACK).arg(files).output().expect("python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let parquet: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    println!("{name}: RedisTimeSeries {held:?}; Parquet {parquet}");
    let rows = expected.counts["accepted"] + expected.counts["late"];
    assert_eq!((&parquet["rows"], &parquet["places"]), (&Value::from(rows), &Value::from(rows)), "Parquet");
    assert_eq!(parquet["late"], expected.counts["late"]);
    assert_eq!(parquet["behind"], expected.counts["behind"]);
    let series: BTreeMap<String, (u64, f64)> = serde_json::from_value(parquet["series"].clone()).expect("series");
    assert_eq!(series, expected.archive, "Parquet");
}

/// Counts rows, different places in the log, and, by series, different times and the sum of their values.
const READ_BACK: &str = r#"
import glob, json, sys
import pyarrow.parquet as pq
rows, late, behind, places, series = 0, 0, 0, set(), {}
for path in glob.glob(sys.argv[1] + "/*.parquet"):
    table = pq.read_table(path)
    rows += table.num_rows
    column = lambda name: table.column(name).to_pylist()
    late += sum(column("late"))
    behind += sum(column("behind"))
    places.update(zip(*map(column, ["source", "topic", "partition", "offset", "index"])))
    times = table.column("time").cast("int64").to_pylist()
    for sensor, metric, time, value in zip(column("sensor"), column("metric"), times, column("value")):
        series.setdefault(f"{sensor}:{metric}", {})[time] = value
def held(values):
    total = 0.0
    for time in sorted(values):
        total += values[time]
    return [len(values), total]
print(json.dumps({"rows": rows, "places": len(places), "late": late, "behind": behind,
                  "series": {name: held(values) for name, values in series.items()}}))
"#;
