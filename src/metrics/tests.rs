use super::*;

/// Gives every family a value.
fn filled() -> Arc<Metrics> {
    let metrics = Metrics::new().unwrap();
    let mut source = metrics.source("plant");
    source.readings(&ReadingCounts {
        accepted: 5,
        behind: 1,
        duplicates: 2,
        conflicting: 1,
        late: 1,
        future: 3,
        dead_letters: 1,
        nulls: 1,
    });
    source.bytes(100);
    source.dead_letters("not_json", 2);
    source.dead_letters("not_json", 1);
    source.delay(1_700_000_000_100, 1_700_000_000_000_000);
    source.flush();
    let partition = metrics.partition("plant", "sensors", 3);
    partition.records.inc_by(9);
    partition.lag_records.set(4);
    metrics.source_up.with_label_values(&["plant"]).set(1);
    metrics.operator_state_bytes.with_label_values(&["judge"]).set(1);
    metrics.operator_state_keys.with_label_values(&["judge"]).set(1);
    metrics.checkpoint_cut_seconds.with_label_values(&["judge"]).observe(0.001);
    metrics.rule_series.with_label_values(&["too-hot"]).set(1);
    metrics.alerts.with_label_values(&["too-hot", "warning", "firing"]).set(1);
    metrics.alert_changes_total.with_label_values(&["too-hot", "warning", "firing"]).inc();
    metrics.disk_up.with_label_values(&["epoch_log"]).set(1);
    metrics.disk_errors_total.with_label_values(&["epoch_log"]).inc();
    metrics.mesh_refused_total.with_label_values(&["mismatch"]).inc();
    let sink = "alerts";
    {
        metrics.alert_delay_seconds.with_label_values(&[sink]).observe(0.01);
        metrics.sink_records_total.with_label_values(&[sink]).inc();
        metrics.sink_refused_total.with_label_values(&[sink, "wrong_type"]).inc();
        metrics.sink_retries_total.with_label_values(&[sink, "unavailable"]).inc();
        metrics.sink_collisions_total.with_label_values(&[sink]).inc();
        metrics.sink_write_duration_seconds.with_label_values(&[sink]).observe(0.01);
        metrics.sink_lag_seconds.with_label_values(&[sink]).set(1.5);
        metrics.sink_queue_items.with_label_values(&[sink]).set(1);
        metrics.sink_spill_bytes.with_label_values(&[sink]).set(1);
        metrics.sink_up.with_label_values(&[sink]).set(1);
    }
    metrics
}

#[test]
fn every_documented_family_is_in_the_text_with_its_kind_and_its_labels() {
    let text = filled().render();
    for (name, kind, labels, help) in DOCUMENTED {
        assert!(text.contains(&format!("# HELP {name} {help}\n")), "{name} has no help in\n{text}");
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind} in\n{text}");
        let suffix = if *kind == "histogram" { "_count" } else { "" };
        let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(&format!("{name}{suffix}"))).unwrap();
        for label in *labels {
            assert!(line.contains(&format!("{label}=\"")), "{line} lacks {label}");
        }
    }
    let ours = text.lines().filter(|line| line.starts_with("# TYPE streamgauge_")).count();
    assert_eq!(ours, DOCUMENTED.len());
    assert!(text.contains("process_cpu_seconds_total"));
}

#[test]
fn names_and_labels_keep_the_rules_of_prometheus() {
    for (name, kind, labels, help) in DOCUMENTED {
        assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}: counters, and no others, end in _total");
        assert!(help.ends_with('.') && !help.contains('|'), "{name}: {help}");
        assert!(*kind != "histogram" || name.ends_with("_seconds"), "{name}: the edges are seconds");
        assert!(!labels.contains(&"sensor"), "{name}: a sensor is never a label");
    }
    assert!(EDGES.contains(&0.05) && EDGES.contains(&1.0) && EDGES.is_sorted());
}

#[test]
fn a_batch_is_added_to_its_outcomes() {
    let text = filled().render();
    for line in [
        r#"streamgauge_readings_total{outcome="accepted",source="plant"} 5"#,
        r#"streamgauge_readings_total{outcome="future",source="plant"} 3"#,
        r#"streamgauge_clock_skewed_readings_total{source="plant"} 3"#,
        r#"streamgauge_dead_letters_total{reason="not_json",source="plant"} 3"#,
        r#"streamgauge_event_time_delay_seconds_bucket{source="plant",le="0.1"} 1"#,
        r#"streamgauge_event_time_delay_seconds_bucket{source="plant",le="0.05"} 0"#,
        r#"streamgauge_source_records_total{partition="3",source="plant",topic="sensors"} 9"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn the_page_names_every_family() {
    let page = markdown();
    assert!(DOCUMENTED.iter().all(|(name, ..)| page.contains(&format!("| `{name}` |"))));
}

/// Prometheus's own checker, where it is installed.
#[test]
fn promtool_is_content() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = spawned else {
        eprintln!("promtool is not installed: not checked here");
        return;
    };
    promtool.stdin.take().unwrap().write_all(filled().render().as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty() && output.stdout.is_empty(), "{output:?}");
}
