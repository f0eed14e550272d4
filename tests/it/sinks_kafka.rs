//! The Kafka sink on a real broker: every alert, with its key and its event, and how it refuses to start.

use crate::lanes::{Running, alerts, sinks};
use crate::servers::Kafka;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use streamgauge::sink::StartError;

/// (partition, key, header `event`, value) of all messages until there are so many events; some may be there twice.
fn messages(kafka: &Kafka, topic: &str, partitions: i32, count: usize) -> Vec<(i32, String, String, String)> {
    let consumer: BaseConsumer = kafka.client().set("group.id", "test").create().unwrap();
    let mut list = TopicPartitionList::new();
    (0..partitions).for_each(|p| list.add_partition_offset(topic, p, Offset::Beginning).unwrap());
    consumer.assign(&list).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let (mut found, mut events) = (Vec::new(), BTreeSet::new());
    while events.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} events within 30 s", events.len());
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
            let event = text(message.headers().unwrap().iter().find(|h| h.key == "event").unwrap().value);
            events.insert(event.clone());
            found.push((message.partition(), text(message.key()), event, text(message.payload())));
        }
    }
    found
}

#[test]
fn a_topic_has_each_alert_with_its_key_and_survives_a_broker_that_dies() {
    let kafka = Kafka::start();
    kafka.create_topic("alerts", 3);
    let dir = tempfile::tempdir().unwrap();
    let settings = sinks(&format!("[k.kafka]\nbootstrap_servers = \"{}\"\ntopic = \"alerts\"", kafka.bootstrap));
    let running = Running::open(&settings, dir.path(), 1, &[]).unwrap();
    (1..=60).for_each(|epoch| running.handle.push_alerts(alerts(epoch)));
    let written = running.metrics.sink_records_total.with_label_values(&["k"]);
    let count = |epochs: std::ops::RangeInclusive<u64>| epochs.map(|epoch| alerts(epoch).alerts.len()).sum::<usize>();
    running.until("written", || written.get() as usize == count(1..=60));
    kafka.kill9();
    (61..=100).for_each(|epoch| running.handle.push_alerts(alerts(epoch)));
    let states = running.cut(101);
    kafka.restart();
    drop(running);
    let running = Running::open(&settings, dir.path(), 2, &states).unwrap();
    assert_eq!(running.drain(), 0);

    let journal = std::fs::read_to_string(dir.path().join("journal.jsonl")).unwrap();
    let found = messages(&kafka, "alerts", 3, count(1..=100));
    let mut by_event = BTreeMap::new();
    for (partition, key, event, value) in found {
        assert!(event.starts_with(&key) && value.contains(&format!("\"alert\":\"{key}\"")), "{event} {value}");
        by_event.insert(event, (partition, value));
    }
    let mut values: Vec<&str> = by_event.values().map(|(_, value)| value.as_str()).collect();
    let mut lines: Vec<&str> = journal.lines().collect();
    values.sort_unstable();
    lines.sort_unstable();
    assert_eq!(values, lines);
}

#[test]
fn what_keeps_it_from_starting_is_said_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let open = |text: String| Running::open(&sinks(&text), dir.path(), 1, &[]).err().expect("an error");
    let nobody = open("[k.kafka]\nbootstrap_servers = \"127.0.0.1:1\"\ntopic = \"alerts\"".into());
    assert!(matches!(&nobody, StartError::Unreachable(text) if text.contains("127.0.0.1:1")), "{nobody}");

    let kafka = Kafka::start_with_password("plant", "right");
    kafka.create_topic("alerts", 1);
    let with = |topic: &str, password: &str| {
        format!(
            "[k.kafka]\nbootstrap_servers = \"{}\"\ntopic = \"{topic}\"\n[k.kafka.properties]\n\
             \"security.protocol\" = \"SASL_PLAINTEXT\"\n\"sasl.mechanism\" = \"PLAIN\"\n\
             \"sasl.username\" = \"plant\"\n\"sasl.password\" = \"{password}\"",
            kafka.bootstrap
        )
    };
    let wrong = open(with("alerts", "wrong"));
    assert!(matches!(&wrong, StartError::Denied(text) if text.contains("does not accept")), "{wrong}");
    let missing = open(with("alarms", "right"));
    assert!(matches!(&missing, StartError::Settings(text) if text.contains("no topic `alarms`")), "{missing}");
    assert!(Running::open(&sinks(&with("alerts", "right")), dir.path(), 1, &[]).is_ok());
}
