//! What a lane with `when_full = "dead_letter"` had no room for: a JSON line each in `data_dir/shed/SINK.jsonl`, of
//! processes other than 0 in `SINK@PROCESS.jsonl`. Each file has one writer, who may cut it back.

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
    process: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    /// By sink: lines for a file whose end is not known yet, and the file.
    files: BTreeMap<String, (Vec<u8>, Option<Tail>)>,
    outage: Outage,
}

impl ShedStore {
    /// Of a process, in this directory, which is made when there is something.
    pub fn new(fs: Arc<dyn Fs>, dir: PathBuf, process: usize, disk: &Arc<Disk>) -> Arc<Self> {
        let inner = Inner { files: BTreeMap::new(), outage: disk.holding_outage(what::SHED) };
        Arc::new(Self { fs, dir, process, inner: Mutex::new(inner) })
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
            let path = self.dir.join(file_name(sink, self.process));
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

/// No sink's name has an `@`.
fn file_name(sink: &str, process: usize) -> String {
    if process == 0 { format!("{sink}.jsonl") } else { format!("{sink}@{process}.jsonl") }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::test_fs::MemFs;
    use crate::sink::{RowBatch, Rows};
    use operators::{Judged, Verdict};

    fn rows(offset: i64) -> Shed {
        let verdict = Verdict::Accepted;
        let row = Judged { time: 1, value: 2.0, offset, series: 0, partition: 0, stream: 0, index: 0, verdict };
        let streams = Arc::new(vec![("plant".to_owned(), "t".to_owned())]);
        let batch = RowBatch { epoch: 1, worker: 0, names: Vec::new(), rows: vec![row], streams };
        Shed::Rows(Rows { batch: Arc::new(batch), names: Arc::default() })
    }

    #[test]
    fn after_a_failed_write_no_process_cuts_off_what_another_has_shed() {
        let (fs, disk) = (MemFs::default(), Disk::for_tests());
        let of = |process| ShedStore::new(Arc::new(fs.clone()), "/shed".into(), process, &disk);
        let stores = [of(0), of(1)];
        stores[0].take("s", &rows(1));
        stores[1].take("s", &rows(2));
        fs.room(Some(3));
        stores[0].take("s", &rows(3));
        stores[0].sync().expect_err("the disk is full");
        fs.room(None);
        stores[0].sync().expect("there is room again");
        stores[1].take("s", &rows(4));
        let lines = |name: &str| {
            let text = String::from_utf8(fs.read(&Path::new("/shed").join(name)).expect("there")).expect("text");
            let offset =
                |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("a line")["offset"].as_i64();
            text.lines().map(offset).collect::<Vec<_>>()
        };
        assert_eq!((lines("s.jsonl"), lines("s@1.jsonl")), (vec![Some(1), Some(3)], vec![Some(2), Some(4)]));
    }
}
