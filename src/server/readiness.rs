//! Whether the program does its work, and each reason why it does not.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The reasons in use; a closed list, so that a probe can rely on them.
pub mod reason {
    /// The dataflow has not started.
    pub const STARTING: &str = "starting";
    /// A source cannot be reached.
    pub const SOURCE_DOWN: &str = "source_down";
    /// The conservation law does not hold.
    pub const CONSERVATION: &str = "conservation";
    /// The disk of the data directory takes nothing of something.
    pub const DISK: &str = "disk";
    /// The newest checkpoint is too old.
    pub const CHECKPOINT: &str = "checkpoint";
    /// Stopping.
    pub const STOPPING: &str = "stopping";
}

/// A reason not to be ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which, of the closed list.
    pub reason: &'static str,
    /// What it is about: a source, a sink; empty for the process.
    pub about: String,
    /// What is wrong, in words.
    pub problem: String,
}

/// The problems that there are; shared, and set by whoever sees them come and go.
#[derive(Debug)]
pub struct Readiness {
    problems: Mutex<BTreeMap<(&'static str, String), String>>,
}

impl Default for Readiness {
    /// Not ready: starting.
    fn default() -> Self {
        let problems = [((reason::STARTING, String::new()), "the dataflow has not started".to_owned())];
        Self { problems: Mutex::new(problems.into()) }
    }
}

impl Readiness {
    /// The process has this problem now, or no longer.
    pub fn set(&self, reason: &'static str, problem: Option<String>) {
        self.set_for(reason, "", problem);
    }

    /// This source or sink has this problem now, or no longer.
    pub fn set_for(&self, reason: &'static str, about: &str, problem: Option<String>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (reason, about.to_owned());
        match problem {
            Some(problem) => {
                if problems.insert(key, problem.clone()).is_none() {
                    tracing::warn!(reason, about, problem, "not ready");
                }
            }
            None => {
                if problems.remove(&key).is_some() {
                    tracing::info!(reason, about, "no longer a reason not to be ready");
                }
            }
        }
    }

    /// The problems, in order of reason.
    pub fn problems(&self) -> Vec<Problem> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let problem = |((reason, about), problem): (&(&'static str, String), &String)| Problem {
            reason,
            about: about.clone(),
            problem: problem.clone(),
        };
        problems.iter().map(problem).collect()
    }
}
