//! The operators of streamgauge: pure, without IO, clock, threads or configuration formats.
//!
//! A reading meets them in this order, and the files are in it too:
//!
//! ```text
//! reading -> key_group, dictionary -> judge (ids, counted) -> rolling -> rules/ -> alert
//! ```
//!
//! [`judge`] finds what is in the future, a duplicate, late or accepted; [`rolling`] takes what is accepted into windows;
//! [`rules`] judges values, statistics and silence, and hands on transitions of alerts. Each keeps its state in vectors
//! by the series' number ([`dictionary`]), and saves and restores it bit for bit by key group ([`state`]). The exact
//! rules are docs/semantics.md; `keyed` is the one file in timely's terms.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod reading;
pub use reading::*;

pub mod alert;
pub mod counted;
pub mod dictionary;
pub mod hand;
mod ids;
pub mod judge;
pub mod key_group;
pub mod keyed;
pub mod rolling;
pub mod rules;
pub mod state;

pub use alert::{Alert, AlertState, Transition};
pub use counted::CountedTime;
pub use dictionary::{Dictionary, SharedDictionary};
pub use judge::{Judge, JudgeConfig, Refusal, Tally};
pub use key_group::{KEY_GROUPS, key_group, worker_of};
pub use rolling::{Plan, Rolling, Stat, Stats, Window};
pub use rules::{Condition, Missing, RuleSpec, Rules, Threshold};
pub use state::{GroupStates, Saves, StateError};
