//! Two processes in two network namespaces, cut off from each other while both reach Kafka, Redis and the directory.
//!
//! `SG_CUTS=3` cuts three times. It needs root and `ip netns`; without them it says that it is left out.

use crate::mesh::configure;
use crate::program::{free_pair, free_port, journal, streamgauge};
use crate::running::{Running, get, records};
use crate::same::{same_journal, same_stream, what_must_be};
use crate::servers::{Kafka, Redis};
use crate::tested::{from_environment, tested};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A namespace that a pair of virtual cards connects with ours; both go with this value.
struct Namespace {
    name: String,
    card: String,
    ours: String,
    theirs: String,
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

impl Namespace {
    fn new() -> Result<Namespace, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let id = (std::process::id() * 2 + MADE.fetch_add(1, Relaxed)) % 10_000;
        // 198.18.0.0/15 is for tests of networks.
        let net = format!("198.18.{}.{}", id / 64 % 256, id % 64 * 4);
        let host = |n: u32| {
            let (front, last) = net.rsplit_once('.').expect("four parts");
            format!("{front}.{}", last.parse::<u32>().expect("a number") + n)
        };
        let namespace =
            Namespace { name: format!("sg-{id}"), card: format!("sgv{id}"), ours: host(1), theirs: host(2) };
        let Namespace { name, card, ours, theirs } = &namespace;
        let peer = format!("sgw{id}");
        ip(&["netns", "add", name])?;
        ip(&["link", "add", card, "type", "veth", "peer", "name", &peer])?;
        ip(&["link", "set", &peer, "netns", name])?;
        ip(&["addr", "add", &format!("{ours}/30"), "dev", card])?;
        ip(&["link", "set", card, "up"])?;
        for args in [
            ["addr", "add", &format!("{theirs}/30"), "dev", &peer].as_slice(),
            &["link", "set", &peer, "up"],
            &["link", "set", "lo", "up"],
        ] {
            ip(&[&["-n", name], args].concat())?;
        }
        Ok(namespace)
    }

    fn connect(&self, up: bool) {
        ip(&["link", "set", &self.card, if up { "up" } else { "down" }]).expect("the card obeys");
    }

    /// Makes a server at this port of our loopback reachable at the same port of the namespace's: not over the cards.
    fn forward(&self, port: u16) {
        let file = File::open(format!("/var/run/netns/{}", self.name)).expect("the namespace");
        // A thread moves there to listen; what it made stays there, and works from anywhere.
        let listen = move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("in the namespace");
            TcpListener::bind(("127.0.0.1", port)).expect("its port")
        };
        let listener = std::thread::spawn(listen).join().expect("a listener");
        std::thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let Ok(to) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (mut from, mut to) in [(&from, &to), (&to, &from)]
                    .map(|(a, b)| (a.try_clone().expect("a clone"), b.try_clone().expect("a clone")))
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["link", "del", &self.card]);
        let _ = ip(&["netns", "del", &self.name]);
    }
}

/// A plant whose readings two processes share, one of them in a namespace of its own.
struct TwoHosts {
    namespace: Namespace,
    folder: tempfile::TempDir,
    topic: &'static str,
    redis: Redis,
    config: PathBuf,
    hosts: String,
    secret: String,
}

impl TwoHosts {
    /// None, with a word about it, where there can be no namespaces. A process that hears nothing for `silence` takes
    /// the other for gone.
    fn new(topic: &'static str, port: u16, silence: &str) -> Option<TwoHosts> {
        let namespace = match Namespace::new() {
            Ok(namespace) => namespace,
            Err(why) => {
                println!("LEFT OUT: no network namespaces here ({})", why.trim());
                return None;
            }
        };
        let folder = tempfile::tempdir().expect("a folder");
        let (kafka, redis) = (Kafka::shared(), Redis::start());
        kafka.create_topic(topic, 4);
        let broker = kafka.bootstrap.rsplit(':').next().expect("a port").parse().expect("a port");
        namespace.forward(broker);
        namespace.forward(redis.port());
        let more = format!(
            "mesh.silence = \"{silence}\"\nsinks.alerts = {{ type = \"redis_stream\", url = \"{}\" }}",
            redis.url
        );
        let config = configure(folder.path(), kafka, topic, port, &more);
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "a secret of this test").expect("a secret");
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("a mode");
        let hosts = hosts(folder.path(), "hosts", [&namespace.ours, &namespace.theirs]);
        Some(TwoHosts { namespace, topic, redis, config, hosts, secret: secret.display().to_string(), folder })
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn journal(&self) -> Vec<String> {
        journal(&self.data())
    }

    /// The readings, until it is told to end.
    fn feed(&self) -> Running {
        let bootstrap = &Kafka::shared().bootstrap;
        let plant = ["produce", "--bootstrap-servers", bootstrap, "--topic", self.topic, "--rate", "1500"];
        let sensors =
            ["--sensors", "40", "--metrics", "temperature,humidity", "--disorder", "0.02", "--malformed", "0.005"];
        Running::start(&[&plant[..], &sensors].concat(), &self.folder.path().join("produce.log"))
    }

    /// Process p of two: where it is told to run by `hosts`.
    fn run(&self, p: usize, config: &Path, hosts: &str, more: &[&str]) -> Running {
        let (index, path) = (p.to_string(), config.display().to_string());
        let always = ["run", "-c", &path, "-n", "2", "-p", &index, "--hostfile", hosts, "--secret-file", &self.secret];
        let mut command = streamgauge(&[&always[..], more].concat());
        if p == 1 && hosts == self.hosts {
            let mut there = Command::new("ip");
            there.args(["netns", "exec", &self.namespace.name]).arg(command.get_program()).args(command.get_args());
            command = there;
        }
        let log = config.with_extension(format!("log-{p}"));
        Running::spawn(command, &log)
    }

    fn both(&self, more: &[&str]) -> [Running; 2] {
        [0, 1].map(|p| self.run(p, &self.config, &self.hosts, more))
    }

    /// Waits for a pair that is ready, and then for so many alerts more than there were.
    fn alerts_from(&self, both: &mut [Running; 2], port: u16, more: usize) {
        both[0].until("readiness", || get(port, "/readyz").filter(|(status, _)| *status == 200));
        let before = self.journal().len();
        both[0].until("more alerts", || (self.journal().len() > before + more).then_some(()));
    }

    /// The rest of the readings, and then the journal and the Redis Stream are what the oracle says.
    fn equals_oracle(&self) -> usize {
        let mut both = self.both(&["--until-end", "--summary", "json"]);
        let ends = both.each_mut().map(Running::wait);
        assert!(ends.iter().all(|(status, _)| status.success()), "{}{}", ends[0].1, ends[1].1);

        let text = std::fs::read_to_string(&self.config).expect("the configuration");
        let outcome = what_must_be(&text, &records(Kafka::shared(), "plant", self.topic), &self.data());
        let journal = self.journal();
        same_journal(&journal, &outcome.journal);
        assert!(journal.len() > 50, "only {} alert changes", journal.len());
        same_stream(&self.redis, &journal);
        journal.len()
    }
}

fn hosts(folder: &Path, name: &str, addresses: [&str; 2]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, addresses.map(|address| format!("{address}:{}\n", free_port())).concat()).expect("hosts");
    path.display().to_string()
}

fn cuts() -> u64 {
    from_environment("SG_CUTS").unwrap_or(1)
}

#[test]
fn processes_that_are_cut_off_from_each_other_say_nothing_that_the_other_contradicts() {
    let port = free_pair();
    let Some(plant) = TwoHosts::new("cut-off", port, "2s") else { return };
    let producer = plant.feed();
    for cut in 0..cuts() {
        let mut both = plant.both(&[]);
        plant.alerts_from(&mut both, port, 20);
        plant.namespace.connect(false);
        let began = Instant::now();
        // Both go on reading, and nothing that they read is complete: after what was under way the journal stands still.
        std::thread::sleep(Duration::from_millis(500));
        let still = plant.journal().len();
        let ends = both.each_mut().map(Running::wait);
        println!("cut {cut}: both had ended after {:.1} s", began.elapsed().as_secs_f64());
        assert_eq!(plant.journal().len(), still, "alerts while cut off");
        for ((status, said), other) in ends.iter().zip([1, 0]) {
            assert_eq!(status.code(), Some(3), "{said}");
            assert!(said.contains(&format!("process {other} is gone")), "{said}");
        }
        plant.namespace.connect(true);
    }
    assert!(producer.terminate().0.success());
    let alerts = plant.equals_oracle();
    tested("processes cut off from each other", cuts(), &format!("{alerts} alert changes"));
}

#[test]
fn processes_that_were_replaced_while_cut_off_from_each_other_write_nothing_that_counts() {
    let port = free_pair();
    // They do not find out by themselves before the test is over.
    let Some(plant) = TwoHosts::new("cut-off-replaced", port, "10m") else { return };
    let producer = plant.feed();
    for cut in 0..cuts() {
        let mut old = plant.both(&[]);
        plant.alerts_from(&mut old, port, 20);
        plant.namespace.connect(false);

        let port = free_pair();
        let text = std::fs::read_to_string(&plant.config).expect("the configuration");
        let listens = text.lines().find(|line| line.starts_with("server.listen")).expect("where it listens");
        let config = plant.folder.path().join(format!("replacement-{cut}.toml"));
        std::fs::write(&config, text.replace(listens, &format!("server.listen = \"127.0.0.1:{port}\"")))
            .expect("a configuration");
        let hosts = hosts(plant.folder.path(), "hosts-replacement", ["127.0.0.1"; 2]);
        let mut new = [0, 1].map(|p| plant.run(p, &config, &hosts, &[]));
        plant.alerts_from(&mut new, port, 20);

        plant.namespace.connect(true);
        let ends = old.each_mut().map(Running::wait);
        // The first that sees it says so; to the other its peer may be gone before it looks itself.
        assert!(ends.iter().all(|(status, _)| matches!(status.code(), Some(3 | 4))), "{}{}", ends[0].1, ends[1].1);
        let says = |said: &str| said.contains("has been replaced by term") || said.contains("newer run");
        assert!(ends.iter().any(|(status, said)| status.code() == Some(4) && says(said)), "{}{}", ends[0].1, ends[1].1);
        plant.alerts_from(&mut new, port, 20);
        for running in new {
            running.kill9();
        }
    }
    assert!(producer.terminate().0.success());
    let alerts = plant.equals_oracle();
    tested("processes replaced while cut off from each other", cuts(), &format!("{alerts} alert changes"));
}
