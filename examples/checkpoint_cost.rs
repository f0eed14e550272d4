//! What checkpoints cost, by the number of identities that live: their size, the time to take them, to write them, to
//! read them back and to restore from them.
//!
//!     cargo run --release --example checkpoint_cost [IDS ...]
//!
//! 10,000 series with windows of 60 s and of the last 5, a rule on the value and one on a mean. One worker, and
//! everything in one process' file: two workers take and restore their halves at the same time.

use operators::rolling::{Plan, Stat, Window};
use operators::rules::{Condition, RuleSpec, Rules, Threshold};
use operators::state::{GroupStates, Saves};
use operators::{Batch, Judge, JudgeConfig, Reading, Rolling, SeriesName, SharedDictionary, Tally, key_group};
use std::rc::Rc;
use std::time::Instant;
use streamgauge::checkpoint::{self, Name, Piece};
use streamgauge::seam::RealFs;

const SERIES: usize = 10_000;
const SECOND: i64 = 1_000_000;

struct Worker {
    dictionary: SharedDictionary,
    judge: Judge,
    rolling: Rolling,
    rules: Rules,
}

impl Worker {
    fn new() -> Self {
        let dictionary = SharedDictionary::default();
        let windows = vec![Window::Time { us: 60 * SECOND }, Window::Count { n: 5 }];
        let mut plan = Plan::default();
        let mean = plan.ask("temperature", 0, Stat::Mean);
        let plan = Rc::new(plan);
        let rule = |key: &str, feature, window| {
            let condition = Condition::Threshold(Threshold {
                above: true,
                limit: 50.0,
                hysteresis: 1.0,
                for_us: 0,
                feature,
                window,
            });
            let [name, version, severity] = [key, "1", "warning"].map(str::to_owned);
            Rc::new(RuleSpec { key: key.to_owned(), name, version, severity, condition })
        };
        let specs = vec![rule("value", None, None), rule("mean", Some(mean), Some(windows[0]))];
        let config = JudgeConfig {
            allowed_lateness: 30 * SECOND,
            dedup_window: 600 * SECOND,
            conflict_is_dead_letter: false,
            max_series_per_group: u32::MAX,
            series_ttl_ms: 86_400_000,
        };
        Self {
            judge: Judge::new(config, dictionary.clone()),
            rolling: Rolling::new(windows, plan.clone(), dictionary.clone()),
            rules: Rules::new(specs, 30 * SECOND, plan, dictionary.clone()),
            dictionary,
        }
    }

    /// So many readings of each series within the ten minutes that are remembered.
    fn fill(&mut self, each: usize) {
        let mut random = fastrand::Rng::with_seed(7);
        let mut transitions = Vec::new();
        for n in 0..each {
            let mut batch = Batch { epoch: n as u64 + 1, ..Batch::default() };
            for series in 0..SERIES {
                let name = SeriesName { sensor: format!("plant-a/line-{series}").into(), metric: "temperature".into() };
                let no = self.dictionary.borrow_mut().intern(&name);
                let group = key_group(name.sensor.as_bytes());
                let time = 1_700_000_000 * SECOND + (n as i64 * 590 * SECOND) / each as i64;
                let what = (time, random.f64() * 100.0, random.u128(..));
                let mut reading = Reading::new((0, 0, 0, 0), (no, group), None, what);
                reading.stamp(0, false);
                self.judge.judge(0, &reading, &mut batch, &mut Tally::default());
            }
            for no in batch.created.clone() {
                (0..2).for_each(|rule| self.rules.apply(batch.epoch, no, rule, true, &mut transitions));
            }
            self.rolling.batch(&mut batch);
            self.rules.batch(&batch, 0, &mut transitions);
            transitions.clear();
        }
    }

    fn save(&self) -> Vec<Piece> {
        let mut groups = [const { GroupStates::new() }; 3];
        self.judge.save(&mut groups[0]);
        self.rolling.save(&mut groups[1]);
        self.rules.save(&mut groups[2]);
        let names = ["judge", "rolling", "rules"];
        names.into_iter().zip(groups).map(|(operator, groups)| Piece::state(operator, groups)).collect()
    }
}

fn main() {
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let sizes = if asked.is_empty() { vec![600_000, 1_000_000, 10_000_000] } else { asked };
    println!("ids         MB     save    write     read  restore   (seconds; CPU seconds in brackets)");
    for ids in sizes {
        let mut worker = Worker::new();
        worker.fill(ids / SERIES);
        assert!(worker.judge.keys() as usize >= ids, "{} keys", worker.judge.keys());
        let folder = tempfile::tempdir().expect("a folder");
        let name = Name { term: 1, cut: 1, writer: 1 };
        let (pieces, save) = timed(|| worker.save());
        drop(worker);
        let (bytes, write) = timed(|| {
            let bytes = checkpoint::write_process(&RealFs, folder.path(), (name, 0), Vec::new(), &pieces);
            checkpoint::commit(&RealFs, folder.path(), name, (1, 1, "hash")).expect("room");
            bytes.expect("room")
        });
        let (restored, read) = timed(|| checkpoint::load(&RealFs, &name.dir(folder.path())).expect("whole"));
        let (restored, restore) = timed(|| {
            let mut worker = Worker::new();
            let mut created = Vec::new();
            let of = |operator| restored.groups(operator, |_| true);
            of("judge").for_each(|(group, bytes)| worker.judge.load(group, bytes, &mut created).expect("sound"));
            of("rolling").for_each(|(group, bytes)| worker.rolling.load(group, bytes).expect("sound"));
            of("rules").for_each(|(group, bytes)| worker.rules.load(group, bytes).expect("sound"));
            worker
        });
        assert!(restored.judge.keys() as usize >= ids);
        println!("{ids:<9} {:>5.1}  {save}  {write}  {read}  {restore}", bytes as f64 / 1e6);
        if ids == 1_000_000 {
            let (wall, goal) = (read.wall + restore.wall, 2.0);
            println!(
                "          read and restore {wall:.2} s, goal {goal} s: {}",
                if wall < goal { "met" } else { "missed" }
            );
        }
    }
}

struct Spent {
    wall: f64,
    cpu: f64,
}

impl std::fmt::Display for Spent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} [{:.2}]", self.wall, self.cpu)
    }
}

fn timed<T>(what: impl FnOnce() -> T) -> (T, Spent) {
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let done = what();
    (done, Spent { wall: began.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu })
}

fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("rusage");
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 * 1e-6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
