//! The nodes between source and sinks: each hands its epochs to an operator, and its state to the checkpointer.

mod judge;
mod ledger;
mod outbox;
mod rolling;
mod rules;

pub use judge::JudgeNode;
pub use ledger::{LedgerNode, Totals};
pub use outbox::{Alerts, OutboxNode, alerts_at_end};
pub use rolling::RollingNode;
pub use rules::RulesNode;

use crate::checkpoint::Piece;
use crate::epoch_log::Control;
use crate::metrics::{Metrics, SourceMetrics};
use crate::process::Shared;
use crate::saving::Saving;
use crate::source::node::Refused;
use crate::stall::Stall;
use crossbeam_channel::Sender;
use operators::counted::CountedTime;
use operators::dictionary::SharedDictionary;
use operators::state::GroupStates;
use operators::{Batch, Epoch, SeriesNo};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The names of operators in checkpoints.
pub mod operator {
    /// Series, clocks, identities.
    pub const JUDGE: &str = "judge";
    /// Windows.
    pub const ROLLING: &str = "rolling";
    /// Alerts that are pending or firing.
    pub const RULES: &str = "rules";
    /// Counted time and who hears; the same on every worker.
    pub const CLOCK: &str = "clock";
    /// How many alert transitions there were.
    pub const ALERTS: &str = "alerts";
}

/// A batch on its way through one worker, and what goes with it.
#[derive(Clone, Debug, Default)]
pub struct Passing {
    /// The batch.
    pub batch: Batch,
    /// Readings that the judge refused.
    pub refused: Vec<Refused>,
    /// A term begins at this epoch: rules that are no longer announced end here.
    pub term: bool,
}

/// A series that the judge has met.
pub type Met = (SeriesNo, Epoch, isize);

/// A rule begins (+1) or ceases (-1) to apply to a series of this worker: (series, rule).
pub type Applies = ((SeriesNo, u32), Epoch, isize);

/// What every node of a worker needs.
#[derive(Clone)]
pub struct Common {
    /// Among all workers.
    pub worker: usize,
    /// Among those of this process.
    pub local: usize,
    /// What the process' workers share.
    pub shared: Arc<Shared>,
    /// What Prometheus is told.
    pub metrics: Arc<Metrics>,
    /// To the checkpointer.
    pub pieces: Sender<(Epoch, Piece)>,
    /// The worker's series.
    pub dictionary: SharedDictionary,
    /// (source, topic) by stream.
    pub streams: Arc<Vec<(String, String)>>,
    /// How long its cuts take.
    pub stall: Stall,
    /// How many bytes of state are saved at a time.
    pub slice: usize,
    /// A panic that a test asks for.
    pub trip: Option<Trip>,
}

/// A bug that tests put in: a record (partition, offset) at which something panics. No configuration, flag or variable
/// of the environment leads here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    /// The decoder.
    Decoder(u32, i64),
    /// The judge.
    Judge(u32, i64),
}

impl Common {
    fn save(&self, cut: Epoch, operator: &'static str, groups: GroupStates) {
        let _ = self.pieces.send((cut, Piece::state(operator, groups)));
    }
    fn saving(&self, operator: &'static str) -> Saving {
        Saving::new(operator, self.pieces.clone(), self.slice)
    }
    /// Saves some of an operator's open cut, if it has one, and notes how long that took; says whether something is left.
    fn saves(&self, saving: &mut Saving, operator: &str, save: impl FnOnce(&mut Saving)) -> bool {
        if saving.is_open() {
            let began_us = self.now_us();
            save(saving);
            self.saved(operator, began_us);
        }
        saving.is_open()
    }
    /// The moment at which a node begins to save.
    fn now_us(&self) -> u64 {
        self.shared.epochs.monotonic_us()
    }
    /// An operator has saved something for a cut.
    fn saved(&self, operator: &str, began_us: u64) {
        let took_us = self.now_us().saturating_sub(began_us);
        self.metrics.checkpoint_cut_seconds.with_label_values(&[operator]).observe(took_us as f64 * 1e-6);
        self.stall.add(took_us);
    }
    /// The last of the nodes that save anything has done so, for this time.
    fn stalled(&self) {
        if let Some(us) = self.stall.take() {
            self.metrics.checkpoint_stall_seconds.observe(us as f64 * 1e-6);
        }
    }
    fn sources(&self) -> Vec<SourceMetrics> {
        self.streams.iter().map(|(source, _)| self.metrics.source(source)).collect()
    }
}

/// An operator's size as Prometheus sees it: each worker adds what changed about its part, once a second.
#[derive(Default)]
struct Size {
    next: Epoch,
    bytes: i64,
    keys: i64,
}

impl Size {
    fn tell(&mut self, frontier: Epoch, metrics: &Metrics, operator: &str, size: impl FnOnce() -> (usize, u64)) {
        if frontier < self.next {
            return;
        }
        self.next = frontier + 1000;
        let (bytes, keys) = size();
        let (bytes, keys) = (bytes as i64, keys as i64);
        metrics.operator_state_bytes.with_label_values(&[operator]).add(bytes - self.bytes);
        metrics.operator_state_keys.with_label_values(&[operator]).add(keys - self.keys);
        (self.bytes, self.keys) = (bytes, keys);
    }
}

/// The key groups in which a batch changes something behind the judge; some of them several times.
fn groups(batch: &Batch, dictionary: &SharedDictionary) -> impl Iterator<Item = u16> {
    let series = batch.forgotten.iter().copied().chain(batch.readings.iter().map(|reading| reading.series));
    series.map(|series| dictionary.borrow().group(series))
}

/// Counted time, and who hears.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// What is counted.
    pub counted: CountedTime,
    processes: u32,
    hearing: BTreeSet<u32>,
}

#[derive(Serialize, Deserialize)]
struct SavedClock {
    counted: Vec<u8>,
    processes: u32,
    hearing: BTreeSet<u32>,
}

impl Clock {
    /// Takes a control line; says whether time counts from here on, if that changed.
    fn apply(&mut self, epoch: Epoch, control: Control) -> Option<bool> {
        let before = self.counted.counting();
        match control {
            // A term's processes are deaf when it begins: the end of the one before made them so, and one that hears
            // already may have said so before process 0 had its first epoch.
            Control::Term { processes } => self.processes = processes,
            Control::Deaf { process } => {
                self.hearing.remove(&process);
            }
            Control::Hearing { process } => {
                self.hearing.insert(process);
            }
        }
        let counting = self.processes > 0 && (0..self.processes).all(|process| self.hearing.contains(&process));
        self.counted.set(epoch, counting);
        (counting != before).then_some(counting)
    }
    fn save(&self) -> Vec<u8> {
        let saved =
            SavedClock { counted: self.counted.save(), processes: self.processes, hearing: self.hearing.clone() };
        serde_json::to_vec(&saved).unwrap_or_default()
    }
    /// Reads back what `save` wrote.
    pub fn load(bytes: &[u8]) -> anyhow::Result<Self> {
        let saved: SavedClock = serde_json::from_slice(bytes)?;
        let counted = CountedTime::load(&saved.counted)?;
        Ok(Self { counted, processes: saved.processes, hearing: saved.hearing })
    }
}
