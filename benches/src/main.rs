//! `make bench`: what streamgauge costs on a real Kafka, beside the floor and a straight-line program.
//!
//! Read `variants.rs` for what is measured, `programs.rs` for how a run is checked, `measure.rs` for what a figure means.
#![expect(clippy::print_stdout, reason = "its output is the table")]

mod batch;
mod data;
mod delay;
mod figures;
mod floor;
mod job;
mod measure;
mod programs;
mod report;
#[path = "../../tests/common/servers.rs"]
mod servers;
mod straight;
mod variants;
mod world;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use figures::Figures;
use programs::Topic;
use serde_json::{Map, Value, json};
use std::time::Instant;
use straight::{Job, Json};
use variants::Variant;
use world::World;

/// What streamgauge costs.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures, prints the tables and writes target/bench/latest.json
    Run(Run),
    /// Measures the delay from Kafka to Redis, what a paced load costs, and idleness
    Delay(delay::Options),
    /// Reads a topic to its end and counts bytes
    Floor {
        #[arg(long)]
        bootstrap: String,
        #[arg(long)]
        topic: String,
        #[arg(long)]
        threads: usize,
    },
    /// Does the job on a topic to its end, without a framework
    Straight {
        #[arg(long)]
        bootstrap: String,
        #[arg(long)]
        topic: String,
        #[arg(long)]
        threads: usize,
        #[arg(long, value_enum)]
        json: Json,
        #[arg(long)]
        alerts: String,
        #[arg(long)]
        redis: String,
        #[arg(long)]
        stream: String,
    },
}

#[derive(clap::Args)]
struct Run {
    /// What to measure: job, wide, lz4, hot, six, sensors-1e3, sensors-1e6, ids-1e7, rules, delay [default: all].
    /// `quick` among them: a tenth of the readings and one round, for development; alone, of the job
    what: Vec<String>,
    /// How often each program runs [default: 3; quick: 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// A share of the readings and sensors, as 1/N [default: 1; quick: 10]
    #[arg(long)]
    shorten: Option<u64>,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run(run) => run.go(),
        Command::Delay(options) => delays(&World::start()?, &options),
        Command::Floor { bootstrap, topic, threads } => print(&floor::run(&bootstrap, &topic, threads)?),
        Command::Straight { bootstrap, topic, threads, json, alerts, redis, stream } => {
            print(&straight::run(&Job { bootstrap, topic, threads, json, alerts, redis, stream })?)
        }
    }
}

fn print(summary: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(summary)?);
    Ok(())
}

impl Run {
    fn go(&self) -> Result<()> {
        let variants = variants::all();
        let names: Vec<&str> = variants.iter().map(|v| v.name).chain(["delay", "quick"]).collect();
        for name in &self.what {
            ensure!(names.contains(&name.as_str()), "there is no `{name}`; there are {}", names.join(", "));
        }
        let asked = |name: &str| self.what.iter().any(|what| what == name);
        let quick = asked("quick");
        let all = self.what.is_empty();
        let alone = quick && self.what.len() == 1;
        let rounds = self.rounds.unwrap_or(if quick { 1 } else { 3 }).max(1);
        let shorten = self.shorten.unwrap_or(if quick { 10 } else { 1 });
        let world = World::start()?;
        for variant in variants.iter().filter(|v| all || asked(v.name) || (alone && v.name == "job")) {
            let section = measure(&world, variant, rounds, shorten)?;
            let mut parts = Map::new();
            parts.insert("machine".into(), report::machine(&world));
            if variant.name == "job" {
                parts.extend(section);
            } else {
                parts.insert(variant.name.into(), Value::Object(section));
            }
            println!("written to {}\n", report::write(parts)?.display());
        }
        if all || asked("delay") {
            delays(&world, &delay::Options { quick, ..delay::Options::default() })?;
        }
        Ok(())
    }
}

fn delays(world: &World, options: &delay::Options) -> Result<()> {
    let mut section = delay::run(world, options)?;
    section.insert("date".into(), json!(report::machine(world)["date"]));
    let parts = [("machine".to_owned(), report::machine(world)), ("delay".to_owned(), Value::Object(section))];
    println!("written to {}", report::write(parts.into_iter().collect())?.display());
    Ok(())
}

/// Fills the topic and lets the programs read it in turn, round after round.
fn measure(world: &World, variant: &Variant, rounds: usize, shorten: u64) -> Result<Map<String, Value>> {
    let begun = Instant::now();
    let data = variant.data.shortened(shorten);
    println!("{}: {}", variant.name, variant.what);
    let truth = data::produce(world, &data)?;
    println!("topic filled after {:.0} s: {} records", begun.elapsed().as_secs_f64(), truth.records);
    let mut topic = Topic { data, truth, alerts: None };
    let mut rows: Vec<report::Row> = variant.programs.iter().map(|p| (p.clone(), Figures::default())).collect();
    for n in 0..rounds {
        for (place, (program, figures)) in rows.iter_mut().enumerate() {
            let round = program.run(world, &mut topic, &format!("{}-{n}-{place}", variant.name))?;
            figures.0.push(round);
        }
    }
    println!("{}", report::table(&topic, &rows));
    let mut section = report::section(&topic, &rows);
    section.insert("date".into(), json!(report::machine(world)["date"]));
    section.insert("shortened_by".into(), json!(shorten));
    println!("{} after {:.0} s", variant.name, begun.elapsed().as_secs_f64());
    Ok(section)
}
