//! kill -9 at random moments, and in the end nothing tells that it ever happened.
//!
//! `SG_KILLS=500` makes it a long one; `SG_SEED` repeats the moments.

use crate::plant::{Plant, RULES};
use crate::same::{same_archive, same_dead_letters, same_journal, same_last, same_stream, same_time_series};
use crate::servers::{Kafka, Redis};
use crate::tested::{from_environment, tested};
use std::time::Duration;

fn sinks(redis: &Redis) -> String {
    let url = &redis.url;
    format!(
        r#"[sinks]
alerts = {{ type = "redis_stream", url = "{url}" }}
last = {{ type = "redis_last", url = "{url}" }}
live = {{ type = "redis_timeseries", url = "{url}" }}
lake = {{ type = "parquet", path = "LAKE" }}
"#
    )
}

#[test]
fn killed_at_random_moments_it_says_what_it_would_have_said() {
    let seed = from_environment("SG_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let kills = from_environment("SG_KILLS").unwrap_or(30);
    println!(
        "SG_SEED={seed} SG_KILLS={kills} cargo test --release --features tls --test it -- crash:: kills at these moments"
    );
    let mut random = fastrand::Rng::with_seed(seed);
    let redis = Redis::start_with_time_series();
    let plant = Plant::new(Kafka::shared(), "crash", RULES, &sinks(&redis));
    let data = plant.data();

    let seeds = [seed.to_string(), (seed + 1).to_string()];
    plant.produce(&["--readings", "20000", "--timestamps", "event", "--seed", &seeds[0]]);
    let producer = plant.feed(&["--rate", "1500", "--fault-every", "4s", "--seed", &seeds[1]]);

    let checkpoints = data.join("state/checkpoints");
    let mut before_the_first = 0;
    for n in 0..kills {
        let mut running = plant.run();
        // What is waited here is the moment of the kill, not for anything.
        match n % 4 {
            // Its first term has just been written down.
            0 if n == 0 => running.until("a term", || data.join("state/epochs/term-1").exists().then_some(())),
            0 => {
                running.until_up(plant.port);
                std::thread::sleep(Duration::from_millis(random.u64(0..300)));
            }
            3 => std::thread::sleep(Duration::from_millis(random.u64(0..500))),
            _ => {
                running.until_up(plant.port);
                std::thread::sleep(Duration::from_millis(random.u64(200..2_000)));
            }
        }
        running.kill9();
        let complete =
            |entry: std::io::Result<std::fs::DirEntry>| entry.is_ok_and(|e| e.path().join("manifest.json").exists());
        let whole =
            std::fs::read_dir(&checkpoints).map_or(0, |all| all.filter_map(|e| complete(e).then_some(())).count());
        // Checkpoint 0 is where the partitions began.
        before_the_first += usize::from(whole <= 1);
    }
    let mut last = plant.run();
    last.until_up(plant.port);
    let (status, said) = producer.terminate();
    assert!(status.success(), "{said}");
    // The whole plant is silent now, and heard to be.
    let path = data.join("journal.jsonl");
    last.until("silence", || std::fs::read_to_string(&path).ok().filter(|text| text.contains(r#""rule":"silent""#)));
    last.kill9();

    let seen = plant.equals_oracle();
    same_stream(&redis, &seen.journal);
    same_archive(&plant.lake(), &seen.expected.archive);
    same_time_series(&redis, &seen.expected.archive);
    same_last(&redis, &seen.expected.archive);
    same_dead_letters(&plant.config().display().to_string(), &seen.expected, &seen.records);

    let sound = plant.succeed(&["state", "verify"]);
    assert!(!String::from_utf8_lossy(&sound.stdout).contains("damaged"));
    // The epoch log, run again, says it once more.
    let again = plant.folder().join("again");
    plant.succeed(&["run", "--replay", &again.display().to_string()]);
    same_journal(&crate::program::journal(&again), &seen.journal);

    println!("{before_the_first} kills before the first checkpoint");
    assert!(before_the_first > 0);
    seen.is_something(200);
    let counts = oracle::total(&seen.expected.counts);
    assert!(counts.duplicates > 500 && counts.late > 50, "{counts:?}");
    assert!(counts.behind > 50 && counts.dead_lettered > 50, "{counts:?}");
    tested("kill -9 of a real process", kills, &format!("{} alert changes, seed {seed}", seen.journal.len()));
}
