//! The record of one run: what the server did, what each client was shown, what the code under test did.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Change, Chosen, Event, Identity, LabelSelector, ObjectKey, PointId, Request};

/// Everything that happened in one run, in an order that explains it.
///
/// It is plain data: a report draws from it, [`check`](super::check) judges it, and it can be kept
/// as JSON.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Run {
    /// What was run, such as the name of the test.
    pub name: String,
    /// What the server committed, in its order; the set-up too.
    pub history: Vec<Commit>,
    /// The watches of all clients under test; steps name them by their index.
    pub streams: Vec<StreamRecord>,
    /// What happened, in order.
    pub steps: Vec<Step>,
    /// The points that were met, in order, and what was taken there.
    pub choices: Vec<Chosen>,
}

impl Run {
    /// An empty record.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// The violations of oracles, with the index of their step.
    pub fn violations(&self) -> impl Iterator<Item = (usize, &Violation)> {
        self.steps.iter().enumerate().filter_map(|(index, step)| match &step.action {
            Action::Violation(violation) => Some((index, violation)),
            _ => None,
        })
    }

    /// The cached reads, with the index of their step.
    pub fn reads(&self) -> impl Iterator<Item = (usize, &CachedRead)> {
        self.steps.iter().enumerate().filter_map(|(index, step)| match &step.action {
            Action::Read(read) => Some((index, read)),
            _ => None,
        })
    }

    /// The requests, with the index of their step.
    pub fn requests(&self) -> impl Iterator<Item = (usize, &RequestStep)> {
        self.steps.iter().enumerate().filter_map(|(index, step)| match &step.action {
            Action::Request(request) => Some((index, &**request)),
            _ => None,
        })
    }

    /// Whether a step is a read that was answered with something else than what the server had then: a stale read of a
    /// wrapped cache, or a flipped read whose answer is old.
    #[must_use]
    pub fn is_stale_read(&self, step: usize) -> bool {
        match self.steps.get(step).map(|step| &step.action) {
            Some(Action::Read(read)) => read.stale,
            Some(Action::Request(request)) => {
                matches!(request.source, Source::View { .. })
                    && self.answer_now(step, &request.request) != versions(&request.reply)
            }
            _ => false,
        }
    }

    /// What the server would have answered to a GET or LIST: the versions of the objects.
    fn answer_now(&self, step: usize, request: &Request) -> BTreeMap<ObjectKey, String> {
        let resource = match request.group.as_str() {
            "" => request.resource.clone(),
            group => format!("{}.{group}", request.resource),
        };
        let labels: Option<LabelSelector> =
            request.labels.as_deref().and_then(|labels| labels.parse().ok());
        let asked_for = |commit: &Commit| {
            let named = request.name.as_ref().is_none_or(|name| *name == commit.key.name);
            let labelled = labels.as_ref().is_none_or(|labels| {
                commit.object.as_ref().is_none_or(|object| labels.matches(object))
            });
            let within = request.namespace.is_none() || request.namespace == commit.key.namespace;
            commit.change != Change::Deleted && named && labelled && within
        };
        let mut state = BTreeMap::new();
        let committed = self.history.iter().filter(|commit| commit.is_committed_at(step));
        for commit in committed.filter(|commit| commit.resource == resource) {
            state.remove(&commit.key);
            if asked_for(commit) {
                state.insert(commit.key.clone(), commit.resource_version.clone());
            }
        }
        state
    }

    /// The change that made this version of an object, if it is in the history.
    pub(crate) fn change_to(
        &self,
        resource: &str,
        key: &ObjectKey,
        resource_version: &str,
    ) -> Option<&Commit> {
        self.history.iter().find(|commit| {
            commit.resource == resource
                && commit.key == *key
                && commit.resource_version == resource_version
        })
    }

    /// The choices that were not the freshest: what makes this run differ from the baseline.
    pub fn deviations(&self) -> impl Iterator<Item = &Chosen> {
        self.choices.iter().filter(|chosen| chosen.is_deviation())
    }
}

fn versions(seen: &[Seen]) -> BTreeMap<ObjectKey, String> {
    seen.iter().map(|seen| (seen.key.clone(), seen.resource_version.clone())).collect()
}

/// One change that the server made: an event of the history.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Commit {
    /// Its revision.
    pub resource_version: String,
    /// `statefulsets.apps`, or `pods` in the core group.
    pub resource: String,
    /// Which object.
    pub key: ObjectKey,
    /// `metadata.uid`, where known.
    pub uid: Option<String>,
    /// What happened to the object, seen without selectors.
    pub change: Change,
    /// Who did it.
    pub by: Author,
    /// The index of the step from which on it is in the server's state; `None` if it was there before the
    /// first step.
    pub step: Option<usize>,
    /// The object as stored; of a deletion, its last state. `None` where it was not kept: then no stream
    /// with a selector can be judged over it.
    pub object: Option<Value>,
}

impl Commit {
    /// Whether the server's state had it when the step with this index was recorded.
    #[must_use]
    pub fn is_committed_at(&self, step: usize) -> bool {
        self.step.is_none_or(|committed| committed <= step)
    }
}

/// Who made a change.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Author {
    /// The set-up, before the code under test ran.
    SetUp,
    /// The code under test, by the request with this number.
    Request(u64),
    /// An actor of the test, by name.
    Actor(String),
    /// The server or a controller that runs beside, such as the garbage collector.
    Server,
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetUp => f.write_str("the set-up"),
            Self::Request(number) => write!(f, "#{number}"),
            Self::Actor(name) => f.write_str(name),
            Self::Server => f.write_str("the server"),
        }
    }
}

/// One watch, as one client opened it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StreamRecord {
    /// What it watches.
    pub identity: Identity,
    /// Counts the watches of this identity, from 1.
    pub instance: usize,
    /// What its client does with it.
    pub role: Role,
}

impl fmt::Display for StreamRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.identity.qualified_resource())?;
        if self.instance > 1 {
            write!(f, "#{}", self.instance)?;
        }
        Ok(())
    }
}

/// What a client does with a stream.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// Store and triggers of a `Controller`, both from this one stream: a trigger follows its store.
    Main,
    /// Triggers alone (`owns`, `watches`): not ordered with any store.
    Triggers,
    /// A store alone: a reflector of the application, or a stream read through the wrapper.
    Store,
    /// Private to the harness: from it a flipped read, or a GET or LIST at any version, is answered.
    Replica,
}

/// One thing that happened.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Step {
    /// When, by the wall clock, counted from the start of the run.
    pub at: Duration,
    /// The number of the pass it belongs to; `None` outside passes.
    pub pass: Option<u32>,
    /// What.
    pub action: Action,
}

impl Step {
    /// A step outside any pass.
    #[must_use]
    pub fn new(at: Duration, action: Action) -> Self {
        Self { at, pass: None, action }
    }

    /// A step of the pass with this number.
    #[must_use]
    pub fn in_pass(at: Duration, pass: u32, action: Action) -> Self {
        Self { at, pass: Some(pass), action }
    }
}

/// What can happen in a run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// A request took effect at the server, or failed. Its reply is handed back after the releases that
    /// follow it.
    Request(Box<RequestStep>),
    /// A read was answered from a view.
    Read(CachedRead),
    /// Events were given to the client of a stream, and it has taken them in.
    Release(Release),
    /// From here on a stream is held back. Nothing is shown by it, so nothing is judged.
    Hold(Hold),
    /// A bookmark was given to the client of a stream.
    Bookmark {
        /// The index of the stream.
        stream: usize,
        /// The resource version that it says is known.
        resource_version: String,
    },
    /// A client came back to a watch with the resource version it knows: the same incarnation goes on.
    Resume {
        /// The index of the stream.
        stream: usize,
        /// The resource version it asked from.
        resource_version: String,
    },
    /// An initial list was asked for; it is not complete yet.
    ListStart(ListStart),
    /// An initial list is complete: the store has swapped to it.
    ListEnd(ListEnd),
    /// A stream caused a pass to be queued.
    Trigger(Trigger),
    /// A pass began.
    PassStart(PassStart),
    /// A pass returned.
    PassEnd {
        /// Its number.
        pass: u32,
        /// What it returned, in words.
        outcome: String,
    },
    /// Another actor did something.
    Environment(EnvironmentStep),
    /// Something was made to fail.
    Fault(Fault),
    /// An oracle was violated.
    Violation(Violation),
}

/// A request, and what its reply showed.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RequestStep {
    /// The request itself: verb, target, status, span, times.
    pub request: Request,
    /// How many steps had been recorded when it was sent: it can have taken effect at any moment from then on.
    pub sent: usize,
    /// What a read was answered from.
    pub source: Source,
    /// The object of the reply, or the items of a list; empty for a 404 and other errors.
    pub reply: Vec<Seen>,
}

/// Where the reply to a GET or LIST came from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Source {
    /// From the server's state: linearizable. Writes have it too.
    Live,
    /// From the server's watch cache at a state of its choosing (`resourceVersion=0`).
    AnyVersion,
    /// From a view: a flipped read.
    View {
        /// The index of the stream.
        stream: usize,
        /// Its incarnation.
        incarnation: u32,
        /// The position in that incarnation.
        position: usize,
    },
    /// From the test: an answer that no server gave. It is not judged.
    Test,
    /// From the server, about a resource whose history was not kept. It is not judged.
    Unobserved,
}

/// A read that was answered from the view of a stream.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CachedRead {
    /// The index of the stream.
    pub stream: usize,
    /// The incarnation of the stream, from 1; 0 before the first initial list was complete.
    pub incarnation: u32,
    /// How many events of that incarnation the view shows.
    pub position: usize,
    /// What was asked.
    pub query: Query,
    /// What was answered.
    pub answer: Vec<Seen>,
    /// Where in the code under test.
    pub site: Option<Site>,
    /// How many events the view was behind what had been received of the stream.
    pub behind: usize,
    /// Whether the newest position would have given another answer.
    pub stale: bool,
    /// The point at which the position was chosen, if it was.
    pub point: Option<PointId>,
}

/// What a cached read asked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Query {
    /// One object.
    Get(ObjectKey),
    /// All objects of the store.
    All,
    /// Those that match a label selector.
    Labels(String),
    /// Those that a closure accepted: which ones, only the answer says.
    Filtered,
    /// How many there are; the answer lists them.
    Count,
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get(key) => write!(f, "get {key}"),
            Self::All => f.write_str("state"),
            Self::Labels(selector) => write!(f, "state selected by {selector:?}"),
            Self::Filtered => f.write_str("state filtered"),
            Self::Count => f.write_str("len"),
        }
    }
}

/// An object as it was seen.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Seen {
    /// Which object.
    pub key: ObjectKey,
    /// Its resource version.
    pub resource_version: String,
    /// Its UID, where known.
    pub uid: Option<String>,
    /// Its `metadata.generation`, where it has one.
    pub generation: Option<i64>,
}

impl Seen {
    /// Reads them from `object`. `None` if it has no name or no resource version.
    #[must_use]
    pub fn of(object: &Value) -> Option<Self> {
        let metadata = object.get("metadata")?;
        Some(Self {
            key: ObjectKey::of(object)?,
            resource_version: metadata.get("resourceVersion")?.as_str()?.to_owned(),
            uid: metadata.get("uid").and_then(Value::as_str).map(str::to_owned),
            generation: metadata.get("generation").and_then(Value::as_i64),
        })
    }
}

/// A place in the code under test.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Site {
    /// The file, as the compiler names it.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The name of the tracing span that it was read in, as of a request; `None` where no subscriber enables one.
    #[serde(default)]
    pub span: Option<String>,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)?;
        match &self.span {
            Some(span) => write!(f, " [{span}]"),
            None => Ok(()),
        }
    }
}

/// Events that were given to a client.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Release {
    /// The index of the stream.
    pub stream: usize,
    /// The incarnation of the stream, from 1.
    pub incarnation: u32,
    /// The events, in order.
    pub events: Vec<ShownEvent>,
    /// The point at which their number was chosen, if it was.
    pub point: Option<PointId>,
}

/// A stream that was held back from here on, by choice.
///
/// It lasts until its events are released; a run may end before.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hold {
    /// The index of the stream.
    pub stream: usize,
    /// How many events it had received and not shown when it opened.
    pub behind: usize,
    /// The point at which it was chosen, if it was.
    pub point: Option<PointId>,
    /// The first of those events; `None` if there was none yet.
    pub first: Option<ShownEvent>,
}

/// An event as it was sent to a client.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ShownEvent {
    /// What happened to the object, seen through the selectors of the stream.
    pub change: Change,
    /// Which object.
    pub key: ObjectKey,
    /// The revision of the change.
    pub resource_version: String,
}

impl From<&Event> for ShownEvent {
    fn from(event: &Event) -> Self {
        Self {
            change: event.change,
            key: event.key.clone(),
            resource_version: event.resource_version.clone(),
        }
    }
}

/// The beginning of an initial list.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ListStart {
    /// The index of the stream.
    pub stream: usize,
    /// The incarnation that it begins, from 1.
    pub incarnation: u32,
    /// Which version was asked for.
    pub asked: ListVersion,
}

/// Which state an initial list may show.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ListVersion {
    /// None given: at least the state when it was asked for.
    Consistent,
    /// `0`: any state that the server still has.
    Any,
    /// At least this one.
    NotOlderThan(String),
    /// This one.
    Exact(String),
}

/// The end of an initial list.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ListEnd {
    /// The index of the stream.
    pub stream: usize,
    /// The incarnation that begins with it.
    pub incarnation: u32,
    /// The resource version of the list.
    pub resource_version: String,
    /// What it held.
    pub objects: Vec<Seen>,
    /// The point at which its state was chosen, if it was.
    pub point: Option<PointId>,
}

/// A stream made a pass be queued.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Trigger {
    /// The index of the stream.
    pub stream: usize,
    /// The object that the stream showed.
    pub object: ObjectKey,
    /// The resource version at which it showed it.
    pub resource_version: String,
    /// Whether it came from an initial list that was not complete yet, rather than from an event.
    pub from_list: bool,
    /// The key that was queued.
    pub key: String,
}

/// The beginning of a pass.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PassStart {
    /// Counts the passes of the run, from 1.
    pub pass: u32,
    /// Which controller.
    pub controller: String,
    /// For which key.
    pub key: String,
}

/// What another actor did.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EnvironmentStep {
    /// Its name.
    pub actor: String,
    /// What it did, in words.
    pub text: String,
    /// The changes that it made. May be empty: it looked, and had nothing to do.
    pub commits: Vec<Reference>,
}

/// Names a change of the history.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Reference {
    /// `statefulsets.apps`, or `pods` in the core group.
    pub resource: String,
    /// Its revision.
    pub resource_version: String,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rv {}", self.resource, self.resource_version)
    }
}

/// What was made to fail.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fault {
    /// The process under test ended and began anew: all its passes are gone, its streams are new.
    Restart,
    /// The request with this number never reached the server.
    RequestLost(u64),
    /// The request with this number took effect and its reply was lost.
    ReplyLost(u64),
    /// The watch of the stream with this index ended with a 410, whatever had not been handed on: its client lists anew.
    Expired(usize),
}

/// An oracle that was violated.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Violation {
    /// Its name: two runs that violate one oracle failed in one way.
    pub oracle: String,
    /// What was seen.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::lag::model::{Alt, Kind, Point};

    #[test]
    fn a_run_survives_the_way_through_json() {
        let mut run = Run::new("a test");
        run.history.push(Commit {
            resource_version: "7".to_owned(),
            resource: "pods".to_owned(),
            key: ObjectKey::namespaced("a", "p"),
            uid: None,
            change: Change::Added,
            by: Author::Actor("kubelet".to_owned()),
            step: Some(0),
            object: Some(json!({"metadata": {"name": "p"}})),
        });
        let point = Point::new(
            PointId::new("pods/p", Kind::Read, 1),
            vec![Alt::freshest(), Alt::behind(1)],
        );
        run.choices.push(Chosen { point: point.unwrap(), taken: 1 });
        let violation = Violation { oracle: "never".to_owned(), text: "it was".to_owned() };
        run.steps.push(Step::in_pass(Duration::from_micros(1500), 1, Action::Violation(violation)));
        let text = serde_json::to_string(&run).unwrap();
        assert_eq!(serde_json::from_str::<Run>(&text).unwrap(), run);
        assert_eq!(run.violations().count(), 1);
        assert_eq!(run.deviations().map(ToString::to_string).collect::<Vec<_>>(), ["pods/p@r1:-1"]);
    }

    #[test]
    fn what_was_seen_of_an_object_is_read_from_its_metadata() {
        let object = json!({"metadata": {
            "namespace": "a", "name": "p", "uid": "u", "resourceVersion": "9", "generation": 2,
        }});
        let seen = Seen::of(&object).unwrap();
        assert_eq!((seen.resource_version.as_str(), seen.generation), ("9", Some(2)));
        assert_eq!(Seen::of(&json!({"metadata": {"name": "p"}})), None);
    }
}
