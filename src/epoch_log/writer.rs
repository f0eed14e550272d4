//! Writing a process' log.
//!
//! What the disk refuses is kept, and written when it takes it again: an append never fails, it only does not become
//! durable. Whoever appends holds its epoch's capability until it is, and appends nothing more while the log holds.

use super::frame::{Frame, LogEnd, MAGIC, seal};
use super::{Header, segment_path, term_dir};
use crate::outage::Outage;
use crate::seam::{Fs, replace};
use crate::tail::{self, Tail};
use anyhow::{Context, Result};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
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
    /// Whether the disk takes nothing now.
    holds: AtomicBool,
}

struct State {
    tail: Tail,
    /// Whether the segment's name and header are durable.
    begun: bool,
    /// The segment before, until it says that another follows.
    ending: Option<Ending>,
    /// Where the log ends, with all that was appended; and as far as that is durable.
    end: LogEnd,
    sure: LogEnd,
    /// Bytes of this segment that the disk has, and those of them that a frame says it has.
    synced: u64,
    said: u64,
    /// With `durability = "process"`: whether a sync of this segment failed.
    doubt: bool,
    segment_bytes: u64,
    header: Header,
    logs: PathBuf,
    fs: Arc<dyn Fs>,
    outage: Outage,
    closed: bool,
}

struct Ending {
    path: PathBuf,
    chain: u32,
    tail: Tail,
    /// Whether the disk has all of it.
    synced: bool,
    /// As of [`State`].
    doubt: bool,
    /// Whether it was given the frame that says so.
    told: bool,
}

impl EpochLog {
    /// Begins the log of a process in its term's directory.
    pub fn create(
        fs: Arc<dyn Fs>,
        logs: &Path,
        header: Header,
        durability: Durability,
        outage: Outage,
    ) -> Result<Arc<Self>> {
        Self::create_with(fs, logs, header, durability, outage, SEGMENT_BYTES)
    }

    /// The same with segments of another size.
    pub fn create_with(
        fs: Arc<dyn Fs>,
        logs: &Path,
        header: Header,
        durability: Durability,
        outage: Outage,
        segment_bytes: u64,
    ) -> Result<Arc<Self>> {
        let start = LogEnd::start(header.term, header.process);
        let mut state = State {
            tail: Tail::new(0),
            begun: false,
            ending: None,
            end: start,
            sure: start,
            synced: 0,
            said: 0,
            doubt: false,
            segment_bytes,
            logs: logs.to_owned(),
            header,
            fs,
            outage,
            closed: false,
        };
        state.begin_segment();
        let path = state.path(0);
        // One that is there already is not ours.
        let made = state.tail.open(&mut |_| state.fs.create(&path)).and_then(|()| state.settle(durability, false));
        made.with_context(|| format!("epoch log {}", path.display()))?;
        state.sure = state.end;
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            more: Condvar::new(),
            durability,
            appended: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            holds: AtomicBool::new(false),
        }))
    }

    /// Appends frames as `Frame::encode` makes them, and says which append this was: `is_durable` tells when it counts.
    pub fn append(&self, frames: &mut [u8]) -> u64 {
        let mut state = self.lock();
        if state.said < state.synced {
            // In one write with what follows.
            let mut with = Vec::with_capacity(frames.len() + 32);
            Frame::Synced(state.synced).encode(&mut with);
            with.extend_from_slice(frames);
            state.give(&mut with);
            state.said = state.synced;
        } else {
            state.give(frames);
        }
        let number = self.appended.fetch_add(1, SeqCst) + 1;
        if !state.outage.is_on() {
            if state.end.length > state.segment_bytes {
                state.roll();
            }
            self.settle(&mut state, false);
        }
        if self.durability == Durability::Disk || state.outage.is_on() {
            self.more.notify_one();
        }
        number
    }

    /// Where the log ends, as far as it is durable: what is complete lies before it.
    #[cfg(test)]
    pub fn durable_end(&self) -> LogEnd {
        self.lock().sure
    }

    /// The same, after the disk has it: a checkpoint is durable, and what it says of the log must be as durable,
    /// whatever `durability` says of the epochs after it.
    pub fn synced_end(&self) -> io::Result<LogEnd> {
        let mut state = self.lock();
        let end = state.sure;
        if self.durability == Durability::Disk || state.has(end) {
            return Ok(end);
        }
        if state.outage.is_on() {
            return Err(io::Error::other("the epoch log waits for the disk"));
        }
        let (fs, path, mut doubt) = (state.fs.clone(), state.path(end.segment), state.doubt);
        if doubt {
            certain(&*fs, &path, end.length, &mut doubt)?;
            state.tail = Tail::new(end.length);
        } else {
            // Appends need not wait. Segments before this one are synced.
            drop(state);
            let synced = certain(&*fs, &path, end.length, &mut doubt);
            state = self.lock();
            if let Err(error) = synced {
                state.doubt |= state.end.segment == end.segment;
                return Err(error);
            }
        }
        if state.end.segment == end.segment {
            (state.synced, state.doubt) = (end.length, doubt);
        }
        Ok(end)
    }

    /// Whether this append, and each before it, is durable.
    pub fn is_durable(&self, append: u64) -> bool {
        self.durable.load(SeqCst) >= append
    }

    /// Whether every append so far is durable.
    pub fn all_durable(&self) -> bool {
        self.is_durable(self.appended.load(SeqCst))
    }

    /// Whether the disk takes nothing now: then no epoch is to be closed, or what waits would grow.
    pub fn holds(&self) -> bool {
        self.holds.load(SeqCst)
    }

    /// Waits for something to do: with `durability = "disk"` makes appends durable, many at once; after the disk refused
    /// something, tries it again in time. False: the log is closed. Workers look for themselves, on every tick.
    pub fn work(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        let wait = match state.outage.is_on() {
            true => patience.min(state.outage.left()),
            false if self.all_durable() => patience,
            false => Duration::ZERO,
        };
        if !state.closed && !wait.is_zero() {
            state = self.more.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.outage.is_due() && (state.outage.is_on() || !self.all_durable()) {
            // The lock is held while syncing: appends wait, and the next sync takes them together.
            self.settle(&mut state, true);
        }
        !state.closed
    }

    /// Nothing more is appended.
    pub fn close(&self) {
        self.lock().closed = true;
        self.more.notify_all();
    }

    /// Gives the disk what it has not got; with `sync` as durable as it is to be.
    fn settle(&self, state: &mut State, sync: bool) {
        let appended = self.appended.load(SeqCst);
        match state.settle(self.durability, sync) {
            Ok(()) => {
                if sync || self.durability == Durability::Process {
                    state.sure = state.end;
                    if self.durability == Durability::Disk {
                        state.synced = state.end.length;
                    }
                    self.durable.store(appended, SeqCst);
                    state.outage.over();
                    self.holds.store(false, SeqCst);
                }
            }
            Err(error) => {
                let path = state.path(state.end.segment);
                state.outage.failed(&path, &error);
                self.holds.store(true, SeqCst);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while appending ends the process; what it left is what a crash leaves.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn path(&self, segment: u32) -> PathBuf {
        segment_path(&self.logs, self.header.term, self.header.process, segment)
    }

    /// Whether the disk has the log up to there.
    fn has(&self, end: LogEnd) -> bool {
        end.segment < self.end.segment || end.length <= self.synced
    }

    fn give(&mut self, frames: &mut [u8]) {
        self.end.chain = seal(frames, self.end.chain);
        self.end.length += frames.len() as u64;
        self.tail.give(frames);
    }

    /// Gives the new segment, whose file is not there yet, its first bytes.
    fn begin_segment(&mut self) {
        let mut bytes = MAGIC.to_vec();
        Frame::Header(Header { segment: self.end.segment, ..self.header.clone() }).encode(&mut bytes);
        self.end.chain = seal(&mut bytes[MAGIC.len()..], self.end.chain);
        self.end.length = bytes.len() as u64;
        self.tail.give(&bytes);
        (self.begun, self.synced, self.said) = (false, self.end.length, self.end.length);
    }

    /// What comes next is for another segment.
    fn roll(&mut self) {
        let tail = std::mem::replace(&mut self.tail, Tail::new(0));
        let path = self.path(self.end.segment);
        let doubt = std::mem::take(&mut self.doubt);
        self.ending = Some(Ending { path, chain: self.end.chain, tail, synced: false, doubt, told: false });
        self.end = LogEnd { segment: self.end.segment + 1, length: 0, chain: self.end.chain };
        self.begin_segment();
    }

    /// Writes what has not been written, the older segment first; after an error again from where it failed. The old
    /// segment says that another follows once that is there: none can go missing unseen. Before that the disk has all of
    /// the old one, under any durability: so what a machine without power leaves torn is in the last segment, or is the
    /// frame that announces it.
    fn settle(&mut self, durability: Durability, sync: bool) -> io::Result<()> {
        if let Some(ending) = &mut self.ending {
            ending.settle(&*self.fs, durability)?;
        }
        let (fs, path) = (&*self.fs, self.path(self.end.segment));
        let mut open = |length| tail::open(fs, &path, length);
        self.tail.flush(&mut open)?;
        if !self.begun {
            self.tail.sync(&mut open)?;
            fs.sync_dir(&term_dir(&self.logs, self.header.term))?;
            self.begun = true;
        }
        match durability {
            Durability::Process => self.tail.trust(),
            Durability::Disk if sync => self.tail.sync(&mut open)?,
            Durability::Disk => {}
        }
        if let Some(ending) = &mut self.ending {
            ending.tell();
            ending.settle(fs, durability)?;
            self.ending = None;
        }
        Ok(())
    }
}

impl Ending {
    fn tell(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            let mut last = Vec::new();
            Frame::Next.encode(&mut last);
            seal(&mut last, self.chain);
            self.tail.give(&last);
        }
    }

    fn settle(&mut self, fs: &dyn Fs, durability: Durability) -> io::Result<()> {
        let mut open = |length| tail::open(fs, &self.path, length);
        if durability == Durability::Disk {
            return self.tail.sync(&mut open);
        }
        self.tail.flush(&mut open)?;
        if !self.synced {
            let length = self.tail.length();
            certain(fs, &self.path, length, &mut self.doubt)?;
            (self.tail, self.synced) = (Tail::new(length), true);
        }
        Ok(())
    }
}

/// Makes a file durable of which nothing is kept in memory, because it is to survive the end of the process only.
///
/// After a sync that failed another one would prove nothing (`tail`). Then the file is written anew beside its place,
/// from what the system still shows; whoever has it open is to open it again.
fn certain(fs: &dyn Fs, path: &Path, length: u64, doubt: &mut bool) -> io::Result<()> {
    if *doubt {
        let mut bytes = fs.read(path)?;
        bytes.truncate(length as usize);
        replace(fs, path, &bytes)?;
        *doubt = false;
        return Ok(());
    }
    let synced = fs.append(path)?.sync();
    *doubt = synced.is_err();
    synced
}
