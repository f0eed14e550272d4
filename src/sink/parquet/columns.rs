//! Rows as columns. No text is copied per row: a row holds the number of its series, and the names stand beside once.

use crate::sink::{Item, READ_BACK, Rows};
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use operators::{Judged, SeriesName, Verdict};
use std::io;
use std::mem;
use std::sync::Arc;

/// Rows that are handed on at once.
pub(super) const ROWS: usize = 32 * 1024;

/// Rows that are not in a file yet.
#[derive(Default)]
pub(super) struct Columns {
    time: Vec<i64>,
    value: Vec<f64>,
    verdict: Vec<Verdict>,
    series: Vec<i32>,
    stream: Vec<i32>,
    partition: Vec<i32>,
    offset: Vec<i64>,
    index: Vec<i32>,
    epoch: Vec<i64>,
    names: Vec<SeriesName>,
    streams: Arc<Vec<(String, String)>>,
    /// By worker and series: in which round it was numbered, and its number.
    numbers: Vec<Vec<(u32, i32)>>,
    read_back: Vec<(u32, i32)>,
    round: u32,
}

impl Columns {
    pub fn len(&self) -> usize {
        self.time.len()
    }
    pub fn is_empty(&self) -> bool {
        self.time.is_empty()
    }

    /// Whether rows with these streams must wait until the others are gone.
    pub fn other_streams(&self, streams: &Arc<Vec<(String, String)>>) -> bool {
        !self.is_empty() && !Arc::ptr_eq(&self.streams, streams) && self.streams != *streams
    }

    /// Takes a batch; how many of its rows have a name.
    pub fn push(&mut self, rows: &Rows) -> u64 {
        let batch = &rows.batch;
        self.streams = Arc::clone(&batch.streams);
        if self.time.capacity() == 0 {
            self.reserve();
        }
        let before = self.series.len();
        self.number(rows);
        let named: Vec<Judged>;
        let taken = if self.series.len() - before == batch.rows.len() {
            &batch.rows
        } else {
            named = batch.rows.iter().filter(|row| rows.names.name(row.series).is_some()).copied().collect();
            &named
        };
        // Column by column: each loop is a plain copy.
        self.time.extend(taken.iter().map(|row| row.time));
        self.value.extend(taken.iter().map(|row| row.value));
        self.verdict.extend(taken.iter().map(|row| row.verdict));
        self.stream.extend(taken.iter().map(|row| i32::from(row.stream)));
        self.partition.extend(taken.iter().map(|row| row.partition as i32));
        self.offset.extend(taken.iter().map(|row| row.offset));
        self.index.extend(taken.iter().map(|row| i32::from(row.index)));
        self.epoch.resize(self.time.len(), rows.epoch() as i64);
        taken.len() as u64
    }

    /// Numbers the series of a batch in the order in which they first appear since the last `take`.
    fn number(&mut self, rows: &Rows) {
        let worker = rows.batch.worker;
        // Round 0 is what fresh entries say.
        self.round = self.round.max(1);
        if worker == READ_BACK {
            self.read_back.clear();
        } else if self.numbers.len() <= worker {
            self.numbers.resize_with(worker + 1, Vec::new);
        }
        let numbers = if worker == READ_BACK { &mut self.read_back } else { &mut self.numbers[worker] };
        for row in &rows.batch.rows {
            let series = row.series as usize;
            if series >= numbers.len() {
                numbers.resize(series + 1, (0, 0));
            }
            let (round, number) = numbers[series];
            if round == self.round {
                self.series.push(number);
            } else if let Some(name) = rows.names.name(row.series) {
                let number = self.names.len() as i32;
                self.names.push(name.clone());
                numbers[series] = (self.round, number);
                self.series.push(number);
            }
        }
    }

    /// The rows; nothing is left.
    pub fn take(&mut self) -> io::Result<RecordBatch> {
        let texts = |keys: &Int32Array, values: StringArray| -> Result<ArrayRef, ArrowError> {
            Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys.clone(), Arc::new(values))?))
        };
        let is = |verdict: Verdict| -> ArrayRef {
            Arc::new(BooleanArray::from(self.verdict.iter().map(|v| *v == verdict).collect::<Vec<_>>()))
        };
        let flags = [is(Verdict::Late), is(Verdict::Future), is(Verdict::Behind)];
        let series = Int32Array::from(mem::take(&mut self.series));
        let stream = Int32Array::from(mem::take(&mut self.stream));
        let columns = || {
            let [late, future, behind] = flags;
            RecordBatch::try_new(
                self.schema(),
                vec![
                    Arc::new(TimestampMicrosecondArray::from(mem::take(&mut self.time)).with_timezone("UTC")),
                    texts(&series, self.names.iter().map(|name| Some(&*name.sensor)).collect())?,
                    texts(&series, self.names.iter().map(|name| Some(&*name.metric)).collect())?,
                    Arc::new(Float64Array::from(mem::take(&mut self.value))),
                    late,
                    future,
                    behind,
                    texts(&stream, self.streams.iter().map(|(source, _)| Some(source)).collect())?,
                    texts(&stream, self.streams.iter().map(|(_, topic)| Some(topic)).collect())?,
                    Arc::new(Int32Array::from(mem::take(&mut self.partition))),
                    Arc::new(Int64Array::from(mem::take(&mut self.offset))),
                    Arc::new(Int32Array::from(mem::take(&mut self.index))),
                    Arc::new(Int64Array::from(mem::take(&mut self.epoch))),
                ],
            )
        };
        let batch = columns().map_err(io::Error::other);
        self.round = self.round.wrapping_add(1);
        self.verdict.clear();
        self.names.clear();
        batch
    }

    fn reserve(&mut self) {
        let rows = ROWS + ROWS / 4;
        self.time.reserve(rows);
        self.value.reserve(rows);
        self.verdict.reserve(rows);
        self.series.reserve(rows);
        self.stream.reserve(rows);
        self.partition.reserve(rows);
        self.offset.reserve(rows);
        self.index.reserve(rows);
        self.epoch.reserve(rows);
    }

    pub fn schema(&self) -> SchemaRef {
        let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let field = |name: &str, kind: &DataType| Field::new(name, kind.clone(), false);
        Arc::new(Schema::new(vec![
            field("time", &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
            field("sensor", &text),
            field("metric", &text),
            field("value", &DataType::Float64),
            field("late", &DataType::Boolean),
            field("future", &DataType::Boolean),
            field("behind", &DataType::Boolean),
            field("source", &text),
            field("topic", &text),
            field("partition", &DataType::Int32),
            field("offset", &DataType::Int64),
            field("index", &DataType::Int32),
            field("epoch", &DataType::Int64),
        ]))
    }
}
