//! The table that is printed, and `target/bench/latest.json`.

use crate::figures::{Figures, round};
use crate::programs::{Program, Topic};
use crate::straight::Json;
use crate::world::{World, succeed};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// A program and what it cost.
pub type Row = (Program, Figures);

/// The table of one variant.
pub fn table(topic: &Topic, rows: &[Row]) -> String {
    let mut text = format!(
        "{:<58} {:>15} {:>19} {:>8} {:>8} {:>7}\n{:<58} {:>15} {:>19} {:>8} {:>8} {:>7}\n",
        "",
        "CPU-s per M",
        "readings/s",
        "RSS MB",
        "broker",
        "Redis",
        "program",
        "min / median",
        "best / median",
        "max",
        "CPU-s/M",
        "CPU-s/M"
    );
    for (program, figures) in rows {
        let (cpu, rate) = (figures.cpu(), figures.rate());
        text += &format!(
            "{:<58} {:>15} {:>19} {:>8.0} {:>8.2} {:>7.3}\n",
            program.name(),
            format!("{:.2} / {:.2}", cpu.min, cpu.median),
            format!("{:.2} M / {:.2} M", rate.max / 1e6, rate.median / 1e6),
            figures.rss().max,
            figures.broker().median,
            figures.redis().median,
        );
    }
    let alerts = topic.alerts.as_ref().map_or(0, |(alerts, _)| *alerts);
    text += &format!(
        "{} records, {} accepted, {} duplicates, {} dead letters, {alerts} alert changes: exact in every run\n",
        topic.truth.records,
        topic.truth.outcome.accepted,
        topic.truth.outcome.duplicates,
        topic.truth.malformed.total()
    );
    text
}

/// One variant's part of `latest.json`: by program, then by workers.
pub fn section(topic: &Topic, rows: &[Row]) -> Map<String, Value> {
    let mut all = Map::new();
    for (program, figures) in rows {
        let settings = match program {
            Program::Streamgauge(settings) => settings.json(&topic.data),
            _ => json!({ "compression": topic.data.compression, "producer_linger_ms": 5 }),
        };
        let (name, workers) = place(program);
        let of = all.entry(name).or_insert_with(|| json!({}));
        if let Some(of) = of.as_object_mut() {
            of.insert(workers, figures.json(&settings));
        }
    }
    let median = |name: &str, workers: &str| all.get(name)?.get(workers)?.get("cpu_s_per_million")?.as_f64();
    let mut ratios = json!({});
    if let Some(ours) = median("streamgauge", "2") {
        for (name, other) in [("floor", median("floor", "2")), ("straight", median("straight", "2"))] {
            if let Some(other) = other {
                ratios[name] = json!(round(ours / other, 2));
            }
        }
    }
    all.insert("ratio_of_streamgauge_to".into(), ratios);
    all.insert(
        "input".into(),
        json!({
            "readings": topic.data.readings, "sensors": topic.data.sensors, "interval": topic.data.interval,
            "options": topic.data.options.join(" "), "partitions": crate::data::PARTITIONS, "seed": crate::data::SEED,
            "records": topic.truth.records, "accepted": topic.truth.outcome.accepted,
            "duplicates": topic.truth.outcome.duplicates, "behind": topic.truth.outcome.behind,
            "dead_letters": topic.truth.malformed.total(), "alerts": topic.alerts.as_ref().map(|(n, _)| n),
        }),
    );
    all
}

/// Where a program's figures stand: its name and how many work.
fn place(program: &Program) -> (String, String) {
    match program {
        Program::Floor(threads) => ("floor".into(), threads.to_string()),
        Program::Straight(Json::Borrowed, threads) => ("straight".into(), threads.to_string()),
        Program::Straight(Json::Owned, threads) => ("straight_owned".into(), threads.to_string()),
        Program::Straight(Json::Fast, threads) => ("straight_fast".into(), threads.to_string()),
        Program::Streamgauge(s) => {
            let mut name = "streamgauge".to_owned();
            if s.durability != "process" {
                name += &format!("_{}", s.durability);
            }
            if s.parquet {
                name += "_parquet";
            }
            if s.checkpoint != "30s" {
                name += &format!("_checkpoint_{}", s.checkpoint);
            }
            if let crate::job::Rules::Sites(sites) = s.rules {
                name += &format!("_{}_rules", sites * 5);
            }
            let workers =
                if s.processes > 1 { format!("{}x{}", s.processes, s.workers) } else { s.workers.to_string() };
            (name, workers)
        }
    }
}

/// Writes parts into `target/bench/latest.json`; those that were not measured now stay as they were, with their dates.
pub fn write(parts: Map<String, Value>) -> Result<PathBuf> {
    let folder = std::env::current_dir()?.join("target/bench");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("latest.json");
    let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok());
    let mut all = known.unwrap_or_default();
    all.extend(parts);
    let text = serde_json::to_string_pretty(&all)? + "\n";
    let beside = path.with_extension("json.part");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, &path)?;
    Ok(path)
}

/// When, where and what.
pub fn machine(world: &World) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    json!({
        "date": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "cpu": model.map_or("", |(_, name)| name), "cores": cores, "kernel": kernel.trim(),
        "streamgauge": succeed(world.streamgauge().arg("--version")).unwrap_or_default().trim(),
        "kafka": "Apache Kafka 4.3.1", "broker_options": "-Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1",
    })
}
