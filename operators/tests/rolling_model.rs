//! Rolling statistics against a naive recomputation by the documented recurrence, bit for bit, and against exact sums.

#![allow(clippy::unwrap_used)] // A test may.

use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use streamgauge_operators::*;

/// A window as docs/semantics.md 5 words it, with a list of its own and nothing shared.
#[derive(Clone, Default)]
struct Naive {
    entries: Vec<(i64, f64)>,
    n: f64,
    mean: f64,
    m2: f64,
    updates: usize,
    collapsed: bool,
    ewma: Option<f64>,
}

impl Naive {
    fn add(&mut self, x: f64) {
        self.n += 1.0;
        let d = x - self.mean;
        self.mean += d / self.n;
        self.m2 += d * (x - self.mean);
    }
    fn remove(&mut self, x: f64) {
        self.n -= 1.0;
        if self.n == 0.0 {
            (self.mean, self.m2) = (0.0, 0.0);
            return;
        }
        let d = x - self.mean;
        self.mean -= d / self.n;
        let next = (self.m2 - d * (x - self.mean)).max(0.0);
        self.collapsed |= next < self.m2 * 2f64.powi(-20);
        self.m2 = next;
    }
    fn enter(&mut self, window: Window, (time, x): (i64, f64), before: Option<i64>, clock: i64) {
        if before.is_none_or(|c| time >= c) {
            let a = match window {
                Window::Time { us } => 1.0 - libm::exp(-(time - before.unwrap_or(time)) as f64 / us as f64),
                Window::Count { n } => 2.0 / (n as f64 + 1.0),
            };
            self.ewma = Some(self.ewma.map_or(x, |ewma| ewma + a * (x - ewma)));
        }
        let enters = match window {
            Window::Time { us } => time > clock - us,
            Window::Count { n } => self.entries.len() < n as usize || time >= self.entries[0].0,
        };
        if !enters {
            return;
        }
        let place = self.entries.iter().filter(|e| e.0 <= time).count();
        self.entries.insert(place, (time, x));
        self.add(x);
        self.updates += 1;
        while match window {
            Window::Time { us } => self.entries[0].0 <= clock - us,
            Window::Count { n } => self.entries.len() > n as usize,
        } {
            let (_, oldest) = self.entries.remove(0);
            self.remove(oldest);
            self.updates += 1;
        }
        if self.updates >= self.entries.len().max(64) || self.collapsed || self.entries.len() == 1 {
            *self = Self { entries: std::mem::take(&mut self.entries), ewma: self.ewma, ..Self::default() };
            for i in 0..self.entries.len() {
                self.add(self.entries[i].1);
            }
        }
    }
    fn stats(&self) -> [u64; 7] {
        let nan = f64::NAN;
        let n = self.entries.len();
        let mut sorted: Vec<_> = self.entries.iter().map(|e| e.1).collect();
        sorted.sort_by(f64::total_cmp);
        let Some(((t0, x0), (t1, x1))) = self.entries.first().copied().zip(self.entries.last().copied()) else {
            return [0, nan.to_bits(), nan.to_bits(), nan.to_bits(), nan.to_bits(), nan.to_bits(), nan.to_bits()];
        };
        let stddev = if n < 2 { nan } else { (self.m2 / (n - 1) as f64).sqrt() };
        let rate = if t0 == t1 { nan } else { (x1 - x0) / ((t1 - t0) as f64 / 1e6) };
        let all = [self.mean, stddev, sorted[0], sorted[n - 1], rate, self.ewma.unwrap_or(nan)].map(f64::to_bits);
        [n as u64, all[0], all[1], all[2], all[3], all[4], all[5]]
    }
    /// Mean and deviation by exact integer arithmetic: values are multiples of 1/8.
    fn exact(&self) -> (f64, f64) {
        let n = self.entries.len() as i128;
        let eighths = self.entries.iter().map(|e| (e.1 * 8.0) as i128);
        let (sum, squares) = eighths.fold((0, 0), |(s, q), x| (s + x, q + x * x));
        let m2 = (n * squares - sum * sum) as f64 / n as f64 / 64.0;
        (sum as f64 / n as f64 / 8.0, (m2 / (n - 1) as f64).sqrt())
    }
}

fn bits(s: &Stats) -> [u64; 7] {
    let all = [s.mean, s.stddev, s.min, s.max, s.rate, s.ewma].map(f64::to_bits);
    [s.count, all[0], all[1], all[2], all[3], all[4], all[5]]
}

const WINDOWS: [Window; 6] = [
    Window::Time { us: 50 },
    Window::Count { n: 7 },
    Window::Time { us: 700 },
    Window::Count { n: 1 },
    Window::Count { n: 90 },
    Window::Time { us: 1 },
];

fn fresh(backwards: bool) -> (Rolling, SharedDictionary) {
    let mut plan = Plan::default();
    for window in 0..WINDOWS.len() {
        plan.ask("planned", window, Stat::Min);
        plan.ask("planned", window, Stat::Max);
    }
    let dictionary = Rc::new(RefCell::new(Dictionary::default()));
    if backwards {
        for name in names().iter().rev() {
            dictionary.borrow_mut().intern(name);
        }
    }
    (Rolling::new(WINDOWS.to_vec(), Rc::new(plan), dictionary.clone()), dictionary)
}

fn names() -> [SeriesName; 2] {
    ["planned", "unplanned"].map(|metric| SeriesName { sensor: "s".into(), metric: metric.into() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_statistic_is_the_documented_one_to_the_bit(
        readings in prop::collection::vec((0..2usize, -60..20i64, -40_000..40_000i32, prop::bool::weighted(0.01)), 1..700),
        restart in 0..700usize,
        giants: bool,
    ) {
        let (mut rolling, mut dictionary) = fresh(false);
        let mut naive = vec![vec![Naive::default(); WINDOWS.len()]; 2];
        let mut clocks = [None::<i64>; 2];
        for (n, (s, offset, eighths, giant)) in readings.into_iter().enumerate() {
            if n == restart {
                let mut saved = GroupStates::new();
                rolling.save(&mut saved);
                (rolling, dictionary) = fresh(true);
                for (group, bytes) in &saved {
                    rolling.load(*group, bytes).unwrap();
                }
                let mut again = GroupStates::new();
                rolling.save(&mut again);
                prop_assert_eq!(saved, again);
            }
            let before = clocks[s];
            let time = before.unwrap_or(1_000_000) + offset / 3;
            let value = f64::from(eighths) / 8.0 * if giant && giants { (1i64 << 40) as f64 } else { 1.0 };
            let clock = before.map_or(time, |c| c.max(time));
            clocks[s] = Some(clock);
            let series = dictionary.borrow_mut().intern(&names()[s]);
            let verdict = if time < clock { Verdict::Behind } else { Verdict::Accepted };
            let judged = Judged { time, value, offset: 0, series, partition: 0, stream: 0, index: 0, verdict };
            let mut batch = Batch { readings: vec![judged], ..Batch::default() };
            rolling.batch(&mut batch);
            for (window, naive) in WINDOWS.iter().zip(&mut naive[s]) {
                naive.enter(*window, (time, value), before, clock);
            }
            let stats = rolling.stats(series);
            for (w, naive) in naive[s].iter().enumerate() {
                prop_assert_eq!(bits(&stats[w]), naive.stats(), "reading {}, window {:?}", n, WINDOWS[w]);
                if naive.entries.len() > 1 && !giants {
                    let (mean, stddev) = naive.exact();
                    prop_assert!((stats[w].mean - mean).abs() < 1e-8, "{} is not {}", stats[w].mean, mean);
                    // A deviation of nearly 0 is the root of rounding errors.
                    prop_assert!((stats[w].stddev - stddev).abs() < 1e-4, "{} is not {}", stats[w].stddev, stddev);
                }
            }
            let features: Vec<_> = stats.iter().flat_map(|s| [s.min, s.max]).collect();
            let expected = if s == 0 && verdict == Verdict::Accepted { features } else { vec![] };
            prop_assert_eq!(batch.features, expected);
        }
    }
}
