//! A sink that is too slow for what comes: memory stays below the cap, nothing is dropped, and it drains.
//!
//! `SG_SLOW_SECONDS=600` makes it a long one.

use crate::plant::{Plant, keyed_rules};
use crate::proxy::Proxy;
use crate::servers::{Kafka, Redis};
use crate::tested::{from_environment, tested};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, TimestampMicrosecondType};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

const CAP_MIB: u64 = 256;
const RATE: u64 = 50_000;

/// Rows of an archive, and by key of a time series the milliseconds at which it must have a value.
fn archived(lake: &Path) -> (u64, BTreeMap<String, usize>) {
    let mut rows = 0;
    let mut series: HashMap<(String, String), HashSet<i64>> = HashMap::new();
    for entry in std::fs::read_dir(lake).expect("the archive") {
        let path = entry.expect("a file").path();
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).expect("a file")).expect("Parquet");
        let schema = builder.parquet_schema();
        let mask = ProjectionMask::columns(schema, ["time", "sensor", "metric", "future"]);
        for batch in builder.with_projection(mask).build().expect("a reader") {
            let batch = batch.expect("rows");
            rows += batch.num_rows() as u64;
            let column = |name: &str| batch.column_by_name(name).expect("a column");
            let time = column("time").as_primitive::<TimestampMicrosecondType>();
            let (sensor, metric) =
                (column("sensor").as_dictionary::<Int32Type>(), column("metric").as_dictionary::<Int32Type>());
            let (sensors, metrics) = (sensor.values().as_string::<i32>(), metric.values().as_string::<i32>());
            let future = column("future").as_boolean();
            let mut known: HashMap<(i32, i32), HashSet<i64>> = HashMap::new();
            for row in (0..batch.num_rows()).filter(|row| !future.value(*row)) {
                let place = (sensor.keys().value(row), metric.keys().value(row));
                known.entry(place).or_default().insert(time.value(row).div_euclid(1000));
            }
            for ((s, m), times) in known {
                let name = (sensors.value(s as usize).to_owned(), metrics.value(m as usize).to_owned());
                series.entry(name).or_default().extend(times);
            }
        }
    }
    (rows, series.into_iter().map(|((s, m), times)| (format!("ts:{s}:{m}"), times.len())).collect())
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.unwrap_or(0) >> 10
}

#[test]
fn a_sink_that_is_too_slow_costs_neither_memory_nor_readings() {
    let seconds = from_environment("SG_SLOW_SECONDS").unwrap_or(60);
    let redis = Redis::start_with_time_series();
    let proxy = Proxy::to(redis.port());
    let port = proxy.port();
    let sinks = format!(
        "[sinks.slow]\ntype = \"redis_timeseries\"\nurl = \"redis://127.0.0.1:{port}\"\ncapacity = \"64 MiB\"\n\
         [sinks.lake]\ntype = \"parquet\"\npath = \"LAKE\"\n"
    );
    let mut plant = Plant::new(Kafka::shared(), "slow-sink", keyed_rules(), &sinks);
    // The cap is on what is on its way: state, which comes on top, is kept small.
    let top = format!("workers = 2\nmemory = \"{CAP_MIB} MiB\"\ndedup = {{ window = \"4s\" }}");
    plant.change("workers = 2", &top);
    plant.change("rolling = { windows = [\"10s\"], last = [5] }", "rolling = { last = [5] }");
    plant.kafka.create_topic(&plant.topic, 4);
    let mut running = plant.run();
    running.until_up(plant.port);
    let (rate, time) = (RATE.to_string(), format!("{seconds}s"));
    let what = ["--rate", &rate, "--for", &time, "--sensors", "1000", "--summary", "json"];
    let late = ["--duplicates-within", "3s", "--disorder-within", "3s"];
    // A fifth of what it would take.
    proxy.slow(500_000);
    let begun = Instant::now();
    let mut feed = plant.feed(&[&what[..], &late].concat());
    let (mut most, mut overflow, mut behind) = (0, 0.0_f64, 0.0_f64);
    let patience = Duration::from_secs(seconds * 4 + 120);
    let mut fed = None;
    let mut settled = None;
    loop {
        most = most.max(resident_mib(running.pid()));
        let sum = |family: &str, labels: &str| plant.metric(family, labels).unwrap_or(0.0);
        overflow = overflow.max(sum("streamgauge_sink_spill_bytes", "sink=\"slow\""));
        let lag = sum("streamgauge_source_lag_records", "");
        behind = behind.max(lag);
        if fed.is_none()
            && let Some(status) = feed.ends_within(Duration::ZERO)
        {
            assert!(status.success(), "{}", feed.said());
            proxy.mend();
            fed = Some(begun.elapsed());
        }
        let waiting = sum("streamgauge_sink_queue_items", "");
        // Settled is what stays so: the last figures may be from before the last records.
        settled = (fed.is_some() && lag == 0.0 && waiting == 0.0).then(|| settled.unwrap_or_else(Instant::now));
        if settled.is_some_and(|since| since.elapsed() > Duration::from_secs(2)) {
            break;
        }
        assert!(begun.elapsed() < patience, "not drained: lag {lag}, {waiting} waiting\n{}", running.said());
        assert_eq!(running.ends_within(Duration::ZERO), None, "{}", running.said());
        std::thread::sleep(Duration::from_millis(200));
    }
    let drained = begun.elapsed();
    let said = feed.said();
    let produced: Value = said.lines().rev().find_map(|line| serde_json::from_str(line).ok()).expect("a summary");
    let (status, said) = running.terminate();
    assert!(status.success(), "{said}");
    let summary = plant.run_until_end();
    let count = |name: &str| summary[name].as_u64().unwrap_or_else(|| panic!("no {name} in {summary}"));
    println!(
        "{} records in {:.0?}, drained after {drained:.0?}; {most} MiB resident at most, {:.0} MiB in segments, {behind} records behind",
        produced["records"],
        fed.expect("fed"),
        overflow / f64::from(1 << 20)
    );
    assert!(behind > RATE as f64, "the source never had to wait: {behind} records behind");
    assert!(overflow > 0.0, "nothing ever overflowed into segments");
    assert!(overflow < (80 << 20) as f64, "segments are not bounded: {overflow} bytes");
    assert!(most * 10 <= CAP_MIB * 11, "{most} MiB resident, and the cap is {CAP_MIB} MiB");

    assert_eq!(summary["records"], produced["records"], "{summary}");
    assert_eq!(summary["imbalance"], 0, "{summary}");
    assert_eq!(summary.get("undelivered"), None, "{summary}");
    let (rows, series) = archived(&plant.lake());
    assert_eq!(rows, count("accepted") + count("late") + count("future"), "{summary}");
    assert!(rows > RATE * seconds / 4, "only {rows} rows");
    let mut connection = redis.connection();
    for (key, values) in &series {
        let info: Vec<redis::Value> = redis::cmd("TS.INFO").arg(key).query(&mut connection).expect("a series");
        let samples = info.windows(2).find_map(|pair| match pair {
            [redis::Value::SimpleString(name), redis::Value::Int(n)] if name == "totalSamples" => Some(*n),
            [redis::Value::BulkString(name), redis::Value::Int(n)] if name == b"totalSamples" => Some(*n),
            _ => None,
        });
        assert_eq!(samples, Some(*values as i64), "{key}");
    }
    assert_eq!(series.len(), 2_000);
    let note =
        format!("{seconds} s, {} records, {most} MiB resident under a cap of {CAP_MIB} MiB", produced["records"]);
    tested("slow sink at 50 k readings/s offered", 1, &note);
}
