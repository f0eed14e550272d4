//! Keeps the producer from running away from the reader.
//!
//! The in-process broker holds 5 MiB per partition and evicts the oldest records beyond that without a word: a record
//! that was not read in time would be lost. So the producer waits while a partition lags.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A partition may lag this much.
const LAG_MAX: u64 = 2 << 20;
/// What a record costs the broker beyond its bytes, at the most.
const OVERHEAD: u64 = 80;

#[derive(Default)]
struct Partition {
    /// The offset of the next record sent: we are its only producer, in order and without repetition.
    next: i64,
    unread: VecDeque<(i64, u64)>,
    unread_bytes: u64,
}

/// Bytes sent and not yet read, by partition.
pub struct Gate {
    partitions: Mutex<Vec<Partition>>,
    moved: Condvar,
}

impl Gate {
    /// For partitions 0 to `partitions` - 1, all empty.
    pub fn new(partitions: u32) -> Self {
        Self { partitions: Mutex::new((0..partitions).map(|_| Partition::default()).collect()), moved: Condvar::new() }
    }
    fn lock(&self) -> MutexGuard<'_, Vec<Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record of so many bytes was sent.
    pub fn sent(&self, partition: u32, bytes: usize) {
        if let Some(p) = self.lock().get_mut(partition as usize) {
            let bytes = bytes as u64 + OVERHEAD;
            p.unread.push_back((p.next, bytes));
            p.unread_bytes += bytes;
            p.next += 1;
        }
    }
    /// Everything before `next` was read.
    pub fn read(&self, partition: u32, next: i64) {
        if let Some(p) = self.lock().get_mut(partition as usize) {
            while let Some((_, bytes)) = p.unread.pop_front_if(|(offset, _)| *offset < next) {
                p.unread_bytes -= bytes;
            }
        }
        self.moved.notify_all();
    }
    /// Waits until the partition has room; false: it has none after this time.
    pub fn wait_for_room(&self, partition: u32, time: Duration) -> bool {
        self.wait(time, |all| all.get(partition as usize).is_none_or(|p| p.unread_bytes <= LAG_MAX))
    }
    /// Waits until everything has been read; false: it has not been after this time.
    pub fn wait_until_read(&self, time: Duration) -> bool {
        self.wait(time, |all| all.iter().all(|p| p.unread.is_empty()))
    }
    fn wait(&self, time: Duration, done: impl Fn(&[Partition]) -> bool) -> bool {
        let deadline = Instant::now() + time;
        let mut partitions = self.lock();
        loop {
            if done(&partitions) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            partitions = self.moved.wait_timeout(partitions, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_partition_that_lags_two_mebibytes_has_no_room_until_it_is_read() {
        let gate = Gate::new(2);
        while gate.wait_for_room(1, Duration::ZERO) {
            gate.sent(1, 1_000);
        }
        assert!((LAG_MAX..LAG_MAX + 2_000).contains(&gate.lock()[1].unread_bytes));
        assert!(gate.wait_for_room(0, Duration::ZERO), "the other one is not concerned");
        gate.read(1, 1);
        assert!(gate.wait_for_room(1, Duration::ZERO));
        assert!(!gate.wait_until_read(Duration::ZERO));
        gate.read(1, i64::MAX);
        assert_eq!(gate.lock()[1].unread_bytes, 0);
        assert!(gate.wait_until_read(Duration::ZERO));
    }

    #[test]
    fn who_waits_is_woken_by_the_reader() {
        let gate = Arc::new(Gate::new(1));
        gate.sent(0, 10);
        let reader = gate.clone();
        let thread = std::thread::spawn(move || reader.read(0, 1));
        assert!(gate.wait_until_read(Duration::from_secs(60)));
        thread.join().unwrap();
    }
}
