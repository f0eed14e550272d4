//! A broker that is killed while it is read from and written to.

use crate::plant::{Plant, RULES};
use crate::servers::Kafka;
use crate::tested::{from_environment, tested};
use serde_json::Value;

#[test]
fn a_broker_that_falls_over_costs_time_and_nothing_else() {
    let kills = from_environment("SG_BROKER_KILLS").unwrap_or(1);
    let kafka = Kafka::start();
    let plant = Plant::new(&kafka, "broker", RULES, "");
    kafka.create_topic(&plant.topic, 2);
    let mut running = plant.run();
    running.until("readiness", || plant.get("/readyz").filter(|(status, _)| *status == 200));
    // What the producer sends again after a lost answer must not be there twice: it would be a duplicate of ours to count.
    let exact = ["-X", "enable.idempotence=true", "--summary", "json"];
    let feed = ["--create-partitions", "2", "--rate", "600", "--fault-every", "2s"];
    let mut producer = plant.feed(&[&feed[..], &exact].concat());
    let read = |more: f64| {
        move |plant: &Plant<'_>| plant.metric("streamgauge_source_records_total", "").filter(|n| *n >= more)
    };
    let mut before = running.until("records", || read(500.0)(&plant));
    for _ in 0..kills {
        kafka.kill9();
        let problems = running.until("no readiness", || plant.get("/readyz").filter(|(status, _)| *status == 503));
        assert!(problems.1.contains("source_down"), "{}", problems.1);
        assert_eq!(plant.get("/healthz").map(|(status, _)| status), Some(200));
        kafka.restart();
        running.until("readiness again", || plant.get("/readyz").filter(|(status, _)| *status == 200));
        before = producer.until("more records", || read(before + 500.0)(&plant));
    }
    let (status, said) = producer.terminate();
    assert!(status.success(), "{said}");
    let line = said.lines().rev().find(|line| line.starts_with('{')).expect("a summary");
    let produced: Value = serde_json::from_str(line).expect("JSON");
    let sent = produced["records"].as_u64().expect("a number") as f64;
    running.until("all records", || read(sent)(&plant));
    running.until("no lag", || plant.metric("streamgauge_source_lag_records", "").filter(|lag| *lag == 0.0));
    let (status, said) = running.terminate();
    assert!(status.success(), "{said}");

    let seen = plant.equals_oracle();
    let counts = oracle::total(&seen.expected.counts);
    assert_eq!(produced["records"], counts.records, "{produced}");
    seen.is_something(20);
    tested("Kafka broker killed mid-stream", kills, &format!("{} alert changes", seen.journal.len()));
}
