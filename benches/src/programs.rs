//! The programs that are measured: how each is started, and that its counts are right.

use crate::data::Data;
use crate::figures::Round;
use crate::floor::Read;
use crate::job::{ALERT_PARTITIONS, Configured, Rules, Settings, configure};
use crate::measure;
use crate::straight::{Counts, Json};
use crate::world::{World, last_line};
use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum as _;
use serde::Deserialize;
use std::process::Command;
use std::time::Duration;
use streamgauge::simulate::Truth;

/// A run that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// A program.
#[derive(Clone, Debug)]
pub enum Program {
    /// Reads and counts bytes, with so many threads.
    Floor(usize),
    /// The straight-line program, with so many threads.
    Straight(Json, usize),
    /// Streamgauge.
    Streamgauge(Settings),
}

/// What streamgauge prints; its other figures are measured from outside.
#[derive(Deserialize)]
struct Summary {
    records: u64,
    accepted: u64,
    behind: u64,
    duplicates: u64,
    late: u64,
    future: u64,
    dead_letters: u64,
    alerts: u64,
    imbalance: i64,
}

/// A topic, the truth about it, and how many alerts there are, once a program has told.
pub struct Topic {
    /// What is in it.
    pub data: Data,
    /// What is true of it.
    pub truth: Truth,
    /// Alerts, and who said so.
    pub alerts: Option<(u64, String)>,
}

impl Topic {
    /// What figures are divided by: readings of a wide topic, else records, in which the malformed ones are.
    pub fn items(&self) -> u64 {
        if self.data.options.contains(&"--wide") { self.truth.readings } else { self.truth.records }
    }
    /// What must come out; alerts are left open.
    fn expected(&self) -> Counts {
        let (truth, outcome) = (&self.truth, &self.truth.outcome);
        Counts {
            records: truth.records,
            accepted: outcome.accepted,
            behind: outcome.behind,
            duplicates: outcome.duplicates,
            dead_letters: truth.dead_letters.values().chain(truth.dead_values.values()).sum(),
            alerts: 0,
        }
    }
    /// Holds a program's counts against the truth, and its alerts against the other programs'.
    fn hold(&mut self, counts: Counts, who: &str) -> Result<()> {
        ensure!(Counts { alerts: 0, ..counts } == self.expected(), "{who}: {counts:?}, not {:?}", self.expected());
        match &self.alerts {
            Some((alerts, other)) => {
                ensure!(counts.alerts == *alerts, "{who} makes {} alerts, {other} makes {alerts}", counts.alerts)
            }
            None => {
                // A topic in which nothing happens measures nothing.
                ensure!(counts.alerts > self.items() / 1_000, "{who}: only {} alerts", counts.alerts);
                self.alerts = Some((counts.alerts, who.to_owned()));
            }
        }
        Ok(())
    }
}

impl Program {
    /// As the table says it.
    pub fn name(&self) -> String {
        match self {
            Self::Floor(threads) => format!("floor, {}", counted(*threads, "thread")),
            Self::Straight(json, threads) => {
                let json = match json {
                    Json::Owned => "serde_json, owned",
                    Json::Borrowed => "serde_json",
                    Json::Fast => "our fast path",
                };
                format!("straight-line, {json}, {}", counted(*threads, "thread"))
            }
            Self::Streamgauge(s) => {
                let mut name = format!("streamgauge, {}", counted(s.workers, "worker"));
                if s.processes > 1 {
                    name = format!("streamgauge, {} processes of {}", s.processes, counted(s.workers, "worker"));
                }
                for (said, extra) in [
                    (s.durability != "process", format!("durability {}", s.durability)),
                    (s.parquet, "Parquet".to_owned()),
                    (s.checkpoint != "30s", format!("a checkpoint every {}", s.checkpoint)),
                    (s.tick != "20ms", format!("tick {}", s.tick)),
                    (s.rules == Rules::Sites(1), "5 rules".to_owned()),
                    (s.rules == Rules::Sites(100), "500 rules".to_owned()),
                ] {
                    if said {
                        name += &format!(", {extra}");
                    }
                }
                name
            }
        }
    }

    /// Runs it once from the topic's beginning to its end; a wrong count is a failed run.
    pub fn run(&self, world: &World, topic: &mut Topic, name: &str) -> Result<Round> {
        let (cost, broker_cpu_s, redis_cpu_s) = match self {
            Self::Floor(threads) => {
                let mut command = world.bench();
                command.args(["floor", "--bootstrap", &world.kafka.bootstrap, "--topic", topic.data.topic]);
                command.args(["--threads", &threads.to_string()]);
                let (cost, broker, redis, printed) = measured(world, vec![command])?;
                let read: Read = last_line(&printed[0])?;
                ensure!(read.records == topic.truth.records, "the floor read {} records", read.records);
                (cost, broker, redis)
            }
            Self::Straight(json, threads) => {
                let alerts = format!("alerts-{name}");
                world.kafka.create_topic(&alerts, ALERT_PARTITIONS);
                let json = json.to_possible_value().context("a parser")?;
                let mut command = world.bench();
                command.args(["straight", "--bootstrap", &world.kafka.bootstrap, "--topic", topic.data.topic]);
                command.args(["--threads", &threads.to_string(), "--json", json.get_name()]);
                command.args(["--alerts", &alerts, "--redis", &world.redis.url, "--stream", name]);
                let (cost, broker, redis, printed) = measured(world, vec![command])?;
                let counts: Counts = last_line(&printed[0])?;
                topic.hold(counts, &self.name())?;
                delivered(world, &alerts, name, counts.alerts)?;
                (cost, broker, redis)
            }
            Self::Streamgauge(settings) => {
                let configured = configure(world, &topic.data, settings, name)?;
                let commands = commands(world, settings, &configured)?;
                let (cost, broker, redis, printed) = measured(world, commands)?;
                let s: Summary = last_line(&printed[0])?;
                ensure!(s.late == 0 && s.future == 0, "{} late, {} of the future", s.late, s.future);
                ensure!(s.imbalance == 0, "the conservation law is broken by {}", s.imbalance);
                let Summary { records, accepted, behind, duplicates, dead_letters, alerts, .. } = s;
                let counts = Counts { records, accepted, behind, duplicates, dead_letters, alerts };
                topic.hold(counts, &self.name())?;
                delivered(world, &configured.topic, &configured.stream, alerts)?;
                // Gigabytes in all, and nobody looks at it again.
                std::fs::remove_dir_all(&configured.data)?;
                (cost, broker, redis)
            }
        };
        Ok(Round { cost, broker_cpu_s, redis_cpu_s, records: topic.items() })
    }
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// The processes of a run to the end of what is there.
fn commands(world: &World, settings: &Settings, configured: &Configured) -> Result<Vec<Command>> {
    let mut commands = Vec::new();
    let hosts = configured.config.with_extension("hosts");
    if settings.processes > 1 {
        let mut lines = String::new();
        for _ in 0..settings.processes {
            lines += &format!("127.0.0.1:{}\n", free_port()?);
        }
        std::fs::write(&hosts, lines)?;
    }
    for process in 0..settings.processes {
        let mut command = world.streamgauge();
        command.args(["run", "-c"]).arg(&configured.config);
        command.args(["--until-end", "--summary", "json", "--log-level", "warn"]);
        if settings.processes > 1 {
            command.arg("--hostfile").arg(&hosts);
            command.args(["-n", &settings.processes.to_string(), "-p", &process.to_string()]);
        }
        commands.push(command);
    }
    Ok(commands)
}

/// A free port on loopback.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

type Measured = (measure::Cost, f64, f64, Vec<String>);

/// Runs commands side by side; what they cost, and what broker and Redis spent meanwhile.
fn measured(world: &World, commands: Vec<Command>) -> Result<Measured> {
    let before = world.servers_cpu_s()?;
    let (cost, printed) = measure::run(commands, world.folder.path(), PATIENCE)?;
    let after = world.servers_cpu_s()?;
    Ok((cost, after.0 - before.0, after.1 - before.1, printed))
}

/// The alerts have arrived, each once, in both places; then the stream goes.
fn delivered(world: &World, topic: &str, stream: &str, alerts: u64) -> Result<()> {
    let mut redis = world.redis.connection();
    let in_redis: u64 = redis::cmd("XLEN").arg(stream).query(&mut redis)?;
    let in_kafka = world.records(topic, ALERT_PARTITIONS)?;
    if (in_redis, in_kafka) != (alerts, alerts) {
        bail!("{alerts} alerts, of which {in_redis} are in Redis and {in_kafka} in Kafka");
    }
    redis::cmd("DEL").arg(stream).query::<()>(&mut redis)?;
    Ok(())
}
