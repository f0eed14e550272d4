//! What the targets use.

use streamgauge::config::{Decode, DedupKey};
use streamgauge::decode::{DecodeLimits, Decoder, Fanout, Outcome, Reason};

#[path = "../../tests/common/frozen.rs"]
pub mod frozen;

/// A narrow mapping with everything that a narrow one can have.
pub const NARROW: &str = r#"{"id":"/i","sensor":"/s","time":"/c","metric":"/m","value":"/v",
    "values":{"t":{"scale":1e300,"offset":-1.0,"valid":[-5,1e308]}}}"#;
/// A wide mapping at the top of the record.
pub const WIDE: &str = r#"{"sensor":"/s","time":"/c","zone":"Europe/Berlin","null":"dead_letter",
    "metrics":{"t":{"path":"/t"},"p":{"path":"/p","scale":0.001,"valid":[0.5,1.5]},"s":{"path":"/s"}}}"#;
/// A wide mapping below the top.
pub const NESTED: &str =
    r#"{"sensor":"/d/s","time":"/c","time_unit":"ns","metrics":{"t":{"path":"/d/0"},"e":{"path":"/"}}}"#;

/// A decoder for small records.
pub fn decoder(mapping: &str, key: Option<DedupKey>) -> Decoder {
    let settings: Decode = serde_json::from_str(mapping).expect("the mapping is well-formed");
    Decoder::new(&settings, DecodeLimits { max_record_bytes: 4096 }, key).expect("the mapping is right")
}

/// What every outcome must hold to.
pub fn check(outcome: Outcome<'_>) {
    match outcome {
        Outcome::Filtered => panic!("a record with a payload is never filtered"),
        Outcome::DeadLetter(reason) => {
            let of_a_value = [Reason::NullValue, Reason::InvalidValue, Reason::OutOfRange];
            assert!(!of_a_value.contains(&reason) && reason != Reason::Bug, "{reason}");
        }
        Outcome::Decoded(fanout) => {
            let name = |text: &str, max: usize| {
                (1..=max).contains(&text.len()) && !text.bytes().any(|b| b < 0x20 || b == 0x7f)
            };
            assert!(name(fanout.sensor, 256));
            assert!(fanout.values().len() > 0);
            for (index, value) in fanout.values().enumerate() {
                assert_eq!(usize::from(value.index), index);
                assert!(name(value.metric, 64));
                assert!(value.value.is_ok_and(f64::is_finite) || value.value.is_err());
            }
        }
    }
}

/// An outcome in a form that can be compared; values by their bits.
pub fn shown(outcome: Outcome<'_>) -> String {
    match outcome {
        Outcome::Decoded(fanout) => {
            let Fanout { sensor, time, identity, .. } = fanout;
            let values: Vec<_> =
                fanout.values().map(|v| (v.metric, v.mapped, v.value.map(f64::to_bits), v.index)).collect();
            format!("{sensor:?} {time} {identity} {values:?}")
        }
        other => format!("{other:?}"),
    }
}
