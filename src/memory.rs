//! How `memory` is divided: what a process may hold that is on its way from a source to its sinks.
//!
//! | share | for what |
//! |---|---|
//! | 64 MiB | the program itself: code, threads, clients, buffers of a constant size |
//! | 1/2 of the rest | the lanes, which hold up to three times their `memory`: what waits, what a destination may still forget, and the segment that is being written |
//! | 1/4 | records that are fetched ahead; librdkafka needs some four times their bytes |
//! | 1/8 | readings between the source and the last operator |
//! | 1/16 | records that a replay has read before their turn |
//! | 1/16 | rows that are being made into files and requests |
//!
//! State is not among it: it follows from series, identities and windows, and is bounded by `limits` and `dedup.window`. A
//! checkpoint needs it once more, as it is written; twice for as long as a lane takes no cut (`checkpoint::Gathering`).

/// What the program takes before anything is on its way.
const ITSELF: u64 = 64 << 20;
/// The least that `memory` can be.
pub const LEAST: u64 = 128 << 20;
/// A reading on its way, with what keeps account of it.
const READING: u64 = 160;
/// No more than this is fetched ahead by a consumer, or read before its turn: more does not make it faster.
const AHEAD_MOST: u64 = 32 << 20;
/// No more than this is under way in a worker.
const READINGS_MOST: u64 = 200_000;

/// What a worker may have on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes of records that a replay has read before their turn.
    pub early: u64,
    /// Readings that may be under way before it waits for the dataflow.
    pub readings: usize,
}

/// The memory of a process, divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// For each worker.
    pub room: Room,
    /// Bytes that a consumer, one per worker and source, may fetch ahead.
    pub ahead: u64,
    /// The sum of all lanes' `memory`.
    pub lanes: u64,
}

impl Memory {
    /// Divides so many bytes.
    pub fn of(bytes: u64, workers: usize, sources: usize) -> Self {
        let (workers, sources) = (workers.max(1) as u64, sources.max(1) as u64);
        let rest = bytes.max(LEAST) - ITSELF;
        Self {
            room: Room {
                early: (rest / 16 / workers).min(AHEAD_MOST),
                readings: (rest / 8 / workers / READING).clamp(1_000, READINGS_MOST) as usize,
            },
            ahead: (rest / 4 / 4 / workers / sources).clamp(256 << 10, AHEAD_MOST),
            lanes: rest / 2 / 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_no_more_than_there_is() {
        for mib in [128, 256, 1024, 8192] {
            for (workers, sources) in [(1, 1), (2, 1), (4, 2)] {
                let Memory { room, ahead, lanes } = Memory::of(mib << 20, workers, sources);
                let (w, s) = (workers as u64, sources as u64);
                let sum = ITSELF + w * room.early + w * room.readings as u64 * READING + w * s * ahead * 4 + lanes * 3;
                assert!(sum <= mib << 20, "{mib} MiB, {workers} workers: {sum}");
            }
        }
    }

    #[test]
    fn the_default_leaves_a_usual_plant_as_fast_as_it_is() {
        let memory = Memory::of(1 << 30, 2, 1);
        assert_eq!(memory.room.readings, 200_000);
        assert!(memory.ahead >= 30 << 20 && memory.lanes >= 5 * (32 << 20));
    }
}
