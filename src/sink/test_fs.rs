//! Files in memory, which can be told to fail: only the tests of lanes and sinks use it.

use crate::seam::{FileWriter, Fs};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Disk {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// Bytes that may still be written.
    room: Option<u64>,
    /// Of a thousand calls that change something, so many fail.
    failing: u32,
    rng: fastrand::Rng,
}

impl Disk {
    fn change(&mut self) -> io::Result<()> {
        let fails = self.failing > 0 && self.rng.u32(0..1000) < self.failing;
        if fails { Err(io::Error::other("injected")) } else { Ok(()) }
    }
}

#[derive(Clone, Default)]
pub(crate) struct MemFs(Arc<Mutex<Disk>>);

impl MemFs {
    pub fn failing(&self, of_a_thousand: u32, seed: u64) {
        let mut disk = self.0.lock().unwrap();
        (disk.failing, disk.rng) = (of_a_thousand, fastrand::Rng::with_seed(seed));
    }
    pub fn room(&self, bytes: Option<u64>) {
        self.0.lock().unwrap().room = bytes;
    }
    pub fn names(&self) -> Vec<String> {
        let disk = self.0.lock().unwrap();
        disk.files.keys().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        self.0.lock().unwrap().files.insert(path.to_owned(), bytes);
    }
}

struct Appending(MemFs, PathBuf);

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

impl FileWriter for Appending {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.0.lock().unwrap();
        let disk = &mut *disk;
        let failed = disk.change();
        let file = disk.files.get_mut(&self.1).ok_or_else(|| not_found(&self.1))?;
        let fits = match (&failed, &mut disk.room) {
            (Err(_), _) => disk.rng.usize(0..=bytes.len()), // torn
            (Ok(()), Some(room)) => {
                let fits = bytes.len().min(*room as usize);
                *room -= fits as u64;
                fits
            }
            (Ok(()), None) => bytes.len(),
        };
        file.extend_from_slice(&bytes[..fits]);
        failed?;
        if fits < bytes.len() { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
    }
    fn sync(&mut self) -> io::Result<()> {
        self.0.0.lock().unwrap().change()
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut disk = self.0.0.lock().unwrap();
        disk.change()?;
        disk.files.get_mut(&self.1).ok_or_else(|| not_found(&self.1))?.truncate(length as usize);
        Ok(())
    }
}

impl Fs for MemFs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> {
        let mut disk = self.0.lock().unwrap();
        disk.change()?;
        if disk.files.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        disk.files.insert(path.to_owned(), Vec::new());
        Ok(Box::new(Appending(self.clone(), path.to_owned())))
    }
    fn append(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> {
        if !self.exists(path) {
            return Err(not_found(path));
        }
        Ok(Box::new(Appending(self.clone(), path.to_owned())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.change()?;
        let bytes = disk.files.remove(from).ok_or_else(|| not_found(from))?;
        disk.files.insert(to.to_owned(), bytes);
        Ok(())
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.0.lock().unwrap().change()
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.0.lock().unwrap().files.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.lock().unwrap().files.get(path).cloned().ok_or_else(|| not_found(path))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.lock().unwrap().files.remove(path).map(drop).ok_or_else(|| not_found(path))
    }
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn create_dir_new(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn exists(&self, path: &Path) -> bool {
        self.0.lock().unwrap().files.contains_key(path)
    }
}
