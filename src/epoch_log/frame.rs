//! Frames and segments: how a log lies on disk, and what reading it finds out about it.
//!
//! A segment is a magic number and frames of `length, guard, checksum, payload` (little-endian, u32 each). *Guard* is
//! the CRC-32 of the chain so far and the length, *checksum* that of the chain, the length and the payload; it is the
//! chain from there on. So a frame counts only behind the very frames that it was written behind: what was flipped,
//! taken out, put in, moved or brought from another log is found at the frame where it begins.
//!
//! What an interrupted write leaves, a tail that is shorter than its own sound head says, is as if it had not been
//! written. A machine that loses its power leaves worse: of what was not synced some blocks were written and others not,
//! in any order. So that this is not taken for damage, nor damage for this, a log says how far it is synced: every
//! append after a sync begins with [`Frame::Synced`]. A frame that is not whole is *torn* if nothing behind it says that
//! the disk had it; everything from there on had not been promised to anybody. (PostgreSQL and RocksDB's
//! `kPointInTimeRecovery` end a log at the first record that does not fit; they cannot tell a torn tail from damage in
//! the middle. What Kafka's `recovery-point-offset-checkpoint` says beside the log, these frames say in it.)

use super::{Close, Control, Header, LOG_VERSION, Range};
use anyhow::{Context, Result, bail, ensure};
use operators::Epoch;
use serde::{Deserialize, Serialize};

/// What every segment begins with.
pub(super) const MAGIC: &[u8; 8] = b"sgepoch1";
/// Bytes before a frame's payload.
const HEAD: usize = 12;

/// Where a process' log ends, or ended when somebody looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogEnd {
    /// The segment.
    pub segment: u32,
    /// Its bytes.
    pub length: u64,
    /// The checksum of all frames before.
    pub chain: u32,
}

impl LogEnd {
    /// Before the first byte of a log.
    pub fn start(term: u64, process: u32) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(MAGIC);
        hasher.update(&term.to_le_bytes());
        hasher.update(&process.to_le_bytes());
        Self { segment: 0, length: 0, chain: hasher.finalize() }
    }
    /// Whether it lies at or before another end of the same log.
    pub fn within(&self, other: &Self) -> bool {
        (self.segment, self.length) <= (other.segment, other.length)
    }
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
    /// Another segment follows. The last frame of its segment; not part of the chain, for the other is there already.
    Next,
    /// So many bytes of this segment were on the disk when this was written.
    Synced(u64),
}

impl Frame {
    /// Appends the frame, without guard and checksum: these are the log's to give (`seal`).
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD]);
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
            Frame::Next => out.push(4),
            Frame::Synced(length) => {
                out.push(5);
                out.extend(length.to_le_bytes());
            }
        }
        let length = (out.len() - start - HEAD) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// The frame that a payload holds; none if it holds none.
    pub fn decode(payload: &[u8]) -> Option<Frame> {
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
            4 if body.is_empty() => Some(Frame::Next),
            5 => at.u64().filter(|_| body.len() == 8).map(Frame::Synced),
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

/// Gives frames that follow one another their guards and checksums; returns the chain after them.
pub(super) fn seal(frames: &mut [u8], mut chain: u32) -> u32 {
    let mut rest = frames;
    while let Some((head, tail)) = rest.split_at_mut_checked(HEAD) {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let (payload, next) = tail.split_at_mut(length as usize);
        let guard = guard(chain, length);
        chain = checksum(guard, payload);
        head[4..8].copy_from_slice(&guard.to_le_bytes());
        head[8..].copy_from_slice(&chain.to_le_bytes());
        rest = next;
    }
    chain
}

fn guard(chain: u32, length: u32) -> u32 {
    checksum(chain, &length.to_le_bytes())
}

fn checksum(before: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(before);
    hasher.update(bytes);
    hasher.finalize()
}

/// What the head of a frame says: length, guard, checksum.
fn head(bytes: &[u8]) -> Option<(u32, u32, u32)> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some((word(0)?, word(4)?, word(8)?))
}

/// The payload of a frame that is whole in itself, whatever it was written behind.
fn alone(bytes: &[u8]) -> Option<&[u8]> {
    let (length, guard, sum) = head(bytes)?;
    let payload = bytes.get(HEAD..)?.get(..length as usize)?;
    // Zeros would be the checksum of nothing.
    (length > 0 && checksum(guard, payload) == sum).then_some(payload)
}

/// Whether the frame at `at`, which is not what was written, is what a machine without power may leave: no frame behind
/// it was written after a sync that it was part of. Those behind it are known by their own checksums, for what came
/// before them is not.
pub(super) fn torn(bytes: &[u8], at: usize) -> bool {
    // Whole, but not what belongs here; or a file that is another's: blocks that were not written read as zeros.
    let ours = at > 0 || bytes.iter().zip(MAGIC).all(|(byte, written)| *byte == 0 || byte == written);
    if !ours || alone(&bytes[at..]).is_some() {
        return false;
    }
    // A segment's header is synced before anything is appended.
    let in_header = at <= MAGIC.len();
    // The kind, the first byte of a payload, spares most checksums.
    let kind = |place: &usize| bytes.get(place + HEAD).is_some_and(|kind| (2..=5).contains(kind));
    !(at + 1..bytes.len()).filter(kind).any(|place| match alone(&bytes[place..]).and_then(Frame::decode) {
        Some(Frame::Synced(length)) => in_header || length > at as u64,
        found => found.is_some() && in_header,
    })
}

/// The frames of a segment, one after the other.
pub struct Frames<'a> {
    bytes: &'a [u8],
    at: usize,
    chain: u32,
    ended: bool,
}

impl<'a> Frames<'a> {
    /// Of a segment that goes on a chain.
    ///
    /// # Errors
    /// It is no segment of this format.
    pub fn new(bytes: &'a [u8], chain: u32) -> Result<Self> {
        let at = if bytes.len() < MAGIC.len() {
            ensure!(MAGIC.starts_with(bytes), "it does not begin as an epoch log does");
            0
        } else {
            let what = "it does not begin as an epoch log of format";
            ensure!(bytes.starts_with(MAGIC), "{what} {LOG_VERSION} does, which this build reads");
            MAGIC.len()
        };
        Ok(Self { bytes, at, chain, ended: at == 0 })
    }

    /// The next frame; none at the end, or where a write was interrupted.
    ///
    /// # Errors
    /// What is there is not what was written.
    pub fn read(&mut self) -> Result<Option<Frame>> {
        let rest = &self.bytes[self.at..];
        if rest.is_empty() || self.ended && self.at == 0 {
            return Ok(None);
        }
        ensure!(!self.ended, "byte {}: another segment was begun, and yet more follows here", self.at);
        let Some((length, stated, sum)) = head(rest) else { return Ok(None) };
        let guard = guard(self.chain, length);
        if guard != stated {
            // A machine that lost its power may have given the file its length, and not its bytes.
            if rest.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            bail!("frame at byte {} is damaged, or what came before it is missing (checksum of its length)", self.at);
        }
        let Some(payload) = rest.get(HEAD..).and_then(|rest| rest.get(..length as usize)) else { return Ok(None) };
        let chain = checksum(guard, payload);
        ensure!(chain == sum, "frame at byte {} is damaged (checksum)", self.at);
        let frame = Frame::decode(payload).with_context(|| format!("frame at byte {} cannot be read", self.at))?;
        self.at += HEAD + length as usize;
        if frame == Frame::Next {
            self.ended = true;
        } else {
            self.chain = chain;
        }
        Ok(Some(frame))
    }

    /// Bytes up to here, and the chain.
    pub fn end(&self) -> (u64, u32) {
        (self.at as u64, self.chain)
    }
}
