//! Where runs are made: a server, the worlds that are forked on it, and what is followed there.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
};
use serde_json::json;
use tokio::task::{JoinError, JoinSet};

use super::{
    error::CheckError,
    scenario::{BoxError, Making, Scenario},
    world::SetUp,
};
use crate::{
    ask::ask,
    connect::{Connector, Upstream},
    explore::ExploreError,
    lag::{
        Lag,
        model::{READS_BETWEEN_REPLIES, Request, Verb, is_for_people},
        recall::{Recall, RecallService},
        tap::{TapResource, Taps},
    },
    plane::Plane,
    world::{EtcdAddress, Moment, WorldError, Worlds},
};

/// A server on which scenarios are checked.
///
/// Made from a [`Plane`], whose etcd can be reached, or from any [`Config`]: then every world is made through the
/// API.
#[derive(Clone)]
pub struct Server {
    config: Config,
    etcd: Result<EtcdAddress, String>,
    taps: bool,
    recall: bool,
}

impl Server {
    /// Makes every world through the API, and lists and watches each of its streams at the server: as whoever tests
    /// without this library would. Slower, and for comparing.
    #[must_use]
    pub fn without_worlds(mut self) -> Self {
        self.etcd = Err("that was asked for".to_owned());
        self.taps = false;
        self
    }

    /// Asks the server every time.
    ///
    /// By default, a request of a run in a forked world is answered from memory if the server has answered the same in
    /// another world in which the same had happened since the fork, and what the server wrote then is written again,
    /// below it, in etcd. Requests are the same if they differ in no more than the names of the world: namespace, UIDs,
    /// resource versions, and UUIDs and moments that the client has made up. Nothing is answered so where admission
    /// webhooks are registered, or where anybody but the clients of a world writes into it. The failing run that is shown is
    /// made again with all its requests at the server. Use this to measure the server, to read its audit log, or where its
    /// answers depend on more than what is in the namespace.
    #[must_use]
    pub fn without_recall(mut self) -> Self {
        self.recall = false;
        self
    }
}

impl From<&Plane> for Server {
    fn from(plane: &Plane) -> Self {
        let etcd = plane.etcd().map_err(|error| error.to_string());
        Self { config: plane.config(), etcd, taps: true, recall: true }
    }
}

impl From<Config> for Server {
    fn from(config: Config) -> Self {
        let etcd = Err("the etcd of this server is not known".to_owned());
        Self { config, etcd, taps: true, recall: true }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("url", &self.config.cluster_url).finish_non_exhaustive()
    }
}

/// What all runs of one check share.
pub(super) struct Ground {
    client: Client,
    upstream: Upstream,
    /// `None` where each run is to ask the server itself.
    taps: Option<Taps>,
    forks: Result<Forks, String>,
    /// What is followed in every world.
    followed: Mutex<BTreeSet<TapResource>>,
    /// What cannot be listed and watched.
    unfollowable: Mutex<BTreeSet<TapResource>>,
    /// What the runs have left out by the way in which they went.
    left_out: Mutex<BTreeSet<&'static str>>,
}

struct Forks {
    worlds: Worlds,
    /// The worlds that are being erased beside the next runs.
    erasures: Mutex<JoinSet<Result<(), WorldError>>>,
    /// What every run is forked from; the reason where that cannot be.
    moment: Result<Moment, String>,
    /// `None` where the server is to be asked every time.
    recall: Option<Recall>,
    ahead: Mutex<Ahead>,
}

/// The worlds of the next runs, made beside those under way.
#[derive(Default)]
struct Ahead {
    /// How many there should be.
    wanted: usize,
    /// One task in each, which ends with it.
    next: VecDeque<JoinSet<Next>>,
}

/// A world that nobody has asked for yet.
struct Next {
    made: Result<crate::world::World, CheckError>,
    /// How many resources were followed when it was begun.
    followed: usize,
}

/// What a world is made from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    /// A moment, where it can be forked.
    Moment,
    /// Nothing, through the API.
    Nothing,
}

/// A world for one run.
pub(super) struct Place {
    pub(super) namespace: String,
    pub(super) lag: Lag,
    fork: Option<crate::world::World>,
    recall: Option<RecallService>,
}

impl Ground {
    /// Connects, makes the set-up once, and keeps its moment if it can be forked.
    pub(super) async fn prepare(server: &Server, scenario: &Scenario) -> Result<Self, CheckError> {
        let connector = Connector::new(&server.config).map_err(CheckError::config)?;
        let upstream = connector.upstream();
        let client = Client::new(upstream.clone(), connector.default_namespace());
        let worlds = match &server.etcd {
            Ok(etcd) => Worlds::new(etcd).await.map_err(|error| error.to_string()),
            Err(reason) => Err(reason.clone()),
        };
        let taps = server.taps.then(|| Taps::over(upstream.clone()));
        let mut ground = Self {
            client,
            upstream,
            taps,
            forks: Err(String::new()),
            followed: Mutex::default(),
            unfollowable: Mutex::default(),
            left_out: Mutex::default(),
        };
        ground.forks = match worlds {
            Err(reason) => Err(reason),
            Ok(worlds) => {
                if let Some(taps) = &ground.taps {
                    taps.keep_only("lw-");
                }
                let source = worlds.name().await.map_err(CheckError::world)?;
                ground.create(&source, scenario.set_up.as_ref()).await?;
                let moment = worlds.moment(&source).await.map_err(|error| error.to_string());
                worlds.erase_namespace(&source).await.map_err(CheckError::world)?;
                let recall = server.recall && !has_webhooks(&ground.client).await;
                let recall = recall.then(|| Recall::new(worlds.clone()));
                let (erasures, ahead) = (Mutex::default(), Mutex::default());
                Ok(Forks { worlds, erasures, moment, recall, ahead })
            }
        };
        if let Ok(Forks { moment: Ok(moment), .. }) = &ground.forks {
            for resource in resources_of(moment) {
                ground.follow(resource).await;
            }
        }
        Ok(ground)
    }

    /// How worlds are made, in words.
    pub(super) fn way(&self) -> String {
        let reason = match &self.forks {
            Err(reason) => reason,
            Ok(Forks { moment: Err(reason), .. }) => reason,
            Ok(Forks { moment: Ok(_), .. }) => return "forked in etcd".to_owned(),
        };
        format!("made through the API, since {}", reason.lines().next().unwrap_or_default())
    }

    /// How many requests were answered from memory, and how many there were.
    pub(super) fn recalled(&self) -> (u64, u64) {
        let recall = self.forks.as_ref().ok().and_then(|forks| forks.recall.as_ref());
        recall.map_or((0, 0), Recall::counts)
    }

    /// What the server says its version is; `None` if it does not.
    pub(super) async fn server_version(&self) -> Option<String> {
        match self.client.apiserver_version().await {
            Ok(version) => Some(version.git_version),
            Err(error) => {
                tracing::debug!(%error, "the server does not tell its version");
                None
            }
        }
    }

    /// Makes a namespace and what is in it, through the API.
    async fn create(&self, namespace: &str, set_up: Option<&Making>) -> Result<(), CheckError> {
        let object: Result<Namespace, _> =
            serde_json::from_value(json!({ "metadata": { "name": namespace } }));
        let object = object.map_err(|error| CheckError::set_up(error.into()))?;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces
            .create(&PostParams::default(), &object)
            .await
            .map_err(|error| CheckError::set_up(error.into()))?;
        if let Some(set_up) = set_up {
            let recorder = Lag::over_upstream(self.upstream.clone(), namespace);
            let world = SetUp { client: recorder.client(), namespace: namespace.to_owned() };
            set_up(world).await.map_err(CheckError::set_up)?;
            if self.forks.is_err() {
                // No moment says what there is, and the process may never ask about what an actor acts on.
                self.learn(recorder.requests().iter(), namespace).await;
            }
        }
        Ok(())
    }

    /// A world of its own for a run, with everything in it followed.
    pub(super) async fn world(
        &self,
        scenario: &Scenario,
        from: Source,
    ) -> Result<Place, CheckError> {
        let (namespace, fork, complete) = match (&self.forks, from) {
            (Ok(forks @ Forks { worlds, moment: Ok(moment), .. }), Source::Moment) => {
                let fork = match self.made_ahead(forks).await? {
                    Some(fork) => fork,
                    None => self.fork(worlds, moment).await?,
                };
                let mut ahead = lock(&forks.ahead);
                if ahead.next.len() < ahead.wanted {
                    let (made, followed) = (self.fork(worlds, moment), self.followed_count());
                    let mut next = JoinSet::new();
                    next.spawn(async move { Next { made: made.await, followed } });
                    ahead.next.push_back(next);
                }
                (fork.namespace().to_owned(), Some(fork), true)
            }
            (Ok(Forks { worlds, .. }), _) => {
                let namespace = worlds.name().await.map_err(CheckError::world)?;
                self.create(&namespace, scenario.set_up.as_ref()).await?;
                (namespace, None, false)
            }
            (Err(_), _) => {
                let id = uuid::Uuid::new_v4().simple().to_string();
                let namespace = format!("laggard-{}", &id[..12]);
                self.create(&namespace, scenario.set_up.as_ref()).await?;
                (namespace, None, false)
            }
        };
        let recall = match (&self.forks, &fork) {
            (Ok(Forks { recall: Some(recall), .. }), Some(fork)) => {
                Some(recall.service(fork, self.upstream.clone()))
            }
            _ => None,
        };
        let upstream = match &self.taps {
            Some(taps) => {
                let mut service = taps.service(&namespace);
                if complete {
                    service.complete();
                }
                if let Some(recall) = &recall {
                    service = service.through(recall.upstream());
                }
                Upstream::new(service)
            }
            None => self.upstream.clone(),
        };
        let lag = Lag::over_upstream(upstream, &namespace);
        lag.without_bookmarks();
        lag.record();
        for TapResource { group, version, plural } in self.followed() {
            lag.observe_resource(&group, &version, &plural, &namespace)
                .await
                .map_err(|error| CheckError::set_up(error.into()))?;
        }
        Ok(Place { namespace, lag, fork, recall })
    }

    /// Makes runs, so many at once, and beside each of them the world of a next one.
    ///
    /// No such world is left when the runs are over: whoever a set-up lets act, such as a real controller, would act in
    /// it as well.
    pub(super) async fn with_worlds_ahead<T>(
        &self,
        at_once: usize,
        runs: impl Future<Output = Result<T, ExploreError<RunError>>>,
    ) -> Result<T, CheckError> {
        let Ok(forks) = &self.forks else { return runs.await.map_err(CheckError::Explore) };
        lock(&forks.ahead).wanted = at_once;
        let explored = runs.await;
        lock(&forks.ahead).wanted = 0;
        while let Some(Next { made, .. }) = next_of(forks).await? {
            self.drop_unused(forks, made?).await?;
        }
        explored.map_err(CheckError::Explore)
    }

    /// The world that was made ahead, if there is one. What was begun before all taps were open may be unknown to some of
    /// them, and is erased.
    async fn made_ahead(&self, forks: &Forks) -> Result<Option<crate::world::World>, CheckError> {
        let Some(Next { made, followed }) = next_of(forks).await? else { return Ok(None) };
        let fork = made?;
        if followed == self.followed_count() {
            return Ok(Some(fork));
        }
        self.drop_unused(forks, fork).await?;
        Ok(None)
    }

    async fn drop_unused(
        &self,
        forks: &Forks,
        fork: crate::world::World,
    ) -> Result<(), CheckError> {
        self.forget(fork.namespace());
        forks.worlds.erase(fork).await.map_err(CheckError::world)
    }

    /// A fork that all taps have and that its users may act in. The future borrows nothing.
    fn fork(
        &self,
        worlds: &Worlds,
        moment: &Moment,
    ) -> impl Future<Output = Result<crate::world::World, CheckError>> + Send + use<> {
        let (worlds, moment) = (worlds.clone(), moment.clone());
        let (taps, client) = (self.taps.clone(), self.client.clone());
        async move {
            let fork = worlds.fork(&moment).await.map_err(CheckError::world)?;
            if let Some(taps) = &taps {
                reached(taps, &moment, &fork).await?;
            }
            fork.authorized(&client).await.map_err(CheckError::world)?;
            Ok(fork)
        }
    }

    fn forget(&self, namespace: &str) {
        if let Some(taps) = &self.taps {
            taps.forget(namespace);
        }
    }

    /// Removes the world of a run, whose clients are gone. A world in etcd goes beside the runs that follow: what keeps
    /// it from going is an error of a later call, or of [`close`](Self::close).
    pub(super) async fn leave(&self, place: Place) -> Result<(), CheckError> {
        place.lag.close();
        self.forget(&place.namespace);
        let Ok(forks) = &self.forks else {
            let namespaces: Api<Namespace> = Api::all(self.client.clone());
            let how = DeleteParams::background();
            return match namespaces.delete(&place.namespace, &how).await {
                Ok(_) | Err(kube::Error::Api(_)) => Ok(()),
                Err(error) => Err(CheckError::set_up(error.into())),
            };
        };
        if let Some(recall) = &place.recall {
            recall.close().await;
        }
        let worlds = forks.worlds.clone();
        let mut erasures = lock(&forks.erasures);
        erasures.spawn(async move {
            match place.fork {
                Some(fork) => worlds.erase(fork).await?,
                None => worlds.erase_namespace(&place.namespace).await?,
            }
            worlds.compact_if_due().await.map(drop)
        });
        while let Some(erased) = erasures.try_join_next() {
            told(erased)?;
        }
        Ok(())
    }

    /// Follows what a run has asked about and nobody followed. Whether there was anything.
    pub(super) async fn learn<'a>(
        &self,
        requests: impl IntoIterator<Item = &'a Request>,
        namespace: &str,
    ) -> bool {
        let asked: BTreeSet<TapResource> = requests
            .into_iter()
            .filter(|request| is_about_objects(request, namespace))
            .map(|request| TapResource::new(&*request.group, &*request.version, &*request.resource))
            .collect();
        let mut learned = false;
        for resource in asked {
            // Versions of one resource share their history, and one run may ask for several.
            let same = |known: &TapResource| {
                (&known.group, &known.plural) == (&resource.group, &resource.plural)
            };
            let known =
                lock(&self.followed).iter().any(same) || lock(&self.unfollowable).iter().any(same);
            if !known {
                learned |= self.follow(resource).await;
            }
        }
        learned
    }

    /// Notes what a run could not have had, for the verdict.
    pub(super) fn note_left_out(&self, lag: &Lag) {
        let mut left_out = lock(&self.left_out);
        if lag.has_unwrapped_store() {
            left_out.insert(READS_BETWEEN_REPLIES);
        }
        if lag.was_driven() {
            left_out.insert("triggers that merge");
        }
    }

    pub(super) fn left_out(&self) -> impl Iterator<Item = &'static str> {
        lock(&self.left_out).clone().into_iter()
    }

    async fn follow(&self, resource: TapResource) -> bool {
        // Forks leave Events out as well.
        if is_for_people(&resource.group, &resource.plural) {
            return false;
        }
        let followable = match &self.taps {
            Some(taps) => taps.open(&resource, None).await.map_err(|error| error.to_string()),
            None => self.list(&resource).await.map_err(|error| error.to_string()),
        };
        match followable {
            Ok(()) => lock(&self.followed).insert(resource),
            Err(error) => {
                tracing::debug!(%resource, %error, "a resource cannot be followed");
                lock(&self.unfollowable).insert(resource);
                false
            }
        }
    }

    /// Whether a resource can be listed.
    async fn list(&self, resource: &TapResource) -> Result<(), kube::Error> {
        ask(&self.client, http::Method::GET, &resource.path(), None).await.map(drop)
    }

    /// How many resources are followed.
    pub(super) fn followed_count(&self) -> usize {
        lock(&self.followed).len()
    }

    fn followed(&self) -> Vec<TapResource> {
        lock(&self.followed).iter().cloned().collect()
    }

    /// Waits until everything is removed.
    pub(super) async fn close(self) -> Result<(), CheckError> {
        let Ok(Forks { worlds, erasures, .. }) = self.forks else { return Ok(()) };
        let mut erasures = erasures.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut first = Ok(());
        while let Some(erased) = erasures.join_next().await {
            first = first.and(told(erased));
        }
        worlds.close().await.map_err(CheckError::world)?;
        first
    }
}

/// Whether the server asks somebody about writes, who is to be asked every time: it may be the code under test.
async fn has_webhooks(client: &Client) -> bool {
    const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
    for kind in ["validatingwebhookconfigurations", "mutatingwebhookconfigurations"] {
        let list = ask(client, http::Method::GET, &format!("{GROUP}/{kind}?limit=1"), None).await;
        let none = list.is_ok_and(|list: serde_json::Value| {
            list.get("items").and_then(|items| items.as_array()).is_some_and(Vec::is_empty)
        });
        if !none {
            return true;
        }
    }
    false
}

/// Waits until the taps have all of a fork.
async fn reached(
    taps: &Taps,
    moment: &Moment,
    fork: &crate::world::World,
) -> Result<(), CheckError> {
    let last = fork.last_revisions();
    for resource in resources_of(moment) {
        let kind = crate::world::Resource::new(&*resource.group, &*resource.plural);
        let revision = last.get(&kind).copied();
        if let Some(revision) = revision.filter(|_| taps.is_open(&resource)) {
            let reached = taps.reached(&resource, fork.namespace(), revision);
            reached.await.map_err(|error| CheckError::set_up(error.into()))?;
        }
    }
    Ok(())
}

/// Waits for the world of the next run, if one is being made.
async fn next_of(forks: &Forks) -> Result<Option<Next>, CheckError> {
    let next = lock(&forks.ahead).next.pop_front();
    let Some(mut next) = next else { return Ok(None) };
    let joined = next.join_next().await.transpose();
    joined.map_err(|_| CheckError::world(WorldError::RuntimeEnded))
}

/// What an erasure in the background has come to.
fn told(erased: Result<Result<(), WorldError>, JoinError>) -> Result<(), CheckError> {
    erased.unwrap_or(Err(WorldError::RuntimeEnded)).map_err(CheckError::world)
}

fn resources_of(moment: &Moment) -> Vec<TapResource> {
    let resources = moment.resources_and_versions();
    let named = resources.map(|(resource, api_version)| {
        let version = api_version.rsplit('/').next().unwrap_or(api_version);
        TapResource::new(&*resource.group, version, &*resource.plural)
    });
    named.collect()
}

fn is_about_objects(request: &Request, namespace: &str) -> bool {
    let verb = request.verb.is_write() || matches!(request.verb, Verb::Get | Verb::List);
    verb && !request.resource.is_empty()
        && request.namespace.as_deref() == Some(namespace)
        && !request.resource.ends_with("reviews")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Sets of names: whole whatever happened.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run that could not be made: the harness, the server, or what the scenario's own closures said.
#[derive(Debug, thiserror::Error)]
#[error("{what}{evidence}")]
pub struct RunError {
    pub(super) what: String,
    pub(super) evidence: String,
    #[source]
    pub(super) source: Option<BoxError>,
}
