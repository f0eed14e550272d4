//! Rolling statistics: section 5.

mod common;

use common::{S, Trace, json, with_id};
use streamgauge_oracle::config::{Stat, Window};
use streamgauge_oracle::rolling::Rolling;
use streamgauge_oracle::{Outcome, SeriesRolling};

/// The statistics of one window after (seconds, value), each with an identity of its own.
fn after(window: Window, readings: &[(f64, f64)]) -> SeriesRolling {
    let records = readings.iter().enumerate().map(|(i, (time, value))| with_id(&i.to_string(), "a", *time, *value));
    let trace = Trace::new().ids().with(|config| {
        config.windows = vec![window];
        config.allowed_lateness_us = 1000 * S;
    });
    trace.epoch(20, records).run().rolling.remove(0)
}

const SECONDS_10: Window = Window::Time { us: 10 * S };
const LAST_3: Window = Window::Count { n: 3 };

#[test]
fn statistics_are_those_of_the_readings_in_the_window() {
    let s = after(SECONDS_10, &[(1.0, 100.0), (2.0, 4.0), (4.0, 2.0), (12.0, 9.0)]); // (2, 12]
    assert_eq!((s.count, s.min, s.max, s.rate), (2.0, 2.0, 9.0, 7.0 / 8.0));
    assert!((s.mean - 5.5).abs() < 1e-13 && (s.stddev - 24.5_f64.sqrt()).abs() < 1e-12, "{s:?}");
    let s = after(LAST_3, &[(1.0, 100.0), (2.0, 4.0), (4.0, 2.0), (12.0, 9.0)]);
    assert_eq!((s.count, s.min, s.max, s.rate), (3.0, 2.0, 9.0, 0.5));
    assert!((s.mean - 5.0).abs() < 1e-13 && (s.stddev - 13_f64.sqrt()).abs() < 1e-12, "{s:?}");
}

#[test]
fn what_one_reading_leaves_undefined_is_nan_and_null_in_json() {
    let s = after(SECONDS_10, &[(1.0, 5.0)]);
    assert_eq!((s.count, s.mean, s.min, s.max, s.ewma), (1.0, 5.0, 5.0, 5.0, 5.0));
    assert!(s.stddev.is_nan() && s.rate.is_nan());
    let s = after(SECONDS_10, &[(1.0, 5.0), (1.0, 6.0)]);
    assert!(s.rate.is_nan(), "no time has passed");
    let text = serde_json::to_string(&s).expect("statistics are JSON");
    assert!(text.contains(r#""rate":null"#), "{text}");
    assert_eq!(serde_json::from_str::<SeriesRolling>(&text).expect("they read back"), s);
}

#[test]
fn a_behind_reading_is_entered_at_its_place_or_not_at_all() {
    let s = after(SECONDS_10, &[(1.0, 1.0), (11.0, 2.0), (2.0, 8.0)]); // (1, 11]
    assert_eq!((s.count, s.rate), (2.0, -6.0 / 9.0), "the oldest is now that of 2 s");
    let s = after(SECONDS_10, &[(1.0, 1.0), (12.0, 2.0), (2.0, 8.0)]); // (2, 12]
    assert_eq!(s.count, 1.0, "the edge is outside");
    let s = after(LAST_3, &[(4.0, 1.0), (5.0, 2.0), (6.0, 3.0), (3.0, 9.0)]);
    assert_eq!((s.count, s.max), (3.0, 3.0), "older than all of a full window");
    let s = after(LAST_3, &[(4.0, 1.0), (6.0, 3.0), (3.0, 9.0)]);
    assert_eq!((s.count, s.max), (3.0, 9.0), "but it has room in one that is not full");
    let s = after(LAST_3, &[(4.0, 1.0), (5.0, 2.0), (6.0, 3.0), (4.0, 9.0)]);
    assert_eq!((s.count, s.mean, s.rate), (3.0, 14.0 / 3.0, -3.0), "after its equal in time, which goes");
}

#[test]
fn equal_times_stay_in_the_order_of_acceptance() {
    let s = after(LAST_3, &[(1.0, 1.0), (2.0, 10.0), (1.0, 2.0), (2.0, 20.0)]);
    assert_eq!(s.rate, 18.0, "1 s: 2 is the oldest, since 1 went first; 2 s: 20 is the newest");
}

#[test]
fn zero_and_minus_zero_are_told_apart_by_total_order() {
    let s = after(LAST_3, &[(1.0, 0.0), (2.0, -0.0)]);
    assert_eq!((s.min.to_bits(), s.max.to_bits()), ((-0.0_f64).to_bits(), 0.0_f64.to_bits()));
}

#[test]
fn the_moving_average_follows_readings_that_are_not_behind_and_survives_evictions() {
    let a = 1.0 - libm::exp(-2_000_000.0 / 10_000_000.0);
    assert_eq!(after(SECONDS_10, &[(1.0, 1.0), (3.0, 2.0), (2.0, 99.0)]).ewma, 1.0 + a * (2.0 - 1.0));
    let b = 1.0 - libm::exp(-100.0 / 10.0);
    let s = after(SECONDS_10, &[(1.0, 1.0), (101.0, 2.0)]);
    assert_eq!((s.count, s.ewma), (1.0, 1.0 + b));
    assert_eq!(after(SECONDS_10, &[(1.0, 1.0), (1.0, 2.0)]).ewma, 1.0, "no time, no weight");
    assert_eq!(after(LAST_3, &[(1.0, 1.0), (3.0, 2.0), (2.0, 99.0)]).ewma, 1.5);
}

#[test]
fn moments_follow_the_recurrence_by_hand() {
    // Three values in a window of two, step by step.
    let (x, y, z) = (0.1, 0.7, 0.4);
    let (mut mean, mut m2) = (x, 0.0); // refreshed: d = x, mean = x / 1, m2 = x * (x - x)
    let d = y - mean;
    mean += d / 2.0;
    m2 += d * (y - mean);
    let d = z - mean;
    mean += d / 3.0;
    m2 += d * (z - mean);
    let d = x - mean;
    mean -= d / 2.0;
    m2 -= d * (x - mean);
    let s = after(Window::Count { n: 2 }, &[(1.0, x), (2.0, y), (3.0, z)]);
    assert_eq!(s.mean.to_bits(), mean.to_bits());
    assert_eq!(s.stddev.to_bits(), (m2 / 1.0).sqrt().to_bits());
}

#[test]
fn moments_are_refreshed_when_their_sum_of_squares_collapses() {
    // Without a refresh the outlier's rounding errors would be all that is left.
    let s = after(Window::Count { n: 2 }, &[(1.0, 1e12), (2.0, 0.1), (3.0, 0.3)]);
    let fresh = after(Window::Count { n: 2 }, &[(2.0, 0.1), (3.0, 0.3)]);
    assert_eq!((s.mean.to_bits(), s.stddev.to_bits()), (fresh.mean.to_bits(), fresh.stddev.to_bits()));
}

#[test]
fn moments_are_refreshed_after_64_updates_or_as_many_as_there_are_entries() {
    // With one in and one out, a full window of 4 makes 2 updates a reading. Entries 1 to 4 make 1 + 3 (the first is
    // refreshed, and counts from 0), so 61 are still missing after the third: 30 readings later there are 63, then 65.
    let value = |i: u64| (i * 37 % 101) as f64 / 7.0;
    let fresh = |from: u64, to: u64| {
        let mut rolling = Rolling::of(Window::Count { n: 4 });
        (from..=to).for_each(|i| rolling.accept(i as i64, value(i), Some(i as i64 - 1), i as i64));
        rolling
    };
    let bits = |rolling: &Rolling| [Stat::Mean, Stat::Stddev].map(|stat| rolling.stat(stat).to_bits());
    let same_as_new: Vec<u64> = (5..=70).filter(|i| bits(&fresh(1, *i)) == bits(&fresh(i - 3, *i))).collect();
    // After 1 reading 0 updates, after 4 readings 3, after 4 + k readings 3 + 2 k: 65 for k = 31.
    assert!(same_as_new.contains(&35), "{same_as_new:?}");
    assert!(!same_as_new.contains(&34), "the values are too tame to test anything: {same_as_new:?}");
    assert!(same_as_new.contains(&67), "65 becomes 0, then 32 readings make 64: {same_as_new:?}");
}

#[test]
fn after_many_updates_moments_are_near_the_exact_ones() {
    // Values are multiples of 1/1024 around a large mean, so that sums are exact in integers.
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (1_000_000_i128 << 10) + i128::from(state >> 50)
    };
    let n = 1000;
    let mut rolling = Rolling::of(Window::Count { n });
    let values: Vec<i128> = (0..200_000).map(|_| next()).collect();
    for (time, value) in (0..).zip(&values) {
        rolling.accept(time, *value as f64 / 1024.0, (time > 0).then_some(time - 1), time);
        if time % 9973 != 9972 {
            continue;
        }
        let window = &values[time as usize + 1 - n as usize..=time as usize];
        let count = n as i128;
        let sum: i128 = window.iter().sum();
        let squares: i128 = window.iter().map(|x| x * x).sum();
        let mean = sum as f64 / (n as f64 * 1024.0);
        let variance = (squares * count - sum * sum) as f64 / (n * (n - 1)) as f64 / (1024.0 * 1024.0);
        assert!((rolling.stat(Stat::Mean) / mean - 1.0).abs() < 1e-13, "mean at {time}");
        assert!((rolling.stat(Stat::Stddev) / variance.sqrt() - 1.0).abs() < 1e-9, "stddev at {time}");
    }
}

#[test]
fn statistics_come_by_sensor_metric_and_the_order_of_windows() {
    let other = json("a", 1.0, 1.0).replace(r#""m""#, r#""M""#);
    let trace = Trace::new().with(|config| config.windows = vec![LAST_3, SECONDS_10]);
    let Outcome { rolling, .. } = trace.epoch(20, [json("b", 1.0, 1.0), json("a", 1.0, 1.0), other]).run();
    let order: Vec<String> = rolling.iter().map(|s| format!("{}{}", s.sensor, s.metric)).collect();
    assert_eq!(order, ["aM", "aM", "am", "am", "bm", "bm"]);
    assert_eq!((rolling[0].window, rolling[1].window), (LAST_3, SECONDS_10));
}

#[test]
fn a_reading_that_is_not_entered_leaves_every_bit_of_the_moments() {
    let bits = |s: SeriesRolling| [s.mean.to_bits(), s.stddev.to_bits()];
    // One reading was evicted before, so the moments are not what a refresh would make them.
    let old = [(2.0, 0.9), (13.0, 0.1), (14.0, 0.7), (15.0, 0.4)];
    let with = |late| [old[0], old[1], old[2], old[3], late];
    let beside = with((12.9, 0.55));
    assert_eq!(bits(after(LAST_3, &beside)), bits(after(LAST_3, &old)), "it is older than all of a full window");
    let edge = with((5.0, 0.55));
    assert_eq!(bits(after(SECONDS_10, &edge)), bits(after(SECONDS_10, &old)), "it is at the window's open edge");
}
