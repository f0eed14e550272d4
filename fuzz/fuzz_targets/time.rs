//! The hand-written reader of times and jiff make the same of every text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use streamgauge::decode::Times;

thread_local!(static TIMES: RefCell<[Times; 3]> = RefCell::new(
    [None, Some("Europe/Berlin"), Some("America/New_York")].map(|zone| Times::new(None, zone).expect("the zone is known"))
));

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    TIMES.with_borrow(|all| {
        for times in all {
            assert_eq!(times.text(text), times.text_by_jiff(text));
        }
    });
});
