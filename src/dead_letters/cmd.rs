//! `streamgauge dead-letters list|show`: what was refused, and what would have been right.

use super::{DeadLetter, parse};
use crate::plain::{grouped, number, plain, short, steers, table, time};
use anyhow::{Context, Result, bail};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// What was refused, and why.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Counts by source and reason, and the newest
    List(List),
    /// One record: its bytes, why it was refused, what would be right
    Show(Show),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only those of this source
    #[arg(long)]
    source: Option<String>,
    /// Only those with this reason, such as not_json
    #[arg(long)]
    reason: Option<String>,
    /// How many of the newest to show
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Show {
    /// Where it lies, as `list` says it
    #[arg(value_name = "TOPIC/PARTITION/OFFSET")]
    place: Place,
    /// As JSON lines, with the bytes in base64
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug)]
struct Place {
    topic: String,
    partition: u32,
    offset: i64,
}

impl std::str::FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.rsplitn(3, '/');
        let offset = parts.next().and_then(|offset| offset.parse().ok());
        let partition = parts.next().and_then(|partition| partition.parse().ok());
        match (parts.next(), partition, offset) {
            (Some(topic), Some(partition), Some(offset)) if !topic.is_empty() => {
                Ok(Self { topic: topic.to_owned(), partition, offset })
            }
            _ => Err("want TOPIC/PARTITION/OFFSET, such as sensors/3/41200118".to_owned()),
        }
    }
}

/// Runs the command on the store in `data_dir`.
pub fn run(args: &Args, data_dir: &Path) -> Result<()> {
    match write(args, data_dir, &mut io::stdout().lock()) {
        // Whoever reads has seen enough (`| head`).
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        result => result,
    }
}

pub(super) fn write(args: &Args, data_dir: &Path, out: &mut dyn Write) -> Result<()> {
    let dir = data_dir.join("dead-letters");
    match &args.command {
        Command::List(list) => write_list(list, &dir, out),
        Command::Show(show) => write_show(show, &dir, out),
    }
}

fn write_list(args: &List, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let mut counts: BTreeMap<(String, &'static str), (u64, u64)> = BTreeMap::new();
    // The newest by (epoch, place); its top is the oldest of them, which a newer one pushes out.
    let mut newest = BinaryHeap::new();
    let unreadable = each(dir, |line, letter| {
        let other = |wanted: &Option<String>, found: &str| wanted.as_ref().is_some_and(|wanted| wanted != found);
        if other(&args.source, &letter.source) || other(&args.reason, letter.reason.as_str()) {
            return Ok(());
        }
        let (count, last) = counts.entry((letter.source.to_string(), letter.reason.as_str())).or_default();
        *count += 1;
        *last = (*last).max(letter.epoch);
        let place = (letter.epoch, letter.topic, letter.partition, letter.offset, letter.index);
        newest.push(Reverse((place, line.to_owned())));
        if newest.len() > args.limit {
            newest.pop();
        }
        Ok(())
    })?;
    let newest: Vec<String> = newest.into_sorted_vec().into_iter().map(|Reverse((_, line))| line).collect();
    if args.json {
        let counts = counts.iter().map(|((source, reason), (count, last))| {
            serde_json::json!({ "source": source, "reason": reason, "count": count, "newest_epoch": last })
        });
        let newest =
            newest.iter().map(|line| serde_json::from_str(line)).collect::<Result<Vec<serde_json::Value>, _>>()?;
        writeln!(out, "{}", serde_json::json!({ "counts": counts.collect::<Vec<_>>(), "newest": newest }))?;
        return Ok(());
    }
    if counts.is_empty() {
        let these = if args.source.is_some() || args.reason.is_some() { "such dead letters" } else { "dead letters" };
        writeln!(out, "no {these} in {}", dir.display())?;
    } else {
        let row = |((source, reason), (count, last)): (&(String, &'static str), &(u64, u64))| {
            vec![grouped(*count), (*reason).to_owned(), short(source, 24), epoch_time(*last)]
        };
        let rows: Vec<_> = counts.iter().map(row).collect();
        write!(out, "{}", table(&["count", "reason", "source", "newest (UTC)"], &rows, &[0]))?;
    }
    if !newest.is_empty() {
        let rows = newest.iter().map(|line| Ok(list_row(&serde_json::from_str(line)?))).collect::<Result<Vec<_>>>()?;
        writeln!(out)?;
        write!(out, "{}", table(&["read (UTC)", "place", "reason", "size", "beginning"], &rows, &[3]))?;
        writeln!(out, "\nstreamgauge dead-letters show PLACE says what would be right")?;
    }
    note_unreadable(unreadable, out)
}

fn list_row(letter: &DeadLetter) -> Vec<String> {
    let place = format!("{}/{}/{}", plain(&letter.topic), letter.partition, letter.offset);
    let beginning = match &letter.reading {
        Some(reading) => {
            let value = reading.value.map_or_else(|| "none".to_owned(), number);
            format!("{} {} {value}", reading.sensor, reading.metric)
        }
        None => String::from_utf8_lossy(&letter.bytes[..letter.bytes.len().min(200)]).into_owned(),
    };
    vec![epoch_time(letter.epoch), place, letter.reason.to_string(), grouped(letter.size), short(&beginning, 48)]
}

fn write_show(args: &Show, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let Place { topic, partition, offset } = &args.place;
    let mut found = 0;
    let unreadable = each(dir, |line, letter| {
        if (&*letter.topic, letter.partition, letter.offset) != (topic.as_str(), *partition, *offset) {
            return Ok(());
        }
        found += 1;
        if args.json {
            writeln!(out, "{line}")?;
        } else {
            write!(out, "{}{}", if found > 1 { "\n" } else { "" }, shown(&letter))?;
        }
        Ok(())
    })?;
    if found == 0 {
        note_unreadable(unreadable, out)?;
        bail!(
            "{topic}/{partition}/{offset} is not among the dead letters in {}: it was not refused, not read yet, or was \
             removed as one of the oldest; `streamgauge dead-letters list` shows what is there",
            dir.display()
        );
    }
    Ok(())
}

/// A dead letter in words.
fn shown(letter: &DeadLetter) -> String {
    let mut text = String::new();
    let mut line = |name: &str, what: &str| {
        let _ = writeln!(text, "{name:<8} {what}");
    };
    line("place", &format!("{}/{}/{}", plain(&letter.topic), letter.partition, letter.offset));
    if let Some(index) = letter.index {
        line("value", &format!("number {index} of its record, from 0"));
    }
    line("source", &plain(&letter.source));
    line("read", &format!("{} UTC, epoch {}", epoch_time(letter.epoch), letter.epoch));
    line("reason", letter.reason.as_str());
    line("right", letter.reason.advice());
    if let Some(reading) = &letter.reading {
        line("sensor", &plain(&reading.sensor));
        line("metric", &plain(&reading.metric));
        line("time", &format!("{} UTC", time(reading.time)));
        line("value", &value(reading.value));
    }
    if letter.size == 0 && letter.reading.is_some() {
        line("bytes", "not at hand where the value was refused; they are in the topic");
        return text;
    }
    let kept = letter.bytes.len() as u64;
    let cut = if kept < letter.size { format!(", the first {} are kept", grouped(kept)) } else { String::new() };
    line("bytes", &format!("{}{cut}", grouped(letter.size)));
    if !letter.bytes.is_empty() {
        text.push('\n');
        text.push_str(&readable(&letter.bytes, kept < letter.size));
    }
    text
}

/// Text as it is, anything else as a hex dump. The last character of what was cut may be half there.
fn readable(bytes: &[u8], cut: bool) -> String {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) if cut && error.error_len().is_none() => std::str::from_utf8(&bytes[..error.valid_up_to()]).ok(),
        Err(_) => None,
    };
    match text.filter(|text| !text.chars().any(|c| steers(c) && !matches!(c, '\n' | '\t'))) {
        Some(text) if text.ends_with('\n') => text.to_owned(),
        Some(text) => format!("{text}\n"),
        None => hex_dump(bytes),
    }
}

fn hex_dump(bytes: &[u8]) -> String {
    let mut dump = String::with_capacity(bytes.len() * 5);
    for (row, bytes) in bytes.chunks(16).enumerate() {
        let _ = write!(dump, "{:08x} ", row * 16);
        for i in 0..16 {
            let gap = if i == 8 { "  " } else { " " };
            let _ = match bytes.get(i) {
                Some(byte) => write!(dump, "{gap}{byte:02x}"),
                None => write!(dump, "{gap}  "),
            };
        }
        let text = bytes.iter().map(|byte| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' });
        let _ = writeln!(dump, "  |{}|", text.collect::<String>());
    }
    dump
}

fn value(value: Option<f64>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

fn epoch_time(epoch: u64) -> String {
    time(i64::try_from(epoch).unwrap_or(i64::MAX).saturating_mul(1000))
}

fn note_unreadable(lines: u64, out: &mut dyn Write) -> Result<()> {
    if lines > 0 {
        writeln!(out, "\n{} lines could not be read: written by another version, or damaged", grouped(lines))?;
    }
    Ok(())
}

/// Every dead letter of every process; how many lines are none. A line that is still being written is left out.
fn each(dir: &Path, mut what: impl FnMut(&str, DeadLetter) -> Result<()>) -> Result<u64> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| parse(path).is_some());
    paths.sort();
    let mut unreadable = 0;
    for path in paths {
        let file = match File::open(&path) {
            // Removed as the oldest since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).with_context(|| format!("cannot read {}", path.display()))? > 0 {
            if line.pop() != Some(b'\n') {
                break;
            }
            match std::str::from_utf8(&line).ok().and_then(|text| Some((text, serde_json::from_str(text).ok()?))) {
                Some((text, letter)) => what(text, letter)?,
                None => unreadable += 1,
            }
            line.clear();
        }
    }
    Ok(unreadable)
}
