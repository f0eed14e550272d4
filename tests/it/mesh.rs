//! Several processes: strangers at the port, a peer that dies, and what is written meanwhile.

use crate::program::{free_pair, free_port, journal, streamgauge, succeed};
use crate::running::{Running, get, records};
use crate::same::{same_journal, what_must_be};
use crate::servers::Kafka;
use crate::tested::{from_environment, tested};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use streamgauge::mesh::handshake::{CHALLENGE, Claim, Connecting, Key, NONCE, hint};

/// A configuration for processes of one worker each; process p serves at the port plus p.
pub fn configure(folder: &Path, kafka: &Kafka, topic: &str, port: u16, more: &str) -> PathBuf {
    let (bootstrap, data) = (&kafka.bootstrap, folder.join("data"));
    let text = format!(
        r#"
data_dir = {data:?}
server.listen = "127.0.0.1:{port}"
checkpoint.interval = "1s"
event_time = {{ allowed_lateness = "4s", max_clock_skew = "1m" }}
rolling = {{ last = [5] }}
{more}
[sources.plant]
type = "kafka"
bootstrap_servers = "{bootstrap}"
topics = ["{topic}"]
decode = {{ id = "/unique_reading_id", sensor = "/sensor_id", metric = "/type", value = "/value", time = "/timestamp" }}
[rules.hot]
metric = "temperature"
when.above = {{ warning = 25.0, critical = 35.0, hysteresis = 1.0 }}
[rules.swing]
metric = "humidity"
of.stddev = 5
when.above = 4.0
"#
    );
    let path = folder.join("sg.toml");
    std::fs::write(&path, text).expect("a configuration");
    path
}

fn hosts(folder: &Path, name: &str, ports: [u16; 2]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, ports.map(|port| format!("127.0.0.1:{port}\n")).concat()).expect("hosts");
    path.display().to_string()
}

fn secret(folder: &Path, text: &str) -> String {
    use std::os::unix::fs::OpenOptionsExt;
    let path = folder.join("secret");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).expect("a secret");
    file.write_all(text.as_bytes()).expect("a secret");
    path.display().to_string()
}

/// What passes between a process and the port that it connects to, one way.
struct Recorder {
    port: u16,
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    fn before(port: u16) -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let own = listener.local_addr().expect("its address").port();
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&recorded);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(from), Ok(to)) = (stream, TcpStream::connect(("127.0.0.1", port))) else { continue };
                let (mut back_from, mut back_to) =
                    (to.try_clone().expect("a clone"), from.try_clone().expect("a clone"));
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut back_from, &mut back_to);
                    let _ = back_to.shutdown(std::net::Shutdown::Both);
                });
                let number = {
                    let mut all = all.lock().expect("no panic");
                    all.push(Vec::new());
                    all.len() - 1
                };
                let (all, mut from, mut to) = (Arc::clone(&all), from, to);
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(n) = from.read(&mut buffer) {
                        if n == 0 || to.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                        let one = &mut all.lock().expect("no panic")[number];
                        let room = 8192_usize.saturating_sub(one.len());
                        one.extend(&buffer[..n.min(room)]);
                    }
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Recorder { port: own, recorded }
    }
}

/// What strangers did, by kind; and whether any of them was let in.
#[derive(Default)]
struct Strangers {
    connected: AtomicU64,
    let_in: AtomicU64,
    enough: AtomicBool,
}

/// One stranger of the kind `n`: keeps what stays open.
fn stranger(port: u16, n: u64, recorded: &[Vec<u8>], strangers: &Strangers, open: &mut Vec<TcpStream>) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return };
    strangers.connected.fetch_add(1, SeqCst);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut random = fastrand::Rng::with_seed(n);
    let mut answer = Vec::new();
    match n % 8 {
        // Silent; it stays.
        0..4 => {
            open.push(stream);
            return;
        }
        4 | 5 => {
            let bytes: Vec<u8> = (0..random.usize(1..300)).map(|_| random.u8(..)).collect();
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut answer);
        }
        // What an honest process once said, to the byte: its random bytes are the same, ours are not.
        6 if !recorded.is_empty() => {
            let _ = stream.write_all(random.choice(recorded).expect("some"));
            let _ = stream.read_to_end(&mut answer);
            answer.drain(..answer.len().min(CHALLENGE));
        }
        // The whole exchange, with a secret that was guessed, and with a claim as an honest one makes it.
        _ => {
            let (connecting, hello) = Connecting::new(Key::new(b"a secret that was guessed"), [random.u8(..); NONCE]);
            let _ = stream.write_all(&hello);
            let mut challenge = [0; CHALLENGE];
            if stream.read_exact(&mut challenge).is_err() {
                return;
            }
            let claim = || recorded.first().and_then(|bytes| claim_of(bytes)).expect("a claim was recorded");
            let Ok((_, said)) = connecting.challenged(&challenge, |_| claim()) else { return };
            let _ = stream.write_all(&said);
            let _ = stream.read_to_end(&mut answer);
        }
    }
    // Anything but a hint has an answer in it.
    let refused = answer.len() <= CHALLENGE || answer == hint();
    if !refused {
        strangers.let_in.fetch_add(1, SeqCst);
    }
}

/// The claim in what an honest process said.
fn claim_of(bytes: &[u8]) -> Option<Claim> {
    let begin = bytes.iter().position(|byte| *byte == b'{')?;
    serde_json::Deserializer::from_slice(&bytes[begin..]).into_iter().next()?.ok()
}

#[test]
fn ten_thousand_strangers_at_the_port_during_the_start_get_nothing_and_delay_nobody() {
    const STRANGERS: u64 = 10_000;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (kafka, topic, port) = (Kafka::shared(), "strangers", free_pair());
    let plant = ["produce", "--bootstrap-servers", &kafka.bootstrap, "--topic", topic, "--create-partitions", "4"];
    succeed(&[&plant[..], &["--readings", "5000", "--sensors", "20", "--metrics", "temperature,humidity"]].concat());
    let config = configure(folder, kafka, topic, port, "").display().to_string();
    let secret = secret(folder, "a secret of this test\n");
    let run = |p: &'static str, hosts: &str| {
        let always = ["run", "-c", &config, "-n", "2", "-p", p, "--hostfile", hosts, "--secret-file", &secret];
        Running::start(&[&always[..], &["--until-end", "--summary", "json"]].concat(), &folder.join(format!("log-{p}")))
    };
    let joined = |first: &mut Running, second: &mut Running| {
        first.until("all processes", || {
            let ended = second.ends_within(Duration::ZERO);
            assert!(ended.is_none_or(|status| status.success()), "{}", second.said());
            let text = std::fs::read_to_string(folder.join("log-0")).ok()?;
            text.contains("all processes have joined").then_some(())
        });
    };
    // Without strangers; what is said is recorded.
    let ports = [free_port(), free_port()];
    let recorder = Recorder::before(ports[0]);
    let (own, through) = (hosts(folder, "own", ports), hosts(folder, "through", [recorder.port, ports[1]]));
    let mut first = run("0", &own);
    first.until("it waits", || first_waits(folder));
    let began = Instant::now();
    let mut second = run("1", &through);
    joined(&mut first, &mut second);
    let alone = began.elapsed();
    assert!(first.wait().0.success() && second.wait().0.success(), "{}{}", first.said(), second.said());
    let recorded: Vec<Vec<u8>> = recorder.recorded.lock().expect("no panic").clone();
    assert!(recorded.len() >= 2 && claim_of(&recorded[0]).is_some(), "{} connections", recorded.len());

    // With them: nine in ten before the second process comes, the others while it does.
    let mut first = run("0", &own);
    first.until("it waits", || first_waits(folder));
    let strangers = Arc::new(Strangers::default());
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (strangers, recorded) = (Arc::clone(&strangers), recorded.clone());
            std::thread::spawn(move || {
                let mut open = Vec::new();
                for n in (0..STRANGERS).filter(|n| n % 4 == thread) {
                    // The kinds take turns on every thread.
                    stranger(ports[0], n / 4, &recorded, &strangers, &mut open);
                    if strangers.enough.load(SeqCst) {
                        break;
                    }
                }
                open
            })
        })
        .collect();
    first.until("strangers", || (strangers.connected.load(SeqCst) >= STRANGERS * 9 / 10).then_some(()));
    let began = Instant::now();
    let mut second = run("1", &own);
    joined(&mut first, &mut second);
    let beset = began.elapsed();
    let during = strangers.connected.load(SeqCst);
    strangers.enough.store(true, SeqCst);
    drop(threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>());
    println!(
        "{during} strangers by then; joined after {:.2} s, without them after {:.2} s",
        beset.as_secs_f64(),
        alone.as_secs_f64()
    );
    let (status, said) = first.wait();
    assert!(status.success() && second.wait().0.success(), "{said}{}", second.said());
    assert_eq!(strangers.let_in.load(SeqCst), 0, "strangers were let in");
    assert!(during >= STRANGERS * 9 / 10);
    assert!(beset < alone + Duration::from_secs(10), "{beset:?} instead of {alone:?}");
    assert!(said.contains("a connection to the mesh is refused"), "{said}");
    tested("strangers at the mesh's port during the start", during, "none let in");
}

fn first_waits(folder: &Path) -> Option<()> {
    let text = std::fs::read_to_string(folder.join("log-0")).ok()?;
    text.contains("waiting for the other processes").then_some(())
}

#[test]
fn when_a_process_dies_the_other_ends_at_once_and_nothing_counts_that_was_not_complete() {
    let deaths = from_environment("SG_DEATHS").unwrap_or(3);
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (kafka, topic, port) = (Kafka::shared(), "deaths", free_pair());
    let plant = ["produce", "--bootstrap-servers", &kafka.bootstrap, "--topic", topic, "--create-partitions", "4"];
    let sensors =
        ["--sensors", "40", "--metrics", "temperature,humidity", "--disorder", "0.02", "--malformed", "0.005"];
    succeed(&[&plant[..], &sensors, &["--readings", "5000", "--timestamps", "event"]].concat());
    let producer = Running::start(
        &[&plant[..], &sensors, &["--rate", "2000", "--seed", "2"]].concat(),
        &folder.join("produce.log"),
    );
    let config = configure(folder, kafka, topic, port, "");
    let path = config.display().to_string();
    let hosts = hosts(folder, "hosts", [free_port(), free_port()]);
    let run = |p: usize, more: &[&str]| {
        let p = p.to_string();
        let always = ["run", "-c", &path, "-n", "2", "-p", &p, "--hostfile", &hosts];
        Running::start(&[&always[..], more].concat(), &folder.join(format!("log-{p}")))
    };
    let mut slowest = Duration::ZERO;
    for n in 0..deaths {
        let mut both = [run(0, &[]), run(1, &[])];
        both[0].until_up(port);
        both[1].until_up(port + 1);
        std::thread::sleep(Duration::from_millis(300 + 200 * (n % 4)));
        let [first, second] = both;
        let (dying, mut left) = if n % 2 == 0 { (second, first) } else { (first, second) };
        let began = Instant::now();
        dying.kill9();
        let (status, said) = left.wait();
        slowest = slowest.max(began.elapsed());
        let dead = (n + 1) % 2;
        assert_eq!(status.code(), Some(3), "{said}");
        assert!(said.contains(&format!("process {dead} is gone")), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    println!("{deaths} deaths; the other process had ended {:.2} s later at most", slowest.as_secs_f64());
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    let (status, said) = producer.terminate();
    assert!(status.success(), "{said}");
    let mut both = [0, 1].map(|p| run(p, &["--until-end", "--summary", "json"]));
    let ends = both.each_mut().map(Running::wait);
    assert!(ends.iter().all(|(status, _)| status.success()), "{}{}", ends[0].1, ends[1].1);
    let line = ends[0].1.lines().rev().find(|line| line.starts_with('{')).expect("a summary").to_owned();
    let summary: Value = serde_json::from_str(&line).expect("JSON");

    let data = folder.join("data");
    let text = std::fs::read_to_string(&config).expect("the configuration");
    let outcome = what_must_be(&text, &records(kafka, "plant", topic), &data);
    let journal = journal(&data);
    let counts = oracle::total(&outcome.counts);
    println!("{} alert changes, {counts:?}", journal.len());
    same_journal(&journal, &outcome.journal);
    assert_eq!((&summary["records"], &summary["imbalance"]), (&counts.records.into(), &0.into()), "{summary}");
    assert!(journal.len() > 100 && counts.duplicates > 50 && counts.late + counts.behind > 50, "{counts:?}");
    tested("one of two processes killed -9", deaths, &format!("{} alert changes", journal.len()));
}

#[test]
fn processes_that_do_not_belong_together_say_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (kafka, topic, port) = (Kafka::shared(), "unlike", free_pair());
    kafka.create_topic(topic, 2);
    let config = configure(folder, kafka, topic, port, "mesh.join_timeout = \"20s\"").display().to_string();
    let hosts = hosts(folder, "hosts", [free_port(), free_port()]);
    let wide = folder.join("wide");
    std::fs::write(&wide, "192.0.2.1:2101\n192.0.2.2:2101\n").expect("hosts");
    let wide = wide.display().to_string();
    let said = |args: &[&str]| {
        let output = streamgauge(&[&["run", "-c", &config], args].concat()).output().expect("the program starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = said(&["-n", "2", "-p", "0", "--hostfile", &wide]);
    assert!(code == Some(2) && text.contains("mesh.secret_file") && text.contains("/dev/urandom"), "{code:?} {text}");
    let (code, text) = said(&["-n", "2", "-p", "0", "--secret-file", "/dev/null"]);
    assert!(code == Some(2) && text.contains("mesh.secret_file"), "{code:?} {text}");

    let first = ["run", "-c", &config, "-n", "2", "-p", "0", "--hostfile", &hosts];
    let mut first = Running::start(&first, &folder.join("log-0"));
    first.until("it waits", || first_waits(folder));
    let (code, text) = said(&["-n", "2", "-p", "1", "-w", "3", "--hostfile", &hosts]);
    assert!(code == Some(2) && text.contains("process 0 has 1 workers, process 1 has 3"), "{code:?} {text}");
    // It waits on for one that fits; SIGTERM ends the waiting.
    assert_eq!(get(port + 1, "/healthz"), None);
    let began = Instant::now();
    let (status, text) = first.terminate();
    assert!(status.success() && text.contains("stopped"), "{status} {text}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
