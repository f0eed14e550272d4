//! The program from outside, on real servers: Kafka, Redis with time series, Prometheus. One binary, so that it links once.

#[path = "../common/oracle.rs"]
#[allow(dead_code)]
mod expected;
#[path = "../common/lanes.rs"]
mod lanes;
#[path = "../common/memory.rs"]
#[allow(dead_code)]
mod memory;
#[path = "../common/plant.rs"]
mod plant;
#[path = "../common/program.rs"]
#[allow(dead_code)]
mod program;
#[path = "../common/proxy.rs"]
mod proxy;
#[path = "../common/running.rs"]
mod running;
#[path = "../common/same.rs"]
mod same;
#[path = "../common/servers.rs"]
mod servers;
#[path = "../common/tested.rs"]
mod tested;

mod aberdeen;
mod broker;
mod crash;
mod cut_off;
mod errors;
mod failpoints;
mod full_disk;
mod mesh;
mod operations;
mod redis_faults;
mod rescale;
mod scale;
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod sinks_kafka;
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod sinks_redis;
mod slow_sink;
mod stopping;
mod supervised;
mod zombie;
