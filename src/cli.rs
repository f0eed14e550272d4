//! The command line: what can be typed, and what every command needs before it begins.

use crate::config::{self, Interval, Loaded, MessageFormat, Overrides, Report};
use crate::error::Failure;
use crate::progress::ReadingBar;
use crate::run::{RunOptions, Summary};
use crate::supervise::{self, control::Control};
use clap::{Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Version and commit, as `--version` prints them.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("STREAMGAUGE_COMMIT"), ")");

/// Reads sensor readings from Kafka, drops duplicates, judges rules, sends alerts to Redis, archives.
///
/// The alerts depend on the input and the rules, never on crashes, workers or arrival.
#[derive(Debug, Parser)]
#[command(name = "streamgauge", version = VERSION, subcommand_required = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 2 configuration, 3 cannot reach or authenticate, 4 state corrupt or an invariant broken"
)]
pub struct Cli {
    /// What every command takes
    #[command(flatten)]
    pub global: Global,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Global {
    /// A configuration file; several add up, later ones override [default: streamgauge.toml, if there is one]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Where state lies; goes before the configuration's data_dir
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// How log lines on standard error look
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Which log lines are written: error, warn, info, debug, trace, or by module as in info,streamgauge::sink=debug [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How mistakes in the configuration look
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    pub message_format: MessageFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// How the summary at the end looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SummaryFormat {
    /// A sentence
    #[default]
    Text,
    /// One JSON object
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, and it is moved once")]
pub enum Command {
    /// Everything in this process, nothing installed: simulated sensors, alerts as they happen
    Demo(crate::demo::Args),
    /// Reads, judges, alerts, archives, until it is told to stop
    Run(RunArgs),
    /// Everything that run does up to the first record: configuration, connections, a sample of messages
    Check(CheckArgs),
    /// Sends simulated or recorded readings into Kafka
    Produce(crate::produce::Args),
    /// Lists or follows alerts
    Alerts(crate::alerts_cmd::Args),
    /// Shows what a message decodes to, or why not
    Decode(crate::decode::cmd::Args),
    /// Lists or shows what was set aside
    DeadLetters(crate::dead_letters::Args),
    /// Looks into the state directory
    State(crate::state_cmd::Args),
    /// Prints the configuration's JSON schema, or writes the generated pages
    Schema(SchemaArgs),
}

/// `run`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RunArgs {
    /// Worker threads in this process; goes before the configuration's workers
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// Start this many processes on this machine, and all of them again when one dies
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), conflicts_with_all = ["processes_total", "process", "hostfile", "replay"])]
    pub processes: Option<u16>,
    /// How many processes there are in all
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub processes_total: u16,
    /// Which of them this one is, from 0
    #[arg(short, long, value_name = "P", default_value_t = 0)]
    pub process: u16,
    /// A file with one host:port per process; without it they are on this machine, from port 2101 on
    #[arg(long, value_name = "FILE")]
    pub hostfile: Option<PathBuf>,
    /// A file with the secret that all processes hold; goes before the configuration's mesh.secret_file
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Read to the offsets that are the end now, deliver everything, and end
    #[arg(long)]
    pub until_end: bool,
    /// End after this much time, such as 15s
    #[arg(long = "for", value_name = "TIME", value_parser = interval)]
    pub for_time: Option<Interval>,
    /// What to print at the end
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub summary: SummaryFormat,
    /// This process was started by `--processes`, which is at the other end of its standard input
    #[arg(long, hide = true)]
    pub supervised: bool,
    /// Run the epoch log again, with the configuration that was in force; the journal goes to this directory
    #[arg(long, value_name = "DIR")]
    pub replay: Option<PathBuf>,
}

/// `check`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CheckArgs {
    /// Connect to nothing: for CI
    #[arg(long)]
    pub no_connect: bool,
    /// Warnings are mistakes, too
    #[arg(long)]
    pub deny_warnings: bool,
}

/// `schema`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SchemaArgs {
    /// Write docs/configuration.md, docs/metrics.md, streamgauge.schema.json and config/default.toml below the working directory
    #[arg(long, conflicts_with = "check")]
    pub write: bool,
    /// Fail if one of them is not what would be written
    #[arg(long)]
    pub check: bool,
}

/// The whole program: the exit code that a supervisor sees, after what went wrong has been printed once.
pub fn main() -> ExitCode {
    match dispatch(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Where standard error is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {failure}");
            ExitCode::from(failure.code as u8)
        }
    }
}

/// Does what was typed.
fn dispatch(cli: &Cli) -> Result<(), Failure> {
    let global = &cli.global;
    let process = match &cli.command {
        Command::Run(run) if run.processes_total > 1 || run.supervised => Some(run.process),
        _ => None,
    };
    global.start_logging(process)?;
    match &cli.command {
        Command::Demo(args) => crate::demo::run(args),
        // Of several, which one it was belongs to what went wrong.
        Command::Run(args) => run(args, global).map_err(|failure| match process {
            Some(process) => Failure { message: format!("process {process}: {failure}"), ..failure },
            None => failure,
        }),
        Command::Check(args) => crate::check::run(args, global),
        Command::Produce(args) => crate::produce::run(args),
        Command::Alerts(args) => crate::alerts_cmd::run(args, &global.data_dir()?).map_err(told),
        Command::Decode(args) => crate::decode::cmd::run(args, &global.load(&global.overrides())?.config),
        Command::DeadLetters(args) => crate::dead_letters::run(args, &global.data_dir()?).map_err(told),
        Command::State(args) => crate::state_cmd::run(args, &global.data_dir()?),
        Command::Schema(args) => crate::docs_gen::run(args),
    }
}

/// An error that has no exit code of its own is one of what was asked for.
fn told(error: anyhow::Error) -> Failure {
    match error.downcast::<Failure>() {
        Ok(failure) => failure,
        Err(error) => Failure::configuration(format!("{error:#}")),
    }
}

fn run(args: &RunArgs, global: &Global) -> Result<(), Failure> {
    args.check()?;
    let control = if args.supervised { Some(Arc::new(Control::start()?)) } else { None };
    let loaded = global.load(&args.overrides(global))?;
    if let Some(processes) = args.processes {
        return supervise::run(usize::from(processes), &arguments(std::env::args_os().skip(1)));
    }
    let bar = (args.until_end || args.replay.is_some()).then(ReadingBar::new);
    let options = RunOptions {
        bar: bar.clone(),
        processes: usize::from(args.processes_total),
        process: usize::from(args.process),
        hostfile: args.hostfile.clone(),
        control,
        until_end: args.until_end,
        stop_after: args.for_time.map(Interval::std),
        replay_into: args.replay.clone(),
        serve: args.replay.is_none(),
        signals: true,
        ..RunOptions::default()
    };
    let ended = crate::run::run(&loaded, options);
    if let Some(bar) = bar {
        bar.finish();
    }
    let summary = ended?;
    if args.supervised && args.process > 0 {
        // Process 0 counts for all.
        return Ok(());
    }
    let line = match args.summary {
        SummaryFormat::Text => in_words(&summary),
        SummaryFormat::Json => serde_json::to_string(&summary).unwrap_or_default(),
    };
    // Alerts may have standard output to themselves, but the summary was asked for or is for people.
    let _ = match args.summary {
        SummaryFormat::Text => writeln!(std::io::stderr(), "{line}"),
        SummaryFormat::Json => writeln!(std::io::stdout(), "{line}"),
    };
    Ok(())
}

/// The end of a run in a sentence.
fn in_words(summary: &Summary) -> String {
    let Summary { records, accepted, behind, duplicates, late, future, dead_letters, alerts, .. } = summary;
    let mut line = format!(
        "{records} records: {accepted} readings accepted ({behind} behind), {duplicates} duplicates, {late} late, \
         {future} future, {dead_letters} dead letters; {alerts} alert changes; {:.1} s, {:.1} s of CPU, {:.0} MB at most",
        summary.seconds, summary.cpu_seconds, summary.peak_rss_mb
    );
    for (sink, items) in &summary.undelivered {
        line += &format!("; {items} wait for sinks.{sink} until the next run");
    }
    line
}

/// What was typed, without `--processes`.
fn arguments(typed: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut value_follows = false;
    let keeps = |argument: &OsString| {
        let text = argument.to_str().unwrap_or_default();
        let (was_value, is_flag) = (std::mem::take(&mut value_follows), text == "--processes");
        value_follows = is_flag;
        !was_value && !is_flag && !text.starts_with("--processes=")
    };
    typed.filter(keeps).collect()
}

/// Writes log lines to standard error, each with the index of its process before it.
struct Lines {
    process: Option<u16>,
    json: bool,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let labelled = match self.process {
            Some(process) if self.json => {
                line.strip_prefix(b"{").map(|rest| (format!("{{\"process\":{process},"), rest))
            }
            Some(process) => Some((format!("p{process} "), line)),
            None => None,
        };
        // One write for a line, so that lines of several processes do not mix.
        match labelled {
            Some((label, rest)) => std::io::stderr().write_all(&[label.as_bytes(), rest].concat())?,
            None => std::io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

fn interval(text: &str) -> Result<Interval, String> {
    match text.parse::<Interval>() {
        Ok(interval) if interval.is_zero() => Err("it is no time at all; write 15s".into()),
        other => other,
    }
}

impl RunArgs {
    /// What the flags say that the type of each alone cannot.
    pub fn check(&self) -> Result<(), Failure> {
        if self.process >= self.processes_total {
            return Err(Failure::configuration(format!(
                "-p {} is not one of -n {} processes, which count from 0",
                self.process, self.processes_total
            )));
        }
        Ok(())
    }
    /// What goes before the configuration.
    pub fn overrides(&self, global: &Global) -> Overrides {
        Overrides {
            workers: self.workers.map(usize::from),
            secret_file: self.secret_file.clone(),
            ..global.overrides()
        }
    }
}

impl Global {
    /// What goes before the configuration.
    pub fn overrides(&self) -> Overrides {
        Overrides { data_dir: self.data_dir.clone(), ..Overrides::default() }
    }

    /// The files that make the configuration.
    pub fn files(&self) -> Result<Vec<PathBuf>, Failure> {
        if !self.config.is_empty() {
            return Ok(self.config.clone());
        }
        match config::default_file() {
            Some(path) => Ok(vec![path]),
            None => Err(Failure::configuration(
                "no configuration: name a file with -c, or put a streamgauge.toml here (streamgauge demo needs none)",
            )),
        }
    }

    /// Loads the configuration and prints what is odd about it; or everything that is wrong with it.
    pub fn load(&self, overrides: &Overrides) -> Result<Loaded, Failure> {
        match config::load(&self.files()?, &config::environment, overrides) {
            Ok(mut loaded) => {
                self.print(&loaded.report);
                loaded.report.clear();
                Ok(loaded)
            }
            Err(report) => {
                self.print(&report);
                Err(Failure::configuration(report.summary()))
            }
        }
    }

    /// The data directory alone, for commands that need no more: flag, environment, configuration, default.
    pub fn data_dir(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.data_dir {
            return Ok(path.clone());
        }
        if let Some(path) = config::environment("STREAMGAUGE_DATA_DIR") {
            return Ok(path.into());
        }
        if self.config.is_empty() && config::default_file().is_none() {
            return Ok(config::Config::default().data_dir);
        }
        Ok(self.load(&self.overrides())?.config.data_dir)
    }

    /// Prints what was found, each once.
    pub fn print(&self, report: &Report) {
        let mut out = std::io::stderr().lock();
        let colour = std::io::stderr().is_terminal() && config::environment("NO_COLOR").is_none();
        // Where standard error is closed there is nobody to tell.
        let _ = out.write_all(report.render(self.message_format, colour).as_bytes());
    }

    /// Sends log lines to standard error, of several processes each with its index.
    pub fn start_logging(&self, process: Option<u16>) -> Result<(), Failure> {
        let level = self.log_level.clone().or_else(|| config::environment("STREAMGAUGE_LOG_LEVEL"));
        let level = level.as_deref().unwrap_or("info");
        let filter = tracing_subscriber::EnvFilter::try_new(level).map_err(|error| {
            Failure::configuration(format!(
                "--log-level {level}: {error}; write error, warn, info, debug or trace, or info,streamgauge::sink=debug"
            ))
        })?;
        let json = self.log_format == LogFormat::Json;
        let lines = tracing_subscriber::fmt()
            .with_writer(move || Lines { process, json })
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .with_env_filter(filter);
        let started = match self.log_format {
            LogFormat::Text => lines.try_init(),
            LogFormat::Json => lines.json().flatten_event(true).try_init(),
        };
        started.map_err(|error| Failure::configuration(format!("logging: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_are_taken_before_and_behind_the_command() {
        let cli = Cli::parse_from(["streamgauge", "-c", "a.toml", "run", "-w", "4", "-c", "b.toml", "--for", "15s"]);
        assert_eq!(cli.global.config.last(), Some(&PathBuf::from("b.toml")));
        let Command::Run(run) = &cli.command else { panic!("not run") };
        assert_eq!((run.workers, run.for_time), (Some(4), Some(Interval::seconds(15))));
        assert_eq!(run.overrides(&cli.global).workers, Some(4));
    }

    #[test]
    fn a_supervised_process_is_given_what_was_typed() {
        let typed = ["-c", "a.toml", "run", "--processes", "3", "-w", "2", "--processes=4", "--until-end"];
        let given: Vec<_> =
            arguments(typed.iter().map(Into::into)).into_iter().chain(["-n", "3", "-p", "1"].map(Into::into)).collect();
        let cli = Cli::parse_from(std::iter::once("streamgauge".into()).chain(given));
        let Command::Run(run) = &cli.command else { panic!("not run") };
        assert_eq!((run.workers, run.processes, run.processes_total, run.process), (Some(2), None, 3, 1));
        assert!(run.until_end);
        assert!(Cli::try_parse_from(["streamgauge", "run", "--processes", "2", "-p", "1"]).is_err());
    }

    #[test]
    fn a_process_is_one_of_those_there_are() {
        let run = |n, p| RunArgs { processes_total: n, process: p, ..RunArgs::default() };
        assert!(run(2, 1).check().is_ok());
        assert_eq!(run(2, 2).check().unwrap_err().message, "-p 2 is not one of -n 2 processes, which count from 0");
        assert!(Cli::try_parse_from(["streamgauge", "run", "-w", "0"]).is_err());
        assert!(Cli::try_parse_from(["streamgauge", "run", "--for", "0s"]).is_err());
    }
}
