//! The node that brings records into the dataflow: polls, decodes, and closes epochs by writing them down (R1, R2, R7).

mod closing;
mod taking;

use super::interner::Interner;
use super::replay::{EarlyRecords, Line, Script};
use super::{Record, Source, SourceError};
use crate::checkpoint::{Piece, Position};
use crate::dead_letters::RefusedReading;
use crate::decode::{Decoder, Outcome, Reason, ValueIssue};
use crate::epoch_log::{Close, Control, FOR_EVER, Frame, Range};
use crate::error::Failure;
use crate::failpoint::{self, When};
use crate::ledger::Counts;
use crate::memory::Room;
use crate::metrics::{Metrics, PartitionMetrics, ReadingCounts, SourceMetrics};
use crate::nodes::Trip;
use crate::process::Shared;
use crate::saving::STEPS;
use crate::sink::LaneHandle;
use crossbeam_channel::Sender;
use operators::keyed::Cuts;
use operators::{Epoch, Reading, Stream};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::operators::{Capability, Inspect};
use timely::dataflow::{Scope, StreamVec};
use timely::scheduling::Activator;

/// Records that are taken in one go; then the rest of the dataflow has its turn.
const BATCH: usize = 2048;
/// Records after which a worker asks for the next epoch although its tick has not come.
const FULL_EPOCH: u64 = 16_384;
/// How long a source waits before it looks again whether there is room.
const PAUSE: Duration = Duration::from_millis(1);
/// The same while the disk takes nothing, which lasts.
const HOLD: Duration = Duration::from_millis(20);
/// Records in an epoch below which a worker takes those of a tick at its end, in one go, instead of being woken for each
/// few of them: they are as early in the log, and the dataflow has one batch to pass on instead of many.
const CALM: u64 = 2048;
/// For so many milliseconds of epoch time after records came to a worker, every worker lets go of each epoch as it closes.
const AWAKE_MS: Epoch = 200;

/// A record or value that is refused, with its bytes, its place and the reason.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Its stream.
    pub stream: Stream,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: i64,
    /// Which value of the record; none for the whole record.
    pub index: Option<u16>,
    /// Why.
    pub reason: Reason,
    /// The record's bytes, where they are at hand.
    pub bytes: Box<[u8]>,
    /// What was refused, where it had been decoded.
    pub reading: Option<RefusedReading>,
}

/// Counts of one partition on their way to the ledger.
pub type Tally = (Stream, u32, Counts);

/// The settings of a source's worker.
pub struct SourceWorker {
    /// Among all workers.
    pub worker: usize,
    /// Among those of this process.
    pub local: usize,
    /// The number of workers of this process.
    pub locals: usize,
    /// All workers.
    pub peers: usize,
    /// This process.
    pub process: u32,
    /// (source, topic) by stream.
    pub streams: Arc<Vec<(String, String)>>,
    /// By stream.
    pub decoders: Vec<Decoder>,
    /// R4's allowance, microseconds.
    pub max_clock_skew_us: i64,
    /// What to read again first: this worker's part.
    pub script: Script,
    /// Whether to go on with what is new after the replay.
    pub live: bool,
    /// End when these offsets are reached.
    pub until: Option<Ends>,
    /// The end of each partition at the start, up to which we are deaf.
    pub ends: Ends,
    /// Where to begin, and T of R4.
    pub positions: Vec<(Stream, u32, i64, Option<i64>)>,
    /// When checkpoints are cut.
    pub cuts: Cuts,
    /// Control lines that begin the live part, at its first epoch (process 0's first worker).
    pub begin: Vec<Control>,
    /// To the checkpointer.
    pub pieces: Sender<(Epoch, Piece)>,
    /// Whether lanes have room.
    pub lanes: LaneHandle,
    /// How much may be on its way in this worker.
    pub room: Room,
    /// Positions of topics that are not configured now (worker 0).
    pub carried: Vec<Position>,
    /// Records that are dead letters whatever they hold.
    pub set_aside: BTreeSet<(Stream, u32, i64)>,
    /// A panic that a test asks for.
    pub trip: Option<Trip>,
    /// Told of every partition that moved: (stream, partition, next offset), once per epoch.
    pub progress: Option<Progress>,
}

/// See [`SourceWorker::progress`].
pub type Progress = Arc<dyn Fn(Stream, u32, i64) + Send + Sync>;

/// An offset by partition.
pub type Ends = BTreeMap<(Stream, u32), i64>;

struct Partition {
    next: i64,
    time: Option<i64>,
    counts: Counts,
    metrics: PartitionMetrics,
}

enum State {
    Replaying,
    Live,
    Finishing,
    Done,
}

/// The streams that leave the node: readings, what the ledger counts, control lines, what was refused.
pub type Outputs<'s> = (
    StreamVec<'s, Epoch, Reading>,
    StreamVec<'s, Epoch, Tally>,
    StreamVec<'s, Epoch, Control>,
    StreamVec<'s, Epoch, Refused>,
);

struct SourceNode {
    settings: SourceWorker,
    source: Box<dyn Source>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    /// By stream.
    sources: Vec<SourceMetrics>,
    state: State,
    epoch: Epoch,
    partitions: BTreeMap<(Stream, u32), Partition>,
    interner: Interner,
    early: EarlyRecords,
    readings: Vec<Reading>,
    refused: Vec<Refused>,
    records_in_epoch: u64,
    /// Controls to send and write down when this epoch closes, at their epochs.
    controls: Vec<(Epoch, Control)>,
    /// What this process last said of its hearing (its first worker).
    deaf: bool,
    /// Whether lanes had no room at the last look.
    paused: bool,
    heard_generation: u64,
    targets: Option<(u64, Ends)>,
    late_ticks: u64,
    discovered: u64,
    committed: u64,
    commits: VecDeque<(Epoch, Ends)>,
    frames: Vec<u8>,
    /// Few records come: they are taken at the end of each tick.
    calm: bool,
    /// What was held back waits no longer: something is in the epochs that are closed, or depends on their end.
    due: bool,
    /// Up to where this worker has told all of its records, and what it has yet to tell them.
    told: Epoch,
    stir: Option<Epoch>,
    /// So many epochs, at most, are let go of as they close, because a cut is being saved that is not durable yet.
    saving: u16,
}

/// Puts the node into a dataflow. `probe` says what is complete, for back-pressure.
pub fn source_node<'s>(
    scope: Scope<'s, Epoch>,
    settings: SourceWorker,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    probe: Probe<Epoch>,
    source: impl FnOnce(Box<dyn Fn() + Send + Sync>) -> Result<Box<dyn Source>, SourceError>,
) -> Outputs<'s> {
    let mut builder = OperatorBuilder::new("source".to_owned(), scope);
    let (readings, reading_stream) = builder.new_output();
    let (tallies, tally_stream) = builder.new_output();
    let (controls, control_stream) = builder.new_output();
    let (refused, refused_stream) = builder.new_output();
    let (stirs, stir_stream) = builder.new_output();
    let address = builder.operator_info().address;
    let activator = scope.activator_for(address.clone());
    // Epochs up to this one are let go of as soon as they are closed: some worker has records.
    let awake = Rc::new(Cell::new(0));
    let (told, stirred) = (awake.clone(), scope.activator_for(address.clone()));
    stir_stream.broadcast().inspect(move |until: &Epoch| {
        told.set(told.get().max(*until));
        stirred.activate();
    });
    let waker = scope.worker().sync_activator_for(address.to_vec());
    let made = source(Box::new(move || {
        let _ = waker.activate();
    }));
    builder.build(move |capabilities| {
        let mut readings = OutputBuilder::<_, CapacityContainerBuilder<Vec<Reading>>>::from(readings);
        let mut tallies = OutputBuilder::<_, CapacityContainerBuilder<Vec<Tally>>>::from(tallies);
        let mut controls = OutputBuilder::<_, CapacityContainerBuilder<Vec<Control>>>::from(controls);
        let mut refused = OutputBuilder::<_, CapacityContainerBuilder<Vec<Refused>>>::from(refused);
        let mut stirs = OutputBuilder::<_, CapacityContainerBuilder<Vec<Epoch>>>::from(stirs);
        let mut node = match made.and_then(|source| SourceNode::new(settings, source, &shared, metrics)) {
            Ok(node) => Some(node),
            Err(error) => {
                shared.fail(Failure::source(&error));
                None
            }
        };
        let mut capabilities = Some(capabilities);
        // Capabilities of closed epochs whose lines are appended, but not durable yet.
        let mut undurable: VecDeque<(u64, Vec<Capability<Epoch>>)> = VecDeque::new();
        let mut newest_append = 0;
        let mut in_flight: VecDeque<(Epoch, usize)> = VecDeque::new();
        let mut under_way = 0;
        move |_| {
            // After a failure nothing is let go of: a capability dropped would say that its epoch is complete, and other
            // processes would act on what was never written down.
            let (Some(node), false) = (node.as_mut(), shared.failed()) else { return };
            if let Some(log) = &shared.log {
                while undurable.front().is_some_and(|(append, _)| log.is_durable(*append)) {
                    undurable.pop_front();
                }
            }
            let Some(held) = capabilities.as_mut() else {
                if !undurable.is_empty() {
                    // The end counts when it is durable; until then its capabilities stay.
                    activator.activate_after(PAUSE);
                }
                return;
            };
            while in_flight.front().is_some_and(|(epoch, _)| !probe.less_equal(epoch)) {
                under_way -= in_flight.pop_front().map_or(0, |(_, n)| n);
            }
            let room = under_way < node.settings.room.readings && !node.full();
            let turn = match node.turn(room) {
                Ok(turn) => turn,
                Err(failure) => {
                    shared.fail(failure);
                    return;
                }
            };
            // What is sent belongs to `turn.epoch`; what is held may be an earlier one.
            let at = |output: usize| held[output].delayed(&turn.epoch);
            if let Some(until) = node.stir.take() {
                stirs.activate().session(&at(4)).give(until);
            }
            if !node.readings.is_empty() {
                under_way += node.readings.len();
                match in_flight.back_mut() {
                    Some((epoch, n)) if *epoch == turn.epoch => *n += node.readings.len(),
                    _ => in_flight.push_back((turn.epoch, node.readings.len())),
                }
                readings.activate().session(&at(0)).give_container(&mut node.readings);
                node.readings.clear();
            }
            if !node.refused.is_empty() {
                refused.activate().session(&at(3)).give_container(&mut node.refused);
                node.refused.clear();
            }
            let mut ends = false;
            if let Some(mut closed) = turn.closed {
                if !closed.tallies.is_empty() {
                    tallies.activate().session(&at(1)).give_container(&mut closed.tallies);
                }
                for (epoch, control) in closed.controls {
                    let at = held[2].delayed(&epoch.max(turn.epoch));
                    controls.activate().session(&at).give(control);
                }
                newest_append = closed.append.unwrap_or(newest_append);
                ends = closed.ends;
            }
            // Frontiers that move cost every worker of every process some wake-ups. So epochs with nothing in them are let go
            // of together, when somebody waits for their end; their lines are written like all others.
            let moves = *held[0].time() < node.epoch && (node.due || awake.get() >= *held[0].time());
            if moves || ends {
                node.due = false;
                if shared.log.as_ref().is_some_and(|log| !log.is_durable(newest_append)) {
                    undurable.push_back((newest_append, held.clone()));
                }
                if ends {
                    capabilities = None;
                    activator.activate_after(PAUSE);
                    return;
                }
                held.iter_mut().for_each(|c| c.downgrade(&node.epoch));
            }
            turn.again.apply(&activator);
        }
    });
    (reading_stream, tally_stream, control_stream, refused_stream)
}

/// When the node wants to be called again.
enum Again {
    Now,
    After(Duration),
}

impl Again {
    fn apply(self, activator: &Activator) {
        match self {
            Again::Now => activator.activate(),
            Again::After(duration) => activator.activate_after(duration),
        }
    }
}

struct Closed {
    tallies: Vec<Tally>,
    controls: Vec<(Epoch, Control)>,
    append: Option<u64>,
    /// Nothing follows.
    ends: bool,
}

struct Turn {
    epoch: Epoch,
    closed: Option<Closed>,
    again: Again,
}

impl SourceNode {
    fn new(
        settings: SourceWorker,
        mut source: Box<dyn Source>,
        shared: &Arc<Shared>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SourceError> {
        let mut partitions = BTreeMap::new();
        for &(stream, partition, next, time) in &settings.positions {
            if partition as usize % settings.peers == settings.worker {
                let (name, topic) = &settings.streams[usize::from(stream)];
                source.assign(stream, partition, next)?;
                let metrics = metrics.partition(name, topic, partition);
                partitions.insert((stream, partition), Partition { next, time, counts: Counts::default(), metrics });
            }
        }
        let mine = |ends: &Ends| -> Ends {
            ends.iter().filter(|(key, _)| partitions.contains_key(key)).map(|(key, end)| (*key, *end)).collect()
        };
        let targets = Some((1, mine(&settings.ends)));
        let epoch = settings.script.front().map_or(0, |(epoch, _)| *epoch);
        Ok(Self {
            source,
            shared: shared.clone(),
            sources: settings.streams.iter().map(|(source, _)| metrics.source(source)).collect(),
            metrics,
            // Also where there is nothing to read again: it ends at once, in a turn of its own.
            state: State::Replaying,
            epoch,
            partitions,
            interner: Interner::default(),
            early: EarlyRecords::new(settings.room.early),
            readings: Vec::with_capacity(BATCH),
            refused: Vec::new(),
            records_in_epoch: 0,
            controls: Vec::new(),
            deaf: true,
            paused: false,
            heard_generation: 0,
            targets,
            late_ticks: shared.epochs.late_ticks(),
            discovered: 0,
            committed: 0,
            commits: VecDeque::new(),
            frames: Vec::new(),
            calm: false,
            due: true,
            told: 0,
            stir: None,
            saving: 0,
            settings,
        })
    }

    /// Goes from what is read again to what is new; or ends, where nothing new is wanted.
    ///
    /// A worker that comes later than others is closed through the epochs that those have logged meanwhile, and has to
    /// write that down like any other close: with its capability gone from them they are complete and have effects,
    /// but without a line of every worker they are void after a crash.
    fn begin_live(&mut self) -> Result<Option<u64>, Failure> {
        self.early.release_all(&mut *self.source).map_err(|e| Failure::source(&e))?;
        if !self.settings.live {
            self.state = State::Done;
            self.save(FOR_EVER);
            return Ok(None);
        }
        self.state = State::Live;
        self.epoch = self.shared.epochs.tick(false);
        let epoch = self.epoch;
        self.controls.extend(std::mem::take(&mut self.settings.begin).into_iter().map(|c| (epoch, c)));
        // What the replay left is at the cut of this epoch: nothing below it comes any more.
        if let Some(cut) = self.settings.cuts.reached(epoch) {
            self.save(cut);
        }
        Ok(self.write_down(&[], epoch - 1, epoch - 1, Vec::new()))
    }

    /// What is to be done now.
    fn turn(&mut self, room: bool) -> Result<Turn, Failure> {
        match self.state {
            State::Replaying => self.replay(room),
            State::Live => self.live(room),
            State::Finishing => Ok(self.finish()),
            State::Done => {
                let closed = Closed { tallies: Vec::new(), controls: Vec::new(), append: None, ends: true };
                Ok(Turn { epoch: self.epoch, closed: Some(closed), again: Again::After(PAUSE) })
            }
        }
    }

    fn replay(&mut self, room: bool) -> Result<Turn, Failure> {
        let Some((epoch, line)) = self.settings.script.front().cloned() else {
            let epoch = self.epoch;
            let append = self.begin_live()?;
            let ends = !matches!(self.state, State::Live);
            self.due = true;
            let closed = Closed { tallies: self.tallies(false), controls: Vec::new(), append, ends };
            return Ok(Turn { epoch, closed: Some(closed), again: Again::Now });
        };
        let mut turn = Turn { epoch: self.epoch, closed: None, again: Again::Now };
        if epoch > self.epoch {
            // Only between epochs: what waits inside one could never be complete.
            if !room {
                turn.again = Again::After(PAUSE);
                return Ok(turn);
            }
            let tallies = self.tallies(false);
            self.epoch = epoch;
            self.due = true;
            turn.closed = Some(Closed { tallies, controls: Vec::new(), append: None, ends: false });
            return Ok(turn);
        }
        match line {
            Line::Control(control) => {
                self.settings.script.pop_front();
                let controls = vec![(epoch, control)];
                let closed = Closed { tallies: Vec::new(), controls, append: None, ends: false };
                turn.closed = Some(closed);
            }
            Line::Range(range) if self.early.holds(&range).map_err(|e| Failure::source(&e))? => {
                self.settings.script.pop_front();
                let mut early = std::mem::replace(&mut self.early, EarlyRecords::new(0));
                early.take(range.stream, range.partition, range.records as usize, &mut |record| self.take(record));
                self.early = early;
            }
            Line::Range(range) => match self.early.poll(&mut *self.source, (range.stream, range.partition), BATCH) {
                Ok(0) => turn.again = Again::After(PAUSE),
                Ok(_) => {}
                Err(SourceError::Unavailable(why)) => {
                    tracing::warn!(why, "replay waits for the source");
                    turn.again = Again::After(Duration::from_secs(1));
                }
                Err(error) => return Err(Failure::source(&error)),
            },
        }
        Ok(turn)
    }

    /// Whether reading is to pause: a lane is full, or the disk takes nothing.
    fn full(&self) -> bool {
        self.settings.lanes.full() || self.shared.disk.holds()
    }

    fn live(&mut self, room: bool) -> Result<Turn, Failure> {
        self.discover()?;
        let full = self.full();
        if full && !self.paused {
            // A pause by back-pressure: what did not arrive says nothing.
            self.shared.hearing.deafen();
        }
        self.paused = full;
        let mut turn = Turn { epoch: self.epoch, closed: None, again: Again::Now };
        if self.shared.log_holds() {
            // The open epoch stays open: its line would only wait behind those that the disk has not taken.
            turn.again = Again::After(HOLD);
            return Ok(turn);
        }
        // Before the epoch is closed: what has come during a tick belongs to it.
        let taken = if room { self.take_new()? } else { 0 };
        let few = self.records_in_epoch < CALM;
        let open = self.shared.epochs.tick(self.records_in_epoch >= FULL_EPOCH);
        if open > self.epoch {
            turn.closed = Some(self.advance(open));
            self.commit();
            if self.ended() {
                self.state = State::Finishing;
                return Ok(turn);
            }
        }
        if self.calm && !few {
            self.calm = false;
            self.source.rouse(true);
            return Ok(turn);
        }
        if few && turn.closed.is_some() && !self.calm {
            self.calm = self.source.rouse(false);
        }
        if !room {
            turn.again = Again::After(PAUSE);
        } else if self.calm || taken == 0 {
            // Not longer than a tick, so that epochs close on time. Records wake us before, unless they are few.
            turn.again = Again::After(self.shared.epochs.until_tick());
        }
        Ok(turn)
    }

    /// Takes records that are there; says how many.
    /// Whether there is nothing more to read: asked to stop, or every partition has reached its end.
    fn ended(&self) -> bool {
        if self.shared.stop.load(SeqCst) {
            return true;
        }
        let Some(until) = &self.settings.until else { return false };
        until.iter().all(|(key, end)| self.partitions.get(key).is_none_or(|p| self.reached(*key, p, *end)))
    }

    fn reached(&self, key: (Stream, u32), partition: &Partition, end: i64) -> bool {
        let met = || self.source.reached_end(key.0, key.1).is_some_and(|reached| reached >= end);
        partition.next >= end || (self.early.has_none(key.0, key.1) && met())
    }

    /// The clean end: closes for ever. The process' first worker goes last, and says that we are deaf from then on.
    fn finish(&mut self) -> Turn {
        let first = self.settings.local == 0;
        let mut turn = Turn { epoch: self.epoch, closed: None, again: Again::After(PAUSE) };
        if self.shared.log_holds() {
            turn.again = Again::After(HOLD);
            return turn;
        }
        self.shared.last_epoch.fetch_max(self.epoch, SeqCst);
        if first && self.shared.finished.load(SeqCst) + 1 < self.settings.locals {
            // Meanwhile it closes empty epochs, or nothing that the others send could be complete.
            let open = self.shared.epochs.tick(false);
            if open > self.epoch {
                turn.closed = Some(self.advance(open));
            }
            return turn;
        }
        if first {
            let end = self.shared.last_epoch.load(SeqCst) + 1;
            self.controls.push((end, Control::Deaf { process: self.settings.process }));
        }
        let closed = self.close(FOR_EVER);
        self.save(FOR_EVER);
        self.shared.finished.fetch_add(1, SeqCst);
        self.state = State::Done;
        turn.closed = Some(closed);
        turn
    }

    /// Goes on to the epoch that is open now, and saves if a cut lies between.
    fn advance(&mut self, open: Epoch) -> Closed {
        let closed = self.close(open - 1);
        self.epoch = open;
        self.saving = self.saving.saturating_sub(1);
        if let Some(cut) = self.settings.cuts.reached(open) {
            self.save(cut);
            // The nodes save it in as many steps of the frontier, or fewer; without readings, too, it is to be complete soon.
            self.saving = STEPS;
        }
        self.due |= self.saving > 0 && !self.commits.is_empty();
        closed
    }
}
