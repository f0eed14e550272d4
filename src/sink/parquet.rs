//! Readings to Parquet files: exactly once, complete files only.
//!
//! Part of the checkpoint. Rows are written to a file whose name begins with a dot; at a cut it is closed, synced and
//! listed in the lane's state; once that checkpoint is durable it gets its name, `readings-TERM-PROCESS-BELOW-SEQ.parquet`:
//! all of its rows are of epochs below that one.
//! So no reader sees a row that could vanish. A restart names what the checkpoint lists, and removes what it does not.

mod columns;
mod dictionary;
mod files;

use super::*;
use crate::seam::{Fs, make_dir};
use columns::Columns;
use files::{Name, OpenFile};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file that has grown beyond this is finished before its cut.
const FILE_BYTES: u64 = 256 << 20;

/// A directory of Parquet files.
pub struct ParquetArchive {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    process: usize,
    processes: usize,
    term: u64,
    restored: Vec<LaneState>,
    made_again: MadeAgain,
    ready: bool,
    sequence: u64,
    /// The newest epoch of which rows came.
    newest: Epoch,
    columns: Columns,
    open: Option<OpenFile>,
    /// Finished since the last cut; not renamed to their cut yet.
    finished: Vec<OpenFile>,
    /// Listed for a cut, not shown yet.
    listed: Vec<(Epoch, FileRef)>,
    /// Whether names were given that the directory may not have durably.
    renamed: bool,
}

impl ParquetArchive {
    /// In this directory; `restored` are the states of this sink's lanes that are this process' to continue.
    pub fn new(fs: Arc<dyn Fs>, dir: PathBuf, process: usize, processes: usize, restored: Vec<LaneState>) -> Self {
        Self {
            fs,
            dir,
            process,
            processes,
            term: 0,
            restored,
            made_again: MadeAgain::default(),
            ready: false,
            sequence: 0,
            newest: 0,
            columns: Columns::default(),
            open: None,
            finished: Vec::new(),
            listed: Vec::new(),
            renamed: false,
        }
    }

    /// What this run makes again, whether or not the checkpoint restored knows of this archive.
    pub fn made_again(self, made_again: MadeAgain) -> Self {
        Self { made_again, ..self }
    }

    fn sync_names(&mut self) -> Result<(), SinkError> {
        if self.renamed {
            self.fs.sync_dir(&self.dir).map_err(|error| self.failed(&error))?;
            self.renamed = false;
        }
        Ok(())
    }

    /// Names what the checkpoint lists; removes what no checkpoint will ever list.
    fn recover(&mut self) -> Result<(), StartError> {
        let dir = self.dir.clone();
        let io = |error: io::Error| start_error(&dir, &error);
        make_dir(&*self.fs, &dir).map_err(io)?;
        try_out(&*self.fs, &dir, self.process).map_err(io)?;
        for file in self.restored.iter().flat_map(|state| &state.files) {
            let hidden = dir.join(files::hidden(&file.name));
            if self.fs.exists(&hidden) {
                let found = self.fs.read(&hidden).map_err(io)?.len() as u64;
                if found != file.length {
                    return Err(StartError::Corrupt(format!(
                        "{}: {found} bytes, but the checkpoint knows of {}; an older checkpoint may be whole",
                        hidden.display(),
                        file.length
                    )));
                }
                self.fs.rename(&hidden, &dir.join(&file.name)).map_err(io)?;
            } else if !self.fs.exists(&dir.join(&file.name)) {
                // It was shown before, and whoever it was meant for has taken it.
                tracing::info!(file = file.name, "archive file that the checkpoint lists is not here any more");
            }
        }
        for path in self.fs.list(&dir).map_err(io)? {
            let Some(name) = path.file_name().and_then(|name| name.to_str()).and_then(Name::parse) else { continue };
            let mine = name.process == self.process || (self.process == 0 && name.process >= self.processes);
            if !mine || name.term >= self.term {
                continue;
            }
            if name.hidden {
                self.fs.remove(&path).map_err(io)?;
            } else if name.below.is_some_and(|below| self.made_again.covers(name.term, below)) {
                // An older checkpoint was restored than the one that showed this file: replay makes its rows again.
                let aside = dir.join(files::aside(&path));
                tracing::warn!(file = %path.display(), "archive file is newer than the checkpoint restored; set aside");
                self.fs.rename(&path, &aside).map_err(io)?;
            }
        }
        // Also what a process before this one had renamed when it died: no checkpoint lists it any more.
        self.fs.sync_dir(&dir).map_err(io)?;
        self.restored.clear();
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> SinkError {
        SinkError::Unavailable(format!("{}: {error}", self.dir.display()))
    }

    /// Hands the rows gathered so far to the open file, which is made if there is none.
    fn gather(&mut self) -> io::Result<()> {
        if self.columns.is_empty() {
            return Ok(());
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                self.sequence += 1;
                let name = files::open_name(self.term, self.process, self.sequence);
                self.open.insert(OpenFile::create(&self.fs, self.dir.join(name), self.columns.schema())?)
            }
        };
        open.append(&self.columns.take()?)
    }
}

impl Sink for ParquetArchive {
    type Item = Rows;

    fn traits(&self) -> Traits {
        Traits { in_checkpoint: true, forgets_us: 0, batch_entries: 65_536, batch_bytes: 16 << 20 }
    }

    async fn connect(&mut self, term: u64) -> Result<(), StartError> {
        self.term = term;
        if !self.ready {
            self.recover()?;
            self.ready = true;
        }
        Ok(())
    }

    async fn write(&mut self, batch: &[Rows]) -> Result<Written, SinkError> {
        // First what an earlier write left in memory: once rows are taken, this must not fail any more.
        let result = self
            .open
            .as_mut()
            .map_or(Ok(()), OpenFile::flush)
            .and_then(|()| if self.columns.len() >= columns::ROWS { self.gather() } else { Ok(()) });
        result.map_err(|error| self.failed(&error))?;
        if self.open.as_ref().is_some_and(|open| open.length() > FILE_BYTES) {
            self.finished.extend(self.open.take());
        }
        let (mut entries, mut unnamed) = (0, 0);
        for rows in batch {
            if self.columns.other_streams(&rows.batch.streams) {
                self.gather().map_err(|error| self.failed(&error))?;
            }
            self.newest = self.newest.max(rows.epoch());
            let taken = self.columns.push(rows);
            entries += taken;
            unnamed += rows.batch.rows.len() as u64 - taken;
        }
        let refused = if unnamed > 0 { vec![("unnamed", unnamed)] } else { Vec::new() };
        Ok(Written { entries, refused, ..Written::default() })
    }

    async fn take_cut(&mut self, cut: Epoch) -> Result<Held, SinkError> {
        self.gather().map_err(|error| self.failed(&error))?;
        self.finished.extend(self.open.take());
        let (mut seq, below) = (0, cut.min(self.newest + 1));
        while let Some(file) = self.finished.first_mut() {
            let sound = if file.doubtful() {
                self.sequence += 1;
                file.copy(self.dir.join(files::open_name(self.term, self.process, self.sequence)))
            } else {
                Ok(())
            };
            let finished = sound.and_then(|()| file.finish()).and_then(|()| {
                let name = files::free_name(&*self.fs, &self.dir, (self.term, self.process, below), &mut seq);
                self.fs.rename(file.path(), &self.dir.join(files::hidden(&name)))?;
                Ok(FileRef { name, length: file.length(), rows: file.rows() })
            });
            let listed = finished.map_err(|error| self.failed(&error))?;
            self.listed.push((cut, listed));
            self.finished.remove(0);
            self.renamed = true;
        }
        self.sync_names()?;
        Ok(Held { files: self.listed.iter().map(|(_, file)| file.clone()).collect(), length: None })
    }

    async fn commit(&mut self, cut: Epoch) -> Result<(), SinkError> {
        while let Some((_, file)) = self.listed.first().filter(|(of, _)| *of <= cut) {
            let hidden = self.dir.join(files::hidden(&file.name));
            self.fs.rename(&hidden, &self.dir.join(&file.name)).map_err(|error| self.failed(&error))?;
            self.listed.remove(0);
            self.renamed = true;
        }
        self.sync_names()
    }
}

/// Whether a file can be made there.
fn try_out(fs: &dyn Fs, dir: &Path, process: usize) -> io::Result<()> {
    let path = dir.join(format!(".streamgauge-try-{process}-{}", std::process::id()));
    if fs.exists(&path) {
        fs.remove(&path)?;
    }
    drop(fs.create(&path)?);
    fs.remove(&path)
}

fn start_error(dir: &Path, error: &io::Error) -> StartError {
    use io::ErrorKind::{NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    let help = match error.kind() {
        PermissionDenied => "; let this user write there, or give another path",
        ReadOnlyFilesystem => "; give a path on a disk that can be written to",
        NotADirectory | io::ErrorKind::AlreadyExists => "; give a directory, or a path where one can be made",
        _ => "",
    };
    StartError::of_disk(format!("{}: cannot write here: {error}{help}", dir.display()), error)
}

/// What `check` shows: whether the directory, or the nearest one above it that is there, can be written to.
pub fn look(fs: &dyn Fs, dir: &Path) -> Result<String, StartError> {
    let there =
        dir.ancestors().map(|a| if a.as_os_str().is_empty() { Path::new(".") } else { a }).find(|a| fs.exists(a));
    let there = there.unwrap_or(Path::new("."));
    try_out(fs, there, 0).map_err(|error| start_error(dir, &error))?;
    let new = if there == dir { "" } else { ", to be created" };
    Ok(format!("Parquet files in {}{new}", dir.display()))
}

#[cfg(test)]
mod tests;
