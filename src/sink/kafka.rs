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
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const METADATA: Duration = Duration::from_secs(5);

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
    producer: Option<FutureProducer<Complaints>>,
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
        let producer: FutureProducer<Complaints> = self
            .config
            .create_with_context(complaints.clone())
            .map_err(|error| StartError::Settings(format!("properties: {error}")))?;
        let deadline = Instant::now() + METADATA;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(200));
            let metadata = producer.client().fetch_metadata(Some(topic), left).map_err(|error| {
                use RDKafkaErrorCode::{Authentication, SSL, SaslAuthenticationFailed};
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
        let mut deliveries = Vec::new();
        for alerts in batch {
            for entry in &alerts.0.alerts {
                let mut value = Vec::new();
                line::write(alerts.0.epoch, entry, &mut value);
                let key = entry.alert.id_hex();
                let event = format!("{key}-{}", entry.alert.state.number());
                let headers = OwnedHeaders::new().insert(Header { key: "event", value: Some(&event) });
                let record = FutureRecord::to(&self.topic).key(&key).payload(&value).headers(headers);
                deliveries.push(producer.send_result(record).map_err(|(error, _)| not_sent(error))?);
            }
        }
        let entries = deliveries.len() as u64;
        for delivery in deliveries {
            match delivery.await {
                Ok(Ok(_)) => {}
                Ok(Err((error, _))) => return Err(not_sent(error)),
                Err(_) => return Err(SinkError::Unavailable(format!("{}: given up", self.servers))),
            }
        }
        Ok(Written { entries, ..Written::default() })
    }
}
