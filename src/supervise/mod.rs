//! `run --processes N`: starts the processes of one machine, and starts all of them again when one dies.
//!
//! Each process is this program with `-n N -p P`. It is given a socket as its standard input: over it, it says at which
//! port it waits for the others, learns theirs and a secret made for this start, and is told to stop; when it ends, the
//! supervisor is gone, and the process ends, too. So no port is guessed, and nobody is left behind.

pub mod control;

use crate::error::{Exit, Failure};
use crate::mesh::secret;
use crate::run::STOPS_WITHIN;
use control::Handed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How often is looked after the processes.
const LOOK: Duration = Duration::from_millis(20);
/// How long those that are left have to end by themselves after one has died.
const FOLLOW: Duration = Duration::from_secs(1);
/// How much longer than its own time a stop is waited for.
const SPARE: Duration = Duration::from_secs(5);
/// Before all are started again: the first time, and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));
/// After so long without a death the next one is the first again.
const WELL: Duration = Duration::from_secs(60);

/// Runs `count` processes with these arguments until all have ended well, or it is no use to start them again.
pub fn run(count: usize, arguments: &[OsString]) -> Result<(), Failure> {
    let signals = Arc::new(AtomicUsize::new(0));
    let _runtime = count_signals(&signals)?;
    let mut back_off = BACK_OFF.0;
    loop {
        let began = Instant::now();
        let mut family = Family::start(count, arguments)?;
        let ends = family.watch(&signals);
        let stopping = signals.load(SeqCst) > 0;
        match verdict(&ends, stopping) {
            Verdict::Done => return Ok(()),
            Verdict::Look(failure) => return Err(failure),
            Verdict::Again(why) => {
                if began.elapsed() >= WELL {
                    back_off = BACK_OFF.0;
                }
                tracing::warn!(why, wait_s = back_off.as_secs_f64(), "all processes are started again");
                let until = Instant::now() + back_off;
                while Instant::now() < until {
                    if signals.load(SeqCst) > 0 {
                        return Ok(());
                    }
                    std::thread::sleep(LOOK.min(back_off));
                }
                back_off = (back_off * 2).min(BACK_OFF.1);
            }
        }
    }
}

/// Counts what asks us to stop.
fn count_signals(signals: &Arc<AtomicUsize>) -> Result<tokio::runtime::Runtime, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let cannot = |e: std::io::Error| Failure::unreachable(format!("signals: {e}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(cannot)?;
    let _guard = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut stream = signal(kind).map_err(cannot)?;
        let signals = Arc::clone(signals);
        runtime.spawn(async move {
            while stream.recv().await.is_some() {
                signals.fetch_add(1, SeqCst);
            }
        });
    }
    drop(_guard);
    Ok(runtime)
}

/// What the ends of all processes come to.
#[derive(Debug)]
enum Verdict {
    Done,
    /// Starting again mends nothing.
    Look(Failure),
    Again(String),
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
struct End {
    status: ExitStatus,
    /// Because it did not end by itself.
    killed: bool,
}

fn verdict(ends: &[End], stopping: bool) -> Verdict {
    for (process, end) in ends.iter().enumerate() {
        if let Some(code @ (2 | 4)) = end.status.code() {
            let message = format!(
                "process {process} ended with exit code {code}, which starting again does not mend: see what it said"
            );
            return Verdict::Look(Failure { code: Exit::from_code(code as u8), message });
        }
    }
    // One that was killed, or ended for a reason of its own, says more than those that followed it.
    let bad = ends.iter().enumerate().filter(|(_, end)| !end.status.success());
    let Some((process, end)) = bad.max_by_key(|(_, end)| (!end.killed, end.status.code() != Some(3))) else {
        return Verdict::Done;
    };
    let how = match (end.status.code(), end.status.signal()) {
        (Some(code), _) => format!("process {process} ended with exit code {code}"),
        (None, Some(signal)) => format!("process {process} was ended by signal {signal}"),
        (None, None) => format!("process {process} ended"),
    };
    if stopping { Verdict::Look(Failure::unreachable(format!("{how} while it stopped"))) } else { Verdict::Again(how) }
}

/// The processes of one start.
struct Family {
    members: Vec<Member>,
    /// Where each waits for the others, as they say it.
    ports: Receiver<(usize, u16)>,
    known: Vec<Option<u16>>,
    handed_over: bool,
}

struct Member {
    child: Child,
    socket: UnixStream,
    end: Option<End>,
    killed: bool,
}

impl Family {
    fn start(count: usize, arguments: &[OsString]) -> Result<Self, Failure> {
        let cannot = |e: std::io::Error| Failure::unreachable(format!("cannot start a process: {e}"));
        let program = std::env::current_exe().map_err(cannot)?;
        let (say, ports) = channel();
        let mut members = Vec::new();
        for process in 0..count {
            let (ours, theirs) = UnixStream::pair().map_err(cannot)?;
            let mut command = Command::new(&program);
            command.args(arguments).arg("-n").arg(count.to_string()).arg("-p").arg(process.to_string());
            // A group of its own: Ctrl-C is the supervisor's to pass on.
            command.arg("--supervised").stdin(Stdio::from(OwnedFd::from(theirs))).process_group(0);
            let child = command.spawn();
            let socket = ours.try_clone().map_err(cannot)?;
            let say = say.clone();
            std::thread::spawn(move || {
                let mut line = String::new();
                let read = BufReader::new(ours).read_line(&mut line);
                if let (Ok(_), Ok(port)) = (read, line.trim().parse()) {
                    let _ = say.send((process, port));
                }
            });
            match child {
                Ok(child) => members.push(Member { child, socket, end: None, killed: false }),
                Err(error) => {
                    // Those that have started end with their sockets.
                    return Err(cannot(error));
                }
            }
        }
        tracing::info!(processes = count, pids = ?members.iter().map(|m| m.child.id()).collect::<Vec<_>>(), "started");
        Ok(Self { members, ports, known: vec![None; count], handed_over: false })
    }

    /// Waits for the end of all; the end of one brings about that of the others.
    fn watch(&mut self, signals: &AtomicUsize) -> Vec<End> {
        let mut kill_at: Option<Instant> = None;
        let mut told = false;
        loop {
            self.hand_over();
            let asked = signals.load(SeqCst);
            if asked > 0 && !told {
                told = true;
                tracing::info!("stopping all processes");
                for member in &mut self.members {
                    let _ = member.socket.write_all(control::STOP);
                }
                kill_at = Some(Instant::now() + STOPS_WITHIN + SPARE);
            }
            if asked > 1 {
                kill_at = Some(Instant::now());
            }
            for (process, member) in self.members.iter_mut().enumerate().filter(|(_, m)| m.end.is_none()) {
                // What cannot be asked is gone.
                let end = member.child.try_wait().unwrap_or_else(|_| Some(ExitStatus::from_raw(0)));
                if let Some(end) = end {
                    if !end.success() && !told {
                        tracing::warn!(process, %end, "a process has ended");
                        kill_at.get_or_insert(Instant::now() + FOLLOW);
                    }
                    member.end = Some(End { status: end, killed: member.killed });
                }
            }
            if let Some(ends) = self.members.iter().map(|member| member.end).collect() {
                return ends;
            }
            if kill_at.is_some_and(|at| Instant::now() >= at) {
                for member in self.members.iter_mut().filter(|member| member.end.is_none()) {
                    // Its pid is its own until it has been waited for.
                    let pid = Pid::from_raw(i32::try_from(member.child.id()).unwrap_or(0));
                    member.killed = true;
                    if pid.as_raw() > 0 {
                        let _ = kill(pid, Signal::SIGKILL);
                    }
                }
                kill_at = Some(Instant::now() + FOLLOW);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Once all have said where they wait, each is told where the others are.
    fn hand_over(&mut self) {
        if self.handed_over {
            return;
        }
        while let Ok((process, port)) = self.ports.try_recv() {
            self.known[process] = Some(port);
        }
        let Some(ports) = self.known.iter().copied().collect::<Option<Vec<u16>>>() else { return };
        self.handed_over = true;
        let Ok(secret) = secret::random() else { return };
        let line = Handed { ports, secret }.line();
        for member in &mut self.members {
            // One that is gone meanwhile is found by its end.
            let _ = member.socket.write_all(line.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_starting_again_does_not_mend_is_not_started_again() {
        let code = |code: i32| End { status: ExitStatus::from_raw(code << 8), killed: false };
        let signal = |signal: i32, killed: bool| End { status: ExitStatus::from_raw(signal), killed };
        let word = |ends: &[End], stopping| match verdict(ends, stopping) {
            Verdict::Done => "done".to_owned(),
            Verdict::Look(failure) => format!("{:?}: {failure}", failure.code),
            Verdict::Again(why) => format!("again: {why}"),
        };
        assert_eq!(word(&[code(0), code(0)], false), "done");
        assert!(word(&[code(3), code(4)], false).starts_with("Corrupt: process 1 ended with exit code 4"));
        assert!(word(&[code(2), signal(9, true)], false).starts_with("Configuration: process 0"));
        assert_eq!(word(&[code(3), signal(9, false)], false), "again: process 1 was ended by signal 9");
        assert_eq!(word(&[code(3), signal(9, true)], false), "again: process 0 ended with exit code 3");
        assert_eq!(word(&[code(3), code(0)], false), "again: process 0 ended with exit code 3");
        assert_eq!(word(&[code(0), code(3)], true), "Unreachable: process 1 ended with exit code 3 while it stopped");
    }
}
