//! A disk that fills, and one whose calls fail: the stream holds, says so, and goes on by itself.
//!
//! The data directory is a tmpfs of its own that a file fills, so this needs the right to mount one; without it, it says
//! that it is left out. `SG_DISK_ROUNDS=20` fills it more often, `SG_DISK_FAULTS=1000` has so many calls fail.

use crate::plant::{Plant, RULES};
use crate::program::journal;
use crate::running::Running;
use crate::same::{same_dead_letters, same_stream};
use crate::servers::{Kafka, Redis};
use crate::tested::{from_environment, tested};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A file system in memory, as small as it is told; gone with this value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Result<SmallDisk, String> {
        std::fs::create_dir_all(at).expect("a folder");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at);
        let output = command.output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(SmallDisk(at.to_owned()))
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::options().create(true).append(true).open(&path).expect("a file");
        for size in [1 << 16, 1 << 12, 1 << 8, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn plant(topic: &str, redis: &Redis) -> Plant<'static> {
    let sinks = format!("[sinks.alerts]\ntype = \"redis_stream\"\nurl = \"{}\"\n", redis.url);
    let mut plant = Plant::new(Kafka::shared(), topic, RULES, &sinks);
    plant.change("workers = 2", "workers = 2\nepochs.durability = \"disk\"");
    plant
}

/// What it says of the disk; none while it takes everything.
fn refused(plant: &Plant<'_>) -> Option<String> {
    let (status, text) = plant.get("/readyz")?;
    (status == 503 && text.contains("\"disk\"")).then_some(text)
}

fn ready(plant: &Plant<'_>) -> Option<()> {
    plant.get("/readyz").filter(|(status, _)| *status == 200).map(drop)
}

/// More alerts than there were.
fn goes_on(running: &mut Running, plant: &Plant<'_>) {
    let before = journal(&plant.data()).len();
    running.until("more alerts", || (journal(&plant.data()).len() > before + 10).then_some(()));
}

/// Fills the disk until the epoch log waits: what fills it, and what is said. A checkpoint that is given up, or an old one
/// that goes, makes some room by itself: that is filled, too.
fn full(running: &mut Running, plant: &Plant<'_>, disk: &SmallDisk) -> (PathBuf, String) {
    running.until("not ready for the disk", || {
        let filler = disk.fill();
        Some((filler, refused(plant).filter(|said| said.contains("epoch_log"))?))
    })
}

#[test]
fn a_disk_that_is_full_holds_the_stream_until_there_is_room_again() {
    let rounds = from_environment("SG_DISK_ROUNDS").unwrap_or(2);
    let redis = Redis::start();
    let plant = plant("full-disk", &redis);
    let disk = match SmallDisk::mount(&plant.data(), "48m") {
        Ok(disk) => disk,
        Err(error) => {
            println!("LEFT OUT: no tmpfs can be mounted here ({error})");
            return;
        }
    };
    plant.produce(&["--readings", "10000", "--timestamps", "event"]);
    let feed = plant.feed(&["--rate", "1500", "--seed", "8"]);
    let mut running = plant.run();
    running.until_up(plant.port);
    running.until("readiness", || ready(&plant));
    for round in 0..rounds {
        goes_on(&mut running, &plant);
        let (filler, said) = full(&mut running, &plant, &disk);
        let problems: Value = serde_json::from_str(&said).expect("JSON");
        let text = problems.to_string();
        for part in [&*plant.data().display().to_string(), "No space left on device", "free some space"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // It holds: what had been written down may still leave, and nothing after it.
        let look = || (plant.metric("streamgauge_source_records_total", ""), journal(&plant.data()).len());
        let stands_still = (0..10).any(|_| {
            disk.fill();
            std::thread::sleep(Duration::from_millis(500));
            let before = look();
            std::thread::sleep(Duration::from_secs(1));
            before == look()
        });
        assert!(stands_still, "round {round}: it reads on");
        assert_eq!(plant.metric("streamgauge_disk_up", "what=\"epoch_log\""), Some(0.0));
        std::fs::remove_file(filler).expect("removed");
        running.until("the disk taking everything", || refused(&plant).is_none().then_some(()));
        running.until("readiness", || ready(&plant));
    }
    goes_on(&mut running, &plant);
    // Asked to stop while it is full, it ends in time, says what was not written, and the next run is exact.
    let (filler, _) = full(&mut running, &plant, &disk);
    assert!(feed.terminate().0.success());
    let asked = Instant::now();
    let (status, said) = running.terminate();
    println!("asked to stop on a full disk: it ended after {:.1} s, {status}", asked.elapsed().as_secs_f64());
    assert!(asked.elapsed() < Duration::from_secs(27), "{said}");
    assert_eq!(status.code(), Some(3), "{said}");
    let last = said.lines().rfind(|line| line.contains("No space left on device")).unwrap_or_default();
    // Where a checkpoint that was given up has made room for the last epochs, it is the last checkpoint that is missing.
    let missing = ["records are read again by the next start", "the last checkpoint was not completed"];
    assert!(missing.iter().any(|text| last.contains(text)), "{said}");
    std::fs::remove_file(filler).expect("removed");
    let seen = plant.equals_oracle();
    same_stream(&redis, &seen.journal);
    same_dead_letters(&plant.config().display().to_string(), &seen.expected, &seen.records);
    seen.is_something(100);
    tested("data_dir full while readings flow", rounds + 1, &format!("tmpfs, {} alert changes", seen.journal.len()));
}

#[test]
fn calls_of_the_disk_that_fail_are_waited_out() {
    let faults = from_environment("SG_DISK_FAULTS").unwrap_or(20);
    let redis = Redis::start();
    let plant = plant("failing-disk", &redis);
    plant.produce(&["--readings", "10000", "--timestamps", "event"]);
    let feed = plant.feed(&["--rate", "1500", "--seed", "8"]);
    let failing = plant.folder().join("failing");
    let mut running = plant.run_with(&[], |command| {
        command.env("STREAMGAUGE_FAILING_DISK", &failing);
    });
    running.until_up(plant.port);
    running.until("readiness", || ready(&plant));
    // A prime: what fails is not always the same.
    std::fs::write(&failing, "23\n").expect("a file");
    let failed = || {
        let text = std::fs::read_to_string(failing.with_extension("failed")).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut seen = 0;
    while (seen as u64) < faults {
        // As long as faults come there is no end to wait for but the next one.
        seen = running.until("another fault", || Some(failed().len()).filter(|n| *n > seen || *n as u64 >= faults));
    }
    std::fs::remove_file(&failing).expect("removed");
    running.until("the disk taking everything", || refused(&plant).is_none().then_some(()));
    goes_on(&mut running, &plant);
    assert!(feed.terminate().0.success());
    let (status, said) = running.terminate();
    assert!(status.success(), "{said}");
    assert!(plant.get("/healthz").is_none() && said.contains("takes what is written again"), "{said}");
    let failed = failed();
    let kinds: BTreeSet<&str> = failed.iter().map(String::as_str).collect();
    assert!(kinds.contains("sync.epoch-log") && kinds.len() > 2, "{kinds:?}");
    let outcome = plant.equals_oracle();
    same_stream(&redis, &outcome.journal);
    same_dead_letters(&plant.config().display().to_string(), &outcome.expected, &outcome.records);
    outcome.is_something(100);
    let note = format!("{} kinds of calls, {} alert changes", kinds.len(), outcome.journal.len());
    tested("a call of the disk fails with EIO", failed.len() as u64, &note);
}
