//! Count, mean and squared deviation of a window, by Welford's recurrence with removal.
//!
//! Removal loses what the removed value had rounded away, so the moments are computed afresh from the window's entries
//! at counts that are part of the state: the error is bounded by the window's length, however long the stream, and the
//! refresh costs each reading a small constant. Every operation is in the order of docs/semantics.md 5; the results are
//! compared bit for bit.

/// Below this share of what it was, the squared deviation has cancelled too far to be trusted.
const COLLAPSE: f64 = 1.0 / 1_048_576.0;
/// A refresh comes after this many updates at the earliest.
const UPDATES_MIN: u32 = 64;

/// The moments of one window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moments {
    /// Entries in the window.
    pub n: u32,
    /// Additions and removals since the last refresh.
    pub updates: u32,
    pub mean: f64,
    /// The sum of squared deviations from the mean.
    pub m2: f64,
}

impl Moments {
    #[inline]
    pub fn add(&mut self, x: f64) {
        self.n += 1;
        let d = x - self.mean;
        self.mean += d / f64::from(self.n);
        self.m2 += d * (x - self.mean);
    }
    /// Whether the squared deviation collapsed.
    #[inline]
    pub fn remove(&mut self, x: f64) -> bool {
        self.n -= 1;
        if self.n == 0 {
            self.mean = 0.0;
            self.m2 = 0.0;
            return false;
        }
        let d = x - self.mean;
        self.mean -= d / f64::from(self.n);
        let mut next = self.m2 - d * (x - self.mean);
        if next < 0.0 {
            next = 0.0;
        }
        let collapsed = next < self.m2 * COLLAPSE;
        self.m2 = next;
        collapsed
    }
    /// Whether it is time for a refresh, after an addition and its removals.
    #[inline]
    pub fn stale(&self, collapsed: bool) -> bool {
        self.updates >= self.n.max(UPDATES_MIN) || collapsed || self.n == 1
    }
    /// The moments of `entries`, from the oldest to the newest.
    pub fn refresh(&mut self, entries: impl Iterator<Item = f64>) {
        *self = Self::default();
        entries.for_each(|x| self.add(x));
    }
    pub fn stddev(&self) -> f64 {
        if self.n < 2 { f64::NAN } else { (self.m2 / f64::from(self.n - 1)).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_and_removed_again_leaves_nothing() {
        let mut moments = Moments::default();
        moments.add(3.0);
        assert!(!moments.remove(3.0));
        assert_eq!((moments.n, moments.mean.to_bits(), moments.m2.to_bits()), (0, 0, 0));
    }

    #[test]
    fn a_giant_that_leaves_is_noticed() {
        let mut moments = Moments::default();
        for x in [1e12, 1.0, 2.0, 3.0] {
            moments.add(x);
        }
        let collapsed = moments.remove(1e12);
        assert!(collapsed && moments.stale(collapsed));
        moments.refresh([1.0, 2.0, 3.0].into_iter());
        assert_eq!((moments.mean, moments.m2), (2.0, 2.0));
    }
}
