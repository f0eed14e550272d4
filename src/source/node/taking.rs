//! Records: counted, decoded, fanned out into readings.

use super::*;
use crate::source::NoSource;

impl SourceNode {
    pub(super) fn take_new(&mut self) -> Result<usize, Failure> {
        let mut early = std::mem::replace(&mut self.early, EarlyRecords::new(0));
        let mut taken = early.take_rest(BATCH, &mut |record| self.take(record));
        self.early = early;
        if taken < BATCH {
            let mut source = std::mem::replace(&mut self.source, Box::new(NoSource));
            let polled = source.poll(BATCH, &mut |record| self.take(record));
            self.source = source;
            match polled {
                Ok(n) => taken += n,
                Err(SourceError::Unavailable(why)) => tracing::warn!(why, "source cannot be read for now"),
                Err(error) => return Err(Failure::source(&error)),
            }
        }
        if self.records_in_epoch > 0 && self.told < self.epoch + AWAKE_MS / 2 {
            // Nothing is complete before every worker has let go of it.
            self.told = self.epoch + AWAKE_MS;
            self.stir = Some(self.told);
        }
        Ok(taken)
    }

    /// One record: counted, decoded, fanned out.
    pub(super) fn take(&mut self, record: Record<'_>) {
        let Some(partition) = self.partitions.get_mut(&(record.stream, record.partition)) else { return };
        partition.next = record.offset + 1;
        let time = record.timestamp.unwrap_or(self.epoch as i64);
        let now = partition.time.map_or(time, |t| t.max(time));
        partition.time = Some(now);
        let counts = &mut partition.counts;
        counts.records += 1;
        counts.bytes += record.payload.map_or(0, <[u8]>::len) as u64;
        self.records_in_epoch += 1;
        let source = &mut self.sources[usize::from(record.stream)];
        let mut refuse = |source: &mut SourceMetrics, index, reason: Reason| {
            source.dead_letters(reason.as_str(), 1);
            self.refused.push(Refused {
                stream: record.stream,
                partition: record.partition,
                offset: record.offset,
                index,
                reason,
                bytes: record.payload.unwrap_or_default().into(),
                reading: None,
            });
        };
        let decoder = &mut self.settings.decoders[usize::from(record.stream)];
        let place = (record.stream, record.partition, record.offset);
        let aside = !self.settings.set_aside.is_empty() && self.settings.set_aside.contains(&place);
        let trips = self.settings.trip == Some(Trip::Decoder(record.partition, record.offset));
        // What a decoder leaves half done when it panics, its next record clears.
        let decoded = std::panic::catch_unwind(AssertUnwindSafe(move || {
            let decoder = decoder;
            assert!(!trips, "a test asked for it");
            if aside { Outcome::DeadLetter(Reason::Bug) } else { decoder.decode(record.payload) }
        }));
        match decoded.unwrap_or(Outcome::DeadLetter(Reason::Bug)) {
            Outcome::Filtered => counts.filtered += 1,
            Outcome::DeadLetter(reason) => {
                counts.dead_lettered += 1;
                refuse(source, None, reason);
            }
            Outcome::Decoded(fanout) => {
                counts.decoded += 1;
                source.delay(self.epoch, fanout.time);
                let limit = now.saturating_mul(1000).saturating_add(self.settings.max_clock_skew_us);
                let future = fanout.time > limit;
                for field in fanout.values() {
                    counts.readings += 1;
                    let value = match field.value {
                        Ok(value) => value,
                        Err(ValueIssue::Null) => {
                            counts.nulls += 1;
                            continue;
                        }
                        Err(ValueIssue::DeadLetter(reason)) => {
                            counts.dead_lettered_values += 1;
                            refuse(source, Some(field.index), reason);
                            continue;
                        }
                    };
                    let series = self.interner.intern(fanout.sensor, field.metric);
                    let mut reading = Reading::new(
                        (record.stream, record.partition, record.offset, field.index),
                        (series.series, series.group),
                        series.name,
                        (fanout.time, value, fanout.identity),
                    );
                    reading.stamp(self.settings.worker, future);
                    self.readings.push(reading);
                }
            }
        }
    }
}
