//! The fixed input: records of the shape that most producers send, from a seed.

use fastrand::Rng;

/// The metrics of the fixed input; a sensor measures one of them.
pub const METRICS: [&str; 6] = ["temperature", "humidity", "pressure", "pm10", "pm25", "co2"];
const START_US: i64 = 1_735_689_600_000_000;

/// What to make.
#[derive(Clone, Copy)]
pub struct Recipe {
    pub records: usize,
    pub sensors: usize,
    pub partitions: u32,
    /// Event time between two readings of a sensor.
    pub interval_us: i64,
    /// Of a hundred records, how many repeat an earlier one.
    pub duplicates: u32,
}

/// A record before it is written down.
pub struct Sample {
    pub partition: u32,
    pub sensor: usize,
    pub time_us: i64,
    pub value: f64,
    /// Two with one number are one reading.
    pub number: u64,
}

impl Sample {
    pub fn metric(&self) -> &'static str {
        METRICS[self.sensor % METRICS.len()]
    }
    pub fn sensor(&self) -> String {
        format!("plant-a/line-{}/s-{:05}", self.sensor % 7, self.sensor)
    }
    /// The narrow shape, with an id.
    pub fn narrow(&self) -> String {
        let (id, sensor, metric) = (self.id(), self.sensor(), self.metric());
        let (value, time) = (self.value, time(self.time_us));
        format!(
            r#"{{"unique_reading_id":"{id}","sensor_id":"{sensor}","type":"{metric}","value":{value:.2},"timestamp":"{time}"}}"#
        )
    }
    /// The same with a text that only the slow path reads.
    pub fn escaped(&self) -> String {
        self.narrow().replacen('{', r#"{"unit":"\u00b0C","#, 1)
    }
    /// Six metrics in one record, told apart by series and time.
    pub fn wide(&self) -> String {
        let (sensor, time, value) = (self.sensor(), time(self.time_us), self.value);
        format!(
            r#"{{"sensor_id":"{sensor}","timestamp":"{time}","temperature":{value:.2},"humidity":{:.1},"pressure":{:.1},"pm10":{:.2},"pm25":{:.2},"co2":{}}}"#,
            value / 2.0 + 40.0,
            1000.0 + value / 10.0,
            value / 3.0,
            value / 4.0,
            400 + value as i64
        )
    }
    /// A UUID, as most ids are.
    fn id(&self) -> String {
        let x = u128::from(self.number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let hex = format!("{x:032x}");
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

fn time(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| String::new(), |t| format!("{t:.3}"))
}

/// Makes the samples, in the order in which they are sent.
pub fn samples(recipe: &Recipe) -> impl Iterator<Item = Sample> {
    let Recipe { records, sensors, partitions, interval_us, duplicates } = *recipe;
    let mut random = Rng::with_seed(20_261_123);
    // Number, sensor, time, value of those sent lately.
    let mut sent: Vec<(u64, usize, i64, f64)> = Vec::new();
    (0..records).map(move |n| {
        let again = random.u32(0..100) < duplicates && !sent.is_empty();
        let (number, sensor, time_us, value) = if again {
            sent[random.usize(0..sent.len())]
        } else {
            let sensor = n % sensors;
            let time_us = START_US + (n / sensors) as i64 * interval_us + sensor as i64 % interval_us;
            // A beyond-limits value now and then, so that rules have something to say.
            let value = if random.u32(0..200) == 0 { 2_000.0 } else { 20.0 + random.f64() * 10.0 };
            (n as u64, sensor, time_us / 1000 * 1000, (value * 100.0).round() / 100.0)
        };
        if !again {
            // Repeated within about two readings of a sensor.
            if sent.len() < 2 * sensors {
                sent.push((number, sensor, time_us, value));
            } else {
                let place = n % sent.len();
                sent[place] = (number, sensor, time_us, value);
            }
        }
        Sample {
            partition: (sensor as u32).wrapping_mul(2_654_435_761) >> 8 & (partitions - 1),
            sensor,
            time_us,
            value,
            number,
        }
    })
}
