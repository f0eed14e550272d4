//! Turns the pieces of a cut into a checkpoint, away from the workers.
//!
//! A checkpoint that the disk refuses is given up, and the next cut is tried; the newest whole one stays, and so does the
//! log behind it. The last cut of a term has no next one: that is tried until it is there.

use crate::checkpoint::{self, Expected, Gathering, Name, Piece};
use crate::crew::Part;
use crate::epoch_log::{self, Known, LogEnd};
use crate::error::Failure;
use crate::metrics::Metrics;
use crate::outage::{Outage, what};
use crate::process::Shared;
use crate::seam::{Clock, Fs};
use crate::server::readiness::{Readiness, reason};
use crate::shed::ShedStore;
use crate::terms::{Fence, History};
use anyhow::Result;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use operators::Epoch;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// How long a process waits for the files of the others before it looks again.
const LOOK: Duration = Duration::from_millis(20);

/// How often a process looks whether its term has been replaced.
const FENCE_US: u64 = 1_000_000;

/// Whose checkpoints, and where.
pub struct Settings {
    /// Files.
    pub fs: Arc<dyn Fs>,
    /// Time, for figures.
    pub clock: Arc<dyn Clock>,
    /// The directory of checkpoints.
    pub dir: PathBuf,
    /// The directory of epoch logs; none where there is none to let go of.
    pub logs: Option<PathBuf>,
    /// How long logs are kept at least, milliseconds of running.
    pub retention_ms: u64,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// The term in whose log the cuts lie.
    pub term: u64,
    /// This run of the cluster.
    pub writer: u64,
    /// Where the logs of the term ended, if they are only replayed; those of process 0's checkpoint.
    pub log_ends: Vec<(u32, LogEnd)>,
    /// Whether this run is still the newest; none for a replay into another directory.
    pub fence: Option<Fence>,
    /// This process, all processes, all workers.
    pub cluster: (usize, usize, usize),
    /// The hash of the configuration in force.
    pub config: String,
    /// Pieces of a cut in this process.
    pub expected: Expected,
    /// Milliseconds between cuts; readiness fails after ten of them without a checkpoint.
    pub interval_ms: u64,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Why not to be ready.
    pub readiness: Arc<Readiness>,
    /// What the workers share.
    pub shared: Arc<Shared>,
    /// What lanes shed is durable before the cut that it lies below.
    pub shed: Arc<ShedStore>,
    /// Told of a cut once its manifest is durable.
    pub committed: Box<dyn Fn(Epoch) + Send>,
}

/// The state machine.
pub struct Checkpointer {
    settings: Settings,
    pieces: Receiver<(Epoch, Piece)>,
    gathering: Gathering,
    /// A cut whose files are written, while those of other processes are not, and when we began with it.
    waiting: Option<(Epoch, u64)>,
    /// The last cut, as long as the disk has not taken it.
    last: Option<Vec<Piece>>,
    outage: Outage,
    /// Whether newer terms can be seen.
    looking: Outage,
    last_success: u64,
    /// When we last looked whether we have been replaced.
    looked_us: u64,
    /// How long old terms ran, by their epochs, which do not change any more; none for one that logged nothing.
    ran_of: BTreeMap<u64, Option<u64>>,
    done: Sender<()>,
}

impl Checkpointer {
    /// Takes the pieces of cuts. The receiver tells, once, that the last cut of the term has become durable.
    pub fn new(settings: Settings, pieces: Receiver<(Epoch, Piece)>) -> (Self, Receiver<()>) {
        let (done, last) = bounded(1);
        let checkpointer = Self {
            gathering: Gathering::new(settings.expected.clone()),
            waiting: None,
            last: None,
            outage: settings.shared.disk.outage(what::CHECKPOINT),
            looking: settings.shared.disk.outage(what::TERM),
            last_success: settings.clock.monotonic_us(),
            looked_us: 0,
            ran_of: BTreeMap::new(),
            settings,
            pieces,
            done,
        };
        (checkpointer, last)
    }

    fn step(&mut self, patience: Duration) -> Result<bool> {
        let busy = self.waiting.is_some() || self.last.is_some();
        let patience = if busy { patience.min(LOOK) } else { patience };
        match self.pieces.recv_timeout(patience) {
            Ok((cut, piece)) => {
                if let Some(complete) = self.gathering.add(cut, piece) {
                    self.give_up_waiting();
                    self.last = None;
                    self.write(cut, complete)?;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if !busy => return Ok(false),
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(patience),
        }
        if self.settings.shared.failed() {
            return Ok(false);
        }
        let now = self.settings.clock.monotonic_us();
        if now >= self.looked_us + FENCE_US {
            self.looked_us = now;
            if let Err(error) = self.settings.newest_term() {
                return refused(&mut self.looking, &self.settings.dir, &error).then_some(true).ok_or(error);
            }
            self.looking.over();
            self.remove_let_go();
        }
        if self.outage.is_due()
            && let Some(pieces) = self.last.take()
        {
            self.write(Epoch::MAX, pieces)?;
        }
        if self.outage.is_due()
            && let Some((cut, began)) = self.waiting
            && self.settings.manifest(cut)?
        {
            self.waiting = None;
            self.outage.over();
            self.complete(cut, began);
            if cut == Epoch::MAX {
                let _ = self.done.send(());
                return Ok(false);
            }
        }
        let Settings { clock, interval_ms, readiness, .. } = &self.settings;
        let age_ms = (clock.monotonic_us() - self.last_success) / 1000;
        let stale = *interval_ms > 0 && age_ms > 10 * interval_ms;
        readiness.set(reason::CHECKPOINT, stale.then(|| format!("no checkpoint for {} s", age_ms / 1000)));
        Ok(true)
    }

    /// This process' files of a cut.
    fn write(&mut self, cut: Epoch, pieces: Vec<Piece>) -> Result<()> {
        let settings = &self.settings;
        let Settings { fs, clock, dir, cluster, metrics, shed, .. } = settings;
        let began = clock.monotonic_us();
        let at = (settings.name(cut), cluster.0);
        let written = shed.sync().map_err(anyhow::Error::from);
        let written =
            written.and_then(|()| checkpoint::write_process(&**fs, dir, at, settings.logs()?, pieces.as_slice()));
        match written {
            Ok(bytes) => {
                metrics.checkpoint_size_bytes.set(bytes as i64);
                self.waiting = Some((cut, began));
                if cluster.0 > 0 {
                    self.outage.over();
                }
                Ok(())
            }
            Err(error) => {
                if !checkpoint::take_back(&**fs, dir, at) {
                    // Whoever writes the manifest may have seen ours, and count it: so we wait for that.
                    self.waiting = Some((cut, began));
                } else if cut == Epoch::MAX {
                    self.last = Some(pieces);
                }
                Err(error)
            }
        }
    }

    /// A newer cut takes the place of one that is not complete: nobody will write its manifest.
    fn give_up_waiting(&mut self) {
        let Settings { fs, dir, cluster, .. } = &self.settings;
        if let Some((cut, _)) = self.waiting.take()
            && cluster.0 == 0
        {
            let at = self.settings.name(cut).dir(dir);
            if !checkpoint::is_complete(&**fs, &at) && fs.exists(&at) {
                let _ = fs.remove(&at);
            }
        }
    }

    /// Process 0 writes no manifest for a cut that it let go: what the others have written of it goes. They may still be at
    /// the newest.
    fn remove_let_go(&self) {
        let Settings { fs, dir, cluster, .. } = &self.settings;
        let mut cuts = self.gathering.let_go();
        if cluster.0 > 0 || cuts.pop().is_none() {
            return;
        }
        for at in checkpoint::list(&**fs, dir).unwrap_or_default() {
            let ours = Name::of(&at).filter(|name| *name == self.settings.name(name.cut));
            if ours.is_some_and(|name| cuts.binary_search(&name.cut).is_ok()) {
                let _ = fs.remove(&at);
            }
        }
    }

    /// The manifest is durable.
    fn complete(&mut self, cut: Epoch, began: u64) {
        let Settings { fs, clock, dir, keep, cluster, metrics, shared, committed, .. } = &self.settings;
        self.last_success = clock.monotonic_us();
        metrics.checkpoint_duration_seconds.observe((self.last_success - began) as f64 / 1e6);
        metrics.checkpoint_last_success_timestamp_seconds.set(clock.wall_ms() as f64 / 1e3);
        shared.committed.store(cut, SeqCst);
        committed(cut);
        if cluster.0 == 0 {
            if let Err(error) = checkpoint::prune(&**fs, dir, *keep) {
                tracing::warn!(error = %format!("{error:#}"), "old checkpoints are not removed");
            }
            self.settings.prune_logs(&mut self.ran_of);
        }
        tracing::debug!(cut, "checkpoint is complete");
    }
}

/// What the disk says is waited out; anything else ends the run.
fn refused(outage: &mut Outage, dir: &Path, error: &anyhow::Error) -> bool {
    let Some(io) = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()) else { return false };
    outage.failed_with(dir.display(), format!("{error:#}"), io.kind());
    true
}

impl Part for Checkpointer {
    fn turn(&mut self, patience: Duration) -> bool {
        self.step(patience).unwrap_or_else(|error| {
            let waits = refused(&mut self.outage, &self.settings.dir, &error);
            if !waits {
                self.settings.shared.fail(Failure::state(format!("checkpoint: {error:#}")));
            }
            waits
        })
    }
}

impl Settings {
    /// Whether the cut counts now: process 0 writes the manifest when all files are there, the others wait for it.
    fn manifest(&self, cut: Epoch) -> Result<bool> {
        let (process, processes, peers) = self.cluster;
        if process > 0 {
            let at = self.name(cut).dir(&self.dir);
            let there = checkpoint::is_complete(&*self.fs, &at) && self.newest_term()?;
            if there {
                // It can be seen before process 0 has made its name durable; what follows shows files on its account.
                self.fs.sync_dir(&at)?;
                self.fs.sync_dir(&self.dir)?;
            }
            return Ok(there);
        }
        let there = checkpoint::all_written(&*self.fs, &self.dir, self.name(cut), processes);
        if there {
            self.newest_term()?;
            checkpoint::commit(&*self.fs, &self.dir, self.name(cut), (processes, peers, &self.config))?;
            // Whoever has replaced us since may have looked before it was there. If it has not been replaced by now,
            // whoever comes will see it.
            self.newest_term()?;
        }
        Ok(there)
    }

    fn name(&self, cut: Epoch) -> Name {
        Name { term: self.term, cut, writer: self.writer }
    }

    /// Where the logs that the cut lies in end on the disk: this process' own, or those that were replayed.
    fn logs(&self) -> Result<Vec<(u32, LogEnd)>> {
        match &self.shared.log {
            Some(log) => Ok(vec![(self.cluster.0 as u32, log.synced_end()?)]),
            None => Ok(self.log_ends.clone()),
        }
    }

    /// True; an error if this term has been replaced.
    fn newest_term(&self) -> Result<bool> {
        self.fence.as_ref().map_or(Ok(()), Fence::check).map(|()| true)
    }

    /// Lets go of the logs of terms that no kept checkpoint needs and that ended longer ago than the retention.
    /// A log that cannot be read or removed is left alone, and said: it is no reason to stop.
    fn prune_logs(&self, ran_of: &mut BTreeMap<u64, Option<u64>>) {
        if let Some(logs) = &self.logs
            && let Err(error) = self.try_prune_logs(logs, ran_of)
        {
            tracing::warn!(error = %format!("{error:#}"), "old epoch logs are not removed");
        }
    }

    fn try_prune_logs(&self, logs: &Path, ran_of: &mut BTreeMap<u64, Option<u64>>) -> Result<()> {
        let oldest_kept = checkpoint::list(&*self.fs, &self.dir)?
            .into_iter()
            .find_map(|dir| dir.file_name()?.to_str()?.split_once('-').and_then(|(term, _)| term.parse::<u64>().ok()));
        let Some(oldest_kept) = oldest_kept else { return Ok(()) };
        let history = History::read(&*self.fs, logs, None)?;
        // How long streamgauge has run since, by its own epochs: wall clocks jump, and a log is not older for that.
        let mut since_ms = self.shared.epochs.ran_ms();
        for term in epoch_log::terms(&*self.fs, logs)?.into_iter().rev().filter(|term| *term < self.term) {
            let ran = match ran_of.get(&term) {
                Some(ran) => *ran,
                None => {
                    let known = Known { ends: history.ends(term), marks: Vec::new() };
                    match epoch_log::read_term(&*self.fs, logs, term, &known) {
                        Ok(log) => {
                            let ran = log.map(|log| log.newest - log.oldest);
                            ran_of.insert(term, ran);
                            ran
                        }
                        Err(error) => {
                            // Perhaps what a crash left of a removal. How old it is, those after it say.
                            tracing::warn!(term, error = %format!("{error:#}"), "old epoch log cannot be read");
                            Some(0)
                        }
                    }
                }
            };
            // A term that logged nothing has no age; its folder says that it was.
            let Some(ran) = ran else { continue };
            if term < oldest_kept && since_ms > self.retention_ms {
                self.fs.remove(&epoch_log::term_dir(logs, term))?;
                tracing::info!(term, "epoch log of an old term removed");
            }
            since_ms += ran;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outage::Disk;
    use crate::process::EpochClock;
    use crate::seam::RealFs;
    use crossbeam_channel::unbounded;
    use std::sync::atomic::AtomicU64;

    /// A clock that a test turns.
    #[derive(Default)]
    struct Turned(AtomicU64);

    impl Clock for Turned {
        fn wall_ms(&self) -> u64 {
            self.0.load(SeqCst) / 1000
        }
        fn monotonic_us(&self) -> u64 {
            self.0.load(SeqCst)
        }
    }

    #[test]
    fn what_other_processes_write_while_a_lane_of_process_0_takes_no_cut_does_not_pile_up() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let (clock, metrics, disk) = (Arc::new(Turned::default()), Metrics::new().expect("metrics"), Disk::for_tests());
        let epochs = EpochClock::start(clock.clone(), 20_000, 0);
        let dir = folder.path().join("checkpoints");
        let settings = Settings {
            fs: Arc::new(RealFs),
            clock: clock.clone(),
            dir: dir.clone(),
            logs: None,
            retention_ms: 0,
            keep: 3,
            term: 1,
            writer: 1,
            log_ends: Vec::new(),
            fence: None,
            cluster: (0, 2, 2),
            config: "hash".into(),
            expected: Expected { pieces: 2 },
            interval_ms: 0,
            metrics: metrics.clone(),
            readiness: Arc::default(),
            shared: Arc::new(Shared::new(epochs, None, disk.clone(), 1, Arc::default())),
            shed: ShedStore::new(Arc::new(RealFs), folder.path().join("shed"), 0, &disk),
            committed: Box::new(|_| ()),
        };
        let (sender, pieces) = unbounded();
        let (mut checkpointer, _last) = Checkpointer::new(settings, pieces);
        let mut send = |cut, piece| {
            sender.send((cut, piece)).expect("it is there");
            clock.0.fetch_add(FENCE_US, SeqCst);
            assert!(checkpointer.turn(Duration::ZERO));
        };
        let at = |cut| Name { term: 1, cut, writer: 1 };
        let complete = || -> Vec<Epoch> {
            let whole = checkpoint::list(&RealFs, &dir).expect("listed").into_iter();
            whole.filter(|at| checkpoint::is_complete(&RealFs, at)).filter_map(|at| Some(Name::of(&at)?.cut)).collect()
        };
        for cut in 1..=20 {
            send(cut, Piece::Positions(Vec::new()));
            checkpoint::write_process(&RealFs, &dir, (at(cut), 1), Vec::new(), &[]).expect("written");
            assert!(checkpoint::list(&RealFs, &dir).expect("listed").len() <= 3, "at cut {cut}");
        }
        assert!(complete().is_empty());
        (1..=20).for_each(|cut| send(cut, Piece::Lane(serde_json::Value::Null)));
        assert_eq!(complete(), [1, 20]);
    }
}
