//! The settings' types, without what loads them.

#[path = "../../src/config/rule_types.rs"]
mod rule_types;
#[path = "../../src/config/sink_types.rs"]
mod sink_types;
#[path = "../../src/config/types.rs"]
mod types;
#[path = "../../src/config/values.rs"]
mod values;

pub use types::*;
pub use values::{Interval, OneOrMany, Pointer, Secret, Size, Url};
