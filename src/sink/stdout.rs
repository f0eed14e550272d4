//! Alerts as lines on standard output, for people or as the journal's lines.

use super::*;
use crate::config::{StdoutFormat, StdoutSink};
use jiff::{Timestamp, tz::TimeZone};
use operators::AlertState;
use std::io::{self, IsTerminal, Write};

/// Standard output.
pub struct Stdout {
    format: StdoutFormat,
    colours: bool,
    zone: TimeZone,
    to: Box<dyn Write + Send>,
    bytes: Vec<u8>,
}

impl Stdout {
    /// Colours at a terminal, unless NO_COLOR is set; times in the machine's zone, as on the wall.
    pub fn new(settings: &StdoutSink) -> Self {
        let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::onto(Box::new(io::stdout()), settings.format, colours, TimeZone::system())
    }

    /// Onto something else.
    pub fn onto(to: Box<dyn Write + Send>, format: StdoutFormat, colours: bool, zone: TimeZone) -> Self {
        Self { format, colours, zone, to, bytes: Vec::new() }
    }

    fn line(&mut self, epoch: Epoch, entry: &JournalEntry) {
        if self.format == StdoutFormat::Json {
            line::write(epoch, entry, &mut self.bytes);
        } else {
            let (colour, text) = text(epoch, entry, &self.zone);
            if self.colours {
                self.bytes.extend(format!("\x1b[{colour}m{text}\x1b[0m").as_bytes());
            } else {
                self.bytes.extend(text.as_bytes());
            }
        }
        self.bytes.push(b'\n');
    }
}

/// `14:03:07  ▲ warning   temperature-high   b-17   temperature 36.2   a1f3c9`, and its colour.
fn text(epoch: Epoch, entry: &JournalEntry, zone: &TimeZone) -> (&'static str, String) {
    let alert = &entry.alert;
    let (sign, word, colour) = match (alert.state, &*alert.severity) {
        (AlertState::Resolved, _) => ('▼', "resolved", "32"),
        (AlertState::Firing, "critical") => ('▲', "critical", "31"),
        (AlertState::Firing, severity) => ('▲', severity, "33"),
    };
    let what = match alert.value {
        Some(value) => format!("{} {}", alert.metric, line::number(value)),
        None => alert.metric.to_string(),
    };
    let lasted = match alert.state {
        AlertState::Resolved if alert.time > alert.start => {
            let lasted = crate::config::Interval::seconds((alert.time - alert.start) / 1_000_000);
            format!(", lasted {lasted}")
        }
        _ => String::new(),
    };
    let behind = if alert.behind { ", behind" } else { "" };
    let id = alert.id_hex();
    let text = format!(
        "{}  {sign} {word:<9} {:<18} {:<12} {what}{lasted}{behind}   {}",
        clock(epoch, alert.time, zone),
        printable(&alert.rule),
        printable(&alert.sensor),
        id.get(..6).unwrap_or(&id)
    );
    (colour, text)
}

/// The time of day, with the date where that is not the day on which it was judged.
fn clock(epoch: Epoch, time_us: i64, zone: &TimeZone) -> String {
    let at = |us| Timestamp::from_microsecond(us).map(|at| at.to_zoned(zone.clone()).datetime());
    match (at(time_us), at((epoch as i64).saturating_mul(1000))) {
        (Ok(time), Ok(judged)) if time.date() == judged.date() => time.strftime("%H:%M:%S").to_string(),
        (Ok(time), _) => time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        (Err(_), _) => format!("{time_us} us"),
    }
}

/// A name as received, which may hold what would confuse a terminal.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl Sink for Stdout {
    type Item = Alerts;

    fn traits(&self) -> Traits {
        Traits { in_checkpoint: false, forgets_us: 0, batch_entries: 1000, batch_bytes: 1 << 20 }
    }

    async fn connect(&mut self, _term: u64) -> Result<(), StartError> {
        Ok(())
    }

    async fn write(&mut self, batch: &[Alerts]) -> Result<Written, SinkError> {
        self.bytes.clear();
        let mut entries = 0;
        for alerts in batch {
            for entry in &alerts.0.alerts {
                self.line(alerts.0.epoch, entry);
                entries += 1;
            }
        }
        match self.to.write_all(&self.bytes).and_then(|()| self.to.flush()) {
            Ok(()) => Ok(Written { entries, ..Written::default() }),
            // Whoever read it has gone and does not come back: waiting would stop everything else.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(SinkError::Refused("nobody reads standard output any more".into()))
            }
            Err(error) => Err(SinkError::Unavailable(format!("standard output: {error}"))),
        }
    }
}
