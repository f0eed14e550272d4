//! A record's bytes to a reading: by serde_json, into owned or borrowed text, or by streamgauge's fast path.

use super::series::{METRICS, NAMES};
use anyhow::{Result, anyhow};
use serde::Deserialize;
use std::borrow::Cow;
use streamgauge::config::{Decode, DedupKey};
use streamgauge::decode::{DecodeLimits, Decoder, Outcome};
use xxhash_rust::xxh3::xxh3_128;

/// How JSON is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Json {
    /// By serde_json into a struct of Strings.
    Owned,
    /// By serde_json into a struct that borrows.
    Borrowed,
    /// By streamgauge's decoder.
    Fast,
}

/// A reading, borrowed from its record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading<'a> {
    /// Of its id's text.
    pub id: u128,
    pub sensor: &'a str,
    /// Its place in `NAMES`.
    pub metric: usize,
    pub value: f64,
    /// Microseconds since 1970.
    pub time: i64,
}

#[derive(Deserialize)]
struct Owned {
    unique_reading_id: String,
    sensor_id: String,
    r#type: String,
    value: f64,
    timestamp: String,
}

#[derive(Deserialize)]
struct Borrowed<'a> {
    #[serde(borrow)]
    unique_reading_id: Cow<'a, str>,
    #[serde(borrow)]
    sensor_id: Cow<'a, str>,
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    value: f64,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
}

/// One thread's parser.
pub enum Parser {
    Owned,
    Borrowed,
    Fast(Box<Decoder>),
}

impl Parser {
    pub fn new(json: Json) -> Result<Self> {
        Ok(match json {
            Json::Owned => Self::Owned,
            Json::Borrowed => Self::Borrowed,
            Json::Fast => {
                let decode: Decode = serde_json::from_value(serde_json::json!({
                    "id": "/unique_reading_id", "sensor": "/sensor_id", "metric": "/type", "value": "/value",
                    "time": "/timestamp",
                }))?;
                let limits = DecodeLimits { max_record_bytes: 1 << 20 };
                let decoder = Decoder::new(&decode, limits, Some(DedupKey::Id)).map_err(|e| anyhow!(e))?;
                Self::Fast(Box::new(decoder))
            }
        })
    }

    /// Hands over the record's reading; none if it holds none.
    pub fn parse(&mut self, payload: &[u8], each: impl FnOnce(Reading<'_>)) -> Option<()> {
        match self {
            Self::Owned => {
                let m: Owned = serde_json::from_slice(payload).ok()?;
                each(reading(&m.unique_reading_id, &m.sensor_id, &m.r#type, m.value, &m.timestamp)?);
            }
            Self::Borrowed => {
                let m: Borrowed<'_> = serde_json::from_slice(payload).ok()?;
                each(reading(&m.unique_reading_id, &m.sensor_id, &m.r#type, m.value, &m.timestamp)?);
            }
            Self::Fast(decoder) => {
                let Outcome::Decoded(fanout) = decoder.decode(Some(payload)) else { return None };
                let field = fanout.values().next()?;
                let metric = metric(field.metric)?;
                let value = field.value.ok()?;
                let (id, sensor, time) = (fanout.identity, fanout.sensor, fanout.time);
                each(Reading { id, sensor, metric, value, time });
            }
        }
        Some(())
    }
}

fn reading<'a>(id: &str, sensor: &'a str, name: &str, value: f64, time: &str) -> Option<Reading<'a>> {
    let time: jiff::Timestamp = time.parse().ok()?;
    Some(Reading { id: xxh3_128(id.as_bytes()), sensor, metric: metric(name)?, value, time: time.as_microsecond() })
}

fn metric(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| *known == name).filter(|place| *place < METRICS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"unique_reading_id":"0f1e-1","sensor_id":"s-1","type":"pm10","value":12.5,"timestamp":"2025-01-01T00:00:01.500Z"}"#;

    #[test]
    fn the_three_parsers_read_the_same() {
        for json in [Json::Owned, Json::Borrowed, Json::Fast] {
            let mut parser = Parser::new(json).unwrap();
            let mut got = None;
            parser.parse(GOOD.as_bytes(), |r| got = Some((r.sensor.to_owned(), r.metric, r.value, r.time))).unwrap();
            assert_eq!(got, Some(("s-1".into(), 3, 12.5, 1_735_689_601_500_000)), "{json:?}");
        }
    }

    #[test]
    fn what_is_no_reading_is_none_to_all_three() {
        let bad = [
            GOOD.replace("12.5", "\"ERR\""),
            GOOD.replace(",\"type\":\"pm10\"", ""),
            GOOD[..40].to_owned(),
            "\u{0}<".to_owned(),
        ];
        for json in [Json::Owned, Json::Borrowed, Json::Fast] {
            let mut parser = Parser::new(json).unwrap();
            for text in &bad {
                assert_eq!(parser.parse(text.as_bytes(), |_| ()), None, "{json:?}: {text}");
            }
        }
    }
}
