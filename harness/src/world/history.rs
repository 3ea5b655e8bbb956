//! What is known of the worlds of one etcd: every change of those that have a key, in order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::WorldError;
use super::key::{EVENTS, NAMESPACES, RegistryKey, is_world};
use super::names::NameSet;
use super::value::Facts;
use super::wire::KeyValue;

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
#[derive(Debug, Default)]
pub(super) struct History {
    worlds: HashMap<String, Log>,
    /// Directory names, each once.
    directories: HashSet<Arc<str>>,
    /// Worlds that nobody may write to any more.
    erased: NameSet,
    /// Worlds that were forked here.
    forks: NameSet,
    /// Worlds that are no forks, and of which somebody has a moment.
    copied: HashSet<String>,
    /// The first revision whose changes were seen.
    first: i64,
}

/// One world that has, at present, at least one key.
#[derive(Debug, Default)]
struct Log {
    records: Vec<Arc<Record>>,
    live: BTreeMap<Arc<str>, BTreeSet<String>>,
    /// The records begin with the making of the namespace, before which there cannot be any, and
    /// none is missing.
    whole: bool,
}

impl History {
    /// Notes a change; `value` is `None` for a deletion.
    pub(super) fn record(
        &mut self,
        key: RegistryKey<'_>,
        change: &KeyValue,
        value: Option<Vec<u8>>,
    ) {
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
            self.copied.remove(key.namespace);
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

    /// All changes from the first one of etcd's on will be recorded.
    pub(super) fn begin(&mut self) {
        self.first = 1;
    }

    /// Changes before `first` were missed. These are the keys that were there just before it; whatever
    /// is known of other worlds is gone, and of these the past is not known. Returns the worlds among
    /// them that were erased.
    pub(super) fn begin_after_a_gap<'a>(
        &mut self,
        first: i64,
        keys: impl Iterator<Item = RegistryKey<'a>>,
    ) -> BTreeSet<String> {
        self.first = first;
        self.worlds.clear();
        let mut late = BTreeSet::new();
        for key in keys.filter(|key| is_world(key.namespace)) {
            let directory = self.directory(key.directory);
            let log = self.worlds.entry(key.namespace.to_owned()).or_default();
            log.live.entry(directory).or_default().insert(key.name.to_owned());
            if self.is_erased(key.namespace) {
                late.insert(key.namespace.to_owned());
            }
        }
        let worlds = &self.worlds;
        self.copied.retain(|namespace| worlds.contains_key(namespace));
        late
    }

    /// The changes of a world up to a revision that was seen.
    pub(super) fn of(
        &mut self,
        namespace: &str,
        revision: i64,
    ) -> Result<Vec<Arc<Record>>, WorldError> {
        let missing = || WorldError::NoSuchWorld { namespace: namespace.to_owned(), revision };
        let log = self.worlds.get(namespace).ok_or_else(missing)?;
        let end = log.records.partition_point(|record| record.revision <= revision);
        let records = &log.records[..end];
        if !log.whole {
            let (namespace, first) = (namespace.to_owned(), self.first);
            return Err(WorldError::Compacted { namespace, first });
        }
        let last = records.iter().rfind(|record| &*record.directory == NAMESPACES);
        if last.is_none_or(|record| record.value.is_none()) {
            return Err(missing());
        }
        let records = records.to_vec();
        if !self.forks.contains(namespace) {
            self.copied.insert(namespace.to_owned());
        }
        Ok(records)
    }

    /// The first revision that somebody may still ask the server about: the first one of the oldest
    /// world, but for those that moments were taken of, which have their past as bytes.
    pub(super) fn oldest_needed(&self) -> Option<i64> {
        let needed = self.worlds.iter().filter(|(namespace, _)| !self.copied.contains(*namespace));
        needed.filter_map(|(_, log)| Some(log.records.first()?.revision)).min()
    }

    pub(super) fn mark_fork(&mut self, namespace: &str) {
        self.forks.insert(namespace);
    }

    pub(super) fn mark_erased(&mut self, namespace: &str) {
        self.erased.insert(namespace);
    }

    pub(super) fn is_erased(&self, namespace: &str) -> bool {
        self.erased.contains(namespace)
    }

    /// The directories in which a namespace has keys.
    pub(super) fn directories(&self, namespace: &str) -> Vec<Arc<str>> {
        let log = self.worlds.get(namespace);
        log.map(|log| log.live.keys().cloned().collect()).unwrap_or_default()
    }

    /// The keys of a namespace.
    pub(super) fn keys(&self, namespace: &str) -> Vec<String> {
        let Some(log) = self.worlds.get(namespace) else { return Vec::new() };
        let keys = log.live.iter().flat_map(|(directory, names)| {
            names.iter().map(|name| super::key::object_key(directory, namespace, name))
        });
        keys.collect()
    }

    /// Namespaces that have keys but no namespace object.
    pub(super) fn orphans(&self) -> Vec<String> {
        let orphans = self.worlds.iter().filter(|(_, log)| !log.live.contains_key(NAMESPACES));
        orphans.map(|(namespace, _)| namespace.clone()).collect()
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
