//! How a run is asked to stop, and how long it may take: a stop is over within [`WITHIN`], whatever is down.
//!
//! The workers close their last epoch, the sinks take what they can, the rest is kept, the last checkpoint is written.
//! Each has until a moment counted from the question. What is not done by then is left as a kill would leave it, which
//! loses nothing: the next run begins at the checkpoint before.

use crate::error::{Exit, Failure};
use crate::mesh::Mesh;
use crate::process::Shared;
use crate::server::readiness::{Readiness, reason};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// A stop is over within this time.
pub const WITHIN: Duration = Duration::from_secs(25);
/// Until then the workers have come to their end.
const WORKERS: Duration = Duration::from_secs(8);
/// Until then sinks are given what waits for them.
const SINKS: Duration = Duration::from_secs(16);
/// Until then the last checkpoint is complete.
const SAVED: Duration = Duration::from_secs(24);

/// Who is told to stop, and since when.
pub(super) struct Stopping {
    /// What the workers look at.
    pub(super) flag: Arc<AtomicBool>,
    pub(super) mesh: OnceLock<Arc<Mesh>>,
    readiness: Arc<Readiness>,
    since: OnceLock<Instant>,
    /// What runs now, and whether it goes on to what is new.
    current: Mutex<(Weak<Shared>, bool)>,
    saved: AtomicBool,
    runtime: Handle,
}

impl Stopping {
    pub(super) fn new(flag: Arc<AtomicBool>, readiness: Arc<Readiness>, runtime: Handle) -> Self {
        Self {
            flag,
            mesh: OnceLock::new(),
            readiness,
            since: OnceLock::new(),
            current: Mutex::default(),
            saved: AtomicBool::new(false),
            runtime,
        }
    }

    /// SIGINT and SIGTERM stop the run. The second one means now: what is not done is done again after the restart.
    pub(super) fn on_signals(self: &Arc<Self>) {
        use tokio::signal::unix::{SignalKind, signal};
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            let kinds = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
            let (Ok(mut interrupt), Ok(mut terminate)) = kinds else {
                tracing::warn!("signals cannot be heard: they end this process at once");
                return;
            };
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            this.ask_all();
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            std::process::exit(130);
        });
    }

    /// The run stops after so long.
    pub(super) fn after(self: &Arc<Self>, time: Duration) {
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(time).await;
            this.ask_all();
        });
    }

    /// Asks this process to stop.
    pub(super) fn ask(self: &Arc<Self>) {
        if self.since.set(Instant::now()).is_err() {
            return;
        }
        self.readiness.set(reason::STOPPING, Some("asked to stop".to_owned()));
        self.flag.store(true, SeqCst);
        let (shared, live) = self.current();
        if let Some(shared) = shared
            && !live
        {
            // It reads again what the log lists; nothing of it is written down before its end.
            shared.fail(Failure::stopped());
        }
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(WORKERS).await;
            if let (Some(shared), _) = this.current()
                && !shared.all_finished()
            {
                shared.fail(match this.disk() {
                    // What was read and not written down counts as not read.
                    Some(disk) => Failure::unreachable(format!(
                        "stopped while the disk took nothing ({disk}): the last epochs are not written down, and their \
                         records are read again by the next start"
                    )),
                    None => Failure::stopped(),
                });
            }
            tokio::time::sleep(WITHIN - WORKERS).await;
            let code = if this.saved.load(SeqCst) { Exit::Stopped } else { Exit::Unreachable };
            let (saved, disk) = (code == Exit::Stopped, this.disk().unwrap_or_default());
            tracing::error!(saved, disk, "the stop takes too long: this process ends as it is");
            std::process::exit(code as i32);
        });
    }

    /// Asks all processes to stop.
    fn ask_all(self: &Arc<Self>) {
        self.ask();
        if let Some(mesh) = self.mesh.get() {
            mesh.stop();
        }
    }

    /// What the disk refuses now.
    pub(super) fn disk(&self) -> Option<String> {
        let problems = self.readiness.problems();
        problems.into_iter().find(|problem| problem.reason == reason::DISK).map(|problem| problem.problem)
    }

    /// What runs now; a stop that came before has it end at once, unless it can go on to a last checkpoint.
    pub(super) fn runs(&self, shared: &Arc<Shared>, live: bool) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = (Arc::downgrade(shared), live);
        if self.since.get().is_some() && !live {
            shared.fail(Failure::stopped());
        }
    }

    fn current(&self) -> (Option<Arc<Shared>>, bool) {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (current.0.upgrade(), current.1)
    }

    /// The last checkpoint is complete.
    pub(super) fn saved(&self) {
        self.saved.store(true, SeqCst);
    }

    /// Whether to stop.
    pub(super) fn asked(&self) -> bool {
        self.since.get().is_some()
    }

    fn left(&self, until: Duration) -> Option<Duration> {
        Some(until.saturating_sub(self.since.get()?.elapsed()))
    }

    /// How long sinks are given; `otherwise` where nobody asked to stop.
    pub(super) fn for_sinks(&self, otherwise: Duration) -> Duration {
        self.left(SINKS).map_or(otherwise, |left| left.max(Duration::from_secs(1)))
    }

    /// How long the last checkpoint may take from now on.
    pub(super) fn for_checkpoint(&self, otherwise: Duration) -> Duration {
        self.left(SAVED).unwrap_or(otherwise)
    }
}
