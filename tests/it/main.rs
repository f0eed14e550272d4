//! The program from outside, on real servers: Kafka, Redis with time series, Prometheus. One binary, so that it links once.

#[path = "../common/oracle.rs"]
#[allow(dead_code)]
mod expected;
#[path = "../common/memory.rs"]
#[allow(dead_code)]
mod memory;
#[path = "../common/program.rs"]
#[allow(dead_code)]
mod program;
#[path = "../common/running.rs"]
mod running;
#[path = "../common/servers.rs"]
#[allow(dead_code)]
mod servers;

mod aberdeen;
mod crash;
mod errors;
mod operations;
mod scale;
