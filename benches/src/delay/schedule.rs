//! An open-loop schedule: reading n is due at n / rate, whatever became of the readings before it.
//!
//! Delays are counted from when a reading was due, not from when it was sent: a program (or a sender) that stalls is
//! charged for every reading that should have come meanwhile. Nothing is omitted by coordination.

use crate::straight::rules;
use std::time::Duration;

/// What is sent, and when.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Readings a second.
    pub rate: u64,
    /// For how long.
    pub length: Duration,
    /// Sensors; each measures one metric.
    pub sensors: u64,
    /// One reading of so many lies beyond its limit.
    pub beyond_one_in: u64,
}

impl Schedule {
    /// How many readings there are.
    pub fn readings(&self) -> u64 {
        (u128::from(self.rate) * self.length.as_micros() / 1_000_000) as u64
    }
    /// When a reading is due, microseconds after the start.
    pub fn due_us(&self, n: u64) -> u64 {
        (u128::from(n) * 1_000_000 / u128::from(self.rate)) as u64
    }
    /// How many readings are due by then.
    pub fn due_by(&self, us: u64) -> u64 {
        // The least n with due_us(n) > us.
        let n = ((u128::from(us) + 1) * u128::from(self.rate)).div_ceil(1_000_000) as u64;
        n.min(self.readings())
    }
    /// Whose reading it is.
    pub fn sensor(&self, n: u64) -> u64 {
        n % self.sensors
    }
    /// Whether it lies beyond its limit.
    pub fn beyond(&self, n: u64) -> bool {
        mix(n).is_multiple_of(self.beyond_one_in)
    }
    /// Its value.
    pub fn value(&self, n: u64) -> f64 {
        let metric = self.metric(n);
        let (limit, above) = rules::LIMITS[metric];
        // Calm values lie so far within that neither mean nor deviation of a minute raises an alert by itself.
        let by = if self.beyond(n) { 1.0 } else { -0.7 * limit };
        if above { limit + by } else { limit - by }
    }
    /// Its metric's place.
    pub fn metric(&self, n: u64) -> usize {
        (self.sensor(n) % rules::NAMES.len() as u64) as usize
    }
    /// When the readings were due, microseconds after the start, that begin an alert on their value: their sensor's
    /// one before was not beyond the limit.
    pub fn alerts_us(&self) -> Vec<u64> {
        let begins = |n: &u64| self.beyond(*n) && (*n < self.sensors || !self.beyond(*n - self.sensors));
        (0..self.readings()).filter(begins).map(|n| self.due_us(n)).collect()
    }
}

/// Splitmix64.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rate: u64) -> Schedule {
        Schedule { rate, length: Duration::from_secs(3), sensors: 100, beyond_one_in: 50 }
    }

    #[test]
    fn by_each_moment_exactly_the_readings_that_are_due_are_due() {
        for rate in [1_000, 50_000, 200_000, 333] {
            let schedule = schedule(rate);
            for us in (0..3_000_000).step_by(997) {
                let n = schedule.due_by(us);
                assert!(n == 0 || schedule.due_us(n - 1) <= us, "{rate} {us}");
                assert!(n == schedule.readings() || schedule.due_us(n) > us, "{rate} {us}");
            }
            assert_eq!(schedule.due_by(10_000_000), rate * 3);
        }
    }

    #[test]
    fn an_alert_begins_where_a_sensor_was_well_before() {
        let schedule = schedule(10_000);
        let alerts = schedule.alerts_us();
        let beyond = (0..schedule.readings()).filter(|n| schedule.beyond(*n)).count();
        assert!(beyond > 500 && alerts.len() < beyond && alerts.len() > beyond * 9 / 10, "{beyond} {}", alerts.len());
    }
}
