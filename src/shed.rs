//! What a lane with `when_full = "dead_letter"` had no room for: a JSON line each in `data_dir/shed/SINK.jsonl`.

use crate::crew::Part;
use crate::outage::{Disk, Outage, what};
use crate::seam::{Fs, make_dir};
use crate::sink::{Shed, line};
use crate::tail::{self, Tail, UNSURE_MAX};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// The files of a process' lanes. What the disk refuses waits here, and nothing more is read meanwhile.
pub struct ShedStore {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    /// By sink: lines for a file whose end is not known yet, and the file.
    files: BTreeMap<String, (Vec<u8>, Option<Tail>)>,
    outage: Outage,
}

impl ShedStore {
    /// In this directory, which is made when there is something.
    pub fn new(fs: Arc<dyn Fs>, dir: PathBuf, disk: &Arc<Disk>) -> Arc<Self> {
        let inner = Inner { files: BTreeMap::new(), outage: disk.holding_outage(what::SHED) };
        Arc::new(Self { fs, dir, inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the lane of a sink sheds.
    pub fn take(&self, sink: &str, shed: &Shed) {
        let mut inner = self.lock();
        if !inner.files.contains_key(sink) {
            inner.files.insert(sink.to_owned(), (Vec::new(), None));
        }
        if let Some((lines, tail)) = inner.files.get_mut(sink) {
            match tail {
                Some(tail) => tail.give(&encode(shed)),
                None => lines.extend(encode(shed)),
            }
        }
        if !inner.outage.is_on() {
            // Refused: it is tried again in time.
            let _ = self.write(&mut inner, false);
        }
    }

    /// Makes all that was taken durable, for a checkpoint that does not know of it.
    ///
    /// # Errors
    /// The disk refuses it, which has been said.
    pub fn sync(&self) -> io::Result<()> {
        self.write(&mut self.lock(), true)
    }

    fn write(&self, inner: &mut Inner, sync: bool) -> io::Result<()> {
        let Inner { files, outage } = inner;
        for (sink, (lines, tail)) in files {
            let path = self.dir.join(format!("{sink}.jsonl"));
            let done = self.write_one(&path, lines, tail, sync);
            if let Err(error) = done {
                outage.failed(&path, &error);
                return Err(error);
            }
        }
        outage.over();
        Ok(())
    }

    fn write_one(&self, path: &Path, lines: &mut Vec<u8>, tail: &mut Option<Tail>, sync: bool) -> io::Result<()> {
        let fs = &*self.fs;
        let tail = match tail {
            Some(tail) => tail,
            None => {
                make_dir(fs, &self.dir)?;
                let length = if fs.exists(path) { fs.len(path)? } else { 0 };
                let tail = tail.insert(Tail::new(length));
                tail.give(lines);
                *lines = Vec::new();
                tail
            }
        };
        let mut open = |length| tail::open(fs, path, length);
        tail.flush(&mut open)?;
        if tail.unsure() > if sync { 0 } else { UNSURE_MAX } {
            fs.sync_dir(&self.dir)?;
            tail.sync(&mut open)?;
        }
        Ok(())
    }
}

/// Tries again what the disk refused, as long as there is a store.
pub struct Retrying(pub Weak<ShedStore>);

impl Part for Retrying {
    fn turn(&mut self, patience: Duration) -> bool {
        let Some(store) = self.0.upgrade() else { return false };
        let mut inner = store.lock();
        if inner.outage.is_on() && inner.outage.is_due() {
            let _ = store.write(&mut inner, false);
        }
        let wait = if inner.outage.is_on() { inner.outage.left() } else { Duration::from_millis(100) };
        drop(inner);
        drop(store);
        std::thread::sleep(patience.min(wait));
        true
    }
}

fn encode(shed: &Shed) -> Vec<u8> {
    let mut lines = Vec::new();
    match shed {
        Shed::Alerts(alerts) => {
            for entry in &alerts.0.alerts {
                line::write(alerts.0.epoch, entry, &mut lines);
                lines.push(b'\n');
            }
        }
        Shed::Rows(rows) => {
            for row in &rows.batch.rows {
                let (source, topic) = &rows.batch.streams[usize::from(row.stream)];
                let name = rows.names.name(row.series);
                let line = serde_json::json!({
                    "source": source, "topic": topic, "partition": row.partition, "offset": row.offset, "index": row.index,
                    "sensor": name.map(|n| &*n.sensor), "metric": name.map(|n| &*n.metric), "time": row.time,
                    "value": row.value,
                });
                lines.extend(line.to_string().into_bytes());
                lines.push(b'\n');
            }
        }
    }
    lines
}
