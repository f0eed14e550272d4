//! From bytes to readings: section 2.

mod common;

use std::collections::BTreeMap;

use common::{Trace, narrow};
use streamgauge_oracle::config::{Adjust, Decode, Field, NullPolicy, Shape, TimeUnit};
use streamgauge_oracle::json::Json;
use streamgauge_oracle::{Reason, Record, run};

/// The reason why a payload, or a value of it, is a dead letter; none if it is read.
fn reason(mapping: &Decode, payload: &[u8]) -> Option<Reason> {
    let trace = Trace::new().with(|config| {
        config.sources[0].decode = mapping.clone();
        config.max_clock_skew_us = i64::MAX;
    });
    let letters = trace.epoch(20, [payload]).run().dead_letters;
    assert!(letters.len() <= 1, "{letters:?}");
    letters.first().map(|letter| letter.reason)
}

/// The event times that a mapping reads from the JSON texts of times.
fn times(zone: Option<&str>, time_unit: Option<TimeUnit>, texts: &[&str]) -> Vec<Result<i64, Reason>> {
    let mapping = Decode { zone: zone.map(Into::into), time_unit, ..narrow() };
    let read = |text: &&str| {
        let trace = Trace::new().with(|config| {
            config.sources[0].decode = mapping.clone();
            config.max_clock_skew_us = i64::MAX;
        });
        let record = format!(r#"{{"sensor":"a","metric":"m","time":{text},"value":1}}"#);
        let outcome = trace.epoch(20, [record]).run();
        outcome.archive.first().map(|row| row.time).ok_or_else(|| outcome.dead_letters[0].reason)
    };
    texts.iter().map(read).collect()
}

fn wide(fields: &[(&str, &str, Adjust)]) -> Decode {
    let field = |(metric, pointer, adjust): &(&str, &str, Adjust)| {
        (metric.to_string(), Field { pointer: pointer.to_string(), adjust: *adjust })
    };
    Decode { shape: Shape::Wide { fields: fields.iter().map(field).collect() }, ..narrow() }
}

/// Metric, index and value of what a mapping reads from a payload.
fn values(mapping: &Decode, payload: &str) -> Vec<(String, u16, f64)> {
    let trace = Trace::new().with(|config| config.sources[0].decode = mapping.clone());
    let archive = trace.epoch(20, [payload]).run().archive;
    archive.iter().map(|row| (row.metric.to_string(), row.index, row.value)).collect()
}

#[test]
fn every_dead_letter_has_the_reason_of_the_table() {
    use Reason::*;
    let mapping = Decode { id: Some("/id".into()), ..narrow() };
    let whole = r#"{"id":"i","sensor":"s","metric":"m","time":1,"value":2}"#;
    assert_eq!(reason(&mapping, whole.as_bytes()), None);
    let long = |length: usize| format!("\"{}\"", "x".repeat(length));
    let with = |field: &str, json: &str| {
        let start = whole.find(&format!("\"{field}\":")).expect("the field is there") + field.len() + 3;
        let end = start + whole[start..].find([',', '}']).expect("the field ends");
        format!("{}{json}{}", &whole[..start], &whole[end..])
    };
    let cases: Vec<(&str, String, Option<Reason>)> = vec![
        ("sensor", "null".into(), Some(MissingSensor)),
        ("sensor", "1.5".into(), Some(InvalidSensor)),
        ("sensor", "1e3".into(), Some(InvalidSensor)),
        ("sensor", "true".into(), Some(InvalidSensor)),
        ("sensor", "[]".into(), Some(InvalidSensor)),
        ("sensor", "\"\"".into(), Some(InvalidSensor)),
        ("sensor", long(257), Some(InvalidSensor)),
        ("sensor", long(256), None),
        ("sensor", format!("\"{}\"", "ä".repeat(129)), Some(InvalidSensor)),
        ("sensor", r#""a\u001f""#.into(), Some(InvalidSensor)),
        ("sensor", r#""a\u007f""#.into(), Some(InvalidSensor)),
        ("sensor", r#""a\u0080 ""#.into(), None),
        ("sensor", "17".into(), None),
        ("sensor", "-0".into(), None),
        ("sensor", "123456789012345678901234567890".into(), None),
        ("time", "null".into(), Some(MissingTime)),
        ("time", "true".into(), Some(InvalidTime)),
        ("time", "\"yesterday\"".into(), Some(InvalidTime)),
        ("id", "null".into(), Some(MissingId)),
        ("id", "\"\"".into(), Some(InvalidId)),
        ("id", "1.0".into(), Some(InvalidId)),
        ("id", "{}".into(), Some(InvalidId)),
        ("id", long(257), Some(InvalidId)),
        ("id", long(256), None),
        ("id", r#""\n""#.into(), None),
        ("metric", "null".into(), Some(MissingMetric)),
        ("metric", "false".into(), Some(InvalidMetric)),
        ("metric", "\"\"".into(), Some(InvalidMetric)),
        ("metric", long(65), Some(InvalidMetric)),
        ("metric", long(64), None),
        ("metric", r#""\t""#.into(), Some(InvalidMetric)),
        ("metric", "5".into(), None),
        ("value", "\"ERR\"".into(), Some(InvalidValue)),
        ("value", "\"2\"".into(), Some(InvalidValue)),
        ("value", "null".into(), None),
        ("value", "NaN".into(), Some(NotJson)),
        ("value", "Infinity".into(), Some(NotJson)),
        ("value", "1e309".into(), Some(NotJson)),
        ("value", "-1e-400".into(), None),
    ];
    for (field, json, expected) in cases {
        assert_eq!(reason(&mapping, with(field, &json).as_bytes()), expected, "{field} {json}");
    }
    for (field, expected) in [
        ("sensor", MissingSensor),
        ("time", MissingTime),
        ("id", MissingId),
        ("metric", MissingMetric),
        ("value", MissingValue),
    ] {
        let absent = whole.replace(&format!("\"{field}\""), "\"other\"");
        assert_eq!(reason(&mapping, absent.as_bytes()), Some(expected), "{field}");
    }
}

#[test]
fn the_first_check_that_fails_names_the_reason() {
    let mapping = Decode { id: Some("/id".into()), ..narrow() };
    // Each mends what the one before it was refused for.
    let steps = [
        (r#"{"sensor":"","time":true,"id":"","metric":""}"#, Reason::InvalidSensor),
        (r#"{"sensor":"s","time":true,"id":"","metric":""}"#, Reason::InvalidTime),
        (r#"{"sensor":"s","time":1,"id":"","metric":""}"#, Reason::InvalidId),
        (r#"{"sensor":"s","time":1,"id":"i","metric":""}"#, Reason::InvalidMetric),
        (r#"{"sensor":"s","time":1,"id":"i","metric":"m"}"#, Reason::MissingValue),
    ];
    for (payload, expected) in steps {
        assert_eq!(reason(&mapping, payload.as_bytes()), Some(expected), "{payload}");
    }
}

#[test]
fn a_record_is_one_json_object_within_its_size() {
    let whole = r#"{"sensor":"s","metric":"m","time":1,"value":2}"#;
    let nested =
        |levels: usize| whole.replacen('{', &format!("{{\"n\":{}{},", "[".repeat(levels), "]".repeat(levels)), 1);
    let padded = |length: usize| format!("{whole}{}", " ".repeat(length - whole.len())).into();
    let cases: Vec<(Vec<u8>, Option<Reason>)> = vec![
        (format!(" \t\r\n{whole} \t\r\n").into(), None),
        (format!("{whole} x").into(), Some(Reason::NotJson)),
        (format!("{whole}{whole}").into(), Some(Reason::NotJson)),
        (format!("\u{feff}{whole}").into(), Some(Reason::NotJson)),
        (format!("[{whole}]").into(), Some(Reason::NotJson)),
        (b"".into(), Some(Reason::NotJson)),
        (b"17".into(), Some(Reason::NotJson)),
        (b"null".into(), Some(Reason::NotJson)),
        (whole[..whole.len() - 1].into(), Some(Reason::NotJson)),
        (whole.replace("\"s\"", "\"\u{1}\"").into(), Some(Reason::NotJson)),
        (whole.replace("\"s\"", r#""\ud800""#).into(), Some(Reason::NotJson)),
        (whole.replace("\"s\"", r#""\ud83d\ude00""#).into(), None),
        (whole.replacen('{', r#"{"ignored":"\ud800","#, 1).into(), Some(Reason::NotJson)),
        (whole.replacen('{', r#"{"ignored":1e999,"#, 1).into(), Some(Reason::NotJson)),
        ([&whole.as_bytes()[..12], b"\xff", &whole.as_bytes()[12..]].concat(), Some(Reason::NotJson)),
        (nested(126).into(), None),
        (nested(127).into(), Some(Reason::NotJson)),
        (padded(1 << 20), None),
        (padded((1 << 20) + 1), Some(Reason::TooLarge)),
    ];
    for (payload, expected) in cases {
        assert_eq!(
            reason(&narrow(), &payload),
            expected,
            "{}",
            String::from_utf8_lossy(&payload[..payload.len().min(99)])
        );
    }
}

#[test]
fn json_is_what_rfc_8259_says() {
    for text in ["0", "-0.5e+3", "[]", "{}", "[1,[2]]", r#"{"a":{"a":null}}"#, r#""\"\\\/\b\f\n\r\t\u00e4""#, " true "]
    {
        assert!(Json::of(text.as_bytes()).is_some(), "{text}");
    }
    for text in [
        "",
        "01",
        "+1",
        "1.",
        ".5",
        "1e",
        "-",
        "0x1",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{\"a\":1,}",
        "{a:1}",
        "{\"a\"}",
        "'a'",
        "tru",
        "nulll",
        "\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u+123\"",
        "\"\\udc00\"",
        "\"\\ud800\\u0041\"",
        "\u{a0}1",
    ] {
        assert_eq!(Json::of(text.as_bytes()), None, "{text}");
    }
    assert_eq!(Json::of(br#""\u00e4\ud83d\ude00\/""#), Some(Json::String("ä😀/".into())));
}

#[test]
fn a_pointer_goes_through_objects_and_arrays_and_the_last_repeated_key_counts() {
    let mapping = Decode {
        sensor: "/device~1x/0/na~0me".into(),
        shape: Shape::Narrow { metric: "/metric".into(), value: "/v/1".into(), adjust: BTreeMap::new() },
        ..narrow()
    };
    let payload =
        r#"{"metric":1,"device/x":[{"na~me":"first"},{"na~me":"second"}],"time":1,"v":[5,6],"v":[7,8],"metric":"m"}"#;
    assert_eq!(values(&mapping, payload), [("m".into(), 0, 8.0)]);
    assert_eq!(reason(&mapping, payload.replace("[7,8]", "[7]").as_bytes()), Some(Reason::MissingValue));
    assert_eq!(reason(&Decode { time: "/v/01".into(), ..mapping }, payload.as_bytes()), Some(Reason::MissingTime));
}

#[test]
fn a_number_is_a_time_in_the_unit_of_its_magnitude() {
    let invalid = Err(Reason::InvalidTime);
    let expected = [
        ("1700000000", Ok(1_700_000_000_000_000)),
        ("1000000000", Ok(1_000_000_000_000_000)),
        ("999999999", invalid),
        ("9999999999", Ok(9_999_999_999_000_000)),
        ("10000000000", invalid),
        ("-1700000000", Ok(-1_700_000_000_000_000)),
        ("1700000000.5", Ok(1_700_000_000_500_000)),
        ("1.7e9", Ok(1_700_000_000_000_000)),
        ("1700000000123", Ok(1_700_000_000_123_000)),
        ("999999999999", invalid),
        ("1700000000123.5", Ok(1_700_000_000_123_500)),
        ("1700000000123456", Ok(1_700_000_000_123_456)),
        ("1700000000123456.7", Ok(1_700_000_000_123_457)),
        ("1700000000123456789", Ok(1_700_000_000_123_456)),
        ("-1700000000123456789", Ok(-1_700_000_000_123_457)), // rounded down
        ("9300000000000000000", Ok(9_300_000_000_000_000)),   // beyond an i64: as an f64
        ("10000000000000000000", invalid),
        ("0", invalid),
        ("1e300", invalid),
    ];
    let texts: Vec<&str> = expected.iter().map(|(text, _)| *text).collect();
    for ((text, expected), time) in expected.iter().zip(times(None, None, &texts)) {
        assert_eq!(time, *expected, "{text}");
    }
}

#[test]
fn a_stated_unit_goes_before_the_magnitude() {
    let invalid = Err(Reason::InvalidTime);
    let texts = ["7", "-7", "1.0000005", "1e300", "9007199254740993"];
    let all = |unit| times(None, Some(unit), &texts);
    assert_eq!(all(TimeUnit::S), [Ok(7_000_000), Ok(-7_000_000), Ok(1_000_001), invalid, invalid]);
    assert_eq!(all(TimeUnit::Ms), [Ok(7_000), Ok(-7_000), Ok(1_000), invalid, invalid]);
    assert_eq!(all(TimeUnit::Us), [Ok(7), Ok(-7), Ok(1), invalid, Ok(9_007_199_254_740_993)]);
    assert_eq!(all(TimeUnit::Ns), [Ok(0), Ok(-1), Ok(0), invalid, Ok(9_007_199_254_740)]);
    // 9999-12-30T22:00:00Z is about the last instant that has a local time everywhere.
    let last = ["253402207200", "253402207201", "-377705023201", "-377705023202"];
    let expected = [Ok(253_402_207_200_000_000), invalid, Ok(-377_705_023_201_000_000), invalid];
    assert_eq!(times(None, Some(TimeUnit::S), &last), expected);
}

#[test]
fn a_string_is_a_time_with_its_offset() {
    let texts = [
        r#""2023-11-14T22:13:20Z""#,
        r#""2023-11-14T23:13:20.1234567+01:00""#,
        r#""2023-11-14 22:13:20z""#,
        r#""1969-12-31T23:59:59.9999999Z""#,
        r#""2023-11-14T22:13:20""#,
        r#""1700000000""#,
    ];
    let invalid = Err(Reason::InvalidTime);
    let expected =
        [Ok(1_700_000_000_000_000), Ok(1_700_000_000_123_456), Ok(1_700_000_000_000_000), Ok(0), invalid, invalid];
    assert_eq!(times(None, None, &texts), expected);
}

#[test]
fn a_local_time_that_comes_twice_is_the_earlier_and_one_that_never_comes_is_a_dead_letter() {
    let texts = [
        r#""2025-07-01T12:00:00""#,
        r#""2025-10-26T02:30:00""#, // clocks go from 3 back to 2: this is 00:30 UTC and 01:30 UTC
        r#""2025-10-26T03:00:00""#,
        r#""2025-03-30T01:59:59.999999""#,
        r#""2025-03-30T02:00:00""#, // clocks go from 2 to 3
        r#""2025-03-30T02:59:59""#,
        r#""2025-03-30T03:00:00""#,
        r#""2025-10-26T02:30:00+01:00""#, // says which
        r#""nonsense""#,
    ];
    let utc = |text: &str| Ok(text.parse::<jiff::Timestamp>().expect("it is a time").as_microsecond());
    assert_eq!(
        times(Some("Europe/Berlin"), None, &texts),
        [
            utc("2025-07-01T10:00:00Z"),
            utc("2025-10-26T00:30:00Z"),
            utc("2025-10-26T02:00:00Z"),
            utc("2025-03-30T00:59:59.999999Z"),
            Err(Reason::SkippedTime),
            Err(Reason::SkippedTime),
            utc("2025-03-30T01:00:00Z"),
            utc("2025-10-26T01:30:00Z"),
            Err(Reason::InvalidTime),
        ]
    );
}

#[test]
fn an_unknown_zone_is_refused() {
    let trace = Trace::new().with(|config| config.sources[0].decode.zone = Some("Mars/Olympus".into()));
    assert!(run(&trace.config, &[], &[]).is_err());
}

#[test]
fn a_wide_record_is_a_reading_per_present_field_in_the_order_of_metric_names() {
    let none = Adjust::default();
    let mapping = wide(&[("z", "/a", none), ("B", "/b", none), ("a", "/c/d", none), ("b", "/e", none)]);
    let payload = r#"{"sensor":"s","time":1,"a":1,"b":null,"c":{"d":3},"x":9}"#;
    assert_eq!(values(&mapping, payload), [("a".into(), 1, 3.0), ("z".into(), 2, 1.0)], "B is 0, a null; b is absent");
    let trace = Trace::new().with(|config| config.sources[0].decode = mapping.clone()).epoch(20, [payload]);
    assert_eq!((trace.counts().readings, trace.counts().nulls), (3, 1));

    let strict = trace.with(|config| config.sources[0].decode.null = NullPolicy::DeadLetter);
    assert_eq!((strict.counts().readings, strict.counts().nulls, strict.counts().dead_lettered_values), (3, 0, 1));
    let letters = strict.run().dead_letters;
    assert_eq!((letters[0].index, letters[0].reason), (Some(0), Reason::NullValue));

    let empty = r#"{"sensor":"s","time":1,"x":9}"#;
    assert_eq!(reason(&mapping, empty.as_bytes()), Some(Reason::MissingValue));
    let nulls = r#"{"sensor":"s","time":1,"a":null}"#;
    assert_eq!(reason(&mapping, nulls.as_bytes()), None, "null is present");
}

#[test]
fn a_value_is_scaled_then_offset_then_checked() {
    let adjust = |scale, offset, valid| Adjust { scale, offset, valid };
    let mapping = |adjust| wide(&[("m", "/m", adjust)]);
    let payload = |value: &str| format!(r#"{{"sensor":"s","time":1,"m":{value}}}"#);
    let one = |how, value: &str| {
        let (mapping, payload) = (mapping(how), payload(value));
        values(&mapping, &payload)
            .first()
            .map(|(_, _, x)| x.to_bits())
            .ok_or_else(|| reason(&mapping, payload.as_bytes()))
    };
    let is = |x: f64| Ok(x.to_bits());
    assert_eq!(one(Adjust::default(), "0.1"), is(0.1));
    assert_eq!(one(Adjust::default(), "-0.0"), is(-0.0));
    assert_eq!(one(adjust(Some(1.8), Some(32.0), None), "36.6"), is(36.6 * 1.8 + 32.0));
    assert_eq!(one(adjust(Some(2.0), None, None), "-0.0"), is(0.0), "an offset of 0 is added");
    assert_eq!(one(adjust(None, Some(1.5), None), "1"), is(2.5));
    assert_eq!(one(adjust(Some(1e300), None, None), "1e300"), Err(Some(Reason::InvalidValue)));
    let narrow_range = adjust(Some(2.0), None, Some((-1.0, 1.0)));
    assert_eq!(one(narrow_range, "0.5"), is(1.0));
    assert_eq!(one(narrow_range, "-0.5"), is(-1.0));
    assert_eq!(one(narrow_range, "0.6"), Err(Some(Reason::OutOfRange)));
    assert_eq!(one(narrow_range, "[]"), Err(Some(Reason::InvalidValue)));
    assert_eq!(one(Adjust::default(), "9007199254740993"), is(9_007_199_254_740_992.0), "rounded to even");
}

#[test]
fn a_narrow_mapping_adjusts_by_metric() {
    let adjust = Adjust { scale: Some(0.5), ..Adjust::default() };
    let mapping = Decode {
        shape: Shape::Narrow {
            metric: "/metric".into(),
            value: "/value".into(),
            adjust: [("half".to_string(), adjust)].into(),
        },
        ..narrow()
    };
    let payload = |metric: &str| format!(r#"{{"sensor":"s","metric":"{metric}","time":1,"value":3}}"#);
    assert_eq!(values(&mapping, &payload("half")), [("half".into(), 0, 1.5)]);
    assert_eq!(values(&mapping, &payload("m")), [("m".into(), 0, 3.0)]);
}

#[test]
fn a_whole_number_stands_for_its_text() {
    let payload =
        |sensor: &str, id: &str| format!(r#"{{"sensor":{sensor},"id":{id},"metric":"m","time":1,"value":3}}"#);
    let trace = Trace::new().ids().epoch(
        20,
        [
            payload("17", "5"),
            payload("\"17\"", "\"5\""),
            payload("17", "\"05\""),
            payload("123456789012345678901234567890", "1"),
        ],
    );
    let sensors: Vec<String> = trace.run().archive.iter().map(|row| row.sensor.to_string()).collect();
    assert_eq!(sensors, ["17", "17", "123456789012345678901234567890"]);
    assert_eq!(trace.counts().duplicates, 1);
}

#[test]
fn a_tombstone_is_filtered_and_an_empty_payload_is_not_json() {
    let trace = Trace::new().partition(20, 0, None, vec![None, Some(Vec::new())]);
    assert_eq!((trace.counts().filtered, trace.counts().dead_lettered), (1, 1));
}

#[test]
fn a_record_in_json_is_the_record() {
    let record = Record {
        source: "s".into(),
        topic: "t".into(),
        partition: 3,
        offset: 9,
        timestamp: None,
        payload: Some(b"\x00\xff".to_vec()),
    };
    let text = serde_json::to_string(&record).expect("a record is JSON");
    assert_eq!(text, r#"{"source":"s","topic":"t","partition":3,"offset":9,"timestamp":null,"payload":"AP8="}"#);
    assert_eq!(serde_json::from_str::<Record>(&text).expect("it reads back"), record);
}
