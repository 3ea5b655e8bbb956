//! What one tap has shown: by namespace the objects at its start and the events since, and who follows them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Keep;
use crate::lag::wire;

/// The state of one tap.
#[derive(Debug, Default)]
pub(super) struct State {
    /// From this revision on, all events are known; `None` while the tap begins anew.
    begins: Option<i64>,
    /// It began with a watch, so the objects at that revision are not known.
    blind: bool,
    /// The newest revision that an event, a bookmark or a list has told.
    newest: i64,
    /// There is no event up to this revision that has not been seen.
    whole_to: i64,
    namespaces: HashMap<String, Log>,
    watchers: HashMap<String, Vec<Watcher>>,
    form: Option<Form>,
    /// Why the connection is being made anew, if it is.
    pub(super) trouble: Option<String>,
}

/// What is kept of one namespace.
#[derive(Debug, Default)]
struct Log {
    /// The objects at the start of the tap, by name.
    start: BTreeMap<String, Value>,
    events: Vec<Record>,
}

#[derive(Debug)]
struct Record {
    revision: i64,
    name: String,
    gone: bool,
    line: Bytes,
}

/// An open watch of one namespace.
#[derive(Debug)]
struct Watcher {
    /// Its client knows what happened up to this revision.
    after: i64,
    bookmarks: bool,
    to: mpsc::UnboundedSender<Bytes>,
}

/// How the server writes lists of this resource.
#[derive(Clone, Debug)]
pub(super) struct Form {
    api_version: String,
    kind: String,
    /// But for the resource version. Lists of custom resources have an empty `continue` where others have none.
    metadata: Value,
    /// Whether the items say their kind, as custom resources do; `None` until one has been seen.
    typed_items: Option<bool>,
}

/// Whether the tap has a revision of a namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reach {
    Reached,
    NotYet,
    /// It never will: it began after this revision, without the objects before it.
    Before(i64),
}

/// What a list of a namespace comes to.
#[derive(Debug)]
pub(super) enum Listing {
    /// The reply.
    Known(Value),
    /// How the server would write it is not known yet.
    FormUnknown,
    /// Only the server can tell.
    NotOurs,
}

/// What a line of the watch was.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Taken {
    InOrder,
    /// The server no longer knows the past of this watch.
    Expired,
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: Head<'a>,
}

/// What must be read of an object; the rest is only walked over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    #[serde(borrow, default)]
    metadata: HeadMetadata<'a>,
    /// Of the `Status` in an ERROR frame.
    code: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMetadata<'a> {
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    resource_version: Cow<'a, str>,
}

/// What comes from the server.
impl State {
    /// Begins from a list of all namespaces.
    pub(super) fn begin_with(&mut self, list: Value, keep: &Keep) -> Result<(), &'static str> {
        let revision = version(&list).ok_or("it has no numeric resource version")?;
        let form = Form::of(&list).ok_or("it says no kind")?;
        let Value::Array(items) = take(list, "items") else { return Err("it has no items") };
        let mut namespaces: HashMap<String, Log> = HashMap::new();
        for object in items {
            let namespace = wire::text(&object, "/metadata/namespace")
                .ok_or("an object is in no namespace; is the resource namespaced?")?;
            let name = wire::text(&object, "/metadata/name").ok_or("an object has no name")?;
            if keep.keeps(&namespace) {
                namespaces.entry(namespace).or_default().start.insert(name, object);
            }
        }
        self.learn(form);
        self.begin(revision, false, namespaces);
        self.whole_to = revision;
        Ok(())
    }

    /// Begins with what comes after a revision.
    pub(super) fn begin_after(&mut self, revision: i64) {
        self.begin(revision, true, HashMap::new());
    }

    fn begin(&mut self, revision: i64, blind: bool, namespaces: HashMap<String, Log>) {
        self.begins = Some(revision);
        self.blind = blind;
        self.newest = revision;
        self.whole_to = 0;
        self.namespaces = namespaces;
        self.trouble = None;
    }

    /// Takes in one line of the watch and hands it to those who follow.
    pub(super) fn take_in(&mut self, line: Bytes, keep: &Keep) -> Result<Taken, String> {
        let Ok(frame) = serde_json::from_slice::<Frame<'_>>(&line) else {
            return Err(format!("a line that is no event: {}", excerpt(&line)));
        };
        let metadata = &frame.object.metadata;
        if frame.kind == "ERROR" {
            if frame.object.code != Some(410) {
                return Err(format!("the server ends it: {}", excerpt(&line)));
            }
            self.expire(line);
            return Ok(Taken::Expired);
        }
        let Ok(revision) = metadata.resource_version.parse::<i64>() else {
            return Err(format!("an event without a numeric resource version: {}", excerpt(&line)));
        };
        match &*frame.kind {
            "BOOKMARK" => {
                self.seen(revision, revision);
                for watchers in self.watchers.values_mut() {
                    tell(watchers, revision, &line, |watcher| watcher.bookmarks);
                }
                self.watchers.retain(|_, watchers| !watchers.is_empty());
            }
            "ADDED" | "MODIFIED" | "DELETED" => {
                if metadata.namespace.is_empty() {
                    let problem = "an event of no namespace; is the resource namespaced?";
                    return Err(format!("{problem} {}", excerpt(&line)));
                }
                // Another event may have the same revision.
                self.seen(revision, revision - 1);
                let gone = frame.kind == "DELETED";
                self.record(&metadata.namespace, &metadata.name, revision, gone, &line, keep);
            }
            _ => return Err(format!("a line of no known type: {}", excerpt(&line))),
        }
        Ok(Taken::InOrder)
    }

    fn seen(&mut self, newest: i64, whole_to: i64) {
        self.newest = self.newest.max(newest);
        self.whole_to = self.whole_to.max(whole_to);
    }

    fn record(
        &mut self,
        namespace: &str,
        name: &str,
        revision: i64,
        gone: bool,
        line: &Bytes,
        keep: &Keep,
    ) {
        let keeps = keep.keeps(namespace);
        let watchers = self.watchers.get_mut(namespace);
        if !keeps && watchers.is_none() {
            return;
        }
        // A copy, since the line is a piece of a buffer that would be kept as a whole.
        let line = Bytes::copy_from_slice(line);
        if let Some(watchers) = watchers {
            tell(watchers, revision, &line, |_| true);
            if watchers.is_empty() {
                self.watchers.remove(namespace);
            }
        }
        if keeps {
            let record = Record { revision, name: name.to_owned(), gone, line };
            self.namespaces.entry(namespace.to_owned()).or_default().events.push(record);
        }
    }

    /// Ends all watches with the frame that says that their past is gone; until the tap has begun anew,
    /// the server is asked.
    pub(super) fn expire(&mut self, frame: Bytes) {
        self.begins = None;
        self.namespaces.clear();
        for watcher in self.watchers.drain().flat_map(|(_, watchers)| watchers) {
            // Whoever does not listen any more need not know.
            let _ = watcher.to.send(frame.clone());
        }
    }

    /// Where a new connection takes up the watch; `None` if that cannot be.
    pub(super) fn resumes_at(&self) -> Option<i64> {
        self.begins.map(|_| self.newest)
    }

    pub(super) fn drop_unkept(&mut self, keep: &Keep) {
        self.namespaces.retain(|namespace, _| keep.keeps(namespace));
    }

    /// Notes what a list of the server shows of its form.
    pub(super) fn learn(&mut self, form: Form) {
        let known = self.form.as_ref().and_then(|form| form.typed_items);
        let typed_items = form.typed_items.or(known);
        self.form = Some(Form { typed_items, ..form });
    }
}

/// What the clients get.
impl State {
    /// The events of a namespace after a revision, then those to come; `None` if not all of them are known.
    pub(super) fn watch(
        &mut self,
        namespace: &str,
        after: i64,
        bookmarks: bool,
        keep: &Keep,
    ) -> Option<mpsc::UnboundedReceiver<Bytes>> {
        if self.begins.is_none_or(|begins| after < begins) || !keep.keeps(namespace) {
            return None;
        }
        let (to, from) = mpsc::unbounded_channel();
        let known = self.namespaces.get(namespace).map(|log| &log.events[..]).unwrap_or_default();
        for record in known.iter().filter(|record| record.revision > after) {
            // The other end is in our hands.
            let _ = to.send(record.line.clone());
        }
        let watchers = self.watchers.entry(namespace.to_owned()).or_default();
        watchers.retain(|watcher| !watcher.to.is_closed());
        watchers.push(Watcher { after, bookmarks, to });
        Some(from)
    }

    /// The list of a namespace, unless it has more objects than the `limit`.
    pub(super) fn list(&self, namespace: &str, limit: usize, keep: &Keep) -> Listing {
        if self.begins.is_none() || !keep.keeps(namespace) {
            return Listing::NotOurs;
        }
        let objects = match self.namespaces.get(namespace).map(Log::fold).transpose() {
            Ok(objects) => objects.unwrap_or_default(),
            // It was read once, so it is JSON.
            Err(error) => {
                tracing::warn!(%error, namespace, "an event of a tap cannot be read");
                return Listing::NotOurs;
            }
        };
        if objects.len() > limit {
            return Listing::NotOurs;
        }
        match &self.form {
            Some(form) if form.typed_items.is_some() || objects.is_empty() => {
                Listing::Known(form.list(objects, self.newest))
            }
            _ => Listing::FormUnknown,
        }
    }

    pub(super) fn reach(&self, namespace: &str, revision: i64) -> Reach {
        match self.begins {
            None => Reach::NotYet,
            Some(since) if self.blind && revision <= since => Reach::Before(since),
            Some(_) => {
                let last = self.last_event(namespace).is_some_and(|last| last >= revision);
                if last || self.whole_to >= revision { Reach::Reached } else { Reach::NotYet }
            }
        }
    }

    fn last_event(&self, namespace: &str) -> Option<i64> {
        Some(self.namespaces.get(namespace)?.events.last()?.revision)
    }

    /// How far it is, for errors.
    pub(super) fn describe(&self, namespace: &str) -> String {
        let mut text = match self.last_event(namespace) {
            Some(revision) => format!("an event at revision {revision} there"),
            None => "no event there".to_owned(),
        };
        let _ = match self.begins {
            Some(since) => write!(text, ", revision {} elsewhere, since {since}", self.newest),
            None => write!(text, "; it begins anew after revision {}", self.newest),
        };
        if let Some(trouble) = &self.trouble {
            let _ = write!(text, "; reconnecting ({trouble})");
        }
        text
    }
}

impl Log {
    fn fold(&self) -> Result<BTreeMap<&str, Value>, serde_json::Error> {
        let mut newest: BTreeMap<&str, &Record> = BTreeMap::new();
        for record in &self.events {
            newest.insert(&record.name, record);
        }
        let mut objects: BTreeMap<&str, Value> = self
            .start
            .iter()
            .filter(|(name, _)| !newest.contains_key(name.as_str()))
            .map(|(name, object)| (name.as_str(), object.clone()))
            .collect();
        for (name, record) in newest.into_iter().filter(|(_, record)| !record.gone) {
            objects.insert(name, take(serde_json::from_slice(&record.line)?, "object"));
        }
        Ok(objects)
    }
}

impl Form {
    /// What a complete list shows of it.
    pub(super) fn of(list: &Value) -> Option<Self> {
        let first = list.pointer("/items/0");
        Some(Self {
            api_version: wire::text(list, "/apiVersion")?,
            kind: wire::text(list, "/kind")?,
            metadata: list.get("metadata")?.clone(),
            typed_items: first.map(|item| item.get("kind").is_some()),
        })
    }

    fn list(&self, objects: BTreeMap<&str, Value>, revision: i64) -> Value {
        let typed = self.typed_items.unwrap_or_default();
        let kind_of_items = self.kind.strip_suffix("List").unwrap_or(&self.kind);
        let items: Vec<Value> = objects
            .into_values()
            .map(|object| shaped(object, typed.then_some((&self.api_version, kind_of_items))))
            .collect();
        let mut metadata = self.metadata.clone();
        metadata["resourceVersion"] = json!(revision.to_string());
        json!({
            "kind": self.kind, "apiVersion": self.api_version, "metadata": metadata, "items": items,
        })
    }
}

/// Hands a line to those who want it and do not know it yet, and drops those who have gone.
fn tell(
    watchers: &mut Vec<Watcher>,
    revision: i64,
    line: &Bytes,
    wants: impl Fn(&Watcher) -> bool,
) {
    watchers.retain(|watcher| {
        if revision > watcher.after && wants(watcher) {
            watcher.to.send(line.clone()).is_ok()
        } else {
            !watcher.to.is_closed()
        }
    });
}

/// An object as an item of a list: with the type that is given, or none.
fn shaped(mut object: Value, typed: Option<(&String, &str)>) -> Value {
    if let Some(fields) = object.as_object_mut() {
        match typed {
            Some((api_version, kind)) => {
                fields.entry("apiVersion").or_insert_with(|| json!(api_version));
                fields.entry("kind").or_insert_with(|| json!(kind));
            }
            None => {
                fields.remove("apiVersion");
                fields.remove("kind");
            }
        }
    }
    object
}

fn take(mut value: Value, field: &str) -> Value {
    value.get_mut(field).map(Value::take).unwrap_or_default()
}

fn version(object: &Value) -> Option<i64> {
    wire::text(object, "/metadata/resourceVersion")?.parse().ok()
}

/// The beginning of what came, for errors.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 300;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(namespace: &str, revision: i64) -> Bytes {
        let metadata = json!({
            "namespace": namespace, "name": "n", "resourceVersion": revision.to_string(),
        });
        Bytes::from(format!("{}\n", json!({"type": "ADDED", "object": {"metadata": metadata}})))
    }

    #[test]
    fn nothing_is_held_of_namespaces_that_are_not_kept() {
        let (keep, mut state) = (Keep::default(), State::default());
        state.begin_after(1);
        for namespace in ["lw-a", "lw-b", "default"] {
            state.take_in(line(namespace, 2), &keep).unwrap();
        }
        keep.lock().forgotten.insert("lw-a");
        keep.lock().prefixes.push("lw-".to_owned());
        state.drop_unkept(&keep);
        for namespace in ["lw-a", "lw-b", "default"] {
            state.take_in(line(namespace, 3), &keep).unwrap();
        }
        let held: Vec<_> = state.namespaces.keys().collect();
        assert_eq!(held, ["lw-b"]);
    }

    #[test]
    fn watches_whose_clients_have_gone_are_dropped_at_the_next_line() {
        let (keep, mut state) = (Keep::default(), State::default());
        state.begin_after(1);
        drop(state.watch("lw-a", 1, true, &keep));
        drop(state.watch("lw-b", 1, false, &keep));
        let open = state.watch("lw-b", 1, false, &keep).unwrap();
        state.take_in(line("lw-a", 2), &keep).unwrap();
        assert_eq!(state.watchers.keys().collect::<Vec<_>>(), ["lw-b"]);
        assert_eq!(state.watchers["lw-b"].len(), 1, "at the next watch already");
        drop(open);
        let bookmark =
            json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "3"}}});
        state.take_in(Bytes::from(bookmark.to_string()), &keep).unwrap();
        assert!(state.watchers.is_empty());
    }
}
