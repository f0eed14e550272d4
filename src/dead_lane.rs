//! The way of dead letters to their store: complete epochs only, cut with the checkpoint, cut back on restart.

use crate::checkpoint::Piece;
use crate::crew::Part;
use crate::dead_letters::{DeadLetter, DeadLetters, Position};
use crate::error::Failure;
use crate::process::Shared;
use crate::source::node::Refused;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use operators::Epoch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
        let (cuts, ahead, ended) = (BTreeMap::new(), Vec::new(), 0);
        let lane = Self { store, process, workers, names, inbox, pieces, shared, cuts, ahead, ended };
        (lane, DeadLetterLane(sender))
    }

    fn step(&mut self, patience: Duration) -> io::Result<bool> {
        let push = match self.inbox.try_recv() {
            Ok(push) => push,
            Err(_) => {
                // Nothing waits: what there is becomes visible.
                self.store.flush()?;
                match self.inbox.recv_timeout(patience) {
                    Ok(push) => push,
                    Err(RecvTimeoutError::Timeout) => return Ok(true),
                    Err(RecvTimeoutError::Disconnected) => return self.end(),
                }
            }
        };
        match push {
            Push::Letter(epoch, refused) => {
                let letter = letter(&self.names, epoch, refused);
                match self.cuts.first_key_value() {
                    Some((cut, _)) if epoch >= *cut => self.ahead.push((epoch, letter)),
                    _ => self.store.append(&letter)?,
                }
            }
            Push::Cut(cut) => {
                let reached = self.cuts.entry(cut).or_default();
                *reached += 1;
                if *reached == self.workers {
                    self.take(cut)?;
                }
            }
            Push::End => self.ended += 1,
        }
        if self.ended == self.workers { self.end() } else { Ok(true) }
    }

    /// Every worker has reached the cut.
    fn take(&mut self, cut: Epoch) -> io::Result<()> {
        self.append_below(cut)?;
        let position = self.store.sync()?;
        let state = State { sink: NAME.to_owned(), process: self.process, position };
        let _ = self.pieces.send((cut, Piece::Lane(serde_json::to_value(state)?)));
        self.cuts.retain(|other, _| *other > cut);
        let next = self.cuts.keys().next().copied().unwrap_or(Epoch::MAX);
        self.append_below(next)
    }

    fn append_below(&mut self, end: Epoch) -> io::Result<()> {
        let (below, ahead) = std::mem::take(&mut self.ahead).into_iter().partition(|(epoch, _)| *epoch < end);
        self.ahead = ahead;
        let below: Vec<(Epoch, DeadLetter)> = below;
        below.iter().try_for_each(|(_, letter)| self.store.append(letter))
    }

    fn end(&mut self) -> io::Result<bool> {
        self.append_below(Epoch::MAX)?;
        self.store.sync()?;
        Ok(false)
    }
}

impl Part for DeadLane {
    fn turn(&mut self, patience: Duration) -> bool {
        self.step(patience).unwrap_or_else(|error| {
            self.shared.fail(Failure::state(format!("dead letters: {error}; make room or give data_dir another disk")));
            false
        })
    }
}

fn letter(names: &[(Arc<str>, Arc<str>)], epoch: Epoch, refused: Refused) -> DeadLetter {
    let name = names[usize::from(refused.stream)].clone();
    let mut letter = DeadLetter::new(name, refused.partition, refused.offset, epoch, refused.reason);
    letter.index = refused.index;
    letter.reading = refused.reading;
    letter.payload(&refused.bytes)
}
