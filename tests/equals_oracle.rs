//! The program and the oracle agree on random inputs, for any batch size, epoch length and number of workers.

mod common {
    pub mod memory;
    pub mod oracle;
    pub mod random_input;
}

use common::memory::{Memory, Partitions};
use common::random_input::{RULES, Recipe, SILENCE, SOURCE, records};
use fastrand::Rng;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use streamgauge::config::{self, Loaded, Overrides};
use streamgauge::crew::Threads;
use streamgauge::epoch_log::{self, Close, Frame, Frames, LogEnd};
use streamgauge::plan::Layout;
use streamgauge::run::{Run, RunOptions, Summary};
use streamgauge::seam::{RealClock, RealFs};
use streamgauge::sink::Configured;
use streamgauge::{checkpoint, state_cmd};

fn load(text: &str) -> Loaded {
    config::load_texts(&[("test.toml".into(), text.to_owned())], &|_| None, &Overrides::default())
        .unwrap_or_else(|report| panic!("{report:?}"))
}

fn run(text: &str, partitions: &Arc<Partitions>, seed: u64, morsel: usize, replay_into: Option<&Path>) -> Summary {
    let loaded = load(text);
    let run = Run {
        pure: loaded.pure(),
        config: loaded.config,
        options: RunOptions {
            until_end: true,
            replay_into: replay_into.map(Path::to_owned),
            slice: Some(200),
            ..RunOptions::default()
        },
        fs: Arc::new(RealFs),
        clock: Arc::new(RealClock::default()),
        destinations: Arc::new(Configured),
        crew: Arc::new(Threads),
        origin: Arc::new(Memory { partitions: partitions.clone(), seed, morsel }),
    };
    run.go().unwrap_or_else(|failure| panic!("{failure}"))
}

fn journal(data: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(data.join("journal.jsonl")).expect("a journal");
    text.lines().map(str::to_owned).collect()
}

fn oracle_records(partitions: &Partitions) -> Vec<oracle::Record> {
    let record = |((_, partition), r): ((u16, u32), &common::memory::MemoryRecord)| oracle::Record {
        source: "plant".into(),
        topic: "readings".into(),
        partition: partition as i32,
        offset: r.offset,
        timestamp: r.timestamp,
        payload: r.payload.clone(),
    };
    partitions.iter().flat_map(|(key, log)| log.iter().map(|r| record((*key, r)))).collect()
}

fn settings(data: &Path, workers: usize, tick_ms: u64, rules: &str) -> String {
    format!(
        "data_dir = {:?}\nworkers = {workers}\nepochs.tick = \"{tick_ms}ms\"\ncheckpoint.interval = \"1s\"\n{SOURCE}{rules}",
        data.display()
    )
}

struct Compared {
    journal: Vec<String>,
    summary: Summary,
}

/// Holds what lies in a data directory against what the oracle makes of records, epoch log and configuration.
fn compare(text: &str, data: &Path, partitions: &Partitions, summary: Summary, seed: u64) -> Compared {
    let pure = load(text).pure();
    let lines = common::oracle::lines(data);
    let expected = oracle::run(&common::oracle::config(&pure), &oracle_records(partitions), &lines)
        .unwrap_or_else(|e| panic!("seed {seed}: the oracle: {e}"));
    let journal = journal(data);
    let differ = journal.iter().zip(&expected.journal).position(|(a, b)| a != b);
    if let Some(at) = differ {
        panic!("seed {seed}: line {at}\n  program {}\n  oracle  {}", journal[at], expected.journal[at]);
    }
    assert_eq!(
        journal.len(),
        expected.journal.len(),
        "seed {seed}: {:?}",
        journal.get(expected.journal.len()).or(expected.journal.get(journal.len()))
    );
    let said = serde_json::to_value(&summary).expect("JSON");
    for (name, count) in common::oracle::counts(&expected) {
        assert_eq!(said[name], count, "seed {seed}: {name}");
    }

    let layout = Layout::new(data.to_owned());
    let restored = checkpoint::newest(&RealFs, &layout.checkpoints).expect("sound").expect("a checkpoint");
    let stats = state_cmd::rolling_stats(&RealFs, &layout, &restored).expect("statistics");
    let mut ours: Vec<(String, String, [u64; 7])> = Vec::new();
    for (name, windows) in stats {
        for (_, s) in windows {
            let bits = [s.count as f64, s.mean, s.stddev, s.min, s.max, s.rate, s.ewma].map(bits);
            ours.push((name.sensor.to_string(), name.metric.to_string(), bits));
        }
    }
    let theirs: Vec<_> = expected
        .rolling
        .iter()
        .map(|s| {
            let all = [s.count, s.mean, s.stddev, s.min, s.max, s.rate, s.ewma].map(bits);
            (s.sensor.to_string(), s.metric.to_string(), all)
        })
        .collect();
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!(a, b, "seed {seed}: rolling statistics");
    }
    assert_eq!(ours.len(), theirs.len(), "seed {seed}: series with statistics");
    Compared { journal, summary }
}

/// The bits of a number; all that is not a number is one thing.
fn bits(x: f64) -> u64 {
    if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() }
}

fn seeds() -> std::ops::Range<u64> {
    let first: u64 = std::env::var("SG_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let count: u64 = std::env::var("SG_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    first..first + count
}

#[test]
fn the_oracle_agrees_on_random_inputs() {
    let (mut alerts, mut duplicates, mut late, mut dead) = (0, 0, 0, 0);
    for seed in seeds() {
        println!("seed {seed} (SG_SEED={seed} SG_SEEDS=1 repeats it)");
        let mut random = Rng::with_seed(seed);
        let recipe = Recipe {
            seed,
            records: random.usize(500..4_000),
            partitions: random.u32(1..7),
            sensors: random.usize(1..25),
            keyed: random.bool(),
        };
        let partitions = Arc::new(records(&recipe));
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        let text = settings(&data, random.usize(1..5), random.u64(1..40), &format!("{RULES}{SILENCE}"));
        let summary = run(&text, &partitions, seed, random.usize(1..200), None);
        let compared = compare(&text, &data, &partitions, summary, seed);
        // The epoch log, run again on another number of workers, gives the same journal, byte for byte.
        let again = folder.path().join("again");
        let text = settings(&data, random.usize(1..5), 20, &format!("{RULES}{SILENCE}"));
        run(&text, &partitions, seed + 1, random.usize(1..200), Some(&again));
        assert_eq!(journal(&again), compared.journal, "seed {seed}: replay");
        alerts += compared.journal.len();
        duplicates += compared.summary.duplicates;
        late += compared.summary.late;
        dead += compared.summary.dead_letters;
    }
    assert!(alerts > 500 && duplicates > 500 && late > 50 && dead > 100, "{alerts} {duplicates} {late} {dead}");
}

#[test]
fn nothing_that_goes_in_is_unaccounted_for() {
    let (mut accepted, mut duplicates, mut late, mut dead) = (0, 0, 0, 0);
    for seed in seeds().take(5) {
        println!("seed {seed} (SG_SEED={seed} SG_SEEDS=1 repeats it)");
        let recipe = Recipe { seed, records: 3_000, partitions: 3, sensors: 12, keyed: false };
        let folder = tempfile::tempdir().expect("a folder");
        let text = settings(&folder.path().join("data"), 2, 10, RULES);
        let summary = run(&text, &Arc::new(records(&recipe)), seed, 100, None);
        // By the program's own account: this is the conservation law, and not the oracle.
        assert_eq!(summary.imbalance, 0, "seed {seed}: {summary:?}");
        accepted += summary.accepted;
        duplicates += summary.duplicates;
        late += summary.late;
        dead += summary.dead_letters;
    }
    assert!(accepted > 3_000 && duplicates > 100 && late > 10 && dead > 20, "{accepted} {duplicates} {late} {dead}");
}

#[test]
fn a_stop_in_the_middle_changes_nothing() {
    let mut alerts = 0;
    for seed in seeds() {
        println!("seed {seed} (SG_SEED={seed} SG_SEEDS=1 repeats it)");
        let mut random = Rng::with_seed(seed ^ 0x5eed);
        let recipe = Recipe { seed, records: 3_000, partitions: 4, sensors: 12, keyed: random.bool() };
        let partitions = records(&recipe);
        // What there is at the first stop, at the second, and in the end.
        let part = |fraction: f64| -> Arc<Partitions> {
            let cut = partitions.iter().map(|(key, log)| {
                let keep = ((log.len() as f64 * fraction) as usize).max(1);
                (*key, log[..keep].to_vec())
            });
            Arc::new(cut.collect())
        };
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        let rules = format!("{RULES}{SILENCE}");
        let mut last = None;
        for fraction in [0.3, 0.7, 1.0] {
            let text = settings(&data, random.usize(1..5), random.u64(1..40), &rules);
            last = Some((run(&text, &part(fraction), seed, 100, None), text));
        }
        let (summary, text) = last.expect("three runs");
        alerts += compare(&text, &data, &partitions, summary, seed).journal.len();
    }
    assert!(alerts > 500, "only {alerts} alerts");
}

#[test]
fn keyed_alerts_depend_on_neither_epochs_nor_workers() {
    let mut alerts = 0;
    for seed in seeds() {
        println!("seed {seed} (SG_SEED={seed} SG_SEEDS=1 repeats it)");
        let recipe = Recipe { seed, records: 3_000, partitions: 5, sensors: 14, keyed: true };
        let partitions = Arc::new(records(&recipe));
        // R10, keyed: no rule with a deadline.
        let rules = RULES.split("[rules.mean]").next().expect("rules on values");
        let mut first: Option<Vec<String>> = None;
        for (workers, tick, morsel) in [(1, 5, 1_000), (2, 20, 37), (4, 100, 200), (3, 1, 3)] {
            let folder = tempfile::tempdir().expect("a folder");
            let data = folder.path().join("data");
            run(&settings(&data, workers, tick, rules), &partitions, seed + workers as u64, morsel, None);
            let canonical = oracle::canonical(&journal(&data));
            match &first {
                None => first = Some(canonical),
                Some(first) => assert_eq!(first, &canonical, "seed {seed}: {workers} workers, {tick} ms"),
            }
        }
        alerts += first.map_or(0, |f| f.len());
    }
    assert!(alerts > 500, "only {alerts} alerts");
}

#[test]
fn a_full_key_group_refuses_the_same_series_whoever_judges_it() {
    let (mut alerts, mut refused) = (0, 0);
    for seed in seeds() {
        println!("seed {seed} (SG_SEED={seed} SG_SEEDS=1 repeats it)");
        let mut random = Rng::with_seed(seed ^ 0xf011);
        let recipe = Recipe { seed, records: 2_000, partitions: 3, sensors: 10, keyed: random.bool() };
        let partitions = Arc::new(records(&recipe));
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        // A sensor's two series lie in one key group, which has room for one.
        let limited = |text: String| format!("limits.max_series = 1\n{text}");
        let text = limited(settings(&data, random.usize(1..5), random.u64(1..40), RULES));
        let summary = run(&text, &partitions, seed, random.usize(1..200), None);
        alerts += compare(&text, &data, &partitions, summary.clone(), seed).journal.len();
        let folder = tempfile::tempdir().expect("a folder");
        let free = run(&settings(&folder.path().join("data"), 1, 20, RULES), &partitions, seed, 100, None);
        refused += summary.dead_letters - free.dead_letters;
    }
    assert!(alerts > 500 && refused > 5_000, "{alerts} alerts, {refused} refused for want of room");
}

/// R2: an epoch is complete when every worker's capability has gone past it, so each has to have said so before: a
/// worker that begins later than the others, too, whose first epoch lies beyond what those have closed meanwhile.
#[test]
fn every_worker_says_where_it_begins_before_its_first_epoch() {
    let recipe = Recipe { seed: 9, records: 2_000, partitions: 5, sensors: 12, keyed: true };
    let partitions = Arc::new(records(&recipe));
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    for (term, workers) in [(1, 3), (2, 4)] {
        run(&settings(&data, workers, 5, RULES), &partitions, 9, 40, None);
        let log = epoch_log::term_dir(&Layout::new(data.clone()).logs, term).join("process-0.000000.log");
        let bytes = std::fs::read(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let mut frames = Frames::new(&bytes, LogEnd::start(term, 0).chain).expect("a log");
        let mut first: BTreeMap<u32, Close> = BTreeMap::new();
        let mut second: BTreeMap<u32, Close> = BTreeMap::new();
        while let Some(frame) = frames.read().expect("sound") {
            let Frame::Close(close) = frame else { continue };
            if let Some(begun) = first.get(&close.worker) {
                assert!(close.through > begun.through, "a worker goes on");
                second.entry(close.worker).or_insert(close);
            } else {
                first.insert(close.worker, close);
            }
        }
        assert_eq!((first.len(), second.len()), (workers, workers));
        for (worker, begun) in &first {
            assert!(begun.ranges.is_empty(), "worker {worker} holds nothing before it has begun");
            assert_eq!(second[worker].epoch, begun.through + 1, "worker {worker}");
        }
    }
}
