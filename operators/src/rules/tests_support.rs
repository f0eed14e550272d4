//! What the tests of rules share.

use super::{Condition, RuleSpec};
use crate::Transition;
use std::rc::Rc;

pub fn spec(key: &str, version: &str, condition: Condition) -> Rc<RuleSpec> {
    let (key, name, version, severity) = (key.into(), key.into(), version.into(), "warning".into());
    Rc::new(RuleSpec { key, name, version, severity, condition })
}

/// Transitions as text: time, state, value, start.ordinal.
pub fn lines(out: &[Transition]) -> Vec<String> {
    out.iter()
        .map(|t| {
            let value = t.value.map_or("-".into(), |x| x.to_string());
            let behind = if t.behind { " behind" } else { "" };
            format!("{} {} {value} start {}.{}{behind}", t.time, t.state.word(), t.start, t.ordinal)
        })
        .collect()
}
