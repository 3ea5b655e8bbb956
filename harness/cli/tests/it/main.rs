//! `laggard assets` as a person runs it.
#![expect(clippy::unwrap_used, reason = "all of this is a test, its helpers included")]

mod build;
mod downloads;
mod faults;
mod machine;
mod real;
mod upkeep;

// The library's own tests use these, too.
#[path = "../../../src/assets/testing/mirror.rs"]
mod mirror;
#[path = "../../../src/assets/testing/server.rs"]
mod server;
