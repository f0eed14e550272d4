//! How long a worker does nothing but save its state, at a time.

use std::cell::Cell;
use std::rc::Rc;

/// What the nodes of a worker have spent on saving since it was last told, microseconds; they share it.
#[derive(Clone, Debug, Default)]
pub struct Stall(Rc<Cell<Option<u64>>>);

impl Stall {
    /// A node has spent so much.
    pub fn add(&self, us: u64) {
        self.0.set(Some(self.0.get().unwrap_or(0) + us));
    }
    /// What all nodes have spent; none if nothing was saved. Told once.
    pub fn take(&self) -> Option<u64> {
        self.0.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_nodes_spent_is_told_once_and_nothing_where_nothing_was_saved() {
        let stall = Stall::default();
        let rules = stall.clone();
        assert_eq!(stall.take(), None);
        stall.add(5);
        rules.add(0);
        rules.add(30);
        assert_eq!(stall.take(), Some(35));
        assert_eq!(stall.take(), None);
    }
}
