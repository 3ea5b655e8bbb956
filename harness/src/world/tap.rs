//! The tap: one watch of everything in etcd, from which the history of each world is kept.
//!
//! etcd has no request for "every version of these keys since". A watch that begins in the past
//! gives them, but etcd serves such a watch from a loop that comes round every 100 ms. One watch that
//! is always there has seen what a moment needs by the time it is asked for, and it shows what a late
//! writer puts into a world that was erased.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::WorldError;
use super::background::{Background, Task};
use super::error::EtcdError;
use super::etcd::{Etcd, Watch};
use super::key::{EVENTS, NAMESPACES, REGISTRY, RegistryKey, is_world};
use super::value::Facts;
use super::wire::{ChangeKind, ChangedKey, Changes, ChangesResult, Range};

/// How long the tap may take to show what etcd has acknowledged.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(20);

/// One change of one object of a world, as it is in etcd.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) revision: i64,
    /// See [`RegistryKey::directory`].
    pub(super) directory: Arc<str>,
    pub(super) name: String,
    /// `None`: deleted.
    pub(super) value: Option<Bytes>,
    facts: OnceLock<Result<Facts, String>>,
}

impl Record {
    /// What the value says; `None` for a deletion. Read once, however many moments hold it.
    pub(super) fn facts(&self) -> Option<&Result<Facts, String>> {
        let value = self.value.as_ref()?;
        Some(self.facts.get_or_init(|| Facts::of(&self.directory, value)))
    }
}

/// What is known of all worlds of one etcd, whoever made them.
#[derive(Debug)]
pub(super) struct Tap {
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
struct State {
    worlds: HashMap<String, Log>,
    /// Directory names, each once.
    directories: HashSet<Arc<str>>,
    /// Worlds that nobody may write to any more.
    erased: HashSet<String>,
    /// The first revision that etcd still had.
    first: i64,
}

/// One world that has, at present, at least one key.
#[derive(Debug, Default)]
struct Log {
    records: Vec<Arc<Record>>,
    live: BTreeMap<Arc<str>, BTreeSet<String>>,
    /// The records begin with the making of the namespace, before which there cannot be any.
    whole: bool,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    /// All changes up to this revision were seen.
    revision: i64,
    /// Why no more will be.
    ended: Option<String>,
}

/// A namespace that was erased and written to again.
#[derive(Debug)]
pub(super) struct Late {
    pub(super) namespace: String,
    /// There is something to do until this is dropped.
    pub(super) task: Task,
}

impl Tap {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), progress: watch::Sender::default() }
    }

    /// Follows etcd until the connection breaks or the future is dropped.
    pub(super) async fn follow(
        &self,
        etcd: &Etcd,
        background: &Background,
        late: &mpsc::UnboundedSender<Late>,
    ) {
        let Err(error) = self.read(etcd, background, late).await;
        // The chain, since it is shown as one text by whoever waits.
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        tracing::debug!(error = %text, "the watch of etcd ended");
        self.progress.send_modify(|progress| progress.ended = Some(text));
    }

    async fn read(
        &self,
        etcd: &Etcd,
        background: &Background,
        late: &mpsc::UnboundedSender<Late>,
    ) -> Result<std::convert::Infallible, WorldError> {
        let failed = |error| etcd.failed("watch", error);
        let mut watch = etcd.watch_everything(1).await?;
        self.state().first = 1;
        loop {
            let message = next(&mut watch).await.map_err(failed)?;
            let changes: Changes<'_> = serde_json::from_slice(message).map_err(|source| {
                let body = String::from_utf8_lossy(&message[..message.len().min(200)]).into_owned();
                failed(EtcdError::Answer { body, source })
            })?;
            let result = match changes {
                Changes { result: Some(result), error: None } => result,
                Changes { error, .. } => {
                    let error = error.map_or("no reason".to_owned(), |error| error.to_string());
                    return Err(failed(EtcdError::WatchEnded(error)));
                }
            };
            if result.canceled {
                let first = result.compact_revision;
                if first == 0 || self.progress.borrow().revision > 0 {
                    let reason = result.cancel_reason.into_owned();
                    return Err(failed(EtcdError::WatchEnded(reason)));
                }
                watch = etcd.watch_everything(first).await?;
                self.begin_after_compaction(etcd, first).await?;
                continue;
            }
            self.apply(&result, background, late).map_err(failed)?;
        }
    }

    /// Notes the keys that the watch will not tell of, since they are older than what etcd kept.
    async fn begin_after_compaction(&self, etcd: &Etcd, first: i64) -> Result<(), WorldError> {
        let range = Range { revision: first, ..Range::keys(REGISTRY) };
        let read = etcd.range("list all keys", &range).await?;
        let state = &mut *self.state();
        state.first = first;
        for found in read.kvs.iter().filter(|found| found.mod_revision < first) {
            if let Some(key) = RegistryKey::parse(&found.key.0).filter(|it| is_world(it.namespace))
            {
                let directory = state.directory(key.directory);
                let log = state.worlds.entry(key.namespace.to_owned()).or_default();
                log.live.entry(directory).or_default().insert(key.name.to_owned());
            }
        }
        Ok(())
    }

    fn apply(
        &self,
        changes: &ChangesResult<'_>,
        background: &Background,
        late: &mpsc::UnboundedSender<Late>,
    ) -> Result<(), EtcdError> {
        let Some(last) = changes.events.last() else { return Ok(()) };
        let mut state = self.state();
        for change in &changes.events {
            let Some(key) = RegistryKey::parse(&change.kv.key.0) else { continue };
            if !is_world(key.namespace) {
                continue;
            }
            let value = match change.kind {
                ChangeKind::Delete => None,
                ChangeKind::Put => {
                    let value = change.kv.value();
                    Some(value.map_err(|error| EtcdError::WatchEnded(error.to_string()))?)
                }
            };
            if value.is_some() && state.erased.contains(key.namespace) {
                let late_one =
                    Late { namespace: key.namespace.to_owned(), task: background.begin() };
                // If nobody listens any more, these worlds are closed.
                let _ = late.send(late_one);
            }
            state.record(key, &change.kv, value);
        }
        drop(state);
        let complete = last.kv.mod_revision - i64::from(changes.fragment);
        self.progress.send_if_modified(|progress| {
            let further = complete > progress.revision;
            progress.revision = progress.revision.max(complete);
            further
        });
        Ok(())
    }

    /// Waits until all changes up to `revision` were seen. Dropping the future is harmless.
    pub(super) async fn reach(&self, etcd: &Etcd, revision: i64) -> Result<(), WorldError> {
        // Nothing was ever written.
        if revision <= 1 {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        let waited = tokio::time::timeout(
            CATCH_UP_LIMIT,
            progress.wait_for(|it| it.revision >= revision || it.ended.is_some()),
        );
        let seen = match waited.await {
            Ok(Ok(seen)) => seen.clone(),
            Ok(Err(_)) => Progress { ended: Some("it was closed".to_owned()), revision: 0 },
            Err(_) => {
                let seen = self.progress.borrow().revision;
                let problem = format!(
                    "it has shown nothing beyond revision {seen} for {CATCH_UP_LIMIT:?}, and \
                     {revision} was awaited"
                );
                return Err(etcd.failed("follow the changes", EtcdError::WatchEnded(problem)));
            }
        };
        match seen.ended {
            Some(reason) if seen.revision < revision => {
                Err(etcd.failed("follow the changes", EtcdError::WatchEnded(reason)))
            }
            _ => Ok(()),
        }
    }

    /// The history of a world up to a revision that was reached.
    pub(super) fn history(
        &self,
        namespace: &str,
        revision: i64,
    ) -> Result<Vec<Arc<Record>>, WorldError> {
        let state = self.state();
        let missing = || WorldError::NoSuchWorld { namespace: namespace.to_owned(), revision };
        let log = state.worlds.get(namespace).ok_or_else(missing)?;
        let end = log.records.partition_point(|record| record.revision <= revision);
        let records = &log.records[..end];
        if !log.whole {
            let (namespace, first) = (namespace.to_owned(), state.first);
            return Err(WorldError::Compacted { namespace, first });
        }
        let last = records.iter().rfind(|record| &*record.directory == NAMESPACES);
        if last.is_none_or(|record| record.value.is_none()) {
            return Err(missing());
        }
        Ok(records.to_vec())
    }

    /// From now on, whatever is written to the namespace is reported as late.
    pub(super) fn mark_erased(&self, namespace: &str) {
        self.state().erased.insert(namespace.to_owned());
    }

    /// The directories in which a namespace has keys.
    pub(super) fn directories(&self, namespace: &str) -> Vec<Arc<str>> {
        let state = self.state();
        state
            .worlds
            .get(namespace)
            .map(|log| log.live.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// The keys of a namespace.
    pub(super) fn keys(&self, namespace: &str) -> Vec<String> {
        let state = self.state();
        let Some(log) = state.worlds.get(namespace) else { return Vec::new() };
        let keys = log.live.iter().flat_map(|(directory, names)| {
            names.iter().map(|name| super::key::object_key(directory, namespace, name))
        });
        keys.collect()
    }

    /// Namespaces that have keys but no namespace object.
    pub(super) fn orphans(&self) -> Vec<String> {
        let state = self.state();
        let orphans = state.worlds.iter().filter(|(_, log)| !log.live.contains_key(NAMESPACES));
        orphans.map(|(namespace, _)| namespace.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn record(&mut self, key: RegistryKey<'_>, change: &ChangedKey<'_>, value: Option<Vec<u8>>) {
        let directory = self.directory(key.directory);
        if !self.worlds.contains_key(key.namespace) {
            self.worlds.insert(key.namespace.to_owned(), Log::default());
        }
        let Some(log) = self.worlds.get_mut(key.namespace) else { return };
        match &value {
            Some(_) => {
                let names = log.live.entry(directory.clone()).or_default();
                if !names.contains(key.name) {
                    names.insert(key.name.to_owned());
                }
            }
            None => {
                if let Some(names) = log.live.get_mut(&directory) {
                    names.remove(key.name);
                    if names.is_empty() {
                        log.live.remove(&directory);
                    }
                }
            }
        }
        if log.live.is_empty() {
            self.worlds.remove(key.namespace);
            return;
        }
        if log.records.is_empty() && &*directory == NAMESPACES {
            log.whole = change.version == 1;
        }
        // Events are left out of forks on purpose.
        if &*directory != EVENTS {
            let revision = change.mod_revision;
            let (name, value) = (key.name.to_owned(), value.map(Bytes::from));
            let facts = OnceLock::new();
            log.records.push(Arc::new(Record { revision, directory, name, value, facts }));
        }
    }

    fn directory(&mut self, name: &str) -> Arc<str> {
        if let Some(directory) = self.directories.get(name) {
            return directory.clone();
        }
        let directory: Arc<str> = name.into();
        self.directories.insert(directory.clone());
        directory
    }
}

async fn next(watch: &mut Watch) -> Result<&[u8], EtcdError> {
    watch.next().await?.ok_or_else(|| EtcdError::WatchEnded("etcd closed it".to_owned()))
}
