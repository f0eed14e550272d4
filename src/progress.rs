//! Progress bars for long work, on standard error where that is a terminal.

use crate::plan::Start;
use crate::source::node::{Ends, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use operators::Stream;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

/// A bar, or a spinner where the length is not known; hidden where standard error is no terminal.
pub fn bar(length: Option<u64>, unit: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match length {
        Some(n) => (ProgressBar::new(n), format!("{{wide_bar}} {{human_pos}} of {{human_len}} {unit}  {{eta}}")),
        None => (ProgressBar::new_spinner(), format!("{{spinner}} {{human_pos}} {unit}  {{per_sec}}")),
    };
    bar.with_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// How far a run with an end has read: in offsets, from where each partition begins to its end. Gaps in offsets count,
/// so the bar may jump, and never goes back.
#[derive(Clone)]
pub struct ReadingBar {
    bar: ProgressBar,
    places: Arc<Mutex<BTreeMap<(Stream, u32), Place>>>,
}

/// Where a partition began, and where it is now.
struct Place {
    begin: i64,
    next: i64,
    end: i64,
}

impl ReadingBar {
    /// A bar that is shown if standard error is a terminal.
    pub fn new() -> Self {
        Self { bar: bar(Some(0), "records"), places: Arc::default() }
    }

    /// What there is to read: more than once, where a run has several stretches.
    pub fn planned(&self, starts: impl Iterator<Item = Start>, ends: &Ends) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        for (stream, partition, next, _) in starts {
            let end = ends.get(&(stream, partition)).copied().unwrap_or(next);
            let place = places.entry((stream, partition)).or_insert(Place { begin: next, next, end });
            place.end = place.end.max(end);
        }
        self.bar.set_length(places.values().map(|p| (p.end - p.begin).max(0) as u64).sum());
    }

    /// Told of each partition that moved.
    pub fn progress(&self) -> Progress {
        let this = self.clone();
        Arc::new(move |stream, partition, next| {
            let mut places = this.places.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = places.get_mut(&(stream, partition)) {
                let next = next.min(place.end).max(place.next);
                this.bar.inc((next - place.next) as u64);
                place.next = next;
            }
        })
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Default for ReadingBar {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_full_when_every_partition_is_at_its_end_and_never_goes_back() {
        let bar = ReadingBar { bar: ProgressBar::hidden(), places: Arc::default() };
        bar.planned(
            [(0, 0, 100, None), (0, 1, 7, None), (0, 2, 5, None)].into_iter(),
            &Ends::from([((0, 0), 160), ((0, 1), 17)]),
        );
        assert_eq!(bar.bar.length(), Some(70));
        let progress = bar.progress();
        progress(0, 0, 130);
        progress(0, 0, 120);
        progress(0, 2, 9);
        assert_eq!(bar.bar.position(), 30);
        progress(0, 0, 1000);
        progress(0, 1, 17);
        assert_eq!(bar.bar.position(), 70);
    }
}
