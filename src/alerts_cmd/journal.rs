//! The journal's file as a reader beside the running program sees it.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What is needed of a line (docs/semantics.md, section 7).
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Line {
    pub epoch: u64,
    pub n: u32,
    pub time: i64,
    state: String,
    pub rule: String,
    pub severity: String,
    pub sensor: String,
    pub metric: String,
    pub value: Option<f64>,
    pub start: i64,
    pub alert: String,
}

impl Line {
    pub fn fires(&self) -> bool {
        self.state == "firing"
    }
}

/// The journal, read from where the last reading ended.
///
/// After a crash the program cuts the file back and writes the same lines again: a file that has become shorter is read
/// from its beginning, without the lines up to the last position.
pub(super) struct Journal {
    path: PathBuf,
    read: u64,
    last: Option<(u64, u32)>,
}

impl Journal {
    pub fn open(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join("journal.jsonl");
        match File::open(&path) {
            Ok(_) => Ok(Self { path, read: 0, last: None }),
            Err(error) if error.kind() == ErrorKind::NotFound => anyhow::bail!(
                "there is no journal at {}: nothing has run with this data_dir; name the configuration that has with -c",
                path.display()
            ),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Hands over each whole line that is new. What is no line of a journal is an error that says where.
    pub fn read(&mut self, mut each: impl FnMut(Line, &str) -> Result<()>) -> Result<()> {
        let place = || format!("cannot read {}", self.path.display());
        let file = match File::open(&self.path) {
            // It is being put in its place.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            file => file.with_context(place)?,
        };
        if file.metadata().with_context(place)?.len() < self.read {
            self.read = 0;
        }
        let mut reader = BufReader::with_capacity(1 << 16, file);
        reader.seek(SeekFrom::Start(self.read)).with_context(place)?;
        let mut text = String::new();
        loop {
            text.clear();
            let length = reader.read_line(&mut text).with_context(place)?;
            // Nothing, or a line that is still being written.
            if !text.ends_with('\n') {
                return Ok(());
            }
            let text = text.trim_end();
            let line: Line = serde_json::from_str(text)
                .with_context(|| format!("{} at byte {} is no line of a journal", self.path.display(), self.read))?;
            self.read += length as u64;
            let position = (line.epoch, line.n);
            if self.last.is_none_or(|last| last < position) {
                self.last = Some(position);
                each(line, text)?;
            }
        }
    }
}
