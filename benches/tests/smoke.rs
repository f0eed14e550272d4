//! `make bench` in small: every program runs once on a real Kafka, with exact counts, and what it writes can be read.

use std::process::Command;

#[test]
fn a_tiny_benchmark_runs_every_program_with_exact_counts_and_writes_its_figures() {
    let folder = tempfile::tempdir().unwrap();
    // 50,000 readings of 100 sensors.
    let output = Command::new(env!("CARGO_BIN_EXE_streamgauge-bench"))
        .args(["run", "job", "--rounds", "1", "--shorten", "100"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("exact in every run"), "{said}");

    let text = std::fs::read(folder.path().join("target/bench/latest.json")).unwrap();
    let figures: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let programs = [
        ("floor", "1"),
        ("floor", "2"),
        ("straight", "1"),
        ("straight", "2"),
        ("straight_owned", "2"),
        ("straight_fast", "2"),
        ("streamgauge", "1"),
        ("streamgauge", "2"),
        ("streamgauge", "2x1"),
        ("streamgauge_parquet", "2"),
        ("streamgauge_disk", "2"),
        ("streamgauge_checkpoint_1s", "2"),
    ];
    for (program, workers) in programs {
        let figure = &figures[program][workers];
        for name in ["cpu_s_per_million", "readings_per_s", "rss_mb"] {
            assert!(figure[name].as_f64().is_some_and(|x| x > 0.0), "{program} {workers}: {figure}");
        }
        assert_eq!(figure["exact"], true, "{program} {workers}");
    }
    let input = &figures["input"];
    assert!(input["duplicates"].as_u64() > Some(1_000) && input["dead_letters"].as_u64() > Some(5), "{input}");
    assert!(input["behind"].as_u64() > Some(5) && input["alerts"].as_u64() > Some(100), "{input}");
}
