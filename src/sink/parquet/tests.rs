//! What is written is read back by the parquet reader; what a crash leaves behind is named or removed.

use super::super::test_fs::MemFs;
use super::*;
use crate::seam::RealFs;
use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use operators::{Judged, SeriesName, Verdict};

type Row = (i64, String, String, u64, [bool; 3], String, i32, i64, i32, i64);

const VERDICTS: [Verdict; 4] = [Verdict::Accepted, Verdict::Behind, Verdict::Late, Verdict::Future];

fn rows(epoch: Epoch, worker: usize, count: usize) -> Rows {
    let names = NameTable::default();
    for no in 0..50 {
        names.set(
            no,
            SeriesName { sensor: format!("w{worker}-{}", no / 3).into(), metric: format!("m{}", no % 3).into() },
        );
    }
    let row = |i: usize| Judged {
        time: (epoch * 1000) as i64 + i as i64,
        value: i as f64 / 7.0,
        offset: (epoch as i64) * 10_000 + i as i64,
        series: (i * 7 % 50) as u32,
        partition: (i % 5) as u32,
        stream: (i % 2) as u16,
        index: (i % 3) as u16,
        verdict: VERDICTS[i % 4],
    };
    let streams = Arc::new(vec![("a".to_owned(), "t".to_owned()), ("b".to_owned(), "u".to_owned())]);
    let batch = RowBatch { epoch, worker, names: Vec::new(), rows: (0..count).map(row).collect(), streams };
    Rows { batch: Arc::new(batch), names: Arc::new(names) }
}

fn expected(batches: &[Rows]) -> Vec<Row> {
    let row = |batch: &Rows, row: &Judged| {
        let name = batch.names.name(row.series).unwrap();
        (
            row.time,
            name.sensor.to_string(),
            name.metric.to_string(),
            row.value.to_bits(),
            [row.verdict == Verdict::Late, row.verdict == Verdict::Future, row.verdict == Verdict::Behind],
            batch.batch.streams[usize::from(row.stream)].1.clone(),
            row.partition as i32,
            row.offset,
            i32::from(row.index),
            batch.batch.epoch as i64,
        )
    };
    let mut all: Vec<Row> =
        batches.iter().flat_map(|batch| batch.batch.rows.iter().map(move |r| row(batch, r))).collect();
    all.sort();
    all
}

/// The rows of all files that a reader sees.
fn shown(fs: &dyn Fs, dir: &Path) -> Vec<Row> {
    let mut all = Vec::new();
    for path in fs.list(dir).unwrap() {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with('.') || !name.ends_with(".parquet") {
            continue;
        }
        let bytes = axum::body::Bytes::from(fs.read(&path).unwrap());
        for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            let column = |name: &str| batch.column_by_name(name).unwrap();
            let text = |name: &str, i: usize| {
                let column = column(name).as_dictionary::<Int32Type>();
                column.values().as_string::<i32>().value(column.keys().value(i) as usize).to_owned()
            };
            let flag = |name: &str, i: usize| column(name).as_boolean().value(i);
            for i in 0..batch.num_rows() {
                let row = (
                    column("time").as_primitive::<TimestampMicrosecondType>().value(i),
                    text("sensor", i),
                    text("metric", i),
                    column("value").as_primitive::<Float64Type>().value(i).to_bits(),
                    [flag("late", i), flag("future", i), flag("behind", i)],
                    text("topic", i),
                    column("partition").as_primitive::<Int32Type>().value(i),
                    column("offset").as_primitive::<Int64Type>().value(i),
                    column("index").as_primitive::<Int32Type>().value(i),
                    column("epoch").as_primitive::<Int64Type>().value(i),
                );
                assert_eq!(text("source", i), if row.5 == "t" { "a" } else { "b" });
                all.push(row);
            }
        }
    }
    all.sort();
    all
}

fn archive(fs: &MemFs, restored: Vec<LaneState>) -> ParquetArchive {
    ParquetArchive::new(Arc::new(fs.clone()), "/lake".into(), 0, 1, restored)
}

fn state(term: u64, cut: Epoch, held: Held) -> LaneState {
    LaneState {
        sink: "lake".into(),
        process: 0,
        term,
        cut,
        acknowledged: None,
        segments: Vec::new(),
        files: held.files,
        length: None,
    }
}

/// Nothing here waits: the archive is files.
fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn lake() -> &'static Path {
    Path::new("/lake")
}

#[test]
fn rows_come_back_as_they_were_given() {
    let dir = tempfile::tempdir().unwrap();
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let mut sink = ParquetArchive::new(Arc::clone(&fs), dir.path().join("new/lake"), 0, 1, Vec::new());
    let batches: Vec<Rows> = (1..=40).map(|epoch| rows(epoch, epoch as usize % 3, epoch as usize * 150)).collect();
    now(async {
        sink.connect(1).await.unwrap();
        let mut entries = 0;
        for batch in batches.chunks(3) {
            entries += sink.write(batch).await.unwrap().entries;
        }
        assert_eq!(entries, batches.iter().map(Item::count).sum::<u64>());
        let held = sink.take_cut(41).await.unwrap();
        assert_eq!(held.files.iter().map(|file| file.rows).sum::<u64>(), entries);
        let path = dir.path().join("new/lake");
        assert!(shown(&*fs, &path).is_empty(), "a row is seen before its checkpoint");
        sink.commit(41).await.unwrap();
        assert_eq!(shown(&*fs, &path), expected(&batches));
        assert_eq!(fs.list(&path).unwrap().len(), 1);
    });
}

#[test]
fn rows_read_back_from_a_segment_have_their_own_numbers() {
    let batches: Vec<Rows> = (1..=3)
        .map(|epoch| {
            let mut bytes = Vec::new();
            rows(epoch, epoch as usize, 100).encode(&mut bytes);
            Rows::decode(&bytes).unwrap()
        })
        .collect();
    let fs = MemFs::default();
    let mut sink = archive(&fs, Vec::new());
    now(async {
        sink.connect(1).await.unwrap();
        sink.write(&batches).await.unwrap();
        sink.take_cut(9).await.unwrap();
        sink.commit(9).await.unwrap();
    });
    assert_eq!(shown(&fs, lake()), expected(&batches));
}

#[test]
fn a_cut_without_rows_makes_no_file() {
    let fs = MemFs::default();
    let mut sink = archive(&fs, Vec::new());
    now(async {
        sink.connect(1).await.unwrap();
        assert_eq!(sink.take_cut(5).await.unwrap(), Held::default());
        sink.commit(5).await.unwrap();
    });
    assert!(fs.names().is_empty());
}

#[test]
fn a_restart_shows_what_is_listed_and_removes_what_is_not() {
    let fs = MemFs::default();
    let (first, second, third) = (rows(1, 0, 100), rows(10, 0, 100), rows(20, 0, 100));
    let held = now(async {
        let mut sink = archive(&fs, Vec::new());
        sink.connect(1).await.unwrap();
        sink.write(std::slice::from_ref(&first)).await.unwrap();
        let held = sink.take_cut(10).await.unwrap();
        // Listed for the next cut, which no manifest ever names; and one that is still open.
        sink.write(std::slice::from_ref(&second)).await.unwrap();
        sink.take_cut(20).await.unwrap();
        sink.write(std::slice::from_ref(&third)).await.unwrap();
        sink.gather().unwrap();
        held
    });
    fs.put(&lake().join(".open-1-1-1.tmp"), vec![1]);
    fs.put(&lake().join(".open-1-2-1.tmp"), vec![1]);
    fs.put(&lake().join("notes.txt"), vec![1]);
    assert_eq!(fs.names().iter().filter(|name| name.contains("1-0-")).count(), 3);
    now(async {
        let mut sink = ParquetArchive::new(Arc::new(fs.clone()), lake().into(), 0, 2, vec![state(1, 10, held)]);
        sink.connect(2).await.unwrap();
        assert_eq!(shown(&fs, lake()), expected(std::slice::from_ref(&first)));
        let names = fs.names();
        let hidden: Vec<_> = names.iter().filter(|name| name.starts_with('.')).collect();
        assert_eq!(hidden, [".open-1-1-1.tmp"], "another process' stays, that of a process that is no more goes");
        assert!(names.contains(&"notes.txt".into()));
        sink.write(&[second.clone(), third.clone()]).await.unwrap();
        sink.take_cut(Epoch::MAX).await.unwrap();
        sink.commit(Epoch::MAX).await.unwrap();
    });
    assert_eq!(shown(&fs, lake()), expected(&[first, second, third]));
    let shown: Vec<String> = fs.names().into_iter().filter(|name| name.starts_with("readings-2-")).collect();
    assert_eq!(shown, ["readings-2-0-21-0.parquet"], "the end has no number: it is called after its last epoch");
}

#[test]
fn files_newer_than_the_checkpoint_restored_are_set_aside() {
    let fs = MemFs::default();
    let (first, second) = (rows(1, 0, 100), rows(10, 0, 100));
    let held = now(async {
        let mut sink = archive(&fs, Vec::new());
        sink.connect(1).await.unwrap();
        sink.write(std::slice::from_ref(&first)).await.unwrap();
        let held = sink.take_cut(10).await.unwrap();
        sink.commit(10).await.unwrap();
        sink.write(std::slice::from_ref(&second)).await.unwrap();
        sink.take_cut(Epoch::MAX).await.unwrap();
        sink.commit(Epoch::MAX).await.unwrap();
        held
    });
    assert_eq!(shown(&fs, lake()).len(), 200);
    // The newest checkpoint turned out to be damaged; the one before it is used.
    let made_again = MadeAgain { from: 10, damaged: vec![(1, Epoch::MAX)] };
    now(archive(&fs, vec![state(1, 10, held)]).made_again(made_again).connect(2)).unwrap();
    assert_eq!(shown(&fs, lake()), expected(&[first]));
    assert!(fs.names().contains(&".void-readings-1-0-11-0.parquet".into()));
}

#[test]
fn where_the_checkpoint_restored_knows_of_no_archive_what_damaged_ones_showed_is_set_aside_and_nothing_else() {
    let fs = MemFs::default();
    let (foreign, ours, later) = (rows(1, 0, 100), rows(20, 0, 100), rows(30, 0, 100));
    now(async {
        for (term, cut, batch) in [(1, 10, &foreign), (1, 25, &ours), (1, Epoch::MAX, &later)] {
            let mut sink = archive(&fs, Vec::new());
            sink.connect(term).await.unwrap();
            sink.write(std::slice::from_ref(batch)).await.unwrap();
            sink.take_cut(cut).await.unwrap();
            sink.commit(cut).await.unwrap();
        }
        // The checkpoint at 25 was never completed, the one at the end is damaged. The file for 10 is of an earlier life.
        let made_again = MadeAgain { from: 15, damaged: vec![(1, Epoch::MAX)] };
        archive(&fs, Vec::new()).made_again(made_again).connect(2).await.unwrap();
    });
    assert_eq!(shown(&fs, lake()), expected(&[foreign]));
    for void in [".void-readings-1-0-21-0.parquet", ".void-readings-1-0-31-0.parquet"] {
        assert!(fs.names().contains(&void.into()), "{:?}", fs.names());
    }
}

#[test]
fn files_of_an_earlier_life_are_left_alone() {
    let fs = MemFs::default();
    let life = |batch: Rows| {
        now(async {
            let mut sink = archive(&fs, Vec::new());
            sink.connect(1).await.unwrap();
            sink.write(&[batch]).await.unwrap();
            sink.take_cut(Epoch::MAX).await.unwrap();
            sink.commit(Epoch::MAX).await.unwrap();
        });
    };
    // The state directory was lost in between: the same term, the same names.
    life(rows(1, 0, 100));
    life(rows(9, 0, 100));
    assert_eq!(shown(&fs, lake()), expected(&[rows(1, 0, 100), rows(9, 0, 100)]));
    // The second life goes on from a checkpoint in its first term, and then from the one before a damaged one.
    for (term, damaged) in [(2, Vec::new()), (3, vec![(1, Epoch::MAX), (2, 12)])] {
        let restored = vec![state(1, 10, Held::default())];
        now(archive(&fs, restored).made_again(MadeAgain { from: 10, damaged }).connect(term)).unwrap();
        assert_eq!(shown(&fs, lake()).len(), 200, "term {term}");
    }
}

#[test]
fn a_full_disk_loses_no_row() {
    let fs = MemFs::default();
    let batches: Vec<Rows> = (1..=60).map(|epoch| rows(epoch, 0, 4000)).collect();
    now(async {
        let mut sink = archive(&fs, Vec::new());
        sink.connect(1).await.unwrap();
        let mut refused = 0;
        for (i, batch) in batches.iter().enumerate() {
            fs.room(if i % 20 > 10 { Some(10) } else { None });
            while sink.write(std::slice::from_ref(batch)).await.is_err() {
                refused += 1;
                fs.room(None);
            }
        }
        fs.room(Some(1000));
        while sink.take_cut(100).await.is_err() {
            refused += 1;
            fs.room(Some(200_000));
        }
        assert!(refused > 1, "the disk never was full");
        sink.commit(100).await.unwrap();
    });
    assert_eq!(shown(&fs, lake()), expected(&batches));
}

#[test]
fn calls_that_fail_are_repeated_until_every_row_is_shown_once() {
    for seed in 0..40 {
        let fs = MemFs::default();
        let batches: Vec<Rows> = (1..=20).map(|epoch| rows(epoch, 0, 3000)).collect();
        now(async {
            let mut sink = archive(&fs, Vec::new());
            sink.connect(1).await.unwrap();
            fs.failing(300, seed);
            for batch in &batches {
                while sink.write(std::slice::from_ref(batch)).await.is_err() {}
                if batch.epoch() % 6 == 0 {
                    while sink.take_cut(batch.epoch() + 1).await.is_err() {}
                    while sink.commit(batch.epoch() + 1).await.is_err() {}
                }
            }
            while sink.take_cut(Epoch::MAX).await.is_err() {}
            while sink.commit(Epoch::MAX).await.is_err() {}
        });
        assert_eq!(shown(&fs, lake()), expected(&batches), "seed {seed}");
    }
}

#[test]
fn a_place_that_cannot_be_written_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let mut sink = ParquetArchive::new(Arc::new(RealFs), file.clone(), 0, 1, Vec::new());
    let error = now(sink.connect(1)).unwrap_err();
    assert!(matches!(&error, StartError::Io(text) if text.contains("give a directory")), "{error}");
    assert!(look(&RealFs, &file.join("below")).is_err());
    assert!(look(&RealFs, &dir.path().join("a/b")).unwrap().contains("to be created"));
    assert!(!dir.path().join("a").exists(), "looking changed something");
}
