//! Any number of workers and processes, and restarts between: the answers are the same.
//!
//! `SG_RESCALES=100` makes it a long one; `SG_SEED` repeats the choices.

use crate::plant::{Plant, RULES, keyed_rules};
use crate::program::{free_port, journal};
use crate::running::Running;
use crate::same::{same_archive, same_dead_letters, same_journal, same_stream};
use crate::servers::{Kafka, Redis};
use crate::tested::{from_environment, tested};
use std::time::Duration;

/// Workers of each process, processes.
const SHAPES: [(usize, usize); 6] = [(1, 1), (2, 1), (3, 1), (4, 1), (8, 1), (2, 2)];

/// All processes of a run in this shape.
fn start(plant: &Plant<'_>, (workers, processes): (usize, usize), more: &[&str]) -> Vec<Running> {
    let workers = workers.to_string();
    let more = [more, &["-w", &workers]].concat();
    if processes == 1 {
        return vec![plant.run_with(&more, |_| {})];
    }
    let hosts = plant.folder().join("hosts");
    let lines: String = (0..processes).map(|_| format!("127.0.0.1:{}\n", free_port())).collect();
    std::fs::write(&hosts, lines).expect("hosts");
    let (hosts, n) = (hosts.display().to_string(), processes.to_string());
    let process = |p: usize| {
        let (log, p) = (format!("log-{p}"), p.to_string());
        plant.run_as(&log, &[&more[..], &["--hostfile", &hosts, "-n", &n, "-p", &p]].concat(), |_| {})
    };
    (0..processes).map(process).collect()
}

/// Ends all of them: by kill -9, or by asking them to.
fn end(running: Vec<Running>, kill: bool) {
    if kill {
        running.into_iter().for_each(Running::kill9);
        return;
    }
    running.iter().for_each(Running::ask_to_end);
    for mut process in running {
        let (status, said) = process.wait();
        assert!(status.success(), "{status}: {said}");
    }
}

#[test]
fn one_epoch_log_makes_one_journal_whoever_wrote_it_and_whoever_reads_it() {
    let seed = from_environment("SG_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let restarts = from_environment("SG_RESCALES").unwrap_or(5);
    println!("SG_SEED={seed} SG_RESCALES={restarts} cargo test --release --features tls --test it -- rescale::one");
    let mut random = fastrand::Rng::with_seed(seed);
    let redis = Redis::start();
    let sinks = format!(
        "[sinks]\nalerts = {{ type = \"redis_stream\", url = \"{}\" }}\nlake = {{ type = \"parquet\", path = \"LAKE\" }}\n",
        redis.url
    );
    let plant = Plant::new(Kafka::shared(), "rescale", RULES, &sinks);
    plant.produce(&["--readings", "20000", "--timestamps", "event", "--create-partitions", "5"]);
    let feed = plant.feed(&["--rate", "1000", "--fault-every", "3s", "--create-partitions", "5", "--seed", "8"]);
    let mut shapes = SHAPES;
    random.shuffle(&mut shapes);
    for n in 0..=restarts {
        let shape = shapes[n as usize % shapes.len()];
        let mut running = start(&plant, shape, &[]);
        running[0].until_up(plant.port);
        std::thread::sleep(Duration::from_millis(random.u64(300..2_500)));
        end(running, random.bool());
    }
    assert!(feed.terminate().0.success());
    let seen = plant.equals_oracle();
    same_stream(&redis, &seen.journal);
    same_archive(&plant.lake(), &seen.expected.archive);
    same_dead_letters(&plant.config().display().to_string(), &seen.expected, &seen.records);
    seen.is_something(200);
    for (workers, _) in SHAPES.iter().filter(|(_, processes)| *processes == 1) {
        let again = plant.folder().join(format!("again-{workers}"));
        plant.succeed(&["run", "-w", &workers.to_string(), "--replay", &again.display().to_string()]);
        same_journal(&journal(&again), &seen.journal);
    }
    let note = format!("{} alert changes, seed {seed}", seen.journal.len());
    tested("restart with other workers or processes, one epoch log", restarts, &note);
}

#[test]
fn keyed_alerts_are_the_same_in_any_epochs_on_any_workers_after_any_restart() {
    let seed = from_environment("SG_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let runs = from_environment("SG_RESCALES").unwrap_or(5);
    println!("SG_SEED={seed} SG_RESCALES={runs} cargo test --release --features tls --test it -- rescale::keyed");
    let mut random = fastrand::Rng::with_seed(seed);
    let kafka = Kafka::shared();
    let mut first: Option<Vec<String>> = None;
    let mut killed_inside = 0;
    for run in 0..=runs {
        let mut plant = Plant::new(kafka, "rescale-keyed", keyed_rules(), "");
        let tick = |plant: &mut Plant<'_>, ms: u64| {
            let line = plant.text.lines().find(|line| line.starts_with("epochs.tick")).map(str::to_owned);
            let (from, to) = (line.unwrap_or_else(|| "workers = 2".to_owned()), format!("epochs.tick = \"{ms}ms\""));
            let to = if from.starts_with("workers") { format!("{from}\n{to}") } else { to };
            plant.change(&from, &to);
        };
        if run == 0 {
            plant.produce(&["--readings", "60000", "--timestamps", "event", "--create-partitions", "5"]);
            let seen = plant.equals_oracle();
            seen.is_something(200);
            first = Some(oracle::canonical(&seen.journal));
            continue;
        }
        for _ in 0..3 {
            tick(&mut plant, random.u64(5..=200));
            let shape = SHAPES[random.usize(..SHAPES.len())];
            let mut running = start(&plant, shape, &[]);
            running[0].until("a term", || plant.data().join("state/epochs").exists().then_some(()));
            std::thread::sleep(Duration::from_millis(random.u64(0..500)));
            end(running, true);
            killed_inside += usize::from(plant.data().join("journal.jsonl").exists());
        }
        tick(&mut plant, random.u64(5..=200));
        let shape = SHAPES[random.usize(..SHAPES.len())];
        for mut process in start(&plant, shape, &["--until-end"]) {
            let (status, said) = process.wait();
            assert!(status.success(), "run {run}, {shape:?}: {status}: {said}");
        }
        let canonical = oracle::canonical(&journal(&plant.data()));
        same_journal(&canonical, first.as_ref().expect("a first run"));
    }
    assert!(killed_inside > 0);
    let note = format!("{} alert changes, 3 kills each, ticks of 5-200 ms, seed {seed}", first.map_or(0, |f| f.len()));
    tested("live run of a keyed plant on any workers and epochs", runs, &note);
}
