//! A narrow record never brings the decoder down, and what comes out is what the docs promise.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use streamgauge::decode::Decoder;
use streamgauge_fuzz::{NARROW, check, decoder};

thread_local!(static DECODER: RefCell<Decoder> = RefCell::new(decoder(NARROW, None)));

fuzz_target!(|data: &[u8]| DECODER.with_borrow_mut(|decoder| check(decoder.decode(Some(data)))));
