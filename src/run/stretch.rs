//! A stretch with one configuration: its workers' lives, from the plan they agree on to the last checkpoint.

use super::world::{Result3, World};
use crate::checkpoint::Restored;
use crate::config::Pure;
use crate::crew::{Working, await_seen};
use crate::dataflow::{self, Logic, Parts};
use crate::dead_lane::DeadLetterLane;
use crate::decode::Decoder;
use crate::epoch_log::Control;
use crate::error::Failure;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::nodes::{Common, Totals};
use crate::panics;
use crate::plan::{Layout, Plan};
use crate::process::Shared;
use crate::progress::ReadingBar;
use crate::saving::SLICE;
use crate::server::readiness::reason;
use crate::server::views_api::{Views as ViewClients, WorkerView};
use crate::sink::Lanes;
use crate::source::node::SourceWorker;
use crate::source::replay::Line;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use operators::Epoch;
use operators::keyed::Cuts;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use timely::communication::Hooks;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::dataflow::operators::probe::Handle as Probe;
use timely::worker::Worker;

/// A stretch with one configuration: what a cluster of workers runs.
pub(super) struct Stretch {
    pub(super) world: Arc<World>,
    pub(super) layout: Layout,
    pub(super) plan: OnceLock<Plan>,
    pub(super) pure: Pure,
    /// Workers of each process; processes; this process.
    pub(super) workers: usize,
    pub(super) processes: usize,
    pub(super) process: usize,
    pub(super) sinks: BTreeMap<String, crate::config::SinkSettings>,
    pub(super) started: OnceLock<Result<Arc<Started>, Failure>>,
    pub(super) listener: Mutex<Option<std::net::TcpListener>>,
}

/// What the workers of this process use together, once the plan is known.
pub(super) struct Started {
    pub(super) shared: Arc<Shared>,
    pub(super) logic: Logic,
    pub(super) restored: Option<Arc<Restored>>,
    pub(super) decoders: Vec<Decoder>,
    pub(super) pieces: Sender<(Epoch, crate::checkpoint::Piece)>,
    pub(super) lanes: Arc<RwLock<Option<Lanes>>>,
    pub(super) lane_handle: crate::sink::LaneHandle,
    pub(super) dead: DeadLetterLane,
    pub(super) parts: Mutex<Vec<Working>>,
    pub(super) last_checkpoint: Receiver<()>,
    pub(super) totals: (Sender<Totals>, Receiver<Totals>),
    pub(super) clients: Arc<ViewClients>,
    pub(super) cuts: Cuts,
}

impl Stretch {
    pub(super) fn go(self: Arc<Self>) -> Result<Result3, Failure> {
        let (builders, comms) = self.allocators()?;
        let this = self.clone();
        // A worker that waits does not spin first: it waits for the tick, or for another worker's work.
        let config = timely::WorkerConfig::default().idle_spin(Duration::ZERO);
        let guards = timely::execute::execute_from(builders, Box::new(()), config, move |worker| this.worker(worker))
            .map_err(|e| Failure::unreachable(format!("worker threads: {e}")))?;
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
        // The threads of a connection to a process that is lost never end.
        std::mem::forget(comms);
        if let Some(mesh) = self.mesh() {
            match self.started.get() {
                Some(Ok(started)) if failure.is_none() && !started.shared.failed() => mesh.finished(),
                Some(Err(error)) => mesh.leave(Some(error)),
                _ => {}
            }
        }
        match self.started.get() {
            Some(Ok(started)) => self.finish(started, failure),
            Some(Err(error)) => Err(error.clone()),
            None => Err(failure.unwrap_or_else(|| Failure::state("no worker started"))),
        }
    }

    /// What timely's workers talk through: each other alone, or the connections to the other processes as well.
    fn allocators(&self) -> Result<(Vec<AllocatorBuilder>, Box<dyn std::any::Any + Send>), Failure> {
        let cannot = |e: String| Failure::unreachable(format!("worker threads: {e}"));
        let Some(mesh) = self.mesh() else {
            let alone = match self.workers {
                1 => timely::CommunicationConfig::Thread,
                workers => timely::CommunicationConfig::Process(workers),
            };
            return alone.try_build().map_err(cannot);
        };
        let hooks = Hooks::default();
        let within = ProcessBuilder::new_typed_vector(self.workers, hooks.refill.clone(), hooks.spill.clone());
        let links = mesh.take_links();
        let (builders, comms) = initialize_networking_from_sockets(within, links, self.process, self.workers, hooks)
            .map_err(|e| cannot(e.to_string()))?;
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(comms)))
    }

    /// The other processes, where this stretch has some.
    fn mesh(&self) -> Option<&Arc<Mesh>> {
        self.world.stopping.mesh.get().filter(|_| self.processes > 1)
    }

    /// Why not to wait for the others any longer.
    fn hopeless(&self) -> Option<Failure> {
        let lost = self.mesh().and_then(|mesh| mesh.failure());
        lost.or_else(|| self.world.stopping.asked().then(Failure::stopped))
    }

    /// A worker's whole life.
    fn worker(self: &Arc<Self>, worker: &mut Worker) -> Result<(), Failure> {
        let mut turns = self.world.run.crew.enter(worker);
        let plan = self.agree(worker)?;
        let local = worker.index() % self.workers;
        let started = match self.started.get_or_init(|| self.start(&plan, worker.peers())) {
            Ok(started) => started.clone(),
            Err(error) => return Err(error.clone()),
        };
        let _guard = PanicGuard(started.shared.clone());
        panics::watch(panics::Recorder {
            fs: self.world.run.fs.clone(),
            dir: self.layout.panics.clone(),
            process: self.process,
            term: plan.lane_term,
            streams: Arc::new(plan.streams.clone()),
        });
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
            if !turns.step(worker) {
                leave(worker);
                break;
            }
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
            if let Some(failure) = self.hopeless() {
                leave(worker);
                return Err(failure);
            }
            worker.step_or_park(Some(Duration::from_millis(100)));
        }
        let text = got.borrow_mut().take().ok_or_else(|| Failure::state("no plan came from process 0"))?;
        serde_json::from_str(&text).map_err(|e| Failure::state(format!("plan: {e}; do all processes run one version?")))
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
            stall: Default::default(),
            slice: run.options.slice.unwrap_or(SLICE),
            trip: run.options.trip,
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
            progress: run.options.progress.clone().or_else(|| run.options.bar.as_ref().map(ReadingBar::progress)),
            lanes: started.lane_handle.clone(),
            room: run.config.divided().room,
            set_aside: plan.set_aside(),
            trip: run.options.trip,
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
            let stopping = &self.world.stopping;
            undelivered = lanes.drain(stopping.for_sinks(DRAIN)).left;
            // Another process may still be giving its sinks their time.
            self.last_checkpoint(started, stopping.for_checkpoint(DRAIN + Duration::from_secs(15)))?;
            stopping.saved();
        }
        if let Some(mesh) = self.mesh() {
            // Everything is written: the others need us no longer.
            mesh.leave(None);
        }
        if let Some(lanes) = started.lanes.write().unwrap_or_else(PoisonError::into_inner).take() {
            lanes.close();
        }
        for part in started.parts.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if !part.join() {
                return Err(Failure::state("a thread panicked; the next run goes on from the last checkpoint"));
            }
        }
        let totals = started.totals.1.try_iter().next().unwrap_or_default();
        let alerts = crate::nodes::alerts_at_end(&*self.world.run.fs, &self.layout.checkpoints);
        Ok((totals, alerts, undelivered))
    }

    /// Waits until the last checkpoint is complete, in all processes.
    fn last_checkpoint(&self, started: &Started, patience: Duration) -> Result<(), Failure> {
        let run = &self.world.run;
        let seen = await_seen(&*run.crew, &*run.clock, patience, || match started.last_checkpoint.try_recv() {
            Err(TryRecvError::Empty) => started.shared.failed().then_some(false),
            told => Some(told.is_ok()),
        });
        if seen == Some(true) {
            return Ok(());
        }
        Err(started.shared.take_failure().unwrap_or_else(|| {
            let disk = self.world.stopping.disk().map(|disk| format!(" ({disk})")).unwrap_or_default();
            Failure::unreachable(format!(
                "the last checkpoint was not completed in time{disk}; the next run goes on from the one before"
            ))
        }))
    }
}

/// How long sinks have at an end that nobody asked for.
const DRAIN: Duration = Duration::from_secs(30);

/// A worker that panics takes the others with it: without it nothing would ever be complete again.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Failure::state("a worker panicked; the next run goes on from the last checkpoint"));
        }
    }
}

fn leave(worker: &mut Worker) {
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
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
