//! A data directory held in memory, one file of which can be changed at a time.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use streamgauge::seam::{FileWriter, Fs};

/// Files by path.
#[derive(Clone, Default)]
pub struct Frozen(pub BTreeMap<PathBuf, Arc<Vec<u8>>>);

impl Frozen {
    /// All files below a folder, under paths that begin at it.
    pub fn of(folder: &Path) -> Self {
        let mut frozen = Self::default();
        frozen.add(folder, folder);
        frozen
    }
    fn add(&mut self, root: &Path, folder: &Path) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                self.add(root, &path);
            } else {
                let name = Path::new("/").join(path.strip_prefix(root).expect("below"));
                self.0.insert(name, Arc::new(std::fs::read(&path).expect("a file")));
            }
        }
    }
    /// Writes all of it below a folder.
    #[allow(dead_code, reason = "not every test writes it")]
    pub fn write(&self, folder: &Path) {
        for (path, bytes) in &self.0 {
            let path = folder.join(path.strip_prefix("/").expect("absolute"));
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, &**bytes).expect("written");
        }
    }
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

fn frozen<T>() -> io::Result<T> {
    Err(io::Error::other("reading changes nothing"))
}

impl Fs for Frozen {
    fn create(&self, _: &Path) -> io::Result<Box<dyn FileWriter>> {
        frozen()
    }
    fn append(&self, _: &Path) -> io::Result<Box<dyn FileWriter>> {
        frozen()
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        frozen()
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        frozen()
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut children: Vec<PathBuf> = Vec::new();
        for path in self.0.range(dir.to_owned()..).map(|(path, _)| path).take_while(|path| path.starts_with(dir)) {
            let name = path.strip_prefix(dir).ok().and_then(|rest| rest.components().next());
            let child = name.map(|name| dir.join(name));
            if let Some(child) = child.filter(|child| children.last() != Some(child)) {
                children.push(child);
            }
        }
        children.sort();
        if children.is_empty() { Err(missing(dir)) } else { Ok(children) }
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.get(path).map(|bytes| bytes.to_vec()).ok_or_else(|| missing(path))
    }
    fn len(&self, path: &Path) -> io::Result<u64> {
        self.0.get(path).map(|bytes| bytes.len() as u64).ok_or_else(|| missing(path))
    }
    fn remove(&self, _: &Path) -> io::Result<()> {
        frozen()
    }
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        frozen()
    }
    fn create_dir_new(&self, _: &Path) -> io::Result<()> {
        frozen()
    }
    fn exists(&self, path: &Path) -> bool {
        self.0.range(path.to_owned()..).next().is_some_and(|(found, _)| found.starts_with(path))
    }
}
