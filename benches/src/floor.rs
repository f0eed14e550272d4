//! The floor: reads every record and counts its bytes. Nothing that reads Kafka through librdkafka costs less.

use crate::batch::share_out;
use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Records.
    pub records: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

/// Reads a topic from its beginning to the end that it has at the start.
pub fn run(bootstrap: &str, topic: &str, threads: usize) -> Result<Read> {
    let consumers = share_out(bootstrap, topic, threads)?;
    let threads: Vec<_> = consumers
        .into_iter()
        .map(|mut batches| {
            std::thread::spawn(move || -> Result<Read> {
                let mut read = Read::default();
                while batches.take(|payload| {
                    read.records += 1;
                    read.bytes += payload.len() as u64;
                })? {}
                Ok(read)
            })
        })
        .collect();
    let mut all = Read::default();
    for thread in threads {
        let read = thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        all.records += read.records;
        all.bytes += read.bytes;
    }
    Ok(all)
}
