//! The judge against a naive second implementation, on random readings, seconds and restarts.

#![allow(clippy::unwrap_used)] // A test may.

use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use streamgauge_operators::*;

const TTL: u64 = 3000;
const MAX: u32 = 3;

fn config(conflict_is_dead_letter: bool) -> JudgeConfig {
    JudgeConfig {
        allowed_lateness: 20,
        dedup_window: 60,
        conflict_is_dead_letter,
        max_series_per_group: MAX,
        series_ttl_ms: TTL,
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Series, event time relative to the run so far, identity, value, future.
    Read(usize, i64, u128, u8, bool),
    /// Epoch time passes.
    Pass(u64),
    Restart,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let read = (0..5usize, -40..12i64, 0..40u128, 0..2u8, prop::bool::weighted(0.03))
        .prop_map(|(s, t, i, v, f)| Op::Read(s, t, i, v, f));
    let pass = prop_oneof![1..300u64, 1000..2500u64].prop_map(Op::Pass);
    prop::collection::vec(prop_oneof![60 => read, 3 => pass, 1 => Just(Op::Restart)], 1..600)
}

#[derive(Default, Clone)]
struct Naive {
    clock: Option<i64>,
    moved: u64,
    live: bool,
    /// Its clock when it was last forgotten.
    floor: Option<i64>,
    /// (identity, time, value bits)
    accepted: Vec<(u128, i64, u64)>,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Kept(Verdict),
    Duplicate,
    Refused(Refusal),
}

impl Naive {
    fn judge(&mut self, now: u64, room: bool, r: &Reading, strict: bool) -> Answer {
        if r.future() {
            return Answer::Kept(Verdict::Future);
        }
        let c = self.clock.unwrap_or(i64::MIN / 2);
        if self.clock.is_some() && !self.live && r.time <= c {
            return Answer::Kept(Verdict::Late);
        }
        if !self.live && !room {
            return Answer::Refused(Refusal::TooManySeries);
        }
        if let Some((_, time, value)) = self.accepted.iter().find(|(i, t, _)| *i == r.identity && *t >= c - 60) {
            let conflict = (*time, *value) != (r.time, r.value.to_bits());
            return if conflict && strict { Answer::Refused(Refusal::Conflict) } else { Answer::Duplicate };
        }
        if self.live && (r.time < c - 20 || self.floor.is_some_and(|floor| r.time <= floor)) {
            return Answer::Kept(Verdict::Late);
        }
        self.live = true;
        self.accepted.push((r.identity, r.time, r.value.to_bits()));
        if r.time < c {
            return Answer::Kept(Verdict::Behind);
        }
        self.clock = Some(r.time);
        self.moved = now;
        Answer::Kept(Verdict::Accepted)
    }
}

fn names() -> Vec<SeriesName> {
    // All of one sensor, so of one group, and one series more than it holds, and one of another.
    let name = |sensor: &str, metric: &str| SeriesName { sensor: sensor.into(), metric: metric.into() };
    vec![name("s", "a"), name("s", "b"), name("s", "c"), name("s", "d"), name("other", "a")]
}

fn fresh(strict: bool, rotate: usize) -> (Judge, SharedDictionary) {
    let dictionary = Rc::new(RefCell::new(Dictionary::default()));
    let all = names();
    for i in 0..all.len() {
        dictionary.borrow_mut().intern(&all[(i + rotate) % all.len()]);
    }
    (Judge::new(config(strict), dictionary.clone()), dictionary)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn the_judge_answers_as_a_naive_model_does(ops in ops(), strict: bool) {
        let names = names();
        let (mut judge, mut dictionary) = fresh(strict, 0);
        let mut naive = vec![Naive::default(); names.len()];
        let mut counted = CountedTime::default();
        counted.set(0, true);
        let (mut epoch, mut newest) = (1u64, 0i64);
        for (n, op) in ops.into_iter().enumerate() {
            match op {
                Op::Read(s, offset, identity, value, future) => {
                    newest += i64::from(offset > 0) * offset;
                    let no = dictionary.borrow_mut().intern(&names[s]);
                    let at = (0, 0, n as i64, 0);
                    let mut reading = Reading::new(at, (no, 0), None, (newest + offset.min(0), value.into(), identity));
                    reading.stamp(0, future);
                    let now = counted.at(epoch);
                    let group = |i: usize| key_group(names[i].sensor.as_bytes());
                    let live = (0..names.len()).filter(|i| naive[*i].live && group(*i) == group(s)).count();
                    let expected = naive[s].judge(now, live < MAX as usize, &reading, strict);
                    let (mut out, mut tally) = (Batch::default(), Tally::default());
                    let answer = match judge.judge(now, &reading, &mut out, &mut tally) {
                        Some(refusal) => Answer::Refused(refusal),
                        None => out.readings.first().map_or(Answer::Duplicate, |r| Answer::Kept(r.verdict)),
                    };
                    prop_assert_eq!(answer, expected, "operation {}", n);
                    let Tally { accepted, duplicates, late, future, refused, .. } = tally;
                    prop_assert_eq!(accepted + duplicates + late + future + refused, 1);
                }
                Op::Pass(ms) => {
                    epoch += ms;
                    let mut forgotten = Vec::new();
                    while let Some(s) = judge.second_due(&counted).filter(|s| *s <= epoch) {
                        judge.second(s, &counted, &mut forgotten, |_, _| ());
                    }
                    let last = epoch / 1000 * 1000;
                    for (i, series) in naive.iter_mut().enumerate() {
                        let is = forgotten.iter().any(|no| *dictionary.borrow().name(*no) == names[i]);
                        let due = series.live && counted.at(last).saturating_sub(series.moved) >= TTL;
                        prop_assert_eq!(is, due, "operation {}: {:?}", n, names[i]);
                        if due {
                            *series = Naive { clock: series.clock, moved: series.moved, floor: series.clock, ..Naive::default() };
                        }
                    }
                }
                Op::Restart => {
                    let mut saved = GroupStates::new();
                    judge.save(&mut saved);
                    (judge, dictionary) = fresh(strict, n % 5);
                    for (group, bytes) in &saved {
                        judge.load(*group, bytes, &mut Vec::new()).unwrap();
                    }
                    let mut again = GroupStates::new();
                    judge.save(&mut again);
                    prop_assert_eq!(saved, again);
                }
            }
            prop_assert_eq!(judge.live_series(), naive.iter().filter(|s| s.live).count() as u64);
        }
    }
}

/// Identities of one live series, many enough for the index, against a list.
#[test]
fn ten_thousand_live_ids_are_told_apart_exactly() {
    let dictionary = Rc::new(RefCell::new(Dictionary::default()));
    let no = dictionary.borrow_mut().intern(&names()[0]);
    let config = JudgeConfig { allowed_lateness: 5_000, dedup_window: 10_000, ..config(false) };
    let mut judge = Judge::new(config, dictionary);
    let (mut out, mut tally) = (Batch::default(), Tally::default());
    let mut random = 7u64;
    let mut expected = 0;
    for i in 0..100_000i64 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let back = ((random >> 33) as i64 % 15_000).min(i);
        for (time, identity) in [(i, i as u128), (i - back, (i - back) as u128)] {
            judge.judge(0, &Reading::new((0, 0, 0, 0), (no, 0), None, (time, 0.5, identity)), &mut out, &mut tally);
        }
        expected += u64::from(back <= 10_000);
    }
    assert_eq!((tally.accepted, tally.duplicates, tally.conflicting), (100_000, expected, 0));
    assert!(judge.keys() <= 10_001);
    assert!(judge.state_bytes() as u64 <= 46 * judge.keys() + 1000, "{} bytes", judge.state_bytes());
}
