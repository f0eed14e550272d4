//! The program in a simulated world: real timely workers, one step at a time as a seed says; disk, time, source and
//! destinations in memory, failing as the seed says. After some bad lives and a good one, everything must be as the
//! oracle says. docs/testing.md says what is simulated and what is not.
//!
//! `SIM="seed=17" cargo test --release --features tls --test simulation one_case -- --nocapture` repeats a seed.

mod baton;
mod case;
mod clocks;
mod destinations;
mod disk;
#[allow(dead_code)]
#[path = "../common/oracle.rs"]
mod expected;
#[allow(dead_code, reason = "the source is another one here")]
#[path = "../common/memory.rs"]
mod memory;
#[path = "../common/random_input.rs"]
mod random_input;
mod sleeper;
mod syncs;
#[path = "../common/tested.rs"]
mod tested;
mod world;

use case::{Case, Report};
use disk::Kind;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

/// FNV-1a, from where it stands.
pub fn hash(from: u64, bytes: &[u8]) -> u64 {
    let start = if from == 0 { 0xcbf2_9ce4_8422_2325 } else { from };
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn run(case: &Case) -> Result<Report, String> {
    catch_unwind(AssertUnwindSafe(|| case::run(case))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default())
    })
}

/// Leaves away what is not needed for a failure: kinds of faults, lives, records.
fn minimised(case: &Case) -> Case {
    let mut least = case.clone();
    let still = |case: &Case| run(case).is_err();
    loop {
        let mut tries: Vec<Case> = Vec::new();
        for fault in &least.faults {
            let mut fewer = least.clone();
            fewer.faults.remove(fault);
            tries.push(fewer);
        }
        if least.lives > 0 {
            tries.push(Case { lives: least.lives - 1, ..least.clone() });
        }
        for records in [least.records / 2, least.records * 3 / 4, least.records - 1] {
            if (1..least.records).contains(&records) && (least.records > 40 || records + 1 < least.records) {
                tries.push(Case { records, ..least.clone() });
            }
        }
        match tries.into_iter().find(still) {
            Some(fewer) => least = fewer,
            None => return least,
        }
    }
}

fn command(case: &Case) -> String {
    format!("SIM=\"{case}\" cargo test --release --features tls --test simulation one_case -- --nocapture")
}

/// Runs cases on two threads; says of those that fail what repeats them.
fn all(cases: &[Case]) -> Report {
    let sum = Mutex::new(Report::default());
    let failures: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, SeqCst)) {
                    match run(case) {
                        Ok(report) => sum.lock().expect("a sum").add(&report),
                        Err(error) => {
                            println!("FAILED {case}: {error}");
                            let mut failures = failures.lock().expect("a list");
                            // One is enough to work on.
                            if failures.is_empty() {
                                let least = minimised(case);
                                let error = run(&least).err().unwrap_or(error);
                                failures.push(format!("{least}: {error}\n  repeat: {}", command(&least)));
                            } else {
                                failures.push(format!("{case}: {error}"));
                            }
                        }
                    }
                    done.fetch_add(1, SeqCst);
                }
            });
        }
    });
    let failures = failures.into_inner().expect("a list");
    let sum = sum.into_inner().expect("a sum");
    println!("{} cases: {sum:?}", done.load(SeqCst));
    assert!(failures.is_empty(), "{} of {} cases fail:\n{}", failures.len(), cases.len(), failures.join("\n"));
    sum
}

impl Report {
    fn add(&mut self, other: &Report) {
        self.turns += other.turns;
        self.alerts += other.alerts;
        self.duplicates += other.duplicates;
        self.late += other.late;
        self.dead_letters += other.dead_letters;
        self.crashes += other.crashes;
        self.power_cuts += other.power_cuts;
        self.failures += other.failures;
        self.disk_faults += other.disk_faults;
        self.sink_faults += other.sink_faults;
        self.waited += other.waited;
        self.crashes_in_outage += other.crashes_in_outage;
        self.torn += other.torn;
        self.damaged += other.damaged;
        self.paused += other.paused;
        self.zombies += other.zombies;
        self.zombies_ended += other.zombies_ended;
        self.zombie_points += other.zombie_points;
        self.zombie_alerts += other.zombie_alerts;
        self.fenced += other.fenced;
        self.terms += other.terms;
        self.silences += other.silences;
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn seeds_with_faults_equal_the_oracle() {
    let (first, count) = (number("SIM_SEED", 1), number("SIM_SEEDS", 500));
    let cases: Vec<Case> = (first..first + count).map(Case::of_seed).collect();
    let sum = all(&cases);
    let Report { alerts, crashes, power_cuts, disk_faults, .. } = &sum;
    let note =
        format!("{crashes} crashes, {power_cuts} power cuts, {disk_faults} faults of the disk, {alerts} alert changes");
    tested::tested("simulated seeds", count, &note);
    if count >= 500 {
        assert!(sum.alerts > 10_000 && sum.duplicates > 5_000 && sum.late > 500, "too little to compare: {sum:?}");
        assert!(sum.crashes > 300 && sum.power_cuts > 80 && sum.torn > 5, "too few crashes: {sum:?}");
        assert!(sum.damaged > 80, "too few damaged checkpoints: {sum:?}");
        assert!(sum.zombies > 100 && sum.zombies_ended > 80, "too few zombies: {sum:?}");
        assert!(sum.zombie_points > 5_000 && sum.fenced > 10, "zombies did too little: {sum:?}");
        assert!(sum.disk_faults > 100 && sum.sink_faults > 400, "too few faults: {sum:?}");
        assert!(sum.waited > 100 && sum.crashes_in_outage > 50, "too little waited for: {sum:?}");
    }
}

/// One run, once for each call of the disk that it makes: that call fails with EIO, or from that call on the disk is full
/// for a while; and once more where the process dies while it waits.
#[test]
fn whichever_call_of_the_disk_fails_the_run_waits_and_loses_nothing() {
    for seed in 1..=number("SIM_NTH", 1) {
        let calm = Case {
            seed,
            records: 60,
            lives: 0,
            faults: BTreeSet::new(),
            nth: Some((1 << 40, 1, Kind::Eio)),
            ..Case::of_seed(seed)
        };
        let crash = Case { faults: BTreeSet::from(["crash".to_owned()]), ..calm.clone() };
        let calls = run(&calm).expect("a run without faults").counted;
        let cases: Vec<Case> = (1..=calls)
            .flat_map(|n| {
                let eio = Case { nth: Some((n, 1, Kind::Eio)), ..calm.clone() };
                let full = Case { nth: Some((n, 10, Kind::Full)), ..calm.clone() };
                let dies = Case { nth: Some((n, 10, Kind::Full)), ..crash.clone() };
                [eio, full, dies]
            })
            .collect();
        let sum = all(&cases);
        assert!(calls > 200 && sum.alerts > 3 * calls, "too little: {calls} calls, {sum:?}");
        assert!(
            sum.waited > calls && sum.crashes_in_outage > calls / 3,
            "too little waited for: {calls} calls, {sum:?}"
        );
    }
}

/// What `durability = "process"` does not promise: after a power cut it goes on, from what is left. The epochs that are
/// lost may have had alerts; those stay in destinations elsewhere. All else is what the oracle makes of the log.
#[test]
fn a_power_cut_that_was_not_promised_to_be_harmless_leaves_nothing_that_is_taken_for_right() {
    let cases = (1..=number("SIM_UNPROMISED", 200)).map(|seed| {
        let mut case = Case::of_seed(seed);
        case.faults.extend(["power", "crash"].map(str::to_owned));
        Case { unpromised: true, lives: case.lives.max(2), ..case }
    });
    let sum = all(&cases.collect::<Vec<_>>());
    assert!(sum.power_cuts > 60 && sum.torn > 4 && sum.alerts > 4_000, "too little happened: {sum:?}");
}

/// Issue 5's row: eight ways in which clocks are wrong, some seeds each.
#[test]
fn wrong_clocks_never_turn_epochs_back_nor_count_time_in_which_nobody_heard() {
    let per_kind = number("SIM_CLOCKS", 80).div_ceil(clocks::ALL.len() as u64);
    let first = number("SIM_SEED", 1);
    let (mut cases, mut alerts) = (0, 0);
    for (wrong, name) in clocks::ALL {
        let of_kind: Vec<Case> = (first..first + per_kind).map(|seed| Case::of_clocks(wrong, seed)).collect();
        let sum = all(&of_kind);
        let least = [20 * per_kind, 2 * per_kind, per_kind / 2];
        let is = [sum.alerts, sum.terms, sum.silences];
        assert!(is.iter().zip(least).all(|(is, least)| *is >= least), "{name}: too little to compare: {sum:?}");
        cases += of_kind.len() as u64;
        alerts += sum.alerts;
    }
    tested::tested("wrong clocks, simulated", cases, &format!("8 kinds, {alerts} alert changes"));
}

#[test]
fn seeds_that_failed_once_do_not_fail_again() {
    let text = include_str!("regressions.txt");
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let cases: Vec<Case> = lines
        .filter(|line| !line.is_empty())
        .map(|line| line.parse().unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    all(&cases);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1..=number("SIM_TRACES", 20) {
        let case = Case::of_seed(seed);
        let (once, again) = (run(&case), run(&case));
        assert_eq!(once, again, "{case}");
    }
}

/// Workers without records let go of a second's epochs together. The one that has some tells them, or its alert would
/// wait for the second's end: 900 ms here.
#[test]
fn the_first_reading_after_a_lull_is_not_kept_waiting_and_the_lull_is_written_down() {
    for seed in 1..=5 {
        let (delay_us, lines) = case::one_after_a_lull(seed).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(delay_us < 300_000, "seed {seed}: {delay_us} us");
        assert!(lines > 400, "seed {seed}: {lines} lines for ten seconds of 20 ms");
    }
}

/// What `SIM` says; nothing without it.
#[test]
fn one_case() {
    let Ok(text) = std::env::var("SIM") else { return };
    if std::env::var("SIM_LOG").is_ok() {
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_test_writer().try_init();
    }
    let case: Case = text.parse().unwrap_or_else(|e| panic!("SIM: {e}"));
    match run(&case) {
        Ok(report) => println!("{case}: {report:?}"),
        Err(error) => {
            println!("FAILED {case}: {error}");
            let least = minimised(&case);
            panic!("smallest: {}\n{:?}", command(&least), run(&least).err());
        }
    }
}
