//! The harness and the operator together, on real servers.

mod backends;
mod flips;
mod kill;
mod rollout;
mod scenarios;
