//! Several processes as one cluster: how they find each other, prove who they are, and end together.
//!
//! Timely's own start of a cluster trusts whoever connects, waits for ever, and panics when a peer dies. Here `join`
//! makes the connections and timely is handed them: `handshake` (mutual, by a secret), `facts` (what must be alike),
//! `link` and `pulse` (a peer's death is a sentence, not a panic), `fate` (who has ended, and how). What goes over the
//! connections afterwards is neither encrypted nor signed.

pub mod facts;
pub mod fate;
pub mod handshake;
pub mod join;
pub mod link;
mod pulse;
pub mod secret;

use crate::error::Failure;
use fate::Fate;
use link::Link;
use pulse::{Saying, Word};
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

pub use join::{Joining, join};

/// How long the last words have to be said.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// The other processes, once all have joined.
pub struct Mesh {
    index: usize,
    fate: Arc<Fate>,
    links: Mutex<Vec<Option<Link>>>,
    voices: Vec<UnboundedSender<Saying>>,
    /// By process: by how many milliseconds its wall clock is ahead of ours.
    ahead_ms: Vec<i64>,
}

impl Mesh {
    /// The connections for timely's messages, by process; given out once.
    pub fn take_links(&self) -> Vec<Option<Link>> {
        std::mem::take(&mut *self.links.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// This process.
    pub fn index(&self) -> usize {
        self.index
    }
    /// By how many milliseconds the fastest wall clock is ahead of ours.
    pub fn fastest_ahead_ms(&self) -> u64 {
        self.ahead_ms.iter().copied().max().map_or(0, |ahead| ahead.max(0).unsigned_abs())
    }
    /// By how many milliseconds process 0's wall clock is ahead of ours.
    pub fn first_ahead_ms(&self) -> i64 {
        self.ahead_ms.first().copied().unwrap_or(0)
    }
    /// Tells of the first process that is lost, also if it is already.
    pub fn on_loss(&self, tell: impl Fn(&Failure) + Send + 'static) {
        self.fate.on_loss(Box::new(tell));
    }
    /// The first process that was lost.
    pub fn failure(&self) -> Option<Failure> {
        self.fate.failure()
    }
    /// All are asked to stop.
    pub fn stop(&self) {
        self.tell(&Word::Stop, None);
    }
    /// The workers of this process have ended in order.
    pub fn finished(&self) {
        self.tell(&Word::Finished, None);
    }
    /// This process ends: in order, or with a reason that the others are told.
    pub fn leave(&self, failure: Option<&Failure>) {
        let word = match failure {
            None => Word::Bye,
            Some(Failure { code, message }) => Word::Failed(*code, message.clone()),
        };
        // It waits until the words are on their way; not for long.
        let (said, all_said) = mpsc::channel();
        self.tell(&word, Some(said));
        let end = std::time::Instant::now() + LAST_WORDS;
        while let Some(left) = end.checked_duration_since(std::time::Instant::now()) {
            if all_said.recv_timeout(left).is_err() {
                return;
            }
        }
    }

    fn tell(&self, word: &Word, said: Option<mpsc::Sender<()>>) {
        for voice in &self.voices {
            let _ = voice.send(Saying { word: word.clone(), said: said.clone() });
        }
    }
}

/// The addresses of all processes: from a file with one a line, or on this machine. Without a secret only on this
/// machine.
pub fn addresses(hostfile: Option<&Path>, processes: usize, has_secret: bool) -> Result<Vec<String>, Failure> {
    let Some(path) = hostfile else {
        return Ok((0..processes).map(|process| format!("127.0.0.1:{}", FIRST_PORT + process)).collect());
    };
    let wrong = |what: String| Failure::configuration(format!("--hostfile {}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let lines: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if lines.len() < processes {
        let found = lines.len();
        return Err(wrong(format!(
            "it names {found} addresses, but there are {processes} processes; write one line for each"
        )));
    }
    for line in &lines[..processes] {
        if !line.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
            return Err(wrong(format!("`{line}` is no host:port")));
        }
        let local = || line.to_socket_addrs().is_ok_and(|mut found| found.all(|address| address.ip().is_loopback()));
        if !has_secret && !local() {
            return Err(wrong(format!(
                "`{line}` is not on this machine, and others may reach it; set mesh.secret_file (or --secret-file) on \
                 every host to a copy of one file, made with: {}",
                secret::HOW
            )));
        }
    }
    Ok(lines.into_iter().take(processes).collect())
}

/// Without a hostfile, process p waits for others at this port plus p.
const FIRST_PORT: usize = 2101;

#[cfg(test)]
mod tests;
