//! SIGKILL at every fail point (`src/failpoint.rs`): before and after each write, sync, rename, send, acknowledgement.
//!
//! A first run lists the points it passes. Then one run after another dies at one of them, all on one state directory,
//! while readings go on coming; in the end nothing tells that it ever happened. Points that only a first start passes
//! are died at by a first start. `SG_FAILPOINTS=20` takes each point twenty times, at other moments.

use crate::plant::{Plant, RULES};
use crate::running::PATIENCE;
use crate::same::{same_archive, same_dead_letters, same_last, same_stream};
use crate::servers::{Kafka, Redis};
use crate::tested::{from_environment, tested};
use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

const SIGKILL: i32 = 9;
/// How long a point may take to be passed before the run is asked to end (which passes points, too): with readings
/// coming, and in the calm of a first start without any.
const BUSY: Duration = Duration::from_secs(2);
const CALM: Duration = Duration::from_secs(6);

fn sinks(redis: &Redis, database: usize) -> String {
    let url = &redis.url;
    format!(
        r#"[sinks]
alerts = {{ type = "redis_stream", url = "{url}/{database}" }}
last = {{ type = "redis_last", url = "{url}/{database}" }}
lake = {{ type = "parquet", path = "LAKE" }}
"#
    )
}

/// How a run ends that is to die at the nth passing of a point; asked to end where it did not die for long.
fn run_to(plant: &Plant<'_>, point: &str, n: u64, patience: Duration) -> ExitStatus {
    let mut running = plant.run_with(&[], |command| {
        command.env("STREAMGAUGE_FAILPOINT", format!("{point}:{n}"));
    });
    let up = Instant::now();
    // Before it is up it may die, and could not be asked to end.
    while running.ends_within(Duration::ZERO).is_none() && plant.get("/healthz").is_none() {
        assert!(up.elapsed() < PATIENCE, "not up: {}", running.said());
    }
    match running.ends_within(patience) {
        Some(status) => status,
        None => running.terminate().0,
    }
}

fn died(status: ExitStatus) -> bool {
    if status.signal() == Some(SIGKILL) {
        return true;
    }
    assert!(status.success(), "neither killed nor well: {status}");
    false
}

/// The points that a run of some seconds passes, from its first start to its clean end.
fn points(plant: &Plant<'_>) -> BTreeSet<String> {
    let list = plant.folder().join("points");
    let feed = plant.feed(&["--rate", "1500"]);
    let mut running = plant.run_with(&[], |command| {
        command.env("STREAMGAUGE_FAILPOINTS", &list);
    });
    // Checkpoints enough that old ones are removed, and a pause in which the lanes ask for a sign of life.
    let checkpoints = || plant.metric("streamgauge_checkpoint_duration_seconds_count", "").filter(|n| *n >= 5.0);
    running.until("checkpoints", checkpoints);
    assert!(feed.terminate().0.success());
    let probed = || std::fs::read_to_string(&list).ok().filter(|text| text.contains("probe.alerts.after"));
    running.until("a sign of life", probed);
    let (status, said) = running.terminate();
    assert!(status.success(), "{said}");
    std::fs::read_to_string(&list).expect("points").lines().map(str::to_owned).collect()
}

#[test]
fn killed_at_every_fail_point_it_says_what_it_would_have_said() {
    let seed = from_environment("SG_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let times = from_environment("SG_FAILPOINTS").unwrap_or(1);
    println!("SG_SEED={seed} SG_FAILPOINTS={times} cargo test --release --features tls --test it -- failpoints::");
    let mut random = fastrand::Rng::with_seed(seed);
    let redis = Redis::start();
    let kafka = Kafka::shared();
    let plant = Plant::new(kafka, "failpoints", RULES, &sinks(&redis, 0));
    plant.produce(&["--readings", "5000", "--timestamps", "event"]);
    let points = points(&plant);
    for expected in
        ["write.epoch-log", "sync.checkpoint", "rename.manifest", "send.alerts", "acknowledge.alerts", "show.lake"]
    {
        for when in ["before", "after"] {
            assert!(points.contains(&format!("{expected}.{when}")), "{expected}.{when} is not among {points:?}");
        }
    }

    let feed = plant.feed(&["--rate", "1000", "--fault-every", "4s", "--seed", "8"]);
    let mut kills = 0;
    let mut only_at_first = Vec::new();
    for round in 0..times {
        let mut order: Vec<&String> = points.iter().collect();
        random.shuffle(&mut order);
        for point in order {
            // What is done at every tick is died at at any of them; the rest at its first or second time.
            let n = if point.contains("epoch-log") || point.contains("journal") {
                random.u64(1..60)
            } else {
                1 + round % 2
            };
            if died(run_to(&plant, point, n, BUSY)) || (n > 1 && died(run_to(&plant, point, 1, BUSY))) {
                kills += 1;
            } else if round == 0 {
                only_at_first.push(point.clone());
            }
        }
    }
    assert!(feed.terminate().0.success());
    let seen = plant.equals_oracle();
    same_stream(&redis, &seen.journal);
    same_archive(&plant.lake(), &seen.expected.archive);
    same_last(&redis, &seen.expected.archive);
    same_dead_letters(&plant.config().display().to_string(), &seen.expected, &seen.records);
    seen.is_something(200);

    println!("{} points, {kills} kills; only at a first start, or in its calm: {only_at_first:?}", points.len());
    let fed = Plant::new(kafka, "failpoints-first", RULES, "");
    fed.produce(&["--readings", "4000", "--timestamps", "event"]);
    for point in &only_at_first {
        redis::cmd("FLUSHALL").exec(&mut redis.connection()).expect("flushed");
        let plant = Plant::new(kafka, "failpoints-first", RULES, &sinks(&redis, 1));
        let death = died(run_to(&plant, point, 1, CALM));
        assert!(death, "{point} was passed once, and never again");
        kills += 1;
        let seen = plant.equals_oracle();
        same_archive(&plant.lake(), &seen.expected.archive);
        seen.is_something(20);
    }
    let all = points.len() as u64 * times;
    assert!(kills + only_at_first.len() as u64 * (times - 1) >= all, "{kills} of {all}");
    let note = format!("{} points, {} alert changes, seed {seed}", points.len(), seen.journal.len());
    tested("SIGKILL at a fail point", kills, &note);
}
