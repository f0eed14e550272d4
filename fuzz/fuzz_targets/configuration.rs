//! A configuration, whatever is written in it: what is accepted can be recorded and read again, and what is not has a report.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streamgauge::config::{Overrides, Pure, load_texts};

fuzz_target!(|text: &str| {
    match load_texts(&[("a.toml".into(), text.to_owned())], &|_| None, &Overrides::default()) {
        Ok(loaded) => {
            let pure = loaded.pure();
            assert_eq!(Pure::parse(&pure.text()).expect("recorded").hash(), pure.hash());
        }
        Err(report) => assert!(!format!("{report:?}").is_empty()),
    }
});
