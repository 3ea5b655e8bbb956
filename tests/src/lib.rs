//! What the scenarios and the demo have in common: a stage with a plane, a node and an operator
//! whose caches lag, and the actors that are played, the kubelet and the sidecar.

pub mod actors;
mod oracles;
pub mod original;
pub mod rollout;
mod sidecar;
pub mod stage;
mod written;

pub use sidecar::Sidecar;
pub use stage::{Stage, StaleRead};
pub use written::Written;
