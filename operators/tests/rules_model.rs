//! Rules against a naive model that looks at every deadline on every whole second.

#![allow(clippy::unwrap_used)] // A test may.

mod common;

use common::{S, rule, threshold};
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use streamgauge_operators::*;

const LATENESS: i64 = 6 * S;

#[derive(Clone, Debug)]
enum Op {
    /// Milliseconds that pass before, event time relative to the clock in quarters of a second, value and statistic.
    Read(u64, i64, u8, Option<u8>),
    Hear(u64, bool),
    /// A rule comes or goes.
    Apply(u64, u32, bool),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let pass = || prop_oneof![6 => 0..400u64, 1 => 0..12_000u64];
    let read = (pass(), -20..12i64, 0..10u8, prop::option::weighted(0.9, 0..10u8));
    let read = read.prop_map(|(ms, t, x, y)| Op::Read(ms, t, x, y));
    let hear = (pass(), any::<bool>()).prop_map(|(ms, on)| Op::Hear(ms, on));
    let apply = (pass(), 0..5u32, any::<bool>()).prop_map(|(ms, r, add)| Op::Apply(ms, r, add));
    prop::collection::vec(prop_oneof![20 => read, 2 => hear, 2 => apply], 1..200)
}

/// (rule, time, state, value bits, start, ordinal, behind)
type Line = (usize, i64, u8, Option<u64>, i64, u32, bool);

#[derive(Default)]
struct Naive {
    applied: [bool; 5],
    pending: [Option<i64>; 5],
    firing: [Option<(i64, u32)>; 5],
    /// All that ever were, by rule.
    episodes: [Vec<(i64, i64)>; 5],
    clock: Option<i64>,
    moved: u64,
    out: Vec<Line>,
}

impl Naive {
    fn fire(&mut self, r: usize, time: i64, start: i64, value: Option<f64>) {
        let ordinal = self.episodes[r].iter().filter(|e| e.0 == start).count() as u32;
        (self.pending[r], self.firing[r]) = (None, Some((start, ordinal)));
        self.out.push((r, time, 0, value.map(f64::to_bits), start, ordinal, false));
    }
    fn resolve(&mut self, r: usize, time: i64, value: Option<f64>) {
        if let Some((start, ordinal)) = self.firing[r].take() {
            let end = time.max(start);
            self.episodes[r].push((start, end));
            self.out.push((r, end, 1, value.map(f64::to_bits), start, ordinal, false));
        }
    }
    fn deadlines(&mut self, specs: &[Rc<RuleSpec>], reached: impl Fn(i64) -> bool) {
        let Some(clock) = self.clock else { return };
        for (r, spec) in specs.iter().enumerate().filter(|(r, _)| self.applied[*r]).collect::<Vec<_>>() {
            match &spec.condition {
                Condition::Missing(m) if self.firing[r].is_none() && reached(clock + m.after_us) => {
                    self.fire(r, clock + m.after_us, clock + m.after_us, None);
                }
                Condition::Threshold(Threshold { window: Some(Window::Time { us }), .. }) if reached(clock + us) => {
                    self.resolve(r, clock + us, None);
                }
                _ => {}
            }
        }
    }
    fn reading(&mut self, specs: &[Rc<RuleSpec>], time: i64, value: f64, feature: f64, counted: u64) {
        let behind = self.clock.is_some_and(|c| time < c);
        if !behind {
            self.deadlines(specs, |deadline| time >= deadline);
        }
        for (r, spec) in specs.iter().enumerate() {
            if !self.applied[r] {
                continue;
            }
            match &spec.condition {
                Condition::Missing(_) if !behind => self.resolve(r, time, Some(value)),
                Condition::Missing(_) => {}
                Condition::Threshold(t) if behind => {
                    let inside = self.episodes[r].iter().any(|e| e.0 <= time && time < e.1)
                        || self.firing[r].is_some_and(|(start, _)| start <= time);
                    if t.feature.is_none() && t.for_us == 0 && value > t.limit && !inside {
                        let ordinal = self.episodes[r].iter().filter(|e| e.0 == time).count() as u32;
                        self.episodes[r].push((time, time));
                        for state in [0, 1] {
                            self.out.push((r, time, state, Some(value.to_bits()), time, ordinal, true));
                        }
                    }
                }
                Condition::Threshold(t) => {
                    let x = if t.feature.is_some() { feature } else { value };
                    if x.is_nan() {
                    } else if self.firing[r].is_some() {
                        if x <= t.limit - t.hysteresis {
                            self.resolve(r, time, Some(x));
                        }
                    } else if x > t.limit {
                        let start = *self.pending[r].get_or_insert(time);
                        if time - start >= t.for_us {
                            self.fire(r, time, start, Some(x));
                        }
                    } else {
                        self.pending[r] = None;
                    }
                }
            }
        }
        if !behind {
            (self.clock, self.moved) = (Some(time), counted);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn transitions_are_those_of_looking_at_everything_always(ops in ops()) {
        let mut plan = Plan::default();
        let feature = Some(plan.ask("t", 0, Stat::Mean));
        let window = Some(Window::Time { us: 3 * S });
        let specs = vec![
            rule("value", Condition::Threshold(threshold(6.0, 2.0, 0))),
            rule("for", Condition::Threshold(threshold(4.0, 0.0, S))),
            rule("mean", Condition::Threshold(Threshold { feature, window, ..threshold(5.0, 1.0, 0) })),
            rule("missing", Condition::Missing(Missing { after_us: 4 * S })),
            rule("long", Condition::Missing(Missing { after_us: 9 * S + 1 })),
        ];
        let dictionary: SharedDictionary = Rc::new(RefCell::new(Dictionary::default()));
        dictionary.borrow_mut().intern(&SeriesName { sensor: "s".into(), metric: "t".into() });
        let mut rules = Rules::new(specs.clone(), LATENESS, Rc::new(plan), dictionary);
        let (mut naive, mut counted, mut epoch, mut out) = (Naive::default(), CountedTime::default(), 1u64, Vec::new());
        for r in 0..5 {
            rules.apply(1, 0, r, true, &mut out);
            naive.applied[r as usize] = true;
        }
        for op in ops {
            let (Op::Read(ms, ..) | Op::Hear(ms, _) | Op::Apply(ms, ..)) = op;
            for s in (epoch / 1000 + 1)..=((epoch + ms) / 1000) {
                let now = counted.at(s * 1000);
                let (clock, moved) = (naive.clock.unwrap_or(0), naive.moved);
                naive.deadlines(&specs, |deadline| clock + (now - moved) as i64 * 1000 >= deadline);
            }
            epoch += ms;
            while let Some(s) = rules.second_due(&counted).filter(|s| *s <= epoch) {
                rules.second(s, &counted, &mut out, |_, _| ());
            }
            match op {
                Op::Hear(_, on) => counted.set(epoch, on),
                Op::Apply(_, r, add) => {
                    rules.apply(epoch, 0, r, add, &mut out);
                    let i = r as usize;
                    if !add && naive.applied[i] {
                        naive.resolve(i, naive.clock.unwrap_or(0), None);
                        naive.pending[i] = None;
                    }
                    naive.applied[i] = add;
                }
                Op::Read(_, quarters, value, statistic) => {
                    let time = naive.clock.unwrap_or(1000 * S) + quarters * S / 4;
                    let (value, statistic) = (f64::from(value), statistic.map_or(f64::NAN, f64::from));
                    let behind = naive.clock.is_some_and(|c| time < c);
                    let verdict = if behind { Verdict::Behind } else { Verdict::Accepted };
                    let judged = Judged { time, value, offset: 0, series: 0, partition: 0, stream: 0, index: 0, verdict };
                    let features = if behind { vec![] } else { vec![statistic] };
                    let batch = Batch { epoch, readings: vec![judged], features, ..Batch::default() };
                    rules.batch(&batch, counted.at(epoch), &mut out);
                    naive.reading(&specs, time, value, statistic, counted.at(epoch));
                }
            }
            let number = |t: &Transition| specs.iter().position(|s| s.key == t.rule.key).unwrap();
            let mut lines: Vec<Line> = out
                .drain(..)
                .map(|t| (number(&t), t.time, t.state.number(), t.value.map(f64::to_bits), t.start, t.ordinal, t.behind))
                .collect();
            let mut expected = std::mem::take(&mut naive.out);
            // By rule; of one rule in the order in which they came.
            lines.sort_by_key(|line| line.0);
            expected.sort_by_key(|line| line.0);
            prop_assert_eq!(lines, expected);
        }
    }
}
