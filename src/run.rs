//! `run`: from a configuration and what earlier runs left to a cluster of workers, and to its end.

use crate::checkpoint::{self, Expected, Restored};
use crate::checkpointer::Checkpointer;
use crate::config::{Config, Durability as DurabilitySetting, Loaded, Pure};
use crate::dataflow::{self, Logic, Parts};
use crate::dead_lane::{self, DeadLetterLane};
use crate::dead_letters::{self, DeadLetters, Position as DeadPosition};
use crate::decode::{DecodeLimits, Decoder};
use crate::epoch_log::{self, Control, Durability, EpochLog, Header, LOG_VERSION};
use crate::error::Failure;
use crate::ledger::Counts;
use crate::metrics::Metrics;
use crate::nodes::{Common, Totals};
use crate::plan::{self, Layout, Plan};
use crate::process::{EpochClock, Shared};
use crate::seam::{Clock, Fs, RealClock, RealFs, replace};
use crate::server::readiness::{Readiness, reason};
use crate::server::status::Process as ProcessStatus;
use crate::server::views_api::{Views as ViewClients, WorkerView};
use crate::server::{self, ServerState};
use crate::sink::{LaneContext, Lanes, StartError};
use crate::source::node::{Progress, SourceWorker};
use crate::source::origin::{KafkaOrigin, Origin};
use crate::source::replay::Line;
use crossbeam_channel::{Receiver, Sender, unbounded};
use operators::keyed::Cuts;
use operators::{Epoch, Stream};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use timely::dataflow::operators::probe::Handle as Probe;
use timely::worker::Worker;

/// How a run begins and ends.
#[derive(Clone, Default)]
pub struct RunOptions {
    /// All processes; 0 or 1 for a single one.
    pub processes: usize,
    /// Which of them this is.
    pub process: usize,
    /// A file with an address per process; none for loopback ports.
    pub hostfile: Option<PathBuf>,
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
}

/// Runs a configuration on the real world.
pub fn run(loaded: &Loaded, options: RunOptions) -> Result<Summary, Failure> {
    let pure = loaded.pure();
    let origin = KafkaOrigin::new(&loaded.config.sources, &pure.streams())
        .map_err(|e| Failure::configuration(format!("sources: {e}")))?;
    let run = Run {
        config: loaded.config.clone(),
        pure,
        options,
        fs: Arc::new(RealFs),
        clock: Arc::new(RealClock::default()),
        origin: Arc::new(origin),
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
        let world = Arc::new(World { run: self, runtime, metrics, readiness: Arc::new(Readiness::default()) });
        let (totals, alerts, undelivered) = match &world.run.options.replay_into {
            Some(into) => world.replay(into.clone())?,
            None => world.live(listener)?,
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

struct World {
    run: Run,
    runtime: tokio::runtime::Runtime,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
}

/// Totals, alert transitions, what sinks had not taken.
type Result3 = (Totals, u64, BTreeMap<String, u64>);

/// A stretch with one configuration: what a cluster of workers runs.
struct Stretch {
    world: Arc<World>,
    layout: Layout,
    plan: OnceLock<Plan>,
    pure: Pure,
    /// Workers of each process; processes; this process.
    workers: usize,
    processes: usize,
    process: usize,
    sinks: BTreeMap<String, crate::config::SinkSettings>,
    started: OnceLock<Result<Arc<Started>, Failure>>,
    listener: Mutex<Option<std::net::TcpListener>>,
}

/// What the workers of this process use together, once the plan is known.
struct Started {
    shared: Arc<Shared>,
    logic: Logic,
    restored: Option<Arc<Restored>>,
    decoders: Vec<Decoder>,
    pieces: Sender<(Epoch, crate::checkpoint::Piece)>,
    lanes: Arc<RwLock<Option<Lanes>>>,
    lane_handle: crate::sink::LaneHandle,
    dead: DeadLetterLane,
    threads: Mutex<Vec<JoinHandle<()>>>,
    last_checkpoint: Receiver<()>,
    totals: (Sender<Totals>, Receiver<Totals>),
    clients: Arc<ViewClients>,
    cuts: Cuts,
}

impl World {
    fn config_text(&self, layout: &Layout, hash: &str) -> Result<Pure, Failure> {
        let path = layout.configs.join(format!("{hash}.toml"));
        let text = self.run.fs.read(&path).map_err(|e| {
            Failure::state(format!("{}: {e}; the epoch log needs the configuration that was in force", path.display()))
        })?;
        let text = String::from_utf8(text).map_err(|e| Failure::state(format!("{}: {e}", path.display())))?;
        Pure::parse(&text).map_err(|e| Failure::state(format!("{}: {e}", path.display())))
    }

    fn record_config(&self, layout: &Layout) -> Result<String, Failure> {
        let hash = self.run.pure.hash();
        let path = layout.configs.join(format!("{hash}.toml"));
        let written = self.run.fs.create_dir(&layout.configs).and_then(|()| {
            if self.run.fs.exists(&path) {
                Ok(())
            } else {
                replace(&*self.run.fs, &path, self.run.pure.text().as_bytes())
            }
        });
        written.map_err(|e| {
            Failure::configuration(format!("data_dir: {}: {e}; choose a folder this user may write to", path.display()))
        })?;
        Ok(hash)
    }

    /// What can stop a start is asked before anything is written down: a run that cannot begin leaves nothing behind.
    fn look_first(&self) -> Result<(), Failure> {
        look_at_data_dir(&*self.run.fs, &self.run.config.data_dir)?;
        for (stream, (source, _)) in (0..).zip(&self.run.pure.streams()) {
            self.run.origin.partitions(stream).map_err(|error| cannot_start(source, error))?;
        }
        for (name, sink) in &self.run.config.sinks {
            crate::sink::verify(sink, self.runtime.handle()).map_err(|error| {
                let Failure { code, message } = start_failure(error);
                Failure { code, message: format!("sinks.{name}: {message}") }
            })?;
        }
        Ok(())
    }

    /// Terms that ran with another configuration are replayed with it, by this process alone; then everything goes on
    /// from a checkpoint at their end.
    fn live(self: &Arc<Self>, listener: Option<std::net::TcpListener>) -> Result<Result3, Failure> {
        self.look_first()?;
        let layout = Layout::new(self.run.config.data_dir.clone());
        let mut listener = listener;
        if self.run.options.process == 0 {
            let hash = self.record_config(&layout)?;
            loop {
                let past = plan::past(&*self.run.fs, &layout)?;
                let changed = past.terms.iter().any(|t| t.header.config != hash);
                let Some(old) = past.terms.first().map(|t| t.header.config.clone()).filter(|_| changed) else {
                    let plan = self.plan_live(&layout, past, hash)?;
                    return self.stretch(layout, Some(plan), self.run.pure.clone(), listener.take())?.go();
                };
                tracing::info!(config = old, "what an earlier configuration began is finished with it first");
                let pure = self.config_text(&layout, &old)?;
                let mut plan = self.plan_replay(past, &old, &pure)?;
                // Files of this stretch have a term of their own: nothing of the old one is written over.
                plan.lane_term = plan.newest_term + 1;
                self.make_term(&layout, plan.lane_term)?;
                self.stretch(layout.clone(), Some(plan), pure, None)?.go()?;
            }
        }
        self.stretch(layout, None, self.run.pure.clone(), listener)?.go()
    }

    /// Runs the whole epoch log again, configuration by configuration, into another directory.
    fn replay(self: &Arc<Self>, into: PathBuf) -> Result<Result3, Failure> {
        let layout = Layout::new(self.run.config.data_dir.clone()).replaying_into(into);
        if self.run.fs.exists(&layout.checkpoints) {
            return Err(Failure::configuration(format!(
                "{} holds the state of another run; replay into an empty folder",
                layout.data.display()
            )));
        }
        let mut result = (Totals::new(), 0, BTreeMap::new());
        loop {
            let past = plan::past(&*self.run.fs, &layout)?;
            let Some(config) = past.terms.first().map(|t| t.header.config.clone()) else {
                return if past.restored.is_some() {
                    Ok(result)
                } else {
                    Err(Failure::configuration(format!("{} holds no epoch log to replay", layout.logs.display())))
                };
            };
            let first = epoch_log::terms(&*self.run.fs, &layout.logs).map_err(|e| Failure::state(format!("{e:#}")))?;
            // Its folder is enough: a term may have ended before it logged anything.
            if past.restored.is_none() && first.first() != Some(&1) {
                return Err(Failure::state("the epoch log's first term is gone (epochs.retention); a replay needs it"));
            }
            let pure = self.config_text(&layout, &config)?;
            let plan = self.plan_replay(past, &config, &pure)?;
            result = self.stretch(layout.clone(), Some(plan), pure, None)?.go()?;
        }
    }

    /// A plan that only reads again: the leading terms with this configuration.
    fn plan_replay(&self, past: plan::Past, config: &str, pure: &Pure) -> Result<Plan, Failure> {
        let mut terms = past.terms;
        let same = terms.iter().take_while(|t| t.header.config == config).count();
        terms.truncate(same);
        let streams = pure.streams();
        let term = terms.last().map_or(0, |t| t.term);
        let positions = past.restored.as_ref().map_or_else(Vec::new, |r| plan::positions(r, &streams));
        let script = plan::script(&terms, &streams)?;
        let positions = with_new_partitions(from_headers(positions, &terms, &streams), &script, &*self.run.origin)?;
        Ok(Plan {
            term,
            lane_term: term,
            newest_term: past.newest_term,
            carried: Vec::new(),
            config: config.to_owned(),
            checkpoint: past.restored.map(|r| r.dir),
            streams,
            script,
            live: false,
            floor: past.floor,
            positions,
            ends: BTreeMap::new(),
        })
    }

    /// The first to make a term's directory has the term.
    fn make_term(&self, layout: &Layout, term: u64) -> Result<(), Failure> {
        let fs = &self.run.fs;
        let made =
            fs.create_dir(&layout.logs).and_then(|()| fs.create_dir_new(&epoch_log::term_dir(&layout.logs, term)));
        made.map_err(|e| Failure::state(format!("term {term}: {e}; does another streamgauge use this data_dir?")))
    }

    /// A plan that reads again what is left, and goes on.
    fn plan_live(&self, layout: &Layout, past: plan::Past, config: String) -> Result<Plan, Failure> {
        let (fs, origin) = (&*self.run.fs, &*self.run.origin);
        let streams = self.run.pure.streams();
        let term = past.newest_term + 1;
        let positions = past.restored.as_ref().map_or_else(Vec::new, |r| plan::positions(r, &streams));
        let mut positions = from_headers(positions, &past.terms, &streams);
        let mut ends = BTreeMap::new();
        for (stream, (source, topic)) in (0..).zip(&streams) {
            let cannot = |error| cannot_start(source, error);
            let known =
                past.restored.as_ref().is_some_and(|r| r.positions().any(|p| p.source == *source && p.topic == *topic));
            for partition in 0..origin.partitions(stream).map_err(cannot)? {
                let (low, high) = origin.watermarks(stream, partition).map_err(cannot)?;
                ends.insert(format!("{stream}/{partition}"), high);
                match positions.iter().find(|(s, p, _, _)| (*s, *p) == (stream, partition)) {
                    Some((_, _, next, _)) if *next < low => {
                        return Err(Failure::state(format!(
                            "{topic}/{partition}: records from {next} to {low} were removed before they were read; \
                             lengthen the topic's retention. To go on without them, move {} away",
                            layout.data.display()
                        )));
                    }
                    Some((_, _, next, _)) if *next > high => {
                        return Err(Failure::state(format!(
                            "{topic}/{partition} ends at {high}, but {next} was read before; the topic was made anew. To \
                             begin anew, move {} away",
                            layout.data.display()
                        )));
                    }
                    Some(_) => {}
                    // "Start at the end" is resolved once; a partition that is new since is read from its beginning.
                    None if !known && origin.begins_at_end(stream) => positions.push((stream, partition, high, None)),
                    None => positions.push((stream, partition, low, None)),
                }
            }
        }
        self.make_term(layout, term)?;
        if past.restored.is_none() {
            plan::write_first(fs, layout, term, &config, &streams, &positions)
                .map_err(|e| Failure::state(format!("checkpoint 0: {e:#}")))?;
        }
        let script = plan::script(&past.terms, &streams)?;
        let carried = past.restored.as_ref().map_or_else(Vec::new, |r| plan::unknown_positions(r, &streams));
        Ok(Plan {
            term,
            lane_term: term,
            newest_term: past.newest_term,
            carried,
            config,
            checkpoint: past.restored.map(|r| r.dir),
            streams,
            script,
            live: true,
            floor: past.floor,
            positions,
            ends,
        })
    }

    fn stretch(
        self: &Arc<Self>,
        layout: Layout,
        plan: Option<Plan>,
        pure: Pure,
        listener: Option<std::net::TcpListener>,
    ) -> Result<Arc<Stretch>, Failure> {
        let options = &self.run.options;
        let alone = plan.as_ref().is_some_and(|p| !p.live);
        let sinks = if options.replay_into.is_some() { BTreeMap::new() } else { self.run.config.sinks.clone() };
        Ok(Arc::new(Stretch {
            world: self.clone(),
            layout,
            plan: plan.map_or_else(OnceLock::new, OnceLock::from),
            pure,
            workers: self.run.config.workers,
            processes: if alone { 1 } else { options.processes.max(1) },
            process: if alone { 0 } else { options.process },
            sinks,
            started: OnceLock::new(),
            listener: Mutex::new(listener),
        }))
    }
}

/// Where a partition that the checkpoint does not know stood when a later term began: the term's header says so.
fn from_headers(
    mut positions: Vec<plan::Start>,
    terms: &[epoch_log::TermLog],
    streams: &[(String, String)],
) -> Vec<plan::Start> {
    for log in terms {
        for (number, partition, next) in &log.header.positions {
            let name = log.header.streams.get(usize::from(*number));
            let Some(stream) = name.and_then(|name| streams.iter().position(|s| s == name)) else { continue };
            if !positions.iter().any(|(s, p, _, _)| (usize::from(*s), *p) == (stream, *partition)) {
                positions.push((stream as Stream, *partition, *next, None));
            }
        }
    }
    positions
}

/// Partitions that appear in the script but not in the positions were new then: they begin at their first record.
fn with_new_partitions(
    mut positions: Vec<plan::Start>,
    script: &[(Epoch, Line)],
    origin: &dyn Origin,
) -> Result<Vec<plan::Start>, Failure> {
    for (_, line) in script {
        if let Line::Range(range) = line
            && !positions.iter().any(|(s, p, _, _)| (*s, *p) == (range.stream, range.partition))
        {
            let (low, _) = origin.watermarks(range.stream, range.partition).map_err(|e| Failure::source(&e))?;
            positions.push((range.stream, range.partition, low, None));
        }
    }
    Ok(positions)
}

impl Stretch {
    fn go(self: Arc<Self>) -> Result<Result3, Failure> {
        let config = timely::Config { communication: self.communication()?, worker: timely::WorkerConfig::default() };
        let this = self.clone();
        let guards = timely::execute(config, move |worker| this.worker(worker))
            .map_err(|e| Failure::unreachable(format!("the other processes: {e}")))?;
        let mut failure = None;
        for result in guards.join() {
            match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    failure.get_or_insert(error);
                }
                Err(panic) => {
                    failure.get_or_insert(Failure::state(format!("a worker panicked: {panic}")));
                }
            }
        }
        match self.started.get() {
            Some(Ok(started)) => self.finish(started, failure),
            Some(Err(error)) => Err(error.clone()),
            None => Err(failure.unwrap_or_else(|| Failure::state("no worker started"))),
        }
    }

    fn communication(&self) -> Result<timely::CommunicationConfig, Failure> {
        if self.processes > 1 {
            let addresses = match &self.world.run.options.hostfile {
                Some(path) => {
                    let text = std::fs::read_to_string(path)
                        .map_err(|e| Failure::configuration(format!("--hostfile {}: {e}", path.display())))?;
                    text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect()
                }
                None => (0..self.processes).map(|p| format!("127.0.0.1:{}", 2101 + p)).collect::<Vec<_>>(),
            };
            if addresses.len() < self.processes {
                return Err(Failure::configuration(format!(
                    "--hostfile names {} addresses, but there are {} processes; write one line for each",
                    addresses.len(),
                    self.processes
                )));
            }
            return Ok(timely::CommunicationConfig::Cluster {
                threads: self.workers,
                process: self.process,
                addresses: addresses.into_iter().take(self.processes).collect(),
                report: false,
                zerocopy: false,
            });
        }
        Ok(match self.workers {
            1 => timely::CommunicationConfig::Thread,
            workers => timely::CommunicationConfig::Process(workers),
        })
    }

    /// A worker's whole life.
    fn worker(self: &Arc<Self>, worker: &mut Worker) -> Result<(), Failure> {
        let plan = self.agree(worker)?;
        let local = worker.index() % self.workers;
        let started = match self.started.get_or_init(|| self.start(&plan, worker.peers())) {
            Ok(started) => started.clone(),
            Err(error) => return Err(error.clone()),
        };
        let _guard = PanicGuard(started.shared.clone());
        let built = self.build(worker, &plan, &started, local);
        let (mut views, probe) = match built {
            Ok(built) => built,
            Err(error) => {
                started.shared.fail(error.clone());
                leave(worker);
                return Err(error);
            }
        };
        let waker = worker.sync_activator_for(Vec::new());
        let (client, requests) = WorkerView::new(Arc::new(move || {
            let _ = waker.activate();
        }));
        started.clients.attach(client);
        let mut figures = Figures::new(
            local == 0,
            (self.world.run.config.epochs.tick.us() / 1000).max(1) as u64,
            started.shared.clone(),
            self.world.metrics.clone(),
        );
        while worker.has_dataflows() {
            if started.shared.failed() {
                leave(worker);
                break;
            }
            worker.step_or_park(Some(Duration::from_millis(100)));
            let frontier = probe.with_frontier(|f| f.first().copied());
            if let Some(frontier) = frontier {
                views.compact(frontier);
            }
            while let Ok(request) = requests.try_recv() {
                let _ = request.reply.send(views.answer(&request.query));
            }
            figures.step(frontier);
        }
        Ok(())
    }

    /// Everyone gets the plan that process 0 made.
    fn agree(&self, worker: &mut Worker) -> Result<Plan, Failure> {
        use timely::dataflow::operators::vec::Broadcast;
        use timely::dataflow::operators::{Input, Inspect, Probe as _};
        if let (Some(plan), 1) = (self.plan.get(), self.processes) {
            return Ok(plan.clone());
        }
        let got: Rc<std::cell::RefCell<Option<String>>> = Rc::default();
        let seen = got.clone();
        let (mut input, probe) = worker.dataflow::<u64, _, _>(|scope| {
            let (input, stream) = scope.new_input::<Vec<String>>();
            let (probe, _) =
                stream.broadcast().inspect(move |text: &String| *seen.borrow_mut() = Some(text.clone())).probe();
            (input, probe)
        });
        if worker.index() == 0
            && let Some(plan) = self.plan.get()
        {
            input.send(serde_json::to_string(plan).map_err(|e| Failure::state(format!("plan: {e}")))?);
        }
        input.close();
        while !probe.done() {
            worker.step_or_park(Some(Duration::from_millis(100)));
        }
        let text = got.borrow_mut().take().ok_or_else(|| Failure::state("no plan came from process 0"))?;
        serde_json::from_str(&text).map_err(|e| Failure::state(format!("plan: {e}; do all processes run one version?")))
    }

    /// Starts what the workers of this process share.
    fn start(self: &Arc<Self>, plan: &Plan, peers: usize) -> Result<Arc<Started>, Failure> {
        let world = &self.world;
        let run = &world.run;
        let fs = run.fs.clone();
        let state = |e: &dyn std::fmt::Display| Failure::state(e.to_string());
        if plan.config != self.pure.hash() {
            return Err(Failure::configuration(
                "the processes have different configurations; give all of them the same",
            ));
        }
        let restored = match &plan.checkpoint {
            Some(dir) => Some(Arc::new(checkpoint::load(&*fs, dir).map_err(|e| state(&format!("{e:#}")))?)),
            None => None,
        };
        let streams = Arc::new(plan.streams.clone());
        let logic = Logic::new(&self.pure);
        let decoders = decoders(&self.pure).map_err(Failure::configuration)?;
        let tick_us = run.config.epochs.tick.us().max(1000) as u64;
        let epochs = EpochClock::start(run.clock.clone(), tick_us, plan.floor);
        let log = if plan.live {
            let header = Header {
                version: LOG_VERSION,
                term: plan.term,
                process: self.process as u32,
                processes: self.processes as u32,
                peers: peers as u32,
                config: plan.config.clone(),
                streams: plan.streams.clone(),
                positions: plan.positions.iter().map(|(s, p, next, _)| (*s, *p, *next)).collect(),
            };
            let durability = match run.config.epochs.durability {
                DurabilitySetting::Process => Durability::Process,
                DurabilitySetting::Disk => Durability::Disk,
            };
            Some(
                EpochLog::create(fs.clone(), &self.layout.logs, header, durability)
                    .map_err(|e| state(&format!("{e:#}")))?,
            )
        } else {
            None
        };
        let stop = run.options.stop.clone().unwrap_or_default();
        let shared = Arc::new(Shared::new(epochs, log.clone(), self.workers, stop));
        let (pieces, received) = unbounded();
        let (lane_states, lane_cuts) = unbounded::<crate::sink::LaneState>();

        let lanes_of = |name: &str| {
            restored
                .iter()
                .flat_map(|r| &r.processes)
                .flat_map(|(meta, _)| &meta.lanes)
                .filter(|l| (l["sink"] == dead_lane::NAME) == (name == dead_lane::NAME))
                .cloned()
                .collect::<Vec<_>>()
        };
        let mut dead_state = None;
        for lane in lanes_of(dead_lane::NAME) {
            let lane: dead_lane::State =
                serde_json::from_value(lane).map_err(|e| state(&format!("checkpoint: dead letters: {e}")))?;
            if lane.process == self.process {
                dead_state = Some(lane);
            } else if self.process == 0 && lane.process >= self.processes {
                // What a process that is no more wrote after the cut is written again, by others.
                let dir = self.layout.data.join("dead-letters");
                dead_letters::cut_back(&*fs, &dir, lane.process, lane.position)
                    .map_err(|e| state(&format!("dead letters: {e}")))?;
            }
        }
        let first_checkpoint = restored.as_ref().is_some_and(|r| r.manifest.cut == 0);
        let store = DeadLetters::open(
            fs.clone(),
            &self.layout.data.join("dead-letters"),
            self.process,
            // Checkpoint 0 holds no lanes: what was written after it is written again.
            dead_state.map(|s| s.position).or_else(|| first_checkpoint.then(DeadPosition::default)),
            world.metrics.clone(),
        )
        .map_err(|e| state(&format!("dead letters: {e}")))?;
        let (dead, dead_thread) =
            dead_lane::start(store, (self.process, self.workers), streams.clone(), pieces.clone(), shared.clone());

        let others: Result<Vec<crate::sink::LaneState>, _> =
            lanes_of("").into_iter().map(serde_json::from_value).collect();
        let inventory = self.pure.inventory.clone();
        let shed_to = (fs.clone(), self.layout.data.join("shed"), Mutex::new(()));
        let context = LaneContext {
            fs: fs.clone(),
            clock: run.clock.clone(),
            dir: self.layout.data.join("lanes"),
            term: plan.lane_term,
            process: self.process,
            processes: self.processes,
            workers: self.workers,
            metrics: world.metrics.clone(),
            cuts: lane_states,
            labels: Arc::new(move |sensor: &str, label: &str| inventory.get(sensor)?.get(label).cloned()),
            shed: Arc::new(move |sink: &str, shed: crate::sink::Shed| {
                let (fs, dir, one_at_a_time) = &shed_to;
                let _guard = one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = set_aside(&**fs, dir, sink, &shed) {
                    tracing::error!(sink, %error, "what a full lane shed cannot be written down, and is lost");
                }
            }),
        };
        let others = others.map_err(|e| state(&format!("checkpoint: lanes: {e}")))?;
        let lanes = Lanes::open(&self.sinks, context, others, world.runtime.handle()).map_err(start_failure)?;
        let lane_handle = lanes.handle();

        let per_worker = 4 * self.workers;
        let of_first = if self.process == 0 { 3 } else { 0 };
        let sinks = lanes.sinks().len();
        let expected = Expected { pieces: per_worker + of_first + sinks + 1 };
        let mut threads = vec![dead_thread, self.relay(lane_cuts, pieces.clone())];
        let cuts = Cuts {
            interval: if plan.live { (run.config.checkpoint.interval.us() / 1000) as u64 } else { u64::MAX },
            after: plan.script.last().map_or(plan.floor, |(epoch, _)| *epoch).max(plan.floor),
        };
        let lanes = Arc::new(RwLock::new(Some(lanes)));
        let committed = lanes.clone();
        let checkpointer = Checkpointer {
            fs: fs.clone(),
            clock: run.clock.clone(),
            dir: self.layout.checkpoints.clone(),
            logs: (plan.live && self.process == 0).then(|| self.layout.logs.clone()),
            retention_ms: (run.config.epochs.retention.us() / 1000) as u64,
            keep: run.config.checkpoint.keep as usize,
            term: plan.term,
            cluster: (self.process, self.processes, peers),
            config: plan.config.clone(),
            expected,
            interval_ms: if plan.live { cuts.interval } else { 0 },
            metrics: world.metrics.clone(),
            readiness: world.readiness.clone(),
            shared: shared.clone(),
            committed: Box::new(move |cut| {
                if let Some(lanes) = &*committed.read().unwrap_or_else(PoisonError::into_inner) {
                    lanes.committed(cut);
                }
            }),
        };
        let (thread, last_checkpoint) = checkpointer.start(received);
        threads.push(thread);
        if let Some(log) = log
            && run.config.epochs.durability == DurabilitySetting::Disk
        {
            let shared = shared.clone();
            threads.push(std::thread::spawn(move || {
                if let Err(error) = log.sync_loop() {
                    shared.fail(Failure::state(format!("epoch log: {error}; make room or give data_dir another disk")));
                }
            }));
        }

        let clients = Arc::new(ViewClients::new(self.workers));
        if plan.live {
            self.serve(&clients, &shared, plan)?;
            self.watch(&streams, &shared, plan);
        }
        Ok(Arc::new(Started {
            shared,
            logic,
            restored,
            decoders,
            pieces,
            lanes,
            lane_handle,
            dead,
            threads: Mutex::new(threads),
            last_checkpoint,
            totals: unbounded(),
            clients,
            cuts,
        }))
    }

    /// Lanes speak of their own states; the checkpointer takes pieces.
    fn relay(
        &self,
        states: Receiver<crate::sink::LaneState>,
        pieces: Sender<(Epoch, crate::checkpoint::Piece)>,
    ) -> JoinHandle<()> {
        std::thread::spawn(move || {
            for state in states {
                let cut = state.cut;
                match serde_json::to_value(state) {
                    Ok(value) => {
                        let _ = pieces.send((cut, crate::checkpoint::Piece::Lane(value)));
                    }
                    Err(error) => tracing::error!(%error, "a lane's state cannot be written down"),
                }
            }
        })
    }

    fn serve(&self, clients: &Arc<ViewClients>, shared: &Arc<Shared>, plan: &Plan) -> Result<(), Failure> {
        let world = &self.world;
        let options = &world.run.options;
        if options.signals || options.stop_after.is_some() {
            let (shared, signals, after) = (shared.clone(), options.signals, options.stop_after);
            let readiness = world.readiness.clone();
            world.runtime.spawn(async move {
                stop_asked(signals, after).await;
                readiness.set(reason::STOPPING, Some("asked to stop".to_owned()));
                shared.stop.store(true, SeqCst);
                if signals {
                    // Asked twice means now: what is not done is done again after the restart.
                    stop_asked(true, None).await;
                    std::process::exit(130);
                }
            });
        }
        let Some(listener) = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        let address = listener.local_addr().map_err(|e| Failure::configuration(format!("server.listen: {e}")))?;
        let state = ServerState {
            metrics: world.metrics.clone(),
            readiness: world.readiness.clone(),
            views: clients.clone(),
            process: ProcessStatus {
                process: self.process,
                processes: self.processes,
                workers: self.workers,
                started_ms: world.run.clock.wall_ms(),
                term: plan.term,
            },
        };
        // Held as long as the server runs: it ends with the runtime.
        let (ends, shutdown) = tokio::sync::watch::channel(false);
        world.runtime.spawn(async move {
            let _ends = ends;
            if let Err(error) = server::serve(listener, state, shutdown).await {
                tracing::error!(%error, "the server ended");
            }
        });
        if let Some(started) = &options.started {
            started(address);
        }
        Ok(())
    }

    /// Watches the clusters: whether they answer, and whether topics have grown.
    fn watch(self: &Arc<Self>, streams: &Arc<Vec<(String, String)>>, shared: &Arc<Shared>, plan: &Plan) {
        let (this, streams, shared) = (Arc::downgrade(self), streams.clone(), Arc::downgrade(shared));
        let mut known: BTreeMap<Stream, u32> = BTreeMap::new();
        for (stream, partition, _, _) in &plan.positions {
            let count = known.entry(*stream).or_default();
            *count = (*count).max(partition + 1);
        }
        std::thread::spawn(move || {
            let mut down: BTreeMap<Stream, bool> = BTreeMap::new();
            loop {
                for (stream, (source, topic)) in (0..).zip(streams.iter()) {
                    let (Some(this), Some(shared)) = (this.upgrade(), shared.upgrade()) else { return };
                    let origin = &this.world.run.origin;
                    let answer = origin.partitions(stream).and_then(|count| {
                        for partition in known.get(&stream).copied().unwrap_or(0)..count {
                            let (first, _) = origin.watermarks(stream, partition)?;
                            shared.discovered.add(stream, partition, first);
                            known.insert(stream, partition + 1);
                        }
                        Ok(())
                    });
                    let (up, why) = match answer {
                        Ok(()) => (true, None),
                        Err(error) => (false, Some(error.to_string())),
                    };
                    origin.set_up(stream, up);
                    this.world.metrics.source_up.with_label_values(&[source]).set(i64::from(up));
                    if down.insert(stream, !up) != Some(!up) {
                        match &why {
                            Some(why) => {
                                shared.hearing.deafen();
                                tracing::warn!(source, topic, why, "source cannot be reached; trying on");
                            }
                            None => tracing::info!(source, topic, "source can be reached"),
                        }
                    }
                    this.world.readiness.set_for(reason::SOURCE_DOWN, source, why);
                }
                let (Some(this), Some(shared)) = (this.upgrade(), shared.upgrade()) else { return };
                this.look_at_ends(&shared, &known);
                drop((this, shared));
                std::thread::sleep(WATCH);
            }
        });
    }

    /// After something kept us from listening: the ends that the partitions have now, asked for after it began.
    fn look_at_ends(&self, shared: &Shared, partitions: &BTreeMap<Stream, u32>) {
        let generation = shared.hearing.generation();
        if generation == shared.ends.generation() {
            return;
        }
        let mut ends = BTreeMap::new();
        for (stream, count) in partitions {
            for partition in 0..*count {
                match self.world.run.origin.watermarks(*stream, partition) {
                    Ok((_, end)) => ends.insert((*stream, partition), end),
                    Err(_) => return,
                };
            }
        }
        shared.ends.publish(generation, ends);
    }

    fn build(
        &self,
        worker: &mut Worker,
        plan: &Plan,
        started: &Arc<Started>,
        local: usize,
    ) -> Result<(crate::views::Views, Probe<Epoch>), Failure> {
        let run = &self.world.run;
        let (index, peers) = (worker.index(), worker.peers());
        let streams = Arc::new(plan.streams.clone());
        let common = Common {
            worker: index,
            local,
            shared: started.shared.clone(),
            metrics: self.world.metrics.clone(),
            pieces: started.pieces.clone(),
            dictionary: Rc::default(),
            streams: streams.clone(),
        };
        // Control lines are worker 0's to send again; ranges belong to whoever has their partition.
        let mine = |line: &Line| match line {
            Line::Control(_) => index == 0,
            Line::Range(range) => range.partition as usize % peers == index,
        };
        let ends = plan.end_map();
        let until = run.options.until_end.then(|| ends.clone());
        let source = SourceWorker {
            worker: index,
            local,
            locals: self.workers,
            peers,
            process: self.process as u32,
            streams,
            decoders: started.decoders.clone(),
            max_clock_skew_us: self.pure.event_time.max_clock_skew.us(),
            script: plan.script.iter().filter(|(_, line)| mine(line)).cloned().collect(),
            live: plan.live,
            until,
            ends,
            positions: plan.positions.clone(),
            cuts: started.cuts,
            begin: if index == 0 { vec![Control::Term { processes: self.processes as u32 }] } else { Vec::new() },
            pieces: started.pieces.clone(),
            progress: run.options.progress.clone(),
            lanes: started.lane_handle.clone(),
            carried: if index == 0 { plan.carried.clone() } else { Vec::new() },
        };
        let parts = Parts {
            common,
            logic: started.logic.clone(),
            source,
            cuts: started.cuts,
            restored: started.restored.clone(),
            lanes: started.lane_handle.clone(),
            dead_letters: started.dead.clone(),
            readiness: self.world.readiness.clone(),
            last_values_ms: (run.config.views.last_values.us() / 1000) as u64,
            totals: started.totals.0.clone(),
        };
        let origin = run.origin.clone();
        self.world.readiness.set(reason::STARTING, None);
        dataflow::build(worker, parts, move |wake| origin.open(wake.into()))
    }

    /// After the workers: everything is delivered, the last checkpoint is written, threads end.
    fn finish(&self, started: &Arc<Started>, failure: Option<Failure>) -> Result<Result3, Failure> {
        let shared = &started.shared;
        if let Some(log) = &shared.log {
            log.close();
        }
        if let Some(failure) = shared.take_failure().or(failure) {
            // What is not written stays unwritten: the next run goes on from the last checkpoint.
            return Err(failure);
        }
        let mut undelivered = BTreeMap::new();
        if let Some(lanes) = &*started.lanes.read().unwrap_or_else(PoisonError::into_inner) {
            undelivered = lanes.drain(DRAIN).left;
            // Another process may still be giving its sinks their time.
            if started.last_checkpoint.recv_timeout(DRAIN + Duration::from_secs(15)).is_err() {
                return Err(shared.take_failure().unwrap_or_else(|| {
                    Failure::state("the last checkpoint was not completed; the next run goes on from the one before")
                }));
            }
        }
        if let Some(lanes) = started.lanes.write().unwrap_or_else(PoisonError::into_inner).take() {
            lanes.close();
        }
        for thread in started.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                return Err(Failure::state("a thread panicked; the next run goes on from the last checkpoint"));
            }
        }
        let totals = started.totals.1.try_iter().next().unwrap_or_default();
        let alerts = crate::nodes::alerts_at_end(&*self.world.run.fs, &self.layout.checkpoints);
        Ok((totals, alerts, undelivered))
    }
}

/// How long sinks have at the end.
const DRAIN: Duration = Duration::from_secs(30);
/// How often the clusters are looked at.
const WATCH: Duration = Duration::from_secs(2);

/// A worker that panics takes the others with it: without it nothing would ever be complete again.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Failure::state("a worker panicked; the next run goes on from the last checkpoint"));
        }
    }
}

/// What a lane with `when_full = "dead_letter"` had no room for: a JSON line each in `data_dir/shed/SINK.jsonl`.
fn set_aside(fs: &dyn Fs, dir: &std::path::Path, sink: &str, shed: &crate::sink::Shed) -> std::io::Result<()> {
    let mut lines = Vec::new();
    match shed {
        crate::sink::Shed::Alerts(alerts) => {
            for entry in &alerts.0.alerts {
                crate::sink::line::write(alerts.0.epoch, entry, &mut lines);
                lines.push(b'\n');
            }
        }
        crate::sink::Shed::Rows(rows) => {
            for row in &rows.batch.rows {
                let (source, topic) = &rows.batch.streams[usize::from(row.stream)];
                let name = rows.names.name(row.series);
                let line = serde_json::json!({
                    "source": source, "topic": topic, "partition": row.partition, "offset": row.offset, "index": row.index,
                    "sensor": name.map(|n| &*n.sensor), "metric": name.map(|n| &*n.metric), "time": row.time,
                    "value": row.value,
                });
                lines.extend(line.to_string().into_bytes());
                lines.push(b'\n');
            }
        }
    }
    fs.create_dir(dir)?;
    let path = dir.join(format!("{sink}.jsonl"));
    let mut file = if fs.exists(&path) { fs.append(&path)? } else { fs.create(&path)? };
    file.write_all(&lines)
}

fn leave(worker: &mut Worker) {
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
}

/// Whether state can be kept there; `check` asks the same.
pub fn look_at_data_dir(fs: &dyn Fs, dir: &std::path::Path) -> Result<(), Failure> {
    let looked = crate::sink::look_at_dir(fs, dir);
    looked.map(drop).map_err(|error| Failure::configuration(format!("data_dir: {error}")))
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
        StartError::Corrupt(why) => Failure::state(why),
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

async fn stop_asked(signals: bool, after: Option<Duration>) {
    use tokio::signal::unix::{SignalKind, signal};
    let interrupt = signal(SignalKind::interrupt());
    let terminate = signal(SignalKind::terminate());
    let asked = async {
        match (signals, interrupt, terminate) {
            (true, Ok(mut interrupt), Ok(mut terminate)) => {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            }
            _ => std::future::pending().await,
        }
    };
    let over = async {
        match after {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! { () = asked => {}, () = over => {} }
}

/// Epochs as Prometheus sees them, by the process' first worker.
struct Figures {
    first: bool,
    tick_ms: u64,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    frontier: Epoch,
}

impl Figures {
    fn new(first: bool, tick_ms: u64, shared: Arc<Shared>, metrics: Arc<Metrics>) -> Self {
        Self { first, tick_ms, shared, metrics, frontier: 0 }
    }

    fn step(&mut self, frontier: Option<Epoch>) {
        let Some(frontier) = frontier.filter(|f| self.first && *f > self.frontier) else { return };
        let now = self.shared.epochs.now();
        if self.frontier > 0 {
            self.metrics.epochs_total.inc();
            self.metrics.epoch_duration_seconds.observe(now.saturating_sub(frontier) as f64 / 1000.0);
        }
        self.frontier = frontier;
        let open = self.shared.epochs.tick(false);
        self.metrics.epochs_in_flight.set((open.saturating_sub(frontier) / self.tick_ms) as i64);
        self.metrics.epoch_lag_seconds.set(now.saturating_sub(frontier) as f64 / 1000.0);
    }
}
