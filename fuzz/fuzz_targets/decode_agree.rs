//! The fast and the slow path make the same of every record, whatever the decoder has learned of those before.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use streamgauge::decode::Decoder;
use streamgauge_fuzz::{NARROW, WIDE, decoder, shown};

thread_local!(static DECODERS: RefCell<[(Decoder, Decoder); 2]> = RefCell::new([NARROW, WIDE].map(|mapping| {
    let decoder = decoder(mapping, None);
    (decoder.clone(), decoder.without_fast_path())
})));

fuzz_target!(|data: &[u8]| DECODERS.with_borrow_mut(|decoders| {
    // Several records of one decoder: what it learned of one must not change what it makes of the next.
    for record in data.split(|byte| *byte == 0) {
        for (fast, slow) in decoders.iter_mut() {
            assert_eq!(shown(fast.decode(Some(record))), shown(slow.decode(Some(record))));
        }
    }
}));
