//! What no run can have written is refused, with the reason; what one has comes back from JSON as it was.

mod common;

use common::{Trace, above, json};
use streamgauge_oracle::config::Config;
use streamgauge_oracle::{Line, Outcome, run, run_partitions};

fn refusal(trace: &Trace) -> String {
    run(&trace.config, &trace.records, &trace.lines).expect_err("the input is impossible")
}

#[test]
fn a_range_that_does_not_hold_its_records_is_refused() {
    let mut trace = Trace::new().epoch(20, [json("a", 1.0, 1.0), json("a", 2.0, 1.0)]);
    trace.records.remove(0);
    assert_eq!(refusal(&trace), "epoch 20: the range of s/t/0 up to 13 counts 2 records, but there are 1");
}

#[test]
fn a_log_that_no_run_has_written_is_refused() {
    let trace = Trace::new().reading(20, 1.0, 1.0).reading(40, 2.0, 1.0);
    assert!(refusal(&trace.clone().reading(40, 3.0, 1.0)).contains("two ranges"));
    assert!(refusal(&trace.clone().end(40).end(50)).contains("several ends"));
    assert!(refusal(&trace.clone().end(40).term().reading(40, 3.0, 1.0)).contains("ended at 40"));
    assert!(refusal(&trace.clone().line(Line::Deaf { epoch: 40, process: 1 })).contains("no process 1"));
    let mut headless = trace.clone();
    headless.lines.remove(0);
    assert!(refusal(&headless).contains("before the first term"));
    let mut unknown = trace;
    unknown.config.sources[0].topics = vec!["other".into()];
    assert!(refusal(&unknown).contains("not configured"));
}

#[test]
fn a_configuration_without_meaning_is_refused() {
    let refused = |change: fn(&mut Config)| refusal(&Trace::new().with(change));
    assert!(refused(|config| config.sources.push(config.sources[0].clone())).contains("twice"));
    assert!(refused(|config| config.sources[0].decode.time = "time".into()).contains("does not begin with /"));
    assert!(refused(|config| config.dedup.key = Some(streamgauge_oracle::config::DedupKey::Id)).contains("names none"));
    assert!(refused(|config| config.allowed_lateness_us = -1).contains("negative"));
}

#[test]
fn records_may_come_in_any_order_and_beyond_the_last_range() {
    let trace = Trace::new().rule("r", above(0.0)).reading(20, 1.0, 1.0).reading(40, 2.0, 0.0).reading(60, 3.0, 5.0);
    let mut turned = trace.clone();
    turned.records.reverse();
    assert_eq!(turned.run(), trace.run());
    let cut = trace.end(40);
    assert_eq!(cut.counts().records, 2);
}

#[test]
fn records_may_be_drawn_partition_by_partition() {
    let trace = Trace::new().reading(20, 1.0, 1.0).reading(40, 2.0, 0.0);
    let partition = streamgauge_oracle::Partition { source: "s".into(), topic: "t".into(), partition: 0 };
    let drawn = [(partition, trace.records.clone())].into();
    assert_eq!(run_partitions(&trace.config, drawn, &trace.lines), Ok(trace.run()));
}

#[test]
fn everything_that_goes_in_and_comes_out_is_json() {
    let mut trace = Trace::new().rule("r", above(0.1)).hearing(0).reading(20, 1.0, 0.30000000000000004).end(4000);
    trace.config.windows = vec![streamgauge_oracle::config::Window::Time { us: 5 }];
    let text = serde_json::to_string(&(&trace.config, &trace.records, &trace.lines)).expect("it is JSON");
    let (config, records, lines): (Config, Vec<_>, Vec<_>) = serde_json::from_str(&text).expect("it reads back");
    assert_eq!((&config, &records, &lines), (&trace.config, &trace.records, &trace.lines));
    let outcome = run(&config, &records, &lines).expect("the trace is possible");
    let text = serde_json::to_string(&outcome).expect("it is JSON");
    assert_eq!(serde_json::from_str::<Outcome>(&text).expect("it reads back"), outcome);
}

#[test]
fn a_configuration_may_be_short() {
    let config: Config = serde_json::from_str(
        r#"{"sources":[{"name":"s","topics":["t"],"decode":{"sensor":"/s","time":"/t","shape":{"wide":{"fields":{"m":{"pointer":"/m"}}}}}}],
            "rules":[{"key":"r","name":"r","version":"0","severity":"info","metric":"m","condition":{"threshold":{"above":true,"limit":1.5,"of":["mean",{"time":{"us":60000000}}]}}}]}"#,
    )
    .expect("it is a configuration");
    assert!(config.check().is_ok());
    assert!(serde_json::from_str::<Config>(r#"{"rule":[]}"#).is_err(), "unknown keys are refused");
}

#[test]
fn the_oracle_depends_on_nothing_it_judges() {
    let manifest = include_str!("../Cargo.toml");
    let dependencies = manifest.split("[dependencies]").nth(1).expect("there are some");
    assert!(!dependencies.contains("streamgauge") && !dependencies.contains("path ="));
}
