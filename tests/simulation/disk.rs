//! A disk that lives only in memory: what was not synced may be lost, torn or reordered when the power goes, and any
//! call may fail.
//!
//! What a machine may do to unsynced writes: a file keeps a prefix of what was appended since its last sync, with a hole
//! of zeros where blocks were written out of order; a truncation may not have happened; of the creations, renames and
//! removals in a directory since its last sync some have happened. kill -9 loses nothing of this.
//!
//! Several lives of the program may use it at once: files that are open stay so whatever becomes of their names, and a
//! lock is held until whoever has it closes the file or dies.

use crate::sleeper::Sleeper;
use fastrand::Rng;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use streamgauge::seam::{FileWriter, Fs};

/// What goes wrong, by call.
#[derive(Clone, Debug, Default)]
pub struct DiskFaults {
    /// Of 10,000 calls, so many fail with EIO.
    pub eio: u32,
    /// Calls that fail: (the first, how many, how).
    pub nth: Option<(u64, u64, Kind)>,
    /// The power or the process goes in the middle of this call, counted from the start of the run.
    pub crash_at: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Eio,
    Full,
}

#[derive(Clone, Default)]
struct File {
    bytes: Vec<u8>,
    /// So many of them survive a power cut for certain.
    synced: usize,
    /// What they were before a truncation that may not have happened.
    before: Option<Vec<u8>>,
    /// What a sync that failed let go of: a later one will not write it, and not say so.
    holes: Vec<(usize, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Dir,
    File(usize),
}

#[derive(Clone, Debug)]
enum Change {
    Put(PathBuf, Node),
    Gone(PathBuf),
    Renamed(PathBuf, PathBuf),
}

#[derive(Default)]
struct State {
    files: Vec<File>,
    names: BTreeMap<PathBuf, Node>,
    /// As of the last sync of each directory.
    durable: BTreeMap<PathBuf, Node>,
    /// By directory, since its last sync.
    changes: BTreeMap<PathBuf, Vec<Change>>,
    rng: Rng,
    failed: u64,
    trace: u64,
    /// The first is no life of the program, but of those who only want to look.
    lives: Vec<Life>,
    /// By file: who has it locked, and through which of the open ones.
    locks: BTreeMap<usize, (usize, u64)>,
    opened: u64,
}

/// What there is for one life of the program.
#[derive(Default)]
struct Life {
    faults: DiskFaults,
    /// Nothing more fits.
    full: bool,
    calls: u64,
    /// What failed: number and path of the call.
    failures: Vec<(u64, PathBuf)>,
    /// Every call fails.
    dead: bool,
}

impl State {
    fn note(&mut self, what: &str, path: &Path, number: u64) {
        let bytes = path.as_os_str().as_encoded_bytes();
        for part in [what.as_bytes(), bytes, &number.to_le_bytes()] {
            self.trace = crate::hash(self.trace, part);
        }
    }

    /// Before each call: whether it fails, and how.
    fn call(&mut self, life: usize, what: &str, path: &Path) -> Result<(), io::Error> {
        let of = &mut self.lives[life];
        if of.dead {
            return Err(io::Error::other("this life is over"));
        }
        of.calls += 1;
        let (calls, faults) = (of.calls, of.faults.clone());
        self.note(what, path, calls);
        if faults.crash_at == Some(calls) {
            self.lives[life].dead = true;
            return Err(io::Error::other("crash"));
        }
        let nth = faults.nth.filter(|(first, count, _)| (*first..first + count).contains(&calls));
        let eio = faults.eio > 0 && self.rng.u32(0..10_000) < faults.eio;
        match nth {
            Some((_, _, Kind::Eio)) => self.fail(life, path, io::Error::from_raw_os_error(5)),
            _ if eio => self.fail(life, path, io::Error::from_raw_os_error(5)),
            _ => Ok(()),
        }
    }

    /// Before each call that needs room.
    fn room(&mut self, life: usize, path: &Path) -> Result<(), io::Error> {
        let Life { faults, full, calls, .. } = &self.lives[life];
        let nth = faults.nth.filter(|(first, count, _)| (*first..first + count).contains(calls));
        let full = *full || matches!(nth, Some((_, _, Kind::Full)));
        if full { self.fail(life, path, io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }

    fn fail(&mut self, life: usize, path: &Path, error: io::Error) -> Result<(), io::Error> {
        self.failed += 1;
        let of = &mut self.lives[life];
        of.failures.push((of.calls, path.to_owned()));
        Err(error)
    }

    fn changed(&mut self, path: &Path, change: Change) {
        if let Some(dir) = path.parent() {
            self.changes.entry(dir.to_owned()).or_default().push(change);
        }
    }

    fn file(&mut self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Node::File(file)) => Ok(*file),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, path.display().to_string())),
        }
    }

    fn dir(&self, path: &Path) -> io::Result<()> {
        match self.names.get(path) {
            Some(Node::Dir) => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, path.display().to_string())),
        }
    }

    /// The names below a directory, whatever is deep.
    fn below(&self, path: &Path) -> Vec<PathBuf> {
        self.names.keys().filter(|p| p.starts_with(path)).cloned().collect()
    }

    fn power_cut(&mut self) {
        self.lives.iter_mut().skip(1).for_each(|life| life.dead = true);
        for (_, changes) in std::mem::take(&mut self.changes) {
            // A prefix, or any of them.
            let prefix = self.rng.bool().then(|| self.rng.usize(0..=changes.len()));
            for (n, change) in changes.into_iter().enumerate() {
                let happens = prefix.map_or_else(|| self.rng.bool(), |prefix| n < prefix);
                if !happens {
                    continue;
                }
                match change {
                    Change::Put(path, node) => drop(self.durable.insert(path, node)),
                    Change::Gone(path) => drop(self.durable.remove(&path)),
                    Change::Renamed(from, to) => {
                        if let Some(node) = self.durable.remove(&from) {
                            self.durable.insert(to, node);
                        }
                    }
                }
            }
        }
        // What lies in a directory that is gone is gone.
        let durable = std::mem::take(&mut self.durable);
        for (path, node) in durable {
            let there = path.parent().is_none_or(|p| p == Path::new("/") || self.durable.get(p) == Some(&Node::Dir));
            if there {
                self.durable.insert(path, node);
            }
        }
        self.names = self.durable.clone();
        for file in &mut self.files {
            for (start, end) in file.holes.drain(..) {
                file.bytes[start..end].fill(0);
            }
            match file.before.take() {
                Some(before) if self.rng.bool() => file.bytes = before,
                _ => {
                    let rest = file.bytes.len() - file.synced;
                    let kept = file.synced + self.rng.usize(0..=rest);
                    file.bytes.truncate(kept);
                    if kept > file.synced && self.rng.bool() {
                        let hole = self.rng.usize(file.synced..kept);
                        let end = self.rng.usize(hole..=kept);
                        file.bytes[hole..end].fill(0);
                    }
                }
            }
            file.synced = file.bytes.len();
        }
    }

    /// The process is gone, the machine is not: in time, all of it reaches the disk. That may be long after the next
    /// process has begun, and after the power went.
    fn settle(&mut self) {
        if self.rng.bool() {
            return;
        }
        self.changes.clear();
        self.durable = self.names.clone();
        for file in &mut self.files {
            file.synced = file.bytes.len();
            file.before = None;
            file.holes.clear();
        }
    }
}

/// The disk, for one life of the program.
#[derive(Clone)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    life: usize,
    sleeper: Arc<Sleeper>,
}

impl Disk {
    pub fn new(seed: u64) -> Self {
        let root = BTreeMap::from([(PathBuf::from("/"), Node::Dir)]);
        let (names, durable, lives) = (root.clone(), root, vec![Life::default()]);
        let state = State { rng: Rng::with_seed(seed), names, durable, lives, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), life: 0, sleeper: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a call: before it, the process may be paused, if it lives.
    fn calling(&self) -> MutexGuard<'_, State> {
        if !self.dead() {
            self.sleeper.point();
        }
        self.state()
    }

    /// The machine goes down, and whatever runs on it.
    pub fn cut_power(&self) {
        self.state().power_cut();
    }

    /// For a new life of the program, after the last one ended or was paused; `power`: the machine went down with it.
    pub fn begin(&self, faults: DiskFaults, power: bool) -> Disk {
        let mut state = self.state();
        if power {
            state.power_cut();
        } else {
            state.settle();
        }
        state.lives.push(Life { faults, ..Life::default() });
        Disk { state: self.state.clone(), life: state.lives.len() - 1, sleeper: Arc::default() }
    }

    /// What may pause this life.
    pub fn sleeper(&self) -> Arc<Sleeper> {
        self.sleeper.clone()
    }

    /// The files as they are, for whoever wants to see them.
    pub fn look(&self) -> Disk {
        Disk { state: self.state.clone(), life: 0, sleeper: Arc::default() }
    }

    /// What lies there is not what was written: one bit of a file, which the generator draws.
    pub fn flip(&self, path: &Path, rng: &mut Rng) -> io::Result<()> {
        let mut state = self.state();
        let file = state.file(path)?;
        let bytes = &mut state.files[file].bytes;
        if !bytes.is_empty() {
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u32(..8);
        }
        Ok(())
    }

    /// Ends this life: every call fails from now on, and changes nothing.
    pub fn kill(&self) {
        self.state().lives[self.life].dead = true;
    }
    pub fn dead(&self) -> bool {
        self.state().lives[self.life].dead
    }
    pub fn set_full(&self, full: bool) {
        self.state().lives[self.life].full = full;
    }
    pub fn calls(&self) -> u64 {
        self.state().lives[self.life].calls
    }
    /// Calls that were made to fail, of all lives.
    pub fn failed(&self) -> u64 {
        self.state().failed
    }
    /// What failed in this life: number and path of the call.
    pub fn failures(&self) -> Vec<(u64, PathBuf)> {
        self.state().lives[self.life].failures.clone()
    }
    pub fn trace(&self) -> u64 {
        self.state().trace
    }

    fn open(&self, state: &mut State, path: &Path, file: usize, at: Option<usize>) -> Box<dyn FileWriter> {
        state.opened += 1;
        Box::new(Open { disk: self.clone(), path: path.to_owned(), file, number: state.opened, at })
    }
}

/// An open file. It stays that file when its name goes, or becomes another one's.
struct Open {
    disk: Disk,
    path: PathBuf,
    file: usize,
    number: u64,
    /// Where it writes next; at the end, where it was opened for appending.
    at: Option<usize>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.locks.get(&self.file) == Some(&(self.disk.life, self.number)) {
            state.locks.remove(&self.file);
        }
    }
}

impl FileWriter for Open {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.calling();
        let life = self.disk.life;
        let gone = state.lives[life].dead;
        let done = state.call(life, "write", &self.path).and_then(|()| state.room(life, &self.path));
        let fits = match done {
            _ if gone => return done,
            Ok(()) => bytes.len(),
            // Torn.
            Err(_) => state.rng.usize(0..=bytes.len()),
        };
        state.note("bytes", &self.path, bytes.len() as u64);
        let file = &mut state.files[self.file];
        let at = self.at.unwrap_or(file.bytes.len());
        file.bytes.resize(file.bytes.len().max(at + fits), 0);
        file.bytes[at..at + fits].copy_from_slice(&bytes[..fits]);
        file.synced = file.synced.min(at);
        self.at = self.at.map(|at| at + fits);
        done
    }
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.calling();
        let gone = state.lives[self.disk.life].dead;
        let done = state.call(self.disk.life, "sync", &self.path);
        let file = self.file;
        match done {
            _ if gone => {}
            Ok(()) => {
                let file = &mut state.files[file];
                (file.synced, file.before) = (file.bytes.len(), None);
            }
            Err(_) if !state.lives[self.disk.life].dead => {
                let (synced, length) = (state.files[file].synced, state.files[file].bytes.len());
                let lost = state.rng.usize(synced..=length);
                state.files[file].holes.push((lost, length));
            }
            Err(_) => {}
        }
        done
    }
    fn try_lock(&mut self) -> io::Result<bool> {
        let mut state = self.disk.state();
        let ours = (self.disk.life, self.number);
        let (life, number) = *state.locks.get(&self.file).unwrap_or(&ours);
        let free = (life, number) == ours || state.lives[life].dead;
        if free {
            state.locks.insert(self.file, ours);
        }
        Ok(free)
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.disk.calling();
        state.call(self.disk.life, "truncate", &self.path)?;
        let (file, length) = (&mut state.files[self.file], length as usize);
        if length < file.bytes.len() {
            if length < file.synced && file.before.is_none() {
                file.before = Some(file.bytes[..file.synced].to_vec());
            }
            file.synced = file.synced.min(length);
            file.bytes.truncate(length);
            file.holes.iter_mut().for_each(|(start, end)| (*start, *end) = ((*start).min(length), (*end).min(length)));
        } else {
            file.bytes.resize(length, 0);
        }
        Ok(())
    }
}

impl Fs for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> {
        let mut state = self.calling();
        state.call(self.life, "create", path)?;
        state.room(self.life, path)?;
        if let Some(dir) = path.parent() {
            state.dir(dir)?;
        }
        if state.names.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let file = state.files.len();
        state.files.push(File::default());
        state.names.insert(path.to_owned(), Node::File(file));
        state.changed(path, Change::Put(path.to_owned(), Node::File(file)));
        Ok(self.open(&mut state, path, file, Some(0)))
    }
    fn append(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> {
        let mut state = self.calling();
        state.call(self.life, "append", path)?;
        let file = state.file(path)?;
        Ok(self.open(&mut state, path, file, None))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.calling();
        state.call(self.life, "rename", from)?;
        let file = state.file(from)?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), Node::File(file));
        if from.parent() == to.parent() {
            state.changed(to, Change::Renamed(from.to_owned(), to.to_owned()));
        } else {
            state.changed(from, Change::Gone(from.to_owned()));
            state.changed(to, Change::Put(to.to_owned(), Node::File(file)));
        }
        Ok(())
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.calling();
        state.call(self.life, "sync_dir", path)?;
        state.dir(path)?;
        state.changes.remove(path);
        state.durable.retain(|p, _| p.parent() != Some(path));
        let now: Vec<_> =
            state.names.iter().filter(|(p, _)| p.parent() == Some(path)).map(|(p, n)| (p.clone(), *n)).collect();
        state.durable.extend(now);
        Ok(())
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut state = self.calling();
        state.call(self.life, "list", path)?;
        state.dir(path)?;
        Ok(state.names.keys().filter(|p| p.parent() == Some(path)).cloned().collect())
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut state = self.calling();
        state.call(self.life, "read", path)?;
        let file = state.file(path)?;
        Ok(state.files[file].bytes.clone())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.calling();
        state.call(self.life, "remove", path)?;
        if !state.names.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        for gone in state.below(path).into_iter().rev() {
            state.names.remove(&gone);
            state.changed(&gone, Change::Gone(gone.clone()));
        }
        Ok(())
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.calling();
        state.call(self.life, "create_dir", path)?;
        let missing: Vec<&Path> = path.ancestors().take_while(|p| !state.names.contains_key(*p)).collect();
        for dir in missing.into_iter().rev() {
            state.room(self.life, dir)?;
            state.names.insert(dir.to_owned(), Node::Dir);
            state.changed(dir, Change::Put(dir.to_owned(), Node::Dir));
        }
        Ok(())
    }
    fn create_dir_new(&self, path: &Path) -> io::Result<()> {
        let mut state = self.calling();
        state.call(self.life, "create_dir_new", path)?;
        state.room(self.life, path)?;
        if let Some(parent) = path.parent() {
            state.dir(parent)?;
        }
        if state.names.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        state.names.insert(path.to_owned(), Node::Dir);
        state.changed(path, Change::Put(path.to_owned(), Node::Dir));
        // What makes a term.
        self.sleeper.has_term();
        Ok(())
    }
    fn exists(&self, path: &Path) -> bool {
        self.state().names.contains_key(path)
    }
}
