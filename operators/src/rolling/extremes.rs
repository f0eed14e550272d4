//! The smallest and the largest value of a window, by two monotonic queues.
//!
//! Kept only where a rule asks for one; everywhere else they are found by looking. They are a function of the window's
//! entries, so they are never saved. Equal values stay in the queue: then whoever leaves the window is the queue's
//! front exactly if it equals it, and no places need be kept.

use std::collections::VecDeque;

#[derive(Clone, Debug, Default)]
pub(crate) struct Extremes {
    /// Ascending: the window's smallest in front.
    least: VecDeque<f64>,
    /// Descending: the window's largest in front.
    most: VecDeque<f64>,
}

impl Extremes {
    /// A value that is newer than all others came.
    #[inline]
    pub fn push(&mut self, x: f64) {
        while self.least.back().is_some_and(|y| y.total_cmp(&x).is_gt()) {
            self.least.pop_back();
        }
        self.least.push_back(x);
        while self.most.back().is_some_and(|y| y.total_cmp(&x).is_lt()) {
            self.most.pop_back();
        }
        self.most.push_back(x);
    }
    /// The oldest value went.
    #[inline]
    pub fn pop(&mut self, x: f64) {
        if self.least.front().is_some_and(|y| y.to_bits() == x.to_bits()) {
            self.least.pop_front();
        }
        if self.most.front().is_some_and(|y| y.to_bits() == x.to_bits()) {
            self.most.pop_front();
        }
    }
    /// Those of `entries`, from the oldest to the newest: a value came into the middle.
    pub fn rebuild(&mut self, entries: impl Iterator<Item = f64>) {
        self.least.clear();
        self.most.clear();
        entries.for_each(|x| self.push(x));
    }
    pub fn min(&self) -> f64 {
        self.least.front().copied().unwrap_or(f64::NAN)
    }
    pub fn max(&self) -> f64 {
        self.most.front().copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_follow_a_sliding_window_also_over_equals_and_zeros() {
        let values = [3.0, 3.0, 1.0, -0.0, 0.0, -0.0, 5.0, 5.0, 2.0, 2.0, 2.0, -7.0, 9.0, 9.0];
        for length in 1..=values.len() {
            let mut extremes = Extremes::default();
            for (i, x) in values.iter().enumerate() {
                extremes.push(*x);
                if i >= length {
                    extremes.pop(values[i - length]);
                }
                let mut window = values[(i + 1).saturating_sub(length)..=i].to_vec();
                window.sort_by(f64::total_cmp);
                assert_eq!(extremes.min().to_bits(), window[0].to_bits());
                assert_eq!(extremes.max().to_bits(), window[window.len() - 1].to_bits());
            }
        }
    }
}
