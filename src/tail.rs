//! A file that grows, and what of it is certain: how a write or a sync that failed is made good.
//!
//! A write that failed may have left a part of itself. A sync that failed is worse: the system may have let go of what it
//! was to write, and calls the next sync a success ("fsyncgate", PostgreSQL 2018). So no sync is ever repeated. What is
//! not certain is kept in memory; the file is cut back to what is certain, which also takes those pages out of the
//! system's cache that it only believes to be written, and the rest is written anew. The file keeps its name, so that
//! nothing else need know.

use crate::seam::{FileWriter, Fs};
use std::io;
use std::path::Path;

/// Whoever writes more than this without a sync makes one: so much is kept in memory.
pub const UNSURE_MAX: usize = 4 << 20;

/// How the file is opened: for appending, and cut back to this length.
pub type Open<'a> = &'a mut dyn FnMut(u64) -> io::Result<Box<dyn FileWriter>>;

/// The end of a file.
pub struct Tail {
    file: Option<Box<dyn FileWriter>>,
    /// Bytes that are certain.
    sure: u64,
    /// What follows them.
    rest: Vec<u8>,
    /// So much of the rest has been written, as far as the system says.
    written: usize,
}

impl Tail {
    /// Of a file whose first bytes are certain; it is opened when there is something to write.
    pub fn new(sure: u64) -> Self {
        Self { file: None, sure, rest: Vec::new(), written: 0 }
    }

    /// Bytes, with all that it was given.
    pub fn length(&self) -> u64 {
        self.sure + self.rest.len() as u64
    }
    /// Bytes that are kept in memory, because they are not certain yet.
    pub fn unsure(&self) -> usize {
        self.rest.len()
    }

    /// Takes more. From here on it is kept, whatever fails.
    pub fn give(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// Opens the file, if it is not open.
    pub fn open(&mut self, open: Open<'_>) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(open(self.sure + self.written as u64)?);
        }
        Ok(())
    }

    /// Writes what has not been written: it survives the end of this process.
    pub fn flush(&mut self, open: Open<'_>) -> io::Result<()> {
        if self.written == self.rest.len() {
            return Ok(());
        }
        self.open(open)?;
        // On an error the file stays closed: opening it again cuts off what was written of this.
        if let Some(mut file) = self.file.take() {
            file.write_all(&self.rest[self.written..])?;
            (self.file, self.written) = (Some(file), self.rest.len());
        }
        Ok(())
    }

    /// Writes this, too; after an error it has not been taken.
    pub fn append(&mut self, bytes: &[u8], open: Open<'_>) -> io::Result<()> {
        self.flush(open)?;
        let before = self.rest.len();
        self.give(bytes);
        self.flush(open).inspect_err(|_| self.rest.truncate(before))
    }

    /// Makes everything certain: it survives the end of the machine.
    pub fn sync(&mut self, open: Open<'_>) -> io::Result<()> {
        self.flush(open)?;
        if self.rest.is_empty() {
            return Ok(());
        }
        self.open(open)?;
        if let Some(mut file) = self.file.take() {
            if let Err(error) = file.sync() {
                self.written = 0;
                return Err(error);
            }
            self.file = Some(file);
        }
        self.trust();
        Ok(())
    }

    /// What is written counts as certain without a sync, where the end of the process is all that it is to survive.
    pub fn trust(&mut self) {
        self.sure += self.written as u64;
        self.rest.drain(..self.written);
        self.written = 0;
    }
}

/// Opens a file that only we write, or makes it.
pub fn open(fs: &dyn Fs, path: &Path, length: u64) -> io::Result<Box<dyn FileWriter>> {
    if length == 0 && !fs.exists(path) {
        return fs.create(path);
    }
    let mut file = fs.append(path)?;
    file.truncate(length)?;
    Ok(file)
}
