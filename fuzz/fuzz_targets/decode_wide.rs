//! A wide record, flat or nested, never brings the decoder down, and what comes out is what the docs promise.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use streamgauge::config::DedupKey;
use streamgauge::decode::Decoder;
use streamgauge_fuzz::{NESTED, WIDE, check, decoder};

thread_local!(static DECODERS: RefCell<[Decoder; 2]> =
    RefCell::new([decoder(WIDE, None), decoder(NESTED, Some(DedupKey::Hash))]));

fuzz_target!(|data: &[u8]| DECODERS.with_borrow_mut(|decoders| {
    for decoder in decoders {
        check(decoder.decode(Some(data)));
    }
}));
