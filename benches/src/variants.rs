//! What is measured on what: the job, and where it is made harder.

use crate::data::Data;
use crate::job::{Rules, Settings};
use crate::programs::Program;
use crate::straight::Json;

/// A topic and the programs that read it, in turn.
pub struct Variant {
    /// Its name on the command line and in `latest.json`.
    pub name: &'static str,
    /// Why.
    pub what: &'static str,
    /// The topic.
    pub data: Data,
    /// The programs.
    pub programs: Vec<Program>,
}

/// All of them; the job comes first.
pub fn all() -> Vec<Variant> {
    let two = || Settings::workers(2);
    let pair = || vec![Program::Floor(2), Program::Straight(Json::Borrowed, 2), Program::Streamgauge(two())];
    let ruled = |sites| Program::Streamgauge(Settings { rules: Rules::Sites(sites), ..two() });
    vec![
        Variant {
            name: "job",
            what: "5 M narrow JSON readings, 10 k sensors with one of six metrics each, 0.67 M live ids",
            data: Data::JOB,
            programs: vec![
                Program::Floor(1),
                Program::Floor(2),
                Program::Straight(Json::Borrowed, 1),
                Program::Straight(Json::Borrowed, 2),
                Program::Straight(Json::Owned, 2),
                Program::Straight(Json::Fast, 2),
                Program::Streamgauge(Settings::workers(1)),
                Program::Streamgauge(two()),
                Program::Streamgauge(Settings { processes: 2, ..Settings::workers(1) }),
                Program::Streamgauge(Settings { parquet: true, ..two() }),
                Program::Streamgauge(Settings { durability: "disk", ..two() }),
                Program::Streamgauge(Settings { checkpoint: "1s", ..two() }),
            ],
        },
        Variant {
            name: "wide",
            what: "one record carries all six metrics of its sensor (figures per million readings)",
            data: Data { topic: "wide", interval: "10s", options: &["--wide"], ..Data::JOB },
            programs: vec![Program::Floor(2), Program::Streamgauge(two())],
        },
        Variant {
            name: "lz4",
            what: "the topic is compressed by lz4",
            data: Data { topic: "lz4", compression: "lz4", ..Data::JOB },
            programs: pair(),
        },
        Variant {
            name: "hot",
            what: "one sensor makes 20 % of the readings",
            data: Data { topic: "hot", options: &["--one-metric", "--hot", "0.2"], ..Data::JOB },
            programs: pair(),
        },
        Variant {
            name: "six",
            what: "each sensor measures all six metrics: 60 k series, 3.6 M live ids",
            data: Data { topic: "six", interval: "10s", options: &[], ..Data::JOB },
            programs: pair(),
        },
        Variant {
            name: "sensors-1e3",
            what: "a thousand sensors",
            data: Data { topic: "sensors-1e3", sensors: 1_000, ..Data::JOB },
            programs: pair(),
        },
        Variant {
            name: "sensors-1e6",
            what: "a million sensors, all ids live",
            data: Data { topic: "sensors-1e6", sensors: 1_000_000, ..Data::JOB },
            programs: pair(),
        },
        Variant {
            name: "ids-1e7",
            what: "ten million live ids, a thousand for each of 10 k sensors",
            data: Data { topic: "ids-1e7", readings: 11_000_000, interval: "600ms", ..Data::JOB },
            programs: pair(),
        },
        Variant {
            name: "rules",
            what: "5 rules on every series, and 500 of which 5 match each",
            data: Data { topic: "rules", options: &["--metrics", "temperature"], ..Data::JOB },
            programs: vec![Program::Floor(2), ruled(1), ruled(100)],
        },
    ]
}
