//! Writing a process' log.

use super::frame::{Frame, LogEnd, MAGIC, seal};
use super::{Header, term_dir};
use crate::seam::{FileWriter, Fs};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const SEGMENT_BYTES: u64 = 64 << 20;

/// What "appended" means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It survives the end of this process.
    Process,
    /// It survives the end of the machine.
    Disk,
}

/// A process' log, shared by its workers. Appending takes a lock, once per worker and epoch.
pub struct EpochLog {
    state: Mutex<State>,
    more: Condvar,
    durability: Durability,
    /// Appends so far, and those of them that are durable.
    appended: AtomicU64,
    durable: AtomicU64,
}

struct State {
    file: Box<dyn FileWriter>,
    end: LogEnd,
    segment_bytes: u64,
    header: Header,
    dir: PathBuf,
    fs: Arc<dyn Fs>,
    closed: bool,
    failed: Option<String>,
}

impl EpochLog {
    /// Begins the log of a process in its term's directory.
    pub fn create(fs: Arc<dyn Fs>, logs: &Path, header: Header, durability: Durability) -> Result<Arc<Self>> {
        Self::create_with(fs, logs, header, durability, SEGMENT_BYTES)
    }

    /// The same with segments of another size.
    pub fn create_with(
        fs: Arc<dyn Fs>,
        logs: &Path,
        header: Header,
        durability: Durability,
        segment_bytes: u64,
    ) -> Result<Arc<Self>> {
        let dir = term_dir(logs, header.term);
        let (file, end) = segment(&*fs, &dir, &header, LogEnd::start(header.term, header.process))?;
        let state = State { file, end, segment_bytes, header, dir, fs, closed: false, failed: None };
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            more: Condvar::new(),
            durability,
            appended: AtomicU64::new(0),
            durable: AtomicU64::new(0),
        }))
    }

    /// Appends frames as `Frame::encode` makes them, and says which append this was: `is_durable` tells when it counts.
    pub fn append(&self, frames: &mut [u8]) -> Result<u64> {
        let mut state = self.lock();
        if let Some(why) = &state.failed {
            bail!("epoch log: {why}");
        }
        let chain = seal(frames, state.end.chain);
        state.file.write_all(frames).context("epoch log: append")?;
        state.end.length += frames.len() as u64;
        state.end.chain = chain;
        if state.end.length > state.segment_bytes {
            state.roll(self.durability)?;
        }
        let number = self.appended.fetch_add(1, SeqCst) + 1;
        match self.durability {
            Durability::Process => self.durable.store(number, SeqCst),
            Durability::Disk => self.more.notify_one(),
        }
        Ok(number)
    }

    /// Where the log ends now.
    pub fn end(&self) -> LogEnd {
        self.lock().end
    }

    /// Whether this append, and each before it, is durable.
    pub fn is_durable(&self, append: u64) -> bool {
        self.durable.load(SeqCst) >= append
    }

    /// With `durability = "disk"`: waits for appends, and makes all of them durable. False: the log is closed.
    /// Workers look for themselves, on every tick.
    pub fn sync(&self, patience: Duration) -> Result<bool, String> {
        let mut state = self.lock();
        if !state.closed && self.appended.load(SeqCst) == self.durable.load(SeqCst) && !patience.is_zero() {
            state = self.more.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
        let appended = self.appended.load(SeqCst);
        if appended > self.durable.load(SeqCst) {
            // The lock is held while syncing: appends wait, and the next sync takes them together.
            match state.file.sync() {
                Ok(()) => self.durable.store(appended, SeqCst),
                Err(error) => {
                    let why = format!("sync: {error}");
                    state.failed = Some(why.clone());
                    return Err(why);
                }
            }
        }
        Ok(!state.closed)
    }

    /// Nothing more is appended.
    pub fn close(&self) {
        self.lock().closed = true;
        self.more.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while appending ends the process; what it left is what a crash leaves.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Goes on in another segment. The old one says so once the other is there: none can go missing unseen.
    fn roll(&mut self, durability: Durability) -> Result<()> {
        if durability == Durability::Disk {
            self.file.sync().context("epoch log: sync")?;
        }
        let next = LogEnd { segment: self.end.segment + 1, length: 0, chain: self.end.chain };
        let (file, end) = segment(&*self.fs, &self.dir, &self.header, next)?;
        let mut last = Vec::new();
        Frame::Next.encode(&mut last);
        seal(&mut last, self.end.chain);
        self.file.write_all(&last).context("epoch log: append")?;
        (self.file, self.end) = (file, end);
        Ok(())
    }
}

/// Begins a segment where a log has come to.
fn segment(fs: &dyn Fs, dir: &Path, header: &Header, at: LogEnd) -> Result<(Box<dyn FileWriter>, LogEnd)> {
    let path = dir.join(format!("process-{}.{:06}.log", header.process, at.segment));
    let mut file = fs.create(&path).with_context(|| format!("epoch log {}", path.display()))?;
    let mut bytes = MAGIC.to_vec();
    Frame::Header(Header { segment: at.segment, ..header.clone() }).encode(&mut bytes);
    let chain = seal(&mut bytes[MAGIC.len()..], at.chain);
    file.write_all(&bytes)?;
    file.sync()?;
    fs.sync_dir(dir)?;
    Ok((file, LogEnd { segment: at.segment, length: bytes.len() as u64, chain }))
}
