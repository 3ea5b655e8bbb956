//! The log of one stream, and the view that a client has at a position of it.

use std::{cmp::Ordering, collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What one incarnation of a stream has received: the initial list, then the events in their order.
///
/// ```
/// use laggard::lag::model::{Change, Event, Log, ObjectKey};
/// use serde_json::json;
///
/// let pod = |revision: &str| {
///     json!({"metadata": {"namespace": "a", "name": "p", "resourceVersion": revision}})
/// };
/// let mut log = Log::new("10", [pod("7")]);
/// log.push(Event::from_object(Change::Modified, pod("11")).unwrap());
/// log.push(Event::from_object(Change::Deleted, pod("12")).unwrap());
///
/// let key = ObjectKey::namespaced("a", "p");
/// assert_eq!(log.fold(0).unwrap()[&key]["metadata"]["resourceVersion"], "7");
/// assert_eq!(log.fold(1).unwrap()[&key]["metadata"]["resourceVersion"], "11");
/// assert!(log.fold(2).unwrap().is_empty());
/// assert!(log.fold(3).is_none(), "the log holds two events");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    initial: BTreeMap<ObjectKey, Value>,
    initial_resource_version: String,
    events: Vec<Event>,
}

/// The objects that a view shows, by namespace and name.
pub type Objects<'a> = BTreeMap<&'a ObjectKey, &'a Value>;

impl Log {
    /// A log that begins with `objects`, the state at `resource_version`. Objects without a name are left out.
    #[must_use]
    pub fn new(
        resource_version: impl Into<String>,
        objects: impl IntoIterator<Item = Value>,
    ) -> Self {
        let initial = objects
            .into_iter()
            .filter_map(|object| Some((ObjectKey::of(&object)?, object)))
            .collect();
        Self { initial, initial_resource_version: resource_version.into(), events: Vec::new() }
    }

    /// Adds an object to the initial state, for initial lists that arrive piece by piece.
    pub(crate) fn push_initial(&mut self, object: Value) {
        if let Some(key) = ObjectKey::of(&object) {
            self.initial.insert(key, object);
        }
    }

    /// Says at which resource version the initial state is complete.
    pub(crate) fn set_initial_resource_version(&mut self, resource_version: impl Into<String>) {
        self.initial_resource_version = resource_version.into();
    }

    /// Adds the next event.
    pub fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// The number of events; positions go from 0 to this number.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether no event has been received; the initial state may still hold objects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The events in the order in which the server sent them.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The resource version of the initial state.
    #[must_use]
    pub fn initial_resource_version(&self) -> &str {
        &self.initial_resource_version
    }

    /// The objects that a client sees which has been given the initial state and the first `position` events.
    /// `None` if the log has fewer events.
    #[must_use]
    pub fn fold(&self, position: usize) -> Option<Objects<'_>> {
        let mut objects: Objects<'_> = self.initial.iter().collect();
        for event in self.events.get(..position)? {
            match event.change {
                Change::Added | Change::Modified => objects.insert(&event.key, &event.object),
                Change::Deleted => objects.remove(&event.key),
            };
        }
        Some(objects)
    }

    /// The object as the whole log leaves it; `None` if it is not there, or was deleted.
    #[must_use]
    pub fn newest(&self, key: &ObjectKey) -> Option<&Value> {
        match self.newest_event(key) {
            Some(event) => (event.change != Change::Deleted).then_some(&event.object),
            None => self.initial.get(key),
        }
    }

    /// The last event about an object.
    #[must_use]
    pub fn newest_event(&self, key: &ObjectKey) -> Option<&Event> {
        self.events.iter().rev().find(|event| event.key == *key)
    }

    /// The resource version that a client knows at `position` if it has seen no bookmark.
    /// `None` if the log has fewer events.
    #[must_use]
    pub fn resource_version_at(&self, position: usize) -> Option<&str> {
        match position.checked_sub(1) {
            None => Some(&self.initial_resource_version),
            Some(last) => self.events.get(last).map(|event| event.resource_version.as_str()),
        }
    }
}

/// What a client has been shown of a stream.
///
/// Source of the rule that one number is enough: a watch delivers a prefix of the history of its
/// resource, with no gap and in order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct View {
    /// Counts the initial lists of this stream, from 1: a relist starts a new incarnation.
    pub incarnation: u32,
    /// How many events of this incarnation the client has been given.
    pub position: usize,
    /// Whether the initial list is complete; before that a store shows what the incarnation before it showed.
    pub ready: bool,
}

/// One ADDED, MODIFIED or DELETED event of a watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What happened to the object, as seen through the selectors of the stream.
    pub change: Change,
    /// Which object.
    pub key: ObjectKey,
    /// The resource version of the change.
    pub resource_version: String,
    /// The object as sent; for [`Change::Deleted`] its last state.
    pub object: Value,
}

impl Event {
    /// Reads key and resource version from `object`. `None` if it has no name or no resource version.
    #[must_use]
    pub fn from_object(change: Change, object: Value) -> Option<Self> {
        let key = ObjectKey::of(&object)?;
        let resource_version = object.pointer("/metadata/resourceVersion")?.as_str()?.to_owned();
        Some(Self { change, key, resource_version, object })
    }
}

/// What an event says about its object.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Change {
    /// It was created, or began to match the selectors.
    Added,
    /// It was changed.
    Modified,
    /// It was deleted, or ceased to match the selectors.
    Deleted,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        })
    }
}

/// Names an object within one resource.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ObjectKey {
    /// `None` for objects of cluster-scoped resources.
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// Names an object in a namespace.
    #[must_use]
    pub fn namespaced(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: Some(namespace.into()), name: name.into() }
    }

    /// Reads `metadata.namespace` and `metadata.name` of `object`.
    #[must_use]
    pub fn of(object: &Value) -> Option<Self> {
        let metadata = object.get("metadata")?;
        let text = |field: &str| metadata.get(field).and_then(Value::as_str).map(str::to_owned);
        Some(Self { namespace: text("namespace"), name: text("name")? })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Compares two resource versions of the same resource. `None` if one is not a decimal number.
///
/// Source: Kubernetes, "Resource versions": within one resource type they are integers in an order,
/// of any length.
#[must_use]
pub fn compare_resource_versions(left: &str, right: &str) -> Option<Ordering> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !number(left) || !number(right) {
        return None;
    }
    let (left, right) = (left.trim_start_matches('0'), right.trim_start_matches('0'));
    Some(left.len().cmp(&right.len()).then_with(|| left.cmp(right)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, revision: u32) -> Value {
        json!({"metadata": {"namespace": "n", "name": name, "resourceVersion": revision.to_string()}})
    }

    fn event(change: Change, name: &str, revision: u32) -> Event {
        Event::from_object(change, object(name, revision)).unwrap()
    }

    fn shown(log: &Log, position: usize) -> Vec<String> {
        let objects = log.fold(position).unwrap();
        objects
            .iter()
            .map(|(key, object)| {
                format!("{key}@{}", object["metadata"]["resourceVersion"].as_str().unwrap())
            })
            .collect()
    }

    #[test]
    fn a_fold_applies_exactly_the_events_before_its_position() {
        let mut log = Log::new("5", [object("a", 1), object("b", 2)]);
        log.push(event(Change::Modified, "a", 6));
        log.push(event(Change::Deleted, "b", 7));
        log.push(event(Change::Added, "b", 8));
        assert_eq!(shown(&log, 0), ["n/a@1", "n/b@2"]);
        assert_eq!(shown(&log, 1), ["n/a@6", "n/b@2"]);
        assert_eq!(shown(&log, 2), ["n/a@6"]);
        assert_eq!(shown(&log, 3), ["n/a@6", "n/b@8"]);
        assert_eq!(log.fold(4), None);
        assert_eq!(log.resource_version_at(0), Some("5"));
        assert_eq!(log.resource_version_at(2), Some("7"));
        assert_eq!(log.resource_version_at(4), None);
    }

    #[test]
    fn the_newest_state_of_an_object_is_that_of_the_fold_at_the_end() {
        let mut log = Log::new("5", [object("a", 1), object("b", 2)]);
        log.push(event(Change::Modified, "a", 6));
        log.push(event(Change::Deleted, "b", 7));
        log.push(event(Change::Added, "c", 8));
        for name in ["a", "b", "c", "d"] {
            let key = ObjectKey::namespaced("n", name);
            let folded = log.fold(log.len()).unwrap();
            assert_eq!(log.newest(&key), folded.get(&key).copied(), "{name}");
        }
        let key = ObjectKey::namespaced("n", "b");
        assert_eq!(log.newest_event(&key).unwrap().resource_version, "7");
        assert!(log.newest_event(&ObjectKey::namespaced("n", "d")).is_none());
    }

    #[test]
    fn one_name_in_two_namespaces_is_two_objects() {
        let elsewhere =
            json!({"metadata": {"namespace": "m", "name": "a", "resourceVersion": "3"}});
        let log = Log::new("5", [object("a", 1), elsewhere]);
        assert_eq!(shown(&log, 0), ["m/a@3", "n/a@1"]);
    }

    #[test]
    fn resource_versions_compare_as_numbers_of_any_length() {
        assert_eq!(compare_resource_versions("9", "10"), Some(Ordering::Less));
        assert_eq!(compare_resource_versions("010", "10"), Some(Ordering::Equal));
        let long = "340282366920938463463374607431768211456";
        assert_eq!(compare_resource_versions(long, "99"), Some(Ordering::Greater));
        assert_eq!(compare_resource_versions("abc", "10"), None);
        assert_eq!(compare_resource_versions("", "10"), None);
    }

    #[test]
    fn an_object_without_a_name_or_revision_is_no_event() {
        assert_eq!(Event::from_object(Change::Added, json!({"metadata": {"name": "a"}})), None);
        assert_eq!(
            Event::from_object(Change::Added, json!({"metadata": {"resourceVersion": "1"}})),
            None
        );
    }
}
