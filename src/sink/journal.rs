//! The journal: every alert transition, one line each, in `journal.jsonl`. Always there, in process 0.
//!
//! Part of the checkpoint: its length at the cut is recorded, and a restart cuts it back to that before replay writes the
//! rest again. So every line stands in it once, whatever dies.

use super::*;
use crate::seam::{FileWriter, Fs};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The name of the journal's lane.
pub const JOURNAL: &str = "journal";

/// The file, and how far it is good.
pub struct Journal {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    file: Option<Box<dyn FileWriter>>,
    length: u64,
    synced: bool,
    bytes: Vec<u8>,
}

impl Journal {
    /// A journal of which the first `length` bytes belong to the checkpoint.
    pub fn new(fs: Arc<dyn Fs>, path: PathBuf, length: u64) -> Self {
        Self { fs, path, file: None, length, synced: false, bytes: Vec::new() }
    }

    /// Opens it for appending, without what may lie beyond its good length.
    fn open(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            if !self.fs.exists(&self.path) {
                drop(self.fs.create(&self.path)?);
                if let Some(dir) = self.path.parent() {
                    self.fs.sync_dir(dir)?;
                }
            }
            self.fs.truncate(&self.path, self.length)?;
            self.file = Some(self.fs.append(&self.path)?);
        }
        Ok(())
    }

    fn append(&mut self) -> io::Result<()> {
        self.open()?;
        if let Some(file) = &mut self.file {
            file.write_all(&self.bytes)?;
            self.length += self.bytes.len() as u64;
            self.synced = false;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.open()?;
        if let Some(file) = self.file.as_mut().filter(|_| !self.synced) {
            file.sync()?;
            self.synced = true;
        }
        Ok(())
    }

    fn failed(&mut self, error: &io::Error) -> SinkError {
        // Perhaps half of a line was written: opening it again cuts that off.
        self.file = None;
        SinkError::Unavailable(format!("{}: {error}", self.path.display()))
    }
}

impl Sink for Journal {
    type Item = Alerts;

    fn traits(&self) -> Traits {
        Traits { in_checkpoint: true, forgets_us: 0, batch_entries: 10_000, batch_bytes: 4 << 20 }
    }

    async fn connect(&mut self, _term: u64) -> Result<(), StartError> {
        let found = self.fs.read(&self.path).map_or(0, |bytes| bytes.len() as u64);
        if found < self.length {
            return Err(StartError::Corrupt(format!(
                "{}: {found} bytes, but the checkpoint knows of {}; the file was cut or replaced",
                self.path.display(),
                self.length
            )));
        }
        self.open().map_err(|error| StartError::Io(format!("{}: {error}", self.path.display())))
    }

    async fn write(&mut self, batch: &[Alerts]) -> Result<Written, SinkError> {
        self.bytes.clear();
        let mut entries = 0;
        for alerts in batch {
            for entry in &alerts.0.alerts {
                line::write(alerts.0.epoch, entry, &mut self.bytes);
                self.bytes.push(b'\n');
                entries += 1;
            }
        }
        self.append().map_err(|error| self.failed(&error))?;
        Ok(Written { entries, ..Written::default() })
    }

    async fn take_cut(&mut self, _cut: Epoch) -> Result<Held, SinkError> {
        self.sync().map_err(|error| self.failed(&error))?;
        Ok(Held { length: Some(self.length), ..Held::default() })
    }
}
