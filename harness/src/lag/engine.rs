//! All streams of one `Lag`, the rules that hold them, and the one way to wait for any of them to move.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

use crate::check::Truth;

use super::{
    answers::Rules,
    boundary::Schedule,
    cache::Reads,
    chronicle::{Chronicle, Entry},
    filter::Filter,
    model::{Identity, ListVersion, Representation, Request, Seen, StreamDescription, Verb},
    passes::Known,
    requests::Recorder,
    streams::{List, Replay, Start, Stream},
    wire,
};

/// How many lists of one identity are kept for a watch that may follow.
///
/// A reflector watches right after its list. The number only has to be larger than the lists that
/// other code sends of the very same collection in between.
const LISTS_KEPT: usize = 32;

/// What the layer and the verbs share.
#[derive(Debug)]
pub(super) struct Engine {
    registry: Mutex<Registry>,
    changes: watch::Sender<u64>,
    deadline: Mutex<Duration>,
    fences: AtomicBool,
    pub(super) recorder: Recorder,
    pub(super) rules: Arc<Rules>,
    pub(super) schedule: Schedule,
    pub(super) reads: Reads,
    /// Counts the restarts of the process under test that the scheduler has decided.
    pub(super) restarts: watch::Sender<u64>,
}

/// The streams and what decides about those to come.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) streams: Vec<Stream>,
    /// Streams of our own, which no client is shown: what the server has done, and views for reads of what no
    /// client watches.
    pub(super) replicas: Vec<Stream>,
    /// What happened, if somebody wants to know.
    pub(super) chronicle: Option<Chronicle>,
    /// Whether clients get no bookmarks, also while no scheduler is set. The server sends them by its clock and need not
    /// send any, and what is to happen again in the same way cannot hang on a clock.
    pub(super) without_bookmarks: bool,
    lists: Vec<KnownList>,
    holds: Vec<HoldRule>,
    /// Streams that are no store's, in addition to those of metadata.
    triggers: Vec<Filter>,
    /// The numbers of the requests whose replies have not been handed back.
    pub(super) in_flight: BTreeSet<u64>,
    /// Those of the watches that are not open yet.
    pub(super) opening: BTreeSet<u64>,
    pub(super) curtain: Curtain,
    pub(super) openings: Openings,
    pub(super) passes: Known,
    /// How often each read or write was made in the pass under way.
    made_in_pass: (u32, HashMap<Like, u32>),
    /// What the next initial lists are to show.
    pub(super) starts: Vec<(Filter, String)>,
    /// The true state when it was asked for last, and how many events each replica had then.
    pub(super) truth: Mutex<Option<(Vec<usize>, Truth)>>,
}

/// Who may have the reply to a list, or open a watch, while a controller begins.
#[derive(Debug, Default)]
pub(super) struct Openings {
    /// Whether these replies wait to be let go one by one.
    pub(super) ordered: bool,
    /// The requests whose replies are there and wait.
    pub(super) waiting: BTreeSet<u64>,
    /// Those that have been let go.
    pub(super) granted: BTreeSet<u64>,
}

/// Keeps requests from being made, all but lists and watches, while it is closed.
#[derive(Debug, Default)]
pub(super) struct Curtain {
    pub(super) closed: bool,
    /// How many requests wait behind it.
    pub(super) waiting: usize,
}

#[derive(Debug)]
struct KnownList {
    identity: Identity,
    list: Arc<List>,
    /// The token that the next page would be asked with; `None` if the list is complete.
    continues: Option<String>,
}

/// Verb, target, name and span of a request.
type Like = (Verb, String, Option<String>, Option<String>);

/// Whose stream is meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Which {
    Client(usize),
    Replica(usize),
}

/// The newest rule that matches decides.
#[derive(Debug)]
struct HoldRule {
    filter: Filter,
    held: bool,
}

/// What a watch request is, in view of what came before it.
pub(super) enum Opening {
    /// It takes up a stream that the client knows; upstream is to be watched from `upstream_from`.
    Continue { index: usize, upstream_from: String },
    /// It starts a stream, or a new incarnation of one.
    Begin(Start, Option<Replay>),
    /// Its resource version is none that its stream has given it.
    Gone,
}

impl Engine {
    pub(super) fn new(deadline: Duration) -> Self {
        Self {
            registry: Mutex::default(),
            changes: watch::Sender::new(0),
            deadline: Mutex::new(deadline),
            fences: AtomicBool::new(true),
            recorder: Recorder::new(),
            rules: Arc::default(),
            schedule: Schedule::default(),
            reads: Reads::default(),
            restarts: watch::Sender::new(0),
        }
    }

    pub(super) fn deadline(&self) -> Duration {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_deadline(&self, deadline: Duration) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    pub(super) fn fences(&self) -> bool {
        self.fences.load(Ordering::SeqCst)
    }

    pub(super) fn set_fences(&self, fences: bool) {
        self.fences.store(fences, Ordering::SeqCst);
    }

    /// Reads the registry.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.lock())
    }

    /// Changes the registry, then tells everyone who waits for it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Registry) -> T) -> T {
        let result = change(&mut self.lock());
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
        result
    }

    /// Changes the registry, tells everyone who waits for it, and wakes the body that can now go on.
    pub(super) fn change_and_wake<T>(
        &self,
        change: impl FnOnce(&mut Registry) -> (T, Option<Waker>),
    ) -> T {
        let (result, waker) = self.change(change);
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }

    /// Takes in one line of a watch, and wakes the client that can now go on.
    pub(super) fn receive(&self, which: Which, epoch: u64, line: Bytes) {
        let scheduled = self.schedule.is_set();
        self.change_and_wake(|registry| ((), registry.receive(which, epoch, line, scheduled)));
    }

    /// Asks `check` now and after every change, until it answers or `deadline` has passed.
    pub(super) async fn wait<T>(
        &self,
        deadline: Instant,
        mut check: impl FnMut(&Registry) -> Option<T>,
    ) -> Option<T> {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(answer) = self.look(&mut check) {
                return Some(answer);
            }
            // An error would mean that the sender is gone, and it is a field of ours.
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                return self.look(&mut check);
            }
        }
    }

    /// Waits for the registry to change, without end.
    pub(super) async fn wait_for_ever<T>(
        &self,
        mut check: impl FnMut(&Registry) -> Option<T>,
    ) -> T {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(answer) = self.look(&mut check) {
                return answer;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // A panic of a check must not turn every later message into one about a poisoned lock.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    pub(super) fn descriptions(&self) -> Vec<StreamDescription> {
        self.streams.iter().map(Stream::describe).collect()
    }

    /// Remembers the reply to a LIST. `page` is the token with which this page was asked for.
    pub(super) fn listed(
        &mut self,
        identity: &Identity,
        page: Option<&str>,
        reply: &Value,
        asked: ListVersion,
        chosen: bool,
        request: u64,
    ) {
        let (mut asked, mut chosen, mut request) = (asked, chosen, request);
        let Some(resource_version) = wire::text(reply, "/metadata/resourceVersion") else { return };
        let continues = wire::text(reply, "/metadata/continue").filter(|token| !token.is_empty());
        let (kind, mut objects) = items(reply);
        if let Some(page) = page {
            let before = self.lists.iter().rposition(|known| {
                known.identity == *identity && known.continues.as_deref() == Some(page)
            });
            // Pages before this one may be unknown: then a watch that follows is one from an unknown state.
            let Some(before) = before else { return };
            let known = self.lists.remove(before);
            objects.splice(0..0, known.list.objects.iter().cloned());
            (asked, chosen) = (known.list.asked.clone(), known.list.chosen);
            request = known.list.request;
        }
        let list = Arc::new(List { resource_version, kind, objects, asked, chosen, request });
        self.lists.push(KnownList { identity: identity.clone(), list, continues });
        if self.lists.iter().filter(|known| known.identity == *identity).count() > LISTS_KEPT
            && let Some(oldest) = self.lists.iter().position(|known| known.identity == *identity)
        {
            self.lists.remove(oldest);
        }
    }

    /// Decides what a watch request is, and claims the stream that it continues.
    pub(super) fn opening(
        &mut self,
        identity: &Identity,
        resource_version: &str,
        initial_events: bool,
    ) -> Opening {
        if initial_events {
            let asked = match resource_version {
                "" => ListVersion::Consistent,
                "0" => ListVersion::Any,
                least => ListVersion::NotOlderThan(least.to_owned()),
            };
            return Opening::Begin(Start::Streamed { asked }, None);
        }
        let from = || Start::From { resource_version: resource_version.to_owned() };
        // Both mean "from any state": the server begins such a watch with events for what there is.
        if matches!(resource_version, "" | "0") {
            return Opening::Begin(from(), None);
        }
        let same = |stream: &Stream| stream.identity == *identity;
        let exact = self
            .streams
            .iter()
            .position(|stream| same(stream) && stream.continues_at(resource_version));
        let known = self.known_list(identity, resource_version);
        // A client that dropped its watch and then listed has begun anew, also where nothing has changed since.
        let restarted = |index: usize| known.is_some() && self.streams[index].is_abandoned();
        if let Some(index) = exact.filter(|index| !restarted(*index)) {
            return self.continuation(index, resource_version);
        }
        if let Some(known) = known {
            let list = Arc::clone(&self.lists[known].list);
            let replay = list.chosen.then(|| self.replay(identity, resource_version)).flatten();
            return Opening::Begin(Start::Listed { list }, replay);
        }
        let rewound = self
            .streams
            .iter_mut()
            .position(|stream| stream.identity == *identity && stream.rewind(resource_version));
        if let Some(index) = rewound {
            return self.continuation(index, resource_version);
        }
        if self.streams.iter().any(|stream| same(stream) && stream.is_detached()) {
            return Opening::Gone;
        }
        Opening::Begin(from(), None)
    }

    /// Opens the stream that a watch begins, and returns its number and epoch.
    pub(super) fn begin(&mut self, identity: &Identity, start: Start) -> (usize, u64) {
        if let Start::Listed { list } = &start
            && let Some(known) = self.known_list(identity, &list.resource_version)
        {
            self.lists.remove(known);
        }
        let listed = match &start {
            Start::Listed { list } => Some(Arc::clone(list)),
            Start::Streamed { .. } | Start::From { .. } => None,
        };
        let index = match self.abandoned(identity).first() {
            Some(&index) => {
                self.streams[index].begin(start);
                index
            }
            None => {
                let instance = self.instances(identity) + 1;
                let held = self.is_held(identity, instance);
                self.streams.push(Stream::new(identity.clone(), instance, start, held));
                self.streams.len() - 1
            }
        };
        if let Some(list) = listed {
            let stream = &self.streams[index];
            let entry = Entry::Listed {
                stream: index,
                incarnation: stream.incarnation(),
                request: list.request,
                asked: list.asked.clone(),
                resource_version: list.resource_version.clone(),
                objects: list.objects.iter().filter_map(Seen::of).collect(),
                point: None,
            };
            self.note(entry);
        }
        (index, self.streams[index].open())
    }

    /// The streams of which a watch that begins may take the first.
    ///
    /// A client whose watch has expired is about to list. Those that left otherwise may never come back, so
    /// they wait behind.
    fn abandoned(&self, identity: &Identity) -> Vec<usize> {
        let of_it = |index: &usize| {
            let stream = &self.streams[*index];
            stream.identity == *identity && stream.is_abandoned()
        };
        let (expired, left): (Vec<_>, Vec<_>) = (0..self.streams.len())
            .filter(of_it)
            .partition(|index| self.streams[*index].is_expired());
        if expired.is_empty() { left } else { expired }
    }

    fn instances(&self, identity: &Identity) -> usize {
        self.streams.iter().filter(|stream| stream.identity == *identity).count()
    }

    /// The instances of which one is behind an initial list that is asked for now; at least one, and more where
    /// nothing tells them apart.
    pub(super) fn listing(&self, identity: &Identity) -> Vec<usize> {
        let abandoned = self.abandoned(identity);
        if abandoned.is_empty() {
            return vec![self.instances(identity) + 1];
        }
        abandoned.into_iter().map(|index| self.streams[index].instance).collect()
    }

    /// Holds the streams that match, and those to come.
    pub(super) fn hold(&mut self, filter: &Filter) {
        self.rule(filter, true);
        for stream in &mut self.streams {
            if filter.matches(&stream.identity, stream.instance) {
                stream.hold();
            }
        }
    }

    /// From now on, what `filter` means is not held when it is opened.
    pub(super) fn lift(&mut self, filter: &Filter) {
        self.rule(filter, false);
    }

    /// Whether a rule holds all that `filter` means.
    pub(super) fn is_ruled(&self, filter: &Filter) -> bool {
        self.holds.iter().any(|rule| rule.held && rule.filter.covers(filter))
    }

    fn rule(&mut self, filter: &Filter, held: bool) {
        self.holds.retain(|rule| rule.filter != *filter);
        self.holds.push(HoldRule { filter: filter.clone(), held });
        // Rules that lift nothing are of no use.
        while self.holds.first().is_some_and(|rule| !rule.held) {
            self.holds.remove(0);
        }
    }

    fn is_held(&self, identity: &Identity, instance: usize) -> bool {
        let newest = self.holds.iter().rev().find(|rule| rule.filter.matches(identity, instance));
        newest.is_some_and(|rule| rule.held)
    }

    /// Says that these streams trigger passes and feed no store.
    pub(super) fn mark_triggers(&mut self, filter: &Filter) {
        self.triggers.push(filter.clone());
    }

    /// The streams in the order in which a boundary releases them: stores first, so that a trigger that is
    /// released does not start a pass in the middle of it.
    pub(super) fn release_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.streams.len()).collect();
        order.sort_by_key(|index| self.only_triggers(&self.streams[*index]));
        order
    }

    pub(super) fn only_triggers(&self, stream: &Stream) -> bool {
        stream.identity.representation == Representation::Metadata
            || self.triggers.iter().any(|filter| filter.matches(&stream.identity, stream.instance))
    }

    /// Writes down what happened, if somebody wants to know.
    pub(super) fn note(&mut self, entry: Entry) {
        self.note_in(self.passes.only_one_running(), entry);
    }

    /// The same, of a pass that may be over by now.
    pub(super) fn note_in(&mut self, pass: Option<u32>, entry: Entry) {
        if let Some(chronicle) = &mut self.chronicle {
            chronicle.note(pass, entry);
        }
    }

    /// Says in which pass a request is made, and which one of its like it is there.
    pub(super) fn count_in_pass(&mut self, request: &mut Request) {
        request.pass = self.passes.only_one_running();
        let Some(pass) = request.pass.filter(|_| request.verb != Verb::Watch) else { return };
        if self.made_in_pass.0 != pass {
            self.made_in_pass = (pass, HashMap::new());
        }
        let like = (request.verb, request.target(), request.name.clone(), request.span.clone());
        let count = self.made_in_pass.1.entry(like).or_default();
        *count += 1;
        request.ordinal = *count;
    }

    /// All streams that show what the server does, ours too.
    pub(super) fn fed(&self) -> impl Iterator<Item = &Stream> {
        self.streams.iter().chain(&self.replicas)
    }

    pub(super) fn at(&self, which: Which) -> &Stream {
        match which {
            Which::Client(index) => &self.streams[index],
            Which::Replica(index) => &self.replicas[index],
        }
    }

    pub(super) fn at_mut(&mut self, which: Which) -> &mut Stream {
        match which {
            Which::Client(index) => &mut self.streams[index],
            Which::Replica(index) => &mut self.replicas[index],
        }
    }

    /// Takes in one line of a watch. Returns whether its client may have it now.
    fn receive(&mut self, which: Which, epoch: u64, line: Bytes, scheduled: bool) -> Option<Waker> {
        let withheld = (scheduled || self.without_bookmarks) && matches!(which, Which::Client(_));
        let stream = self.at_mut(which);
        let before = stream.events().len();
        let waker = stream.receive(epoch, line, withheld);
        let grown = stream.events().len() > before;
        if let (Which::Replica(replica), true) = (which, grown) {
            self.note(Entry::Observed { replica });
        }
        waker
    }

    pub(super) fn request_begins(&mut self, number: u64) {
        self.in_flight.insert(number);
    }

    pub(super) fn watch_begins(&mut self, number: u64) {
        self.opening.insert(number);
    }

    pub(super) fn request_ends(&mut self, number: u64) {
        self.in_flight.remove(&number);
        self.opening.remove(&number);
        self.openings.waiting.remove(&number);
    }

    /// Whether the reply to this request, which is there, may be handed back as far as others are concerned.
    pub(super) fn is_its_turn(&self, number: u64) -> bool {
        if self.openings.ordered {
            return self.openings.granted.contains(&number);
        }
        let first = |numbers: &BTreeSet<u64>| numbers.first().is_none_or(|it| *it >= number);
        match self.opening.contains(&number) {
            true => first(&self.opening),
            false => first(&self.in_flight),
        }
    }

    /// Whether all requests under way have their replies and wait to be let go.
    pub(super) fn all_wait_for_their_turn(&self) -> bool {
        let under_way = self.in_flight.iter().chain(&self.opening);
        under_way.into_iter().all(|number| self.openings.waiting.contains(number))
    }

    /// Whether no request is under way.
    pub(super) fn has_nothing_under_way(&self) -> bool {
        self.in_flight.is_empty() && self.opening.is_empty()
    }

    fn known_list(&self, identity: &Identity, resource_version: &str) -> Option<usize> {
        self.lists.iter().rposition(|known| {
            known.identity == *identity
                && known.continues.is_none()
                && known.list.resource_version == resource_version
        })
    }

    fn continuation(&self, index: usize, resource_version: &str) -> Opening {
        let received = self.streams[index].received_resource_version().unwrap_or(resource_version);
        Opening::Continue { index, upstream_from: received.to_owned() }
    }
}

/// The items of a list reply as objects of their own, and their `apiVersion` and `kind`.
pub(super) fn items(reply: &Value) -> (Option<(String, String)>, Vec<Value>) {
    let kind = item_kind(reply);
    let mut objects: Vec<Value> =
        reply.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    if let Some((api_version, kind)) = &kind {
        // Items of a list leave out what the list says once for all.
        for object in objects.iter_mut().filter_map(Value::as_object_mut) {
            object.entry("apiVersion").or_insert_with(|| Value::from(api_version.as_str()));
            object.entry("kind").or_insert_with(|| Value::from(kind.as_str()));
        }
    }
    (kind, objects)
}

/// `apiVersion` and `kind` of the items of a list reply.
fn item_kind(reply: &Value) -> Option<(String, String)> {
    let kind = wire::text(reply, "/kind")?;
    let api_version = wire::text(reply, "/apiVersion")?;
    Some((api_version, kind.strip_suffix("List")?.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;
    use serde_json::json;

    use super::*;

    fn identity() -> Identity {
        Identity {
            group: String::new(),
            version: "v1".to_owned(),
            resource: "pods".to_owned(),
            namespace: None,
            labels: None,
            fields: None,
            representation: Representation::Full,
        }
    }

    fn event(version: u32) -> String {
        let object = json!({"metadata": {"name": "p", "resourceVersion": version.to_string()}});
        json!({"type": "MODIFIED", "object": object}).to_string()
    }

    /// Opens a stream after a list at 10, lets it have events at these versions, and closes it.
    fn closed_stream(registry: &mut Registry, versions: &[u32]) -> usize {
        let list =
            json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "10"}});
        registry.listed(&identity(), None, &list, ListVersion::Any, false, 0);
        let Opening::Begin(start, None) = registry.opening(&identity(), "10", false) else {
            panic!("a watch after a list begins a stream")
        };
        let (index, epoch) = registry.begin(&identity(), start);
        let mut context = Context::from_waker(Waker::noop());
        for version in versions {
            registry.streams[index].receive(epoch, Bytes::from(event(*version)), false);
            assert!(registry.streams[index].poll(epoch, &mut context).is_ready());
        }
        index
    }

    #[test]
    fn a_client_that_comes_back_gets_the_stream_that_stands_where_it_does() {
        let mut registry = Registry::default();
        let far = closed_stream(&mut registry, &[11, 12, 13]);
        let near = closed_stream(&mut registry, &[11, 12]);
        for index in [far, near] {
            registry.streams[index].body_dropped(1);
        }
        assert_ne!(far, near, "a list is used up by the watch that follows it");
        for (version, expected) in [("12", near), ("13", far)] {
            match registry.opening(&identity(), version, false) {
                Opening::Continue { index, upstream_from } => {
                    assert_eq!((index, upstream_from.as_str()), (expected, version));
                }
                Opening::Begin(..) | Opening::Gone => panic!("{version} is known"),
            }
        }
    }

    #[test]
    fn a_client_that_lists_after_it_has_dropped_its_watch_begins_anew() {
        let mut registry = Registry::default();
        let index = closed_stream(&mut registry, &[11]);
        registry.streams[index].body_dropped(1);
        let begins = |registry: &mut Registry| {
            matches!(registry.opening(&identity(), "11", false), Opening::Begin(..))
        };
        assert!(!begins(&mut registry), "without a list it goes on");
        let list =
            json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "11"}});
        registry.listed(&identity(), None, &list, ListVersion::Consistent, false, 0);
        assert!(begins(&mut registry));
    }

    #[test]
    fn only_so_many_lists_are_kept_for_a_watch_to_follow() {
        let mut registry = Registry::default();
        for version in 1..=100 {
            let list =
                json!({"kind": "PodList", "metadata": {"resourceVersion": version.to_string()}});
            registry.listed(&identity(), None, &list, ListVersion::Any, false, 0);
        }
        assert_eq!(registry.lists.len(), LISTS_KEPT);
        assert!(registry.known_list(&identity(), "100").is_some());
        assert!(registry.known_list(&identity(), "1").is_none());
    }

    #[test]
    fn nothing_comes_after_the_frame_that_ends_a_watch() {
        let mut registry = Registry::default();
        let index = closed_stream(&mut registry, &[11]);
        let stream = &mut registry.streams[index];
        assert!(stream.expire().0);
        // Its connection may bring one more before it is dropped.
        stream.receive(1, Bytes::from(event(12)), false);
        assert_eq!(stream.behind(), 0);
        let mut context = Context::from_waker(Waker::noop());
        let mut poll = || stream.poll(1, &mut context).map(|frame| frame.map(Result::unwrap));
        let Poll::Ready(Some(frame)) = poll() else { panic!("the frame that ends it") };
        let frame: Value = serde_json::from_slice(&frame).unwrap();
        assert_eq!(frame["type"], "ERROR");
        assert_eq!(poll(), Poll::Ready(None));
    }
}
