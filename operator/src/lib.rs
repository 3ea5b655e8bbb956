//! The rollout slice of a node operator: one custom resource, `SeiNode`, and the plan that takes a
//! node from one image to the next.
//!
//! A pass ([`controller::reconcile`]) resolves a plan, runs its tasks in order until one has to
//! wait, and writes the status once. What decides about a rollout is read from the API server
//! itself ([`readers::Live`]), never from the watch cache ([`readers::Cached`]): the StatefulSet was
//! applied a moment ago, in the same pass, and the cache may still show it as it was.

pub mod api;
pub mod controller;
pub mod plan;
pub mod readers;
pub mod settings;
pub mod sidecar;
pub mod status;
pub mod task;
