//! How long a worker does nothing but save its state, at the cut of a checkpoint.

use operators::Epoch;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What the nodes of a worker have spent on cuts so far, microseconds; they share it.
#[derive(Clone, Debug, Default)]
pub struct Stall(Rc<RefCell<BTreeMap<Epoch, u64>>>);

impl Stall {
    /// A node has spent so much on a cut.
    pub fn add(&self, cut: Epoch, us: u64) {
        *self.0.borrow_mut().entry(cut).or_default() += us;
    }
    /// What all nodes have spent on a cut, told once; earlier cuts are forgotten.
    pub fn take(&self, cut: Epoch) -> Option<u64> {
        let mut cuts = self.0.borrow_mut();
        let told = cuts.remove(&cut);
        cuts.retain(|other, _| *other > cut);
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_told_once_with_what_all_nodes_spent_on_it() {
        let stall = Stall::default();
        let rules = stall.clone();
        stall.add(1_000, 5);
        stall.add(2_000, 1);
        rules.add(1_000, 30);
        assert_eq!(stall.take(1_000), Some(35));
        assert_eq!(stall.take(1_000), None);
        assert_eq!(stall.take(2_000), Some(1));
    }

    #[test]
    fn cuts_that_are_passed_over_are_forgotten_and_the_last_one_counts() {
        let stall = Stall::default();
        stall.add(1_000, 5);
        stall.add(Epoch::MAX, 7);
        assert_eq!(stall.take(2_000), None);
        assert_eq!(stall.take(1_000), None);
        assert_eq!(stall.take(Epoch::MAX), Some(7));
    }
}
