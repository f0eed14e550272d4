//! The seams to the world below: file system and clock, passed in, so that a simulation can replace them.
//!
//! Called per batch, never per reading.

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The file system, as far as state needs it.
pub trait Fs: Send + Sync {
    /// Creates a file that must not exist.
    fn create(&self, path: &Path) -> io::Result<Box<dyn FileWriter>>;
    /// Opens a file to append to it.
    fn append(&self, path: &Path) -> io::Result<Box<dyn FileWriter>>;
    /// Renames, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes a directory's entries durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// The entries of a directory, sorted by name.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// A file's bytes.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// A file's bytes from one on.
    fn read_from(&self, path: &Path, start: u64) -> io::Result<Vec<u8>> {
        let mut bytes = self.read(path)?;
        Ok(bytes.split_off(bytes.len().min(start as usize)))
    }
    /// So many of a file's bytes from one on, fewer at its end.
    fn read_range(&self, path: &Path, start: u64, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = self.read_from(path, start)?;
        bytes.truncate(count);
        Ok(bytes)
    }
    /// A file's length.
    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(self.read(path)?.len() as u64)
    }
    /// Removes a file, or a directory with everything in it.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Creates a directory and its parents.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates a directory that must not exist; its parent must. The one atomic "first one wins".
    fn create_dir_new(&self, path: &Path) -> io::Result<()>;
    /// Whether there is something at this path.
    fn exists(&self, path: &Path) -> bool;
}

/// An open file that grows.
pub trait FileWriter: Send {
    /// Appends all of it with as few system calls as the system allows; durable against the end of this process.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Durable against the end of the machine.
    fn sync(&mut self) -> io::Result<()>;
    /// Takes the file for this process until it is closed. False: another process has it, and may be alive.
    fn try_lock(&mut self) -> io::Result<bool> {
        Ok(true)
    }
    /// Cuts it to its first `length` bytes.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

/// Wall and monotonic time.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970.
    fn wall_ms(&self) -> u64;
    /// Microseconds since some moment of this process.
    fn monotonic_us(&self) -> u64;
}

/// The real file system.
pub struct RealFs;

impl FileWriter for fs::File {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(self, bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
    fn try_lock(&mut self) -> io::Result<bool> {
        match fs::File::try_lock(self) {
            Ok(()) => Ok(true),
            Err(fs::TryLockError::WouldBlock) => Ok(false),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

impl Fs for RealFs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> {
        Ok(Box::new(fs::File::create_new(path)?))
    }
    fn append(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> {
        Ok(Box::new(fs::OpenOptions::new().append(true).open(path)?))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut entries = fs::read_dir(path)?.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>()?;
        entries.sort();
        Ok(entries)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }
    fn read_from(&self, path: &Path, start: u64) -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        file.seek(io::SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
    fn read_range(&self, path: &Path, start: u64, count: usize) -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        file.seek(io::SeekFrom::Start(start))?;
        let mut bytes = Vec::with_capacity(count);
        file.take(count as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }
    fn create_dir_new(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }
    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }
}

/// Creates a directory and its parents, to stay: after the end of the machine, too.
///
/// A directory that is there already may be one whose maker died before its name was durable; so the names above are
/// made durable in any case, as far up as our own directories go.
pub fn make_dir(fs: &dyn Fs, path: &Path) -> io::Result<()> {
    const OURS: usize = 3; // data_dir/state/epochs
    let new = path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !fs.exists(dir)).count();
    fs.create_dir(path)?;
    for parent in path.ancestors().skip(1).take(new.max(OURS)) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match fs.sync_dir(parent) {
            // Not ours to look into: then we did not make anything in it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            done => done?,
        }
    }
    Ok(())
}

/// Writes a file beside its place, syncs it, and renames it there: a reader sees the old or the new, whole.
pub fn replace(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_with(fs, path, |file| file.write_all(bytes))
}

/// The same for bytes that are written as they are made.
pub fn replace_with(
    fs: &dyn Fs,
    path: &Path,
    write: impl FnOnce(&mut dyn FileWriter) -> io::Result<()>,
) -> io::Result<()> {
    replace_by(fs, path, &path.with_extension("tmp"), write)
}

/// The same by a file of this name.
pub fn replace_by(
    fs: &dyn Fs,
    path: &Path,
    beside: &Path,
    write: impl FnOnce(&mut dyn FileWriter) -> io::Result<()>,
) -> io::Result<()> {
    if fs.exists(beside) {
        fs.remove(beside)?;
    }
    let mut file = fs.create(beside)?;
    write(&mut *file)?;
    file.sync()?;
    fs.rename(beside, path)?;
    match path.parent() {
        Some(parent) => fs.sync_dir(parent),
        None => Ok(()),
    }
}

/// The machine's clocks.
pub struct RealClock {
    start: Instant,
}

impl Default for RealClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for RealClock {
    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
    fn monotonic_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}
