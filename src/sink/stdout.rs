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

#[cfg(test)]
mod tests {
    use super::*;
    use operators::Alert;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const EPOCH: Epoch = 1_700_000_000_020;

    fn alert(time_s: i64, start_s: i64, state: AlertState, severity: &str, value: Option<f64>) -> Alerts {
        let alert = Alert {
            time: time_s * 1_000_000,
            state,
            rule_key: "temperature-high".into(),
            rule: "temperature-high".into(),
            version: "0badcafe".into(),
            severity: severity.into(),
            sensor: "b-17\u{1b}[2J".into(),
            metric: "temperature".into(),
            value,
            start: start_s * 1_000_000,
            ordinal: 0,
            behind: false,
        };
        Alerts(Arc::new(AlertBatch { epoch: EPOCH, alerts: vec![JournalEntry { n: 1, alert }] }))
    }

    fn write(sink: &mut Stdout, batch: &[Alerts]) -> Result<Written, SinkError> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(sink.write(batch))
    }

    #[test]
    fn a_person_reads_one_line_per_alert() {
        let paper = Paper::default();
        let mut sink = Stdout::onto(Box::new(paper.clone()), StdoutFormat::Text, false, TimeZone::UTC);
        let batch = [
            alert(1_700_000_000, 1_700_000_000, AlertState::Firing, "warning", Some(36.2)),
            alert(1_700_000_014, 1_700_000_000, AlertState::Resolved, "warning", Some(32.8)),
            alert(1_500_000_000, 1_500_000_000, AlertState::Firing, "critical", None),
        ];
        assert_eq!(write(&mut sink, &batch).unwrap().entries, 3);
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let id = |i: usize| batch[i].0.alerts[0].alert.id_hex()[..6].to_owned();
        let expected = |line: &str, i| format!("{line}   {}", id(i));
        let sensor = "b-17\u{fffd}[2J    ";
        assert_eq!(
            lines,
            [
                expected(&format!("22:13:20  ▲ warning   temperature-high   {sensor} temperature 36.2"), 0),
                expected(&format!("22:13:34  ▼ resolved  temperature-high   {sensor} temperature 32.8, lasted 14s"), 1),
                expected(&format!("2017-07-14 02:40:00  ▲ critical  temperature-high   {sensor} temperature"), 2),
            ]
        );
    }

    #[test]
    fn colours_stand_around_a_line_and_json_is_the_journals() {
        let paper = Paper::default();
        let batch = [alert(1_700_000_000, 1_700_000_000, AlertState::Firing, "critical", Some(1.0))];
        write(&mut Stdout::onto(Box::new(paper.clone()), StdoutFormat::Text, true, TimeZone::UTC), &batch).unwrap();
        let coloured = String::from_utf8(std::mem::take(&mut *paper.0.lock().unwrap())).unwrap();
        assert!(coloured.starts_with("\u{1b}[31m22:13:20") && coloured.ends_with("\u{1b}[0m\n"), "{coloured:?}");
        write(&mut Stdout::onto(Box::new(paper.clone()), StdoutFormat::Json, true, TimeZone::UTC), &batch).unwrap();
        let mut line = Vec::new();
        line::write(EPOCH, &batch[0].0.alerts[0], &mut line);
        line.push(b'\n');
        assert_eq!(*paper.0.lock().unwrap(), line);
    }

    #[test]
    fn a_reader_that_has_gone_stops_nothing() {
        let mut sink = Stdout::onto(Box::new(Gone), StdoutFormat::Json, false, TimeZone::UTC);
        let batch = [alert(1, 1, AlertState::Firing, "info", None)];
        assert!(matches!(write(&mut sink, &batch), Err(SinkError::Refused(_))));
    }
}
