//! Clocks that are wrong, one way at a time: what the wall clock shows at the start of each life, what it jumps to in the
//! middle of one, how fast all clocks go; and whose local time the readings are in. Epochs never step back (R1), no
//! silence is counted that was not heard (R7), and everything else is the oracle's.

use crate::memory::Partitions;
use fastrand::Rng;
use oracle::Line;
use std::collections::BTreeMap;
use std::path::Path;
use streamgauge::epoch_log::{self, Known, TermLog};
use streamgauge::plan::Layout;
use streamgauge::seam::Fs;
use streamgauge::terms::History;

const DAY_MS: u64 = 86_400_000;
/// After so long a life's wall clock jumps again; nobody may look at it then.
pub const JUMPS_AFTER_US: u64 = 3_000_000;
/// That of `SILENCE`.
const SILENT_AFTER_MS: u64 = 7_000;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    DayOn,
    DayBack,
    TenTimes,
    SteppingBack,
    Epoch0,
    Year2106,
    Zone,
    Dst,
}

pub const ALL: [(Wrong, &str); 8] = [
    (Wrong::DayOn, "day-on"),
    (Wrong::DayBack, "day-back"),
    (Wrong::TenTimes, "ten-times"),
    (Wrong::SteppingBack, "stepping-back"),
    (Wrong::Epoch0, "epoch-0"),
    (Wrong::Year2106, "year-2106"),
    (Wrong::Zone, "zone"),
    (Wrong::Dst, "dst"),
];

impl Wrong {
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(wrong, _)| *wrong == self).map_or("", |(_, name)| name)
    }

    /// What the wall clock shows next, where it should show `wall_ms`; odd lives are those where it is wrong, if it is
    /// not wrong more and more.
    pub fn wall(self, wall_ms: u64, right_ms: u64, odd: bool, rng: &mut Rng) -> u64 {
        match self {
            Wrong::DayOn => wall_ms + DAY_MS,
            Wrong::DayBack => wall_ms.saturating_sub(DAY_MS),
            Wrong::SteppingBack => wall_ms.saturating_sub(rng.u64(1..60_000)),
            Wrong::Epoch0 if odd => 0,
            Wrong::Year2106 if odd => 4_300_000_000_000,
            _ => right_ms,
        }
    }

    pub fn rate(self) -> u64 {
        if self == Wrong::TenTimes { 10 } else { 1 }
    }

    /// The zone of the plant's local times, and how much later than in 2023-11-14T22:13:20Z it all happens, seconds.
    pub fn zone(self, seed: u64) -> Option<(&'static str, i64)> {
        let which = |zones: &[(&'static str, i64)]| Some(zones[seed as usize % zones.len()]);
        match self {
            Wrong::Zone => which(&[("Asia/Kolkata", 0), ("America/St_Johns", 0), ("Pacific/Chatham", 0)]),
            // A few seconds before 2023-11-05T06:00Z (an hour comes twice) and 2024-03-10T07:00Z (an hour is skipped).
            Wrong::Dst => which(&[("America/New_York", -836_005), ("America/New_York", 10_053_995)]),
            _ => None,
        }
    }

    /// Turns the plant's times into local ones. The devices know winter time only.
    pub fn localise(self, seed: u64, partitions: &mut Partitions) {
        let Some((zone, later_s)) = self.zone(seed) else { return };
        let zone = jiff::tz::TimeZone::get(zone).expect("a zone");
        let standard = zone.to_offset(jiff::Timestamp::from_second(1_700_000_000 + later_s).expect("a time"));
        for record in partitions.values_mut().flatten() {
            record.timestamp = record.timestamp.map(|t| t + later_s * 1000);
            let Some(text) = record.payload.as_ref().and_then(|p| String::from_utf8(p.clone()).ok()) else { continue };
            let Some((before, time)) = text.split_once(r#""time":"#) else { continue };
            let Some(us) = time.strip_suffix('}').and_then(|time| time.parse::<i64>().ok()) else { continue };
            let at = jiff::Timestamp::from_microsecond(us + later_s * 1_000_000).expect("a time");
            // In autumn they set themselves right, and show an hour twice; in spring they do not.
            let offset = if later_s < 0 { zone.to_offset(at) } else { standard };
            let civil = offset.to_datetime(at);
            record.payload = Some(format!(r#"{before}"time":"{civil}"}}"#).into_bytes());
        }
    }
}

/// A life that began a term.
#[derive(Clone, Copy, Debug)]
pub struct Began {
    /// What the wall clock showed at its start, and after it had jumped.
    pub walls: [u64; 2],
    /// How long it lasted by its own clocks, milliseconds.
    pub lasted_ms: u64,
}

/// R1: the epochs of each term lie above all that were written down before, and begin at the wall clock, once that is
/// above those.
pub fn epochs_never_step_back(fs: &dyn Fs, data: &Path, began: &BTreeMap<u64, Began>) -> Result<u64, String> {
    let logs = Layout::new(data.to_owned()).logs;
    let said = |e: &dyn std::fmt::Display| format!("R1: {e}");
    let history = History::read(fs, &logs, None).map_err(|e| said(&e))?;
    let (mut floor, mut terms) = (0, 0);
    for term in &history.all {
        let known = Known { ends: history.ends(*term), marks: Vec::new() };
        let log: Option<TermLog> = epoch_log::read_term(fs, &logs, *term, &known).map_err(|e| said(&e))?;
        let Some(TermLog { oldest, newest, .. }) = log.filter(|log| log.newest > 0) else { continue };
        let Some(Began { walls, lasted_ms }) = began.get(term) else { return Err(said(&format!("term {term}?"))) };
        if oldest < floor {
            return Err(said(&format!("term {term} begins at {oldest}, and {floor} was written down before")));
        }
        // A line says first where its worker begins: one below its first epoch.
        let right = |wall: &u64| {
            let base = (*wall).max(floor + 1);
            (base..=base + lasted_ms + 1_000).contains(&(oldest + 1))
        };
        if !walls.iter().any(right) {
            return Err(said(&format!("term {term} begins at {oldest}; walls {walls:?}, floor {floor}")));
        }
        (floor, terms) = (newest, terms + 1);
    }
    Ok(terms)
}

/// R7, by what the journal says: an alert for silence that no reading brought about comes after so long in which we
/// heard, since the reading that ended the one before.
pub fn silence_was_heard(lines: &[Line], journal: &[String]) -> Result<u64, String> {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    let mut since = None;
    let mut close = |since: &mut Option<u64>, at: u64| spans.extend(since.take().map(|from| (from, at)));
    let mut ordered: Vec<(u64, usize)> = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        match line {
            Line::Deaf { epoch, .. } | Line::Hearing { epoch, .. } => ordered.push((*epoch, n)),
            Line::End { epoch } => ordered.push((epoch + 1, n)),
            _ => {}
        }
    }
    ordered.sort_unstable();
    for (epoch, n) in ordered {
        match lines[n] {
            Line::Hearing { .. } => since = since.or(Some(epoch)),
            _ => close(&mut since, epoch),
        }
    }
    close(&mut since, u64::MAX);
    let counted =
        |epoch: u64| -> u64 { spans.iter().map(|(from, to)| epoch.min(*to).saturating_sub(epoch.min(*from))).sum() };
    let alerts: Vec<serde_json::Value> = journal.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let silent = alerts.iter().filter(|alert| alert["rule"] == "silent");
    let mut ended: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut checked = 0;
    for alert in silent.clone() {
        let series = (alert["sensor"].to_string(), alert["metric"].to_string());
        let epoch = alert["epoch"].as_u64().unwrap_or_default();
        if alert["state"] == "resolved" {
            ended.insert(series, counted(epoch));
            continue;
        }
        let by_reading = silent.clone().any(|other| {
            other["state"] == "resolved" && (&other["alert"], &other["epoch"]) == (&alert["alert"], &alert["epoch"])
        });
        let heard = counted(epoch) - ended.get(&series).copied().unwrap_or(0);
        if !by_reading && heard < SILENT_AFTER_MS {
            return Err(format!("R7: {alert} after {heard} ms in which we heard"));
        }
        checked += u64::from(!by_reading);
    }
    Ok(checked)
}
