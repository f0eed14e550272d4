//! What a reading costs on its way, stage by stage: in instructions, which do not depend on what else the machine does.
//!
//!     cargo run --release --features tls --example hot_path              # nanoseconds per reading, for orientation
//!     cargo run --release --features tls --example hot_path -- check     # instructions against budget.toml (make bench-check)
//!     cargo run --release --features tls --example hot_path -- budget    # writes budget.toml anew
//!     cargo run --release --features tls --example hot_path -- checkpoint # how long a cut of 0.6 M live ids holds a worker up
//!     cargo run --release --features tls --example hot_path -- run 2000000 10000   # the whole program, source in memory
//!
//! The input is fixed and made from a seed. `check` runs this program again under valgrind's callgrind, which counts the
//! instructions of each stage's own function and of what it calls; it fails where a stage needs more than 3 % more than
//! its budget, and says which. The figures depend on the compiler: after a new one, or after a change that is worth
//! what it costs, write the budget anew in the same commit.

mod budget;
mod input;
mod stages;
mod whole;

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] | ["time"] => {
            stages::all(&mut stages::Clocked)?;
            stages::meet(&mut stages::Clocked)
        }
        ["measure"] => stages::all(&mut stages::Counted),
        ["checkpoint"] => {
            stages::checkpoint(&mut stages::Clocked, 10_000, 60)?;
            stages::stalls(10_000, 60)
        }
        ["check"] => budget::check(),
        ["budget"] => budget::write(),
        ["run", rest @ ..] => whole::run(rest),
        other => Err(format!("hot_path knows time, check, budget, checkpoint and run, not {other:?}").into()),
    }
}
