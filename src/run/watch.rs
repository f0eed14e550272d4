//! Watches the world while the workers work: the clusters that sources read.

use super::stretch::Stretch;
use crate::crew::Part;
use crate::error::Failure;
use crate::plan::Plan;
use crate::process::Shared;
use crate::seam::Clock;
use crate::server::readiness::reason;
use operators::Stream;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

impl Stretch {
    /// Watches the clusters: whether they answer, and whether topics have grown.
    pub(super) fn watch(
        self: &Arc<Self>,
        streams: &Arc<Vec<(String, String)>>,
        shared: &Arc<Shared>,
        plan: &Plan,
    ) -> Result<(), Failure> {
        let (this, streams, shared) = (Arc::downgrade(self), streams.clone(), Arc::downgrade(shared));
        let mut known: BTreeMap<Stream, u32> = BTreeMap::new();
        for (stream, partition, _, _) in &plan.positions {
            let count = known.entry(*stream).or_default();
            *count = (*count).max(partition + 1);
        }
        let clock = self.world.run.clock.clone();
        let watch = Watch { stretch: this, shared, streams, known, down: BTreeMap::new(), clock, next_us: 0 };
        self.take_up("watch", watch).map(drop)
    }

    /// After something kept us from listening: the ends that the partitions have now, asked for after it began.
    fn look_at_ends(&self, shared: &Shared, partitions: &BTreeMap<Stream, u32>) {
        let generation = shared.hearing.generation();
        if generation == shared.ends.generation() {
            return;
        }
        let mut ends = BTreeMap::new();
        for (stream, count) in partitions {
            for partition in 0..*count {
                match self.world.run.origin.watermarks(*stream, partition) {
                    Ok((_, end)) => ends.insert((*stream, partition), end),
                    Err(_) => return,
                };
            }
        }
        shared.ends.publish(generation, ends);
    }
}

/// How often the clusters are looked at.
const WATCH: Duration = Duration::from_secs(2);

/// Looks at the clusters as long as the stretch lasts.
struct Watch {
    stretch: Weak<Stretch>,
    shared: Weak<Shared>,
    streams: Arc<Vec<(String, String)>>,
    known: BTreeMap<Stream, u32>,
    down: BTreeMap<Stream, bool>,
    clock: Arc<dyn Clock>,
    next_us: u64,
}

impl Part for Watch {
    fn turn(&mut self, patience: Duration) -> bool {
        let now = self.clock.monotonic_us();
        if now < self.next_us {
            std::thread::sleep(patience.min(Duration::from_micros(self.next_us - now)));
            return true;
        }
        self.next_us = now + WATCH.as_micros() as u64;
        let (Some(stretch), Some(shared)) = (self.stretch.upgrade(), self.shared.upgrade()) else { return false };
        self.look(&stretch, &shared);
        stretch.look_at_ends(&shared, &self.known);
        true
    }
}

impl Watch {
    fn look(&mut self, stretch: &Stretch, shared: &Shared) {
        for (stream, (source, topic)) in (0..).zip(self.streams.iter()) {
            let origin = &stretch.world.run.origin;
            let answer = origin.partitions(stream).and_then(|count| {
                for partition in self.known.get(&stream).copied().unwrap_or(0)..count {
                    let (first, _) = origin.watermarks(stream, partition)?;
                    shared.discovered.add(stream, partition, first);
                    self.known.insert(stream, partition + 1);
                }
                Ok(())
            });
            let (up, why) = match answer {
                Ok(()) => (true, None),
                Err(error) => (false, Some(error.to_string())),
            };
            origin.set_up(stream, up);
            stretch.world.metrics.source_up.with_label_values(&[source]).set(i64::from(up));
            if self.down.insert(stream, !up) != Some(!up) {
                match &why {
                    Some(why) => {
                        shared.hearing.deafen();
                        tracing::warn!(source, topic, why, "source cannot be reached; trying on");
                    }
                    None => tracing::info!(source, topic, "source can be reached"),
                }
            }
            stretch.world.readiness.set_for(reason::SOURCE_DOWN, source, why);
        }
    }
}
