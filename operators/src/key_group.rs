//! Which of the 4,096 key groups a sensor belongs to, for ever, and which worker owns a group now.
//!
//! Metric and labels never enter: all metrics of a sensor meet on one worker. Groups go to workers in contiguous runs,
//! so that a change of the number of workers reads contiguous files.

use xxhash_rust::xxh3::xxh3_64;

/// The number of key groups.
pub const KEY_GROUPS: u16 = 4096;

/// The key group of a sensor: XXH3-64, seed 0, of its bytes.
pub fn key_group(sensor: &[u8]) -> u16 {
    (xxh3_64(sensor) % u64::from(KEY_GROUPS)) as u16
}

/// The worker that owns `group` when there are `peers` workers.
pub fn worker_of(group: u16, peers: usize) -> usize {
    usize::from(group) * peers / usize::from(KEY_GROUPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sensors_group_never_changes() {
        // Written down, because state on disk is laid out by it.
        for (sensor, group) in [("", 1218), ("s-1", 2075), ("b-17", 1564)] {
            assert_eq!(key_group(sensor.as_bytes()), group, "{sensor:?}");
        }
    }

    #[test]
    fn every_worker_owns_one_run_of_groups() {
        for peers in [1, 2, 3, 4, 7, 64, 4096] {
            let owners: Vec<_> = (0..KEY_GROUPS).map(|g| worker_of(g, peers)).collect();
            assert!(owners.is_sorted());
            assert_eq!((owners[0], owners[4095]), (0, peers - 1));
            let mut distinct = owners;
            distinct.dedup();
            assert_eq!(distinct.len(), peers);
        }
    }
}
