//! What a run left behind, held against what the oracle says it must have left.
#![allow(dead_code, reason = "each test binary includes this file and uses some of it")]

use crate::expected;
use crate::program::succeed;
use crate::servers::Redis;
use base64::Engine;
use oracle::{ArchiveRow, Outcome, Record};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use redis::streams::StreamRangeReply;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use streamgauge::config::{self, Overrides};

/// What these records must have come to under this configuration, in the epochs that this data directory's logs say.
pub fn what_must_be(config: &str, records: &[Record], data: &Path) -> Outcome {
    let pure = config::load_texts(&[("plant.toml".into(), config.to_owned())], &|_| None, &Overrides::default())
        .unwrap_or_else(|report| panic!("{report:?}"))
        .pure();
    oracle::run(&expected::config(&pure), records, &expected::lines(data)).expect("the oracle")
}

/// The same lines, or the first that differs.
pub fn same_journal(ours: &[String], theirs: &[String]) {
    if let Some(at) = ours.iter().zip(theirs).position(|(a, b)| a != b) {
        panic!("line {at}\n  program {}\n  oracle  {}", ours[at], theirs[at]);
    }
    let next = ours.len().min(theirs.len());
    assert_eq!(ours.len(), theirs.len(), "first more: {:?}", ours.get(next).or(theirs.get(next)));
}

/// Every transition once, in order, under its position.
pub fn same_stream(redis: &Redis, journal: &[String]) {
    let mut connection = redis.connection();
    let stream: StreamRangeReply =
        redis::cmd("XRANGE").arg("alerts").arg("-").arg("+").query(&mut connection).expect("the stream");
    for (entry, line) in stream.ids.iter().zip(journal) {
        let line: Value = serde_json::from_str(line).expect("a line");
        let id = format!("{}-{}", line["epoch"], line["n"]);
        assert_eq!(entry.id, id, "the stream has {:?}\nand the journal {line}", entry.map);
        for field in ["alert", "state", "rule", "severity", "sensor", "metric", "version"] {
            assert_eq!(entry.get::<String>(field).as_deref(), line[field].as_str(), "{field} of {line}");
        }
        for field in ["transition", "time", "start", "ordinal", "behind"] {
            assert_eq!(entry.get::<String>(field), Some(line[field].to_string()), "{field} of {line}");
        }
        assert_eq!(entry.get::<f64>("value"), line["value"].as_f64(), "value of {line}");
    }
    assert_eq!(stream.ids.len(), journal.len());
}

/// The rows of an archive, by a reader that knows nothing of us.
pub fn archived(lake: &Path) -> Vec<ArchiveRow> {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(lake).expect("the archive") {
        let path = entry.expect("a file").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(name.ends_with(".parquet") && !name.starts_with('.'), "{name} was left behind");
        let reader = SerializedFileReader::try_from(path.as_path()).expect("a Parquet file");
        for row in reader.get_row_iter(None).expect("its rows") {
            let row = row.expect("a row");
            let of: BTreeMap<&String, &Field> = row.get_column_iter().collect();
            let text = |name: &str| match of[&name.to_owned()] {
                Field::Str(text) => text.clone(),
                other => panic!("{name}: {other:?}"),
            };
            let whole = |name: &str| match of[&name.to_owned()] {
                Field::Long(n) | Field::TimestampMicros(n) => *n,
                Field::Int(n) => i64::from(*n),
                other => panic!("{name}: {other:?}"),
            };
            let is = |name: &str| of[&name.to_owned()] == &Field::Bool(true);
            let Field::Double(value) = of[&"value".to_owned()] else { panic!("no value") };
            rows.push(ArchiveRow {
                epoch: whole("epoch") as u64,
                source: text("source").into(),
                topic: text("topic").into(),
                partition: whole("partition") as i32,
                offset: whole("offset"),
                index: whole("index") as u16,
                sensor: text("sensor").into(),
                metric: text("metric").into(),
                time: whole("time"),
                value: *value,
                late: is("late"),
                future: is("future"),
                behind: is("behind"),
            });
        }
    }
    rows
}

/// Every row once.
pub fn same_archive(lake: &Path, expected: &[ArchiveRow]) {
    let mut rows = archived(lake);
    let mut expected = expected.to_vec();
    let place = |row: &ArchiveRow| (row.partition, row.offset, row.index);
    rows.sort_by_key(place);
    expected.sort_by_key(place);
    for (ours, theirs) in rows.iter().zip(&expected) {
        assert_eq!(ours, theirs);
        assert_eq!(ours.value.to_bits(), theirs.value.to_bits());
    }
    assert_eq!(rows.len(), expected.len());
}

/// One value per series and millisecond, and it is one of those that were read there.
pub fn same_time_series(redis: &Redis, archive: &[ArchiveRow]) {
    let mut expected: BTreeMap<String, BTreeMap<i64, BTreeSet<u64>>> = BTreeMap::new();
    for row in archive.iter().filter(|row| !row.future) {
        let series = expected.entry(format!("ts:{}:{}", row.sensor, row.metric)).or_default();
        series.entry(row.time.div_euclid(1000)).or_default().insert(row.value.to_bits());
    }
    let mut connection = redis.connection();
    let keys: BTreeSet<String> = redis::cmd("KEYS").arg("ts:*").query(&mut connection).expect("keys");
    assert_eq!(keys, expected.keys().cloned().collect());
    for (key, values) in expected {
        let found: Vec<(i64, f64)> =
            redis::cmd("TS.RANGE").arg(&key).arg("-").arg("+").query(&mut connection).expect("a series");
        assert_eq!(found.len(), values.len(), "{key}");
        for (ms, value) in found {
            assert!(values.get(&ms).is_some_and(|read| read.contains(&value.to_bits())), "{key} at {ms}: {value}");
        }
    }
}

/// The newest accepted reading of each series by event time.
pub fn same_last(redis: &Redis, archive: &[ArchiveRow]) {
    let mut expected: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for row in archive.iter().filter(|row| !(row.late || row.future || row.behind)) {
        let newest = expected.entry((&*row.sensor, &*row.metric)).or_insert(i64::MIN);
        *newest = (*newest).max(row.time);
    }
    let mut connection = redis.connection();
    for ((sensor, metric), time) in expected {
        let field = format!("{metric}:time");
        let found: Option<i64> =
            redis::cmd("HGET").arg(format!("last:{sensor}")).arg(&field).query(&mut connection).expect("a hash");
        assert_eq!(found, Some(time), "{sensor} {metric}");
    }
}

/// Every refusal once, with its bytes and its reason.
pub fn same_dead_letters(config: &str, expected: &Outcome, records: &[oracle::Record]) {
    let payloads: BTreeMap<(i32, i64), &oracle::Record> =
        records.iter().map(|record| ((record.partition, record.offset), record)).collect();
    let output = succeed(&["dead-letters", "list", "--json", "--limit", "1000000", "-c", config]);
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut ours = Vec::new();
    for letter in list["newest"].as_array().expect("a list") {
        let place =
            (letter["partition"].as_i64().expect("a partition") as i32, letter["offset"].as_i64().expect("an offset"));
        let bytes = base64::prelude::BASE64_STANDARD.decode(letter["bytes"].as_str().expect("bytes")).expect("base64");
        let payload = payloads[&place].payload.as_ref().expect("no tombstone");
        if letter["size"] != 0 {
            assert_eq!(&bytes, payload, "{letter}");
        }
        let reason = letter["reason"].as_str().expect("a reason").to_owned();
        ours.push((place, letter["index"].as_u64(), reason));
    }
    let mut theirs: Vec<_> = expected
        .dead_letters
        .iter()
        .map(|d| ((d.partition, d.offset), d.index.map(u64::from), d.reason.name()))
        .collect();
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
    let counted: u64 = list["counts"].as_array().expect("counts").iter().filter_map(|c| c["count"].as_u64()).sum();
    assert_eq!(counted, theirs.len() as u64);
}
