//! Files, for a process that may be replaced: there it makes nothing, renames nothing and takes nothing away.
//!
//! A process that was stopped and wakes up goes on in the middle of whatever it was doing. So each call that could touch
//! what is its successor's by now looks for a newer term first, and not some steps before. One that makes a file looks
//! afterwards: a newer term that comes later finds it, and what is refused stays empty. A file is cut through the handle
//! by which it was opened, and perhaps locked: its name may have become another file's.

use crate::seam::{FileWriter, Fs};
use crate::terms::Fence;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files of a term.
pub struct Fenced {
    fs: Arc<dyn Fs>,
    fence: Fence,
}

impl Fenced {
    /// Of the term of this fence.
    pub fn new(fs: Arc<dyn Fs>, fence: Fence) -> Arc<Self> {
        Arc::new(Self { fs, fence })
    }

    fn file(&self, file: Box<dyn FileWriter>) -> Box<dyn FileWriter> {
        Box::new(FencedFile { file, fence: self.fence.clone() })
    }
}

fn look(fence: &Fence) -> io::Result<()> {
    fence.check().map_err(|error| match error.downcast::<io::Error>() {
        Ok(error) => error,
        // Not an error of the disk: waiting does not help.
        Err(replaced) => io::Error::new(io::ErrorKind::InvalidInput, format!("{replaced:#}")),
    })
}

impl Fs for Fenced {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> {
        let file = self.fs.create(path)?;
        look(&self.fence)?;
        Ok(self.file(file))
    }
    fn append(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> {
        self.fs.append(path).map(|file| self.file(file))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        look(&self.fence)?;
        self.fs.rename(from, to)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.fs.sync_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.fs.list(path)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.fs.read(path)
    }
    fn read_from(&self, path: &Path, start: u64) -> io::Result<Vec<u8>> {
        self.fs.read_from(path, start)
    }
    fn read_range(&self, path: &Path, start: u64, count: usize) -> io::Result<Vec<u8>> {
        self.fs.read_range(path, start, count)
    }
    fn len(&self, path: &Path) -> io::Result<u64> {
        self.fs.len(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        look(&self.fence)?;
        self.fs.remove(path)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.fs.create_dir(path)
    }
    fn create_dir_new(&self, path: &Path) -> io::Result<()> {
        self.fs.create_dir_new(path)
    }
    fn exists(&self, path: &Path) -> bool {
        self.fs.exists(path)
    }
}

struct FencedFile {
    file: Box<dyn FileWriter>,
    fence: Fence,
}

impl FileWriter for FencedFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
    fn try_lock(&mut self) -> io::Result<bool> {
        self.file.try_lock()
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        look(&self.fence)?;
        self.file.truncate(length)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;
    use crate::seam::RealFs;
    use crate::terms;

    #[test]
    fn once_there_is_a_newer_term_nothing_is_written_renamed_cut_or_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, kept, new) = (dir.path().join("epochs"), dir.path().join("kept"), dir.path().join("new"));
        let term = terms::claim(&RealFs, &logs, 0).unwrap();
        let fs = Fenced::new(Arc::new(RealFs), Fence::new(Arc::new(RealFs), logs.clone(), term));
        let mut file = fs.create(&kept).unwrap();
        file.write_all(b"some").unwrap();
        file.truncate(2).unwrap();
        terms::claim(&RealFs, &logs, 0).unwrap();
        let refused = [
            file.truncate(1),
            fs.append(&kept).unwrap().truncate(1),
            fs.rename(&kept, &new),
            fs.remove(&kept),
            fs.create(&new).map(drop),
        ];
        for refused in refused {
            let error = refused.unwrap_err();
            assert!(error.to_string().contains("term 1 has been replaced by term 2"), "{error}");
        }
        assert_eq!(fs.read(&kept).unwrap(), b"so");
        assert_eq!(fs.read(&new).unwrap(), b"");
    }
}
