//! The identities that one series has accepted and not yet forgotten: exact, in 29 bytes each and what the ring has to spare.
//!
//! A ring in the order of acceptance. Readings that came behind lie in it out of order of time, so what has expired is
//! dropped from the front only, and whatever is found is held against the cut again. Forgetting follows the series' own
//! clock and no other (R5).
//!
//! A short ring has a byte for each id, a hash of it, and these are what a lookup reads, sixteen at a time: an id's own 28
//! bytes are looked at about once in 256 times in vain. Reading the ids themselves was most of what the judge cost, and
//! a hash table for so few costs more memory than the ids' bytes and more time whenever the ring turns. A long ring has
//! an index from identity to place.

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// A ring with room for more than so many has an index.
const SCANNED: usize = 256;
/// The first running number of an index: a ring that has one soon passes over the border of 32 bits, and not after years.
const FIRST: u32 = u32::MAX - 1_000;
/// Tags that are looked at together; there is a whole number of so many.
const TAGS: usize = 16;
/// An id's bytes.
pub(crate) const ID_BYTES: usize = 28;

/// An accepted reading, as far as its duplicates need it: identity (16 bytes), event time (8), and what tells its value
/// from others (4), little-endian. In memory it lies as it is saved, so that saving is copying.
#[derive(Clone, Copy)]
pub(crate) struct Id(pub [u8; ID_BYTES]);

impl Id {
    pub fn new(identity: u128, time: i64, value: f64) -> Self {
        // The finalizer of MurmurHash3: a bijection of the value's bits, of which the upper half is kept.
        let mut x = value.to_bits();
        x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        let mut bytes = [0; ID_BYTES];
        bytes[..16].copy_from_slice(&identity.to_le_bytes());
        bytes[16..24].copy_from_slice(&time.to_le_bytes());
        bytes[24..].copy_from_slice(&(((x ^ (x >> 33)) >> 32) as u32).to_le_bytes());
        Self(bytes)
    }
    #[inline]
    pub fn identity(&self) -> u128 {
        u128::from_le_bytes(self.0.first_chunk().copied().unwrap_or_default())
    }
    #[inline]
    pub fn time(&self) -> i64 {
        i64::from_le_bytes(self.0[16..].first_chunk().copied().unwrap_or_default())
    }
    /// Whether it is the same reading in everything, given the same identity.
    pub fn agrees(&self, other: &Self) -> bool {
        self.0[16..] == other.0[16..]
    }
}

/// A byte for an identity; never 0, which stands for a free place.
#[inline]
fn tag(identity: u128) -> u8 {
    let folded = (identity >> 64) as u64 ^ identity as u64;
    ((folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).max(1)
}

#[derive(Default)]
pub(crate) struct Ids {
    /// The tags of all places, while there is no index; then the ids.
    bytes: Box<[u8]>,
    /// Places.
    room: u32,
    /// The place of the oldest.
    head: u32,
    len: u32,
    index: Option<Box<Index>>,
}

/// Where the ids of a long ring are: running numbers by identity. Every id of the ring is in it.
struct Index {
    /// The number of the oldest; wraps.
    front: u32,
    numbers: HashTable<u32>,
}

impl Ids {
    pub fn len(&self) -> usize {
        self.len as usize
    }
    /// All of them, the oldest first, in two pieces.
    pub fn pieces(&self) -> [&[[u8; ID_BYTES]]; 2] {
        let (_, ids) = self.tags_and_ids();
        let (head, len, room) = (self.head as usize, self.len(), self.room as usize);
        [&ids[head..room.min(head + len)], &ids[..(head + len).saturating_sub(room)]]
    }
    fn tags_and_ids(&self) -> (&[u8], &[[u8; ID_BYTES]]) {
        let (tags, ids) = self.bytes.split_at(self.tag_bytes());
        (tags, ids.as_chunks().0)
    }
    fn tag_bytes(&self) -> usize {
        if self.index.is_some() { 0 } else { (self.room as usize).next_multiple_of(TAGS) }
    }
    /// The place of the n-th, counted from the oldest.
    #[inline]
    fn place(&self, n: u32) -> usize {
        let place = self.head + n;
        (if place < self.room { place } else { place - self.room }) as usize
    }
    /// The id of this identity whose time is at or after `cut`.
    #[inline]
    pub fn find(&self, identity: u128, cut: i64, hasher: &RandomState) -> Option<Id> {
        let (tags, ids) = self.tags_and_ids();
        let hit = |id: &Id| id.identity() == identity && id.time() >= cut;
        if let Some(index) = &self.index {
            let at = |number: &u32| Id(ids[self.place(number.wrapping_sub(index.front))]);
            return index.numbers.find(hasher.hash_one(identity), |number| hit(&at(number))).map(at);
        }
        let wanted = tag(identity);
        for (n, sixteen) in tags.as_chunks::<TAGS>().0.iter().enumerate() {
            // Without an early end, so that it compiles to vectors.
            if sixteen.iter().fold(false, |any, tag| any | (*tag == wanted)) {
                let places = (0..TAGS).filter(|place| sixteen[*place] == wanted).map(|place| Id(ids[n * TAGS + place]));
                if let Some(id) = places.into_iter().find(hit) {
                    return Some(id);
                }
            }
        }
        None
    }
    /// Lets go of what lies before `cut` at the front, and appends.
    #[inline]
    pub fn push(&mut self, id: Id, cut: i64, hasher: &RandomState) {
        while self.len > 0 && Id(self.tags_and_ids().1[self.head as usize]).time() < cut {
            self.pop(hasher);
        }
        let room = self.room as usize;
        if self.len == self.room {
            // By an eighth or less and not by doubling: most series hold steady, and memory is what limits their number.
            let more = room + (room / if room < SCANNED { 8 } else { 16 }).max(4);
            self.resize(if room < SCANNED { more.min(SCANNED) } else { more }, hasher);
        } else if room > 64 && self.len() < room / 4 {
            self.resize(room / 2, hasher);
        }
        let place = self.place(self.len);
        let (tags, ids) = self.bytes.split_at_mut(self.tag_bytes());
        let ids = ids.as_chunks_mut().0;
        ids[place] = id.0;
        match &mut self.index {
            None => tags[place] = tag(id.identity()),
            Some(index) => {
                let number = index.front.wrapping_add(self.len);
                let (room, head, front) = (self.room, self.head, index.front);
                let hash = |number: &u32| {
                    let place = head + number.wrapping_sub(front);
                    hasher.hash_one(Id(ids[(if place < room { place } else { place - room }) as usize]).identity())
                };
                let numbers = &mut index.numbers;
                let full = numbers.num_buckets() / 8 * 7;
                if numbers.len() == numbers.capacity() && numbers.len() <= full / 8 * 7 {
                    // Full of what was removed: it would double on a ring that only turns. Made anew once for each eighth of
                    // it, which is at most seven insertions per id and mostly less than one.
                    *numbers = indexed(front, self.len + 1, hash);
                } else {
                    numbers.insert_unique(hasher.hash_one(id.identity()), number, hash);
                }
            }
        }
        self.len += 1;
    }
    /// Lets go of the oldest.
    fn pop(&mut self, hasher: &RandomState) {
        let place = self.head as usize;
        match &mut self.index {
            None => self.bytes[place] = 0,
            Some(index) => {
                let hash = hasher.hash_one(Id(self.bytes.as_chunks().0[place]).identity());
                if let Ok(entry) = index.numbers.find_entry(hash, |number| *number == index.front) {
                    entry.remove();
                }
                index.front = index.front.wrapping_add(1);
            }
        }
        self.head = if self.head + 1 < self.room { self.head + 1 } else { 0 };
        self.len -= 1;
    }
    /// Moves to a ring with room for `room`, which all ids fit.
    #[cold]
    fn resize(&mut self, room: usize, hasher: &RandomState) {
        let [older, newer] = self.pieces();
        let ids = [older.as_flattened(), newer.as_flattened()].concat();
        let tags = if room > SCANNED { 0 } else { room.next_multiple_of(TAGS) };
        let mut bytes = vec![0; tags + room * ID_BYTES].into_boxed_slice();
        bytes[tags..tags + ids.len()].copy_from_slice(&ids);
        let ids: &[[u8; ID_BYTES]] = ids.as_chunks().0;
        if room > SCANNED {
            if self.index.is_none() {
                let hash = |number: &u32| hasher.hash_one(Id(ids[number.wrapping_sub(FIRST) as usize]).identity());
                self.index = Some(Box::new(Index { front: FIRST, numbers: indexed(FIRST, self.len, hash) }));
            } else if let Some(index) = &mut self.index
                && room < self.room as usize
            {
                let front = index.front;
                let hash = |number: &u32| hasher.hash_one(Id(ids[number.wrapping_sub(front) as usize]).identity());
                index.numbers.shrink_to_fit(hash);
            }
        } else {
            self.index = None;
            for place in 0..self.len() {
                bytes[place] = tag(Id(ids[place]).identity());
            }
        }
        (self.bytes, self.room, self.head) = (bytes, room as u32, 0);
    }
    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.index.as_ref().map_or(0, |i| size_of::<Index>() + i.numbers.allocation_size())
    }
}

/// The index of `len` ids that are numbered from `front` on.
fn indexed(front: u32, len: u32, hash: impl Fn(&u32) -> u64) -> HashTable<u32> {
    let mut index = HashTable::with_capacity(len as usize);
    for number in (0..len).map(|n| front.wrapping_add(n)) {
        index.insert_unique(hash(&number), number, &hash);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_id_costs_less_than_forty_bytes() {
        assert_eq!(size_of::<Ids>(), 40);
        let hasher = RandomState::default();
        for (n, most) in
            [(10, 40.0), (60, 34.0), (100, 34.0), (250, 34.0), (1_000, 41.0), (6_000, 38.0), (100_000, 38.0)]
        {
            let mut ids = Ids::default();
            for i in 0..3 * n {
                ids.push(Id::new(i as u128, i, 0.0), i - n + 1, &hasher);
            }
            assert_eq!(ids.len(), n as usize);
            let each = ids.bytes() as f64 / n as f64;
            println!("{n} ids cost {each:.1} bytes each");
            assert!(each <= most, "{n} ids cost {each} bytes each");
        }
    }

    #[test]
    fn scan_and_index_find_what_a_naive_list_finds_across_all_lengths() {
        let hasher = RandomState::default();
        let mut ids = Ids::default();
        let mut naive: Vec<(u128, i64)> = Vec::new();
        let mut random = 7_u64;
        let (mut clock, mut cut, mut indexed, mut found) = (0, i64::MIN, 0, 0);
        for i in 0..6_000_i64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // The window grows and shrinks over both borders; some readings come behind.
            let keep = [40, 100, 300, 700, 200, 20, 5, 1_000][(i / 750) as usize];
            let time = if random >> 60 == 0 { i - (random >> 33) as i64 % 30 } else { i };
            clock = clock.max(time);
            // As a series' clock, and so its cut, never goes back.
            cut = cut.max(clock - keep);
            let identity = u128::from(random >> 54);
            if ids.find(identity, cut, &hasher).is_none() {
                ids.push(Id::new(identity, time, i as f64), cut, &hasher);
                naive.push((identity, time));
            }
            indexed += i32::from(ids.index.is_some());
            for probe in 0..8 {
                let probe = u128::from((random >> (probe * 5)) % 1024);
                let expected =
                    naive.iter().rev().find(|(id, time)| *id == probe && *time >= cut).map(|(_, time)| *time);
                assert_eq!(ids.find(probe, cut, &hasher).map(|id| id.time()), expected, "{i} {probe}");
                found += i32::from(expected.is_some());
            }
            naive.retain(|(_, time)| *time >= cut);
        }
        assert!(indexed > 1_000 && indexed < 5_000 && found > 1_000, "{indexed} {found}");
    }

    #[test]
    fn numbers_wrap_and_the_pieces_are_in_order_of_acceptance() {
        let hasher = RandomState::default();
        let mut ids = Ids::default();
        for i in 0..2_000_i64 {
            ids.push(Id::new(i as u128, i, 0.0), i - 300, &hasher);
            let times: Vec<i64> = ids.pieces().concat().iter().map(|id| Id(*id).time()).collect();
            assert_eq!(times, ((i - 300).max(0)..=i).collect::<Vec<_>>());
            assert!(ids.find(i as u128, i - 300, &hasher).is_some());
            assert!(ids.find((i - 301).max(-1) as u128, i - 300, &hasher).is_none());
        }
        assert!(ids.index.is_some_and(|index| index.front < FIRST), "it did not wrap");
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
