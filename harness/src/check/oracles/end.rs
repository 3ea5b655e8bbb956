//! Same end: all runs with the same disturbances leave the same objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::{Map, Value};

use super::{BuiltIn, Found, Oracles, fields::shortened, insert, record::uid_of};
use crate::{
    check::Truth,
    lag::model::{Change, Run, Violation, is_moment, replace_uuids, replace_word},
};

/// Cuts away what may differ of an object of a resource; answers whether the object counts at all.
pub(super) type Projection = Box<dyn Fn(&str, &mut Value) -> bool + Send + Sync>;

/// What the server counts or makes up.
const LEFT_OUT_OF_METADATA: [&str; 6] =
    ["creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid"];

/// The first end that was seen of each group of runs that must end alike.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    first: BTreeMap<String, Value>,
}

impl Ends {
    /// Compares an end with the first of its group; without one, it is the first.
    pub(crate) fn compare(&mut self, group: &str, end: Value) -> Option<Difference> {
        if let Some(first) = self.first.get(group) {
            return difference("", first, &end);
        }
        self.first.insert(group.to_owned(), end);
        None
    }
}

/// Where two ends differ first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Difference {
    /// Such as `statefulsets.apps/n0.spec.replicas`.
    pub(crate) path: String,
    /// What the first run had there; `None`: nothing.
    pub(crate) first: Option<Value>,
    /// What this one has.
    pub(crate) this: Option<Value>,
}

/// Judges how a settled run ended against the runs before it, by [`BuiltIn::SameEnd`]. `group` names those
/// that must end as this one does: the runs with the same disturbances.
///
/// The violation is put at the end of the run.
pub(crate) fn judge_end(
    run: &mut Run,
    oracles: &Oracles,
    ends: &mut Ends,
    group: &str,
) -> Option<Violation> {
    if !oracles.has(BuiltIn::SameEnd) {
        return None;
    }
    let Difference { path, first, this } =
        ends.compare(group, end_state(run, oracles.compared.as_ref()))?;
    let value = |value: Option<Value>| {
        value.map_or_else(|| "nothing".to_owned(), |value| shortened(&value))
    };
    let text = format!("{path} ends as {}, and as {} in the first run", value(this), value(first));
    let found = Found::new(run.steps.len(), BuiltIn::SameEnd, text);
    Some(insert(run, found))
}

/// The objects that a run leaves, by resource and name, without what differs between two runs that do the
/// same: times, versions, generations, UUIDs, names made up, the namespace.
///
/// The UID of an object of the run is replaced by the name of that object, and whether it is still there:
/// so an owner that is gone is told from one that is. Other UUIDs are numbered.
pub(super) fn end_state(run: &Run, projection: Option<&Projection>) -> Value {
    let mut truth = Truth::default();
    run.history.iter().for_each(|commit| truth.apply(commit));
    let names = Names::of(run);
    let mut resources = Map::new();
    for resource in truth.resources() {
        let mut objects: Vec<(String, Value)> = truth
            .values(resource)
            .map(|(key, object)| {
                let mut object = object.clone();
                names.normalise(&mut object);
                (names.replace(&key.name), object)
            })
            .collect();
        // Objects with made-up names have no order but that of what is in them.
        objects.sort_by_cached_key(|(name, object)| {
            (name.clone(), replace_uuids(&object.to_string(), |_| "<uuid>".to_owned()))
        });
        let mut kept = Map::new();
        for (name, mut object) in objects {
            let counts = match projection {
                Some(projection) => projection(resource, &mut object),
                None => !matches!(resource, "events" | "events.events.k8s.io"),
            };
            if counts {
                let same = |number: &usize| !kept.contains_key(&format!("{name}{}", Nth(*number)));
                let number = (1..).find(same).unwrap_or_default();
                kept.insert(format!("{name}{}", Nth(number)), object);
            }
        }
        if !kept.is_empty() {
            resources.insert(resource.to_owned(), Value::Object(kept));
        }
    }
    let mut end = Value::Object(resources);
    number_uuids(&mut end, &mut BTreeMap::new());
    end
}

/// Tells objects with one normalised name apart.
struct Nth(usize);

impl fmt::Display for Nth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 1 { write!(f, " ({})", self.0) } else { Ok(()) }
    }
}

/// What is called otherwise in another run.
struct Names {
    /// Namespaces and names that the server made up, the longest first.
    texts: Vec<(String, String)>,
    /// What each UID of the history is the UID of.
    uids: BTreeMap<String, String>,
}

impl Names {
    fn of(run: &Run) -> Self {
        let mut texts: BTreeMap<&str, String> = BTreeMap::new();
        for commit in &run.history {
            if let Some(namespace) = &commit.key.namespace {
                texts.entry(namespace).or_insert_with(|| "<namespace>".to_owned());
            }
            let object = commit.object.as_ref();
            let prefix = object
                .and_then(|object| object.pointer("/metadata/generateName"))
                .and_then(Value::as_str)
                .filter(|prefix| commit.key.name.starts_with(prefix));
            if let Some(prefix) = prefix {
                texts.entry(&commit.key.name).or_insert_with(|| format!("{prefix}<made up>"));
            }
        }
        let mut texts: Vec<_> = texts.into_iter().map(|(from, to)| (from.to_owned(), to)).collect();
        texts.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        let mut names = Self { texts, uids: BTreeMap::new() };
        let mut alive = BTreeMap::new();
        for commit in &run.history {
            let Some(uid) = uid_of(commit) else { continue };
            let there = commit.change != Change::Deleted;
            alive.insert(uid, (there, &commit.resource, &commit.key.name));
        }
        let uids = alive.into_iter().map(|(uid, (there, resource, name))| {
            let former = if there { "" } else { "a former " };
            (uid.to_owned(), format!("<uid of {former}{resource}/{}>", names.replace(name)))
        });
        names.uids = uids.collect();
        names
    }

    fn normalise(&self, object: &mut Value) {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|field, _| !LEFT_OUT_OF_METADATA.contains(&field.as_str()));
        }
        self.normalise_inside(object);
    }

    fn normalise_inside(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for left_out in ["observedGeneration", "resourceVersion"] {
                    fields.remove(left_out);
                }
                *fields = std::mem::take(fields)
                    .into_iter()
                    .map(|(field, mut value)| {
                        self.normalise_inside(&mut value);
                        (self.replace(&field), value)
                    })
                    .collect();
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.normalise_inside(item)),
            Value::String(text) if is_moment(text) => "<time>".clone_into(text),
            Value::String(text) => *text = self.replace(text),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn replace(&self, text: &str) -> String {
        if let Some(name) = self.uids.get(text) {
            return name.clone();
        }
        let known = |uuid: &str| self.uids.get(uuid).cloned().unwrap_or_else(|| uuid.to_owned());
        let mut text = replace_uuids(text, known);
        for (from, to) in &self.texts {
            text = replace_word(&text, from, to);
        }
        text
    }
}

/// Replaces the UUIDs that are left by the order in which they stand.
fn number_uuids(value: &mut Value, seen: &mut BTreeMap<String, usize>) {
    match value {
        Value::Object(fields) => {
            let mut parts: Vec<_> = std::mem::take(fields).into_iter().collect();
            // By what is not random in the names of fields.
            parts.sort_by_cached_key(|(field, _)| replace_uuids(field, |_| "<uuid>".to_owned()));
            for (field, mut value) in parts {
                let field = numbered(&field, seen);
                number_uuids(&mut value, seen);
                fields.insert(field, value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| number_uuids(item, seen)),
        Value::String(text) => *text = numbered(text, seen),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn numbered(text: &str, seen: &mut BTreeMap<String, usize>) -> String {
    replace_uuids(text, |uuid| {
        let next = seen.len() + 1;
        format!("<uuid {}>", seen.entry(uuid.to_owned()).or_insert(next))
    })
}

/// The first field, by its path, in which two values differ.
fn difference(path: &str, first: &Value, this: &Value) -> Option<Difference> {
    let at = |part: &str| match path {
        "" => part.to_owned(),
        path if path.contains('/') => format!("{path}.{part}"),
        // Resource and name.
        path => format!("{path}/{part}"),
    };
    let differs = |path: String, first: Option<&Value>, this: Option<&Value>| match (first, this) {
        (Some(first), Some(this)) => difference(&path, first, this),
        (first, this) => Some(Difference { path, first: first.cloned(), this: this.cloned() }),
    };
    match (first, this) {
        (Value::Object(first), Value::Object(this)) => {
            let fields: BTreeSet<_> = first.keys().chain(this.keys()).collect();
            fields
                .into_iter()
                .find_map(|field| differs(at(field), first.get(field), this.get(field)))
        }
        (Value::Array(first), Value::Array(this)) => {
            (0..first.len().max(this.len())).find_map(|index| {
                differs(format!("{path}[{index}]"), first.get(index), this.get(index))
            })
        }
        (first, this) if first == this => None,
        (first, this) => Some(Difference {
            path: path.to_owned(),
            first: Some(first.clone()),
            this: Some(this.clone()),
        }),
    }
}
