//! Whatever says that it has made something durable has done so, also where a sync before had failed and let go of what it
//! was to write. Each file on its own: one call of the disk fails, and then the power goes.

use crate::disk::{Disk, DiskFaults, Kind};
use operators::{Alert, AlertState, Judged, SeriesName, Verdict};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use streamgauge::config::WhenFull;
use streamgauge::crew::Part;
use streamgauge::dead_letters::{DeadLetter, DeadLetters};
use streamgauge::decode::Reason;
use streamgauge::epoch_log::{Close, Durability, EpochLog, Frame, Header, Known, LOG_VERSION, Range, read_term};
use streamgauge::metrics::Metrics;
use streamgauge::outage::{self, Outage, what};
use streamgauge::seam::{Clock, Fs};
use streamgauge::shed::{Retrying, ShedStore};
use streamgauge::sink::lane::{Action, Event, Lane, Settings};
use streamgauge::sink::{
    AlertBatch, Alerts, Held, Journal, JournalEntry, LaneState, NameTable, ParquetArchive, RowBatch, Rows, Shed, Sink,
    Traits, line, segment,
};

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

fn watched() -> Arc<outage::Disk> {
    outage::Disk::new(Arc::new(Hasty::default()), Arc::default(), Metrics::new().expect("metrics"))
}

fn outage(what: &'static str) -> Outage {
    watched().holding_outage(what)
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
            synced: true,
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
        assert!(log.synced_end().ok()?.segment > 1, "too few segments");
        log.synced_end().ok()
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

fn rows(epoch: u64) -> Rows {
    let names = NameTable::default();
    names.set(0, SeriesName { sensor: "s".into(), metric: "m".into() });
    let row = |n: u64| Judged {
        time: n as i64,
        value: n as f64,
        offset: (epoch * 1000 + n) as i64,
        series: 0,
        partition: 0,
        stream: 0,
        index: 0,
        verdict: Verdict::Accepted,
    };
    let streams = Arc::new(vec![("s".to_owned(), "t".to_owned())]);
    let batch = RowBatch { epoch, worker: 0, names: Vec::new(), rows: (0..50).map(row).collect(), streams };
    Rows { batch: Arc::new(batch), names: Arc::new(names) }
}

#[test]
fn archive_files_that_a_checkpoint_lists_outlive_a_failed_sync_and_the_power() {
    let now = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let write = |disk: &Disk| {
        let mut archive = ParquetArchive::new(Arc::new(disk.clone()), "/lake".into(), 0, 1, Vec::new());
        now.block_on(archive.connect(1)).ok()?;
        let mut held = Held::default();
        for epoch in 1..=8 {
            repeat(|| now.block_on(archive.write(&[rows(epoch)])));
            if epoch % 2 == 0 {
                held = repeat(|| now.block_on(archive.take_cut(epoch)));
            }
        }
        Some(held)
    };
    for_every_call(write, |disk, held| {
        assert_eq!(held.files.len(), 4);
        for file in held.files {
            let bytes = disk.read(Path::new(&format!("/lake/.{}.tmp", file.name))).expect("there");
            assert_eq!(bytes.len() as u64, file.length);
            let reader = ParquetRecordBatchReaderBuilder::try_new(axum::body::Bytes::from(bytes)).expect("whole");
            let rows: usize = reader.build().expect("whole").map(|batch| batch.expect("whole").num_rows()).sum();
            assert_eq!((rows, file.rows), (100, 100));
        }
    });
}

#[test]
fn segments_that_a_checkpoint_lists_outlive_a_failed_sync_and_the_power() {
    const EPOCHS: u64 = 40;
    let write = |disk: &Disk| {
        disk.create_dir(Path::new("/lanes")).ok()?;
        disk.sync_dir(Path::new("/")).ok()?;
        let settings = Settings {
            sink: "s".into(),
            process: 0,
            term: 1,
            workers: 1,
            keep: 3,
            capacity: 1 << 20,
            memory: 4_000,
            when_full: WhenFull::Pause,
            traits: Traits { in_checkpoint: false, forgets_us: 0, batch_entries: 10, batch_bytes: 1 << 20 },
            dir: "/lanes".into(),
            elsewhere: Arc::default(),
            written: 0,
            seed: 1,
        };
        // Nobody connects it: everything waits, in memory and in segment files.
        let mut lane = Lane::<Alerts>::new(settings, Arc::new(disk.clone()), &[]).expect("nothing to restore");
        let mut actions = Vec::new();
        for epoch in 1..=EPOCHS {
            lane.step(epoch * 1_500_000, Event::Push(alerts(epoch)), &mut actions);
        }
        lane.step(100_000_000, Event::Cut(0, EPOCHS + 1), &mut actions);
        for minute in 2..10 {
            lane.step(minute * 60_000_000, Event::Tick, &mut actions);
        }
        let reported = |action| if let Action::Report(state) = action { Some(state) } else { None };
        let state: LaneState = actions.into_iter().find_map(reported).expect("a report");
        assert!(state.segments.len() > 2, "too few segments: {state:?}");
        Some(state)
    };
    for_every_call(write, |disk, state| {
        let read = |listed| segment::read::<Alerts>(disk, Path::new("/lanes"), listed).expect("whole");
        let epochs: Vec<u64> = state.segments.iter().flat_map(read).map(|alerts| alerts.0.epoch).collect();
        assert_eq!(epochs, (1..=EPOCHS).collect::<Vec<_>>());
    });
}

#[test]
fn what_is_shed_before_a_checkpoint_outlives_a_failed_sync_and_the_power() {
    let write = |disk: &Disk| {
        disk.create_dir(Path::new("/data")).ok()?;
        disk.sync_dir(Path::new("/")).ok()?;
        let watched = watched();
        let store = ShedStore::new(Arc::new(disk.clone()), "/data/shed".into(), 0, &watched);
        let mut retrying = Retrying(Arc::downgrade(&store));
        for epoch in 1..=20 {
            store.take("s", &Shed::Alerts(alerts(epoch)));
            // Reading waits for as long as something is not written.
            for _ in 0..3 {
                assert!(retrying.turn(Duration::ZERO));
            }
            assert!(!watched.holds(), "epoch {epoch}");
            if epoch % 4 == 0 {
                repeat(|| store.sync());
            }
        }
        drop(store);
        assert!(!retrying.turn(Duration::ZERO));
        Some(())
    };
    for_every_call(write, |disk, ()| {
        let text = String::from_utf8(disk.read(Path::new("/data/shed/s.jsonl")).expect("there")).expect("text");
        let epoch = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("a line")["epoch"].as_u64();
        assert_eq!(text.lines().map(epoch).collect::<Vec<_>>(), (1..=20).map(Some).collect::<Vec<_>>());
    });
}
