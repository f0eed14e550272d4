//! Random plants: records with duplicates, disorder, late, future, conflicting and broken ones, from a seed.

use super::memory::{MemoryRecord, Partitions};
use fastrand::Rng;

/// What to make.
pub struct Recipe {
    pub seed: u64,
    pub records: usize,
    pub partitions: u32,
    pub sensors: usize,
    /// Whether all of a sensor's readings lie in one partition.
    pub keyed: bool,
}

/// The rules that the random plants are judged by.
pub const RULES: &str = r#"
[rules.hot]
metric = "temperature"
when.above = { warning = 30.0, critical = 34.0, hysteresis = 1.5 }
[rules.hot-for]
metric = "temperature"
when.above = 28.0
for = "3s"
[rules.cold]
metric = "temperature"
when.below = 12.0
severity = "info"
[rules.dry]
metric = "humidity"
when.below = 30.0
match.sensor = "s-*"
[rules.mean]
metric = "temperature"
of.mean = "10s"
when.above = 24.0
[rules.swing]
metric = "humidity"
of.stddev = 8
when.above = 12.0
[rules.rising]
metric = "temperature"
of.rate = "5s"
when.above = 1.5
[rules.smooth]
metric = "humidity"
of.ewma = "20s"
when.below = 38.0
"#;

/// Silence, which only a replay of the same epochs repeats.
pub const SILENCE: &str = r#"
[rules.silent]
metric = "temperature"
when.missing.after = "7s"
"#;

/// A source, and what the random plants need to be judged closely.
pub const SOURCE: &str = r#"
event_time = { allowed_lateness = "4s", max_clock_skew = "1m" }
dedup = { window = "12s" }
rolling = { windows = ["10s", "30s"], last = [5] }
[sources.plant]
type = "kafka"
bootstrap_servers = "memory:1"
topics = ["readings"]
decode = { id = "/id", sensor = "/sensor", metric = "/type", value = "/value", time = "/time" }
"#;

/// Makes the records.
pub fn records(recipe: &Recipe) -> Partitions {
    let mut random = Rng::with_seed(recipe.seed);
    let start_us: i64 = 1_700_000_000_000_000;
    let mut partitions: Partitions = (0..recipe.partitions).map(|p| ((0, p), Vec::new())).collect();
    let mut level: Vec<[f64; 2]> =
        (0..recipe.sensors).map(|_| [random.f64() * 20.0 + 12.0, random.f64() * 40.0 + 25.0]).collect();
    let mut sent: Vec<(u32, Vec<u8>)> = Vec::new();
    let mut now_us = start_us;
    for n in 0..recipe.records {
        now_us += random.i64(1_000..60_000);
        let sensor = random.usize(0..recipe.sensors);
        let which = random.usize(0..2);
        let metric = ["temperature", "humidity"][which];
        level[sensor][which] += (random.f64() - 0.5) * 4.0;
        let mut time = now_us;
        match random.u32(0..100) {
            0..15 => time -= random.i64(0..5_000_000),
            15..17 => time -= random.i64(4_000_000..40_000_000),
            17 => time += random.i64(59_000_000..90_000_000_000),
            // Equal times of different readings.
            18..30 => time -= time % 1_000_000,
            _ => {}
        }
        let mut value = level[sensor][which];
        if random.u32(0..40) == 0 {
            value += random.f64() * 20.0 - 10.0;
        }
        let mut partition =
            if recipe.keyed { sensor as u32 % recipe.partitions } else { random.u32(0..recipe.partitions) };
        let mut payload =
            format!(r#"{{"id":"r-{n}","sensor":"s-{sensor}","type":"{metric}","value":{value},"time":{time}}}"#)
                .into_bytes();
        match random.u32(0..100) {
            0..8 if !sent.is_empty() => {
                (partition, payload) = sent[sent.len() - 1 - random.usize(0..sent.len().min(300))].clone()
            }
            8 => payload.truncate(random.usize(0..payload.len())),
            9 => payload = payload.iter().map(|b| if *b == b':' { b';' } else { *b }).collect(),
            // The same id, another value.
            10 if n > 50 => {
                let text = format!(
                    r#"{{"id":"r-{}","sensor":"s-{sensor}","type":"{metric}","value":{value},"time":{time}}}"#,
                    n - random.usize(1..50)
                );
                payload = text.into_bytes();
            }
            11 => {
                payload =
                    format!(r#"{{"id":"r-{n}","sensor":"s-{sensor}","type":"{metric}","value":null,"time":{time}}}"#)
                        .into_bytes()
            }
            12 => {
                payload =
                    format!(r#"{{"id":"r-{n}","sensor":"s-{sensor}","type":"{metric}","value":"ERR","time":{time}}}"#)
                        .into_bytes()
            }
            _ => {}
        }
        sent.push((partition, payload.clone()));
        let log = partitions.entry((0, partition)).or_default();
        // Gaps in offsets are normal.
        let offset = log
            .last()
            .map_or(random.i64(0..5), |r: &MemoryRecord| r.offset + if random.u32(0..30) == 0 { 3 } else { 1 });
        let payload = (random.u32(0..200) > 0).then_some(payload);
        let timestamp = Some(now_us / 1000 + random.i64(0..50));
        log.push(MemoryRecord { offset, timestamp, payload });
    }
    partitions.retain(|_, log| !log.is_empty());
    partitions
}
