//! What decides how a run goes on: the true objects, the views, and what the pass under way has been told.
//!
//! Two states are one if they differ only in names that somebody makes up: UIDs, resource versions, the
//! namespace, names of `generateName`, and moments. So each of them is replaced by its place: resource versions by
//! their order within a resource, the others by where they come up first.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, OnceLock},
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    Lag,
    engine::Registry,
    model::{
        Connection, ObjectKey, Objects, compare_resource_versions, is_for_people, is_moment,
        replace_uuids, replace_word,
    },
    streams::Stream,
};

/// Stands around what is made up while a text is looked through; no text of an object has it.
const GAP: char = '\u{1}';

/// What a pass has been told by a reply or a read.
#[derive(Debug)]
pub(super) struct Told {
    what: String,
    resource: String,
    value: Option<Value>,
    /// Both, when they have been looked at once.
    shapes: OnceLock<(Arc<Shape>, Option<Arc<Shape>>)>,
}

impl Told {
    pub(super) fn new(what: String, resource: String, value: Option<Value>) -> Self {
        Self { what, resource, value, shapes: OnceLock::new() }
    }

    /// `resource` is such as `events.events.k8s.io`.
    pub(super) fn is_for_people(resource: &str) -> bool {
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        is_for_people(group, plural)
    }
}

/// The objects that one run has had, without what is made up.
#[derive(Debug)]
pub(crate) struct Shapes {
    namespace: String,
    /// Names that the server made up.
    made: BTreeSet<String>,
    known: HashMap<Version, Arc<Shape>>,
}

/// Which state of which object; the last is whether the whole object is meant.
type Version = (String, ObjectKey, String, bool);

/// A value without what is made up.
#[derive(Debug)]
struct Shape {
    digest: [u8; 32],
    /// What stands in its gaps, in order.
    tokens: Vec<String>,
    versions: Vec<String>,
}

impl Lag {
    /// From now on what passes are told is kept until they end.
    pub(crate) fn keep_what_is_told(&self) {
        self.engine.change(|registry| {
            if let Some(chronicle) = &mut registry.chronicle {
                chronicle.told.get_or_insert_default();
            }
        });
    }

    /// A digest of the state of the run, `place` included: that is whatever else decides how it goes on.
    ///
    /// `flipping`: reads may be answered from views of our own. `None` while the client of a stream has no view.
    pub(crate) fn state(
        &self,
        shapes: &mut Shapes,
        place: &str,
        flipping: bool,
    ) -> Option<[u8; 16]> {
        self.engine.look(|registry| {
            let mut state = State::new(shapes);
            state.text(place);
            state.truth(registry);
            for stream in &registry.streams {
                if stream.connection() != Connection::Open {
                    continue;
                }
                if !stream.view().ready {
                    return None;
                }
                state.view(stream, "stream");
            }
            if flipping {
                registry.replicas.iter().for_each(|replica| state.view(replica, "replica"));
            }
            for told in registry.chronicle.iter().flat_map(|it| it.told.iter().flatten()) {
                state.told(told);
            }
            Some(state.digest())
        })
    }
}

impl Shapes {
    pub(crate) fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), made: BTreeSet::new(), known: HashMap::new() }
    }

    fn of(&mut self, resource: &str, key: &ObjectKey, object: &Value, whole: bool) -> Arc<Shape> {
        let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let version = version.unwrap_or_default().to_owned();
        let version = (resource.to_owned(), key.clone(), version, whole);
        if let Some(shape) = self.known.get(&version) {
            return Arc::clone(shape);
        }
        let prefix = object.pointer("/metadata/generateName").and_then(Value::as_str);
        if prefix.is_some_and(|prefix| key.name.starts_with(prefix)) {
            self.made.insert(key.name.clone());
        }
        let shape = Arc::new(self.shape(object));
        self.known.insert(version, Arc::clone(&shape));
        shape
    }

    fn shape(&self, value: &Value) -> Shape {
        let mut maker =
            Maker { shapes: self, text: String::new(), tokens: Vec::new(), versions: Vec::new() };
        maker.walk(value, "");
        let Maker { text, tokens, versions, .. } = maker;
        Shape { digest: Sha256::digest(text).into(), tokens, versions }
    }
}

/// Writes a value down with gaps.
struct Maker<'a> {
    shapes: &'a Shapes,
    text: String,
    tokens: Vec<String>,
    versions: Vec<String>,
}

impl Maker<'_> {
    fn walk(&mut self, value: &Value, field: &str) {
        match value {
            Value::Object(fields) => {
                self.text.push('{');
                // A list has the version of its moment, which is one of the whole server.
                let is_list = fields.get("items").is_some_and(Value::is_array);
                for (name, value) in fields {
                    if is_list && name == "metadata" {
                        continue;
                    }
                    self.words(name);
                    self.text.push(':');
                    self.walk(value, name);
                    self.text.push(',');
                }
                self.text.push('}');
            }
            Value::Array(items) => {
                self.text.push('[');
                for item in items {
                    self.walk(item, "");
                    self.text.push(',');
                }
                self.text.push(']');
            }
            Value::String(text) if field == "resourceVersion" => {
                self.text.push_str("<version>");
                self.versions.push(text.clone());
            }
            Value::String(text) if field == "uid" => {
                self.text.push_str("<made>");
                self.tokens.push(text.clone());
            }
            Value::String(text) if is_moment(text) => self.text.push_str("<moment>"),
            Value::String(text) => {
                self.text.push('"');
                self.words(text);
                self.text.push('"');
            }
            other => self.text.push_str(&other.to_string()),
        }
    }

    /// Leaves a gap for each word that is made up, in their order.
    fn words(&mut self, text: &str) {
        let mut found: Vec<&str> = Vec::new();
        let mut text = replace_word(text, &self.shapes.namespace, "<namespace>");
        for name in &self.shapes.made {
            let gap = format!("{GAP}{}{GAP}", found.len());
            let replaced = replace_word(&text, name, &gap);
            if replaced != text {
                found.push(name);
                text = replaced;
            }
        }
        let mut uuids = Vec::new();
        let text = replace_uuids(&text, |uuid| {
            uuids.push(uuid.to_owned());
            format!("{GAP}{}{GAP}", found.len() + uuids.len() - 1)
        });
        for (index, part) in text.split(GAP).enumerate() {
            let number = part.parse::<usize>().ok().filter(|_| index % 2 == 1);
            match number {
                None => self.text.push_str(part),
                Some(number) => {
                    self.text.push_str("<made>");
                    let name = found.get(number).map(|name| (*name).to_owned());
                    let uuid = || uuids.get(number.checked_sub(found.len())?).cloned();
                    self.tokens.extend(name.or_else(uuid));
                }
            }
        }
    }
}

/// The parts of a state in their order.
struct State<'a> {
    shapes: &'a mut Shapes,
    parts: Vec<Part>,
    versions: BTreeMap<String, Vec<String>>,
}

enum Part {
    Text(String),
    /// A value of a resource.
    Shape(String, Arc<Shape>),
}

impl<'a> State<'a> {
    fn new(shapes: &'a mut Shapes) -> Self {
        Self { shapes, parts: Vec::new(), versions: BTreeMap::new() }
    }

    fn text(&mut self, text: impl Into<String>) {
        self.parts.push(Part::Text(text.into()));
    }

    fn shape(&mut self, resource: &str, shape: Arc<Shape>) {
        let versions = self.versions.entry(resource.to_owned()).or_default();
        versions.extend(shape.versions.iter().cloned());
        self.parts.push(Part::Shape(resource.to_owned(), shape));
    }

    fn truth(&mut self, registry: &Registry) {
        let mut replicas: Vec<(String, &Stream)> = registry
            .replicas
            .iter()
            .map(|replica| (replica.identity.qualified_resource(), replica))
            .filter(|(resource, _)| !Told::is_for_people(resource))
            .collect();
        // Which was followed first is a matter of what was asked about first.
        replicas.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (resource, replica) in replicas {
            self.text(format!("truth {resource}"));
            self.objects(&resource, replica.newest(), true);
        }
    }

    fn view(&mut self, stream: &Stream, what: &str) {
        let resource = stream.identity.qualified_resource();
        let identity = &stream.identity;
        let whole = matches!(identity.representation, super::model::Representation::Full);
        let readable = stream.readable();
        self.text(format!(
            "{what} {resource} {:?} {:?} {} {} {}",
            identity.labels,
            identity.fields,
            stream.instance,
            stream.wrapped,
            stream.is_held(),
        ));
        self.objects(&resource, readable.first().clone(), whole);
        for event in readable.events() {
            self.text(format!("{}", event.change));
            let shape = self.shapes.of(&resource, &event.key, &event.object, whole);
            self.shape(&resource, shape);
        }
    }

    fn objects(&mut self, resource: &str, objects: Objects<'_>, whole: bool) {
        let mut shaped: Vec<(String, Arc<Shape>)> = objects
            .into_iter()
            .map(|(key, object)| {
                let shape = self.shapes.of(resource, key, object, whole);
                let made = self.shapes.made.contains(&key.name);
                (if made { String::new() } else { key.name.clone() }, shape)
            })
            .collect();
        // Names that are made up say nothing about the order.
        shaped.sort_by(|(one, first), (other, second)| {
            let by_version = || {
                let version = |shape: &Shape| shape.versions.first().cloned().unwrap_or_default();
                compare_resource_versions(&version(first), &version(second))
            };
            one.cmp(other).then_with(|| by_version().unwrap_or(std::cmp::Ordering::Equal))
        });
        for (_, shape) in shaped {
            self.shape(resource, shape);
        }
    }

    fn told(&mut self, told: &Told) {
        let (what, value) = told.shapes.get_or_init(|| {
            let shape = |value: &Value| Arc::new(self.shapes.shape(value));
            (shape(&Value::String(told.what.clone())), told.value.as_ref().map(shape))
        });
        self.shape(&told.resource, Arc::clone(what));
        if let Some(value) = value {
            self.shape(&told.resource, Arc::clone(value));
        }
    }

    fn digest(mut self) -> [u8; 16] {
        for versions in self.versions.values_mut() {
            versions.sort_by(|one, other| {
                compare_resource_versions(one, other).unwrap_or_else(|| one.cmp(other))
            });
            versions.dedup();
        }
        let mut hash = Sha256::new();
        let mut tokens: HashMap<&str, usize> = HashMap::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => {
                    hash.update([0]);
                    hash.update(text);
                }
                Part::Shape(resource, shape) => {
                    hash.update([1]);
                    hash.update(shape.digest);
                    for token in &shape.tokens {
                        let next = tokens.len();
                        hash.update(tokens.entry(token).or_insert(next).to_be_bytes());
                    }
                    let known = self.versions.get(resource).map_or(&[][..], Vec::as_slice);
                    for version in &shape.versions {
                        let place = known.iter().position(|it| it == version);
                        hash.update(place.unwrap_or(usize::MAX).to_be_bytes());
                    }
                }
            }
        }
        let digest: [u8; 32] = hash.finalize().into();
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        short
    }
}
