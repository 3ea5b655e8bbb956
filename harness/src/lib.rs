//! Integration tests for Kubernetes controllers written with kube-rs.
#![warn(missing_docs, clippy::exhaustive_enums)]

pub mod assets;
mod connect;
pub mod lag;
mod lifeline;
mod manifests;
pub mod plane;
mod text;
pub mod world;

pub use lag::Lag;
pub use plane::Plane;
