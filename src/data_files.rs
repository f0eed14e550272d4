//! Data sets as messages: the rows of a CSV file as JSON objects, or the lines of a JSON Lines file as they are.
//!
//! Also how they are paced: by their own event times, times a speed.

use crate::error::Failure;
use crate::seam::Clock;
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How fast to send a data set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// This many times as fast as it happened.
    Times(f64),
    /// As fast as it goes.
    Max,
}

impl FromStr for Speed {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            _ if text == "max" => Ok(Self::Max),
            Ok(times) if times > 0.0 && times.is_finite() => Ok(Self::Times(times)),
            _ => Err(format!("write a number above 0, such as 10, or `max`, not `{text}`")),
        }
    }
}

/// What a data set's columns or fields mean.
#[derive(Clone, Debug)]
pub struct Columns {
    /// The event time.
    pub time: String,
    /// What messages are keyed by.
    pub key: String,
    /// What separates the cells of a CSV file.
    pub delimiter: u8,
}

/// One message of a data set.
#[derive(Debug, PartialEq)]
pub struct Row<'a> {
    /// Its event time, microseconds since 1970, if it has one that can be read.
    pub time: Option<i64>,
    /// Its key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// A data set that is being read.
pub struct Rows {
    name: String,
    kind: Kind,
    columns: Columns,
    /// Bytes read so far, for a progress bar.
    position: Arc<AtomicU64>,
    key: Vec<u8>,
    payload: Vec<u8>,
    skipped: u64,
    untimed: u64,
    first_trouble: Option<String>,
}

enum Kind {
    Csv {
        reader: Box<csv::Reader<Counted>>,
        /// Each column's name as JSON, with the colon.
        names: Vec<Vec<u8>>,
        time: usize,
        key: Option<usize>,
        record: csv::ByteRecord,
    },
    Lines {
        reader: BufReader<Counted>,
        line: Vec<u8>,
    },
}

/// A reader that counts.
struct Counted {
    inner: Box<dyn Read + Send>,
    position: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.position.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Rows {
    /// Opens a file, or standard input for `-`. `.jsonl`, `.ndjson` and `.json` are JSON Lines, anything else is CSV.
    pub fn open(path: &Path, columns: Columns) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let lines = path.extension().is_some_and(|e| ["jsonl", "ndjson", "json"].iter().any(|known| e == *known));
        let inner: Box<dyn Read + Send> = if name == "-" {
            Box::new(io::stdin())
        } else {
            let open = File::open(path);
            Box::new(open.map_err(|e| Failure::configuration(format!("cannot read {name}: {e}")))?)
        };
        Self::new(name, inner, lines, columns)
    }

    /// Reads from anything; `lines` for JSON Lines.
    pub fn new(name: String, inner: Box<dyn Read + Send>, lines: bool, columns: Columns) -> Result<Self, Failure> {
        let position = Arc::new(AtomicU64::new(0));
        let counted = Counted { inner, position: position.clone() };
        let kind = if lines {
            Kind::Lines { reader: BufReader::with_capacity(1 << 16, counted), line: Vec::new() }
        } else {
            let mut reader = csv::ReaderBuilder::new().delimiter(columns.delimiter).from_reader(counted);
            let bad = |e: csv::Error| Failure::configuration(format!("{name}: the header cannot be read: {e}"));
            let headers = reader.byte_headers().map_err(bad)?.clone();
            let texts: Vec<_> =
                headers.iter().map(|h| String::from_utf8_lossy(h).trim_start_matches('\u{feff}').to_owned()).collect();
            let place = |wanted: &str| texts.iter().position(|t| t == wanted);
            let time = place(&columns.time).ok_or_else(|| {
                Failure::configuration(format!(
                    "{name} has no column `{}`; it has {}; name the one with the time by --time-column, what separates \
                     them by --delimiter",
                    columns.time,
                    texts.join(", ")
                ))
            })?;
            let names = texts.iter().map(|t| [Value::from(t.as_str()).to_string().as_bytes(), b":"].concat()).collect();
            let key = place(&columns.key);
            Kind::Csv { reader: Box::new(reader), names, time, key, record: csv::ByteRecord::new() }
        };
        let (key, payload) = (Vec::new(), Vec::new());
        Ok(Self { name, kind, columns, position, key, payload, skipped: 0, untimed: 0, first_trouble: None })
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }
    /// Rows that could not be read and were left out.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
    /// Rows without a time that can be read; they are sent at once.
    pub fn untimed(&self) -> u64 {
        self.untimed
    }
    /// The first of either, in words.
    pub fn first_trouble(&self) -> Option<&str> {
        self.first_trouble.as_deref()
    }

    /// The next message; none at the end.
    pub fn next_row(&mut self) -> Result<Option<Row<'_>>, Failure> {
        let broken = |name: &str, e: &dyn std::fmt::Display| Failure::configuration(format!("cannot read {name}: {e}"));
        self.key.clear();
        self.payload.clear();
        let mut keyed = false;
        let time = match &mut self.kind {
            Kind::Csv { reader, names, time, key, record } => {
                loop {
                    match reader.read_byte_record(record) {
                        Ok(true) => break,
                        Ok(false) => return Ok(None),
                        Err(e) if matches!(e.kind(), csv::ErrorKind::UnequalLengths { .. }) => {
                            self.skipped += 1;
                            self.first_trouble.get_or_insert_with(|| format!("{}: {e}", self.name));
                        }
                        Err(e) => return Err(broken(&self.name, &e)),
                    }
                }
                self.payload.push(b'{');
                for (cell, name) in record.iter().zip(names.iter()).filter(|(cell, _)| !cell.is_empty()) {
                    if self.payload.len() > 1 {
                        self.payload.push(b',');
                    }
                    self.payload.extend_from_slice(name);
                    if is_number(cell) {
                        self.payload.extend_from_slice(cell);
                    } else {
                        let text = Value::from(String::from_utf8_lossy(cell));
                        self.payload.extend_from_slice(text.to_string().as_bytes());
                    }
                }
                self.payload.push(b'}');
                if let Some(cell) = key.and_then(|k| record.get(k)).filter(|cell| !cell.is_empty()) {
                    self.key.extend_from_slice(cell);
                    keyed = true;
                }
                record.get(*time).and_then(|cell| time_of(&String::from_utf8_lossy(cell)))
            }
            Kind::Lines { reader, line } => {
                loop {
                    line.clear();
                    if reader.read_until(b'\n', line).map_err(|e| broken(&self.name, &e))? == 0 {
                        return Ok(None);
                    }
                    if !line.trim_ascii().is_empty() {
                        break;
                    }
                }
                self.payload.extend_from_slice(line.trim_ascii());
                // What is no JSON is sent all the same: what becomes of it is the reader's concern.
                let json: Value = serde_json::from_slice(&self.payload).unwrap_or_default();
                if let Some(text) = field(&json, &self.columns.key) {
                    self.key.extend_from_slice(text.as_bytes());
                    keyed = true;
                }
                field(&json, &self.columns.time).and_then(|text| time_of(&text))
            }
        };
        if time.is_none() {
            self.untimed += 1;
            let (name, column) = (&self.name, &self.columns.time);
            self.first_trouble.get_or_insert_with(|| {
                format!(
                    "{name}: no time at `{column}` in {}",
                    String::from_utf8_lossy(&self.payload[..self.payload.len().min(200)])
                )
            });
        }
        Ok(Some(Row { time, key: keyed.then_some(&self.key), payload: &self.payload }))
    }
}

/// A string or number at a name, or at a JSON Pointer.
fn field(json: &Value, name: &str) -> Option<String> {
    let value = if name.starts_with('/') { json.pointer(name) } else { json.get(name) };
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Whether a cell is a number as JSON writes them, and one that f64 can hold.
fn is_number(cell: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_digit()).count();
    let mut rest = cell.strip_prefix(b"-").unwrap_or(cell);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest[0] == b'0') {
        return false;
    }
    rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let n = digits(fraction);
        if n == 0 {
            return false;
        }
        rest = &fraction[n..];
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
        let exponent = exponent.strip_prefix(b"-").or_else(|| exponent.strip_prefix(b"+")).unwrap_or(exponent);
        let n = digits(exponent);
        if n == 0 {
            return false;
        }
        rest = &exponent[n..];
    }
    let number = || std::str::from_utf8(cell).ok().and_then(|text| text.parse::<f64>().ok());
    rest.is_empty() && number().is_some_and(f64::is_finite)
}

/// An event time in microseconds: RFC 3339, without a zone (UTC), or a number whose magnitude names its unit.
fn time_of(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(number) = text.parse::<f64>() {
        let micros = match number.abs() {
            x if (1e9..1e10).contains(&x) => number * 1e6,
            x if (1e12..1e13).contains(&x) => number * 1e3,
            x if (1e15..1e16).contains(&x) => number,
            x if (1e18..1e19).contains(&x) => number / 1e3,
            _ => return None,
        };
        return Some(micros as i64);
    }
    if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        return Some(timestamp.as_microsecond());
    }
    let civil: jiff::civil::DateTime = text.parse().ok()?;
    Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_microsecond())
}

/// When to send what happened when.
pub struct Pace {
    speed: Speed,
    clock: Arc<dyn Clock>,
    /// The event time that was sent first, and when that was.
    origin: Option<(i64, u64)>,
}

impl Pace {
    /// Begins with the first event.
    pub fn new(speed: Speed, clock: Arc<dyn Clock>) -> Self {
        Self { speed, clock, origin: None }
    }
    /// How long to wait before sending what happened at this time (microseconds). Nothing is sent before what precedes
    /// it, so what is out of order is sent at once.
    pub fn wait(&mut self, event: i64) -> Duration {
        let Speed::Times(times) = self.speed else { return Duration::ZERO };
        let now = self.clock.monotonic_us();
        let (first, began) = *self.origin.get_or_insert((event, now));
        let due = (event.saturating_sub(first) as f64 / times).max(0.0);
        Duration::from_micros((due as u64).saturating_sub(now.saturating_sub(began)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    fn columns() -> Columns {
        Columns { time: "timestamp".into(), key: "sensor_id".into(), delimiter: b';' }
    }
    fn rows(text: &'static str, lines: bool) -> Result<Rows, Failure> {
        Rows::new("data".into(), Box::new(text.as_bytes()), lines, columns())
    }
    fn payloads(mut rows: Rows) -> (Vec<(Option<i64>, String, String)>, Rows) {
        let mut all = Vec::new();
        while let Some(row) = rows.next_row().unwrap() {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            all.push((row.time, row.key.map(text).unwrap_or_default(), text(row.payload)));
        }
        (all, rows)
    }

    #[test]
    fn csv_rows_become_objects_with_numbers_as_numbers_and_no_empty_cells() {
        let text = "sensor_id;name;timestamp;P1\n15092;Balmedie \"1\";2018-07-07T20:03:07;4.50\n007;;2018-07-07T20:05:35;nan\n";
        let (all, rows) = payloads(rows(text, false).unwrap());
        assert_eq!(all[0].1, "15092");
        assert_eq!(
            all[0].2,
            r#"{"sensor_id":15092,"name":"Balmedie \"1\"","timestamp":"2018-07-07T20:03:07","P1":4.50}"#
        );
        assert_eq!(all[1].2, r#"{"sensor_id":"007","timestamp":"2018-07-07T20:05:35","P1":"nan"}"#);
        assert_eq!(all[1].0.unwrap() - all[0].0.unwrap(), 148_000_000);
        assert_eq!(rows.position(), text.len() as u64);
    }

    #[test]
    fn a_row_of_another_length_is_left_out_and_said() {
        let (all, rows) = payloads(rows("timestamp;v\n1700000000;1\n1700000001\n1700000002;2\n", false).unwrap());
        assert_eq!((all.len(), rows.skipped()), (2, 1));
        assert!(rows.first_trouble().unwrap().contains("line: 3"), "{:?}", rows.first_trouble());
    }

    #[test]
    fn a_missing_time_column_is_named_before_anything_is_sent() {
        let failure = rows("sensor_id;time\n1;2\n", false).err().unwrap();
        assert_eq!(failure.code, Exit::Configuration);
        assert!(failure.message.contains("no column `timestamp`; it has sensor_id, time"), "{}", failure.message);
    }

    #[test]
    fn lines_are_sent_as_they_are_even_if_they_are_no_json() {
        let text = "{ \"sensor_id\": 7, \"timestamp\": 1700000000.5 }\n\nnonsense\n{\"timestamp\":null}";
        let (all, rows) = payloads(rows(text, true).unwrap());
        assert_eq!(
            all[0],
            (Some(1_700_000_000_500_000), "7".into(), "{ \"sensor_id\": 7, \"timestamp\": 1700000000.5 }".into())
        );
        assert_eq!(all[1], (None, String::new(), "nonsense".into()));
        assert_eq!((all.len(), rows.untimed()), (3, 2));
    }

    #[test]
    fn numbers_are_what_json_calls_numbers() {
        for yes in ["0", "-1", "1.50", "2e3", "1E-7", "-0.0", "12345678901234567890"] {
            assert!(is_number(yes.as_bytes()), "{yes}");
        }
        for no in ["", "-", "007", "+1", "1.", ".5", "NaN", "inf", "1e", "0x10", "1 ", "1,5", "1e999"] {
            assert!(!is_number(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn times_are_read_in_every_common_form() {
        let noon = Some(1_700_000_000_000_000);
        for text in [
            "1700000000",
            "1700000000000",
            "1700000000000000",
            "2023-11-14T22:13:20Z",
            "2023-11-14T23:13:20+01:00",
            "2023-11-14 22:13:20",
        ] {
            assert_eq!(time_of(text), noon, "{text}");
        }
        assert_eq!(time_of("yesterday"), None);
        assert_eq!(time_of("42"), None);
    }

    struct Fake(AtomicU64);
    impl Clock for Fake {
        fn wall_ms(&self) -> u64 {
            0
        }
        fn monotonic_us(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn ten_times_the_speed_waits_a_tenth_of_the_time() {
        let clock = Arc::new(Fake(AtomicU64::new(5_000_000)));
        let mut pace = Pace::new(Speed::Times(10.0), clock.clone());
        assert_eq!(pace.wait(1_000_000_000), Duration::ZERO);
        assert_eq!(pace.wait(1_010_000_000), Duration::from_secs(1));
        clock.0.store(5_400_000, Ordering::Relaxed);
        assert_eq!(pace.wait(1_010_000_000), Duration::from_millis(600));
        assert_eq!(pace.wait(990_000_000), Duration::ZERO, "older than the first");
        clock.0.store(9_000_000, Ordering::Relaxed);
        assert_eq!(pace.wait(1_010_000_000), Duration::ZERO, "behind its time: no wait, and the next is on time again");
        assert_eq!(pace.wait(1_050_000_000), Duration::from_secs(1));
        assert_eq!(Pace::new(Speed::Max, clock).wait(i64::MAX), Duration::ZERO);
    }

    #[test]
    fn a_speed_is_a_number_above_zero_or_max() {
        assert_eq!("max".parse(), Ok(Speed::Max));
        assert_eq!("2.5".parse(), Ok(Speed::Times(2.5)));
        assert!(["0", "-1", "nan", "inf", "fast"].iter().all(|text| text.parse::<Speed>().is_err()));
    }
}
