//! The stages of a reading's way, each by itself on the fixed input, through the code that the dataflow runs.

use crate::input::{METRICS, Recipe, Sample, samples};
use operators::alert::{Alert, AlertState};
use operators::judge::Judge;
use operators::keyed::{Arrived, Node, Out, Step};
use operators::rolling::Rolling;
use operators::rules::Rules;
use operators::{Epoch, Reading, RuleSpec};
use std::error::Error;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use streamgauge::config::{self, Loaded, Overrides};
use streamgauge::crew::{Crew, Part, Turns, Working};
use streamgauge::dataflow::Logic;
use streamgauge::dead_lane::DeadLane;
use streamgauge::dead_letters::DeadLetters;
use streamgauge::decode::{Decoder, Outcome};
use streamgauge::kinds::Kinds;
use streamgauge::metrics::Metrics;
use streamgauge::nodes::{self, Common, JudgeNode, OutboxNode, Passing, RollingNode, RulesNode};
use streamgauge::outage::Disk;
use streamgauge::process::{EpochClock, Shared};
use streamgauge::run::decoders;
use streamgauge::saving::SLICE;
use streamgauge::seam::{Clock, RealClock, RealFs};
use streamgauge::sink::{
    AlertBatch, Alerts, Configured, JournalEntry, LaneContext, Lanes, MadeAgain, NameTable, ParquetArchive,
    RedisStream, RedisTimeseries, RowBatch, Rows, Sink,
};
use streamgauge::source::interner::Interner;
use streamgauge::views::Site;

/// Readings that go through a stage.
const READINGS: usize = 20_000;
/// Of an epoch.
const EPOCH: usize = 2_000;
/// Of a container, as timely makes them: 8 KiB.
const CONTAINER: usize = 8192 / size_of::<Reading>();

/// What is done with a stage.
pub trait Meter {
    /// Runs it once; it handles `readings`.
    fn stage(&mut self, name: &str, readings: usize, stage: &mut dyn FnMut());
}

/// Prints what a stage takes.
pub struct Clocked;

impl Meter for Clocked {
    fn stage(&mut self, name: &str, readings: usize, stage: &mut dyn FnMut()) {
        let start = Instant::now();
        stage();
        let ns = start.elapsed().as_nanos() as f64;
        println!("{name:34} {:8.1} ns per reading, {:8.3} ms", ns / readings as f64, ns / 1e6);
    }
}

/// Under callgrind: it counts from the first to the last instruction of `counted_stage`, and writes a file per call.
pub struct Counted;

impl Meter for Counted {
    fn stage(&mut self, name: &str, readings: usize, stage: &mut dyn FnMut()) {
        counted_stage(stage);
        println!("{readings} {name}");
    }
}

/// Its name is what `budget` tells callgrind.
#[inline(never)]
fn counted_stage(stage: &mut dyn FnMut()) {
    stage();
    black_box(());
}

const JOB: &str = r#"
event_time = { allowed_lateness = "30s" }
dedup = { window = "10m" }
rolling = { windows = ["60s"] }
sinks.archive = { type = "parquet", path = "PATH", memory = "1GiB", capacity = "1GiB" }
[sources.plant]
type = "kafka"
bootstrap_servers = "memory:1"
topics = ["readings"]
decode = { id = "/unique_reading_id", sensor = "/sensor_id", metric = "/type", value = "/value", time = "/timestamp" }
[sources.stations]
type = "kafka"
bootstrap_servers = "memory:1"
topics = ["stations"]
[sources.stations.decode]
sensor = "/sensor_id"
time = "/timestamp"
metrics = { temperature = { path = "/temperature" }, humidity = { path = "/humidity" }, pressure = { path = "/pressure" }, pm10 = { path = "/pm10" }, pm25 = { path = "/pm25" }, co2 = { path = "/co2" } }
"#;

/// The job of the benchmark, and more rules of the same kind on each metric: `each` in all.
pub fn job(folder: &std::path::Path, each: usize) -> Result<Loaded, Box<dyn Error>> {
    let mut text = JOB.replace("PATH", &folder.join("archive").display().to_string());
    for metric in METRICS {
        for n in 0..each {
            let window = if n % 5 > 2 { ["of.mean = \"60s\"\n", "of.stddev = \"60s\"\n"][n % 2] } else { "" };
            let limit = 1_000.0 + n as f64;
            text += &format!("[rules.{metric}-{n}]\nmetric = \"{metric}\"\n{window}when.above = {limit:?}\n");
        }
    }
    config::load_texts(&[("job.toml".into(), text)], &|_| None, &Overrides::default())
        .map_err(|report| format!("{report:?}").into())
}

/// A clock that stands still while others are at work: for stalls as they are on a machine of one's own.
struct Spent(RealClock);

impl Clock for Spent {
    fn wall_ms(&self) -> u64 {
        self.0.wall_ms()
    }
    fn monotonic_us(&self) -> u64 {
        (cpu_seconds() * 1e6) as u64
    }
}

/// A worker's surroundings, and its operators as `dataflow` makes them.
struct World {
    common: Common,
    logic: Logic,
    decoders: Vec<Decoder>,
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    loaded: Loaded,
}

impl World {
    fn new(rules_each: usize) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let loaded = job(folder.path(), rules_each)?;
        let pure = loaded.pure();
        let (clock, metrics) = (Arc::new(Spent(RealClock::default())), Metrics::new()?);
        let epochs = EpochClock::start(clock.clone(), 20_000, 0);
        let disk = Disk::new(clock, Arc::default(), metrics.clone());
        let common = Common {
            worker: 0,
            local: 0,
            shared: Arc::new(Shared::new(epochs, None, disk, 1, Arc::default())),
            metrics,
            pieces: crossbeam_channel::unbounded().0,
            dictionary: Rc::default(),
            streams: Arc::new(pure.streams()),
            stall: Default::default(),
            slice: SLICE,
            trip: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { common, logic: Logic::new(&pure), decoders: decoders(&pure)?, runtime, folder, loaded })
    }

    /// Decoded readings by epoch, in containers, as the exchange hands them over.
    fn readings(&mut self, recipe: &Recipe) -> Result<Vec<Vec<Vec<Reading>>>, Box<dyn Error>> {
        let mut interner = Interner::default();
        let mut offsets = vec![0_i64; recipe.partitions as usize];
        let mut all = Vec::new();
        for sample in samples(recipe) {
            let text = sample.narrow();
            let Outcome::Decoded(fanout) = self.decoders[0].decode(Some(text.as_bytes())) else {
                return Err(format!("not decoded: {text}").into());
            };
            let offset = &mut offsets[sample.partition as usize];
            *offset += 1;
            for field in fanout.values() {
                let Ok(value) = field.value else { continue };
                let series = interner.intern(fanout.sensor, field.metric);
                let mut reading = Reading::new(
                    (0, sample.partition, *offset, field.index),
                    (series.series, series.group),
                    series.name,
                    (fanout.time, value, fanout.identity),
                );
                reading.stamp(0, false);
                all.push(reading);
            }
        }
        // A source polls runs of one partition.
        let epochs = all.chunks(EPOCH).map(|epoch| {
            let mut epoch = epoch.to_vec();
            epoch.sort_by_key(|reading| reading.partition);
            epoch.chunks(CONTAINER).map(<[Reading]>::to_vec).collect()
        });
        Ok(epochs.collect())
    }

    fn judge(&self) -> Result<JudgeNode, Box<dyn Error>> {
        let judge = Judge::new(self.logic.judge.clone(), self.common.dictionary.clone());
        Ok(JudgeNode::new(self.common.clone(), judge, nodes::Clock::default(), [].into_iter())?)
    }

    fn rolling(&self) -> Result<RollingNode, Box<dyn Error>> {
        let resolved = &self.logic.resolved;
        let plan = Rc::new(resolved.plan.clone());
        let rolling = Rolling::new(resolved.windows.clone(), plan, self.common.dictionary.clone());
        Ok(RollingNode::new(self.common.clone(), rolling, [].into_iter())?)
    }

    fn rules(&self, per_series: usize) -> Result<RulesNode, Box<dyn Error>> {
        let resolved = &self.logic.resolved;
        let specs: Vec<Rc<RuleSpec>> = resolved.rules.iter().map(|rule| Rc::new(rule.spec.clone())).collect();
        let plan = Rc::new(resolved.plan.clone());
        let rules = Rules::new(specs, self.logic.judge.allowed_lateness, plan, self.common.dictionary.clone());
        let keys = resolved.rules.iter().map(|rule| rule.spec.key.as_str());
        let mut node = RulesNode::new(self.common.clone(), rules, keys, &nodes::Clock::default(), [].into_iter())?;
        // Each series is looked at by so many of its metric's rules, and all of them by some series.
        let mut applies = Vec::new();
        let dictionary = self.common.dictionary.borrow();
        for series in 0..dictionary.len() as u32 {
            let metric = &*dictionary.name(series).metric;
            let rules: Vec<u32> = (0..)
                .zip(&resolved.rules)
                .filter(|(_, r)| r.metric.as_deref() == Some(metric))
                .map(|(n, _)| n)
                .collect();
            let first = (series as usize * per_series) % rules.len();
            applies.extend((0..per_series).map(|n| ((series, rules[(first + n) % rules.len()]), 0, 1)));
        }
        drop(dictionary);
        node.step(Step::Epoch(1, Arrived { first: Vec::new(), second: applies, third: Vec::new() }), &mut none());
        Ok(node)
    }

    /// The node before the lanes, and the lanes, which nobody works on: what is handed over waits.
    fn outbox(&self) -> Result<(OutboxNode, Lanes), Box<dyn Error>> {
        let Common { shared, metrics, streams, .. } = &self.common;
        let context = LaneContext {
            fs: Arc::new(RealFs),
            clock: Arc::new(RealClock::default()),
            dir: self.folder.path().join("lanes"),
            term: 1,
            written: 0,
            made_again: MadeAgain::default(),
            memory: 1 << 30,
            keep: 3,
            process: 0,
            processes: 1,
            workers: 1,
            metrics: metrics.clone(),
            disk: shared.disk.clone(),
            crew: Arc::new(Idle),
            cuts: Arc::new(|_| ()),
            labels: Arc::new(|_, _| None),
            shed: Arc::new(|_, _| ()),
        };
        let lanes = Lanes::open(&Configured, &self.loaded.config.sinks, context, Vec::new(), self.runtime.handle())?;
        let store = DeadLetters::open(Arc::new(RealFs), &self.folder.path().join("dead"), 0, None, metrics.clone())?;
        let pieces = crossbeam_channel::unbounded().0;
        let (_lane, dead) = DeadLane::new(store, (0, 1), streams, pieces, shared.clone());
        let site = Site(self.logic.inventory.clone());
        let node = OutboxNode::new(self.common.clone(), lanes.handle(), dead, site, Default::default(), 1000);
        Ok((node, lanes))
    }
}

/// Lets nobody work beside us, so that the counts are always the same.
struct Idle;

impl Crew for Idle {
    fn start(&self, _: &str, _: Box<dyn Part>) -> std::io::Result<Working> {
        Ok(Working::new(|| true))
    }
    fn pause(&self) {}
    fn enter(&self, _: &timely::worker::Worker) -> Box<dyn Turns> {
        unreachable!("no worker runs here")
    }
}

fn none<X, Y, Z>() -> Out<X, Y, Z> {
    Out { first: Vec::new(), second: Vec::new(), third: Vec::new() }
}

/// An epoch of one input.
fn epoch<A, B, C, N: Node<A = A, B = B, C = C>>(node: &mut N, epoch: Epoch, items: Vec<Vec<A>>) -> Vec<N::X> {
    let mut out = none();
    node.step(Step::Epoch(epoch, Arrived { first: items, second: Vec::new(), third: Vec::new() }), &mut out);
    out.first
}

/// Readings arrive at the judge, and their epoch is complete.
fn arrive(judge: &mut JudgeNode, n: Epoch, mut containers: Vec<Vec<Reading>>) -> Vec<Passing> {
    containers.iter_mut().for_each(|container| judge.arrive(container));
    epoch(judge, n, containers)
}

/// Runs all stages.
pub fn all(meter: &mut impl Meter) -> Result<(), Box<dyn Error>> {
    decode(meter)?;
    intern(meter);
    judge(meter, "judge, 60 ids a series", 200, 60)?;
    judge(meter, "judge, 2,000 ids a series", 10, 2_000)?;
    let rows = operators(meter)?;
    rules_500(meter)?;
    sinks(meter, &rows)?;
    checkpoint(meter, 500, 60)
}

/// A worker that holds so many series of so many ids, and epochs that come then.
struct Full {
    world: World,
    judge: JudgeNode,
    rolling: RollingNode,
    rules: RulesNode,
    then: Vec<Vec<Vec<Reading>>>,
}

impl Full {
    fn new(sensors: usize, ids: usize) -> Result<Self, Box<dyn Error>> {
        let mut world = World::new(5)?;
        let interval_us = 600_000_000 / ids as i64;
        let recipe = Recipe { records: sensors * ids * 12 / 10, sensors, partitions: 16, interval_us, duplicates: 5 };
        let mut epochs = world.readings(&recipe)?;
        let then = epochs.split_off(epochs.len() * 11 / 12);
        let (mut judge, mut rolling) = (world.judge()?, world.rolling()?);
        let mut rules = None;
        for (n, containers) in (1..).zip(epochs) {
            let rolled = epoch(&mut rolling, n, vec![arrive(&mut judge, n, containers)]);
            if world.common.dictionary.borrow().len() == sensors && rules.is_none() {
                rules = Some(world.rules(5)?);
            }
            if let Some(rules) = &mut rules {
                epoch(rules, n, vec![rolled]);
            }
        }
        let rules = rules.ok_or("every sensor has been met")?;
        Ok(Self { world, judge, rolling, rules, then })
    }
}

/// What a cut costs such a worker: all its operators, one after the other, as a whole.
pub fn checkpoint(meter: &mut impl Meter, sensors: usize, ids: usize) -> Result<(), Box<dyn Error>> {
    let Full { mut judge, mut rolling, mut rules, .. } = Full::new(sensors, ids)?;
    // The one that is measured finds memory that the one before has used, as in a run.
    for measured in [false, true] {
        let mut cut = |name: &str, step: &mut dyn FnMut()| match measured {
            true => meter.stage(name, sensors * ids, step),
            false => step(),
        };
        cut("checkpoint, judge, per live id", &mut || whole(&mut judge));
        cut("checkpoint, rolling, per live id", &mut || whole(&mut rolling));
        cut("checkpoint, rules, per live id", &mut || whole(&mut rules));
    }
    Ok(())
}

/// For how long such a worker does nothing but save, at a time, when readings go on: at the cut, and in each tick after it.
pub fn stalls(sensors: usize, ids: usize) -> Result<(), Box<dyn Error>> {
    let Full { world, mut judge, mut rolling, mut rules, then } = Full::new(sensors, ids)?;
    let ms = || world.common.stall.take().unwrap_or(0) as f64 / 1e3;
    for (round, epochs) in then.chunks(then.len() / 4).enumerate() {
        judge.step(Step::Cut(1), &mut none());
        rolling.step(Step::Cut(1), &mut none());
        rules.step(Step::Cut(1), &mut none());
        let mut stalls = vec![ms()];
        for (n, containers) in (1_000_000..).zip(epochs) {
            let rolled = epoch(&mut rolling, n, vec![arrive(&mut judge, n, containers.clone())]);
            epoch(&mut rules, n, vec![rolled]);
            let left = judge.go_on() | rolling.go_on() | rules.go_on();
            stalls.push(ms());
            if !left {
                break;
            }
        }
        let longest = stalls.iter().copied().fold(0.0, f64::max);
        let (first, ticks, all) = (stalls[0], stalls.len() - 1, stalls.iter().sum::<f64>());
        println!(
            "cut {round}: {first:.2} ms at once, {longest:.2} ms at most in one of {ticks} ticks of {EPOCH} readings, {all:.1} ms in all"
        );
    }
    Ok(())
}

/// A whole cut, although it is saved little by little.
fn whole(node: &mut impl Node) {
    node.step(Step::Cut(1), &mut none());
    while node.go_on() {}
}

fn texts(sample: impl Fn(&Sample) -> String) -> Vec<String> {
    let recipe = Recipe { records: READINGS, sensors: 1_000, partitions: 16, interval_us: 10_000_000, duplicates: 5 };
    samples(&recipe).map(|s| sample(&s)).collect()
}

fn decode(meter: &mut impl Meter) -> Result<(), Box<dyn Error>> {
    let mut world = World::new(0)?;
    let mut shape = |name: &str, decoder: usize, each: usize, texts: Vec<String>| {
        let decoder = &mut world.decoders[decoder];
        decoder.decode(Some(texts[0].as_bytes()));
        let mut readings = 0;
        meter.stage(name, each * texts.len(), &mut || {
            for text in &texts {
                if let Outcome::Decoded(fanout) = decoder.decode(Some(black_box(text.as_bytes()))) {
                    black_box((fanout.sensor, fanout.time, fanout.identity));
                    readings += fanout.values().filter(|value| black_box(value).value.is_ok()).count();
                }
            }
        });
        assert_eq!(readings, each * texts.len(), "{name}: a record was not decoded");
    };
    shape("decode, narrow", 0, 1, texts(Sample::narrow));
    shape("decode, wide, per reading", 1, 6, texts(Sample::wide));
    shape("decode, narrow, by serde", 0, 1, texts(Sample::escaped));
    Ok(())
}

fn intern(meter: &mut impl Meter) {
    let recipe = Recipe { records: READINGS, sensors: 1_000, partitions: 16, interval_us: 10_000_000, duplicates: 5 };
    let names: Vec<(String, &str)> = samples(&recipe).map(|s| (s.sensor(), s.metric())).collect();
    let mut interner = Interner::default();
    for (sensor, metric) in &names {
        interner.intern(sensor, metric);
    }
    meter.stage("intern", names.len(), &mut || {
        for (sensor, metric) in &names {
            black_box(interner.intern(sensor, metric));
        }
    });
}

/// The judge alone, with so many live ids in each series.
fn judge(meter: &mut impl Meter, name: &str, sensors: usize, ids: usize) -> Result<(), Box<dyn Error>> {
    let mut world = World::new(0)?;
    let interval_us = 600_000_000 / ids as i64;
    let recipe =
        Recipe { records: sensors * ids * 11 / 10 + READINGS, sensors, partitions: 16, interval_us, duplicates: 5 };
    let mut epochs = world.readings(&recipe)?;
    let measured = epochs.split_off(epochs.len() - READINGS / EPOCH);
    let mut node = world.judge()?;
    epochs.into_iter().for_each(|epoch| drop(arrive(&mut node, 1, epoch)));
    let mut measured = Some(measured);
    meter.stage(name, READINGS, &mut || {
        for epoch in measured.take().into_iter().flatten() {
            black_box(arrive(&mut node, 1, epoch));
        }
    });
    Ok(())
}

/// Rolling statistics, five rules a series, and the way to the lanes, each on what the one before handed on.
fn operators(meter: &mut impl Meter) -> Result<Vec<Passing>, Box<dyn Error>> {
    let mut world = World::new(5)?;
    let recipe =
        Recipe { records: 4 * READINGS, sensors: 1_000, partitions: 16, interval_us: 5_000_000, duplicates: 5 };
    let epochs = world.readings(&recipe)?;
    let warm = epochs.len() - READINGS / EPOCH;
    let mut judge = world.judge()?;
    let mut judged = Vec::new();
    for (n, containers) in (1..).zip(epochs) {
        judged.push(arrive(&mut judge, n, containers));
    }
    let mut rolling = world.rolling()?;
    let rolled = through(meter, "rolling, 60 s", &mut rolling, judged, warm);
    let ruled = through(meter, "rules, 5 a series of 30", &mut world.rules(5)?, rolled, warm);
    let rows: Vec<Passing> = ruled.iter().flatten().cloned().collect();
    let (mut outbox, lanes) = world.outbox()?;
    through(meter, "outbox and hand-over", &mut outbox, ruled, warm);
    drop(lanes);
    Ok(rows)
}

/// Takes epochs through a node; those from `warm` on are measured. Hands on what it does.
fn through<N: Node<A = Passing>>(
    meter: &mut impl Meter,
    name: &str,
    node: &mut N,
    mut epochs: Vec<Vec<Passing>>,
    warm: usize,
) -> Vec<Vec<N::X>> {
    let measured = epochs.split_off(warm);
    let readings = measured.iter().flatten().map(|passing| passing.batch.readings.len()).sum();
    let mut out: Vec<Vec<N::X>> = (1..).zip(epochs).map(|(n, items)| epoch(node, n, vec![items])).collect();
    let mut measured = Some(measured);
    meter.stage(name, readings, &mut || {
        for (n, items) in (out.len() as Epoch..).zip(measured.take().into_iter().flatten()) {
            out.push(epoch(node, n, vec![items]));
        }
    });
    out
}

/// 500 rules, of which five look at each series.
fn rules_500(meter: &mut impl Meter) -> Result<(), Box<dyn Error>> {
    let mut world = World::new(84)?;
    let recipe =
        Recipe { records: 2 * READINGS, sensors: 1_000, partitions: 16, interval_us: 5_000_000, duplicates: 5 };
    let epochs = world.readings(&recipe)?;
    let warm = epochs.len() - READINGS / EPOCH;
    let mut judge = world.judge()?;
    let mut rolling = world.rolling()?;
    let mut rolled = Vec::new();
    for (n, containers) in (1..).zip(epochs) {
        let judged = arrive(&mut judge, n, containers);
        rolled.push(epoch(&mut rolling, n, vec![judged]));
    }
    through(meter, "rules, 5 a series of 504", &mut world.rules(5)?, rolled, warm);
    Ok(())
}

/// Series that are met for the first time, with one reading each: names, kinds, and a place in every operator; without the
/// join of kinds and rules, which is differential's.
pub fn meet(meter: &mut impl Meter) -> Result<(), Box<dyn Error>> {
    let mut world = World::new(5)?;
    let recipe = Recipe { records: READINGS, sensors: READINGS, partitions: 16, interval_us: 9_000_000, duplicates: 0 };
    let epochs = world.readings(&recipe)?;
    let (mut judge, mut rolling, mut rules) = (world.judge()?, world.rolling()?, world.rules(5)?);
    let mut kinds = Kinds::new(world.logic.resolved.clone(), world.logic.inventory.clone());
    let mut by_kind: Vec<Vec<u32>> = Vec::new();
    let mut epochs = Some(epochs);
    meter.stage("a series met", READINGS, &mut || {
        for (n, containers) in (1..).zip(epochs.take().into_iter().flatten()) {
            let judged = arrive(&mut judge, n, containers);
            let mut applies = Vec::new();
            for no in judged.iter().flat_map(|passing| &passing.batch.created) {
                let Some(kind) = kinds.of(world.common.dictionary.borrow().name(*no)) else { continue };
                if !kind.rules.is_empty() {
                    by_kind.push(kind.rules);
                }
                applies.extend(by_kind[kind.number as usize].iter().map(|rule| ((*no, *rule), n, 1)));
            }
            let first = vec![epoch(&mut rolling, n, vec![judged])];
            let arrived = Arrived { first, second: applies, third: Vec::new() };
            rules.step(Step::Epoch(n, arrived), &mut none());
        }
    });
    assert_eq!(world.common.dictionary.borrow().len(), READINGS, "each reading is a series' first");
    Ok(())
}

/// What sinks do with rows and alerts before anything leaves the process.
fn sinks(meter: &mut impl Meter, passing: &[Passing]) -> Result<(), Box<dyn Error>> {
    let world = World::new(0)?;
    let names = Arc::new(NameTable::default());
    let mut interner = Interner::default();
    for sensor in 0..1_000 {
        let sample = Sample { partition: 0, sensor, time_us: 0, value: 0.0, number: 0 };
        let (name, metric) = (sample.sensor(), sample.metric());
        if let Some(name) = interner.intern(&name, metric).name {
            names.set(sensor as u32, *name);
        }
    }
    let streams = world.common.streams.clone();
    let batches: Vec<Rows> = (1_u64..)
        .zip(passing)
        .map(|(n, passing)| {
            let (rows, streams) = (passing.batch.readings.clone(), streams.clone());
            let batch = RowBatch { epoch: 1_735_689_600_000 + 20 * n, worker: 0, names: Vec::new(), rows, streams };
            Rows { batch: Arc::new(batch), names: names.clone() }
        })
        .collect();
    let readings = batches.iter().map(|rows| rows.batch.rows.len()).sum();
    let runtime = &world.runtime;
    let mut archive = ParquetArchive::new(Arc::new(RealFs), world.folder.path().join("parquet"), 0, 1, Vec::new());
    runtime.block_on(archive.connect(1))?;
    meter.stage("parquet", readings, &mut || {
        for batch in batches.chunks(4) {
            black_box(runtime.block_on(archive.write(batch))).ok();
        }
        black_box(runtime.block_on(archive.take_cut(u64::MAX))).ok();
    });

    // Not connected: everything is put into words, then there is nobody to send it to.
    let settings = serde_json::from_str(r#"{"url":"redis://localhost"}"#)?;
    let mut timeseries = RedisTimeseries::new(&settings, Arc::new(|_, _| None))?;
    meter.stage("redis time series, encode", readings, &mut || {
        for batch in batches.chunks(4) {
            assert!(black_box(runtime.block_on(timeseries.write(batch))).is_err());
        }
    });
    let text = |text: &str| Arc::<str>::from(text);
    let alert = |n: i64| Alert {
        time: 1_735_689_600_000_000 + n,
        state: AlertState::Firing,
        rule_key: text("temperature-high"),
        rule: text("temperature-high"),
        version: text("0123456789abcdef"),
        severity: text("warning"),
        sensor: text("plant-a/line-3/s-00042"),
        metric: text("temperature"),
        value: Some(36.25),
        start: 1_735_689_600_000_000 + n,
        ordinal: 0,
        behind: false,
    };
    let alerts: Vec<Alerts> = (0..20)
        .map(|epoch| {
            let alerts = (1..=100).map(|n| JournalEntry { n, alert: alert(i64::from(n)) }).collect();
            Alerts(Arc::new(AlertBatch { epoch: 1_735_689_600_000 + epoch, alerts }))
        })
        .collect();
    let settings = serde_json::from_str(r#"{"url":"redis://localhost"}"#)?;
    let mut stream = RedisStream::new(&settings)?;
    meter.stage("redis stream, encode, per alert", 2_000, &mut || {
        for batch in alerts.chunks(5) {
            assert!(black_box(runtime.block_on(stream.write(batch))).is_err());
        }
    });
    Ok(())
}

/// What this process has spent so far.
pub fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return 0.0 };
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 * 1e-6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
