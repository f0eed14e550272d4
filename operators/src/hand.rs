//! Which record a thread has in hand, for whoever has to say what the thread died of.

use crate::Stream;
use std::cell::Cell;

/// A record: its stream, partition and offset.
pub type Held = (Stream, u32, i64);

thread_local! {
    static HAND: Cell<Option<Held>> = const { Cell::new(None) };
}

/// Takes a record in hand, in place of the one before it.
pub fn hold(stream: Stream, partition: u32, offset: i64) {
    HAND.set(Some((stream, partition, offset)));
}

/// Puts it down.
pub fn put_down() {
    HAND.set(None);
}

/// The record that this thread has in hand, if any.
pub fn held() -> Option<Held> {
    HAND.get()
}
