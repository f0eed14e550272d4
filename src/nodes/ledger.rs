//! The conservation law.

use super::Common;
use crate::checkpoint::Piece;
use crate::error::Failure;
use crate::ledger::Counts;
use crate::metrics::PartitionMetrics;
use crate::server::readiness::{Readiness, reason};
use crate::source::node::Tally;
use crossbeam_channel::Sender;
use operators::keyed::{Node, Out, Step};
use operators::{Epoch, Stream};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

/// The conservation law, checked for every partition and completed epoch, on worker 0.
pub struct LedgerNode {
    common: Common,
    readiness: Arc<Readiness>,
    totals: Totals,
    metrics: BTreeMap<(Stream, u32), PartitionMetrics>,
    broken: BTreeMap<(Stream, u32), (i64, i64)>,
    /// Where the totals are read when the run has ended.
    result: Sender<Totals>,
}

/// Counts of all partitions since the state began.
pub type Totals = BTreeMap<String, Counts>;

impl LedgerNode {
    /// Goes on from `totals`.
    pub fn new(common: Common, readiness: Arc<Readiness>, totals: Totals, result: Sender<Totals>) -> Self {
        Self { common, readiness, totals, metrics: BTreeMap::new(), broken: BTreeMap::new(), result }
    }

    fn epoch(&mut self, epoch: Epoch, tallies: Vec<Tally>) {
        let mut partitions: BTreeMap<(Stream, u32), Counts> = BTreeMap::new();
        for (stream, partition, counts) in tallies {
            *partitions.entry((stream, partition)).or_default() += counts;
        }
        for ((stream, partition), counts) in partitions {
            let (source, topic) = &self.common.streams[usize::from(stream)];
            let off = (counts.records_imbalance(), counts.readings_imbalance());
            let metrics = self
                .metrics
                .entry((stream, partition))
                .or_insert_with(|| self.common.metrics.partition(source, topic, partition));
            if off != (0, 0) {
                let broken = self.broken.entry((stream, partition)).or_default();
                *broken = (broken.0 + off.0, broken.1 + off.1);
                metrics.records_imbalance.set(broken.0);
                metrics.readings_imbalance.set(broken.1);
                tracing::error!(
                    epoch,
                    source,
                    topic,
                    partition,
                    records = off.0,
                    readings = off.1,
                    "the ledger does not balance"
                );
                let problem = format!(
                    "{source} {topic}/{partition}: {} records, {} readings unaccounted for",
                    broken.0, broken.1
                );
                self.readiness.set(reason::CONSERVATION, Some(problem));
            }
            *self.totals.entry(format!("{source}/{topic}/{partition}")).or_default() += counts;
        }
    }
}

impl Node for LedgerNode {
    type A = Tally;
    type B = ();
    type C = ();
    // It has none, but what it has checked is complete.
    type X = Infallible;
    type Y = ();
    type Z = ();

    fn step(&mut self, step: Step<Tally, (), ()>, _: &mut Out<Infallible, (), ()>) {
        match step {
            Step::Cut(cut) if self.common.worker == 0 => match serde_json::to_value(&self.totals) {
                Ok(totals) => {
                    let _ = self.common.pieces.send((cut, Piece::Totals(totals)));
                }
                Err(error) => self.common.shared.fail(Failure::state(format!("totals: {error}"))),
            },
            Step::Epoch(epoch, arrived) => self.epoch(epoch, arrived.first.into_iter().flatten().collect()),
            Step::End if self.common.worker == 0 => {
                let _ = self.result.send(std::mem::take(&mut self.totals));
            }
            _ => {}
        }
    }
}
