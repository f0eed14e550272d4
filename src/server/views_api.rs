//! What the server may ask the workers, and how their answers become one.
//!
//! Each worker answers from its own arrangements; nothing is copied beside them. A worker that does not answer in time
//! makes the whole answer fail: half an answer looks like a whole one.

use crossbeam_channel::{Receiver, Sender, TrySendError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A question to every local worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewQuery {
    /// Every alert that fires now.
    Alerts,
    /// How many fire, by rule, site and severity.
    AlertCounts,
    /// How many series each rule watches.
    Rules,
    /// Last values, in order of (sensor, metric).
    Last {
        /// Of this sensor only.
        sensor: Option<String>,
        /// As many as are wanted.
        limit: usize,
    },
}

/// A worker's answer: the variant of the question.
#[derive(Clone, Debug, PartialEq)]
pub enum ViewAnswer {
    /// To `ViewQuery::Alerts`.
    Alerts(Vec<FiringAlert>),
    /// To `ViewQuery::AlertCounts`.
    AlertCounts(Vec<AlertCount>),
    /// To `ViewQuery::Rules`.
    Rules(Vec<RuleSeries>),
    /// To `ViewQuery::Last`.
    Last(Vec<LastValue>),
}

/// A question on its way to one worker. Where `reply.is_closed()`, nobody waits any more.
pub struct ViewRequest {
    /// What is asked.
    pub query: ViewQuery,
    /// Where the answer goes.
    pub reply: oneshot::Sender<ViewAnswer>,
}

/// An alert that fires now. Times are microseconds since 1970, as in the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FiringAlert {
    /// Its id, 32 hex digits.
    pub alert: String,
    /// Its rule's name.
    pub rule: String,
    /// Its severity.
    pub severity: String,
    /// The sensor.
    pub sensor: String,
    /// The metric.
    pub metric: String,
    /// Where the sensor is, if the inventory says so.
    #[serde(default)]
    pub site: Option<String>,
    /// The event time at which the condition first held.
    pub start: i64,
    /// The event time at which it began to fire.
    pub since: i64,
    /// What was judged then; none for a missing value.
    #[serde(default)]
    pub value: Option<f64>,
}

/// Alerts that fire now, counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertCount {
    /// The rule's name.
    pub rule: String,
    /// The sensors' site.
    #[serde(default)]
    pub site: Option<String>,
    /// The severity.
    pub severity: String,
    /// How many fire.
    pub firing: u64,
}

/// How many series a rule watches now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSeries {
    /// The rule's key (`name`, or `name:level`).
    pub rule: String,
    /// How many series.
    pub series: u64,
}

/// The newest accepted value of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastValue {
    /// The sensor.
    pub sensor: String,
    /// The metric.
    pub metric: String,
    /// Its event time, microseconds since 1970.
    pub time: i64,
    /// The value.
    pub value: f64,
}

/// The way to one worker.
pub struct WorkerView {
    /// Its questions; bounded, so that a stuck worker cannot pile them up.
    pub requests: Sender<ViewRequest>,
    /// Wakes it when it is parked.
    pub wake: Arc<dyn Fn() + Send + Sync>,
}

impl WorkerView {
    /// A way to a worker, and the end that it reads.
    pub fn new(wake: Arc<dyn Fn() + Send + Sync>) -> (Self, Receiver<ViewRequest>) {
        let (requests, receiver) = crossbeam_channel::bounded(64);
        (Self { requests, wake }, receiver)
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Not all workers run yet.
    #[error("the workers are starting; try again in a moment")]
    Starting,
    /// A worker has too many questions waiting.
    #[error("the workers have too many questions waiting; try again in a moment")]
    Busy,
    /// A worker has not answered in time.
    #[error("the workers have not answered within {0:?}; /readyz says why, if it is known")]
    Late(Duration),
    /// A worker has ended.
    #[error("the workers are stopping")]
    Stopping,
}

/// The ways to all local workers.
pub struct Views {
    expected: usize,
    patience: Duration,
    workers: Mutex<Vec<WorkerView>>,
}

impl Views {
    /// For this many local workers, each of which is still to `attach`.
    pub fn new(expected: usize) -> Self {
        Self::with_patience(expected, Duration::from_secs(2))
    }

    /// The same with another time-out.
    pub fn with_patience(expected: usize, patience: Duration) -> Self {
        Self { expected, patience, workers: Mutex::default() }
    }

    /// Adds the way to a worker that runs now.
    pub fn attach(&self, worker: WorkerView) {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
    }

    /// Asks every worker and merges what they say.
    pub async fn ask(&self, query: ViewQuery) -> Result<ViewAnswer, AskError> {
        let deadline = Instant::now() + self.patience;
        let replies = self.send(&query)?;
        let mut answers = Vec::with_capacity(replies.len());
        for reply in replies {
            match tokio::time::timeout_at(deadline, reply).await {
                Ok(Ok(answer)) => answers.push(answer),
                Ok(Err(_)) => return Err(AskError::Stopping),
                Err(_) => return Err(AskError::Late(self.patience)),
            }
        }
        Ok(merge(&query, answers))
    }

    fn send(&self, query: &ViewQuery) -> Result<Vec<oneshot::Receiver<ViewAnswer>>, AskError> {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if workers.len() < self.expected {
            return Err(AskError::Starting);
        }
        workers
            .iter()
            .map(|worker| {
                let (reply, receiver) = oneshot::channel();
                worker.requests.try_send(ViewRequest { query: query.clone(), reply }).map_err(|e| match e {
                    TrySendError::Full(_) => AskError::Busy,
                    TrySendError::Disconnected(_) => AskError::Stopping,
                })?;
                (worker.wake)();
                Ok(receiver)
            })
            .collect()
    }
}

fn by_name(alert: &FiringAlert) -> [&str; 5] {
    [&alert.rule, &alert.severity, &alert.sensor, &alert.metric, &alert.alert]
}

/// One answer of many, in an order that depends on their contents only. Answers to another question are ignored.
pub fn merge(query: &ViewQuery, answers: Vec<ViewAnswer>) -> ViewAnswer {
    match query {
        ViewQuery::Alerts => {
            let mut all: Vec<_> = answers.into_iter().filter_map(ViewAnswer::alerts).flatten().collect();
            all.sort_by(|a, b| {
                let newest = (b.since, b.start).cmp(&(a.since, a.start));
                newest.then_with(|| by_name(a).cmp(&by_name(b)))
            });
            ViewAnswer::Alerts(all)
        }
        ViewQuery::AlertCounts => {
            let mut sums = BTreeMap::new();
            for count in answers.into_iter().filter_map(ViewAnswer::alert_counts).flatten() {
                *sums.entry((count.rule, count.site, count.severity)).or_insert(0) += count.firing;
            }
            let count = |((rule, site, severity), firing)| AlertCount { rule, site, severity, firing };
            ViewAnswer::AlertCounts(sums.into_iter().map(count).collect())
        }
        ViewQuery::Rules => {
            let mut sums = BTreeMap::new();
            for rule in answers.into_iter().filter_map(ViewAnswer::rules).flatten() {
                *sums.entry(rule.rule).or_insert(0) += rule.series;
            }
            ViewAnswer::Rules(sums.into_iter().map(|(rule, series)| RuleSeries { rule, series }).collect())
        }
        ViewQuery::Last { limit, .. } => {
            let mut all: Vec<_> = answers.into_iter().filter_map(ViewAnswer::last).flatten().collect();
            all.sort_by(|a, b| (&a.sensor, &a.metric).cmp(&(&b.sensor, &b.metric)).then(b.time.cmp(&a.time)));
            all.dedup_by(|later, first| (&later.sensor, &later.metric) == (&first.sensor, &first.metric));
            all.truncate(*limit);
            ViewAnswer::Last(all)
        }
    }
}

impl ViewAnswer {
    /// The alerts, if that was the question.
    pub fn alerts(self) -> Option<Vec<FiringAlert>> {
        if let Self::Alerts(all) = self { Some(all) } else { None }
    }
    /// The counts, if that was the question.
    pub fn alert_counts(self) -> Option<Vec<AlertCount>> {
        if let Self::AlertCounts(all) = self { Some(all) } else { None }
    }
    /// The rules, if that was the question.
    pub fn rules(self) -> Option<Vec<RuleSeries>> {
        if let Self::Rules(all) = self { Some(all) } else { None }
    }
    /// The last values, if that was the question.
    pub fn last(self) -> Option<Vec<LastValue>> {
        if let Self::Last(all) = self { Some(all) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(sensor: &str, time: i64) -> LastValue {
        LastValue { sensor: sensor.into(), metric: "t".into(), time, value: time as f64 }
    }

    #[test]
    fn the_order_of_the_workers_does_not_matter() {
        let query = ViewQuery::Last { sensor: None, limit: 2 };
        let a = ViewAnswer::Last(vec![last("b", 1), last("c", 1)]);
        let b = ViewAnswer::Last(vec![last("a", 1), last("b", 2)]);
        let merged = ViewAnswer::Last(vec![last("a", 1), last("b", 2)]);
        assert_eq!(merge(&query, vec![a.clone(), b.clone()]), merged);
        assert_eq!(merge(&query, vec![b, a]), merged);
    }

    #[test]
    fn counts_of_the_workers_are_added() {
        let rules = |series| ViewAnswer::Rules(vec![RuleSeries { rule: "too-hot".into(), series }]);
        assert_eq!(merge(&ViewQuery::Rules, vec![rules(3), rules(4)]), rules(7));
        let counts = |firing| {
            let (rule, severity) = ("too-hot".into(), "warning".into());
            ViewAnswer::AlertCounts(vec![AlertCount { rule, site: None, severity, firing }])
        };
        assert_eq!(merge(&ViewQuery::AlertCounts, vec![counts(1), counts(1)]), counts(2));
    }

    #[tokio::test]
    async fn no_worker_no_answer_and_a_stopped_worker_says_so() {
        let views = Views::new(1);
        assert_eq!(views.ask(ViewQuery::Rules).await, Err(AskError::Starting));
        let (worker, requests) = WorkerView::new(Arc::new(|| ()));
        views.attach(worker);
        drop(requests);
        assert_eq!(views.ask(ViewQuery::Rules).await, Err(AskError::Stopping));
    }

    #[tokio::test]
    async fn a_worker_that_does_not_answer_makes_no_half_answer() {
        let patience = Duration::from_millis(20);
        let views = Views::with_patience(2, patience);
        let (silent, _kept) = WorkerView::new(Arc::new(|| ()));
        let (quick, requests) = WorkerView::new(Arc::new(|| ()));
        views.attach(quick);
        views.attach(silent);
        let answering = async {
            requests.recv().unwrap().reply.send(ViewAnswer::Rules(Vec::new())).unwrap();
        };
        let (answer, ()) = tokio::join!(views.ask(ViewQuery::Rules), answering);
        assert_eq!(answer, Err(AskError::Late(patience)));
    }

    #[tokio::test]
    async fn questions_to_a_stuck_worker_do_not_pile_up() {
        let views = Views::with_patience(1, Duration::ZERO);
        let (stuck, requests) = WorkerView::new(Arc::new(|| ()));
        views.attach(stuck);
        for _ in 0..64 {
            assert_eq!(views.ask(ViewQuery::Rules).await, Err(AskError::Late(Duration::ZERO)));
        }
        assert_eq!(views.ask(ViewQuery::Rules).await, Err(AskError::Busy));
        assert!(requests.recv().unwrap().reply.is_closed());
    }
}
