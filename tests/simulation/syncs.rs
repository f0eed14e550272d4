//! Whatever says that it has made something durable has done so, also where a sync before had failed and let go of what it
//! was to write. Each file on its own: one call of the disk fails, and then the power goes.

use crate::disk::{Disk, DiskFaults, Kind};
use operators::{Alert, AlertState};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use streamgauge::dead_letters::{DeadLetter, DeadLetters};
use streamgauge::decode::Reason;
use streamgauge::epoch_log::{Close, Durability, EpochLog, Frame, Header, Known, LOG_VERSION, Range, read_term};
use streamgauge::metrics::Metrics;
use streamgauge::outage::{self, Outage, what};
use streamgauge::seam::{Clock, Fs};
use streamgauge::sink::{AlertBatch, Alerts, Journal, JournalEntry, Sink, line};

/// Each look at it comes a minute after the last: whatever waits for its time has come to it.
#[derive(Default)]
struct Hasty(AtomicU64);

impl Clock for Hasty {
    fn wall_ms(&self) -> u64 {
        0
    }
    fn monotonic_us(&self) -> u64 {
        self.0.fetch_add(60_000_000, SeqCst)
    }
}

fn outage(what: &'static str) -> Outage {
    outage::Disk::new(Arc::new(Hasty::default()), Arc::default(), Metrics::new().expect("metrics")).holding_outage(what)
}

/// Does `write` on a disk of which one call fails, takes the power away, and lets `read` look; for every call.
fn for_every_call<T>(write: impl Fn(&Disk) -> Option<T>, read: impl Fn(&Disk, T)) {
    let calm = Disk::new(0);
    let life = calm.begin(DiskFaults::default(), false);
    let written = write(&life).expect("nothing fails");
    let calls = life.calls();
    read(&calm.begin(DiskFaults::default(), true), written);
    let mut failed = 0;
    for n in 1..=calls {
        for seed in 1..=3 {
            let disk = Disk::new(seed);
            let life = disk.begin(DiskFaults { nth: Some((n, 1, Kind::Eio)), ..DiskFaults::default() }, false);
            if let Some(written) = write(&life) {
                failed += life.failed();
                read(&disk.begin(DiskFaults::default(), true), written);
            }
        }
    }
    assert!(calls > 20 && failed > calls, "{failed} failures, {calls} calls");
}

#[test]
fn an_epoch_that_is_durable_outlives_a_failed_sync_and_the_power() {
    const EPOCHS: u64 = 20;
    let write = |disk: &Disk| {
        disk.create_dir(Path::new("/term-1")).ok()?;
        disk.sync_dir(Path::new("/")).ok()?;
        let header = Header {
            version: LOG_VERSION,
            term: 1,
            process: 0,
            segment: 0,
            processes: 1,
            peers: 1,
            config: "c".into(),
            streams: vec![("s".into(), "t".into())],
            positions: Vec::new(),
        };
        let (fs, outage) = (Arc::new(disk.clone()), outage(what::EPOCH_LOG));
        let log = EpochLog::create_with(fs, Path::new("/"), header, Durability::Disk, outage, 400).ok()?;
        for epoch in 1..=EPOCHS {
            let mut frames = Vec::new();
            let ranges = vec![Range { stream: 0, partition: 0, next: epoch as i64, records: 1 }];
            Frame::Close(Close { worker: 0, epoch, through: epoch, ranges }).encode(&mut frames);
            let append = log.append(&mut frames);
            // Two at a time: what was written, and not synced, is there when a sync fails.
            for _ in 0..if epoch % 2 == 0 { 10 } else { 0 } {
                log.work(Duration::ZERO);
            }
            assert!(epoch % 2 == 1 || (log.is_durable(append) && !log.holds()), "epoch {epoch} is not written down");
        }
        assert!(log.durable_end().segment > 1, "too few segments");
        Some(log.durable_end())
    };
    for_every_call(write, |disk, end| {
        let log = read_term(disk, Path::new("/"), 1, &Known::default()).expect("sound").expect("there");
        assert_eq!(log.ranges.len() as u64, EPOCHS);
        assert_eq!(log.ends[&0], end);
    });
}

fn alerts(epoch: u64) -> Alerts {
    let alert = Alert {
        time: epoch as i64,
        state: AlertState::Firing,
        rule_key: "hot".into(),
        rule: "hot".into(),
        version: "0badcafe".into(),
        severity: "critical".into(),
        sensor: "s".into(),
        metric: "temperature".into(),
        value: Some(1.5),
        start: epoch as i64,
        ordinal: 0,
        behind: false,
    };
    Alerts(Arc::new(AlertBatch { epoch, alerts: vec![JournalEntry { n: 1, alert }] }))
}

/// Tries until it goes well.
fn repeat<T, E: std::fmt::Display>(mut act: impl FnMut() -> Result<T, E>) -> T {
    let mut last = String::new();
    for _ in 0..10 {
        match act() {
            Ok(done) => return done,
            Err(error) => last = error.to_string(),
        }
    }
    panic!("it never goes well: {last}")
}

#[test]
fn the_journal_up_to_a_checkpoint_outlives_a_failed_sync_and_the_power() {
    let now = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let expected = |epochs: u64| {
        let mut bytes = Vec::new();
        for epoch in 1..=epochs {
            line::write(epoch, &alerts(epoch).0.alerts[0], &mut bytes);
            bytes.push(b'\n');
        }
        bytes
    };
    let write = |disk: &Disk| {
        let mut journal = Journal::new(Arc::new(disk.clone()), "/journal.jsonl".into(), 0, outage(what::JOURNAL));
        now.block_on(journal.connect(1)).ok()?;
        for epoch in 1..=20 {
            repeat(|| now.block_on(journal.write(&[alerts(epoch)])));
            if epoch % 3 == 0 {
                repeat(|| now.block_on(journal.take_cut(epoch)));
            }
        }
        repeat(|| now.block_on(journal.take_cut(20))).length
    };
    for_every_call(write, |disk, length| {
        let bytes = disk.read(Path::new("/journal.jsonl")).expect("there");
        assert_eq!(length, expected(20).len() as u64);
        assert!(bytes == expected(20), "{} bytes, and not the right ones", bytes.len());
    });
}

#[test]
fn dead_letters_up_to_a_checkpoint_outlive_a_failed_sync_and_the_power() {
    let write = |disk: &Disk| {
        let metrics = Metrics::new().expect("metrics");
        let mut store = DeadLetters::open(Arc::new(disk.clone()), Path::new("/dead-letters"), 0, None, metrics).ok()?;
        for n in 0..20 {
            let letter = DeadLetter::new(("s".into(), "t".into()), 0, n, 1, Reason::NotJson).payload(b"{");
            // It is kept, whatever the disk says.
            let _ = store.append(&letter);
            repeat(|| store.flush());
            if n % 3 == 0 {
                repeat(|| store.sync());
            }
        }
        Some(repeat(|| store.sync()))
    };
    for_every_call(write, |disk, position| {
        let files = disk.list(Path::new("/dead-letters")).expect("a folder");
        let bytes = disk.read(&files[0]).expect("there");
        assert_eq!(bytes.len() as u64, position.length);
        let letters = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let offsets: Vec<i64> =
            letters.map(|line| serde_json::from_slice::<DeadLetter>(line).expect("a dead letter").offset).collect();
        assert_eq!(offsets, (0..20).collect::<Vec<i64>>());
    });
}
