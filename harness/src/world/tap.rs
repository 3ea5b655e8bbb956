//! The tap: one watch of everything in etcd, from which the history of each world is kept.
//!
//! etcd has no request for "every version of these keys since". A watch that begins in the past
//! gives them, but etcd serves such a watch from a loop that comes round every 100 ms. One watch that
//! is always there has seen what a moment needs by the time it is asked for, and it shows what a late
//! writer puts into a world that was erased.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::WorldError;
use super::background::{Background, Task};
use super::error::EtcdError;
use super::etcd::{Etcd, Watch};
use super::history::History;
use super::key::{REGISTRY, RegistryKey, is_world};
use super::wire::{ChangeKind, Changes, Range};

/// How long the tap may take to show what etcd has acknowledged.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(20);

/// A watch that breaks is opened again for so long without success; then etcd is gone.
const RECONNECT_LIMIT: Duration = Duration::from_secs(5);

/// There is no event that says that etcd can be reached again.
const RECONNECT_AFTER: Duration = Duration::from_millis(20);

/// What is known of all worlds of one etcd, whoever made them.
#[derive(Debug)]
pub(super) struct Tap {
    history: Mutex<History>,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    /// All changes up to this revision were seen.
    revision: i64,
    /// Why the watch broke last, if it did and is not back.
    broken: Option<String>,
    /// It will not come back.
    ended: bool,
}

/// A namespace that was erased and written to again.
#[derive(Debug)]
pub(super) struct Late {
    pub(super) namespace: String,
    /// There is something to do until this is dropped.
    pub(super) task: Task,
}

/// Whom to tell of late writes.
pub(super) struct Listener {
    pub(super) background: Background,
    pub(super) late: mpsc::UnboundedSender<Late>,
}

impl Listener {
    fn hear(&self, namespace: &str) {
        let late = Late { namespace: namespace.to_owned(), task: self.background.begin() };
        // If nobody listens any more, these worlds are closed.
        let _ = self.late.send(late);
    }
}

/// What was seen of a revision whose rest comes with the next message, or again after a break.
#[derive(Debug, Default)]
struct Partial {
    revision: i64,
    keys: HashSet<Bytes>,
}

impl Tap {
    pub(super) fn new() -> Self {
        Self { history: Mutex::default(), progress: watch::Sender::default() }
    }

    /// Follows etcd until it is gone or the future is dropped. A watch that breaks is opened again
    /// where it had come to.
    pub(super) async fn follow(&self, etcd: &Etcd, listener: &Listener) {
        let mut partial = Partial::default();
        let mut broken_since = None;
        loop {
            let before = self.seen();
            let Err(error) = self.read(etcd, listener, &mut partial).await;
            let text = chain(&error);
            tracing::debug!(error = %text, "the watch of etcd broke");
            if self.seen() > before {
                broken_since = None;
            }
            let ended = broken_since.get_or_insert_with(Instant::now).elapsed() >= RECONNECT_LIMIT;
            self.progress.send_modify(|progress| {
                progress.broken = Some(text);
                progress.ended = ended;
            });
            if ended {
                return;
            }
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
    }

    async fn read(
        &self,
        etcd: &Etcd,
        listener: &Listener,
        partial: &mut Partial,
    ) -> Result<Infallible, WorldError> {
        let failed = |error| etcd.failed("watch", error);
        let seen = self.seen();
        let mut watch = etcd.watch_everything(seen + 1).await?;
        if seen == 0 {
            self.history().begin();
        }
        loop {
            let result = next(&mut watch).await.map_err(failed)?;
            if result.canceled {
                let first = result.compact_revision;
                if first == 0 {
                    return Err(failed(EtcdError::WatchEnded(result.cancel_reason)));
                }
                watch = etcd.watch_everything(first).await?;
                self.begin_after_compaction(etcd, listener, first).await?;
                *partial = Partial::default();
                continue;
            }
            self.apply(&result, listener, partial);
        }
    }

    /// Notes the keys that the watch will not tell of, since they are older than what etcd kept.
    async fn begin_after_compaction(
        &self,
        etcd: &Etcd,
        listener: &Listener,
        first: i64,
    ) -> Result<(), WorldError> {
        let range = Range { revision: first, ..Range::keys(REGISTRY) };
        let read = etcd.range("list all keys", &range).await?;
        let older = read.kvs.iter().filter(|found| found.mod_revision < first);
        let keys = older.filter_map(|found| RegistryKey::parse(&found.key));
        let late = self.history().begin_after_a_gap(first, keys);
        late.iter().for_each(|namespace| listener.hear(namespace));
        self.progress.send_modify(|it| it.revision = it.revision.max(first - 1));
        Ok(())
    }

    fn apply(&self, changes: &Changes, listener: &Listener, partial: &mut Partial) {
        let Some(last) = changes.events.last() else { return };
        let last = last.kv.mod_revision;
        let mut history = self.history();
        for change in &changes.events {
            let seen_before =
                change.kv.mod_revision == partial.revision && partial.keys.contains(&change.kv.key);
            if seen_before {
                continue;
            }
            if changes.fragment && change.kv.mod_revision == last {
                if partial.revision != last {
                    *partial = Partial { revision: last, keys: HashSet::new() };
                }
                partial.keys.insert(change.kv.key.clone());
            }
            let Some(key) = RegistryKey::parse(&change.kv.key) else { continue };
            if !is_world(key.namespace) {
                continue;
            }
            // A copy, since the rest of the message is of no interest.
            let value = (change.kind() == ChangeKind::Put).then(|| change.kv.value.to_vec());
            if value.is_some() && history.is_erased(key.namespace) {
                listener.hear(key.namespace);
            }
            history.record(key, &change.kv, value);
        }
        drop(history);
        let complete = last - i64::from(changes.fragment);
        self.progress.send_if_modified(|progress| {
            progress.broken = None;
            let further = complete > progress.revision;
            progress.revision = progress.revision.max(complete);
            further
        });
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
            progress.wait_for(|it| it.revision >= revision || it.ended),
        );
        let problem = match waited.await {
            Ok(Ok(seen)) if seen.revision >= revision => return Ok(()),
            Ok(Ok(seen)) => seen.broken.clone().unwrap_or_default(),
            Ok(Err(_)) => "it was closed".to_owned(),
            Err(_) => {
                let Progress { revision: seen, broken, .. } = self.progress.borrow().clone();
                let broken = broken.map(|broken| format!("; it broke: {broken}"));
                format!(
                    "it has shown nothing beyond revision {seen} for {CATCH_UP_LIMIT:?}, and \
                     {revision} was awaited{}",
                    broken.unwrap_or_default()
                )
            }
        };
        Err(etcd.failed("follow the changes", EtcdError::WatchEnded(problem)))
    }

    /// All changes up to this revision were seen; 0 before the first.
    pub(super) fn seen(&self) -> i64 {
        self.progress.borrow().revision
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn next(watch: &mut Watch) -> Result<Changes, EtcdError> {
    watch.next().await?.ok_or_else(|| EtcdError::WatchEnded("etcd closed it".to_owned()))
}

/// An error with its sources, since it is shown as one text by whoever waits.
fn chain(error: &WorldError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Change, KeyValue};
    use super::*;

    /// A message with puts of objects of one world.
    fn message(fragment: bool, changes: &[(i64, &str)]) -> Changes {
        let events = changes.iter().map(|&(mod_revision, path)| {
            let key = format!("/registry/{path}").into();
            Change { kind: 0, kv: KeyValue { key, mod_revision, version: 1, ..Default::default() } }
        });
        Changes { fragment, events: events.collect(), ..Default::default() }
    }

    #[test]
    fn what_comes_again_after_a_break_is_recorded_once() {
        let tap = Tap::new();
        tap.history().begin();
        let listener =
            Listener { background: Background::default(), late: mpsc::unbounded_channel().0 };
        let mut partial = Partial::default();
        let mut apply = |fragment, changes: &[(i64, &str)]| {
            tap.apply(&message(fragment, changes), &listener, &mut partial);
            tap.seen()
        };
        let (namespace, a, b) =
            ("namespaces/lw-aaaa0000", "pods/lw-aaaa0000/a", "pods/lw-aaaa0000/b");
        assert_eq!(apply(true, &[(5, namespace), (7, a)]), 6);
        // Here it broke, and goes on after the last revision that was complete.
        assert_eq!(apply(false, &[(7, a), (7, b)]), 7);
        assert_eq!(apply(false, &[(8, a)]), 8);
        let records = tap.history().of("lw-aaaa0000", 8).unwrap();
        let records: Vec<_> = records.iter().map(|it| (it.revision, it.name.as_str())).collect();
        assert_eq!(records, [(5, "lw-aaaa0000"), (7, "a"), (7, "b"), (8, "a")]);
    }
}
