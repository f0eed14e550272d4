//! A case: a plant, a few lives of the program that end badly, one that ends well; and what must hold then.

use crate::baton::{Baton, OneAtATime};
use crate::clocks::{self, Began, Wrong};
use crate::destinations::{Destinations, Seam};
use crate::disk::{Disk, DiskFaults, Kind};
use crate::expected;
use crate::hash;
use crate::memory::{MemoryRecord, Partitions};
use crate::random_input::{RULES, Recipe, SILENCE, SOURCE, records};
use crate::sleeper::{Sleeper, Wake};
use crate::world::{Arriving, Fate, SimClock, World};
use fastrand::Rng;
use operators::Stream;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use streamgauge::checkpoint;
use streamgauge::config::{self, Loaded, Overrides};
use streamgauge::dead_letters::DeadLetter;
use streamgauge::epoch_log::{self, Frame, Frames, LogEnd};
use streamgauge::plan::{self, Layout};
use streamgauge::run::{Run, RunOptions, Summary};
use streamgauge::seam::{Clock, Fs};

/// When the first record arrives, on the world's clock.
const BEGIN_US: u64 = 5_000_000;
/// What a right wall clock shows then.
const RIGHT_MS: u64 = 1_700_000_000_000;
const DATA: &str = "/sim/data";
const ARCHIVE: &str = "/sim/archive";

/// What can go wrong, each on its own.
pub const FAULTS: [&str; 10] = ["crash", "torn", "power", "eio", "full", "outage", "sinks", "pause", "clock", "idle"];
/// What draws the times in which nothing comes.
const LULLS: u64 = 0x0000_1011;
/// What draws which checkpoints are damaged.
const DAMAGES: u64 = 0x0000_da3a;
/// What draws which lives are paused, and when they go on.
const ZOMBIES: u64 = 0x0000_2012;
/// How long one that has been replaced may go on, microseconds; a second or two is what it takes.
const ZOMBIE_US: u64 = 60_000_000;

/// What repeats a run. Its text is what repeats it from the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub seed: u64,
    pub records: usize,
    /// Lives that end badly, or early.
    pub lives: usize,
    pub faults: BTreeSet<String>,
    /// Calls of the disk that fail in a life before the last, where it is about those: (first, how many, how).
    pub nth: Option<(u64, u64, Kind)>,
    /// The one way in which clocks are wrong, where it is about those.
    pub wrong: Option<Wrong>,
    /// Power cuts in spite of `durability = "process"`, which promises nothing about them.
    pub unpromised: bool,
}

impl Case {
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x000c_a5e0);
        let drawn = FAULTS.iter().filter(|_| rng.u32(0..4) > 0);
        let mut faults: BTreeSet<String> = drawn.map(|name| (*name).to_owned()).collect();
        // Drawn by themselves, so that seeds stay what they were; the first is no fault, but something else to leave out.
        if Rng::with_seed(seed ^ LULLS).bool() {
            faults.insert("lull".to_owned());
        }
        if Rng::with_seed(seed ^ DAMAGES).bool() {
            faults.insert("damage".to_owned());
        }
        if Rng::with_seed(seed ^ ZOMBIES).bool() {
            faults.insert("zombie".to_owned());
        }
        Self {
            seed,
            records: rng.usize(80..500),
            lives: rng.usize(0..5),
            faults,
            nth: None,
            wrong: None,
            unpromised: false,
        }
    }

    /// About clocks that are wrong in one way, and whatever else the seed brings that does not end a life.
    pub fn of_clocks(wrong: Wrong, seed: u64) -> Self {
        let mut case = Self::of_seed(seed);
        case.faults.retain(|fault| !["clock", "eio", "full", "zombie"].contains(&fault.as_str()));
        Self { records: 300 + case.records % 200, lives: 3, wrong: Some(wrong), ..case }
    }
    fn has(&self, fault: &str) -> bool {
        self.faults.contains(fault)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<&str> = self.faults.iter().map(String::as_str).collect();
        write!(f, "seed={} records={} lives={} faults={}", self.seed, self.records, self.lives, faults.join(","))?;
        if let Some((first, count, kind)) = self.nth {
            write!(f, " nth={first}+{count}:{}", if kind == Kind::Eio { "eio" } else { "full" })?;
        }
        if let Some(wrong) = self.wrong {
            write!(f, " wrong={}", wrong.name())?;
        }
        if self.unpromised {
            write!(f, " unpromised=1")?;
        }
        Ok(())
    }
}

impl FromStr for Case {
    type Err = String;

    /// `seed=17`, and what is to differ from what the seed says.
    fn from_str(text: &str) -> Result<Self, String> {
        let pairs: Vec<(&str, &str)> = text.split_whitespace().filter_map(|word| word.split_once('=')).collect();
        let find = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let number = |key: &str| find(key).map(|v| v.parse::<u64>().map_err(|e| format!("{key}: {e}"))).transpose();
        let mut case = Case::of_seed(number("seed")?.ok_or("seed=N is missing")?);
        if let Some(records) = number("records")? {
            case.records = records as usize;
        }
        if let Some(lives) = number("lives")? {
            case.lives = lives as usize;
        }
        if let Some(faults) = find("faults") {
            case.faults = faults.split(',').filter(|f| !f.is_empty()).map(str::to_owned).collect();
        }
        case.unpromised = number("unpromised")?.is_some();
        if let Some(name) = find("wrong") {
            let known = clocks::ALL.iter().find(|(_, known)| *known == name);
            case.wrong = Some(known.ok_or_else(|| format!("wrong={name}: one of {:?}", clocks::ALL))?.0);
        }
        if let Some(nth) = find("nth") {
            let parts = nth.split_once('+').and_then(|(n, rest)| Some((n, rest.split_once(':')?)));
            let (first, (count, kind)) = parts.ok_or("nth=FIRST+COUNT:eio|full")?;
            let kind = if kind == "full" { Kind::Full } else { Kind::Eio };
            let parse = |n: &str| n.parse::<u64>().map_err(|e| format!("nth: {e}"));
            case.nth = Some((parse(first)?, parse(count)?, kind));
        }
        Ok(case)
    }
}

/// What a case came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// A hash over every turn, every call of the disk and every write of a sink, of all lives.
    pub trace: u64,
    pub turns: u64,
    pub alerts: u64,
    pub duplicates: u64,
    pub late: u64,
    pub dead_letters: u64,
    /// Lives that were cut short, and those of them with the power.
    pub crashes: u64,
    pub power_cuts: u64,
    /// Lives that ended by themselves, with a failure.
    pub failures: u64,
    pub disk_faults: u64,
    /// Newest checkpoints of which a bit was turned over.
    pub damaged: u64,
    pub sink_faults: u64,
    /// Calls of the disk in the newest life, and in the one of which some were to fail.
    pub calls: u64,
    pub counted: u64,
    /// Calls of the disk that failed in a run that had started, and that it had to wait out.
    pub waited: u64,
    /// Lives that were cut short while they waited for the disk.
    pub crashes_in_outage: u64,
    /// Logs that a power cut left torn.
    pub torn: u64,
    /// Processes that were paused, those of them that had been replaced when they went on, and those of these that ended
    /// by themselves.
    pub paused: u64,
    pub zombies: u64,
    pub zombies_ended: u64,
    /// Turns and calls of the disk that zombies had, their alerts in the topic that do not count, and their calls that
    /// destinations refused.
    pub zombie_points: u64,
    pub zombie_alerts: u64,
    pub fenced: u64,
    /// Terms whose epochs, and alerts for silence whose silence, were looked at.
    pub terms: u64,
    pub silences: u64,
}

struct Plant {
    partitions: Arc<Partitions>,
    arrivals: Arc<BTreeMap<(Stream, u32), Vec<u64>>>,
    last_arrival: u64,
    durability: &'static str,
    rules: String,
    source: String,
}

impl Plant {
    fn new(case: &Case, rng: &mut Rng) -> Self {
        let recipe = Recipe {
            seed: case.seed,
            records: case.records,
            partitions: rng.u32(1..6),
            sensors: rng.usize(1..10),
            keyed: rng.bool(),
        };
        let mut partitions = records(&recipe);
        let mut drawing = Rng::with_seed(case.seed ^ LULLS);
        let lulls: Vec<(u64, u64)> = (0..if case.has("lull") { drawing.usize(1..4) } else { 0 })
            .map(|_| (drawing.u64(0..12_000_000), drawing.u64(500_000..6_000_000)))
            .collect();
        let stamp = |record: &MemoryRecord| {
            let us = (record.timestamp.unwrap_or(1_700_000_000_000) - 1_700_000_000_000).max(0) as u64 * 1000;
            us + lulls.iter().filter(|(at, _)| *at <= us).map(|(_, length)| length).sum::<u64>()
        };
        let mut arrivals = BTreeMap::new();
        let mut last_arrival = BEGIN_US;
        for (key, log) in &partitions {
            let delay = rng.u64(0..2_000_000);
            let mut at = BEGIN_US;
            let mut times = Vec::new();
            for record in log {
                let jitter = if rng.u32(0..40) == 0 { rng.u64(0..1_500_000) } else { 0 };
                at = at.max(BEGIN_US + delay + stamp(record) + jitter);
                times.push(at);
            }
            last_arrival = last_arrival.max(at);
            arrivals.insert(*key, times);
        }
        let mut source = SOURCE.to_owned();
        if let Some(wrong) = case.wrong {
            wrong.localise(case.seed, &mut partitions);
            if let Some((zone, _)) = wrong.zone(case.seed) {
                source = source.replace("decode = {", &format!("decode = {{ zone = \"{zone}\","));
            }
        }
        let durability = if rng.u32(0..4) > 0 && !case.unpromised { "disk" } else { "process" };
        let (partitions, arrivals) = (Arc::new(partitions), Arc::new(arrivals));
        let rules = format!("{RULES}{SILENCE}");
        Self { partitions, arrivals, last_arrival, durability, rules, source }
    }

    fn text(&self, rng: &mut Rng) -> String {
        let (workers, tick, interval) = (rng.usize(1..5), rng.u64(1..50), rng.u64(1..4));
        // Lanes of a few kB overflow.
        let lane = if rng.bool() { "capacity = \"64MiB\"\nmemory = \"4KiB\"\n" } else { "" };
        format!(
            "data_dir = \"{DATA}\"\nworkers = {workers}\nepochs.tick = \"{tick}ms\"\nepochs.retention = \"1h\"\n\
             epochs.durability = \"{}\"\ncheckpoint.interval = \"{interval}s\"\n{}{}\n\
             [sinks.stream]\ntype = \"redis_stream\"\nurl = \"redis://simulated:1\"\n{lane}\
             [sinks.topic]\ntype = \"kafka\"\nbootstrap_servers = \"simulated:1\"\ntopic = \"alerts\"\n{lane}\
             [sinks.last]\ntype = \"redis_last\"\nurl = \"redis://simulated:1\"\n{lane}\
             [sinks.archive]\ntype = \"parquet\"\npath = \"{ARCHIVE}\"\n",
            self.durability, self.source, self.rules,
        )
    }
}

fn load(text: &str) -> Loaded {
    config::load_texts(&[("sim.toml".into(), text.to_owned())], &|_| None, &Overrides::default())
        .unwrap_or_else(|_| panic!("a configuration that is not valid: {text}"))
}

/// Everything that outlives a life.
struct Sim<'a> {
    case: &'a Case,
    plant: Plant,
    rng: Rng,
    now: Arc<AtomicU64>,
    disk: Disk,
    destinations: Arc<Destinations>,
    /// What the wall clock showed last, and how many lives have begun.
    wall_ms: u64,
    lives: usize,
    damages: Rng,
    sleeping: Rng,
    /// Paused, and not at their end.
    paused: Vec<Paused>,
    /// Terms of those that had been replaced when they went on.
    replaced: BTreeSet<u64>,
    /// By term.
    began: BTreeMap<u64, Began>,
    report: Report,
}

/// How a life is to be.
struct Life {
    fate: Fate,
    faults: DiskFaults,
    power_before: bool,
    until_end: bool,
    idle: u32,
    replay_into: Option<&'static str>,
    /// It is paused after so many turns and calls of the disk.
    pauses_at: Option<u64>,
}

/// A life that has begun.
struct Alive {
    world: Arc<World>,
    baton: Arc<Baton>,
    disk: Disk,
    clock: Arc<SimClock>,
    began: u64,
    /// What the wall clock shows at the beginning, and after a jump.
    walls: [u64; 2],
}

impl Alive {
    fn began(&self) -> Began {
        let lasted_ms = (self.world.now() - self.began) / 1000 * self.clock.rate;
        Began { walls: self.walls, lasted_ms }
    }
}

type Ended = Result<Summary, String>;

/// A life that is paused.
struct Paused {
    term: u64,
    alive: Alive,
    thread: Option<JoinHandle<Ended>>,
}

impl Paused {
    fn sleeper(&self) -> Arc<Sleeper> {
        self.alive.disk.sleeper()
    }

    /// Its end, now if it has not come; none if that was seen before.
    fn end(&mut self) -> Option<Result<Ended, String>> {
        let thread = self.thread.take()?;
        self.alive.disk.kill();
        self.sleeper().leave();
        let ended = joined(thread);
        self.alive.baton.clear();
        Some(ended)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // A case that fails leaves no threads behind.
        let _ = self.end();
    }
}

/// Nothing comes for ten seconds, then one reading, in one of three partitions: how long its alert takes to the stream,
/// microseconds; and how many lines without records each worker has written, at least.
pub fn one_after_a_lull(seed: u64) -> Result<(u64, u64), String> {
    const ARRIVES_US: u64 = BEGIN_US + 10_100_000;
    let case = Case { seed, records: 4, lives: 0, faults: BTreeSet::new(), nth: None, wrong: None, unpromised: false };
    let mut rng = Rng::with_seed(seed);
    let record = |n: i64, at_us: u64, value: f64| {
        let time = 1_700_000_000_000_000 + at_us;
        let text =
            format!(r#"{{"id":"l-{at_us}","sensor":"s-{n}","type":"temperature","value":{value},"time":{time}}}"#);
        MemoryRecord { offset: 0, timestamp: Some(time as i64 / 1000), payload: Some(text.into_bytes()) }
    };
    let mut partitions: Partitions = (0..3).map(|n| ((0, n), vec![record(n.into(), BEGIN_US, 20.0)])).collect();
    let late = rng.u32(0..3);
    let second = MemoryRecord { offset: 1, ..record(late.into(), ARRIVES_US, 33.0) };
    partitions.entry((0, late)).or_default().push(second);
    let arrivals = partitions.iter().map(|(key, log)| (*key, [BEGIN_US, ARRIVES_US][..log.len()].to_vec())).collect();
    let plant = Plant {
        partitions: Arc::new(partitions),
        arrivals: Arc::new(arrivals),
        last_arrival: ARRIVES_US,
        durability: "process",
        rules: "[rules.hot]\nmetric = \"temperature\"\nwhen.above = 30.0\n".to_owned(),
        source: SOURCE.to_owned(),
    };
    let now = Arc::new(AtomicU64::new(0));
    let destinations = Destinations::new(seed, now.clone(), 1_000_000);
    let disk = Disk::new(seed);
    let text = format!(
        "data_dir = \"{DATA}\"\nworkers = {}\nepochs.tick = \"20ms\"\ncheckpoint.interval = \"60s\"\n{}{}\n\
         [sinks.stream]\ntype = \"redis_stream\"\nurl = \"redis://simulated:1\"\n",
        rng.usize(1..4),
        plant.source,
        plant.rules
    );
    let fate = Fate { pace_us: 200, stop_at: Some(ARRIVES_US + 3_000_000), ..Fate::default() };
    let faults = DiskFaults::default();
    let life =
        Life { fate, faults, power_before: false, until_end: false, idle: 0, replay_into: None, pauses_at: None };
    let mut sim = Sim::new(&case, plant, rng, now, disk, destinations);
    match sim.live(&text, life)? {
        Some(Ok(_)) => {}
        other => return Err(format!("it did not end well: {other:?}")),
    }
    let arrived = sim.destinations.stream_at("stream");
    let [at] = arrived[..] else { return Err(format!("{} lines in the stream, not one", arrived.len())) };
    let log = epoch_log::term_dir(&Layout::new(DATA.into()).logs, 1).join("process-0.000000.log");
    let bytes = sim.disk.look().read(&log).map_err(|e| format!("{}: {e}", log.display()))?;
    let mut frames = Frames::new(&bytes, LogEnd::start(1, 0).chain).map_err(|e| e.to_string())?;
    let mut empty: BTreeMap<u32, u64> = BTreeMap::new();
    while let Some(frame) = frames.read().map_err(|e| format!("{e:?}"))? {
        if let Frame::Close(close) = frame
            && close.ranges.is_empty()
        {
            *empty.entry(close.worker).or_default() += 1;
        }
    }
    Ok((at.saturating_sub(ARRIVES_US), empty.into_values().min().unwrap_or(0)))
}

/// Runs a case to its end.
///
/// # Errors
/// What does not hold, in words.
pub fn run(case: &Case) -> Result<Report, String> {
    let mut rng = Rng::with_seed(case.seed);
    let plant = Plant::new(case, &mut rng);
    let now = Arc::new(AtomicU64::new(0));
    let fast = case.has("clock") || case.wrong == Some(Wrong::TenTimes);
    let destinations = Destinations::new(rng.u64(..), now.clone(), if fast { 100_000 } else { 1_000_000 });
    let disk = Disk::new(rng.u64(..));
    Sim::new(case, plant, rng, now, disk, destinations).go()
}

impl<'a> Sim<'a> {
    fn new(
        case: &'a Case,
        plant: Plant,
        rng: Rng,
        now: Arc<AtomicU64>,
        disk: Disk,
        destinations: Arc<Destinations>,
    ) -> Self {
        Self {
            case,
            plant,
            rng,
            now,
            disk,
            destinations,
            wall_ms: RIGHT_MS,
            lives: 0,
            damages: Rng::with_seed(case.seed ^ DAMAGES),
            sleeping: Rng::with_seed(case.seed ^ ZOMBIES << 16),
            paused: Vec::new(),
            replaced: BTreeSet::new(),
            began: BTreeMap::new(),
            report: Report::default(),
        }
    }

    fn go(mut self) -> Result<Report, String> {
        let mut power = false;
        for _ in 0..self.case.lives {
            let life = self.bad_life(power);
            let text = self.plant.text(&mut self.rng);
            let ended = self.live(&text, life)?;
            self.some_go_on()?;
            // The power takes the process with it, not the other way round.
            // Only "disk" promises anything about that.
            let may = self.case.has("power") && (self.plant.durability == "disk" || self.case.unpromised);
            power = ended.is_none() && may && self.rng.bool();
            self.report.power_cuts += u64::from(power);
        }
        if let Some(nth) = self.case.nth {
            self.counted_life(nth, power)?;
            power = false;
        }
        self.last_life(power)
    }

    fn bad_life(&mut self, power_before: bool) -> Life {
        let case = self.case;
        let rng = &mut self.rng;
        let mut of = |fault: &str, most: u32| if case.has(fault) && rng.bool() { rng.u32(1..=most) } else { 0 };
        let (outages, full, deaths, pauses) = (of("outage", 8), of("full", 8), of("sinks", 12), of("pause", 4));
        let (eio, idle) = (of("eio", 60), of("idle", 50));
        let pace_us = [500, 3_000, 10_000, 20_000][rng.usize(0..4)];
        let now = self.now.load(SeqCst);
        let mut fate = Fate { outages, full, deaths, pauses, pace_us, ..Fate::default() };
        let mut faults = DiskFaults { eio, ..DiskFaults::default() };
        match rng.u32(0..3) {
            // All is read, and then nothing comes any more: long enough for every series to fall silent.
            _ if case.wrong.is_some() && self.lives == 1 => fate.stop_at = Some(self.plant.last_arrival + 12_000_000),
            0 if case.has("crash") => {
                fate.crash_after = Some(rng.u64(1..1_500));
                fate.crash_in_outage = rng.bool().then(|| rng.u64(0..100));
            }
            1 if case.has("torn") => faults.crash_at = Some(rng.u64(1..400)),
            _ => {
                let most = (self.plant.last_arrival + 12_000_000).saturating_sub(now).clamp(1, 30_000_000);
                fate.stop_at = Some(now + rng.u64(0..most));
                // A life that neither crashes nor can stop ends all the same.
                fate.crash_after = Some(6_000);
            }
        }
        let mut pauses_at = None;
        if case.has("zombie") && self.sleeping.bool() {
            let most = [60, 300, 1_500, 6_000][self.sleeping.usize(0..4)];
            pauses_at = Some(self.sleeping.u64(1..=most));
        }
        Life { fate, faults, power_before, until_end: false, idle, replay_into: None, pauses_at }
    }

    /// The begin of a life of the program.
    fn begin(&mut self, text: &str, life: Life) -> Result<(Alive, Run), String> {
        let loaded = load(text);
        let mut rate = if self.case.has("clock") && self.rng.u32(0..8) == 0 { 10 } else { 1 };
        rate = self.case.wrong.map_or(rate, Wrong::rate);
        // Fast clocks do not make the machine slower.
        let fate = Fate { pace_us: life.fate.pace_us / rate, ..life.fate };
        if life.power_before {
            // Who is paused is on the same machine.
            for paused in std::mem::take(&mut self.paused) {
                self.end_of(paused)?;
            }
            self.disk.cut_power();
            // The folder of a term may be gone, and its number is the next one's.
            let newest = self.newest_term().unwrap_or(0);
            self.began.retain(|term, _| *term <= newest);
            let past = plan::past(&self.disk.look(), &Layout::new(DATA.into()), None);
            self.report.torn += past.map_or(0, |past| past.torn.len() as u64);
        }
        if self.case.has("damage") && life.replay_into.is_none() && self.damages.u32(..3) == 0 {
            self.damage()?;
        }
        let disk = self.disk.begin(life.faults, false);
        let faulty = fate.deaths > 0 || fate.outages > 0 || self.case.has("sinks");
        self.destinations.faults(faulty && !life.until_end && life.replay_into.is_none());
        let world = World::new(self.now.clone(), disk.clone(), self.destinations.clone(), fate, self.rng.u64(..));
        let baton = Baton::new(self.rng.u64(..), world.clone());
        if self.case.has("clock") {
            let day = 86_400_000;
            self.wall_ms = match self.rng.u32(0..12) {
                0 => self.wall_ms + day,
                1 => self.wall_ms.saturating_sub(day),
                2 => 0,
                3 => 4_300_000_000_000,
                4 => self.wall_ms.saturating_sub(self.rng.u64(0..60_000)),
                _ => self.wall_ms,
            };
        }
        let mut jumps_to = None;
        self.lives += 1;
        if let Some(wrong) = self.case.wrong {
            let (right, odd) = (RIGHT_MS + world.now() / 1000, self.lives % 2 == 1);
            self.wall_ms = wrong.wall(self.wall_ms, right, odd, &mut self.rng);
            jumps_to = Some(wrong.wall(self.wall_ms, right, !odd, &mut self.rng));
        }
        let (began, wall_ms) = (world.now(), self.wall_ms);
        let clock = Arc::new(SimClock { world: world.clone(), began, wall_ms, rate, jumps_to });
        let origin = Arriving {
            world: world.clone(),
            partitions: self.plant.partitions.clone(),
            arrivals: self.plant.arrivals.clone(),
            morsel: self.rng.usize(1..60),
            seed: self.rng.u64(..),
            idle: life.idle,
        };
        let run = Run {
            pure: loaded.pure(),
            config: loaded.config,
            options: RunOptions {
                until_end: life.until_end,
                replay_into: life.replay_into.map(Into::into),
                stop: Some(world.stop.clone()),
                readiness: Some(world.readiness()),
                // A state so small would otherwise be saved at once.
                slice: Some([1, 100, 1_000, 100_000][self.case.seed as usize % 4]),
                ..RunOptions::default()
            },
            fs: Arc::new(disk.clone()),
            clock: clock.clone(),
            origin: Arc::new(origin),
            destinations: Arc::new(Seam(self.destinations.clone())),
            crew: Arc::new(OneAtATime(baton.clone())),
        };
        let walls = [wall_ms, jumps_to.unwrap_or(wall_ms)];
        Ok((Alive { world, baton, disk, clock, began, walls }, run))
    }

    /// The newest term that there is.
    fn newest_term(&self) -> Option<u64> {
        let logs = Layout::new(DATA.into()).logs;
        epoch_log::terms(&self.disk.look(), &logs).ok().and_then(|terms| terms.last().copied())
    }

    /// A life of the program. None: it was cut short, or paused; otherwise how it ended.
    fn live(&mut self, text: &str, life: Life) -> Result<Option<Ended>, String> {
        let pauses_at = life.pauses_at;
        let (alive, run) = self.begin(text, life)?;
        let Alive { world, baton, disk, clock, .. } = &alive;
        disk.sleeper().wakes(self.wakes());
        let ended = match pauses_at {
            None => run.go().map_err(|failure| failure.to_string()),
            Some(points) => {
                let sleeper = disk.sleeper();
                sleeper.holds();
                let of_thread = sleeper.clone();
                let thread = std::thread::spawn(move || {
                    let _ends = Leaving(&of_thread);
                    of_thread.begins();
                    run.go().map_err(|failure| failure.to_string())
                });
                if sleeper.go_on(points) {
                    self.wall_ms = clock.wall_ms();
                    let term = self.newest_term().ok_or("paused without a term")?;
                    self.now.fetch_add(self.sleeping.u64(1_000..2_000_000), SeqCst);
                    self.report.paused += 1;
                    self.paused.push(Paused { term, alive, thread: Some(thread) });
                    return Ok(None);
                }
                joined(thread)?
            }
        };
        let cut_short = world.over();
        disk.kill();
        baton.clear();
        self.wall_ms = clock.wall_ms();
        let logs = Layout::new(DATA.into()).logs;
        let newest = self.newest_term();
        if let Some(newest) = newest {
            self.began.entry(newest).or_insert(alive.began());
        }
        let report = &mut self.report;
        report.turns += world.turns();
        report.calls = disk.calls();
        report.disk_faults = disk.failed();
        report.sink_faults = self.destinations.failed();
        report.fenced = self.destinations.fenced();
        for part in [baton.trace(), disk.trace(), self.destinations.trace(), world.now()] {
            report.trace = hash(report.trace, &part.to_le_bytes());
        }
        if baton.panicked() || ended.as_ref().is_err_and(|e| e.contains("panicked")) {
            return Err(format!("a panic: {ended:?}"));
        }
        // At a restart time has passed.
        self.now.fetch_add(self.rng.u64(1_000..400_000), SeqCst);
        if cut_short {
            report.crashes += 1;
            report.crashes_in_outage += u64::from(world.seen().not_ready_now);
            return Ok(None);
        }
        report.failures += u64::from(ended.is_err());
        let seen = world.seen();
        let Some(started) = seen.started else { return Ok(Some(ended)) };
        // Once it runs, no fault of the disk ends it; that it waits for one can be seen. It does not wait for the logs of
        // older terms, which it only looks through for old ones.
        let own = newest.map(|term| epoch_log::term_dir(&logs, term));
        let waited = |path: &Path| match path.extension().and_then(|e| e.to_str()) {
            Some("log") => own.as_ref().is_some_and(|own| path.starts_with(own)),
            Some("jsonl") => !path.starts_with("/sim/data/shed"),
            _ => false,
        };
        let failures = disk.failures();
        let failed: Vec<_> = failures.iter().filter(|(call, path)| *call > started && waited(path)).collect();
        report.waited += failed.len() as u64;
        if let (None, Some((call, path))) = (seen.not_ready, failed.first()) {
            return Err(format!("call {call} of the disk failed ({}), and it was ready all the time", path.display()));
        }
        match &ended {
            // Its time, too, is the world's.
            Err(failure) if failure.starts_with("the last checkpoint was not completed in time") => {}
            Err(failure) => return Err(format!("a run that had started failed: {failure}")),
            Ok(_) if seen.not_ready_now => return Err("it has ended, and still waits for the disk".into()),
            Ok(_) => {}
        }
        Ok(Some(ended))
    }

    /// Those who are paused, and go on for a while in the middle of the next life.
    fn wakes(&mut self) -> Vec<Wake> {
        let mut wakes = Vec::new();
        for paused in &self.paused {
            let (mut at, rng) = (0, &mut self.sleeping);
            for _ in 0..[0, 0, 1, 2, 5][rng.usize(0..5)] {
                let (most, long) = ([100, 600, 3_000][rng.usize(0..3)], [3, 40, 400][rng.usize(0..3)]);
                at += rng.u64(1..=most);
                wakes.push(Wake { at, whom: paused.sleeper(), points: rng.u64(1..=long) });
            }
        }
        wakes
    }

    /// Between two lives: some of those who are paused go on.
    fn some_go_on(&mut self) -> Result<(), String> {
        for paused in std::mem::take(&mut self.paused) {
            let replaced = self.newest_term() > Some(paused.term);
            if replaced && self.sleeping.u32(0..3) == 0 { self.goes_on(paused)? } else { self.paused.push(paused) }
        }
        Ok(())
    }

    /// One that was paused goes on: until it ends by itself, or is killed.
    fn goes_on(&mut self, paused: Paused) -> Result<(), String> {
        let replaced = self.newest_term() > Some(paused.term);
        let (sleeper, until_end) = (paused.sleeper(), replaced && self.sleeping.u32(0..3) > 0);
        let most = [10, 100, 1_000][self.sleeping.usize(0..3)];
        let points = self.sleeping.u64(1..=most);
        let since = self.now.load(SeqCst);
        while sleeper.go_on(if until_end { 100 } else { points }) && until_end {
            let lasted = self.now.load(SeqCst) - since;
            if lasted > ZOMBIE_US {
                return Err(format!("term {} was replaced, and goes on for {lasted} us", paused.term));
            }
        }
        self.end_of(paused)
    }

    /// The end of one that was paused, now if it has not come.
    fn end_of(&mut self, mut paused: Paused) -> Result<(), String> {
        let by_itself = paused.sleeper().over() && !paused.alive.world.over();
        let Some(ended) = paused.end().transpose()? else { return Ok(()) };
        let (points, Paused { term, alive, .. }) = (paused.sleeper().since_woken(), &paused);
        let term = *term;
        tracing::info!(term, points, by_itself, ?ended, "the end of one that was paused");
        self.began.insert(term, alive.began());
        let report = &mut self.report;
        report.turns += alive.world.turns();
        report.trace = hash(report.trace, &alive.baton.trace().to_le_bytes());
        if alive.baton.panicked() || ended.as_ref().is_err_and(|e| e.contains("panicked")) {
            return Err(format!("a panic: {ended:?}"));
        }
        if self.newest_term() > Some(term)
            && let Some(points) = points
        {
            self.replaced.insert(term);
            let report = &mut self.report;
            report.zombies += 1;
            report.zombie_points += points;
            report.zombies_ended += u64::from(by_itself);
        }
        Ok(())
    }

    /// Turns over a bit of the newest checkpoint, where there is an older one to go on from.
    fn damage(&mut self) -> Result<(), String> {
        let files = self.disk.look();
        let checkpoints = Layout::new(DATA.into()).checkpoints;
        let mut all = checkpoint::list(&files, &checkpoints).map_err(|e| format!("{e:#}"))?;
        all.retain(|dir| checkpoint::is_complete(&files, dir));
        let Some(newest) = all.pop().filter(|_| all.iter().any(|older| checkpoint::load(&files, older).is_ok())) else {
            return Ok(());
        };
        let of_it = files.list(&newest).map_err(|e| e.to_string())?;
        if let Some(path) = self.damages.choice(of_it) {
            self.disk.flip(&path, &mut self.damages).map_err(|e| format!("{}: {e}", path.display()))?;
            self.report.damaged += 1;
        }
        Ok(())
    }

    /// The last records come in, one call of the disk fails, or some; it may refuse to start then, or die while it waits.
    fn counted_life(&mut self, (first, count, kind): (u64, u64, Kind), power_before: bool) -> Result<(), String> {
        let (now, last) = (self.now.load(SeqCst), self.plant.last_arrival);
        self.now.store(now.max(last - 1_000_000), SeqCst);
        let text = self.plant.text(&mut self.rng);
        let crash_in_outage = self.case.has("crash").then(|| self.rng.u64(0..60));
        let stop_at = Some(last + 1_000_000);
        let life = Life {
            fate: Fate { pace_us: 3_000, stop_at, crash_in_outage, ..Fate::default() },
            faults: DiskFaults { nth: Some((first, count, kind)), ..DiskFaults::default() },
            power_before,
            until_end: false,
            idle: 0,
            replay_into: None,
            pauses_at: None,
        };
        self.live(&text, life)?;
        self.report.counted = self.report.calls;
        Ok(())
    }

    /// Nothing goes wrong any more: everything that there is gets read, and then all must be as it should.
    fn last_life(mut self, power_before: bool) -> Result<Report, String> {
        let now = self.now.load(SeqCst);
        self.now.store(now.max(self.plant.last_arrival + 1), SeqCst);
        let text = self.plant.text(&mut self.rng);
        let fate = Fate { pace_us: 3_000, ..Fate::default() };
        let good = Life {
            fate: fate.clone(),
            faults: DiskFaults::default(),
            power_before,
            until_end: true,
            idle: 0,
            replay_into: None,
            pauses_at: None,
        };
        let ended = self.live(&text, good)?;
        let summary = match ended {
            Some(Ok(summary)) => summary,
            Some(Err(failure)) => return Err(format!("a run without faults failed: {failure}")),
            None => return Err("a run without faults was cut short".into()),
        };
        for paused in std::mem::take(&mut self.paused) {
            self.goes_on(paused)?;
        }
        let journal = self.compare(&text, &summary)?;
        // The log, run again on another number of workers, gives the same journal.
        let text = self.plant.text(&mut self.rng);
        let replay = Life {
            fate,
            faults: DiskFaults::default(),
            power_before: false,
            until_end: false,
            idle: 0,
            replay_into: Some("/sim/again"),
            pauses_at: None,
        };
        match self.live(&text, replay)? {
            Some(Ok(_)) => {}
            other => return Err(format!("the replay failed: {other:?}")),
        }
        let again = self.text_of("/sim/again/journal.jsonl")?;
        first_difference("replay", &again, &journal)?;
        Ok(self.report)
    }

    fn text_of(&self, path: &str) -> Result<Vec<String>, String> {
        let files = self.disk.look();
        if !files.exists(Path::new(path)) {
            return Ok(Vec::new());
        }
        let bytes = files.read(Path::new(path)).map_err(|e| format!("{path}: {e}"))?;
        let text = String::from_utf8(bytes).map_err(|e| format!("{path}: {e}"))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn compare(&mut self, text: &str, summary: &Summary) -> Result<Vec<String>, String> {
        let pure = load(text).pure();
        let files = self.disk.look();
        let lines = expected::lines_in(&files, Path::new(DATA));
        let expected = oracle::run(&expected::config(&pure), &oracle_records(&self.plant.partitions), &lines)
            .map_err(|e| format!("the oracle: {e}"))?;
        let journal = self.text_of(&format!("{DATA}/journal.jsonl"))?;
        first_difference("journal", &journal, &expected.journal)?;
        let counts = oracle::total(&expected.counts);
        let all: usize = self.plant.partitions.values().map(Vec::len).sum();
        let ours =
            [summary.records, summary.accepted, summary.behind, summary.duplicates, summary.late, summary.future];
        let theirs = [counts.records, counts.accepted, counts.behind, counts.duplicates, counts.late, counts.future];
        if ours != theirs || counts.records != all as u64 || summary.imbalance != 0 {
            return Err(format!("counts {ours:?}, expected {theirs:?} of {all}, imbalance {}", summary.imbalance));
        }
        // Each destination, by its promise.
        if !self.case.unpromised {
            first_difference("stream", &self.destinations.stream("stream"), &journal)?;
        }
        let mut once = journal.clone();
        once.sort();
        let mut topic: Vec<String> = Vec::new();
        for (term, line) in self.destinations.topic("topic") {
            if once.binary_search(&line).is_ok() {
                topic.push(line);
            } else if self.replaced.contains(&term) {
                // A topic cannot refuse whoever has been replaced: what that one makes of its records comes, too.
                self.report.zombie_alerts += 1;
            } else if !self.case.unpromised {
                // (There alerts of epochs that are lost had left.)
                topic.push(line);
            }
        }
        topic.sort();
        topic.dedup();
        first_difference("topic", &topic, &once)?;
        let mut last: BTreeMap<(String, String), (i64, u64)> = BTreeMap::new();
        let mut rows: Vec<Row> = Vec::new();
        for row in &expected.archive {
            let name = (row.sensor.to_string(), row.metric.to_string());
            rows.push((row.partition, row.offset, row.index, name.clone(), row.time, row.value.to_bits()));
            if !row.late && !row.future && !row.behind {
                last.insert(name, (row.time, row.value.to_bits()));
            }
        }
        let ours = self.destinations.last("last");
        if ours != last {
            let differ = last.iter().find(|(name, value)| ours.get(*name) != Some(*value));
            return Err(format!("last values: expected {differ:?}, there is {:?}", differ.map(|(n, _)| ours.get(n))));
        }
        rows.sort();
        let archived = archived(&files)?;
        if archived != rows {
            let at = archived.iter().zip(&rows).take_while(|(a, b)| a == b).count();
            let (is, should) = (archived.get(at), rows.get(at));
            return Err(format!(
                "archive: {} rows, expected {}; {is:?}, expected {should:?}",
                archived.len(),
                rows.len()
            ));
        }
        let mut dead = dead_letters(&files)?;
        dead.sort();
        let mut refused: Vec<_> = expected.dead_letters.iter().map(|d| (d.partition, d.offset, d.index)).collect();
        refused.sort();
        if dead != refused {
            return Err(format!("{} dead letters, expected {}", dead.len(), refused.len()));
        }
        let report = &mut self.report;
        report.terms = clocks::epochs_never_step_back(&files, Path::new(DATA), &self.began)?;
        report.silences = clocks::silence_was_heard(&lines, &journal)?;
        report.alerts = journal.len() as u64;
        report.duplicates = summary.duplicates;
        report.late = summary.late;
        report.dead_letters = summary.dead_letters;
        Ok(journal)
    }
}

/// Tells that a process has ended, however it did.
struct Leaving<'a>(&'a Sleeper);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

fn joined(thread: JoinHandle<Ended>) -> Result<Ended, String> {
    thread.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        format!(
            "a panic: {}",
            text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default()
        )
    })
}

type Row = (i32, i64, u16, (String, String), i64, u64);

fn first_difference(what: &str, ours: &[String], expected: &[String]) -> Result<(), String> {
    if ours == expected {
        return Ok(());
    }
    let at = ours.iter().zip(expected).take_while(|(a, b)| a == b).count();
    Err(format!(
        "{what}: {} lines, expected {}; line {at}\n  is       {:?}\n  expected {:?}",
        ours.len(),
        expected.len(),
        ours.get(at),
        expected.get(at)
    ))
}

fn oracle_records(partitions: &Partitions) -> Vec<oracle::Record> {
    let record = |((_, partition), r): ((Stream, u32), &MemoryRecord)| oracle::Record {
        source: "plant".into(),
        topic: "readings".into(),
        partition: partition as i32,
        offset: r.offset,
        timestamp: r.timestamp,
        payload: r.payload.clone(),
    };
    partitions.iter().flat_map(|(key, log)| log.iter().map(|r| record((*key, r)))).collect()
}

fn archived(files: &Disk) -> Result<Vec<Row>, String> {
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let mut rows = Vec::new();
    let dir = Path::new(ARCHIVE);
    if !files.exists(dir) {
        return Ok(rows);
    }
    for path in files.list(dir).map_err(|e| e.to_string())? {
        let shown = path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.'));
        if !shown || path.extension().is_none_or(|e| e != "parquet") {
            continue;
        }
        let broken = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
        let bytes = files.read(&path).map_err(|e| broken(&e))?;
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(axum::body::Bytes::from(bytes)).map_err(|e| broken(&e))?;
        for batch in reader.build().map_err(|e| broken(&e))? {
            let batch = batch.map_err(|e| broken(&e))?;
            let column = |name: &str| batch.column_by_name(name).expect("a documented column").clone();
            let text = |name: &str, row: usize| -> String {
                let column = column(name);
                let dictionary = column.as_dictionary::<Int32Type>();
                let key = dictionary.keys().value(row) as usize;
                dictionary.values().as_string::<i32>().value(key).to_owned()
            };
            for row in 0..batch.num_rows() {
                rows.push((
                    column("partition").as_primitive::<Int32Type>().value(row),
                    column("offset").as_primitive::<Int64Type>().value(row),
                    column("index").as_primitive::<Int32Type>().value(row) as u16,
                    (text("sensor", row), text("metric", row)),
                    column("time").as_primitive::<TimestampMicrosecondType>().value(row),
                    column("value").as_primitive::<Float64Type>().value(row).to_bits(),
                ));
            }
        }
    }
    rows.sort();
    Ok(rows)
}

fn dead_letters(files: &Disk) -> Result<Vec<(i32, i64, Option<u16>)>, String> {
    let dir = Path::new(DATA).join("dead-letters");
    let mut letters = Vec::new();
    for path in files.list(&dir).map_err(|e| e.to_string())? {
        let bytes = files.read(&path).map_err(|e| e.to_string())?;
        for line in bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let letter: DeadLetter = serde_json::from_slice(line).map_err(|e| format!("{}: {e}", path.display()))?;
            letters.push((letter.partition as i32, letter.offset, letter.index));
        }
    }
    Ok(letters)
}
