use super::facts::Facts;
use super::handshake::{Accepting, Answer, Broken, Claim, Connecting, Key, Kind, hint};
use super::*;
use crate::error::Exit;
use crate::metrics::Metrics;
use crate::seam::{Clock, RealClock};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Instant;

/// A clock that is ahead of the machine's, or behind.
struct Ahead(RealClock, i64);

impl Clock for Ahead {
    fn wall_ms(&self) -> u64 {
        self.0.wall_ms().saturating_add_signed(self.1)
    }
    fn monotonic_us(&self) -> u64 {
        self.0.monotonic_us()
    }
}

fn facts() -> Facts {
    Facts { version: "1".into(), processes: 2, workers: 1, config: "c".into(), ..Facts::default() }
}

fn claim(kind: Kind) -> Claim {
    Claim { from: 1, to: 0, kind, facts: facts(), ahead_ms: 0, unsure_ms: 0 }
}

fn key(text: &str) -> Key {
    Key::new(text.as_bytes())
}

/// A process that may join others: its index, and what is not as usual.
struct Given<'a> {
    index: usize,
    addresses: &'a [String],
    listener: Option<TcpListener>,
    secret: &'a str,
    ahead_ms: i64,
    facts: Facts,
    patience: Duration,
    stop: Arc<AtomicBool>,
}

impl<'a> Given<'a> {
    fn new(index: usize, addresses: &'a [String], listener: Option<TcpListener>) -> Self {
        let (secret, ahead_ms, stop) = ("the same secret", 0, Arc::default());
        Given { index, addresses, listener, secret, ahead_ms, facts: facts(), patience: Duration::from_secs(60), stop }
    }

    fn joining(self) -> Joining {
        let facts = Facts { processes: self.addresses.len(), ..self.facts };
        Joining {
            index: self.index,
            processes: self.addresses.len(),
            addresses: self.addresses.to_vec(),
            listener: self.listener,
            key: key(self.secret),
            facts: Arc::new(move || Ok(facts.clone())),
            clock: Arc::new(Ahead(RealClock::default(), self.ahead_ms)),
            patience: self.patience,
            silence: Duration::from_secs(10),
            stop: self.stop,
            stop_all: Arc::new(|| {}),
            metrics: Metrics::new().expect("metrics"),
        }
    }
}

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    (listener, address)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Two processes, of which the second is not as usual: what each comes to.
fn two(change: impl FnOnce(&mut Given<'_>)) -> [Result<Arc<Mesh>, Failure>; 2] {
    let (first, address) = listener();
    let addresses = [address, "127.0.0.1:1".to_owned()];
    let mut second = Given::new(1, &addresses, None);
    change(&mut second);
    let mut first = Given::new(0, &addresses, Some(first));
    first.patience = second.patience;
    let (first, second) = (first.joining(), second.joining());
    // The runtimes stay: connections live on them.
    let (a, b): (&'static _, &'static _) = (Box::leak(Box::new(runtime())), Box::leak(Box::new(runtime())));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| a.block_on(join(first)));
        let second = scope.spawn(|| b.block_on(join(second)));
        [first.join().expect("no panic"), second.join().expect("no panic")]
    })
}

#[test]
fn what_was_recorded_in_one_handshake_opens_no_other() {
    let (connecting, hello) = Connecting::new(key("k"), [1; 32]);
    let (accepting, challenge) = Accepting::new(key("k"), [2; 32], 77, hello).expect("a hello");
    let (claiming, said) = connecting
        .challenged(&challenge, |wall| {
            assert_eq!(wall, 77);
            claim(Kind::Data)
        })
        .expect("a challenge");
    let (answering, heard) = accepting.claimed(&said[4..]).expect("a claim");
    assert_eq!(heard, claim(Kind::Data));
    let answer = answering.answer(&Answer::Welcome);

    // Said again to somebody else, who has other random bytes.
    let (other, _) = Accepting::new(key("k"), [3; 32], 77, hello).expect("a hello");
    assert_eq!(other.claimed(&said[4..]).err(), Some(Broken::Secret));
    let (connecting, _) = Connecting::new(key("k"), [4; 32]);
    let (another, _) = connecting.challenged(&challenge, |_| claim(Kind::Data)).expect("a challenge");
    assert_eq!(another.answered(&answer[4..]), Err(Broken::Secret));
    // A claim sent back is no answer, our own hello no challenge, and a hint no welcome.
    let again = || {
        let (connecting, _) = Connecting::new(key("k"), [1; 32]);
        connecting.challenged(&challenge, |_| claim(Kind::Data)).expect("a challenge").0
    };
    assert_eq!(again().answered(&said[4..]), Err(Broken::Secret));
    assert_eq!(again().answered(&hint()[4..]), Err(Broken::Secret));
    let (connecting, hello) = Connecting::new(key("k"), [1; 32]);
    let mut echo = [0; super::handshake::CHALLENGE];
    echo[..hello.len()].copy_from_slice(&hello);
    assert_eq!(connecting.challenged(&echo, |_| claim(Kind::Data)).err(), Some(Broken::Stranger));
    assert_eq!(claiming.answered(&answer[4..]), Ok(Answer::Welcome));
}

#[test]
fn a_handshake_with_any_bit_flipped_or_another_secret_is_none() {
    let begin = || {
        let (connecting, hello) = Connecting::new(key("k"), [1; 32]);
        let (accepting, challenge) = Accepting::new(key("k"), [2; 32], 77, hello).expect("a hello");
        let (claiming, said) = connecting.challenged(&challenge, |_| claim(Kind::Pulse)).expect("a challenge");
        (accepting, claiming, said)
    };
    let (_, _, said) = begin();
    for bit in 0..(said.len() - 4) * 8 {
        let (accepting, _, mut said) = begin();
        said[4 + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(accepting.claimed(&said[4..]).err(), Some(Broken::Secret), "bit {bit} of the claim");
    }
    let (accepting, _, said) = begin();
    let answer = accepting.claimed(&said[4..]).expect("a claim").0.answer(&Answer::Welcome);
    for bit in 0..(answer.len() - 4) * 8 {
        let (_, claiming, _) = begin();
        let mut answer = answer.clone();
        answer[4 + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(claiming.answered(&answer[4..]), Err(Broken::Secret), "bit {bit} of the answer");
    }
    let (_, hello) = Connecting::new(key("k"), [1; 32]);
    let (accepting, _) = Accepting::new(key("other"), [2; 32], 77, hello).expect("a hello");
    assert_eq!(accepting.claimed(&said[4..]).err(), Some(Broken::Secret));
}

#[test]
fn two_processes_find_each_other_whatever_strangers_do_meanwhile() {
    let (first, address) = listener();
    let addresses = [address.clone(), "127.0.0.1:1".to_owned()];
    let (a, b) = (runtime(), runtime());
    let metrics = Metrics::new().expect("metrics");
    let first = Joining { metrics: metrics.clone(), ..Given::new(0, &addresses, Some(first)).joining() };
    let first = std::thread::spawn(move || (a.block_on(join(first)), a));
    // Silent, garbled, and one that knows the exchange but not the secret.
    let silent: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(&address).expect("connected")).collect();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n                                   "[..], &[0; 8], &[0xff; 4000]] {
        let _ = TcpStream::connect(&address).expect("connected").write_all(garbage);
    }
    let mut stranger = TcpStream::connect(&address).expect("connected");
    let (connecting, hello) = Connecting::new(key("guessed"), [9; 32]);
    stranger.write_all(&hello).expect("sent");
    let mut challenge = [0; super::handshake::CHALLENGE];
    stranger.read_exact(&mut challenge).expect("a challenge");
    let (_, said) = connecting.challenged(&challenge, |_| claim(Kind::Data)).expect("a challenge");
    stranger.write_all(&said).expect("sent");
    let mut answer = Vec::new();
    stranger.read_to_end(&mut answer).expect("an end");
    assert_eq!(answer, hint());

    let began = Instant::now();
    let second = b.block_on(join(Given::new(1, &addresses, None).joining())).expect("joined");
    let (first, a) = first.join().expect("no panic");
    let first = first.expect("joined");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!((first.index(), second.index()), (0, 1));
    // Nobody listens any more.
    let end = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(&address).is_ok() {
        assert!(Instant::now() < end, "the port is still open");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(metrics.mesh_refused_total.with_label_values(&["secret"]).get() >= 1);
    assert!(metrics.mesh_refused_total.with_label_values(&["stranger"]).get() >= 1);

    // The second dies: the first is told at once, and why.
    let lost = Arc::new(AtomicU64::new(0));
    let told = lost.clone();
    first.on_loss(move |failure| {
        assert!(failure.code == Exit::Unreachable && failure.message.contains("process 1 is gone"), "{failure}");
        told.fetch_add(1, SeqCst);
    });
    drop((second, b));
    let end = Instant::now() + Duration::from_secs(10);
    while lost.load(SeqCst) == 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(lost.load(SeqCst), 1);
    drop((silent, a));
}

#[test]
fn clocks_further_apart_than_a_second_may_not_join_and_nearer_ones_move_to_the_faster() {
    let [first, second] = two(|second| {
        second.ahead_ms = 30_000;
        second.patience = Duration::from_secs(3);
    });
    let second = second.err().expect("refused");
    assert_eq!(second.code, Exit::Unreachable);
    assert!(second.message.contains("30.0 s apart") || second.message.contains("29.9 s apart"), "{second}");
    assert!(first.err().expect("nobody came").message.contains("process 1 did not come"));

    // Nearer than that, by more than the way there and back takes.
    let [first, second] = two(|second| second.ahead_ms = 900);
    let (first, second) = (first.expect("joined"), second.expect("joined"));
    // What the machine's load adds is within what the handshake took.
    let near = |ms: i64| ms == 0 || (500..1_300).contains(&ms);
    assert!(near(first.fastest_ahead_ms() as i64), "{}", first.fastest_ahead_ms());
    assert!(near(-second.first_ahead_ms()), "{}", second.first_ahead_ms());
    assert_eq!((first.first_ahead_ms(), second.fastest_ahead_ms()), (0, 0));
}

#[test]
fn what_must_be_alike_is_told_to_the_one_who_comes() {
    let [first, second] = two(|second| {
        second.facts.config = "d".into();
        second.patience = Duration::from_secs(2);
    });
    let second = second.err().expect("refused");
    assert_eq!((second.code, second.message.contains("different configurations")), (Exit::Configuration, true));
    assert_eq!(first.err().expect("nobody came").code, Exit::Unreachable);
}

/// Claims a place with the right secret, as nobody else would: what the port makes of it.
fn claimed_by_hand(address: &str, claim: &Claim) -> Answer {
    let mut stream = TcpStream::connect(address).expect("connected");
    let (connecting, hello) = Connecting::new(key("the same secret"), [7; 32]);
    stream.write_all(&hello).expect("sent");
    let mut challenge = [0; super::handshake::CHALLENGE];
    stream.read_exact(&mut challenge).expect("a challenge");
    let (claiming, said) = connecting.challenged(&challenge, |_| claim.clone()).expect("a challenge");
    stream.write_all(&said).expect("sent");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("an answer");
    let mut rest = vec![0; super::handshake::body_length(length).expect("a length")];
    stream.read_exact(&mut rest).expect("an answer");
    claiming.answered(&rest).expect("it holds the secret")
}

#[test]
fn an_index_is_taken_once_and_by_one_that_there_is() {
    let (first, address) = listener();
    let (second, second_address) = listener();
    let addresses = [address.clone(), second_address, "127.0.0.1:1".to_owned()];
    let (a, b) = (runtime(), runtime());
    let first = Given::new(0, &addresses, Some(first)).joining();
    let metrics = first.metrics.clone();
    let stop = first.stop.clone();
    let waiting = std::thread::spawn(move || a.block_on(join(first)).map(|_| ()));
    let second = Given::new(1, &addresses, Some(second)).joining();
    let stop_second = second.stop.clone();
    let came = std::thread::spawn(move || b.block_on(join(second)).map(|_| ()));
    // The third never comes, so both wait on; that the second is there is seen by its place being taken.
    let facts = Facts { processes: 3, ..facts() };
    let claim = |from, to| Claim { from, to, facts: facts.clone(), ..claim(Kind::Data) };
    let end = Instant::now() + Duration::from_secs(20);
    let twice = loop {
        match claimed_by_hand(&address, &claim(1, 0)) {
            Answer::NotNow(why) if why.contains("has joined already") => break why,
            // We came first, and have left again.
            _ => assert!(Instant::now() < end, "the second does not come"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(twice.contains("started twice"), "{twice}");
    for (from, to) in [(0, 0), (3, 0), (2, 1), (usize::MAX, 0)] {
        assert!(matches!(claimed_by_hand(&address, &claim(from, to)), Answer::Mismatch(_)), "{from} {to}");
    }
    // Counted once the answer is on its way: the last one may have reached us before.
    let refused = metrics.mesh_refused_total.with_label_values(&["mismatch"]);
    while refused.get() < 4 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(refused.get(), 4);
    stop.store(true, SeqCst);
    stop_second.store(true, SeqCst);
    for end in [waiting, came] {
        assert_eq!(end.join().expect("no panic").expect_err("not all came").code, Exit::Stopped);
    }
}

#[test]
fn another_secret_is_no_way_in_and_is_said() {
    let [first, second] = two(|second| {
        second.secret = "another secret";
        second.patience = Duration::from_secs(9);
    });
    assert!(first.is_err());
    let second = second.err().expect("refused");
    assert_eq!(second.code, Exit::Configuration);
    assert!(second.message.contains("holds another secret"), "{second}");
}

#[test]
fn one_that_waits_for_others_stops_when_asked() {
    let (first, address) = listener();
    let addresses = [address, "127.0.0.1:1".to_owned()];
    let given = Given::new(0, &addresses, Some(first));
    let stop = given.stop.clone();
    let runtime = runtime();
    let joining = given.joining();
    let waiting = std::thread::spawn(move || runtime.block_on(join(joining)).err().expect("no others"));
    stop.store(true, SeqCst);
    assert_eq!(waiting.join().expect("no panic").code, Exit::Stopped);
}

#[test]
fn beyond_this_machine_a_secret_is_needed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("hosts");
    let with = |text: &str, secret| {
        std::fs::write(&path, text).expect("written");
        addresses(Some(&path), 2, secret)
    };
    assert_eq!(with("127.0.0.1:5\n\n[::1]:6\n", false).expect("this machine").len(), 2);
    assert_eq!(with("10.0.0.1:5\n10.0.0.2:6\n10.0.0.3:7\n", true).expect("a secret").len(), 2);
    for (text, secret, says) in [
        ("127.0.0.1:5\n10.0.0.2:6\n", false, "mesh.secret_file"),
        ("0.0.0.0:5\n127.0.0.1:6\n", false, "head -c 32 /dev/urandom"),
        ("127.0.0.1:5\n", false, "1 addresses, but there are 2 processes"),
        ("127.0.0.1:5\nhost\n", true, "`host` is no host:port"),
    ] {
        let failure = with(text, secret).expect_err(says);
        assert_eq!(failure.code, Exit::Configuration);
        assert!(failure.message.contains(says), "{says}: {failure}");
    }
    assert_eq!(addresses(None, 2, false).expect("this machine"), ["127.0.0.1:2101", "127.0.0.1:2102"]);
}
