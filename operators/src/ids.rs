//! The identities that one series has accepted and not yet forgotten: exact, in about 40 bytes each.
//!
//! A ring in the order of acceptance. Readings that came behind lie in it out of order of time, so what has expired is
//! dropped from the front only, and whatever is found is held against the cut again. A short ring is scanned; a long
//! one has an index from identity to place. Forgetting follows the series' own clock and no other (R5).

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::collections::VecDeque;
use std::hash::BuildHasher;

/// Beyond this many a scan costs more than a hash ...
const SCANNED: usize = 48;
/// ... and below this many the index goes again.
const INDEXED: usize = 24;

/// An accepted reading, as far as its duplicates need it: 28 bytes.
#[derive(Clone, Copy)]
#[repr(C, packed(4))]
pub(crate) struct Id {
    pub identity: u128,
    /// The event time.
    pub time: i64,
    /// Tells the value from others.
    pub check: u32,
}

impl Id {
    pub fn new(identity: u128, time: i64, value: f64) -> Self {
        // The finalizer of MurmurHash3: a bijection of the value's bits, of which the upper half is kept.
        let mut x = value.to_bits();
        x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        Self { identity, time, check: ((x ^ (x >> 33)) >> 32) as u32 }
    }
    /// Whether it is the same reading in everything, given the same identity.
    pub fn agrees(&self, other: &Self) -> bool {
        (self.time, self.check) == (other.time, other.check)
    }
}

#[derive(Default)]
pub(crate) struct Ids {
    ring: VecDeque<Id>,
    /// The running number of the ring's front; wraps.
    front: u32,
    /// Running numbers by identity. Every entry of the ring is in it.
    index: Option<Box<HashTable<u32>>>,
}

impl Ids {
    pub fn len(&self) -> usize {
        self.ring.len()
    }
    pub fn iter(&self) -> impl Iterator<Item = &Id> {
        self.ring.iter()
    }
    /// The entry of this identity whose time is at or after `cut`.
    #[inline]
    pub fn find(&self, identity: u128, cut: i64, hasher: &RandomState) -> Option<Id> {
        let hit = |id: &Id| id.identity == identity && id.time >= cut;
        match &self.index {
            None => {
                // The newest first: most duplicates are repeated at once.
                let (older, newer) = self.ring.as_slices();
                newer.iter().rev().chain(older.iter().rev()).find(|id| hit(id)).copied()
            }
            Some(index) => {
                let at = |no: &u32| self.ring[no.wrapping_sub(self.front) as usize];
                index.find(hasher.hash_one(identity), |no| hit(&at(no))).map(at)
            }
        }
    }
    /// Lets go of what lies before `cut` at the front, and appends.
    #[inline]
    pub fn push(&mut self, id: Id, cut: i64, hasher: &RandomState) {
        while self.ring.front().is_some_and(|id| id.time < cut) {
            self.pop(hasher);
        }
        if self.ring.len() == self.ring.capacity() {
            // By an eighth and not by doubling: most series hold steady, and memory is what limits their number.
            self.ring.reserve_exact((self.ring.len() / 8).max(4));
        } else if self.ring.capacity() > 64 && self.ring.len() < self.ring.capacity() / 4 {
            self.ring.shrink_to(self.ring.capacity() / 2);
            if let Some(index) = &mut self.index {
                let (ring, front) = (&self.ring, self.front);
                index.shrink_to_fit(|no| hasher.hash_one(ring[no.wrapping_sub(front) as usize].identity));
            }
        }
        let number = self.front.wrapping_add(self.ring.len() as u32);
        self.ring.push_back(id);
        let (ring, front) = (&self.ring, self.front);
        let hash = |no: &u32| hasher.hash_one(ring[no.wrapping_sub(front) as usize].identity);
        match &mut self.index {
            Some(index) => {
                let room = index.num_buckets() / 8 * 7;
                if index.len() == index.capacity() && index.len() <= room / 4 * 3 {
                    // Full of what was removed: it would double, again and again, on a ring that only turns.
                    **index = indexed(ring.len(), front, hash);
                } else {
                    index.insert_unique(hash(&number), number, hash);
                }
            }
            None if ring.len() > SCANNED => {
                self.index = Some(Box::new(indexed(ring.len(), front, hash)));
            }
            None => {}
        }
    }
    fn pop(&mut self, hasher: &RandomState) {
        let Some(id) = self.ring.pop_front() else { return };
        let number = self.front;
        self.front = self.front.wrapping_add(1);
        if let Some(index) = &mut self.index {
            if let Ok(entry) = index.find_entry(hasher.hash_one(id.identity), |no| *no == number) {
                entry.remove();
            }
            if self.ring.len() < INDEXED {
                self.index = None;
            }
        }
    }
    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        self.ring.capacity() * size_of::<Id>() + self.index.as_ref().map_or(0, |i| i.allocation_size())
    }
}

/// The index of a whole ring.
fn indexed(len: usize, front: u32, hash: impl Fn(&u32) -> u64) -> HashTable<u32> {
    let mut index = HashTable::with_capacity(len);
    for number in (0..len as u32).map(|n| front.wrapping_add(n)) {
        index.insert_unique(hash(&number), number, &hash);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_id_costs_about_forty_bytes() {
        assert_eq!(size_of::<Id>(), 28);
        let hasher = RandomState::default();
        for n in [10, 60, 100, 1_000, 10_000, 100_000] {
            let mut ids = Ids::default();
            for i in 0..3 * n {
                ids.push(Id::new(i as u128, i, 0.0), i - n + 1, &hasher);
            }
            assert_eq!(ids.len(), n as usize);
            let each = ids.bytes() as f64 / n as f64;
            println!("{n} ids cost {each:.1} bytes each");
            assert!(each <= 46.0, "{n} ids cost {each} bytes each");
        }
    }

    #[test]
    fn scan_and_index_find_the_same_across_all_lengths() {
        let hasher = RandomState::default();
        let mut ids = Ids { front: u32::MAX - 70, ..Ids::default() };
        for (i, keep) in (0..400i64).zip([1i64, 10, 40, 80, 200, 30, 5, 100].into_iter().cycle()) {
            let cut = i - keep;
            ids.push(Id::new(i as u128 % 150, i, i as f64), cut, &hasher);
            for probe in 0..150u128 {
                let naive = ids.iter().find(|id| { id.identity } == probe && { id.time } >= cut).map(|id| id.time);
                assert_eq!(ids.find(probe, cut, &hasher).map(|id| id.time).is_some(), naive.is_some(), "{i} {probe}");
            }
        }
    }

    #[test]
    fn any_other_value_or_time_disagrees() {
        let id = Id::new(1, 10, 1.5);
        assert!(id.agrees(&Id::new(1, 10, 1.5)));
        for other in
            [Id::new(1, 11, 1.5), Id::new(1, 10, 1.25), Id::new(1, 10, -1.5), Id::new(1, 10, 1.5000000000000002)]
        {
            assert!(!id.agrees(&other));
        }
        assert!(!Id::new(1, 10, 0.0).agrees(&Id::new(1, 10, -0.0)), "bits, not numbers");
    }
}
