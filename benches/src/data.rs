//! The topics: made by `streamgauge produce` from a seed, with the truth beside them.

use crate::world::{World, succeed};
use anyhow::{Context as _, Result, ensure};
use streamgauge::simulate::Truth;

/// Where all chance comes from.
pub const SEED: u64 = 20_261_123;
/// Partitions of every topic.
pub const PARTITIONS: i32 = 16;

/// What is in a topic.
#[derive(Clone, Debug)]
pub struct Data {
    /// The topic's name.
    pub topic: &'static str,
    /// Readings, copies not counted.
    pub readings: u64,
    /// Sensors.
    pub sensors: u64,
    /// Event time between two readings of a series.
    pub interval: &'static str,
    /// Other options of `streamgauge produce`.
    pub options: &'static [&'static str],
    /// The topic's compression.
    pub compression: &'static str,
}

impl Data {
    /// The job's own: 10,000 sensors with one of six metrics each, some 67 readings of each in ten minutes.
    pub const JOB: Data = Data {
        topic: "bench",
        readings: 5_000_000,
        sensors: 10_000,
        interval: "9s",
        options: &["--one-metric"],
        compression: "none",
    };

    /// The same with this share of the readings and of the sensors.
    pub fn shortened(&self, by: u64) -> Data {
        Data { readings: (self.readings / by).max(1), sensors: (self.sensors / by).max(10), ..self.clone() }
    }
}

/// Fills the topic; the truth about it.
pub fn produce(world: &World, data: &Data) -> Result<Truth> {
    let settings = [("compression.type", data.compression)];
    world.kafka.create_topic_with(data.topic, PARTITIONS, if data.compression == "none" { &[] } else { &settings });
    let truth = world.folder.path().join(format!("{}.truth.json", data.topic));
    let path = truth.display().to_string();
    let (readings, sensors, seed) = (data.readings.to_string(), data.sensors.to_string(), SEED.to_string());
    let mut command = world.streamgauge();
    command.args(["produce", "--bootstrap-servers", &world.kafka.bootstrap, "--topic", data.topic]);
    command.args(["--readings", &readings, "--sensors", &sensors, "--interval", data.interval, "--seed", &seed]);
    command.args(["--start", "2025-01-01T00:00:00Z", "--timestamps", "event", "--truth", &path]);
    command.args(["--duplicates", "0.05", "--duplicates-within", "60s", "--disorder", "0.01"]);
    command.args(["--disorder-within", "10s", "--malformed", "0.001", "--beyond", "0.005"]);
    command.args(["--compression", data.compression]).args(data.options);
    succeed(&mut command)?;
    let truth: Truth = serde_json::from_slice(&std::fs::read(&truth)?).context("the truth")?;
    ensure!(truth.outcome.late == 0 && truth.outcome.future == 0, "{:?}", truth.outcome);
    Ok(truth)
}
