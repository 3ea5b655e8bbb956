//! Moments: what a world was at one revision, and how it came to be so.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::WorldError;
use super::error::{Refusal, RefusalReason};
use super::history::Record;
use super::key::{NAMESPACES, Resource, object_key};
use super::renames::{Place, places};

/// A world at one etcd revision.
///
/// It is kept as bytes: every version and deletion of every object since the namespace began, so
/// it outlives the world itself and a compaction of etcd. Clones share them. Events (the objects of
/// that name) are not in it.
#[derive(Clone, Debug)]
pub struct Moment {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    namespace: String,
    revision: i64,
    changes: Vec<Change>,
    resources: BTreeMap<Arc<str>, Known>,
    uids: Vec<String>,
}

/// One change, and what a fork has to replace in it.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) record: Arc<Record>,
    pub(super) key: String,
    pub(super) key_places: Vec<Place>,
    pub(super) value_places: Vec<Place>,
}

/// What is known of a directory.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) resource: Resource,
    /// The API version of the object that was written last.
    pub(super) api_version: String,
}

/// One version or deletion of an object.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ObjectChange<'a> {
    /// The object's resource.
    pub resource: &'a Resource,
    /// The object's name, in the world that is spoken of.
    pub name: String,
    /// The change's revision there: the object's resourceVersion from then on.
    pub revision: i64,
    /// Whether the object was deleted by it.
    pub deleted: bool,
}

impl Moment {
    /// Looks through a history. Refuses what no fork may hold.
    pub(super) fn new(
        namespace: &str,
        revision: i64,
        records: Vec<Arc<Record>>,
    ) -> Result<Self, WorldError> {
        let mut resources = BTreeMap::new();
        let mut refusals = Vec::new();
        let mut refused = HashSet::new();
        let mut uids = HashSet::new();
        for record in &records {
            let (refusal, api_version) = match record.facts() {
                None => continue,
                Some(Ok(facts)) => {
                    uids.insert(facts.uid.clone());
                    (facts.refusal.clone(), facts.api_version.as_str())
                }
                Some(Err(problem)) => (Some(RefusalReason::Encoding(problem.clone())), ""),
            };
            let resource = Resource::of(&record.directory, api_version);
            if let Some(reason) = refusal
                && refused.insert((&*record.directory, record.name.as_str()))
            {
                let (name, revision) = (record.name.clone(), record.revision);
                refusals.push(Refusal { resource: resource.clone(), name, revision, reason });
            }
            let known = Known { resource, api_version: api_version.to_owned() };
            resources.insert(record.directory.clone(), known);
        }
        if !refusals.is_empty() {
            return Err(WorldError::Refused { namespace: namespace.to_owned(), refusals });
        }
        let changes = records.iter().map(|record| {
            let places = |bytes: &[u8]| places(bytes, namespace, |uid| uids.contains(uid));
            let key = object_key(&record.directory, namespace, &record.name);
            Change {
                key_places: places(key.as_bytes()),
                value_places: record.value.as_deref().map(places).unwrap_or_default(),
                record: record.clone(),
                key,
            }
        });
        let changes = changes.collect();
        let uids = uids.into_iter().collect();
        let namespace = namespace.to_owned();
        Ok(Self { inner: Arc::new(Inner { namespace, revision, changes, resources, uids }) })
    }

    /// The name of the world.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// etcd's revision at this moment; the world's own last change may be older.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.inner.revision
    }

    /// Every version and deletion of every object, in the order of their revisions. The first is
    /// the namespace itself.
    pub fn changes(&self) -> impl Iterator<Item = ObjectChange<'_>> {
        self.inner.changes.iter().filter_map(|change| {
            let record = &change.record;
            Some(ObjectChange {
                resource: &self.inner.resources.get(&record.directory)?.resource,
                name: record.name.clone(),
                revision: record.revision,
                deleted: record.value.is_none(),
            })
        })
    }

    /// The resources that have ever had an object in it, each with the API version in which it was written last,
    /// such as `apps/v1`; the namespace itself left out.
    pub fn resources_and_versions(&self) -> impl Iterator<Item = (&Resource, &str)> {
        let resources = self.inner.resources.iter();
        let objects = resources.filter(|(directory, _)| &***directory != NAMESPACES);
        objects.map(|(_, known)| (&known.resource, &*known.api_version))
    }

    /// How many bytes of etcd's it keeps, in keys and values.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let sizes = self.inner.changes.iter().map(|change| {
            change.key.len() + change.record.value.as_ref().map_or(0, bytes::Bytes::len)
        });
        sizes.sum()
    }

    pub(super) fn raw(&self) -> &[Change] {
        &self.inner.changes
    }

    pub(super) fn resources(&self) -> &BTreeMap<Arc<str>, Known> {
        &self.inner.resources
    }

    pub(super) fn uids(&self) -> &[String] {
        &self.inner.uids
    }
}
