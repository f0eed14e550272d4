//! The job as streamgauge is told it.

use crate::data::Data;
use crate::straight::rules;
use crate::world::World;
use anyhow::Result;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// How streamgauge runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Threads of each process.
    pub workers: usize,
    /// Processes.
    pub processes: usize,
    /// `epochs.durability`.
    pub durability: &'static str,
    /// `epochs.tick`.
    pub tick: &'static str,
    /// `checkpoint.interval`.
    pub checkpoint: &'static str,
    /// Whether readings are archived.
    pub parquet: bool,
    /// Which rules.
    pub rules: Rules,
}

/// Which rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// The job's own: six limits, and two on statistics.
    Job,
    /// So many sites with five rules each, all on the temperature; sensors lie in the sites in turn.
    Sites(u64),
}

impl Settings {
    /// The defaults, with so many workers.
    pub const fn workers(workers: usize) -> Self {
        Self {
            workers,
            processes: 1,
            durability: "process",
            tick: "20ms",
            checkpoint: "30s",
            parquet: false,
            rules: Rules::Job,
        }
    }
    /// What every result states.
    pub fn json(&self, data: &Data) -> Value {
        json!({
            "workers": self.workers, "processes": self.processes, "durability": self.durability, "tick": self.tick,
            "checkpoint_interval": self.checkpoint, "parquet": self.parquet, "compression": data.compression,
            "producer_linger_ms": 5,
        })
    }
}

/// One run's configuration and where its output goes.
pub struct Configured {
    /// The configuration file.
    pub config: PathBuf,
    /// `data_dir`.
    pub data: PathBuf,
    /// The topic of alerts.
    pub topic: String,
    /// The Redis Stream of alerts.
    pub stream: String,
}

/// Writes the configuration of a run, with a state, topic and stream of its own.
pub fn configure(world: &World, data: &Data, settings: &Settings, name: &str) -> Result<Configured> {
    configure_with(world, data, settings, name, settings.tick, 0, "")
}

/// The same with a tick and a port for the page; `more` goes to the source.
pub fn configure_with(
    world: &World,
    data: &Data,
    settings: &Settings,
    name: &str,
    tick: &str,
    port: u16,
    more: &str,
) -> Result<Configured> {
    let folder = world.folder.path();
    let (state, archive) = (folder.join(format!("{name}.state")), folder.join(format!("{name}.archive")));
    let topic = format!("alerts-{name}");
    world.kafka.create_topic(&topic, ALERT_PARTITIONS);
    let mut text = String::new();
    let inventory = match settings.rules {
        Rules::Job => None,
        Rules::Sites(sites) => {
            let path = folder.join(format!("{name}.csv"));
            let rows: String = (0..data.sensors).map(|n| format!("s-{:05},site-{}\n", n + 1, n % sites)).collect();
            std::fs::write(&path, format!("sensor,site\n{rows}"))?;
            Some(path)
        }
    };
    if let Some(path) = inventory {
        writeln!(text, "inventory = {:?}", path.display())?;
    }
    write!(
        text,
        "data_dir = {:?}\nworkers = {}\nserver.listen = \"127.0.0.1:{port}\"\n\
         epochs = {{ tick = {:?}, durability = {:?} }}\ncheckpoint.interval = {:?}\n\
         event_time = {{ allowed_lateness = \"30s\", max_clock_skew = \"5m\" }}\n\
         dedup.window = \"10m\"\nrolling.windows = [\"60s\"]\n\
         [sources.plant]\ntype = \"kafka\"\nbootstrap_servers = {:?}\ntopics = [{:?}]\ngroup_id = \"bench-{name}\"\n{more}",
        state.display(),
        settings.workers,
        tick,
        settings.durability,
        settings.checkpoint,
        world.kafka.bootstrap,
        data.topic,
    )?;
    let wide = data.options.contains(&"--wide");
    if wide {
        let metrics: Vec<String> = rules::NAMES.iter().map(|m| format!("{m} = {{ path = \"/{m}\" }}")).collect();
        writeln!(
            text,
            "decode = {{ sensor = \"/sensor_id\", time = \"/timestamp\", metrics = {{ {} }} }}",
            metrics.join(", ")
        )?;
    } else {
        text += "decode = { id = \"/unique_reading_id\", sensor = \"/sensor_id\", metric = \"/type\", \
                 value = \"/value\", time = \"/timestamp\" }\n";
    }
    write_rules(&mut text, settings.rules)?;
    write!(
        text,
        "[sinks.topic]\ntype = \"kafka\"\nbootstrap_servers = {:?}\ntopic = {topic:?}\n\
         [sinks.stream]\ntype = \"redis_stream\"\nurl = {:?}\nkey = \"{name}\"\n",
        world.kafka.bootstrap, world.redis.url,
    )?;
    if settings.parquet {
        write!(text, "[sinks.archive]\ntype = \"parquet\"\npath = {:?}\n", archive.display())?;
    }
    let config = folder.join(format!("{name}.toml"));
    std::fs::write(&config, text)?;
    Ok(Configured { config, data: state, topic, stream: name.to_owned() })
}

/// Partitions of a topic of alerts.
pub const ALERT_PARTITIONS: i32 = 4;

fn write_rules(text: &mut String, rules: Rules) -> Result<()> {
    match rules {
        Rules::Job => {
            for (name, (limit, above)) in rules::NAMES.iter().zip(rules::LIMITS) {
                let word = if above { "above" } else { "below" };
                writeln!(text, "[rules.{name}]\nmetric = \"{name}\"\nwhen.{word} = {limit:?}")?;
            }
            let judged = rules::NAMES[rules::JUDGED];
            for (statistic, limit) in [("mean", rules::MEAN_MAX), ("stddev", rules::DEVIATION_MAX)] {
                writeln!(
                    text,
                    "[rules.{judged}-{statistic}]\nmetric = \"{judged}\"\nof.{statistic} = \"60s\"\nwhen.above = {limit:?}"
                )?;
            }
        }
        // Site 0 of one is `site-*`: all of them, so that each series is matched by five rules either way.
        Rules::Sites(sites) => {
            for site in 0..sites {
                let matched = if sites == 1 { "site-*".to_owned() } else { format!("site-{site}") };
                for limit in 0..5 {
                    writeln!(
                        text,
                        "[rules.r{site}-{limit}]\nmetric = \"temperature\"\nmatch.site = \"{matched}\"\n\
                         when.above = {}.0",
                        34 + limit
                    )?;
                }
            }
        }
    }
    Ok(())
}
