//! Rules on one series: which apply, and the life of their alerts.

use std::collections::{BTreeMap, HashMap};

use crate::config::{Condition, Config, Rule, Stat, Window};
use crate::journal::State;
use crate::rolling::Rolling;

/// What a rule knows about a series.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The rule's place in the configuration.
    pub rule: usize,
    phase: Phase,
    /// Start and end of the episodes that are over. (Remembered while end >= c - allowed_lateness.)
    ended: Vec<(i64, i64)>,
    /// Start -> how many episodes that fired had it.
    starts: HashMap<i64, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Idle,
    Pending { start: i64 },
    Firing { start: i64, ordinal: u32 },
}

/// A transition of an alert, as far as the rule knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Firing or resolved.
    pub state: State,
    /// The event time of the transition.
    pub time: i64,
    /// What decided, if a value did.
    pub value: Option<f64>,
    /// The episode's start.
    pub start: i64,
    /// The episode's number among those with its start.
    pub ordinal: u32,
    /// Raised by a reading that was behind.
    pub behind: bool,
}

/// An accepted reading, as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Accepted<'a> {
    /// Its event time.
    pub time: i64,
    /// Its value.
    pub value: f64,
    /// The series' windows, with the reading in them.
    pub windows: &'a [Rolling],
}

impl Accepted<'_> {
    /// What a condition is about: the value itself or a statistic.
    fn level(&self, of: Option<(Stat, Window)>) -> f64 {
        match of {
            None => self.value,
            Some((stat, window)) => {
                self.windows.iter().find(|rolling| rolling.window() == window).map_or(f64::NAN, |w| w.stat(stat))
            }
        }
    }
}

impl Watch {
    /// Of the rule at this place.
    pub fn of(rule: usize) -> Watch {
        Watch { rule, phase: Phase::Idle, ended: Vec::new(), starts: HashMap::new() }
    }

    /// How long after the series' clock something is due, if something is. A forgotten series raises no new alert.
    pub fn due_after(&self, condition: &Condition, live: bool) -> Option<i64> {
        match (condition, self.phase) {
            (Condition::Missing { after_us }, Phase::Idle) if live => Some(*after_us),
            (Condition::Threshold { of: Some((_, Window::Time { us })), .. }, Phase::Firing { .. }) => Some(*us),
            _ => None,
        }
    }

    /// What is due happens, at its deadline.
    pub fn meet(&mut self, condition: &Condition, deadline: i64, steps: &mut Vec<Step>) {
        match condition {
            Condition::Missing { .. } => self.fire(deadline, deadline, None, steps),
            Condition::Threshold { .. } => self.resolve(deadline, None, steps),
        }
    }

    /// An accepted reading that is not behind.
    pub fn reading(&mut self, condition: &Condition, reading: Accepted, steps: &mut Vec<Step>) {
        let time = reading.time;
        match *condition {
            Condition::Missing { .. } => {
                if let Phase::Firing { start, .. } = self.phase {
                    self.resolve(time.max(start), Some(reading.value), steps);
                }
            }
            Condition::Threshold { above, limit, hysteresis, for_us, of } => {
                let x = reading.level(of);
                if x.is_nan() {
                    return;
                }
                let breaches = breaches(above, limit, x);
                let clears = match (hysteresis == 0.0, above) {
                    (true, _) => !breaches,
                    (false, true) => x <= limit - hysteresis,
                    (false, false) => x >= limit + hysteresis,
                };
                match self.phase {
                    Phase::Idle if breaches && for_us == 0 => self.fire(time, time, Some(x), steps),
                    Phase::Idle if breaches => self.phase = Phase::Pending { start: time },
                    Phase::Pending { .. } if !breaches => self.phase = Phase::Idle,
                    Phase::Pending { start } if time - start >= for_us => self.fire(time, start, Some(x), steps),
                    Phase::Firing { .. } if clears => self.resolve(time, Some(x), steps),
                    _ => {}
                }
            }
        }
    }

    /// An accepted reading that is behind.
    pub fn behind(&mut self, condition: &Condition, reading: Accepted, steps: &mut Vec<Step>) {
        let Condition::Threshold { above, limit, for_us: 0, of: None, .. } = *condition else { return };
        let Accepted { time, value, .. } = reading;
        let in_episode = self.ended.iter().any(|(start, end)| *start <= time && time < *end)
            || matches!(self.phase, Phase::Firing { start, .. } if start <= time);
        if !breaches(above, limit, value) || in_episode {
            return;
        }
        let ordinal = self.next_ordinal(time);
        for state in [State::Firing, State::Resolved] {
            steps.push(Step { state, time, value: Some(value), start: time, ordinal, behind: true });
        }
        self.ended.push((time, time));
    }

    /// The series' clock moved: what ended long before it is no longer asked for.
    pub fn clock_moved(&mut self, oldest: i64) {
        self.ended.retain(|(_, end)| *end >= oldest);
    }

    /// The series is forgotten, but for what is firing.
    pub fn forget(&mut self) {
        self.ended.clear();
        match self.phase {
            Phase::Firing { start, .. } => self.starts.retain(|known, _| *known == start),
            Phase::Idle | Phase::Pending { .. } => {
                self.phase = Phase::Idle;
                self.starts.clear();
            }
        }
    }

    fn fire(&mut self, time: i64, start: i64, value: Option<f64>, steps: &mut Vec<Step>) {
        let ordinal = self.next_ordinal(start);
        self.phase = Phase::Firing { start, ordinal };
        steps.push(Step { state: State::Firing, time, value, start, ordinal, behind: false });
    }

    fn resolve(&mut self, time: i64, value: Option<f64>, steps: &mut Vec<Step>) {
        if let Phase::Firing { start, ordinal } = self.phase {
            self.phase = Phase::Idle;
            self.ended.push((start, time));
            steps.push(Step { state: State::Resolved, time, value, start, ordinal, behind: false });
        }
    }

    fn next_ordinal(&mut self, start: i64) -> u32 {
        let count = self.starts.entry(start).or_insert(0);
        *count += 1;
        *count - 1
    }
}

fn breaches(above: bool, limit: f64, x: f64) -> bool {
    if above { x > limit } else { x < limit }
}

/// Whether a rule watches the series.
pub fn applies(config: &Config, rule: &Rule, sensor: &str, metric: &str) -> bool {
    let none = BTreeMap::new();
    let labels = config.labels.get(sensor).unwrap_or(&none);
    rule.metric == metric
        && rule.selector.iter().all(|selector| {
            let value = match selector.label.as_str() {
                "sensor" => sensor,
                label => labels.get(label).map_or("", String::as_str),
            };
            let excluded = |pattern: &String| pattern.strip_prefix('!').is_some_and(|glob| matches(glob, value));
            let mut taking = selector.patterns.iter().filter(|pattern| !pattern.starts_with('!')).peekable();
            (taking.peek().is_none() || taking.any(|glob| matches(glob, value)))
                && !selector.patterns.iter().any(excluded)
        })
}

/// Whether the glob is the text, with each `*` standing for any part of it.
pub fn matches(glob: &str, text: &str) -> bool {
    match glob.split_once('*') {
        None => glob == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|text| {
            text.char_indices().map(|(at, _)| at).chain([text.len()]).any(|at| matches(rest, &text[at..]))
        }),
    }
}
