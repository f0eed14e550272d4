//! Messages as bytes, written by hand into one buffer: no serializer and no allocation per message.

use super::signal::{Metric, mix};
use super::{Make, Malformed, Pending};
use std::ops::Range;

/// The bytes that no JSON begins with.
const GARBAGE: [u8; 4] = [0xff, 0x00, b'<', b'}'];

/// A field of a message that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Sensor,
    Time,
    Metric,
    Value,
}

impl Field {
    /// Why such a message is a dead letter (docs/semantics.md, 2).
    pub fn reason(self) -> &'static str {
        match self {
            Self::Sensor => "missing_sensor",
            Self::Time => "missing_time",
            Self::Metric => "missing_metric",
            Self::Value => "missing_value",
        }
    }
}

pub(super) struct Encoder {
    seed: u64,
    /// The metrics' names, quoted.
    names: Vec<Box<[u8]>>,
    buffer: Vec<u8>,
    /// The second whose text is in `second_text`: most messages share it with the one before.
    second: i64,
    second_text: [u8; 20],
    missing: Option<Field>,
}

impl Encoder {
    pub fn new(seed: u64, metrics: &[Metric]) -> Self {
        let names = metrics.iter().map(|m| format!("\"{}\"", m.name).into_bytes().into_boxed_slice()).collect();
        let second_text = *b"0000-00-00T00:00:00.";
        Self { seed, names, buffer: Vec::with_capacity(512), second: i64::MIN, second_text, missing: None }
    }
    /// The message last written.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }
    /// The field that it lacks, if it was spoiled so.
    pub fn missing(&self) -> Option<Field> {
        self.missing
    }

    pub fn message(
        &mut self,
        p: &Pending,
        sensor: &[u8],
        metrics: Range<u8>,
        err: Option<u8>,
        rng: &mut fastrand::Rng,
    ) {
        self.buffer.clear();
        self.missing = None;
        match p.make {
            Make::Spoiled(Malformed::Garbage) => {
                self.buffer.resize(rng.usize(1..200), 0);
                rng.fill(&mut self.buffer);
                self.buffer[0] = GARBAGE[rng.usize(..GARBAGE.len())];
            }
            Make::Spoiled(Malformed::Truncated) => {
                self.json(p, sensor, metrics, err);
                let len = rng.usize(1..self.buffer.len());
                self.buffer.truncate(len);
            }
            Make::Spoiled(Malformed::MissingField) => {
                let fields = [Field::Sensor, Field::Time, Field::Metric, Field::Value];
                self.missing = Some(fields[rng.usize(..if p.metric.is_some() { 4 } else { 2 })]);
                self.json(p, sensor, metrics, err);
            }
            Make::Spoiled(Malformed::ErrValue) | Make::Well => self.json(p, sensor, metrics, err),
        }
    }

    fn json(&mut self, p: &Pending, sensor: &[u8], metrics: Range<u8>, err: Option<u8>) {
        if p.metric.is_some() {
            self.buffer.extend_from_slice(b"{\"unique_reading_id\":\"");
            self.uuid(p.slot);
            self.buffer.push(b'"');
            if self.missing != Some(Field::Sensor) {
                self.buffer.extend_from_slice(b",\"sensor_id\":\"");
                self.buffer.extend_from_slice(sensor);
                self.buffer.push(b'"');
            }
            for m in metrics.map(usize::from) {
                if self.missing != Some(Field::Metric) {
                    self.buffer.extend_from_slice(b",\"type\":");
                    self.buffer.extend_from_slice(&self.names[m]);
                }
                if self.missing != Some(Field::Value) {
                    self.buffer.extend_from_slice(b",\"value\":");
                    self.value(p.values[m], err == Some(m as u8));
                }
            }
            if self.missing != Some(Field::Time) {
                self.buffer.extend_from_slice(b",\"timestamp\":");
                self.time(p.event_ms);
            }
        } else {
            self.buffer.push(b'{');
            if self.missing != Some(Field::Time) {
                self.buffer.extend_from_slice(b"\"timestamp\":");
                self.time(p.event_ms);
                self.buffer.push(b',');
            }
            if self.missing != Some(Field::Sensor) {
                self.buffer.extend_from_slice(b"\"sensor_id\":\"");
                self.buffer.extend_from_slice(sensor);
                self.buffer.extend_from_slice(b"\",");
            }
            for m in metrics.map(usize::from) {
                self.buffer.extend_from_slice(&self.names[m]);
                self.buffer.push(b':');
                self.value(p.values[m], err == Some(m as u8));
                self.buffer.push(b',');
            }
            self.buffer.pop();
        }
        self.buffer.push(b'}');
    }

    /// A version 4 UUID made of the seed and the slot: a copy has it again, no other message ever.
    fn uuid(&mut self, slot: u64) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let hi = mix(self.seed ^ mix(slot)) & 0xffff_ffff_ffff_0fff | 0x4000;
        // The slot itself, spread one to one: two slots never share it.
        let lo =
            (slot.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ mix(self.seed)) & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000;
        let mut text = [b'-'; 36];
        let mut at = 0;
        for shift in (0..16).rev().map(|n| n * 4) {
            if at == 8 || at == 13 {
                at += 1;
            }
            text[at] = HEX[(hi >> shift & 15) as usize];
            at += 1;
        }
        at = 19;
        for shift in (0..16).rev().map(|n| n * 4) {
            if at == 23 {
                at += 1;
            }
            text[at] = HEX[(lo >> shift & 15) as usize];
            at += 1;
        }
        self.buffer.extend_from_slice(&text);
    }

    /// Hundredths as a decimal number.
    fn value(&mut self, value: i32, err: bool) {
        if err {
            self.buffer.extend_from_slice(b"\"ERR\"");
            return;
        }
        let mut text = [0; 12];
        let mut rest = value.unsigned_abs();
        digits(&mut text[10..], i64::from(rest % 100));
        text[9] = b'.';
        rest /= 100;
        let mut at = 9;
        loop {
            at -= 1;
            text[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if value < 0 {
            at -= 1;
            text[at] = b'-';
        }
        self.buffer.extend_from_slice(&text[at..]);
    }

    /// RFC 3339 with milliseconds, quoted.
    fn time(&mut self, ms: i64) {
        let second = ms.div_euclid(1_000);
        if second != self.second {
            self.second = second;
            let (days, of_day) = (second.div_euclid(86_400), second.rem_euclid(86_400));
            let (year, month, day) = civil(days);
            for (at, width, n) in [
                (0, 4, year),
                (5, 2, month),
                (8, 2, day),
                (11, 2, of_day / 3_600),
                (14, 2, of_day / 60 % 60),
                (17, 2, of_day % 60),
            ] {
                digits(&mut self.second_text[at..at + width], n);
            }
        }
        let mut text = *b"\"0000-00-00T00:00:00.000Z\"";
        text[1..21].copy_from_slice(&self.second_text);
        digits(&mut text[21..24], ms.rem_euclid(1_000));
        self.buffer.extend_from_slice(&text);
    }
}

fn digits(text: &mut [u8], mut n: i64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (n % 10) as u8;
        n /= 10;
    }
}

/// Year, month and day of a day counted from 1970 (Hinnant's algorithm; years 0 to 9999).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}
