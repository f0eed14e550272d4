//! How often a test does what it does, and where it says how often it has done it.
#![allow(dead_code, reason = "each test binary includes this file and uses some of it")]

use std::io::Write;

/// A number that the environment asks for.
pub fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.replace('_', "").parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// So many of these went well: a line in the table that SG_TESTED names (`TESTED.md`, in `make torture`), where it names
/// one. SG_COMMAND is what repeats it.
pub fn tested(what: &str, count: u64, note: &str) {
    println!("{what}: {count}, {note}");
    let Some(path) = std::env::var_os("SG_TESTED") else { return };
    let command = std::env::var("SG_COMMAND").unwrap_or_else(|_| "cargo test".to_owned());
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M");
    // Three in three says nothing.
    let bound = if count > 3 { format!("{:.2} %", 300.0 / count as f64) } else { "-".to_owned() };
    let line = format!("| {date} | {what} | {count} | {bound} | {note} | `{command}` |\n");
    let file = std::fs::OpenOptions::new().append(true).open(&path);
    file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
