//! The way of dead letters to their store: complete epochs only, cut with the checkpoint, cut back on restart.

use crate::checkpoint::Piece;
use crate::dead_letters::{DeadLetter, DeadLetters, Position};
use crate::error::Failure;
use crate::process::Shared;
use crate::source::node::Refused;
use crossbeam_channel::{Receiver, Sender, bounded};
use operators::Epoch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

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

/// Starts the lane of a process with so many workers; it ends when all of them have.
pub fn start(
    store: DeadLetters,
    (process, workers): (usize, usize),
    streams: Arc<Vec<(String, String)>>,
    pieces: Sender<(Epoch, Piece)>,
    shared: Arc<Shared>,
) -> (DeadLetterLane, JoinHandle<()>) {
    let (sender, receiver) = bounded(WAITING);
    let thread = std::thread::spawn(move || {
        if let Err(error) = write(store, (process, workers), &streams, &pieces, &receiver) {
            shared.fail(Failure::state(format!("dead letters: {error}; make room or give data_dir another disk")));
        }
    });
    (DeadLetterLane(sender), thread)
}

fn write(
    mut store: DeadLetters,
    (process, workers): (usize, usize),
    streams: &[(String, String)],
    pieces: &Sender<(Epoch, Piece)>,
    receiver: &Receiver<Push>,
) -> std::io::Result<()> {
    let names: Vec<(Arc<str>, Arc<str>)> =
        streams.iter().map(|(source, topic)| (source.as_str().into(), topic.as_str().into())).collect();
    // A letter beyond a cut that another worker has not reached waits here: the cut's position is before it.
    let mut cuts: BTreeMap<Epoch, usize> = BTreeMap::new();
    let mut ahead: Vec<(Epoch, DeadLetter)> = Vec::new();
    let mut ended = 0;
    while ended < workers {
        let push = match receiver.try_recv() {
            Ok(push) => push,
            Err(_) => {
                // Nothing waits: what there is becomes visible.
                store.flush()?;
                match receiver.recv() {
                    Ok(push) => push,
                    Err(_) => break,
                }
            }
        };
        match push {
            Push::Letter(epoch, refused) => {
                let letter = letter(&names, epoch, refused);
                match cuts.first_key_value() {
                    Some((cut, _)) if epoch >= *cut => ahead.push((epoch, letter)),
                    _ => store.append(&letter)?,
                }
            }
            Push::Cut(cut) => {
                *cuts.entry(cut).or_default() += 1;
                if cuts[&cut] == workers {
                    let (below, above) = std::mem::take(&mut ahead).into_iter().partition(|(epoch, _)| *epoch < cut);
                    ahead = above;
                    let below: Vec<(Epoch, DeadLetter)> = below;
                    below.iter().try_for_each(|(_, letter)| store.append(letter))?;
                    let position = store.sync()?;
                    let state = State { sink: NAME.to_owned(), process, position };
                    let _ = pieces.send((cut, Piece::Lane(serde_json::to_value(state)?)));
                    cuts.retain(|other, _| *other > cut);
                    let next = cuts.keys().next().copied().unwrap_or(Epoch::MAX);
                    let (now, later) = std::mem::take(&mut ahead).into_iter().partition(|(epoch, _)| *epoch < next);
                    ahead = later;
                    let now: Vec<(Epoch, DeadLetter)> = now;
                    now.iter().try_for_each(|(_, letter)| store.append(letter))?;
                }
            }
            Push::End => ended += 1,
        }
    }
    ahead.iter().try_for_each(|(_, letter)| store.append(letter))?;
    store.sync()?;
    Ok(())
}

fn letter(names: &[(Arc<str>, Arc<str>)], epoch: Epoch, refused: Refused) -> DeadLetter {
    let name = names[usize::from(refused.stream)].clone();
    let mut letter = DeadLetter::new(name, refused.partition, refused.offset, epoch, refused.reason);
    letter.index = refused.index;
    letter.reading = refused.reading;
    letter.payload(&refused.bytes)
}
