//! Ten million updates, and the statistics are still right. `examples/soak.rs` does a hundred times as many.

#[path = "common/exact.rs"]
mod exact;

#[test]
fn ten_million_updates_leave_no_error_behind() {
    println!("{}", exact::soak(10_000_000, Default::default(), 100_003));
}
