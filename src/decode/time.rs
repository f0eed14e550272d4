//! Event times: numbers of a stated or recognised unit, RFC 3339, or local times of a stated zone.
//!
//! The meaning is jiff's (docs/semantics.md, "Time"). The two shapes that devices send most, `2026-01-01T00:00:00.000Z`
//! and the same without a zone, are read by hand, and a property test holds the two readers against each other.

use super::Reason;
use crate::config::TimeUnit;
use jiff::Timestamp;
use jiff::civil;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone, TimeZoneDatabase};

/// The unit whose numbers have this magnitude between 2001 and 2286.
fn unit_of_whole(x: i64) -> Option<TimeUnit> {
    match x.unsigned_abs() {
        1_000_000_000..10_000_000_000 => Some(TimeUnit::S),
        1_000_000_000_000..10_000_000_000_000 => Some(TimeUnit::Ms),
        1_000_000_000_000_000..10_000_000_000_000_000 => Some(TimeUnit::Us),
        1_000_000_000_000_000_000..10_000_000_000_000_000_000 => Some(TimeUnit::Ns),
        _ => None,
    }
}

fn unit_of_fraction(x: f64) -> Option<TimeUnit> {
    match x.abs() {
        1e9..1e10 => Some(TimeUnit::S),
        1e12..1e13 => Some(TimeUnit::Ms),
        1e15..1e16 => Some(TimeUnit::Us),
        1e18..1e19 => Some(TimeUnit::Ns),
        _ => None,
    }
}

/// Reads the times of one source.
#[derive(Clone, Debug)]
pub struct Times {
    unit: Option<TimeUnit>,
    zone: Option<TimeZone>,
}

impl Times {
    /// Numbers are of `unit`, or of the unit that their magnitude tells; local times are of `zone`, by the bundled tzdb.
    pub fn new(unit: Option<TimeUnit>, zone: Option<&str>) -> Result<Self, String> {
        let zone = match zone {
            None => None,
            Some(name) => Some(TimeZoneDatabase::bundled().get(name).map_err(|_| {
                format!("zone: no time zone is called {name:?}; write a name of the IANA database such as \"Europe/Berlin\" or \"UTC\"")
            })?),
        };
        Ok(Self { unit, zone })
    }

    /// A whole number, exactly; nanoseconds are rounded down.
    pub fn whole(&self, x: i64) -> Result<i64, Reason> {
        let micros = match self.unit.or_else(|| unit_of_whole(x)).ok_or(Reason::InvalidTime)? {
            TimeUnit::S => x.checked_mul(1_000_000).ok_or(Reason::InvalidTime)?,
            TimeUnit::Ms => x.checked_mul(1_000).ok_or(Reason::InvalidTime)?,
            TimeUnit::Us => x,
            TimeUnit::Ns => x.div_euclid(1_000),
        };
        in_range(micros)
    }

    /// A number with a fraction or an exponent, or one too large for an i64.
    pub fn fraction(&self, x: f64) -> Result<i64, Reason> {
        let micros = match self.unit.or_else(|| unit_of_fraction(x)).ok_or(Reason::InvalidTime)? {
            TimeUnit::S => (x * 1e6).round(),
            TimeUnit::Ms => (x * 1e3).round(),
            TimeUnit::Us => x.round(),
            TimeUnit::Ns => (x / 1e3).round(),
        };
        // The cast saturates, and both ends of an i64 are out of range.
        in_range(micros as i64)
    }

    /// A text.
    pub fn text(&self, text: &str) -> Result<i64, Reason> {
        match by_hand(text.as_bytes()) {
            Some((seconds, micros, true)) => Ok(seconds * 1_000_000 + micros),
            Some((seconds, micros, false)) => match &self.zone {
                None => Err(Reason::InvalidTime),
                Some(zone) => {
                    let clock = Timestamp::from_microsecond(seconds * 1_000_000 + micros);
                    local(zone, Offset::UTC.to_datetime(clock.map_err(|_| Reason::InvalidTime)?))
                }
            },
            None => self.text_by_jiff(text),
        }
    }

    /// What `text` means, without the short cut.
    pub fn text_by_jiff(&self, text: &str) -> Result<i64, Reason> {
        if let Ok(timestamp) = text.parse::<Timestamp>() {
            return Ok(timestamp.as_microsecond());
        }
        match (&self.zone, text.parse::<civil::DateTime>()) {
            (Some(zone), Ok(datetime)) => local(zone, datetime),
            _ => Err(Reason::InvalidTime),
        }
    }
}

fn in_range(micros: i64) -> Result<i64, Reason> {
    let range = Timestamp::MIN.as_microsecond()..=Timestamp::MAX.as_microsecond();
    if range.contains(&micros) { Ok(micros) } else { Err(Reason::InvalidTime) }
}

/// The instant of a local time: the earlier of two, none where the clock skipped it.
fn local(zone: &TimeZone, datetime: civil::DateTime) -> Result<i64, Reason> {
    let ambiguous = zone.to_ambiguous_timestamp(datetime);
    if let AmbiguousOffset::Gap { .. } = ambiguous.offset() {
        return Err(Reason::SkippedTime);
    }
    ambiguous.earlier().map(|timestamp| timestamp.as_microsecond()).map_err(|_| Reason::InvalidTime)
}

/// `YYYY-MM-DDThh:mm:ss`, a fraction of up to nine digits, and perhaps a `Z`, in the years 1971 to 9998: the seconds and
/// microseconds since 1970 and whether there was a `Z`. Anything else is for jiff: before 1970, dropped digits round up.
fn by_hand(text: &[u8]) -> Option<(i64, i64, bool)> {
    let (head, tail) = text.split_first_chunk::<19>()?;
    let [date @ .., _, _, _, _, _, _, _, _, _, _, _] = head;
    let [_, _, _, _, _, _, _, _, time @ .., _, _, _] = head;
    let [.., colon, tens, ones] = *head;
    let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
    if !matches!(time[2], b'T' | b' ') || colon != b':' || tens > 5 || ones > 9 {
        return None;
    }
    let date = pairs(u64::from_le_bytes(*date), *b"0000-00-")?;
    let time = pairs(u64::from_le_bytes(*time) & !0xff_0000 | u64::from(b'T') << 16, *b"00T00:00")?;
    let (year, month, day) = (i64::from(date[0]) * 100 + i64::from(date[2]), i64::from(date[5]), i64::from(time[0]));
    let (hour, minute, second) = (i64::from(time[3]), i64::from(time[6]), i64::from(tens * 10 + ones));
    if !(1971..9999).contains(&year) || hour > 23 || minute > 59 {
        return None;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => return None,
    };
    if !(1..=days).contains(&day) {
        return None;
    }
    let (tail, utc) = match tail.split_last() {
        Some((b'Z', fraction)) => (fraction, true),
        _ => (tail, false),
    };
    let micros = match tail.split_first() {
        None => 0,
        Some((b'.', digits)) if (1..=9).contains(&digits.len()) => {
            let mut micros = 0;
            let mut unit = 100_000;
            for digit in digits {
                let digit = digit.wrapping_sub(b'0');
                if digit > 9 {
                    return None;
                }
                micros += i64::from(digit) * unit;
                unit /= 10;
            }
            micros
        }
        Some(_) => return None,
    };
    Some((days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second, micros, utc))
}

/// The numbers of two digits that begin at each byte of `word`, if it has digits where `shape` has zeros and otherwise
/// looks like it. All eight bytes at once.
#[inline]
fn pairs(word: u64, shape: [u8; 8]) -> Option<[u8; 8]> {
    // Zero to nine where a digit is right, zero where another byte is; adding this much to more than that sets the high bit.
    let digits = word ^ u64::from_le_bytes(shape);
    let room = u64::from_le_bytes(shape.map(|byte| if byte == b'0' { 0x7f - 9 } else { 0x7f }));
    let wrong = (digits.wrapping_add(room) | digits) & (u64::MAX / 255 * 0x80);
    (wrong == 0).then(|| (digits * 10 + (digits >> 8)).to_le_bytes())
}

/// Days of the Gregorian calendar, by the years since March 1968: a leap day is the last day of such a year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    const DAYS_BEFORE: [i64; 12] = [306, 337, 0, 31, 61, 92, 122, 153, 184, 214, 245, 275];
    let march_year = year - i64::from(month <= 2);
    let leap_days = march_year / 4 - march_year / 100 + march_year / 400;
    march_year * 365 + leap_days + DAYS_BEFORE[month as usize - 1] + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn utc() -> Times {
        Times::new(None, None).unwrap()
    }
    fn berlin() -> Times {
        Times::new(None, Some("Europe/Berlin")).unwrap()
    }

    #[test]
    fn a_whole_number_is_read_by_its_magnitude_and_exactly() {
        for (x, micros) in [
            (1_760_000_000, 1_760_000_000_000_000),
            (1_760_000_000_123, 1_760_000_000_123_000),
            (1_760_000_000_123_456, 1_760_000_000_123_456),
            (1_760_000_000_123_456_789, 1_760_000_000_123_456),
            (-1_760_000_000_123_456_789, -1_760_000_000_123_457),
            (1_000_000_000, 1_000_000_000_000_000),
            (9_999_999_999, 9_999_999_999_000_000),
            (i64::MAX, 9_223_372_036_854_775),
        ] {
            assert_eq!(utc().whole(x), Ok(micros), "{x}");
        }
        for x in [0, 1, -1, 999_999_999, 10_000_000_000, 999_999_999_999, 10_000_000_000_000, 10_000_000_000_000_000] {
            assert_eq!(utc().whole(x), Err(Reason::InvalidTime), "{x}");
        }
    }

    #[test]
    fn a_stated_unit_takes_any_year_from_minus_9999_to_9999() {
        let seconds = Times::new(Some(TimeUnit::S), None).unwrap();
        assert_eq!(seconds.whole(0), Ok(0));
        assert_eq!(seconds.whole(4_294_967_295), Ok(4_294_967_295_000_000), "2106");
        assert_eq!(seconds.whole(253_402_207_200), Ok(253_402_207_200_000_000));
        assert_eq!(seconds.whole(253_402_300_800), Err(Reason::InvalidTime));
        assert_eq!(seconds.whole(i64::MAX), Err(Reason::InvalidTime));
        assert_eq!(seconds.fraction(1e300), Err(Reason::InvalidTime));
        assert_eq!(seconds.fraction(-0.0), Ok(0));
        assert_eq!(seconds.fraction(1.000_000_5), Ok(1_000_001));
        assert_eq!(Times::new(Some(TimeUnit::Ns), None).unwrap().whole(-1), Ok(-1));
    }

    #[test]
    fn a_number_with_a_fraction_is_rounded_to_the_microsecond() {
        assert_eq!(utc().fraction(1_760_000_000.5), Ok(1_760_000_000_500_000));
        assert_eq!(utc().fraction(1_760_000_000_000.25), Ok(1_760_000_000_000_250));
        assert_eq!(utc().fraction(1_760_000_000_000_000.5), Ok(1_760_000_000_000_001));
        assert_eq!(utc().fraction(1.8e19), Err(Reason::InvalidTime));
        assert_eq!(utc().fraction(9.3e18), Ok(9_300_000_000_000_000));
    }

    #[test]
    fn a_local_time_needs_a_zone_and_a_clock_that_showed_it() {
        assert_eq!(utc().text("2025-11-05T14:41:38"), Err(Reason::InvalidTime));
        assert_eq!(berlin().text("2025-11-05T14:41:38"), berlin().text("2025-11-05T13:41:38Z"));
        assert_eq!(berlin().text("2025-03-30T02:30:00"), Err(Reason::SkippedTime));
        assert_eq!(berlin().text("2025-10-26T02:30:00"), berlin().text("2025-10-26T00:30:00Z"), "the earlier of two");
        assert_eq!(berlin().text("2025-11-05"), berlin().text("2025-11-05T00:00:00"));
        let error = Times::new(None, Some("Europe/Berln")).unwrap_err();
        assert!(error.contains("Europe/Berln"), "{error}");
    }

    #[test]
    fn the_ends_of_time_are_times_and_what_lies_beyond_is_not() {
        assert_eq!(utc().text("1970-01-01T00:00:00Z"), Ok(0));
        assert_eq!(utc().text("2106-02-07T06:28:16Z"), Ok(4_294_967_296_000_000));
        assert_eq!(utc().text("1969-12-31T23:59:59.9999999Z"), Ok(0), "digits beyond the microsecond are dropped");
        assert_eq!(utc().text("9999-12-31T23:59:59Z"), Err(Reason::InvalidTime));
        for text in ["", "Z", "now", "2025-02-29T00:00:00Z", "2025-01-01T24:00:00Z", "2025-01-01T00:00:00.Z", "ERR"] {
            assert_eq!(utc().text(text), Err(Reason::InvalidTime), "{text}");
        }
    }

    /// Mostly well-formed texts, near the edges of the calendar, with one byte changed now and then.
    fn texts() -> impl Strategy<Value = String> {
        let parts = (1960..2110i32, 0..14u32, 0..33u32, 0..26u32, 0..62u32, 0..62u32);
        let ends = prop_oneof![Just("Z"), Just(""), Just("+02:00"), Just("-00:00"), Just("z"), Just("[Europe/Berlin]")];
        let year = prop_oneof![4 => Just(None), 1 => prop_oneof![Just(1900), Just(9998), Just(9999), Just(2000), Just(1)].prop_map(Some)];
        (parts, "(\\.[0-9]{0,10})?", ends, "[T tx]", year, proptest::option::weighted(0.2, (0..30usize, " -~")))
            .prop_map(|((y, mo, d, h, mi, s), fraction, end, t, year, change)| {
                let y = year.unwrap_or(y);
                let mut text = format!("{y:04}-{mo:02}-{d:02}{t}{h:02}:{mi:02}:{s:02}{fraction}{end}");
                if let Some((at, c)) = change
                    && at < text.len()
                {
                    text.replace_range(at..=at, &c);
                }
                text
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]
        #[test]
        fn the_hand_written_reader_and_jiff_agree(text in texts()) {
            for times in [utc(), berlin()] {
                prop_assert_eq!(times.text(&text), times.text_by_jiff(&text), "{}", text);
            }
        }
        #[test]
        fn every_microsecond_survives_being_printed_and_read(micros in 0i64..253_000_000_000_000_000) {
            let text = Timestamp::from_microsecond(micros).unwrap().to_string();
            prop_assert_eq!(utc().text(&text), Ok(micros), "{}", text);
        }
    }
}
