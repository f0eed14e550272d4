//! Columns of texts that repeat, encoded here and not by parquet's writer.
//!
//! That one looks up each row's text in a hash table, four times a row, which was two fifths of what the archive cost. But a
//! row comes with the number of its text already: here each *distinct* text of a batch is looked up once, and a row
//! costs its number. What is written is the same: a dictionary page and pages of numbers in Parquet's run-length and
//! bit-packing hybrid, spliced into the row group as a finished column chunk.

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef};
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use std::collections::HashMap;

/// Rows in a page: what a reader decodes at once.
const PAGE_ROWS: usize = 32 * 1024;

/// Of zstd; the one that the other columns have.
const LEVEL: i32 = 1;

/// One column of the row group that is being written.
#[derive(Default)]
pub(super) struct Dictionary {
    numbers: HashMap<Box<str>, u32>,
    /// The texts in order of their numbers, as the dictionary page has them: length and bytes.
    page: Vec<u8>,
    /// By row.
    keys: Vec<u32>,
}

impl Dictionary {
    /// Takes rows; there are no nulls among them.
    pub fn push(&mut self, array: &ArrayRef) -> Result<()> {
        let wrong = || ParquetError::General("a column of texts is a dictionary of strings without nulls".into());
        let array = array.as_dictionary_opt::<Int32Type>().filter(|array| array.null_count() == 0).ok_or_else(wrong)?;
        let texts = array.values().as_string_opt::<i32>().ok_or_else(wrong)?;
        let numbers: Vec<u32> = texts.iter().map(|text| self.number(text.unwrap_or_default())).collect();
        self.keys.extend(array.keys().values().iter().map(|key| numbers[*key as usize]));
        Ok(())
    }

    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.numbers.len() as u32;
        self.numbers.insert(text.into(), number);
        self.page.extend((text.len() as u32).to_le_bytes());
        self.page.extend(text.as_bytes());
        number
    }

    /// The column chunk and its description; what follows is another chunk.
    pub fn close(&mut self, column: ColumnDescPtr) -> Result<(Bytes, ColumnCloseResult)> {
        let Self { numbers, page, keys, .. } = std::mem::take(self);
        let compress = |page: &[u8]| -> Result<Bytes> { Ok(zstd::bulk::compress(page, LEVEL)?.into()) };
        let mut sink = TrackedWrite::new(Vec::new());
        let mut pages = SerializedPageWriter::new(&mut sink);
        let first = Page::DictionaryPage {
            buf: compress(&page)?,
            num_values: numbers.len() as u32,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        let dictionary = pages.write_page(CompressedPage::new(first, page.len()))?;
        let (mut compressed, mut uncompressed) = (dictionary.compressed_size, dictionary.uncompressed_size);
        let mut data_offset = None;
        let width = u32::BITS - (numbers.len().saturating_sub(1) as u32).leading_zeros();
        for keys in keys.chunks(PAGE_ROWS) {
            let mut encoded = vec![width as u8];
            hybrid(keys, width, &mut encoded);
            let data = Page::DataPage {
                buf: compress(&encoded)?,
                num_values: keys.len() as u32,
                encoding: Encoding::RLE_DICTIONARY,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                statistics: None,
            };
            let written = pages.write_page(CompressedPage::new(data, encoded.len()))?;
            data_offset.get_or_insert(written.offset);
            compressed += written.compressed_size;
            uncompressed += written.uncompressed_size;
        }
        pages.close()?;
        let bytes = Bytes::from(sink.into_inner()?);
        let metadata = ColumnChunkMetaData::builder(column)
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY])
            .set_num_values(keys.len() as i64)
            .set_total_compressed_size(compressed as i64)
            .set_total_uncompressed_size(uncompressed as i64)
            .set_dictionary_page_offset(Some(dictionary.offset as i64))
            .set_data_page_offset(data_offset.unwrap_or(bytes.len() as u64) as i64)
            .build()?;
        let close = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: keys.len() as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        };
        Ok((bytes, close))
    }
}

/// Appends numbers below 2^width: runs of equal ones as one number and a length, others packed to `width` bits, eight at
/// a time; the last eight are filled up with zeros.
fn hybrid(numbers: &[u32], width: u32, out: &mut Vec<u8>) {
    let (mut at, mut packed) = (0, 0);
    while at < numbers.len() {
        let run = numbers[at..].iter().take_while(|number| **number == numbers[at]).count();
        if run >= 16 {
            pack(&numbers[packed..at], width, out);
            varint((run as u64) << 1, out);
            out.extend(&numbers[at].to_le_bytes()[..width.div_ceil(8) as usize]);
            at += run;
            packed = at;
        } else {
            at += 8;
        }
    }
    pack(&numbers[packed..], width, out);
}

/// The packed kind; any but the last call gives a multiple of eight numbers.
fn pack(numbers: &[u32], width: u32, out: &mut Vec<u8>) {
    if numbers.is_empty() {
        return;
    }
    let eights = numbers.len().div_ceil(8);
    varint((eights as u64) << 1 | 1, out);
    let end = out.len() + eights * width as usize;
    let (mut bits, mut held) = (0_u64, 0);
    for number in numbers {
        bits |= u64::from(*number) << held;
        held += width;
        if held >= 32 {
            out.extend((bits as u32).to_le_bytes());
            bits >>= 32;
            held -= 32;
        }
    }
    out.extend(&bits.to_le_bytes()[..held.div_ceil(8) as usize]);
    out.resize(end, 0);
}

/// Seven bits to a byte, the lowest first; the high bit says that more follow.
fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads back what `hybrid` wrote, by the format's text (Parquet, "Run Length Encoding / Bit-Packing Hybrid").
    fn read(mut bytes: &[u8], width: u32, count: usize) -> Vec<u32> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            let (mut header, mut shift) = (0_u64, 0);
            loop {
                let byte = bytes[0];
                bytes = &bytes[1..];
                header |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let bit = |bytes: &[u8], at: usize| u32::from(bytes[at / 8] >> (at % 8) & 1);
            if header & 1 == 1 {
                let (values, w) = ((header >> 1) as usize * 8, width as usize);
                numbers.extend((0..values).map(|n| (0..w).map(|b| bit(bytes, n * w + b) << b).sum::<u32>()));
                bytes = &bytes[values * w / 8..];
            } else {
                let size = width.div_ceil(8) as usize;
                let number = (0..size * 8).map(|b| bit(bytes, b) << b).sum::<u32>();
                numbers.extend(std::iter::repeat_n(number, (header >> 1) as usize));
                bytes = &bytes[size..];
            }
        }
        assert!(bytes.is_empty(), "{} bytes too many", bytes.len());
        numbers.truncate(count);
        numbers
    }

    #[test]
    fn numbers_of_any_width_and_runs_of_any_length_read_back() {
        let mut random = fastrand::Rng::with_seed(7);
        for width in 0..=31 {
            for _ in 0..200 {
                let mut numbers = Vec::new();
                while numbers.len() < random.usize(1..400) {
                    let number = random.u32(0..=((1_u64 << width) - 1) as u32);
                    let run = if random.bool() { 1 } else { random.usize(1..40) };
                    numbers.extend(std::iter::repeat_n(number, run));
                }
                let mut bytes = Vec::new();
                hybrid(&numbers, width, &mut bytes);
                assert_eq!(read(&bytes, width, numbers.len()), numbers, "width {width}");
            }
        }
    }

    #[test]
    fn a_run_is_a_few_bytes() {
        let mut bytes = Vec::new();
        hybrid(&[5; 32 * 1024], 3, &mut bytes);
        assert_eq!(bytes.len(), 4);
    }
}
