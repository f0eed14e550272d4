//! A process that is stopped (SIGSTOP), replaced by another and woken up writes nothing that counts.
//!
//! `SG_ZOMBIES=100` makes it a long one; `SG_SEED` repeats the moments.

use crate::plant::{Plant, RULES};
use crate::program::free_pair;
use crate::running::Running;
use crate::same::{same_archive, same_dead_letters, same_journal, same_last, same_stream, same_time_series};
use crate::servers::{Kafka, Redis};
use crate::tested::{from_environment, tested};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// How long one that wakes up may take to see that it has been replaced; it takes a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

fn signal(running: &Running, signal: Signal) {
    kill(Pid::from_raw(running.pid() as i32), signal).expect("a process of ours");
}

#[test]
fn an_old_process_that_wakes_up_writes_nothing_that_counts() {
    let seed = from_environment("SG_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let zombies = from_environment("SG_ZOMBIES").unwrap_or(5);
    println!(
        "SG_SEED={seed} SG_ZOMBIES={zombies} cargo test --release --features tls --test it -- zombie:: does it again"
    );
    let mut random = fastrand::Rng::with_seed(seed);
    let redis = Redis::start_with_time_series();
    let url = &redis.url;
    let sinks = format!(
        r#"[sinks]
alerts = {{ type = "redis_stream", url = "{url}" }}
last = {{ type = "redis_last", url = "{url}" }}
live = {{ type = "redis_timeseries", url = "{url}" }}
lake = {{ type = "parquet", path = "LAKE" }}
"#
    );
    let mut plant = Plant::new(Kafka::shared(), "zombie", RULES, &sinks);
    plant.produce(&["--readings", "20000", "--timestamps", "event", "--seed", &seed.to_string()]);
    let producer = plant.feed(&["--rate", "1500", "--fault-every", "4s", "--seed", &(seed + 1).to_string()]);

    let mut current = plant.run_as("log-0", &[], |_| {});
    current.until_up(plant.port);
    for n in 1..=zombies {
        // What is waited here is the moment, not for anything: some have committed a checkpoint, some have not.
        std::thread::sleep(Duration::from_millis(random.u64(0..2_500)));
        signal(&current, Signal::SIGSTOP);
        // The page of the one that is stopped keeps its port.
        let port = free_pair();
        plant.change(&format!("listen = \"127.0.0.1:{}\"", plant.port), &format!("listen = \"127.0.0.1:{port}\""));
        plant.port = port;
        let mut next = plant.run_as(&format!("log-{n}"), &[], |_| {});
        next.until_up(port);
        std::thread::sleep(Duration::from_millis(random.u64(0..1_500)));
        signal(&current, Signal::SIGCONT);
        let status = current.ends_within(PATIENCE).expect("it sees that it has been replaced, and ends");
        let said = current.said();
        assert_eq!(status.code(), Some(4), "{said}");
        assert!(said.contains("has been replaced by term") || said.contains("newer run"), "{said}");
        current = next;
    }
    let (status, said) = producer.terminate();
    assert!(status.success(), "{said}");
    // The whole plant is silent now, and heard to be.
    let path = plant.data().join("journal.jsonl");
    current.until("silence", || std::fs::read_to_string(&path).ok().filter(|text| text.contains(r#""rule":"silent""#)));
    current.kill9();

    let seen = plant.equals_oracle();
    same_stream(&redis, &seen.journal);
    same_archive(&plant.lake(), &seen.expected.archive);
    same_time_series(&redis, &seen.expected.archive);
    same_last(&redis, &seen.expected.archive);
    same_dead_letters(&plant.config().display().to_string(), &seen.expected, &seen.records);
    let sound = plant.succeed(&["state", "verify"]);
    assert!(!String::from_utf8_lossy(&sound.stdout).contains("damaged"));
    let again = plant.folder().join("again");
    plant.succeed(&["run", "--replay", &again.display().to_string()]);
    same_journal(&crate::program::journal(&again), &seen.journal);
    seen.is_something(100);
    tested(
        "zombie: SIGSTOP, replaced, SIGCONT",
        zombies,
        &format!("{} alert changes, seed {seed}", seen.journal.len()),
    );
}
