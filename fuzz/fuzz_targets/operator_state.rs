#![no_main]
//! The state of an operator, whatever its bytes: it is taken, or refused.

use libfuzzer_sys::fuzz_target;
use operators::rolling::{Plan, Stat, Window};
use operators::rules::{Condition, RuleSpec, Rules, Threshold};
use operators::{CountedTime, Judge, JudgeConfig, Rolling, SharedDictionary, key_group};
use std::rc::Rc;

fuzz_target!(|input: (u8, &[u8])| {
    let (which, bytes) = input;
    let group = key_group(b"s-1");
    let dictionary = SharedDictionary::default();
    let windows = vec![Window::Time { us: 8_000_000 }, Window::Count { n: 6 }];
    let mut plan = Plan::default();
    let max = plan.ask("t", 1, Stat::Max);
    let plan = Rc::new(plan);
    match which % 4 {
        0 => {
            let config = JudgeConfig {
                allowed_lateness: 10_000_000,
                dedup_window: 20_000_000,
                conflict_is_dead_letter: false,
                max_series_per_group: 20,
                series_ttl_ms: 40_000,
            };
            let _ = Judge::new(config, dictionary).load(group, bytes, &mut Vec::new());
        }
        1 => {
            let _ = Rolling::new(windows, plan, dictionary).load(group, bytes);
        }
        2 => {
            let condition = Condition::Threshold(Threshold {
                above: true,
                limit: 50.0,
                hysteresis: 1.0,
                for_us: 0,
                feature: Some(max),
                window: Some(windows[1]),
            });
            let [key, name, version, severity] = ["max", "max", "1", "warning"].map(str::to_owned);
            let spec = Rc::new(RuleSpec { key, name, version, severity, condition });
            let _ = Rules::new(vec![spec], 10_000_000, plan, dictionary).load(group, bytes);
        }
        _ => {
            let _ = CountedTime::load(bytes);
        }
    }
});
