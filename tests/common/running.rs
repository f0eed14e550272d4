//! A streamgauge that runs while a test looks at it, and Kafka as a plain client sees it.

use crate::program::streamgauge;
use crate::servers::Kafka;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long anything that a test waits for may take, on a machine that compiles at the same time.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A program of ours under way; a test that fails ends it.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts it; what it says goes to `log`.
    pub fn start(args: &[&str], log: &Path) -> Running {
        Running::start_with(args, log, |_| {})
    }

    /// The same, when the command has been told more than its arguments.
    pub fn start_with(args: &[&str], log: &Path, tell: impl FnOnce(&mut Command)) -> Running {
        let mut command = streamgauge(args);
        tell(&mut command);
        Running::spawn(command, log)
    }

    /// Starts what comes to be the program.
    pub fn spawn(mut command: Command, log: &Path) -> Running {
        let out = File::create(log).expect("a log");
        command.stdout(out.try_clone().expect("a log")).stderr(Stdio::from(out));
        Running { child: command.spawn().expect("the program starts"), log: log.to_owned() }
    }

    /// What it has said.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for something that only a living program can bring about.
    pub fn until<T>(&mut self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let log = self.log.clone();
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            if let Some(status) = self.child.try_wait().expect("its state") {
                panic!("it ended ({status}) before: {what}\n{}", said());
            }
            assert!(Instant::now() < end, "waited {PATIENCE:?} for: {what}\n{}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it has said something so many times.
    pub fn until_says(&mut self, text: &str, times: usize) {
        let log = self.log.clone();
        let said = || std::fs::read_to_string(&log).unwrap_or_default().matches(text).count();
        self.until(text, || (said() >= times).then_some(()));
    }

    /// Waits until its page answers.
    pub fn until_up(&mut self, port: u16) {
        self.until("GET /healthz", || get(port, "/healthz").filter(|(status, _)| *status == 200));
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits so long for its end; none if it goes on.
    pub fn ends_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + patience;
        loop {
            match self.child.try_wait().expect("its state") {
                None if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                status => return status,
            }
        }
    }

    /// Ends it as a power cut would.
    pub fn kill9(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("its end");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("told");
    }

    /// Asks it to end (SIGTERM).
    pub fn ask_to_end(&self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
    }

    /// The same, and waits.
    pub fn terminate(mut self) -> (ExitStatus, String) {
        self.ask_to_end();
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> (ExitStatus, String) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                return (status, self.said());
            }
            assert!(Instant::now() < end, "it does not end\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a page of ours answers; none if nobody is there.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let config =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(10)));
    let agent: ureq::Agent = config.build().into();
    let mut answer = agent.get(format!("http://127.0.0.1:{port}{path}")).call().ok()?;
    let status = answer.status().as_u16();
    Some((status, answer.body_mut().read_to_string().ok()?))
}

/// A record to send: partition, bytes (none for a tombstone), time stamp in milliseconds.
pub type Plain = (i32, Option<Vec<u8>>, i64);

/// Sends records, each partition's in their order.
pub fn send(kafka: &Kafka, topic: &str, records: &[Plain]) {
    let producer: BaseProducer = kafka.client().set("message.max.bytes", "4194304").create().expect("a producer");
    for (partition, payload, timestamp) in records {
        let mut record: BaseRecord<'_, (), [u8]> = BaseRecord::to(topic).partition(*partition).timestamp(*timestamp);
        record.payload = payload.as_deref();
        producer.send(record).unwrap_or_else(|(error, _)| panic!("sending: {error}"));
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).expect("sent");
}

/// The number of partitions of a topic and the next offset of each.
pub fn ends(kafka: &Kafka, topic: &str) -> Vec<i64> {
    let consumer: BaseConsumer = kafka.client().create().expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("metadata");
    let partitions = metadata.topics()[0].partitions().len() as i32;
    (0..partitions).map(|p| consumer.fetch_watermarks(topic, p, PATIENCE).expect("watermarks").1).collect()
}

/// Everything that a topic holds, as the oracle takes it.
pub fn records(kafka: &Kafka, source: &str, topic: &str) -> Vec<oracle::Record> {
    let ends = ends(kafka, topic);
    let consumer: BaseConsumer =
        kafka.client().set("group.id", "plain").set("enable.auto.commit", "false").create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..ends.len() as i32 {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("a partition");
    }
    consumer.assign(&list).expect("assigned");
    let mut left: i64 = ends.iter().sum();
    let mut records = Vec::new();
    while left > 0 {
        let message = consumer.poll(PATIENCE).expect("a record in time").expect("a record");
        if message.offset() >= ends[message.partition() as usize] {
            continue;
        }
        left -= 1;
        records.push(oracle::Record {
            source: source.into(),
            topic: topic.into(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            payload: message.payload().map(<[u8]>::to_vec),
        });
    }
    records
}
