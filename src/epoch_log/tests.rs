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
        synced: false,
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

/// A log of so many appends, that of which the disk had the first ones when the next was appended: its folder, its
/// bytes, where each append ended, and what the disk had.
fn half_synced(synced: u64, appends: u64) -> (tempfile::TempDir, Vec<u8>, Vec<LogEnd>, usize) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(dir.path().join("term-1")).expect("create");
    let log = EpochLog::create(Arc::new(RealFs), dir.path(), header(1), Durability::Process, outage())
        .expect("log is created");
    let mut ends = vec![log.durable_end()];
    let mut had = 0;
    for n in 1..=appends {
        log.append(&mut close(0, n, n, n as i64));
        ends.push(log.durable_end());
        if n == synced {
            had = log.synced_end().expect("synced").length as usize;
        }
    }
    let bytes = std::fs::read(segment(&dir, 0)).expect("read");
    (dir, bytes, ends, had)
}

#[test]
fn any_flipped_bit_is_found_and_what_the_disk_is_not_known_to_have_had_is_said_to_be_torn() {
    let (dir, bytes, ends, had) = half_synced(3, 5);
    let path = segment(&dir, 0);
    for at in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[at / 8] ^= 1 << (at % 8);
        std::fs::write(&path, &flipped).expect("written");
        match read(&dir, &Known::default()) {
            Ok(log) => {
                assert!(at / 8 >= had, "bit {at} was on the disk");
                // The fourth append begins with the frame that says what the disk had.
                let whole = ends.iter().filter(|end| end.length as usize <= at / 8).count() - 1;
                assert_eq!((log.ranges.len(), log.torn.len()), (whole, 1), "bit {at}");
                assert!(log.torn[&0].length as usize <= at / 8 && log.torn == log.ends, "bit {at}");
            }
            Err(error) => assert!(at / 8 < had, "bit {at}: {error:#}"),
        }
        // What a checkpoint or a later term has seen is never taken for torn.
        for known in [
            Known { marks: vec![(0, ends[5])], ..Known::default() },
            Known { ends: Some([(0, ends[5])].into()), ..Known::default() },
        ] {
            assert!(read(&dir, &known).is_err(), "bit {at}");
        }
    }
}

#[test]
fn blocks_that_were_not_written_end_the_log_where_the_disk_did_not_have_it_and_are_damage_elsewhere() {
    let (dir, bytes, ends, had) = half_synced(3, 9);
    let path = segment(&dir, 0);
    let (mut torn, mut damaged) = (0, 0);
    // The header is always on the disk: with any frame left behind it, it cannot have been lost.
    let begun = ends[0].length as usize;
    for start in (0..begun).step_by(5) {
        let mut holed = bytes.clone();
        holed[start..begun + 60].fill(0);
        std::fs::write(&path, &holed).expect("written");
        assert!(read(&dir, &Known::default()).is_err(), "from {start} on");
    }
    for start in (begun..bytes.len()).step_by(7) {
        for end in (start + 1..=bytes.len()).step_by(11) {
            let mut holed = bytes.clone();
            holed[start..end].fill(0);
            if holed == bytes {
                continue;
            }
            std::fs::write(&path, &holed).expect("written");
            let first = holed.iter().zip(&bytes).position(|(a, b)| a != b).expect("a difference");
            let said = ends[3].length as usize + 21;
            match read(&dir, &Known::default()) {
                Ok(log) => {
                    let whole = ends.iter().filter(|e| e.length as usize <= first).count().saturating_sub(1);
                    assert_eq!(log.ranges.len(), whole, "{start}..{end}");
                    // Or the frame that says what the disk had is gone, too.
                    assert!(first >= had || end >= said - 20, "{start}..{end}");
                    torn += 1;
                }
                Err(error) => {
                    assert!(first < had, "{start}..{end}: {error:#}");
                    damaged += 1;
                }
            }
        }
    }
    assert!(torn > 100 && damaged > 100, "{torn} torn, {damaged} damaged");
}

#[test]
fn a_frame_that_is_whole_and_of_a_kind_unknown_here_is_never_taken_for_torn() {
    let (dir, _, _, _) = half_synced(3, 3);
    let path = segment(&dir, 0);
    let mut bytes = std::fs::read(&path).expect("read");
    let end = read(&dir, &Known::default()).expect("whole").ends[&0];
    let mut later = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    frame::seal(&mut later, end.chain);
    bytes.extend(later);
    std::fs::write(&path, &bytes).expect("written");
    let error = read(&dir, &Known::default()).expect_err("that of a later release");
    assert!(format!("{error:#}").contains("cannot be read"), "{error:#}");
}

#[test]
fn the_frame_that_announces_a_segment_may_be_torn_and_what_it_announces_may_not() {
    let (dir, ends) = log(300, 40);
    let path = segment(&dir, 0);
    let bytes = std::fs::read(&path).expect("read");
    for at in bytes.len() - 13..bytes.len() {
        let mut torn = bytes.clone();
        torn[at] ^= 0x55;
        std::fs::write(&path, &torn).expect("written");
        let log = read(&dir, &Known::default()).expect("the other segment is there");
        assert_eq!((log.ranges.len(), log.torn.len()), (40, 0), "byte {at}");
    }
    std::fs::write(&path, &bytes).expect("written");
    let last = ends[40].segment;
    let path = segment(&dir, last);
    let bytes = std::fs::read(&path).expect("read");
    for cut in 0..ends.iter().find(|end| end.segment == last).expect("an end").length as usize - 60 {
        std::fs::write(&path, &bytes[..cut]).expect("written");
        assert!(read(&dir, &Known::default()).is_err(), "cut at {cut}");
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
