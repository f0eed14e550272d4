//! The Redis sinks on real servers: what docs/delivery.md promises of them, and how they refuse to start.

use crate::lanes::{Running, T0, alerts, rows, sinks};
use crate::servers::Redis;
use operators::Verdict;
use std::collections::BTreeMap;
use std::time::Duration;
use streamgauge::config::SinkSettings;
use streamgauge::sink::{LaneState, StartError, verify};

/// All entries of a stream: id, and fields by name.
fn entries(redis: &Redis) -> Vec<(String, BTreeMap<String, String>)> {
    let mut connection = redis.connection();
    let all: Vec<(String, Vec<(String, String)>)> =
        redis::cmd("XRANGE").arg("alerts").arg("-").arg("+").query(&mut connection).unwrap();
    all.into_iter().map(|(id, fields)| (id, fields.into_iter().collect())).collect()
}

fn ids(epochs: std::ops::RangeInclusive<u64>) -> Vec<String> {
    epochs.flat_map(|epoch| alerts(epoch).alerts.into_iter().map(move |entry| format!("{epoch}-{}", entry.n))).collect()
}

fn stream(redis: &Redis) -> BTreeMap<String, SinkSettings> {
    sinks(&format!("[s.redis_stream]\nurl = \"{}\"", redis.url))
}

fn start_error(sinks: &BTreeMap<String, SinkSettings>) -> StartError {
    let dir = tempfile::tempdir().unwrap();
    match Running::open(sinks, dir.path(), 1, &[]) {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[test]
fn a_stream_has_each_alert_once_across_kill_9_of_redis_and_of_us() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let mut restored: Vec<LaneState> = Vec::new();
    let mut from = 1;
    for term in 1..=6 {
        let running = Running::open(&stream(&redis), dir.path(), term, &restored).unwrap();
        let start = from;
        for epoch in start..=term * 50 {
            running.handle.push_alerts(alerts(epoch));
            if epoch == term * 50 - 35 {
                redis.kill9();
            }
            if epoch == term * 50 - 30 {
                restored = running.cut(epoch + 1);
                from = epoch + 1;
            }
            if epoch == term * 50 - 20 {
                redis.restart();
                running.until("written", || entries(&redis).len() >= ids(1..=epoch).len());
            }
        }
        // We die here; what was pushed since the cut is pushed again.
    }
    let running = Running::open(&stream(&redis), dir.path(), 7, &restored).unwrap();
    (from..=300).for_each(|epoch| running.handle.push_alerts(alerts(epoch)));
    assert_eq!(running.drain(), 0);
    let entries = entries(&redis);
    assert_eq!(entries.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), ids(1..=300));
    for (id, fields) in entries {
        let (epoch, n) = id.split_once('-').unwrap();
        let alert = &alerts(epoch.parse().unwrap()).alerts[n.parse::<usize>().unwrap() - 1].alert;
        assert_eq!(fields["alert"], alert.id_hex());
        assert_eq!((fields["state"].as_str(), fields["sensor"].as_str()), (alert.state.word(), &*alert.sensor));
        assert_eq!(fields.get("value").map(|text| text.parse().unwrap()), alert.value);
        assert_eq!(fields["time"], alert.time.to_string());
    }
}

#[test]
fn a_stream_that_is_gone_gets_again_what_the_lane_still_has() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let running = Running::open(&stream(&redis), dir.path(), 1, &[]).unwrap();
    (1..=20).for_each(|epoch| running.handle.push_alerts(alerts(epoch)));
    running.until("written", || entries(&redis).len() == ids(1..=20).len());
    // As a server does that lost its last second: all of it, here.
    redis::cmd("FLUSHALL").exec(&mut redis.connection()).unwrap();
    redis.kill9();
    redis.restart();
    running.handle.push_alerts(alerts(21));
    running.until("written again", || entries(&redis).len() == ids(1..=21).len());
    assert_eq!(entries(&redis).iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), ids(1..=21));
    running.drain();
}

#[test]
fn an_older_term_writes_nothing_and_does_not_start() {
    let redis = Redis::start();
    let (old_dir, new_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let old = Running::open(&stream(&redis), old_dir.path(), 1, &[]).unwrap();
    old.handle.push_alerts(alerts(1));
    old.until("written", || entries(&redis).len() == ids(1..=1).len());
    let new = Running::open(&stream(&redis), new_dir.path(), 2, &[]).unwrap();
    // The old one wakes up.
    old.handle.push_alerts(alerts(2));
    old.until("refused", || old.metrics.sink_up.with_label_values(&["s"]).get() == 0);
    new.handle.push_alerts(alerts(3));
    new.until("written", || entries(&redis).len() == ids(1..=1).len() + ids(3..=3).len());
    assert!(!entries(&redis).iter().any(|(id, _)| id.starts_with("2-")));
    let error = Running::open(&stream(&redis), old_dir.path(), 1, &[]).err().unwrap();
    assert!(matches!(&error, StartError::Foreign(text) if text.contains("newer run")), "{error}");
}

#[test]
fn a_stream_that_somebody_else_writes_to_is_left_alone() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let running = Running::open(&stream(&redis), dir.path(), 1, &[]).unwrap();
    let stopped = |running: &Running| running.metrics.sink_up.with_label_values(&["s"]).get() == 0;
    running.handle.push_alerts(alerts(1));
    running.until("written", || entries(&redis).len() == ids(1..=1).len());
    redis::cmd("XADD").arg("alerts").arg("77-1").arg("by").arg("hand").exec(&mut redis.connection()).unwrap();
    running.handle.push_alerts(alerts(2));
    running.until("stopped", || stopped(&running));
    let restored = running.cut(3);
    assert_eq!(running.give_up(Duration::from_millis(100)) as usize, ids(2..=2).len());
    let all: Vec<String> = entries(&redis).into_iter().map(|(id, _)| id).collect();
    assert_eq!(all, [ids(1..=1), vec!["77-1".into()]].concat());

    // We have written down no more than epoch 2: that entry is none of ours.
    let running = Running::open_after(&stream(&redis), dir.path(), 2, &restored, 2).unwrap();
    running.handle.push_alerts(alerts(80));
    running.until("stopped", || stopped(&running));
    // What was acknowledged less than 2 s before the cut is kept with it.
    let kept = ids(1..=2).len() + ids(80..=80).len();
    assert_eq!(running.give_up(Duration::from_millis(100)) as usize, kept);
    assert_eq!(entries(&redis).len(), all.len());

    // A person has seen to it.
    redis::cmd("DEL").arg("alerts").exec(&mut redis.connection()).unwrap();
    let running = Running::open_after(&stream(&redis), dir.path(), 3, &restored, 2).unwrap();
    running.handle.push_alerts(alerts(80));
    assert_eq!(running.drain(), 0);
    assert_eq!(entries(&redis).len(), kept);
}

#[test]
fn an_entry_with_an_id_of_ours_and_other_content_stops_the_lane() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let last = ids(1..=1).pop().unwrap();
    let foreign = ["alert", "0123", "transition", "1"];
    redis::cmd("XADD").arg("alerts").arg(&last).arg(&foreign).exec(&mut redis.connection()).unwrap();
    let running = Running::open(&stream(&redis), dir.path(), 1, &[]).unwrap();
    running.handle.push_alerts(alerts(1));
    running.handle.push_alerts(alerts(2));
    running.until("stopped", || running.metrics.sink_up.with_label_values(&["s"]).get() == 0);
    assert!(running.give_up(Duration::from_millis(100)) > 0);
    assert_eq!(entries(&redis).len(), 1);
}

#[test]
fn a_stream_that_is_emptied_while_we_are_connected_gets_again_what_the_lane_still_has() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let running = Running::open(&stream(&redis), dir.path(), 1, &[]).unwrap();
    (1..=20).for_each(|epoch| running.handle.push_alerts(alerts(epoch)));
    running.until("written", || entries(&redis).len() == ids(1..=20).len());
    redis::cmd("FLUSHALL").exec(&mut redis.connection()).unwrap();
    running.handle.push_alerts(alerts(21));
    running.until("written again", || entries(&redis).len() == ids(1..=21).len());
    assert_eq!(entries(&redis).iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), ids(1..=21));
    running.drain();
}

#[test]
fn the_last_value_is_the_newest_by_event_time() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let settings = sinks(&format!("[last.redis_last]\nurl = \"{}\"", redis.url));
    use Verdict::{Accepted, Behind, Future, Late};
    let mut connection = redis.connection();
    let mut last =
        |key: &str| -> BTreeMap<String, String> { redis::cmd("HGETALL").arg(key).query(&mut connection).unwrap() };
    let hash = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
    };
    for term in 1..=2 {
        // The second time all of it is written again: nothing changes.
        let running = Running::open(&settings, dir.path(), term, &[]).unwrap();
        running.rows(rows(
            1,
            &[("a", "t", 100, 1.5, Accepted), ("a", "t", 300, 3.5, Accepted), ("a", "h", 200, 60.0, Accepted)],
        ));
        running.rows(rows(2, &[("a", "t", 200, 2.5, Behind), ("a", "t", 900, 9.0, Future), ("a", "t", 5, 0.5, Late)]));
        running.rows(rows(
            3,
            &[("b", "t", -7, 1e300, Accepted), ("b", "t", -5, -0.0, Accepted), ("c", "t", 1 << 60, 1.0, Accepted)],
        ));
        running.rows(rows(4, &[("c", "t", (1 << 60) + 1, 2.0, Accepted)]));
        assert_eq!(running.drain(), 0);
        assert_eq!(last("last:a"), hash(&[("t", "3.5"), ("t:time", "300"), ("h", "60.0"), ("h:time", "200")]));
        assert_eq!(last("last:b"), hash(&[("t", "-0.0"), ("t:time", "-5")]));
        assert_eq!(last("last:c"), hash(&[("t", "2.0"), ("t:time", "1152921504606846977")]));
    }
    // What is older comes too late; in a batch of its own, so that the server decides.
    let running = Running::open(&settings, dir.path(), 3, &[]).unwrap();
    running
        .rows(rows(5, &[("a", "t", 299, 0.0, Accepted), ("b", "t", -6, 0.0, Accepted), ("c", "t", 99, 0.0, Accepted)]));
    assert_eq!(running.drain(), 0);
    assert_eq!((last("last:a")["t"].as_str(), last("last:b")["t"].as_str()), ("3.5", "-0.0"));
    assert_eq!(last("last:c")["t"], "2.0");
}

#[test]
fn a_time_series_has_one_value_per_millisecond_and_says_what_it_did_not_take() {
    let redis = Redis::start_with_time_series();
    let mut connection = redis.connection();
    let dir = tempfile::tempdir().unwrap();
    let settings = sinks(&format!(
        "[ts.redis_timeseries]\nurl = \"{}\"\nlabels = [\"site\", \"none\"]\nretention = \"1h\"",
        redis.url
    ));
    // Somebody else made this one, with a policy that refuses what it has.
    redis::cmd("TS.CREATE").arg("ts:x:t").arg("DUPLICATE_POLICY").arg("BLOCK").exec(&mut connection).unwrap();
    redis::cmd("TS.ADD").arg("ts:x:t").arg(T0 / 1000).arg(1).exec(&mut connection).unwrap();
    redis::cmd("SET").arg("ts:y:t").arg("no series").exec(&mut connection).unwrap();
    use Verdict::{Accepted, Behind, Future, Late};
    let running = Running::open(&settings, dir.path(), 1, &[]).unwrap();
    let hour = 3_600_000_000;
    running.rows(rows(
        1,
        &[
            ("a", "t", T0, 1.0, Accepted),
            ("a", "t", T0 + 10, 2.0, Accepted),
            ("a", "t", T0 + 1_000, 3.0, Accepted),
            ("a", "t", T0 - 5_000, 4.0, Behind),
            ("a", "t", T0 - 9_000, 5.0, Late),
            ("a", "t", T0 - 2 * hour, 6.0, Late),
            ("a", "t", T0 + 99 * hour, 7.0, Future),
            ("a", "h", -1, 7.5, Late),
            ("a", "h", T0, 0.1, Accepted),
            ("x", "t", T0, 8.0, Accepted),
            ("y", "t", T0, 9.0, Accepted),
        ],
    ));
    assert_eq!(running.drain(), 0);
    let mut range = |key: &str| -> Vec<(i64, f64)> {
        redis::cmd("TS.RANGE").arg(key).arg("-").arg("+").query(&mut connection).unwrap()
    };
    let ms = T0 / 1000;
    assert_eq!(range("ts:a:t"), [(ms - 9, 5.0), (ms - 5, 4.0), (ms, 2.0), (ms + 1, 3.0)]);
    assert_eq!((range("ts:a:h"), range("ts:x:t")), (vec![(ms, 0.1)], vec![(ms, 8.0)]));
    let refused = |reason: &str| running.metrics.sink_refused_total.with_label_values(&["ts", reason]).get();
    assert_eq!((refused("older_than_retention"), refused("future"), refused("before_1970")), (1, 1, 1));
    assert_eq!(refused("key_taken"), 1);
    assert_eq!(running.metrics.sink_collisions_total.with_label_values(&["ts"]).get(), 1);
    assert_eq!(running.metrics.sink_records_total.with_label_values(&["ts"]).get(), 7);
    assert_eq!(running.metrics.sink_retries_total.with_label_values(&["ts", "unavailable"]).get(), 0);
    let found: Vec<String> =
        redis::cmd("TS.QUERYINDEX").arg("site=site of a").arg("metric=h").query(&mut redis.connection()).unwrap();
    assert_eq!(found, ["ts:a:h"]);
}

#[test]
fn a_time_series_archive_is_whole_across_kill_9_of_redis_and_of_us() {
    let redis = Redis::start_with_time_series();
    let dir = tempfile::tempdir().unwrap();
    let settings = sinks(&format!("[ts.redis_timeseries]\nurl = \"{}\"\nmemory = \"64 KiB\"", redis.url));
    let batch = |epoch: u64| {
        let names: Vec<String> = (0..40).map(|i| format!("s{i}")).collect();
        let list: Vec<_> = (0..200_i64)
            .map(|i| {
                (
                    names[i as usize % 40].as_str(),
                    "t",
                    T0 + epoch as i64 * 20_000 + i / 40 * 1_000,
                    i as f64,
                    Verdict::Accepted,
                )
            })
            .collect();
        rows(epoch, &list)
    };
    let mut restored = Vec::new();
    let mut from = 1;
    for term in 1..=4 {
        let running = Running::open(&settings, dir.path(), term, &restored).unwrap();
        let start = from;
        for epoch in start..=term * 40 {
            running.rows(batch(epoch));
            if epoch == term * 40 - 30 {
                redis.kill9();
            }
            if epoch == term * 40 - 15 {
                restored = running.cut(epoch + 1);
                from = epoch + 1;
            }
        }
        if term == 2 {
            let spilled = running.metrics.sink_spill_bytes.with_label_values(&["ts"]);
            running.until("overflow", || spilled.get() > 0);
        }
        redis.restart();
        if term == 4 {
            assert_eq!(running.drain(), 0);
        }
    }
    let mut connection = redis.connection();
    for sensor in 0..40 {
        let values: Vec<(i64, f64)> =
            redis::cmd("TS.RANGE").arg(format!("ts:s{sensor}:t")).arg("-").arg("+").query(&mut connection).unwrap();
        let expected: Vec<(i64, f64)> = (1..=160)
            .flat_map(|epoch| (0..5).map(move |k| (T0 / 1000 + epoch * 20 + k, (k * 40 + sensor) as f64)))
            .collect();
        assert_eq!(values, expected, "sensor {sensor}");
    }
}

#[test]
fn a_redis_without_the_module_is_refused_in_words() {
    let redis = Redis::start();
    let settings = sinks(&format!("[live.redis_timeseries]\nurl = \"{}\"", redis.url));
    let error = start_error(&settings);
    let text = error.to_string();
    assert!(matches!(error, StartError::Settings(_)), "{text}");
    assert!(text.starts_with("sinks.live: Redis 7.0.") && text.contains("does not know TS.ADD"), "{text}");
    assert!(text.contains("archive with type = \"parquet\""), "{text}");
}

#[test]
fn what_keeps_a_sink_from_starting_is_said_in_a_sentence() {
    let redis = Redis::start_with_password("right");
    let server = redis.url.rsplit('@').next().unwrap().to_owned();
    let with = |url: &str, more: &str| sinks(&format!("[s.redis_stream]\nurl = \"{url}\"\n{more}"));
    let wrong = start_error(&with(&format!("redis://:wrong@{server}"), ""));
    assert!(matches!(&wrong, StartError::Denied(text) if text.contains("does not accept")), "{wrong}");
    let none = start_error(&with(&format!("redis://{server}"), ""));
    assert!(matches!(&none, StartError::Denied(text) if text.contains("wants a password")), "{none}");
    let nobody = start_error(&with("redis://127.0.0.1:1", ""));
    assert!(matches!(&nobody, StartError::Unreachable(text) if text.contains("127.0.0.1:1")), "{nobody}");
    let nonsense = start_error(&with("http://x", ""));
    assert!(matches!(&nonsense, StartError::Settings(_)), "{nonsense}");
    for error in [&wrong, &none, &nobody, &nonsense] {
        assert!(!error.to_string().contains("wrong@"), "{error} shows a password");
        assert!(error.to_string().starts_with("sinks.s: "), "{error}");
    }

    redis::cmd("SET").arg("alerts").arg("x").exec(&mut redis.connection()).unwrap();
    let taken = start_error(&with(&format!("redis://{server}"), "password = \"right\""));
    assert!(matches!(&taken, StartError::Settings(text) if text.contains("holds a string")), "{taken}");

    redis::cmd("DEL").arg("alerts").exec(&mut redis.connection()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let good = with(&format!("redis://{server}"), "password = \"right\"");
    let said = verify(&good["s"], runtime.handle()).unwrap();
    assert!(said.starts_with("Redis 7.") && said.ends_with("stream alerts is new"), "{said}");
    let exists: bool = redis::cmd("EXISTS").arg("alerts").query(&mut redis.connection()).unwrap();
    assert!(!exists, "looking changed something");
}

#[test]
fn a_dead_redis_delays_no_other_sink_and_no_checkpoint() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let settings = stream(&redis);
    let running = Running::open(&settings, dir.path(), 1, &[]).unwrap();
    running.handle.push_alerts(alerts(1));
    running.until("written", || entries(&redis).len() == ids(1..=1).len());
    redis.kill9();
    (2..=100).for_each(|epoch| running.handle.push_alerts(alerts(epoch)));
    let states = running.cut(101);
    assert_eq!(states.len(), 2, "the stream's and the journal's");
    let journal = std::fs::read_to_string(dir.path().join("journal.jsonl")).unwrap();
    assert_eq!(journal.lines().count(), ids(1..=100).len());
    let left = running.give_up(Duration::from_millis(300));
    assert_eq!(left as usize, ids(2..=100).len());
    // The next start delivers it.
    redis.restart();
    let running = Running::open(&settings, dir.path(), 2, &states).unwrap();
    assert_eq!(running.drain(), 0);
    assert_eq!(entries(&redis).iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), ids(1..=100));
}
