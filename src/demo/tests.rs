use super::*;
use clap::Parser;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(line: &str) -> Args {
    Cli::try_parse_from(["demo"].into_iter().chain(line.split_whitespace())).unwrap().args
}

fn value<'a>(table: &'a toml::Table, path: &[&str]) -> &'a str {
    let (last, parents) = path.split_last().unwrap();
    let mut table = table;
    for name in parents {
        table = table[*name].as_table().unwrap();
    }
    table[*last].as_str().unwrap()
}

#[test]
fn the_configuration_is_toml_filled_or_not() {
    let filled = fill(CONFIG, &|name| Some(format!(r#"{name} "quoted\" 7"#)));
    assert!(!filled.contains("${"));
    let table: toml::Table = filled.parse().unwrap();
    assert_eq!(value(&table, &["sources", "plant", "bootstrap_servers"]), r#"STREAMGAUGE_DEMO_KAFKA "quoted\" 7"#);
    let defaults: toml::Table = fill(CONFIG, &|_| None).parse().unwrap();
    assert_eq!(value(&defaults, &["sources", "plant", "bootstrap_servers"]), "localhost:9092");
    assert_eq!(value(&defaults, &["data_dir"]), "streamgauge-demo/state");
    assert_eq!(defaults["sources"]["plant"]["topics"][0].as_str(), Some(TOPIC));
    assert!(CONFIG.parse::<toml::Table>().is_ok());
}

#[test]
fn the_rules_have_the_limits_that_the_plant_respects() {
    let table: toml::Table = fill(CONFIG, &|_| None).parse().unwrap();
    let rules = table["rules"].as_table().unwrap();
    for metric in Plant::default().metrics {
        let side = if metric.above { "above" } else { "below" };
        let limits: Vec<f64> = rules
            .values()
            .filter(|rule| rule["metric"].as_str() == Some(metric.name) && rule.get("of").is_none())
            .filter_map(|rule| rule["when"].get(side)?.get("warning")?.as_float())
            .collect();
        assert_eq!(limits, [metric.limit_value()], "{}", metric.name);
    }
}

/// A pipeline that only reads and counts, and reports nothing until the producer stands still.
fn reader(config: &Path, options: &RunOptions, summary: &mut Summary) {
    let stop = options.stop.as_ref().unwrap();
    let table: toml::Table = std::fs::read_to_string(config).unwrap().parse().unwrap();
    std::fs::create_dir_all(value(&table, &["data_dir"])).unwrap();
    std::fs::write(Path::new(value(&table, &["data_dir"])).join("journal.jsonl"), "").unwrap();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", value(&table, &["sources", "plant", "bootstrap_servers"]))
        .set("group.id", "test")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS as i32 {
        list.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
    }
    // Read nothing before the producer stands still (or has ended).
    let end = |p| consumer.fetch_watermarks(TOPIC, p, Duration::from_secs(10)).unwrap().1;
    let mut before = -1;
    loop {
        let sum: i64 = (0..PARTITIONS as i32).map(end).sum();
        if stop.load(Relaxed) || (sum > 0 && sum == before) {
            break;
        }
        before = sum;
        // Polls serve the client; nothing is assigned, so they return nothing. Too short a wait only weakens the test.
        assert!(consumer.poll(Duration::from_millis(300)).is_none());
    }
    consumer.assign(&list).unwrap();
    let mut next = vec![0; PARTITIONS as usize];
    while !stop.load(Relaxed) {
        if let Some(message) = consumer.poll(Duration::from_millis(50)) {
            let message = message.unwrap();
            let place = &mut next[message.partition() as usize];
            assert_eq!(message.offset(), *place, "a record was evicted before it was read");
            *place += 1;
            summary.records += 1;
            (options.progress.as_ref().unwrap())(0, message.partition() as u32, *place);
        }
    }
}

#[test]
fn everything_sent_is_read_and_nothing_is_left_behind() {
    let mut config = PathBuf::new();
    let mut out = Vec::new();
    let mut records = 0;
    // As fast as it can: more than the broker holds, so that without the gate records would be lost.
    let args = args("--for 3s --rate 200000 --sensors 2000 --listen 127.0.0.1:9");
    run_with(&args, Arc::default(), &mut out, |given, options| {
        config = given.config.to_owned();
        assert_eq!(given.listen.port(), 9);
        let mut summary = Summary::default();
        reader(given.config, &options, &mut summary);
        records = summary.records;
        Ok(summary)
    })
    .unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(records > 10_000, "too few records to test anything: {}", records);
    assert!(out.contains(&format!("{} records: ", thousands(records))), "{out}");
    // The fake pipeline judges nothing, so everything but the records differs.
    assert!(out.contains("not what the sensors sent: ") && !out.contains("sent: records"), "{out}");
    assert!(!config.parent().unwrap().exists(), "the directory was to be removed");
}

#[test]
fn a_pipeline_that_fails_ends_the_demo_with_its_reason() {
    let failure =
        run_with(&args(""), Arc::default(), &mut Vec::new(), |_, _| Err(Failure::state("broken"))).unwrap_err();
    assert_eq!(failure.message, "broken");
}

#[test]
fn a_directory_in_use_is_refused_and_an_empty_one_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let keep = folder.path().join("kept");
    let run = || {
        run_with(
            &args(&format!("--for 1ms --keep {}", keep.display())),
            Arc::default(),
            &mut Vec::new(),
            |given, options| {
                reader(given.config, &options, &mut Summary::default());
                Ok(Summary::default())
            },
        )
    };
    run().unwrap();
    assert!(keep.join("demo.toml").exists());
    assert!(run().unwrap_err().message.contains("is not empty"));
}

#[test]
fn numbers_are_grouped_by_thousands() {
    assert_eq!([0, 999, 1_000, 48_911, 1_234_567].map(thousands), ["0", "999", "1,000", "48,911", "1,234,567"]);
}
