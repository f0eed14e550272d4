//! `streamgauge produce`: fills a Kafka topic, from a simulated plant or from a data set.

pub mod sender;

use crate::data_files::{Columns, Pace, Rows, Speed};
use crate::error::Failure;
use crate::progress;
use crate::seam::{Clock, RealClock};
use crate::simulate::faults::{FaultKind, FaultPlan};
use crate::simulate::signal::Metric;
use crate::simulate::{JudgedBy, Plant, Share, Simulator, Truth};
use sender::{Sender, Sent, Target};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// While waiting, deliveries and `stop` are looked at this often.
const LOOK: Duration = Duration::from_millis(20);
/// The progress bar and the end are looked at every so many messages.
const LOOK_EVERY: u64 = 256;

/// Fills a Kafka topic, from a simulated plant or from a data set.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Kafka's brokers, as host:port,host:port
    #[arg(long, value_name = "HOSTS")]
    pub bootstrap_servers: String,
    /// The topic to fill
    #[arg(long)]
    pub topic: String,
    /// Create the topic with N partitions, if there is none of its name
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub create_partitions: Option<u32>,
    /// A setting of librdkafka, such as -X security.protocol=SSL; may be repeated
    #[arg(short = 'X', value_name = "KEY=VALUE", value_parser = property)]
    pub properties: Vec<(String, String)>,
    /// Wait this long for a batch to fill [default: 5]
    #[arg(long, value_name = "MS")]
    pub linger_ms: Option<u32>,
    /// Compress batches: none, gzip, snappy, lz4 or zstd
    #[arg(long, value_name = "CODEC")]
    pub compression: Option<String>,
    /// The records' time stamps: when they are sent, or when (by event time) they happened
    #[arg(long, value_enum, default_value_t = Timestamps::Now)]
    pub timestamps: Timestamps,
    /// End after this much time, such as 15s
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub for_: Option<Duration>,
    /// What to print at the end
    #[arg(long, value_enum, default_value_t = SummaryFormat::Text)]
    pub summary: SummaryFormat,
    /// The plant to simulate
    #[command(flatten, next_help_heading = "Simulation")]
    pub plant: PlantArgs,
    /// The data set to send instead
    #[command(flatten, next_help_heading = "Data set")]
    pub file: FileArgs,
}

/// A data set.
#[derive(Clone, Debug, clap::Args)]
pub struct FileArgs {
    /// Send this CSV or JSON Lines (.jsonl, .ndjson, .json) file instead; - reads CSV from standard input
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// N times as fast as it happened, or as fast as it goes
    #[arg(long, value_name = "N|max", default_value = "max", requires = "from")]
    pub speed: Speed,
    /// What separates the cells of a CSV file
    #[arg(long, value_name = "CHAR", default_value = ",", value_parser = delimiter, requires = "from")]
    pub delimiter: u8,
    /// The column, field or JSON Pointer with the event time
    #[arg(long, value_name = "NAME", default_value = "timestamp", requires = "from")]
    pub time_column: String,
    /// The column, field or JSON Pointer that messages are keyed by: those of one key go to one partition
    #[arg(long, value_name = "NAME", default_value = "sensor_id", requires = "from")]
    pub key_column: String,
}

/// A plant on the command line.
#[derive(Clone, Debug, clap::Args)]
pub struct PlantArgs {
    /// How many sensors
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub sensors: u32,
    /// What each measures: temperature, humidity, pressure, pm10, pm25, co2 (these six if not said), vibration
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = metric)]
    pub metrics: Vec<Metric>,
    /// How many readings, copies not counted [default: no end]
    #[arg(long, value_name = "N")]
    pub readings: Option<u64>,
    /// Readings a second, or as fast as it goes [default: 1000; max where --readings is given]
    #[arg(long, value_name = "N|max")]
    pub rate: Option<Rate>,
    /// With --rate max: the event time between two readings of a series [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub interval: Option<Duration>,
    /// The event time of the first reading, as 2025-01-01T00:00:00Z [default: now; with --rate max so that it ends now]
    #[arg(long, value_name = "TIME")]
    pub start: Option<jiff::Timestamp>,
    /// Where all chance comes from: the same seed and start make the same bytes
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub seed: u64,
    /// The share of readings that is sent twice
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    pub duplicates: f64,
    /// The second copy comes at most this much later
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub duplicates_within: Duration,
    /// The share of readings that is sent late
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub disorder: f64,
    /// By this much at most
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub disorder_within: Duration,
    /// The share of messages that is malformed: garbage, truncated, "ERR" as a value, a field missing
    #[arg(long, value_name = "SHARE", default_value_t = 0.001)]
    pub malformed: f64,
    /// The share of readings beyond their metric's limit
    #[arg(long, value_name = "SHARE", default_value_t = 0.005)]
    pub beyond: f64,
    /// Plant a fault every so often (event time): a spike, a silence, a skewed clock, a stuck value, a drift, in turn
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub fault_every: Option<Duration>,
    /// One message with all metrics of a sensor, instead of one per reading
    #[arg(long)]
    pub wide: bool,
    /// A sensor measures one of the metrics, which take turns, instead of all of them
    #[arg(long, conflicts_with = "wide")]
    pub one_metric: bool,
    /// This share of the messages is the first sensor's alone: a hot key
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub hot: f64,
    /// Messages have no key and go to the partitions in turn, instead of all of a sensor's to one
    #[arg(long)]
    pub unkeyed: bool,
    /// Write down what was sent, as JSON
    #[arg(long, value_name = "FILE")]
    pub truth: Option<PathBuf>,
    /// The truth counts the readings of every series, too
    #[arg(long, requires = "truth")]
    pub truth_series: bool,
    /// The truth tells what is late with this `event_time.allowed_lateness`
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub allowed_lateness: Duration,
    /// The truth tells what is a duplicate with this `dedup.window`
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub dedup_window: Duration,
}

/// What records' time stamps say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Timestamps {
    /// When they are sent.
    Now,
    /// When they were sent by the plant's time; the event time in a data set.
    Event,
}

/// What to print at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SummaryFormat {
    /// One line for people.
    Text,
    /// One JSON object.
    Json,
}

/// Readings a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// So many.
    PerSecond(u64),
    /// As fast as it goes.
    Max,
}

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.replace([',', '_'], "").parse() {
            _ if text == "max" => Ok(Self::Max),
            Ok(n) if n > 0 => Ok(Self::PerSecond(n)),
            _ => Err(format!("write a whole number above 0, or `max`, not `{text}`")),
        }
    }
}

fn property(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write key=value")?;
    Ok((key.trim().into(), value.into()))
}
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("write a duration with its unit, such as 15s or 2m, not `{text}`");
    text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok()).ok_or_else(wrong)
}
fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [one] if one.is_ascii() => Ok(*one),
        _ if text == "\\t" => Ok(b'\t'),
        _ => Err("write one ASCII character, or \\t".into()),
    }
}
fn metric(text: &str) -> Result<Metric, String> {
    let known = || Metric::SIX.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
    Metric::named(text).ok_or_else(|| format!("there are {}, vibration", known()))
}
pub(crate) fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl PlantArgs {
    /// The plant, and whether it goes at the wall clock's pace. `now_ms` is now.
    pub fn plant(&self, partitions: u32, now_ms: i64) -> Result<(Plant, bool), Failure> {
        let metrics = if self.metrics.is_empty() { Metric::SIX.to_vec() } else { self.metrics.clone() };
        let default = if self.readings.is_some() { Rate::Max } else { Rate::PerSecond(1_000) };
        let (rate, paced) = match (self.rate.unwrap_or(default), self.interval) {
            (Rate::PerSecond(_), Some(_)) => {
                let message = "--interval goes with --rate max; at a given rate it follows from the number of sensors";
                return Err(Failure::configuration(message));
            }
            (Rate::PerSecond(rate), None) => (rate, true),
            (Rate::Max, interval) => {
                let ms = interval.map_or(1_000, millis).max(1) as u64;
                let series = u64::from(self.sensors) * if self.one_metric { 1 } else { metrics.len() as u64 };
                ((series * 1_000 / ms).max(1), false)
            }
        };
        let share = |share, within| Share { share, within_ms: millis(within) };
        let mut plant = Plant {
            seed: self.seed,
            sensors: self.sensors,
            metrics,
            readings: self.readings,
            rate,
            start_ms: now_ms,
            partitions,
            duplicates: share(self.duplicates, self.duplicates_within),
            disorder: share(self.disorder, self.disorder_within),
            malformed: self.malformed,
            beyond: self.beyond,
            wide: self.wide,
            one_metric: self.one_metric,
            hot: self.hot,
            unkeyed: self.unkeyed,
            faults: self.fault_every.map(|every| FaultPlan {
                first_after_ms: millis(every),
                every_ms: millis(every),
                kinds: FaultKind::PLANTED.to_vec(),
            }),
            judged: JudgedBy {
                allowed_lateness_ms: millis(self.allowed_lateness),
                dedup_window_ms: millis(self.dedup_window),
            },
            per_series: self.truth_series,
        };
        plant.check().map_err(Failure::configuration)?;
        match (self.start, plant.span_ms()) {
            (Some(start), _) => plant.start_ms = start.as_millisecond(),
            (None, Some(span)) if !paced => plant.start_ms -= span,
            _ => {}
        }
        Ok((plant, paced))
    }
}

/// What `--summary json` prints.
#[derive(Debug, Serialize)]
struct Summary {
    records: u64,
    bytes: u64,
    failed: u64,
    seconds: f64,
    /// Of a simulation.
    #[serde(skip_serializing_if = "Option::is_none")]
    truth: Option<Brief>,
    /// Rows of a data set that could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<u64>,
}

/// The truth without its lists.
#[derive(Debug, Serialize)]
struct Brief {
    readings: u64,
    unique: u64,
    duplicates: u64,
    out_of_order: u64,
    malformed: u64,
    faults: usize,
}

/// Fills the topic, and prints a line about it.
pub fn run(args: &Args) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    let clock: Arc<dyn Clock> = Arc::new(RealClock::default());
    // Whatever can be wrong here is found before anything is sent.
    let mut properties = Vec::new();
    properties.extend(args.linger_ms.map(|ms| ("linger.ms".to_owned(), ms.to_string())));
    properties.extend(args.compression.clone().map(|codec| ("compression.type".to_owned(), codec)));
    properties.extend(args.properties.iter().cloned());
    let rows = match &args.file.from {
        Some(path) => {
            let file = &args.file;
            let (time, key) = (file.time_column.clone(), file.key_column.clone());
            Some((path, Rows::open(path, Columns { time, key, delimiter: file.delimiter })?))
        }
        None => {
            args.plant.plant(1, 0)?;
            if let Some(path) = &args.plant.truth {
                write_truth(path, "")?;
            }
            None
        }
    };
    let target = Target {
        bootstrap_servers: args.bootstrap_servers.clone(),
        topic: args.topic.clone(),
        create_partitions: args.create_partitions,
        properties,
    };
    let sender = Sender::connect(target, stop.clone())?;
    let deadline = args.for_.map(|time| Instant::now() + time);
    let run = Run { sender, stop, deadline, clock, timestamps: args.timestamps };
    let begun = Instant::now();
    let mut summary = match rows {
        Some((path, rows)) => run.file(path, rows, args.file.speed)?,
        None => run.plant(&args.plant)?,
    };
    summary.seconds = begun.elapsed().as_secs_f64();
    match args.summary {
        SummaryFormat::Json => println!("{}", serde_json::to_string(&summary).unwrap_or_default()),
        SummaryFormat::Text => println!("{}", text(&summary, &args.topic)),
    }
    Ok(())
}

fn text(summary: &Summary, topic: &str) -> String {
    let rate = summary.records as f64 / summary.seconds.max(1e-9);
    let mut text = format!(
        "{} records ({:.1} MB) sent to `{topic}` in {:.1} s, {rate:.0}/s",
        summary.records,
        summary.bytes as f64 / 1e6,
        summary.seconds
    );
    if let Some(t) = &summary.truth {
        text += &format!(
            ": {} readings once, {} of them again, {} out of order, {} malformed messages, {} planted faults",
            t.unique, t.duplicates, t.out_of_order, t.malformed, t.faults
        );
    }
    if let Some(skipped) = summary.skipped.filter(|n| *n > 0) {
        text += &format!("; {skipped} rows were left out because they could not be read");
    }
    text
}

fn write_truth(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .map_err(|e| Failure::configuration(format!("cannot write the truth to {}: {e}", path.display())))
}

/// Everything but what is to be sent.
struct Run {
    sender: Sender,
    stop: Arc<AtomicBool>,
    deadline: Option<Instant>,
    clock: Arc<dyn Clock>,
    timestamps: Timestamps,
}

impl Run {
    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.deadline.is_some_and(|d| Instant::now() >= d)
    }
    /// Waits, and looks after deliveries meanwhile. False: it is over.
    fn wait(&self, mut time: Duration) -> bool {
        while !time.is_zero() {
            if self.over() {
                return false;
            }
            let step = time.min(LOOK);
            self.sender.wait(step);
            time -= step;
        }
        true
    }

    fn plant(mut self, args: &PlantArgs) -> Result<Summary, Failure> {
        let now_ms = self.clock.wall_ms() as i64;
        let (plant, paced) = args.plant(self.sender.partitions(), now_ms)?;
        let (readings, start_ms) = (plant.readings, plant.start_ms);
        let mut simulator = Simulator::new(plant).map_err(Failure::configuration)?;
        let speed = if paced { Speed::Times(1.0) } else { Speed::Max };
        let mut pace = Pace::new(speed, self.clock.clone());
        pace.wait(start_ms * 1_000);
        let bar = progress::bar(readings, "readings");
        let mut n = 0u64;
        let mut failed = None;
        while let Some(due_ms) = simulator.next_at() {
            if !self.wait(pace.wait(due_ms.saturating_mul(1_000))) {
                break;
            }
            n += 1;
            if n.is_multiple_of(LOOK_EVERY) || paced {
                if self.over() {
                    break;
                }
                bar.set_position(simulator.truth().unique);
            }
            let Some(m) = simulator.next_message() else { break };
            let timestamp = (self.timestamps == Timestamps::Event).then_some(m.timestamp_ms);
            match self.sender.send(m.partition, m.key, m.payload, timestamp) {
                Ok(true) => {}
                Ok(false) => break,
                Err(failure) => {
                    failed = Some(failure);
                    break;
                }
            }
        }
        bar.finish_and_clear();
        let truth = simulator.into_truth();
        // The truth is worth most when something went wrong.
        if let Some(path) = &args.truth {
            let text = serde_json::to_string_pretty(&truth)
                .map_err(|e| Failure::configuration(format!("the truth cannot be written as JSON: {e}")))?;
            write_truth(path, &(text + "\n"))?;
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
        self.sender.flush()?;
        let sent = self.sender.sent();
        Ok(Summary::new(sent, Some(&truth), None))
    }

    fn file(mut self, path: &Path, mut rows: Rows, speed: Speed) -> Result<Summary, Failure> {
        let bar = progress::bar(std::fs::metadata(path).ok().map(|m| m.len()), "bytes");
        let mut pace = Pace::new(speed, self.clock.clone());
        let partitions = u64::from(self.sender.partitions());
        let mut n = 0u64;
        loop {
            if n.is_multiple_of(LOOK_EVERY) {
                if self.over() {
                    break;
                }
                bar.set_position(rows.position());
            }
            let Some(row) = rows.next_row()? else { break };
            if let Some(time) = row.time
                && !self.wait(pace.wait(time))
            {
                break;
            }
            let partition = row.key.map_or(n, xxh3_64) % partitions;
            let timestamp = row.time.filter(|_| self.timestamps == Timestamps::Event).map(|us| us.div_euclid(1_000));
            if !self.sender.send(partition as u32, row.key, row.payload, timestamp)? {
                break;
            }
            n += 1;
        }
        bar.finish_and_clear();
        if let Some(first) = rows.first_trouble() {
            tracing::warn!(
                skipped = rows.skipped(),
                without_time = rows.untimed(),
                first,
                "some rows are not as expected"
            );
        }
        self.sender.flush()?;
        let sent = self.sender.sent();
        Ok(Summary::new(sent, None, Some(rows.skipped())))
    }
}

impl Summary {
    fn new(sent: Sent, truth: Option<&Truth>, skipped: Option<u64>) -> Self {
        let truth = truth.map(|t| Brief {
            readings: t.readings,
            unique: t.unique,
            duplicates: t.duplicates,
            out_of_order: t.out_of_order,
            malformed: t.malformed.total(),
            faults: t.faults.len(),
        });
        Self { records: sent.records, bytes: sent.bytes, failed: sent.failed, seconds: 0.0, truth, skipped }
    }
}

/// A flag that SIGINT and SIGTERM set; a second one ends the program at once.
pub fn stop_on_signals() -> Result<Arc<AtomicBool>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let failure = |e: std::io::Error| Failure::configuration(format!("cannot listen for signals: {e}"));
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failure)?;
    let (mut int, mut term) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt()).map_err(failure)?, signal(SignalKind::terminate()).map_err(failure)?)
    };
    let flag = stop.clone();
    let listen = move || {
        runtime.block_on(async {
            for again in [false, true] {
                tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
                if again {
                    std::process::exit(130);
                }
                flag.store(true, Ordering::Relaxed);
            }
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(failure)?;
    Ok(stop)
}

#[cfg(test)]
mod tests;
