//! The configuration: what a person writes, and what the program makes of it.
//!
//! `types` (with `rule_types`, `sink_types`, `values`) is the manual. A file becomes a `tree` whose values know their
//! place, the tree becomes types (`typed`), the types are checked (`validate`), and everything that is wrong goes to one
//! `report`, with `hints` on what would be right. `pure` is the part that answers depend on, `resolve` and `selector`
//! what the graph is built from.

mod hints;
mod inventory;
mod load;
mod pure;
mod report;
mod resolve;
mod rule_types;
mod selector;
mod sink_types;
#[cfg(test)]
mod tests;
mod tree;
mod typed;
mod types;
mod validate;
mod validate_rules;
mod validate_sinks;
mod values;

pub use hints::nearest;
pub use inventory::{Inventory, is_label};
pub use load::{Loaded, Overrides, VARIABLES, default_file, environment, load, load_texts};
pub use pure::{Pure, PureSource, SEMANTICS, hash, pure_text};
pub use report::{Finding, Level, MessageFormat, Origins, Place, Report, is_secret_key};
pub use resolve::{Resolved, ResolvedRule};
pub use selector::Selector;
pub use types::*;
pub use values::{Interval, OneOrMany, Pointer, Secret, Size, Url};
