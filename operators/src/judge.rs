//! The first keyed operator: is a reading in the future, refused, a duplicate, late, or accepted (docs/semantics.md 3)?
//!
//! Everything follows the series' own clock, the newest event time that it has accepted: one stuck gateway makes
//! nobody else late, and an identity is forgotten by its own series and no other. A series that has been silent for
//! `series_ttl` of counted time is forgotten but for its clock, which is what keeps its old readings from being taken
//! for new ones, also after it has returned.

use crate::counted::CountedTime;
use crate::dictionary::SharedDictionary;
use crate::ids::{Id, Ids};
use crate::key_group::KEY_GROUPS;
use crate::state::{Reader, Saves, StateError, Writer, kept, write_series};
use crate::{Batch, Epoch, Judged, Reading, SeriesNo, Verdict};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const NAME: &str = "judge";
const VERSION: u16 = 1;

/// The judge's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgeConfig {
    /// How far behind its series' clock a reading may be and still count, microseconds.
    pub allowed_lateness: i64,
    /// How far behind its series' clock an identity is remembered, microseconds; not below `allowed_lateness`.
    pub dedup_window: i64,
    /// Whether a duplicate that differs in time or value is refused instead of dropped.
    pub conflict_is_dead_letter: bool,
    /// How many live series a key group holds; what would be one more is refused.
    pub max_series_per_group: u32,
    /// After how much counted silence a series is forgotten but for its clock, milliseconds; above 0.
    pub series_ttl_ms: u64,
}

/// What became of a partition's readings. The caller picks the partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Accepted, behind ones included.
    pub accepted: u64,
    /// Accepted, and older than their series' clock.
    pub behind: u64,
    /// Dropped as duplicates.
    pub duplicates: u64,
    /// Repeated an identity with another time or value; counted among `duplicates` or `refused` as well.
    pub conflicting: u64,
    /// Late.
    pub late: u64,
    /// In the future.
    pub future: u64,
    /// Refused: dead-lettered values.
    pub refused: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.behind += other.behind;
        self.duplicates += other.duplicates;
        self.conflicting += other.conflicting;
        self.late += other.late;
        self.future += other.future;
        self.refused += other.refused;
    }
}

/// Why a reading becomes a dead-lettered value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `too_many_series`: its key group has no room for another series.
    TooManySeries,
    /// `conflict`: the same identity with another time or value.
    Conflict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Nothing of it was ever accepted.
    Unknown,
    Live,
    /// All but the clock is gone.
    Forgotten,
}

/// One cache line: where there are a million of them, each reading waits for its series' to come.
#[repr(align(64))]
struct Series {
    clock: i64,
    /// Counted time when the clock last moved.
    moved: u64,
    ids: Ids,
    group: u16,
    life: Life,
}

/// The operator: the state of all series of one worker.
pub struct Judge {
    config: JudgeConfig,
    dictionary: SharedDictionary,
    hasher: RandomState,
    /// By number.
    series: Vec<Series>,
    /// Live series by key group.
    live: Vec<u32>,
    ids: u64,
    /// Bytes that they take.
    id_bytes: usize,
    /// Where a series that has returned was when it was forgotten, for as long as lateness alone does not say more. Rare,
    /// so beside the series and not in it. Looked up, never gone through.
    floors: HashMap<SeriesNo, i64, RandomState>,
    /// Each live series once: counted time at which it may be forgotten, as known when it was put here.
    silence: BinaryHeap<Reverse<(u64, SeriesNo)>>,
}

impl Judge {
    /// A judge that has seen nothing.
    pub fn new(config: JudgeConfig, dictionary: SharedDictionary) -> Self {
        Self {
            config,
            dictionary,
            hasher: RandomState::default(),
            series: Vec::new(),
            live: vec![0; usize::from(KEY_GROUPS)],
            ids: 0,
            id_bytes: 0,
            floors: HashMap::default(),
            silence: BinaryHeap::new(),
        }
    }
    /// Judges a resolved reading, when `now_counted` is the counted time of its epoch: what is to be kept is pushed to
    /// `out`, a refusal is the caller's to dead-letter.
    pub fn judge(
        &mut self,
        now_counted: u64,
        reading: &Reading,
        out: &mut Batch,
        tally: &mut Tally,
    ) -> Option<Refusal> {
        debug_assert!(reading.name.is_none(), "resolve a reading before it is judged");
        if reading.future() {
            tally.future += 1;
            out.readings.push(judged(reading, Verdict::Future));
            return None;
        }
        let no = reading.series as usize;
        if self.series.len() <= no {
            self.meet(no);
        }
        let series = &mut self.series[no];
        let time = reading.time;
        let id = Id::new(reading.identity, time, reading.value);
        if series.life == Life::Live {
            let remembered = series.clock.saturating_sub(self.config.dedup_window);
            if let Some(earlier) = series.ids.find(reading.identity, remembered, &self.hasher) {
                let conflict = !earlier.agrees(&id);
                tally.conflicting += u64::from(conflict);
                if conflict && self.config.conflict_is_dead_letter {
                    tally.refused += 1;
                    return Some(Refusal::Conflict);
                }
                tally.duplicates += 1;
                return None;
            }
            if time < series.clock
                && (time < series.clock.saturating_sub(self.config.allowed_lateness)
                    || below_floor(&self.floors, reading.series, time))
            {
                tally.late += 1;
                out.readings.push(judged(reading, Verdict::Late));
                return None;
            }
        } else {
            if series.life == Life::Forgotten && time <= series.clock {
                tally.late += 1;
                out.readings.push(judged(reading, Verdict::Late));
                return None;
            }
            let live = &mut self.live[usize::from(series.group)];
            if *live >= self.config.max_series_per_group {
                tally.refused += 1;
                return Some(Refusal::TooManySeries);
            }
            *live += 1;
            if series.life == Life::Unknown {
                out.created.push(reading.series);
            } else {
                self.floors.insert(reading.series, series.clock);
            }
            series.life = Life::Live;
            series.clock = time;
            self.silence.push(Reverse((now_counted.saturating_add(self.config.series_ttl_ms), reading.series)));
        }
        tally.accepted += 1;
        let verdict = if time < series.clock {
            tally.behind += 1;
            Verdict::Behind
        } else {
            series.clock = time;
            series.moved = now_counted;
            Verdict::Accepted
        };
        let remembered = series.clock.saturating_sub(self.config.dedup_window);
        self.ids -= series.ids.len() as u64;
        self.id_bytes -= series.ids.bytes();
        series.ids.push(id, remembered, &self.hasher);
        self.ids += series.ids.len() as u64;
        self.id_bytes += series.ids.bytes();
        out.readings.push(judged(reading, verdict));
        None
    }
    /// Whether its key group has room for another series.
    pub fn has_room(&self, group: u16) -> bool {
        self.live[usize::from(group)] < self.config.max_series_per_group
    }
    #[cold]
    fn meet(&mut self, no: usize) {
        let dictionary = self.dictionary.borrow();
        while self.series.len() <= no {
            let group = dictionary.group(self.series.len() as SeriesNo);
            self.series.push(Series { clock: 0, moved: 0, ids: Ids::default(), group, life: Life::Unknown });
        }
    }
    /// The next whole second at which a series may have to be forgotten.
    pub fn second_due(&self, counted: &CountedTime) -> Option<Epoch> {
        self.silence.peek().and_then(|Reverse((target, _))| counted.second_reaching(*target))
    }
    /// Whole second `s`, after every epoch below it and before any other: forgets what has been silent for too long.
    /// `before` sees each such series as it was.
    pub fn second(
        &mut self,
        s: Epoch,
        counted: &CountedTime,
        forgotten: &mut Vec<SeriesNo>,
        mut before: impl FnMut(&Self, SeriesNo),
    ) {
        let now = counted.at(s);
        while let Some(Reverse((target, no))) = self.silence.peek().copied() {
            if target > now {
                return;
            }
            self.silence.pop();
            let series = &mut self.series[no as usize];
            let target = series.moved.saturating_add(self.config.series_ttl_ms);
            if target > now {
                self.silence.push(Reverse((target, no)));
                continue;
            }
            before(self, no);
            let series = &mut self.series[no as usize];
            series.life = Life::Forgotten;
            self.floors.remove(&no);
            self.ids -= series.ids.len() as u64;
            self.id_bytes -= series.ids.bytes();
            series.ids = Ids::default();
            self.live[usize::from(series.group)] -= 1;
            forgotten.push(no);
        }
    }
    /// Live identities.
    pub fn keys(&self) -> u64 {
        self.ids
    }
    /// Live series.
    pub fn live_series(&self) -> u64 {
        self.live.iter().map(|n| u64::from(*n)).sum()
    }
    /// Bytes of memory.
    pub fn state_bytes(&self) -> usize {
        self.series.capacity() * size_of::<Series>()
            + self.silence.capacity() * size_of::<(u64, SeriesNo)>()
            + self.id_bytes
    }
    /// Takes a group's state; all its series, forgotten ones too, are pushed to `created`.
    pub fn load(&mut self, group: u16, bytes: &[u8], created: &mut Vec<SeriesNo>) -> Result<(), StateError> {
        let mut r = Reader::new(NAME, VERSION, bytes)?;
        let dictionary = self.dictionary.clone();
        r.series(group, &dictionary, |r, no| {
            let (clock, moved, live) = (r.time()?, r.counted()?, r.bool()?);
            self.meet(no as usize);
            let series = &mut self.series[no as usize];
            r.check(series.life == Life::Unknown, "a group is restored once")?;
            series.clock = clock;
            series.moved = moved;
            series.life = if live { Life::Live } else { Life::Forgotten };
            created.push(no);
            if r.bool()? {
                let floor = r.time()?;
                r.check(live && floor < clock, "a series that has returned lies above its floor")?;
                self.floors.insert(no, floor);
            }
            for _ in 0..r.count(28)? {
                let id = Id(r.array()?);
                r.check_time(id.time())?;
                series.ids.push(id, i64::MIN, &self.hasher);
            }
            self.ids += series.ids.len() as u64;
            self.id_bytes += series.ids.bytes();
            if live {
                self.live[usize::from(series.group)] += 1;
                self.silence.push(Reverse((moved.saturating_add(self.config.series_ttl_ms), no)));
            }
            Ok(())
        })?;
        r.finish()
    }
}

impl Saves for Judge {
    fn save_group(&self, group: u16, w: &mut Writer) {
        let keeps = |no| self.series.get(no as usize).is_some_and(|series: &Series| series.life != Life::Unknown);
        let kept = kept(&self.dictionary, group, keeps);
        if kept.is_empty() {
            return;
        }
        w.u16(VERSION);
        write_series(w, &self.dictionary, &kept, |w, no| {
            let series = &self.series[no as usize];
            w.i64(series.clock);
            w.u64(series.moved);
            w.u8(u8::from(series.life == Life::Live));
            // Of a floor that lateness alone has overtaken nothing is left.
            let late = series.clock.saturating_sub(self.config.allowed_lateness);
            let floor = self.floors.get(&no).filter(|floor| **floor >= late);
            w.u8(u8::from(floor.is_some()));
            if let Some(floor) = floor {
                w.i64(*floor);
            }
            // What has expired is not part of the state, wherever in the ring it still lies; mostly nothing has.
            let cut = series.clock.saturating_sub(self.config.dedup_window);
            let pieces = series.ids.pieces();
            let remembered = || pieces.into_iter().flatten().filter(|id| Id(**id).time() >= cut);
            let count = remembered().count();
            w.u32(count as u32);
            if count == series.ids.len() {
                pieces.iter().for_each(|piece| w.raw(piece.as_flattened()));
            } else {
                remembered().for_each(|id| w.raw(id));
            }
        });
    }
}

/// Whether a returned series was already past this time when it was forgotten: then its old identities, which nobody
/// remembers, may have held this very reading.
fn below_floor(floors: &HashMap<SeriesNo, i64, RandomState>, series: SeriesNo, time: i64) -> bool {
    floors.get(&series).is_some_and(|floor| time <= *floor)
}

fn judged(r: &Reading, verdict: Verdict) -> Judged {
    Judged {
        time: r.time,
        value: r.value,
        offset: r.offset,
        series: r.series,
        partition: r.partition,
        stream: r.stream,
        index: r.index,
        verdict,
    }
}
