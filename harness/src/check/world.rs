//! What the closures of a scenario work in.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt};
use kube::{
    Api, Client, Resource,
    core::NamespaceResourceScope,
    runtime::{WatchStreamExt, reflector, utils::Backoff, watcher},
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::{
    director::{Chance, Director},
    truth::Truth,
};
use crate::{
    barrier::Barrier,
    lag::{Cache, Lag, Passes, StreamError},
};

/// Where a scenario is set up: a namespace with nothing in it.
#[derive(Clone)]
pub struct SetUp {
    pub(super) client: Client,
    pub(super) namespace: String,
}

impl SetUp {
    /// A client that sees what is true.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The objects of this kind in it.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl fmt::Debug for SetUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetUp").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// A world as the process under test has it: one namespace, a client, and caches that lag.
///
/// Clones are the same world. What was spawned on it ends with the process.
#[derive(Clone)]
pub struct World {
    pub(super) lag: Lag,
    namespace: String,
    client: Client,
    pub(super) director: Director,
    pub(super) passes: u32,
    state: Arc<ProcessState>,
}

/// What ends with one process.
#[derive(Default)]
struct ProcessState {
    tasks: Mutex<JoinSet<()>>,
    /// Streams are opened one after the other, since their order is part of what a schedule repeats.
    opening: tokio::sync::Mutex<()>,
    begun: AtomicBool,
    settled: Mutex<Option<bool>>,
}

impl World {
    pub(super) fn new(lag: &Lag, namespace: &str, director: &Director, passes: u32) -> Self {
        Self {
            lag: lag.clone(),
            namespace: namespace.to_owned(),
            client: lag.client(),
            director: director.clone(),
            passes,
            state: Arc::default(),
        }
    }

    /// The client of the process: an ordinary one, over [`Lag`].
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace that is the world.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The objects of this kind in the world, through the client of the process.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The streams and the record of the process.
    #[must_use]
    pub fn lag(&self) -> &Lag {
        &self.lag
    }

    /// The passes of the process, for a reconcile function that is bracketed with [`Passes::run`].
    #[must_use]
    pub fn passes(&self) -> Passes {
        self.lag.passes()
    }

    /// The true state of the world, as far as its resources are known to have been used.
    #[must_use]
    pub fn truth(&self) -> Truth {
        self.lag.truth()
    }

    /// Runs a part of the process in the background until the process ends, such as the feed of a store.
    pub fn spawn(&self, part: impl Future<Output = ()> + Send + 'static) {
        self.state.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(part);
    }

    /// A store of all objects of this kind in the world, as a `reflector` feeds it. It moves at replies and between
    /// passes, as the search says.
    ///
    /// # Errors
    /// If its watch does not open.
    pub async fn store<K>(&self) -> Result<reflector::Store<K>, StreamError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + fmt::Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        self.store_with(watcher::Config::default()).await
    }

    /// The same with a configuration of the watcher, such as a selector or another way to list.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub async fn store_with<K>(
        &self,
        config: watcher::Config,
    ) -> Result<reflector::Store<K>, StreamError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + fmt::Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let (store, writer) = reflector::store();
        let stream = watcher(self.api::<K>(), config).backoff(Pause::default()).reflect(writer);
        self.feed::<K>(stream).await?;
        Ok(store)
    }

    /// The same behind a [`Barrier`]; wait for it by [`waiting`](Self::waiting).
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub async fn barrier<K>(&self, config: watcher::Config) -> Result<Barrier<K>, StreamError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + fmt::Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let (store, writer) = reflector::store();
        let barrier = Barrier::new(store, &config);
        let stream = watcher(self.api::<K>(), config).backoff(Pause::default()).reflect(writer);
        self.feed::<K>(barrier.track(stream)).await?;
        Ok(barrier)
    }

    /// Runs the feed of a store, and waits until its watch is open.
    async fn feed<K>(&self, stream: impl Stream + Send + 'static) -> Result<(), StreamError>
    where
        K: Resource<DynamicType = ()>,
    {
        let _turn = self.state.opening.lock().await;
        let before = self.lag.open_watches();
        self.spawn(stream.for_each(|_| std::future::ready(())));
        self.lag.stream::<K>().opened_beside(&before).await
    }

    /// A store whose every read is a choice point of its own: with it, each sequence of answers that the process can
    /// be given is explored, and each once.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub async fn cache<K>(&self) -> Result<Cache<K>, StreamError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + fmt::Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        self.store::<K>().await?;
        self.lag.stream::<K>().in_namespace(&self.namespace).last_opened().cache().await
    }

    /// One pass of the process over `key`. Before it, streams may move and actors may act; the search says how far.
    pub async fn pass<T>(&self, key: impl Into<String>, pass: impl Future<Output = T>) -> T {
        self.director.begin_bare_pass();
        self.director.environment(Chance::BetweenPasses).await;
        self.bare_pass(key, pass).await
    }

    /// Waits inside a pass for something that streams or other actors bring about, such as a
    /// [`Barrier`] or a condition of an object.
    ///
    /// Without requests nothing moves in an explored run, so this is a point at which it does: see
    /// [`Passes::wait_for`](crate::lag::Passes::wait_for).
    pub async fn waiting<T>(&self, wait: impl Future<Output = T>) -> T {
        self.lag.passes().wait_for(wait).await
    }

    async fn bare_pass<T>(&self, key: impl Into<String>, pass: impl Future<Output = T>) -> T {
        // What the process does to begin is not explored: its streams open with what there is.
        self.begin();
        self.director.relists().await;
        self.director.enter_pass();
        let output = self.lag.passes().run(key, pass).await;
        self.director.leave_pass();
        output
    }

    /// From now on the search decides what is shown.
    pub(super) fn begin(&self) {
        if !self.state.begun.swap(true, Ordering::SeqCst) {
            self.lag.set_scheduler(self.director.clone());
        }
    }

    /// Lets nobody else open streams, since their order is part of what a schedule repeats.
    pub(super) async fn turn_to_open(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.state.opening.lock().await
    }

    pub(super) fn note_settled(&self, settled: bool) {
        *self.state.settled.lock().unwrap_or_else(PoisonError::into_inner) = Some(settled);
    }

    /// Makes passes over `key`, as a controller that is triggered by everything, until one of them changes nothing and
    /// saw everything as it is, and no actor has anything left to do.
    ///
    /// Between passes the actors do their work, unless the search lets them wait. A pass that changed nothing, and
    /// was shown something stale, is followed by one that is shown what there is by then. Returns whether
    /// that came to an end within [`max_passes`](super::Scenario::max_passes).
    ///
    /// # Errors
    /// If the client of a stream does not take in what it is given.
    pub async fn until_settled<F, R>(&self, key: &str, mut pass: F) -> Result<bool, StreamError>
    where
        F: FnMut() -> R,
        R: Future,
    {
        let mut chance = Chance::BetweenPasses;
        let mut settled = false;
        let number = self.director.begin_loop();
        for _ in 0..self.passes {
            let place = format!("the passes {number} over {key}, {chance:?}");
            self.director.begin_round(place).await;
            let acted = self.director.environment(chance).await;
            self.director.note_acted(acted);
            let commits = self.lag.observed();
            let choices = self.director.record().chosen().len();
            // What the closure does before its first await is part of the pass.
            self.bare_pass(key, async { pass().await }).await;
            let changed = self.lag.observed() > commits;
            let stale = self.director.was_stale_since(choices);
            chance = Chance::BetweenPasses;
            if acted || changed {
                continue;
            }
            if stale {
                self.lag.show_everything().await?;
            } else if self.director.has_work() {
                chance = Chance::NothingElse;
            } else {
                settled = true;
                break;
            }
        }
        self.note_settled(settled);
        Ok(settled)
    }

    /// Whether it settled; `None` if it was never asked to.
    pub(super) fn settled(&self) -> Option<bool> {
        *self.state.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what runs in the background.
    pub(super) async fn end(&self) {
        let tasks =
            std::mem::take(&mut *self.state.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let mut tasks = tasks;
        tasks.shutdown().await;
    }
}

/// How long a watcher waits after an error: from 1 ms to 1 s. In a run nobody else needs the time.
#[derive(Clone, Copy, Debug, Default)]
struct Pause {
    last: Duration,
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.last = (self.last * 2).clamp(Duration::from_millis(1), Duration::from_secs(1));
        Some(self.last)
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
