//! The second connection of each pair: signs of life, a stop that concerns all, and how each side ends.
//!
//! A process that dies closes its connections, which its peers see at once. One that is cut off or frozen closes nothing:
//! there silence is the sign. Nothing that a silent peer has not agreed to is ever complete, so waiting is safe; it only
//! is not useful.

use super::fate::Fate;
use super::link::gone;
use crate::error::{Exit, Failure};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// The longest sentence, bytes.
const SENTENCE_MAX: usize = 4096;

/// What processes tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// I live.
    Beat,
    /// My workers have ended in order.
    Finished,
    /// I was asked to stop: all of us are.
    Stop,
    /// Everything is written: what my connections do from here on means nothing.
    Bye,
    /// I end, and this is why.
    Failed(Exit, String),
}

impl Word {
    fn encode(&self) -> Vec<u8> {
        let (kind, code, text) = match self {
            Self::Beat => (0, 0, ""),
            Self::Finished => (1, 0, ""),
            Self::Stop => (2, 0, ""),
            Self::Bye => (3, 0, ""),
            Self::Failed(code, text) => (4, *code as u8, text.as_str()),
        };
        let text = &text.as_bytes()[..text.floor_char_boundary(SENTENCE_MAX)];
        let mut bytes = vec![kind, code];
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text);
        bytes
    }

    async fn read(reader: &mut OwnedReadHalf) -> io::Result<Self> {
        let mut head = [0; 4];
        reader.read_exact(&mut head).await?;
        let [kind, code, low, high] = head;
        let mut text = vec![0; usize::from(u16::from_le_bytes([low, high]))];
        reader.read_exact(&mut text).await?;
        Ok(match kind {
            0 => Self::Beat,
            1 => Self::Finished,
            2 => Self::Stop,
            3 => Self::Bye,
            4 => Self::Failed(Exit::from_code(code), String::from_utf8_lossy(&text).into_owned()),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "it says what no streamgauge says")),
        })
    }
}

/// Something to say, and who waits until it is said.
pub(super) struct Saying {
    pub word: Word,
    pub said: Option<std::sync::mpsc::Sender<()>>,
}

/// Starts both directions with a peer; `stop` is told when that peer was asked to stop.
pub(super) fn start(
    stream: TcpStream,
    peer: usize,
    fate: Arc<Fate>,
    says: UnboundedReceiver<Saying>,
    silence: Duration,
    stop: Arc<dyn Fn() + Send + Sync>,
) {
    let (reader, writer) = stream.into_split();
    tokio::spawn(speak(writer, says, silence / 16));
    tokio::spawn(listen(reader, peer, fate, silence, stop));
}

async fn speak(mut writer: OwnedWriteHalf, mut says: UnboundedReceiver<Saying>, every: Duration) {
    let mut beat: Interval = interval(every);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let saying = tokio::select! {
            saying = says.recv() => match saying {
                Some(saying) => saying,
                None => return,
            },
            _ = beat.tick() => Saying { word: Word::Beat, said: None },
        };
        // What cannot be said is noticed by the side that listens.
        let written = writer.write_all(&saying.word.encode()).await;
        if let Some(said) = saying.said {
            let _ = said.send(());
        }
        if written.is_err() {
            return;
        }
    }
}

async fn listen(
    mut reader: OwnedReadHalf,
    peer: usize,
    fate: Arc<Fate>,
    silence: Duration,
    stop: Arc<dyn Fn() + Send + Sync>,
) {
    loop {
        match timeout(silence, Word::read(&mut reader)).await {
            Ok(Ok(Word::Beat)) => {}
            Ok(Ok(Word::Finished)) => fate.finished(peer),
            Ok(Ok(Word::Stop)) => {
                tracing::info!(peer, "another process was asked to stop: so does this one");
                stop();
            }
            Ok(Ok(Word::Bye)) => fate.left(peer),
            Ok(Ok(Word::Failed(Exit::Stopped, _))) => {
                return fate.closed(peer, Failure::stopped);
            }
            Ok(Ok(Word::Failed(_, sentence))) => {
                return fate.closed(peer, || gone(peer, &sentence));
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return fate.closed(peer, || gone(peer, "it closed its connection"));
            }
            Ok(Err(error)) => return fate.closed(peer, || gone(peer, &error.to_string())),
            Err(_) => {
                let seconds = silence.as_secs_f64();
                return fate.closed(peer, || gone(peer, &format!("nothing was heard of it for {seconds} s")));
            }
        }
    }
}
