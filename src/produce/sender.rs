//! A Kafka producer that knows what it has sent, waits when its queue is full, and says what was not delivered.

use crate::error::Failure;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a broker has to answer at the start.
const CONNECT: Duration = Duration::from_secs(10);
/// How long deliveries may take after the last message.
const FLUSH: Duration = Duration::from_secs(30);
/// Delivery reports are looked at every so many messages.
const POLL_EVERY: u64 = 1_000;

/// Where to send.
#[derive(Clone, Debug)]
pub struct Target {
    /// Brokers as `host:port,host:port`.
    pub bootstrap_servers: String,
    /// The topic.
    pub topic: String,
    /// Create the topic with this many partitions if there is none.
    pub create_partitions: Option<u32>,
    /// Settings of librdkafka; they go before ours.
    pub properties: Vec<(String, String)>,
}

/// What has been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Messages taken on.
    pub records: u64,
    /// Their bytes, keys included.
    pub bytes: u64,
    /// Messages that did not arrive.
    pub failed: u64,
}

/// Hears of deliveries that failed and of a broker's errors. (Successes are not reported: they would cost as much again.)
#[derive(Default)]
struct Ear {
    failed: Mutex<BTreeMap<String, u64>>,
    last_error: Mutex<Option<String>>,
}

impl Ear {
    fn fail(&self, error: &KafkaError) {
        let why = error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string());
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
    }
}

impl ClientContext for Ear {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(fac, message, "librdkafka says");
            }
            _ => tracing::warn!(fac, message, "librdkafka says"),
        }
    }
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka reports an error");
        // "all brokers are down" follows the reason why and says less.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }
}

impl ProducerContext for Ear {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.fail(error);
        }
    }
}

/// Sends to one topic.
pub struct Sender {
    producer: BaseProducer<Ear>,
    target: Target,
    partitions: u32,
    stop: Arc<AtomicBool>,
    sent: Sent,
}

impl Sender {
    /// Connects, and makes sure that the topic is there. `stop` ends every wait.
    pub fn connect(target: Target, stop: Arc<AtomicBool>) -> Result<Self, Failure> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &target.bootstrap_servers)
            // A repeated attempt must neither double a message nor overtake another: the truth counts and orders them.
            .set("enable.idempotence", "true")
            .set("delivery.report.only.error", "true")
            .set("queue.buffering.max.messages", "200000")
            .set("linger.ms", "5");
        for (key, value) in &target.properties {
            config.set(key, value);
        }
        let invalid = |e: KafkaError| Failure::configuration(format!("librdkafka refuses a setting: {e}"));
        let producer: BaseProducer<Ear> = config.create_with_context(Ear::default()).map_err(invalid)?;
        let mut sender = Self { producer, target, partitions: 0, stop, sent: Sent::default() };
        sender.partitions = match (sender.find_topic()?, sender.target.create_partitions) {
            (Some(found), Some(wanted)) if found != wanted => {
                tracing::warn!(topic = sender.target.topic, partitions = found, wanted, "the topic is there already");
                found
            }
            (Some(found), _) => found,
            (None, Some(wanted)) => sender.create_topic(&config, wanted)?,
            (None, None) => {
                return Err(Failure::unreachable(format!(
                    "{} has no topic `{}`; --create-partitions 8 creates it with eight",
                    sender.target.bootstrap_servers, sender.target.topic
                )));
            }
        };
        Ok(sender)
    }

    /// How many partitions the topic has.
    pub fn partitions(&self) -> u32 {
        self.partitions
    }
    /// What has been taken on so far.
    pub fn sent(&self) -> Sent {
        Sent { failed: self.failures().values().sum(), ..self.sent }
    }
    /// Messages that are still on their way.
    pub fn in_flight(&self) -> u64 {
        self.producer.in_flight_count().max(0) as u64
    }

    /// Takes on one message; waits while the queue is full. False: it was not taken on because `stop` is set.
    pub fn send(
        &mut self,
        partition: u32,
        key: Option<&[u8]>,
        payload: &[u8],
        timestamp_ms: Option<i64>,
    ) -> Result<bool, Failure> {
        let topic = &self.target.topic;
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition as i32).payload(payload);
        record.key = key;
        record.timestamp = timestamp_ms;
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    if self.stop.load(Ordering::Relaxed) {
                        return Ok(false);
                    }
                    self.producer.poll(Duration::from_millis(2));
                    record = back;
                }
                // This message cannot be sent; others can.
                Err((error @ KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => {
                    self.producer.context().fail(&error);
                    break;
                }
                Err((error, _)) => return Err(self.unreachable(&error)),
            }
        }
        self.sent.records += 1;
        self.sent.bytes += (key.map_or(0, <[u8]>::len) + payload.len()) as u64;
        if self.sent.records.is_multiple_of(POLL_EVERY) {
            self.producer.poll(Duration::ZERO);
        }
        Ok(true)
    }

    /// Waits this long, and looks after deliveries. (`poll` with a time spins through its last millisecond: a plant of a
    /// thousand readings a second would keep a core busy.)
    pub fn wait(&self, time: Duration) {
        std::thread::sleep(time);
        self.producer.poll(Duration::ZERO);
    }

    /// Waits until everything has been delivered or has failed, and fails if something has.
    pub fn flush(&self) -> Result<(), Failure> {
        let flushed = self.producer.flush(FLUSH);
        let left = self.in_flight();
        let sent = self.sent();
        if let Some((why, n)) = self.failures().into_iter().max_by_key(|(_, n)| *n) {
            let message = format!(
                "{} of {} messages were not delivered to `{}`: {why} ({n} times)",
                sent.failed + left,
                sent.records,
                self.target.topic
            );
            return Err(Failure::unreachable(message));
        }
        match flushed {
            Ok(()) => Ok(()),
            Err(error) => {
                let message = format!(
                    "{left} of {} messages were not delivered to `{}` within {FLUSH:?}: {error}{}",
                    sent.records,
                    self.target.topic,
                    self.reason()
                );
                Err(Failure::unreachable(message))
            }
        }
    }

    fn failures(&self) -> BTreeMap<String, u64> {
        self.producer.context().failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    fn reason(&self) -> String {
        let last = self.producer.context().last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.map(|reason| format!(": {reason}")).unwrap_or_default()
    }
    fn unreachable(&self, error: &KafkaError) -> Failure {
        let code = error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string());
        let message = format!("cannot send to {}: {code}{}", self.target.bootstrap_servers, self.reason());
        Failure::unreachable(message)
    }

    /// The topic's partitions; none if there is no such topic. Asks for all topics, since asking for one may create it.
    fn find_topic(&self) -> Result<Option<u32>, Failure> {
        let metadata = self.producer.client().fetch_metadata(None, CONNECT).map_err(|error| {
            // The reason why waits in the queue.
            self.producer.poll(Duration::from_millis(50));
            self.unreachable(&error)
        })?;
        let topic = metadata.topics().iter().find(|t| t.name() == self.target.topic);
        Ok(topic.map(|t| t.partitions().len() as u32).filter(|n| *n > 0))
    }

    fn create_topic(&self, config: &ClientConfig, partitions: u32) -> Result<u32, Failure> {
        let topic = &self.target.topic;
        let refused = |why: String| Failure::unreachable(format!("cannot create the topic `{topic}`: {why}"));
        let admin: AdminClient<DefaultClientContext> = config.create().map_err(|e| refused(e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| refused(e.to_string()))?;
        let new = [NewTopic::new(topic, partitions as i32, TopicReplication::Fixed(-1))];
        let options = AdminOptions::new().operation_timeout(Some(CONNECT)).request_timeout(Some(CONNECT));
        let results = runtime.block_on(admin.create_topics(&new, &options)).map_err(|e| refused(e.to_string()))?;
        for result in results {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(refused(code.to_string())),
            }
        }
        // Brokers take a moment to tell each other.
        let deadline = Instant::now() + CONNECT;
        loop {
            if let Some(found) = self.find_topic()? {
                return Ok(found);
            }
            if Instant::now() > deadline || self.stop.load(Ordering::Relaxed) {
                return Err(refused(format!("it has not appeared within {CONNECT:?}")));
            }
            self.producer.poll(Duration::from_millis(50));
        }
    }
}
