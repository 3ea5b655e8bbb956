//! Taps: one cluster-wide watch of a resource for a whole search, from which the lists and watches of its worlds are cut.
//!
//! A run of a search costs what it asks of the server, and each cache of a controller asks twice: a list, then a
//! watch, which also takes a connection. Here the server is asked once for all runs. What the tap shows of
//! one namespace is kept in its order, and a [`WorldService`] gives it to the clients of that namespace.
//!
//! The revision of an event is its resource version, as etcd counts. Events of one revision and resource cannot be told
//! apart by those who come back at that revision, here no more than at the server; worlds have none.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use tokio::{
    sync::{OnceCell, watch},
    task::AbortHandle,
    time::Instant,
};
use tower::BoxError;

use self::{
    follow::Follower,
    scope::Scopes,
    state::{Reach, State},
};
use super::wire::Target;
use crate::{connect::Upstream, world::NameSet};

mod follow;
mod scope;
mod state;
mod world;

pub(crate) use self::world::WorldService;

/// How long a tap may take to show what the server has acknowledged; a crowded machine takes some time.
const REACH_LIMIT: Duration = Duration::from_secs(20);

/// What can be tapped.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct TapResource {
    /// The API group; empty for the core group.
    pub(crate) group: String,
    /// The API version, such as `v1`.
    pub(crate) version: String,
    /// The plural, lower case.
    pub(crate) plural: String,
}

impl TapResource {
    pub(crate) fn new(
        group: impl Into<String>,
        version: impl Into<String>,
        plural: impl Into<String>,
    ) -> Self {
        Self { group: group.into(), version: version.into(), plural: plural.into() }
    }

    /// The collection that a path names.
    fn of(target: &Target) -> Self {
        Self::new(&*target.group, &*target.version, &*target.resource)
    }

    /// The path of its objects in all namespaces.
    pub(crate) fn path(&self) -> String {
        let Self { group, version, plural } = self;
        format!("{}/{plural}", api_path(group, version))
    }

    fn path_in(&self, namespace: &str) -> String {
        let Self { group, version, plural } = self;
        format!("{}/namespaces/{namespace}/{plural}", api_path(group, version))
    }
}

/// Source: Kubernetes, "API concepts", Resource URIs.
fn api_path(group: &str, version: &str) -> String {
    match group {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    }
}

impl fmt::Display for TapResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.plural)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        write!(f, " ({})", self.version)
    }
}

/// The taps of one server. A clone is another handle on them; they close when the last one, and the last
/// service of a world, is dropped.
#[derive(Clone)]
pub(crate) struct Taps(Arc<Shared>);

struct Shared {
    upstream: Upstream,
    taps: Mutex<HashMap<TapResource, Arc<Tap>>>,
    worlds: Mutex<HashMap<String, Arc<World>>>,
    keep: Arc<Keep>,
    scopes: Scopes,
}

/// One resource.
#[derive(Debug)]
struct Tap {
    resource: TapResource,
    keep: Arc<Keep>,
    state: Mutex<State>,
    /// Told after each change of the state.
    changes: watch::Sender<()>,
    /// Set once it is open: the task that follows the server.
    task: OnceCell<AbortHandle>,
}

/// What all services of one namespace have in common.
#[derive(Debug)]
struct World {
    namespace: String,
    /// The taps have all of it.
    complete: AtomicBool,
    /// A write has passed, so that the taps may be behind.
    written: AtomicBool,
}

/// Which namespaces are kept.
#[derive(Debug, Default)]
struct Keep(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// A name has to begin with each of them: what was not kept once cannot be made whole later.
    prefixes: Vec<String>,
    forgotten: NameSet,
}

impl Taps {
    /// Taps of the server behind `upstream`; asks it for nothing yet.
    pub(crate) fn over(upstream: Upstream) -> Self {
        Self(Arc::new(Shared {
            upstream,
            taps: Mutex::default(),
            worlds: Mutex::default(),
            keep: Arc::default(),
            scopes: Scopes::default(),
        }))
    }

    /// Keeps no namespaces from now on but those whose names begin with `prefix`; the clients of others ask the server.
    pub(crate) fn keep_only(&self, prefix: &str) {
        self.0.keep.lock().prefixes.push(prefix.to_owned());
        self.for_each(|state, keep| state.drop_unkept(keep));
    }

    /// Opens the tap of a namespaced resource, unless it is open: from the present state, with a list and a watch; or, with `since`, with
    /// a watch from that resource version, which does not tell of the objects before it.
    ///
    /// It belongs to the runtime in which it is opened. It comes back by itself when its connection ends. If the
    /// server no longer knows its past, or `since`, it begins anew from the present state.
    /// If the future is dropped, it is not open.
    pub(crate) async fn open(
        &self,
        resource: &TapResource,
        since: Option<&str>,
    ) -> Result<(), TapError> {
        let tap = lock(&self.0.taps)
            .entry(resource.clone())
            .or_insert_with(|| Arc::new(Tap::new(resource.clone(), Arc::clone(&self.0.keep))))
            .clone();
        let follower = Follower { upstream: self.0.upstream.clone(), tap: Arc::clone(&tap) };
        let open = || async move {
            let body = follower.begin(since).await?;
            Ok(tokio::spawn(follower.run(body)).abort_handle())
        };
        tap.task.get_or_try_init(open).await.map(drop)
    }

    /// Whether the resource is tapped, and not only about to be.
    pub(crate) fn is_open(&self, resource: &TapResource) -> bool {
        self.0.tap(resource).is_some()
    }

    /// Waits until the tap has all that happened in the namespace up to this revision: an event there at or after it, or
    /// anything else that shows that the tap is beyond it. For 20 s at most.
    pub(crate) async fn reached(
        &self,
        resource: &TapResource,
        namespace: &str,
        revision: i64,
    ) -> Result<(), TapError> {
        self.reached_within(resource, namespace, revision, REACH_LIMIT).await
    }

    /// The same with another limit.
    pub(crate) async fn reached_within(
        &self,
        resource: &TapResource,
        namespace: &str,
        revision: i64,
        limit: Duration,
    ) -> Result<(), TapError> {
        let Some(tap) = self.0.tap(resource) else {
            return Err(TapError::NotOpen { resource: resource.clone() });
        };
        let deadline = Instant::now() + limit;
        // Subscribed before the state is looked at, so that no change is missed.
        let mut changes = tap.changes.subscribe();
        loop {
            let reach = tap.look(|state| state.reach(namespace, revision));
            if matches!(reach, Reach::Reached) {
                return Ok(());
            }
            let resource = resource.clone();
            let namespace = namespace.to_owned();
            if let Reach::Before(since) = reach {
                return Err(TapError::BeforeItsTime { resource, namespace, revision, since });
            }
            // The sender is the tap's, and that is ours.
            let changed = tokio::time::timeout_at(deadline, changes.changed()).await;
            if changed.is_err() {
                let seen = tap.look(|state| state.describe(&namespace));
                return Err(TapError::Behind { resource, namespace, revision, limit, seen });
            }
        }
    }

    /// The service of one world, for all its clients: controllers, actors, the test itself. See [`WorldService`].
    pub(crate) fn service(&self, namespace: &str) -> WorldService {
        let world = lock(&self.0.worlds)
            .entry(namespace.to_owned())
            .or_insert_with(|| Arc::new(World::new(namespace)))
            .clone();
        WorldService { taps: self.clone(), world, upstream: self.0.upstream.clone() }
    }

    /// Forgets what is kept of a namespace whose world is gone, for good: its name is used once. Watches of it that are open go on;
    /// new lists and watches go to the server.
    pub(crate) fn forget(&self, namespace: &str) {
        self.0.keep.lock().forgotten.insert(namespace);
        lock(&self.0.worlds).remove(namespace);
        self.for_each(|state, keep| state.drop_unkept(keep));
    }

    fn for_each(&self, change: impl Fn(&mut State, &Keep)) {
        let taps: Vec<Arc<Tap>> = lock(&self.0.taps).values().cloned().collect();
        for tap in taps {
            tap.change(|state| change(state, &self.0.keep));
        }
    }
}

impl fmt::Debug for Taps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taps = lock(&self.0.taps);
        let open = taps.values().filter(|tap| tap.task.initialized()).map(|tap| &tap.resource);
        f.debug_set().entries(open.map(ToString::to_string)).finish()
    }
}

impl Shared {
    /// The tap of a resource, if it is open.
    fn tap(&self, resource: &TapResource) -> Option<Arc<Tap>> {
        lock(&self.taps).get(resource).filter(|tap| tap.task.initialized()).cloned()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for tap in lock(&self.taps).values() {
            if let Some(task) = tap.task.get() {
                task.abort();
            }
        }
    }
}

impl Tap {
    fn new(resource: TapResource, keep: Arc<Keep>) -> Self {
        let (state, changes, task) = (Mutex::default(), watch::Sender::default(), OnceCell::new());
        Self { resource, keep, state, changes, task }
    }

    fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&lock(&self.state))
    }

    /// Changes the state, then tells everyone who waits for it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut lock(&self.state));
        self.changes.send_replace(());
        result
    }
}

impl World {
    fn new(namespace: &str) -> Self {
        let (complete, written) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { namespace: namespace.to_owned(), complete, written }
    }

    /// Whether the taps' folds are what a list of the server would show.
    fn is_as_the_taps_show(&self) -> bool {
        self.complete.load(Ordering::SeqCst) && !self.written.load(Ordering::SeqCst)
    }
}

impl Keep {
    fn keeps(&self, namespace: &str) -> bool {
        let kept = self.lock();
        kept.prefixes.iter().all(|prefix| namespace.starts_with(&**prefix))
            && !kept.forgotten.contains(namespace)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        lock(&self.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a tap does not give what was asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TapError {
    /// No connection, or it broke.
    #[error("failed to {attempt}: the server cannot be reached")]
    Unreachable {
        attempt: String,
        #[source]
        source: BoxError,
    },
    /// The server says no.
    #[error("failed to {attempt}: the server answers {status}\n    {body}")]
    Refused { attempt: String, status: StatusCode, body: String },
    /// What came is not what the API promises.
    #[error("failed to {attempt}: {problem}\n    {body}")]
    Unreadable { attempt: String, problem: String, body: String },
    /// `since` is none.
    #[error("failed to open the tap of {resource}: {since:?} is no resource version")]
    NoVersion { resource: TapResource, since: String },
    /// Nobody has opened it.
    #[error("failed to wait for the tap of {resource}: it is not open; open it first")]
    NotOpen { resource: TapResource },
    /// It began later.
    #[error(
        "failed to wait for revision {revision} of namespace {namespace:?} in the tap of {resource}: the tap \
         begins after revision {since} and never has it; open it before the world is made, or from \
         the present state"
    )]
    BeforeItsTime { resource: TapResource, namespace: String, revision: i64, since: i64 },
    /// It did not get there.
    #[error(
        "failed to see revision {revision} of namespace {namespace:?} in the tap of {resource} within \
         {limit:?}; last seen: {seen}"
    )]
    Behind {
        resource: TapResource,
        namespace: String,
        revision: i64,
        limit: Duration,
        seen: String,
    },
}
