//! Read your own writes: a wait until a store shows what its owner wrote.
//!
//! A reply to a write and the event of that write come by different ways, so a pass that writes and then reads its
//! store may read what was there before. After KEP-5647 ("stale controllers") and the minimum resource version of
//! controller-runtime's readers: what was written is remembered, and a read waits for it.

use std::{
    cmp::Ordering,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt};
use kube::{
    Resource, ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher::{self, Event, InitialListStrategy, ListSemantic},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::lag::model::compare_resource_versions;

/// How long a wait lasts at most, unless [`Barrier::within`] says otherwise.
const DEADLINE: Duration = Duration::from_secs(10);

/// A store together with how far the stream that feeds it has come. For controllers; it needs nothing else of this
/// crate.
///
/// Waits end when the store shows the write or anything later, whatever has become of the object meanwhile: changed
/// again, out of the stream's selectors, deleted, or made anew. A write that changed nothing is shown as soon as
/// the version is that it left in place. Every wait has a deadline, all waiters are woken (which
/// [`Store::wait_until_ready`] does not do in kube 5.0), and nobody is woken but by events of the stream.
///
/// ```no_run
/// use futures::StreamExt;
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use kube::{Api, api::{Patch, PatchParams}, runtime::{WatchStreamExt, reflector, watcher}};
/// use laggard::barrier::{Barrier, Shown};
///
/// # async fn example(maps: Api<ConfigMap>) -> Result<(), Box<dyn std::error::Error>> {
/// let config = watcher::Config::default().labels("app=demo");
/// let (store, writer) = reflector::store();
/// let barrier = Barrier::new(store, &config);
/// let stream = watcher(maps.clone(), config).default_backoff().reflect(writer);
/// tokio::spawn(barrier.track(stream).for_each(|_| std::future::ready(())));
///
/// let patch = Patch::Merge(serde_json::json!({"data": {"size": "2"}}));
/// let written = maps.patch("demo", &PatchParams::default(), &patch).await?;
/// let write = barrier.wrote(&written)?;
/// if barrier.until_shown(&write).await? == Shown::Object {
///     // barrier.store() has it, or something newer
/// }
/// # Ok(())
/// # }
/// ```
///
/// # What it rests on
/// Resource versions of one resource are integers in an order (KEP-5504, Kubernetes 1.35), a watch delivers in that
/// order, and the event by which an object is deleted or leaves a selector has the version of that change. A
/// `watcher` does not tell the version of its lists nor its bookmarks. So one case ends by the deadline alone:
/// a write to an object that the stream does not show, and had not shown, while nothing else moves, such
/// as a patch without effect to an object outside the selectors.
#[must_use]
pub struct Barrier<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    shared: Arc<Shared>,
    store: Store<K>,
    within: Duration,
}

#[derive(Debug)]
struct Shared {
    /// Locked while the stream applies an event as well, so that position and store are seen in step.
    state: Mutex<State>,
    moved: watch::Sender<u64>,
    /// Whether a list shows at least what there was when it was sent.
    lists_are_consistent: bool,
}

/// How far the store has come.
#[derive(Debug, Default)]
struct State {
    /// Everything up to this version is in the store; `None` if no version is known of it.
    position: Option<String>,
    /// The list that is being received.
    listing: Option<Listing>,
    lists_begun: u64,
    /// The number of the list that the store was filled from last.
    list_shown: u64,
    feed: Feed,
}

#[derive(Debug)]
struct Listing {
    number: u64,
    newest: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Feed {
    #[default]
    NotYet,
    Tracked,
    Over,
}

/// A write that is to be waited for; made by [`Barrier::wrote`] and [`Barrier::deleted`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Write<K>
where
    K: Resource<DynamicType = ()> + 'static,
{
    key: ObjectRef<K>,
    uid: String,
    resource_version: String,
    is_deletion: bool,
    /// How many lists had begun when its reply was there: those that begin later show it, if they are consistent.
    lists_begun: u64,
}

/// What the store has where a write was made, once it shows that write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Shown {
    /// The object as it was written, or a later version of it.
    Object,
    /// Nothing: it has been deleted, or has left the selectors of the stream.
    Nothing,
    /// An object of that name with another UID: it has been deleted and made anew.
    Another,
}

impl<K> Barrier<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// A barrier in front of `store`, which a watcher with this configuration feeds. Waits last 10 s at most.
    pub fn new(store: Store<K>, config: &watcher::Config) -> Self {
        let lists_are_consistent = matches!(
            (&config.initial_list_strategy, &config.list_semantic),
            (InitialListStrategy::ListWatch, ListSemantic::MostRecent)
        );
        let (state, moved) = (Mutex::default(), watch::Sender::new(0));
        let shared = Arc::new(Shared { state, moved, lists_are_consistent });
        Self { shared, store, within: DEADLINE }
    }

    /// How long its waits last at most; those of clones that were made before stay as they are.
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store<K> {
        &self.store
    }

    /// Follows the stream that feeds the store: what comes out of `reflect`, not what goes in, since an event counts
    /// once the store shows it.
    ///
    /// The stream is to be polled as before. When it ends, or is dropped, all waits fail with
    /// [`BarrierError::Ended`], until another one is tracked.
    pub fn track<S>(
        &self,
        stream: S,
    ) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + use<S, K>
    where
        S: Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static,
        K: Send + Sync,
    {
        let feeding = Feeding::begin(Arc::clone(&self.shared));
        let mut stream = Box::pin(stream);
        futures::stream::poll_fn(move |context| feeding.poll(stream.as_mut(), context)).fuse()
    }

    /// A create, update, patch or apply whose reply this object is.
    ///
    /// Call it right after the reply. The order matters: lists that begin later are known to show the write.
    ///
    /// # Errors
    /// [`BarrierError::Unusable`] if the object has no name, UID, or numeric resource version, which only replies
    /// have.
    pub fn wrote(&self, reply: &K) -> Result<Write<K>, BarrierError> {
        self.write(reply, false)
    }

    /// The deletion of an object, of which this is any version that was there before: the one that was read, or the
    /// reply if that is an object.
    ///
    /// The wait ends when the store has no object with this UID. Call it right after the reply, as
    /// [`wrote`](Self::wrote). An object with finalizers, or a grace period, is there until somebody lets it go: for
    /// one that is only marked, the reply is that of a write.
    ///
    /// # Errors
    /// As [`wrote`](Self::wrote).
    pub fn deleted(&self, version: &K) -> Result<Write<K>, BarrierError> {
        self.write(version, true)
    }

    fn write(&self, object: &K, is_deletion: bool) -> Result<Write<K>, BarrierError> {
        let lacks = |what: &'static str| BarrierError::Unusable { what };
        object.meta().name.as_ref().ok_or_else(|| lacks("a name"))?;
        let uid = object.uid().ok_or_else(|| lacks("a UID"))?;
        let resource_version = version_of(object).ok_or_else(|| lacks("a resource version"))?;
        // Everything compares with itself, if it is a number.
        if compare_resource_versions(&resource_version, &resource_version).is_none() {
            return Err(lacks("a resource version that is a number"));
        }
        let lists_begun = self.shared.lock().lists_begun;
        let key = ObjectRef::from_obj(object);
        Ok(Write { key, uid, resource_version, is_deletion, lists_begun })
    }

    /// Waits until the store shows the write or anything later; says what it has in its place.
    ///
    /// Dropping the future leaves nothing behind. A store whose watcher lists any state, as `any_semantic` and
    /// `streaming_lists` do, can go back afterwards: then read by [`read_after`](Self::read_after).
    ///
    /// # Errors
    /// [`BarrierError::NotShown`] at the deadline; [`BarrierError::Ended`] if nothing feeds the store any more.
    pub async fn until_shown(&self, write: &Write<K>) -> Result<Shown, BarrierError> {
        self.wait(write, |shown, _| shown).await
    }

    /// The same, and reads the store at that very moment: while `read` runs nothing is applied to it.
    ///
    /// # Errors
    /// As [`until_shown`](Self::until_shown).
    pub async fn read_after<T>(
        &self,
        write: &Write<K>,
        read: impl FnOnce(&Store<K>) -> T,
    ) -> Result<T, BarrierError> {
        self.wait(write, |_, store| read(store)).await
    }

    async fn wait<T>(
        &self,
        write: &Write<K>,
        read: impl FnOnce(Shown, &Store<K>) -> T,
    ) -> Result<T, BarrierError> {
        let deadline = Instant::now() + self.within;
        // Subscribed before the first look, so that no move is missed between a look and the wait after it.
        let mut moved = self.shared.moved.subscribe();
        loop {
            let position = {
                let state = self.shared.lock();
                if let Some(shown) = self.shown(&state, write) {
                    return Ok(read(shown, &self.store));
                }
                if state.feed == Feed::Over {
                    return Err(BarrierError::Ended);
                }
                state.position.clone()
            };
            // The sender lives as long as `self`, so that an error here is the deadline.
            if timeout_at(deadline, moved.changed()).await.is_err() {
                return Err(BarrierError::NotShown {
                    write: write.to_string(),
                    position: position
                        .map_or_else(|| "no version".to_owned(), |version| format!("rv {version}")),
                    within: self.within,
                });
            }
        }
    }

    /// What the store has in the place of a write; `None` if it may still be behind it.
    fn shown(&self, state: &State, write: &Write<K>) -> Option<Shown> {
        let there = self.store.get(&write.key);
        let same = there.as_ref().filter(|there| there.meta().uid.as_ref() == Some(&write.uid));
        if let Some(same) = same {
            // Also behind a deletion: it is still there.
            let new = version_of(same.as_ref())
                .is_some_and(|version| reaches(&version, &write.resource_version));
            return (new && !write.is_deletion).then_some(Shown::Object);
        }
        let reached = state
            .position
            .as_ref()
            .is_some_and(|position| reaches(position, &write.resource_version));
        let listed = self.shared.lists_are_consistent && state.list_shown > write.lists_begun;
        (reached || listed).then_some(if there.is_some() { Shown::Another } else { Shown::Nothing })
    }
}

impl<K> Clone for Barrier<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    fn clone(&self) -> Self {
        let (shared, store) = (Arc::clone(&self.shared), self.store.clone());
        Self { shared, store, within: self.within }
    }
}

impl<K> fmt::Debug for Barrier<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl<K> fmt::Display for Write<K>
where
    K: Resource<DynamicType = ()> + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_deletion { "the deletion of " } else { "" };
        write!(f, "{what}{} at rv {}", self.key, self.resource_version)
    }
}

/// Follows one stream; notes when it is over.
struct Feeding(Arc<Shared>);

impl Feeding {
    fn begin(shared: Arc<Shared>) -> Self {
        shared.change(|state| state.feed = Feed::Tracked);
        Self(shared)
    }

    fn poll<S, K>(
        &self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Event<K>, watcher::Error>>>
    where
        S: Stream<Item = Result<Event<K>, watcher::Error>>,
        K: Resource,
    {
        let mut state = self.0.lock();
        let polled = stream.poll_next(context);
        match &polled {
            Poll::Ready(Some(Ok(event))) => state.apply(event, self.0.lists_are_consistent),
            Poll::Ready(None) => state.feed = Feed::Over,
            Poll::Ready(Some(Err(_))) | Poll::Pending => return polled,
        }
        drop(state);
        self.0.tell();
        polled
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        self.0.change(|state| state.feed = Feed::Over);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A stream that panics ends, and says so when it is dropped.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.tell();
    }

    fn tell(&self) {
        self.moved.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl State {
    fn apply<K: Resource>(&mut self, event: &Event<K>, lists_are_consistent: bool) {
        match event {
            Event::Init => {
                self.lists_begun += 1;
                self.listing = Some(Listing { number: self.lists_begun, newest: None });
            }
            Event::InitApply(object) => {
                if let Some(listing) = &mut self.listing {
                    advance(&mut listing.newest, version_of(object));
                }
            }
            Event::InitDone => {
                let Some(listing) = self.listing.take() else { return };
                // A list shows at least the newest version in it, and, if it is not consistent, perhaps no more.
                if !lists_are_consistent {
                    self.position = None;
                }
                advance(&mut self.position, listing.newest);
                self.list_shown = listing.number;
            }
            Event::Apply(object) | Event::Delete(object) => {
                advance(&mut self.position, version_of(object));
            }
        }
    }
}

fn version_of(object: &impl Resource) -> Option<String> {
    object.meta().resource_version.clone()
}

fn advance(position: &mut Option<String>, to: Option<String>) {
    let Some(to) = to else { return };
    if position.as_ref().is_none_or(|position| reaches(&to, position)) {
        *position = Some(to);
    }
}

fn reaches(version: &str, wanted: &str) -> bool {
    compare_resource_versions(version, wanted).is_some_and(Ordering::is_ge)
}

/// Why a wait did not end well.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The store has not shown the write within the deadline: try again, or read from the server.
    #[error(
        "failed to see {write} in the store within {within:?}: it shows {position}; is its stream polled, and is \
         the object one that it selects?"
    )]
    NotShown {
        /// What was waited for.
        write: String,
        /// How far the store had come.
        position: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// Nothing feeds the store any more.
    #[error("failed to wait for the store: the stream that feeds it has ended; track a new one")]
    Ended,
    /// An object that is no reply of a server.
    #[error("failed to note a write: its object lacks {what}; pass the reply to the write")]
    Unusable {
        /// What it lacks.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests;
