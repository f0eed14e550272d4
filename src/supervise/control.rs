//! The end of the supervisor's socket that a process holds, as its standard input.

use crate::error::{Exit, Failure};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the supervisor says to have a process stop.
pub const STOP: &[u8] = b"stop\n";

/// What a process learns of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// Where each waits for the others, on loopback.
    pub ports: Vec<u16>,
    /// The secret of this start.
    pub secret: [u8; 32],
}

impl Handed {
    /// As it is said.
    pub fn line(&self) -> String {
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        let secret: String = self.secret.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{secret} {}\n", ports.join(" "))
    }

    /// As it is heard.
    pub fn read(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let text = words.next().filter(|text| text.len() == 64 && text.is_ascii())?;
        let mut secret = [0; 32];
        for (byte, at) in secret.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        }
        let ports = words.map(|port| port.parse().ok()).collect::<Option<Vec<u16>>>()?;
        Some(Self { ports, secret })
    }
}

type Stop = Box<dyn Fn() + Send>;

#[derive(Default)]
struct Asked {
    stop: AtomicBool,
    tell: Mutex<Option<Stop>>,
}

/// What a process has of its supervisor.
pub struct Control {
    socket: UnixStream,
    handed: Mutex<Receiver<Handed>>,
    asked: Arc<Asked>,
}

impl Control {
    /// Takes standard input for the supervisor's socket. From here on the process ends with the supervisor.
    pub fn start() -> Result<Self, Failure> {
        let cannot = |e: std::io::Error| Failure::configuration(format!("--supervised: standard input: {e}"));
        let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(cannot)?);
        // Anything but a socket is a person who typed the flag.
        socket.local_addr().map_err(cannot)?;
        let reader = BufReader::new(socket.try_clone().map_err(cannot)?);
        let (hand, handed) = channel();
        let asked = Arc::new(Asked::default());
        let heard = Arc::clone(&asked);
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if line.as_bytes() == STOP.trim_ascii_end() {
                    heard.stop.store(true, SeqCst);
                    if let Some(tell) = &*heard.tell.lock().unwrap_or_else(PoisonError::into_inner) {
                        tell();
                    }
                } else if let Some(all) = Handed::read(&line) {
                    let _ = hand.send(all);
                }
            }
            alone();
        });
        Ok(Self { socket, handed: Mutex::new(handed), asked })
    }

    /// Called when the supervisor wants this process to stop; at once, if it has said so already.
    pub fn on_stop(&self, tell: impl Fn() + Send + 'static) {
        let mut place = self.asked.tell.lock().unwrap_or_else(PoisonError::into_inner);
        if self.asked.stop.load(SeqCst) {
            tell();
        }
        *place = Some(Box::new(tell));
    }

    /// Says where this process waits, and waits until all have said so.
    pub fn exchange(&self, port: u16, patience: Duration) -> Result<Handed, Failure> {
        let handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = (&self.socket).write_all(format!("{port}\n").as_bytes());
        let end = Instant::now() + patience;
        loop {
            match handed.recv_timeout(Duration::from_millis(20)) {
                Ok(all) => return Ok(all),
                Err(RecvTimeoutError::Timeout) if self.asked.stop.load(SeqCst) => return Err(Failure::stopped()),
                Err(_) if Instant::now() > end => {
                    return Err(Failure::unreachable("the supervisor does not say where the other processes are"));
                }
                Err(_) => {}
            }
        }
    }
}

/// The supervisor is gone. Whoever killed it wants no orderly end, and a new one may be about to start.
fn alone() {
    let _ = writeln!(std::io::stderr(), "error: the supervisor is gone; this process ends, too");
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(1));
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    });
    std::process::exit(Exit::Unreachable as i32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_arrives_and_nothing_else_does() {
        let handed = Handed { ports: vec![1, 65535, 2101], secret: std::array::from_fn(|n| n as u8 * 7) };
        assert_eq!(Handed::read(&handed.line()), Some(handed.clone()));
        let (secret, _) = handed.line().split_once(' ').map(|(s, p)| (s.to_owned(), p.to_owned())).expect("two parts");
        for line in ["", "stop", "12 1 2", &format!("{secret} 1 x"), &format!("{secret} 70000"), &"é".repeat(32)] {
            assert_eq!(Handed::read(line), None, "{line}");
        }
    }
}
