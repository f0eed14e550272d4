//! Moments at which this process can be told to die: before and after each write, sync, rename, send and acknowledgement.
//!
//! Or to find that the disk fails. For tests with real processes (`tests/it/failpoints.rs`, `tests/it/full_disk.rs`), in
//! the program as it is shipped: nothing is compiled differently. Three environment variables, none of which a
//! configuration can set:
//!
//! - `STREAMGAUGE_FAILPOINTS=FILE` appends the name of each point to FILE when it is passed for the first time;
//! - `STREAMGAUGE_FAILPOINT=NAME:N` ends the process by SIGKILL when it passes point NAME for the Nth time;
//! - `STREAMGAUGE_FAILING_DISK=FILE`: while FILE is there and holds a number N, every Nth write, sync, rename, removal
//!   and creation fails with EIO; a write has then written half, a sync nothing. Each adds its name to `FILE.failed`.
//!
//! A name is OPERATION.WHAT.WHEN: `rename.manifest.before`, `send.alerts.after`. Without the variables files go straight
//! to the file system, and a send costs a look at a word that never changes.

use crate::seam::{FileWriter, Fs};
use std::collections::HashMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Where the process dies: NAME:N.
const DIE_AT: &str = "STREAMGAUGE_FAILPOINT";
/// While this file is there, calls of the disk fail.
const FAILING: &str = "STREAMGAUGE_FAILING_DISK";
/// Where the names of points go.
const LIST: &str = "STREAMGAUGE_FAILPOINTS";

static POINTS: LazyLock<Option<Points>> = LazyLock::new(|| {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    Points::new(std::env::var(DIE_AT).ok(), path(LIST), path(FAILING))
});

/// Passes a point of this name.
pub fn pass(operation: &str, what: impl Display, when: When) {
    if let Some(points) = &*POINTS
        && points.passed(format!("{operation}.{what}.{}", when.word()))
    {
        die();
    }
}

/// The file system, with points around what changes it, if there are any.
pub fn around(fs: Arc<dyn Fs>) -> Arc<dyn Fs> {
    if POINTS.is_some() { Arc::new(Watched(fs)) } else { fs }
}

/// On which side of what is done a point lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// It has not been done.
    Before,
    /// It has.
    After,
}

impl When {
    fn word(self) -> &'static str {
        match self {
            When::Before => "before",
            When::After => "after",
        }
    }
}

struct Points {
    /// The point to die at, and the how manieth time.
    at: Option<(String, u64)>,
    list: Option<PathBuf>,
    failing: Option<PathBuf>,
    passed: Mutex<HashMap<String, u64>>,
    /// Calls of the disk while it fails.
    calls: AtomicU64,
}

impl Points {
    fn new(at: Option<String>, list: Option<PathBuf>, failing: Option<PathBuf>) -> Option<Self> {
        let at = at.map(|text| match text.rsplit_once(':').map(|(name, n)| (name.to_owned(), n.parse())) {
            Some((name, Ok(n))) => (name, n),
            _ => (text, 1),
        });
        let some = at.is_some() || list.is_some() || failing.is_some();
        some.then(|| Self { at, list, failing, passed: Mutex::default(), calls: AtomicU64::new(0) })
    }

    /// Whether this call of the disk is one that fails.
    fn disk(&self, operation: &str, what: &str) -> io::Result<()> {
        let Some(failing) = &self.failing else { return Ok(()) };
        let every = std::fs::read_to_string(failing).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let Some(every) = every.filter(|every| *every > 0) else { return Ok(()) };
        if !(self.calls.fetch_add(1, SeqCst) + 1).is_multiple_of(every) {
            return Ok(());
        }
        append(&failing.with_extension("failed"), &format!("{operation}.{what}"))?;
        Err(io::Error::from_raw_os_error(nix::libc::EIO))
    }

    /// Counts; whether this is where to die.
    fn passed(&self, name: String) -> bool {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let count = passed.entry(name.clone()).or_insert(0);
        *count += 1;
        if *count == 1
            && let Some(list) = &self.list
            && let Err(error) = append(list, &name)
        {
            tracing::error!(%error, "{LIST}");
        }
        self.at.as_ref().is_some_and(|(at, n)| *at == name && *count == *n)
    }
}

fn append(list: &Path, name: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(list)?;
    writeln!(file, "{name}")
}

/// Whether a call of the disk is to fail.
fn disk(operation: &str, what: &str) -> io::Result<()> {
    POINTS.as_ref().map_or(Ok(()), |points| points.disk(operation, what))
}

/// As if somebody had pulled the plug of this process.
fn die() -> ! {
    // Cannot fail: it is our own process. Should it do so nevertheless, an abort is next best.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    std::process::abort()
}

/// What kind of file this is, by where it lies.
fn kind(path: &Path) -> &'static str {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let within = |folder: &str| path.components().any(|part| part.as_os_str() == folder);
    if within("epochs") {
        if name.starts_with("term-") { "term" } else { "epoch-log" }
    } else if within("checkpoints") {
        if name.starts_with("manifest") { "manifest" } else { "checkpoint" }
    } else if within("lanes") {
        "segment"
    } else if within("dead-letters") {
        "dead-letters"
    } else if within("config") {
        "config"
    } else if name.starts_with("journal") {
        "journal"
    } else if name.contains(".parquet") || name.starts_with(".open-") {
        "archive"
    } else {
        "other"
    }
}

/// A file system with points around what changes it.
struct Watched(Arc<dyn Fs>);

impl Watched {
    fn does<T>(&self, operation: &str, path: &Path, act: impl FnOnce(&dyn Fs) -> io::Result<T>) -> io::Result<T> {
        pass(operation, kind(path), When::Before);
        disk(operation, kind(path))?;
        let done = act(&*self.0)?;
        pass(operation, kind(path), When::After);
        Ok(done)
    }
    fn watched(path: &Path, inner: Box<dyn FileWriter>) -> Box<dyn FileWriter> {
        Box::new(WatchedFile { kind: kind(path), inner })
    }
}

impl Fs for Watched {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> {
        self.does("create", path, |fs| fs.create(path)).map(|file| Self::watched(path, file))
    }
    fn append(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> {
        self.0.append(path).map(|file| Self::watched(path, file))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.does("rename", to, |fs| fs.rename(from, to))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.does("sync_dir", path, |fs| fs.sync_dir(path))
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.0.list(path)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.read(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.does("remove", path, |fs| fs.remove(path))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.does("create_dir", path, |fs| fs.create_dir(path))
    }
    fn create_dir_new(&self, path: &Path) -> io::Result<()> {
        self.does("create_dir", path, |fs| fs.create_dir_new(path))
    }
    fn exists(&self, path: &Path) -> bool {
        self.0.exists(path)
    }
}

struct WatchedFile {
    kind: &'static str,
    inner: Box<dyn FileWriter>,
}

impl FileWriter for WatchedFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        pass("write", self.kind, When::Before);
        if let Err(error) = disk("write", self.kind) {
            self.inner.write_all(&bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        self.inner.write_all(bytes)?;
        pass("write", self.kind, When::After);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        pass("sync", self.kind, When::Before);
        disk("sync", self.kind)?;
        self.inner.sync()?;
        pass("sync", self.kind, When::After);
        Ok(())
    }
    fn try_lock(&mut self) -> io::Result<bool> {
        self.inner.try_lock()
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        pass("truncate", self.kind, When::Before);
        disk("truncate", self.kind)?;
        self.inner.truncate(length)?;
        pass("truncate", self.kind, When::After);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    #[test]
    fn without_a_variable_there_are_no_points() {
        assert!(Points::new(None, None, None).is_none());
    }

    #[test]
    fn a_point_is_reached_at_its_nth_passing_and_listed_once() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("points");
        let points = Points::new(Some("send.alerts.after:3".into()), Some(list.clone()), None).unwrap();
        let passed = |name: &str| points.passed(name.to_owned());
        assert_eq!(
            [passed("send.alerts.after"), passed("send.alerts.before"), passed("send.alerts.after")],
            [false; 3]
        );
        assert!(passed("send.alerts.after"));
        assert!(!passed("send.alerts.after"));
        assert_eq!(std::fs::read_to_string(list).unwrap(), "send.alerts.after\nsend.alerts.before\n");
    }

    #[test]
    fn every_nth_call_of_the_disk_fails_while_the_file_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let failing = folder.path().join("failing");
        let points = Points::new(None, None, Some(failing.clone())).unwrap();
        let fails = || (0..6).map(|_| points.disk("sync", "journal").is_err()).collect::<Vec<_>>();
        assert_eq!(fails(), [false; 6]);
        std::fs::write(&failing, "3\n").unwrap();
        assert_eq!(fails(), [false, false, true, false, false, true]);
        assert_eq!(std::fs::read_to_string(folder.path().join("failing.failed")).unwrap(), "sync.journal\n".repeat(2));
    }

    #[test]
    fn files_are_told_apart_by_their_place() {
        let layout = crate::plan::Layout::new("/data".into());
        assert_eq!(kind(&layout.logs.join("term-3")), "term");
        assert_eq!(kind(&layout.logs.join("term-3/process-0.log")), "epoch-log");
        assert_eq!(kind(&layout.checkpoints.join("3-17/manifest.tmp")), "manifest");
        assert_eq!(kind(&layout.checkpoints.join("3-17/process-0")), "checkpoint");
        assert_eq!(kind(&layout.configs.join("abc.toml")), "config");
        assert_eq!(kind(Path::new("/data/lanes/alerts-0-1-1.seg")), "segment");
        assert_eq!(kind(Path::new("/data/journal.jsonl")), "journal");
        assert_eq!(kind(Path::new("/lake/.readings-1-0-end-0.parquet")), "archive");
    }
}
