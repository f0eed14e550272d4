//! The files of an archive: how they are named, and one that is being written.

use super::dictionary::Dictionary;
use crate::seam::{FileWriter, Fs};
use arrow_array::RecordBatch;
use arrow_schema::{DataType, SchemaRef};
use operators::Epoch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows in a row group: what a reader decodes at once.
const GROUP_ROWS: usize = 128 * 1024;

/// A name of ours, taken apart.
#[derive(Debug, PartialEq)]
pub(super) struct Name {
    pub term: u64,
    pub process: usize,
    /// All of its rows are of epochs below this one; none while it is open.
    pub below: Option<Epoch>,
    pub hidden: bool,
}

impl Name {
    pub fn parse(name: &str) -> Option<Self> {
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
        if let Some(open) = name.strip_prefix(".open-").and_then(|rest| rest.strip_suffix(".tmp")) {
            let mut parts = open.splitn(3, '-');
            let (term, process) = (number(parts.next()?)?, number(parts.next()?)? as usize);
            number(parts.next()?)?;
            return Some(Self { term, process, below: None, hidden: true });
        }
        let (shown, hidden) = match name.strip_prefix('.') {
            Some(rest) => (rest.strip_suffix(".tmp")?, true),
            None => (name, false),
        };
        let mut parts = shown.strip_prefix("readings-")?.strip_suffix(".parquet")?.splitn(4, '-');
        let (term, process) = (number(parts.next()?)?, number(parts.next()?)? as usize);
        let below = number(parts.next()?)?;
        number(parts.next()?)?;
        Some(Self { term, process, below: Some(below), hidden })
    }
}

/// While it is being written, before its cut is known.
pub(super) fn open_name(term: u64, process: usize, sequence: u64) -> String {
    format!(".open-{term}-{process}-{sequence}.tmp")
}

/// A name that neither a hidden nor a shown file has; `seq` goes on counting from it.
pub(super) fn free_name(fs: &dyn Fs, dir: &Path, (term, process, below): (u64, usize, Epoch), seq: &mut u64) -> String {
    loop {
        let name = format!("readings-{term}-{process}-{below}-{seq}.parquet");
        *seq += 1;
        if !fs.exists(&dir.join(&name)) && !fs.exists(&dir.join(hidden(&name))) {
            return name;
        }
    }
}

/// What a file is called until its checkpoint is durable.
pub(super) fn hidden(name: &str) -> String {
    format!(".{name}.tmp")
}

/// What a file is called whose rows are made again.
pub(super) fn aside(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    format!(".void-{name}")
}

/// A file that grows. Encoded bytes stay in memory until the disk has taken them, so that a full disk loses nothing.
pub(super) struct OpenFile {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    file: Option<Box<dyn FileWriter>>,
    writer: Option<Groups>,
    pending: Vec<u8>,
    /// Bytes that are certainly in the file.
    flushed: u64,
    /// Their checksum.
    crc: crc32fast::Hasher,
    rows: u64,
    synced: bool,
    /// A sync failed: the system may have let go of what it was to write, and would call the next one a success.
    doubtful: bool,
}

/// So much of a file is copied at a time.
const COPY_BYTES: usize = 4 << 20;

impl OpenFile {
    pub fn create(fs: &Arc<dyn Fs>, path: PathBuf, schema: SchemaRef) -> io::Result<Self> {
        if fs.exists(&path) {
            fs.remove(&path)?;
        }
        let file = fs.create(&path)?;
        let writer = Groups::new(schema).map_err(io_error)?;
        Ok(Self {
            fs: Arc::clone(fs),
            path,
            file: Some(file),
            writer: Some(writer),
            pending: Vec::new(),
            flushed: 0,
            crc: crc32fast::Hasher::new(),
            rows: 0,
            synced: false,
            doubtful: false,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn rows(&self) -> u64 {
        self.rows
    }
    pub fn length(&self) -> u64 {
        self.flushed + self.pending.len() as u64
    }

    /// Encodes rows. That cannot fail for lack of room; the disk is asked by the next `flush`.
    pub fn append(&mut self, batch: &RecordBatch) -> io::Result<()> {
        let writer = self.writer.as_mut().ok_or_else(|| io::Error::other("the file is finished"))?;
        writer.write(batch).map_err(io_error)?;
        self.rows += batch.num_rows() as u64;
        self.pending.append(writer.file.inner_mut());
        Ok(())
    }

    /// Gives the disk what is encoded.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                // The last write failed, perhaps half way.
                let mut file = self.fs.append(&self.path)?;
                file.truncate(self.flushed)?;
                file
            }
        };
        file.write_all(&self.pending)?;
        self.flushed += self.pending.len() as u64;
        self.crc.update(&self.pending);
        self.pending.clear();
        self.file = Some(file);
        Ok(())
    }

    /// Ends the file and makes its bytes durable; again from where it failed.
    pub fn finish(&mut self) -> io::Result<()> {
        if let Some(writer) = self.writer.take() {
            self.pending.extend(writer.finish().map_err(io_error)?);
        }
        self.flush()?;
        if !self.synced {
            let mut file = match self.file.take() {
                Some(file) => file,
                None => self.fs.append(&self.path)?,
            };
            self.doubtful = true;
            file.sync()?;
            (self.synced, self.doubtful) = (true, false);
        }
        Ok(())
    }

    /// Whether it has to be copied before it is finished.
    pub fn doubtful(&self) -> bool {
        self.doubtful
    }

    /// Goes on in a copy of what the file reads as, if that is what was written.
    pub fn copy(&mut self, to: PathBuf) -> io::Result<()> {
        if self.fs.exists(&to) {
            self.fs.remove(&to)?;
        }
        let mut file = self.fs.create(&to)?;
        let (mut crc, mut at) = (crc32fast::Hasher::new(), 0);
        while at < self.flushed {
            let bytes = self.fs.read_range(&self.path, at, COPY_BYTES.min((self.flushed - at) as usize))?;
            if bytes.is_empty() {
                break;
            }
            crc.update(&bytes);
            at += bytes.len() as u64;
            file.write_all(&bytes)?;
        }
        if (at, crc.finalize()) != (self.flushed, self.crc.clone().finalize()) {
            return Err(io::Error::other(
                "a sync failed, and the file is not what was written; a restart makes it again",
            ));
        }
        // What is left of it goes with the next start at the latest.
        let _ = self.fs.remove(&self.path);
        (self.path, self.file, self.doubtful) = (to, Some(file), false);
        Ok(())
    }
}

/// The row groups of a file, one behind the other.
struct Groups {
    file: SerializedFileWriter<Vec<u8>>,
    factory: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    /// Of the row group that is being written; empty between two.
    columns: Vec<Column>,
    rows: usize,
    /// Row groups that are finished.
    groups: usize,
}

enum Column {
    Texts(Dictionary),
    Other(Box<ArrowColumnWriter>),
}

impl Groups {
    fn new(schema: SchemaRef) -> Result<Self, ParquetError> {
        // By way of the arrow writer, because the file then says which arrow types its columns had.
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties()))?;
        let (file, factory) = writer.into_serialized_writer()?;
        Ok(Self { file, factory, schema, columns: Vec::new(), rows: 0, groups: 0 })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
        let mut begin = 0;
        while begin < batch.num_rows() {
            let count = (GROUP_ROWS - self.rows).min(batch.num_rows() - begin);
            if self.columns.is_empty() {
                let writers = self.factory.create_column_writers(self.groups)?;
                let column = |(field, writer): (&Arc<arrow_schema::Field>, _)| match field.data_type() {
                    DataType::Dictionary(..) => Column::Texts(Dictionary::default()),
                    _ => Column::Other(Box::new(writer)),
                };
                self.columns = self.schema.fields().iter().zip(writers).map(column).collect();
            }
            let rows = batch.slice(begin, count);
            for ((column, field), array) in self.columns.iter_mut().zip(self.schema.fields()).zip(rows.columns()) {
                match column {
                    Column::Texts(texts) => texts.push(array)?,
                    Column::Other(writer) => {
                        for leaf in compute_leaves(field, array)? {
                            writer.write(&leaf)?;
                        }
                    }
                }
            }
            begin += count;
            self.rows += count;
            if self.rows == GROUP_ROWS {
                self.close_group()?;
            }
        }
        Ok(())
    }

    fn close_group(&mut self) -> Result<(), ParquetError> {
        if self.columns.is_empty() {
            return Ok(());
        }
        let descriptions = self.file.schema_descr().columns().to_vec();
        let mut group = self.file.next_row_group()?;
        for (column, description) in self.columns.drain(..).zip(descriptions) {
            match column {
                Column::Texts(mut texts) => {
                    let (bytes, close) = texts.close(description)?;
                    group.append_column(&bytes, close)?;
                }
                Column::Other(writer) => writer.close()?.append_to_row_group(&mut group)?,
            }
        }
        group.close()?;
        self.rows = 0;
        self.groups += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>, ParquetError> {
        self.close_group()?;
        self.file.into_inner()
    }
}

fn io_error(error: ParquetError) -> io::Error {
    io::Error::other(error)
}

fn properties() -> WriterProperties {
    let column = |name: &str| ColumnPath::from(name);
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("streamgauge ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_dictionary_enabled(false);
    // Times, offsets and epochs grow by little; values do not, and names are written by `dictionary`.
    for name in ["time", "offset", "epoch", "partition", "index"] {
        properties = properties.set_column_encoding(column(name), Encoding::DELTA_BINARY_PACKED);
    }
    // What readers skip row groups by.
    for name in ["time", "epoch"] {
        properties = properties.set_column_statistics_enabled(column(name), EnabledStatistics::Chunk);
    }
    properties.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_as_they_were_made() {
        let shown = |term, process, below| Some(Name { term, process, below: Some(below), hidden: false });
        assert_eq!(Name::parse("readings-3-1-1700000000000-0.parquet"), shown(3, 1, 1_700_000_000_000));
        let hidden_name = hidden("readings-3-1-17-12.parquet");
        assert_eq!(Name::parse(&hidden_name), Some(Name { hidden: true, ..shown(3, 1, 17).unwrap() }));
        let open = Some(Name { term: 7, process: 0, below: None, hidden: true });
        assert_eq!(Name::parse(&open_name(7, 0, 9)), open);
        for foreign in
            ["a.parquet", "readings-x-1-2-3.parquet", "readings-1-2-3.parquet", ".tmp", "readings-1-2-3-4.csv"]
        {
            assert_eq!(Name::parse(foreign), None, "{foreign}");
        }
    }
}
