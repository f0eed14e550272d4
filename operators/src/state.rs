//! Fixed little-endian layouts: how an operator's state becomes bytes, and comes back.
//!
//! Bytes from a disk are bytes from outside: whatever is wrong with them is an `Err`, never a panic, and no count is
//! believed before the bytes that it promises are there.

use crate::key_group::{KEY_GROUPS, key_group};
use crate::{SeriesName, SeriesNo, SharedDictionary};
use std::collections::BTreeMap;

/// An operator's state by key group. Each starts with the operator's format version, a u16.
pub type GroupStates = BTreeMap<u16, Vec<u8>>;

/// Why bytes are not the state they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// They end too early.
    #[error("state of {operator} ends at byte {len}, where byte {wanted} was wanted")]
    Short {
        /// Whose state.
        operator: &'static str,
        /// The bytes there are.
        len: usize,
        /// The bytes wanted.
        wanted: usize,
    },
    /// Another build wrote them.
    #[error("state of {operator} has format version {found}; this build reads version {known}")]
    Version {
        /// Whose state.
        operator: &'static str,
        /// The version there is.
        found: u16,
        /// The version wanted.
        known: u16,
    },
    /// They say something that cannot be.
    #[error("state of {operator}, byte {at}: {what}")]
    Invalid {
        /// Whose state.
        operator: &'static str,
        /// Where.
        at: usize,
        /// What is wrong, and what would be right.
        what: &'static str,
    },
}

/// Appends values.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Begins with a format version.
    pub fn new(version: u16) -> Self {
        let mut writer = Self::default();
        writer.u16(version);
        writer
    }
    /// With room for so many bytes.
    pub fn with_room(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }
    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
    /// How many bytes were written.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// A byte.
    pub fn u8(&mut self, x: u8) {
        self.0.push(x);
    }
    /// Two bytes.
    pub fn u16(&mut self, x: u16) {
        self.0.extend_from_slice(&x.to_le_bytes());
    }
    /// Four bytes.
    pub fn u32(&mut self, x: u32) {
        self.0.extend_from_slice(&x.to_le_bytes());
    }
    /// Eight bytes.
    pub fn u64(&mut self, x: u64) {
        self.0.extend_from_slice(&x.to_le_bytes());
    }
    /// Eight bytes, two's complement.
    pub fn i64(&mut self, x: i64) {
        self.0.extend_from_slice(&x.to_le_bytes());
    }
    /// Sixteen bytes.
    pub fn u128(&mut self, x: u128) {
        self.0.extend_from_slice(&x.to_le_bytes());
    }
    /// Eight bytes, bit for bit.
    pub fn f64(&mut self, x: f64) {
        self.u64(x.to_bits());
    }
    /// Bytes as they are: values that lie in memory as they are saved.
    pub fn raw(&mut self, x: &[u8]) {
        self.0.extend_from_slice(x);
    }
    /// A u32 length and the bytes.
    pub fn bytes(&mut self, x: &[u8]) {
        self.u32(x.len() as u32);
        self.0.extend_from_slice(x);
    }
    /// A text, as `bytes`.
    pub fn str(&mut self, x: &str) {
        self.bytes(x.as_bytes());
    }
    /// A series' name.
    pub fn name(&mut self, name: &SeriesName) {
        self.str(&name.sensor);
        self.str(&name.metric);
    }
}

/// Takes values off the front.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    operator: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads a state that begins with a format version, which must be `known`.
    pub fn new(operator: &'static str, known: u16, bytes: &'a [u8]) -> Result<Self, StateError> {
        let mut reader = Self { operator, bytes, at: 0 };
        match reader.u16()? {
            found if found == known => Ok(reader),
            found => Err(StateError::Version { operator, found, known }),
        }
    }
    /// Says that what was just read cannot be.
    pub fn invalid(&self, what: &'static str) -> StateError {
        StateError::Invalid { operator: self.operator, at: self.at, what }
    }
    /// Says so unless `holds`.
    pub fn check(&self, holds: bool, what: &'static str) -> Result<(), StateError> {
        if holds { Ok(()) } else { Err(self.invalid(what)) }
    }
    fn take(&mut self, n: usize) -> Result<&'a [u8], StateError> {
        let wanted = self.at.saturating_add(n);
        let Some(taken) = self.bytes.get(self.at..wanted) else {
            return Err(StateError::Short { operator: self.operator, len: self.bytes.len(), wanted });
        };
        self.at = wanted;
        Ok(taken)
    }
    /// So many bytes as they are.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }
    /// A byte.
    pub fn u8(&mut self) -> Result<u8, StateError> {
        Ok(self.array::<1>()?[0])
    }
    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, StateError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, StateError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, StateError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// Eight bytes, two's complement.
    pub fn i64(&mut self) -> Result<i64, StateError> {
        Ok(i64::from_le_bytes(self.array()?))
    }
    /// Sixteen bytes.
    pub fn u128(&mut self) -> Result<u128, StateError> {
        Ok(u128::from_le_bytes(self.array()?))
    }
    /// Eight bytes, bit for bit.
    pub fn f64(&mut self) -> Result<f64, StateError> {
        Ok(f64::from_bits(self.u64()?))
    }
    /// A flag.
    pub fn bool(&mut self) -> Result<bool, StateError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.invalid("a flag is 0 or 1")),
        }
    }
    /// A u32 length and the bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], StateError> {
        let n = self.u32()?;
        self.take(n as usize)
    }
    /// A text.
    pub fn str(&mut self) -> Result<&'a str, StateError> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map_err(|_| self.invalid("a text is UTF-8"))
    }
    /// A u32 that counts things of at least `each` bytes: no more than there are bytes left.
    pub fn count(&mut self, each: usize) -> Result<usize, StateError> {
        let n = self.u32()? as usize;
        let wanted = self.at.saturating_add(n.saturating_mul(each));
        if wanted > self.bytes.len() {
            return Err(StateError::Short { operator: self.operator, len: self.bytes.len(), wanted });
        }
        Ok(n)
    }
    /// An event time (or any clock): within 2^60 microseconds of 1970, so that sums of two never overflow.
    pub fn time(&mut self) -> Result<i64, StateError> {
        let time = self.i64()?;
        self.check_time(time)?;
        Ok(time)
    }
    /// See `time`.
    pub fn check_time(&self, time: i64) -> Result<(), StateError> {
        self.check(time.unsigned_abs() < 1 << 60, "a time lies within 36,000 years of 1970")
    }
    /// Counted time, milliseconds.
    pub fn counted(&mut self) -> Result<u64, StateError> {
        let counted = self.u64()?;
        self.check(counted < 1 << 60, "counted time is below 2^60 ms")?;
        Ok(counted)
    }
    /// Nothing may be left.
    pub fn finish(&self) -> Result<(), StateError> {
        self.check(self.at == self.bytes.len(), "the state ends here, and more bytes follow")
    }
    /// The series of a group's state, in order of name: `each` reads what follows a name.
    pub(crate) fn series(
        &mut self,
        group: u16,
        dictionary: &SharedDictionary,
        mut each: impl FnMut(&mut Self, SeriesNo) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        let mut last: Option<SeriesName> = None;
        for _ in 0..self.count(8)? {
            let name = SeriesName { sensor: self.str()?.into(), metric: self.str()?.into() };
            self.check(last.as_ref().is_none_or(|last| *last < name), "series are in order of name")?;
            self.check(key_group(name.sensor.as_bytes()) == group, "a series is of its group")?;
            let no = dictionary.borrow_mut().intern(&name);
            each(self, no)?;
            last = Some(name);
        }
        Ok(())
    }
}

/// An operator whose state is saved by key group.
pub trait Saves {
    /// Appends the state of a group, if it has some.
    fn save_group(&self, group: u16, w: &mut Writer);
    /// The state of all groups.
    fn save(&self, out: &mut GroupStates) {
        for group in 0..KEY_GROUPS {
            let mut w = Writer::default();
            self.save_group(group, &mut w);
            if !w.is_empty() {
                out.insert(group, w.into_bytes());
            }
        }
    }
}

/// The series of a group of which `keeps` says that they have state, in order of name.
pub(crate) fn kept(
    dictionary: &SharedDictionary,
    group: u16,
    mut keeps: impl FnMut(SeriesNo) -> bool,
) -> Vec<SeriesNo> {
    let mut dictionary = dictionary.borrow_mut();
    dictionary.group_in_order(group).iter().copied().filter(|no| keeps(*no)).collect()
}

/// Writes those series: for each its name, and what `each` writes.
pub(crate) fn write_series(
    w: &mut Writer,
    dictionary: &SharedDictionary,
    kept: &[SeriesNo],
    mut each: impl FnMut(&mut Writer, SeriesNo),
) {
    let dictionary = dictionary.borrow();
    w.u32(kept.len() as u32);
    for no in kept {
        w.name(dictionary.name(*no));
        each(w, *no);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_may_be_left() {
        let mut w = Writer::new(7);
        w.u8(1);
        w.u32(2);
        w.i64(-3);
        w.u128(4);
        w.f64(-0.0);
        w.str("five");
        let bytes = w.into_bytes();
        let mut r = Reader::new("test", 7, &bytes).unwrap();
        assert!(r.bool().unwrap());
        assert_eq!(r.u32(), Ok(2));
        assert_eq!(r.i64(), Ok(-3));
        assert_eq!(r.u128(), Ok(4));
        assert_eq!(r.f64().unwrap().to_bits(), (-0.0f64).to_bits());
        assert!(r.finish().is_err());
        assert_eq!(r.str(), Ok("five"));
        assert_eq!(r.finish(), Ok(()));
        assert_eq!(
            Reader::new("test", 8, &bytes).unwrap_err().to_string(),
            "state of test has format version 7; this build reads version 8"
        );
    }

    #[test]
    fn a_count_that_the_bytes_cannot_hold_is_refused() {
        let mut w = Writer::new(1);
        w.u32(u32::MAX);
        let bytes = w.into_bytes();
        let mut r = Reader::new("test", 1, &bytes).unwrap();
        assert!(matches!(r.count(28), Err(StateError::Short { len: 6, .. })));
    }
}
