use super::tests_support::{lines, spec};
use super::*;
use crate::rolling::{Stat, Window};
use crate::state::{GroupStates, Saves};
use crate::{Dictionary, Judged, SeriesName};
use std::cell::RefCell;

const S: i64 = 1_000_000;

fn threshold(limit: f64, for_us: i64) -> Condition {
    Condition::Threshold(Threshold { above: true, limit, hysteresis: 0.0, for_us, feature: None, window: None })
}
fn on_window(limit: f64, us: i64) -> Condition {
    let window = Some(Window::Time { us });
    Condition::Threshold(Threshold { above: true, limit, hysteresis: 0.0, for_us: 0, feature: Some(0), window })
}
fn missing(after_us: i64) -> Condition {
    Condition::Missing(Missing { after_us })
}

/// One series under rules, with epoch time that is counted from 0 on.
struct Bench {
    rules: Rules,
    counted: CountedTime,
    out: Vec<Transition>,
    planned: bool,
    dictionary: SharedDictionary,
}

impl Bench {
    fn new(specs: Vec<Rc<RuleSpec>>) -> Self {
        let planned = specs.iter().any(|s| matches!(&s.condition, Condition::Threshold(t) if t.feature.is_some()));
        let mut plan = Plan::default();
        if planned {
            plan.ask("t", 0, Stat::Mean);
        }
        let dictionary = SharedDictionary::new(RefCell::new(Dictionary::default()));
        dictionary.borrow_mut().intern(&SeriesName { sensor: "s-1".into(), metric: "t".into() });
        let rules = Rules::new(specs, 10 * S, Rc::new(plan), dictionary.clone());
        let mut counted = CountedTime::default();
        counted.set(0, true);
        Self { rules, counted, out: Vec::new(), planned, dictionary }
    }
    fn applied(specs: Vec<Rc<RuleSpec>>) -> Self {
        let mut bench = Self::new(specs);
        for rule in 0..bench.rules.rules().len() as u32 {
            bench.apply(0, rule, true);
        }
        bench
    }
    fn apply(&mut self, epoch: Epoch, rule: u32, add: bool) {
        self.rules.apply(epoch, 0, rule, add, &mut self.out);
    }
    /// All that is due up to `epoch`, then a reading in it (a statistic is the value).
    fn reading(&mut self, epoch: Epoch, time: i64, value: f64, verdict: Verdict) -> &mut Self {
        self.until(epoch);
        let judged = Judged { time, value, offset: 0, series: 0, partition: 0, stream: 0, index: 0, verdict };
        let features = if self.planned && verdict == Verdict::Accepted { vec![value] } else { vec![] };
        let batch = Batch { epoch, readings: vec![judged], features, ..Batch::default() };
        self.rules.batch(&batch, self.counted.at(epoch), &mut self.out);
        self
    }
    fn at(&mut self, epoch: Epoch, time: i64, value: f64) -> &mut Self {
        self.reading(epoch, time, value, Verdict::Accepted)
    }
    fn until(&mut self, epoch: Epoch) -> &mut Self {
        while let Some(s) = self.rules.second_due(&self.counted).filter(|s| *s <= epoch) {
            self.rules.second(s, &self.counted, &mut self.out, |_, _| ());
        }
        self
    }
    fn take(&mut self) -> Vec<String> {
        lines(&std::mem::take(&mut self.out))
    }
    /// What is saved, taken up by the same or other rules.
    fn restarted(&self, specs: Vec<Rc<RuleSpec>>) -> Self {
        let mut states = GroupStates::new();
        self.rules.save(&mut states);
        let mut next = Self::new(specs);
        next.counted = self.counted.clone();
        for (group, bytes) in states {
            next.rules.load(group, &bytes).unwrap();
        }
        next
    }
}

#[test]
fn silence_fires_at_its_deadline_on_a_whole_second_and_a_reading_ends_it() {
    let mut bench = Bench::applied(vec![spec("m", "1", missing(30 * S))]);
    bench.at(500, 100 * S, 1.0).at(2500, 102 * S, 1.0).until(32_000);
    assert_eq!(bench.take(), [""; 0], "now is 131.5 s");
    bench.until(33_000);
    assert_eq!(bench.take(), ["132000000 firing - start 132000000.0"]);
    assert_eq!(bench.rules.second_due(&bench.counted), None, "nothing is due while it fires");
    bench.at(40_000, 120 * S, 7.0);
    assert_eq!(bench.take(), ["132000000 resolved 7 start 132000000.0"], "not before its start");
}

#[test]
fn silence_is_met_by_a_reading_beyond_it_too() {
    let mut bench = Bench::applied(vec![spec("m", "1", missing(30 * S))]);
    bench.at(500, 100 * S, 1.0).at(700, 131 * S, 2.0).at(900, 161 * S, 3.0);
    assert_eq!(
        bench.take(),
        [
            "130000000 firing - start 130000000.0",
            "131000000 resolved 2 start 130000000.0",
            "161000000 firing - start 161000000.0",
            "161000000 resolved 3 start 161000000.0",
        ]
    );
}

#[test]
fn while_we_are_deaf_nobody_is_silent() {
    let mut bench = Bench::applied(vec![spec("m", "1", missing(5 * S))]);
    bench.at(500, 0, 1.0);
    bench.counted.set(1500, false);
    bench.until(60_000);
    bench.counted.set(60_200, true);
    bench.until(64_000);
    assert_eq!(bench.take(), [""; 0]);
    bench.until(65_000);
    assert_eq!(bench.take(), ["5000000 firing - start 5000000.0"]);
}

#[test]
fn behind_late_and_future_readings_move_nothing() {
    let mut bench = Bench::applied(vec![spec("m", "1", missing(5 * S)), spec("v", "1", threshold(5.0, 0))]);
    bench.at(500, 100 * S, 1.0);
    bench.reading(3000, 99 * S, 1.0, Verdict::Behind);
    bench.reading(3000, 9 * S, 9.0, Verdict::Late);
    bench.reading(3000, 999 * S, 9.0, Verdict::Future);
    bench.until(6000);
    assert_eq!(bench.take(), ["105000000 firing - start 105000000.0"]);
}

#[test]
fn a_window_that_runs_empty_resolves() {
    let mut bench = Bench::applied(vec![spec("w", "1", on_window(5.0, 60 * S))]);
    bench.at(500, 0, 9.0).at(10_500, 10 * S, 9.0).until(70_000);
    assert_eq!(bench.take(), ["0 firing 9 start 0.0"]);
    bench.until(71_000);
    assert_eq!(bench.take(), ["70000000 resolved - start 0.0"]);
    bench.at(80_000, 80 * S, 8.0).at(80_020, 200 * S, 7.0);
    assert_eq!(
        bench.take(),
        [
            "80000000 firing 8 start 80000000.0",
            "140000000 resolved - start 80000000.0",
            "200000000 firing 7 start 200000000.0"
        ],
        "also by a reading beyond it"
    );
}

#[test]
fn a_rule_that_goes_resolves_at_the_clock_and_what_has_been_is_remembered() {
    let specs = vec![spec("v", "1", threshold(5.0, 0)), spec("v", "2", threshold(6.0, 0))];
    let mut bench = Bench::new(specs);
    bench.apply(0, 0, true);
    bench.at(500, 10, 9.0);
    bench.apply(1000, 0, false);
    bench.apply(1000, 1, true);
    bench.at(1500, 10, 8.0);
    bench.apply(2000, 0, true); // before the other is taken back
    bench.apply(2000, 1, false);
    bench.at(2500, 20, 7.0);
    assert_eq!(
        bench.take(),
        [
            "10 firing 9 start 10.0",
            "10 resolved - start 10.0",
            "10 firing 8 start 10.1",
            "10 resolved - start 10.1",
            "20 firing 7 start 20.0"
        ]
    );
    assert_eq!(bench.rules.keys(), 1);
}

#[test]
fn a_silence_rule_that_comes_late_is_looked_at_on_the_next_second() {
    let mut bench = Bench::new(vec![spec("m", "1", missing(5 * S))]);
    bench.at(500, 0, 1.0).until(60_000);
    bench.apply(60_000, 0, true);
    assert_eq!(bench.rules.second_due(&bench.counted), Some(61_000));
    bench.until(61_000);
    assert_eq!(bench.take(), ["5000000 firing - start 5000000.0"]);
}

#[test]
fn a_silence_rule_that_comes_back_is_not_looked_at_on_a_second_that_has_passed() {
    let mut bench = Bench::applied(vec![spec("m", "1", missing(4 * S))]);
    bench.at(0, 0, 1.0).at(5000, 0, 1.0);
    bench.apply(5500, 0, false);
    bench.until(11_000);
    bench.take();
    bench.apply(11_000, 0, true);
    assert_eq!(bench.rules.second_due(&bench.counted), Some(12_000));
}

#[test]
fn forgetting_keeps_what_fires_and_lets_go_of_what_is_pending() {
    let mut bench = Bench::applied(vec![spec("f", "1", threshold(5.0, 10)), spec("v", "1", threshold(5.0, 0))]);
    bench.at(500, 0, 9.0);
    let forgotten = Batch { epoch: 1000, forgotten: vec![0], ..Batch::default() };
    bench.rules.batch(&forgotten, 1000, &mut bench.out);
    bench.at(1500, 10, 9.0).at(1500, 20, 1.0);
    assert_eq!(bench.take(), ["0 firing 9 start 0.0", "20 resolved 1 start 0.0"]);
}

#[test]
fn a_restart_takes_up_what_was_and_goes_on() {
    let specs = || {
        vec![spec("f", "1", threshold(5.0, 10 * S)), spec("m", "1", missing(5 * S)), spec("v", "1", threshold(5.0, 0))]
    };
    let mut bench = Bench::applied(specs());
    bench.at(500, 0, 9.0).at(600, 0, 1.0).at(700, S, 9.0);
    bench.take();
    let mut next = bench.restarted(specs());
    for rule in [2, 1, 0] {
        next.apply(0, rule, true);
    }
    next.rules.settle(700, &mut next.out);
    for bench in [&mut bench, &mut next] {
        bench.until(7000).at(7100, 12 * S, 9.0).reading(7100, 0, 9.0, Verdict::Behind);
        bench.at(7200, 13 * S, 0.0);
    }
    assert_eq!(bench.out.len(), 7);
    let all = bench.take();
    assert_eq!(all, next.take());
    assert!(all.contains(&"0 firing 9 start 0.1 behind".into()), "{all:?}");
}

#[test]
fn after_a_restart_alerts_of_other_versions_and_of_no_rule_end_when_the_term_begins() {
    let mut bench = Bench::applied(vec![
        spec("gone", "1", threshold(5.0, 0)),
        spec("m", "1", missing(5 * S)),
        spec("v", "1", threshold(5.0, 0)),
    ]);
    bench.at(500, 7, 9.0).until(6000);
    bench.take();
    let mut next = bench.restarted(vec![spec("m", "2", missing(5 * S)), spec("v", "2", threshold(6.0, 0))]);
    next.apply(0, 0, true);
    next.apply(0, 1, true);
    assert_eq!((next.take(), next.rules.second_due(&next.counted)), (vec![], None), "not at epoch 0");
    next.rules.settle(6500, &mut next.out);
    assert_eq!(next.take(), ["7 resolved - start 7.0", "5000007 resolved - start 5000007.0", "7 resolved - start 7.0"]);
    next.at(6600, 7, 8.0).until(12_000);
    assert_eq!(next.take(), ["7 firing 8 start 7.1", "5000007 firing - start 5000007.1"]);
    assert_eq!(next.dictionary.borrow().len(), 1);
}
