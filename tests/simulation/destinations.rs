//! Destinations that live only in memory: they go away, die and forget their last second, answer too late, take half of
//! a batch; and a write of a process that is gone may still arrive. As the scripts in `src/sink` have it, a Redis refuses
//! an older term, and a stream whoever does not know its last entry; a topic takes what it gets from anybody.

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
    /// As a Redis Stream whose last id is as given: skips what is at or below it.
    Stream(Position, Vec<(Position, String)>),
    /// As a topic: takes everything.
    Topic(Vec<String>),
    /// As hashes: what is newer or as new stands.
    Last(Vec<((String, String), i64, u64)>),
}

impl Batch {
    fn len(&self) -> usize {
        match self {
            Batch::Stream(_, entries) => entries.len(),
            Batch::Topic(entries) => entries.len(),
            Batch::Last(entries) => entries.len(),
        }
    }
}

#[derive(Default)]
struct Server {
    /// Since when it knows which term, and refuses older ones; a topic knows none.
    terms: Vec<(u64, u64)>,
    /// Connections of an earlier one are broken.
    generation: u64,
    down_until: u64,
    stream: Vec<(u64, Position, String)>,
    /// With the term that wrote it.
    topic: Vec<(u64, String)>,
    last: Vec<(u64, (String, String), i64, u64)>,
}

impl Server {
    /// Refuses an older term, and remembers a newer one. False: refused.
    fn fence(&mut self, now: u64, term: u64) -> bool {
        let known = self.terms.last().map_or(0, |(_, term)| *term);
        if term > known {
            self.terms.push((now, term));
        }
        term >= known
    }

    fn take(&mut self, now: u64, term: u64, batch: &Batch, count: usize) -> Result<(), SinkError> {
        if !matches!(batch, Batch::Topic(_)) && !self.fence(now, term) {
            return Err(SinkError::Foreign("simulated: a newer run writes there".into()));
        }
        match batch {
            Batch::Stream(known, entries) => {
                let last = self.stream.last().map(|(_, last, _)| *last).unwrap_or_default();
                if last < *known {
                    return Err(SinkError::Unavailable(format!("simulated: it went back to {last}")));
                }
                if last > *known {
                    return Err(SinkError::Foreign(format!("simulated: its last id is {last}, not {known}")));
                }
                for (position, line) in &entries[..count] {
                    if self.stream.last().is_none_or(|(_, last, _)| last < position) {
                        self.stream.push((now, *position, line.clone()));
                    }
                }
            }
            Batch::Topic(entries) => self.topic.extend(entries[..count].iter().map(|line| (term, line.clone()))),
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
    /// Calls that were refused, for a newer term had written.
    fenced: u64,
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
            fenced: 0,
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
        server.terms.retain(|(at, _)| at + self.forgets_us <= now);
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
    /// Calls of an older term that were refused.
    pub fn fenced(&self) -> u64 {
        self.state().fenced
    }
    /// Each line with the term that wrote it.
    pub fn topic(&self, server: &str) -> Vec<(u64, String)> {
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
    /// Whether its destination refuses older terms.
    knows_terms: bool,
    has_position: bool,
    /// The last entry there, as we know it.
    last: Position,
    batch: fn(Position, &[I]) -> Batch,
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
        (self.term, self.generation) = (term, server.generation);
        if self.knows_terms && !server.fence(now, term) {
            state.fenced += 1;
            return Err(StartError::Foreign("simulated: a newer run writes there".into()));
        }
        Ok(())
    }

    async fn position(&mut self) -> Result<Option<Position>, SinkError> {
        let state = self.all.state();
        let last = state.servers.get(&self.server).and_then(|s| s.stream.last().map(|(_, position, _)| *position));
        drop(state);
        self.last = last.unwrap_or_default();
        Ok(self.has_position.then_some(self.last))
    }

    async fn write(&mut self, items: &[I]) -> Result<Written, SinkError> {
        let batch = (self.batch)(self.last, items);
        let entries = batch.len() as u64;
        Call::new(self, Some(batch)).await?;
        self.last = items.last().and_then(Item::last).unwrap_or_default().max(self.last);
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
            let older = server.terms.last().is_some_and(|(_, term)| self.term < *term);
            let taken = server.take(now, self.term, batch, count);
            state.fenced += u64::from(older && taken.is_err());
            taken?;
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

fn stream(last: Position, items: &[Alerts]) -> Batch {
    Batch::Stream(last, entries(items).map(|(epoch, entry, text)| (Position { epoch, n: entry.n }, text)).collect())
}

fn topic(_: Position, items: &[Alerts]) -> Batch {
    Batch::Topic(entries(items).map(|(_, _, text)| text).collect())
}

fn last(_: Position, items: &[Rows]) -> Batch {
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
    fn remote<I: Item>(&self, server: &str, kind: (bool, u64), batch: fn(Position, &[I]) -> Batch) -> Remote<I> {
        // What can forget is a Redis, and that knows terms.
        let (has_position, forgets_us) = kind;
        let (knows_terms, last) = (forgets_us > 0, Position::default());
        // Small batches: more of them to lose.
        let traits = Traits { in_checkpoint: false, forgets_us, batch_entries: 8, batch_bytes: 1 << 20 };
        let (all, server) = (self.0.clone(), server.to_owned());
        Remote { all, server, term: 0, generation: 0, traits, knows_terms, has_position, last, batch }
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
                    server.fence(now, term);
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
