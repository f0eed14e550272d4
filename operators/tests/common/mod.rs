//! A worker's operators in a row, as the dataflow has them, and random readings for them.

#![allow(dead_code)] // Each test uses its part.

use std::cell::RefCell;
use std::rc::Rc;
use streamgauge_operators::*;

pub const S: i64 = 1_000_000;

/// A linear congruential generator: the same numbers on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub fn rule(key: &str, condition: Condition) -> Rc<RuleSpec> {
    let (name, version, severity) = (key.to_owned(), "1".to_owned(), "warning".to_owned());
    Rc::new(RuleSpec { key: key.to_owned(), name, version, severity, condition })
}

pub fn threshold(limit: f64, hysteresis: f64, for_us: i64) -> Threshold {
    Threshold { above: true, limit, hysteresis, for_us, feature: None, window: None }
}

/// The rules of the tests: value, `for`, mean of a time window, maximum of a count window, missing.
pub fn specs(plan: &mut Plan) -> Vec<Rc<RuleSpec>> {
    let mean = plan.ask("t", 0, Stat::Mean);
    let max = plan.ask("t", 1, Stat::Max);
    let of = |feature, window| Threshold { feature: Some(feature), window: Some(window), ..threshold(55.0, 1.0, 0) };
    vec![
        rule("value", Condition::Threshold(threshold(90.0, 5.0, 0))),
        rule("for", Condition::Threshold(threshold(40.0, 0.0, 3 * S))),
        rule("mean", Condition::Threshold(of(mean, WINDOWS[0]))),
        rule("max", Condition::Threshold(of(max, WINDOWS[1]))),
        rule("missing", Condition::Missing(Missing { after_us: 5 * S })),
    ]
}

pub const WINDOWS: [Window; 2] = [Window::Time { us: 8 * S }, Window::Count { n: 6 }];

pub struct Worker {
    pub dictionary: SharedDictionary,
    pub judge: Judge,
    pub rolling: Rolling,
    pub rules: Rules,
    pub counted: CountedTime,
    pub tally: Tally,
    pub transitions: Vec<Transition>,
}

impl Worker {
    pub fn new() -> Self {
        let dictionary: SharedDictionary = Rc::new(RefCell::new(Dictionary::default()));
        let mut plan = Plan::default();
        let specs = specs(&mut plan);
        let plan = Rc::new(plan);
        let config = JudgeConfig {
            allowed_lateness: 10 * S,
            dedup_window: 20 * S,
            conflict_is_dead_letter: false,
            max_series_per_group: 2,
            series_ttl_ms: 40_000,
        };
        let mut counted = CountedTime::default();
        counted.set(0, true);
        Self {
            judge: Judge::new(config, dictionary.clone()),
            rolling: Rolling::new(WINDOWS.to_vec(), plan.clone(), dictionary.clone()),
            rules: Rules::new(specs, 10 * S, plan, dictionary.clone()),
            dictionary,
            counted,
            tally: Tally::default(),
            transitions: Vec::new(),
        }
    }
    fn announce(&mut self, epoch: Epoch, created: &[SeriesNo]) {
        for no in created {
            for rule in 0..self.rules.rules().len() as u32 {
                self.rules.apply(epoch, *no, rule, true, &mut self.transitions);
            }
        }
    }
    /// What is due up to `epoch`, then its readings.
    pub fn epoch(&mut self, epoch: Epoch, readings: &[Reading]) {
        loop {
            let due = [self.judge.second_due(&self.counted), self.rules.second_due(&self.counted)];
            let Some(s) = due.into_iter().flatten().min().filter(|s| *s <= epoch) else { break };
            self.rules.second(s, &self.counted, &mut self.transitions, |_, _| ());
            let mut batch = Batch { epoch: s, ..Batch::default() };
            self.judge.second(s, &self.counted, &mut batch.forgotten, |_, _| ());
            self.pass(batch);
        }
        let mut batch = Batch { epoch, ..Batch::default() };
        let now = self.counted.at(epoch);
        for reading in readings {
            self.judge.judge(now, reading, &mut batch, &mut self.tally);
        }
        self.announce(epoch, &batch.created.clone());
        self.pass(batch);
    }
    fn pass(&mut self, mut batch: Batch) {
        self.rolling.batch(&mut batch);
        self.rules.batch(&batch, self.counted.at(batch.epoch), &mut self.transitions);
    }
    pub fn save(&self) -> [GroupStates; 3] {
        let mut saved = [const { GroupStates::new() }; 3];
        self.judge.save(&mut saved[0]);
        self.rolling.save(&mut saved[1]);
        self.rules.save(&mut saved[2]);
        saved
    }
    /// A worker that goes on from what was saved before `epoch`.
    pub fn restore(saved: &[GroupStates; 3], counted: &[u8], epoch: Epoch) -> Result<Self, StateError> {
        let mut worker = Self::new();
        worker.counted = CountedTime::load(counted)?;
        let mut created = Vec::new();
        for (group, bytes) in saved[2].iter().rev() {
            worker.rules.load(*group, bytes)?;
        }
        for (group, bytes) in &saved[0] {
            worker.judge.load(*group, bytes, &mut created)?;
        }
        for (group, bytes) in &saved[1] {
            worker.rolling.load(*group, bytes)?;
        }
        worker.announce(0, &created);
        worker.rules.settle(epoch, &mut worker.transitions);
        Ok(worker)
    }
    /// The transitions since the last call, in journal order, as text.
    pub fn take(&mut self) -> Vec<String> {
        let dictionary = self.dictionary.borrow();
        let mut alerts: Vec<_> = self.transitions.drain(..).map(|t| t.alert(&dictionary)).collect();
        alerts.sort_by(Alert::order);
        alerts.iter().map(|a| format!("{a:?} {}", a.id_hex())).collect()
    }
    pub fn reading(&self, name: &SeriesName, time: i64, value: f64, identity: u128) -> Reading {
        let no = self.dictionary.borrow_mut().intern(name);
        let mut reading = Reading::new((0, 0, 0, 0), (no, 0), None, (time, value, identity));
        reading.stamp(0, false);
        reading
    }
}

pub fn names() -> Vec<SeriesName> {
    (0..12).map(|i| SeriesName { sensor: format!("s-{i}").into(), metric: "t".into() }).collect()
}

/// An epoch's readings: steady, repeated, behind, late, pausing.
pub fn readings(worker: &Worker, names: &[SeriesName], random: &mut Random, epoch: Epoch) -> Vec<Reading> {
    (0..random.below(6))
        .map(|_| {
            let name = &names[random.below(names.len() as u64) as usize];
            let back = match random.below(10) {
                0 => random.below(15) as i64 * S,
                1 => random.below(3) as i64 * S,
                _ => 0,
            };
            let time = epoch as i64 * 1000 / S * S - back;
            let value = random.below(1000) as f64 / 10.0;
            worker.reading(name, time, value, random.below(400).into())
        })
        .collect()
}
