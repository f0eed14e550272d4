//! What sensors measure, and how it goes up and down while nothing is wrong.

use serde::Serialize;

/// How many metrics a plant can have.
pub const METRICS_MAX: usize = 7;

/// One metric of every sensor. All numbers are hundredths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What sensors read on average.
    base: i32,
    /// How sensors differ from it, either way.
    spread: i32,
    /// How a sensor goes up and down in ten minutes, either way.
    wave: i32,
    /// How readings differ from that, either way.
    noise: i32,
    /// Beyond this something is wrong.
    pub limit: i32,
    /// Whether beyond is above, or below.
    pub above: bool,
}

const fn metric(name: &'static str, calm: (i32, i32, i32, i32), limit: i32, above: bool) -> Metric {
    let (base, spread, wave, noise) = calm;
    Metric { name, base, spread, wave, noise, limit, above }
}

impl Metric {
    /// What a weather and air quality station measures.
    pub const SIX: [Metric; 6] = [
        metric("temperature", (2_100, 300, 400, 50), 3_500, true),
        metric("humidity", (5_500, 600, 800, 150), 3_000, false),
        metric("pressure", (101_300, 500, 600, 30), 105_000, true),
        metric("pm10", (2_500, 800, 1_000, 300), 8_000, true),
        metric("pm25", (1_200, 400, 500, 150), 5_000, true),
        metric("co2", (60_000, 8_000, 12_000, 1_500), 150_000, true),
    ];
    /// What a machine adds to that, in mm/s.
    pub const VIBRATION: Metric = metric("vibration", (200, 60, 80, 30), 710, true);

    /// The metric of this name.
    pub fn named(name: &str) -> Option<Metric> {
        Self::SIX.into_iter().chain([Self::VIBRATION]).find(|m| m.name == name)
    }
    /// The limit in the metric's unit.
    pub fn limit_value(&self) -> f64 {
        f64::from(self.limit) / 100.0
    }
    /// Whether a value in hundredths lies beyond the limit.
    pub fn breaches(&self, value: i32) -> bool {
        if self.above { value > self.limit } else { value < self.limit }
    }
    /// A value while nothing is wrong; never beyond the limit.
    pub(super) fn calm(&self, seed: u64, series: u64, event_ms: i64, rng: &mut fastrand::Rng) -> i32 {
        const PERIOD_MS: i64 = 600_000;
        let own = mix(seed ^ series.wrapping_mul(0xa076_1d64_78bd_642f));
        let spread = (own % (2 * self.spread as u64 + 1)) as i32 - self.spread;
        // A triangle, not a sine: the bytes must not depend on a platform's libm.
        let phase = (event_ms + (own >> 32) as i64 % PERIOD_MS).rem_euclid(PERIOD_MS);
        let fold = (2 * phase - PERIOD_MS).abs();
        let wave = (i64::from(self.wave) * (2 * fold - PERIOD_MS) / PERIOD_MS) as i32;
        self.base + spread + wave + rng.i32(-self.noise..=self.noise)
    }
    /// A value beyond the limit by `lo` to `hi` percent of it.
    pub(super) fn past_limit(&self, lo: i32, hi: i32, rng: &mut fastrand::Rng) -> i32 {
        let by = 1 + rng.i32(self.limit / 100 * lo..=self.limit / 100 * hi);
        if self.above { self.limit + by } else { self.limit - by }
    }
}

/// Splitmix64: spreads a counter over all 64 bits.
pub(super) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
