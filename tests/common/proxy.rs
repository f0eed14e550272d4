//! A line between two ends that can be cut, held, or made slow.
#![allow(dead_code, reason = "each test binary includes this file and uses some of it")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// As fast as it goes.
const WHOLE: u64 = u64::MAX;

#[derive(Default)]
struct Line {
    /// Bytes a second towards the server; 0 holds everything.
    speed: AtomicU64,
    cut: AtomicBool,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

/// Listens on a port of its own, and passes on to another.
pub struct Proxy {
    line: Arc<Line>,
    port: u16,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// To this port on loopback.
    pub fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let own = listener.local_addr().expect("its address").port();
        let line = Arc::new(Line { speed: AtomicU64::new(WHOLE), ..Line::default() });
        let its = Arc::clone(&line);
        let thread = std::thread::spawn(move || accept(&listener, port, &its));
        Proxy { line, port: own, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
    /// Nothing goes through, and nothing is said: the other end waits.
    pub fn hold(&self) {
        self.line.speed.store(0, SeqCst);
    }
    /// So many bytes a second go to the server.
    pub fn slow(&self, bytes_per_second: u64) {
        self.line.speed.store(bytes_per_second, SeqCst);
    }
    /// Every connection ends, in the middle of whatever it carries, and new ones end at once.
    pub fn cut(&self) {
        self.line.cut.store(true, SeqCst);
        self.line.hang_up();
    }
    /// As in the beginning.
    pub fn mend(&self) {
        self.line.speed.store(WHOLE, SeqCst);
        self.line.cut.store(false, SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.line.ended.store(true, SeqCst);
        self.line.hang_up();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Line {
    fn hang_up(&self) {
        for stream in self.open.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, port: u16, line: &Arc<Line>) {
    while let Ok((client, _)) = listener.accept() {
        if line.ended.load(SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
        let twin = |stream: &TcpStream| stream.try_clone().expect("a stream");
        line.open.lock().expect("no panic").extend([twin(&client), twin(&server)]);
        if line.cut.load(SeqCst) {
            line.hang_up();
            continue;
        }
        for (from, to, slowed) in [(twin(&client), twin(&server), true), (server, client, false)] {
            let line = Arc::clone(line);
            std::thread::spawn(move || carry(from, to, slowed, &line));
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, slowed: bool, line: &Line) {
    let _ = from.set_read_timeout(Some(Duration::from_millis(100)));
    let mut buffer = vec![0; 16 << 10];
    let mut begun = Instant::now();
    let mut carried = 0;
    while !line.ended.load(SeqCst) {
        let speed = line.speed.load(SeqCst);
        if speed == 0 {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                if to.write_all(&buffer[..n]).is_err() {
                    break;
                }
                carried += n as u64;
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
        if !slowed || speed == WHOLE {
            (begun, carried) = (Instant::now(), 0);
        } else {
            let due = Duration::from_secs_f64(carried as f64 / speed as f64);
            std::thread::sleep(due.saturating_sub(begun.elapsed()).min(Duration::from_millis(500)));
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
