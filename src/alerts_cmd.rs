//! `streamgauge alerts`: what is firing, from the running program's API or from the journal's file.

mod journal;

use crate::error::Failure;
use crate::plain::{number, plain, short, span, table, time};
use crate::server::views_api::FiringAlert;
use anyhow::{Context, Result, bail};
use journal::{Journal, Line};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// What fires, who is concerned, since when.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the running program's server listens (process 0's port, where there are several)
    #[arg(long, default_value = "http://127.0.0.1:7070")]
    pub url: String,
    /// Read the journal in the data directory; the program need not run
    #[arg(long)]
    pub journal: bool,
    /// Only alerts of this rule
    #[arg(long)]
    pub rule: Option<String>,
    /// Only alerts of sensors at this site
    #[arg(long, conflicts_with_all = ["journal", "all"])]
    pub site: Option<String>,
    /// Only alerts of this severity
    #[arg(long)]
    pub severity: Option<String>,
    /// Only alerts of this sensor
    #[arg(long)]
    pub sensor: Option<String>,
    /// Resolved alerts, too; from the journal
    #[arg(long)]
    pub all: bool,
    /// Print what fires, then every change as it happens
    #[arg(long)]
    pub follow: bool,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Args, data_dir: &Path) -> Result<()> {
    let out = &mut io::stdout().lock();
    let result = match (args.journal || args.all, args.follow) {
        (true, false) => from_journal(args, data_dir, out),
        (true, true) => follow_journal(args, data_dir, out),
        (false, false) => ask(args).and_then(|answer| write_answer(args, &answer, out)),
        (false, true) => follow_api(args, out),
    };
    match result {
        // Whoever reads has seen enough (`| head`).
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        result => result,
    }
}

/// An alert from its first line to its last.
#[derive(Clone, Debug)]
struct Episode {
    firing: Line,
    /// The event time of its end, and the line that said so.
    resolved: Option<(i64, String)>,
    text: String,
}

impl Args {
    fn admits(&self, line: &Line) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&self.rule, &line.rule) && is(&self.severity, &line.severity) && is(&self.sensor, &line.sensor)
    }
}

/// The journal's episodes in the order of their positions; only those that still fire, unless all are wanted.
fn episodes(args: &Args, journal: &mut Journal) -> Result<Vec<Episode>> {
    let mut episodes = BTreeMap::new();
    let mut place = BTreeMap::new();
    journal.read(|line, text| {
        if !args.admits(&line) {
            return Ok(());
        }
        if line.fires() {
            place.insert(line.alert.clone(), (line.epoch, line.n));
            let text = text.to_owned();
            episodes.insert((line.epoch, line.n), Episode { firing: line, resolved: None, text });
        } else if let Some(at) = place.remove(&line.alert) {
            if args.all {
                if let Some(episode) = episodes.get_mut(&at) {
                    episode.resolved = Some((line.time, text.to_owned()));
                }
            } else {
                episodes.remove(&at);
            }
        }
        Ok(())
    })?;
    Ok(episodes.into_values().collect())
}

fn from_journal(args: &Args, data_dir: &Path, out: &mut dyn Write) -> Result<()> {
    let episodes = episodes(args, &mut Journal::open(data_dir)?)?;
    if args.json {
        for episode in &episodes {
            writeln!(out, "{}", episode.text)?;
            if let Some((_, text)) = &episode.resolved {
                writeln!(out, "{text}")?;
            }
        }
        return Ok(());
    }
    let row = |Episode { firing, resolved, .. }: &Episode| {
        let since = if args.all { firing.start } else { firing.time };
        let mut row =
            row(&firing.severity, &firing.rule, &firing.sensor, "", &firing.metric, firing.value, since, &firing.alert);
        if args.all {
            row.remove(3);
            let end = resolved.as_ref().map(|(end, _)| *end);
            row.insert(6, end.map_or_else(|| "fires".to_owned(), |end| span(end.saturating_sub(firing.start))));
        }
        row
    };
    // The newest first, as from the API.
    let rows: Vec<_> = episodes.iter().rev().map(row).collect();
    if args.all {
        let head = ["severity", "rule", "sensor", "metric", "value", "start (UTC)", "lasted", "alert"];
        write_table(&head, &rows, rows.len(), "no alert in the journal", out)
    } else {
        write_table(&HEAD, &rows, rows.len(), "no alert fires", out)
    }
}

const HEAD: [&str; 8] = ["severity", "rule", "sensor", "site", "metric", "value", "since (UTC)", "alert"];

#[allow(clippy::too_many_arguments)]
fn row(
    severity: &str,
    rule: &str,
    sensor: &str,
    site: &str,
    metric: &str,
    value: Option<f64>,
    since: i64,
    alert: &str,
) -> Vec<String> {
    let value = value.map_or_else(String::new, number);
    let alert = plain(alert).chars().take(8).collect();
    vec![
        short(severity, 12),
        short(rule, 32),
        short(sensor, 32),
        short(site, 20),
        short(metric, 24),
        value,
        time(since),
        alert,
    ]
}

fn write_table(head: &[&str], rows: &[Vec<String>], total: usize, none: &str, out: &mut dyn Write) -> Result<()> {
    if rows.is_empty() {
        writeln!(out, "{none}")?;
        return Ok(());
    }
    let value: Vec<_> = head.iter().position(|name| *name == "value").into_iter().collect();
    // A column that says nothing is left out.
    let used: Vec<usize> = (0..head.len()).filter(|i| rows.iter().any(|row| !row[*i].is_empty())).collect();
    let head: Vec<_> = used.iter().map(|i| head[*i]).collect();
    let cells: Vec<Vec<_>> = rows.iter().map(|row| used.iter().map(|i| row[*i].clone()).collect()).collect();
    let right: Vec<_> = (0..used.len()).filter(|i| value.contains(&used[*i])).collect();
    write!(out, "{}", table(&head, &cells, &right))?;
    if total > rows.len() {
        writeln!(out, "the newest {} of {total}; --rule, --severity, --site or --sensor narrow them down", rows.len())?;
    }
    Ok(())
}

/// The answer of `/api/v1/alerts`.
#[derive(Debug, Deserialize)]
struct Answer {
    total: usize,
    alerts: Vec<FiringAlert>,
}

fn ask(args: &Args) -> Result<Answer> {
    // No proxy: this asks a program of the same network, by default of the same machine.
    let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
    let agent = config.timeout_global(Some(Duration::from_secs(10))).build().new_agent();
    let mut request = agent.get(format!("{}/api/v1/alerts", args.url.trim_end_matches('/'))).query("limit", "10000");
    let filters = [("rule", &args.rule), ("site", &args.site), ("severity", &args.severity), ("sensor", &args.sensor)];
    for (name, value) in filters {
        if let Some(value) = value {
            request = request.query(name, value);
        }
    }
    let unreachable = |why: ureq::Error| {
        let help = "is one running, with this server.listen? `alerts --journal` reads the journal instead";
        Failure::unreachable(format_args!("no streamgauge answers at {}: {why}; {help}", args.url))
    };
    let mut response = request.call().map_err(unreachable)?;
    let body = response.body_mut().read_to_string().map_err(unreachable)?;
    if !response.status().is_success() {
        let error = serde_json::from_str::<serde_json::Value>(&body).ok();
        let error = error.as_ref().and_then(|error| error["error"].as_str()).unwrap_or("it is no streamgauge");
        bail!("{} answers {}: {}", args.url, response.status().as_u16(), plain(error));
    }
    serde_json::from_str(&body).with_context(|| format!("{} answers, but not as streamgauge does", args.url))
}

fn write_answer(args: &Args, answer: &Answer, out: &mut dyn Write) -> Result<()> {
    if args.json {
        for alert in &answer.alerts {
            writeln!(out, "{}", serde_json::to_string(alert)?)?;
        }
        return Ok(());
    }
    let row = |alert: &FiringAlert| {
        let FiringAlert { severity, rule, sensor, site, metric, value, since, alert, .. } = alert;
        row(severity, rule, sensor, site.as_deref().unwrap_or(""), metric, *value, *since, alert)
    };
    let rows: Vec<_> = answer.alerts.iter().map(row).collect();
    write_table(&HEAD, &rows, answer.total, "no alert fires", out)
}

/// One change on one line; a resolved one says how long it lasted, where that is known.
fn change(out: &mut dyn Write, fires: bool, cells: &[&str], lasted: Option<i64>) -> io::Result<()> {
    let [when, severity, rule, sensor, metric, value, alert] = cells else { return Ok(()) };
    let (mark, state) = if fires { ('▲', *severity) } else { ('▼', "resolved") };
    let lasted = lasted.map_or_else(String::new, |lasted| format!("  after {}", span(lasted)));
    let alert: String = plain(alert).chars().take(8).collect();
    let [state, rule, sensor, metric] = [(state, 12), (rule, 32), (sensor, 32), (metric, 24)].map(|(t, w)| short(t, w));
    writeln!(out, "{when}  {mark} {state:<9} {rule:<20} {sensor:<12} {metric:<12} {value:>8}  {alert}{lasted}")?;
    out.flush()
}

fn follow_journal(args: &Args, data_dir: &Path, out: &mut dyn Write) -> Result<()> {
    let mut journal = Journal::open(data_dir)?;
    let write = |line: &Line, text: &str, out: &mut dyn Write| -> Result<()> {
        if args.json {
            writeln!(out, "{text}")?;
            return Ok(out.flush()?);
        }
        let value = line.value.map_or_else(String::new, number);
        let when = time(line.time);
        let cells = [&when, &line.severity, &line.rule, &line.sensor, &line.metric, &value, &line.alert];
        let lasted = (!line.fires()).then(|| line.time.saturating_sub(line.start));
        Ok(change(out, line.fires(), &cells.map(String::as_str), lasted)?)
    };
    if !args.all {
        for episode in episodes(args, &mut journal)? {
            write(&episode.firing, &episode.text, out)?;
        }
    }
    loop {
        journal.read(|line, text| if args.admits(&line) { write(&line, text, out) } else { Ok(()) })?;
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn follow_api(args: &Args, out: &mut dyn Write) -> Result<()> {
    let mut known = BTreeMap::new();
    let mut answer = ask(args)?;
    let mut silent = false;
    loop {
        write_changes(args, &mut known, &answer, out)?;
        answer = loop {
            std::thread::sleep(Duration::from_secs(1));
            match ask(args) {
                Ok(answer) => break answer,
                Err(error) if !silent => {
                    eprintln!("{error:#}; trying again");
                    silent = true;
                }
                Err(_) => (),
            }
        };
        silent = false;
    }
}

/// What began to fire since the last answer, and what no longer does.
fn write_changes(
    args: &Args,
    known: &mut BTreeMap<String, FiringAlert>,
    answer: &Answer,
    out: &mut dyn Write,
) -> Result<()> {
    let now: BTreeMap<String, FiringAlert> = answer.alerts.iter().map(|a| (a.alert.clone(), a.clone())).collect();
    let begun = answer.alerts.iter().rev().filter(|alert| !known.contains_key(&alert.alert)).map(|alert| (true, alert));
    // Where the answer was cut off, an alert that is not in it may still fire.
    let whole = answer.total <= answer.alerts.len();
    let ended = known.values().filter(|alert| whole && !now.contains_key(&alert.alert)).map(|alert| (false, alert));
    for (fires, alert) in ended.chain(begun) {
        if args.json {
            let mut object = serde_json::to_value(alert)?;
            object["state"] = if fires { "firing" } else { "resolved" }.into();
            writeln!(out, "{object}")?;
            out.flush()?;
            continue;
        }
        let (when, value) = if fires {
            (time(alert.since), alert.value.map_or_else(String::new, number))
        } else {
            // The API says that it ended, not when.
            (" ".repeat(19), String::new())
        };
        let cells = [&when, &alert.severity, &alert.rule, &alert.sensor, &alert.metric, &value, &alert.alert];
        change(out, fires, &cells.map(String::as_str), None)?;
    }
    if whole {
        *known = now;
    } else {
        known.extend(now);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
