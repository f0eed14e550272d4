//! Two processes in two network namespaces, cut off from each other while both reach Kafka, Redis and the directory.
//!
//! `SG_CUTS=3` cuts three times. It needs root and `ip netns`; without them it says that it is left out.

use crate::expected;
use crate::mesh::{configure, two_ports};
use crate::program::{free_port, journal, streamgauge};
use crate::running::{Running, get, records};
use crate::servers::{Kafka, Redis};
use nix::sched::{CloneFlags, setns};
use redis::streams::StreamRangeReply;
use serde_json::Value;
use std::fs::File;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};
use streamgauge::config::{self, Overrides};

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
        let id = std::process::id() % 10_000;
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

#[test]
fn processes_that_are_cut_off_from_each_other_say_nothing_that_the_other_contradicts() {
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(why) => {
            println!("LEFT OUT: no network namespaces here ({})", why.trim());
            return;
        }
    };
    let cuts = std::env::var("SG_CUTS").ok().map_or(1, |n| n.parse().expect("SG_CUTS: a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (kafka, redis, topic, port) = (Kafka::shared(), Redis::start(), "cut-off", two_ports());
    kafka.create_topic(topic, 4);
    let broker: u16 = kafka.bootstrap.rsplit(':').next().expect("a port").parse().expect("a port");
    namespace.forward(broker);
    namespace.forward(redis.port());
    let more = format!("mesh.silence = \"2s\"\nsinks.alerts = {{ type = \"redis_stream\", url = \"{}\" }}", redis.url);
    let config = configure(folder, kafka, topic, port, &more);
    let path = config.display().to_string();
    let hosts = folder.join("hosts");
    std::fs::write(&hosts, format!("{}:{}\n{}:{}\n", namespace.ours, free_port(), namespace.theirs, free_port()))
        .expect("hosts");
    let secret = folder.join("secret");
    std::fs::write(&secret, "a secret of this test").expect("a secret");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
    let (hosts, secret) = (hosts.display().to_string(), secret.display().to_string());
    let run = |p: usize, more: &[&str]| {
        let p = p.to_string();
        let always = ["run", "-c", &path, "-n", "2", "-p", &p, "--hostfile", &hosts, "--secret-file", &secret];
        let mut command = streamgauge(&[&always[..], more].concat());
        if p == "1" {
            let mut there = Command::new("ip");
            there.args(["netns", "exec", &namespace.name]).arg(command.get_program()).args(command.get_args());
            command = there;
        }
        Running::spawn(command, &folder.join(format!("log-{p}")))
    };
    let plant = ["produce", "--bootstrap-servers", &kafka.bootstrap, "--topic", topic, "--rate", "1500"];
    let sensors =
        ["--sensors", "40", "--metrics", "temperature,humidity", "--disorder", "0.02", "--malformed", "0.005"];
    let producer = Running::start(&[&plant[..], &sensors].concat(), &folder.join("produce.log"));
    let data = folder.join("data");
    for cut in 0..cuts {
        let mut both = [run(0, &[]), run(1, &[])];
        both[0].until("readiness", || get(port, "/readyz").filter(|(status, _)| *status == 200));
        let before = journal(&data).len();
        both[0].until("more alerts", || (journal(&data).len() > before + 20).then_some(()));
        namespace.connect(false);
        let began = Instant::now();
        // Both go on reading, and nothing that they read is complete: after what was under way the journal stands still.
        std::thread::sleep(Duration::from_millis(500));
        let still = journal(&data).len();
        let ends = both.each_mut().map(Running::wait);
        println!("cut {cut}: both had ended after {:.1} s", began.elapsed().as_secs_f64());
        assert_eq!(journal(&data).len(), still, "alerts while cut off");
        for ((status, said), other) in ends.iter().zip([1, 0]) {
            assert_eq!(status.code(), Some(3), "{said}");
            assert!(said.contains(&format!("process {other} is gone")), "{said}");
        }
        namespace.connect(true);
    }
    assert!(producer.terminate().0.success());
    let mut both = [0, 1].map(|p| run(p, &["--until-end", "--summary", "json"]));
    let ends = both.each_mut().map(Running::wait);
    assert!(ends.iter().all(|(status, _)| status.success()), "{}{}", ends[0].1, ends[1].1);

    let text = std::fs::read_to_string(&config).expect("the configuration");
    let pure = config::load_texts(&[("sg.toml".into(), text)], &|_| None, &Overrides::default())
        .unwrap_or_else(|report| panic!("{report:?}"))
        .pure();
    let outcome = oracle::run(&expected::config(&pure), &records(kafka, "plant", topic), &expected::lines(&data))
        .expect("the oracle");
    let journal = journal(&data);
    assert_eq!(journal, outcome.journal);
    assert!(journal.len() > 50, "only {} alert changes", journal.len());
    let mut connection = redis.connection();
    let stream: StreamRangeReply =
        redis::cmd("XRANGE").arg("alerts").arg("-").arg("+").query(&mut connection).expect("the stream");
    let sent: Vec<String> = stream.ids.iter().map(|entry| entry.id.clone()).collect();
    let written = journal.iter().map(|line| serde_json::from_str::<Value>(line).expect("a line"));
    assert_eq!(sent, written.map(|line| format!("{}-{}", line["epoch"], line["n"])).collect::<Vec<_>>());
}
