//! What a record says about its event time, in microseconds since 1970.

use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, civil};

use crate::config::TimeUnit;
use crate::journal::Reason;
use crate::json::Json;

/// A zone by name, from the database that the program carries with it.
pub fn zone_of(name: &str) -> Result<TimeZone, String> {
    TimeZoneDatabase::bundled().get(name).map_err(|e| e.to_string())
}

/// The event time that a field stands for.
pub fn time_of(field: &Json, unit: Option<TimeUnit>, zone: Option<&TimeZone>) -> Result<i64, Reason> {
    match field {
        Json::Null => Err(Reason::MissingTime),
        Json::Number(text) => number(text, unit).ok_or(Reason::InvalidTime),
        Json::String(text) => match text.parse::<Timestamp>() {
            Ok(time) => Ok(time.as_microsecond()),
            Err(_) => local(text, zone),
        },
        _ => Err(Reason::InvalidTime),
    }
}

/// A time of day that its zone makes an instant of, the earlier one if there are two.
fn local(text: &str, zone: Option<&TimeZone>) -> Result<i64, Reason> {
    let zone = zone.ok_or(Reason::InvalidTime)?;
    let time: civil::DateTime = text.parse().map_err(|_| Reason::InvalidTime)?;
    let offset = match zone.to_ambiguous_timestamp(time).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset,
        AmbiguousOffset::Gap { .. } => return Err(Reason::SkippedTime),
        // Clocks are set back where an hour comes twice, so the offset before is the greater: the earlier instant.
        AmbiguousOffset::Fold { before, after } => before.max(after),
    };
    Ok(offset.to_timestamp(time).map_err(|_| Reason::InvalidTime)?.as_microsecond())
}

fn number(text: &str, unit: Option<TimeUnit>) -> Option<i64> {
    let us = if let Ok(whole) = text.parse::<i64>() {
        let whole = i128::from(whole);
        match unit.or_else(|| by_magnitude(|power| whole.abs() >= 10_i128.pow(power)))? {
            TimeUnit::S => i64::try_from(whole * 1_000_000).ok()?,
            TimeUnit::Ms => i64::try_from(whole * 1_000).ok()?,
            TimeUnit::Us => i64::try_from(whole).ok()?,
            TimeUnit::Ns => i64::try_from(whole.div_euclid(1_000)).ok()?,
        }
    } else {
        let x: f64 = text.parse().ok()?;
        let rounded = match unit.or_else(|| by_magnitude(|power| x.abs() >= 10_u64.pow(power) as f64))? {
            TimeUnit::S => (x * 1e6).round(),
            TimeUnit::Ms => (x * 1e3).round(),
            TimeUnit::Us => x.round(),
            TimeUnit::Ns => (x / 1e3).round(),
        };
        rounded as i64 // Beyond an i64 it is i64::MAX or MIN, which no Timestamp holds.
    };
    Timestamp::from_microsecond(us).ok().map(|_| us)
}

/// The unit in which a number of this magnitude is a time of about now.
fn by_magnitude(at_least: impl Fn(u32) -> bool) -> Option<TimeUnit> {
    [(TimeUnit::S, 9), (TimeUnit::Ms, 12), (TimeUnit::Us, 15), (TimeUnit::Ns, 18)]
        .into_iter()
        .find(|(_, power)| at_least(*power) && !at_least(power + 1))
        .map(|(unit, _)| unit)
}
