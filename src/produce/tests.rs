use super::*;
use crate::error::Exit;
use clap::Parser;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::collections::BTreeMap;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(line: &str) -> Args {
    Cli::try_parse_from(["produce"].into_iter().chain(line.split_whitespace())).unwrap().args
}

/// Key, payload, time stamp.
type Consumed = (Option<Vec<u8>>, Vec<u8>, i64);

/// Everything in a topic, partition by partition.
fn consume(servers: &str, topic: &str, partitions: i32) -> BTreeMap<i32, Vec<Consumed>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", "test")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut all, mut ended) = (BTreeMap::<_, Vec<_>>::new(), 0);
    while ended < partitions {
        match consumer.poll(Duration::from_secs(20)).expect("nothing for 20 s") {
            Ok(m) => all.entry(m.partition()).or_default().push((
                m.key().map(<[u8]>::to_vec),
                m.payload().unwrap_or_default().to_vec(),
                m.timestamp().to_millis().unwrap_or_default(),
            )),
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ended += 1,
            Err(e) => panic!("{e}"),
        }
    }
    all
}

#[test]
fn what_the_simulator_sends_arrives_in_order_and_whole() {
    let broker = MockCluster::new(1).unwrap();
    broker.create_topic("sensors", 4, 1).unwrap();
    let servers = broker.bootstrap_servers();
    let folder = tempfile::tempdir().unwrap();
    let truth = folder.path().join("truth.json");
    let args = args(&format!(
        "--bootstrap-servers {servers} --topic sensors --readings 20000 --start 2025-01-01T00:00:00Z --timestamps event \
         --fault-every 2s --truth {} --truth-series",
        truth.display()
    ));
    run(&args).unwrap();

    let (plant, paced) = args.plant.plant(4, 0).unwrap();
    assert!(!paced);
    let mut simulator = Simulator::new(plant).unwrap();
    let mut expected = BTreeMap::<i32, Vec<_>>::new();
    for m in simulator.messages() {
        expected.entry(m.partition as i32).or_default().push((m.key, m.payload, m.timestamp_ms));
    }
    assert_eq!(consume(&servers, "sensors", 4), expected);
    let written: Truth = serde_json::from_slice(&std::fs::read(truth).unwrap()).unwrap();
    let known = simulator.into_truth();
    assert_eq!(serde_json::to_value(&written).unwrap(), serde_json::to_value(&known).unwrap());
    assert_eq!(known.unique + known.malformed.total(), 20_000);
}

#[test]
fn a_file_arrives_keyed_by_its_column_and_stamped_with_its_times() {
    let broker = MockCluster::new(1).unwrap();
    broker.create_topic("stations", 3, 1).unwrap();
    let servers = broker.bootstrap_servers();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stations.csv");
    let rows = (0..500).map(|n| format!("{};1700000{n:03};{n}.5\n", n % 7)).collect::<String>();
    std::fs::write(&file, format!("station;time;P1\n{rows}")).unwrap();
    run(&args(&format!(
        "--bootstrap-servers {servers} --topic stations --from {} --delimiter ; --time-column time --key-column station \
         --timestamps event --speed 10000",
        file.display()
    )))
    .unwrap();
    let all = consume(&servers, "stations", 3);
    assert_eq!(all.values().map(Vec::len).sum::<usize>(), 500);
    for (partition, messages) in &all {
        for (key, payload, timestamp) in messages {
            let json: serde_json::Value = serde_json::from_slice(payload).unwrap();
            assert_eq!(json["station"].to_string().as_bytes(), key.as_deref().unwrap());
            assert_eq!(json["time"].as_i64().unwrap() * 1_000, *timestamp);
            assert_eq!((xxh3_64(key.as_deref().unwrap()) % 3) as i32, *partition);
        }
    }
}

#[test]
fn a_missing_topic_and_an_absent_broker_are_code_3_and_say_so() {
    let broker = MockCluster::new(1).unwrap();
    let servers = broker.bootstrap_servers();
    let failure = run(&args(&format!("--bootstrap-servers {servers} --topic nowhere --readings 1"))).unwrap_err();
    assert_eq!(failure.code, Exit::Unreachable);
    assert!(failure.message.ends_with("has no topic `nowhere`; --create-partitions 8 creates it with eight"));
    // A port that was ours a moment ago: nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let failure = run(&args(&format!("--bootstrap-servers 127.0.0.1:{port} --topic x --readings 1"))).unwrap_err();
    assert_eq!(failure.code, Exit::Unreachable);
    assert!(failure.message.contains("Connection refused"), "{}", failure.message);
}

#[test]
fn mistakes_are_code_2_before_anything_is_connected() {
    for (line, message) in [
        ("--malformed 2", "malformed is a share"),
        ("--rate 100 --interval 1s", "--interval goes with --rate max"),
        ("--truth /nonexistent/truth.json", "cannot write the truth to /nonexistent/truth.json"),
        ("--from /nonexistent.csv", "cannot read /nonexistent.csv"),
        ("-X no.such.setting=1", "No such configuration property"),
    ] {
        let failure = run(&args(&format!("--bootstrap-servers 127.0.0.1:1 --topic x {line}"))).unwrap_err();
        assert_eq!(failure.code, Exit::Configuration, "{}", failure.message);
        assert!(failure.message.contains(message), "{}", failure.message);
    }
}

#[test]
fn a_run_at_full_speed_ends_now_and_a_paced_one_begins_now() {
    let plant =
        |line: &str| args(&format!("--bootstrap-servers x --topic x {line}")).plant.plant(8, 10_000_000).unwrap();
    let (full, paced) = plant("--readings 6000 --sensors 100");
    assert!(!paced);
    assert_eq!((full.rate, full.start_ms), (600, 9_990_000));
    let (live, paced) = plant("--rate 1,000");
    assert!(paced);
    assert_eq!((live.rate, live.start_ms), (1_000, 10_000_000));
}
