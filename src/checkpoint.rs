//! Checkpoints: one cut at an epoch, complete over all operators, positions and lanes (DESIGN.md, idea 4).
//!
//! Each process gathers the pieces of a cut from its workers and lanes, writes them beside its place, and syncs; process
//! 0 writes the manifest last, when every process' files are there. A directory without a manifest never counted.

use crate::epoch_log::{FOR_EVER, LogEnd};
use crate::error::disk_failed;
use crate::seam::{Fs, replace, replace_with};
use anyhow::{Context, Result, bail, ensure};
use operators::Epoch;
use operators::state::GroupStates;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The format of checkpoints that this build writes, and reads.
pub const CHECKPOINT_VERSION: u16 = 1;
/// The version of docs/semantics.md: equal bits are promised within one.
pub const SEMANTICS_VERSION: u16 = 1;
const MANIFEST: &str = "manifest.json";
/// What the manifest is called of one that was found damaged.
const DAMAGED: &str = "manifest.damaged";
/// So much is written at a time.
const WRITE_BYTES: usize = 1 << 20;

/// Where a partition stands at a cut.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The source's name.
    pub source: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The next offset to read.
    pub next: i64,
    /// T of R4: the greatest time stamp so far, milliseconds.
    pub time: Option<i64>,
}

/// Where a blob of an operator's state of one key group lies in its process' file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// The operator.
    pub operator: String,
    /// The key group.
    pub group: u16,
    /// Bytes before it.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// CRC-32 of its bytes.
    pub crc: u32,
}

/// What a process contributes beside its operators' state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessMeta {
    /// Its partitions.
    pub positions: Vec<Position>,
    /// Its lanes, each as the lane describes itself.
    pub lanes: Vec<serde_json::Value>,
    /// The journal's and the ledger's totals (process 0).
    pub totals: Option<serde_json::Value>,
    /// Where logs of its term ended when this was written: its own, or all of them where the term was replayed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<(u32, LogEnd)>,
    /// Where its blobs are.
    pub blobs: Vec<Blob>,
}

/// A file that belongs to a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name, beside the manifest.
    pub name: String,
    /// Its bytes.
    pub length: u64,
    /// BLAKE3 of its bytes, hex.
    pub blake3: String,
}

/// What makes a checkpoint whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// The format.
    pub version: u16,
    /// The rules by which its answers were made.
    pub semantics: u16,
    /// The term in whose log the cut lies.
    pub term: u64,
    /// The run of the cluster that wrote it: that term, or one that replayed it.
    pub writer: u64,
    /// All epochs below it are in, none at or above it. `u64::MAX`: the end of its term.
    pub cut: Epoch,
    /// The number of workers that wrote it.
    pub peers: u32,
    /// The number of processes that wrote it.
    pub processes: u32,
    /// The hash of the recorded configuration in force at the cut.
    pub config: String,
    /// The files of its processes.
    pub files: Vec<FileEntry>,
}

/// A checkpoint that was read back and found whole.
#[derive(Debug)]
pub struct Restored {
    /// Its manifest.
    pub manifest: Manifest,
    /// By process: what it contributed, and its blobs.
    pub processes: Vec<(ProcessMeta, Vec<u8>)>,
    /// Where it lies.
    pub dir: PathBuf,
}

impl Restored {
    /// The state of an operator, of the key groups that `mine` wants.
    pub fn groups<'a>(
        &'a self,
        operator: &'a str,
        mine: impl Fn(u16) -> bool + 'a,
    ) -> impl Iterator<Item = (u16, &'a [u8])> + 'a {
        self.processes.iter().flat_map(move |(meta, bytes)| {
            let blobs: Vec<(u16, &[u8])> = meta
                .blobs
                .iter()
                .filter(|b| b.operator == operator && mine(b.group))
                .map(|b| (b.group, &bytes[b.offset as usize..(b.offset + b.length) as usize]))
                .collect();
            blobs
        })
    }
    /// All positions.
    pub fn positions(&self) -> impl Iterator<Item = &Position> {
        self.processes.iter().flat_map(|(meta, _)| &meta.positions)
    }
    /// Which it is.
    pub fn name(&self) -> Name {
        let Manifest { term, cut, writer, .. } = self.manifest;
        Name { term, cut, writer }
    }
    /// Where the logs of its term ended when it was written.
    pub fn logs(&self) -> Vec<(u32, LogEnd)> {
        self.processes.iter().flat_map(|(meta, _)| meta.logs.iter().copied()).collect()
    }
    /// The totals of the ledger, if it holds any.
    pub fn totals(&self) -> Option<&serde_json::Value> {
        self.processes.iter().find_map(|(meta, _)| meta.totals.as_ref())
    }
}

/// The directories of checkpoints, oldest first, complete or not.
pub fn list(fs: &dyn Fs, dir: &Path) -> Result<Vec<PathBuf>> {
    if fs.exists(dir) { Ok(fs.list(dir)?) } else { Ok(Vec::new()) }
}

/// Whether there is a manifest in it.
pub fn is_complete(fs: &dyn Fs, checkpoint: &Path) -> bool {
    fs.exists(&checkpoint.join(MANIFEST))
}

/// Which checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The term in whose log the cut lies.
    pub term: u64,
    /// The cut.
    pub cut: Epoch,
    /// Who writes it.
    pub writer: u64,
}

impl Name {
    /// Where its files are. Older ones sort first.
    pub fn dir(&self, checkpoints: &Path) -> PathBuf {
        let Self { term, cut, writer } = self;
        if writer == term {
            checkpoints.join(format!("{term:08}-{cut:020}"))
        } else {
            checkpoints.join(format!("{term:08}-{cut:020}-{writer:08}"))
        }
    }

    /// That of a folder of checkpoints; none for another file.
    pub fn of(checkpoint: &Path) -> Option<Self> {
        let name = checkpoint.file_name()?.to_str()?;
        let mut numbers = name.split('-').map(|number| number.parse::<u64>().ok());
        let (term, cut) = (numbers.next()??, numbers.next()??);
        let of = Self { term, cut, writer: numbers.next().unwrap_or(Some(term))? };
        (of.dir(Path::new("")) == Path::new(name)).then_some(of)
    }
}

/// A checkpoint that can be restored, and those that were newer and are not whole.
#[derive(Debug, Default)]
pub struct Newest {
    /// The newest that is whole; none if none was ever completed.
    pub restored: Option<Restored>,
    /// Where damaged ones lie, the newest first, and what is wrong with them.
    pub damaged: Vec<(PathBuf, String)>,
}

/// The newest checkpoint that is whole in itself; none if none was ever completed.
///
/// # Errors
/// There are checkpoints, and none of them is whole.
pub fn newest(fs: &dyn Fs, dir: &Path) -> Result<Option<Restored>> {
    Ok(find(fs, dir, |_| true, |_| Ok(()))?.restored)
}

/// The newest checkpoint that counts, is whole, and of which `sound` finds nothing missing elsewhere.
///
/// # Errors
/// There are checkpoints, and none of them is whole; or the disk fails, which says nothing of what lies on it.
pub fn find(
    fs: &dyn Fs,
    dir: &Path,
    counts: impl Fn(&Restored) -> bool,
    sound: impl Fn(&Restored) -> Result<()>,
) -> Result<Newest> {
    let mut newest = Newest::default();
    let mut first_error = None;
    for checkpoint in list(fs, dir)?.iter().rev().filter(|c| is_complete(fs, c)) {
        match load(fs, checkpoint) {
            Ok(restored) if !counts(&restored) => {
                let path = checkpoint.display();
                tracing::warn!(checkpoint = %path, "a process that had been replaced wrote this checkpoint; it does not count");
            }
            loaded => match loaded.and_then(|restored| sound(&restored).map(|()| restored)) {
                Ok(restored) => return Ok(Newest { restored: Some(restored), ..newest }),
                Err(error) if disk_failed(&error) => {
                    let advice = format!("try again, or rename its {MANIFEST} to {DAMAGED}, and an older one is used");
                    return Err(error.context(format!("a checkpoint cannot be read; {advice}")));
                }
                Err(error) => {
                    newest.damaged.push((checkpoint.clone(), format!("{error:#}")));
                    first_error.get_or_insert(error);
                }
            },
        }
    }
    match first_error {
        None => Ok(newest),
        Some(error) => Err(error.context(format!("no checkpoint in {} is whole", dir.display()))),
    }
}

/// The checkpoints that counted once and are newer than this one: (who wrote it, its cut). They are damaged; what was
/// shown for them is made again.
pub fn newer(fs: &dyn Fs, dir: &Path, than: Name) -> Result<Vec<(u64, Epoch)>> {
    let counted = |checkpoint: &PathBuf| is_complete(fs, checkpoint) || fs.exists(&checkpoint.join(DAMAGED));
    let names = list(fs, dir)?.into_iter().filter(counted).filter_map(|checkpoint| Name::of(&checkpoint));
    Ok(names.filter(|name| *name > than).map(|name| (name.writer, name.cut)).collect())
}

/// Writes a file that begins with the checksum of the rest.
pub fn write_sealed(fs: &dyn Fs, path: &Path, body: &[u8]) -> Result<()> {
    let mut text = blake3::hash(body).to_hex().as_bytes().to_vec();
    text.push(b'\n');
    text.extend(body);
    Ok(replace(fs, path, &text)?)
}

/// Reads what `write_sealed` wrote.
pub fn read_sealed(fs: &dyn Fs, path: &Path) -> Result<Vec<u8>> {
    unseal(fs.read(path).with_context(|| path.display().to_string())?)
}

/// What stands behind the checksum.
///
/// # Errors
/// It is not what the checksum was made of.
pub fn unseal(mut text: Vec<u8>) -> Result<Vec<u8>> {
    let (sum, body) = text.split_at_checked(65).context("manifest is too short")?;
    let stated = blake3::hash(body).to_hex();
    ensure!(sum == format!("{stated}\n").as_bytes(), "manifest does not match its checksum");
    Ok(text.split_off(65))
}

/// Where logs ended when a checkpoint was written, as far as that can be read of a damaged one.
pub fn marks(fs: &dyn Fs, checkpoint: &Path) -> Option<(Name, Vec<(u32, LogEnd)>)> {
    let manifest: Manifest = serde_json::from_slice(&read_sealed(fs, &checkpoint.join(MANIFEST)).ok()?).ok()?;
    let name = Name::of(checkpoint)?;
    let right = (manifest.version, manifest.term, manifest.cut, manifest.writer);
    if right != (CHECKPOINT_VERSION, name.term, name.cut, name.writer) {
        return None;
    }
    let legible = |entry: &FileEntry| -> Option<ProcessMeta> {
        let bytes = fs.read(&checkpoint.join(&entry.name)).ok()?;
        (blake3::hash(&bytes).to_hex().as_str() == entry.blake3).then(|| serde_json::from_slice(&bytes).ok())?
    };
    let described = manifest.files.iter().filter(|entry| entry.name.ends_with(".json"));
    Some((name, described.filter_map(legible).flat_map(|meta| meta.logs).collect()))
}

/// Reads a checkpoint and verifies every byte of it.
pub fn load(fs: &dyn Fs, checkpoint: &Path) -> Result<Restored> {
    let read = |name: &str| {
        let path = checkpoint.join(name);
        fs.read(&path).with_context(|| path.display().to_string())
    };
    let body = read_sealed(fs, &checkpoint.join(MANIFEST))?;
    let manifest: Manifest = serde_json::from_slice(&body).context("manifest")?;
    ensure!(
        manifest.version == CHECKPOINT_VERSION,
        "format {}, but this build reads {CHECKPOINT_VERSION}",
        manifest.version
    );
    ensure!(
        manifest.semantics == SEMANTICS_VERSION,
        "its answers follow semantics version {}, this build follows {SEMANTICS_VERSION}",
        manifest.semantics
    );
    let Manifest { term, cut, writer, .. } = manifest;
    ensure!(Name::of(checkpoint) == Some(Name { term, cut, writer }), "its manifest is that of another checkpoint");
    let verified = |entry: &FileEntry| -> Result<Vec<u8>> {
        let bytes = read(&entry.name)?;
        ensure!(
            bytes.len() as u64 == entry.length && blake3::hash(&bytes).to_hex().as_str() == entry.blake3,
            "{} does not match its checksum",
            entry.name
        );
        Ok(bytes)
    };
    let mut processes = Vec::new();
    for pair in manifest.files.chunks(2) {
        let [meta, blobs] = pair else { bail!("manifest lists an odd number of files") };
        let meta: ProcessMeta = serde_json::from_slice(&verified(meta)?).with_context(|| meta.name.clone())?;
        let bytes = verified(blobs)?;
        for blob in &meta.blobs {
            let end = blob.offset.checked_add(blob.length).filter(|end| *end <= bytes.len() as u64);
            let Some(end) = end else { bail!("{}: a blob lies outside", blobs.name) };
            ensure!(
                crc32fast::hash(&bytes[blob.offset as usize..end as usize]) == blob.crc,
                "{}: a blob is damaged",
                blobs.name
            );
        }
        processes.push((meta, bytes));
    }
    ensure!(processes.len() == manifest.processes as usize, "manifest does not list every process");
    Ok(Restored { manifest, processes, dir: checkpoint.to_owned() })
}

/// What arrives at a process' checkpointer.
#[derive(Debug)]
pub enum Piece {
    /// Some key groups of an operator of a worker.
    State {
        /// The operator.
        operator: &'static str,
        /// Its state.
        blobs: Blobs,
        /// Nothing more of it follows.
        last: bool,
    },
    /// A worker's partitions.
    Positions(Vec<Position>),
    /// A lane.
    Lane(serde_json::Value),
    /// The ledger of process 0.
    Totals(serde_json::Value),
}

impl Piece {
    /// All of an operator's state.
    pub fn state(operator: &'static str, groups: GroupStates) -> Self {
        let mut blobs = Blobs::default();
        for (group, bytes) in groups {
            blobs.groups.push((group, bytes.len()));
            blobs.bytes.extend(bytes);
        }
        Self::State { operator, blobs, last: true }
    }
}

/// The state of some key groups, one behind the other.
#[derive(Debug, Default)]
pub struct Blobs {
    /// The groups, each with the number of its bytes.
    pub groups: Vec<(u16, usize)>,
    /// Their bytes.
    pub bytes: Vec<u8>,
}

/// What a checkpoint of a process consists of.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Pieces per cut, of all workers and lanes together; of an operator's state only the last one counts.
    pub pieces: usize,
}

/// Gathers the pieces of cuts; a state machine without threads or files.
///
/// One that waits for a lane holds the state of the whole process, and a lane may be away for days. So only two are
/// held: the oldest, which the lane names first when it is back, and the newest, at which all processes meet again. Of
/// those in between is counted only what has come.
pub struct Gathering {
    expected: Expected,
    /// How many have come, and what there is in them; none where it was let go.
    open: BTreeMap<Epoch, (usize, Option<Vec<Piece>>)>,
}

impl Gathering {
    /// For a process with so many pieces per cut.
    pub fn new(expected: Expected) -> Self {
        Self { expected, open: BTreeMap::new() }
    }
    /// The cuts that were let go, the newest last.
    pub fn let_go(&self) -> Vec<Epoch> {
        self.open.iter().filter(|(_, (_, pieces))| pieces.is_none()).map(|(cut, _)| *cut).collect()
    }
    /// Adds a piece; a cut that is complete with it is handed over, if it was held, and what is older is dropped.
    pub fn add(&mut self, cut: Epoch, piece: Piece) -> Option<Vec<Piece>> {
        if self.open.last_key_value().is_none_or(|(newest, _)| *newest < cut) {
            let held = self.open.values_mut().map(|(_, pieces)| pieces).filter(|pieces| pieces.is_some());
            held.skip(1).for_each(|pieces| *pieces = None);
            self.open.insert(cut, (0, Some(Vec::new())));
        }
        // Everybody names cuts in order: one that is not there was skipped by whoever came with a newer one first.
        let (count, pieces) = self.open.get_mut(&cut)?;
        *count += usize::from(!matches!(piece, Piece::State { last: false, .. }));
        if let Some(pieces) = pieces {
            pieces.push(piece);
        }
        if *count < self.expected.pieces {
            return None;
        }
        let (_, complete) = self.open.remove(&cut)?;
        // A worker that passed several multiples at once skipped the older: those will never be complete, and must not
        // be held as the oldest.
        self.open.retain(|other, _| *other > cut);
        complete
    }
}

/// Writes a process' files of a cut, synced; they count once the manifest is there.
pub fn write_process(
    fs: &dyn Fs,
    dir: &Path,
    (name, process): (Name, usize),
    logs: Vec<(u32, LogEnd)>,
    pieces: &[Piece],
) -> Result<u64> {
    let at = name.dir(dir);
    fs.create_dir(&at)?;
    let mut meta = ProcessMeta { logs, ..ProcessMeta::default() };
    let mut groups: BTreeMap<(&'static str, u16), &[u8]> = BTreeMap::new();
    for piece in pieces {
        match piece {
            Piece::State { operator, blobs, .. } => {
                let mut rest = blobs.bytes.as_slice();
                for (group, length) in &blobs.groups {
                    let state = rest.split_off(..*length).context("a piece of state is shorter than it says")?;
                    groups.insert((operator, *group), state);
                }
            }
            Piece::Positions(positions) => meta.positions.extend_from_slice(positions),
            Piece::Lane(lane) => meta.lanes.push(lane.clone()),
            Piece::Totals(totals) => meta.totals = Some(totals.clone()),
        }
    }
    let mut bytes = 0;
    for (&(operator, group), state) in &groups {
        meta.blobs.push(Blob {
            operator: operator.to_owned(),
            group,
            offset: bytes,
            length: state.len() as u64,
            crc: crc32fast::hash(state),
        });
        bytes += state.len() as u64;
    }
    meta.positions.sort();
    // Some blobs at a time: a second copy of all state would be the most memory that a process ever needs.
    replace_with(fs, &at.join(format!("process-{process}.bin")), |file| {
        let mut some = Vec::new();
        for state in groups.values() {
            some.extend_from_slice(state);
            if some.len() >= WRITE_BYTES {
                file.write_all(&some)?;
                some.clear();
            }
        }
        file.write_all(&some)
    })?;
    // The description comes second: process 0 waits for it.
    replace(fs, &at.join(format!("process-{process}.json")), &serde_json::to_vec(&meta)?)?;
    Ok(bytes)
}

/// Takes back what a process has written of a cut, as far as the disk lets it, if nobody can have seen it as whole.
/// False: it is whole, and may count.
pub fn take_back(fs: &dyn Fs, dir: &Path, (name, process): (Name, usize)) -> bool {
    let at = name.dir(dir);
    if fs.exists(&at.join(format!("process-{process}.json"))) {
        return false;
    }
    for ending in ["bin", "tmp"] {
        let path = at.join(format!("process-{process}.{ending}"));
        if fs.exists(&path) {
            let _ = fs.remove(&path);
        }
    }
    true
}

/// Whether every process has written its files of a cut.
pub fn all_written(fs: &dyn Fs, dir: &Path, name: Name, processes: usize) -> bool {
    let at = name.dir(dir);
    (0..processes).all(|p| fs.exists(&at.join(format!("process-{p}.json"))))
}

/// Writes the manifest: from here on the checkpoint counts. By process 0, when all files are there.
pub fn commit(fs: &dyn Fs, dir: &Path, name: Name, (processes, peers, config): (usize, usize, &str)) -> Result<()> {
    let at = name.dir(dir);
    let mut files = Vec::new();
    for process in 0..processes {
        for ending in ["json", "bin"] {
            let name = format!("process-{process}.{ending}");
            let (length, hash) = sum(fs, &at.join(&name))?;
            files.push(FileEntry { name, length, blake3: hash.to_hex().to_string() });
        }
    }
    let manifest = Manifest {
        version: CHECKPOINT_VERSION,
        semantics: SEMANTICS_VERSION,
        term: name.term,
        writer: name.writer,
        cut: name.cut,
        peers: peers as u32,
        processes: processes as u32,
        config: config.to_owned(),
        files,
    };
    write_sealed(fs, &at.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)?;
    fs.sync_dir(dir)?;
    Ok(())
}

/// A file's length and checksum; it is read in pieces, because the state of a process may be most of the memory.
fn sum(fs: &dyn Fs, path: &Path) -> Result<(u64, blake3::Hash)> {
    let (mut length, mut hasher) = (0, blake3::Hasher::new());
    loop {
        let piece = fs.read_range(path, length, WRITE_BYTES)?;
        if piece.is_empty() {
            return Ok((length, hasher.finalize()));
        }
        length += piece.len() as u64;
        hasher.update(&piece);
    }
}

/// Takes a damaged checkpoint out of those that count, for people to look at until it is older than all that are kept.
pub fn set_aside(fs: &dyn Fs, checkpoint: &Path) -> Result<()> {
    fs.rename(&checkpoint.join(MANIFEST), &checkpoint.join(DAMAGED))?;
    fs.sync_dir(checkpoint)?;
    Ok(())
}

/// Removes all complete checkpoints but the newest `keep`, and incomplete ones older than those.
pub fn prune(fs: &dyn Fs, dir: &Path, keep: usize) -> Result<()> {
    let all = list(fs, dir)?;
    let complete: Vec<&PathBuf> = all.iter().filter(|c| is_complete(fs, c)).collect();
    let Some(oldest_kept) = complete.len().checked_sub(keep).and_then(|i| complete.get(i)) else { return Ok(()) };
    for checkpoint in all.iter().filter(|c| c < oldest_kept) {
        fs.remove(checkpoint)?;
    }
    Ok(())
}

/// A cut in words.
pub fn cut_text(cut: Epoch) -> String {
    if cut == FOR_EVER { "the end of its term".to_owned() } else { format!("epoch {cut}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seam::RealFs;

    fn write(dir: &Path, cut: Epoch) {
        let pieces = vec![
            Piece::state("judge", GroupStates::from([(7, vec![1, 2, 3]), (9, vec![4])])),
            Piece::Positions(vec![Position {
                source: "s".into(),
                topic: "t".into(),
                partition: 3,
                next: 42,
                time: Some(5),
            }]),
        ];
        let name = Name { term: 1, cut, writer: 1 };
        write_process(&RealFs, dir, (name, 0), Vec::new(), &pieces).expect("written");
        assert!(all_written(&RealFs, dir, name, 1));
        commit(&RealFs, dir, name, (1, 2, "hash")).expect("committed");
    }

    fn newest(dir: &Path) -> Result<Option<Restored>> {
        super::newest(&RealFs, dir)
    }

    fn cut_dir(dir: &Path, term: u64, cut: Epoch) -> PathBuf {
        Name { term, cut, writer: term }.dir(dir)
    }

    #[test]
    fn a_checkpoint_reads_back_by_key_group() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write(dir.path(), 30_000);
        let restored = newest(dir.path()).expect("whole").expect("there");
        assert_eq!(restored.manifest.cut, 30_000);
        assert_eq!(restored.groups("judge", |g| g > 7).collect::<Vec<_>>(), [(9, &[4u8][..])]);
        assert_eq!(restored.positions().next().map(|p| p.next), Some(42));
    }

    #[test]
    fn any_flipped_bit_or_missing_tail_is_found_and_the_older_copy_is_used() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write(dir.path(), 30_000);
        write(dir.path(), 60_000);
        let newer = cut_dir(dir.path(), 1, 60_000);
        let mut damaged = 0;
        for path in RealFs.list(&newer).expect("listed") {
            let good = std::fs::read(&path).expect("read");
            for at in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[at / 8] ^= 1 << (at % 8);
                std::fs::write(&path, &bad).expect("written");
                let restored = newest(dir.path()).expect("the older is whole").expect("there");
                assert_eq!(restored.manifest.cut, 30_000, "bit {at} of {}", path.display());
                damaged += 1;
            }
            for cut in 0..good.len() {
                std::fs::write(&path, &good[..cut]).expect("written");
                let restored = newest(dir.path()).expect("the older is whole").expect("there");
                assert_eq!(restored.manifest.cut, 30_000, "{} cut at {cut}", path.display());
                damaged += 1;
            }
            std::fs::write(&path, &good).expect("written");
        }
        assert!(damaged > 5_000, "only {damaged} kinds of damage tried");
        assert_eq!(newest(dir.path()).expect("whole").expect("there").manifest.cut, 60_000);
    }

    #[test]
    fn where_none_is_whole_it_refuses() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(newest(dir.path()).expect("nothing is no error").is_none());
        write(dir.path(), 30_000);
        std::fs::write(cut_dir(dir.path(), 1, 30_000).join("process-0.bin"), b"x").expect("written");
        let error = newest(dir.path()).expect_err("damaged");
        assert!(format!("{error:#}").contains("process-0.bin does not match its checksum"), "{error:#}");
    }

    #[test]
    fn a_cut_that_a_worker_skipped_is_dropped_when_a_newer_one_is_complete() {
        let mut gathering = Gathering::new(Expected { pieces: 2 });
        let piece = || Piece::Positions(Vec::new());
        assert!(gathering.add(30, piece()).is_none());
        assert!(gathering.add(60, piece()).is_none());
        assert_eq!(gathering.add(60, piece()).map(|p| p.len()), Some(2));
        assert!(gathering.open.is_empty());
    }

    impl Gathering {
        /// The cuts whose state is in memory.
        fn held(&self) -> Vec<Epoch> {
            self.open.iter().filter(|(_, (_, pieces))| pieces.is_some()).map(|(cut, _)| *cut).collect()
        }
    }

    fn state() -> Piece {
        Piece::state("judge", GroupStates::from([(7, vec![0; 1000])]))
    }

    fn lane() -> Piece {
        Piece::Lane(serde_json::Value::Null)
    }

    #[test]
    fn while_a_lane_takes_no_cut_the_state_of_two_is_held_and_both_complete_when_it_is_back() {
        let mut gathering = Gathering::new(Expected { pieces: 2 });
        for cut in 1..=1000 {
            assert!(gathering.add(cut, state()).is_none());
            assert_eq!(gathering.held(), if cut == 1 { vec![1] } else { vec![1, cut] });
        }
        // It names all of them, one by one.
        let complete: Vec<Epoch> = (1..=1000).filter(|cut| gathering.add(*cut, lane()).is_some()).collect();
        assert_eq!(complete, [1, 1000]);
        assert!(gathering.open.is_empty());
        assert!(gathering.add(1001, state()).is_none());
        assert_eq!(gathering.add(1001, lane()).map(|pieces| pieces.len()), Some(2), "from here on all is as usual");
    }

    #[test]
    fn a_lane_that_comes_back_with_the_newest_cut_only_completes_it() {
        let mut gathering = Gathering::new(Expected { pieces: 2 });
        assert!((1..=9).all(|cut| gathering.add(cut, state()).is_none()));
        assert!(gathering.add(9, lane()).is_some());
        assert!(gathering.open.is_empty());
    }

    #[test]
    fn cuts_that_take_longer_than_their_interval_complete_though_the_oldest_was_skipped() {
        let mut gathering = Gathering::new(Expected { pieces: 2 });
        // The lane never names the first; the others it names when two more have begun.
        assert!(gathering.add(1, state()).is_none());
        let complete = (2..=21).filter(|&cut| {
            let nothing = gathering.add(cut, state()).is_none();
            assert!(nothing && gathering.held().len() <= 2);
            cut > 3 && gathering.add(cut - 2, lane()).is_some()
        });
        assert!(complete.count() > 5);
    }

    #[test]
    fn pieces_of_a_cut_that_somebody_skipped_are_not_held() {
        let mut gathering = Gathering::new(Expected { pieces: 2 });
        assert!(gathering.add(60, state()).is_none());
        assert!(gathering.add(30, state()).is_none());
        assert_eq!(gathering.held(), [60]);
        assert!(gathering.add(60, lane()).is_some());
    }

    #[test]
    fn the_newest_copies_are_kept() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        (1..=5).for_each(|n| write(dir.path(), n * 30_000));
        prune(&RealFs, dir.path(), 3).expect("pruned");
        assert_eq!(list(&RealFs, dir.path()).expect("listed").len(), 3);
        assert_eq!(newest(dir.path()).expect("whole").expect("there").manifest.cut, 150_000);
    }
}
