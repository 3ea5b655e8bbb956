//! The harness and the operator together, on real servers.

mod backends;
mod care;
mod deletion;
mod errors;
mod exploration;
mod flips;
mod kill;
mod plans;
mod recall;
mod repeat;
mod resource;
mod rollout;
mod scenarios;
