//! The journal: every alert transition, one line each, in `journal.jsonl`. Always there, in process 0.
//!
//! Part of the checkpoint: its length at the cut is recorded, and a restart cuts it back to that before replay writes the
//! rest again. So every line stands in it once, whatever dies. Whoever writes it has it locked. A start that finds it
//! locked by a process that it replaces goes on in a copy: what the other still writes goes into a file without a name.
//! What the disk refuses, or may have dropped when a sync failed, is written again (`tail`).

use super::*;
use crate::outage::Outage;
use crate::seam::{FileWriter, Fs};
use crate::tail::{Open, Tail, UNSURE_MAX};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The name of the journal's lane.
pub const JOURNAL: &str = "journal";

/// The file, and how far it is good.
pub struct Journal {
    file: File,
    tail: Tail,
    outage: Outage,
    bytes: Vec<u8>,
}

struct File {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    /// Whether it was ours once: then nobody else may have it.
    ours: bool,
    /// Whether its name is durable.
    named: bool,
}

impl File {
    /// Opens it for appending, without what may lie beyond its good length.
    fn open(&mut self, length: u64) -> io::Result<Box<dyn FileWriter>> {
        if !self.fs.exists(&self.path) {
            drop(self.fs.create(&self.path)?);
        }
        let mut file = self.fs.append(&self.path)?;
        if file.try_lock()? {
            file.truncate(length)?;
        } else if self.ours {
            return Err(io::Error::other("another streamgauge has it; this one has been replaced"));
        } else {
            file = self.copy(length)?;
        }
        self.ours = true;
        Ok(file)
    }

    /// Puts a copy of what is good of it in its place.
    fn copy(&self, length: u64) -> io::Result<Box<dyn FileWriter>> {
        let beside = self.path.with_extension("copy");
        if self.fs.exists(&beside) {
            self.fs.remove(&beside)?;
        }
        let mut bytes = self.fs.read(&self.path)?;
        bytes.truncate(length as usize);
        let mut file = self.fs.create(&beside)?;
        if !file.try_lock()? {
            return Err(io::Error::other("another streamgauge begins on this data_dir"));
        }
        file.write_all(&bytes)?;
        file.sync()?;
        self.fs.rename(&beside, &self.path)?;
        self.sync_dir()?;
        tracing::warn!(journal = %self.path.display(), "a process that was replaced still has the journal; this one goes on in a copy");
        Ok(file)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), |dir| self.fs.sync_dir(dir))
    }
}

impl Journal {
    /// A journal of which the first `length` bytes belong to the checkpoint.
    pub fn new(fs: Arc<dyn Fs>, path: PathBuf, length: u64, outage: Outage) -> Self {
        let file = File { fs, path, ours: false, named: false };
        Self { file, tail: Tail::new(length), outage, bytes: Vec::new() }
    }

    /// Does something with the file, and says what came of it.
    fn with(&mut self, act: impl FnOnce(&mut Tail, Open<'_>) -> io::Result<()>) -> Result<(), SinkError> {
        let Self { file, tail, outage, .. } = self;
        match act(tail, &mut |length| file.open(length)) {
            Ok(()) => {
                outage.over();
                Ok(())
            }
            Err(error) => {
                outage.failed(&file.path, &error);
                Err(SinkError::Unavailable(format!("{}: {error}", file.path.display())))
            }
        }
    }
}

impl Sink for Journal {
    type Item = Alerts;

    fn traits(&self) -> Traits {
        Traits { in_checkpoint: true, forgets_us: 0, batch_entries: 10_000, batch_bytes: 4 << 20 }
    }

    async fn connect(&mut self, _term: u64) -> Result<(), StartError> {
        let File { fs, path, ours, .. } = &self.file;
        let cannot = |error: io::Error| StartError::of_disk(format!("{}: {error}", self.file.path.display()), &error);
        if !ours {
            let found = if fs.exists(path) { fs.len(path).map_err(cannot)? } else { 0 };
            let length = self.tail.length();
            if found < length {
                return Err(StartError::Corrupt(format!(
                    "{}: {found} bytes, but the checkpoint knows of {length}; the file was cut or replaced",
                    path.display()
                )));
            }
        }
        let file = &mut self.file;
        let opened = self.tail.open(&mut |length| file.open(length));
        opened.map_err(|error| StartError::of_disk(format!("{}: {error}", file.path.display()), &error))
    }

    async fn write(&mut self, batch: &[Alerts]) -> Result<Written, SinkError> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut entries = 0;
        for alerts in batch {
            for entry in &alerts.0.alerts {
                line::write(alerts.0.epoch, entry, &mut bytes);
                bytes.push(b'\n');
                entries += 1;
            }
        }
        let written = self.with(|tail, open| {
            if tail.unsure() > UNSURE_MAX {
                tail.sync(open)?;
            }
            tail.append(&bytes, open)
        });
        self.bytes = bytes;
        written?;
        Ok(Written { entries, ..Written::default() })
    }

    async fn take_cut(&mut self, _cut: Epoch) -> Result<Held, SinkError> {
        self.with(|tail, open| tail.sync(open))?;
        if !self.file.named {
            let named = self.file.sync_dir();
            self.with(|_, _| named)?;
            self.file.named = true;
        }
        Ok(Held { length: Some(self.tail.length()), ..Held::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_fs::MemFs;
    use super::*;
    use crate::outage::{Disk, what};
    use operators::{Alert, AlertState};
    use std::path::Path;

    fn alerts(epoch: Epoch, value: Option<f64>) -> Alerts {
        let alert = Alert {
            time: 1_700_000_000_000_000,
            state: AlertState::Firing,
            rule_key: "too-hot:critical".into(),
            rule: "too-hot".into(),
            version: "0badcafe".into(),
            severity: "critical".into(),
            sensor: "s-\"1".into(),
            metric: "temperature".into(),
            value,
            start: 1_699_999_999_000_000,
            ordinal: 0,
            behind: false,
        };
        Alerts(Arc::new(AlertBatch { epoch, alerts: vec![JournalEntry { n: 1, alert }] }))
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn journal(fs: &MemFs, length: u64) -> Journal {
        let outage = Disk::for_tests().outage(what::JOURNAL);
        Journal::new(Arc::new(fs.clone()), "/data/journal.jsonl".into(), length, outage)
    }

    fn text(fs: &MemFs) -> String {
        String::from_utf8(fs.read(Path::new("/data/journal.jsonl")).unwrap()).unwrap()
    }

    #[test]
    fn a_line_has_its_keys_in_the_documented_order() {
        let fs = MemFs::default();
        let mut journal = journal(&fs, 0);
        let alerts = [alerts(1_700_000_000_020, Some(36.2)), alerts(1_700_000_000_040, None)];
        now(async {
            journal.connect(1).await.unwrap();
            assert_eq!(journal.write(&alerts).await.unwrap().entries, 2);
        });
        let id = alerts[0].0.alerts[0].alert.id_hex();
        let lines: Vec<String> = text(&fs).lines().map(str::to_owned).collect();
        assert_eq!(
            lines[0],
            format!(
                "{{\"epoch\":1700000000020,\"n\":1,\"time\":1700000000000000,\"state\":\"firing\",\"rule\":\"too-hot\",\
                 \"severity\":\"critical\",\"sensor\":\"s-\\\"1\",\"metric\":\"temperature\",\"value\":36.2,\
                 \"start\":1699999999000000,\"ordinal\":0,\"behind\":false,\"alert\":\"{id}\",\"transition\":0,\
                 \"version\":\"0badcafe\"}}"
            )
        );
        assert!(lines[1].contains("\"value\":null"), "{}", lines[1]);
        assert_eq!(id.len(), 32);
    }

    #[test]
    fn a_restart_cuts_the_journal_back_to_its_checkpoint() {
        let fs = MemFs::default();
        let batches: Vec<Alerts> = (1..=5).map(|epoch| alerts(epoch, Some(epoch as f64))).collect();
        let length = now(async {
            let mut journal = journal(&fs, 0);
            journal.connect(1).await.unwrap();
            journal.write(&batches[..2]).await.unwrap();
            let held = journal.take_cut(3).await.unwrap();
            journal.write(&batches[2..4]).await.unwrap();
            held.length.unwrap()
        });
        now(async {
            let mut journal = journal(&fs, length);
            journal.connect(2).await.unwrap();
            assert_eq!(text(&fs).lines().count(), 2);
            journal.write(&batches[2..]).await.unwrap();
        });
        let epochs: Vec<u64> = text(&fs)
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["epoch"].as_u64().unwrap())
            .collect();
        assert_eq!(epochs, [1, 2, 3, 4, 5]);
        let error = now(journal(&fs, 1 << 20).connect(3)).unwrap_err();
        assert!(
            matches!(&error, StartError::Corrupt(text) if text.contains("the checkpoint knows of 1048576")),
            "{error}"
        );
    }

    #[test]
    fn a_run_that_has_been_replaced_takes_nothing_of_the_journal_away() {
        use crate::fenced::Fenced;
        use crate::seam::RealFs;
        use crate::terms::Fence;
        let dir = tempfile::tempdir().unwrap();
        let (logs, path) = (dir.path().join("epochs"), dir.path().join("journal.jsonl"));
        let of_term = |term: u64| {
            std::fs::create_dir_all(logs.join(format!("term-{term}"))).unwrap();
            let outage = Disk::for_tests().outage(what::JOURNAL);
            let fs = Fenced::new(Arc::new(RealFs), Fence::new(Arc::new(RealFs), logs.clone(), term));
            Journal::new(fs, path.clone(), 0, outage)
        };
        // It was about to open the journal, and slept meanwhile.
        let (mut old, mut new) = (of_term(2), of_term(3));
        now(async {
            new.connect(3).await.unwrap();
            new.write(&[alerts(1, None)]).await.unwrap();
            let error = old.connect(2).await.unwrap_err();
            assert!(error.to_string().contains("replaced by term 3"), "{error}");
            new.write(&[alerts(2, None)]).await.unwrap();
            drop(new);
            assert!(old.connect(2).await.is_err());
        });
        assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 2);
    }

    #[test]
    fn half_a_line_is_cut_off_before_the_next_try() {
        let batches: Vec<Alerts> = (1..=50).map(|epoch| alerts(epoch, Some(epoch as f64))).collect();
        for seed in 0..50 {
            let fs = MemFs::default();
            now(async {
                let mut journal = journal(&fs, 0);
                journal.connect(1).await.unwrap();
                fs.failing(300, seed);
                for batch in batches.chunks(3) {
                    while journal.write(batch).await.is_err() {}
                }
                while journal.take_cut(Epoch::MAX).await.is_err() {}
            });
            let mut expected = Vec::new();
            for batch in &batches {
                line::write(batch.0.epoch, &batch.0.alerts[0], &mut expected);
                expected.push(b'\n');
            }
            assert_eq!(text(&fs).into_bytes(), expected, "seed {seed}");
        }
    }
}
