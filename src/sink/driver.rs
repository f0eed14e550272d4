//! Drives a lane: does what it says, tells it what came of it, and shows how it is doing.

use super::lane::{Action, Event, Lane};
use super::lanes::{Message, Port};
use super::{Item, LaneState, Sink, SinkError, Written};
use crate::metrics::Metrics;
use crate::seam::Clock;
use crossbeam_channel::Sender;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;

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
    pub cuts: Sender<LaneState>,
    pub drained: Sender<(String, u64)>,
    pub shed: SheddingOf<T>,
}

type Doing<S> = Pin<Box<dyn Future<Output = (S, Outcome<<S as Sink>::Item>)> + Send>>;

struct Outcome<T> {
    event: Event<T>,
    written: Option<(Written, Vec<T>, u64)>,
}

/// Runs until it is told to close, or its handles are gone.
pub(super) async fn drive<S: Sink>(
    mut lane: Lane<S::Item>,
    sink: S,
    mut messages: UnboundedReceiver<Message<S::Item>>,
    around: Around<S::Item>,
) {
    let mut show = Show::new(&around);
    let mut sink = Some(sink);
    let mut doing: Option<Doing<S>> = None;
    let mut inbox = Vec::new();
    let mut actions = Vec::new();
    let mut closing: Option<u64> = None;
    loop {
        let now = around.clock.monotonic_us();
        let sleep = lane.wake_at().map(|at| Duration::from_micros(at.saturating_sub(now)));
        let sleep = if closing.is_some() { Some(Duration::from_millis(10)) } else { sleep };
        let outcome = tokio::select! {
            count = messages.recv_many(&mut inbox, 512), if closing.is_none() => {
                if count == 0 {
                    return;
                }
                None
            }
            (back, outcome) = finish(&mut doing) => {
                doing = None;
                sink = Some(back);
                Some(outcome)
            }
            () = pause(sleep) => None,
        };
        let now = around.clock.monotonic_us();
        if let Some(outcome) = outcome {
            if let Some((written, batch, took_us)) = &outcome.written {
                show.written(written, batch, *took_us, around.clock.wall_ms());
            }
            lane.step(now, outcome.event, &mut actions);
        } else if inbox.is_empty() {
            lane.step(now, Event::Tick, &mut actions);
        }
        for message in inbox.drain(..) {
            match message {
                Message::Close => closing = Some(now),
                Message::Event(event) => {
                    if let Event::Push(item) = &event {
                        around.port.unseen.fetch_sub(item.bytes(), Relaxed);
                    }
                    lane.step(now, event, &mut actions);
                }
            }
        }
        for action in actions.drain(..) {
            match action {
                Action::Report(state) => {
                    // Nobody there to take it: the process is ending.
                    let _ = around.cuts.send(state);
                }
                Action::Shed(item) => {
                    show.shed(item.count());
                    (around.shed)(&around.name, item);
                }
                Action::Drained(left) => {
                    let _ = around.drained.send((around.name.clone(), left));
                }
                action => {
                    if let Some(sink) = sink.take() {
                        doing = Some(start(sink, action, around.term, Arc::clone(&around.clock)));
                    }
                }
            }
        }
        around.port.full.store(lane.pauses(), Relaxed);
        show.figures(&lane, now);
        if closing.is_some_and(|since| !lane.commit_pending() || now > since + CLOSING_US) {
            return;
        }
    }
}

async fn finish<T>(doing: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match doing {
        Some(doing) => doing.await,
        None => std::future::pending().await,
    }
}

async fn pause(sleep: Option<Duration>) {
    match sleep {
        Some(sleep) => tokio::time::sleep(sleep).await,
        None => std::future::pending().await,
    }
}

fn start<S: Sink>(mut sink: S, action: Action<S::Item>, term: u64, clock: Arc<dyn Clock>) -> Doing<S> {
    Box::pin(async move {
        let started = clock.monotonic_us();
        let done = tokio::time::timeout(PATIENCE, perform(&mut sink, action, term)).await;
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

type Performed<T> = (Event<T>, Option<(Written, Vec<T>)>);

async fn perform<S: Sink>(sink: &mut S, action: Action<S::Item>, term: u64) -> Result<Performed<S::Item>, SinkError> {
    let event = match action {
        Action::Connect => {
            sink.connect(term).await.map_err(|error| SinkError::Unavailable(error.to_string()))?;
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
        SinkError::Refused(reason) | SinkError::Unavailable(reason) => SinkError::Unavailable(reason),
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
