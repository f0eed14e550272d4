//! The way of dead letters to their store: complete epochs only, cut with the checkpoint, cut back on restart.
//!
//! While the disk refuses them nothing is taken from the workers, and nothing more is read: none vanishes.

use crate::checkpoint::Piece;
use crate::crew::Part;
use crate::dead_letters::{DeadLetter, DeadLetters, Position};
use crate::outage::{Outage, what};
use crate::process::Shared;
use crate::source::node::Refused;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use operators::Epoch;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The name of this lane in checkpoints.
pub const NAME: &str = "dead_letters";
/// Letters that may wait; beyond, a worker waits for the disk. It is a slow disk that cannot write what was read.
const WAITING: usize = 65_536;

enum Push {
    Letter(Epoch, Refused),
    Cut(Epoch),
    End,
}

/// Where a process' dead letters ended at a cut.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// Always [`NAME`].
    pub sink: String,
    /// The process.
    pub process: usize,
    /// The end of its store.
    pub position: Position,
}

/// A worker's end.
#[derive(Clone)]
pub struct DeadLetterLane(Sender<Push>);

impl DeadLetterLane {
    /// A record or value that was refused, in a complete epoch.
    pub fn push(&self, epoch: Epoch, refused: Refused) {
        let _ = self.0.send(Push::Letter(epoch, refused));
    }
    /// The caller's worker has pushed everything below the cut.
    pub fn cut(&self, cut: Epoch) {
        let _ = self.0.send(Push::Cut(cut));
    }
    /// The caller's worker pushes nothing more.
    pub fn end(&self) {
        let _ = self.0.send(Push::End);
    }
}

/// The lane of a process: takes what workers push, and writes it.
pub struct DeadLane {
    store: DeadLetters,
    process: usize,
    workers: usize,
    names: Vec<(Arc<str>, Arc<str>)>,
    inbox: Receiver<Push>,
    pieces: Sender<(Epoch, Piece)>,
    shared: Arc<Shared>,
    outage: Outage,
    /// Letters that the store is to take now.
    ready: VecDeque<DeadLetter>,
    /// A cut that every worker has reached, and that has not been taken.
    due: Option<Epoch>,
    /// How many workers have reached a cut.
    cuts: BTreeMap<Epoch, usize>,
    /// A letter beyond a cut that another worker has not reached waits here: the cut's position is before it.
    ahead: Vec<(Epoch, DeadLetter)>,
    ended: usize,
}

impl DeadLane {
    /// Of a process with so many workers; it ends when all of them have.
    pub fn new(
        store: DeadLetters,
        (process, workers): (usize, usize),
        streams: &[(String, String)],
        pieces: Sender<(Epoch, Piece)>,
        shared: Arc<Shared>,
    ) -> (Self, DeadLetterLane) {
        let (sender, inbox) = bounded(WAITING);
        let names = streams.iter().map(|(source, topic)| (source.as_str().into(), topic.as_str().into())).collect();
        let lane = Self {
            store,
            process,
            workers,
            names,
            inbox,
            pieces,
            outage: shared.disk.holding_outage(what::DEAD_LETTERS),
            shared,
            ready: VecDeque::new(),
            due: None,
            cuts: BTreeMap::new(),
            ahead: Vec::new(),
            ended: 0,
        };
        (lane, DeadLetterLane(sender))
    }

    /// Takes the next push, or finds that there is none. False: the workers are gone.
    fn take(&mut self, patience: Duration) -> io::Result<bool> {
        let push = match self.inbox.try_recv() {
            Ok(push) => push,
            Err(_) => {
                // Nothing waits: what there is becomes visible.
                self.store.flush()?;
                match self.inbox.recv_timeout(patience) {
                    Ok(push) => push,
                    Err(RecvTimeoutError::Timeout) => return Ok(true),
                    Err(RecvTimeoutError::Disconnected) => return Ok(false),
                }
            }
        };
        match push {
            Push::Letter(epoch, refused) => {
                let letter = letter(&self.names, epoch, refused);
                match self.cuts.first_key_value() {
                    Some((cut, _)) if epoch >= *cut => self.ahead.push((epoch, letter)),
                    _ => self.ready.push_back(letter),
                }
            }
            Push::Cut(cut) => {
                let reached = self.cuts.entry(cut).or_default();
                *reached += 1;
                if *reached == self.workers {
                    self.due = Some(cut);
                    self.let_go(cut);
                }
            }
            Push::End => self.ended += 1,
        }
        Ok(self.ended < self.workers)
    }

    /// Letters below `end` need not wait any more.
    fn let_go(&mut self, end: Epoch) {
        let (below, ahead) = std::mem::take(&mut self.ahead).into_iter().partition(|(epoch, _)| *epoch < end);
        self.ahead = ahead;
        let below: Vec<(Epoch, DeadLetter)> = below;
        self.ready.extend(below.into_iter().map(|(_, letter)| letter));
    }

    /// Gives the store what it is to have; after an error again from where it failed.
    fn give(&mut self) -> io::Result<()> {
        loop {
            // One that the store cannot write now it keeps.
            while let Some(letter) = self.ready.pop_front() {
                self.store.append(&letter)?;
            }
            let Some(cut) = self.due else { return Ok(()) };
            let position = self.store.sync()?;
            let state = State { sink: NAME.to_owned(), process: self.process, position };
            let _ = self.pieces.send((cut, Piece::Lane(serde_json::to_value(state)?)));
            self.due = None;
            self.cuts.retain(|other, _| *other > cut);
            self.let_go(self.cuts.keys().next().copied().unwrap_or(Epoch::MAX));
        }
    }

    /// False: everything has been written, and nothing more comes.
    fn step(&mut self, patience: Duration) -> io::Result<bool> {
        let more = if self.outage.is_on() {
            self.give()?;
            self.store.flush()?;
            self.ended < self.workers
        } else {
            let more = self.take(patience)?;
            self.give()?;
            more
        };
        if !more {
            self.ended = self.workers;
            self.let_go(Epoch::MAX);
            self.give()?;
            self.store.sync()?;
        }
        Ok(more)
    }
}

impl Part for DeadLane {
    fn turn(&mut self, patience: Duration) -> bool {
        if !self.outage.is_due() {
            std::thread::sleep(patience.min(self.outage.left()));
            return !self.shared.failed();
        }
        match self.step(patience) {
            Ok(more) => {
                self.outage.over();
                more
            }
            Err(error) => {
                self.outage.failed(&self.store.path(), &error);
                true
            }
        }
    }
}

fn letter(names: &[(Arc<str>, Arc<str>)], epoch: Epoch, refused: Refused) -> DeadLetter {
    let name = names[usize::from(refused.stream)].clone();
    let mut letter = DeadLetter::new(name, refused.partition, refused.offset, epoch, refused.reason);
    letter.index = refused.index;
    letter.reading = refused.reading;
    letter.payload(&refused.bytes)
}
