//! The second keyed operator: statistics of the last T and the last N readings of each series (docs/semantics.md 5).
//!
//! All windows of a series are suffixes of one list, its accepted readings in order of event time, and among equal
//! times in order of acceptance: so a series keeps that list once, as long as its longest window, and each window is a
//! length. A reading that came behind is entered at its place. The present is never moved by it, but the statistics
//! that it belongs to are.

mod extremes;
mod moments;
mod plan;
mod saved;

use crate::dictionary::SharedDictionary;
use crate::{Batch, SeriesNo, Verdict};
use extremes::Extremes;
use moments::Moments;
pub use plan::{Plan, Stat, Window};
use std::collections::VecDeque;
use std::rc::Rc;

/// The clock of a series that has none; no event time is as early.
const NEVER: i64 = i64::MIN;

/// A window's statistics. What is undefined is NaN.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The names are those of `Stat`.
pub struct Stats {
    pub count: u64,
    pub mean: f64,
    pub stddev: f64,
    pub min: f64,
    pub max: f64,
    pub rate: f64,
    pub ewma: f64,
}

/// A reading in a window: event time (8 bytes) and value (8), little-endian. In memory it lies as it is saved, so that
/// saving is copying.
#[derive(Clone, Copy)]
struct Entry(Bytes);

type Bytes = [u8; 16];

impl Entry {
    #[inline]
    fn new(time: i64, value: f64) -> Self {
        Self((u128::from(value.to_bits()) << 64 | u128::from(time as u64)).to_le_bytes())
    }
    #[inline]
    fn time(&self) -> i64 {
        u128::from_le_bytes(self.0) as i64
    }
    #[inline]
    fn value(&self) -> f64 {
        f64::from_bits((u128::from_le_bytes(self.0) >> 64) as u64)
    }
}

/// What one window of one series keeps besides its entries.
#[derive(Clone, Copy, Debug, Default)]
struct Accumulator {
    moments: Moments,
    ewma: f64,
    /// Whether `ewma` has its first value.
    begun: bool,
}

/// One cache line: where there are a million of them, each reading waits for its series' to come.
#[repr(align(64))]
struct Series {
    /// The newest event time accepted.
    clock: i64,
    /// In order of event time, as many as the longest window holds.
    entries: VecDeque<Bytes>,
    /// By window, where the plan asks for a minimum or maximum.
    extremes: Option<Box<[Option<Extremes>]>>,
    /// The number of the metric's list in the plan.
    plan: u32,
}

/// The weights of new readings in a window's moving average. They depend on the distance to the reading before, which
/// is nearly always one of a few, and exp is slow: so the last ones are kept.
struct Weights {
    window: Window,
    /// (distance, weight), by a hash of the distance.
    cache: Vec<(i64, f64)>,
}

impl Weights {
    fn new(window: Window) -> Self {
        Self { window, cache: vec![(-1, 0.0); 256] }
    }
    #[inline]
    fn weight(&mut self, since: i64) -> f64 {
        match self.window {
            Window::Count { n } => 2.0 / (f64::from(n) + 1.0),
            Window::Time { us } => {
                let slot = (since as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
                let kept = &mut self.cache[slot as usize];
                if kept.0 != since {
                    *kept = (since, 1.0 - libm::exp(since.wrapping_neg() as f64 / us as f64));
                }
                kept.1
            }
        }
    }
}

/// The operator: the windows of all series of one worker.
pub struct Rolling {
    windows: Vec<Window>,
    weights: Vec<Weights>,
    plan: Rc<Plan>,
    dictionary: SharedDictionary,
    /// By number.
    series: Vec<Series>,
    /// By number and window.
    accumulators: Vec<Accumulator>,
    /// Entries held by all series, and room for them.
    held: u64,
    room: usize,
}

impl Rolling {
    /// Keeps `windows` (at most 64) for every series, and hands on what `plan` asks for.
    pub fn new(windows: Vec<Window>, plan: Rc<Plan>, dictionary: SharedDictionary) -> Self {
        assert!(windows.len() <= 64, "at most 64 windows: which a reading enters is a mask of 64 bits");
        let weights = windows.iter().map(|w| Weights::new(*w)).collect();
        Self { windows, weights, plan, dictionary, series: Vec::new(), accumulators: Vec::new(), held: 0, room: 0 }
    }
    /// Takes an epoch's accepted readings into their windows, and appends what the plan asks for to its features.
    pub fn batch(&mut self, batch: &mut Batch) {
        for no in &batch.forgotten {
            self.forget(*no);
        }
        let Batch { readings, features, .. } = batch;
        for reading in readings.iter() {
            crate::hand::hold(reading.stream, reading.partition, reading.offset);
            let behind = match reading.verdict {
                Verdict::Accepted => false,
                Verdict::Behind => true,
                Verdict::Late | Verdict::Future => continue,
            };
            let no = reading.series as usize;
            if self.series.len() <= no {
                self.meet(no);
            }
            self.enter(no, reading.time, reading.value, behind);
            let plan = self.series[no].plan;
            if plan != 0 && !behind {
                features.extend(self.plan.list(plan).iter().map(|(window, stat)| self.stat(no, *window, *stat)));
            }
        }
        crate::hand::put_down();
    }
    #[cold]
    fn meet(&mut self, no: usize) {
        let dictionary = self.dictionary.borrow();
        while self.series.len() <= no {
            let plan = self.plan.number(&dictionary.name(self.series.len() as SeriesNo).metric);
            let mut extremes: Box<[Option<Extremes>]> = self.windows.iter().map(|_| None).collect();
            for (window, stat) in self.plan.list(plan) {
                if matches!(stat, Stat::Min | Stat::Max) {
                    extremes[*window] = Some(Extremes::default());
                }
            }
            let extremes = extremes.iter().any(Option::is_some).then_some(extremes);
            self.series.push(Series { clock: NEVER, entries: VecDeque::new(), extremes, plan });
        }
        self.accumulators.resize(self.series.len() * self.windows.len(), Accumulator::default());
    }
    fn forget(&mut self, no: SeriesNo) {
        let no = no as usize;
        let Some(series) = self.series.get_mut(no) else { return };
        series.clock = NEVER;
        self.held -= series.entries.len() as u64;
        self.room -= series.entries.capacity();
        series.entries = VecDeque::new();
        for extremes in series.extremes.iter_mut().flat_map(|all| all.iter_mut()).flatten() {
            *extremes = Extremes::default();
        }
        let width = self.windows.len();
        self.accumulators[no * width..(no + 1) * width].fill(Accumulator::default());
    }
    fn enter(&mut self, no: usize, time: i64, value: f64, behind: bool) {
        let width = self.windows.len();
        let Series { clock, entries, extremes, .. } = &mut self.series[no];
        let accumulators = &mut self.accumulators[no * width..(no + 1) * width];
        let since = time.wrapping_sub(*clock);
        if !behind {
            *clock = time;
        }
        // How many entries are newer: the place of the new one, counted from the newest.
        let newer = if behind { entries.len() - entries.partition_point(|e| Entry(*e).time() <= time) } else { 0 };
        let entered = |window: &Window, accumulator: &Accumulator, entries: &VecDeque<Bytes>| match *window {
            Window::Time { us } => time > clock.saturating_sub(us),
            Window::Count { n } => {
                let held = accumulator.moments.n as usize;
                held < n as usize || Entry(entries[entries.len() - held]).time() <= time
            }
        };
        // A reading that is not behind enters every window; one that is, each that reaches back to it.
        let all = accumulators.iter().zip(&self.windows);
        if behind && !all.clone().any(|(accumulator, window)| entered(window, accumulator, entries)) {
            return;
        }
        let mut mask = if behind { 0u64 } else { u64::MAX };
        if behind {
            for (w, (accumulator, window)) in all.enumerate() {
                mask |= u64::from(entered(window, accumulator, entries)) << w;
            }
        }
        self.held -= entries.len() as u64;
        self.room -= entries.capacity();
        if newer == 0 {
            entries.push_back(Entry::new(time, value).0);
        } else {
            entries.insert(entries.len() - newer, Entry::new(time, value).0);
        }
        let len = entries.len();
        let mut longest = 0;
        for (w, accumulator) in accumulators.iter_mut().enumerate() {
            let moments = &mut accumulator.moments;
            if mask >> w & 1 == 1 {
                let mut extremes = extremes.as_mut().and_then(|all| all[w].as_mut());
                let mut collapsed = false;
                moments.add(value);
                moments.updates += 1;
                if let Some(extremes) = &mut extremes
                    && newer == 0
                {
                    extremes.push(value);
                }
                while moments.n > 0 {
                    let oldest = Entry(entries[len - moments.n as usize]);
                    let out = match self.windows[w] {
                        Window::Time { us } => oldest.time() <= clock.saturating_sub(us),
                        Window::Count { n } => moments.n > n,
                    };
                    if !out {
                        break;
                    }
                    collapsed |= moments.remove(oldest.value());
                    moments.updates += 1;
                    if let Some(extremes) = &mut extremes
                        && newer == 0
                    {
                        extremes.pop(oldest.value());
                    }
                }
                let held = moments.n as usize;
                if moments.stale(collapsed) {
                    moments.refresh(entries.range(len - held..).map(|e| Entry(*e).value()));
                }
                if let Some(extremes) = extremes
                    && newer > 0
                {
                    extremes.rebuild(entries.range(len - held..).map(|e| Entry(*e).value()));
                }
            }
            if !behind {
                if accumulator.begun {
                    accumulator.ewma += self.weights[w].weight(since) * (value - accumulator.ewma);
                } else {
                    *accumulator = Accumulator { ewma: value, begun: true, ..*accumulator };
                }
            }
            longest = longest.max(accumulator.moments.n as usize);
        }
        // Mostly one or none: `drain` costs more than all the rest.
        for _ in longest..len {
            entries.pop_front();
        }
        if entries.capacity() > 64 && entries.len() < entries.capacity() / 4 {
            entries.shrink_to(entries.capacity() / 2);
        }
        self.held += entries.len() as u64;
        self.room += entries.capacity();
    }
    fn stat(&self, no: usize, window: usize, stat: Stat) -> f64 {
        let Series { entries, extremes, .. } = &self.series[no];
        let Accumulator { moments, ewma, begun } = &self.accumulators[no * self.windows.len() + window];
        let held = moments.n as usize;
        if held == 0 {
            return if stat == Stat::Count { 0.0 } else { f64::NAN };
        }
        let values = || entries.range(entries.len() - held..).map(|e| Entry(*e).value());
        let extremes = extremes.as_ref().and_then(|all| all[window].as_ref());
        let x = match stat {
            Stat::Count => f64::from(moments.n),
            Stat::Mean => moments.mean,
            Stat::Stddev => moments.stddev(),
            Stat::Min => extremes.map(Extremes::min).or_else(|| values().min_by(f64::total_cmp)).unwrap_or(f64::NAN),
            Stat::Max => extremes.map(Extremes::max).or_else(|| values().max_by(f64::total_cmp)).unwrap_or(f64::NAN),
            Stat::Rate => {
                let (oldest, newest) = (Entry(entries[entries.len() - held]), Entry(entries[entries.len() - 1]));
                let us = newest.time() - oldest.time();
                if us == 0 { f64::NAN } else { (newest.value() - oldest.value()) / (us as f64 / 1e6) }
            }
            Stat::Ewma if *begun => *ewma,
            Stat::Ewma => f64::NAN,
        };
        // One NaN: which one arithmetic makes is the machine's choice.
        if x.is_nan() { f64::NAN } else { x }
    }
    /// A series' statistics, by window.
    pub fn stats(&self, series: SeriesNo) -> Vec<Stats> {
        let no = series as usize;
        let known = no < self.series.len();
        (0..self.windows.len())
            .map(|window| {
                let stat = |stat| if known { self.stat(no, window, stat) } else { f64::NAN };
                Stats {
                    count: if known { self.stat(no, window, Stat::Count) as u64 } else { 0 },
                    mean: stat(Stat::Mean),
                    stddev: stat(Stat::Stddev),
                    min: stat(Stat::Min),
                    max: stat(Stat::Max),
                    rate: stat(Stat::Rate),
                    ewma: stat(Stat::Ewma),
                }
            })
            .collect()
    }
    /// The windows, in the order of `stats`.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }
    /// Entries held.
    pub fn keys(&self) -> u64 {
        self.held
    }
    /// Bytes of memory, but for the queues of minima and maxima.
    pub fn state_bytes(&self) -> usize {
        self.series.capacity() * size_of::<Series>()
            + self.accumulators.capacity() * size_of::<Accumulator>()
            + self.room * size_of::<Bytes>()
    }
}

#[cfg(test)]
mod tests;
