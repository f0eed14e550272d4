#![no_main]
//! Whatever a configuration says, it is taken, or refused with findings; what is taken can be recorded and read again.

use libfuzzer_sys::fuzz_target;
use streamgauge_fuzz::config::{Overrides, Pure, load_texts};

fuzz_target!(|text: &str| {
    let loaded = load_texts(&[("a.toml".into(), text.to_owned())], &|_| None, &Overrides::default());
    if let Ok(loaded) = loaded {
        let pure = loaded.pure();
        assert_eq!(Pure::parse(&pure.text()).map(|again| again.hash()), Ok(pure.hash()));
    }
});
