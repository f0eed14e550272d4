//! Everything that a Redis can do to us: it stops, freezes, dies, turns read-only, is full, is cut off, does not answer.
//!
//! One program feeds a Redis for each fault, and all faults are there at the same time: what each Redis has in the end
//! is the journal, and the archive beside them is never delayed. `SG_FAULT_SECONDS=60 SG_FAULT_ROUNDS=6` makes it long.

use crate::plant::{Plant, RULES};
use crate::proxy::Proxy;
use crate::same::{same_archive, same_stream};
use crate::servers::{Kafka, Redis};
use crate::tested::{from_environment, tested};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Stopped,
    Frozen,
    Killed,
    ReadOnly,
    Full,
    CutOff,
    Held,
}

const FAULTS: [Fault; 7] =
    [Fault::Stopped, Fault::Frozen, Fault::Killed, Fault::ReadOnly, Fault::Full, Fault::CutOff, Fault::Held];

/// A Redis, the line to it, and what befalls it.
struct Victim {
    fault: Fault,
    redis: Redis,
    proxy: Proxy,
}

impl Victim {
    fn new(fault: Fault) -> Victim {
        let redis = Redis::start();
        let proxy = Proxy::to(redis.port());
        Victim { fault, redis, proxy }
    }
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.redis.pid() as i32), signal).expect("told");
    }
    fn tell(&self, command: &[&str]) {
        let mut told = redis::cmd(command[0]);
        told.arg(&command[1..]);
        told.exec(&mut self.redis.connection()).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    }
    fn begin(&self) {
        match self.fault {
            Fault::Stopped => self.redis.stop(),
            Fault::Frozen => self.signal(Signal::SIGSTOP),
            Fault::Killed => self.redis.kill9(),
            // The replica of a master that is not there: it keeps its data, and takes no writes.
            Fault::ReadOnly => self.tell(&["REPLICAOF", "127.0.0.1", "1"]),
            Fault::Full => self.tell(&["CONFIG", "SET", "maxmemory", "1"]),
            Fault::CutOff => self.proxy.cut(),
            Fault::Held => self.proxy.hold(),
        }
    }
    fn end(&self) {
        match self.fault {
            Fault::Stopped | Fault::Killed => self.redis.restart(),
            Fault::Frozen => self.signal(Signal::SIGCONT),
            Fault::ReadOnly => self.tell(&["REPLICAOF", "NO", "ONE"]),
            Fault::Full => self.tell(&["CONFIG", "SET", "maxmemory", "0"]),
            Fault::CutOff | Fault::Held => self.proxy.mend(),
        }
    }
    fn name(&self) -> String {
        format!("{:?}", self.fault).to_lowercase()
    }
}

#[test]
fn whatever_befalls_a_redis_it_has_each_alert_once_and_nobody_else_waits() {
    let seconds = from_environment("SG_FAULT_SECONDS").unwrap_or(10);
    let rounds = from_environment("SG_FAULT_ROUNDS").unwrap_or(1);
    let victims: Vec<Victim> = FAULTS.into_iter().map(Victim::new).collect();
    let sinks: String = victims
        .iter()
        .map(|v| {
            format!("[sinks.{}]\ntype = \"redis_stream\"\nurl = \"redis://127.0.0.1:{}\"\n", v.name(), v.proxy.port())
        })
        .collect();
    let sinks = format!("{sinks}[sinks.lake]\ntype = \"parquet\"\npath = \"LAKE\"\n");
    let plant = Plant::new(Kafka::shared(), "redis-faults", RULES, &sinks);
    plant.produce(&["--readings", "5000", "--timestamps", "event"]);
    let feed = plant.feed(&["--rate", "1500", "--fault-every", "2s", "--seed", "8"]);
    let mut running = plant.run();
    running.until_up(plant.port);
    let waiting = |sink: &str| plant.metric("streamgauge_sink_queue_items", &format!("sink=\"{sink}\""));
    let up = |sink: &str| plant.metric("streamgauge_sink_up", &format!("sink=\"{sink}\""));
    let rows = || plant.metric("streamgauge_sink_records_total", "sink=\"lake\"").unwrap_or(0.0);
    let records = || plant.metric("streamgauge_source_records_total", "").unwrap_or(0.0);
    for round in 0..rounds {
        for victim in &victims {
            running.until("a Redis that has everything", || waiting(&victim.name()).filter(|n| *n < 50.0));
        }
        println!("round {round}: everything goes wrong");
        victims.iter().for_each(Victim::begin);
        let before = (rows(), records());
        // Not waiting for anything: this is how long it all lasts.
        std::thread::sleep(Duration::from_secs(seconds));
        // Part of what has been read is a duplicate or a dead letter; the rest waits for no Redis. They are still away
        // while we look: a machine that is slow now needs more time, and one that waits for them needs for ever.
        let read = records() - before.1;
        let archived =
            running.until("what was read in the archive", || Some(rows() - before.0).filter(|rows| *rows > 0.7 * read));
        println!("meanwhile {read} records were read, and {archived} rows archived");
        assert!(read > 100.0 * seconds as f64, "{read} records");
        for victim in &victims {
            running.until("an alert that waits", || waiting(&victim.name()).filter(|n| *n > 0.0));
            // One that says nothing may yet answer: the connection is given up after 20 s.
            if seconds > 25 || !matches!(victim.fault, Fault::Frozen | Fault::Held) {
                running.until("a Redis that is known to be away", || up(&victim.name()).filter(|up| *up == 0.0));
            }
        }
        victims.iter().for_each(Victim::end);
    }
    for victim in &victims {
        let name = victim.name();
        running.until("everything delivered", || waiting(&name).filter(|n| *n < 50.0));
    }
    assert!(feed.terminate().0.success());
    let (status, said) = running.terminate();
    assert!(status.success(), "{said}");
    let seen = plant.equals_oracle();
    for victim in &victims {
        println!("{:?}", victim.fault);
        same_stream(&victim.redis, &seen.journal);
    }
    same_archive(&plant.lake(), &seen.expected.archive);
    seen.is_something(200);
    let note = format!("7 faults at once, {seconds} s each, {} alert changes", seen.journal.len());
    tested("Redis stopped, frozen, killed, read-only, full, cut off, silent", rounds * 7, &note);
}

#[test]
fn a_redis_that_forgot_is_noticed_and_gets_what_the_lane_still_has() {
    let flushed = Redis::start();
    let older = Redis::start();
    let sinks = format!(
        "[sinks.flushed]\ntype = \"redis_stream\"\nurl = \"{}\"\n[sinks.older]\ntype = \"redis_stream\"\nurl = \"{}\"\n",
        flushed.url, older.url
    );
    let mut plant = Plant::new(Kafka::shared(), "redis-forgot", RULES, &sinks);
    // No checkpoint lets go of anything meanwhile, so that what the lane still has is everything.
    plant.change("checkpoint.interval = \"1s\"", "checkpoint.interval = \"10m\"");
    plant.produce(&["--readings", "5000", "--timestamps", "event"]);
    let feed = plant.feed(&["--rate", "1500", "--fault-every", "2s", "--seed", "8"]);
    let mut running = plant.run();
    let entries =
        |redis: &Redis| -> usize { redis::cmd("XLEN").arg("alerts").query(&mut redis.connection()).expect("a length") };
    running.until("alerts", || (entries(&flushed) > 30 && entries(&older) > 30).then_some(()));
    // The copy is made while the server stands still; what comes after it is what the older copy lacks.
    older.stop();
    let data = older.folder().join("data");
    let copy = older.folder().join("copy");
    let copied = |from: &std::path::Path, to: &std::path::Path| {
        let done = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
        assert!(done.success());
    };
    copied(&data, &copy);
    older.restart();
    let before = entries(&older);
    running.until("more alerts", || (entries(&older) > before + 20).then_some(()));

    // The connection stands: nothing but the stream itself can tell.
    redis::cmd("FLUSHALL").exec(&mut flushed.connection()).expect("flushed");
    older.kill9();
    std::fs::remove_dir_all(&data).expect("removed");
    copied(&copy, &data);
    older.restart();

    running.until_says("destination went back", 2);
    let text = running.said();
    for sink in ["flushed", "older"] {
        let told = text.lines().any(|l| l.contains("destination went back") && l.contains(&format!("sink=\"{sink}\"")));
        assert!(told, "nothing about {sink}: {text}");
    }
    assert!(feed.terminate().0.success());
    let (status, text) = running.terminate();
    assert!(status.success(), "{text}");
    let seen = plant.equals_oracle();
    same_stream(&flushed, &seen.journal);
    same_stream(&older, &seen.journal);
    seen.is_something(60);
    tested("Redis flushed, or restored from an older copy", 2, &format!("{} alert changes", seen.journal.len()));
}
