//! streamgauge: a stream processor for sensor readings.
//!
//! Where to start reading: `dataflow` (the graph), then along a reading's path: `source`, `decode`, `operators` (a crate
//! of its own), `nodes`, `sink`. `run` starts and ends it all. docs/ARCHITECTURE.md has the map.

pub mod alerts_cmd;
pub mod check;
pub mod checkpoint;
pub mod checkpointer;
pub mod cli;
pub mod config;
pub mod crew;
pub mod data_files;
pub mod dataflow;
pub mod dead_lane;
pub mod dead_letters;
pub mod decode;
pub mod demo;
pub mod docs_gen;
pub mod epoch_log;
pub mod error;
pub mod failpoint;
pub mod fenced;
pub mod kinds;
pub mod ledger;
pub mod memory;
pub mod mesh;
pub mod metrics;
pub mod nodes;
pub mod outage;
pub mod panics;
pub mod plain;
pub mod plan;
pub mod process;
pub mod produce;
pub mod progress;
pub mod run;
pub mod saving;
pub mod seam;
pub mod server;
pub mod shed;
pub mod simulate;
pub mod sink;
pub mod source;
pub mod stall;
pub mod state_cmd;
pub mod supervise;
pub mod tail;
pub mod terms;
pub mod views;
