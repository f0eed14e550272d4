//! Counted time, deadlines, forgetting: section 4.

mod common;

use common::{S, Trace, above, json, stat_above, with_id};
use streamgauge_oracle::Line;
use streamgauge_oracle::config::{Condition, Stat, Window};
use streamgauge_oracle::log::EpochLog;

fn missing(seconds: i64) -> Condition {
    Condition::Missing { after_us: seconds * S }
}

/// Hears from epoch 0 on; one rule.
fn watching(condition: Condition) -> Trace {
    Trace::new().rule("r", condition).hearing(0)
}

#[test]
fn a_series_without_news_is_missing_at_the_first_whole_second_of_counted_time() {
    // Event times are of 1970, epochs are not: only the difference counts.
    let trace = watching(missing(3)).reading(10_500, 2.0, 1.0);
    assert!(trace.clone().end(13_998).story().is_empty());
    let expected = ["14000.1 firing r a at 5 = none, from 5 #0"];
    assert_eq!(trace.clone().end(13_999).story(), expected, "epochs < 14000 are complete");
    assert_eq!(trace.end(99_999).story(), expected);
}

#[test]
fn a_deadline_reached_on_a_whole_second_is_met_before_the_readings_of_that_epoch() {
    let trace = watching(missing(3)).reading(11_000, 2.0, 1.0).reading(14_000, 4.0, 7.0);
    assert_eq!(
        trace.story(),
        [
            "14000.1 firing r a at 5 = none, from 5 #0",
            "14000.2 resolved r a at 5 = 7, from 5 #0", // the reading is of 4 s, but an alert does not end before its start
        ]
    );
}

#[test]
fn what_is_due_while_the_frontier_jumps_fires_at_its_own_second() {
    let trace = watching(missing(3)).epoch(1_000, [json("a", 1.0, 1.0), json("b", 1.0, 1.0)]);
    let trace = trace.epoch(2_000, [json("b", 1.5, 1.0)]).epoch(60_000, [json("c", 1.0, 1.0)]);
    assert_eq!(
        trace.story(),
        ["4000.1 firing r a at 4 = none, from 4 #0", "5000.1 firing r b at 4.5 = none, from 4.5 #0",]
    );
}

#[test]
fn a_reading_at_or_beyond_the_deadline_shows_that_one_was_missing() {
    let trace = |second| watching(missing(3)).epoch(1_000, [json("a", 1.0, 1.0), json("a", second, 7.0)]).story();
    assert!(trace(3.999999).is_empty());
    assert_eq!(trace(4.0), ["1000.1 firing r a at 4 = none, from 4 #0", "1000.2 resolved r a at 4 = 7, from 4 #0",]);
    assert_eq!(trace(60.0), ["1000.1 firing r a at 4 = none, from 4 #0", "1000.2 resolved r a at 60 = 7, from 4 #0",]);
}

#[test]
fn a_behind_reading_is_no_news() {
    let trace = watching(missing(3)).reading(1_000, 5.0, 1.0).reading(3_500, 4.0, 1.0).reading(5_000, 4.5, 1.0);
    assert_eq!(trace.story(), ["4000.1 firing r a at 8 = none, from 8 #0"]);
}

#[test]
fn a_reading_at_the_clock_is_news_and_silence_starts_again() {
    let records = |id: &str| [with_id(id, "a", 1.0, 7.0)];
    let trace = watching(missing(3)).ids();
    let trace = trace.epoch(1_000, records("1")).epoch(5_500, records("2")).end(9_999);
    assert_eq!(
        trace.story(),
        [
            "4000.1 firing r a at 4 = none, from 4 #0",
            "5500.1 resolved r a at 4 = 7, from 4 #0",
            "9000.1 firing r a at 4 = none, from 4 #1",
        ]
    );
}

#[test]
fn time_is_not_counted_while_a_process_is_deaf() {
    let trace = Trace::new().rule("r", missing(3));
    let trace = trace.hearing(1_000).deaf(2_000).hearing(7_000).reading(1_500, 1.0, 1.0).end(20_000);
    assert_eq!(trace.story(), ["10000.1 firing r a at 4 = none, from 4 #0"], "half a second, and 2.5 from 7000 on");

    let mut two = trace.clone();
    two.lines[0] = Line::Term { processes: 2 };
    assert!(two.story().is_empty(), "the second process never hears");
    let two = two.line(Line::Hearing { epoch: 8_200, process: 1 });
    assert_eq!(two.story(), ["12000.1 firing r a at 4 = none, from 4 #0"]);
}

#[test]
fn a_term_that_has_ended_is_deaf_until_the_next_one_hears() {
    let trace = Trace::new().rule("r", missing(3)).hearing(0).reading(1_000, 1.0, 1.0).end(2_999);
    let trace = trace.term().hearing(500_500).reading(500_000, 0.5, 1.0).end(600_000);
    assert_eq!(trace.story(), ["502000.1 firing r a at 4 = none, from 4 #0"], "2 s before the end, 1 s from 500500 on");
}

#[test]
fn what_was_due_when_a_term_ended_fires_at_the_first_whole_second_after_it() {
    let trace = Trace::new().rule("r", missing(3)).hearing(0).reading(1_000, 1.0, 1.0).end(4_500);
    assert_eq!(trace.story().len(), 1);
    let trace = Trace::new().rule("r", missing(3)).hearing(0).reading(1_200, 1.0, 1.0).end(4_500);
    assert!(trace.story().is_empty());
    assert_eq!(trace.term().end(90_000).story(), ["5000.1 firing r a at 4 = none, from 4 #0"]);
}

#[test]
fn lines_beyond_a_term_s_end_are_void_and_their_records_come_again() {
    let trace = Trace::new().rule("r", above(8.0)).reading(20, 1.0, 9.0).reading(60, 2.0, 1.0).end(40);
    assert_eq!(trace.archive(), ["a 1 accepted"]);
    let mut again = trace.term();
    let Some(Line::Range { next, records, .. }) = again.lines.get(2).cloned() else { panic!("no range") };
    again.lines.push(Line::Range { epoch: 55, source: "s".into(), topic: "t".into(), partition: 0, next, records });
    assert_eq!(again.story(), ["20.1 firing r a at 1 = 9, from 1 #0", "55.1 resolved r a at 2 = 1, from 1 #0"]);
}

#[test]
fn counted_time_can_be_asked_both_ways() {
    let hearing = |epoch| Line::Hearing { epoch, process: 0 };
    let lines = [
        Line::Term { processes: 1 },
        hearing(10),
        Line::Deaf { epoch: 20, process: 0 },
        hearing(50),
        Line::End { epoch: 59 },
    ];
    let counted = EpochLog::of(&lines).expect("the log is possible").counted;
    let at: Vec<u64> = [0, 10, 11, 20, 49, 50, 51, 60, 99].map(|epoch| counted.at(epoch)).into();
    assert_eq!(at, [0, 0, 1, 10, 10, 10, 11, 20, 20]);
    for count in 0..=20 {
        let first = (0..100).find(|epoch| counted.at(*epoch) >= count);
        assert_eq!(counted.reaches(count), first, "{count}");
    }
    assert_eq!(counted.reaches(21), None);
}

#[test]
fn an_alert_on_a_window_that_runs_empty_is_resolved_where_it_does() {
    let window = Window::Time { us: 3 * S };
    let trace = watching(stat_above(8.0, Stat::Mean, window)).reading(1_500, 1.0, 9.0).end(20_000);
    assert_eq!(
        trace.story(),
        [
            "1500.1 firing r a at 1 = 9, from 1 #0",
            "5000.1 resolved r a at 4 = none, from 1 #0", // 1500 + 3000 is reached at 5000
        ]
    );
    let trace = watching(stat_above(8.0, Stat::Mean, window));
    let trace = trace.epoch(20, [json("a", 1.0, 9.0), json("a", 3.9, 9.0), json("a", 6.9, 10.0)]);
    assert_eq!(
        trace.story(),
        [
            "20.1 firing r a at 1 = 9, from 1 #0",
            "20.2 resolved r a at 6.9 = none, from 1 #0", // 3.9 + 3, before the reading there
            "20.3 firing r a at 6.9 = 10, from 6.9 #0",
        ]
    );
    let trace = watching(stat_above(8.0, Stat::Mean, Window::Count { n: 3 })).reading(1_500, 1.0, 9.0).end(90_000);
    assert_eq!(trace.story().len(), 1, "the last N do not run empty");
}

#[test]
fn a_forgotten_series_keeps_its_clock_and_returns_above_it_as_a_new_one() {
    let trace = Trace::new()
        .with(|config| (config.series_ttl_ms, config.windows) = (5_000, vec![Window::Count { n: 9 }]))
        .hearing(0)
        .epoch(1_000, [json("a", 1.0, 1.0), json("a", 3.0, 3.0)]);
    let late = trace.clone().epoch(6_000, [json("a", 3.0, 3.0), json("a", 2.0, 1.0)]);
    assert_eq!((late.counts().late, late.counts().duplicates), (2, 0), "its ids are gone, its clock is not");
    assert!(late.run().rolling.is_empty());
    let early = trace.clone().epoch(5_999, [json("a", 3.0, 3.0), json("a", 2.0, 1.0)]);
    assert_eq!((early.counts().duplicates, early.counts().behind), (1, 1), "a millisecond earlier it is still known");
    let new = trace.epoch(6_000, [json("a", 4.0, 7.0), json("a", 3.5, 5.0), json("a", 3.0, 3.0), json("a", 2.5, 5.0)]);
    assert_eq!(
        new.archive()[2..],
        ["a 4 accepted", "a 3.5 behind", "a 3 late", "a 2.5 late"],
        "what it may have accepted before it was forgotten stays late"
    );
    let rolling = &new.run().rolling[0];
    assert_eq!((rolling.count, rolling.mean, rolling.ewma), (2.0, 6.0, 7.0), "its windows begin anew");
}

#[test]
fn forgetting_ends_what_is_pending_and_keeps_what_is_firing() {
    let pending = Condition::Threshold { above: true, limit: 8.0, hysteresis: 0.0, for_us: 2 * S, of: None };
    let trace = Trace::new()
        .with(|config| config.series_ttl_ms = 5_000)
        .rule("firing", above(8.0))
        .rule("pending", pending)
        .hearing(0)
        .reading(1_000, 1.0, 9.0)
        .reading(8_000, 4.0, 9.0) // pending anew, although 3 s after the first
        .reading(8_020, 5.0, 1.0);
    assert_eq!(
        trace.story(),
        ["1000.1 firing firing a at 1 = 9, from 1 #0", "8020.1 resolved firing a at 5 = 1, from 1 #0",]
    );
}

#[test]
fn a_forgotten_series_is_not_missing_but_its_firing_alerts_have_their_deadlines() {
    let trace = Trace::new()
        .with(|config| config.series_ttl_ms = 2_000)
        .rule("gone", missing(4))
        .rule("mean", stat_above(8.0, Stat::Mean, Window::Time { us: 5 * S }))
        .hearing(0)
        .reading(1_000, 1.0, 9.0);
    let firing = "1000.1 firing mean a at 1 = 9, from 1 #0";
    assert_eq!(trace.clone().end(50_000).story(), [firing, "6000.1 resolved mean a at 6 = none, from 1 #0"]);
    assert_eq!(trace.reading(4_000, 9.0, 1.0).story(), [firing, "4000.1 resolved mean a at 6 = none, from 1 #0"]);
}

#[test]
fn within_a_second_deadlines_come_before_forgetting() {
    let trace = Trace::new().with(|config| config.series_ttl_ms = 3_000).rule("r", missing(3)).hearing(0);
    let trace = trace.reading(1_000, 1.0, 1.0).reading(9_000, 2.0, 5.0);
    assert_eq!(
        trace.story(),
        [
            "4000.1 firing r a at 4 = none, from 4 #0",
            "9000.1 resolved r a at 4 = 5, from 4 #0", // firing alerts outlive the forgetting
        ]
    );
}
