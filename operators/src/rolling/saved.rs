//! Windows as bytes: the entries once, the accumulators bit for bit.
//!
//! A state says which windows it holds. A window that is configured now and was not then begins with the entries that
//! the others have kept, as far as it reaches; its moving average begins with the next reading.

use super::{Accumulator, Entry, Moments, NEVER, Rolling, Series, Window};
use crate::state::{Reader, Saves, StateError, Writer, kept, write_series};

const NAME: &str = "rolling";
const VERSION: u16 = 1;

impl Saves for Rolling {
    fn save_group(&self, group: u16, w: &mut Writer) {
        let keeps = |no| self.series.get(no as usize).is_some_and(|series: &Series| series.clock != NEVER);
        let kept = kept(&self.dictionary, group, keeps);
        if kept.is_empty() {
            return;
        }
        let width = self.windows.len();
        w.u16(VERSION);
        w.u32(width as u32);
        for window in &self.windows {
            match *window {
                Window::Time { us } => {
                    w.u8(0);
                    w.i64(us);
                }
                Window::Count { n } => {
                    w.u8(1);
                    w.i64(i64::from(n));
                }
            }
        }
        write_series(w, &self.dictionary, &kept, |w, no| {
            let no = no as usize;
            let series = &self.series[no];
            w.i64(series.clock);
            w.u32(series.entries.len() as u32);
            let (older, newer) = series.entries.as_slices();
            w.raw(older.as_flattened());
            w.raw(newer.as_flattened());
            for Accumulator { moments, ewma, begun } in &self.accumulators[no * width..(no + 1) * width] {
                w.u32(moments.n);
                w.u32(moments.updates);
                w.f64(moments.mean);
                w.f64(moments.m2);
                w.f64(*ewma);
                w.u8(u8::from(*begun));
            }
        });
    }
}

impl Rolling {
    /// Takes a group's state.
    pub fn load(&mut self, group: u16, bytes: &[u8]) -> Result<(), StateError> {
        let mut r = Reader::new(NAME, VERSION, bytes)?;
        let mut saved = Vec::new();
        for _ in 0..r.count(9)? {
            let (kind, length) = (r.bool()?, r.i64()?);
            saved.push(match (kind, u32::try_from(length)) {
                (false, _) if length > 0 => Window::Time { us: length },
                (true, Ok(n)) if n > 0 => Window::Count { n },
                _ => return Err(r.invalid("a window has a length above 0")),
            });
        }
        let places: Vec<_> = self.windows.iter().map(|w| saved.iter().position(|s| s == w)).collect();
        let dictionary = self.dictionary.clone();
        let mut accumulators = Vec::with_capacity(saved.len());
        r.series(group, &dictionary, |r, no| {
            let no = no as usize;
            if self.series.len() <= no {
                self.meet(no);
            }
            let series = &mut self.series[no];
            r.check(series.clock == NEVER, "a group is restored once")?;
            series.clock = r.time()?;
            let mut last = i64::MIN;
            for _ in 0..r.count(16)? {
                let entry = Entry::new(r.time()?, r.f64()?);
                r.check(last <= entry.time() && entry.time() <= series.clock, "entries are in order, up to the clock")?;
                r.check(entry.value().is_finite(), "a value is finite")?;
                last = entry.time();
                series.entries.push_back(entry.0);
            }
            accumulators.clear();
            for _ in &saved {
                let moments = Moments { n: r.u32()?, updates: r.u32()?, mean: r.f64()?, m2: r.f64()? };
                r.check(moments.n as usize <= series.entries.len(), "a window holds entries that there are")?;
                r.check(moments.updates <= moments.n.max(64), "a refresh is not overdue")?;
                accumulators.push(Accumulator { moments, ewma: r.f64()?, begun: r.bool()? });
            }
            let len = series.entries.len();
            let mut longest = 0;
            for (w, (window, place)) in self.windows.iter().zip(&places).enumerate() {
                let accumulator = &mut self.accumulators[no * self.windows.len() + w];
                match place {
                    Some(place) => *accumulator = accumulators[*place],
                    None => {
                        let held = match *window {
                            Window::Count { n } => len.min(n as usize),
                            Window::Time { us } => {
                                let from = series.clock.saturating_sub(us);
                                len - series.entries.partition_point(|e| Entry(*e).time() <= from)
                            }
                        };
                        accumulator.moments.refresh(series.entries.range(len - held..).map(|e| Entry(*e).value()));
                    }
                }
                let held = accumulator.moments.n as usize;
                longest = longest.max(held);
                if let Some(extremes) = series.extremes.as_mut().and_then(|all| all[w].as_mut()) {
                    extremes.rebuild(series.entries.range(len - held..).map(|e| Entry(*e).value()));
                }
            }
            series.entries.drain(..len - longest);
            self.held += series.entries.len() as u64;
            self.room += series.entries.capacity();
            Ok(())
        })?;
        r.finish()
    }
}
