//! Where records come from: partitioned logs that can be read again from any offset.

pub mod interner;
pub mod kafka;
pub mod node;
pub mod origin;
pub mod replay;

use operators::Stream;

/// A record as it lies in the source's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The number of its (source, topic).
    pub stream: Stream,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: i64,
    /// Its time stamp, milliseconds since 1970, if the source has them.
    pub timestamp: Option<i64>,
    /// Its bytes; none for a tombstone.
    pub payload: Option<&'a [u8]>,
}

/// One worker's view of its partitions.
pub trait Source {
    /// Reads this partition from `offset` on.
    fn assign(&mut self, stream: Stream, partition: u32, offset: i64) -> Result<(), SourceError>;
    /// Reads no more of this partition until it is assigned again.
    fn hold(&mut self, stream: Stream, partition: u32) -> Result<(), SourceError>;
    /// Hands over the records that are ready, `limit` at most, without waiting; those of a partition in order of offset.
    fn poll(&mut self, limit: usize, each: &mut dyn FnMut(Record<'_>)) -> Result<usize, SourceError>;
    /// The partition's end (the offset that its next record will have), as far as is known without asking.
    fn end(&self, stream: Stream, partition: u32) -> Option<i64>;
    /// The offset at which the partition's end was met. Beyond its last record there may be offsets without one.
    fn reached_end(&self, stream: Stream, partition: u32) -> Option<i64>;
    /// Lets people's lag tools know: everything before `next` is durable downstream. Never waits.
    fn commit(&mut self, stream: Stream, partition: u32, next: i64);
    /// Whether the source can be reached, as far as is known.
    fn up(&self) -> bool;
    /// Whether to wake the worker when records come; without, it looks at the end of each tick. False: it cannot be done
    /// without, as one poll does not hand over all that is there.
    fn rouse(&mut self, _on: bool) -> bool {
        false
    }
}

/// What can go wrong with a source.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// Passing: the source goes on trying by itself.
    #[error("{0}")]
    Unavailable(String),
    /// Final: records that are needed are gone, or access is refused.
    #[error("{0}")]
    Fatal(String),
}

/// A source without partitions: what stands in while a node works on its own.
pub struct NoSource;

impl Source for NoSource {
    fn assign(&mut self, _: Stream, _: u32, _: i64) -> Result<(), SourceError> {
        Ok(())
    }
    fn hold(&mut self, _: Stream, _: u32) -> Result<(), SourceError> {
        Ok(())
    }
    fn poll(&mut self, _: usize, _: &mut dyn FnMut(Record<'_>)) -> Result<usize, SourceError> {
        Ok(0)
    }
    fn end(&self, _: Stream, _: u32) -> Option<i64> {
        None
    }
    fn reached_end(&self, _: Stream, _: u32) -> Option<i64> {
        None
    }
    fn commit(&mut self, _: Stream, _: u32, _: i64) {}
    fn up(&self) -> bool {
        true
    }
}
