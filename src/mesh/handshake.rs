//! How two processes prove to each other that they hold one secret, before either acts on a word of the other.
//!
//! Four messages; whoever connects speaks first:
//!
//! ```text
//! hello      magic, 32 random bytes                                    ──▶
//! challenge                                     ◀── magic, 32 random bytes, wall clock
//! claim      length, who I am and what I run (JSON), HMAC-SHA256       ──▶
//! answer                                        ◀── length, welcome or a sentence (JSON), HMAC-SHA256
//! ```
//!
//! Each HMAC is over a label and every byte so far, so over both sides' fresh random bytes: what was recorded in one
//! handshake opens no other, and an answer cannot be turned into a claim. No JSON is read before its HMAC is right. Where
//! the claim's is wrong, the answer has length 0 and proves nothing: it is a hint.
//!
//! Bytes in, bytes out: no socket, no clock, no randomness. The fuzz target includes this file as it stands.

use super::facts::Facts;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::fmt;

/// The first bytes of both sides: what we are, and the version of this exchange.
pub const MAGIC: [u8; 8] = *b"SGMESH01";
/// Random bytes of each side.
pub const NONCE: usize = 32;
/// The length of a hello.
pub const HELLO: usize = MAGIC.len() + NONCE;
/// The length of a challenge.
pub const CHALLENGE: usize = HELLO + 8;
/// The length of an HMAC.
pub const MAC: usize = 32;
/// The longest claim or answer.
pub const BODY_MAX: usize = 4096;

const CLAIM_LABEL: &[u8] = b"streamgauge mesh claim\0";
const ANSWER_LABEL: &[u8] = b"streamgauge mesh answer\0";

/// The secret that all processes of a cluster hold.
#[derive(Clone)]
pub struct Key(Vec<u8>);

impl Key {
    /// Takes the secret in.
    pub fn new(secret: &[u8]) -> Self {
        Self(secret.to_vec())
    }
    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        parts.iter().for_each(|part| mac.update(part));
        mac
    }
    fn seal(&self, parts: &[&[u8]]) -> [u8; MAC] {
        self.mac(parts).finalize().into_bytes().into()
    }
    /// In constant time: how long it takes says nothing about where the first wrong byte is.
    fn is_sealed(&self, parts: &[&[u8]], seal: &[u8; MAC]) -> bool {
        self.mac(parts).verify_slice(seal).is_ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Which of a pair's two connections this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Signs of life, and how each side ends.
    Pulse,
    /// Timely's messages.
    Data,
}

/// What the connecting side says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Its index.
    pub from: usize,
    /// The index of the process that it wants to reach.
    pub to: usize,
    /// What the connection is for.
    pub kind: Kind,
    /// What must be alike.
    pub facts: Facts,
    /// By how many milliseconds the other's wall clock is ahead of its own.
    pub ahead_ms: i64,
    /// How wrong that may be: half of the way there and back.
    pub unsure_ms: u64,
}

/// What the accepting side makes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// The connection is in use from here on.
    Welcome,
    /// Not now: try again.
    NotNow(String),
    /// Not like this: what must be alike is not.
    Mismatch(String),
    /// The clocks differ too much.
    Clocks(String),
}

/// Why there is no handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Not one of ours.
    Stranger,
    /// The HMAC is wrong: another secret, or somebody without one.
    Secret,
    /// The HMAC is right, and what it seals makes no sense.
    Nonsense,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stranger => "what answers there is no streamgauge of this version",
            Self::Secret => "it holds another secret",
            Self::Nonsense => "it holds our secret, but what it says makes no sense: do all processes run one version?",
        })
    }
}

/// A body with its length before it and its HMAC behind it.
fn sealed(body: &[u8], seal: &[u8; MAC]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + body.len() + MAC);
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    bytes.extend(seal);
    bytes
}

/// How much follows a length: the body and its HMAC. None for a length that no honest side sends.
pub fn body_length(prefix: [u8; 4]) -> Option<usize> {
    let length = u32::from_le_bytes(prefix) as usize;
    (length <= BODY_MAX).then_some(length + MAC)
}

/// Splits what followed a length.
fn split(rest: &[u8]) -> Result<(&[u8], &[u8; MAC]), Broken> {
    rest.split_last_chunk::<MAC>().ok_or(Broken::Stranger)
}

/// The connecting side, after its hello.
#[derive(Debug)]
pub struct Connecting {
    key: Key,
    hello: [u8; HELLO],
}

/// The connecting side, after its claim.
#[derive(Debug)]
pub struct Claiming {
    key: Key,
    /// Everything so far.
    past: Vec<u8>,
}

impl Connecting {
    /// Begins; the hello is to be sent.
    pub fn new(key: Key, nonce: [u8; NONCE]) -> (Self, [u8; HELLO]) {
        let mut hello = [0; HELLO];
        hello[..MAGIC.len()].copy_from_slice(&MAGIC);
        hello[MAGIC.len()..].copy_from_slice(&nonce);
        (Self { key, hello }, hello)
    }

    /// The challenge has come: makes the claim, which is told the other's wall clock in milliseconds.
    pub fn challenged(
        self,
        challenge: &[u8; CHALLENGE],
        claim: impl FnOnce(u64) -> Claim,
    ) -> Result<(Claiming, Vec<u8>), Broken> {
        let (head, wall) = challenge.split_last_chunk::<8>().ok_or(Broken::Stranger)?;
        // Our own hello come back to us is nobody's challenge.
        if !head.starts_with(&MAGIC) || head == self.hello {
            return Err(Broken::Stranger);
        }
        let body = serde_json::to_vec(&claim(u64::from_le_bytes(*wall))).map_err(|_| Broken::Nonsense)?;
        if body.len() > BODY_MAX {
            return Err(Broken::Nonsense);
        }
        let seal = self.key.seal(&[CLAIM_LABEL, &self.hello, challenge, &body]);
        let bytes = sealed(&body, &seal);
        let past = [&self.hello[..], challenge, &bytes].concat();
        Ok((Claiming { key: self.key, past }, bytes))
    }
}

impl Claiming {
    /// The answer has come, what followed its length: what the other side makes of us, and that it holds the secret.
    pub fn answered(self, rest: &[u8]) -> Result<Answer, Broken> {
        let (body, seal) = split(rest)?;
        if body.is_empty() || !self.key.is_sealed(&[ANSWER_LABEL, &self.past, body], seal) {
            return Err(Broken::Secret);
        }
        serde_json::from_slice(body).map_err(|_| Broken::Nonsense)
    }
}

/// The accepting side, after its challenge.
#[derive(Debug)]
pub struct Accepting {
    key: Key,
    hello: [u8; HELLO],
    challenge: [u8; CHALLENGE],
}

/// The accepting side, after a claim that holds the secret.
#[derive(Debug)]
pub struct Answering {
    key: Key,
    /// Everything so far.
    past: Vec<u8>,
}

impl Accepting {
    /// A hello has come; the challenge is to be sent.
    pub fn new(
        key: Key,
        nonce: [u8; NONCE],
        wall_ms: u64,
        hello: [u8; HELLO],
    ) -> Result<(Self, [u8; CHALLENGE]), Broken> {
        if !hello.starts_with(&MAGIC) {
            return Err(Broken::Stranger);
        }
        let mut challenge = [0; CHALLENGE];
        challenge[..MAGIC.len()].copy_from_slice(&MAGIC);
        challenge[MAGIC.len()..HELLO].copy_from_slice(&nonce);
        challenge[HELLO..].copy_from_slice(&wall_ms.to_le_bytes());
        Ok((Self { key, hello, challenge }, challenge))
    }

    /// The claim has come, what followed its length.
    pub fn claimed(self, rest: &[u8]) -> Result<(Answering, Claim), Broken> {
        let (body, seal) = split(rest)?;
        if !self.key.is_sealed(&[CLAIM_LABEL, &self.hello, &self.challenge, body], seal) {
            return Err(Broken::Secret);
        }
        let claim = serde_json::from_slice(body).map_err(|_| Broken::Nonsense)?;
        let past = [&self.hello[..], &self.challenge, &sealed(body, seal)].concat();
        Ok((Answering { key: self.key, past }, claim))
    }
}

impl Answering {
    /// The answer, as it is to be sent.
    pub fn answer(&self, answer: &Answer) -> Vec<u8> {
        let body = serde_json::to_vec(answer).unwrap_or_default();
        let seal = self.key.seal(&[ANSWER_LABEL, &self.past, &body]);
        sealed(&body, &seal)
    }
}

/// The answer to a claim whose HMAC is wrong. It proves nothing, and tells an honest process why it is not let in.
pub fn hint() -> Vec<u8> {
    sealed(&[], &[0; MAC])
}
