//! What was measured, over the rounds: minimum and median, as text and as JSON.

use crate::measure::Cost;
use serde_json::{Value, json};

/// One run of one program.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Of the program's processes.
    pub cost: Cost,
    /// What the broker spent meanwhile, seconds.
    pub broker_cpu_s: f64,
    /// What Redis spent meanwhile, seconds.
    pub redis_cpu_s: f64,
    /// Records.
    pub records: u64,
}

/// The rounds of one program on one topic; all of them with the right counts, or there is no such value.
#[derive(Clone, Debug, Default)]
pub struct Figures(pub Vec<Round>);

/// The least and the middle of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The one in the middle; of an even number the mean of the two.
    pub median: f64,
    /// The greatest.
    pub max: f64,
}

/// None of no figures.
pub fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (min, max) = (*values.first()?, *values.last()?);
    let half = values.len() / 2;
    let median = if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 };
    Some(Spread { min, median, max })
}

impl Figures {
    fn spread(&self, figure: impl Fn(&Round) -> f64) -> Spread {
        spread(self.0.iter().map(figure)).unwrap_or(Spread { min: f64::NAN, median: f64::NAN, max: f64::NAN })
    }
    /// CPU seconds per million records.
    pub fn cpu(&self) -> Spread {
        self.spread(|r| r.cost.cpu_s / r.records as f64 * 1e6)
    }
    /// Records a second, from the program's start to its end.
    pub fn rate(&self) -> Spread {
        self.spread(|r| r.records as f64 / r.cost.wall_s)
    }
    /// Peak of resident memory, megabytes.
    pub fn rss(&self) -> Spread {
        self.spread(|r| r.cost.rss_mb)
    }
    /// The broker's CPU seconds per million records.
    pub fn broker(&self) -> Spread {
        self.spread(|r| r.broker_cpu_s / r.records as f64 * 1e6)
    }
    /// Redis's CPU seconds per million records.
    pub fn redis(&self) -> Spread {
        self.spread(|r| r.redis_cpu_s / r.records as f64 * 1e6)
    }

    /// As `latest.json` holds it: medians, and the best under `best`.
    pub fn json(&self, settings: &Value) -> Value {
        let (cpu, rate, rss) = (self.cpu(), self.rate(), self.rss());
        let mut all = json!({
            "cpu_s_per_million": round(cpu.median, 3),
            "readings_per_s": rate.median.round(),
            "rss_mb": round(rss.median, 1),
            "exact": true,
            "best": { "cpu_s_per_million": round(cpu.min, 3), "readings_per_s": rate.max.round(), "rss_mb": round(rss.min, 1) },
            "broker_cpu_s_per_million": round(self.broker().median, 3),
            "redis_cpu_s_per_million": round(self.redis().median, 3),
            "rounds": self.0.len(),
        });
        if let (Some(all), Some(settings)) = (all.as_object_mut(), settings.as_object()) {
            all.extend(settings.clone());
        }
        all
    }
}

/// To so many places behind the point.
pub fn round(x: f64, places: i32) -> f64 {
    let by = 10f64.powi(places);
    (x * by).round() / by
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_lies_between_the_two() {
        assert_eq!(spread([3.0, 1.0, 2.0]), Some(Spread { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(spread([4.0, 1.0, 2.0, 3.0]), Some(Spread { min: 1.0, median: 2.5, max: 4.0 }));
        assert_eq!(spread([]), None);
    }

    #[test]
    fn figures_are_per_million_records_and_per_second_of_the_whole_run() {
        let cost = |cpu_s| Cost { cpu_s, wall_s: 2.0, rss_mb: 100.0 };
        let round = |cpu_s| Round { cost: cost(cpu_s), broker_cpu_s: 0.5, redis_cpu_s: 0.0, records: 500_000 };
        let figures = Figures(vec![round(1.0), round(0.5), round(0.4)]);
        assert_eq!(figures.cpu(), Spread { min: 0.8, median: 1.0, max: 2.0 });
        let json = figures.json(&json!({ "tick": "20ms" }));
        assert_eq!(json["readings_per_s"], 250_000.0);
        assert_eq!(json["cpu_s_per_million"], 1.0);
        assert_eq!(json["best"]["cpu_s_per_million"], 0.8);
        assert_eq!((json["tick"].as_str(), json["rounds"].as_u64()), (Some("20ms"), Some(3)));
    }
}
