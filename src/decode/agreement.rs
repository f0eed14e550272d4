//! Random records, whole and broken: the fast path, the slow path and the oracle make the same of each.

use super::tests::{Answer, GOOD, LIMITS, answer, narrow, value, wide, with};
use super::*;
use proptest::prelude::*;
use std::cell::RefCell;

/// Pieces that records are made of and broken with.
fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,4})?",
        2 => "-?[0-9]{1,22}(\\.[0-9]{0,25})?([eE][+-]?[0-9]{1,3})?",
        2 => any::<f64>().prop_map(|x| x.to_string()),
        2 => any::<i64>().prop_map(|x| x.to_string()),
        1 => "(1[0-9]{9}|1[0-9]{12}|1[0-9]{15}|1[0-9]{18})(\\.[0-9]{1,3})?",
        4 => "\"[ -~]{0,12}\"",
        2 => "\"20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|\\+01:00)?\"",
        1 => "\"\\PC{0,6}\"",
        1 => "\"\\\\(u[0-9a-fA-F]{4}|[\"\\\\/bfnrtx])\"",
        1 => Just("null".to_owned()),
        1 => prop_oneof![Just("true"), Just("false"), Just("NaN"), Just("[]"), Just("{\"t\":1}"), Just("\"\""), Just("")]
            .prop_map(str::to_owned),
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => proptest::sample::select(vec!["id", "sensor", "type", "value", "time", "t", "h", "p"]).prop_map(str::to_owned),
        1 => "[a-z]{0,3}",
        1 => Just("\\u0074".to_owned()),
    ]
}

/// A record with most of what a mapping wants, in any order, with changes of single bytes, cuts and additions.
fn records() -> impl Strategy<Value = Vec<u8>> {
    let space = || "[ \t\n\r]{0,2}";
    let member = (space(), key(), space(), scalar(), space())
        .prop_map(|(a, key, b, value, c)| format!("{a}\"{key}\"{b}:{c}{value}{a}"));
    let good = proptest::sample::select(vec![
        r#""id":"r-1""#,
        r#""sensor":"b-17""#,
        r#""type":"temperature""#,
        r#""value":21.5"#,
        r#""time":"2026-01-01T00:00:00Z""#,
        r#""time":1767225600"#,
        r#""t":1"#,
    ])
    .prop_map(str::to_owned);
    let all_good = Just(GOOD[1..GOOD.len() - 1].split(',').map(str::to_owned).collect::<Vec<_>>()).prop_shuffle();
    let members = (all_good, proptest::collection::vec(prop_oneof![member, good], 0..5), any::<bool>()).prop_map(
        |(mut all, more, keep)| {
            if !keep {
                all.clear();
            }
            all.extend(more);
            all
        },
    );
    let change = (any::<proptest::sample::Index>(), proptest::option::of(any::<u8>()), any::<bool>());
    let changes = prop_oneof![3 => Just(Vec::new()), 2 => proptest::collection::vec(change, 1..3)];
    (members.prop_shuffle(), space(), "[ \n]{0,2}", changes).prop_map(|(members, before, after, changes)| {
        let mut bytes = format!("{before}{{{}}}{after}", members.join(",")).into_bytes();
        for (at, byte, cut) in changes {
            let at = at.index(bytes.len().max(1));
            match byte {
                Some(byte) if at < bytes.len() => bytes[at] = byte,
                None if cut => bytes.truncate(at),
                _ => bytes.insert(at, b"\"\\{}[],:0e-.\x7f\x1f"[at % 14]),
            }
        }
        bytes
    })
}

/// The same mappings in the oracle's words.
const ORACLES_NARROW: &str =
    r#"{"id":"/id","sensor":"/sensor","time":"/time","shape":{"narrow":{"metric":"/type","value":"/value"}}}"#;
const ORACLES_WIDE: &str = r#"{"sensor":"/sensor","time":"/time","zone":"Europe/Berlin","shape":{"wide":{"fields":{
    "temperature":{"pointer":"/t"},"humidity":{"pointer":"/h"},"pressure":{"pointer":"/p","adjust":{"scale":0.001,"valid":[0.5,1.5]}}}}}}"#;

/// Sensor, time, identity, and metric and value by its bits or the reason why there is none; or the record's reason.
type Plain = Result<(String, i64, u128, Vec<(String, Result<u64, String>)>), String>;

fn as_the_oracle_has_it(answer: Answer) -> Plain {
    let (sensor, time, identity, values) =
        answer.map_err(|reason| reason.map_or("filtered", Reason::as_str).to_owned())?;
    let why = |issue| match issue {
        ValueIssue::Null => "null".to_owned(),
        ValueIssue::DeadLetter(reason) => reason.as_str().to_owned(),
    };
    Ok((sensor, time, identity, values.into_iter().map(|(metric, _, value, _)| (metric, value.map_err(why))).collect()))
}

fn oracles_answer(oracle: &mut oracle::decode::Decoder, payload: &[u8]) -> Plain {
    use oracle::decode::{Decoded, Identity, Value};
    let record = oracle::Record {
        source: "s".into(),
        topic: "t".into(),
        partition: 0,
        offset: 0,
        timestamp: None,
        payload: Some(payload.to_vec()),
    };
    match oracle.decode(&record) {
        Decoded::Filtered => Err("filtered".into()),
        Decoded::DeadLetter(reason) => Err(reason.name()),
        Decoded::Readings(readings) => {
            let identity = match readings.identity {
                Identity::Id(hash) | Identity::Payload(hash) => hash,
                Identity::Time(time) => u128::from(time as u64),
            };
            let values = readings.values.iter().map(|(metric, value)| {
                let value = match value {
                    Value::Finite(x) => Ok(x.to_bits()),
                    Value::Null => Err("null".into()),
                    Value::Refused(reason) => Err(reason.name()),
                };
                (metric.to_string(), value)
            });
            Ok((readings.sensor.to_string(), readings.time, identity, values.collect()))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200_000))]
    #[test]
    fn the_fast_and_the_slow_path_agree_on_every_record(record in records()) {
        thread_local! {
            // Kept across cases: what a decoder learned of one record must not change what it makes of the next.
            static DECODERS: RefCell<Vec<(Decoder, Decoder)>> = RefCell::new([narrow(), wide()].iter().map(|settings| {
                let decoder = Decoder::new(settings, LIMITS, None).unwrap();
                (decoder.clone(), decoder.without_fast_path())
            }).collect());
        }
        DECODERS.with_borrow_mut(|decoders| for (fast, slow) in decoders {
            let (fast, slow) = (answer(fast, Some(&record)), answer(slow, Some(&record)));
            assert_eq!(fast, slow, "{}", String::from_utf8_lossy(&record));
        });
    }

    #[test]
    fn the_oracle_makes_the_same_of_every_record(record in records()) {
        thread_local! {
            static PAIRS: RefCell<Vec<(Decoder, oracle::decode::Decoder)>> = RefCell::new([(narrow(), ORACLES_NARROW), (wide(), ORACLES_WIDE)].iter().map(|(ours, theirs)| {
                let theirs = serde_json::from_str(theirs).unwrap();
                let oracle = oracle::decode::Decoder::of(&oracle::Config::default(), &theirs).unwrap();
                (Decoder::new(ours, LIMITS, None).unwrap(), oracle)
            }).collect());
        }
        PAIRS.with_borrow_mut(|pairs| for (ours, oracle) in pairs {
            let ours = as_the_oracle_has_it(answer(ours, Some(&record)));
            assert_eq!(ours, oracles_answer(oracle, &record), "{}", String::from_utf8_lossy(&record));
        });
    }

    #[test]
    fn a_value_is_the_number_as_written_rounded_once(number in "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?") {
        let expected: f64 = number.parse().unwrap();
        prop_assert_eq!(value(&narrow(), &with("21.5", &number)).map(f64::to_bits), Ok(expected.to_bits()));
    }
}
