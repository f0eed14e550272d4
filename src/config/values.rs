//! The small values that settings are made of: durations, sizes, paths into a message, and what must not be shown.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// A duration in whole microseconds, written with its units: `"30s"`, `"1h30m"`, `"7d"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Interval {
    us: i64,
}

const UNITS: [(&str, i64); 8] = [
    ("w", 7 * 86_400_000_000),
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
    ("µs", 1),
];

impl Interval {
    /// So many microseconds.
    pub const fn micros(us: i64) -> Self {
        Self { us }
    }
    /// So many milliseconds.
    pub const fn millis(ms: i64) -> Self {
        Self { us: ms * 1_000 }
    }
    /// So many seconds.
    pub const fn seconds(s: i64) -> Self {
        Self { us: s * 1_000_000 }
    }
    /// So many minutes.
    pub const fn minutes(m: i64) -> Self {
        Self::seconds(m * 60)
    }
    /// So many days of 24 hours.
    pub const fn days(d: i64) -> Self {
        Self::seconds(d * 86_400)
    }
    /// In microseconds; never negative when it came from a configuration.
    pub const fn us(self) -> i64 {
        self.us
    }
    /// In whole milliseconds, rounded down.
    pub const fn ms(self) -> u64 {
        (self.us / 1_000) as u64
    }
    /// As the standard library has it.
    pub const fn std(self) -> std::time::Duration {
        std::time::Duration::from_micros(self.us as u64)
    }
    /// Whether it is no time at all.
    pub const fn is_zero(self) -> bool {
        self.us == 0
    }
}

impl fmt::Display for Interval {
    /// In the largest units that come out whole, so that the same duration always has the same text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.us;
        if rest == 0 {
            return f.write_str("0s");
        }
        // Whole days read better than weeks, and a text that is all seconds (90s) better than 1m30s only to some: the
        // canonical text takes one unit where one will do.
        for (unit, us) in UNITS.iter().skip(1).take(6) {
            if rest % us == 0 {
                return write!(f, "{}{unit}", rest / us);
            }
        }
        for (unit, us) in UNITS.iter().skip(1).take(6) {
            if rest >= *us {
                write!(f, "{}{unit}", rest / us)?;
                rest %= us;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("wants a duration with its unit, such as \"30s\", \"5m\" or \"7d\", found {text:?}");
        let mut rest = text.trim();
        let mut total: i64 = 0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            let letters: usize = after.chars().take_while(|c| c.is_alphabetic()).map(char::len_utf8).sum();
            let (unit, after) = after.split_at(letters);
            let number: i64 = number.parse().map_err(|_| wrong())?;
            let us = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
            total = number
                .checked_mul(us)
                .and_then(|us| total.checked_add(us))
                .ok_or_else(|| format!("{text:?} is longer than any duration that can be kept (292,000 years)"))?;
            rest = after.trim_start();
        }
        Ok(Self { us: total })
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Interval;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with its unit")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Interval, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visit)
    }
}

impl JsonSchema for Interval {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "duration",
            "type": "string",
            "pattern": "^(\\s*[0-9]+(us|µs|ms|s|m|h|d|w))+\\s*$|\\$\\{"
        })
    }
    fn inline_schema() -> bool {
        true
    }
}

/// A number of bytes: a whole number, or text such as `"64 MiB"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Size {
    bytes: u64,
}

const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl Size {
    /// So many mebibytes.
    pub const fn mib(mib: u64) -> Self {
        Self { bytes: mib << 20 }
    }
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIZES.iter().find(|(_, bytes)| self.bytes > 0 && self.bytes.is_multiple_of(*bytes)) {
            Some((unit, bytes)) => write!(f, "{} {unit}", self.bytes / bytes),
            None => f.write_str("0 B"),
        }
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("wants a size, such as \"64 MiB\" or a number of bytes, found {text:?}");
        let text_ = text.trim();
        let digits = text_.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text_.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor = match unit.trim() {
            "" => 1,
            unit => SIZES.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1,
        };
        number.checked_mul(factor).map(|bytes| Self { bytes }).ok_or_else(wrong)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"64 MiB\", or a number of bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size { bytes })
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map(|bytes| Size { bytes })
                    .map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "size",
            "type": ["string", "integer"],
            "pattern": "^[0-9]+ ?(B|kB|MB|GB|KiB|MiB|GiB)?$|\\$\\{",
            "minimum": 0
        })
    }
    fn inline_schema() -> bool {
        true
    }
}

/// A place in a message: a JSON Pointer (RFC 6901). A bare `a` means `/a`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pointer {
    text: String,
}

impl Pointer {
    /// The pointer, beginning with `/`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// The names to follow, outermost first, with `~1` and `~0` undone.
    pub fn names(&self) -> Vec<String> {
        self.text.split('/').skip(1).map(|name| name.replace("~1", "/").replace("~0", "~")).collect()
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Pointer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("wants a path into the message such as \"/value\", found nothing".into());
        }
        let text = if text.starts_with('/') { text.to_owned() } else { format!("/{text}") };
        let mut after = text.split('~').skip(1);
        if after.any(|rest| !rest.starts_with(['0', '1'])) {
            return Err(format!(
                "{text:?} is not a JSON Pointer: `~` stands before 0 or 1 only; write ~0 for ~ and ~1 for / inside a name"
            ));
        }
        Ok(Self { text })
    }
}

impl Serialize for Pointer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Pointer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Pointer;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path into the message such as \"/value\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Pointer, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visit)
    }
}

impl JsonSchema for Pointer {
    fn schema_name() -> Cow<'static, str> {
        "Path".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "title": "path in a message", "type": "string", "minLength": 1 })
    }
    fn inline_schema() -> bool {
        true
    }
}

/// Text that must not be shown: neither `Debug` nor `Serialize` gives it away.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret {
    text: String,
}

impl Secret {
    /// Takes it in.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
    /// The text itself, for the one who needs it.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Secret;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::new(text))
            }
            // librdkafka takes every setting as text; people write numbers and booleans as they are.
            fn visit_i64<E>(self, number: i64) -> Result<Secret, E> {
                Ok(Secret::new(number.to_string()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Secret, E> {
                Ok(Secret::new(number.to_string()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Secret, E> {
                Ok(Secret::new(number.to_string()))
            }
            fn visit_bool<E>(self, flag: bool) -> Result<Secret, E> {
                Ok(Secret::new(flag.to_string()))
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "title": "text, never shown", "type": ["string", "integer", "number", "boolean"] })
    }
    fn inline_schema() -> bool {
        true
    }
}

/// An address that may hold a password: shown without it.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    text: String,
}

impl Url {
    /// Takes it in.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
    /// With its password, for the one who connects.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.text.split_once("://").unwrap_or(("", &self.text));
        let separator = if scheme.is_empty() { "" } else { "://" };
        // The last `@` before any path: a password may hold one, too.
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (rest, at) = match (authority.rfind('@'), rest.rfind('@')) {
            (Some(at), _) => (&rest[at + 1..], Some(at)),
            // A password with a slash in it: better to show too little.
            (None, Some(at)) if path.contains('@') => (&rest[at + 1..], Some(at)),
            _ => (rest, None),
        };
        // What stands behind `?` may be a password as well.
        let rest = rest.split('?').next().unwrap_or_default();
        write!(f, "{scheme}{separator}{}{rest}", if at.is_some() { "***@" } else { "" })
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Url {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl JsonSchema for Url {
    fn schema_name() -> Cow<'static, str> {
        "Url".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "title": "address", "type": "string", "minLength": 1 })
    }
    fn inline_schema() -> bool {
        true
    }
}

/// One text or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct OneOrMany(pub Vec<String>);

impl Serialize for OneOrMany {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &*self.0 {
            [one] => serializer.serialize_str(one),
            many => many.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMany(texts))
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

impl JsonSchema for OneOrMany {
    fn schema_name() -> Cow<'static, str> {
        "Globs".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "glob or list of globs",
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }]
        })
    }
    fn inline_schema() -> bool {
        true
    }
}
