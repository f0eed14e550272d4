//! Real servers for integration tests: each is started by its script in `tests/servers`, holds its data in a
//! temporary folder, and ends with the value that stands for it, or with the test's process at the latest.
//!
//! A server that is not installed fails the test; no test is ever skipped for want of one.
#![allow(dead_code, reason = "each test binary includes this file and uses some of it")]

use std::fmt::Debug;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use tempfile::TempDir;

/// A server under one of the scripts.
struct Server {
    script: &'static str,
    folder: TempDir,
}

impl Server {
    fn start(script: &'static str, options: &[&str]) -> Server {
        Server::start_in(tempfile::tempdir().expect("a temporary folder"), script, options)
    }

    fn start_in(folder: TempDir, script: &'static str, options: &[&str]) -> Server {
        let server = Server { script, folder };
        // `--until`: a test that is killed, or a server kept in a static, cannot run `drop`.
        let own_pid = std::process::id().to_string();
        server.tell("start", &[&["--until", &own_pid], options].concat());
        server
    }

    fn tell(&self, verb: &str, options: &[&str]) {
        self.try_tell(verb, options).unwrap_or_else(|error| panic!("{error}"));
    }

    fn try_tell(&self, verb: &str, options: &[&str]) -> Result<(), String> {
        // `benches/` starts its servers with this file, too.
        let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("tests/servers"));
        let scripts = above.into_iter().find(|folder| folder.is_dir()).expect("tests/servers");
        let script = scripts.join(self.script);
        let output = Command::new(&script)
            .arg(verb)
            .arg(self.folder.path())
            .args(options)
            .output()
            .map_err(|error| format!("{}: {error}", script.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{} {verb}: {said}", self.script))
    }

    /// One of the files with a number that a script leaves in the folder.
    fn number<N: FromStr<Err: Debug>>(&self, file: &str) -> N {
        let text = std::fs::read_to_string(self.folder.path().join(file)).expect("the script's file");
        text.trim().parse().expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nobody reads the data again, so there is no reason to wait for an orderly end.
        let ended = self.try_tell("kill9", &[]);
        // A failure here must not hide the test's own.
        if !std::thread::panicking() {
            ended.unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// What every server can be put through; `restart` keeps port and data.
macro_rules! life {
    ($server:ty) => {
        impl $server {
            /// The server's process.
            pub fn pid(&self) -> u32 {
                self.server.number("pid")
            }

            /// The port on 127.0.0.1, the same for the server's whole life.
            pub fn port(&self) -> u16 {
                self.server.number("port")
            }

            /// The folder with the server's log and data.
            pub fn folder(&self) -> &Path {
                self.server.folder.path()
            }

            /// Ends the server in order.
            pub fn stop(&self) {
                self.server.tell("stop", &[]);
            }

            /// Ends the server as a power cut would; returns when its process is gone.
            pub fn kill9(&self) {
                self.server.tell("kill9", &[]);
            }

            /// Starts the server again (ending it in order first if it runs); returns when it answers.
            pub fn restart(&self) {
                self.server.tell("restart", &[]);
            }
        }
    };
}
life!(Kafka);
life!(Redis);
life!(Prometheus);

/// An Apache Kafka broker. Starting one takes 10 s and 250 MB: share one where a test does not kill it.
pub struct Kafka {
    server: Server,
    /// `127.0.0.1:PORT`
    pub bootstrap: String,
}

impl Kafka {
    /// A broker of this test's own.
    pub fn start() -> Kafka {
        Kafka::started(&[])
    }

    /// A broker that asks its clients for SASL/PLAIN.
    pub fn start_with_password(user: &str, password: &str) -> Kafka {
        Kafka::started(&["--sasl", &format!("{user}:{password}")])
    }

    /// One broker for all tests of this binary; topics keep them apart.
    pub fn shared() -> &'static Kafka {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(Kafka::start)
    }

    fn started(options: &[&str]) -> Kafka {
        let server = Server::start("kafka.sh", options);
        let bootstrap = format!("127.0.0.1:{}", server.number::<u16>("port"));
        Kafka { server, bootstrap }
    }

    /// Creates a topic, and returns when its partitions have a leader. (The broker creates none by itself.)
    pub fn create_topic(&self, name: &str, partitions: i32) {
        self.create_topic_with(name, partitions, &[]);
    }

    /// The same, with settings such as `("compression.type", "lz4")`.
    pub fn create_topic_with(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let topic = NewTopic {
            name,
            num_partitions: partitions,
            replication: TopicReplication::Fixed(1),
            config: settings.to_vec(),
        };
        let answers = block_on(self.admin().create_topics([&topic], &options()));
        answers.expect("the broker")[0]
            .as_ref()
            .unwrap_or_else(|(topic, error)| panic!("cannot create topic {topic}: {error}"));
        self.wait_for_leaders(name, partitions);
    }

    /// Gives a topic more partitions.
    pub fn grow_topic(&self, name: &str, partitions: i32) {
        let wanted = rdkafka::admin::NewPartitions::new(name, partitions as usize);
        let answers = block_on(self.admin().create_partitions([&wanted], &options()));
        answers.expect("the broker")[0]
            .as_ref()
            .unwrap_or_else(|(topic, error)| panic!("cannot grow topic {topic}: {error}"));
        self.wait_for_leaders(name, partitions);
    }

    /// Settings of a client at the port that never asks for a password.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        let internal = self.server.number::<u16>("internal_port");
        config.set("bootstrap.servers", format!("127.0.0.1:{internal}"));
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().expect("an admin client")
    }

    /// A topic is known before its partitions can be written; a client that comes between sees errors that the test
    /// is not about.
    fn wait_for_leaders(&self, name: &str, partitions: i32) {
        let admin = self.admin();
        for _ in 0..300 {
            let metadata = admin.inner().fetch_metadata(Some(name), Duration::from_secs(10)).expect("metadata");
            let led = metadata.topics().iter().flat_map(|topic| topic.partitions());
            if led.filter(|partition| partition.leader() >= 0).count() == partitions as usize {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("topic {name} has no leaders after 15 s");
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)))
}

/// On a thread and runtime of its own, so that async tests can call in, too.
fn block_on<F>(future: F) -> F::Output
where
    F: Future + Send,
    F::Output: Send,
{
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
        });
        thread.join().expect("the admin call")
    })
}

/// A Redis: Debian's, or one with RedisTimeSeries.
pub struct Redis {
    server: Server,
    /// `redis://127.0.0.1:PORT`, with the password if there is one.
    pub url: String,
}

impl Redis {
    /// Debian's Redis 7.0, which knows no `TS.*`.
    pub fn start() -> Redis {
        Redis::started("redis.sh", "")
    }

    /// The same, behind a password. `url` holds it.
    pub fn start_with_password(password: &str) -> Redis {
        Redis::started("redis.sh", password)
    }

    /// Redis 7.4 with RedisTimeSeries.
    pub fn start_with_time_series() -> Redis {
        Redis::started("redis-stack.sh", "")
    }

    fn started(script: &'static str, password: &str) -> Redis {
        let options = ["--password", password];
        let server = Server::start(script, if password.is_empty() { &[] } else { &options });
        let login = if password.is_empty() { String::new() } else { format!(":{password}@") };
        let url = format!("redis://{login}127.0.0.1:{}", server.number::<u16>("port"));
        Redis { server, url }
    }

    /// A connection of the test's own.
    pub fn connection(&self) -> redis::Connection {
        let client = redis::Client::open(self.url.as_str()).expect("a Redis url");
        client.get_connection().expect("a Redis connection")
    }
}

/// A Prometheus that scrapes what its configuration says.
pub struct Prometheus {
    server: Server,
    /// `http://127.0.0.1:PORT`
    pub url: String,
}

impl Prometheus {
    /// Starts one with the text of a `prometheus.yml`.
    pub fn start(config: &str) -> Prometheus {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("prometheus.yml"), config).expect("prometheus.yml");
        let server = Server::start_in(folder, "prometheus.sh", &[]);
        let url = format!("http://127.0.0.1:{}", server.number::<u16>("port"));
        Prometheus { server, url }
    }

    /// Starts one that scrapes `127.0.0.1:PORT/metrics` of each port, every second, as job `streamgauge`.
    pub fn scraping(ports: &[u16]) -> Prometheus {
        let targets: Vec<String> = ports.iter().map(|port| format!("'127.0.0.1:{port}'")).collect();
        Prometheus::start(&format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs:\n- job_name: streamgauge\n  static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        ))
    }

    /// The answer to an instant query: `data.result` of the HTTP API.
    pub fn query(&self, expression: &str) -> serde_json::Value {
        let mut answer: serde_json::Value = ureq::get(format!("{}/api/v1/query", self.url))
            .query("query", expression)
            .call()
            .expect("Prometheus's answer")
            .body_mut()
            .read_json()
            .expect("Prometheus's JSON");
        answer["data"]["result"].take()
    }
}
