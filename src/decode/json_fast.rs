//! The fast path: one pass over a flat object, without copies, noting where the mapped fields lie.
//!
//! It never says that a record is wrong. Whatever is unusual (an escape, a control character, an array or object, an
//! exponent, a number of 19 digits, a syntax error) it gives up on, and `json_slow` decides; what it accepts means the
//! same there.

use super::fields::{Fields, Scalar};

/// What a mapped field was found to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Absent,
    Null,
    Text,
    Whole,
    Fraction,
    Other,
}

/// A mapped field of the present record: where its text or number lies, and the number's digits.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    kind: Kind,
    /// Digits after the point.
    decimals: u8,
    start: u32,
    end: u32,
    /// All digits as one number.
    digits: u64,
}

/// The top-level names of a mapping, and the present record's fields.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    /// The position is the field's number.
    names: Vec<String>,
    spans: Vec<Span>,
    /// What stood before the n-th value of an earlier record: a producer writes its records all alike.
    glue: Vec<Glue>,
}

/// The bytes between two values (before the first one, from the record's beginning), and the field they name.
///
/// They were parsed once, as `, "name": `. Where the same bytes stand again in the same place they mean the same.
#[derive(Clone, Debug)]
struct Glue {
    bytes: Vec<u8>,
    field: usize,
    /// How long the text was that followed it last: ids, times and names are mostly as long as the one before.
    text: usize,
}

/// Not a field of the mapping.
const UNMAPPED: usize = usize::MAX;
/// Before how many values what stood there is remembered, and how much of it.
const MAX_GLUE: usize = 256;
const MAX_GLUE_BYTES: usize = 512;
/// Whole numbers of so many digits fit an i64.
const MAX_DIGITS: usize = 18;
/// The powers of ten that an f64 holds exactly.
const TENS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

impl Scanner {
    /// For these top-level names, in the order of their fields' numbers.
    pub fn new<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        let names: Vec<String> = names.map(str::to_owned).collect();
        Self { spans: vec![Span::default(); names.len()], names, glue: Vec::new() }
    }

    /// Notes the mapped fields of `text`. `None`: give it to the slow path, which may find nothing wrong with it.
    pub fn scan(&mut self, text: &str) -> Option<()> {
        u32::try_from(text.len()).ok()?;
        self.spans.fill(Span::default());
        let mut at = Cursor { bytes: text.as_bytes(), at: 0 };
        let mut nth = 0;
        loop {
            let (field, text) = match self.glue.get(nth) {
                Some(glue) if at.same(&glue.bytes) => (glue.field, glue.text),
                _ => match self.learn(&mut at, nth)? {
                    Some(field) => (field, 0),
                    None => break,
                },
            };
            at.space();
            let span = at.value(text)?;
            if span.kind == Kind::Text
                && (span.end - span.start) as usize != text
                && let Some(glue) = self.glue.get_mut(nth)
            {
                glue.text = (span.end - span.start) as usize;
            }
            // A name that comes again counts anew: the last one stands.
            if let Some(known) = self.spans.get_mut(field) {
                *known = span;
            }
            nth += 1;
            if at.peek()? == b'}' {
                at.at += 1;
                break;
            }
        }
        at.space();
        (at.at == text.len()).then_some(())
    }

    /// Parses what stands before the n-th value, and remembers it. `Some(None)`: there is none, the object ends.
    #[cold]
    fn learn(&mut self, at: &mut Cursor<'_>, nth: usize) -> Option<Option<usize>> {
        let begin = at.at;
        at.space();
        if nth == 0 {
            at.take(b'{')?;
            at.space();
        }
        if at.peek()? == b'}' {
            at.at += 1;
            return Some(None);
        }
        if nth > 0 {
            at.take(b',')?;
            at.space();
        }
        at.take(b'"')?;
        let name = at.at;
        at.string()?;
        let name = at.bytes.get(name..at.at - 1)?;
        at.space();
        at.take(b':')?;
        at.space();
        let field = self.names.iter().position(|known| known.as_bytes() == name).unwrap_or(UNMAPPED);
        let bytes = at.bytes.get(begin..at.at)?;
        if nth < MAX_GLUE && bytes.len() <= MAX_GLUE_BYTES {
            if self.glue.len() <= nth {
                self.glue.resize(nth + 1, Glue { bytes: Vec::new(), field: UNMAPPED, text: 0 });
            }
            let glue = &mut self.glue[nth];
            glue.field = field;
            glue.bytes.clear();
            glue.bytes.extend_from_slice(bytes);
        }
        Some(Some(field))
    }

    /// The fields that the last `scan` noted in `text`.
    pub fn fields<'a>(&'a self, text: &'a str) -> Scanned<'a> {
        Scanned { text, spans: &self.spans }
    }
}

/// The mapped fields of a record that was scanned.
pub(super) struct Scanned<'a> {
    text: &'a str,
    spans: &'a [Span],
}

impl<'a> Fields<'a> for Scanned<'a> {
    const WITHOUT_CONTROLS: bool = true;
    #[inline]
    fn get(&self, field: usize) -> Scalar<'a> {
        let Some(span) = self.spans.get(field) else { return Scalar::Absent };
        let text = self.text.get(span.start as usize..span.end as usize).unwrap_or_default();
        match span.kind {
            Kind::Absent => Scalar::Absent,
            Kind::Null => Scalar::Null,
            Kind::Text => Scalar::Text(text),
            Kind::Other => Scalar::Other,
            Kind::Whole => {
                let int = if text.starts_with('-') { -(span.digits as i64) } else { span.digits as i64 };
                Scalar::Whole { text, int: Some(int), value: int as f64 }
            }
            // Both are exact in an f64, so that their quotient is rounded once, and correctly.
            Kind::Fraction if span.digits <= 1 << 53 => match TENS.get(usize::from(span.decimals)) {
                Some(tens) => {
                    let value = span.digits as f64 / tens;
                    Scalar::Fraction(if text.starts_with('-') { -value } else { value })
                }
                None => text.parse().map_or(Scalar::Other, Scalar::Fraction),
            },
            Kind::Fraction => text.parse().map_or(Scalar::Other, Scalar::Fraction),
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Goes behind `expected` if it is what stands here (and is anything). Eight bytes at a time: the last ones overlap.
    #[inline]
    fn same(&mut self, expected: &[u8]) -> bool {
        let Some(found) = self.bytes.get(self.at..).and_then(|rest| rest.get(..expected.len())) else { return false };
        let word = |bytes: &[u8]| bytes.first_chunk::<8>().map(|chunk| u64::from_le_bytes(*chunk));
        let last = |bytes: &[u8]| bytes.last_chunk::<8>().map(|chunk| u64::from_le_bytes(*chunk));
        let same = match (word(expected), expected.len()) {
            (None, 0) => false,
            (None, _) => found == expected,
            (first, 8..=16) => first == word(found) && last(expected) == last(found),
            _ => {
                expected.chunks_exact(8).zip(found.chunks_exact(8)).all(|(e, f)| word(e) == word(f))
                    && last(expected) == last(found)
            }
        };
        if same {
            self.at += expected.len();
        }
        same
    }

    /// Goes behind the closing quote of a string whose first byte is here, if it is `length` bytes from here. It need not
    /// be looked for then; and what is not looked for is looked at without an early end, which compiles to vectors.
    #[inline]
    fn string_of(&mut self, length: usize) -> bool {
        let Some((text, [b'"', ..])) = self.bytes.get(self.at..).and_then(|rest| rest.split_at_checked(length)) else {
            return false;
        };
        // The last piece overlaps the one before.
        let clear = match (text.last_chunk::<16>(), text.first_chunk::<8>(), text.last_chunk::<8>()) {
            (Some(last), ..) => {
                text.as_chunks::<16>().0.iter().fold(true, |all, piece| all & clear(piece)) & clear(last)
            }
            (None, Some(first), Some(last)) => {
                stops(u64::from_le_bytes(*first)) | stops(u64::from_le_bytes(*last)) == 0
            }
            _ => !text.iter().any(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\' | 0x7f)),
        };
        if clear {
            self.at += length + 1;
        }
        clear
    }

    /// Goes behind the closing quote of a string whose first byte is here; gives up on an escape. Eight bytes at a time.
    #[inline]
    fn string(&mut self) -> Option<()> {
        while let Some(chunk) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_le_bytes(*chunk);
            let stops = stops(word);
            if stops != 0 {
                self.at += stops.trailing_zeros() as usize / 8;
                return self.take(b'"');
            }
            self.at += 8;
        }
        loop {
            match self.peek()? {
                b'"' => return self.take(b'"'),
                b'\\' | ..0x20 | 0x7f => return None,
                _ => self.at += 1,
            }
        }
    }

    /// A value; if it is a text, it is probably `text` bytes long.
    fn value(&mut self, text: usize) -> Option<Span> {
        let start = self.at as u32;
        match self.peek()? {
            b'"' => {
                self.at += 1;
                if !self.string_of(text) {
                    self.string()?;
                }
                Some(Span { kind: Kind::Text, start: start + 1, end: self.at as u32 - 1, ..Span::default() })
            }
            b'-' | b'0'..=b'9' => self.number(),
            b'n' => self.word(b"null", Kind::Null),
            b't' => self.word(b"true", Kind::Other),
            b'f' => self.word(b"false", Kind::Other),
            _ => None,
        }
    }

    fn word(&mut self, word: &[u8], kind: Kind) -> Option<Span> {
        self.bytes.get(self.at..)?.starts_with(word).then(|| self.at += word.len())?;
        Some(Span { kind, ..Span::default() })
    }

    fn number(&mut self) -> Option<Span> {
        let start = self.at;
        if self.peek()? == b'-' {
            self.at += 1;
        }
        let first = self.at;
        let mut digits = self.digits(0);
        let whole = self.at - first;
        if whole == 0 || whole > MAX_DIGITS || (whole > 1 && self.bytes.get(first) == Some(&b'0')) {
            return None;
        }
        let mut decimals = 0;
        if self.peek()? == b'.' {
            self.at += 1;
            let point = self.at;
            digits = self.digits(digits);
            decimals = self.at - point;
            if decimals == 0 || whole + decimals > MAX_DIGITS {
                return None;
            }
        } else if digits == 0 && first > start {
            // Minus zero is no whole number.
            return None;
        }
        if let b'e' | b'E' = self.peek()? {
            return None;
        }
        Some(Span {
            kind: if decimals == 0 { Kind::Whole } else { Kind::Fraction },
            decimals: decimals as u8,
            start: start as u32,
            end: self.at as u32,
            digits,
        })
    }

    /// Reads on in a number whose digits so far are `digits`. Beyond `MAX_DIGITS` the answer is of no use.
    #[inline]
    fn digits(&mut self, mut digits: u64) -> u64 {
        while let Some(byte @ b'0'..=b'9') = self.peek() {
            digits = digits.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
            self.at += 1;
        }
        digits
    }
}

/// Whether no byte of a text ends it or makes it unusual. A question at a time, and without an early end: it compiles to
/// vectors, which the four in one loop do not.
#[inline]
fn clear(piece: &[u8; 16]) -> bool {
    let any = |of: fn(u8) -> bool| piece.iter().fold(false, |any, byte| any | of(*byte));
    !(any(|byte| byte < 0x20) | any(|byte| byte == b'"') | any(|byte| byte == b'\\') | any(|byte| byte == 0x7f))
}

/// The high bit of each byte that ends a text or makes it unusual, and perhaps of some above the lowest such byte.
#[inline]
fn stops(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let below = |word: u64, least: u64| word.wrapping_sub(ONES * least) & !word;
    let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (below(word, 0x20) | is(b'"') | is(b'\\') | is(0x7f)) & (ONES << 7)
}
