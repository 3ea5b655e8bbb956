//! Describing a plane, and starting it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Config;
use kube::api::{Api, DynamicObject};
use kube::client::ConfigExt as _;

use super::attempt::{Answer, Attempt, refuse_removals, watched};
use super::backend::Ingredients;
use super::controllers::{self, Controller};
use super::directory::new_id;
use super::error::{StartError, StartErrorKind, Step};
use super::flags::Flags;
use super::launched::{Launched, Programs};
use super::pki::Pki;
use super::preset::Tuning;
use super::ready::Probe;
use super::settings::{AUDIT_POLICY, Named};
use super::template::{self, Plan, Template};
use super::{BackendKind, Plane, Readiness, Timings};
use crate::assets::{Binary, Wanted};
use crate::manifests::{apply, install_crds, until_served};
use crate::world::Registry;

/// A plane on two cores is ready in about a second, but twenty at once take half a minute.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A port is held against strangers, so a clash is very rare; nothing else is tried twice.
const PORT_TRIES: usize = 3;

/// A plane that is described but does not exist yet.
///
/// # Example
///
/// ```no_run
/// # async fn example() -> Result<(), laggard::plane::StartError> {
/// use laggard::plane::{Controller, Flags, Plane, Readiness};
///
/// let plane = Plane::builder()
///     .kubernetes("1.37")
///     .controllers([Controller::StatefulSet])
///     .apiserver_flags(Flags::new().set("v", "2"))
///     .readiness(Readiness::Full)
///     .start()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing happens until `start` is called"]
pub struct PlaneBuilder {
    kubernetes: Option<String>,
    assets: Wanted,
    backend: Option<BackendKind>,
    pub(super) controllers: BTreeSet<Controller>,
    pub(super) crds: Vec<CustomResourceDefinition>,
    pub(super) documents: Vec<DynamicObject>,
    pub(super) template: Template,
    pub(super) readiness: Readiness,
    pub(super) start_timeout: Option<Duration>,
    pub(super) exploring: bool,
    pub(super) named: Named,
    pub(super) etcd: Flags,
    pub(super) apiserver: Flags,
    pub(super) controller_manager: Flags,
}

impl Default for PlaneBuilder {
    fn default() -> Self {
        Self {
            kubernetes: None,
            assets: Wanted::newest(),
            backend: None,
            controllers: BTreeSet::new(),
            crds: Vec::new(),
            documents: Vec::new(),
            template: Template::default(),
            readiness: Readiness::default(),
            start_timeout: None,
            exploring: false,
            named: Named::default(),
            etcd: Flags::new(),
            apiserver: Flags::new(),
            controller_manager: Flags::new(),
        }
    }
}

impl PlaneBuilder {
    /// The version of Kubernetes: `1.37` for any patch of it, `1.37.2` for that one, and the other
    /// forms of [`Selector`](crate::assets::Selector).
    ///
    /// Default: what `LAGGARD_KUBERNETES` says, or else the newest that this version of laggard
    /// knows, or whatever version of the binaries the environment names.
    pub fn kubernetes(mut self, version: impl Into<String>) -> Self {
        self.kubernetes = Some(version.into());
        self
    }

    /// A directory with the binaries, looked at after the environment and before the store.
    pub fn assets_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.assets = self.assets.directory(directory);
        self
    }

    /// How the servers are obtained: without a network, from a mirror, within which time. A version
    /// or a directory in it counts like [`Self::kubernetes`] and [`Self::assets_directory`], of
    /// which the one called last holds; which binaries is the plane's own business.
    pub fn assets(mut self, wanted: Wanted) -> Self {
        self.kubernetes = wanted.version().map(str::to_owned).or(self.kubernetes);
        self.assets = wanted;
        self
    }

    /// How the servers are run; default what `LAGGARD_BACKEND` says (`process` or `container`), or
    /// else [`BackendKind::Process`].
    pub fn backend(mut self, backend: BackendKind) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Runs the real kube-controller-manager with these controllers; default none.
    ///
    /// `start` then returns once each of them has acted on an object.
    pub fn controllers(mut self, controllers: impl IntoIterator<Item = Controller>) -> Self {
        self.controllers.extend(controllers);
        self
    }

    /// Custom resource definitions that are usable when `start` returns.
    pub fn crds(mut self, crds: impl IntoIterator<Item = CustomResourceDefinition>) -> Self {
        self.crds.extend(crds);
        self
    }

    /// What `start` waits for; default [`Readiness::FirstStep`].
    pub fn readiness(mut self, readiness: Readiness) -> Self {
        self.readiness = readiness;
        self
    }

    /// How long a start may take once the binaries are at hand, wall clock; default what
    /// `KUBEBUILDER_CONTROLPLANE_START_TIMEOUT` says (`90s`, `1m30s`), or else 60 s.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = Some(limit);
        self
    }

    /// Tunes the servers for thousands of short runs, as an exploration makes them; default is a
    /// server as in production. Which it was, [`Plane::preset`] says.
    ///
    /// - The API server has no watch cache: a LIST, as consistent as before, is answered by etcd at
    ///   once instead of after a tick of up to 100 ms, and memory does not fill with past events. Once in
    ///   some thousand watches that are opened while their objects change, etcd loses a race with itself and
    ///   the server ends the watch with a 500 (`PrevKv=nil`), which a watch cache would have kept to itself:
    ///   clients watch again, as they do after any end, and those of [`Lag`](crate::lag::Lag) see an end without error.
    /// - The admission plugins LimitRanger and ResourceQuota, which LIST for every first object of
    ///   a namespace, are off. Leave this out if a test has LimitRanges or ResourceQuotas.
    /// - etcd keeps its data in memory (and so is the plane's directory, but for the logs), if
    ///   `/dev/shm` has a gigabyte to spare; it takes larger requests and transactions.
    /// - Nothing compacts etcd by itself, so moments of the past stay readable until
    ///   [`Worlds::compact`](crate::world::Worlds::compact).
    /// - Garbage is collected later: `GOGC=400`, up to 1 GiB a server.
    ///
    /// Flags that the other methods here set win over these.
    pub fn exploring(mut self) -> Self {
        self.exploring = true;
        self
    }

    /// Changes to etcd's flags; they win over whatever the other methods here set.
    ///
    /// A flag that this version of the server does not have, or whose value it does not take, fails
    /// the start with [`StartErrorKind::Refused`], which has the nearest names.
    pub fn etcd_flags(mut self, changes: Flags) -> Self {
        self.etcd = self.etcd.then(&changes);
        self
    }

    /// Changes to kube-apiserver's flags: see [`Self::etcd_flags`].
    pub fn apiserver_flags(mut self, changes: Flags) -> Self {
        self.apiserver = self.apiserver.then(&changes);
        self
    }

    /// Changes to kube-controller-manager's flags: see [`Self::etcd_flags`].
    pub fn controller_manager_flags(mut self, changes: Flags) -> Self {
        self.controller_manager = self.controller_manager.then(&changes);
        self
    }

    /// Starts the plane and waits until it can be used.
    ///
    /// Obtaining the binaries has a limit of its own (30 minutes, for a first build); the start's
    /// limit begins after it. Dropping the future ends and removes whatever had been started.
    ///
    /// # Errors
    ///
    /// [`StartError`], which names the step, the cause, and for each server its command line, its
    /// exit status and the last lines of its log.
    pub async fn start(self) -> Result<Plane, StartError> {
        let begun = Instant::now();
        let mut attempt = Attempt { step: Step::Assets, begun, answer: Answer::default() };
        let mut timings = Timings { readiness: self.readiness, ..Timings::default() };
        let settings = self.settings().map_err(|kind| attempt.failed(kind))?;

        let programs =
            Box::pin(self.programs(settings.backend)).await.map_err(|kind| attempt.failed(kind))?;
        timings.assets = begun.elapsed();
        let identity = programs.identity();
        let plan = self.plan(settings.template, identity.as_deref(), settings.start_timeout / 2);
        let plan = Box::pin(plan).await;
        timings.template = begun.elapsed() - timings.assets;

        attempt.step = Step::Preparation;
        attempt.begun = Instant::now();
        let pki = Pki::new().map_err(|error| {
            attempt.failed(StartErrorKind::system("make keys", std::io::Error::other(error)))
        })?;
        let id = new_id();
        let tuning = match self.exploring {
            true => Tuning::exploring(settings.backend),
            false => Tuning::standard(),
        };
        let from = Ingredients {
            id: &id,
            pki: &pki,
            memory: tuning.memory.as_deref(),
            attach_output: self.named.attaches_output(),
        };
        let limit = settings.start_timeout;
        let deadline = tokio::time::Instant::now() + limit;

        let mut launched =
            match tokio::time::timeout_at(deadline, Launched::prepare(&from, programs)).await {
                Ok(result) => result,
                Err(_) => Err(StartErrorKind::TimedOut { limit }),
            }
            .map_err(|kind| attempt.failed(kind))?;
        timings.preparation = attempt.begun.elapsed();

        // Whoever starts several at once has all of their futures on one stack, which is small in a thread of a test.
        let come_up =
            Box::pin(self.come_up(&mut launched, &pki, &tuning, plan, &mut attempt, &mut timings));
        let result = match tokio::time::timeout_at(deadline, come_up).await {
            Ok(result) => result,
            Err(_) => Err(StartErrorKind::TimedOut { limit }),
        };
        match result {
            Ok((config, kubeconfig, start_revision)) => {
                timings.total = begun.elapsed();
                tracing::info!(?timings, %id, preset = %tuning.preset, "a plane is up");
                Ok(Plane {
                    backend: launched.into_backend(),
                    config,
                    kubeconfig,
                    timings,
                    preset: tuning.preset,
                    is_audited: self.named.audit.is_some(),
                    controllers_paused: tokio::sync::Mutex::new(false),
                    controllers: self.controllers,
                    start_revision,
                })
            }
            Err(kind) => Err(launched.roll_back(attempt, kind).await),
        }
    }

    /// Obtains what the backend runs: binaries, or images, which need no binaries if the engine
    /// has them.
    async fn programs(&self, backend: BackendKind) -> Result<Programs, StartErrorKind> {
        let wanted = self.wanted();
        match backend {
            BackendKind::Process => Ok(Programs::Binaries(wanted.get(|_| ()).await?)),
            #[cfg(feature = "container")]
            BackendKind::Container => {
                Ok(Programs::Images(super::container::Images::obtain(&wanted).await?))
            }
            #[cfg(not(feature = "container"))]
            BackendKind::Container => Err(StartErrorKind::Setting {
                problem: "the container backend is not compiled in; enable laggard's feature \
                          \"container\""
                    .to_owned(),
            }),
        }
    }

    fn wanted(&self) -> Wanted {
        let from_environment =
            || std::env::var("LAGGARD_KUBERNETES").ok().filter(|version| !version.is_empty());
        let mut wanted = self.assets.clone();
        if let Some(version) = self.kubernetes.clone().or_else(from_environment) {
            wanted = wanted.with_version(version);
        }
        let mut binaries = vec![Binary::Etcd, Binary::KubeApiserver];
        if !self.controllers.is_empty() {
            binaries.push(Binary::KubeControllerManager);
        }
        wanted.binaries(binaries)
    }

    /// What the builder leaves open, from the environment.
    fn settings(&self) -> Result<Settings, StartErrorKind> {
        self.named.check()?;
        let backend = match self.backend {
            Some(backend) => backend,
            None => match std::env::var("LAGGARD_BACKEND").ok().as_deref() {
                None | Some("" | "process") => BackendKind::Process,
                Some("container") => BackendKind::Container,
                Some(other) => {
                    return Err(StartErrorKind::Setting {
                        problem: format!(
                            "LAGGARD_BACKEND is {other:?}; write \"process\" or \"container\""
                        ),
                    });
                }
            },
        };
        let variable = "KUBEBUILDER_CONTROLPLANE_START_TIMEOUT";
        let start_timeout = match (self.start_timeout, std::env::var(variable)) {
            (Some(limit), _) => limit,
            (None, Ok(text)) if !text.is_empty() => {
                super::go_duration::parse(&text).ok_or_else(|| StartErrorKind::Setting {
                    problem: format!("{variable} is {text:?}; write a duration such as \"1m30s\""),
                })?
            }
            (None, _) => START_TIMEOUT,
        };
        let template = template::in_effect(self.template)?;
        Ok(Settings { backend, start_timeout, template })
    }

    /// From the first spawn until a test can use the plane.
    async fn come_up(
        &self,
        launched: &mut Launched,
        pki: &Pki,
        tuning: &Tuning,
        plan: Plan,
        attempt: &mut Attempt,
        timings: &mut Timings,
    ) -> Result<(Config, serde_json::Value, Option<i64>), StartErrorKind> {
        attempt.step = Step::Launch;
        let begun = Instant::now();
        let (seed, mut making) = match plan {
            Plan::Without => (None, None),
            Plan::Sow(seed) => (Some(seed), None),
            Plan::Make(making) => (None, Some(making)),
        };
        if let Some(policy) = &self.named.audit {
            launched.add_file(AUDIT_POLICY, policy.to_text())?;
        }
        let mut tries = 0;
        let (config, kubeconfig, probe, etcd, is_sown) = loop {
            tries += 1;
            let servers = self.servers(launched.surroundings(), tuning);
            for server in &servers {
                refuse_removals(launched.backend(), server).await?;
            }
            launched.backend().launch(&servers).await?;
            attempt.step = Step::Readiness;
            let etcd = launched.backend().etcd();
            let (config, kubeconfig) = launched.config(pki)?;
            let address =
                launched.backend().apiserver().ok_or_else(|| StartErrorKind::Setting {
                    problem: "the backend gave no address of the API server".to_owned(),
                })?;
            let tls = config
                .rustls_client_config()
                .map_err(|error| StartErrorKind::request("make a TLS client", error))?;
            let probe = Probe::new(address, tls);
            let waiting_since = begun.elapsed();
            let waited = watched(launched.backend(), async {
                Ok(attempt.answer.follow(&probe, probe.ready(self.readiness)).await)
            });
            // etcd answers long before the API server asks it for any of this.
            match template::sow_until(waited, seed.as_ref(), etcd.as_ref()).await {
                Ok((reached, is_sown)) => {
                    timings.listening = waiting_since + reached.listening;
                    timings.tls = waiting_since + reached.tls;
                    timings.ready = begun.elapsed();
                    break (config, kubeconfig, probe, etcd, is_sown);
                }
                Err(kind) if tries < PORT_TRIES && launched.lost_its_port().await => {
                    tracing::warn!(error = %kind, "the port was taken meanwhile; trying another");
                    launched.take_another_port().await?;
                }
                Err(kind) => return Err(kind),
            }
        };
        let seed = seed.filter(|_| is_sown);
        let client = crate::connect::client(&config)
            .map_err(|error| StartErrorKind::request("make a client", error))?;

        attempt.step = Step::Namespace;
        let begun = Instant::now();
        let namespaces: Api<Namespace> = Api::all(client.clone());
        attempt.answer.set("waiting for the namespace default");
        watched(launched.backend(), async {
            loop {
                match namespaces.get_opt("default").await {
                    Ok(Some(_)) => return Ok(()),
                    // Made by a hook of the API server that ends before it is ready, normally.
                    Ok(None) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(error) => {
                        return Err(StartErrorKind::request("get the namespace default", error));
                    }
                }
            }
        })
        .await?;
        if seed.is_some() {
            attempt.answer.set("waiting for the authorizer to go by the roles of the template");
            watched(launched.backend(), template::until_authorized(&client)).await?;
        }
        timings.namespace = begun.elapsed();
        if let Some(it) = &mut making {
            let begun = Instant::now();
            attempt.answer.set("waiting for the default objects, for a template");
            let read = watched(launched.backend(), async {
                Ok(it.read_defaults(&probe, &client, etcd.as_ref()).await)
            });
            let read = read.await?;
            making = making.filter(|_| read);
            timings.template += begun.elapsed();
        }

        let have_documents = seed.is_some_and(|seed| seed.has_documents);
        if !self.crds.is_empty() {
            attempt.step = Step::Crds;
            let begun = Instant::now();
            attempt.answer.set("waiting for custom resource definitions to be served");
            watched(launched.backend(), async {
                let attempt = "install custom resource definitions";
                let installed = match have_documents {
                    true => {
                        let served = self.crds.iter().map(|it| until_served(&client, it));
                        futures::future::try_join_all(served).await.map(drop)
                    }
                    false => install_crds(&client, &self.crds).await,
                };
                installed.map_err(|error| StartErrorKind::request(attempt, error))
            })
            .await?;
            timings.crds = begun.elapsed();
        }

        let is_made = making.is_some();
        let (first, rest) = match (have_documents, is_made) {
            (true, _) => (Vec::new(), self.documents_of(true)),
            (false, true) => (self.documents_of(false), self.documents_of(true)),
            (false, false) => (self.documents.iter().collect(), Vec::new()),
        };
        attempt.step = Step::Documents;
        let begun = Instant::now();
        attempt.answer.set("applying documents");
        watched(launched.backend(), async {
            let refused = |error| StartErrorKind::Documents { source: Box::new(error) };
            apply(&client, &first).await.map_err(refused)?;
            if let Some(making) = making {
                making.keep(etcd.as_ref()).await;
            }
            apply(&client, &rest).await.map_err(refused)
        })
        .await?;
        timings.documents = begun.elapsed();

        if !self.controllers.is_empty() {
            attempt.step = Step::Controllers;
            let begun = Instant::now();
            let server = self.controller_manager(launched.surroundings(), tuning);
            launched.write_controller_manager_kubeconfig(pki)?;
            refuse_removals(launched.backend(), &server).await?;
            launched.backend().launch(std::slice::from_ref(&server)).await?;
            watched(launched.backend(), async {
                controllers::wait_until_at_work(&client, &self.controllers, |awaited| {
                    attempt.answer.set(&format!("waiting for {awaited}"));
                })
                .await
            })
            .await?;
            timings.controllers = begun.elapsed();
        }
        let start_revision = match (self.readiness, etcd) {
            (Readiness::Full, Some(etcd)) => match Registry::present(&etcd).await {
                Ok(revision) => Some(revision),
                Err(error) => {
                    tracing::debug!(%error, "the plane cannot be reset to its start");
                    None
                }
            },
            _ => None,
        };
        Ok((config, kubeconfig, start_revision))
    }
}

#[derive(Debug)]
struct Settings {
    backend: BackendKind,
    start_timeout: Duration,
    template: Template,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a debug build it had grown so large that six at once were more than the stack of a thread.
    #[test]
    fn the_future_of_a_start_is_small() {
        let size = size_of_val(&PlaneBuilder::default().start());
        assert!(size < 8 * 1024, "{size} bytes");
    }
}
