//! Integration tests for Kubernetes controllers written with kube-rs.
#![warn(missing_docs, clippy::exhaustive_enums)]

pub mod assets;
mod connect;
pub mod explore;
pub mod lag;
mod lifeline;
mod manifests;
pub mod plane;
mod text;

pub use lag::Lag;
pub use plane::Plane;
