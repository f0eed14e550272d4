use super::*;
use crate::{Dictionary, Judged, Saves, SeriesName};
use std::cell::RefCell;

const S: i64 = 1_000_000;

struct Bench {
    rolling: Rolling,
    clock: i64,
}

impl Bench {
    fn new(windows: &[Window], ask: &[(usize, Stat)]) -> Self {
        let mut plan = Plan::default();
        for (window, stat) in ask {
            plan.ask("t", *window, *stat);
        }
        let dictionary = SharedDictionary::new(RefCell::new(Dictionary::default()));
        dictionary.borrow_mut().intern(&SeriesName { sensor: "s-1".into(), metric: "t".into() });
        Self { rolling: Rolling::new(windows.to_vec(), Rc::new(plan), dictionary), clock: NEVER }
    }
    /// Enters readings; the features.
    fn enter(&mut self, readings: &[(i64, f64)]) -> Vec<f64> {
        let mut batch = Batch::default();
        for (time, value) in readings {
            let verdict = if *time < self.clock { Verdict::Behind } else { Verdict::Accepted };
            self.clock = self.clock.max(*time);
            let (time, value) = (*time, *value);
            batch.readings.push(Judged {
                time,
                value,
                offset: 0,
                series: 0,
                partition: 0,
                stream: 0,
                index: 0,
                verdict,
            });
        }
        self.rolling.batch(&mut batch);
        batch.features
    }
}

fn bits(stats: &Stats) -> [u64; 7] {
    let Stats { count, mean, stddev, min, max, rate, ewma } = *stats;
    [count, mean.to_bits(), stddev.to_bits(), min.to_bits(), max.to_bits(), rate.to_bits(), ewma.to_bits()]
}

#[test]
fn a_time_window_is_open_at_its_old_end() {
    let mut bench = Bench::new(&[Window::Time { us: 10 * S }], &[]);
    bench.enter(&[(0, 1.0), (1, 2.0), (10 * S, 3.0)]);
    let stats = bench.rolling.stats(0)[0];
    assert_eq!((stats.count, stats.mean, stats.min, stats.max), (2, 2.5, 2.0, 3.0));
    bench.enter(&[(0, 100.0)]);
    assert_eq!(bench.rolling.stats(0)[0].count, 2, "what lies before it is not entered");
}

#[test]
fn a_count_window_holds_the_newest_by_event_time() {
    let mut bench = Bench::new(&[Window::Count { n: 3 }], &[]);
    bench.enter(&[(10, 1.0), (20, 2.0), (5, 9.0), (30, 3.0), (9, 100.0), (10, 5.0)]);
    // 5 left for 30; 9 is older than all; the later of the two at 10 takes the earlier one's place.
    let stats = bench.rolling.stats(0)[0];
    assert_eq!((stats.count, stats.min, stats.max), (3, 2.0, 5.0));
    assert_eq!(stats.rate, (3.0 - 5.0) / 2e-5);
}

#[test]
fn undefined_statistics_are_nan() {
    let mut bench = Bench::new(&[Window::Count { n: 3 }, Window::Time { us: S }], &[]);
    let nan = f64::NAN.to_bits();
    let empty = [0, nan, nan, nan, nan, nan, nan];
    assert_eq!(bench.rolling.stats(0).iter().map(bits).collect::<Vec<_>>(), [empty; 2]);
    bench.enter(&[(0, 4.0)]);
    let four = 4f64.to_bits();
    assert_eq!(bench.rolling.stats(0).iter().map(bits).collect::<Vec<_>>(), [[1, four, nan, four, four, nan, four]; 2]);
    bench.enter(&[(0, 4.0)]);
    assert_eq!(bits(&bench.rolling.stats(0)[0])[5], nan, "no rate over no time");
}

#[test]
fn the_moving_average_weighs_by_time_and_survives_evictions() {
    let mut bench = Bench::new(&[Window::Time { us: S }, Window::Count { n: 3 }], &[]);
    bench.enter(&[(0, 1.0), (S / 2, 2.0), (5 * S, 4.0), (2 * S, 1000.0)]);
    let a = |us: i64| 1.0 - libm::exp(-us as f64 / S as f64);
    let mut ewma = 1.0;
    ewma += a(S / 2) * (2.0 - ewma);
    ewma += a(9 * S / 2) * (4.0 - ewma);
    let stats = bench.rolling.stats(0);
    assert_eq!(stats[0].count, 1);
    assert_eq!(stats[0].ewma.to_bits(), f64::to_bits(ewma));
    assert_eq!(stats[1].ewma, 1.0 + 0.5 + 0.5 * 2.5);
}

#[test]
fn features_follow_the_plan_for_readings_that_are_not_behind() {
    let windows = [Window::Count { n: 2 }, Window::Time { us: 10 }];
    let mut bench = Bench::new(&windows, &[(1, Stat::Max), (0, Stat::Mean), (1, Stat::Count)]);
    assert_eq!(bench.enter(&[(0, 4.0), (5, 2.0), (1, 9.0), (11, 1.0)]), [4.0, 4.0, 1.0, 4.0, 3.0, 2.0, 2.0, 1.5, 2.0]);
}

#[test]
fn a_forgotten_series_starts_anew() {
    let mut bench = Bench::new(&[Window::Count { n: 5 }, Window::Time { us: 100 }], &[(0, Stat::Min)]);
    bench.enter(&[(0, 1.0), (10, 2.0)]);
    let mut batch = Batch { forgotten: vec![0], ..Batch::default() };
    bench.rolling.batch(&mut batch);
    assert_eq!((bench.rolling.keys(), bench.rolling.stats(0)[0].count), (0, 0));
    assert_eq!(bench.enter(&[(11, 7.0)]), [7.0]);
    assert!(bench.rolling.stats(0).iter().all(|s| (s.count, s.mean, s.ewma) == (1, 7.0, 7.0)));
}

#[test]
fn values_at_the_end_of_the_range_never_panic() {
    let mut bench =
        Bench::new(&[Window::Count { n: 3 }, Window::Time { us: 3 }], &[(0, Stat::Stddev), (1, Stat::Rate)]);
    let extreme: Vec<_> = (0..100).map(|i| (i, if i % 3 == 0 { f64::MAX } else { -f64::MAX })).collect();
    bench.enter(&extreme);
    let calm: Vec<_> = (100..300).map(|i| (i, 1.0)).collect();
    bench.enter(&calm);
    let stats = bench.rolling.stats(0);
    assert_eq!((stats[0].mean, stats[0].stddev, stats[1].rate), (1.0, 0.0, 0.0), "a refresh ends what overflowed");
}

#[test]
fn a_new_window_begins_with_the_entries_that_others_kept() {
    let mut bench = Bench::new(&[Window::Count { n: 5 }], &[]);
    bench.enter(&[(10, 1.0), (20, 2.0), (30, 6.0)]);
    let mut states = crate::GroupStates::new();
    bench.rolling.save(&mut states);
    let mut next = Bench::new(&[Window::Time { us: 15 }, Window::Count { n: 5 }], &[(0, Stat::Max)]);
    for (group, bytes) in states {
        next.rolling.load(group, &bytes).unwrap();
    }
    let stats = next.rolling.stats(0);
    assert_eq!((stats[0].count, stats[0].mean, stats[0].max), (2, 4.0, 6.0));
    assert!(stats[0].ewma.is_nan(), "it begins with the next reading");
    assert_eq!(bits(&stats[1]), bits(&bench.rolling.stats(0)[0]));
}
