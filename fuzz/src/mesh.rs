//! The handshake between processes, as the program has it.

#[path = "../../src/mesh/facts.rs"]
pub mod facts;
#[path = "../../src/mesh/handshake.rs"]
pub mod handshake;
