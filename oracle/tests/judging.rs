//! Order, clocks, duplicates, lateness, limits: sections 1 and 3.

mod common;

use common::{S, Trace, above, json, with_id};
use streamgauge_oracle::config::{DedupKey, OnConflict};
use streamgauge_oracle::{Line, Reason, canonical};
use xxhash_rust::xxh3::xxh3_64;

#[test]
fn inside_an_epoch_readings_are_taken_in_log_order_whatever_their_event_times() {
    let trace = Trace::new().epoch(20, [json("a", 5.0, 1.0), json("a", 1.0, 1.0), json("a", 7.0, 1.0)]);
    assert_eq!(trace.archive(), ["a 5 accepted", "a 1 behind", "a 7 accepted"]);
}

#[test]
fn a_lower_partition_comes_first_within_an_epoch_and_an_earlier_epoch_before_any_partition() {
    let one = |seconds| vec![Some(json("a", seconds, 1.0).into_bytes())];
    let trace = Trace::new()
        .partition(20, 1, Some(0), one(3.0))
        .partition(20, 0, Some(0), one(4.0))
        .partition(40, 0, Some(0), one(1.0))
        .partition(30, 1, Some(0), one(2.0));
    assert_eq!(trace.archive(), ["a 4 accepted", "a 3 behind", "a 2 behind", "a 1 behind"]);
}

#[test]
fn streams_are_ordered_by_source_and_then_topic() {
    let mut trace = Trace::new();
    trace.config.sources[0].topics = vec!["z".into(), "t".into()];
    let mut other = trace.config.sources[0].clone();
    other.name = "r".into();
    trace.config.sources.push(other);
    for (source, topic, seconds) in [("s", "z", 1.0), ("s", "t", 2.0), ("r", "z", 3.0)] {
        trace = trace.epoch(20, [json("a", seconds, 1.0)]);
        let record = trace.records.last_mut().expect("there is one");
        (record.source, record.topic) = (source.into(), topic.into());
        let Some(Line::Range { source: s, topic: t, .. }) = trace.lines.last_mut() else { panic!("no range") };
        (*s, *t) = (source.into(), topic.into());
    }
    assert_eq!(trace.archive(), ["a 3 accepted", "a 2 behind", "a 1 behind"]);
}

#[test]
fn where_epochs_end_changes_positions_and_nothing_else() {
    let readings: Vec<String> =
        (0..200_u32).map(|i| json("a", f64::from(i + i * 37 % 13), f64::from(i * 53 % 17))).collect();
    let cut = |length: usize| {
        let trace = Trace::new().rule("hot", above(8.0));
        readings.chunks(length).zip(1..).fold(trace, |trace, (chunk, epoch)| trace.epoch(epoch * 20, chunk)).run()
    };
    let (one, seven) = (cut(1), cut(7));
    assert!(one.journal.len() > 50, "too few transitions to test anything");
    assert_ne!(one.journal, seven.journal);
    assert_eq!(canonical(&one.journal), canonical(&seven.journal));
    assert_eq!(one.counts, seven.counts);
}

#[test]
fn an_identity_is_remembered_up_to_the_window_s_edge_and_no_longer() {
    let trace = |clock: f64| {
        let trace = Trace::new().ids().with(|c| (c.allowed_lateness_us, c.dedup.window_us) = (1000 * S, 10 * S));
        trace.epoch(20, [with_id("x", "a", 10.0, 1.0), with_id("y", "a", clock, 1.0), with_id("x", "a", 10.0, 1.0)])
    };
    assert_eq!(trace(20.0).archive(), ["a 10 accepted", "a 20 accepted"]);
    assert_eq!(trace(20.0).counts().duplicates, 1);
    assert_eq!(trace(20.000001).archive(), ["a 10 accepted", "a 20.000001 accepted", "a 10 behind"]);
}

#[test]
fn an_identity_belongs_to_its_series_alone() {
    let trace = Trace::new().ids().epoch(20, [with_id("x", "a", 1.0, 1.0), with_id("x", "b", 1.0, 1.0)]);
    assert_eq!(trace.counts().accepted, 2);
}

#[test]
fn a_conflicting_copy_is_a_duplicate_or_a_dead_letter_by_policy() {
    let copies = [
        with_id("x", "a", 1.0, 1.0),
        with_id("x", "a", 1.0, 1.0), // exact
        with_id("x", "a", 1.0, 2.0), // another value
        with_id("x", "a", 2.0, 1.0), // another time, newer than the clock: nothing moves
    ];
    let trace = Trace::new().ids().epoch(20, &copies);
    let counts = trace.counts();
    assert_eq!((counts.accepted, counts.duplicates, counts.conflicting), (1, 3, 2));

    let trace = trace.with(|config| config.dedup.on_conflict = OnConflict::DeadLetter);
    let counts = trace.counts();
    assert_eq!((counts.accepted, counts.duplicates, counts.conflicting, counts.dead_lettered_values), (1, 1, 2, 2));
    let reasons: Vec<Reason> = trace.run().dead_letters.iter().map(|letter| letter.reason).collect();
    assert_eq!(reasons, [Reason::Conflict, Reason::Conflict]);
}

#[test]
fn what_identifies_a_reading_is_configured() {
    let records = [
        with_id("x", "a", 1.0, 1.0),
        with_id("y", "a", 1.0, 1.0), // another id at the same time
        with_id("x", "a", 2.0, 1.0), // another time under the same id
        with_id("x", "a", 1.0, 1.0), // the same bytes
    ];
    let accepted = |key| Trace::new().ids().with(|config| config.dedup.key = key).epoch(20, &records).counts().accepted;
    assert_eq!(accepted(None), 2, "the id, since the mapping names one");
    assert_eq!(accepted(Some(DedupKey::Id)), 2);
    assert_eq!(accepted(Some(DedupKey::SeriesTime)), 2);
    assert_eq!(accepted(Some(DedupKey::Hash)), 3);
    assert_eq!(Trace::new().epoch(20, &records).counts().accepted, 2, "the time, since it names none");
}

#[test]
fn a_reading_is_late_only_beyond_the_allowed_lateness_and_a_first_one_never() {
    let trace = Trace::new()
        .epoch(20, [json("a", 100.0, 1.0), json("a", 90.0, 1.0), json("a", 89.999999, 1.0), json("b", 1.0, 1.0)]);
    assert_eq!(trace.archive(), ["a 100 accepted", "a 90 behind", "a 89.999999 late", "b 1 accepted"]);
    assert_eq!(trace.counts().behind, 1);
}

#[test]
fn a_duplicate_that_is_also_late_is_a_duplicate() {
    let trace = Trace::new().epoch(20, [json("a", 1.0, 1.0), json("a", 50.0, 1.0), json("a", 1.0, 1.0)]);
    assert_eq!((trace.counts().duplicates, trace.counts().late), (1, 0));
}

#[test]
fn a_future_reading_is_archived_and_moves_nothing() {
    let trace = Trace::new().epoch(
        20,
        [
            json("a", 300.000001, 9.0), // T + skew is 300 s: this one creates no series
            json("a", 2.0, 1.0),
            json("a", 300.0, 1.0),
            json("a", 300.000001, 9.0), // not an identity either
        ],
    );
    let trace = trace.rule("hot", above(8.0));
    assert_eq!(trace.archive(), ["a 300.000001 future", "a 2 accepted", "a 300 accepted", "a 300.000001 future"]);
    assert_eq!((trace.counts().future, trace.counts().duplicates), (2, 0));
    assert!(trace.story().is_empty());
}

#[test]
fn t_is_the_running_maximum_of_a_partition_over_all_its_records() {
    let reading = |seconds| Some(json("a", seconds, 1.0).into_bytes());
    let trace = Trace::new()
        .with(|config| config.max_clock_skew_us = 0)
        .partition(20, 0, Some(1_000), vec![None]) // a tombstone
        .partition(21, 0, Some(5), vec![reading(1.0), reading(1.5)])
        .partition(22, 0, Some(2_000), vec![Some(b"garbage".to_vec())])
        .partition(23, 0, Some(5), vec![reading(2.0)])
        .partition(23, 1, Some(5), vec![reading(1.9)]) // another partition's clock
        .partition(3_000, 0, None, vec![reading(3.0), reading(3.001)]); // the epoch stands in
    let expected = ["a 1 accepted", "a 1.5 future", "a 2 accepted", "a 1.9 future", "a 3 accepted", "a 3.001 future"];
    assert_eq!(trace.archive(), expected);
    assert_eq!((trace.counts().filtered, trace.counts().dead_lettered), (1, 1));
}

#[test]
fn a_full_key_group_has_no_room_for_a_new_series_until_one_is_forgotten() {
    // Two live series in a group: 4096 / 4096 * 2.
    let group = |name: &str| xxh3_64(name.as_bytes()) % 4096;
    let mut same = (0..).map(|i| format!("s{i}")).filter(|name| group(name) == group("s0"));
    let names: Vec<String> = same.by_ref().take(4).collect();
    let reading = |i: usize, seconds: f64| json(&names[i], seconds, 1.0);
    let trace = Trace::new()
        .with(|config| (config.max_series, config.series_ttl_ms) = (4096, 5_000))
        .hearing(0)
        .epoch(1_000, [reading(0, 1.0), reading(1, 1.0), reading(2, 1.0), reading(0, 2.0)])
        .epoch(4_000, [reading(1, 4.0)])
        .epoch(6_000, [reading(2, 1.0)]) // series 0 was silent from 1000 to 6000: forgotten before this epoch
        .epoch(6_001, [reading(0, 1.5), reading(0, 2.5), reading(3, 1.0)]);
    let outcome = trace.run();
    let refused: Vec<(i64, Reason)> = outcome.dead_letters.iter().map(|l| (l.offset, l.reason)).collect();
    assert_eq!(refused, [(13, Reason::TooManySeries), (28, Reason::TooManySeries), (31, Reason::TooManySeries)]);
    assert_eq!(trace.counts().late, 1, "a forgotten series needs no room to be late");
    assert_eq!(trace.counts().accepted, 5);
}

#[test]
fn the_limit_of_a_key_group_rounds_up() {
    let trace = |max| Trace::new().with(|c| c.max_series = max).epoch(20, [json("a", 1.0, 1.0)]).counts().accepted;
    assert_eq!((trace(0), trace(1)), (0, 1));
}

#[test]
fn metrics_of_a_sensor_are_series_of_their_own() {
    let other = json("a", 1.0, 1.0).replace(r#""m""#, r#""other""#);
    let trace = Trace::new().rule("hot", above(0.0)).epoch(20, [json("a", 50.0, 1.0), other]);
    assert_eq!(trace.archive(), ["a 50 accepted", "a 1 accepted"]);
    assert_eq!(trace.story().len(), 1, "the rule is about m");
}
