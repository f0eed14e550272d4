//! `run`: from a configuration and what earlier runs left to a cluster of workers, and to its end.

mod join;
mod start;
mod stop;
mod stretch;
mod watch;
mod world;

use crate::config::{Config, Loaded, Pure};
use crate::crew::{Crew, Threads};
use crate::decode::{DecodeLimits, Decoder};
use crate::error::{Exit, Failure};
use crate::ledger::Counts;
use crate::metrics::Metrics;
use crate::nodes::{Totals, Trip};
use crate::outage::Disk;
use crate::progress::ReadingBar;
use crate::seam::{Clock, Fs, RealClock, RealFs};
use crate::server;
use crate::server::readiness::Readiness;
use crate::sink::{Configured, Destinations, StartError};
use crate::source::node::Progress;
use crate::source::origin::{KafkaOrigin, Origin};
use crate::supervise::control::Control;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use stop::Stopping;
pub use stop::WITHIN as STOPS_WITHIN;
use world::World;

/// How a run begins and ends.
#[derive(Clone, Default)]
pub struct RunOptions {
    /// All processes; 0 or 1 for a single one.
    pub processes: usize,
    /// Which of them this is.
    pub process: usize,
    /// A file with an address per process; none for loopback ports.
    pub hostfile: Option<PathBuf>,
    /// The supervisor that started this process: it knows where the others are.
    pub control: Option<Arc<Control>>,
    /// End when the offsets are reached that were the end at the start.
    pub until_end: bool,
    /// End after so long.
    pub stop_after: Option<Duration>,
    /// Ends the run when it becomes true.
    pub stop: Option<Arc<AtomicBool>>,
    /// Only run the epoch log again; journal and state go to this directory.
    pub replay_into: Option<PathBuf>,
    /// Whether to serve the page, the API and metrics.
    pub serve: bool,
    /// Whether SIGINT and SIGTERM end the run.
    pub signals: bool,
    /// Told, once per epoch, how far each partition has been read.
    pub progress: Option<Progress>,
    /// Shows how far this process has read of what it has to, where it has an end.
    pub bar: Option<ReadingBar>,
    /// Why not to be ready, for whoever runs this within a program of theirs.
    pub readiness: Option<Arc<Readiness>>,
    /// A panic that a test asks for.
    pub trip: Option<Trip>,
    /// How many bytes of state are saved at a time; tests have few of them.
    pub slice: Option<usize>,
    /// Told where the page is, once it is there.
    pub started: Option<Arc<dyn Fn(std::net::SocketAddr) + Send + Sync>>,
}

/// What a run came to. The counts are those of the state: they go on from run to run, and are exact across crashes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Records read.
    pub records: u64,
    /// Readings accepted.
    pub accepted: u64,
    /// Of those, older than their series' clock.
    pub behind: u64,
    /// Duplicates dropped.
    pub duplicates: u64,
    /// Readings too late to be judged.
    pub late: u64,
    /// Readings too new to be judged.
    pub future: u64,
    /// Records and values refused.
    pub dead_letters: u64,
    /// Alert transitions.
    pub alerts: u64,
    /// What went in less what came out, over all partitions: zero.
    pub imbalance: i64,
    /// How long this run took.
    pub seconds: f64,
    /// What it spent.
    pub cpu_seconds: f64,
    /// The most memory it held.
    pub peak_rss_mb: f64,
    /// Items that a sink had not taken when we left; they are kept for the next run.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub undelivered: BTreeMap<String, u64>,
}

/// The seams, and what is configured.
pub struct Run {
    /// The configuration.
    pub config: Config,
    /// Its pure part.
    pub pure: Pure,
    /// How to begin and end.
    pub options: RunOptions,
    /// Files.
    pub fs: Arc<dyn Fs>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Sources; of the pure part it is given.
    pub origin: Arc<dyn Origin>,
    /// Where sinks lead.
    pub destinations: Arc<dyn Destinations>,
    /// Who works beside the workers.
    pub crew: Arc<dyn Crew>,
}

/// Runs a configuration on the real world.
pub fn run(loaded: &Loaded, options: RunOptions) -> Result<Summary, Failure> {
    let pure = loaded.pure();
    let Config { sources, .. } = &loaded.config;
    let origin = KafkaOrigin::new(sources, &pure.streams(), loaded.config.divided().ahead)
        .map_err(|e| Failure::configuration(format!("sources: {e}")))?;
    let run = Run {
        config: loaded.config.clone(),
        pure,
        options,
        fs: crate::failpoint::around(Arc::new(RealFs)),
        clock: Arc::new(RealClock::default()),
        origin: Arc::new(origin),
        destinations: Arc::new(Configured),
        crew: Arc::new(Threads),
    };
    run.go()
}

impl Run {
    /// Runs to the end.
    pub fn go(self) -> Result<Summary, Failure> {
        let began = Instant::now();
        let listener = if self.options.serve {
            Some(server::bind(self.config.server.listen, self.options.process)?)
        } else {
            None
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| Failure::unreachable(format!("threads: {e}")))?;
        let metrics = Metrics::new().map_err(|e| Failure::configuration(format!("metrics: {e}")))?;
        let readiness = self.options.readiness.clone().unwrap_or_default();
        let flag = self.options.stop.clone().unwrap_or_default();
        let stopping = Arc::new(Stopping::new(flag, readiness.clone(), runtime.handle().clone()));
        let disk = Disk::new(self.clock.clone(), readiness.clone(), metrics.clone());
        let world = Arc::new(World { run: self, runtime, metrics, readiness, disk, stopping });
        let came = match &world.run.options.replay_into {
            Some(into) => world.replay(into.clone()),
            None => world.live(listener),
        };
        let (totals, alerts, undelivered) = match came {
            Err(Failure { code: Exit::Stopped, message }) => {
                tracing::warn!("{message}");
                Default::default()
            }
            came => came?,
        };
        let mut summary = summary(&totals, alerts);
        summary.undelivered = undelivered;
        summary.seconds = began.elapsed().as_secs_f64();
        (summary.cpu_seconds, summary.peak_rss_mb) = usage();
        Ok(summary)
    }
}

fn summary(totals: &Totals, alerts: u64) -> Summary {
    let mut sum = Counts::default();
    totals.values().for_each(|counts| sum += *counts);
    Summary {
        records: sum.records,
        accepted: sum.accepted,
        behind: sum.behind,
        duplicates: sum.duplicates,
        late: sum.late,
        future: sum.future,
        dead_letters: sum.dead_lettered + sum.dead_lettered_values,
        alerts,
        imbalance: totals.values().map(|c| c.records_imbalance().abs() + c.readings_imbalance().abs()).sum(),
        ..Summary::default()
    }
}

/// CPU seconds and the peak of resident memory of this process.
fn usage() -> (f64, f64) {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    getrusage(UsageWho::RUSAGE_SELF).map_or((0.0, 0.0), |usage| {
        let cpu = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        // ru_maxrss would begin with what the parent held when it forked.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let peak =
            status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
        (cpu as f64 / 1e6, peak.unwrap_or(usage.max_rss() as f64) / 1024.0)
    })
}

/// Whether state can be kept there; `check` asks the same.
pub fn look_at_data_dir(fs: &dyn Fs, dir: &std::path::Path) -> Result<(), Failure> {
    let looked = crate::sink::look_at_dir(fs, dir);
    looked.map(drop).map_err(|error| {
        let failure = start_failure(error);
        Failure { message: format!("data_dir: {}", failure.message), ..failure }
    })
}

fn cannot_start(source: &str, error: crate::source::SourceError) -> Failure {
    match error {
        crate::source::SourceError::Unavailable(why) => Failure::unreachable(format!("sources.{source}: {why}")),
        crate::source::SourceError::Fatal(why) => Failure::configuration(format!("sources.{source}: {why}")),
    }
}

fn start_failure(error: StartError) -> Failure {
    match error {
        StartError::Unreachable(why) | StartError::Denied(why) => Failure::unreachable(why),
        StartError::Settings(why) => Failure::configuration(why),
        StartError::Io(why) => Failure::configuration(why),
        StartError::Corrupt(why) | StartError::Foreign(why) => Failure::state(why),
    }
}

/// A decoder for each stream.
pub fn decoders(pure: &Pure) -> Result<Vec<Decoder>, String> {
    let limits = DecodeLimits { max_record_bytes: pure.limits.max_record_bytes.bytes() as usize };
    let of = |(source, _): &(String, String)| {
        let settings = pure.sources.get(source).ok_or_else(|| format!("no source `{source}`"))?;
        Decoder::new(&settings.decode, limits, pure.dedup.key).map_err(|e| format!("sources.{source}.decode: {e}"))
    };
    pure.streams().iter().map(of).collect()
}
