//! Terms: which run of the cluster may act, and what each of them found (fencing).
//!
//! A term is a folder, `term-N`, that one process creates; whoever is first has it. It announces itself to every sink
//! that can be reached, and only then looks at what earlier terms left. Its first act is its *manifest*: how long it
//! found their logs, which checkpoint it goes on from, which records are set aside. From then on the newest manifest
//! says what counts: a line of an older log before the length stated there, a checkpoint of an older term whose logs
//! ended within it. So an old process that was stopped and wakes up may write what it likes: none of it counts. It
//! looks for newer terms (`Fence`) before it commits a checkpoint, before that has an effect, once a second, and with
//! each call that could touch a file of its successor's (`fenced`).

use crate::checkpoint::{Name, read_sealed, write_sealed};
use crate::epoch_log::{self, LogEnd, LogEnds, term_dir};
use crate::error::disk_failed;
use crate::seam::{Fs, make_dir};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The format of manifests that this build writes, and reads.
pub const MANIFEST_VERSION: u16 = 1;
/// A manifest, and its copy: nothing else says what it says.
const COPIES: [&str; 2] = ["manifest.json", "manifest.copy.json"];

/// A record that is passed over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The source's name.
    pub source: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: i64,
}

/// What a term found when it began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format.
    pub version: u16,
    /// The term.
    pub term: u64,
    /// The folder of the checkpoint that it goes on from.
    pub checkpoint: Option<String>,
    /// Every older term that counts, and where its logs ended.
    pub terms: BTreeMap<u64, LogEnds>,
    /// Records that are dead letters wherever they lie.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set_aside: Vec<Place>,
}

/// What there is of terms, and what counts of them.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The terms that have a folder, ascending.
    pub all: Vec<u64>,
    /// The newest manifest; none before the first.
    pub manifest: Option<Manifest>,
}

impl History {
    /// Reads it; `before` leaves that term out, and newer ones.
    ///
    /// # Errors
    /// A manifest is damaged in both copies, or gone.
    pub fn read(fs: &dyn Fs, logs: &Path, before: Option<u64>) -> Result<Self> {
        let mut all = epoch_log::terms(fs, logs)?;
        all.retain(|term| before.is_none_or(|before| *term < before));
        for term in all.iter().rev() {
            if let Some(manifest) = read(fs, logs, *term)? {
                return Ok(Self { all, manifest: Some(manifest) });
            }
        }
        Ok(Self { all, manifest: None })
    }

    /// The lengths that count of a term's logs: none where all of them do.
    pub fn ends(&self, term: u64) -> Option<LogEnds> {
        match &self.manifest {
            Some(newest) if term == newest.term => None,
            Some(newest) => Some(newest.terms.get(&term).cloned().unwrap_or_default()),
            None => Some(LogEnds::new()),
        }
    }

    /// Whether a checkpoint counts that was written when the logs of its term ended there. One of an older term: if
    /// that term counts, if the newest has found this checkpoint or a newer one, and the logs as long.
    pub fn counts(&self, name: Name, marks: &[(u32, LogEnd)]) -> bool {
        let Some(newest) = &self.manifest else { return true };
        if name.writer < newest.term {
            let found = newest.checkpoint.as_ref().and_then(|found| Name::of(Path::new(found)));
            if !newest.terms.contains_key(&name.writer) || found.is_none_or(|found| name > found) {
                return false;
            }
        }
        match self.ends(name.term) {
            None => true,
            Some(ends) => marks.iter().all(|(process, mark)| ends.get(process).is_some_and(|end| mark.within(end))),
        }
    }
}

/// The manifest of a term; none if it ended before it had one.
fn read(fs: &dyn Fs, logs: &Path, term: u64) -> Result<Option<Manifest>> {
    let dir = term_dir(logs, term);
    let mut damage = None;
    for name in COPIES {
        let path = dir.join(name);
        if !fs.exists(&path) {
            continue;
        }
        let manifest = read_sealed(fs, &path).and_then(|body| {
            let manifest: Manifest = serde_json::from_slice(&body)?;
            ensure!(
                manifest.version == MANIFEST_VERSION,
                "format {}, but this build reads {MANIFEST_VERSION}",
                manifest.version
            );
            ensure!(manifest.term == term, "it is that of term {}", manifest.term);
            Ok(manifest)
        });
        match manifest {
            Ok(manifest) => {
                if let Some(error) = damage {
                    tracing::error!(term, error = %format!("{error:#}"), "a term's manifest is damaged, its copy is used");
                }
                return Ok(Some(manifest));
            }
            Err(error) => damage = Some(error.context(path.display().to_string())),
        }
    }
    match damage {
        Some(error) => Err(error.context(format!("which lines count of the logs before term {term} is not known"))),
        None => {
            // Logs are begun after it.
            let logged = fs.list(&dir)?.iter().any(|path| path.extension().is_some_and(|e| e == "log"));
            ensure!(!logged, "{}: the manifest is gone, and with it which lines count of older logs", dir.display());
            Ok(None)
        }
    }
}

/// Writes a term's manifest: from here on it says what counts.
pub fn write(fs: &dyn Fs, logs: &Path, manifest: &Manifest) -> Result<()> {
    let dir = term_dir(logs, manifest.term);
    let body = serde_json::to_vec_pretty(manifest)?;
    // The copy first: the manifest proper says that both are there.
    for name in COPIES.iter().rev() {
        let path = dir.join(name);
        write_sealed(fs, &path, &body).with_context(|| path.display().to_string())?;
    }
    fs.sync_dir(logs)?;
    Ok(())
}

/// Creates the folder of a term above all that there are, and above `known`. One process at a time has each.
pub fn claim(fs: &dyn Fs, logs: &Path, known: u64) -> Result<u64> {
    make_dir(fs, logs)?;
    let newest = epoch_log::terms(fs, logs)?.last().copied().unwrap_or(0);
    let Some(term) = newest.max(known).checked_add(1) else { bail!("no term is left above {newest}") };
    fs.create_dir_new(&term_dir(logs, term))
        .with_context(|| format!("term {term}: does another streamgauge begin on this data_dir right now?"))?;
    fs.sync_dir(logs)?;
    Ok(term)
}

/// Tells a process whether its term is still the newest.
#[derive(Clone)]
pub struct Fence {
    fs: Arc<dyn Fs>,
    logs: PathBuf,
    term: u64,
}

impl Fence {
    /// Of a term.
    pub fn new(fs: Arc<dyn Fs>, logs: PathBuf, term: u64) -> Self {
        Self { fs, logs, term }
    }

    /// Looks.
    ///
    /// # Errors
    /// There is a newer term, or it cannot be seen.
    pub fn check(&self) -> Result<()> {
        let newest = epoch_log::terms(&*self.fs, &self.logs)?.last().copied().unwrap_or(0);
        ensure!(
            newest <= self.term,
            "term {} has been replaced by term {newest}: another streamgauge goes on with this data_dir, and this one ends",
            self.term
        );
        Ok(())
    }

    /// What to say where that is why something failed: there is a newer term.
    pub fn replaced(&self) -> Option<anyhow::Error> {
        self.check().err().filter(|error| !disk_failed(error))
    }
}
