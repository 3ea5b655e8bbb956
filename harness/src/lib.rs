//! Integration tests for Kubernetes controllers written with kube-rs: a real control plane, and watch
//! caches that lag on purpose.
//!
//! # A plane
//!
//! [`Plane::builder`] starts a real etcd and kube-apiserver, and on request the real
//! kube-controller-manager, as child processes or in containers. Nothing of it outlives the process
//! that started it, however that ends.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use laggard::plane::{Controller, Plane};
//!
//! let plane = Plane::builder().controllers([Controller::StatefulSet]).start().await?;
//! let namespace = plane.namespace("example").await?;
//! let client = plane.client()?;
//! # let _ = (namespace, client);
//! plane.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # A cache that lags
//!
//! [`Lag::over`] makes clients for any cluster. What runs on such a client is not changed: it sees real
//! replies of a real server, and its watch caches move as far as the test says.
//!
//! ```no_run
//! # async fn example(plane: laggard::Plane) -> anyhow::Result<()> {
//! use k8s_openapi::api::apps::v1::StatefulSet;
//! use laggard::Lag;
//!
//! let lag = Lag::over(plane.config())?;
//! // lag.client() goes into the controller under test
//! let sets = lag.stream::<StatefulSet>();
//! sets.hold();
//! // … a pass that applies a StatefulSet and reads it back from its cache …
//! assert_eq!(sets.behind()?, 1);
//! sets.release_one().await?; // returns when the controller's store shows the event
//! # Ok(())
//! # }
//! ```
//!
//! # What was asked, and what is answered
//!
//! Every request of such a client is recorded, with the tracing span that it was made in; any can be
//! answered by the test, and a read can be answered from the lagging view, to see whether a test
//! notices.
//!
//! ```no_run
//! # fn example(lag: laggard::Lag) {
//! use k8s_openapi::api::apps::v1::StatefulSet;
//! use laggard::lag::{Answer, Requests};
//!
//! let reads = Requests::get::<StatefulSet>().in_span("observe-image");
//! lag.answer_once(reads.clone(), Answer::Status(500));
//! let flip = lag.flip(reads.clone());
//! // … a pass …
//! assert_eq!(lag.requests().count(&reads), 2, "{lag}");
//! assert_eq!(flip.served(), 1);
//! # }
//! ```
//!
//! The servers' binaries are found where envtest's are, or built from their Go modules: see [`assets`].
#![warn(missing_docs, clippy::exhaustive_enums)]

mod ask;
pub mod assets;
pub mod barrier;
pub mod check;
mod connect;
pub mod explore;
pub mod lag;
mod lifeline;
mod manifests;
pub mod plane;
pub mod report;
mod text;
pub mod world;

pub use barrier::Barrier;
pub use check::{Check, Flips, check};
pub use lag::Lag;
pub use plane::Plane;
