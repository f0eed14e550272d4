//! A long run of rolling statistics, held against exact sums.

use std::rc::Rc;
use streamgauge_operators::*;

const WINDOWS: [Window; 3] = [Window::Time { us: 60_000 }, Window::Count { n: 100 }, Window::Time { us: 1_000 }];

/// Values are multiples of 1/8 around 10^6, so that sums of squares are exact in 128 bits; every now and then one is
/// 2^20 times larger. Two series, one after the other, ever on.
fn value(random: u64) -> f64 {
    let eighths = 8_000_000 + (random % 80_000) as i64 - 40_000;
    let giant = if random.is_multiple_of(100_003) { 1_048_576 } else { 1 };
    (eighths * giant) as f64 / 8.0
}

/// Takes `wanted` readings into windows, and compares every `every` readings; says the largest errors found.
pub fn soak(wanted: u64, dictionary: SharedDictionary, every: u64) -> String {
    let mut rolling = Rolling::new(WINDOWS.to_vec(), Rc::new(Plan::default()), dictionary.clone());
    let series = ["a", "b"]
        .map(|metric| dictionary.borrow_mut().intern(&SeriesName { sensor: "s".into(), metric: metric.into() }));
    let mut random = 1u64;
    let mut kept = [const { Vec::new() }; 2];
    let mut worst = (0f64, 0f64);
    let (mut batch, mut compared) = (Batch::default(), 0u64);
    for n in 0..wanted {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let s = (n % 2) as usize;
        let behind = (random >> 60) == 0 && n > 100;
        let time = n as i64 * 50 - if behind { (random >> 40 & 0xfff) as i64 } else { 0 };
        let verdict = if behind { Verdict::Behind } else { Verdict::Accepted };
        let value = value(random >> 33);
        let judged = Judged { time, value, offset: 0, series: series[s], partition: 0, stream: 0, index: 0, verdict };
        batch.readings.push(judged);
        if n + 3000 > (n / every + 1) * every {
            // The last before the comparison, in order of time.
            let place = kept[s].partition_point(|(t, _): &(i64, f64)| *t <= time);
            kept[s].insert(place, (time, value));
        }
        if batch.readings.len() == 512 || (n + 1) % every == 0 {
            rolling.batch(&mut batch);
            batch.readings.clear();
        }
        if (n + 1) % every == 0 {
            for (s, kept) in kept.iter_mut().enumerate() {
                let clock = kept.last().map_or(0, |e| e.0);
                for (stats, window) in rolling.stats(series[s]).iter().zip(WINDOWS) {
                    let held = match window {
                        Window::Time { us } => kept.iter().filter(|e| e.0 > clock - us).count(),
                        Window::Count { n } => n as usize,
                    };
                    assert_eq!(stats.count, held as u64, "after {} readings", n + 1);
                    let entries = &kept[kept.len() - held..];
                    let (mean, stddev) = exact(entries);
                    assert_eq!(stats.min, entries.iter().map(|e| e.1).fold(f64::INFINITY, f64::min));
                    assert_eq!(stats.max, entries.iter().map(|e| e.1).fold(f64::NEG_INFINITY, f64::max));
                    let errors = ((stats.mean - mean).abs() / mean, (stats.stddev - stddev).abs() / stddev);
                    assert!(errors.0 < 1e-9 && errors.1 < 1e-6, "after {} readings: {errors:?}, {stats:?}", n + 1);
                    worst = (worst.0.max(errors.0), worst.1.max(errors.1));
                    compared += 1;
                }
                kept.clear();
            }
        }
    }
    format!(
        "{compared} windows compared, largest relative error of a mean {:.1e}, of a deviation {:.1e}",
        worst.0, worst.1
    )
}

fn exact(entries: &[(i64, f64)]) -> (f64, f64) {
    let n = entries.len() as i128;
    let eighths = entries.iter().map(|e| (e.1 * 8.0) as i128);
    let (sum, squares) = eighths.fold((0, 0), |(s, q), x| (s + x, q + x * x));
    let m2 = (n * squares - sum * sum) as f64 / n as f64 / 64.0;
    (sum as f64 / n as f64 / 8.0, (m2 / (n - 1) as f64).sqrt())
}
