//! A lane: what waits for one sink of one process, and what a checkpoint must know of it (DESIGN.md, idea 5; R9).
//!
//! A state machine without threads: `step` takes what happened and says what to do next; `driver` does it, and the
//! simulation does it under a seeded scheduler. What waits stands in line as
//!
//! ```text
//! done | front (the first `flying` are being written) | segment files | back          held
//! ```
//!
//! Batches enter at the back and leave at the front. Beyond the memory that the lane may take, the back goes to a segment
//! file. *Done* holds what the destination acknowledged and could still forget by crashing: it is let go once the same
//! connection has answered again, so much later that the destination has certainly synced.
//!
//! A checkpoint at cut C takes one of two forms. A destination elsewhere: everything below C that is not certainly there
//! goes into segment files, which the lane's state lists. A destination that is itself part of the checkpoint (the
//! journal, an archive of files): everything below C is written first, nothing at or above C (that is *held* back), then
//! the destination says what it has made durable.

mod disk;
mod parts;

use super::segment::{self, SegmentError, SegmentRef};
use super::{Held, Item, LaneState, Position, SinkError, Traits};
use crate::config::WhenFull;
use crate::seam::Fs;
use operators::Epoch;
pub use parts::{Action, Event, Figures, Settings};
use parts::{Kept, Link, Queue, Spilled, Waiting};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use tracing::{error, info, warn};

const BACKOFF_US: u64 = 100_000;
const BACKOFF_US_MAX: u64 = 10_000_000;
/// So much may be kept of what was acknowledged, even where less may wait: it goes by every 2 s, no faster.
const DONE_BYTES: u64 = 4 << 20;

/// The state machine.
pub struct Lane<T> {
    settings: Settings,
    fs: Arc<dyn Fs>,
    rng: fastrand::Rng,
    link: Link,
    connected_before: bool,
    failures: u32,
    /// Since when the destination has been away.
    down_since: Option<u64>,
    /// When the destination was last asked for something.
    asked: u64,
    /// When it was asked for what it last answered. The answer itself may have lain in a socket while we slept, and the
    /// destination died.
    contact: u64,
    /// Up to where the destination has everything.
    position: Option<Position>,
    /// The position that the destination itself named: what stands there is sent once more, for it to compare.
    named: Option<Position>,
    /// The furthest that was ever sent.
    sent: Option<Position>,
    done: Queue<T>,
    front: Queue<T>,
    flying: usize,
    spilled: VecDeque<Spilled>,
    spilled_bytes: u64,
    back: Queue<T>,
    held: Queue<T>,
    spill_failed: bool,
    spill_retry_at: u64,
    full: bool,
    /// Per worker, the cuts that it has reached and the lane has not taken.
    cuts: Vec<VecDeque<Epoch>>,
    cut_due: Option<Epoch>,
    cut_retry_at: Option<u64>,
    commit_due: Option<Epoch>,
    kept: VecDeque<Kept>,
    commits: usize,
    /// The segments that it was handed, of processes that are no more among them.
    restored: BTreeSet<String>,
    sequence: u64,
    ended: Vec<bool>,
    gave_up: bool,
    drained: bool,
    retries: u64,
    refused: u64,
}

impl<T: Item> Lane<T> {
    /// A lane that is connecting, with what the checkpoint kept for it; every listed segment is read once to see that it
    /// is whole.
    pub fn new(settings: Settings, fs: Arc<dyn Fs>, restored: &[LaneState]) -> Result<Self, SegmentError> {
        let mut lane = Self {
            rng: fastrand::Rng::with_seed(settings.seed),
            link: Link::Connecting,
            connected_before: false,
            failures: 0,
            down_since: None,
            asked: 0,
            contact: 0,
            position: restored.iter().filter_map(|state| state.acknowledged).max(),
            named: None,
            sent: None,
            done: Queue::new(),
            front: Queue::new(),
            flying: 0,
            spilled: VecDeque::new(),
            spilled_bytes: 0,
            back: Queue::new(),
            held: Queue::new(),
            spill_failed: false,
            spill_retry_at: 0,
            full: false,
            cuts: vec![VecDeque::new(); settings.workers],
            cut_due: None,
            cut_retry_at: None,
            commit_due: None,
            kept: VecDeque::new(),
            commits: 0,
            restored: BTreeSet::new(),
            sequence: 0,
            ended: vec![false; settings.workers],
            gave_up: false,
            drained: false,
            retries: 0,
            refused: 0,
            settings,
            fs,
        };
        for state in restored {
            for listed in &state.segments {
                let items: Vec<T> = segment::read(&*lane.fs, &lane.settings.dir, listed)?;
                let count = items.iter().map(Item::count).sum();
                lane.spilled_bytes += listed.length;
                lane.spilled.push_back(Spilled {
                    segment: listed.clone(),
                    count,
                    since: 0,
                    synced: true,
                    sync_tried: false,
                });
            }
            let names: Vec<String> = state.segments.iter().map(|s| s.name.clone()).collect();
            lane.restored.extend(names.iter().cloned());
            lane.kept.push_back(Kept { cut: state.cut, names, committed: true });
        }
        Ok(lane)
    }

    /// Takes what happened; appends what is to be done.
    pub fn step(&mut self, now: u64, event: Event<T>, actions: &mut Vec<Action<T>>) {
        match event {
            Event::Push(item) => self.push(now, item, actions),
            Event::Cut(worker, cut) => {
                self.cuts[worker].push_back(cut);
                self.align();
                self.release();
            }
            Event::End(worker) => self.ended[worker] = true,
            Event::Connected(position) => self.connected(now, position),
            Event::Done => self.succeeded(now),
            Event::Failed(error) => self.failed(now, error),
            Event::CutTaken(cut, held) => {
                self.alive(now);
                self.report(cut, Vec::new(), held, actions);
            }
            Event::Committed(cut) => self.committed(cut),
            Event::GiveUp => self.gave_up = true,
            Event::Tick => {}
        }
        self.advance(now, actions);
        self.full = if self.full { self.usage() * 4 > self.room() * 3 } else { self.usage() >= self.room() };
    }

    /// When `Tick` is wanted, if nothing else happens before.
    pub fn wake_at(&self) -> Option<u64> {
        let link = match self.link {
            Link::Down { retry_at } => Some(retry_at),
            Link::Idle if !self.done.items.is_empty() => Some(self.contact + self.settings.traits.forgets_us),
            _ => None,
        };
        [link, self.cut_retry_at].into_iter().flatten().min()
    }

    /// Whether the lane is full and its sink wants reading to pause then.
    pub fn pauses(&self) -> bool {
        self.link == Link::Stopped || (self.full && self.settings.when_full == WhenFull::Pause)
    }

    /// Whether a checkpoint that is durable has still to be shown by the destination.
    pub fn commit_pending(&self) -> bool {
        self.commit_due.is_some()
    }

    /// How it is doing.
    pub fn figures(&self) -> Figures {
        let oldest = self.front.items.front().map(|w| w.since);
        let oldest = oldest.or(self.spilled.front().map(|s| s.since)).or(self.back.items.front().map(|w| w.since));
        Figures {
            waiting: self.waiting(),
            memory: self.front.bytes + self.back.bytes + self.held.bytes + self.done.bytes,
            spilled: self.spilled_bytes,
            oldest: oldest.or(self.held.items.front().map(|w| w.since)),
            up: self.down_since.is_none()
                && self.connected_before
                && !matches!(self.link, Link::Stopped | Link::Foreign),
            retries: self.retries,
            refused: self.refused,
        }
    }

    fn waiting(&self) -> u64 {
        self.front.count + self.back.count + self.held.count + self.spilled.iter().map(|s| s.count).sum::<u64>()
    }
    fn usage(&self) -> u64 {
        self.front.bytes + self.back.bytes + self.held.bytes + self.spilled_bytes
    }
    fn room(&self) -> u64 {
        // Where the disk takes nothing, or nothing is to go there, memory is all there is.
        let memory_only = self.settings.traits.in_checkpoint || self.spill_failed;
        if memory_only { self.settings.memory.min(self.settings.capacity) } else { self.settings.capacity }
    }

    fn push(&mut self, now: u64, item: T, actions: &mut Vec<Action<T>>) {
        if self.full && self.settings.when_full == WhenFull::DeadLetter {
            actions.push(Action::Shed(item));
            return;
        }
        self.drained = false;
        self.enqueue(Waiting { item, since: now });
        self.spill(now);
    }

    fn enqueue(&mut self, waiting: Waiting<T>) {
        let bytes = waiting.item.bytes();
        if self.settings.traits.in_checkpoint {
            let beyond = self.next_cut().is_some_and(|cut| waiting.item.epoch() >= cut);
            let queue = if beyond { &mut self.held } else { &mut self.front };
            queue.push_back(waiting);
        } else if self.spilled.is_empty()
            && self.back.items.is_empty()
            && (self.front.items.is_empty() || self.front.bytes + bytes <= self.settings.memory / 2)
        {
            self.front.push_back(waiting);
        } else {
            self.back.push_back(waiting);
        }
    }

    /// The least cut that some worker has reached and the lane has not taken.
    fn next_cut(&self) -> Option<Epoch> {
        self.cut_due.or_else(|| self.cuts.iter().filter_map(|cuts| cuts.front().copied()).min())
    }

    /// A cut is due once all workers have reached it. A worker that passed several at once names only the newest: the
    /// older ones will never be complete.
    fn align(&mut self) {
        while let Some(newest) = self.cuts.iter().filter_map(|cuts| cuts.front().copied()).max() {
            for cuts in &mut self.cuts {
                while cuts.front().is_some_and(|cut| *cut < newest) {
                    cuts.pop_front();
                }
            }
            if self.cuts.iter().any(|cuts| cuts.front() != Some(&newest)) {
                if self.cuts.iter().any(VecDeque::is_empty) {
                    return;
                }
                continue;
            }
            // One that could not be taken so far counts no more; but a destination must take them one by one, because
            // what it was given already lies below the older.
            if self.settings.traits.in_checkpoint && self.cut_due.is_some() {
                return;
            }
            for cuts in &mut self.cuts {
                cuts.pop_front();
            }
            self.cut_due = Some(newest);
            self.cut_retry_at = None;
        }
    }

    /// Lets go what was held for a cut that has been taken, or that will never be complete.
    fn release(&mut self) {
        let next = self.next_cut().unwrap_or(Epoch::MAX);
        if self.held.items.iter().any(|waiting| waiting.item.epoch() < next) || next == Epoch::MAX {
            for waiting in std::mem::replace(&mut self.held, Queue::new()).items {
                self.enqueue(waiting);
            }
        }
    }

    fn alive(&mut self, now: u64) {
        self.contact = self.asked;
        self.link = Link::Idle;
        self.failures = 0;
        if let Some(since) = self.down_since.take() {
            let away_ms = (now - since) / 1000;
            info!(sink = self.settings.sink, away_ms, waiting = self.waiting(), "sink answers again");
        }
    }

    fn connected(&mut self, now: u64, position: Option<Position>) {
        let before = std::mem::replace(&mut self.connected_before, true);
        if let Some(has) = position {
            // This run's own, and what may have come of a write without an answer; or what earlier runs can have sent.
            let ours = if before { self.position.max(self.sent) } else { self.position };
            let beyond = if before { position > ours } else { self.beyond(has) };
            if beyond {
                self.foreign(&format!("it has got as far as {has}, and we have not"));
                return;
            }
        }
        if self.waiting() == 0 {
            self.alive(now);
        } else {
            // A server that lets us in and then takes nothing is still away: the write that follows decides.
            self.contact = self.asked;
            self.link = Link::Idle;
        }
        if position < self.position && position.is_some() {
            let (had, has) = (self.position, position);
            warn!(
                sink = self.settings.sink,
                ?had,
                ?has,
                kept = self.done.count,
                "destination went back; sending again"
            );
        }
        // What it may have forgotten is sent again: all of it, where it cannot tell.
        if before {
            while self.done.items.back().is_some_and(|w| position.is_none() || w.item.last() > position) {
                if let Some(waiting) = self.done.pop_back() {
                    self.front.push_front(waiting);
                }
            }
        }
        if position.is_some() {
            self.position = position;
            self.named = position;
        }
    }

    /// Whether no run before this one can have written that.
    fn beyond(&self, has: Position) -> bool {
        self.settings.written > 0 && has.epoch > self.settings.written
    }

    fn foreign(&mut self, reason: &str) {
        self.link = Link::Foreign;
        error!(
            sink = self.settings.sink,
            reason,
            waiting = self.waiting(),
            "somebody else writes to this destination; its lane stops. Give the sink a key of its own, and start again"
        );
    }

    fn succeeded(&mut self, now: u64) {
        if let Link::Committing(cut) = self.link {
            self.commit_due = self.commit_due.filter(|due| *due != cut);
        }
        self.alive(now);
        for _ in 0..std::mem::take(&mut self.flying) {
            self.acknowledge_front(now);
        }
        self.let_go(self.settings.memory / 4);
    }

    fn acknowledge_front(&mut self, now: u64) {
        if let Some(written) = self.front.pop_front() {
            self.position = self.position.max(written.item.last());
            if self.settings.traits.forgets_us > 0 {
                self.done.push_back(Waiting { item: written.item, since: now });
            }
        }
    }

    /// Lets go of what the destination cannot forget any more, as far as that takes more memory than `room`.
    fn let_go(&mut self, room: u64) {
        let certain = self.contact.saturating_sub(self.settings.traits.forgets_us);
        while self.done.bytes > room && self.done.items.front().is_some_and(|w| w.since <= certain) {
            self.done.pop_front();
        }
    }

    fn failed(&mut self, now: u64, error: SinkError) {
        let flying = std::mem::take(&mut self.flying);
        match error {
            SinkError::Refused(reason) => {
                self.alive(now);
                let before = self.front.count;
                for _ in 0..flying {
                    self.front.pop_front();
                }
                let entries = before - self.front.count;
                self.refused += entries;
                error!(sink = self.settings.sink, entries, reason, "sink refused a batch; it is lost to this sink");
            }
            SinkError::Unavailable(reason) => {
                if self.down_since.is_none() {
                    warn!(
                        sink = self.settings.sink,
                        reason,
                        waiting = self.waiting(),
                        "sink unavailable; its lane waits"
                    );
                    self.down_since = Some(now);
                }
                let back_off = (BACKOFF_US << self.failures.min(16)).min(BACKOFF_US_MAX);
                let jitter = self.rng.u64(back_off / 2..=back_off);
                self.failures += 1;
                self.link = Link::Down { retry_at: now + jitter };
            }
            SinkError::Foreign(reason) => self.foreign(&reason),
        }
    }

    fn advance(&mut self, now: u64, actions: &mut Vec<Action<T>>) {
        self.take_cut(now, actions);
        if let Link::Down { retry_at } = self.link
            && now >= retry_at
        {
            self.retries += 1;
            self.link = Link::Connecting;
            self.asked = now;
            actions.push(Action::Connect);
        }
        if self.link == Link::Idle {
            self.next(now, actions);
        }
        // Delivered just now, perhaps: a last cut that waited for it can be taken.
        self.take_cut(now, actions);
        let over = self.ended.iter().all(|ended| *ended);
        let nothing_due = self.cut_due.is_none() && self.cuts.iter().all(VecDeque::is_empty);
        if over && !self.drained && (self.gave_up || (self.waiting() == 0 && self.flying == 0 && nothing_due)) {
            self.drained = true;
            actions.push(Action::Drained(self.waiting()));
        }
    }

    /// What an idle sink is to do next.
    fn next(&mut self, now: u64, actions: &mut Vec<Action<T>>) {
        if self.settings.traits.in_checkpoint {
            if let Some(cut) = self.commit_due {
                // Due until it is done: after a failure it is asked for again.
                self.link = Link::Committing(cut);
                self.asked = now;
                actions.push(Action::Commit(cut));
                return;
            }
            if let Some(cut) = self.cut_due
                && self.front.items.is_empty()
            {
                self.link = Link::Cutting;
                actions.push(Action::TakeCut(cut));
                return;
            }
        }
        self.refill(now);
        if self.link != Link::Idle {
            return;
        }
        // What the destination has already (replayed, or written by a write of which no answer came) is skipped.
        while self.position.is_some()
            && self.front.items.front().is_some_and(|w| {
                w.item.last().is_some_and(|last| Some(last) <= self.position && Some(last) != self.named)
            })
        {
            self.acknowledge_front(now);
            self.refill(now);
        }
        let Traits { batch_entries, batch_bytes, .. } = self.settings.traits;
        let (mut entries, mut bytes, mut batch) = (0, 0, Vec::new());
        for waiting in &self.front.items {
            entries += waiting.item.count();
            bytes += waiting.item.bytes();
            if !batch.is_empty() && (entries > batch_entries || bytes > batch_bytes) {
                break;
            }
            batch.push(waiting.item.clone());
        }
        // What the destination acknowledged and may yet forget takes memory, too: no more than what waits may take.
        if !batch.is_empty() && self.done.bytes <= self.settings.memory.max(DONE_BYTES) {
            self.sent = self.sent.max(batch.last().and_then(Item::last));
            self.named = None;
            self.flying = batch.len();
            self.link = Link::Writing;
            self.asked = now;
            actions.push(Action::Write(batch));
        } else if !self.done.items.is_empty() && now >= self.contact + self.settings.traits.forgets_us {
            self.link = Link::Probing;
            self.asked = now;
            actions.push(Action::Probe);
        }
    }

    /// Takes a cut for a destination elsewhere: what it lacks, or may still forget, becomes durable here.
    fn take_cut(&mut self, now: u64, actions: &mut Vec<Action<T>>) {
        let Some(cut) = self.cut_due.filter(|_| !self.settings.traits.in_checkpoint) else { return };
        if self.cut_retry_at.is_some_and(|at| now < at) {
            return;
        }
        // At the end of all work the destination may finish first, so that nothing need be sent twice.
        if cut == Epoch::MAX && !self.gave_up && self.waiting() > 0 {
            return;
        }
        self.let_go(0);
        match self.make_durable(cut) {
            Ok(segments) => {
                if self.cut_retry_at.take().is_some() {
                    info!(sink = self.settings.sink, "lane can write its part of a checkpoint again");
                }
                self.report(cut, segments, Held::default(), actions);
            }
            Err(error) => {
                if self.cut_retry_at.is_none() {
                    error!(sink = self.settings.sink, %error, "lane cannot write its part of a checkpoint; it tries again");
                }
                self.cut_retry_at = Some(now + BACKOFF_US * 10);
            }
        }
    }

    fn report(&mut self, cut: Epoch, segments: Vec<SegmentRef>, held: Held, actions: &mut Vec<Action<T>>) {
        self.cut_due = None;
        self.align();
        self.release();
        let names = segments.iter().map(|s| s.name.clone()).collect();
        self.kept.push_back(Kept { cut, names, committed: false });
        actions.push(Action::Report(LaneState {
            sink: self.settings.sink.clone(),
            process: self.settings.process,
            term: self.settings.term,
            cut,
            acknowledged: self.position,
            segments,
            files: held.files,
            length: held.length,
        }));
    }
}

#[cfg(test)]
mod tests;
