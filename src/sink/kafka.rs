//! Alerts to a Kafka topic: at least once, with a key.
//!
//! Key: the alert's id, so that the transitions of an alert stay in order in one partition. Value: the journal's line.
//! Header `event`: the alert's id and the transition's number; whoever drops repeated ones has each transition once.
//! librdkafka's idempotent producer repeats nothing within a connection; after a restart, what was sent since the last
//! checkpoint's acknowledged position may come again.

use super::*;
use crate::config::KafkaSink;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const METADATA: Duration = Duration::from_secs(5);
/// How often what librdkafka has to tell is looked at: while records are under way, and in quiet times. A thread that waits
/// for it, as rdkafka's `FutureProducer` has one, spins through the last millisecond of each of its waits.
const UNDER_WAY: Duration = Duration::from_millis(4);
const QUIET: Duration = Duration::from_secs(1);

/// What librdkafka last complained about: its calls themselves only say that time ran out.
#[derive(Clone, Default)]
struct Complaints(Arc<Mutex<Option<Complaint>>>);

type Complaint = (Option<RDKafkaErrorCode>, String);

impl ClientContext for Complaints {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        tracing::debug!(?level, facility, text, "librdkafka");
    }
    fn error(&self, error: KafkaError, reason: &str) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // That all brokers are down follows from what was said before it.
        let code = error.rdkafka_error_code();
        if kept.is_none() || code != Some(RDKafkaErrorCode::AllBrokersDown) {
            *kept = Some((code, reason.to_owned()));
        }
    }
}

/// Records under way, and the first that did not arrive.
#[derive(Default)]
struct Deliveries {
    left: AtomicUsize,
    failure: Mutex<Option<KafkaError>>,
}

impl ProducerContext for Complaints {
    type DeliveryOpaque = Arc<Deliveries>;

    fn delivery(&self, result: &DeliveryResult<'_>, deliveries: Arc<Deliveries>) {
        if let Err((error, _)) = result {
            deliveries.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        }
        deliveries.left.fetch_sub(1, SeqCst);
    }
}

impl Complaints {
    fn take(&self) -> Option<Complaint> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A topic.
pub struct KafkaAlerts {
    servers: String,
    topic: String,
    config: ClientConfig,
    producer: Option<Arc<BaseProducer<Complaints>>>,
}

impl KafkaAlerts {
    /// By its settings, not connected yet.
    pub fn new(settings: &KafkaSink) -> Result<Self, StartError> {
        let mut config = ClientConfig::new();
        config.set("client.id", "streamgauge").set("linger.ms", "5").set("compression.type", "zstd");
        // Less than the lane's patience: an answer, even that there is none, comes before it gives up.
        config.set("message.timeout.ms", "20000");
        for (key, value) in &settings.properties {
            config.set(key, value.expose());
        }
        config.set("bootstrap.servers", &settings.bootstrap_servers).set("enable.idempotence", "true");
        config.set_log_level(RDKafkaLogLevel::Warning);
        Ok(Self { servers: settings.bootstrap_servers.clone(), topic: settings.topic.clone(), config, producer: None })
    }

    /// What `check` shows.
    pub fn look(&mut self) -> Result<String, StartError> {
        let partitions = self.open()?;
        Ok(format!("Kafka at {}, topic {}, {partitions} partitions", self.servers, self.topic))
    }

    /// A new producer; the topic's partitions.
    fn open(&mut self) -> Result<usize, StartError> {
        let Self { servers, topic, .. } = self;
        self.producer = None;
        let complaints = Complaints::default();
        let producer: BaseProducer<Complaints> = self
            .config
            .create_with_context(complaints.clone())
            .map_err(|error| StartError::Settings(format!("properties: {error}")))?;
        let producer = Arc::new(producer);
        let deadline = Instant::now() + METADATA;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(200));
            let metadata = producer.client().fetch_metadata(Some(topic), left).map_err(|error| {
                use RDKafkaErrorCode::{Authentication, SSL, SaslAuthenticationFailed};
                producer.poll(UNDER_WAY);
                match complaints.take() {
                    Some((Some(Authentication | SaslAuthenticationFailed), why)) => StartError::Denied(format!(
                        "{servers} does not accept the user or password: {why}; put the right ones into properties"
                    )),
                    Some((Some(SSL), why)) => {
                        StartError::Denied(format!("{servers}: no TLS connection: {why}; see properties"))
                    }
                    Some((_, why)) => {
                        StartError::Unreachable(format!("{servers} does not answer: {why}; is Kafka running there?"))
                    }
                    None => {
                        StartError::Unreachable(format!("{servers} does not answer: {error}; is Kafka running there?"))
                    }
                }
            })?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            let error = found.and_then(|found| found.error()).map(RDKafkaErrorCode::from);
            let partitions = found.map_or(0, |found| found.partitions().len());
            if partitions > 0 && error.is_none() {
                tokio::spawn(hear(Arc::downgrade(&producer)));
                self.producer = Some(producer);
                return Ok(partitions);
            }
            if error == Some(RDKafkaErrorCode::TopicAuthorizationFailed) {
                return Err(StartError::Denied(format!(
                    "{servers} does not let this user see topic `{topic}`; give it the permission to write there"
                )));
            }
            if Instant::now() >= deadline {
                return Err(StartError::Settings(format!(
                    "{servers} has no topic `{topic}`; create it, or name another"
                )));
            }
            // Perhaps it is being created by our asking: brokers do that unless told otherwise.
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Sink for KafkaAlerts {
    type Item = Alerts;

    fn traits(&self) -> Traits {
        Traits { in_checkpoint: false, forgets_us: 0, batch_entries: 1000, batch_bytes: 1 << 20 }
    }

    async fn connect(&mut self, _term: u64) -> Result<(), StartError> {
        self.open().map(drop)
    }

    async fn write(&mut self, batch: &[Alerts]) -> Result<Written, SinkError> {
        let not_sent = |error: KafkaError| SinkError::Unavailable(format!("{}: {error}", self.servers));
        let Some(producer) = &self.producer else {
            return Err(SinkError::Unavailable(format!("not connected to {}", self.servers)));
        };
        let deliveries = Arc::<Deliveries>::default();
        let mut entries = 0;
        for alerts in batch {
            for entry in &alerts.0.alerts {
                let mut value = Vec::new();
                line::write(alerts.0.epoch, entry, &mut value);
                let key = entry.alert.id_hex();
                let event = format!("{key}-{}", entry.alert.state.number());
                let headers = OwnedHeaders::new().insert(Header { key: "event", value: Some(&event) });
                let record = BaseRecord::with_opaque_to(&self.topic, deliveries.clone());
                let record = record.key(&key).payload(&value).headers(headers);
                deliveries.left.fetch_add(1, SeqCst);
                producer.send(record).map_err(|(error, _)| not_sent(error))?;
                entries += 1;
            }
        }
        while deliveries.left.load(SeqCst) > 0 {
            // The lane has this thread to itself: sleeping is one wake-up, a timer of the runtime three.
            std::thread::sleep(UNDER_WAY);
            tokio::task::yield_now().await;
            let mut left = usize::MAX;
            // One event at a time, each of several records.
            while deliveries.left.load(SeqCst) < left {
                left = deliveries.left.load(SeqCst);
                producer.poll(Duration::ZERO);
            }
        }
        let failure = deliveries.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(Written { entries, ..Written::default() }), |error| Err(not_sent(error)))
    }
}

/// What librdkafka says when nothing is written: complaints, which would pile up.
async fn hear(producer: std::sync::Weak<BaseProducer<Complaints>>) {
    while let Some(producer) = producer.upgrade() {
        producer.poll(Duration::ZERO);
        drop(producer);
        tokio::time::sleep(QUIET).await;
    }
}
