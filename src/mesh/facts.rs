//! What must be alike in all processes of a cluster, and the sentence for each that is not.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What must be alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The program's version and commit.
    pub version: String,
    /// How many processes there are.
    pub processes: usize,
    /// Worker threads of each.
    pub workers: usize,
    /// The hash of the pure part of the configuration.
    pub config: String,
    /// Other settings that all must have, by the name under which they are written.
    pub settings: BTreeMap<String, String>,
    /// Which data directory this is.
    pub data_dir: String,
    /// The newest term in it.
    pub term: u64,
}

/// Why two processes do not belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The sentence.
    pub sentence: String,
    /// Whether another look may find it mended: what lies on a shared disk is not seen everywhere at once.
    pub may_pass: bool,
}

impl Facts {
    /// The first thing in which process `a` differs from process `b`.
    pub fn mismatch((a, ours): (usize, &Facts), (b, theirs): (usize, &Facts)) -> Option<Mismatch> {
        let lasting = |sentence| Some(Mismatch { sentence, may_pass: false });
        if ours.version != theirs.version {
            let (x, y) = (&ours.version, &theirs.version);
            return lasting(format!("process {a} is version {x}, process {b} version {y}; run one version everywhere"));
        }
        if ours.processes != theirs.processes {
            let (x, y) = (ours.processes, theirs.processes);
            return lasting(format!(
                "process {a} counts {x} processes, process {b} counts {y}; give all of them the same -n"
            ));
        }
        if ours.workers != theirs.workers {
            let (x, y) = (ours.workers, theirs.workers);
            return lasting(format!(
                "process {a} has {x} workers, process {b} has {y}; give all of them the same number (-w, workers)"
            ));
        }
        if ours.config != theirs.config {
            return lasting(format!("processes {a} and {b} have different configurations; give all of them the same"));
        }
        let none = String::new();
        for name in ours.settings.keys().chain(theirs.settings.keys()) {
            let (x, y) = (ours.settings.get(name).unwrap_or(&none), theirs.settings.get(name).unwrap_or(&none));
            if x != y {
                return lasting(format!(
                    "`{name}` is `{x}` for process {a} and `{y}` for process {b}; give all of them the same"
                ));
            }
        }
        if ours.data_dir != theirs.data_dir {
            return lasting(format!(
                "processes {a} and {b} have different data directories; give all of them one data_dir, which several \
                 hosts reach over a shared file system"
            ));
        }
        if ours.term != theirs.term {
            let (x, y) = (ours.term, theirs.term);
            return Some(Mismatch {
                sentence: format!(
                    "process {a} finds term {x} to be the newest in data_dir, process {b} finds {y}; do they see one \
                     directory, and has the run before ended?"
                ),
                may_pass: true,
            });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_has_a_sentence() {
        let same = Facts { version: "1".into(), processes: 2, workers: 2, config: "c".into(), ..Facts::default() };
        assert_eq!(Facts::mismatch((0, &same), (1, &same)), None);
        type Case<'a> = (&'a str, bool, &'a dyn Fn(&mut Facts));
        let cases: [Case<'_>; 7] = [
            ("version 1, process 1 version 2", false, &|f| f.version = "2".into()),
            ("same -n", false, &|f| f.processes = 3),
            ("has 2 workers, process 1 has 1", false, &|f| f.workers = 1),
            ("different configurations", false, &|f| f.config = "d".into()),
            ("`checkpoint.interval` is `` for process 0 and `1s` for process 1", false, &|f| {
                f.settings.insert("checkpoint.interval".into(), "1s".into());
            }),
            ("different data directories", false, &|f| f.data_dir = "x".into()),
            ("finds term 0", true, &|f| f.term = 4),
        ];
        for (words, may_pass, change) in cases {
            let mut other = same.clone();
            change(&mut other);
            let found = Facts::mismatch((0, &same), (1, &other)).expect(words);
            assert!(found.sentence.contains(words), "{words}: {}", found.sentence);
            assert_eq!(found.may_pass, may_pass, "{words}");
        }
    }
}
