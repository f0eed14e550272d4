//! The program from outside, on real servers: Kafka, Redis with time series, Prometheus. One binary, so that it links once.

#[path = "../common/oracle.rs"]
#[allow(dead_code)]
mod expected;
#[path = "../common/lanes.rs"]
mod lanes;
#[path = "../common/memory.rs"]
#[allow(dead_code)]
mod memory;
#[path = "../common/program.rs"]
#[allow(dead_code)]
mod program;
#[path = "../common/running.rs"]
mod running;
#[path = "../common/servers.rs"]
mod servers;

mod aberdeen;
mod crash;
mod errors;
mod operations;
mod scale;
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod sinks_kafka;
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod sinks_redis;
