//! Describing a plane, and starting it.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use base64::Engine as _;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Config;
use kube::api::{Api, DynamicObject};
use kube::client::ConfigExt as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use super::backend::{Backend, Ingredients, Server, Surroundings};
use super::controllers::{self, Controller};
use super::directory::new_id;
use super::error::{Evidence, ServerEvidence, StartError, StartErrorKind, Step};
use super::flags::Flags;
use super::pki::{Pair, Pki, SERVER_NAME};
use super::preset::Tuning;
use super::process::ProcessBackend;
use super::ready::Probe;
use super::refusal::{self, Refusal, Refused};
use super::settings::{AUDIT_POLICY, Named};
use super::template::{self, Plan, Template};
use super::{BackendKind, Plane, Readiness, Timings};
use crate::assets::{Assets, Binary, Wanted};
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
    ///   once instead of after a tick of up to 100 ms, and memory does not fill with past events.
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

/// The name of the controller-manager's kubeconfig among the files of a plane.
pub(crate) const CONTROLLER_MANAGER_KUBECONFIG: &str = "controller-manager.kubeconfig";

#[derive(Debug)]
struct Settings {
    backend: BackendKind,
    start_timeout: Duration,
    template: Template,
}

/// How far a start has come.
#[derive(Debug)]
struct Attempt {
    step: Step,
    begun: Instant,
    answer: Answer,
}

impl Attempt {
    fn failed(&self, kind: StartErrorKind) -> StartError {
        StartError {
            step: self.step,
            waited: self.begun.elapsed(),
            evidence: Box::default(),
            kind: Box::new(kind),
        }
    }
}

/// What was seen last, for the error of a deadline that comes from outside.
#[derive(Clone, Debug, Default)]
struct Answer(Arc<Mutex<Option<String>>>);

impl Answer {
    fn set(&self, answer: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer.to_owned());
    }

    fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Polls the wait, and notes the probe's last answer whenever the wait is dropped or ends.
    async fn follow<T>(&self, probe: &Probe, wait: impl Future<Output = T>) -> T {
        struct Note<'a>(&'a Answer, &'a Probe);
        impl Drop for Note<'_> {
            fn drop(&mut self) {
                self.0.set(&self.1.last_answer());
            }
        }
        let _note = Note(self, probe);
        wait.await
    }
}

/// Waits for something, but not longer than the servers live.
async fn watched<T>(
    backend: &dyn Backend,
    wait: impl Future<Output = Result<T, StartErrorKind>>,
) -> Result<T, StartErrorKind> {
    tokio::select! {
        biased;
        result = wait => result,
        (server, status) = backend.ended() => Err(StartErrorKind::Exited { server, status }),
    }
}

/// The refusal in the log of a server that ended, if it ended of one.
async fn refusal_of(
    backend: &dyn Backend,
    kind: &StartErrorKind,
    evidence: &[ServerEvidence],
) -> Option<Refusal> {
    let StartErrorKind::Exited { server, .. } = kind else { return None };
    let evidence = evidence.iter().find(|evidence| evidence.server == *server)?;
    let refused = refusal::refused(&evidence.log_tail)?.asked_by(&evidence.command);
    let help = backend.ask(*server, "--help").await;
    Some(refusal(backend, *server, refused, help.as_deref()).await)
}

/// An error if a flag was to be removed that neither we set nor the server has: a typo that no
/// server would ever complain about.
async fn refuse_removals(backend: &dyn Backend, server: &Server) -> Result<(), StartErrorKind> {
    if server.removed.is_empty() {
        return Ok(());
    }
    // Without an answer, let it be: it changes nothing.
    let Some(help) = backend.ask(server.binary, "--help").await else { return Ok(()) };
    let known = refusal::flags(&help);
    match server.removed.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let refused = Refused::Flag { name: name.clone() };
            let refusal = refusal(backend, server.binary, refused, Some(&help)).await;
            Err(StartErrorKind::Refused(Box::new(refusal)))
        }
    }
}

async fn refusal(
    backend: &dyn Backend,
    server: Binary,
    refused: Refused,
    help: Option<&str>,
) -> Refusal {
    let version = backend.ask(server, "--version").await;
    let version =
        version.and_then(|answer| answer.split_whitespace().find_map(|word| word.parse().ok()));
    let mut refusal = Refusal { server, version, refused, near: Vec::new() };
    refusal.look_up(help.unwrap_or_default());
    refusal
}

/// What a backend runs.
#[derive(Debug)]
enum Programs {
    Binaries(Assets),
    #[cfg(feature = "container")]
    Images(super::container::Images),
}

/// A backend together with what only one kind of it can do.
#[derive(Debug)]
enum Launched {
    Process(ProcessBackend, Surroundings),
    #[cfg(feature = "container")]
    Container(super::container::ContainerBackend, Surroundings),
}

impl Programs {
    /// What they are, in words that change when they do; `None` if a file cannot be looked at.
    fn identity(&self) -> Option<String> {
        let of_file = |binary: Binary, path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            Some(format!("{binary} {} {} {modified:?}", path.display(), metadata.len()))
        };
        let servers = [Binary::Etcd, Binary::KubeApiserver];
        let all: Option<Vec<String>> = match self {
            Self::Binaries(assets) => {
                let of = assets.iter().filter(|(binary, _)| servers.contains(binary));
                of.map(|(binary, path)| of_file(binary, path)).collect()
            }
            #[cfg(feature = "container")]
            Self::Images(images) => {
                servers.into_iter().map(|binary| images.identity(binary)).collect()
            }
        };
        Some(all?.join("; "))
    }
}

impl Launched {
    async fn prepare(from: &Ingredients<'_>, programs: Programs) -> Result<Self, StartErrorKind> {
        match programs {
            Programs::Binaries(assets) => {
                let backend = ProcessBackend::prepare(from, assets)?;
                let surroundings = backend.surroundings();
                Ok(Self::Process(backend, surroundings))
            }
            #[cfg(feature = "container")]
            Programs::Images(images) => {
                let backend = super::container::ContainerBackend::prepare(from, images).await?;
                let surroundings = backend.surroundings();
                Ok(Self::Container(backend, surroundings))
            }
        }
    }

    fn backend(&mut self) -> &mut dyn Backend {
        match self {
            Self::Process(backend, _) => backend,
            #[cfg(feature = "container")]
            Self::Container(backend, _) => backend,
        }
    }

    fn surroundings(&self) -> &Surroundings {
        match self {
            Self::Process(_, surroundings) => surroundings,
            #[cfg(feature = "container")]
            Self::Container(_, surroundings) => surroundings,
        }
    }

    fn into_backend(self) -> Box<dyn Backend> {
        match self {
            Self::Process(backend, _) => Box::new(backend),
            #[cfg(feature = "container")]
            Self::Container(backend, _) => Box::new(backend),
        }
    }

    fn config(&mut self, pki: &Pki) -> Result<(Config, serde_json::Value), StartErrorKind> {
        let address = self.backend().apiserver();
        let url = match address {
            Some(address) => format!("https://{address}"),
            None => self.surroundings().apiserver_url.clone(),
        };
        let kubeconfig = kubeconfig(&url, pki.serving_ca.certificate(), &pki.admin);
        Ok((config_from(&url, pki, &kubeconfig)?, kubeconfig))
    }

    fn write_controller_manager_kubeconfig(&mut self, pki: &Pki) -> Result<(), StartErrorKind> {
        let url = &self.surroundings().apiserver_url;
        let text = kubeconfig(url, pki.serving_ca.certificate(), &pki.admin).to_string();
        self.add_file(CONTROLLER_MANAGER_KUBECONFIG, text)
    }

    /// A file for the servers that are launched from now on.
    fn add_file(&mut self, name: &'static str, content: String) -> Result<(), StartErrorKind> {
        match self {
            Self::Process(backend, around) => {
                backend.write(&format!("{}{name}", around.files), content.as_bytes())
            }
            #[cfg(feature = "container")]
            Self::Container(backend, _) => {
                backend.add_file(name, content);
                Ok(())
            }
        }
    }

    /// Whether the API server ended because somebody else listens on its port.
    async fn lost_its_port(&mut self) -> bool {
        let evidence = self.backend().evidence().await;
        evidence.iter().any(|server| {
            server.server == Binary::KubeApiserver
                && server.status.is_some()
                && server.log_tail.contains("address already in use")
        })
    }

    async fn take_another_port(&mut self) -> Result<(), StartErrorKind> {
        self.backend().stop_servers().await;
        match self {
            Self::Process(backend, surroundings) => {
                backend.take_another_port()?;
                *surroundings = backend.surroundings();
            }
            // The engine chose the port, and the server has its container to itself.
            #[cfg(feature = "container")]
            Self::Container(..) => {}
        }
        Ok(())
    }

    /// Gathers the evidence, ends what was started, and makes the error.
    async fn roll_back(mut self, attempt: Attempt, mut kind: StartErrorKind) -> StartError {
        let backend = self.backend();
        let mut servers = backend.evidence().await;
        let mut last_answer = attempt.answer.get();
        if let Some(refusal) = refusal_of(backend, &kind, &servers).await {
            // What the others were doing explains nothing.
            servers.retain(|server| server.server == refusal.server);
            last_answer = None;
            kind = StartErrorKind::Refused(Box::new(refusal));
        }
        kind = kind.explained_by(&servers);
        let logs = if servers.is_empty() { None } else { backend.keep_logs().await };
        let (_, left) = backend.stop().await;
        for left in left {
            tracing::warn!(%left, "a failed start could not be rolled back in full");
        }
        let mut error = attempt.failed(kind);
        error.evidence = Box::new(Evidence { servers, last_answer, logs });
        error
    }
}

/// A kubeconfig with everything inside.
fn kubeconfig(url: &str, ca: &str, user: &Pair) -> serde_json::Value {
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "laggard",
        "clusters": [{ "name": "laggard", "cluster": {
            "server": url,
            "tls-server-name": SERVER_NAME,
            "certificate-authority-data": encoded(ca),
        } }],
        "users": [{ "name": "laggard", "user": {
            "client-certificate-data": encoded(&user.certificate),
            "client-key-data": encoded(&user.key),
        } }],
        "contexts": [{ "name": "laggard", "context": { "cluster": "laggard", "user": "laggard" } }],
    })
}

/// Not by way of the kubeconfig: kube reads HTTPS_PROXY and NO_PROXY with it, and fails where they
/// are nonsense; loopback is behind no proxy.
fn config_from(
    url: &str,
    pki: &Pki,
    kubeconfig: &serde_json::Value,
) -> Result<Config, StartErrorKind> {
    let made = || -> Result<Config, Box<dyn std::error::Error + Send + Sync>> {
        let mut config = Config::new(url.parse()?);
        let ca = CertificateDer::from_pem_slice(pki.serving_ca.certificate().as_bytes())?;
        config.root_cert = Some(vec![ca.to_vec()]);
        config.tls_server_name = Some(SERVER_NAME.to_owned());
        config.auth_info = serde_json::from_value(kubeconfig["users"][0]["user"].clone())?;
        Ok(config)
    };
    let mut config = made().map_err(|error| {
        StartErrorKind::system("make a client configuration", std::io::Error::other(error))
    })?;
    // What the server answered is what the test sees.
    config.default_retry = false;
    Ok(config)
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
