//! Finds the other processes: who connects proves who it is, is held against what must be alike, and has a deadline.
//!
//! Of each pair the one with the higher index connects, twice (`Kind`). Connections are served concurrently and each has
//! little time, so that strangers cost the others nothing: silent ones are let go, and of too many at once the oldest go
//! first. A peer that dies before all have come may come again.

use super::facts::Facts;
use super::fate::Fate;
use super::handshake::{self, Accepting, Answer, Answering, Broken, Claim, Connecting, Key, Kind, body_length};
use super::link::Link;
use super::secret::random;
use super::{Mesh, pulse};
use crate::error::{Exit, Failure};
use crate::metrics::Metrics;
use crate::seam::Clock;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

/// How long one handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Between attempts to connect: from, to.
const AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));
/// How long a refusal that may pass, or that proves nothing, is met with another attempt.
const INSIST: Duration = Duration::from_secs(5);
/// How often is looked whether to go on waiting.
const LOOK: Duration = Duration::from_millis(50);
/// Connections that have not proved anything yet, at once.
const STRANGERS_MAX: usize = 4096;
/// Connections that the system holds for us until we take them.
const BACKLOG: u32 = 4096;
/// How far wall clocks may be apart, milliseconds (R1).
const CLOCKS_MS: u64 = 1000;

/// What is needed to find the others.
pub struct Joining {
    /// This process.
    pub index: usize,
    /// All of them.
    pub processes: usize,
    /// Their addresses, by index.
    pub addresses: Vec<String>,
    /// Where to listen, if not at the address.
    pub listener: Option<std::net::TcpListener>,
    /// The secret.
    pub key: Key,
    /// What must be alike, as it is when a peer asks.
    pub facts: Arc<dyn Fn() -> Result<Facts, Failure> + Send + Sync>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// How long to wait for all.
    pub patience: Duration,
    /// How long a peer may be silent afterwards.
    pub silence: Duration,
    /// Whether to give up, because we were asked to stop.
    pub stop: Arc<AtomicBool>,
    /// Called when a peer was asked to stop.
    pub stop_all: Arc<dyn Fn() + Send + Sync>,
    /// Figures.
    pub metrics: Arc<Metrics>,
}

/// A place at the table: a peer and a kind.
#[derive(Default)]
enum Place {
    #[default]
    Empty,
    /// Welcomed, but the welcome is still on its way.
    Promised,
    /// The connection, and by how many milliseconds the peer's clock is ahead.
    Taken(TcpStream, i64),
}

impl Place {
    /// Whether somebody sits there who has not died meanwhile.
    fn lives(&self) -> bool {
        let Self::Taken(stream, _) = self else { return false };
        let mut byte = [0];
        !matches!(
            stream.poll_peek(&mut Context::from_waker(Waker::noop()), &mut ReadBuf::new(&mut byte)),
            Poll::Ready(Ok(0) | Err(_))
        )
    }
}

struct Table {
    joining: Joining,
    places: Mutex<Vec<[Place; 2]>>,
    /// By peer: what last went wrong.
    problems: Mutex<Vec<Option<String>>>,
    /// Reasons that have been said.
    said: Mutex<BTreeSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What listens, serves and connects.
type Tasks = Arc<Mutex<VecDeque<AbortHandle>>>;

/// They end with the joining, however it ends. (The one that listens holds the list as well.)
struct Ending(Tasks);

impl Drop for Ending {
    fn drop(&mut self) {
        lock(&self.0).iter().for_each(AbortHandle::abort);
    }
}

/// Joins the others, or says why not.
pub async fn join(joining: Joining) -> Result<Arc<Mesh>, Failure> {
    let (index, processes) = (joining.index, joining.processes);
    let tasks = Tasks::default();
    let ending = Ending(Arc::clone(&tasks));
    let (sender, mut results) = mpsc::channel(processes * 2 + 1);
    let mut table = Table {
        places: Mutex::new((0..processes).map(|_| Default::default()).collect()),
        problems: Mutex::new(vec![None; processes]),
        said: Mutex::default(),
        joining,
    };
    let given = table.joining.listener.take();
    let table = Arc::new(table);
    if index + 1 < processes {
        let listener = listen(given, &table.joining.addresses[index])?;
        let task = tokio::spawn(accept(Arc::clone(&table), listener, Arc::clone(&tasks)));
        lock(&tasks).push_front(task.abort_handle());
    }
    let connect = |peer: usize, kind: Kind| {
        let task = tokio::spawn(connect(Arc::clone(&table), peer, kind, sender.clone()));
        lock(&tasks).push_front(task.abort_handle());
    };
    for peer in 0..index {
        connect(peer, Kind::Pulse);
        connect(peer, Kind::Data);
    }
    let deadline = Instant::now() + table.joining.patience;
    let mut complete = false;
    while !complete {
        match timeout(LOOK, results.recv()).await {
            Ok(Some(Err(failure))) => return Err(failure),
            Ok(Some(Ok((peer, kind, stream, ahead_ms)))) => {
                lock(&table.places)[peer][kind as usize] = Place::Taken(stream, ahead_ms);
            }
            Ok(None) | Err(_) => {}
        }
        if table.joining.stop.load(SeqCst) {
            return Err(Failure::stopped());
        }
        complete = true;
        for (peer, places) in lock(&table.places).iter_mut().enumerate().filter(|(peer, _)| *peer != index) {
            for (place, kind) in places.iter_mut().zip([Kind::Pulse, Kind::Data]) {
                if matches!(place, Place::Taken(..)) && !place.lives() {
                    tracing::warn!(peer, "a process has left again before all had come");
                    *place = Place::Empty;
                    if peer < index {
                        connect(peer, kind);
                    }
                }
                complete &= matches!(place, Place::Taken(..));
            }
        }
        if !complete && Instant::now() > deadline {
            return Err(table.late());
        }
    }
    drop(ending);
    seat(&table)
}

/// Everybody is there: from places to a mesh.
fn seat(table: &Table) -> Result<Arc<Mesh>, Failure> {
    let Joining { index, processes, silence, stop_all, .. } = &table.joining;
    let fate = Arc::new(Fate::new(*processes));
    let (mut links, mut voices, mut ahead_ms) = (Vec::new(), Vec::new(), Vec::new());
    for (peer, places) in lock(&table.places).iter_mut().enumerate() {
        // Whoever is being served at this moment finds no place any more.
        let [pulse, data] = std::mem::replace(places, [Place::Promised, Place::Promised]);
        let (Place::Taken(pulse, ahead), Place::Taken(data, _)) = (pulse, data) else {
            links.push(None);
            ahead_ms.push(0);
            continue;
        };
        let (say, says) = mpsc::unbounded_channel();
        pulse::start(pulse, peer, Arc::clone(&fate), says, *silence, Arc::clone(stop_all));
        let data = data.into_std().map_err(|e| Failure::unreachable(format!("process {peer}: {e}")))?;
        links.push(Some(Link::new(data, peer, Arc::clone(&fate))));
        voices.push(say);
        ahead_ms.push(ahead);
    }
    tracing::info!(process = *index, processes = *processes, "all processes have joined");
    Ok(Arc::new(Mesh { index: *index, fate, links: Mutex::new(links), voices, ahead_ms }))
}

/// Listens with room for many, at the given place or at the address.
fn listen(given: Option<std::net::TcpListener>, address: &str) -> Result<TcpListener, Failure> {
    let refused = |error: io::Error| {
        let help = match error.kind() {
            io::ErrorKind::AddrInUse => "another program has that port, or the process runs already",
            io::ErrorKind::AddrNotAvailable => "this host has no such address: is -p right for it?",
            _ => "name another address with --hostfile",
        };
        Failure::configuration(format!("cannot wait for the other processes at {address}: {error}; {help}"))
    };
    if let Some(listener) = given {
        listener.set_nonblocking(true).map_err(refused)?;
        return TcpListener::from_std(listener).map_err(refused);
    }
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in std::net::ToSocketAddrs::to_socket_addrs(address).map_err(refused)? {
        let listener = (|| {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        })();
        match listener {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(refused(last))
}

/// How many strangers may be connected at once: a quarter of the files that we may have open.
fn strangers_max() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 128 };
    let soft = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    usize::try_from(soft / 4).map_or(STRANGERS_MAX, |files| files.clamp(32, STRANGERS_MAX))
}

/// Takes connections as fast as they come; each is served by a task of its own.
async fn accept(table: Arc<Table>, listener: TcpListener, tasks: Tasks) {
    let most = strangers_max();
    let mut strangers: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                sleep(AGAIN.0).await;
                continue;
            }
        };
        if strangers.len() >= most {
            strangers.retain(|task| !task.is_finished());
            if strangers.len() >= most
                && let Some(oldest) = strangers.pop_front()
            {
                oldest.abort();
                table.refused("too_many", from, "more connections at once than can be served");
            }
        }
        let table = Arc::clone(&table);
        let task = tokio::spawn(async move {
            let served = timeout(HANDSHAKE, table.serve(stream)).await;
            match served {
                Ok(Ok(())) => {}
                Ok(Err(Refused { label, why })) => table.refused(label, from, &why),
                Err(_) => table.refused("silent", from, "it says nothing"),
            }
        });
        strangers.push_back(task.abort_handle());
        // Held twice: the oldest is found here, and all end with the joining.
        let mut all = lock(&tasks);
        if all.len() > 4 * most {
            all.retain(|task| !task.is_finished());
        }
        all.push_back(task.abort_handle());
    }
}

/// Why a connection was not taken: a label for the metric, and words.
struct Refused {
    label: &'static str,
    why: String,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self { label: "broken_off", why: error.to_string() }
    }
}

impl From<Broken> for Refused {
    fn from(broken: Broken) -> Self {
        let label = match broken {
            Broken::Stranger => "stranger",
            Broken::Secret => "secret",
            Broken::Nonsense => "nonsense",
        };
        Self { label, why: broken.to_string() }
    }
}

/// A promised place, given back unless it is taken.
struct Promise<'a> {
    table: &'a Table,
    peer: usize,
    kind: Kind,
}

impl Promise<'_> {
    fn keep(self, stream: TcpStream, ahead_ms: i64) {
        lock(&self.table.places)[self.peer][self.kind as usize] = Place::Taken(stream, ahead_ms);
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        let place = &mut lock(&self.table.places)[self.peer][self.kind as usize];
        if matches!(place, Place::Promised) {
            *place = Place::Empty;
        }
    }
}

impl Table {
    /// Counted, and said once for each reason.
    fn refused(&self, label: &'static str, from: SocketAddr, why: &str) {
        self.joining.metrics.mesh_refused_total.with_label_values(&[label]).inc();
        if lock(&self.said).insert(format!("{label} {why}")) {
            tracing::warn!(%from, why, "a connection to the mesh is refused; more of its kind are only counted");
        }
    }

    /// The accepting side of a handshake.
    async fn serve(&self, mut stream: TcpStream) -> Result<(), Refused> {
        stream.set_nodelay(true)?;
        let mut hello = [0; handshake::HELLO];
        stream.read_exact(&mut hello).await?;
        let key = self.joining.key.clone();
        let (accepting, challenge) = Accepting::new(key, random()?, self.joining.clock.wall_ms(), hello)?;
        stream.write_all(&challenge).await?;
        let rest = body(&mut stream).await?;
        let (answering, claim) = match accepting.claimed(&rest) {
            Ok(claimed) => claimed,
            Err(broken) => {
                stream.write_all(&handshake::hint()).await?;
                return Err(broken.into());
            }
        };
        match self.judge(&claim) {
            Ok(promise) => {
                stream.write_all(&answering.answer(&Answer::Welcome)).await?;
                promise.keep(stream, -offset(&claim));
                Ok(())
            }
            Err(answer) => Err(refuse(&answering, stream, answer).await?),
        }
    }

    /// What becomes of a claim that holds the secret.
    fn judge(&self, claim: &Claim) -> Result<Promise<'_>, Answer> {
        let index = self.joining.index;
        let Claim { from, to, kind, ahead_ms, unsure_ms, .. } = *claim;
        let facts = (self.joining.facts)().map_err(|failure| Answer::NotNow(failure.message))?;
        match Facts::mismatch((index, &facts), (from, &claim.facts)) {
            Some(m) if m.may_pass => return Err(Answer::NotNow(m.sentence)),
            Some(m) => return Err(Answer::Mismatch(m.sentence)),
            None => {}
        }
        if to != index || from <= index || from >= self.joining.processes {
            return Err(Answer::Mismatch(format!(
                "process {from} looks for process {to} where process {index} is; the lines of --hostfile are in order of \
                 index, the same for all, and each process has a -p of its own"
            )));
        }
        if ahead_ms.unsigned_abs().saturating_sub(unsure_ms) > CLOCKS_MS {
            let seconds = ahead_ms.unsigned_abs() as f64 / 1000.0;
            return Err(Answer::Clocks(format!(
                "the wall clocks of processes {index} and {from} are {seconds:.1} s apart, and 1 s is the most; set them \
                 (NTP), and start again"
            )));
        }
        let place = &mut lock(&self.places)[from][kind as usize];
        match place {
            Place::Taken(..) if place.lives() => {
                return Err(Answer::NotNow(format!("process {from} has joined already; was it started twice?")));
            }
            Place::Promised => return Err(Answer::NotNow(format!("process {from} is joining just now"))),
            _ => {}
        }
        *place = Place::Promised;
        Ok(Promise { table: self, peer: from, kind })
    }

    /// The connecting side of a handshake.
    async fn claim(&self, peer: usize, kind: Kind) -> Result<(TcpStream, i64), Rebuff> {
        let address = &self.joining.addresses[peer];
        let connected = timeout(CONNECT, TcpStream::connect(address)).await;
        let mut stream = connected.map_err(|_| Rebuff::Passing("it does not answer".into()))??;
        stream.set_nodelay(true)?;
        let clock = &self.joining.clock;
        let (connecting, hello) = Connecting::new(self.joining.key.clone(), random()?);
        let (wall_ms, began_us) = (clock.wall_ms(), clock.monotonic_us());
        stream.write_all(&hello).await?;
        let mut challenge = [0; handshake::CHALLENGE];
        stream.read_exact(&mut challenge).await?;
        let unsure_ms = (clock.monotonic_us() - began_us).div_ceil(2000);
        let facts = (self.joining.facts)().map_err(|failure| Rebuff::Passing(failure.message))?;
        let mut ahead_ms = 0;
        let (claiming, bytes) = connecting.challenged(&challenge, |theirs| {
            let ahead = i128::from(theirs) - i128::from(wall_ms) - i128::from(unsure_ms);
            let claim = Claim {
                from: self.joining.index,
                to: peer,
                kind,
                facts,
                ahead_ms: ahead.clamp(i64::MIN.into(), i64::MAX.into()) as i64,
                unsure_ms,
            };
            ahead_ms = offset(&claim);
            claim
        })?;
        stream.write_all(&bytes).await?;
        let rest = body(&mut stream).await.map_err(|refused| Rebuff::Passing(refused.why))?;
        match claiming.answered(&rest)? {
            Answer::Welcome => Ok((stream, ahead_ms)),
            Answer::NotNow(sentence) => Err(Rebuff::Lasting(Exit::Configuration, sentence)),
            Answer::Mismatch(sentence) => Err(Rebuff::Final(Failure::configuration(sentence))),
            Answer::Clocks(sentence) => Err(Rebuff::Final(Failure::unreachable(sentence))),
        }
    }

    /// The time is over.
    fn late(&self) -> Failure {
        let Joining { index, addresses, patience, .. } = &self.joining;
        let seconds = patience.as_secs_f64();
        let places = lock(&self.places);
        let missing = |(peer, places): &(usize, &[Place; 2])| {
            peer != index && places.iter().any(|place| !matches!(place, Place::Taken(..)))
        };
        let Some((peer, _)) = places.iter().enumerate().find(missing) else { return Failure::stopped() };
        let why = lock(&self.problems)[peer].clone();
        Failure::unreachable(if peer < *index {
            let why = why.unwrap_or_else(|| "it does not answer".to_owned());
            format!(
                "process {peer} at {} did not let us in within {seconds} s (mesh.join_timeout): {why}",
                addresses[peer]
            )
        } else {
            let at = &addresses[*index];
            format!("process {peer} did not come to {at} within {seconds} s (mesh.join_timeout); start it as well")
        })
    }
}

/// By how much the accepting side's clock is ahead of the connecting one's; what is less than the error is nothing.
fn offset(claim: &Claim) -> i64 {
    if claim.ahead_ms.unsigned_abs() <= claim.unsure_ms { 0 } else { claim.ahead_ms }
}

async fn refuse(answering: &Answering, mut stream: TcpStream, answer: Answer) -> io::Result<Refused> {
    stream.write_all(&answering.answer(&answer)).await?;
    let (label, why) = match answer {
        Answer::Welcome => ("nonsense", String::new()),
        Answer::NotNow(why) => ("not_now", why),
        Answer::Mismatch(why) => ("mismatch", why),
        Answer::Clocks(why) => ("clocks", why),
    };
    Ok(Refused { label, why })
}

async fn body(stream: &mut TcpStream) -> Result<Vec<u8>, Refused> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let mut rest = vec![0; body_length(prefix).ok_or(Broken::Stranger)?];
    stream.read_exact(&mut rest).await?;
    Ok(rest)
}

/// Why a process did not let us in.
enum Rebuff {
    /// It may later.
    Passing(String),
    /// It may later; but if it says so for long, this is why.
    Lasting(Exit, String),
    /// It never will.
    Final(Failure),
}

impl From<io::Error> for Rebuff {
    fn from(error: io::Error) -> Self {
        Self::Passing(error.to_string())
    }
}

impl From<Broken> for Rebuff {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Secret => Self::Lasting(
                Exit::Configuration,
                "it holds another secret; give all processes the same (mesh.secret_file, or one data_dir)".to_owned(),
            ),
            other => Self::Passing(other.to_string()),
        }
    }
}

type Connected = Result<(usize, Kind, TcpStream, i64), Failure>;

/// Tries to get in until it does, or never will.
async fn connect(table: Arc<Table>, peer: usize, kind: Kind, done: mpsc::Sender<Connected>) {
    let mut again = AGAIN.0;
    let mut insisting: Option<Instant> = None;
    loop {
        let tried = timeout(CONNECT + HANDSHAKE, table.claim(peer, kind)).await;
        let rebuff = match tried {
            Ok(Ok((stream, ahead_ms))) => {
                let _ = done.send(Ok((peer, kind, stream, ahead_ms))).await;
                return;
            }
            Ok(Err(rebuff)) => rebuff,
            Err(_) => Rebuff::Passing("it does not answer".to_owned()),
        };
        let problem = match rebuff {
            Rebuff::Final(failure) => {
                let _ = done.send(Err(failure)).await;
                return;
            }
            Rebuff::Lasting(code, message) => {
                if insisting.get_or_insert_with(Instant::now).elapsed() > INSIST {
                    let message = format!("process {peer} at {}: {message}", table.joining.addresses[peer]);
                    let _ = done.send(Err(Failure { code, message })).await;
                    return;
                }
                message
            }
            Rebuff::Passing(problem) => {
                insisting = None;
                problem
            }
        };
        lock(&table.problems)[peer] = Some(problem);
        sleep(again).await;
        again = (again * 2).min(AGAIN.1);
    }
}
