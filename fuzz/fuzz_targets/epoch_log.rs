#![no_main]
//! A segment of an epoch log: as it is, and with every payload behind a sound checksum.

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::Arc;
use streamgauge::epoch_log::{Frame, Frames, Known, LogEnd, read_term};
use streamgauge_fuzz::frozen::Frozen;

fuzz_target!(|bytes: &[u8]| {
    let _ = Frame::decode(bytes);
    if let Ok(mut frames) = Frames::new(bytes, LogEnd::start(1, 0).chain) {
        while let Ok(Some(_)) = frames.read() {}
    }
    let mut logs = Frozen::default();
    logs.0.insert("/term-1/process-0.000000.log".into(), Arc::new(bytes.to_vec()));
    let _ = read_term(&logs, Path::new("/"), 1, &Known::default());
});
