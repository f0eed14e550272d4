//! An alert transition as text: the journal's line, exactly as docs/semantics.md has it (section 7).

use super::JournalEntry;
use super::segment::{Get, Put};
use operators::{Alert, AlertState, Epoch};
use serde::Serialize;
use std::sync::Arc;

/// The journal's line; the order of the fields is the order of its keys.
#[derive(Serialize)]
struct Line<'a> {
    epoch: Epoch,
    n: u32,
    time: i64,
    state: &'static str,
    rule: &'a str,
    severity: &'a str,
    sensor: &'a str,
    metric: &'a str,
    value: Option<f64>,
    start: i64,
    ordinal: u32,
    behind: bool,
    alert: &'a str,
    transition: u8,
    version: &'a str,
}

/// A value as serde_json writes it: the shortest text that reads back to the same f64.
pub fn number(value: f64) -> String {
    serde_json::to_string(&value).unwrap_or_default()
}

/// Appends the journal's line, without a line feed.
pub fn write(epoch: Epoch, entry: &JournalEntry, out: &mut Vec<u8>) {
    let alert = &entry.alert;
    let line = Line {
        epoch,
        n: entry.n,
        time: alert.time,
        state: alert.state.word(),
        rule: &alert.rule,
        severity: &alert.severity,
        sensor: &alert.sensor,
        metric: &alert.metric,
        value: alert.value,
        start: alert.start,
        ordinal: alert.ordinal,
        behind: alert.behind,
        alert: &alert.id_hex(),
        transition: alert.state.number(),
        version: &alert.version,
    };
    // Text and numbers into memory: nothing that could fail.
    let _ = serde_json::to_writer(out, &line);
}

/// Appends an alert in the fixed layout of segment files.
pub(super) fn encode(alert: &Alert, out: &mut Vec<u8>) {
    for text in [&alert.rule_key, &alert.rule, &alert.version, &alert.severity, &alert.sensor, &alert.metric] {
        out.put_str(text);
    }
    out.put_u64(alert.time as u64);
    out.push(alert.state.number());
    out.push(u8::from(alert.value.is_some()) | u8::from(alert.behind) << 1);
    out.put_u64(alert.value.unwrap_or_default().to_bits());
    out.put_u64(alert.start as u64);
    out.put_u32(alert.ordinal);
}

/// Reads it back.
pub(super) fn decode(bytes: &mut &[u8]) -> Option<Alert> {
    let mut text = || -> Option<Arc<str>> { Some(bytes.get_str()?.into()) };
    let (rule_key, rule, version, severity) = (text()?, text()?, text()?, text()?);
    let (sensor, metric) = (text()?, text()?);
    let time = bytes.get_u64()? as i64;
    let state = match bytes.get_u8()? {
        0 => AlertState::Firing,
        1 => AlertState::Resolved,
        _ => return None,
    };
    let flags = bytes.get_u8()?;
    let value = f64::from_bits(bytes.get_u64()?);
    let value = (flags & 1 != 0).then_some(value);
    let behind = flags & 2 != 0;
    let (start, ordinal) = (bytes.get_u64()? as i64, bytes.get_u32()?);
    Some(Alert { rule_key, rule, version, severity, sensor, metric, time, state, value, start, ordinal, behind })
}
