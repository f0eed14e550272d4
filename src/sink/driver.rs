//! Drives a lane: does what it says, tells it what came of it, and shows how it is doing.

use super::lane::{Action, Event, Lane};
use super::lanes::{Message, Port};
use super::{Item, LaneState, Sink, SinkError, StartError, Written};
use crate::crew::Part;
use crate::failpoint::{self, When};
use crate::metrics::Metrics;
use crate::seam::Clock;
use crossbeam_channel::Sender;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;

/// No call of a destination may take longer: then the connection is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a closing lane goes on showing what the last checkpoint lists.
const CLOSING_US: u64 = 10_000_000;

/// Takes what a full lane sheds: (sink, batch).
pub(super) type SheddingOf<T> = Box<dyn Fn(&str, T) + Send>;

/// What a driver needs beside its lane and its sink.
pub(super) struct Around<T> {
    pub name: String,
    pub term: u64,
    pub port: Arc<Port>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<Metrics>,
    pub cuts: Arc<dyn Fn(LaneState) + Send + Sync>,
    pub drained: Sender<(String, u64)>,
    pub shed: SheddingOf<T>,
}

type Doing<S> = Pin<Box<dyn Future<Output = (S, Outcome<<S as Sink>::Item>)> + Send>>;

struct Outcome<T> {
    event: Event<T>,
    written: Option<(Written, Vec<T>, u64)>,
}

/// A lane, its sink, and what goes between them.
pub(super) struct Driver<S: Sink> {
    lane: Lane<S::Item>,
    /// None while it is doing something.
    sink: Option<S>,
    doing: Option<Doing<S>>,
    messages: UnboundedReceiver<Message<S::Item>>,
    inbox: Vec<Message<S::Item>>,
    actions: Vec<Action<S::Item>>,
    closing: Option<u64>,
    around: Around<S::Item>,
    show: Show,
    runtime: Handle,
}

/// What a turn begins with.
enum Next<S: Sink> {
    Outcome(S, Outcome<S::Item>),
    /// Messages, perhaps none.
    Inbox,
    /// Whoever pushed to the lane is gone.
    Alone,
}

impl<S: Sink> Driver<S> {
    /// Of a lane whose sink is connected.
    pub fn new(
        lane: Lane<S::Item>,
        sink: S,
        messages: UnboundedReceiver<Message<S::Item>>,
        around: Around<S::Item>,
        runtime: Handle,
    ) -> Self {
        let show = Show::new(&around);
        let (inbox, actions) = (Vec::new(), Vec::new());
        Self { lane, sink: Some(sink), doing: None, messages, inbox, actions, closing: None, around, show, runtime }
    }

    /// Waits for the next thing.
    async fn wait(&mut self, patience: Duration) -> Next<S> {
        let now = self.around.clock.monotonic_us();
        let until_tick = self.lane.wake_at().map(|at| Duration::from_micros(at.saturating_sub(now)));
        let patience = until_tick.map_or(patience, |until| until.min(patience));
        let patience = if self.closing.is_some() { Duration::from_millis(10) } else { patience };
        tokio::select! {
            count = self.messages.recv_many(&mut self.inbox, 512), if self.closing.is_none() => {
                if count == 0 { Next::Alone } else { Next::Inbox }
            }
            (sink, outcome) = finish(&mut self.doing) => Next::Outcome(sink, outcome),
            () = tokio::time::sleep(patience) => Next::Inbox,
        }
    }

    /// What there is already: the outcome, or one message.
    fn look(&mut self) -> Next<S> {
        let mut finish = std::pin::pin!(finish(&mut self.doing));
        if let Poll::Ready((sink, outcome)) = finish.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Next::Outcome(sink, outcome);
        }
        if self.closing.is_none() {
            match self.messages.try_recv() {
                Ok(message) => self.inbox.push(message),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Next::Alone,
            }
        }
        Next::Inbox
    }

    /// Tells the lane, and does what it says. False: it is closed.
    fn step(&mut self, next: Next<S>) -> bool {
        let Self { lane, around, show, .. } = self;
        let now = around.clock.monotonic_us();
        match next {
            Next::Alone => return false,
            Next::Outcome(sink, outcome) => {
                self.doing = None;
                self.sink = Some(sink);
                if let Some((written, batch, took_us)) = &outcome.written {
                    show.written(written, batch, *took_us, around.clock.wall_ms());
                }
                failpoint::pass("acknowledge", &around.name, When::Before);
                lane.step(now, outcome.event, &mut self.actions);
                failpoint::pass("acknowledge", &around.name, When::After);
            }
            Next::Inbox if self.inbox.is_empty() => lane.step(now, Event::Tick, &mut self.actions),
            Next::Inbox => {}
        }
        for message in self.inbox.drain(..) {
            match message {
                Message::Close => self.closing = Some(now),
                Message::Event(event) => {
                    if let Event::Push(item) = &event {
                        around.port.unseen.fetch_sub(item.bytes(), Relaxed);
                    }
                    lane.step(now, event, &mut self.actions);
                }
            }
        }
        for action in self.actions.drain(..) {
            match action {
                Action::Report(state) => {
                    failpoint::pass("report", &around.name, When::Before);
                    (around.cuts)(state);
                    failpoint::pass("report", &around.name, When::After);
                }
                Action::Shed(item) => {
                    show.shed(item.count());
                    (around.shed)(&around.name, item);
                }
                Action::Drained(left) => {
                    let _ = around.drained.send((around.name.clone(), left));
                }
                action => {
                    if let Some(sink) = self.sink.take() {
                        self.doing = Some(start(sink, action, around));
                    }
                }
            }
        }
        around.port.full.store(lane.pauses(), Relaxed);
        show.figures(lane, now);
        self.closing.is_none_or(|since| lane.commit_pending() && now <= since + CLOSING_US)
    }
}

impl<S: Sink> Part for Driver<S> {
    fn turn(&mut self, patience: Duration) -> bool {
        let _guard = PanicGuard(Arc::clone(&self.around.port));
        let runtime = self.runtime.clone();
        let _context = runtime.enter();
        let next = if patience.is_zero() { self.look() } else { runtime.block_on(self.wait(patience)) };
        self.step(next)
    }
}

/// A lane that panicked takes nothing more: reading stops.
struct PanicGuard(Arc<Port>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.full.store(true, Relaxed);
        }
    }
}

async fn finish<T>(doing: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match doing {
        Some(doing) => doing.await,
        None => std::future::pending().await,
    }
}

fn start<S: Sink>(mut sink: S, action: Action<S::Item>, around: &Around<S::Item>) -> Doing<S> {
    let (name, term, clock) = (around.name.clone(), around.term, Arc::clone(&around.clock));
    Box::pin(async move {
        let operation = operation(&action);
        failpoint::pass(operation, &name, When::Before);
        let started = clock.monotonic_us();
        let done = tokio::time::timeout(PATIENCE, perform(&mut sink, action, term)).await;
        failpoint::pass(operation, &name, When::After);
        let took_us = clock.monotonic_us() - started;
        let outcome = match done {
            Ok(Ok((event, written))) => {
                Outcome { event, written: written.map(|(written, batch)| (written, batch, took_us)) }
            }
            Ok(Err(error)) => Outcome { event: Event::Failed(error), written: None },
            Err(_) => {
                let error = format!("no answer within {} s", PATIENCE.as_secs());
                Outcome { event: Event::Failed(SinkError::Unavailable(error)), written: None }
            }
        };
        (sink, outcome)
    })
}

/// What a destination is asked for, as fail points call it.
fn operation<T>(action: &Action<T>) -> &'static str {
    match action {
        Action::Connect => "connect",
        Action::Write(_) => "send",
        Action::Probe => "probe",
        Action::TakeCut(_) => "cut",
        Action::Commit(_) => "show",
        Action::Report(_) | Action::Shed(_) | Action::Drained(_) => "none",
    }
}

type Performed<T> = (Event<T>, Option<(Written, Vec<T>)>);

async fn perform<S: Sink>(sink: &mut S, action: Action<S::Item>, term: u64) -> Result<Performed<S::Item>, SinkError> {
    let event = match action {
        Action::Connect => {
            sink.connect(term).await.map_err(|error| match error {
                StartError::Foreign(reason) => SinkError::Foreign(reason),
                error => SinkError::Unavailable(error.to_string()),
            })?;
            Event::Connected(sink.position().await?)
        }
        Action::Write(batch) => {
            let written = sink.write(&batch).await?;
            return Ok((Event::Done, Some((written, batch))));
        }
        Action::Probe => {
            sink.probe().await?;
            Event::Done
        }
        Action::TakeCut(cut) => Event::CutTaken(cut, sink.take_cut(cut).await.map_err(passing)?),
        Action::Commit(cut) => {
            sink.commit(cut).await.map_err(passing)?;
            Event::Done
        }
        Action::Report(_) | Action::Shed(_) | Action::Drained(_) => Event::Tick,
    };
    Ok((event, None))
}

/// A cut that is not taken and a file that is not shown can only be tried again.
fn passing(error: SinkError) -> SinkError {
    match error {
        SinkError::Refused(reason) | SinkError::Unavailable(reason) | SinkError::Foreign(reason) => {
            SinkError::Unavailable(reason)
        }
    }
}

/// The lane's families, looked up once.
struct Show {
    sink: String,
    metrics: Arc<Metrics>,
    retries: u64,
    refused: u64,
    shown: Option<super::lane::Figures>,
}

impl Show {
    fn new<T>(around: &Around<T>) -> Self {
        let Around { name, metrics, .. } = around;
        // Families appear with the first value: so that a rate over them starts at zero.
        metrics.sink_records_total.with_label_values(&[name]);
        metrics.sink_retries_total.with_label_values(&[name.as_str(), "unavailable"]);
        Self { sink: name.clone(), metrics: Arc::clone(metrics), retries: 0, refused: 0, shown: None }
    }

    fn written<T: Item>(&self, written: &Written, batch: &[T], took_us: u64, wall_ms: u64) {
        let Self { metrics, sink, .. } = self;
        let sink = sink.as_str();
        metrics.sink_records_total.with_label_values(&[sink]).inc_by(written.entries);
        metrics.sink_write_duration_seconds.with_label_values(&[sink]).observe(took_us as f64 * 1e-6);
        for (reason, entries) in &written.refused {
            metrics.sink_refused_total.with_label_values(&[sink, *reason]).inc_by(*entries);
        }
        if written.collisions > 0 {
            metrics.sink_collisions_total.with_label_values(&[sink]).inc_by(written.collisions);
        }
        let delay = metrics.alert_delay_seconds.with_label_values(&[sink]);
        for item in batch.iter().filter(|item| item.last().is_some()) {
            let delay_ms = wall_ms.saturating_sub(item.epoch());
            (0..item.count()).for_each(|_| delay.observe(delay_ms as f64 * 1e-3));
        }
    }

    fn shed(&self, entries: u64) {
        self.metrics.sink_refused_total.with_label_values(&[self.sink.as_str(), "lane_full"]).inc_by(entries);
    }

    fn figures<T: Item>(&mut self, lane: &Lane<T>, now: u64) {
        let figures = lane.figures();
        if self.shown == Some(figures) && figures.oldest.is_none() {
            return;
        }
        self.shown = Some(figures);
        let Self { metrics, sink, .. } = self;
        let sink = &[sink.as_str()];
        metrics.sink_up.with_label_values(sink).set(figures.up.into());
        metrics.sink_queue_items.with_label_values(sink).set(figures.waiting as i64);
        metrics.sink_spill_bytes.with_label_values(sink).set(figures.spilled as i64);
        let age_us = figures.oldest.map_or(0, |since| now.saturating_sub(since));
        metrics.sink_lag_seconds.with_label_values(sink).set(age_us as f64 * 1e-6);
        let retries = metrics.sink_retries_total.with_label_values(&[sink[0], "unavailable"]);
        retries.inc_by(figures.retries - std::mem::replace(&mut self.retries, figures.retries));
        if figures.refused > self.refused {
            let refused = metrics.sink_refused_total.with_label_values(&[sink[0], "refused"]);
            refused.inc_by(figures.refused - std::mem::replace(&mut self.refused, figures.refused));
        }
    }
}
