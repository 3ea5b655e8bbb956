//! Planes: a real etcd and kube-apiserver, and on request the real kube-controller-manager.
//!
//! [`Plane::builder`] is where to begin. A plane runs as child processes of the test (the default)
//! or in containers ([`BackendKind::Container`], or `LAGGARD_BACKEND=container`); what a test sees
//! of it is the same. Nothing of a plane outlives the process that started it: not when the plane
//! is dropped, not when the test panics, not when the process is killed.
//!
//! | setting | variable | default |
//! |---|---|---|
//! | [`PlaneBuilder::kubernetes`] | `LAGGARD_KUBERNETES` | the newest minor known |
//! | [`PlaneBuilder::backend`] | `LAGGARD_BACKEND` | `process` |
//! | | `LAGGARD_PULL` | `missing`: see [`BackendKind::Container`] |
//! | [`PlaneBuilder::start_timeout`] | `KUBEBUILDER_CONTROLPLANE_START_TIMEOUT`, as Go writes it (`1m30s`) | 60 s |
//! | [`PlaneBuilder::attach_output`] | `KUBEBUILDER_ATTACH_CONTROL_PLANE_OUTPUT` | `false` |
//! | | `LAGGARD_KEEP_LOGS` | `0`: see [`Plane::logs`] |
//!
//! The builder wins over the variables. Those of the binaries (`KUBEBUILDER_ASSETS` and others) are in
//! [`assets`](crate::assets). envtest's `KUBEBUILDER_CONTROLPLANE_STOP_TIMEOUT` has no meaning here: a
//! plane is ended at once.

mod attach;
mod attempt;
mod audit;
mod backend;
mod builder;
mod command;
#[cfg(feature = "container")]
mod container;
mod controllers;
mod directory;
mod error;
mod flags;
mod go_duration;
mod launched;
mod pki;
mod preset;
mod process;
mod ready;
mod refusal;
mod reset;
mod settings;
mod template;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Config, ResourceExt};
use tokio::sync::Mutex;

pub use audit::{AuditEvent, AuditLevel, AuditPolicy, AuditPolicyError, AuditStage};
pub use builder::PlaneBuilder;
#[cfg(feature = "container")]
pub use container::{DockerEngine, docker_engine};
pub use controllers::Controller;
pub use error::{StartError, StartErrorKind, Step, Stopped};
pub use flags::Flags;
pub use preset::Preset;
pub use refusal::{Refusal, Refused};
pub use reset::{PlaneMoment, Reset};
pub use template::Template;

use crate::assets::Binary;
use crate::manifests::install_crds;
use crate::world::EtcdAddress;
use backend::Backend;

/// One running control plane.
///
/// It is not `Clone`: whoever holds it owns it. [`stop`](Self::stop) ends it and says what it
/// found; dropping it ends it too, without waiting and without a word.
///
/// # Example
///
/// ```no_run
/// # async fn example() -> anyhow::Result<()> {
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use kube::api::{Api, ListParams};
/// use laggard::Plane;
///
/// let plane = Plane::builder().start().await?;
/// let namespace = plane.namespace("example").await?;
/// let maps: Api<ConfigMap> = Api::namespaced(plane.client()?, &namespace);
/// assert!(maps.list(&ListParams::default()).await?.items.is_empty());
/// plane.stop().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Plane {
    backend: Box<dyn Backend>,
    config: Config,
    kubeconfig: serde_json::Value,
    timings: Timings,
    is_audited: bool,
    preset: Preset,
    controllers_paused: Mutex<bool>,
    controllers: BTreeSet<Controller>,
    /// etcd's revision when the start was over, if the server had made all that it makes by then.
    start_revision: Option<i64>,
}

/// Which way servers are run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum BackendKind {
    /// Child processes of the test.
    Process,
    /// Containers, through testcontainers.
    ///
    /// Needs a Docker engine that shares this process's loopback, where the ports are published:
    /// the one that `DOCKER_HOST` names, or else the first of the usual sockets that exists.
    ///
    /// The images are the official ones (`registry.k8s.io/kube-apiserver:v1.37.2`, …) if the engine
    /// has them or can pull them; `LAGGARD_PULL=never` forbids the pull (default `missing`). Else
    /// they are made, under names below `laggard.local/`, of the binaries that
    /// [`Process`](Self::Process) would run; only then are those looked for. A binary that its own
    /// variable names (`TEST_ASSET_KUBE_APISERVER`, …) is always run; `KUBEBUILDER_ASSETS` is no
    /// such variable.
    Container,
}

/// What [`PlaneBuilder::start`] waits for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Readiness {
    /// All checks but two. With a [`Template`], the default, everything works for everybody. Without one
    /// it does for the plane's own client, a member of `system:masters`; the default RBAC rules and priority
    /// classes appear a second later.
    #[default]
    FirstStep,
    /// Every check.
    Full,
}

/// How long each part of a start took.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Timings {
    /// Finding the binaries, or building them.
    pub assets: Duration,
    /// Finding the template, or making it.
    pub template: Duration,
    /// Making directories, keys, certificates and the port.
    pub preparation: Duration,
    /// From the first spawn until the API server's port accepts.
    pub listening: Duration,
    /// From the first spawn until it has completed a TLS handshake.
    pub tls: Duration,
    /// From the first spawn until it was ready, in the sense of [`Self::readiness`].
    pub ready: Duration,
    /// Which step of readiness was waited for.
    pub readiness: Readiness,
    /// Waiting for the namespace `default`.
    pub namespace: Duration,
    /// Installing custom resource definitions.
    pub crds: Duration,
    /// Applying documents.
    pub documents: Duration,
    /// Waiting until the controller-manager had acted.
    pub controllers: Duration,
    /// All of it.
    pub total: Duration,
}

/// A request that a plane made for its owner failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {attempt}")]
pub struct PlaneError {
    attempt: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl PlaneError {
    fn new(
        attempt: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { attempt: attempt.into(), source: source.into() }
    }
}

/// A plane was stopped, but something of it could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("the plane was stopped, but this could not be removed: {}", stopped.left.join("; "))]
pub struct StopError {
    stopped: Stopped,
}

impl StopError {
    /// What was found, and what is left.
    #[must_use]
    pub fn stopped(&self) -> &Stopped {
        &self.stopped
    }
}

impl Plane {
    /// Begins to describe a plane; nothing happens until [`PlaneBuilder::start`].
    pub fn builder() -> PlaneBuilder {
        PlaneBuilder::default()
    }

    /// The configuration of the plane's own user, a member of `system:masters`.
    ///
    /// Only values: no environment and no file is read where it is used, and no proxy.
    #[must_use]
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// The same as a kubeconfig, JSON, with the credentials inside. Keep it to yourself: whoever
    /// has it owns the plane.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig.to_string()
    }

    /// A new client of the plane's own user, whose connections have TCP_NODELAY set.
    ///
    /// It belongs to the runtime it is made in. It does not retry: what the server answered is
    /// what the caller sees.
    ///
    /// # Errors
    ///
    /// If the configuration cannot be turned into a client, which would be a defect of ours.
    pub fn client(&self) -> Result<Client, PlaneError> {
        crate::connect::client(&self.config)
            .map_err(|error| PlaneError::new("make a client of the plane", error))
    }

    /// Makes a namespace with a name that begins with `prefix` and is used once.
    ///
    /// Nothing has to remove it: it goes with the plane. Where [`Controller::ServiceAccount`] runs,
    /// the namespace has its account `default` when this returns, unless the controllers are paused.
    ///
    /// # Errors
    ///
    /// If the API server refuses it, for example because `prefix` is no name; if its account is not
    /// made within 30 s.
    pub async fn namespace(&self, prefix: &str) -> Result<String, PlaneError> {
        let namespaces: Api<Namespace> = Api::all(self.client()?);
        let metadata =
            ObjectMeta { generate_name: Some(format!("{prefix}-")), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        let created = namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .map_err(|error| PlaneError::new(format!("make a namespace {prefix}-…"), error))?;
        let name = created.name_any();
        if self.controllers.contains(&Controller::ServiceAccount)
            && !*self.controllers_paused.lock().await
        {
            self.wait_for_default_account(&name).await?;
        }
        Ok(name)
    }

    async fn wait_for_default_account(&self, namespace: &str) -> Result<(), PlaneError> {
        let limit = Duration::from_secs(30);
        let client = self.client()?;
        let wait = controllers::wait_for_default_account(&client, namespace);
        let attempt = format!("make the namespace {namespace} ready for pods");
        match tokio::time::timeout(limit, wait).await {
            Ok(result) => result.map_err(|error| PlaneError::new(attempt, error)),
            Err(_) => Err(PlaneError::new(attempt, format!("no account default within {limit:?}"))),
        }
    }

    /// Installs custom resource definitions, all at once, and returns when their objects can be
    /// listed and made. [`PlaneBuilder::crds`] does the same during the start.
    ///
    /// # Errors
    ///
    /// If the API server refuses one, or an object of it cannot be listed within 30 s.
    pub async fn install_crds(
        &self,
        definitions: &[CustomResourceDefinition],
    ) -> Result<(), PlaneError> {
        let limit = Duration::from_secs(30);
        let names: Vec<_> = definitions.iter().map(ResourceExt::name_any).collect();
        let attempt = format!("install {}", names.join(", "));
        let client = self.client()?;
        let install = install_crds(&client, definitions);
        match tokio::time::timeout(limit, install).await {
            Ok(result) => result.map_err(|error| PlaneError::new(attempt, error)),
            Err(_) => Err(PlaneError::new(
                attempt,
                format!("not established and served within {limit:?}"),
            )),
        }
    }

    /// Where the plane's etcd answers, for [`Worlds`](crate::world::Worlds). With it comes the key of
    /// a client that may read and write everything.
    ///
    /// # Errors
    ///
    /// If the backend published no port of etcd's.
    pub fn etcd(&self) -> Result<EtcdAddress, PlaneError> {
        self.backend.etcd().ok_or_else(|| {
            PlaneError::new(
                "reach the plane's etcd",
                "it is not running, or its port is not published",
            )
        })
    }

    /// Stops kube-controller-manager in its tracks (SIGSTOP, or the engine's pause), and returns
    /// when it stands. Does nothing if it already does.
    ///
    /// A write that it had sent before may still arrive. Pause it after an effect that was awaited.
    ///
    /// # Errors
    ///
    /// If the plane has no controller-manager.
    pub async fn pause_controllers(&self) -> Result<(), PlaneError> {
        self.set_paused(true).await
    }

    /// Lets kube-controller-manager go on. Does nothing if it is not paused.
    ///
    /// # Errors
    ///
    /// If the plane has no controller-manager.
    pub async fn resume_controllers(&self) -> Result<(), PlaneError> {
        self.set_paused(false).await
    }

    async fn set_paused(&self, paused: bool) -> Result<(), PlaneError> {
        let mut state = self.controllers_paused.lock().await;
        if *state != paused {
            let attempt = if paused { "pause the controllers" } else { "resume the controllers" };
            self.backend
                .set_paused(Binary::KubeControllerManager, paused)
                .await
                .map_err(|error| PlaneError::new(attempt, error))?;
            *state = paused;
        }
        Ok(())
    }

    /// How long each part of the start took.
    #[must_use]
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// What the plane is tuned for, for the reports of whoever runs something on it.
    #[must_use]
    pub fn preset(&self) -> Preset {
        self.preset
    }

    /// The directory of the servers' logs, one file each, where they are files on this machine.
    ///
    /// It is removed with the plane, unless the thread that drops the plane is panicking or
    /// `LAGGARD_KEEP_LOGS=1` is set.
    #[must_use]
    pub fn logs(&self) -> Option<&Path> {
        self.backend.logs()
    }

    /// The file with the audit log, one event a line, JSON: among the plane's [`logs`](Self::logs), and
    /// kept or removed with them. `None` without [`PlaneBuilder::audit`], and where the server is in
    /// a container.
    #[must_use]
    pub fn audit_log(&self) -> Option<&Path> {
        self.backend.audit_log().filter(|_| self.is_audited)
    }

    /// What is in the audit log by now, in the order in which it was written.
    ///
    /// Events of the stage [`AuditStage::RequestReceived`] are there before the reply to the request
    /// is, those of [`AuditStage::ResponseComplete`] perhaps a moment later.
    ///
    /// # Errors
    ///
    /// If the plane has none (see [`PlaneBuilder::audit`]), or it cannot be read.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn example() -> anyhow::Result<()> {
    /// use laggard::Plane;
    /// use laggard::plane::{AuditLevel, AuditPolicy};
    ///
    /// let policy = AuditPolicy::all(AuditLevel::Metadata);
    /// let plane = Plane::builder().audit(policy).start().await?;
    /// plane.namespace("example").await?;
    /// let events = plane.audit_events().await?;
    /// assert!(events.iter().any(|event| event.verb == "create"
    ///     && event.resource.as_deref() == Some("namespaces")));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn audit_events(&self) -> Result<Vec<AuditEvent>, PlaneError> {
        let attempt = "read the audit log";
        if !self.is_audited {
            return Err(PlaneError::new(attempt, "there is none; add `audit` to the builder"));
        }
        let log = self.backend.read_audit_log().await;
        let log = log.map_err(|error| PlaneError::new(attempt, error))?;
        audit::events(&log).map_err(|error| PlaneError::new(attempt, error))
    }

    /// Ends the servers at once and removes everything of the plane.
    ///
    /// It is SIGKILL, not a request: nothing of a test's plane is worth waiting for. Open watches do
    /// not delay it. Dropping the future leaves the rest to the drop of the plane.
    ///
    /// # Errors
    ///
    /// If something could not be removed; the servers are ended all the same.
    pub async fn stop(mut self) -> Result<Stopped, StopError> {
        let begun = Instant::now();
        let (already_ended, left) = self.backend.stop().await;
        let stopped = Stopped { already_ended, took: begun.elapsed(), left };
        tracing::info!(?stopped, "the plane is stopped");
        if stopped.left.is_empty() { Ok(stopped) } else { Err(StopError { stopped }) }
    }
}
