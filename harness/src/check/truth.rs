//! The true state of a world: what the server has, whatever any view shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use kube::Resource;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::lag::model::{Change, Commit, ObjectKey};

/// Stands for all resources among those that were looked at.
pub(crate) const EVERYTHING: &str = "*";

/// All objects of a world at one moment: the fold of the history up to there.
///
/// A clone is cheap, since objects are shared. Names are looked up in the one namespace of the world, or
/// among cluster-scoped objects.
///
/// ```
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use laggard::check::Truth;
///
/// let truth = Truth::default();
/// assert!(truth.get::<ConfigMap>("settings").is_none());
/// assert!(truth.list::<ConfigMap>().is_empty());
/// assert_eq!(truth.revision(), None);
/// ```
#[derive(Default)]
pub struct Truth {
    /// By resource, such as `statefulsets.apps`. `None` where the record did not keep the object.
    objects: BTreeMap<String, BTreeMap<ObjectKey, Option<Arc<Value>>>>,
    revision: Option<String>,
    /// The resources that were looked at.
    looked_at: Mutex<BTreeSet<String>>,
    /// What was asked for and could not be read as the type it was asked as.
    unreadable: Mutex<Option<String>>,
}

impl Truth {
    /// The object with this name, if there is one.
    ///
    /// One that cannot be read as a `K` counts as absent, and the oracle that asked is reported as violated
    /// with the reason, whatever it answers: a wrong type would otherwise keep an oracle silent for ever.
    #[must_use]
    pub fn get<K>(&self, name: &str) -> Option<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let resource = resource_of::<K>();
        let (key, object) = self.find(&resource, name)?;
        self.read(&resource, key, object.as_deref())
    }

    /// All objects of this kind, by name. Those that cannot be read as a `K` are treated as by
    /// [`get`](Self::get).
    #[must_use]
    pub fn list<K>(&self) -> Vec<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let resource = resource_of::<K>();
        self.look(&resource);
        let objects = self.objects.get(&resource).into_iter().flatten();
        objects.filter_map(|(key, object)| self.read(&resource, key, object.as_deref())).collect()
    }

    /// The object as the server has it. `resource` is such as `statefulsets.apps`, or `pods` in the core
    /// group.
    #[must_use]
    pub fn value(&self, resource: &str, name: &str) -> Option<&Value> {
        let (key, object) = self.find(resource, name)?;
        if object.is_none() {
            self.note(&format!("{resource} {key} was not kept in the record"));
        }
        object.as_deref()
    }

    /// All objects of a resource, by name.
    pub fn values(&self, resource: &str) -> impl Iterator<Item = (&ObjectKey, &Value)> {
        self.look(resource);
        let objects = self.objects.get(resource).into_iter().flatten();
        objects.filter_map(|(key, object)| Some((key, object.as_deref()?)))
    }

    /// The resources that have ever had an object, such as `statefulsets.apps`.
    pub fn resources(&self) -> impl Iterator<Item = &str> {
        self.look(EVERYTHING);
        self.objects.keys().map(String::as_str)
    }

    /// The revision of the last change; `None` before the first.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.look(EVERYTHING);
        self.revision.as_deref()
    }

    /// The object of a change, whether it is there or not.
    pub(crate) fn of_change<K>(&self, commit: &Commit) -> Option<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        self.read(&commit.resource, &commit.key, commit.object.as_ref())
    }

    /// Puts an object there.
    pub(crate) fn insert(&mut self, resource: &str, key: ObjectKey, object: Arc<Value>) {
        let objects = self.objects.entry(resource.to_owned()).or_default();
        objects.insert(key, Some(object));
    }

    /// This state of an object, shared with the one that is there if it is the same.
    pub(crate) fn share(&self, resource: &str, key: &ObjectKey, object: &Value) -> Arc<Value> {
        let version = |object: &Value| object.pointer("/metadata/resourceVersion").cloned();
        let known = self.objects.get(resource).and_then(|objects| objects.get(key)?.as_ref());
        match known.filter(|known| version(known).is_some_and(|it| Some(it) == version(object))) {
            Some(known) => Arc::clone(known),
            None => Arc::new(object.clone()),
        }
    }

    /// Takes in the next change of the history.
    pub(crate) fn apply(&mut self, commit: &Commit) {
        let objects = self.objects.entry(commit.resource.clone()).or_default();
        match commit.change {
            Change::Added | Change::Modified => {
                objects.insert(commit.key.clone(), commit.object.clone().map(Arc::new));
            }
            Change::Deleted => {
                objects.remove(&commit.key);
            }
        }
        self.revision = Some(commit.resource_version.clone());
    }

    /// The resources that were looked at so far.
    pub(crate) fn looked_at(&self) -> BTreeSet<String> {
        self.looked_at.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn look(&self, resource: &str) {
        let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        if !looked_at.contains(resource) {
            looked_at.insert(resource.to_owned());
        }
    }

    /// What could not be read since the last call.
    pub(crate) fn take_unreadable(&self) -> Option<String> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn find(&self, resource: &str, name: &str) -> Option<(&ObjectKey, &Option<Arc<Value>>)> {
        self.look(resource);
        self.objects.get(resource)?.iter().find(|(key, _)| key.name == name)
    }

    fn read<K: DeserializeOwned>(
        &self,
        resource: &str,
        key: &ObjectKey,
        object: Option<&Value>,
    ) -> Option<K> {
        let Some(object) = object else {
            self.note(&format!("{resource} {key} was not kept in the record"));
            return None;
        };
        match K::deserialize(object) {
            Ok(object) => Some(object),
            Err(error) => {
                let kind = std::any::type_name::<K>();
                self.note(&format!("{resource} {key} cannot be read as {kind}: {error}"));
                None
            }
        }
    }

    fn note(&self, text: &str) {
        tracing::warn!("{text}");
        let mut noted = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        noted.get_or_insert_with(|| text.to_owned());
    }
}

impl Clone for Truth {
    fn clone(&self) -> Self {
        Self {
            objects: self.objects.clone(),
            revision: self.revision.clone(),
            // What was asked of one is not asked of the other.
            looked_at: Mutex::default(),
            unreadable: Mutex::default(),
        }
    }
}

impl fmt::Debug for Truth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Truth")
            .field("revision", &self.revision)
            .field("objects", &self.objects)
            .finish_non_exhaustive()
    }
}

/// `statefulsets.apps`, or `pods` in the core group.
pub(super) fn resource_of<K: Resource<DynamicType = ()>>() -> String {
    match K::group(&()).as_ref() {
        "" => K::plural(&()).into_owned(),
        group => format!("{}.{group}", K::plural(&())),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Namespace},
    };
    use serde_json::json;

    use super::*;
    use crate::lag::model::Author;

    fn commit(revision: &str, resource: &str, change: Change, object: Value) -> Commit {
        Commit {
            resource_version: revision.to_owned(),
            resource: resource.to_owned(),
            key: ObjectKey::of(&object).unwrap(),
            uid: None,
            change,
            by: Author::SetUp,
            step: None,
            object: Some(object),
        }
    }

    fn set(replicas: Value) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"namespace": "ns", "name": "n0"}, "spec": {"replicas": replicas},
        })
    }

    #[test]
    fn it_is_the_fold_of_the_history() {
        let mut truth = Truth::default();
        truth.apply(&commit("4", "statefulsets.apps", Change::Added, set(json!(1))));
        let before = truth.clone();
        truth.apply(&commit("5", "statefulsets.apps", Change::Modified, set(json!(2))));
        let namespace = json!({"metadata": {"name": "ns"}});
        truth.apply(&commit("6", "namespaces", Change::Added, namespace));
        let replicas =
            |truth: &Truth| truth.get::<StatefulSet>("n0").and_then(|set| set.spec.replicas);
        assert_eq!((replicas(&before), replicas(&truth)), (Some(1), Some(2)));
        assert_eq!((before.revision(), truth.revision()), (Some("4"), Some("6")));
        assert_eq!(truth.value("statefulsets.apps", "n0").unwrap()["spec"]["replicas"], 2);
        assert_eq!(truth.value("statefulsets", "n0"), None, "the group is a part of the resource");
        assert!(truth.get::<Namespace>("ns").is_some(), "cluster-scoped objects have no namespace");
        assert!(truth.get::<ConfigMap>("n0").is_none());
        truth.apply(&commit("7", "statefulsets.apps", Change::Deleted, set(json!(2))));
        assert!(truth.list::<StatefulSet>().is_empty());
        assert_eq!(before.list::<StatefulSet>().len(), 1);
        assert_eq!(truth.take_unreadable(), None);
    }

    #[test]
    fn an_object_of_another_form_is_absent_and_not_silent() {
        let mut truth = Truth::default();
        truth.apply(&commit("4", "statefulsets.apps", Change::Added, set(json!("many"))));
        assert!(truth.get::<StatefulSet>("n0").is_none());
        let noted = truth.take_unreadable().unwrap();
        assert!(noted.starts_with("statefulsets.apps ns/n0 cannot be read as "), "{noted}");
        assert!(noted.contains("many"), "{noted}");
        assert_eq!(truth.take_unreadable(), None);
        assert!(truth.list::<StatefulSet>().is_empty());
        assert!(truth.take_unreadable().is_some());
        let mut lost = commit("5", "statefulsets.apps", Change::Modified, set(json!(1)));
        lost.object = None;
        truth.apply(&lost);
        assert_eq!(truth.value("statefulsets.apps", "n0"), None);
        let noted = truth.take_unreadable().unwrap();
        assert_eq!(noted, "statefulsets.apps ns/n0 was not kept in the record");
    }
}
