//! Destinations that live only in memory: they go away, die and forget their last second, answer too late, take half of
//! a batch; and a write of a process that is gone may still arrive.

use fastrand::Rng;
use operators::{Epoch, Verdict};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use streamgauge::config::SinkSettings;
use streamgauge::sink::{
    self, Alerts, Item, Opening, Position, Rows, Sink, SinkError, StartError, Traits, Written, line,
};
use tokio::runtime::Handle;

/// What is written.
#[derive(Clone)]
enum Batch {
    /// As a Redis Stream: skips what is at or below its last id.
    Stream(Vec<(Position, String)>),
    /// As a topic: takes everything.
    Topic(Vec<String>),
    /// As hashes: what is newer or as new stands.
    Last(Vec<((String, String), i64, u64)>),
}

impl Batch {
    fn len(&self) -> usize {
        match self {
            Batch::Stream(entries) => entries.len(),
            Batch::Topic(entries) => entries.len(),
            Batch::Last(entries) => entries.len(),
        }
    }
}

#[derive(Default)]
struct Server {
    /// Refuses older ones; a topic does not.
    term: u64,
    /// Connections of an earlier one are broken.
    generation: u64,
    down_until: u64,
    stream: Vec<(u64, Position, String)>,
    topic: Vec<String>,
    last: Vec<(u64, (String, String), i64, u64)>,
}

impl Server {
    fn take(&mut self, now: u64, term: u64, batch: &Batch, count: usize) -> Result<(), SinkError> {
        if term < self.term && !matches!(batch, Batch::Topic(_)) {
            return Err(SinkError::Unavailable("an older term".into()));
        }
        match batch {
            Batch::Stream(entries) => {
                for (position, line) in &entries[..count] {
                    if self.stream.last().is_none_or(|(_, last, _)| last < position) {
                        self.stream.push((now, *position, line.clone()));
                    }
                }
            }
            Batch::Topic(entries) => self.topic.extend_from_slice(&entries[..count]),
            Batch::Last(entries) => {
                self.last.extend(entries[..count].iter().map(|(name, time, bits)| (now, name.clone(), *time, *bits)));
            }
        }
        Ok(())
    }
}

struct InFlight {
    at: u64,
    server: String,
    term: u64,
    generation: u64,
    batch: Batch,
    count: usize,
}

struct State {
    rng: Rng,
    servers: BTreeMap<String, Server>,
    in_flight: Vec<InFlight>,
    faults: bool,
    /// Writes and how they went.
    trace: u64,
    failed: u64,
}

/// All of them, over all lives.
pub struct Destinations {
    state: Mutex<State>,
    now: Arc<AtomicU64>,
    /// How much of the last time a server forgets that dies: Redis writes its file every second by its own clock, and
    /// where that may be fast, so is this one.
    forgets_us: u64,
}

impl Destinations {
    pub fn new(seed: u64, now: Arc<AtomicU64>, forgets_us: u64) -> Arc<Self> {
        let state = State {
            rng: Rng::with_seed(seed),
            servers: BTreeMap::new(),
            in_flight: Vec::new(),
            faults: false,
            trace: 0,
            failed: 0,
        };
        Arc::new(Self { state: Mutex::new(state), now, forgets_us })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.now.load(SeqCst);
        let state = &mut *guard;
        let (arrive, later) = std::mem::take(&mut state.in_flight).into_iter().partition(|f: &InFlight| f.at <= now);
        state.in_flight = later;
        for InFlight { server, term, generation, batch, count, .. } in arrive {
            let server = state.servers.entry(server).or_default();
            if server.generation == generation && now >= server.down_until {
                let _ = server.take(now, term, &batch, count);
            }
        }
        guard
    }

    /// Whether anything goes wrong from now on.
    pub fn faults(&self, faults: bool) {
        let mut state = self.state();
        state.faults = faults;
        if !faults {
            state.servers.values_mut().for_each(|server| server.down_until = 0);
        }
    }

    /// One of them dies, and with it what it took last, if it can forget.
    pub fn die(&self, now: u64, down_until: u64) {
        let mut state = self.state();
        let count = state.servers.len();
        if count == 0 {
            return;
        }
        let which = state.rng.usize(0..count);
        let server = state.servers.values_mut().nth(which).expect("one of them");
        server.generation += 1;
        server.down_until = down_until;
        server.stream.retain(|(at, _, _)| at + self.forgets_us <= now);
        server.last.retain(|(at, _, _, _)| at + self.forgets_us <= now);
    }

    pub fn trace(&self) -> u64 {
        self.state().trace
    }
    /// Calls that failed.
    pub fn failed(&self) -> u64 {
        self.state().failed
    }
    pub fn stream(&self, server: &str) -> Vec<String> {
        self.state().servers.get(server).map_or_else(Vec::new, |s| s.stream.iter().map(|(_, _, l)| l.clone()).collect())
    }
    /// When each line of it arrived.
    pub fn stream_at(&self, server: &str) -> Vec<u64> {
        self.state().servers.get(server).map_or_else(Vec::new, |s| s.stream.iter().map(|(at, _, _)| *at).collect())
    }
    pub fn topic(&self, server: &str) -> Vec<String> {
        self.state().servers.get(server).map_or_else(Vec::new, |s| s.topic.clone())
    }
    /// By (sensor, metric): time and bits of the newest value.
    pub fn last(&self, server: &str) -> BTreeMap<(String, String), (i64, u64)> {
        let mut newest: BTreeMap<(String, String), (i64, u64)> = BTreeMap::new();
        for (_, name, time, bits) in self.state().servers.get(server).into_iter().flat_map(|s| &s.last) {
            if newest.get(name).is_none_or(|(known, _)| time >= known) {
                newest.insert(name.clone(), (*time, *bits));
            }
        }
        newest
    }
}

/// A sink whose destination is one of them.
struct Remote<I> {
    all: Arc<Destinations>,
    server: String,
    term: u64,
    generation: u64,
    traits: Traits,
    has_position: bool,
    batch: fn(&[I]) -> Batch,
}

impl<I: Item> Sink for Remote<I> {
    type Item = I;

    fn traits(&self) -> Traits {
        self.traits
    }

    async fn connect(&mut self, term: u64) -> Result<(), StartError> {
        let mut state = self.all.state();
        let now = self.all.now.load(SeqCst);
        let refuses = state.faults && state.rng.u32(0..20) == 0;
        let server = state.servers.entry(self.server.clone()).or_default();
        if refuses || now < server.down_until {
            return Err(StartError::Unreachable("simulated: no answer".into()));
        }
        if term < server.term {
            return Err(StartError::Denied("simulated: an older term".into()));
        }
        server.term = term;
        (self.term, self.generation) = (term, server.generation);
        Ok(())
    }

    async fn position(&mut self) -> Result<Option<Position>, SinkError> {
        let state = self.all.state();
        let last = state.servers.get(&self.server).and_then(|s| s.stream.last().map(|(_, position, _)| *position));
        Ok(self.has_position.then(|| last.unwrap_or_default()))
    }

    async fn write(&mut self, items: &[I]) -> Result<Written, SinkError> {
        let batch = (self.batch)(items);
        let entries = batch.len() as u64;
        Call::new(self, Some(batch)).await?;
        Ok(Written { entries, ..Written::default() })
    }

    async fn probe(&mut self) -> Result<(), SinkError> {
        Call::new(self, None).await
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Good,
    /// Nothing of it arrives.
    Lost,
    /// So many entries arrive, then it fails.
    Half(usize),
    /// All of it arrives, and the answer does not.
    Unanswered,
}

/// A call under way.
struct Call {
    all: Arc<Destinations>,
    server: String,
    term: u64,
    generation: u64,
    batch: Option<Batch>,
    outcome: Outcome,
    arrives_at: u64,
    arrived: Option<Result<(), SinkError>>,
    answered_at: u64,
}

impl Call {
    fn new<I>(sink: &Remote<I>, batch: Option<Batch>) -> Self {
        let mut state = sink.all.state();
        let now = sink.all.now.load(SeqCst);
        let faults = state.faults;
        let rng = &mut state.rng;
        let arrives_at = now + rng.u64(0..30_000);
        let mut answered_at = arrives_at + rng.u64(0..30_000);
        let entries = batch.as_ref().map_or(0, Batch::len);
        let outcome = match rng.u32(0..40) {
            0 if faults => Outcome::Lost,
            1 if faults => Outcome::Half(rng.usize(0..=entries)),
            2 if faults => Outcome::Unanswered,
            _ => Outcome::Good,
        };
        if outcome == Outcome::Unanswered {
            // The driver's patience.
            answered_at += 30_000_000;
        }
        drop(state);
        let (server, term, generation) = (sink.server.clone(), sink.term, sink.generation);
        Self { all: sink.all.clone(), server, term, generation, batch, outcome, arrives_at, arrived: None, answered_at }
    }

    fn arrive(&mut self, now: u64) -> Result<(), SinkError> {
        let mut state = self.all.state();
        let server = state.servers.entry(self.server.clone()).or_default();
        if server.generation != self.generation || now < server.down_until {
            return Err(SinkError::Unavailable("simulated: connection lost".into()));
        }
        let count = match (&self.batch, self.outcome) {
            (_, Outcome::Lost) | (None, _) => 0,
            (Some(_), Outcome::Half(count)) => count,
            (Some(batch), _) => batch.len(),
        };
        if let Some(batch) = &self.batch {
            server.take(now, self.term, batch, count)?;
        }
        let number = [count as u64, now, self.term];
        let bytes: Vec<u8> = number.iter().flat_map(|n| n.to_le_bytes()).collect();
        state.trace = crate::hash(state.trace, self.server.as_bytes());
        state.trace = crate::hash(state.trace, &bytes);
        if self.outcome == Outcome::Good {
            return Ok(());
        }
        state.failed += 1;
        Err(SinkError::Unavailable(format!("simulated: {:?}", self.outcome)))
    }
}

impl Future for Call {
    type Output = Result<(), SinkError>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let now = self.all.now.load(SeqCst);
        if self.arrived.is_none() && now >= self.arrives_at {
            self.arrived = Some(self.arrive(now));
        }
        match &self.arrived {
            Some(result) if now >= self.answered_at => Poll::Ready(result.clone()),
            _ => Poll::Pending,
        }
    }
}

impl Drop for Call {
    /// The process died meanwhile: what was under way may arrive all the same, and late.
    fn drop(&mut self) {
        if self.arrived.is_some() {
            return;
        }
        let Some(batch) = self.batch.take() else { return };
        let mut state = self.all.state();
        if state.rng.bool() {
            let count = state.rng.usize(0..=batch.len());
            let at = self.all.now.load(SeqCst) + state.rng.u64(0..3_000_000);
            let (server, term, generation) = (self.server.clone(), self.term, self.generation);
            state.in_flight.push(InFlight { at, server, term, generation, batch, count });
        }
    }
}

fn entries(items: &[Alerts]) -> impl Iterator<Item = (Epoch, &sink::JournalEntry, String)> {
    items.iter().flat_map(|alerts| {
        alerts.0.alerts.iter().map(|entry| {
            let mut bytes = Vec::new();
            line::write(alerts.0.epoch, entry, &mut bytes);
            (alerts.0.epoch, entry, String::from_utf8(bytes).expect("text"))
        })
    })
}

fn stream(items: &[Alerts]) -> Batch {
    Batch::Stream(entries(items).map(|(epoch, entry, text)| (Position { epoch, n: entry.n }, text)).collect())
}

fn topic(items: &[Alerts]) -> Batch {
    Batch::Topic(entries(items).map(|(_, _, text)| text).collect())
}

fn last(items: &[Rows]) -> Batch {
    let rows = items.iter().flat_map(|rows| rows.batch.rows.iter().map(move |row| (rows, row)));
    let accepted = rows.filter(|(_, row)| row.verdict == Verdict::Accepted);
    let named = accepted.map(|(rows, row)| {
        let name = rows.names.name(row.series).expect("a name");
        ((name.sensor.to_string(), name.metric.to_string()), row.time, row.value.to_bits())
    });
    Batch::Last(named.collect())
}

/// The seam, for one life.
pub struct Seam(pub Arc<Destinations>);

impl Seam {
    fn remote<I: Item>(&self, server: &str, kind: (bool, u64), batch: fn(&[I]) -> Batch) -> Remote<I> {
        let (has_position, forgets_us) = kind;
        // Small batches: more of them to lose.
        let traits = Traits { in_checkpoint: false, forgets_us, batch_entries: 8, batch_bytes: 1 << 20 };
        let (all, server) = (self.0.clone(), server.to_owned());
        Remote { all, server, term: 0, generation: 0, traits, has_position, batch }
    }
}

impl sink::Destinations for Seam {
    fn look(&self, _: &SinkSettings, _: &Handle) -> Result<String, StartError> {
        Ok("simulated".into())
    }

    fn announce(&self, sinks: &BTreeMap<String, SinkSettings>, term: u64, _: &Handle) {
        let mut state = self.0.state();
        let now = self.0.now.load(SeqCst);
        for (name, settings) in sinks {
            // Those that know terms, and can be reached.
            if matches!(settings, SinkSettings::RedisStream(_) | SinkSettings::RedisLast(_)) {
                let server = state.servers.entry(name.clone()).or_default();
                if now >= server.down_until {
                    server.term = server.term.max(term);
                }
            }
        }
    }

    fn open(&self, name: &str, settings: &SinkSettings, opening: &mut Opening<'_>) -> Result<(), StartError> {
        let lane = settings.lane();
        match settings {
            SinkSettings::RedisStream(_) => opening.alerts(name, lane, self.remote(name, (true, 2_000_000), stream)),
            SinkSettings::Kafka(_) => opening.alerts(name, lane, self.remote(name, (false, 0), topic)),
            SinkSettings::RedisLast(_) => opening.rows(name, lane, self.remote(name, (false, 2_000_000), last)),
            SinkSettings::Parquet(archive) => opening.parquet(name, lane, &archive.path),
            other => panic!("nothing is simulated for {}", other.kind()),
        }
    }
}
