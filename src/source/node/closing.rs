//! What an epoch leaves behind when it is closed: its lines in the log, its counts, what changed about our hearing, where
//! each partition stood at a cut.

use super::*;

impl SourceNode {
    /// Closes the open epoch: its lines are appended before its capability goes.
    pub(super) fn close(&mut self, through: Epoch) -> Closed {
        self.listen();
        let ranges = self
            .partitions
            .iter()
            .filter(|(_, p)| p.counts.records > 0)
            .map(|((stream, partition), p)| Range {
                stream: *stream,
                partition: *partition,
                next: p.next,
                records: p.counts.records as u32,
            })
            .collect();
        let controls = std::mem::take(&mut self.controls);
        let append = self.write_down(&controls, self.epoch, through, ranges);
        // Deadlines lie on whole seconds, and fire when the frontier has passed them.
        let second = through / 1000 * 1000 >= self.epoch;
        let tallies = self.tallies(second);
        self.due |= second || !tallies.is_empty() || !controls.is_empty();
        Closed { tallies, controls, append, ends: through == FOR_EVER }
    }

    /// Appends a close to the log, where there is one; its control lines go before it.
    pub(super) fn write_down(
        &mut self,
        controls: &[(Epoch, Control)],
        epoch: Epoch,
        through: Epoch,
        ranges: Vec<Range>,
    ) -> Option<u64> {
        let log = self.shared.log.as_ref()?;
        self.frames.clear();
        for (epoch, control) in controls {
            Frame::Control(*epoch, *control).encode(&mut self.frames);
        }
        Frame::Close(Close { worker: self.settings.worker as u32, epoch, through, ranges }).encode(&mut self.frames);
        let timer = self.metrics.epoch_log_commit_seconds.start_timer();
        let append = log.append(&mut self.frames);
        timer.observe_duration();
        Some(append)
    }

    /// What this epoch has counted; begins anew. `lag`: and how far we are behind, which is asked for once a second.
    pub(super) fn tallies(&mut self, lag: bool) -> Vec<Tally> {
        self.records_in_epoch = 0;
        let mut tallies = Vec::new();
        for ((stream, partition), p) in &mut self.partitions {
            if !p.counts.is_empty() {
                p.metrics.records.inc_by(p.counts.records);
                let source = &self.sources[usize::from(*stream)];
                source.bytes(p.counts.bytes);
                source.readings(&ReadingCounts {
                    dead_letters: p.counts.dead_lettered_values,
                    nulls: p.counts.nulls,
                    ..ReadingCounts::default()
                });
                source.flush();
                tallies.push((*stream, *partition, std::mem::take(&mut p.counts)));
                if let Some(progress) = &self.settings.progress {
                    progress(*stream, *partition, p.next);
                }
            }
            if lag && let Some(end) = self.source.end(*stream, *partition) {
                let waiting = (end - p.next).max(0);
                let age = p.time.map_or(0, |t| self.shared.epochs.now() as i64 - t).max(0);
                p.metrics.lag_records.set(waiting);
                p.metrics.lag_seconds.set(if waiting > 0 { age as f64 / 1000.0 } else { 0.0 });
            }
        }
        tallies
    }

    /// R7: what changed about our hearing since the last epoch.
    fn listen(&mut self) {
        let late = self.shared.epochs.late_ticks();
        if late > self.late_ticks && self.settings.local == 0 {
            self.shared.hearing.deafen();
        }
        self.late_ticks = late;
        let generation = self.shared.hearing.generation();
        let aimed = self.targets.as_ref().map_or(self.heard_generation, |(g, _)| *g);
        // The ends must have been asked for after the cause: those that the source knows may be from before it.
        if aimed < generation && self.shared.ends.generation() == generation {
            let mut ends = self.shared.ends.get();
            ends.retain(|key, _| self.partitions.contains_key(key));
            self.targets = Some((generation, ends));
        }
        if let Some((generation, targets)) = &self.targets
            && self.source.up()
            && !self.full()
            && targets.iter().all(|(key, end)| self.partitions.get(key).is_none_or(|p| self.reached(*key, p, *end)))
        {
            self.heard_generation = *generation;
            self.shared.hearing.heard(self.settings.local, *generation);
            self.targets = None;
        }
        if self.settings.local == 0 {
            let hears = self.shared.hearing.all_heard() == self.shared.hearing.generation();
            if hears == self.deaf {
                let process = self.settings.process;
                let control = if hears { Control::Hearing { process } } else { Control::Deaf { process } };
                self.deaf = !hears;
                self.controls.push((self.epoch, control));
            }
        }
    }

    /// Partitions that are new since the last look begin at their first offset.
    pub(super) fn discover(&mut self) -> Result<(), Failure> {
        let Some(known) = self.shared.discovered.since(&mut self.discovered) else { return Ok(()) };
        for ((stream, partition), first) in known {
            if partition as usize % self.settings.peers != self.settings.worker
                || self.partitions.contains_key(&(stream, partition))
            {
                continue;
            }
            self.source.assign(stream, partition, first).map_err(|e| Failure::source(&e))?;
            let (source, topic) = &self.settings.streams[usize::from(stream)];
            tracing::info!(source, topic, partition, "new partition, read from its beginning");
            let metrics = self.metrics.partition(source, topic, partition);
            self.partitions
                .insert((stream, partition), Partition { next: first, time: None, counts: Counts::default(), metrics });
        }
        Ok(())
    }

    /// A cut: where each partition stands.
    pub(super) fn save(&mut self, cut: Epoch) {
        let positions = self.partitions.iter().map(|((stream, partition), p)| {
            let (source, topic) = self.settings.streams[usize::from(*stream)].clone();
            Position { source, topic, partition: *partition, next: p.next, time: p.time }
        });
        let positions = positions.chain(self.settings.carried.iter().cloned()).collect();
        let _ = self.settings.pieces.send((cut, Piece::Positions(positions)));
        let next = self.partitions.iter().map(|(key, p)| (*key, p.next)).collect();
        self.commits.push_back((cut, next));
    }

    /// Offsets of the newest durable cut go to the group, for lag tools.
    pub(super) fn commit(&mut self) {
        let committed = self.shared.committed.load(SeqCst);
        if committed == self.committed {
            return;
        }
        self.committed = committed;
        while let Some((cut, _)) = self.commits.front() {
            if *cut > committed {
                break;
            }
            failpoint::pass("commit", "source", When::Before);
            for ((stream, partition), next) in self.commits.pop_front().map(|(_, p)| p).unwrap_or_default() {
                self.source.commit(stream, partition, next);
            }
            failpoint::pass("commit", "source", When::After);
        }
    }
}
