//! Two ways to read an object, as two types: from the API server, and from the watch cache.
//!
//! They have the same `get`, so that turning one read into the other is a change of one word. But a
//! function that takes one does not accept the other:
//!
//! ```
//! use seinode_operator::readers::Live;
//! fn decides(_: &Live) {}
//! fn with(live: &Live) { decides(live) }
//! ```
//!
//! ```compile_fail,E0308
//! use seinode_operator::readers::{Cached, Live};
//! fn decides(_: &Live) {}
//! fn with(cached: &Cached) { decides(cached) }
//! ```

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{Api, ListParams};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use crate::api::SeiNode;

/// Why a read gave no object.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReadError {
    /// The API server itself says that there is no such object. A live read is linearizable, so
    /// this is a fact of that moment.
    #[error("the API server has no such object")]
    Missing,
    /// The cache has no such object, which says nothing about the API server.
    #[error("the cache has no such object (yet)")]
    NotCached,
    /// The read failed, and may work the next time: 401, 403, 409, 429, 5xx, a timeout, a broken
    /// connection.
    #[error("{0}")]
    Transient(String),
}

/// Reads that the API server answers, with what is true at that moment.
///
/// No read asks with a resource version: one with version 0 would be answered from the API server's
/// own watch cache, and its 404 would mean nothing.
#[derive(Clone)]
pub struct Live {
    client: Client,
    limit: Duration,
}

impl Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Live {
    /// Reads through this client; each read takes at most `limit`, the client's retries included.
    #[must_use]
    pub fn new(client: Client, limit: Duration) -> Self {
        Self { client, limit }
    }

    /// Gets an object.
    ///
    /// # Errors
    ///
    /// [`ReadError::Missing`] if the API server says that there is none; everything else is
    /// [`ReadError::Transient`].
    pub async fn get<K>(&self, namespace: &str, name: &str) -> Result<K, ReadError>
    where
        K: Clone
            + Debug
            + DeserializeOwned
            + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        within(self.limit, api.get(name)).await
    }

    /// Lists the objects of a namespace that carry these labels.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn list<K>(&self, namespace: &str, labels: &str) -> Result<Vec<K>, ReadError>
    where
        K: Clone
            + Debug
            + DeserializeOwned
            + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let labelled = ListParams::default().labels(labels);
        let list = within(self.limit, api.list(&labelled)).await?;
        Ok(list.items)
    }
}

/// How an object is found in a cache.
type LookUp<K> = Arc<dyn Fn(&ObjectRef<K>) -> Option<Arc<K>> + Send + Sync>;

/// Reads that the watch cache answers, with what it has been shown so far.
#[derive(Clone)]
pub struct Cached {
    nodes: LookUp<SeiNode>,
    stateful_sets: LookUp<StatefulSet>,
}

impl Debug for Cached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cached").finish_non_exhaustive()
    }
}

impl Cached {
    /// Reads from these stores.
    #[must_use]
    pub fn new(nodes: Store<SeiNode>, stateful_sets: Store<StatefulSet>) -> Self {
        Self::looking_up(move |node| nodes.get(node), move |set| stateful_sets.get(set))
    }

    /// Reads from what stands in the place of the two stores.
    #[must_use]
    pub fn looking_up(
        nodes: impl Fn(&ObjectRef<SeiNode>) -> Option<Arc<SeiNode>> + Send + Sync + 'static,
        stateful_sets: impl Fn(&ObjectRef<StatefulSet>) -> Option<Arc<StatefulSet>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self { nodes: Arc::new(nodes), stateful_sets: Arc::new(stateful_sets) }
    }

    /// Gets an object. (It is `async` only to be called as [`Live::get`] is.)
    ///
    /// # Errors
    ///
    /// [`ReadError::NotCached`] if the cache does not show it.
    pub async fn get<K: InCache>(&self, namespace: &str, name: &str) -> Result<K, ReadError> {
        let reference = ObjectRef::new(name).within(namespace);
        let found = K::look_up(self, &reference);
        found.map(|object| object.as_ref().clone()).ok_or(ReadError::NotCached)
    }
}

/// A kind that the cache holds.
pub trait InCache: Clone + Resource<DynamicType = ()> + Sized + 'static {
    /// What the cache shows under this name.
    fn look_up(cached: &Cached, reference: &ObjectRef<Self>) -> Option<Arc<Self>>;
}

impl InCache for SeiNode {
    fn look_up(cached: &Cached, reference: &ObjectRef<Self>) -> Option<Arc<Self>> {
        (cached.nodes)(reference)
    }
}

impl InCache for StatefulSet {
    fn look_up(cached: &Cached, reference: &ObjectRef<Self>) -> Option<Arc<Self>> {
        (cached.stateful_sets)(reference)
    }
}

/// A store that is fed by a watch for as long as the returned future is polled.
#[must_use = "the store is filled only while the future is polled"]
pub fn reflect<K>(api: Api<K>) -> (Store<K>, impl Future<Output = ()> + Send + 'static)
where
    K: Clone + Debug + DeserializeOwned + Resource<DynamicType = ()> + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
    let fed = events.for_each(|event| {
        if let Err(error) = event {
            tracing::warn!(%error, "a watch failed; it is opened again");
        }
        std::future::ready(())
    });
    (store, fed)
}

/// Bounds a request, and says of its failure whether it is a fact or may pass.
pub(crate) async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ReadError> {
    match tokio::time::timeout(limit, request).await {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(error)) => Err(classify(&error)),
        Err(_) => Err(ReadError::Transient(format!("no answer within {limit:?}"))),
    }
}

/// A 404 counts only if the API server says `NotFound` in its own words: a proxy's error page, or a
/// kind that is not served yet, says nothing about the object.
fn classify(error: &kube::Error) -> ReadError {
    match error {
        kube::Error::Api(status) if status.code == 404 && status.reason == "NotFound" => {
            ReadError::Missing
        }
        error => ReadError::Transient(error.to_string()),
    }
}
