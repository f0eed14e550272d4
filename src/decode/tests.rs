//! Every reason, and every kind of bad input.

use super::*;
use crate::config::{Field, Pointer, Scaling, TimeUnit};
use std::collections::BTreeMap;

pub(super) const LIMITS: DecodeLimits = DecodeLimits { max_record_bytes: 1 << 20 };
pub(super) const GOOD: &str =
    r#"{"id":"r-1","sensor":"b-17","type":"temperature","value":21.5,"time":"2026-01-01T00:00:00Z"}"#;

fn pointer(text: &str) -> Pointer {
    text.parse().unwrap()
}

pub(super) fn narrow() -> Decode {
    Decode {
        id: Some(pointer("/id")),
        sensor: pointer("/sensor"),
        time: pointer("/time"),
        metric: Some(pointer("/type")),
        value: Some(pointer("/value")),
        metrics: BTreeMap::new(),
        values: BTreeMap::new(),
        zone: None,
        time_unit: None,
        null: NullPolicy::Skip,
    }
}

pub(super) fn wide() -> Decode {
    let field = |path| Field { path: pointer(path), unit: None, scale: None, offset: None, valid: None };
    let metrics = BTreeMap::from([
        ("temperature".into(), field("/t")),
        ("humidity".into(), field("/h")),
        ("pressure".into(), Field { scale: Some(0.001), valid: Some([0.5, 1.5]), ..field("/p") }),
    ]);
    Decode { id: None, metric: None, value: None, metrics, zone: Some("Europe/Berlin".into()), ..narrow() }
}

/// A record's readings, owned, so that those of two decoders can be compared; values by their bits.
pub(super) type Answer =
    Result<(String, i64, u128, Vec<(String, Option<u16>, Result<u64, ValueIssue>, u16)>), Option<Reason>>;

pub(super) fn answer(decoder: &mut Decoder, payload: Option<&[u8]>) -> Answer {
    match decoder.decode(payload) {
        Outcome::Filtered => Err(None),
        Outcome::DeadLetter(reason) => Err(Some(reason)),
        Outcome::Decoded(fanout) => {
            let values = fanout.values().map(|v| (v.metric.to_owned(), v.mapped, v.value.map(f64::to_bits), v.index));
            Ok((fanout.sensor.to_owned(), fanout.time, fanout.identity, values.collect()))
        }
    }
}

/// What both paths make of a record; they must not differ.
fn decode(settings: &Decode, payload: impl AsRef<[u8]>) -> Answer {
    let mut fast = Decoder::new(settings, LIMITS, None).unwrap();
    let mut slow = fast.clone().without_fast_path();
    let answers = (answer(&mut fast, Some(payload.as_ref())), answer(&mut slow, Some(payload.as_ref())));
    assert_eq!(answers.0, answers.1, "the fast path answers otherwise than the slow one");
    answers.0
}

pub(super) fn value(settings: &Decode, payload: &str) -> Result<f64, ValueIssue> {
    let (_, _, _, values) = decode(settings, payload).unwrap();
    assert_eq!(values.len(), 1);
    values[0].2.map(f64::from_bits)
}

/// The good record with one text in it replaced.
pub(super) fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replace(from, to)
}

/// A narrow decoder's fast path takes this record.
fn is_fast(payload: &str) -> bool {
    Decoder::new(&narrow(), LIMITS, None).unwrap().scanner.unwrap().scan(payload).is_some()
}

#[test]
fn a_narrow_record_is_one_reading() {
    let (sensor, time, identity, values) = decode(&narrow(), GOOD).unwrap();
    assert_eq!((sensor.as_str(), time), ("b-17", 1_767_225_600_000_000));
    assert_eq!(identity, xxh3_128(b"r-1"));
    assert_eq!(values, [("temperature".into(), None, Ok(21.5f64.to_bits()), 0)]);
}

#[test]
fn a_wide_record_is_a_reading_for_each_present_field_in_order_of_names() {
    let record = r#"{"t":-3.5,"p":1013.25,"sensor":"b","time":"2026-01-01T01:00:00","other":[1,{"t":9}]}"#;
    let (_, time, identity, values) = decode(&wide(), record).unwrap();
    assert_eq!(time, 1_767_225_600_000_000);
    assert_eq!(identity, 1_767_225_600_000_000);
    let pressure = (1013.25f64 * 0.001).to_bits();
    assert_eq!(
        values,
        [("pressure".into(), Some(1), Ok(pressure), 0), ("temperature".into(), Some(2), Ok((-3.5f64).to_bits()), 1)]
    );
}

#[test]
fn a_present_null_is_counted_and_takes_an_index() {
    let record = r#"{"h":null,"t":1,"sensor":"b","time":1767225600}"#;
    let (_, _, _, values) = decode(&wide(), record).unwrap();
    assert_eq!(values[0], ("humidity".into(), Some(0), Err(ValueIssue::Null), 0));
    assert_eq!((values[1].0.as_str(), values[1].3), ("temperature", 1));
    let refusing = Decode { null: NullPolicy::DeadLetter, ..wide() };
    let (_, _, _, values) = decode(&refusing, record).unwrap();
    assert_eq!(values[0].2, Err(ValueIssue::DeadLetter(Reason::NullValue)));
}

#[test]
fn every_reason_of_a_record_has_its_record() {
    let long = "x".repeat(257);
    let cases: Vec<(Reason, String)> = vec![
        (Reason::TooLarge, format!("{GOOD}{}", " ".repeat(1 << 20))),
        (Reason::NotJson, String::new()),
        (Reason::NotJson, " ".into()),
        (Reason::NotJson, "garbage".into()),
        (Reason::NotJson, "null".into()),
        (Reason::NotJson, format!("[{GOOD}]")),
        (Reason::NotJson, GOOD[..GOOD.len() - 1].into()),
        (Reason::NotJson, format!("{GOOD}x")),
        (Reason::NotJson, format!("{GOOD}{GOOD}")),
        (Reason::NotJson, format!("\u{feff}{GOOD}")),
        (Reason::NotJson, with("21.5", "NaN")),
        (Reason::NotJson, with("21.5", "Infinity")),
        (Reason::NotJson, with("21.5", "-")),
        (Reason::NotJson, with("21.5", "021.5")),
        (Reason::NotJson, with("21.5", "21.")),
        (Reason::NotJson, with("21.5", "+21.5")),
        (Reason::NotJson, with("21.5", "1e400")),
        (Reason::NotJson, with("21.5", "21.5,")),
        (Reason::NotJson, with("\"value\"", "value")),
        (Reason::NotJson, with("{\"id\"", "{\"a\":1e400,\"id\"")),
        (Reason::NotJson, with("{\"id\"", "{\"a\":\"\\x\",\"id\"")),
        (Reason::NotJson, with("{\"id\"", "{\"a\":\"\\ud800\",\"id\"")),
        (Reason::NotJson, with("{\"id\"", "{\"a\":\"\u{1}\",\"id\"")),
        (Reason::NotJson, with("{\"id\"", &format!("{{\"a\":{}{},\"id\"", "[".repeat(127), "]".repeat(127)))),
        (Reason::MissingSensor, with("\"sensor\"", "\"other\"")),
        (Reason::MissingSensor, with("\"b-17\"", "null")),
        (Reason::InvalidSensor, with("\"b-17\"", "\"\"")),
        (Reason::InvalidSensor, with("\"b-17\"", "true")),
        (Reason::InvalidSensor, with("\"b-17\"", "1.5")),
        (Reason::InvalidSensor, with("\"b-17\"", "1e3")),
        (Reason::InvalidSensor, with("\"b-17\"", &"9".repeat(257))),
        (Reason::InvalidSensor, with("\"b-17\"", "[\"b-17\"]")),
        (Reason::InvalidSensor, with("b-17", &long)),
        (Reason::InvalidSensor, with("b-17", &"x".repeat(10_000))),
        (Reason::InvalidSensor, with("b-17", "b\u{7f}")),
        (Reason::InvalidSensor, with("b-17", "b\\u0000")),
        (Reason::InvalidSensor, with("b-17", "b\\n")),
        (Reason::MissingTime, with("\"time\"", "\"ts\"")),
        (Reason::MissingTime, with("\"2026-01-01T00:00:00Z\"", "null")),
        (Reason::InvalidTime, with("2026-01-01T00:00:00Z", "ERR")),
        (Reason::InvalidTime, with("2026-01-01T00:00:00Z", "2026-01-01T00:00:00")),
        (Reason::InvalidTime, with("2026-01-01T00:00:00Z", "2026-02-30T00:00:00Z")),
        (Reason::InvalidTime, with("\"2026-01-01T00:00:00Z\"", "12")),
        (Reason::InvalidTime, with("\"2026-01-01T00:00:00Z\"", "{}")),
        (Reason::InvalidTime, with("\"2026-01-01T00:00:00Z\"", "99999999999999999999")),
        (Reason::MissingId, with("\"id\"", "\"ID\"")),
        (Reason::MissingId, with("\"r-1\"", "null")),
        (Reason::InvalidId, with("r-1", "")),
        (Reason::InvalidId, with("\"r-1\"", "false")),
        (Reason::InvalidId, with("r-1", &long)),
        (Reason::MissingMetric, with("\"type\"", "\"kind\"")),
        (Reason::MissingMetric, with("\"temperature\"", "null")),
        (Reason::InvalidMetric, with("temperature", "")),
        (Reason::InvalidMetric, with("temperature", &long[..65])),
        (Reason::InvalidMetric, with("temperature", "t\\u001f")),
        (Reason::MissingValue, with("\"value\"", "\"reading\"")),
        (Reason::MissingValue, with(",\"value\":21.5", "")),
    ];
    for (reason, record) in cases {
        let shown: String = record.chars().take(120).collect();
        assert_eq!(decode(&narrow(), &record), Err(Some(reason)), "{shown}");
    }
    let gap = r#"{"sensor":"b","time":"2025-03-30T02:30:00","t":1}"#;
    assert_eq!(decode(&wide(), gap), Err(Some(Reason::SkippedTime)));
    let none = r#"{"sensor":"b","time":1767225600,"temperature":1}"#;
    assert_eq!(decode(&wide(), none), Err(Some(Reason::MissingValue)));
    assert_eq!(answer(&mut Decoder::new(&narrow(), LIMITS, None).unwrap(), None), Err(None), "a tombstone is filtered");
}

#[test]
fn every_reason_of_a_value_has_its_value() {
    let settings = Decode {
        values: BTreeMap::from([(
            "temperature".into(),
            Scaling { scale: Some(1e10), offset: Some(1.0), valid: Some([1.0, 1e300]), unit: None },
        )]),
        ..narrow()
    };
    for (text, expected) in [
        ("null", Err(ValueIssue::Null)),
        ("\"ERR\"", Err(ValueIssue::DeadLetter(Reason::InvalidValue))),
        ("\"21.5\"", Err(ValueIssue::DeadLetter(Reason::InvalidValue))),
        ("true", Err(ValueIssue::DeadLetter(Reason::InvalidValue))),
        ("[1]", Err(ValueIssue::DeadLetter(Reason::InvalidValue))),
        ("1e308", Err(ValueIssue::DeadLetter(Reason::InvalidValue))),
        ("-1", Err(ValueIssue::DeadLetter(Reason::OutOfRange))),
        ("0", Ok(1.0)),
        ("2", Ok(2e10 + 1.0)),
        ("1e290", Ok(1e300 + 1.0)),
    ] {
        assert_eq!(value(&settings, &with("21.5", text)), expected, "{text}");
    }
    assert_eq!(value(&settings, &with("temperature", "humidity")), Ok(21.5), "other metrics are taken as they are");
}

#[test]
fn checks_are_made_in_the_documented_order() {
    let mut record = r#"{"id":null,"sensor":null,"type":null,"time":null}"#.to_owned();
    for (reason, from, to) in [
        (Reason::MissingSensor, "\"sensor\":null", "\"sensor\":\"b\""),
        (Reason::MissingTime, "\"time\":null", "\"time\":1767225600"),
        (Reason::MissingId, "\"id\":null", "\"id\":1"),
        (Reason::MissingMetric, "\"type\":null", "\"type\":\"t\""),
        (Reason::MissingValue, "}", ",\"value\":1}"),
    ] {
        assert_eq!(decode(&narrow(), &record), Err(Some(reason)));
        record = record.replace(from, to);
    }
    decode(&narrow(), &record).unwrap();
}

#[test]
fn a_whole_number_stands_for_its_text_and_the_last_of_a_repeated_key_counts() {
    for number in ["0", "17", "-17", "-0", "9223372036854775808", "123456789012345678901", &"9".repeat(256)] {
        let (sensor, _, _, _) = decode(&narrow(), with("\"b-17\"", number)).unwrap();
        assert_eq!(sensor, number);
    }
    let nested = Decode { sensor: pointer("/sensor/1/x"), ..narrow() };
    let record = with("\"b-17\"", "[0, {\"x\":1, \"x\" : 123456789012345678901 }]");
    assert_eq!(decode(&nested, &record).unwrap().0, "123456789012345678901");
    assert_eq!(value(&narrow(), &with("\"value\":21.5", "\"value\":1,\"value\":2")), Ok(2.0));
    assert_eq!(decode(&narrow(), with("\"b-17\"", "\"b\",\"sensor\":null")), Err(Some(Reason::MissingSensor)));
}

#[test]
fn names_of_full_length_any_script_and_escapes_are_taken() {
    for (sensor, expected) in
        [("x".repeat(256), "x".repeat(256)), ("Wärme-温".into(), "Wärme-温".into()), ("\\u00e9\\/".into(), "é/".into())]
    {
        assert_eq!(decode(&narrow(), with("b-17", &sensor)).unwrap().0, expected);
    }
    assert_eq!(decode(&narrow(), with("temperature", &"m".repeat(64))).unwrap().3[0].0.len(), 64);
    assert_eq!(decode(&narrow(), with("b-17", "b\u{80}")).unwrap().0, "b\u{80}", "only ASCII controls are refused");
}

#[test]
fn times_of_1970_and_2106_are_times() {
    for (time, micros) in [
        ("\"1970-01-01T00:00:00Z\"", 0),
        ("\"2106-02-07T06:28:15Z\"", 4_294_967_295_000_000),
        ("4294967295", 4_294_967_295_000_000),
        ("4294967295.5", 4_294_967_295_500_000),
        ("1.7672256e9", 1_767_225_600_000_000),
    ] {
        assert_eq!(decode(&narrow(), with("\"2026-01-01T00:00:00Z\"", time)).unwrap().1, micros, "{time}");
    }
    let settings = Decode { time_unit: Some(TimeUnit::Ms), ..narrow() };
    assert_eq!(decode(&settings, with("\"2026-01-01T00:00:00Z\"", "-1")).unwrap().1, -1000);
    let decoded = decode(&Decode { id: None, ..settings }, with("\"2026-01-01T00:00:00Z\"", "-1")).unwrap();
    assert_eq!(decoded.2, u128::from((-1000i64) as u64));
}

#[test]
fn a_megabyte_of_anything_is_decoded_or_refused() {
    let padding = "x".repeat((1 << 20) - GOOD.len() - 6);
    let full = with("{\"id\"", &format!("{{\"a\":\"{padding}\",\"id\"")).replace("\"a\":", "\"\":");
    assert!(full.len() <= 1 << 20, "{}", full.len());
    decode(&narrow(), &full).unwrap();
    for piece in ["[", "{\"a\":", "[1,", "\"", "\\", "0", "-", "1e", " ", "\u{0}", "{\"sensor\":\"", "nul"] {
        let record = piece.repeat((1 << 20) / piece.len());
        assert_eq!(decode(&narrow(), &record), Err(Some(Reason::NotJson)), "{piece}");
    }
    assert_eq!(decode(&narrow(), vec![0xff; 1000]), Err(Some(Reason::NotJson)));
    let not_utf8 = [GOOD.replace("b-17\"", "").as_bytes(), b"\xc3\"}"].concat();
    assert_eq!(decode(&narrow(), not_utf8), Err(Some(Reason::NotJson)));
}

#[test]
fn deep_records_are_read_to_127_levels_and_nested_paths_are_followed() {
    let deep = |n: usize| with("{\"id\"", &format!("{{\"a\":{}{},\"id\"", "[".repeat(n), "]".repeat(n)));
    decode(&narrow(), deep(126)).unwrap();
    let settings = Decode { value: Some(pointer("/v/1/x~1y")), ..narrow() };
    assert_eq!(value(&settings, &with("\"value\":21.5", r#""v":[0,{"x/y":7}]"#)), Ok(7.0));
    for absent in [r#""v":[0]"#, r#""v":7"#, r#""v":{"01":1}"#, r#""v":{"1":{"x":1}}"#] {
        assert_eq!(decode(&settings, with("\"value\":21.5", absent)), Err(Some(Reason::MissingValue)), "{absent}");
    }
    assert_eq!(value(&settings, &with("\"value\":21.5", r#""v":{"1":{"x/y":8}}"#)), Ok(8.0));
}

#[test]
fn the_fast_path_takes_flat_records_in_any_order_and_white_space() {
    for record in [
        GOOD.to_owned(),
        " {\t\"time\" :\n1767225600.25 , \"value\":-0.0,\"x\":null,\"y\":true,\"type\":\"t\",\"sensor\":12,\"id\":3}\r\n".into(),
        "{}".into(),
        with("b-17", "Wärme"),
    ] {
        assert!(is_fast(&record), "{record}");
        let _ = decode(&narrow(), &record);
    }
    for record in [with("b-17", "b\\\\"), with("21.5", "1e3"), with("21.5", "[]"), with("21.5", "-0"), "{".into()] {
        assert!(!is_fast(&record), "{record}");
    }
}

#[test]
fn one_field_may_have_several_parts_and_what_was_learned_of_one_record_harms_no_other() {
    let settings = Decode { id: Some(pointer("sensor")), ..narrow() };
    assert_eq!(decode(&settings, GOOD).unwrap().2, xxh3_128(b"b-17"));
    let mut decoder = Decoder::new(&narrow(), LIMITS, None).unwrap();
    let records = [
        GOOD,
        r#"{"sensor":"b","id":1,"time":1767225600,"value":1,"type":"t"}"#,
        r#"{"sensors":"c","idx":1,"sensor":"b","id":2,"time":1767225600,"value":1,"type":"t"}"#,
        "{",
        r#"{"id":"\u0061","sensor":"b","type":"t","value":1,"time":1767225600}"#,
        r#"{"id":7}"#,
        GOOD,
    ];
    for record in records {
        assert_eq!(answer(&mut decoder, Some(record.as_bytes())), decode(&narrow(), record), "{record}");
    }
}

#[test]
fn what_tells_readings_apart_can_be_chosen() {
    let with_key = |key| answer(&mut Decoder::new(&narrow(), LIMITS, key).unwrap(), Some(GOOD.as_bytes())).unwrap().2;
    assert_eq!(with_key(None), xxh3_128(b"r-1"));
    assert_eq!(with_key(Some(DedupKey::Id)), xxh3_128(b"r-1"));
    assert_eq!(with_key(Some(DedupKey::SeriesTime)), 1_767_225_600_000_000);
    assert_eq!(with_key(Some(DedupKey::Hash)), xxh3_128(GOOD.as_bytes()));
    let error = Decoder::new(&wide(), LIMITS, Some(DedupKey::Id)).unwrap_err();
    assert!(error.contains("dedup.key"), "{error}");
    let error = Decoder::new(&Decode { value: None, ..narrow() }, LIMITS, None).unwrap_err();
    assert!(error.contains("narrow or wide"), "{error}");
    let error = Decoder::new(&Decode { zone: Some("Mars".into()), ..narrow() }, LIMITS, None).unwrap_err();
    assert!(error.contains("Mars"), "{error}");
}
