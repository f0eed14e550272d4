//! State that is damaged is found out; records that bring workers down are set aside.
//!
//! *Silently accepted* is a damage after which a start goes on without a word, and from something else than before: it
//! neither refuses, nor says that it uses an older checkpoint, nor comes to the very same state (the checkpoint's every
//! byte, the lines to replay, where epochs go on). A checkpoint that is gone, or its manifest, reads as one that was
//! never completed: an older one is used without a word, and everything since is replayed, which is the same. One result is not counted, because no format can tell it apart: the
//! log of a run that was killed may have ended earlier, if neither a checkpoint nor a later term ever saw more of it.
//! Then what is read is a beginning of what was there, whole frame by whole frame. The same holds, and is said, where the
//! end of such a log is damaged and no frame behind it says that the disk had it: that is what a power cut leaves, too.

mod common {
    pub mod frozen;
    pub mod memory;
    pub mod oracle;
    pub mod random_input;
    pub mod tested;
}

use common::frozen::Frozen;
use common::memory::{Memory, Partitions};
use common::random_input::{RULES, Recipe, SILENCE, SOURCE, records};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use streamgauge::config::{self, Loaded, Overrides};
use streamgauge::crew::Threads;
use streamgauge::error::{Exit, Failure};
use streamgauge::nodes::Trip;
use streamgauge::plan::{self, Layout};
use streamgauge::run::{Run, RunOptions, Summary};
use streamgauge::seam::{RealClock, RealFs};
use streamgauge::sink::Configured;

fn load(data: &Path, workers: usize) -> Loaded {
    let text = format!(
        "data_dir = {:?}\nworkers = {workers}\nepochs.tick = \"5ms\"\ncheckpoint.interval = \"1s\"\n{SOURCE}{RULES}{SILENCE}",
        data.display()
    );
    config::load_texts(&[("test.toml".into(), text)], &|_| None, &Overrides::default())
        .unwrap_or_else(|report| panic!("{report:?}"))
}

fn run(data: &Path, workers: usize, partitions: &Arc<Partitions>, options: RunOptions) -> Result<Summary, Failure> {
    let loaded = load(data, workers);
    let origin = Memory { partitions: partitions.clone(), seed: 1, morsel: 50 };
    let run = Run {
        pure: loaded.pure(),
        config: loaded.config,
        options: RunOptions { until_end: true, ..options },
        fs: Arc::new(RealFs),
        clock: Arc::new(RealClock::default()),
        origin: Arc::new(origin),
        destinations: Arc::new(Configured),
        crew: Arc::new(Threads),
    };
    run.go()
}

/// What there is after this part of all records.
fn part(partitions: &Partitions, fraction: f64) -> Arc<Partitions> {
    let cut = |log: &Vec<common::memory::MemoryRecord>| log[..((log.len() as f64 * fraction) as usize).max(1)].to_vec();
    Arc::new(partitions.iter().map(|(key, log)| (*key, cut(log))).collect())
}

fn journal(data: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(data.join("journal.jsonl")).expect("a journal");
    text.lines().map(str::to_owned).collect()
}

fn oracle_records(partitions: &Partitions) -> Vec<oracle::Record> {
    let record = |partition: u32, r: &common::memory::MemoryRecord| oracle::Record {
        source: "plant".into(),
        topic: "readings".into(),
        partition: partition as i32,
        offset: r.offset,
        timestamp: r.timestamp,
        payload: r.payload.clone(),
    };
    partitions.iter().flat_map(|((_, p), log)| log.iter().map(|r| record(*p, r))).collect()
}

/// What the oracle makes of the epoch log that is there, with some more lines.
fn expected(data: &Path, partitions: &Partitions, more: &[oracle::Line]) -> oracle::Outcome {
    let lines = [more, &common::oracle::lines(data)].concat();
    let pure = load(data, 1).pure();
    oracle::run(&common::oracle::config(&pure), &oracle_records(partitions), &lines).expect("the oracle")
}

fn same_counts(summary: &Summary, expected: &oracle::Outcome) {
    let summary = serde_json::to_value(summary).expect("text");
    for (name, count) in common::oracle::counts(expected) {
        assert_eq!(summary[name], count, "{name}");
    }
}

/// What a start makes of a data directory.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    checkpoint: Option<PathBuf>,
    /// The checkpoint's every byte, and what is set aside.
    state: blake3::Hash,
    /// The terms to replay, and their headers.
    terms: Vec<String>,
    lines: Vec<String>,
    /// Where epochs go on, and up to where alerts can have left.
    ends: (u64, Option<u64>),
    damaged: usize,
    /// Logs that end in what is said to be torn.
    torn: usize,
}

fn see(frozen: &Frozen) -> Result<Seen, Failure> {
    let layout = Layout::new("/".into());
    let past = plan::past(frozen, &layout, None)?;
    let streams = vec![("plant".to_owned(), "readings".to_owned())];
    let script = plan::script(&past.terms, &streams)?;
    let mut hasher = blake3::Hasher::new();
    if let Some(restored) = &past.restored {
        let manifest = serde_json::to_vec(&restored.manifest).expect("text");
        hasher.update(&manifest);
        for (meta, bytes) in &restored.processes {
            hasher.update(&serde_json::to_vec(meta).expect("text"));
            hasher.update(bytes);
        }
    }
    hasher.update(format!("{:?}", past.set_aside).as_bytes());
    Ok(Seen {
        checkpoint: past.restored.map(|r| r.dir),
        state: hasher.finalize(),
        terms: past.terms.iter().map(|t| format!("{} {:?}", t.term, t.header)).collect(),
        lines: script.iter().map(|line| format!("{line:?}")).collect(),
        ends: (past.floor, past.sent_through),
        damaged: past.damaged.len(),
        torn: past.torn.len(),
    })
}

/// A damage to a state.
#[derive(Clone, Debug)]
enum Damage {
    Cut(PathBuf, usize),
    Flip(PathBuf, usize),
    Gone(PathBuf),
    /// A file stands in for another.
    Exchanged(PathBuf, PathBuf),
    /// A folder's files stand in for another's.
    FolderExchanged(PathBuf, PathBuf),
}

impl Damage {
    fn of(&self, sound: &Frozen) -> Frozen {
        let mut frozen = sound.clone();
        match self {
            Damage::Cut(path, at) => {
                frozen.0.insert(path.clone(), Arc::new(sound.0[path][..*at].to_vec()));
            }
            Damage::Flip(path, bit) => {
                let mut bytes = sound.0[path].to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                frozen.0.insert(path.clone(), Arc::new(bytes));
            }
            Damage::Gone(path) => frozen.0.retain(|other, _| !other.starts_with(path)),
            Damage::Exchanged(path, by) => {
                frozen.0.insert(path.clone(), sound.0[by].clone());
            }
            Damage::FolderExchanged(folder, by) => {
                frozen.0.retain(|other, _| !other.starts_with(folder));
                for (path, bytes) in sound.0.iter().filter(|(path, _)| path.starts_with(by)) {
                    frozen.0.insert(folder.join(path.strip_prefix(by).expect("below")), bytes.clone());
                }
            }
        }
        frozen
    }
}

/// Every damage that there is to one state: cut at every byte, every bit, gone, exchanged.
fn damages(sound: &Frozen) -> Vec<Damage> {
    let mut all = Vec::new();
    let files: Vec<&PathBuf> =
        sound.0.keys().filter(|p| p.starts_with("/state/epochs") || p.starts_with("/state/checkpoints")).collect();
    let mut folders: BTreeMap<&Path, Vec<&Path>> = BTreeMap::new();
    for path in &files {
        let (folder, bytes) = (path.parent().expect("a folder"), &sound.0[*path]);
        let of = folders.entry(folder.parent().expect("a folder")).or_default();
        if of.last() != Some(&folder) {
            of.push(folder);
        }
        all.push(Damage::Gone((*path).clone()));
        for other in files.iter().filter(|other| *other != path && sound.0[**other] != *bytes) {
            all.push(Damage::Exchanged((*path).clone(), (*other).clone()));
        }
        all.extend((0..bytes.len()).map(|at| Damage::Cut((*path).clone(), at)));
        all.extend((0..bytes.len() * 8).map(|bit| Damage::Flip((*path).clone(), bit)));
    }
    for siblings in folders.values() {
        for folder in siblings {
            all.push(Damage::Gone(folder.to_path_buf()));
            let others = siblings.iter().filter(|other| *other != folder);
            all.extend(others.map(|by| Damage::FolderExchanged(folder.to_path_buf(), by.to_path_buf())));
        }
    }
    all
}

#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    older_used: usize,
    same: usize,
    as_if_killed_earlier: usize,
    torn_and_said: usize,
    silently_accepted: usize,
}

/// Two states: that of a clean end, and that of a kill after the second of three terms' checkpoints.
fn states() -> [(&'static str, Frozen); 2] {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let recipe = Recipe { seed: 5, records: 420, partitions: 2, sensors: 3, keyed: false };
    let partitions = records(&recipe);
    for (fraction, workers) in [(0.4, 2), (0.7, 1), (1.0, 2)] {
        run(&data, workers, &part(&partitions, fraction), RunOptions::default()).expect("a run");
    }
    assert!(journal(&data).len() > 20, "only {} alert changes", journal(&data).len());
    let clean = Frozen::of(&data);
    // The newest checkpoint is that of the clean end; without it the third term was killed.
    let mut killed = clean.clone();
    let newest = |frozen: &Frozen| {
        let complete = |p: &&PathBuf| p.ends_with("manifest.json") && p.starts_with("/state/checkpoints");
        frozen.0.keys().rfind(complete).and_then(|p| p.parent()).expect("a checkpoint").to_path_buf()
    };
    let last = newest(&killed);
    assert!(last.to_string_lossy().contains(&u64::MAX.to_string()), "{last:?}");
    killed.0.retain(|path, _| !path.starts_with(&last));
    [("after a clean end", clean), ("after a kill", killed)]
}

#[test]
fn no_damage_to_checkpoints_and_logs_is_silently_accepted() {
    let wanted: usize = std::env::var("SG_DAMAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let mut tried = 0;
    for (name, sound) in states() {
        let before = see(&sound).expect("sound");
        assert!(before.damaged == 0 && before.checkpoint.is_some());
        let all = damages(&sound);
        // Evenly over all of them; what is not a byte or a bit, always.
        let step = (all.len() * 2 / wanted).max(1);
        let mut tally = Tally::default();
        for (n, damage) in all.iter().enumerate() {
            if n % step != 0 && matches!(damage, Damage::Cut(..) | Damage::Flip(..)) {
                continue;
            }
            tried += 1;
            match see(&damage.of(&sound)) {
                Err(failure) => {
                    assert_eq!(failure.code, Exit::Corrupt, "{damage:?}: {failure}");
                    assert!(!failure.message.is_empty());
                    tally.refused += 1;
                }
                Ok(after) if after.damaged > 0 => {
                    // Said; and from the older checkpoint on everything that was to be replayed still is.
                    assert!(after.checkpoint < before.checkpoint, "{damage:?}");
                    assert!(after.lines.ends_with(&before.lines), "{damage:?}");
                    assert_eq!(after.ends, before.ends, "{damage:?}");
                    tally.older_used += 1;
                }
                Ok(after) if after == before => tally.same += 1,
                Ok(after) if after.torn > 0 => {
                    let unchanged = (&after.checkpoint, after.state) == (&before.checkpoint, before.state);
                    assert!(name == "after a kill" && unchanged && is_earlier(&after, &before), "{damage:?}");
                    tally.torn_and_said += 1;
                }
                Ok(after)
                    if matches!(damage, Damage::Gone(path) if path.starts_with("/state/checkpoints"))
                        && after.checkpoint < before.checkpoint
                        && after.lines.ends_with(&before.lines)
                        && after.ends == before.ends =>
                {
                    tally.older_used += 1;
                }
                Ok(after)
                    if name == "after a kill"
                        && (after.checkpoint.as_ref(), after.state) == (before.checkpoint.as_ref(), before.state)
                        && is_earlier(&after, &before) =>
                {
                    tally.as_if_killed_earlier += 1;
                }
                Ok(after) => {
                    println!("{name}: {damage:?}: {:?} instead of {:?}", after.checkpoint, before.checkpoint);
                    tally.silently_accepted += 1;
                }
            }
        }
        println!("{name}: {} kinds of damage, {tally:?}", all.len());
        assert_eq!(tally.silently_accepted, 0, "{name}");
        // Of the log's end only: what a checkpoint has seen is not taken for torn.
        assert!(tally.torn_and_said < all.len() / 50, "{tally:?}");
        assert!(tally.refused > 50 && tally.older_used > 1_000 && tally.same > 1_000, "{tally:?}");
    }
    common::tested::tested("damage to checkpoints and logs", tried as u64, "silently accepted: 0");
    assert!(tried >= wanted.min(20_000) / 2, "only {tried} tried");
}

/// Whether these are the lines of the same run, killed earlier: ranges from the first on, and then deaf.
fn is_earlier(after: &Seen, before: &Seen) -> bool {
    let ranges = |seen: &Seen| seen.lines.iter().filter(|l| l.contains("Range")).cloned().collect::<Vec<_>>();
    let (some, all) = (ranges(after), ranges(before));
    after.ends <= before.ends && before.terms.starts_with(&after.terms) && all.starts_with(&some)
}

#[test]
fn a_damaged_checkpoint_is_replaced_by_an_older_one_and_the_end_is_the_same() {
    let recipe = Recipe { seed: 7, records: 2_500, partitions: 3, sensors: 9, keyed: false };
    let partitions = records(&recipe);
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    run(&data, 2, &part(&partitions, 0.5), RunOptions::default()).expect("a run");
    let checkpoints = Layout::new(data.clone()).checkpoints;
    let sound = Frozen::of(&data);
    let newest = streamgauge::checkpoint::newest(&RealFs, &checkpoints).expect("sound").expect("a checkpoint").dir;
    for file in ["manifest.json", "process-0.json", "process-0.bin"] {
        let data = folder.path().join(file);
        sound.write(&data);
        let path = Layout::new(data.clone()).checkpoints.join(newest.file_name().expect("a name")).join(file);
        let mut bytes = std::fs::read(&path).expect("a file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(&path, bytes).expect("written");
        let summary =
            run(&data, 1, &Arc::new(partitions.clone()), RunOptions::default()).expect("an older one is used");
        let expected = expected(&data, &partitions, &[]);
        assert_eq!(journal(&data), expected.journal, "{file}");
        let counts = oracle::total(&expected.counts);
        same_counts(&summary, &expected);
        assert!(counts.duplicates > 50 && counts.late > 5 && expected.journal.len() > 100, "{counts:?}");
        // It does not count any more, and does not take the place of one that does.
        assert!(path.with_file_name("manifest.damaged").exists() || !path.exists());
    }
    // None is left.
    for dir in std::fs::read_dir(&checkpoints).expect("checkpoints") {
        let path = dir.expect("one").path().join("process-0.json");
        let mut bytes = std::fs::read(&path).expect("a file");
        bytes[0] ^= 1;
        std::fs::write(&path, bytes).expect("written");
    }
    let failure = run(&data, 1, &Arc::new(partitions), RunOptions::default()).expect_err("nothing to go on from");
    assert_eq!(failure.code, Exit::Corrupt);
    assert!(failure.message.contains("no checkpoint in"), "{failure}");
}

/// A record in the middle that is decoded, and at which something is accepted.
fn somewhere(partitions: &Partitions) -> (u32, i64) {
    let ((_, partition), log) = partitions.iter().next_back().expect("a partition");
    let sound = |r: &&common::memory::MemoryRecord| {
        r.payload
            .as_deref()
            .is_some_and(|p| serde_json::from_slice::<serde_json::Value>(p).is_ok_and(|v| v["value"].is_f64()))
    };
    (*partition, log[log.len() / 2..].iter().find(sound).expect("a record").offset)
}

fn aside((partition, offset): (u32, i64)) -> oracle::Line {
    oracle::Line::SetAside { source: "plant".into(), topic: "readings".into(), partition: partition as i32, offset }
}

#[test]
fn a_record_that_brings_workers_down_is_set_aside_after_the_third_time() {
    let recipe = Recipe { seed: 11, records: 2_500, partitions: 3, sensors: 9, keyed: false };
    let partitions = Arc::new(records(&recipe));
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let place = somewhere(&partitions);
    let trip = || RunOptions { trip: Some(Trip::Judge(place.0, place.1)), ..RunOptions::default() };
    for n in 1..=3 {
        let failure = run(&data, 2, &partitions, trip()).expect_err("it panics");
        assert!(failure.message.contains("panicked"), "{n}: {failure}");
        // Nothing of its epoch has left.
        let line = journal(&data).last().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line"));
        println!("time {n}: {} lines, the last {line:?}", journal(&data).len());
    }
    // The bug is still there; the record is not touched any more, in the epoch in which it was logged long ago.
    let summary = run(&data, 1, &partitions, trip()).expect("set aside");
    let lines = common::oracle::lines(&data);
    assert!(lines.contains(&aside(place)), "no control line names it");
    let expected = expected(&data, &partitions, &[]);
    assert_eq!(journal(&data), expected.journal);
    let counts = oracle::total(&expected.counts);
    same_counts(&summary, &expected);
    let bugs = |letters: &[oracle::DeadLetter]| letters.iter().filter(|l| l.reason == oracle::Reason::Bug).count();
    assert_eq!(bugs(&expected.dead_letters), 1);
    assert!(counts.duplicates > 50 && counts.late > 5 && expected.journal.len() > 100, "{counts:?}");
    let stored: String = std::fs::read_dir(data.join("dead-letters"))
        .expect("dead letters")
        .map(|f| std::fs::read_to_string(f.expect("a file").path()).expect("text"))
        .collect();
    assert_eq!(stored.lines().filter(|line| line.contains(r#""reason":"bug""#)).count(), 1);
    // It holds for ever, and in a replay.
    let again = folder.path().join("again");
    let options = RunOptions { replay_into: Some(again.clone()), ..trip() };
    run(&data, 2, &partitions, options).expect("a replay");
    assert_eq!(journal(&again), journal(&data));
}

#[test]
fn a_decoder_that_panics_makes_a_dead_letter_at_the_first_time() {
    let recipe = Recipe { seed: 12, records: 2_500, partitions: 3, sensors: 9, keyed: false };
    let partitions = Arc::new(records(&recipe));
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let place = somewhere(&partitions);
    let options = RunOptions { trip: Some(Trip::Decoder(place.0, place.1)), ..RunOptions::default() };
    let summary = run(&data, 2, &partitions, options).expect("no panic leaves the decoder");
    let expected = expected(&data, &partitions, &[aside(place)]);
    assert_eq!(journal(&data), expected.journal);
    let counts = oracle::total(&expected.counts);
    same_counts(&summary, &expected);
    assert!(counts.dead_lettered > 5 && expected.journal.len() > 100, "{counts:?}");
}

/// Where the state of each released format lies.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn run_golden(
    config: &str,
    data: &Path,
    records: &[oracle::Record],
    replay: Option<&Path>,
) -> Result<Summary, Failure> {
    let text = format!("data_dir = {:?}\nserver.listen = \"127.0.0.1:0\"\n{config}", data.display());
    let loaded = config::load_texts(&[("golden.toml".into(), text)], &|_| None, &Overrides::default())
        .unwrap_or_else(|report| panic!("{report:?}"));
    let mut partitions = Partitions::new();
    for r in records {
        let record =
            common::memory::MemoryRecord { offset: r.offset, timestamp: r.timestamp, payload: r.payload.clone() };
        partitions.entry((0, r.partition as u32)).or_default().push(record);
    }
    let options = RunOptions { until_end: true, replay_into: replay.map(Path::to_owned), ..RunOptions::default() };
    let run = Run {
        pure: loaded.pure(),
        config: loaded.config,
        options,
        fs: Arc::new(RealFs),
        clock: Arc::new(RealClock::default()),
        origin: Arc::new(Memory { partitions: Arc::new(partitions), seed: 1, morsel: 50 }),
        destinations: Arc::new(Configured),
        crew: Arc::new(Threads),
    };
    run.go()
}

/// A state as a kill leaves it, the records that it is about, and the journal that they come to. Written once, by the
/// release that brings a format, and never again.
#[test]
#[ignore = "writes tests/golden/VERSION; once per release that changes a format"]
fn write_the_golden_state_of_this_version() {
    let to = golden().join(env!("CARGO_PKG_VERSION"));
    assert!(!to.exists(), "{} is there already; golden files are never written again", to.display());
    let recipe = Recipe { seed: 3, records: 600, partitions: 2, sensors: 4, keyed: false };
    let records = oracle_records(&records(&recipe));
    let config = format!(
        "workers = 2\nepochs.tick = \"20ms\"\ncheckpoint.interval = \"1s\"\ncheckpoint.keep = 2\n{SOURCE}{RULES}"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    // Two terms, no rule with a deadline: what a later run adds depends on no clock. The checkpoint of the second term's
    // end is taken away, as if it had been killed before: its log is replayed on top of the one before.
    let half: Vec<_> = records.iter().filter(|r| r.offset < 150).cloned().collect();
    run_golden(&config, &data, &half, None).expect("a run");
    run_golden(&config, &data, &records, None).expect("a run");
    let mut frozen = Frozen::of(&data);
    let complete = |p: &&PathBuf| p.ends_with("manifest.json") && p.starts_with("/state/checkpoints");
    let newest = frozen.0.keys().rfind(complete).and_then(|p| p.parent()).expect("a checkpoint").to_path_buf();
    frozen.0.retain(|path, _| !path.starts_with(&newest));
    frozen.write(&to.join("data"));
    std::fs::write(to.join("streamgauge.toml"), config).expect("written");
    let lines = records.iter().map(|r| serde_json::to_string(r).expect("text") + "\n").collect::<String>();
    std::fs::write(to.join("records.jsonl"), lines).expect("written");
}

#[test]
fn state_of_every_released_format_is_restored_and_replayed() {
    let mut versions = 0;
    for entry in std::fs::read_dir(golden()).expect("golden files") {
        let golden = entry.expect("a version").path();
        versions += 1;
        let read = |name: &str| std::fs::read_to_string(golden.join(name)).expect("a golden file");
        let config = read("streamgauge.toml");
        let records: Vec<oracle::Record> =
            read("records.jsonl").lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
        let journal_then = read("data/journal.jsonl");
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        Frozen::of(&golden.join("data")).write(&data);
        // Restored from its checkpoint, the rest of its log replayed, on another number of workers.
        let config = config.replace("workers = 2", "workers = 3");
        run_golden(&config, &data, &records, None).expect("restored");
        assert_eq!(std::fs::read_to_string(data.join("journal.jsonl")).expect("a journal"), journal_then);
        // Replayed from the beginning.
        let again = folder.path().join("again");
        run_golden(&config, &data, &records, Some(&again)).expect("replayed");
        assert_eq!(std::fs::read_to_string(again.join("journal.jsonl")).expect("a journal"), journal_then);
        assert!(journal_then.lines().count() > 50, "{}: only {} lines", golden.display(), journal_then.lines().count());
    }
    assert!(versions > 0, "no golden files");
}
