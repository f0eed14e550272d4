use super::*;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

fn plant(readings: u64) -> Plant {
    Plant {
        readings: Some(readings),
        malformed: 0.004,
        faults: Some(FaultPlan { first_after_ms: 1_000, every_ms: 500, kinds: FaultKind::PLANTED.to_vec() }),
        per_series: true,
        ..Plant::default()
    }
}

fn all(plant: Plant) -> (Vec<OwnedMessage>, Truth) {
    let mut simulator = Simulator::new(plant).unwrap();
    let messages = simulator.messages().collect();
    (messages, simulator.into_truth())
}

fn micros(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().unwrap().as_microsecond()
}

#[test]
fn the_same_seed_sends_the_same_bytes_and_another_seed_others() {
    let (a, truth) = all(plant(20_000));
    let (b, again) = all(plant(20_000));
    assert_eq!(a, b);
    assert_eq!(truth, again);
    let (c, _) = all(Plant { seed: 8, ..plant(20_000) });
    assert_ne!(a, c);
}

#[test]
fn the_bytes_of_a_seed_never_change_from_version_to_version() {
    let (messages, _) = all(plant(2_000));
    let first = String::from_utf8(messages[0].payload.clone()).unwrap();
    let sum = messages.iter().fold(0u64, |sum, m| xxh3_64(&[&sum.to_le_bytes(), &m.payload[..]].concat()));
    assert_eq!(format!("{first}\n{sum:016x}\n"), include_str!("golden.txt"));
}

#[test]
fn the_truth_agrees_with_a_count_of_the_bytes() {
    let shapes =
        [(false, false, 0.0), (true, false, 0.0), (false, true, 0.0), (false, false, 0.2), (true, false, 0.05)];
    for (wide, one_metric, hot) in shapes {
        let plant = Plant { wide, one_metric, hot, ..plant(60_000) };
        let (messages, truth) = all(plant.clone());
        let mut seen: HashMap<(String, String, i64), i64> = HashMap::new();
        let mut clocks: HashMap<(String, String), i64> = HashMap::new();
        let mut per_series: BTreeMap<String, u64> = BTreeMap::new();
        let (mut not_json, mut missing, mut err, mut unique, mut copies) = (0, 0, 0, 0, 0);
        let (mut disorder, mut future, mut most_delayed, mut most_apart) = (0, 0, 0, 0);
        for message in &messages {
            let Ok(json) = serde_json::from_slice::<Value>(&message.payload) else {
                not_json += 1;
                continue;
            };
            let (Some(sensor), Some(time)) = (json["sensor_id"].as_str(), json["timestamp"].as_str()) else {
                missing += 1;
                continue;
            };
            assert_eq!(message.key.as_deref(), Some(sensor.as_bytes()));
            assert_eq!(message.partition, plant.partition_of(sensor.as_bytes()));
            let values: Vec<(&str, &Value)> = if wide {
                plant.metrics.iter().map(|m| (m.name, &json[m.name])).collect()
            } else if json["type"].is_string() && !json["value"].is_null() {
                vec![(json["type"].as_str().unwrap(), &json["value"])]
            } else {
                missing += 1;
                continue;
            };
            let time = micros(time);
            for (metric, value) in values {
                if value == "ERR" {
                    err += 1;
                    continue;
                }
                assert!(value.is_f64(), "{metric} of {json}");
                let skewed = time / 1_000 > message.timestamp_ms;
                if let Some(first) = seen.insert((sensor.into(), metric.into(), time), message.timestamp_ms) {
                    copies += 1;
                    most_apart = most_apart.max(message.timestamp_ms - first);
                } else {
                    unique += 1;
                    *per_series.entry(format!("{sensor}/{metric}")).or_default() += 1;
                    if !skewed {
                        let clock = clocks.entry((sensor.into(), metric.into())).or_insert(time);
                        disorder += u64::from(time < *clock);
                        most_delayed = most_delayed.max(message.timestamp_ms - time / 1_000);
                        *clock = time.max(*clock);
                    }
                }
                future += u64::from(skewed);
            }
        }
        assert_eq!(truth.records, messages.len() as u64);
        assert_eq!((truth.unique, truth.duplicates, truth.out_of_order), (unique, copies, disorder));
        assert_eq!(truth.malformed.garbage + truth.malformed.truncated, not_json);
        assert_eq!((truth.malformed.missing_field, truth.malformed.err_value), (missing, err));
        assert_eq!(truth.dead_letters.values().sum::<u64>() + err, truth.malformed.total());
        assert_eq!(truth.readings, unique + copies);
        let out = &truth.outcome;
        assert_eq!(truth.readings, out.accepted + out.duplicates + out.late + out.future);
        assert_eq!(out.future, future);
        assert!(out.late == 0 && out.behind == disorder, "10 s of disorder are within 30 s of lateness");
        assert!(most_apart <= 60_000 && most_apart > 50_000, "copies up to {most_apart} ms after the first");
        assert!(most_delayed <= 10_000 && most_delayed > 9_000, "delays of up to {most_delayed} ms");
        let series = truth.series.unwrap();
        assert!(per_series.iter().all(|(name, n)| series[name] == *n));
        assert_eq!(series.len(), if one_metric { 200 } else { 1_200 });
        let hottest = series.iter().filter(|(name, _)| name.starts_with("s-00001/")).map(|(_, n)| *n).sum::<u64>();
        let share = hottest as f64 / unique as f64;
        // A silence of its own takes some of it, and those of others add to it.
        let (least, most) = (hot.max(0.005) * 0.6, hot.max(0.005) * 1.1);
        assert!((least..most).contains(&share), "{share} of the readings are the first sensor's, not {hot}");
        assert_eq!(series.values().sum::<u64>(), unique);
        let share = copies as f64 / unique as f64;
        assert!((0.045..0.055).contains(&share), "{share} sent twice");
        assert!(truth.malformed.total() > 20 && future > 0, "the fixture holds too few faults to test anything");
    }
}

#[test]
fn messages_come_in_order_of_sending_and_never_before_they_are_due() {
    let mut simulator = Simulator::new(plant(20_000)).unwrap();
    let mut last = i64::MIN;
    while let Some(due) = simulator.next_at() {
        let Some(message) = simulator.next_message() else { break };
        assert!(message.timestamp_ms >= due && message.timestamp_ms >= last);
        last = message.timestamp_ms;
    }
    assert!(simulator.next_message().is_none());
}

#[test]
fn copies_are_spread_over_the_whole_delay() {
    let (messages, truth) = all(Plant { malformed: 0.0, faults: None, ..plant(100_000) });
    let mut first: HashMap<&[u8], i64> = HashMap::new();
    let mut tenths = [0u64; 10];
    for message in &messages {
        if let Some(at) = first.insert(&message.payload, message.timestamp_ms) {
            tenths[((message.timestamp_ms - at - 1) / 6_000) as usize] += 1;
        }
    }
    let mean = truth.duplicates / 10;
    assert!(mean > 400 && tenths.iter().all(|n| n.abs_diff(mean) < mean / 4), "{tenths:?}");
}

#[test]
fn planted_faults_are_in_the_bytes_as_the_truth_says() {
    let plant = Plant { beyond: 0.0, ..plant(100_000) };
    let (messages, truth) = all(plant.clone());
    let readings: Vec<(String, String, i64, f64)> = messages
        .iter()
        .filter_map(|m| serde_json::from_slice::<Value>(&m.payload).ok())
        .filter_map(|j| {
            let text = |name: &str| j[name].as_str().map(str::to_owned);
            Some((text("sensor_id")?, text("type")?, micros(&text("timestamp")?), j["value"].as_f64()?))
        })
        .collect();
    for kind in FaultKind::PLANTED {
        assert!(truth.faults.iter().filter(|f| f.kind == kind && f.readings > 0).count() > 3, "too few of {kind:?}");
    }
    for fault in &truth.faults {
        let skew = if fault.kind == FaultKind::SkewedClock { SKEW_MS * 1_000 } else { 0 };
        let hit: Vec<f64> = readings
            .iter()
            .filter(|r| r.0 == fault.sensor && fault.metric.as_ref().is_none_or(|m| *m == r.1))
            .filter(|r| (fault.from..fault.to).contains(&(r.2 - skew)))
            .map(|r| r.3)
            .collect();
        let limit = fault.metric.as_deref().and_then(Metric::named);
        match fault.kind {
            FaultKind::Silence => assert!(hit.is_empty()),
            FaultKind::SkewedClock => assert!(hit.len() as u64 >= fault.readings),
            FaultKind::Stuck => assert!(hit.windows(2).all(|w| w[0] == w[1])),
            FaultKind::Spike => {
                assert!(hit.iter().all(|v| limit.unwrap().breaches((v * 100.0).round() as i32)));
            }
            FaultKind::Drift | FaultKind::Beyond => {}
        }
    }
}

#[test]
fn nothing_is_beyond_a_limit_unless_asked_for_and_then_the_share_is_right() {
    let calm = Plant { beyond: 0.0, faults: None, ..plant(50_000) };
    let (_, truth) = all(calm.clone());
    assert!(truth.breaching.values().all(|b| b.readings == 0));
    let (_, truth) = all(Plant { beyond: 0.005, ..calm });
    let beyond: u64 = truth.breaching.values().map(|b| b.readings).sum();
    assert!((200..300).contains(&beyond), "{beyond} of 50,000");
    assert_eq!(truth.beyond.len() as u64, beyond);
}

#[test]
fn late_readings_are_told_when_the_delay_exceeds_the_lateness() {
    let judged = JudgedBy { allowed_lateness_ms: 4_000, dedup_window_ms: 5_000 };
    let (_, truth) = all(Plant { judged, ..plant(60_000) });
    let out = &truth.outcome;
    assert!(out.late > 100 && out.behind > 100);
    assert!(out.duplicates < truth.duplicates, "copies later than the window are late, not duplicates");
    assert_eq!(truth.readings, out.accepted + out.duplicates + out.late + out.future);
}

#[test]
fn without_keys_partitions_are_taken_in_turn() {
    let (messages, _) = all(Plant { unkeyed: true, ..plant(1_000) });
    assert!(messages.iter().enumerate().all(|(n, m)| m.partition == n as u32 % 8 && m.key.is_none()));
}

#[test]
fn a_plant_that_cannot_be_is_refused() {
    let refused = |plant: Plant| Simulator::new(plant).err().unwrap();
    assert!(refused(Plant { malformed: 5.0, ..Plant::default() }).starts_with("malformed is a share"));
    assert!(refused(Plant { sensors: 1, rate: 1_000_000, ..Plant::default() }).contains("lower rate"));
    assert!(refused(Plant { metrics: vec![], ..Plant::default() }).contains("at least one"));
    assert!(refused(Plant { wide: true, one_metric: true, ..Plant::default() }).contains("one metric each"));
    assert!(refused(Plant { hot: 0.5, sensors: 1, ..Plant::default() }).contains("two sensors"));
    assert!(refused(Plant { hot: 0.9, rate: 30_000, sensors: 20_000, ..Plant::default() }).contains("lower rate"));
}
