//! How long it takes from when a reading was due to when its alert can be read in Redis; and what a paced load and no
//! load at all cost.

mod direct;
mod load;
mod percentiles;
mod reader;
mod schedule;
mod stalls;

use crate::data::{Data, PARTITIONS};
use crate::figures::round;
use crate::job::{Settings, configure_with};
use crate::measure::Running;
use crate::programs::free_port;
use crate::world::World;
use anyhow::{Context as _, Result, ensure};
use direct::Direct;
use load::Start;
use percentiles::Percentiles;
use reader::Reader;
use schedule::Schedule;
use serde_json::{Map, Value, json};
use stalls::Stalls;
use std::time::{Duration, Instant};

/// How long anything may take that we wait for.
const PATIENCE: Duration = Duration::from_secs(120);
/// The first seconds are the start's: connections, first alerts.
const WARM_UP: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Readings a second [default: 1000, 50000 and 200000]
    #[arg(long, value_delimiter = ',')]
    pub rate: Vec<u64>,
    /// The producer's linger.ms [default: 1 and 10]
    #[arg(long, value_delimiter = ',')]
    pub linger: Vec<u32>,
    /// Seconds of load at each rate [default: 25; quick: 8]
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Seconds without any input [default: 60; quick: 10]
    #[arg(long)]
    pub idle_seconds: Option<u64>,
    /// epochs.tick [default: 20ms]
    #[arg(long)]
    pub tick: Option<String>,
    /// A setting of librdkafka for the consumer, such as fetch.min.bytes=1; may be repeated
    #[arg(short = 'X', value_name = "KEY=VALUE")]
    pub properties: Vec<String>,
    /// A second consumer beside it: how old readings are when Kafka hands them out (it costs the broker something)
    #[arg(long)]
    pub direct: bool,
    /// Shorter
    #[arg(long)]
    pub quick: bool,
}

/// All rates and lingers, then idleness.
pub fn run(world: &World, options: &Options) -> Result<Map<String, Value>> {
    let rates = if options.rate.is_empty() { vec![1_000, 50_000, 200_000] } else { options.rate.clone() };
    let lingers = if options.linger.is_empty() { vec![1, 10] } else { options.linger.clone() };
    let length = Duration::from_secs(options.seconds.unwrap_or(if options.quick { 8 } else { 25 }));
    let mut all = Map::new();
    println!(
        "{:>9} {:>7} {:>9} {:>9} {:>9} {:>9} {:>8} {:>10} {:>10} {:>11}",
        "rate/s", "linger", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "alerts", "cores", "broker", "sender late"
    );
    for rate in rates {
        for linger in &lingers {
            let result = paced(world, options, rate, *linger, length)?;
            all.insert(format!("{rate}_linger_{linger}"), result);
        }
    }
    let idle = Duration::from_secs(options.idle_seconds.unwrap_or(if options.quick { 10 } else { 60 }));
    if !idle.is_zero() {
        all.insert("idle".into(), without_input(world, options, idle)?);
    }
    Ok(all)
}

impl Options {
    fn tick(&self) -> &str {
        self.tick.as_deref().unwrap_or("20ms")
    }
}

fn settings() -> Settings {
    // Two or three checkpoints fall into the load.
    Settings { checkpoint: "10s", ..Settings::workers(2) }
}

/// A streamgauge that has begun to listen, and the port of its page.
fn start(world: &World, options: &Options, topic: &'static str, name: &str) -> Result<(Running, u16)> {
    let data = Data { topic, ..Data::JOB };
    let port = free_port()?;
    let properties: Vec<String> = options
        .properties
        .iter()
        .map(|p| p.split_once('=').map(|(k, v)| format!("{k:?} = {v:?}")).context("-X KEY=VALUE"))
        .collect::<Result<_>>()?;
    let more = format!("properties = {{ {} }}\n", properties.join(", "));
    let configured = configure_with(world, &data, &settings(), name, options.tick(), port, &more)?;
    let mut command = world.streamgauge();
    command.args(["run", "--log-level", "warn", "-c"]).arg(&configured.config);
    let running = Running::start(command, world.folder.path(), name)?;
    let end = Instant::now() + PATIENCE;
    while ask(port, "readyz").is_err() {
        ensure!(!running.ended()? && Instant::now() < end, "it does not become ready: {}", running.said());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((running, port))
}

/// What streamgauge answers.
fn ask(port: u16, path: &str) -> Result<String> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build().into();
    Ok(agent.get(format!("http://127.0.0.1:{port}/{path}")).call()?.body_mut().read_to_string()?)
}

/// Asks it to end, and waits.
fn end(mut running: Running) -> Result<f64> {
    let rss_mb = running.rss_mb();
    running.terminate()?;
    let end = Instant::now() + PATIENCE;
    while !running.ended()? {
        ensure!(Instant::now() < end, "it does not end: {}", running.said());
        std::thread::sleep(Duration::from_millis(20));
    }
    running.collect()?;
    Ok(rss_mb)
}

/// A load of so many readings a second.
fn paced(world: &World, options: &Options, rate: u64, linger: u32, length: Duration) -> Result<Value> {
    let name = format!("delay-{rate}-{linger}");
    let topic: &'static str = name.clone().leak();
    world.kafka.create_topic(topic, PARTITIONS);
    let (running, port) = start(world, options, topic, &name)?;
    let sensors = 10_000;
    // Enough alerts for a percentile, at any rate.
    let beyond_one_in = (rate / 250).clamp(10, 200);
    let schedule = Schedule { rate, length: length + WARM_UP, sensors, beyond_one_in };

    let start = Start::now();
    let direct = options.direct.then(|| {
        let settings: Vec<_> = options
            .properties
            .iter()
            .filter_map(|p| p.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
            .collect();
        Direct::start(&world.kafka.bootstrap, (topic, PARTITIONS), &settings, start)
    });
    let reader = Reader::start(world.redis.connection(), name.clone(), start);
    let sender = {
        let bootstrap = world.kafka.bootstrap.clone();
        std::thread::spawn(move || load::send(&bootstrap, (topic, PARTITIONS), &schedule, linger, start))
    };
    std::thread::sleep(WARM_UP);
    let before = (Instant::now(), running.cpu_s()?, world.servers_cpu_s()?);
    std::thread::sleep(length.saturating_sub(Duration::from_millis(500)));
    let after = (Instant::now(), running.cpu_s()?, world.servers_cpu_s()?);
    let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    let expected = schedule.alerts_us();
    let patience = Instant::now() + PATIENCE;
    while reader.read() < expected.len() && Instant::now() < patience {
        ensure!(!running.ended()?, "it ended: {}", running.said());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    let delays = reader.finish()?;
    let stalls = Stalls::read(&ask(port, "metrics")?);
    let rss_mb = end(running)?;
    ensure!(
        delays.len() == expected.len() && expected.iter().all(|us| delays.contains_key(&start.event_us(*us))),
        "{} alerts came, not the {} that the readings make",
        delays.len(),
        expected.len()
    );
    let warm = start.event_us(WARM_UP.as_micros() as u64);
    let p = Percentiles::of(delays.range(warm..).map(|(_, delay)| *delay).collect()).context("no alerts")?;
    let seconds = (after.0 - before.0).as_secs_f64();
    let (cores, broker) = ((after.1 - before.1) / seconds, (after.2.0 - before.2.0) / seconds);
    println!(
        "{rate:>9} {linger:>4} ms {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>8} {cores:>10.3} {broker:>10.3} {:>8.1} ms",
        p.p50,
        p.p99,
        p.p999,
        p.max,
        p.count,
        sent.behind_us as f64 / 1e3
    );
    let mut result = p.json();
    if let Some(stalls) = stalls {
        println!("{:>17} {stalls}", "");
        result["stalled_by_checkpoints"] = stalls.json();
    }
    if let Some(direct) = direct {
        let all = Percentiles::of(direct?.finish(warm)?).context("nothing was read")?;
        println!(
            "{:>17} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>8}  read from Kafka",
            "", all.p50, all.p99, all.p999, all.max, all.count
        );
        result["read_from_kafka"] = all.json();
    }
    let more = json!({
        "rate": rate, "producer_linger_ms": linger, "seconds": length.as_secs(), "cores": round(cores, 3),
        "broker_cores": round(broker, 3), "rss_mb": round(rss_mb, 1), "sender_late_ms": sent.behind_us as f64 / 1e3,
        "exact": true, "workers": 2, "durability": "process", "tick": options.tick(), "compression": "none",
        "checkpoint_interval": settings().checkpoint, "properties": options.properties,
    });
    if let (Some(result), Some(more)) = (result.as_object_mut(), more.as_object()) {
        result.extend(more.clone());
    }
    Ok(result)
}

/// Nothing comes; epochs close, and their lines are written.
fn without_input(world: &World, options: &Options, length: Duration) -> Result<Value> {
    let topic = "idle";
    world.kafka.create_topic(topic, PARTITIONS);
    let (running, _) = start(world, options, topic, topic)?;
    std::thread::sleep(WARM_UP);
    let (began, before) = (Instant::now(), running.cpu_s()?);
    std::thread::sleep(length);
    let cores = (running.cpu_s()? - before) / began.elapsed().as_secs_f64();
    let rss_mb = end(running)?;
    println!("idle for {} s: {:.2} % of a core, {rss_mb:.0} MB", length.as_secs(), cores * 100.0);
    Ok(json!({
        "seconds": length.as_secs(), "cores": round(cores, 4), "rss_mb": round(rss_mb, 1), "workers": 2,
        "durability": "process", "tick": options.tick(),
    }))
}
