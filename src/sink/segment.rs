//! Segment files: batches that wait on disk, for lack of room or for the next start.
//!
//! A file is written once, in one go: a magic number, then one frame per batch (length, CRC-32, bytes; little-endian).
//! Whoever names a segment also names its length, frames and checksum, so that nothing cut off or changed passes.

use super::Item;
use crate::seam::Fs;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

const MAGIC: &[u8; 8] = b"sglane01";

/// A segment file, as a lane's state names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRef {
    /// Its name in the lanes' directory.
    pub name: String,
    /// Its bytes.
    pub length: u64,
    /// Its batches.
    pub frames: u32,
    /// CRC-32 of the whole file.
    pub crc: u32,
    /// Only batches of epochs below this count: replay brings the others again.
    pub below: u64,
}

/// Why a segment cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The file system says so.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not what was written.
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

/// The bytes of a segment file with these batches, and how many they are.
pub fn encode<'a, T: Item>(items: impl Iterator<Item = &'a T>) -> (Vec<u8>, u32) {
    let mut bytes = MAGIC.to_vec();
    let mut frames = 0;
    for item in items {
        let start = bytes.len();
        bytes.extend([0; 8]);
        item.encode(&mut bytes);
        let length = (bytes.len() - start - 8) as u32;
        let crc = crc32fast::hash(&bytes[start + 8..]);
        bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        bytes[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
        frames += 1;
    }
    (bytes, frames)
}

/// The batches in the bytes of a segment file.
pub fn decode<T: Item>(bytes: &[u8]) -> Result<Vec<T>, SegmentError> {
    use SegmentError::Damaged;
    let mut rest = bytes.strip_prefix(MAGIC).ok_or(Damaged("it does not begin as a segment file does"))?;
    let mut items = Vec::new();
    while !rest.is_empty() {
        let length = rest.get_u32().ok_or(Damaged("a frame is cut off"))? as usize;
        let crc = rest.get_u32().ok_or(Damaged("a frame is cut off"))?;
        let frame = rest.get(..length).ok_or(Damaged("a frame is cut off"))?;
        if crc32fast::hash(frame) != crc {
            return Err(Damaged("a frame's checksum differs"));
        }
        items.push(T::decode(frame).ok_or(Damaged("a frame cannot be read"))?);
        rest = &rest[length..];
    }
    Ok(items)
}

/// Writes batches as a new segment file; `sync` makes its bytes (not its name) durable.
pub fn write<'a, T: Item>(
    fs: &dyn Fs,
    dir: &Path,
    name: String,
    items: impl Iterator<Item = &'a T>,
    sync: bool,
) -> io::Result<SegmentRef> {
    let (bytes, frames) = encode(items);
    write_bytes(fs, &dir.join(&name), &bytes, sync)?;
    Ok(SegmentRef { name, length: bytes.len() as u64, frames, crc: crc32fast::hash(&bytes), below: u64::MAX })
}

fn write_bytes(fs: &dyn Fs, path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let mut file = fs.create(path)?;
    let written = file.write_all(bytes).and_then(|()| if sync { file.sync() } else { Ok(()) });
    if written.is_err() {
        // Half a file that nothing names: out of the way, if the disk lets us.
        let _ = fs.remove(path);
    }
    written
}

/// Writes a segment's bytes, which must be what they were, as a new file; durable but for its name.
pub fn copy(fs: &dyn Fs, dir: &Path, segment: &SegmentRef, name: String) -> Result<SegmentRef, SegmentError> {
    let bytes = verified(fs, dir, segment)?;
    write_bytes(fs, &dir.join(&name), &bytes, true)?;
    Ok(SegmentRef { name, ..segment.clone() })
}

/// The batches of a segment that count.
pub fn read<T: Item>(fs: &dyn Fs, dir: &Path, segment: &SegmentRef) -> Result<Vec<T>, SegmentError> {
    let bytes = verified(fs, dir, segment)?;
    let mut items: Vec<T> = decode(&bytes)?;
    if items.len() != segment.frames as usize {
        return Err(SegmentError::Damaged("it holds another number of batches"));
    }
    items.retain(|item| item.epoch() < segment.below);
    Ok(items)
}

/// Whether a segment is what was written.
pub fn check(fs: &dyn Fs, dir: &Path, segment: &SegmentRef) -> Result<(), SegmentError> {
    verified(fs, dir, segment).map(drop)
}

fn verified(fs: &dyn Fs, dir: &Path, segment: &SegmentRef) -> Result<Vec<u8>, SegmentError> {
    let bytes = fs.read(&dir.join(&segment.name))?;
    if bytes.len() as u64 != segment.length {
        return Err(SegmentError::Damaged("its length differs"));
    }
    if crc32fast::hash(&bytes) != segment.crc {
        return Err(SegmentError::Damaged("its checksum differs"));
    }
    Ok(bytes)
}

/// Writes fixed little-endian layouts.
pub(super) trait Put {
    fn put(&mut self, bytes: &[u8]);
    fn put_u32(&mut self, x: u32) {
        self.put(&x.to_le_bytes());
    }
    fn put_u64(&mut self, x: u64) {
        self.put(&x.to_le_bytes());
    }
    fn put_str(&mut self, text: &str) {
        self.put_u32(text.len() as u32);
        self.put(text.as_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Reads what `Put` wrote; none where it ends too early.
pub(super) trait Get<'a> {
    fn get_bytes(&mut self, count: usize) -> Option<&'a [u8]>;
    fn get_u8(&mut self) -> Option<u8> {
        Some(self.get_bytes(1)?[0])
    }
    fn get_u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.get_bytes(4)?.try_into().ok()?))
    }
    fn get_u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.get_bytes(8)?.try_into().ok()?))
    }
    fn get_str(&mut self) -> Option<&'a str> {
        let length = self.get_u32()?;
        std::str::from_utf8(self.get_bytes(length as usize)?).ok()
    }
    /// A number of things that take at least `each` bytes: never more than can be there.
    fn get_count(&mut self, each: usize) -> Option<usize>;
}

impl<'a> Get<'a> for &'a [u8] {
    fn get_bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.split_at_checked(count)?;
        *self = rest;
        Some(bytes)
    }
    fn get_count(&mut self, each: usize) -> Option<usize> {
        let count = self.get_u32()? as usize;
        (count <= self.len() / each.max(1)).then_some(count)
    }
}
