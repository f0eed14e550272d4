//! Rows as columns. No text is copied per row: a row holds the number of its series, and the names stand beside once.

use crate::sink::{Item, READ_BACK, Rows};
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use operators::{SeriesName, Verdict};
use std::io;
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
        // Round 0 is what fresh entries say.
        self.round = self.round.max(1);
        if batch.worker == READ_BACK {
            self.read_back.clear();
        } else if self.numbers.len() <= batch.worker {
            self.numbers.resize_with(batch.worker + 1, Vec::new);
        }
        let numbers = if batch.worker == READ_BACK { &mut self.read_back } else { &mut self.numbers[batch.worker] };
        let before = self.time.len();
        self.time.reserve(batch.rows.len());
        for row in &batch.rows {
            let series = row.series as usize;
            if series >= numbers.len() {
                numbers.resize(series + 1, (0, 0));
            }
            let (round, number) = numbers[series];
            let number = if round == self.round {
                number
            } else {
                let Some(name) = rows.names.name(row.series) else { continue };
                let number = self.names.len() as i32;
                self.names.push(name.clone());
                numbers[series] = (self.round, number);
                number
            };
            self.time.push(row.time);
            self.value.push(row.value);
            self.verdict.push(row.verdict);
            self.series.push(number);
            self.stream.push(i32::from(row.stream));
            self.partition.push(row.partition as i32);
            self.offset.push(row.offset);
            self.index.push(i32::from(row.index));
        }
        self.epoch.resize(self.time.len(), rows.epoch() as i64);
        (self.time.len() - before) as u64
    }

    /// The rows.
    pub fn batch(&self) -> io::Result<RecordBatch> {
        let texts = |keys: &[i32], values: StringArray| -> Result<ArrayRef, ArrowError> {
            let keys = Int32Array::from(keys.to_vec());
            Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(values))?))
        };
        let is = |verdict: Verdict| -> ArrayRef {
            Arc::new(BooleanArray::from_iter(self.verdict.iter().map(|v| Some(*v == verdict))))
        };
        let columns = || {
            RecordBatch::try_new(
                self.schema(),
                vec![
                    Arc::new(TimestampMicrosecondArray::from(self.time.clone()).with_timezone("UTC")),
                    texts(&self.series, self.names.iter().map(|name| Some(&*name.sensor)).collect())?,
                    texts(&self.series, self.names.iter().map(|name| Some(&*name.metric)).collect())?,
                    Arc::new(Float64Array::from(self.value.clone())),
                    is(Verdict::Late),
                    is(Verdict::Future),
                    is(Verdict::Behind),
                    texts(&self.stream, self.streams.iter().map(|(source, _)| Some(source)).collect())?,
                    texts(&self.stream, self.streams.iter().map(|(_, topic)| Some(topic)).collect())?,
                    Arc::new(Int32Array::from(self.partition.clone())),
                    Arc::new(Int64Array::from(self.offset.clone())),
                    Arc::new(Int32Array::from(self.index.clone())),
                    Arc::new(Int64Array::from(self.epoch.clone())),
                ],
            )
        };
        columns().map_err(io::Error::other)
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.time.clear();
        self.value.clear();
        self.verdict.clear();
        self.series.clear();
        self.stream.clear();
        self.partition.clear();
        self.offset.clear();
        self.index.clear();
        self.epoch.clear();
        self.names.clear();
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
