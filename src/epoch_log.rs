//! The epoch log: which offsets each epoch holds, written down before an epoch can have an effect (R1, R2).
//!
//! A term (one run of the cluster) has a log per process: segments of frames, each `length, crc32, payload`. A segment
//! begins with a header that names the term, its peers, its configuration and its streams. A worker's `Close` says
//! which ranges its epoch held and through which epoch it is closed; `Control` says what else changes an answer. The
//! term's committed end is the least epoch through which every worker is closed; lines beyond it are void.

use crate::seam::{FileWriter, Fs};
use anyhow::{Context, Result, bail};
use operators::Epoch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a worker that ends cleanly is closed through.
pub const FOR_EVER: Epoch = Epoch::MAX;
/// The format of logs that this build writes, and reads.
pub const LOG_VERSION: u16 = 1;
const SEGMENT_BYTES: u64 = 64 << 20;

/// The first frame of a segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The format.
    pub version: u16,
    /// Which run of the cluster.
    pub term: u64,
    /// The process that writes this log.
    pub process: u32,
    /// The number of processes.
    pub processes: u32,
    /// The number of workers in all processes.
    pub peers: u32,
    /// The hash of the recorded configuration in force.
    pub config: String,
    /// (source, topic) by stream number.
    pub streams: Vec<(String, String)>,
    /// Where each partition stood when the term began: (stream, partition, next offset).
    pub positions: Vec<(u16, u32, i64)>,
}

/// The records of one partition in an epoch: those before `next` that no earlier range holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// The stream, as numbered in the header.
    pub stream: u16,
    /// The partition.
    pub partition: u32,
    /// The offset after the last record.
    pub next: i64,
    /// The number of records, for gaps in offsets are normal.
    pub records: u32,
}

/// A worker has closed an epoch, and is closed through `through`.
#[derive(Clone, Debug, PartialEq)]
pub struct Close {
    /// The worker, among all peers.
    pub worker: u32,
    /// The epoch of the ranges.
    pub epoch: Epoch,
    /// No record of this worker will ever be in an epoch up to this one again.
    pub through: Epoch,
    /// What the epoch holds.
    pub ranges: Vec<Range>,
}

/// Whatever else changes an answer, at its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Control {
    /// A term begins with so many processes, all of them deaf.
    Term {
        /// How many.
        processes: u32,
    },
    /// From here on this process' silence says nothing.
    Deaf {
        /// Which.
        process: u32,
    },
    /// From here on this process hears all of its partitions.
    Hearing {
        /// Which.
        process: u32,
    },
}

/// One frame of a log.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// See [`Header`].
    Header(Header),
    /// See [`Close`].
    Close(Close),
    /// A control line at its epoch.
    Control(Epoch, Control),
}

impl Frame {
    /// Appends the frame as it lies in a log.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 8]);
        match self {
            Frame::Header(header) => {
                out.push(1);
                // A header of strings and numbers always has a JSON text.
                out.extend(serde_json::to_vec(header).unwrap_or_default());
            }
            Frame::Close(close) => {
                out.push(2);
                out.extend(close.worker.to_le_bytes());
                out.extend(close.epoch.to_le_bytes());
                out.extend(close.through.to_le_bytes());
                for range in &close.ranges {
                    out.extend(range.stream.to_le_bytes());
                    out.extend(range.partition.to_le_bytes());
                    out.extend(range.next.to_le_bytes());
                    out.extend(range.records.to_le_bytes());
                }
            }
            Frame::Control(epoch, control) => {
                let (kind, number) = match *control {
                    Control::Term { processes } => (0, processes),
                    Control::Deaf { process } => (1, process),
                    Control::Hearing { process } => (2, process),
                };
                out.push(3);
                out.extend(epoch.to_le_bytes());
                out.push(kind);
                out.extend(number.to_le_bytes());
            }
        }
        let payload = start + 8;
        let length = (out.len() - payload) as u32;
        let crc = crc32fast::hash(&out[payload..]);
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        out[start + 4..payload].copy_from_slice(&crc.to_le_bytes());
    }

    fn decode(payload: &[u8]) -> Option<Frame> {
        let (&kind, body) = payload.split_first()?;
        let mut at = Fields(body);
        match kind {
            1 => serde_json::from_slice(body).ok().map(Frame::Header),
            2 => {
                let (worker, epoch, through) = (at.u32()?, at.u64()?, at.u64()?);
                let mut ranges = Vec::with_capacity(at.0.len() / 18);
                while !at.0.is_empty() {
                    let (stream, partition) = (at.u16()?, at.u32()?);
                    ranges.push(Range { stream, partition, next: at.u64()? as i64, records: at.u32()? });
                }
                Some(Frame::Close(Close { worker, epoch, through, ranges }))
            }
            3 => {
                let epoch = at.u64()?;
                let (&kind, rest) = at.0.split_first()?;
                let number = Fields(rest).u32().filter(|_| rest.len() == 4)?;
                let control = match kind {
                    0 => Control::Term { processes: number },
                    1 => Control::Deaf { process: number },
                    2 => Control::Hearing { process: number },
                    _ => return None,
                };
                Some(Frame::Control(epoch, control))
            }
            _ => None,
        }
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

/// The frames of a segment. In a log's last segment a last frame that is torn is as if it had not been written; any
/// other damage is an error.
pub fn read_segment(bytes: &[u8], last_segment: bool) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some((head, rest)) = bytes[at..].split_first_chunk::<8>() {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let Some(payload) = rest.get(..length) else { break };
        let last = rest.len() == length;
        match (crc32fast::hash(payload) == crc).then(|| Frame::decode(payload)).flatten() {
            Some(frame) => frames.push(frame),
            None if last => break,
            None => bail!("frame at byte {at} is damaged (checksum), and more follows it"),
        }
        at += 8 + length;
    }
    if at < bytes.len() && !last_segment {
        bail!("frame at byte {at} is cut off, and another segment follows");
    }
    Ok(frames)
}

/// All that a term has logged.
#[derive(Debug)]
pub struct TermLog {
    /// The term.
    pub term: u64,
    /// Of its first process: peers, processes, configuration, streams.
    pub header: Header,
    /// The last epoch that counts: `None` if nothing was closed, [`FOR_EVER`] after a clean end.
    pub committed: Option<Epoch>,
    /// The newest epoch that any line names, void or not.
    pub newest: Epoch,
    /// A checkpoint holds everything below this epoch.
    pub cut: Epoch,
    /// Ranges of committed epochs, by (source, topic), in order of epoch and partition.
    pub ranges: Vec<(Epoch, Range)>,
    /// Control lines of committed epochs, in order.
    pub controls: Vec<(Epoch, Control)>,
}

impl TermLog {
    /// The epoch from which on the next term's beginning holds: time after it was not counted.
    pub fn boundary(&self) -> Epoch {
        match self.committed {
            Some(FOR_EVER) | None => self.newest + 1,
            Some(end) => end + 1,
        }
    }
}

/// The terms in a state directory, ascending.
pub fn terms(fs: &dyn Fs, logs: &Path) -> Result<Vec<u64>> {
    if !fs.exists(logs) {
        return Ok(Vec::new());
    }
    let mut terms: Vec<u64> =
        fs.list(logs)?.iter().filter_map(|p| p.file_name()?.to_str()?.strip_prefix("term-")?.parse().ok()).collect();
    terms.sort_unstable();
    Ok(terms)
}

/// The directory of a term.
pub fn term_dir(logs: &Path, term: u64) -> PathBuf {
    logs.join(format!("term-{term}"))
}

/// Reads all logs of a term; `None` if it ended before any was begun.
pub fn read_term(fs: &dyn Fs, logs: &Path, term: u64) -> Result<Option<TermLog>> {
    let mut header: Option<Header> = None;
    let mut closed: BTreeMap<u32, Epoch> = BTreeMap::new();
    let mut ranges = Vec::new();
    let mut controls = Vec::new();
    let mut newest = 0;
    let mut segments = fs.list(&term_dir(logs, term))?;
    segments.retain(|path| path.extension().is_some_and(|e| e == "log"));
    let process = |path: &PathBuf| path.file_stem().map(|stem| Path::new(stem).with_extension(""));
    for (n, path) in segments.iter().enumerate() {
        let last = segments.get(n + 1).is_none_or(|next| process(next) != process(path));
        let frames = fs
            .read(path)
            .map_err(Into::into)
            .and_then(|bytes| read_segment(&bytes, last))
            .with_context(|| format!("epoch log {}", path.display()))?;
        for frame in frames {
            match frame {
                Frame::Header(h) => {
                    if h.version != LOG_VERSION {
                        bail!("epoch log {}: format {}, but this build reads {LOG_VERSION}", path.display(), h.version);
                    }
                    header.get_or_insert(h);
                }
                Frame::Close(close) => {
                    newest = newest.max(close.epoch);
                    if close.through != FOR_EVER {
                        newest = newest.max(close.through);
                    }
                    let through = closed.entry(close.worker).or_default();
                    *through = (*through).max(close.through);
                    ranges.extend(close.ranges.into_iter().map(|r| (close.epoch, r)));
                }
                Frame::Control(epoch, control) => {
                    newest = newest.max(epoch);
                    controls.push((epoch, control));
                }
            }
        }
    }
    let Some(header) = header else { return Ok(None) };
    let committed =
        if closed.len() == header.peers as usize { closed.values().min().copied().filter(|e| *e > 0) } else { None };
    ranges.retain(|(epoch, _)| committed.is_some_and(|end| *epoch <= end));
    controls.retain(|(epoch, _)| committed.is_some_and(|end| *epoch <= end));
    ranges.sort_by_key(|(epoch, r)| (*epoch, r.stream, r.partition, r.next));
    controls.sort_unstable();
    Ok(Some(TermLog { term, header, committed, newest, cut: 0, ranges, controls }))
}

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
    bytes: u64,
    segment: u32,
    header: Header,
    dir: PathBuf,
    fs: Arc<dyn Fs>,
    closed: bool,
    failed: Option<String>,
}

impl EpochLog {
    /// Begins the log of a process in its term's directory.
    pub fn create(fs: Arc<dyn Fs>, logs: &Path, header: Header, durability: Durability) -> Result<Arc<Self>> {
        let dir = term_dir(logs, header.term);
        let file = segment(&*fs, &dir, &header, 0)?;
        let state = State { file, bytes: 0, segment: 0, header, dir, fs, closed: false, failed: None };
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            more: Condvar::new(),
            durability,
            appended: AtomicU64::new(0),
            durable: AtomicU64::new(0),
        }))
    }

    /// Appends whole frames, and says which append this was: `is_durable` tells when it counts.
    pub fn append(&self, frames: &[u8]) -> Result<u64> {
        let mut state = self.lock();
        if let Some(why) = &state.failed {
            bail!("epoch log: {why}");
        }
        state.file.write_all(frames).context("epoch log: append")?;
        state.bytes += frames.len() as u64;
        if state.bytes > SEGMENT_BYTES {
            if self.durability == Durability::Disk {
                state.file.sync().context("epoch log: sync")?;
            }
            state.segment += 1;
            state.file = segment(&*state.fs, &state.dir, &state.header, state.segment)?;
            state.bytes = 0;
        }
        let number = self.appended.fetch_add(1, SeqCst) + 1;
        match self.durability {
            Durability::Process => self.durable.store(number, SeqCst),
            Durability::Disk => self.more.notify_one(),
        }
        Ok(number)
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

fn segment(fs: &dyn Fs, dir: &Path, header: &Header, number: u32) -> Result<Box<dyn FileWriter>> {
    let path = dir.join(format!("process-{}.{number:06}.log", header.process));
    let mut file = fs.create(&path).with_context(|| format!("epoch log {}", path.display()))?;
    let mut frame = Vec::new();
    Frame::Header(header.clone()).encode(&mut frame);
    file.write_all(&frame)?;
    file.sync()?;
    fs.sync_dir(dir)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seam::RealFs;

    fn header(peers: u32) -> Header {
        Header {
            version: LOG_VERSION,
            term: 1,
            process: 0,
            processes: 1,
            peers,
            config: "c".into(),
            streams: vec![("s".into(), "t".into())],
            positions: vec![(0, 0, 0)],
        }
    }

    fn close(worker: u32, epoch: Epoch, through: Epoch, next: i64) -> Vec<u8> {
        let mut out = Vec::new();
        let ranges = vec![Range { stream: 0, partition: worker, next, records: 3 }];
        Frame::Close(Close { worker, epoch, through, ranges }).encode(&mut out);
        out
    }

    fn written(frames: &[Vec<u8>]) -> (tempfile::TempDir, Option<TermLog>) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("term-1")).expect("create");
        let log =
            EpochLog::create(Arc::new(RealFs), dir.path(), header(2), Durability::Process).expect("log is created");
        for frame in frames {
            log.append(frame).expect("append");
        }
        let read = read_term(&RealFs, dir.path(), 1).expect("log is read");
        (dir, read)
    }

    #[test]
    fn nothing_is_committed_before_every_worker_has_closed() {
        let (_dir, log) = written(&[close(0, 10, 12, 3)]);
        let log = log.expect("there is a log");
        assert_eq!((log.committed, log.newest, log.ranges.len()), (None, 12, 0));
        assert_eq!(log.boundary(), 13);
    }

    #[test]
    fn the_committed_end_is_the_least_over_the_workers_and_lines_beyond_are_void() {
        let (_dir, log) = written(&[close(0, 10, 12, 3), close(1, 11, 11, 3), close(0, 13, 20, 6)]);
        let log = log.expect("there is a log");
        assert_eq!(log.committed, Some(11));
        assert_eq!(log.ranges.iter().map(|r| r.0).collect::<Vec<_>>(), [10, 11]);
        assert_eq!((log.newest, log.boundary()), (20, 12));
    }

    #[test]
    fn a_clean_end_commits_everything() {
        let (_dir, log) = written(&[close(0, 10, 12, 3), close(1, 11, FOR_EVER, 3), close(0, 13, FOR_EVER, 6)]);
        let log = log.expect("there is a log");
        assert_eq!((log.committed, log.ranges.len(), log.newest), (Some(FOR_EVER), 3, 13));
    }

    #[test]
    fn a_segment_cut_at_any_byte_reads_as_its_whole_frames_and_a_flipped_bit_before_the_last_frame_is_refused() {
        let frames = [close(0, 1, 1, 1), close(1, 2, 2, 2), close(0, 3, 3, 3)];
        let bytes = frames.concat();
        for cut in 0..bytes.len() {
            let whole = frames.iter().scan(0, |end, f| {
                *end += f.len();
                Some(*end)
            });
            let expected = whole.filter(|end| *end <= cut).count();
            assert_eq!(
                read_segment(&bytes[..cut], true).expect("a torn tail is no error").len(),
                expected,
                "cut at {cut}"
            );
        }
        let last = frames[0].len() + frames[1].len();
        for at in 0..last * 8 {
            let mut flipped = bytes.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            // A flipped length may make the rest look like one torn frame; it must never read as other frames.
            if let Ok(read) = read_segment(&flipped, true) {
                let good = read_segment(&bytes, true).expect("sound");
                assert!(read.len() < good.len() && read[..] == good[..read.len()], "bit {at}");
            }
        }
    }
}
