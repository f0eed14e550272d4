//! `streamgauge demo`: broker, sensors and pipeline in one process, nothing installed and nothing kept.
//!
//! The broker is librdkafka's own mock: it speaks Kafka's protocol on a loopback port, so that the pipeline runs as it
//! does anywhere, with `config/demo.toml`. It holds 5 MiB per partition, hence the gate.

mod gate;
mod score;

use crate::config::{self, MessageFormat, Overrides};
use crate::error::Failure;
use crate::produce::sender::{Sender, Target};
use crate::produce::{duration, millis, stop_on_signals};
use crate::run::{RunOptions, Summary};
use crate::seam::{Clock, RealClock};
use crate::simulate::faults::{FaultKind, FaultPlan};
use crate::simulate::{Plant, Simulator, Truth};
use gate::Gate;
use rdkafka::mocking::MockCluster;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What the demo runs.
pub const CONFIG: &str = include_str!("../config/demo.toml");
/// The configuration's topic.
const TOPIC: &str = "sensors";
const PARTITIONS: u32 = 8;
/// Where the page is if no one says otherwise; another free port if that is taken.
const LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7070));
/// What is still in the broker at the end has this long to be read.
const LAST_READ: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// Shows everything in one process: nothing needs to be installed, nothing is kept.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// End after this much time, such as 15s [default: at Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub for_: Option<Duration>,
    /// Keep state, archive and configuration in this directory, which must be new or empty
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Where all chance comes from
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub seed: u64,
    /// How many worker threads
    #[arg(short, long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Readings a second
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub rate: u64,
    /// How many sensors
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub sensors: u32,
    /// Where page and metrics are served [default: 127.0.0.1:7070, or another port if that is taken]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
}

/// Runs the demo until its time is over or someone ends it.
pub fn run(args: &Args) -> Result<(), Failure> {
    run_with(args, stop_on_signals()?, &mut io::stdout(), |demo, options| {
        let overrides = Overrides { workers: Some(usize::from(args.workers)), ..Overrides::default() };
        // The file as it is: a demo takes nothing from the environment.
        let loaded = config::load(&[demo.config.to_owned()], &|_| None, &overrides);
        let mut loaded = loaded.map_err(|report| Failure::configuration(report.render(MessageFormat::Short, false)))?;
        loaded.config.server.listen = demo.listen;
        crate::run::run(&loaded, options)
    })
}

/// What the pipeline is given beside its options.
struct Given<'a> {
    /// The configuration file.
    config: &'a Path,
    /// Where to serve.
    listen: SocketAddr,
}

fn run_with(
    args: &Args,
    stop: Arc<AtomicBool>,
    out: &mut dyn Write,
    pipeline: impl FnOnce(Given<'_>, RunOptions) -> Result<Summary, Failure>,
) -> Result<(), Failure> {
    let clock: Arc<dyn Clock> = Arc::new(RealClock::default());
    let plant = plant(args, clock.wall_ms() as i64)?;
    let silent_after_ms = silent_after_ms(&plant);
    let folder = Folder::new(args.keep.as_deref())?;
    let listen = args.listen.map_or_else(free_address, Ok)?;

    let mock =
        |e: rdkafka::error::KafkaError| Failure::unreachable(format!("the in-process broker does not start: {e}"));
    let broker = MockCluster::new(1).map_err(mock)?;
    broker.create_topic(TOPIC, PARTITIONS as i32, 1).map_err(mock)?;
    let bootstrap_servers = broker.bootstrap_servers();
    let config = folder.path.join("demo.toml");
    let text = fill(CONFIG, &|name| match name {
        "STREAMGAUGE_DEMO_KAFKA" => Some(bootstrap_servers.clone()),
        "STREAMGAUGE_DEMO_DIR" => Some(folder.path.display().to_string()),
        "STREAMGAUGE_DEMO_SILENT" => Some(format!("{silent_after_ms}ms")),
        _ => None,
    });
    std::fs::write(&config, text).map_err(|e| folder.failure(&e))?;
    say(out, &header(args, &bootstrap_servers, listen, &folder));

    let gate = Arc::new(Gate::new(PARTITIONS));
    let over = Arc::new(AtomicBool::new(false));
    let target = Target { bootstrap_servers, topic: TOPIC.into(), create_partitions: None, properties: Vec::new() };
    let feed = Feed {
        sender: Sender::connect(target, stop.clone())?,
        simulator: Simulator::new(plant).map_err(Failure::configuration)?,
        gate: gate.clone(),
        stop: stop.clone(),
        over: over.clone(),
        deadline: args.for_.map(|time| Instant::now() + time),
        clock,
    };
    let feeder = std::thread::Builder::new().name("sensors".into()).spawn(move || feed.run());
    let feeder = feeder.map_err(|e| Failure::configuration(format!("cannot start a thread: {e}")))?;
    let options = RunOptions {
        serve: true,
        // Not `signals`: they end the sensors, and those end the pipeline once it has read everything.
        stop: Some(over.clone()),
        progress: Some(Arc::new(move |_, partition, next| gate.read(partition, next))),
        ..RunOptions::default()
    };
    let result = pipeline(Given { config: &config, listen }, options);
    // However the pipeline ended, the sensors end with it.
    over.store(true, Relaxed);
    let fed = feeder.join().map_err(|_| Failure::state("the simulated sensors panicked"))?;
    let (summary, truth) = (result?, fed?);
    let journal = std::fs::read_to_string(folder.path.join("state/journal.jsonl")).map_err(|e| folder.failure(&e))?;
    let end_us = truth.last_sent_ms().saturating_mul(1_000);
    let score = score::score(&truth, &score::lines(&journal), end_us, silent_after_ms * 1_000);
    say(out, &ledger(&summary, &truth));
    say(out, &found(&score, &summary, &truth));
    say(out, &next(&folder));
    Ok(())
}

/// Nobody may be listening to a demo: that is no reason to fail.
fn say(out: &mut dyn Write, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn plant(args: &Args, start_ms: i64) -> Result<Plant, Failure> {
    let plant = Plant {
        seed: args.seed,
        sensors: args.sensors,
        rate: args.rate,
        start_ms,
        partitions: PARTITIONS,
        beyond: 0.0003,
        // Only what the demo's rules can find.
        faults: Some(FaultPlan {
            first_after_ms: 500,
            every_ms: 1_000,
            kinds: vec![FaultKind::Silence, FaultKind::Spike, FaultKind::SkewedClock, FaultKind::Spike],
        }),
        ..Plant::default()
    };
    plant.check().map_err(Failure::configuration)?;
    Ok(plant)
}

/// Four readings missed, and at least five seconds: a single delayed or malformed one is no silence.
fn silent_after_ms(plant: &Plant) -> i64 {
    (plant.interval_ms() * 4 + 200).max(5_000)
}

/// Sends the plant's messages at the wall clock's pace.
struct Feed {
    sender: Sender,
    simulator: Simulator,
    gate: Arc<Gate>,
    /// Asks the sensors to end.
    stop: Arc<AtomicBool>,
    /// Asks the pipeline to end; set by others when it has.
    over: Arc<AtomicBool>,
    deadline: Option<Instant>,
    clock: Arc<dyn Clock>,
}

impl Feed {
    fn run(mut self) -> Result<Truth, Failure> {
        let over = self.over.clone();
        let fed = self.feed();
        if fed.is_ok() {
            // Nothing follows: what was sent gets its chance to be read, unless the pipeline has gone.
            let deadline = Instant::now() + LAST_READ;
            while !self.over.load(Relaxed) && Instant::now() < deadline && !self.gate.wait_until_read(LOOK) {}
        }
        over.store(true, Relaxed);
        fed?;
        Ok(self.simulator.into_truth())
    }
    fn ended(&self) -> bool {
        self.stop.load(Relaxed) || self.over.load(Relaxed) || self.deadline.is_some_and(|d| Instant::now() >= d)
    }
    fn feed(&mut self) -> Result<(), Failure> {
        while let Some(due_ms) = self.simulator.next_at() {
            loop {
                if self.ended() {
                    return self.sender.flush();
                }
                let early = due_ms.saturating_sub(self.clock.wall_ms() as i64);
                if early <= 0 {
                    break;
                }
                self.sender.wait(LOOK.min(Duration::from_millis(early as u64)));
            }
            let Some(m) = self.simulator.next_message() else { break };
            // A message that is made is sent, or the truth would not be true. The wait ends with the pipeline.
            while !self.gate.wait_for_room(m.partition, LOOK) && !self.over.load(Relaxed) {}
            if !self.sender.send(m.partition, m.key, m.payload, None)? {
                break;
            }
            self.gate.sent(m.partition, m.payload.len() + m.key.map_or(0, <[u8]>::len));
        }
        self.sender.flush()
    }
}

/// The demo's directory; gone at the end, unless it is to be kept.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn new(keep: Option<&Path>) -> Result<Self, Failure> {
        let cannot = |path: &Path, e: io::Error| Failure::configuration(format!("cannot use {}: {e}", path.display()));
        let Some(path) = keep else {
            let name = |n: u32| std::env::temp_dir().join(format!("streamgauge-demo-{}-{n}", std::process::id()));
            let made = (0..100).map(name).find_map(|path| match std::fs::create_dir(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => None,
                result => Some(result.map(|()| Self { path: path.clone(), keep: false }).map_err(|e| cannot(&path, e))),
            });
            return made.unwrap_or_else(|| Err(Failure::configuration("there are too many demo directories already")));
        };
        std::fs::create_dir_all(path).map_err(|e| cannot(path, e))?;
        if std::fs::read_dir(path).map_err(|e| cannot(path, e))?.next().is_some() {
            let message = format!(
                "{} is not empty; --keep wants a new directory, since each demo has a new broker",
                path.display()
            );
            return Err(Failure::configuration(message));
        }
        let path = path.canonicalize().map_err(|e| cannot(path, e))?;
        Ok(Self { path, keep: true })
    }
    fn failure(&self, e: &io::Error) -> Failure {
        Failure::configuration(format!("cannot use {}: {e}", self.path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "the demo's directory could not be removed");
        }
    }
}

/// The usual address, or one that is free.
fn free_address() -> Result<SocketAddr, Failure> {
    let free = TcpListener::bind(LISTEN).or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let failure = |e: io::Error| Failure::configuration(format!("no free port on the loopback address: {e}"));
    free.and_then(|listener| listener.local_addr()).map_err(failure)
}

/// Replaces `${NAME}` and `${NAME:-default}`, each inside a basic string of TOML, as the loader would from the environment.
fn fill(text: &str, value: &dyn Fn(&str) -> Option<String>) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, name, after)) = rest.split_once("${").and_then(|(before, tail)| {
        let (name, after) = tail.split_once('}')?;
        Some((before, name, after))
    }) {
        let (name, default) = name.split_once(":-").unwrap_or((name, ""));
        filled += before;
        for c in value(name).unwrap_or_else(|| default.into()).chars() {
            match c {
                '"' | '\\' => filled.extend(['\\', c]),
                c if c.is_control() => filled += &format!("\\u{:04X}", u32::from(c)),
                c => filled.push(c),
            }
        }
        rest = after;
    }
    filled + rest
}

/// 48911 as 48,911.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn header(args: &Args, broker: &str, listen: SocketAddr, folder: &Folder) -> String {
    let kept = if folder.keep { "kept in" } else { "nothing kept (--keep DIR keeps it) in" };
    let end =
        args.for_.map_or_else(|| "Ctrl-C ends it".to_owned(), |time| format!("ends after {} s", millis(time) / 1_000));
    format!(
        "streamgauge {} demo: everything in this process, nothing installed, {end}\n  \
         kafka    in-process broker, real protocol, {broker}, topic {TOPIC}, {PARTITIONS} partitions\n  \
         sensors  {} simulated, {} readings/s, six metrics, faults planted with known truth (seed {})\n  \
         page     http://{listen}     metrics http://{listen}/metrics\n  \
         files    {kept} {}, {} workers\n",
        env!("CARGO_PKG_VERSION"),
        thousands(args.sensors.into()),
        thousands(args.rate),
        args.seed,
        folder.path.display(),
        args.workers,
    )
}

/// The conservation law, and the truth beside it.
fn ledger(s: &Summary, truth: &Truth) -> String {
    let outcome = &truth.outcome;
    let pairs = [
        ("records", s.records, truth.records),
        ("accepted", s.accepted, outcome.accepted),
        ("duplicates", s.duplicates, outcome.duplicates),
        ("late", s.late, outcome.late),
        ("future", s.future, outcome.future),
        ("dead letters", s.dead_letters, truth.malformed.total()),
    ];
    let differing: Vec<String> = pairs
        .iter()
        .filter(|(_, counted, sent)| counted != sent)
        .map(|(what, counted, sent)| format!("{what} {} of {}", thousands(*counted), thousands(*sent)))
        .collect();
    let same = if differing.is_empty() {
        "exactly what the sensors sent ✓".to_owned()
    } else {
        format!("not what the sensors sent: {}", differing.join(", "))
    };
    let sums = match s.imbalance {
        0 => "nothing unaccounted for ✓".to_owned(),
        n => format!("{n} unaccounted for ✗"),
    };
    format!(
        "{} records: {} accepted + {} duplicates + {} late + {} future + {} dead letters, {sums}\n{same}\n",
        thousands(s.records),
        thousands(s.accepted),
        thousands(s.duplicates),
        thousands(s.late),
        thousands(s.future),
        thousands(s.dead_letters),
    )
}

fn found(score: &score::Score, summary: &Summary, truth: &Truth) -> String {
    let mut text = "planted faults found".to_owned();
    for (kind, tally) in &score.by_kind {
        text += &format!("   {} {}/{}", kind.words(), tally.found, tally.planted);
    }
    if truth.outcome.future > 0 {
        text += &format!(
            "   readings of skewed clocks set apart {}/{}",
            thousands(summary.future.min(truth.outcome.future)),
            thousands(truth.outcome.future)
        );
    }
    text + &format!("\nalerts {}, of which without a planted fault {}\n", thousands(score.alerts), score.unexplained)
}

fn next(folder: &Folder) -> String {
    if !folder.keep {
        return "try   streamgauge demo --keep DIR --for 30s     keeps state, archive and demo.toml, to look around in\n      \
                streamgauge check -c my.toml               your own Kafka: demo.toml with two lines changed\n"
            .into();
    }
    let config = folder.path.join("demo.toml");
    let config = config.display();
    format!(
        "try   streamgauge alerts --all -c {config}\n      \
         streamgauge state ls -c {config}\n      \
         streamgauge dead-letters list -c {config}\n      \
         streamgauge run -c my.toml     that file with two lines changed, on your own Kafka\n"
    )
}

#[cfg(test)]
mod tests;
