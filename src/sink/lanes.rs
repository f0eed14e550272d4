//! All lanes of a process: opened, pushed to, committed, drained, closed.

use super::driver::{Around, Driver, SheddingOf};
use super::lane::{Event, Lane, Settings};
use super::segment::SegmentError;
use super::*;
use crate::config::{LaneSettings, SinkSettings, Size, WhenFull};
use crate::crew::{Crew, Part, Working, await_seen};
use crate::metrics::Metrics;
use crate::outage::{Disk, what};
use crate::seam::{Clock, Fs, make_dir};
use crossbeam_channel::{Receiver, Sender};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// A label of a sensor in the inventory: (sensor, label) to its value.
pub type Labels = Arc<dyn Fn(&str, &str) -> Option<String> + Send + Sync>;

/// What found no room in a lane with `when_full = "dead_letter"`.
pub enum Shed {
    /// Alerts.
    Alerts(Alerts),
    /// Readings.
    Rows(Rows),
}

/// Takes what a full lane sheds: (sink, what).
pub type Shedding = Arc<dyn Fn(&str, Shed) + Send + Sync>;

/// What lanes need of the process around them.
#[derive(Clone)]
pub struct LaneContext {
    /// Files.
    pub fs: Arc<dyn Fs>,
    /// Time, for back-off and figures.
    pub clock: Arc<dyn Clock>,
    /// Where segment files lie: `lanes` in the data directory; the journal lies beside it.
    pub dir: PathBuf,
    /// This run of the cluster.
    pub term: u64,
    /// The newest epoch that runs before this one have written down; 0 where there were none.
    pub written: Epoch,
    /// What this run makes again though an archive may have shown it.
    pub made_again: MadeAgain,
    /// The sum of what the lanes' `memory` may be.
    pub memory: u64,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// This process; process 0 has the lanes of alerts.
    pub process: usize,
    /// All processes.
    pub processes: usize,
    /// The workers of this process.
    pub workers: usize,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// How the disk of the data directory is doing.
    pub disk: Arc<Disk>,
    /// Who works on lanes.
    pub crew: Arc<dyn Crew>,
    /// Where each lane hands its state at each cut.
    pub cuts: Arc<dyn Fn(LaneState) + Send + Sync>,
    /// Labels of the inventory, for sinks that show them.
    pub labels: Labels,
    /// Takes what a full lane sheds: (sink, what).
    pub shed: Shedding,
}

/// What a drained process could not deliver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// By sink, the entries that still wait; they are kept for the next start. Only sinks with some.
    pub left: BTreeMap<String, u64>,
}

/// What a lane is sent.
pub(super) enum Message<T> {
    Event(Event<T>),
    Close,
}

/// What a lane and its pushers share.
#[derive(Default)]
pub(super) struct Port {
    /// Bytes pushed that the lane has not seen yet.
    pub unseen: AtomicU64,
    /// Whether the lane is full, and reading is to pause then.
    pub full: AtomicBool,
}

struct Sending<T> {
    sender: UnboundedSender<Message<T>>,
    port: Arc<Port>,
    memory: u64,
    pauses: bool,
}

impl<T: Item> Sending<T> {
    fn push(&self, item: T) {
        self.port.unseen.fetch_add(item.bytes(), Relaxed);
        self.send(Message::Event(Event::Push(item)));
    }
    fn send(&self, message: Message<T>) {
        // A lane that is gone has closed, or has panicked: then it counts as full.
        let _ = self.sender.send(message);
    }
    fn full(&self) -> bool {
        self.port.full.load(Relaxed) || (self.pauses && self.port.unseen.load(Relaxed) >= self.memory / 4)
    }
}

#[derive(Default)]
struct Hub {
    alerts: Vec<Sending<Alerts>>,
    rows: Vec<Sending<Rows>>,
    names: Vec<Arc<NameTable>>,
}

/// What workers push to. Never waits.
#[derive(Clone)]
pub struct LaneHandle {
    hub: Arc<Hub>,
}

impl LaneHandle {
    /// All alert transitions of an epoch (worker 0, ascending epochs). Without any there is nothing to push.
    pub fn push_alerts(&self, batch: AlertBatch) {
        if batch.alerts.is_empty() {
            return;
        }
        let batch = Alerts(Arc::new(batch));
        self.hub.alerts.iter().for_each(|lane| lane.push(batch.clone()));
    }
    /// What a worker keeps of an epoch (ascending epochs).
    pub fn push_rows(&self, mut batch: RowBatch) {
        let names = &self.hub.names[batch.worker];
        for (no, name) in batch.names.drain(..) {
            names.set(no, name);
        }
        if batch.rows.is_empty() {
            return;
        }
        let batch = Rows { batch: Arc::new(batch), names: Arc::clone(names) };
        self.hub.rows.iter().for_each(|lane| lane.push(batch.clone()));
    }
    /// The worker has pushed every epoch below this one. (Nothing depends on it yet: batches are whole epochs.)
    pub fn complete(&self, _worker: usize, _epoch: Epoch) {}
    /// The worker has pushed every epoch below the cut, and none at or above it. `u64::MAX` at a clean end.
    pub fn cut(&self, worker: usize, cut: Epoch) {
        self.hub.alerts.iter().for_each(|lane| lane.send(Message::Event(Event::Cut(worker, cut))));
        self.hub.rows.iter().for_each(|lane| lane.send(Message::Event(Event::Cut(worker, cut))));
    }
    /// The worker pushes nothing more.
    pub fn end(&self, worker: usize) {
        self.hub.alerts.iter().for_each(|lane| lane.send(Message::Event(Event::End(worker))));
        self.hub.rows.iter().for_each(|lane| lane.send(Message::Event(Event::End(worker))));
    }
    /// Whether some lane with `when_full = "pause"` is full: reading is to pause.
    pub fn full(&self) -> bool {
        self.hub.alerts.iter().any(Sending::full) || self.hub.rows.iter().any(Sending::full)
    }
    /// Whether some lane takes readings: without one, `push_rows` need not be called.
    pub fn wants_rows(&self) -> bool {
        !self.hub.rows.is_empty()
    }
}

/// The lanes of a process.
pub struct Lanes {
    hub: Arc<Hub>,
    sinks: Vec<String>,
    drained: Receiver<(String, u64)>,
    crew: Arc<dyn Crew>,
    clock: Arc<dyn Clock>,
    working: Vec<Working>,
}

impl Lanes {
    /// Connects and verifies every destination, announces the term there, and starts the lanes with what `restored`
    /// (the lane states of the newest checkpoint, of all processes) kept for this process. Nothing is started unless
    /// everything can be.
    pub fn open(
        destinations: &dyn Destinations,
        sinks: &BTreeMap<String, SinkSettings>,
        ctx: LaneContext,
        restored: Vec<LaneState>,
        runtime: &Handle,
    ) -> Result<Self, StartError> {
        make_dir(&*ctx.fs, &ctx.dir).map_err(|error| {
            let what = format!("{}: {error}; give data_dir a folder that this user may write to", ctx.dir.display());
            StartError::of_disk(what, &error)
        })?;
        let (mine, elsewhere) = divided(restored, ctx.process, ctx.processes);
        let (drained_sender, drained) = crossbeam_channel::unbounded();
        let hub = Hub { names: (0..ctx.workers).map(|_| Arc::default()).collect(), ..Hub::default() };
        let share = Share::new(sinks, &ctx);
        let mut opening = Opening {
            ctx: &ctx,
            mine: &mine,
            elsewhere: Arc::new(elsewhere),
            runtime,
            drained: drained_sender,
            hub,
            share,
            starts: Vec::new(),
        };
        let mut names = Vec::new();

        if ctx.process == 0 {
            if sinks.contains_key(JOURNAL) {
                return Err(StartError::Settings(format!(
                    "sinks.{JOURNAL}: the journal itself has that name; take another"
                )));
            }
            let length = opening.restored(JOURNAL).iter().filter_map(|state| state.length).max().unwrap_or(0);
            let (path, outage) = (ctx.dir.with_file_name("journal.jsonl"), ctx.disk.outage(what::JOURNAL));
            let journal = Journal::new(Arc::clone(&ctx.fs), path, length, outage);
            opening.alerts(JOURNAL, JOURNAL_LANE, journal)?;
            names.push(JOURNAL.to_owned());
        }
        for (name, settings) in sinks {
            if ctx.process != 0 && !settings.wants_rows() {
                continue;
            }
            destinations.open(name, settings, &mut opening)?;
            names.push(name.clone());
        }
        for state in &mine {
            if !names.contains(&state.sink) && (!state.segments.is_empty() || !state.files.is_empty()) {
                let (sink, segments, files) = (&state.sink, state.segments.len(), state.files.len());
                tracing::warn!(
                    sink,
                    segments,
                    files,
                    "sink is no longer configured; what waited for it is not delivered"
                );
            }
        }
        let Opening { hub, starts, .. } = opening;
        let start = |(name, lane): (String, Box<dyn Part>)| ctx.crew.start(&format!("lane {name}"), lane);
        let working = starts.into_iter().map(start).collect::<Result<_, _>>();
        let working = working.map_err(|error| StartError::Io(format!("cannot start a thread: {error}")))?;
        Ok(Self { hub: Arc::new(hub), sinks: names, drained, crew: ctx.crew, clock: ctx.clock, working })
    }

    /// What workers push to.
    pub fn handle(&self) -> LaneHandle {
        LaneHandle { hub: Arc::clone(&self.hub) }
    }

    /// The names of the lanes: each hands over one `LaneState` per cut.
    pub fn sinks(&self) -> &[String] {
        &self.sinks
    }

    /// The checkpoint at this cut is durable: archives are shown, old segment files removed. Does not wait.
    pub fn committed(&self, cut: Epoch) {
        self.hub.alerts.iter().for_each(|lane| lane.send(Message::Event(Event::Committed(cut))));
        self.hub.rows.iter().for_each(|lane| lane.send(Message::Event(Event::Committed(cut))));
    }

    /// Waits until everything pushed has been delivered; all workers must have ended (at a clean end after
    /// `cut(worker, u64::MAX)`, for which each lane hands over its state before this returns, if it can). What is not
    /// delivered within `patience` is kept in segment files, and reported.
    pub fn drain(&self, patience: Duration) -> DrainReport {
        let mut waiting: BTreeMap<&str, u64> = self.sinks.iter().map(|name| (name.as_str(), u64::MAX)).collect();
        let mut report = DrainReport::default();
        let mut gather = |patience| {
            await_seen(&*self.crew, &*self.clock, patience, || {
                for (sink, left) in self.drained.try_iter() {
                    waiting.remove(sink.as_str());
                    if left > 0 {
                        report.left.insert(sink, left);
                    }
                }
                waiting.is_empty().then_some(())
            })
        };
        if gather(patience).is_none() {
            self.hub.alerts.iter().for_each(|lane| lane.send(Message::Event(Event::GiveUp)));
            self.hub.rows.iter().for_each(|lane| lane.send(Message::Event(Event::GiveUp)));
            // Giving up takes a moment of writing, no longer.
            gather(Duration::from_secs(5));
        }
        report.left.extend(waiting.keys().map(|sink| ((*sink).to_owned(), u64::MAX)));
        report
    }

    /// Lets every lane finish what the last durable checkpoint asks of it, and stops it.
    pub fn close(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.hub.alerts.iter().for_each(|lane| lane.send(Message::Close));
        self.hub.rows.iter().for_each(|lane| lane.send(Message::Close));
        for lane in self.working.drain(..) {
            if !lane.join() {
                tracing::error!("a lane panicked");
            }
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The lane states that are a process' own, and the segments that those of the others list. Those of a process that is no
/// more go to process 0, which lists its segments under the names that they have.
pub(super) fn divided(
    restored: Vec<LaneState>,
    process: usize,
    processes: usize,
) -> (Vec<LaneState>, BTreeSet<String>) {
    let owner = |state: &LaneState| if state.process < processes { state.process } else { 0 };
    let (mine, others): (Vec<_>, Vec<_>) = restored.into_iter().partition(|state| owner(state) == process);
    (mine, others.into_iter().flat_map(|state| state.segments).map(|segment| segment.name).collect())
}

/// The lanes of a process that is starting.
pub struct Opening<'a> {
    ctx: &'a LaneContext,
    mine: &'a [LaneState],
    elsewhere: Arc<BTreeSet<String>>,
    runtime: &'a Handle,
    drained: Sender<(String, u64)>,
    hub: Hub,
    share: Share,
    starts: Vec<(String, Box<dyn Part>)>,
}

const JOURNAL_LANE: LaneSettings =
    LaneSettings { when_full: WhenFull::Pause, capacity: Size::mib(32), memory: Size::mib(32) };

/// What lanes get of the memory that they ask for.
struct Share {
    there: u64,
    asked: u64,
}

impl Share {
    fn new(sinks: &BTreeMap<String, SinkSettings>, ctx: &LaneContext) -> Self {
        let here = sinks.values().filter(|settings| ctx.process == 0 || settings.wants_rows());
        let journal = if ctx.process == 0 { JOURNAL_LANE.memory.bytes() } else { 0 };
        let asked = here.map(|settings| settings.lane().memory.bytes()).sum::<u64>() + journal;
        if asked > ctx.memory {
            tracing::info!(asked, there = ctx.memory, "lanes get less memory than they ask for (`memory`)");
        }
        Self { there: ctx.memory, asked }
    }
    fn of(&self, memory: u64) -> u64 {
        if self.asked <= self.there {
            return memory;
        }
        ((u128::from(memory) * u128::from(self.there) / u128::from(self.asked)) as u64).max(1)
    }
}

impl Opening<'_> {
    /// What the checkpoint keeps of a sink's lanes.
    pub fn restored(&self, sink: &str) -> Vec<LaneState> {
        self.mine.iter().filter(|state| state.sink == sink).cloned().collect()
    }

    /// Files of this process.
    pub fn fs(&self) -> Arc<dyn Fs> {
        Arc::clone(&self.ctx.fs)
    }

    /// Opens the lane of a sink that takes alerts.
    pub fn alerts<S: Sink<Item = Alerts>>(
        &mut self,
        name: &str,
        lane: LaneSettings,
        sink: S,
    ) -> Result<(), StartError> {
        let shed = Arc::clone(&self.ctx.shed);
        let lane = self.lane(name, lane, sink, Box::new(move |sink, item| shed(sink, Shed::Alerts(item))))?;
        self.hub.alerts.push(lane);
        Ok(())
    }

    /// Opens the lane of a sink that takes readings.
    pub fn rows<S: Sink<Item = Rows>>(&mut self, name: &str, lane: LaneSettings, sink: S) -> Result<(), StartError> {
        let shed = Arc::clone(&self.ctx.shed);
        let lane = self.lane(name, lane, sink, Box::new(move |sink, item| shed(sink, Shed::Rows(item))))?;
        self.hub.rows.push(lane);
        Ok(())
    }

    /// Opens the lane of an archive of Parquet files.
    pub fn parquet(&mut self, name: &str, lane: LaneSettings, path: &Path) -> Result<(), StartError> {
        let LaneContext { process, processes, ref made_again, .. } = *self.ctx;
        let archive = ParquetArchive::new(self.fs(), path.to_owned(), process, processes, self.restored(name));
        self.rows(name, lane, archive.made_again(made_again.clone()))
    }

    fn lane<S: Sink>(
        &mut self,
        name: &str,
        settings: LaneSettings,
        mut sink: S,
        shed: SheddingOf<S::Item>,
    ) -> Result<Sending<S::Item>, StartError> {
        let ctx = self.ctx;
        let (memory, pauses) = (self.share.of(settings.memory.bytes()), settings.when_full == WhenFull::Pause);
        let settings = Settings {
            sink: name.to_owned(),
            process: ctx.process,
            term: ctx.term,
            workers: ctx.workers,
            keep: ctx.keep,
            capacity: settings.capacity.bytes(),
            memory,
            when_full: settings.when_full,
            traits: sink.traits(),
            dir: ctx.dir.clone(),
            elsewhere: Arc::clone(&self.elsewhere),
            written: ctx.written,
            // One seed per lane, the same in the same run: back-off is all it serves.
            seed: ctx.term ^ (ctx.process as u64) << 32 ^ u64::from(crc32fast::hash(name.as_bytes())),
        };
        let restored = self.restored(name);
        let lane = Lane::new(settings, Arc::clone(&ctx.fs), &restored).map_err(|error| match error {
            SegmentError::Io(error) => StartError::of_disk(
                format!("sinks.{name}: a segment file that the checkpoint lists cannot be read: {error}"),
                &error,
            ),
            damaged => StartError::Corrupt(format!(
                "sinks.{name}: a segment file that the checkpoint lists is {damaged}; an older checkpoint may be whole"
            )),
        })?;
        // On a thread of its own, because this one may be tokio's.
        let position = std::thread::scope(|scope| {
            let connect = scope.spawn(|| {
                self.runtime.block_on(async {
                    sink.connect(ctx.term).await?;
                    sink.position().await.map_err(|error| StartError::Unreachable(error.to_string()))
                })
            });
            connect.join().unwrap_or_else(|_| Err(StartError::Io("connecting panicked".into())))
        });
        let position = position.map_err(|error| error.within(name))?;
        let (sender, receiver) = unbounded_channel();
        let _ = sender.send(Message::Event(Event::Connected(position)));
        let port = Arc::new(Port::default());
        let around = Around {
            name: name.to_owned(),
            term: ctx.term,
            port: Arc::clone(&port),
            clock: Arc::clone(&ctx.clock),
            metrics: Arc::clone(&ctx.metrics),
            cuts: ctx.cuts.clone(),
            drained: self.drained.clone(),
            shed,
        };
        let driver = Driver::new(lane, sink, receiver, around, self.runtime.clone());
        self.starts.push((name.to_owned(), Box::new(driver)));
        Ok(Sending { sender, port, memory, pauses })
    }
}

impl StartError {
    /// Says which sink it is about.
    fn within(self, sink: &str) -> Self {
        let within = |text: String| format!("sinks.{sink}: {text}");
        match self {
            Self::Unreachable(text) => Self::Unreachable(within(text)),
            Self::Denied(text) => Self::Denied(within(text)),
            Self::Foreign(text) => Self::Foreign(within(text)),
            Self::Settings(text) => Self::Settings(within(text)),
            Self::Io(text) => Self::Io(within(text)),
            Self::Corrupt(text) => Self::Corrupt(within(text)),
        }
    }
}

/// Where sinks lead: as configured, or whatever a test puts in its place.
pub trait Destinations: Send + Sync {
    /// Looks at a destination as `run` would, and says in a few words what is there. Changes nothing.
    fn look(&self, settings: &SinkSettings, runtime: &Handle) -> Result<String, StartError>;
    /// Announces a term to every destination that knows terms and can be reached: it refuses older ones from here on.
    fn announce(&self, _sinks: &BTreeMap<String, SinkSettings>, _term: u64, _runtime: &Handle) {}
    /// Opens a sink's lane.
    fn open(&self, name: &str, settings: &SinkSettings, opening: &mut Opening<'_>) -> Result<(), StartError>;
}

/// As configured.
pub struct Configured;

impl Destinations for Configured {
    fn look(&self, settings: &SinkSettings, runtime: &Handle) -> Result<String, StartError> {
        verify(settings, runtime)
    }

    fn announce(&self, sinks: &BTreeMap<String, SinkSettings>, term: u64, runtime: &Handle) {
        announce(sinks, term, runtime);
    }

    fn open(&self, name: &str, settings: &SinkSettings, opening: &mut Opening<'_>) -> Result<(), StartError> {
        let lane = settings.lane();
        let of_sink = |error: StartError| error.within(name);
        match settings {
            SinkSettings::Stdout(s) => opening.alerts(name, lane, Stdout::new(s)),
            SinkSettings::RedisStream(s) => {
                opening.alerts(name, lane, redis_stream::RedisStream::new(s).map_err(of_sink)?)
            }
            SinkSettings::Kafka(s) => opening.alerts(name, lane, kafka::KafkaAlerts::new(s).map_err(of_sink)?),
            SinkSettings::RedisLast(s) => opening.rows(name, lane, redis_last::RedisLast::new(s).map_err(of_sink)?),
            SinkSettings::RedisTimeseries(s) => {
                let sink = redis_timeseries::RedisTimeseries::new(s, Arc::clone(&opening.ctx.labels));
                opening.rows(name, lane, sink.map_err(of_sink)?)
            }
            SinkSettings::Parquet(s) => opening.parquet(name, lane, &s.path),
        }
    }
}

/// Looks at a sink's destination as `run` would, and says in a few words what is there. Changes nothing.
pub fn verify(settings: &SinkSettings, runtime: &Handle) -> Result<String, StartError> {
    let look = async {
        match settings {
            SinkSettings::Stdout(_) => Ok("standard output".to_owned()),
            SinkSettings::RedisStream(s) => redis_stream::RedisStream::new(s)?.look().await,
            SinkSettings::RedisLast(s) => redis_last::RedisLast::new(s)?.look().await,
            SinkSettings::RedisTimeseries(s) => redis_timeseries::look(s).await,
            SinkSettings::Parquet(s) => parquet::look(&crate::seam::RealFs, &s.path),
            SinkSettings::Kafka(s) => kafka::KafkaAlerts::new(s)?.look(),
        }
    };
    std::thread::scope(|scope| {
        let look = scope.spawn(|| runtime.block_on(look));
        look.join().unwrap_or_else(|_| Err(StartError::Io("looking at the sink panicked".into())))
    })
}

/// Announces a term to every sink that knows terms and can be reached: from here on it refuses older ones. One that
/// cannot be reached says so when its lane is opened.
fn announce(sinks: &BTreeMap<String, SinkSettings>, term: u64, runtime: &Handle) {
    let announce = async {
        for (name, settings) in sinks {
            let announced = match settings {
                SinkSettings::RedisStream(s) => match redis_stream::RedisStream::new(s) {
                    Ok(mut sink) => sink.connect(term).await,
                    Err(error) => Err(error),
                },
                SinkSettings::RedisLast(s) => match redis_last::RedisLast::new(s) {
                    Ok(mut sink) => sink.connect(term).await,
                    Err(error) => Err(error),
                },
                // They know no terms.
                SinkSettings::Stdout(_)
                | SinkSettings::RedisTimeseries(_)
                | SinkSettings::Parquet(_)
                | SinkSettings::Kafka(_) => Ok(()),
            };
            if let Err(error) = announced {
                tracing::warn!(sink = name, %error, "sink cannot be told of this term yet");
            }
        }
    };
    std::thread::scope(|scope| {
        let announce = scope.spawn(|| runtime.block_on(announce));
        if announce.join().is_err() {
            tracing::error!("announcing the term panicked");
        }
    });
}
