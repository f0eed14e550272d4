//! Logs as they are written, cut off, changed and continued.

use super::*;
use crate::outage::{Disk, Outage, what};
use crate::seam::RealFs;
use std::sync::Arc;

fn outage() -> Outage {
    Disk::for_tests().holding_outage(what::EPOCH_LOG)
}

fn header(peers: u32) -> Header {
    Header {
        version: LOG_VERSION,
        term: 1,
        process: 0,
        segment: 0,
        processes: 1,
        peers,
        config: "c".into(),
        streams: vec![("s".into(), "t".into())],
        positions: vec![(0, 0, 0)],
    }
}

fn close(worker: u32, epoch: Epoch, through: Epoch, next: i64) -> Vec<u8> {
    let mut out = Vec::new();
    let ranges = vec![Range { stream: 0, partition: worker, next, records: 3 }];
    Frame::Close(Close { worker, epoch, through, ranges }).encode(&mut out);
    out
}

fn written(frames: &[Vec<u8>]) -> (tempfile::TempDir, Option<TermLog>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(dir.path().join("term-1")).expect("create");
    let log = EpochLog::create(Arc::new(RealFs), dir.path(), header(2), Durability::Process, outage())
        .expect("log is created");
    for frame in frames {
        log.append(&mut frame.clone());
    }
    let read = read_term(&RealFs, dir.path(), 1, &Known::default()).expect("log is read");
    (dir, read)
}

#[test]
fn nothing_is_committed_before_every_worker_has_closed() {
    let (_dir, log) = written(&[close(0, 10, 12, 3)]);
    let log = log.expect("there is a log");
    assert_eq!((log.committed, log.newest, log.ranges.len()), (None, 12, 0));
    assert_eq!(log.boundary(), 13);
}

#[test]
fn the_committed_end_is_the_least_over_the_workers_and_lines_beyond_are_void() {
    let (_dir, log) = written(&[close(0, 10, 12, 3), close(1, 11, 11, 3), close(0, 13, 20, 6)]);
    let log = log.expect("there is a log");
    assert_eq!(log.committed, Some(11));
    assert_eq!(log.ranges.iter().map(|r| r.0).collect::<Vec<_>>(), [10, 11]);
    assert_eq!((log.newest, log.boundary()), (20, 12));
}

#[test]
fn a_clean_end_commits_everything() {
    let (_dir, log) = written(&[close(0, 10, 12, 3), close(1, 11, FOR_EVER, 3), close(0, 13, FOR_EVER, 6)]);
    let log = log.expect("there is a log");
    assert_eq!((log.committed, log.ranges.len(), log.newest), (Some(FOR_EVER), 3, 13));
}

/// A log in segments of so many bytes: its folder, its frames, and where each append ended.
fn log(segment_bytes: u64, appends: u64) -> (tempfile::TempDir, Vec<LogEnd>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(dir.path().join("term-1")).expect("create");
    let log =
        EpochLog::create_with(Arc::new(RealFs), dir.path(), header(1), Durability::Process, outage(), segment_bytes);
    let log = log.expect("log is created");
    let mut ends = vec![log.durable_end()];
    for n in 1..=appends {
        log.append(&mut close(0, n, n, n as i64));
        ends.push(log.durable_end());
    }
    (dir, ends)
}

fn read(dir: &tempfile::TempDir, known: &Known) -> Result<TermLog> {
    read_term(&RealFs, dir.path(), 1, known).map(|log| log.expect("there is a log"))
}

fn segment(dir: &tempfile::TempDir, number: u32) -> PathBuf {
    dir.path().join(format!("term-1/process-0.{number:06}.log"))
}

#[test]
fn a_log_cut_at_any_byte_reads_as_its_whole_frames() {
    let (dir, ends) = log(1 << 20, 5);
    let path = segment(&dir, 0);
    let bytes = std::fs::read(&path).expect("read");
    for cut in ends[0].length as usize..bytes.len() {
        std::fs::write(&path, &bytes[..cut]).expect("written");
        let log = read(&dir, &Known::default()).expect("a torn tail is no error");
        let whole = ends.iter().filter(|end| end.length as usize <= cut).count() - 1;
        assert_eq!((log.ranges.len(), log.ends[&0]), (whole, ends[whole]), "cut at {cut}");
    }
}

#[test]
fn any_flipped_bit_is_found_also_in_the_length_of_the_last_frame() {
    let (dir, _) = log(1 << 20, 5);
    let path = segment(&dir, 0);
    let bytes = std::fs::read(&path).expect("read");
    for at in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[at / 8] ^= 1 << (at % 8);
        std::fs::write(&path, &flipped).expect("written");
        assert!(read(&dir, &Known::default()).is_err(), "bit {at}");
    }
}

#[test]
fn of_a_log_in_segments_none_can_be_missing_short_exchanged_or_of_another_log() {
    let (dir, ends) = log(300, 40);
    let segments = ends.last().expect("an end").segment;
    assert!(segments >= 4, "only {segments} segments");
    assert_eq!(read(&dir, &Known::default()).expect("whole").ranges.len(), 40);
    let bytes: Vec<Vec<u8>> = (0..=segments).map(|n| std::fs::read(segment(&dir, n)).expect("read")).collect();
    let refused = |what: &str| {
        let error = read(&dir, &Known::default()).expect_err(what);
        assert!(format!("{error:#}").contains("process-0"), "{what}: {error:#}");
    };
    for n in 0..segments as usize + 1 {
        let path = segment(&dir, n as u32);
        std::fs::remove_file(&path).expect("removed");
        refused("a segment is missing");
        if n < segments as usize {
            // Without its last frame, which says that another follows: that is there all the same.
            for end in ends.iter().filter(|end| end.segment as usize == n) {
                std::fs::write(&path, &bytes[n][..end.length as usize]).expect("written");
                if *end != *ends.iter().rfind(|e| e.segment as usize == n).expect("an end") {
                    refused("a segment is short by whole frames");
                }
            }
        }
        for other in (0..=segments as usize).filter(|other| *other != n) {
            std::fs::write(&path, &bytes[other]).expect("written");
            refused("a segment stands in for another");
        }
        std::fs::write(&path, &bytes[n]).expect("written");
    }
    // That of another term, or another process, is not ours either.
    std::fs::rename(dir.path().join("term-1"), dir.path().join("term-2")).expect("renamed");
    assert!(read_term(&RealFs, dir.path(), 2, &Known::default()).is_err());
}

#[test]
fn what_a_checkpoint_or_a_later_term_knows_of_a_log_must_be_there_and_what_it_does_not_know_does_not_count() {
    let (dir, ends) = log(300, 40);
    for (n, end) in ends.iter().enumerate() {
        let later = Known { ends: Some(LogEnds::from([(0, *end)])), ..Known::default() };
        assert_eq!(read(&dir, &later).expect("whole").ranges.len(), n);
        let written = Known { marks: vec![(0, *end)], ..Known::default() };
        assert_eq!(read(&dir, &written).expect("whole").ranges.len(), 40);
        let wrong = LogEnd { chain: end.chain ^ 1, ..*end };
        assert!(read(&dir, &Known { ends: Some(LogEnds::from([(0, wrong)])), ..Known::default() }).is_err());
        assert!(read(&dir, &Known { marks: vec![(0, wrong)], ..Known::default() }).is_err());
    }
    // The last segment goes, as if the process had died before: only who knew of it can tell.
    let last = ends[40];
    std::fs::write(
        segment(&dir, last.segment),
        &std::fs::read(segment(&dir, last.segment)).expect("read")
            [..ends.iter().find(|e| e.segment == last.segment).expect("an end").length as usize],
    )
    .expect("cut");
    let shorter = read(&dir, &Known::default()).expect("as if killed").ranges.len();
    assert!(shorter < 40);
    assert!(read(&dir, &Known { ends: Some(LogEnds::from([(0, last)])), ..Known::default() }).is_err());
    let error = read(&dir, &Known { marks: vec![(0, last)], ..Known::default() }).expect_err("lines are lost");
    assert!(format!("{error:#}").contains("lines of it are lost"), "{error:#}");
    // A log that is gone altogether.
    for n in 0..=last.segment {
        std::fs::remove_file(segment(&dir, n)).expect("removed");
    }
    assert!(read_term(&RealFs, dir.path(), 1, &Known { marks: vec![(0, ends[1])], ..Known::default() }).is_err());
    let later = Known { ends: Some(LogEnds::from([(0, ends[1])])), ..Known::default() };
    assert!(read_term(&RealFs, dir.path(), 1, &later).is_err());
}

#[test]
fn a_log_of_nothing_but_zeros_at_its_end_reads_as_what_is_before_them() {
    let (dir, ends) = log(1 << 20, 5);
    let path = segment(&dir, 0);
    let mut bytes = std::fs::read(&path).expect("read");
    bytes.extend([0; 100]);
    std::fs::write(&path, &bytes).expect("written");
    let log = read(&dir, &Known::default()).expect("what a machine without power leaves");
    assert_eq!((log.ranges.len(), log.ends[&0]), (5, ends[5]));
}
