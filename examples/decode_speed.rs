//! What decoding costs: nanoseconds per record of the shape that most producers send, and of its neighbours.
//!
//!     cargo run --release --features tls --example decode_speed

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};
use streamgauge::config::Decode;
use streamgauge::decode::{DecodeLimits, Decoder, Outcome};

const RECORDS: usize = 20_000;
const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn Error>> {
    let narrow = r#"{"id":"/reading_id","sensor":"/sensor_id","metric":"/type","value":"/value","time":"/timestamp"}"#;
    let no_id = r#"{"sensor":"/sensor_id","metric":"/type","value":"/value","time":"/timestamp"}"#;
    let wide = r#"{"sensor":"/sensor_id","time":"/timestamp","zone":"Europe/Berlin",
        "metrics":{"temperature":{"path":"/t"},"humidity":{"path":"/h"},"pressure":{"path":"/p","scale":0.001}}}"#;
    let canonical = |i: usize| {
        let id = format!("{:08x}-1c5d-4f3a-9b21-{:012x}", i.wrapping_mul(2_654_435_761) & 0xffff_ffff, i * 7_919);
        let (minute, second, ms) = ((i / 60) % 60, i % 60, i % 1000);
        (
            id,
            format!("s-{:06}", i % 10_000),
            20.0 + (i % 1000) as f64 / 100.0,
            format!("2026-01-01T00:{minute:02}:{second:02}.{ms:03}"),
        )
    };
    let plain = records(|i| {
        let (id, sensor, value, time) = canonical(i);
        format!(
            r#"{{"reading_id":"{id}","sensor_id":"{sensor}","type":"temperature","value":{value:.2},"timestamp":"{time}Z"}}"#
        )
    });
    let spaced = records(|i| {
        let (id, sensor, value, time) = canonical(i);
        format!(
            "{{ \"timestamp\": \"{time}Z\", \"value\": {value:.2}, \"type\": \"temperature\", \"sensor_id\": \"{sensor}\", \"firmware\": \"1.2.{i}\", \"reading_id\": \"{id}\" }}"
        )
    });
    let escaped = records(|i| {
        let (id, sensor, value, time) = canonical(i);
        format!(
            r#"{{"reading_id":"{id}","sensor_id":"{sensor}","type":"temperature","value":{value:.2},"timestamp":"{time}Z","unit":"\u00b0C"}}"#
        )
    });
    let seconds = records(|i| {
        let (id, sensor, value, _) = canonical(i);
        format!(
            r#"{{"reading_id":"{id}","sensor_id":"{sensor}","type":"temperature","value":{value:.2},"timestamp":{}}}"#,
            1_767_225_600 + i
        )
    });
    let fields = records(|i| {
        let (_, sensor, value, time) = canonical(i);
        format!(r#"{{"timestamp":"{time}","sensor_id":"{sensor}","t":{value:.2},"h":{},"p":1013.25}}"#, i % 100)
    });
    report("narrow, canonical", narrow, &plain, true)?;
    report("narrow, canonical, no id mapped", no_id, &plain, true)?;
    report("narrow, time as a number", narrow, &seconds, true)?;
    report("narrow, other order, white space, one more field", narrow, &spaced, true)?;
    report("wide, three metrics, local time", wide, &fields, true)?;
    report("narrow, an escape: the slow path", narrow, &escaped, true)?;
    report("narrow, canonical, by the slow path", narrow, &plain, false)?;
    Ok(())
}

fn records(record: impl Fn(usize) -> String) -> Vec<String> {
    (0..RECORDS).map(record).collect()
}

fn report(name: &str, mapping: &str, records: &[String], fast: bool) -> Result<(), Box<dyn Error>> {
    let settings: Decode = serde_json::from_str(mapping)?;
    let mut decoder = Decoder::new(&settings, DecodeLimits { max_record_bytes: 1 << 20 }, None)?;
    if !fast {
        decoder = decoder.without_fast_path();
    }
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for record in records {
            match decoder.decode(Some(black_box(record.as_bytes()))) {
                Outcome::Decoded(fanout) => {
                    black_box((fanout.sensor, fanout.time, fanout.identity));
                    fanout.values().for_each(|value| {
                        black_box(value);
                    });
                }
                other => return Err(format!("{name}: {other:?}: {record}").into()),
            }
        }
        best = best.min(start.elapsed());
    }
    let bytes = records.iter().map(String::len).sum::<usize>() / records.len();
    println!("{name:50} {bytes:4} bytes {:7.1} ns/record", best.as_nanos() as f64 / records.len() as f64);
    Ok(())
}
