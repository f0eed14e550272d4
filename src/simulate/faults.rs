//! Faults that are planted in the readings, one after the other, and written down in the truth.

use super::truth::Truth;
use super::{Plant, Sensor};
use serde::{Deserialize, Serialize};

/// What can be wrong with a sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// One metric jumps beyond its limit for a few readings.
    Spike,
    /// One metric reads the same value again and again.
    Stuck,
    /// The sensor sends nothing.
    Silence,
    /// One metric creeps to beyond its limit.
    Drift,
    /// The sensor's clock is a day ahead.
    SkewedClock,
    /// One reading beyond its limit, not a planted fault but one of the plant's share `beyond`.
    Beyond,
}

impl FaultKind {
    /// The kinds that can be planted.
    pub const PLANTED: [FaultKind; 5] =
        [FaultKind::Spike, FaultKind::Silence, FaultKind::SkewedClock, FaultKind::Stuck, FaultKind::Drift];

    /// Its name in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Spike => "spike",
            Self::Stuck => "stuck",
            Self::Silence => "silence",
            Self::Drift => "drift",
            Self::SkewedClock => "skewed clock",
            Self::Beyond => "single value beyond its limit",
        }
    }
    /// How many readings of a series it lasts, from and to.
    fn length(self) -> (i64, i64) {
        match self {
            Self::Spike => (2, 5),
            Self::Stuck => (20, 40),
            Self::Silence => (8, 12),
            Self::Drift => (30, 60),
            Self::SkewedClock => (5, 10),
            Self::Beyond => (1, 1),
        }
    }
    /// Whether it is a fault of the whole sensor, or of one metric.
    fn whole_sensor(self) -> bool {
        matches!(self, Self::Silence | Self::SkewedClock)
    }
}

/// When to plant which faults.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    /// The first, after this much event time.
    pub first_after_ms: i64,
    /// The next, each after this much more.
    pub every_ms: i64,
    /// The kinds, taken in turn.
    pub kinds: Vec<FaultKind>,
}

/// A fault as the truth tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// With which sensor.
    pub sensor: String,
    /// With which of its metrics; none: with all of it.
    pub metric: Option<String>,
    /// From this event time on (microseconds since 1970, by a right clock).
    pub from: i64,
    /// Until before this.
    pub to: i64,
    /// How many readings that bear its mark have been sent, copies not counted; of a silence: how many messages it has swallowed.
    pub readings: u64,
}

/// What is wrong with a sensor now. One fault at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Active {
    pub kind: FaultKind,
    pub metric: Option<u8>,
    pub from_ms: i64,
    pub to_ms: i64,
    /// Its place in the truth's list.
    pub index: u32,
}

/// A sensor is silent, or its clock skewed, for at least so long.
const WHOLE_SENSOR_MS: i64 = 8_000;

/// Plants what a plan says.
pub(super) struct Planner {
    plan: FaultPlan,
    next_ms: i64,
    planted: usize,
}

impl Planner {
    pub fn new(plan: FaultPlan, plant: &Plant) -> Self {
        let next_ms = if plan.kinds.is_empty() { i64::MAX } else { plant.start_ms + plan.first_after_ms };
        Self { plan, next_ms, planted: 0 }
    }
    pub fn due(&self, now_ms: i64) -> bool {
        now_ms >= self.next_ms
    }
    /// Plants the next fault in a sensor that has none; gives up for this time when it finds none.
    pub fn plant(
        &mut self,
        now_ms: i64,
        rng: &mut fastrand::Rng,
        plant: &Plant,
        truth: &mut Truth,
        sensors: &mut [Sensor],
    ) {
        self.next_ms = self.next_ms.saturating_add(self.plan.every_ms.max(1));
        let kind = self.plan.kinds[self.planted % self.plan.kinds.len()];
        for _ in 0..20 {
            let sensor = rng.u32(..plant.sensors);
            let free = &mut sensors[sensor as usize].active;
            if free.is_some_and(|a| now_ms < a.to_ms) {
                continue;
            }
            let metrics = plant.metrics_of(sensor);
            let metric = (!kind.whole_sensor()).then(|| rng.u8(metrics.start as u8..metrics.end as u8));
            let (lo, hi) = kind.length();
            let interval = plant.interval_ms().max(1);
            // A rule can only see what takes seconds, however often sensors report.
            let least = if kind.whole_sensor() { WHOLE_SENSOR_MS } else { 0 };
            let to_ms = now_ms + rng.i64((lo * interval).max(least)..=(hi * interval).max(least * 3 / 2));
            let name = metric.map(|m| plant.metrics[usize::from(m)].name);
            let index = truth.planted(kind, sensor, name, now_ms, to_ms);
            *free = Some(Active { kind, metric, from_ms: now_ms, to_ms, index });
            self.planted += 1;
            return;
        }
    }
}
