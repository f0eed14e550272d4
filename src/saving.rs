//! A cut of an operator's state, saved little by little while later epochs are taken.
//!
//! At the cut nothing is copied. Each key group is saved before anything in it changes, and the others a few at a time,
//! whenever epochs are complete: so a cut holds a worker up for as long as what a tick's readings touch takes, and not for as
//! long as its whole state does.

use crate::checkpoint::{Blobs, Piece};
use crossbeam_channel::Sender;
use operators::Epoch;
use operators::key_group::KEY_GROUPS;
use operators::state::{Saves, Writer};

/// How many bytes are saved at a time, unless a test asks for fewer.
pub const SLICE: usize = 256 << 10;

/// In how many steps a cut is saved, at most: however large the state, it is complete after so many ticks.
pub const STEPS: u16 = 64;

/// How many groups are saved at a time at least.
const GROUPS: u16 = KEY_GROUPS / STEPS;

/// The cuts of one operator of one worker.
pub struct Saving {
    operator: &'static str,
    pieces: Sender<(Epoch, Piece)>,
    slice: usize,
    open: Option<Open>,
}

/// A cut that is being saved.
struct Open {
    cut: Epoch,
    /// By group; all below `next` are.
    saved: Vec<bool>,
    next: u16,
    groups: Vec<(u16, usize)>,
    bytes: Writer,
}

impl Saving {
    /// For an operator; about `slice` bytes at a time.
    pub fn new(operator: &'static str, pieces: Sender<(Epoch, Piece)>, slice: usize) -> Self {
        Self { operator, pieces, slice, open: None }
    }

    /// Whether something of a cut is not saved yet.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// A cut: its state is what `state` is now. The last one, `Epoch::MAX`, is saved at once.
    pub fn cut(&mut self, cut: Epoch, state: &impl Saves) {
        self.go_on(state, usize::MAX);
        let saved = vec![false; usize::from(KEY_GROUPS)];
        let bytes = Writer::with_room(self.room());
        self.open = Some(Open { cut, saved, next: 0, groups: Vec::new(), bytes });
        self.go_on(state, if cut == Epoch::MAX { usize::MAX } else { self.slice });
    }

    /// Something in these groups is about to change.
    pub fn before(&mut self, groups: impl IntoIterator<Item = u16>, state: &impl Saves) {
        let Some(open) = &mut self.open else { return };
        for group in groups {
            open.save(group, state);
        }
        self.send(false);
    }

    /// Something in any group is about to change.
    pub fn before_all(&mut self, state: &impl Saves) {
        self.go_on(state, usize::MAX);
    }

    /// Saves some more.
    pub fn some(&mut self, state: &impl Saves) {
        self.go_on(state, self.slice);
    }

    /// Saves about so many bytes, or `GROUPS` groups if that is more.
    fn go_on(&mut self, state: &impl Saves, bytes: usize) {
        let Some(first) = self.open.as_ref().map(|open| open.next) else { return };
        let mut saved = 0;
        while let Some(open) = &mut self.open
            && (saved < bytes || open.next - first < GROUPS)
        {
            saved += open.save(open.next, state);
            open.next += 1;
            let last = open.next == KEY_GROUPS;
            self.send(last);
        }
    }

    /// A slice, and mostly what the group takes with which it is full.
    fn room(&self) -> usize {
        self.slice.min(SLICE) / 4 * 5
    }

    /// Hands over what is saved, if it is enough or the last.
    fn send(&mut self, last: bool) {
        let room = self.room();
        let Some(open) = &mut self.open else { return };
        if !last && open.bytes.len() < self.slice {
            return;
        }
        let bytes = std::mem::replace(&mut open.bytes, Writer::with_room(if last { 0 } else { room }));
        let blobs = Blobs { groups: std::mem::take(&mut open.groups), bytes: bytes.into_bytes() };
        let _ = self.pieces.send((open.cut, Piece::State { operator: self.operator, blobs, last }));
        if last {
            self.open = None;
        }
    }
}

impl Open {
    /// Saves a group, unless it is; how many bytes it takes.
    fn save(&mut self, group: u16, state: &impl Saves) -> usize {
        if std::mem::replace(&mut self.saved[usize::from(group)], true) {
            return 0;
        }
        let before = self.bytes.len();
        state.save_group(group, &mut self.bytes);
        let bytes = self.bytes.len() - before;
        if bytes > 0 {
            self.groups.push((group, bytes));
        }
        bytes
    }
}

#[cfg(test)]
mod tests;
