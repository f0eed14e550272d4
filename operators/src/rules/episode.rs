//! The life of one rule on one series: what it is in now, and what it has been through lately.
//!
//! Episodes that are over are remembered by the rule's key, also across a removal of the rule: a later episode with the
//! same start takes the next ordinal, so that no two alerts have one identity.

use super::RuleSpec;
use crate::{AlertState, SeriesNo, Transition};
use std::rc::Rc;

/// What a rule on a series is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Idle,
    /// The condition holds, but not yet for long enough.
    Pending {
        start: i64,
        ordinal: u32,
    },
    Firing {
        start: i64,
        ordinal: u32,
    },
}

/// An episode that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Episode {
    pub start: i64,
    pub end: i64,
}

/// Phase and memory.
#[derive(Clone, Debug, Default)]
#[allow(clippy::box_collection)] // Nearly all have none, and there is one for each rule and series: 8 bytes, not 24.
pub(crate) struct Life {
    pub phase: Phase,
    past: Option<Box<Vec<Episode>>>,
}

/// Where transitions of one rule and series go.
pub(crate) struct Emit<'a> {
    pub rule: &'a Rc<RuleSpec>,
    pub series: SeriesNo,
    /// Episodes that ended before this are forgotten: the series' clock less the allowed lateness.
    pub remembered: i64,
    pub out: &'a mut Vec<Transition>,
}

impl Emit<'_> {
    fn push(&mut self, time: i64, state: AlertState, value: Option<f64>, start: i64, ordinal: u32, behind: bool) {
        let (rule, series) = (self.rule.clone(), self.series);
        self.out.push(Transition { time, state, rule, series, value, start, ordinal, behind });
    }
}

impl Life {
    pub fn new(phase: Phase, past: Vec<Episode>) -> Self {
        Self { phase, past: (!past.is_empty()).then(|| Box::new(past)) }
    }
    /// The episodes that are over and may still matter; some that don't may be among them.
    pub fn past(&self) -> &[Episode] {
        self.past.as_ref().map_or(&[], |past| past.as_slice())
    }
    /// The ordinal of an episode that starts at `start`, now.
    pub fn ordinal(&self, start: i64) -> u32 {
        self.past().iter().filter(|e| e.start == start).count() as u32
    }
    /// Whether an event time lies in an episode. One that fires has no end yet.
    pub fn covers(&self, time: i64) -> bool {
        matches!(self.phase, Phase::Firing { start, .. } if start <= time)
            || self.past().iter().any(|e| e.start <= time && time < e.end)
    }
    /// It fires at `time`; it began at `start`.
    pub fn fire(&mut self, time: i64, start: i64, ordinal: u32, value: Option<f64>, emit: &mut Emit) {
        self.phase = Phase::Firing { start, ordinal };
        emit.push(time, AlertState::Firing, value, start, ordinal, false);
    }
    /// If it fires, it is over at `time`, but not before its start.
    pub fn resolve(&mut self, time: i64, value: Option<f64>, emit: &mut Emit) {
        if let Phase::Firing { start, ordinal } = self.phase {
            let end = time.max(start);
            self.phase = Phase::Idle;
            self.remember(Episode { start, end }, emit.remembered);
            emit.push(end, AlertState::Resolved, value, start, ordinal, false);
        }
    }
    /// An episode that is over as it begins, by a reading that came behind.
    pub fn flash(&mut self, time: i64, value: f64, emit: &mut Emit) {
        let ordinal = self.ordinal(time);
        self.remember(Episode { start: time, end: time }, emit.remembered);
        for state in [AlertState::Firing, AlertState::Resolved] {
            emit.push(time, state, Some(value), time, ordinal, true);
        }
    }
    /// The life of another version of the rule, which comes in this one's place: it remembers what has been, and what
    /// now fires as over at the clock.
    pub fn successor(&self, clock: i64) -> Self {
        let mut past = self.past().to_vec();
        if let Phase::Firing { start, .. } = self.phase {
            past.push(Episode { start, end: clock.max(start) });
        }
        Self::new(Phase::Idle, past)
    }
    fn remember(&mut self, episode: Episode, remembered: i64) {
        let past = self.past.get_or_insert_default();
        if past.len() == past.capacity() {
            past.retain(|e| e.end >= remembered);
        }
        past.push(episode);
    }
}
