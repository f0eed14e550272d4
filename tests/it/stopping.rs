//! SIGTERM: over within a stated time whatever is down, with nothing lost; twice means now.

use crate::mesh::configure;
use crate::program::{free_pair, free_port, journal, run_until_end, succeed};
use crate::running::{Running, get};
use crate::servers::{Kafka, Redis};
use nix::sys::signal::Signal;
use redis::streams::StreamRangeReply;
use std::time::{Duration, Instant};
use streamgauge::run::STOPS_WITHIN;

#[test]
fn a_stop_with_a_sink_that_is_down_is_over_in_time_and_keeps_what_waits_for_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (kafka, redis, topic, port) = (Kafka::shared(), Redis::start(), "stopping", free_port());
    let plant = ["produce", "--bootstrap-servers", &kafka.bootstrap, "--topic", topic, "--create-partitions", "2"];
    let sensors = ["--sensors", "40", "--metrics", "temperature,humidity", "--timestamps", "event"];
    succeed(&[&plant[..], &sensors, &["--readings", "5000", "--seed", "5"]].concat());
    let sink = format!("sinks.alerts = {{ type = \"redis_stream\", url = \"{}\" }}", redis.url);
    let config = configure(folder, kafka, topic, port, &sink);
    let path = config.display().to_string();
    let run = ["run", "-c", &path, "--summary", "json"];
    let mut running = Running::start(&run, &folder.join("log"));
    let ready = |running: &mut Running| {
        running.until("readiness", || get(port, "/readyz").filter(|(status, _)| *status == 200));
    };
    ready(&mut running);
    let before = journal(&folder.join("data")).len();
    redis.kill9();
    succeed(&[&plant[..], &sensors, &["--readings", "5000", "--seed", "6"]].concat());
    running.until("more alerts", || (journal(&folder.join("data")).len() > before + 20).then_some(()));
    let began = Instant::now();
    let (status, said) = running.terminate();
    let took = began.elapsed();
    println!("with a sink that is down, a stop took {:.1} s", took.as_secs_f64());
    assert!(status.success(), "{status} {said}");
    assert!(took < STOPS_WITHIN, "{took:?}");
    let line = said.lines().rev().find(|line| line.starts_with('{')).expect("a summary");
    assert!(line.contains(r#""undelivered":{"alerts":"#), "{line}");

    redis.restart();
    // Asked twice, it ends as it is; and still nothing is lost.
    let mut running = Running::start(&run, &folder.join("log"));
    ready(&mut running);
    redis.kill9();
    succeed(&[&plant[..], &sensors, &["--readings", "2000", "--seed", "7"]].concat());
    running.signal(Signal::SIGTERM);
    running.until("that it stops", || get(port, "/readyz").filter(|(_, text)| text.contains("stopping")));
    let began = Instant::now();
    running.signal(Signal::SIGTERM);
    let (status, said) = running.wait();
    println!("asked twice, it took {:.2} s", began.elapsed().as_secs_f64());
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(began.elapsed() < Duration::from_secs(10));

    redis.restart();
    let summary = run_until_end(&config, &[]);
    assert_eq!(summary.get("undelivered"), None, "{summary}");
    assert_eq!(
        (&summary["records"], &summary["imbalance"]),
        (&crate::running::ends(kafka, topic).iter().sum::<i64>().into(), &0.into())
    );
    let journal = journal(&folder.join("data"));
    let mut connection = redis.connection();
    let stream: StreamRangeReply =
        redis::cmd("XRANGE").arg("alerts").arg("-").arg("+").query(&mut connection).expect("the stream");
    let sent: Vec<String> = stream.ids.iter().map(|entry| entry.id.clone()).collect();
    let written: Vec<String> = journal
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line"))
        .map(|line| format!("{}-{}", line["epoch"], line["n"]))
        .collect();
    assert_eq!(sent, written);
    assert!(written.len() > 100, "only {} alert changes", written.len());
}

#[test]
fn a_stop_of_one_process_stops_all_and_one_that_waits_for_others_obeys() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (kafka, topic, port) = (Kafka::shared(), "stopping-all", free_pair());
    kafka.create_topic(topic, 2);
    let config = configure(folder, kafka, topic, port, "").display().to_string();
    let hosts = folder.join("hosts");
    std::fs::write(&hosts, format!("127.0.0.1:{}\n127.0.0.1:{}\n", free_port(), free_port())).expect("hosts");
    let hosts = hosts.display().to_string();
    let run = |p: &str| {
        let args = ["run", "-c", &config, "-n", "2", "-p", p, "--hostfile", &hosts];
        Running::start(&args, &folder.join(format!("log-{p}")))
    };
    // The second connects, the first listens: each waits for the other in its own way.
    for alone in ["0", "1"] {
        let mut waiting = run(alone);
        waiting.until("it waits", || {
            let text = std::fs::read_to_string(folder.join(format!("log-{alone}"))).ok()?;
            text.contains("waiting for the other processes").then_some(())
        });
        let began = Instant::now();
        let (status, said) = waiting.terminate();
        assert!(status.success() && began.elapsed() < Duration::from_secs(10), "{status} {said}");
    }
    let (mut first, mut second) = (run("0"), run("1"));
    first.until_up(port);
    second.until_up(port + 1);
    first.signal(Signal::SIGTERM);
    let ends = [second.wait(), first.wait()];
    for (status, said) in ends {
        assert!(status.success(), "{status} {said}");
    }
    assert_eq!(second.said().matches("another process was asked to stop").count(), 1, "{}", second.said());
}
