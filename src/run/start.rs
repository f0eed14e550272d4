//! Starts what the workers of a process share: epoch log, lanes, dead letters, checkpointer, server.

use super::stretch::{Started, Stretch};
use super::{decoders, start_failure};
use crate::checkpoint::{self, Expected, Piece};
use crate::checkpointer::{self, Checkpointer};
use crate::config::{Durability as DurabilitySetting, WhenFull};
use crate::crew::{Part, Working};
use crate::dataflow::Logic;
use crate::dead_lane::{self, DeadLane};
use crate::dead_letters::{self, DeadLetters, Position as DeadPosition};
use crate::epoch_log::{Durability, EpochLog, Header, LOG_VERSION};
use crate::error::Failure;
use crate::fenced::Fenced;
use crate::outage::what;
use crate::plan::Plan;
use crate::process::{EpochClock, Shared};
use crate::seam::Fs;
use crate::server::status::Process as ProcessStatus;
use crate::server::views_api::Views as ViewClients;
use crate::server::{self, ServerState};
use crate::shed::{Retrying, ShedStore};
use crate::sink::{LaneContext, Lanes, MadeAgain};
use crate::terms::Fence;
use crossbeam_channel::unbounded;
use operators::Epoch;
use operators::keyed::Cuts;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

impl Stretch {
    /// Starts what the workers of this process share.
    pub(super) fn start(self: &Arc<Self>, plan: &Plan, peers: usize) -> Result<Arc<Started>, Failure> {
        let run = &self.world.run;
        // A replay into another folder has that for itself.
        let fence = run.options.replay_into.is_none();
        let fence = fence.then(|| Fence::new(run.fs.clone(), self.layout.logs.clone(), plan.lane_term));
        self.start_fenced(plan, peers, fence.clone()).map_err(|failure| {
            let replaced = fence.and_then(|fence| fence.replaced());
            replaced.map_or(failure, |replaced| Failure::of_state(&replaced))
        })
    }

    fn start_fenced(
        self: &Arc<Self>,
        plan: &Plan,
        peers: usize,
        fence: Option<Fence>,
    ) -> Result<Arc<Started>, Failure> {
        let world = &self.world;
        let run = &world.run;
        let fs: Arc<dyn Fs> = match &fence {
            Some(fence) => Fenced::new(run.fs.clone(), fence.clone()),
            None => run.fs.clone(),
        };
        if plan.config != self.pure.hash() {
            return Err(Failure::configuration(
                "the processes have different configurations; give all of them the same",
            ));
        }
        let restored = match &plan.checkpoint {
            Some(dir) => Some(Arc::new(checkpoint::load(&*fs, dir).map_err(|e| Failure::of_state(&e))?)),
            None => None,
        };
        if let Some(bar) = &run.options.bar {
            let mine = |partition: u32| partition as usize % peers / self.workers == self.process;
            bar.planned(plan.positions.iter().filter(|(_, partition, _, _)| mine(*partition)).copied(), &plan.goals());
        }
        let streams = Arc::new(plan.streams.clone());
        let logic = Logic::new(&self.pure);
        let decoders = decoders(&self.pure).map_err(Failure::configuration)?;
        let tick_us = run.config.epochs.tick.us().max(1000) as u64;
        let epochs = match (plan.joined, world.stopping.mesh.get()) {
            (Some(joined), Some(mesh)) => {
                EpochClock::joined(run.clock.clone(), tick_us, plan.floor, joined, mesh.first_ahead_ms())
            }
            _ => EpochClock::start(run.clock.clone(), tick_us, plan.floor),
        };
        let log = if plan.live {
            let header = Header {
                version: LOG_VERSION,
                term: plan.term,
                process: self.process as u32,
                segment: 0,
                processes: self.processes as u32,
                peers: peers as u32,
                config: plan.config.clone(),
                streams: plan.streams.clone(),
                positions: plan.positions.iter().map(|(s, p, next, _)| (*s, *p, *next)).collect(),
                synced: run.config.epochs.durability == DurabilitySetting::Disk,
            };
            let durability = match run.config.epochs.durability {
                DurabilitySetting::Process => Durability::Process,
                DurabilitySetting::Disk => Durability::Disk,
            };
            Some(
                EpochLog::create(
                    fs.clone(),
                    &self.layout.logs,
                    header,
                    durability,
                    world.disk.holding_outage(what::EPOCH_LOG),
                )
                .map_err(|e| Failure::of_state(&e))?,
            )
        } else {
            None
        };
        let shared =
            Arc::new(Shared::new(epochs, log.clone(), world.disk.clone(), self.workers, world.stopping.flag.clone()));
        world.stopping.runs(&shared, plan.live);
        if let Some(mesh) = world.stopping.mesh.get() {
            let shared = Arc::downgrade(&shared);
            mesh.on_loss(move |failure| {
                if let Some(shared) = shared.upgrade() {
                    shared.fail(failure.clone());
                }
            });
        }
        let (pieces, received) = unbounded();
        let lane_pieces = pieces.clone();

        let lanes_of = |name: &str| {
            restored
                .iter()
                .flat_map(|r| &r.processes)
                .flat_map(|(meta, _)| &meta.lanes)
                .filter(|l| (l["sink"] == dead_lane::NAME) == (name == dead_lane::NAME))
                .cloned()
                .collect::<Vec<_>>()
        };
        let damaged = restored.as_ref().map(|r| checkpoint::newer(&*fs, &self.layout.checkpoints, r.name()));
        let made_again = MadeAgain {
            from: plan.script.first().map_or(Epoch::MAX, |(epoch, _)| *epoch),
            damaged: damaged.transpose().map_err(|e| Failure::of_state(&e))?.unwrap_or_default(),
        };
        let dead_dir = self.layout.data.join("dead-letters");
        let dead_position = self.cut_back_dead_letters(&*fs, &dead_dir, &lanes_of(dead_lane::NAME), made_again.from)?;
        let store = DeadLetters::open(fs.clone(), &dead_dir, self.process, dead_position, world.metrics.clone())
            .map_err(|e| Failure::of_state(&anyhow::Error::from(e).context("dead letters")))?;
        let (dead_lane, dead) =
            DeadLane::new(store, (self.process, self.workers), &streams, pieces.clone(), shared.clone());
        let dead_lane = self.take_up("dead letters", dead_lane)?;

        let others: Result<Vec<crate::sink::LaneState>, _> =
            lanes_of("").into_iter().map(serde_json::from_value).collect();
        let inventory = self.pure.inventory.clone();
        let shed = ShedStore::new(fs.clone(), self.layout.data.join("shed"), self.process, &world.disk);
        let sheds = self.sinks.values().any(|sink| sink.lane().when_full == WhenFull::DeadLetter);
        let shed_to = shed.clone();
        let context = LaneContext {
            fs: fs.clone(),
            clock: run.clock.clone(),
            dir: self.layout.data.join("lanes"),
            term: plan.lane_term,
            written: plan.sent_through.unwrap_or(0),
            made_again,
            memory: run.config.divided().lanes,
            keep: run.config.checkpoint.keep as usize,
            process: self.process,
            processes: self.processes,
            workers: self.workers,
            metrics: world.metrics.clone(),
            disk: world.disk.clone(),
            crew: run.crew.clone(),
            cuts: Arc::new(move |state| match serde_json::to_value(&state) {
                // Nobody there to take it: the process is ending.
                Ok(value) => drop(lane_pieces.send((state.cut, Piece::Lane(value)))),
                Err(error) => tracing::error!(%error, "a lane's state cannot be written down"),
            }),
            labels: Arc::new(move |sensor: &str, label: &str| inventory.get(sensor)?.get(label).cloned()),
            shed: Arc::new(move |sink: &str, shed: crate::sink::Shed| shed_to.take(sink, &shed)),
        };
        let others = others.map_err(|e| Failure::state(format!("checkpoint: lanes: {e}")))?;
        let lanes = Lanes::open(&*run.destinations, &self.sinks, context, others, world.runtime.handle())
            .map_err(start_failure)?;
        let lane_handle = lanes.handle();

        let per_worker = 4 * self.workers;
        let of_first = if self.process == 0 { 3 } else { 0 };
        let sinks = lanes.sinks().len();
        let expected = Expected { pieces: per_worker + of_first + sinks + 1 };
        let cuts = Cuts {
            interval: if plan.live { (run.config.checkpoint.interval.us() / 1000) as u64 } else { u64::MAX },
            after: plan.script.last().map_or(plan.floor, |(epoch, _)| *epoch).max(plan.floor),
        };
        let lanes = Arc::new(RwLock::new(Some(lanes)));
        let committed = lanes.clone();
        let checkpointer = checkpointer::Settings {
            fs: fs.clone(),
            clock: run.clock.clone(),
            dir: self.layout.checkpoints.clone(),
            logs: (plan.live && self.process == 0).then(|| self.layout.logs.clone()),
            retention_ms: (run.config.epochs.retention.us() / 1000) as u64,
            keep: run.config.checkpoint.keep as usize,
            term: plan.term,
            writer: plan.lane_term,
            log_ends: plan.log_ends.clone(),
            fence,
            cluster: (self.process, self.processes, peers),
            config: plan.config.clone(),
            expected,
            interval_ms: if plan.live { cuts.interval } else { 0 },
            metrics: world.metrics.clone(),
            readiness: world.readiness.clone(),
            shared: shared.clone(),
            shed: shed.clone(),
            committed: Box::new(move |cut| {
                if let Some(lanes) = &*committed.read().unwrap_or_else(PoisonError::into_inner) {
                    lanes.committed(cut);
                }
            }),
        };
        let (checkpointer, last_checkpoint) = Checkpointer::new(checkpointer, received);
        let mut parts = vec![dead_lane, self.take_up("checkpointer", checkpointer)?];
        if let Some(log) = log {
            parts.push(self.take_up("epoch log", LogWork(log))?);
        }
        if sheds {
            parts.push(self.take_up("shed", Retrying(Arc::downgrade(&shed)))?);
        }

        let clients = Arc::new(ViewClients::new(self.workers));
        if plan.live {
            self.serve(&clients, plan)?;
            self.watch(&streams, &shared, plan)?;
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
            parts: Mutex::new(parts),
            last_checkpoint,
            totals: unbounded(),
            clients,
            cuts,
        }))
    }

    /// Takes away the dead letters that are written again: those after the checkpoint's position, or where it knows no
    /// position, those of epochs that are made again. Process 0 does it also for processes that are no more, whose records
    /// others have now. Says where this process goes on.
    fn cut_back_dead_letters(
        &self,
        fs: &dyn Fs,
        dir: &Path,
        lanes: &[serde_json::Value],
        from: Epoch,
    ) -> Result<Option<DeadPosition>, Failure> {
        let cannot = |e: io::Error| Failure::of_state(&anyhow::Error::from(e).context("dead letters"));
        let mut positions = BTreeMap::new();
        for lane in lanes {
            let lane = dead_lane::State::deserialize(lane)
                .map_err(|e| Failure::state(format!("checkpoint: dead letters: {e}")))?;
            positions.insert(lane.process, lane.position);
        }
        let mut mine = None;
        for process in dead_letters::processes(fs, dir).map_err(cannot)? {
            let gone = self.process == 0 && process >= self.processes;
            if process != self.process && !gone {
                continue;
            }
            let position = match positions.get(&process) {
                Some(position) => Some(*position),
                None => dead_letters::end_below(fs, dir, process, from).map_err(cannot)?,
            };
            if process == self.process {
                mine = position;
            } else if let Some(position) = position {
                dead_letters::cut_back(fs, dir, process, position).map_err(cannot)?;
            }
        }
        // A store without files may still have had a position.
        Ok(mine.or(positions.get(&self.process).copied()))
    }

    /// Has a part worked on.
    pub(super) fn take_up(&self, name: &str, part: impl Part + 'static) -> Result<Working, Failure> {
        let started = self.world.run.crew.start(name, Box::new(part));
        started.map_err(|error| Failure::unreachable(format!("threads: {error}")))
    }

    fn serve(&self, clients: &Arc<ViewClients>, plan: &Plan) -> Result<(), Failure> {
        let world = &self.world;
        let options = &world.run.options;
        if let Some(after) = options.stop_after {
            world.stopping.after(after);
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
}

/// With `durability = "disk"` makes the epoch log durable, many appends at once; writes what the disk refused.
struct LogWork(Arc<EpochLog>);

impl Part for LogWork {
    fn turn(&mut self, patience: Duration) -> bool {
        self.0.work(patience)
    }
}
