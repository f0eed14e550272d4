//! When the disk takes nothing while we run: waited for, said once, counted, and never a reason to end.
//!
//! Whatever writes to the data directory has an `Outage` for it. What could not be written stays where it is, and is
//! tried again after a while; meanwhile the program is not ready, and says where, what, and what would be right.

use crate::metrics::Metrics;
use crate::seam::Clock;
use crate::server::readiness::{Readiness, reason};
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const BACKOFF_US: u64 = 100_000;
const BACKOFF_US_MAX: u64 = 5_000_000;

/// What is written, as readiness and metrics call it.
pub mod what {
    /// The epoch log.
    pub const EPOCH_LOG: &str = "epoch_log";
    /// Checkpoints.
    pub const CHECKPOINT: &str = "checkpoint";
    /// The look for newer terms.
    pub const TERM: &str = "term";
    /// Dead letters.
    pub const DEAD_LETTERS: &str = "dead_letters";
    /// What full lanes shed.
    pub const SHED: &str = "shed";
    /// The journal.
    pub const JOURNAL: &str = "journal";
}

/// How the disk of the data directory is doing, for a process.
pub struct Disk {
    clock: Arc<dyn Clock>,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    /// Outages in which nothing may be read.
    holding: AtomicUsize,
}

impl Disk {
    /// Of a process with this clock, which tells these.
    pub fn new(clock: Arc<dyn Clock>, readiness: Arc<Readiness>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { clock, readiness, metrics, holding: AtomicUsize::new(0) })
    }

    /// One that tells nobody.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Arc<Self> {
        let metrics = Metrics::new().expect("metrics");
        Self::new(Arc::new(crate::seam::RealClock::default()), Arc::default(), metrics)
    }

    /// Whether reading waits for the disk.
    pub fn holds(&self) -> bool {
        self.holding.load(SeqCst) > 0
    }

    /// For something whose writer waits by itself.
    pub fn outage(self: &Arc<Self>, what: &'static str) -> Outage {
        self.make(what, false)
    }

    /// For something that must be written before anything more is read.
    pub fn holding_outage(self: &Arc<Self>, what: &'static str) -> Outage {
        self.make(what, true)
    }

    fn make(self: &Arc<Self>, what: &'static str, holds: bool) -> Outage {
        // Families appear with the first value: so that a rate over them starts at zero.
        self.metrics.disk_up.with_label_values(&[what]).set(1);
        self.metrics.disk_errors_total.with_label_values(&[what]);
        Outage { disk: Arc::clone(self), what, holds, on: None }
    }
}

/// Whether the disk takes one thing now, and when to try again.
pub struct Outage {
    disk: Arc<Disk>,
    what: &'static str,
    holds: bool,
    on: Option<On>,
}

struct On {
    since_us: u64,
    failures: u32,
    retry_at_us: u64,
}

impl Outage {
    /// Whether the last try failed.
    pub fn is_on(&self) -> bool {
        self.on.is_some()
    }

    /// How long until the next try: no time where none has failed.
    pub fn left(&self) -> Duration {
        let now = self.disk.clock.monotonic_us();
        Duration::from_micros(self.on.as_ref().map_or(0, |on| on.retry_at_us.saturating_sub(now)))
    }

    /// Whether to try now.
    pub fn is_due(&self) -> bool {
        self.left().is_zero()
    }

    /// A try failed.
    pub fn failed(&mut self, path: &Path, error: &io::Error) {
        self.failed_with(path.display(), error, error.kind());
    }

    /// The same for an error that says more than its kind.
    pub fn failed_with(&mut self, place: impl Display, error: impl Display, kind: io::ErrorKind) {
        let Disk { clock, readiness, metrics, holding } = &*self.disk;
        let now = clock.monotonic_us();
        if self.on.is_none() {
            holding.fetch_add(usize::from(self.holds), SeqCst);
        }
        let on = self.on.get_or_insert(On { since_us: now, failures: 0, retry_at_us: now });
        on.retry_at_us = now + (BACKOFF_US << on.failures.min(16)).min(BACKOFF_US_MAX);
        on.failures += 1;
        metrics.disk_errors_total.with_label_values(&[self.what]).inc();
        metrics.disk_up.with_label_values(&[self.what]).set(0);
        let problem = format!("{place}: {error}; {}, streamgauge goes on by itself", advice(kind));
        readiness.set_for(reason::DISK, self.what, Some(problem));
    }

    /// A try went well.
    pub fn over(&mut self) {
        let Some(on) = self.on.take() else { return };
        let Disk { clock, readiness, metrics, holding } = &*self.disk;
        holding.fetch_sub(usize::from(self.holds), SeqCst);
        metrics.disk_up.with_label_values(&[self.what]).set(1);
        readiness.set_for(reason::DISK, self.what, None);
        let waited_ms = (clock.monotonic_us() - on.since_us) / 1000;
        tracing::info!(what = self.what, waited_ms, tries = on.failures, "the disk takes what is written again");
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        // Whoever would try again is gone: nothing waits any more.
        if self.on.take().is_some() {
            self.disk.holding.fetch_sub(usize::from(self.holds), SeqCst);
            self.disk.readiness.set_for(reason::DISK, self.what, None);
        }
    }
}

/// What would be right.
fn advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::StorageFull => "free some space",
        io::ErrorKind::QuotaExceeded => "raise the quota or free some space",
        io::ErrorKind::ReadOnlyFilesystem => "make the file system writable",
        io::ErrorKind::PermissionDenied => "let this user write there",
        io::ErrorKind::NotFound => "put back what was moved or removed",
        _ => "look at the disk and at the kernel's log",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[derive(Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn wall_ms(&self) -> u64 {
            0
        }
        fn monotonic_us(&self) -> u64 {
            self.0.load(SeqCst)
        }
    }

    #[test]
    fn tries_come_less_and_less_often_and_what_is_wrong_is_said_until_one_goes_well() {
        let (hand, readiness) = (Arc::new(Hand::default()), Arc::new(Readiness::default()));
        let disk = Disk::new(hand.clone(), readiness.clone(), Metrics::new().unwrap());
        let mut outage = disk.holding_outage(what::EPOCH_LOG);
        assert!(outage.is_due() && !disk.holds());
        let mut waits = Vec::new();
        for _ in 0..8 {
            outage.failed(Path::new("/data/log"), &io::Error::from_raw_os_error(28));
            assert!(disk.holds() && !outage.is_due());
            waits.push(outage.left().as_millis());
            hand.0.fetch_add(outage.left().as_micros() as u64, SeqCst);
            assert!(outage.is_due());
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        let problem = readiness.problems().into_iter().find(|p| p.reason == reason::DISK).unwrap();
        assert_eq!(problem.about, "epoch_log");
        assert_eq!(
            problem.problem,
            "/data/log: No space left on device (os error 28); free some space, streamgauge goes on by itself"
        );
        let family = |text: &str| disk.metrics.render().lines().any(|line| line == text);
        assert!(family("streamgauge_disk_errors_total{what=\"epoch_log\"} 8"));
        assert!(family("streamgauge_disk_up{what=\"epoch_log\"} 0"));
        outage.over();
        assert!(!disk.holds() && family("streamgauge_disk_up{what=\"epoch_log\"} 1"));
        assert!(readiness.problems().iter().all(|p| p.reason != reason::DISK));
    }
}
