//! Whatever lies in a file: no crash, no hang, no more memory than 64 MB.
//!
//! Sound inputs are changed from a seed, a few changes at a time; where a checksum would stop every change at the door,
//! it is made to fit again. `SG_CASES=1000000` makes it a long one; `SG_SEED` begins at another case. One binary of its
//! own, because it looks at the memory of the whole process. The targets in `fuzz/` do the same under libFuzzer.

mod common {
    pub mod frozen;
}

use common::frozen::Frozen;
use operators::rolling::{Plan, Stat, Window};
use operators::rules::{Condition, Missing, RuleSpec, Rules, Threshold};
use operators::state::{GroupStates, Saves};
use operators::{
    Batch, CountedTime, Judge, JudgeConfig, Reading, Rolling, SeriesName, SharedDictionary, Tally, key_group,
};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use streamgauge::checkpoint::{self, Name, Piece, Position};
use streamgauge::config::{self, Overrides};
use streamgauge::epoch_log::{
    Close, Control, Durability, EpochLog, Frame, Frames, Header, Known, LOG_VERSION, LogEnd, Range, read_term,
};
use streamgauge::metrics::Metrics;
use streamgauge::outage::{Disk, what};
use streamgauge::seam::{RealClock, RealFs};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Changes bytes in one to six places.
fn change(bytes: &mut Vec<u8>, others: &[Vec<u8>], random: &mut fastrand::Rng) {
    const EDGES: [u64; 10] = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX];
    for _ in 0..random.usize(1..=6) {
        let at = random.usize(0..=bytes.len());
        let upto = (at + random.usize(0..=40)).min(bytes.len());
        match random.u32(0..9) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.u32(0..8),
            2 if at < bytes.len() => bytes[at] = random.u8(..),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..upto)),
            5 => {
                let again = bytes[at..upto].to_vec();
                bytes.splice(at..at, again);
            }
            6 => {
                let other = random.choice(others).expect("an input");
                let from = random.usize(0..=other.len());
                let piece = other[from..(from + random.usize(0..=60)).min(other.len())].to_vec();
                bytes.splice(at..upto, piece);
            }
            7 => {
                let edge = random.choice(EDGES).expect("an edge").to_le_bytes();
                let width = [1, 2, 4, 8][random.usize(0..4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            _ => drop(bytes.splice(at..at, (0..random.usize(0..8)).map(|_| random.u8(..)).collect::<Vec<_>>())),
        }
    }
}

/// Hands changed inputs to `take`, which says whether it accepted one.
fn hold(what: &str, inputs: &[Vec<u8>], mut take: impl FnMut(Vec<u8>) -> bool) {
    let (first, cases) = (number("SG_SEED", 1), number("SG_CASES", 20_000));
    let (mut accepted, began) = (0, Instant::now());
    assert!(inputs.iter().all(|input| take(input.clone())), "{what}: a sound input is refused");
    let before = peak_kb();
    for seed in first..first + cases {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut input = random.choice(inputs).expect("an input").clone();
        change(&mut input, inputs, &mut random);
        let one = Instant::now();
        let took = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| take(input.clone())));
        accepted += u64::from(took.unwrap_or_else(|_| panic!("{what}: SG_SEED={seed} SG_CASES=1: {input:?}")));
        assert!(one.elapsed().as_secs() < 10, "{what}: SG_SEED={seed} took {:?}", one.elapsed());
    }
    let more_kb = peak_kb() - before;
    println!("{what}: {cases} cases, {accepted} accepted, {more_kb} kB more, {:.1} s", began.elapsed().as_secs_f64());
    assert!(more_kb < 64 << 10, "{what}: {more_kb} kB more");
    assert!(accepted < cases, "{what}: all {cases} accepted, so nothing was changed");
}

/// The most memory that this process held.
fn peak_kb() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

struct Operators {
    dictionary: SharedDictionary,
    judge: Judge,
    rolling: Rolling,
    rules: Rules,
}

impl Operators {
    fn new() -> Self {
        let dictionary = SharedDictionary::default();
        let windows = vec![Window::Time { us: 8_000_000 }, Window::Count { n: 6 }];
        let mut plan = Plan::default();
        let max = plan.ask("t", 1, Stat::Max);
        let plan = Rc::new(plan);
        let rule = |key: &str, condition| {
            let [name, version, severity] = [key, "1", "warning"].map(str::to_owned);
            Rc::new(RuleSpec { key: key.to_owned(), name, version, severity, condition })
        };
        let above = Threshold { above: true, limit: 50.0, hysteresis: 1.0, for_us: 0, feature: None, window: None };
        let of_max = Threshold { feature: Some(max), window: Some(windows[1]), ..above };
        let specs = vec![
            rule("value", Condition::Threshold(above)),
            rule("max", Condition::Threshold(of_max)),
            rule("missing", Condition::Missing(Missing { after_us: 5_000_000 })),
        ];
        let config = JudgeConfig {
            allowed_lateness: 10_000_000,
            dedup_window: 20_000_000,
            conflict_is_dead_letter: false,
            max_series_per_group: 20,
            series_ttl_ms: 40_000,
        };
        Self {
            judge: Judge::new(config, dictionary.clone()),
            rolling: Rolling::new(windows, plan.clone(), dictionary.clone()),
            rules: Rules::new(specs, 10_000_000, plan, dictionary.clone()),
            dictionary,
        }
    }

    /// The states of one key group, after some readings.
    fn saved() -> (u16, [Vec<Vec<u8>>; 3]) {
        let group = key_group(b"s-1");
        let mut all = [const { Vec::new() }; 3];
        for readings in [0, 1, 5, 40] {
            let mut operators = Self::new();
            let mut transitions = Vec::new();
            for n in 0..readings {
                let metric = ["t", "u"][n % 2];
                let name = SeriesName { sensor: "s-1".into(), metric: metric.into() };
                let no = operators.dictionary.borrow_mut().intern(&name);
                let what = (1_700_000_000_000_000 + n as i64 * 1_000_000, n as f64 * 7.0 % 100.0, n as u128);
                let mut reading = Reading::new((0, 0, n as i64, 0), (no, group), None, what);
                reading.stamp(0, false);
                let mut batch = Batch { epoch: n as u64 + 1, ..Batch::default() };
                operators.judge.judge(n as u64, &reading, &mut batch, &mut Tally::default());
                for no in batch.created.clone() {
                    // Rule 1 asks for a statistic of the metric `t`.
                    let applies = (0..3).filter(|rule| metric == "t" || *rule != 1);
                    applies.for_each(|rule| operators.rules.apply(batch.epoch, no, rule, true, &mut transitions));
                }
                operators.rolling.batch(&mut batch);
                operators.rules.batch(&batch, n as u64, &mut transitions);
            }
            let mut groups = [const { GroupStates::new() }; 3];
            operators.judge.save(&mut groups[0]);
            operators.rolling.save(&mut groups[1]);
            operators.rules.save(&mut groups[2]);
            for (all, groups) in all.iter_mut().zip(groups) {
                all.extend(groups.into_values());
            }
        }
        (group, all)
    }
}

fn operator_states() {
    let (group, [judge, rolling, rules]) = Operators::saved();
    hold("state of the judge", &judge, |bytes| Operators::new().judge.load(group, &bytes, &mut Vec::new()).is_ok());
    hold("state of rolling", &rolling, |bytes| Operators::new().rolling.load(group, &bytes).is_ok());
    hold("state of rules", &rules, |bytes| Operators::new().rules.load(group, &bytes).is_ok());
    let mut counted = CountedTime::default();
    let mut counts = vec![counted.save()];
    for (at, counting) in [(10, true), (2_000, false), (50_000, true)] {
        counted.set(at, counting);
        counts.push(counted.save());
    }
    hold("counted time", &counts, |bytes| CountedTime::load(&bytes).is_ok());
}

fn frames() -> Vec<Frame> {
    let header = Header {
        synced: true,
        version: LOG_VERSION,
        term: 1,
        process: 0,
        segment: 0,
        processes: 1,
        peers: 2,
        config: "0123456789abcdef".into(),
        streams: vec![("plant".into(), "readings".into())],
        positions: vec![(0, 0, 17), (0, 1, 0)],
    };
    let range = Range { stream: 0, partition: 1, next: 99, records: 12 };
    vec![
        Frame::Header(header),
        Frame::Control(12, Control::Term { processes: 1 }),
        Frame::Close(Close { worker: 0, epoch: 12, through: 13, ranges: vec![range; 3] }),
        Frame::Control(20, Control::Hearing { process: 0 }),
        Frame::Synced(77),
        Frame::Close(Close { worker: 1, epoch: 14, through: u64::MAX, ranges: Vec::new() }),
    ]
}

fn epoch_logs() {
    // The payload of a frame, behind its checksum.
    let payloads: Vec<Vec<u8>> = frames()
        .iter()
        .map(|frame| {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            bytes[12..].to_vec()
        })
        .collect();
    hold("frames of the epoch log", &payloads, |payload| Frame::decode(&payload).is_some());
    // A whole segment.
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("term-1")).expect("a folder");
    let Frame::Header(header) = frames().swap_remove(0) else { panic!("the first is the header") };
    let clock = Arc::new(RealClock::default());
    let outage = Disk::new(clock, Arc::default(), Metrics::new().expect("metrics")).outage(what::EPOCH_LOG);
    let log = EpochLog::create(Arc::new(RealFs), folder.path(), header, Durability::Process, outage).expect("a log");
    for frame in &frames()[1..] {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        log.append(&mut bytes);
    }
    let sound = Frozen::of(folder.path());
    let path = Path::new("/term-1/process-0.000000.log");
    let segment = sound.0[path].to_vec();
    hold("segments of the epoch log", &[segment], |bytes| {
        let mut frames = Frames::new(&bytes, LogEnd::start(1, 0).chain);
        while let Ok(Some(_)) = frames.as_mut().map_or(Ok(None), Frames::read) {}
        let mut frozen = sound.clone();
        frozen.0.insert(path.to_owned(), Arc::new(bytes));
        read_term(&frozen, Path::new("/"), 1, &Known::default()).is_ok()
    });
}

fn checkpoints() {
    let folder = tempfile::tempdir().expect("a folder");
    let name = Name { term: 1, cut: 30_000, writer: 1 };
    let position = Position { source: "s".into(), topic: "t".into(), partition: 3, next: 42, time: Some(5) };
    let pieces = vec![
        Piece::state("judge", GroupStates::from([(7, vec![1, 2, 3]), (9, vec![4])])),
        Piece::Positions(vec![position]),
    ];
    let logs = vec![(0, LogEnd::start(1, 0))];
    checkpoint::write_process(&RealFs, folder.path(), (name, 0), logs, &pieces).expect("room");
    checkpoint::commit(&RealFs, folder.path(), name, (1, 1, "hash")).expect("room");
    let sound = Frozen::of(folder.path());
    let dir = name.dir(Path::new("/"));
    let load = |file: &str, bytes: Vec<u8>| {
        let mut frozen = sound.clone();
        frozen.0.insert(dir.join(file), Arc::new(bytes));
        checkpoint::marks(&frozen, &dir);
        checkpoint::load(&frozen, &dir).is_ok()
    };
    let manifest = sound.0[&dir.join("manifest.json")].to_vec();
    hold("manifests", std::slice::from_ref(&manifest), |bytes| load("manifest.json", bytes));
    let sealed = |body: &[u8]| [format!("{}\n", blake3::hash(body).to_hex()).as_bytes(), body].concat();
    hold("manifests with their checksum", &[manifest[65..].to_vec()], |body| load("manifest.json", sealed(&body)));
    // A description that the manifest vouches for.
    let meta = sound.0[&dir.join("process-0.json")].to_vec();
    hold("descriptions with their checksum", &[meta], |bytes| {
        let mut manifest: serde_json::Value = serde_json::from_slice(&manifest[65..]).expect("a manifest");
        manifest["files"][0]["length"] = bytes.len().into();
        manifest["files"][0]["blake3"] = blake3::hash(&bytes).to_hex().as_str().into();
        let body = serde_json::to_vec(&manifest).expect("text");
        let mut frozen = sound.clone();
        frozen.0.insert(dir.join("process-0.json"), Arc::new(bytes));
        frozen.0.insert(dir.join("manifest.json"), Arc::new(sealed(&body)));
        match checkpoint::load(&frozen, &dir) {
            Ok(restored) => {
                // What it promises is there.
                restored.groups("judge", |_| true).for_each(|(_, bytes)| assert!(bytes.len() < 100));
                true
            }
            Err(_) => false,
        }
    });
}

fn configurations() {
    let load = |text: String| config::load_texts(&[("a.toml".into(), text)], &|_| None, &Overrides::default());
    let sound = |text: &[u8]| String::from_utf8(text.to_vec()).is_ok_and(|text| load(text).is_ok());
    let inputs: Vec<Vec<u8>> = std::fs::read_dir("config")
        .expect("configurations")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .map(|path| std::fs::read(path).expect("a file"))
        .filter(|text| sound(text))
        .chain([br#"
[sources.plant]
type = "kafka"
bootstrap_servers = "localhost:9092"
topics = ["sensor-data"]
decode = { sensor = "/sensor_id", metric = "/type", value = "/value", time = "/timestamp" }
[rules.too-hot]
metric = "temperature"
when.above = { warning = 35.0, critical = 40.0, hysteresis = 1.0 }
for = "2m"
[rules.silent]
metric = "temperature"
when.missing.after = "10s"
[sinks.alerts]
type = "redis_stream"
url = "redis://localhost:6379"
"#
        .to_vec()])
        .collect();
    hold("configurations", &inputs, |bytes| {
        let Ok(text) = String::from_utf8(bytes) else { return false };
        match load(text) {
            Ok(loaded) => {
                // What was accepted can be recorded, and read again.
                let pure = loaded.pure();
                assert_eq!(config::Pure::parse(&pure.text()).expect("recorded").hash(), pure.hash());
                true
            }
            Err(report) => {
                assert!(!format!("{report:?}").is_empty());
                false
            }
        }
    });
}

#[test]
fn whatever_lies_in_a_file_is_taken_or_refused_in_little_time_and_memory() {
    // One after the other: each looks at the memory of the process.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| println!("{info}")));
    operator_states();
    epoch_logs();
    checkpoints();
    configurations();
    std::panic::set_hook(hook);
}
