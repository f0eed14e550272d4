//! The connection that timely's messages take, made so that a peer's death is no panic.
//!
//! Timely's threads panic when a connection ends before its time, which takes the workers down wherever they are. Here
//! such an end is told to [`Fate`], and the thread stops where it is: the workers are told to leave, let no capability go
//! that would say something is complete, and the process ends with a sentence.

use super::fate::Fate;
use crate::error::Failure;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use timely::communication::allocator::zero_copy::stream::Stream;

/// How long the pulse has to say why a connection ended, before the end itself is the reason. A process that dies closes
/// both at once; one that ends in order may be held up between closing the one and saying so over the other.
const VERDICT: Duration = Duration::from_secs(5);

/// A connection to a peer.
pub struct Link {
    stream: TcpStream,
    peer: usize,
    fate: Arc<Fate>,
}

impl Link {
    /// Over a connection that has been through the handshake.
    pub fn new(stream: TcpStream, peer: usize, fate: Arc<Fate>) -> Self {
        Self { stream, peer, fate }
    }

    /// The connection has ended otherwise than in order: says so, and never returns. The process is about to end.
    fn lost(&self, how: &str) -> ! {
        if self.fate.wait(self.peer, VERDICT) != Some(false) {
            self.fate.closed(self.peer, || gone(self.peer, how));
        }
        loop {
            std::thread::park();
        }
    }
}

/// What a process says whose peer has died.
pub fn gone(peer: usize, how: &str) -> Failure {
    Failure::unreachable(format!(
        "process {peer} is gone ({how}); this one ends, too, and all go on from the last checkpoint when they are started \
         again"
    ))
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stream.read(buffer) {
            // Timely's own end of a stream, but only after the peer's workers have ended in order.
            Ok(0) if !buffer.is_empty() => match self.fate.wait(self.peer, VERDICT) {
                Some(true) => Ok(0),
                _ => self.lost("it closed its connection"),
            },
            Err(error) if error.kind() != io::ErrorKind::Interrupted => self.lost(&error.to_string()),
            result => result,
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stream.write(bytes) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => self.lost(&error.to_string()),
            result => result,
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Stream for Link {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()?, peer: self.peer, fate: Arc::clone(&self.fate) })
    }
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.stream.set_nonblocking(nonblocking)
    }
    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self.stream.shutdown(how) {
            // It is closed already: the reading side finds out how.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }
}
