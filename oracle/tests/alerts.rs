//! Rules and the life of their alerts: section 6, and the journal of section 7.

mod common;

use common::{S, Trace, above, json, stat_above, with_id};
use streamgauge_oracle::config::{Condition, Selector, Stat, Window};
use streamgauge_oracle::journal::alert_id;
use streamgauge_oracle::rules::matches;
use streamgauge_oracle::{canonical, run};

fn threshold(above: bool, limit: f64, hysteresis: f64, for_us: i64) -> Condition {
    Condition::Threshold { above, limit, hysteresis, for_us, of: None }
}

/// The story of one series with these values at 1 s, 2 s, ..., all in epoch 20, without epoch and end.
fn values(condition: Condition, values: &[f64]) -> Vec<String> {
    let readings = values.iter().zip(1..).map(|(value, second)| json("a", f64::from(second), *value));
    let story = Trace::new().rule("r", condition).epoch(20, readings).story();
    story.iter().map(|line| line.split(' ').collect::<Vec<_>>()[1..].join(" ").replace(" r a", "")).collect()
}

#[test]
fn the_limit_itself_is_no_breach_and_clears() {
    assert_eq!(
        values(above(8.0), &[8.0, 8.1, 9.0, 8.0]),
        ["firing at 2 = 8.1, from 2 #0", "resolved at 4 = 8, from 2 #0",]
    );
}

#[test]
fn a_value_in_the_hysteresis_band_neither_raises_nor_clears() {
    let expected = ["firing at 2 = 8.5, from 2 #0", "resolved at 5 = 6, from 2 #0"];
    assert_eq!(values(threshold(true, 8.0, 2.0, 0), &[7.0, 8.5, 7.0, 6.1, 6.0, 7.9]), expected);
    let expected = ["firing at 2 = -8.5, from 2 #0", "resolved at 5 = -6, from 2 #0"];
    assert_eq!(values(threshold(false, -8.0, 2.0, 0), &[-7.0, -8.5, -7.0, -6.1, -6.0, -7.9]), expected);
}

#[test]
fn below_is_above_in_the_mirror() {
    assert_eq!(
        values(threshold(false, 8.0, 0.0, 0), &[8.0, 7.9, 8.0]),
        ["firing at 2 = 7.9, from 2 #0", "resolved at 3 = 8, from 2 #0",]
    );
}

#[test]
fn with_for_an_alert_fires_when_it_has_breached_long_enough_and_starts_where_that_began() {
    let condition = threshold(true, 8.0, 0.0, 2 * S);
    assert!(values(condition.clone(), &[9.0, 9.0, 8.0, 9.0, 9.0]).is_empty(), "one reading inside starts it anew");
    assert_eq!(
        values(condition, &[9.0, 9.5, 9.7, 9.9, 1.0]),
        ["firing at 3 = 9.7, from 1 #0", "resolved at 5 = 1, from 1 #0",]
    );
}

#[test]
fn a_value_in_the_band_ends_a_pending_alert_but_not_a_firing_one() {
    let condition = threshold(true, 8.0, 2.0, 2 * S);
    assert!(values(condition.clone(), &[9.0, 7.0, 9.0, 9.0]).is_empty());
    assert_eq!(values(condition, &[9.0, 9.0, 9.0, 7.0]), ["firing at 3 = 9, from 1 #0"]);
}

#[test]
fn a_behind_reading_is_an_alert_of_its_own_unless_an_episode_holds_it() {
    let trace = Trace::new().rule("r", above(8.0)).epoch(
        20,
        [
            json("a", 10.0, 1.0),
            json("a", 12.0, 9.0), // fires
            json("a", 14.0, 1.0), // resolves
            json("a", 11.0, 9.0), // before the episode
            json("a", 12.5, 9.0), // inside it
            json("a", 13.5, 7.0), // inside, and calm: no effect
            json("a", 9.0, 7.0),  // outside, and calm
            json("a", 15.0, 9.0), // fires
            json("a", 14.5, 9.0), // before the firing one
            json("a", 16.0, 9.0),
            json("a", 15.5, 9.0), // inside the firing one, which has no end
            json("a", 14.25, 9.0),
        ],
    );
    assert_eq!(
        trace.story(),
        [
            "20.1 firing r a at 11 = 9, from 11 #0, behind",
            "20.2 resolved r a at 11 = 9, from 11 #0, behind",
            "20.3 firing r a at 12 = 9, from 12 #0",
            "20.4 resolved r a at 14 = 1, from 12 #0",
            "20.5 firing r a at 14.25 = 9, from 14.25 #0, behind",
            "20.6 resolved r a at 14.25 = 9, from 14.25 #0, behind",
            "20.7 firing r a at 14.5 = 9, from 14.5 #0, behind",
            "20.8 resolved r a at 14.5 = 9, from 14.5 #0, behind",
            "20.9 firing r a at 15 = 9, from 15 #0",
        ]
    );
}

#[test]
fn an_episode_s_end_is_outside_it() {
    let records = [
        with_id("1", "a", 10.0, 9.0),
        with_id("2", "a", 11.0, 1.0),
        with_id("3", "a", 12.0, 1.0),
        with_id("4", "a", 11.0, 9.0),
    ];
    let story = Trace::new().ids().rule("r", above(8.0)).epoch(20, records).story();
    assert_eq!(
        story[2..],
        ["20.3 firing r a at 11 = 9, from 11 #0, behind", "20.4 resolved r a at 11 = 9, from 11 #0, behind",]
    );
}

#[test]
fn behind_readings_leave_conditions_with_for_or_window_alone() {
    let window = Window::Time { us: 60 * S };
    for condition in [threshold(true, 8.0, 0.0, S), stat_above(8.0, Stat::Max, window)] {
        let readings = [json("a", 10.0, 1.0), json("a", 5.0, 9.0), json("a", 7.0, 9.0)];
        assert!(Trace::new().rule("r", condition).epoch(20, readings).story().is_empty());
    }
}

#[test]
fn a_behind_reading_enters_windows_and_shows_in_the_next_level() {
    let condition = stat_above(8.0, Stat::Max, Window::Time { us: 60 * S });
    let trace = Trace::new().rule("r", condition);
    let trace = trace.epoch(20, [json("a", 10.0, 1.0), json("a", 5.0, 9.0), json("a", 11.0, 2.0)]);
    assert_eq!(trace.story(), ["20.1 firing r a at 11 = 9, from 11 #0"]);
}

#[test]
fn episodes_with_the_same_start_are_told_apart_by_their_ordinal() {
    let ids = [("1", 10.0, 9.0), ("2", 10.0, 1.0), ("3", 10.0, 9.5), ("4", 11.0, 1.0), ("5", 10.0, 9.9)];
    let records = ids.map(|(id, time, value)| with_id(id, "a", time, value));
    let story = Trace::new().ids().rule("r", above(8.0)).epoch(20, records).story();
    assert_eq!(
        story,
        [
            "20.1 firing r a at 10 = 9, from 10 #0",
            "20.2 resolved r a at 10 = 1, from 10 #0",
            "20.3 firing r a at 10 = 9.5, from 10 #1",
            "20.4 resolved r a at 11 = 1, from 10 #1",
        ]
    );

    let held = [("1", 10.0, 9.0), ("2", 11.0, 9.0), ("3", 10.0, 9.5)];
    let records = held.map(|(id, time, value)| with_id(id, "a", time, value));
    assert_eq!(Trace::new().ids().rule("r", above(8.0)).epoch(20, records).story().len(), 1, "its start is inside it");

    let behind = [("1", 20.0, 1.0), ("2", 15.0, 9.0), ("3", 15.0, 9.5)];
    let records = behind.map(|(id, time, value)| with_id(id, "a", time, value));
    let story = Trace::new().ids().rule("r", above(8.0)).epoch(20, records).story();
    assert_eq!(
        story,
        [
            "20.1 firing r a at 15 = 9, from 15 #0, behind",
            "20.2 resolved r a at 15 = 9, from 15 #0, behind",
            "20.3 firing r a at 15 = 9.5, from 15 #1, behind",
            "20.4 resolved r a at 15 = 9.5, from 15 #1, behind",
        ]
    );
}

#[test]
fn an_episode_that_was_pending_and_never_fired_has_no_ordinal() {
    let ids = [("1", 10.0, 9.0), ("2", 10.0, 1.0), ("3", 10.0, 9.0), ("4", 12.0, 9.0)];
    let records = ids.map(|(id, time, value)| with_id(id, "a", time, value));
    let story = Trace::new().ids().rule("r", threshold(true, 8.0, 0.0, 2 * S)).epoch(20, records).story();
    assert_eq!(story, ["20.1 firing r a at 12 = 9, from 10 #0"]);
}

#[test]
fn an_undefined_statistic_changes_nothing() {
    // A rate over no time is undefined: it neither resolves, nor ends what is pending.
    let condition = |for_us| Condition::Threshold {
        above: true,
        limit: 1.0,
        hysteresis: 0.0,
        for_us,
        of: Some((Stat::Rate, Window::Count { n: 2 })),
    };
    let records = |last: f64| {
        [("1", 1.0, 0.0), ("2", 2.0, 5.0), ("3", 2.0, 6.0), ("4", 3.0, last)]
            .map(|(id, time, value)| with_id(id, "a", time, value))
    };
    let story = |for_us, last| Trace::new().ids().rule("r", condition(for_us)).epoch(20, records(last)).story();
    assert_eq!(story(0, 6.5), ["20.1 firing r a at 2 = 5, from 2 #0", "20.2 resolved r a at 3 = 0.5, from 2 #0"]);
    assert_eq!(story(S, 9.0), ["20.1 firing r a at 3 = 3, from 2 #0"]);
}

#[test]
fn a_window_that_only_a_rule_names_is_kept_for_it_and_not_reported() {
    let condition = stat_above(2.0, Stat::Mean, Window::Count { n: 3 });
    let trace = Trace::new()
        .with(|config| config.windows = vec![Window::Count { n: 2 }])
        .rule("r", condition)
        .epoch(20, [1.0, 2.0, 6.0].map(|value| json("a", value, value)));
    assert_eq!(trace.story(), ["20.1 firing r a at 6 = 3, from 6 #0"]);
    let rolling = trace.run().rolling;
    assert_eq!((rolling.len(), rolling[0].window, rolling[0].mean), (1, Window::Count { n: 2 }, 4.0));
}

#[test]
fn levels_of_a_rule_are_rules_with_a_name_in_common() {
    let trace = Trace::new().rule("hot:warning", above(8.0)).rule("hot:critical", above(9.0));
    let trace = trace.epoch(20, [json("a", 1.0, 9.5)]);
    assert_eq!(
        trace.story(),
        ["20.1 firing hot:critical a at 1 = 9.5, from 1 #0", "20.2 firing hot:warning a at 1 = 9.5, from 1 #0",]
    );
    assert!(trace.run().journal.iter().all(|line| line.contains(r#""rule":"hot","#)));
}

#[test]
fn a_selector_takes_globs_of_labels_and_of_the_sensor_and_excludes() {
    type Patterns<'a> = &'a [(&'a str, &'a [&'a str])];
    let cases: [(Patterns, &[&str]); 8] = [
        (&[], &["a-1", "a-2", "b-1"]),
        (&[("sensor", &["a-*"])], &["a-1", "a-2"]),
        (&[("sensor", &["*-1", "a-2"])], &["a-1", "a-2", "b-1"]),
        (&[("sensor", &["!a-*"])], &["b-1"]),
        (&[("sensor", &["*", "!*-1"])], &["a-2"]),
        (&[("site", &["north", "so*"])], &["a-1", "a-2"]),
        (&[("site", &[""])], &["b-1"]),
        (&[("site", &["!south"]), ("sensor", &["*-1"])], &["a-1", "b-1"]),
    ];
    for (selector, taken) in cases {
        let mut trace = Trace::new().rule("r", above(0.0));
        let label = |site: &str| [("site".to_string(), site.to_string())].into();
        trace.config.labels = [("a-1".to_string(), label("north")), ("a-2".to_string(), label("south"))].into();
        trace.config.rules[0].selector = selector
            .iter()
            .map(|(label, patterns)| Selector {
                label: (*label).into(),
                patterns: patterns.iter().map(|pattern| (*pattern).into()).collect(),
            })
            .collect();
        let outcome = trace.epoch(20, ["a-1", "a-2", "b-1"].map(|sensor| json(sensor, 1.0, 1.0))).run();
        let sensors: Vec<&str> = outcome.transitions.iter().map(|t| &*t.sensor).collect();
        assert_eq!(sensors, taken, "{selector:?}");
    }
}

#[test]
fn a_star_stands_for_any_text() {
    for (glob, text, expected) in [
        ("*", "", true),
        ("a*c", "abc", true),
        ("a*c", "ac", true),
        ("a*c", "abcd", false),
        ("*b*", "abc", true),
        ("a*b*c", "a-b-b-c", true),
        ("", "a", false),
        ("ä*ö", "äüö", true),
        ("a.c", "abc", false),
    ] {
        assert_eq!(matches(glob, text), expected, "{glob} {text}");
    }
}

#[test]
fn transitions_of_an_epoch_are_sorted_by_event_time_then_rule_sensor_and_start() {
    let trace = Trace::new()
        .rule("z", above(1.0))
        .rule("b", above(1.0))
        .epoch(20, [json("y", 5.0, 2.0), json("x", 5.0, 2.0), json("x", 6.0, 0.0), json("w", 4.0, 2.0)]);
    let story: Vec<String> = trace.story().iter().map(|line| line.split(" = ").next().unwrap_or("").into()).collect();
    assert_eq!(
        story,
        [
            "20.1 firing b w at 4",
            "20.2 firing z w at 4",
            "20.3 firing b x at 5",
            "20.4 firing b y at 5",
            "20.5 firing z x at 5",
            "20.6 firing z y at 5",
            "20.7 resolved b x at 6",
            "20.8 resolved z x at 6",
        ]
    );
}

#[test]
fn the_journal_s_lines_are_written_as_the_rules_say() {
    let trace = Trace::new().rule("too-hot", above(35.0)).epoch(20, [json("s-\\\"1", 1.5, 36.2), json("b", 1.5, 1e21)]);
    let line = |n, sensor, value, alert: &str| {
        format!(
            r#"{{"epoch":20,"n":{n},"time":1500000,"state":"firing","rule":"too-hot","severity":"warning","sensor":"{sensor}","metric":"m","value":{value},"start":1500000,"ordinal":0,"behind":false,"alert":"{alert}","transition":0,"version":"0badcafe"}}"#
        )
    };
    // The ids are from an implementation of BLAKE3 by hand, in Python.
    let one = line(1, "b", "1e+21", ALERT_B);
    let two = line(2, r#"s-\"1"#, "36.2", ALERT_S1);
    let outcome = trace.run();
    assert_eq!(outcome.journal, [one.clone(), two.clone()]);
    assert_eq!(outcome.transitions[0].alert, alert_id("too-hot", "b", "m", 1_500_000, 0));
    let without = |line: &str, n| line.replace(&format!(r#""epoch":20,"n":{n},"#), "");
    assert_eq!(canonical(&outcome.journal), [without(&one, 1), without(&two, 2)]);
}

const ALERT_B: &str = "2501fafe2487ae26355167f8d52b0cb1";
const ALERT_S1: &str = "c0593b62b0f7d0c1befcc98dcfe95dcd";

#[test]
fn a_canonical_journal_is_sorted_by_series_alert_and_transition_and_loses_no_line() {
    let line = |epoch, sensor, alert, transition| {
        format!(
            r#"{{"epoch":{epoch},"n":1,"time":1,"sensor":"{sensor}","metric":"m","alert":"{alert}","transition":{transition}}}"#
        )
    };
    let journal = [line(9, "b", "1", 0), line(3, "a", "2", 1), line(2, "a", "2", 0), line(7, "a", "1", 1), "?".into()];
    let expected = [("a", "1", 1), ("a", "2", 0), ("a", "2", 1), ("b", "1", 0)]
        .map(|(sensor, alert, n)| line(0, sensor, alert, n).replace(r#""epoch":0,"n":1,"#, ""));
    let sorted = canonical(&journal);
    assert_eq!(sorted[0], "?");
    assert_eq!(sorted[1..], expected);
}

#[test]
fn a_rule_is_refused_that_has_no_meaning() {
    let refused = |condition| {
        let trace = Trace::new().rule("r", condition);
        run(&trace.config, &[], &[]).expect_err("it has no meaning")
    };
    assert!(refused(threshold(true, 1.0, -1.0, 0)).contains("hysteresis"));
    assert!(refused(threshold(true, 1.0, 0.0, -1)).contains("for"));
    assert!(refused(Condition::Missing { after_us: 0 }).contains("after"));
    assert!(refused(stat_above(1.0, Stat::Mean, Window::Count { n: 0 })).contains("window"));
}
