//! The state of one stream: what has been received, what has been handed on, what may be.
//!
//! The acknowledgement rests on kube pulling: it asks the body for the next chunk only after the store
//! shows the event of the last one. So *asked again* means *shown*, and no wait here is a guess.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc, task::Waker};

use bytes::Bytes;
use serde_json::Value;
use tokio::task::AbortHandle;

use super::{
    model::{
        Change, Event, Identity, ListVersion, Log, ObjectKey, PointId, ShownEvent,
        compare_resource_versions,
    },
    wire,
};
use crate::ask::is_without_previous;

mod feed;
mod gate;
mod look;
mod past;
mod readable;

pub(super) use self::{
    feed::{Expected, Met},
    look::{Brought, Carried},
    past::{Replay, Retained, initial_lines},
};

/// One stream of a client, over all the watches in which it continues.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) identity: Identity,
    pub(super) instance: usize,
    incarnation: u32,
    /// `apiVersion` and `kind` of the objects, once something has told them.
    kind: Option<(String, String)>,
    log: Log,
    /// Whether the log begins with a state that is known as a whole.
    whole: bool,
    /// How the initial list of this incarnation was asked for.
    asked: Option<ListVersion>,
    past: Vec<past::Past>,
    frames: Vec<Frame>,
    /// How many frames have been handed to the client.
    handed: usize,
    /// How many of them the client has shown to have taken in, by asking for the next one.
    shown: usize,
    /// The same number at the end of the incarnation before this one.
    shown_before: usize,
    /// Whether it is read through a wrapper, so that it moves by its reads and not at boundaries.
    pub(super) wrapped: bool,
    /// Whether a controller that is driven has opened it, so that its events begin passes.
    pub(super) begins_passes: bool,
    /// The point at which the release of the frames below this number was chosen.
    pub(super) released_at: Option<(usize, PointId)>,
    /// The first event that the last boundary kept back.
    pub(super) held_from: Option<ShownEvent>,
    /// The number of the request by which its initial list is streamed.
    pub(super) list_request: u64,
    /// How many events a wrapped read has shown; the store is brought there at the next boundary.
    read: usize,
    /// Whether the initial list has been handed over as a whole.
    ready: bool,
    /// The position of that view.
    position_before: usize,
    /// What the store shows until then: the last view of the incarnation before this one.
    before: BTreeMap<ObjectKey, Value>,
    gate: Gate,
    body: BodyState,
    /// Tells the body and the drain task of one watch from those of the watches before it.
    epoch: u64,
    waker: Option<Waker>,
    upstream: Upstream,
    drain: Option<AbortHandle>,
    /// Lets one release at a time wait for its acknowledgement.
    pub(super) releasing: Arc<tokio::sync::Mutex<()>>,
    pub(super) trouble: Option<String>,
    /// Where it was when the server last had an update without the version before it.
    without_previous: Option<String>,
}

/// One line of a watch.
#[derive(Debug)]
struct Frame {
    bytes: Bytes,
    kind: FrameKind,
    resource_version: Option<String>,
    /// How many events there are up to this frame, itself included.
    events: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum FrameKind {
    /// An object of a streamed initial list.
    Initial,
    /// The bookmark that ends it.
    InitialEnd,
    Event,
    Bookmark,
    /// An ERROR frame, or a line that is nothing known.
    Error,
    /// The ERROR frame by which we end the watch; it passes every gate.
    Cut,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Gate {
    Open,
    /// Frames below this number may pass.
    Held {
        up_to: usize,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum BodyState {
    /// A watch request that continues this stream is on its way to the server.
    Opening,
    Open,
    /// We ended it; the client is expected to come back.
    Ended,
    /// The client dropped it.
    Dropped,
}

#[derive(Debug)]
enum Upstream {
    Flowing,
    /// It ended cleanly, or with the error that the client is to see.
    Over(Option<String>),
    /// It ended with a 410: what it knew is gone.
    Expired,
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(drain) = &self.drain {
            drain.abort();
        }
    }
}

/// How a stream begins.
pub(super) enum Start {
    /// After a LIST, with its objects.
    Listed { list: Arc<List> },
    /// With initial events in the watch itself, up to a bookmark.
    Streamed { asked: ListVersion },
    /// From a resource version that came from elsewhere: what is before it is not known.
    From { resource_version: String },
}

/// The reply to a LIST that a watch may follow.
#[derive(Debug)]
pub(super) struct List {
    pub(super) resource_version: String,
    pub(super) kind: Option<(String, String)>,
    pub(super) objects: Vec<Value>,
    pub(super) asked: ListVersion,
    /// The number of the request that asked for its first page.
    pub(super) request: u64,
    /// Whether the test has chosen what it shows.
    pub(super) chosen: bool,
}

/// What the drain task is to do when its connection has ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum AfterEnd {
    /// Watch on from here, since the stream is held.
    Reopen { resource_version: String },
    /// Wait: the client has not been given everything yet.
    Wait,
    /// The client opens the next watch itself, or none.
    Stop,
}

impl Stream {
    pub(super) fn new(identity: Identity, instance: usize, start: Start, held: bool) -> Self {
        let mut stream = Self {
            identity,
            instance,
            incarnation: 0,
            kind: None,
            log: Log::default(),
            whole: false,
            asked: None,
            past: Vec::new(),
            frames: Vec::new(),
            handed: 0,
            shown: 0,
            shown_before: 0,
            wrapped: false,
            begins_passes: false,
            released_at: None,
            held_from: None,
            list_request: 0,
            read: 0,
            ready: false,
            position_before: 0,
            before: BTreeMap::new(),
            gate: if held { Gate::Held { up_to: 0 } } else { Gate::Open },
            body: BodyState::Opening,
            epoch: 0,
            waker: None,
            upstream: Upstream::Flowing,
            drain: None,
            releasing: Arc::default(),
            trouble: None,
            without_previous: None,
        };
        stream.begin(start);
        stream
    }

    /// Starts a new incarnation: the client has listed again.
    pub(super) fn begin(&mut self, start: Start) {
        // An incarnation that never was ready has shown nothing of its own.
        if self.ready {
            self.position_before = self.position();
        }
        self.before = self.objects();
        self.archive();
        self.incarnation += 1;
        self.frames.clear();
        self.handed = 0;
        self.read = 0;
        (self.released_at, self.held_from) = (None, None);
        self.shown_before = std::mem::take(&mut self.shown);
        if let Gate::Held { up_to } = &mut self.gate {
            *up_to = 0;
        }
        // The watch that follows a list is opened after the store has swapped in what was listed.
        self.ready = !matches!(start, Start::Streamed { .. });
        self.whole = !matches!(start, Start::From { .. });
        self.asked = match &start {
            Start::Listed { list } => Some(list.asked.clone()),
            Start::Streamed { asked } => Some(asked.clone()),
            Start::From { .. } => None,
        };
        self.log = match start {
            Start::Listed { list } => {
                self.kind.clone_from(&list.kind);
                Log::new(list.resource_version.clone(), list.objects.iter().cloned())
            }
            Start::Streamed { .. } => Log::default(),
            Start::From { resource_version } => Log::new(resource_version, []),
        };
    }

    /// Takes the stream up again in a new watch; returns its epoch.
    pub(super) fn open(&mut self) -> u64 {
        self.epoch += 1;
        self.body = BodyState::Open;
        self.upstream = Upstream::Flowing;
        self.trouble = None;
        self.waker = None;
        self.epoch
    }

    pub(super) fn drained_by(&mut self, drain: AbortHandle) {
        self.drain = Some(drain);
    }
}

/// Coming back.
impl Stream {
    /// Whether no watch of this stream is open.
    pub(super) fn is_detached(&self) -> bool {
        matches!(self.body, BodyState::Ended | BodyState::Dropped)
    }

    /// Whether its client will not continue it, so that a new watch of this identity may take its place.
    pub(super) fn is_abandoned(&self) -> bool {
        let ended = self.body == BodyState::Ended && (!self.ready || self.is_expired());
        self.body == BodyState::Dropped || ended
    }

    /// Whether its watch has expired, so that its client has to list anew if it is still there.
    pub(super) fn is_expired(&self) -> bool {
        matches!(self.upstream, Upstream::Expired)
    }

    /// Whether the client knows exactly this resource version from this stream.
    pub(super) fn continues_at(&self, resource_version: &str) -> bool {
        self.can_continue() && self.delivered_resource_version() == Some(resource_version)
    }

    /// Goes back to what the client had been given at an earlier resource version, if the log reaches back to it.
    pub(super) fn rewind(&mut self, resource_version: &str) -> bool {
        let not_after = |version: &str| {
            compare_resource_versions(version, resource_version).is_some_and(Ordering::is_le)
        };
        let initial = match self.frames.iter().position(|f| f.kind == FrameKind::InitialEnd) {
            Some(end) => end + 1,
            None => 0,
        };
        if !self.can_continue()
            || !not_after(self.log.initial_resource_version())
            || self.delivered_resource_version().is_none_or(|newest| {
                compare_resource_versions(resource_version, newest).is_none_or(Ordering::is_gt)
            })
        {
            return false;
        }
        if let Gate::Held { up_to } = &mut self.gate {
            *up_to = (*up_to).max(self.handed);
        }
        let known = self.frames[initial..self.handed]
            .iter()
            .take_while(|frame| frame.resource_version.as_deref().is_none_or(not_after))
            .count();
        self.handed = initial + known;
        self.shown = self.handed;
        true
    }

    fn can_continue(&self) -> bool {
        self.is_detached() && self.ready && !self.is_expired()
    }

    pub(super) fn claim(&mut self) -> impl FnOnce(&mut Self) + use<> {
        let before = std::mem::replace(&mut self.body, BodyState::Opening);
        move |stream| {
            if stream.body == BodyState::Opening {
                stream.body = before;
            }
        }
    }
}

/// What comes from the server.
impl Stream {
    /// Takes in one line of the watch. Returns whether the client may have it now.
    ///
    /// A bookmark that ends no list is dropped if they are `withheld`.
    pub(super) fn receive(&mut self, epoch: u64, line: Bytes, withheld: bool) -> Option<Waker> {
        let cut = self.frames.last().is_some_and(|frame| frame.kind == FrameKind::Cut);
        // What is on its way to a watch that we have ended comes too late; the next one asks for it again.
        if epoch != self.epoch || cut {
            return None;
        }
        let parsed: Option<Value> = serde_json::from_slice(&line).ok();
        if parsed.as_ref().is_some_and(|frame| self.only_ends_it(frame)) {
            return None;
        }
        let events = self.log.len();
        let (kind, resource_version) = match parsed {
            Some(frame) => self.read(frame),
            None => (FrameKind::Error, None),
        };
        if withheld && kind == FrameKind::Bookmark {
            return None;
        }
        let events = events + usize::from(kind == FrameKind::Event);
        self.frames.push(Frame { bytes: line, kind, resource_version, events });
        self.wake()
    }

    /// Whether this is an [error that only ends a watch](is_without_previous); if it comes twice in one place, it does
    /// more than that.
    fn only_ends_it(&mut self, frame: &Value) -> bool {
        let told = frame["type"] == "ERROR"
            && wire::text(frame, "/object/message").is_some_and(|it| is_without_previous(&it));
        if !told {
            return false;
        }
        let here = self.received_resource_version().map(str::to_owned);
        if here.is_none() || here == self.without_previous {
            return false;
        }
        self.without_previous = here;
        true
    }

    fn read(&mut self, mut frame: Value) -> (FrameKind, Option<String>) {
        let object = frame.get_mut("object").map(Value::take).unwrap_or_default();
        let resource_version = wire::text(&object, "/metadata/resourceVersion");
        let kind = frame.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind == "ERROR" {
            if object.get("code").and_then(Value::as_u64) == Some(410) {
                self.upstream = Upstream::Expired;
            }
            return (FrameKind::Error, None);
        }
        if let (Some(api_version), Some(kind)) =
            (wire::text(&object, "/apiVersion"), wire::text(&object, "/kind"))
        {
            self.kind = Some((api_version, kind));
        }
        let change = match kind {
            "ADDED" => Change::Added,
            "MODIFIED" => Change::Modified,
            "DELETED" => Change::Deleted,
            "BOOKMARK" => {
                // Source: Kubernetes, "API concepts", Streaming lists.
                let ends_list = "/metadata/annotations/k8s.io~1initial-events-end";
                if self.initial_complete() || object.pointer(ends_list).is_none() {
                    return (FrameKind::Bookmark, resource_version);
                }
                self.log.set_initial_resource_version(resource_version.clone().unwrap_or_default());
                return (FrameKind::InitialEnd, resource_version);
            }
            _ => return (FrameKind::Error, None),
        };
        if !self.initial_complete() {
            self.log.push_initial(object);
            // Objects of the initial list come in any order: none of their versions is the list's.
            return (FrameKind::Initial, None);
        }
        match Event::from_object(change, object) {
            Some(event) => {
                self.log.push(event);
                (FrameKind::Event, resource_version)
            }
            None => (FrameKind::Error, None),
        }
    }

    /// Whether the whole initial list has been received.
    fn initial_complete(&self) -> bool {
        self.ready || self.frames.iter().any(|frame| frame.kind == FrameKind::InitialEnd)
    }

    /// Notes that the connection to the server has ended.
    pub(super) fn upstream_ended(&mut self, epoch: u64, error: Option<String>) -> Option<Waker> {
        if epoch != self.epoch {
            return None;
        }
        if !self.is_expired() {
            self.upstream = Upstream::Over(error);
        }
        self.wake()
    }

    pub(super) fn upstream_reopened(&mut self, epoch: u64) {
        if epoch == self.epoch {
            self.upstream = Upstream::Flowing;
            self.trouble = None;
        }
    }

    pub(super) fn after_end(&self, epoch: u64) -> AfterEnd {
        if epoch != self.epoch || self.body != BodyState::Open || self.ends_for_good() {
            return AfterEnd::Stop;
        }
        match (&self.gate, self.received_resource_version()) {
            (Gate::Held { .. }, Some(resource_version)) => {
                AfterEnd::Reopen { resource_version: resource_version.to_owned() }
            }
            _ => AfterEnd::Wait,
        }
    }

    /// Whether a new connection could not carry this watch on: it expired, or broke within its initial list,
    /// or has never told a resource version.
    fn ends_for_good(&self) -> bool {
        self.is_expired() || !self.initial_complete() || self.received_resource_version().is_none()
    }
}
