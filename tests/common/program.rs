//! The program as a person starts it.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The program with these arguments; nothing of the environment reaches its configuration.
pub fn streamgauge(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamgauge"));
    command.args(args).env_remove("STREAMGAUGE_DATA_DIR").env_remove("STREAMGAUGE_LISTEN").stdin(Stdio::null());
    command
}

/// Runs it to its end; its output is shown where it fails.
pub fn succeed(args: &[&str]) -> Output {
    let output = streamgauge(args).output().expect("the program starts");
    assert!(
        output.status.success(),
        "streamgauge {args:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a configuration to the end of what is there; the summary.
pub fn run_until_end(config: &Path, more: &[&str]) -> Value {
    let config = config.display().to_string();
    let mut args = vec!["run", "-c", &config, "--until-end", "--summary", "json"];
    args.extend(more);
    summary(&succeed(&args))
}

/// The summary that a run printed: the last line of its standard output.
pub fn summary(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().expect("a summary");
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
}

/// Starts it, without waiting.
pub fn start(args: &[&str]) -> Child {
    streamgauge(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// The journal of a data directory.
pub fn journal(data: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(data.join("journal.jsonl")).expect("a journal");
    text.lines().map(str::to_owned).collect()
}

/// The folder of data that lies beside a developer's clone and CI's. A test that lacks it says so; `.ci/run` fails then.
pub fn shared_data() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    if !folder.exists() {
        println!("LEFT OUT: there is no ../shared/data here");
        return None;
    }
    Some(folder)
}

/// A free port on loopback. It lies below those that the system gives to clients (from 32,768 on, on Linux): a port of
/// those is free now, and some connection's own end a moment later.
pub fn free_port() -> u16 {
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..10_000).map(|_| fastrand::u16(10_240..30_240)).find(free).expect("a port")
}

/// A free port on loopback whose next is free, too: process p of several adds p to the port of its page.
pub fn free_pair() -> u16 {
    let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..1_000).map(|_| free_port()).find(|port| *port < u16::MAX && free(*port + 1)).expect("two ports")
}
