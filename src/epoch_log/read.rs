//! Reading what a term has logged, and finding out whether all of it is there.

use super::frame::{Frame, Frames, LogEnd, torn};
use super::{FOR_EVER, Header, LOG_VERSION, LogEnds, TermLog, term_dir};
use crate::seam::Fs;
use anyhow::{Context, Error, Result, bail, ensure};
use operators::Epoch;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What others know of a term's logs.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The lengths at which the next term read them: nothing beyond counts. None while there is no next term.
    pub ends: Option<LogEnds>,
    /// Ends at which checkpoints were written: the logs go at least so far, and read there as they did.
    pub marks: Vec<(u32, LogEnd)>,
}

/// Reads all logs of a term; `None` if it ended before any was begun.
///
/// # Errors
/// Something in them is not as it was written, or is gone.
pub fn read_term(fs: &dyn Fs, logs: &Path, term: u64, known: &Known) -> Result<Option<TermLog>> {
    let dir = term_dir(logs, term);
    let mut segments = segments(fs, &dir)?;
    if let Some(ends) = &known.ends {
        segments.retain(|process, _| ends.contains_key(process));
        for process in ends.keys().chain(known.marks.iter().map(|(process, _)| process)) {
            segments.entry(*process).or_default();
        }
    }
    for (process, _) in &known.marks {
        segments.entry(*process).or_default();
    }
    let mut gathered = Gathered {
        process: 0,
        closed: BTreeMap::new(),
        ranges: Vec::new(),
        controls: Vec::new(),
        oldest: Epoch::MAX,
        newest: 0,
    };
    let mut header: Option<Header> = None;
    let (mut ends, mut torn) = (LogEnds::new(), LogEnds::new());
    for (process, paths) in segments {
        let limit = known.ends.as_ref().map(|ends| ends.get(&process).copied().unwrap_or(LogEnd::start(term, process)));
        let marks: Vec<LogEnd> = known.marks.iter().filter(|(p, _)| *p == process).map(|(_, mark)| *mark).collect();
        let log = ProcessLog { fs, dir: &dir, term, process, paths: &paths, limit, marks: &marks };
        gathered.process = process;
        let (found, end, whole) = log.read(&mut gathered)?;
        ends.insert(process, end);
        if !whole {
            torn.insert(process, end);
        }
        if let (Some(first), Some(found)) = (&header, &found) {
            let alike = |h: &Header| (h.processes, h.peers, h.config.clone(), h.streams.clone());
            ensure!(alike(first) == alike(found), "epoch logs in {} are not of one term", dir.display());
        }
        header = header.or(found);
    }
    let Some(header) = header else { return Ok(None) };
    let Gathered { closed, mut ranges, mut controls, oldest, newest, .. } = gathered;
    let committed =
        if closed.len() == header.peers as usize { closed.values().min().copied().filter(|e| *e > 0) } else { None };
    ranges.retain(|(epoch, _)| committed.is_some_and(|end| *epoch <= end));
    controls.retain(|(epoch, _)| committed.is_some_and(|end| *epoch <= end));
    ranges.sort_by_key(|(epoch, r)| (*epoch, r.stream, r.partition, r.next));
    controls.sort_unstable();
    Ok(Some(TermLog {
        term,
        header,
        committed,
        oldest: oldest.min(newest),
        newest,
        cut: 0,
        ranges,
        controls,
        ends,
        torn,
    }))
}

/// By process: the segments that are there, in order of their numbers.
fn segments(fs: &dyn Fs, dir: &Path) -> Result<BTreeMap<u32, BTreeMap<u32, PathBuf>>> {
    let mut segments: BTreeMap<u32, BTreeMap<u32, PathBuf>> = BTreeMap::new();
    let listed = if fs.exists(dir) { fs.list(dir)? } else { Vec::new() };
    for path in listed {
        let name = path.file_name().and_then(|name| name.to_str());
        let numbers = name.and_then(|n| n.strip_prefix("process-")?.strip_suffix(".log")?.split_once('.'));
        let Some((process, segment)) = numbers else { continue };
        if let (Ok(process), Ok(segment)) = (process.parse(), segment.parse()) {
            segments.entry(process).or_default().insert(segment, path);
        }
    }
    Ok(segments)
}

/// What the frames of all processes come to.
struct Gathered {
    process: u32,
    closed: BTreeMap<u32, Epoch>,
    ranges: Vec<(Epoch, super::Range)>,
    controls: Vec<(Epoch, super::Control)>,
    oldest: Epoch,
    newest: Epoch,
}

impl Gathered {
    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Header(_) | Frame::Next | Frame::Synced(_) => {}
            Frame::Close(close) => {
                self.oldest = self.oldest.min(close.epoch);
                self.newest = self.newest.max(close.epoch);
                if close.through != FOR_EVER {
                    self.newest = self.newest.max(close.through);
                }
                let through = self.closed.entry(close.worker).or_default();
                *through = (*through).max(close.through);
                self.ranges.extend(close.ranges.into_iter().map(|r| (close.epoch, r)));
            }
            Frame::Control(epoch, control) => {
                self.newest = self.newest.max(epoch);
                self.controls.push((epoch, control));
            }
        }
    }
}

struct ProcessLog<'a> {
    fs: &'a dyn Fs,
    dir: &'a Path,
    term: u64,
    process: u32,
    paths: &'a BTreeMap<u32, PathBuf>,
    limit: Option<LogEnd>,
    marks: &'a [LogEnd],
}

impl ProcessLog<'_> {
    fn name(&self) -> String {
        format!("epoch log {}", self.dir.join(format!("process-{}", self.process)).display())
    }

    /// Hands every frame that counts to `gathered`; says where the log ends, and whether nothing torn follows there.
    fn read(&self, gathered: &mut Gathered) -> Result<(Option<Header>, LogEnd, bool)> {
        let mut end = LogEnd::start(self.term, self.process);
        let mut header = None;
        let mut met = vec![false; self.marks.len()];
        // What is wrong with the segment before. Before another is begun all of it is synced, but for the frame that
        // says so: where the other goes on from here, nothing is lost.
        let mut before: Option<Error> = None;
        let mut more = false;
        let last = self.paths.keys().next_back().copied().unwrap_or(0);
        let last = self.limit.map_or(last, |limit| limit.segment);
        for segment in 0..=last {
            let Some(path) = self.paths.get(&segment) else {
                // A process that never began has no log.
                if self.paths.is_empty() && self.limit.is_none_or(|limit| limit == end) {
                    break;
                }
                bail!("{}: segment {segment} is missing", self.name());
            };
            let of = || format!("epoch log {}", path.display());
            let mut bytes = self.fs.read(path).with_context(of)?;
            let limit = self.limit.filter(|limit| limit.segment == segment);
            if let Some(limit) = limit {
                ensure!(
                    bytes.len() as u64 >= limit.length,
                    "{}: {} bytes, but a later term read {}; the file was cut or replaced",
                    of(),
                    bytes.len(),
                    limit.length
                );
                bytes.truncate(limit.length as usize);
            }
            // What somebody has read was there.
            let may_be_torn = |at: u64| limit.is_none() && torn(&bytes, at as usize);
            let mut begun = false;
            let announced = std::mem::take(&mut more);
            let mut wrong = None;
            let mut frames = match Frames::new(&bytes, end.chain).with_context(of) {
                Ok(frames) => frames,
                Err(error) if may_be_torn(0) => {
                    wrong = Some(error);
                    Frames::new(&[], end.chain)?
                }
                Err(error) => return Err(error),
            };
            loop {
                let frame = match frames.read().with_context(of) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(error) if segment < last || may_be_torn(frames.end().0) => {
                        wrong = Some(error);
                        break;
                    }
                    Err(error) => return Err(error),
                };
                match &frame {
                    Frame::Header(h) => {
                        ensure!(
                            h.version == LOG_VERSION,
                            "{}: format {}, but this build reads {LOG_VERSION}",
                            of(),
                            h.version
                        );
                        let right = (h.term, h.process, h.segment) == (self.term, self.process, segment) && !begun;
                        ensure!(right, "{}: its header is that of another log", of());
                        header.get_or_insert_with(|| h.clone());
                    }
                    _ => ensure!(begun, "{}: no header", of()),
                }
                begun = true;
                more = frame == Frame::Next;
                gathered.take(frame);
                let (length, chain) = frames.end();
                if !more {
                    end = LogEnd { segment, length, chain };
                    for (mark, met) in self.marks.iter().zip(&mut met) {
                        *met |= *mark == end;
                    }
                }
            }
            if let Some(error) = before.take().filter(|_| !begun) {
                return Err(error);
            }
            if !begun {
                // Interrupted while it was begun: nothing is in it.
                ensure!(!announced, "{}: it was begun, and is empty; the file was cut or replaced", of());
                end = LogEnd { segment, length: frames.end().0, ..end };
            }
            if let Some(limit) = limit {
                ensure!(limit == end, "{}: up to byte {} it is not what a later term read", of(), limit.length);
            } else if more && segment == last && self.limit.is_none() {
                bail!("{}: segment {} is missing", self.name(), segment + 1);
            }
            before = wrong;
        }
        if let Some((mark, _)) = self.marks.iter().zip(&met).find(|(_, met)| !**met) {
            bail!(
                "{}: a checkpoint was written when it went to byte {} of segment {}, and it does not any more, or was changed; \
                 lines of it are lost",
                self.name(),
                mark.length,
                mark.segment
            );
        }
        Ok((header, end, before.is_none()))
    }
}
