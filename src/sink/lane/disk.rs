//! What a lane keeps in segment files: its overflow, what a checkpoint needs, and when they go.

use super::parts::{Link, Spilled, Waiting};
use super::{BACKOFF_US, Lane, Queue, Settings};
use crate::sink::segment::{self, SegmentError, SegmentRef};
use crate::sink::{Item, SinkError};
use operators::Epoch;
use std::collections::BTreeSet;
use std::io;
use tracing::{error, info};

const SEGMENT_BYTES_MAX: u64 = 4 << 20;

impl<T: Item> Lane<T> {
    fn segment_name(&mut self) -> String {
        let Settings { sink, process, term, .. } = &self.settings;
        self.sequence += 1;
        format!("{}-{process}-{term}-{}.seg", file_stem(sink), self.sequence)
    }

    /// Moves the back to a segment file once it is large enough.
    pub(super) fn spill(&mut self, now: u64) {
        let large = SEGMENT_BYTES_MAX.min(self.settings.memory / 4).max(1);
        if self.settings.traits.in_checkpoint || self.back.bytes < large || now < self.spill_retry_at {
            return;
        }
        let name = self.segment_name();
        let items = self.back.items.iter().map(|w| &w.item);
        match segment::write(&*self.fs, &self.settings.dir, name, items, false) {
            Ok(segment) => {
                if self.spill_failed {
                    info!(sink = self.settings.sink, "lane overflows to disk again");
                }
                self.spill_failed = false;
                let since = self.back.items.front().map_or(now, |w| w.since);
                self.spilled_bytes += segment.length;
                self.spilled.push_back(Spilled {
                    segment,
                    count: self.back.count,
                    since,
                    synced: false,
                    sync_tried: false,
                });
                self.back = Queue::new();
            }
            Err(error) => {
                if !self.spill_failed {
                    error!(sink = self.settings.sink, %error, "lane cannot overflow to disk; it keeps to memory");
                }
                self.spill_failed = true;
                self.spill_retry_at = now + BACKOFF_US * 10;
            }
        }
    }

    /// Brings what waits on disk, or behind it, to the front.
    pub(super) fn refill(&mut self, now: u64) {
        while self.front.items.is_empty() {
            if let Some(next) = self.spilled.front() {
                match segment::read::<T>(&*self.fs, &self.settings.dir, &next.segment) {
                    Ok(items) => {
                        let since = next.since;
                        items.into_iter().for_each(|item| self.front.push_back(Waiting { item, since }));
                    }
                    Err(SegmentError::Io(error)) => {
                        self.failed(now, SinkError::Unavailable(format!("{}: {error}", next.segment.name)));
                        return;
                    }
                    Err(SegmentError::Damaged(what)) => {
                        error!(
                            sink = self.settings.sink,
                            segment = next.segment.name,
                            what,
                            "segment file changed while we ran; the lane stops"
                        );
                        self.link = Link::Stopped;
                        return;
                    }
                }
                if let Some(read) = self.spilled.pop_front() {
                    self.spilled_bytes -= read.segment.length;
                    if !self.kept.iter().any(|kept| kept.names.contains(&read.segment.name)) {
                        let _ = self.fs.remove(&self.settings.dir.join(&read.segment.name));
                    }
                }
            } else if !self.back.items.is_empty() {
                std::mem::swap(&mut self.front, &mut self.back);
                self.spill_failed = false;
            } else {
                return;
            }
        }
    }

    pub(super) fn make_durable(&mut self, cut: Epoch) -> io::Result<Vec<SegmentRef>> {
        let mut segments = Vec::new();
        let mut changed = false;
        let names = [self.segment_name(), self.segment_name()];
        let dir = self.settings.dir.clone();
        let [first, last] = names;
        if self.done.below(cut).chain(self.front.below(cut)).next().is_some() {
            let items = self.done.below(cut).chain(self.front.below(cut));
            segments.push(segment::write(&*self.fs, &dir, first, items, true)?);
            changed = true;
        }
        for at in 0..self.spilled.len() {
            if !self.spilled[at].synced {
                self.make_spilled_durable(at)?;
                changed = true;
            }
            segments.push(self.spilled[at].segment.clone());
        }
        if self.back.below(cut).next().is_some() {
            segments.push(segment::write(&*self.fs, &dir, last, self.back.below(cut), true)?);
            changed = true;
        }
        if changed {
            self.fs.sync_dir(&dir)?;
            self.spilled.iter_mut().for_each(|spilled| spilled.synced = true);
        }
        segments.iter_mut().for_each(|s| s.below = s.below.min(cut));
        Ok(segments)
    }

    /// A sync that failed is not repeated, for the next one would succeed and prove nothing: what the file still reads
    /// as, if that is what was written, goes into another one.
    fn make_spilled_durable(&mut self, at: usize) -> io::Result<()> {
        let dir = self.settings.dir.clone();
        let spilled = &mut self.spilled[at];
        let path = dir.join(&spilled.segment.name);
        if !std::mem::replace(&mut spilled.sync_tried, true) {
            self.fs.append(&path)?.sync()?;
            spilled.sync_tried = false;
            return Ok(());
        }
        let name = self.segment_name();
        let spilled = &mut self.spilled[at];
        let copied = segment::copy(&*self.fs, &dir, &spilled.segment, name).map_err(|error| match error {
            SegmentError::Io(error) => error,
            SegmentError::Damaged(what) => io::Error::other(format!("{}: damaged: {what}", path.display())),
        })?;
        // The old one is left to the sweep: a checkpoint may list it.
        spilled.segment = copied;
        spilled.sync_tried = false;
        Ok(())
    }

    pub(super) fn committed(&mut self, cut: Epoch) {
        if self.settings.traits.in_checkpoint {
            self.commit_due = self.commit_due.max(Some(cut));
        }
        self.kept.retain(|kept| kept.committed || kept.cut >= cut);
        self.kept.iter_mut().filter(|kept| kept.cut == cut).for_each(|kept| kept.committed = true);
        while self.kept.iter().filter(|kept| kept.committed).count() > self.settings.keep {
            self.kept.pop_front();
        }
        self.commits += 1;
        if self.commits >= self.settings.keep && !self.settings.traits.in_checkpoint {
            self.sweep();
        }
    }

    /// Removes this lane's segments that no checkpoint refers to, of this run and of those before it: what it names so, and
    /// what it was handed under another name; not what another process was handed under a name of this one.
    fn sweep(&self) {
        let used: BTreeSet<&str> = (self.kept.iter().flat_map(|kept| &kept.names).map(String::as_str))
            .chain(self.spilled.iter().map(|s| s.segment.name.as_str()))
            .collect();
        for path in self.fs.list(&self.settings.dir).unwrap_or_default() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let mine = self.names(name) && !self.settings.elsewhere.contains(name);
            if (mine || self.restored.contains(name)) && !used.contains(name) {
                let _ = self.fs.remove(&path);
            }
        }
    }

    /// Whether this lane names a file so, now or in an earlier term: `SINK-PROCESS-TERM-SEQ.seg`. A process that was
    /// replaced may be here yet, so those of later terms are not its own.
    fn names(&self, name: &str) -> bool {
        let Settings { sink, process, term, .. } = &self.settings;
        let numbers = || -> Option<(u64, u64)> {
            let rest = name.strip_prefix(&format!("{}-{process}-", file_stem(sink)))?.strip_suffix(".seg")?;
            let (of_term, sequence) = rest.split_once('-')?;
            Some((of_term.parse().ok()?, sequence.parse().ok()?))
        };
        numbers().is_some_and(|(of_term, _)| of_term <= *term)
    }
}

/// A sink's name as part of a file's name, no other sink's.
fn file_stem(sink: &str) -> String {
    let plain: String = sink
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' })
        .take(80)
        .collect();
    if plain == sink { plain } else { format!("{plain}-{:08x}", crc32fast::hash(sink.as_bytes())) }
}
