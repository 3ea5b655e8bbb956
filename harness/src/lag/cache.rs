//! A cache in the place of a `Store`: each read is recorded, and may be answered from any view that is legal.

use std::{
    collections::HashMap,
    fmt,
    panic::Location,
    sync::{Arc, Mutex, PoisonError},
};

use kube::{
    Resource,
    core::{Selector, SelectorExt},
    runtime::reflector::ObjectRef,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    chronicle::Entry,
    engine::{Engine, Which},
    error::StreamError,
    model::{CachedRead, ObjectKey, Objects, Query, Site},
    reading::{self, Compare, Projection, Question},
    selector::StreamSelector,
};

/// The read methods of [`Store`](kube::runtime::reflector::Store), answered from what the engine knows of a stream.
///
/// Made by [`StreamSelector::cache`]. Without a scheduler it answers what the store of the stream's client
/// shows. With one, each read whose answer depends on how many of the held events are shown is a choice
/// between the distinct answers. The view never goes back, and the client's own store is brought up to it
/// at the next boundary, before the reply is handed back, and at the end of a [pass](super::Passes).
///
/// Lists are in the order of namespaces and names, where a `Store` has none that can be relied on.
///
/// A read carries file and line of the call to its method, and the name of the tracing span it is made in. Where the
/// code under test reads through a look-up that it is handed, the place is the look-up's, the same for all its
/// readers. A function or method with `#[track_caller]` carries its reader's place instead. A closure or an `async fn`
/// cannot; then the span tells the readers apart, as it does for requests.
///
/// ```
/// use std::sync::Arc;
///
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use kube::runtime::reflector::ObjectRef;
/// use laggard::lag::Cache;
///
/// struct Lookup(Cache<ConfigMap>);
///
/// impl Lookup {
///     #[track_caller]
///     fn by_name(&self, name: &str) -> Option<Arc<ConfigMap>> {
///         self.0.get(&ObjectRef::new(name).within("demo"))
///     }
/// }
/// ```
///
/// ```no_run
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use kube::runtime::reflector::ObjectRef;
/// use laggard::Lag;
///
/// # async fn example(lag: Lag) -> Result<(), Box<dyn std::error::Error>> {
/// let cache = lag.stream::<ConfigMap>().cache().await?;
/// let object = cache.get(&ObjectRef::new("a").within("demo"));
/// assert!(object.is_none(), "{}", lag.reads());
/// # Ok(())
/// # }
/// ```
///
/// # Panics
/// Its reads panic where an object does not fit `K`, which a `watcher` would have reported as an error.
pub struct Cache<K> {
    engine: Arc<Engine>,
    stream: usize,
    /// The objects that have been read, so that one version is one `Arc`, as in a `Store`.
    parsed: Arc<Mutex<Parsed<K>>>,
    projection: Option<Projection>,
}

/// Objects by name and resource version.
type Parsed<K> = HashMap<(ObjectKey, String), Arc<K>>;

impl<K> StreamSelector<K> {
    /// A cache that reads the one stream that matches, once there is one; it stays with that stream over
    /// relists and restarts of its client.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`.
    pub async fn cache(&self) -> Result<Cache<K>, StreamError> {
        let stream = self.find("make a cache of the stream", self.deadline()).await?;
        let engine = Arc::clone(&self.engine);
        engine.change(|registry| registry.streams[stream].wrapped = true);
        Ok(Cache { engine, stream, parsed: Arc::default(), projection: None })
    }
}

impl<K> Cache<K> {
    /// The same cache, whose answers count as equal where `projection` gives the same of their objects.
    ///
    /// By default every change of an object is a new answer. Whoever says that the code looks at the
    /// `spec` alone spares the search the answers that differ in their status; that it does so is their claim.
    #[must_use]
    pub fn reading(self, projection: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        Self { projection: Some(Arc::new(projection)), ..self }
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
{
    /// The object of that name, as [`Store::get`](kube::runtime::reflector::Store::get).
    #[must_use]
    #[track_caller]
    pub fn get(&self, key: &ObjectRef<K>) -> Option<Arc<K>> {
        let keys = keys_of(key);
        let query = Query::Get(keys[0].clone());
        let select = |objects: &Objects<'_>| first_of(&keys, objects);
        self.read(Location::caller(), query, &select, Compare::Objects).pop()
    }

    /// Whether there is an object of that name.
    #[must_use]
    #[track_caller]
    pub fn contains(&self, key: &ObjectRef<K>) -> bool {
        let keys = keys_of(key);
        let query = Query::Get(keys[0].clone());
        let select = |objects: &Objects<'_>| first_of(&keys, objects);
        !self.read(Location::caller(), query, &select, Compare::Count).is_empty()
    }

    /// All objects, as [`Store::state`](kube::runtime::reflector::Store::state).
    #[must_use]
    #[track_caller]
    pub fn state(&self) -> Vec<Arc<K>> {
        self.read(Location::caller(), Query::All, &all, Compare::Objects)
    }

    /// The first object that `predicate` accepts, as [`Store::find`](kube::runtime::reflector::Store::find).
    #[must_use]
    #[track_caller]
    pub fn find(&self, predicate: impl Fn(&K) -> bool) -> Option<Arc<K>> {
        let select = |objects: &Objects<'_>| {
            let mut found = self.accepted(objects, &predicate);
            found.truncate(1);
            found
        };
        self.read(Location::caller(), Query::Filtered, &select, Compare::Objects).pop()
    }

    /// The objects that `predicate` accepts.
    #[must_use]
    #[track_caller]
    pub fn state_filter(&self, predicate: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let select = |objects: &Objects<'_>| self.accepted(objects, &predicate);
        self.read(Location::caller(), Query::Filtered, &select, Compare::Objects)
    }

    /// The objects that a label selector selects.
    #[must_use]
    #[track_caller]
    pub fn state_filter_selector(&self, selector: &Selector) -> Vec<Arc<K>> {
        let accepts =
            |object: &K| selector.matches(object.meta().labels.as_ref().unwrap_or(&NO_LABELS));
        let select = |objects: &Objects<'_>| self.accepted(objects, &accepts);
        let query = Query::Labels(selector.to_string());
        self.read(Location::caller(), query, &select, Compare::Objects)
    }

    /// How many objects there are.
    #[must_use]
    #[track_caller]
    pub fn len(&self) -> usize {
        self.read(Location::caller(), Query::Count, &all, Compare::Count).len()
    }

    /// Whether there are none.
    #[must_use]
    #[track_caller]
    pub fn is_empty(&self) -> bool {
        self.read(Location::caller(), Query::Count, &all, Compare::Any).is_empty()
    }

    fn accepted(&self, objects: &Objects<'_>, predicate: &dyn Fn(&K) -> bool) -> Vec<ObjectKey> {
        let accepted = objects.iter().filter(|(key, object)| predicate(&self.parse(key, object)));
        accepted.map(|(key, _)| (*key).clone()).collect()
    }

    fn parse(&self, key: &ObjectKey, object: &Value) -> Arc<K> {
        let version = super::wire::text(object, "/metadata/resourceVersion").unwrap_or_default();
        // A panic below leaves the map as it was.
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = parsed.entry((key.clone(), version));
        Arc::clone(entry.or_insert_with(|| match K::deserialize(object) {
            Ok(object) => Arc::new(object),
            Err(error) => panic!("failed to read {key} from the cache: {error}"),
        }))
    }

    /// Answers one read, and writes it down.
    fn read(
        &self,
        site: &Location<'_>,
        query: Query,
        select: &dyn Fn(&Objects<'_>) -> Vec<ObjectKey>,
        compare: Compare,
    ) -> Vec<Arc<K>> {
        let span = tracing::Span::current().metadata().map(|span| span.name().to_owned());
        let site = Site { file: site.file().to_owned(), line: site.line(), span };
        let which = Which::Client(self.stream);
        let question = Question { which, query, site: Some(site), compare };
        let answer = reading::read(&self.engine, question, select, self.projection.as_ref());
        let objects = answer.objects.iter().map(|(key, object)| self.parse(key, object)).collect();
        self.engine.change(|registry| registry.note(Entry::Read(Box::new(answer.read.clone()))));
        self.engine.reads.push(answer.read);
        objects
    }
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            engine: Arc::clone(&self.engine),
            stream: self.stream,
            parsed: Arc::clone(&self.parsed),
            projection: self.projection.clone(),
        }
    }
}

impl<K> fmt::Debug for Cache<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("stream", &self.stream).finish_non_exhaustive()
    }
}

static NO_LABELS: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();

fn all(objects: &Objects<'_>) -> Vec<ObjectKey> {
    objects.keys().map(|key| (*key).clone()).collect()
}

/// As it is named, and, for cluster-scoped objects, without its namespace.
fn keys_of<K>(key: &ObjectRef<K>) -> [ObjectKey; 2]
where
    K: Resource<DynamicType = ()> + 'static,
{
    let name = || key.name.clone();
    [
        ObjectKey { namespace: key.namespace.clone(), name: name() },
        ObjectKey { namespace: None, name: name() },
    ]
}

fn first_of(keys: &[ObjectKey; 2], objects: &Objects<'_>) -> Vec<ObjectKey> {
    keys.iter().find(|key| objects.contains_key(key)).cloned().into_iter().collect()
}

/// Where the reads are written down.
#[derive(Debug, Default)]
pub(super) struct Reads(Mutex<Vec<CachedRead>>);

impl Reads {
    fn push(&self, read: CachedRead) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(read);
    }

    pub(super) fn log(&self) -> ReadLog {
        ReadLog(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The reads of all caches of a [`Lag`](super::Lag), in order; printed one a line.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ReadLog(Vec<CachedRead>);

impl std::ops::Deref for ReadLog {
    type Target = [CachedRead];

    fn deref(&self) -> &[CachedRead] {
        &self.0
    }
}

impl fmt::Display for ReadLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no cached reads");
        }
        for (line, read) in self.0.iter().enumerate() {
            if line > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", read.query)?;
            if let Some(site) = &read.site {
                write!(f, "  {site}")?;
            }
            let answer: Vec<String> = read
                .answer
                .iter()
                .map(|seen| match seen.generation {
                    Some(generation) => {
                        format!(
                            "{} rv {} (generation {generation})",
                            seen.key, seen.resource_version
                        )
                    }
                    None => format!("{} rv {}", seen.key, seen.resource_version),
                })
                .collect();
            let answer = if answer.is_empty() { "nothing".to_owned() } else { answer.join(", ") };
            let events = if read.behind == 1 { "event" } else { "events" };
            write!(f, "  <- {answer}  {} {events} behind", read.behind)?;
            if read.stale {
                f.write_str(", stale")?;
            }
        }
        Ok(())
    }
}
