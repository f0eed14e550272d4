//! A real Kafka and a real Redis, the program, and a folder: all of it ends with the benchmark.

use crate::measure::cpu_seconds;
use crate::servers::{Kafka, Redis};
use anyhow::{Context as _, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// What all runs share.
pub struct World {
    /// The broker.
    pub kafka: Kafka,
    /// Where alerts go.
    pub redis: Redis,
    /// Configurations, states, truths.
    pub folder: TempDir,
    program: PathBuf,
    own: PathBuf,
}

impl World {
    /// Starts the servers.
    pub fn start() -> Result<Self> {
        let own = std::env::current_exe()?;
        let beside = own.parent().context("a folder")?;
        // A test's own program lies one folder deeper.
        let beside = if beside.ends_with("deps") { beside.parent().context("a folder")? } else { beside };
        let program = std::env::var_os("STREAMGAUGE_BIN").map_or_else(|| beside.join("streamgauge"), PathBuf::from);
        ensure!(program.is_file(), "{} is not built: cargo build --release --features tls", program.display());
        let folder = tempfile::tempdir()?;
        Ok(Self { kafka: Kafka::start(), redis: Redis::start(), folder, program, own })
    }
    /// The program under test.
    pub fn streamgauge(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_remove("STREAMGAUGE_DATA_DIR").env_remove("STREAMGAUGE_LISTEN");
        command
    }
    /// This program: the floor and the straight-line program are commands of it.
    pub fn bench(&self) -> Command {
        Command::new(&self.own)
    }
    /// Processor time of the broker and of Redis so far, in seconds.
    pub fn servers_cpu_s(&self) -> Result<(f64, f64)> {
        Ok((cpu_seconds(self.kafka.pid())?, cpu_seconds(self.redis.pid())?))
    }
    /// How many records a topic holds.
    pub fn records(&self, topic: &str, partitions: i32) -> Result<u64> {
        let consumer: BaseConsumer = self.kafka.client().create()?;
        let mut records = 0;
        for partition in 0..partitions {
            let (low, high) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(10))?;
            records += (high - low) as u64;
        }
        Ok(records)
    }
}

/// Runs a command to its end; its standard output.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What a program printed last: its summary.
pub fn last_line<T: serde::de::DeserializeOwned>(printed: &str) -> Result<T> {
    let line = printed.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("no summary: {line:?}"))
}
