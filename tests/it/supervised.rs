//! `run --processes N`: a death costs seconds, a stop stops all, and nobody is left behind.

use crate::mesh::configure;
use crate::program::{free_pair, run_until_end, streamgauge};
use crate::running::{Running, get};
use crate::servers::Kafka;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// The processes that it started last, by index, as its log says.
fn children(said: &str) -> Vec<i32> {
    let line = said.lines().rev().find(|line| line.contains("pids=[")).expect("its processes");
    let (_, pids) = line.split_once("pids=[").expect("a list");
    let (pids, _) = pids.split_once(']').expect("its end");
    pids.split(", ").map(|pid| pid.parse().expect("a pid")).collect()
}

fn lives(pid: i32) -> bool {
    // A zombie lives for `kill`, but not for us.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Records read by both processes since they started.
fn read_by_both(port: u16) -> Option<[u64; 2]> {
    let of = |port: u16| {
        let (_, text) = get(port, "/metrics")?;
        let lines = text.lines().filter(|line| line.starts_with("streamgauge_source_records_total{"));
        Some(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    };
    Some([of(port)?, of(port + 1)?])
}

#[test]
fn a_dead_process_costs_seconds_and_a_stop_stops_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (kafka, topic, port) = (Kafka::shared(), "supervised", free_pair());
    kafka.create_topic(topic, 4);
    let plant = ["produce", "--bootstrap-servers", &kafka.bootstrap, "--topic", topic, "--rate", "1000"];
    let sensors = ["--sensors", "40", "--metrics", "temperature,humidity"];
    let producer = Running::start(&[&plant[..], &sensors].concat(), &folder.join("produce.log"));
    let config = configure(folder, kafka, topic, port, "");
    let path = config.display().to_string();
    let log = folder.join("log");
    let run = ["run", "-c", &path, "--processes", "2", "--summary", "json"];
    let mut family = Running::start(&run, &log);
    let flowing = || read_by_both(port).filter(|read| read.iter().all(|n| *n > 100));
    family.until("records in both", flowing);
    let (_, status) = get(port, "/api/v1/status").expect("its status");
    assert!(status.contains(r#""processes":2"#), "{status}");

    let mut slowest = Duration::ZERO;
    for n in [1, 0] {
        let before = children(&family.said());
        assert_eq!(before.len(), 2);
        let began = Instant::now();
        kill(Pid::from_raw(before[n]), Signal::SIGKILL).expect("killed");
        family.until("others in their place", || (children(&family_said(&log)) != before).then_some(()));
        family.until("records in both again", flowing);
        slowest = slowest.max(began.elapsed());
        assert!(before.iter().all(|pid| !lives(*pid)), "{before:?}");
    }
    println!("flowing again {:.2} s after the death of one of two processes", slowest.as_secs_f64());
    assert!(slowest < Duration::from_secs(30), "{slowest:?}");

    // Each line says whose it is.
    let said = family.said();
    assert!(said.lines().any(|line| line.starts_with("p0 ")) && said.lines().any(|line| line.starts_with("p1 ")));
    let last = children(&said);
    let (status, said) = family.terminate();
    assert!(status.success(), "{status} {said}");
    assert!(last.iter().all(|pid| !lives(*pid)), "{last:?}");
    let summaries = said.lines().filter(|line| line.starts_with("{\"records\"")).count();
    assert_eq!(summaries, 1, "{said}");

    // Killed, it leaves nobody behind either.
    let mut family = Running::start(&run, &log);
    family.until("records in both", || read_by_both(port).filter(|read| read.iter().all(|n| *n > 0)));
    let last = children(&family.said());
    assert!(last.iter().all(|pid| lives(*pid)));
    let began = Instant::now();
    family.kill9();
    while last.iter().any(|pid| lives(*pid)) {
        assert!(began.elapsed() < Duration::from_secs(30), "left behind: {last:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("gone {:.2} s after their supervisor", began.elapsed().as_secs_f64());
    assert!(producer.terminate().0.success());
    let summary = run_until_end(&config, &[]);
    assert_eq!(summary["records"], crate::running::ends(kafka, topic).iter().sum::<i64>());
    assert_eq!(summary["imbalance"], 0);
}

fn family_said(log: &std::path::Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

#[test]
fn what_starting_again_does_not_mend_ends_all_and_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let (kafka, topic, port) = (Kafka::shared(), "supervised-wrong", free_pair());
    kafka.create_topic(topic, 2);
    let config = configure(folder.path(), kafka, topic, port, "").display().to_string();
    // The second process cannot serve: its port is taken.
    let taken = TcpListener::bind(("127.0.0.1", port + 1)).expect("the port");
    let output = streamgauge(&["run", "-c", &config, "--processes", "2"]).output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("process 1: server.listen") && said.contains("process 1 ended with exit code 2"), "{said}");
    assert_eq!(said.matches("pids=[").count(), 1, "{said}");
    drop(taken);
}
