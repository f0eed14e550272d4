//! `state`: what lies in the data directory, in words or as JSON.

use crate::checkpoint::{self, Restored, cut_text};
use crate::config::{Pure, Resolved};
use crate::epoch_log::{self, Control, FOR_EVER, Known, LogEnd, LogEnds, TermLog};
use crate::error::Failure;
use crate::plan::Layout;
use crate::seam::{Fs, RealFs};
use crate::terms::History;
use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};
use operators::rolling::{Rolling, Stats, Window};
use operators::{SeriesName, SharedDictionary};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::rc::Rc;

/// The arguments of `state`.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with the state.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// List checkpoints and terms
    Ls,
    /// Show the newest good checkpoint: positions, sizes, lanes
    Show {
        /// The epoch log instead: one JSON line per range and control line, of all terms
        #[arg(long, conflicts_with_all = ["rolling", "journal"])]
        epochs: bool,
        /// The rolling statistics of every series instead, one JSON line each, sorted by name
        #[arg(long, conflicts_with = "journal")]
        rolling: bool,
        /// The journal of alert transitions instead, as it is on disk
        #[arg(long)]
        journal: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Read every byte of every checkpoint and epoch log, and say whether it is sound
    Verify,
}

/// Runs the command on a data directory.
pub fn run(args: &Args, data_dir: &Path) -> Result<(), Failure> {
    let layout = Layout::new(data_dir.to_owned());
    if !data_dir.exists() {
        let what =
            format!("{} does not exist; name the folder with --data-dir, or the file with -c", data_dir.display());
        return Err(Failure::configuration(what));
    }
    let mut out = std::io::stdout().lock();
    let corrupt = |e: anyhow::Error| Failure::state(format!("{e:#}"));
    match &args.command {
        Command::Ls => ls(&mut out, &layout).map_err(corrupt),
        Command::Show { epochs: true, .. } => epochs(&mut out, &layout).map_err(corrupt),
        Command::Show { rolling: true, .. } => rolling(&mut out, &layout).map_err(corrupt),
        Command::Show { journal: true, .. } => {
            let path = data_dir.join("journal.jsonl");
            let bytes = std::fs::read(&path)
                .map_err(|e| Failure::configuration(format!("{}: {e}; nothing has run here yet", path.display())))?;
            out.write_all(&bytes).map_err(|e| corrupt(e.into()))
        }
        Command::Show { json, .. } => show(&mut out, &layout, *json).map_err(corrupt),
        Command::Verify => verify(&mut out, &layout),
    }
}

fn ls(out: &mut impl Write, layout: &Layout) -> Result<()> {
    for dir in checkpoint::list(&RealFs, &layout.checkpoints)? {
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        match checkpoint::load(&RealFs, &dir) {
            Ok(r) => writeln!(
                out,
                "checkpoint {name}  term {}, {}, {} workers, {} bytes",
                r.manifest.term,
                cut_text(r.manifest.cut),
                r.manifest.peers,
                r.manifest.files.iter().map(|f| f.length).sum::<u64>()
            )?,
            Err(_) if !checkpoint::is_complete(&RealFs, &dir) => writeln!(out, "checkpoint {name}  not completed")?,
            Err(error) => writeln!(out, "checkpoint {name}  damaged: {error:#}")?,
        }
    }
    let history = History::read(&RealFs, &layout.logs, None)?;
    for term in &history.all {
        match read_term(&RealFs, layout, &history, *term)? {
            None => writeln!(out, "term {term}  ended before it began")?,
            Some(log) => {
                let end = match log.committed {
                    None => "nothing committed".to_owned(),
                    Some(FOR_EVER) => "ended cleanly".to_owned(),
                    Some(end) => format!("committed through epoch {end}"),
                };
                let (peers, config, lines) = (log.header.peers, &log.header.config, log.ranges.len());
                writeln!(out, "term {term}  {peers} workers, configuration {config}, {lines} ranges, {end}")?;
            }
        }
    }
    Ok(())
}

fn epochs(out: &mut impl Write, layout: &Layout) -> Result<()> {
    for line in epoch_lines(&RealFs, layout)? {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// The epoch log of all terms, one JSON value per line of it: what an independent program needs to replay it.
pub fn epoch_lines(fs: &dyn Fs, layout: &Layout) -> Result<Vec<Value>> {
    let mut lines = Vec::new();
    let history = History::read(fs, &layout.logs, None)?;
    for place in history.manifest.iter().flat_map(|manifest| &manifest.set_aside) {
        lines.push(json!({ "set_aside": place }));
    }
    for term in &history.all {
        let Some(log) = read_term(fs, layout, &history, *term)? else { continue };
        // A term in which nothing was closed had no effect.
        if log.committed.is_none() {
            continue;
        }
        lines.push(json!({ "term": { "processes": log.header.processes } }));
        for (epoch, range) in &log.ranges {
            let (source, topic) = &log.header.streams[usize::from(range.stream)];
            lines.push(json!({ "range": {
                "epoch": epoch, "source": source, "topic": topic, "partition": range.partition, "next": range.next,
                "records": range.records,
            } }));
        }
        for (epoch, control) in &log.controls {
            match control {
                Control::Term { .. } => {}
                Control::Deaf { process } => lines.push(json!({ "deaf": { "epoch": epoch, "process": process } })),
                Control::Hearing { process } => {
                    lines.push(json!({ "hearing": { "epoch": epoch, "process": process } }));
                }
            }
        }
        lines.push(json!({ "end": { "epoch": log.boundary() - 1 } }));
    }
    Ok(lines)
}

/// What counts of a term's logs.
fn read_term(fs: &dyn Fs, layout: &Layout, history: &History, term: u64) -> Result<Option<TermLog>> {
    epoch_log::read_term(fs, &layout.logs, term, &Known { ends: history.ends(term), marks: Vec::new() })
}

fn newest(layout: &Layout) -> Result<Restored> {
    let history = History::read(&RealFs, &layout.logs, None)?;
    let counts = |r: &Restored| history.counts(r.name(), &r.logs());
    let newest = checkpoint::find(&RealFs, &layout.checkpoints, counts, |_| Ok(()))?;
    for (dir, what) in &newest.damaged {
        tracing::error!(checkpoint = %dir.display(), what, "checkpoint is damaged; an older one is shown");
    }
    newest.restored.ok_or_else(|| anyhow::anyhow!("{} holds no checkpoint", layout.checkpoints.display()))
}

fn pure_of(fs: &dyn Fs, layout: &Layout, hash: &str) -> Result<Pure> {
    let text = String::from_utf8(fs.read(&layout.configs.join(format!("{hash}.toml")))?)?;
    Pure::parse(&text).map_err(anyhow::Error::msg)
}

/// A series' statistics, by window.
pub type SeriesStats = (SeriesName, Vec<(Window, Stats)>);

/// The rolling statistics that a checkpoint holds, sorted by name.
pub fn rolling_stats(fs: &dyn Fs, layout: &Layout, restored: &Restored) -> Result<Vec<SeriesStats>> {
    let resolved = Resolved::new(&pure_of(fs, layout, &restored.manifest.config)?);
    let dictionary = SharedDictionary::default();
    let mut rolling = Rolling::new(resolved.windows.clone(), Rc::new(resolved.plan), dictionary.clone());
    for (group, bytes) in restored.groups(crate::nodes::operator::ROLLING, |_| true) {
        rolling.load(group, bytes)?;
    }
    let dictionary = dictionary.borrow();
    let mut all: Vec<SeriesStats> = (0..dictionary.len() as u32)
        .map(|series| {
            (dictionary.name(series).clone(), resolved.windows.iter().copied().zip(rolling.stats(series)).collect())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

fn rolling(out: &mut impl Write, layout: &Layout) -> Result<()> {
    for (name, windows) in rolling_stats(&RealFs, layout, &newest(layout)?)? {
        for (window, s) in windows {
            let window = match window {
                Window::Time { us } => format!("{}s", us as f64 / 1e6),
                Window::Count { n } => format!("last {n}"),
            };
            let line = json!({
                "sensor": &*name.sensor, "metric": &*name.metric, "window": window, "count": s.count, "mean": s.mean,
                "stddev": s.stddev, "min": s.min, "max": s.max, "rate": s.rate, "ewma": s.ewma,
            });
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

fn show(out: &mut impl Write, layout: &Layout, as_json: bool) -> Result<()> {
    let restored = newest(layout)?;
    let manifest = &restored.manifest;
    let positions: Vec<_> = restored.positions().collect();
    let lanes: Vec<&Value> = restored.processes.iter().flat_map(|(meta, _)| &meta.lanes).collect();
    if as_json {
        let all = json!({ "manifest": manifest, "positions": positions, "lanes": lanes, "totals": restored.totals() });
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    writeln!(out, "checkpoint  {}", restored.dir.display())?;
    writeln!(out, "cut         {} of term {}", cut_text(manifest.cut), manifest.term)?;
    writeln!(out, "written by  {} workers in {} processes", manifest.peers, manifest.processes)?;
    writeln!(out, "rules of    configuration {}, semantics version {}", manifest.config, manifest.semantics)?;
    for p in positions {
        writeln!(out, "position    {} {}/{} next offset {}", p.source, p.topic, p.partition, p.next)?;
    }
    for lane in lanes {
        writeln!(out, "lane        {lane}")?;
    }
    if let Some(totals) = restored.totals() {
        writeln!(out, "totals      {totals}")?;
    }
    Ok(())
}

fn verify(out: &mut impl Write, layout: &Layout) -> Result<(), Failure> {
    let mut bad = 0;
    let corrupt = |e: anyhow::Error| Failure::state(format!("{e:#}"));
    let say = |out: &mut dyn Write, line: String| writeln!(out, "{line}").map_err(|e| corrupt(e.into()));
    for dir in checkpoint::list(&RealFs, &layout.checkpoints).map_err(corrupt)? {
        if !checkpoint::is_complete(&RealFs, &dir) {
            say(out, format!("{}  not completed; it never counted", dir.display()))?;
            continue;
        }
        match checkpoint::load(&RealFs, &dir) {
            Ok(_) => say(out, format!("{}  sound", dir.display()))?,
            Err(error) => {
                bad += 1;
                say(out, format!("{}  damaged: {error:#}", dir.display()))?;
            }
        }
    }
    match History::read(&RealFs, &layout.logs, None) {
        Ok(history) => {
            // With what checkpoints and later terms know of it.
            let soundly = |term: u64| -> Result<LogEnds> {
                let mut known = Known { ends: history.ends(term), marks: Vec::new() };
                for dir in checkpoint::list(&RealFs, &layout.checkpoints)? {
                    let marks = checkpoint::marks(&RealFs, &dir).filter(|(name, _)| name.term == term);
                    known
                        .marks
                        .extend(marks.filter(|(name, m)| history.counts(*name, m)).map_or_else(Vec::new, |m| m.1));
                }
                let log = epoch_log::read_term(&RealFs, &layout.logs, term, &known)?;
                Ok(log.map_or_else(LogEnds::new, |log| log.torn))
            };
            for term in &history.all {
                match soundly(*term) {
                    Ok(torn) => {
                        say(out, format!("term {term}  sound"))?;
                        for (process, LogEnd { segment, length, .. }) in torn {
                            let what = "what follows was not on the disk when the machine stopped; it does not count";
                            say(out, format!("  process {process}, segment {segment}, byte {length}: {what}"))?;
                        }
                    }
                    Err(error) => {
                        bad += 1;
                        say(out, format!("term {term}  damaged: {error:#}"))?;
                    }
                }
            }
        }
        Err(error) => {
            bad += 1;
            say(out, format!("terms  damaged: {error:#}"))?;
        }
    }
    if bad > 0 {
        return Err(Failure::state(format!("{bad} damaged; an older checkpoint is used where there is one")));
    }
    Ok(())
}
