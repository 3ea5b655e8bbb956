//! The state of one stream: what has been received, what has been handed on, what may be.
//!
//! The acknowledgement rests on kube pulling: it asks the body for the next chunk only after the store
//! shows the event of the last one. So *asked again* means *shown*, and no wait here is a guess.

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use serde_json::Value;
use tokio::task::AbortHandle;

use super::model::{
    Change, Connection, Event, Identity, Log, ObjectKey, StreamDescription, View,
    compare_resource_versions,
};
use super::wire;

/// One stream of a client, over all the watches in which it continues.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) identity: Identity,
    pub(super) instance: usize,
    incarnation: u32,
    /// `apiVersion` and `kind` of the objects, once something has told them.
    kind: Option<(String, String)>,
    log: Log,
    frames: Vec<Frame>,
    /// How many frames have been handed to the client.
    handed: usize,
    /// How many of them the client has shown to have taken in, by asking for the next one.
    shown: usize,
    /// The same number at the end of the incarnation before this one.
    shown_before: usize,
    /// Whether the initial list has been handed over as a whole.
    ready: bool,
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

/// How a stream begins.
pub(super) enum Start {
    /// After a LIST, with its objects.
    Listed { list: Arc<List> },
    /// With initial events in the watch itself, up to a bookmark.
    Streamed,
    /// From a resource version that came from elsewhere: what is before it is not known.
    From { resource_version: String },
}

/// The reply to a LIST that a watch may follow.
#[derive(Debug)]
pub(super) struct List {
    pub(super) resource_version: String,
    pub(super) kind: Option<(String, String)>,
    pub(super) objects: Vec<Value>,
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
            frames: Vec::new(),
            handed: 0,
            shown: 0,
            shown_before: 0,
            ready: false,
            before: BTreeMap::new(),
            gate: if held { Gate::Held { up_to: 0 } } else { Gate::Open },
            body: BodyState::Opening,
            epoch: 0,
            waker: None,
            upstream: Upstream::Flowing,
            drain: None,
            releasing: Arc::default(),
            trouble: None,
        };
        stream.begin(start);
        stream
    }

    /// Starts a new incarnation: the client has listed again.
    pub(super) fn begin(&mut self, start: Start) {
        self.before = self.objects();
        self.incarnation += 1;
        self.frames.clear();
        self.handed = 0;
        self.shown_before = std::mem::take(&mut self.shown);
        if let Gate::Held { up_to } = &mut self.gate {
            *up_to = 0;
        }
        // The watch that follows a list is opened after the store has swapped in what was listed.
        self.ready = !matches!(start, Start::Streamed);
        self.log = match start {
            Start::Listed { list } => {
                self.kind.clone_from(&list.kind);
                Log::new(list.resource_version.clone(), list.objects.iter().cloned())
            }
            Start::Streamed => Log::default(),
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

    // --- coming back -------------------------------------------------------------------------

    /// Whether no watch of this stream is open.
    pub(super) fn is_detached(&self) -> bool {
        matches!(self.body, BodyState::Ended | BodyState::Dropped)
    }

    /// Whether its client will not continue it, so that a new watch of this identity may take its place.
    pub(super) fn is_abandoned(&self) -> bool {
        self.body == BodyState::Dropped || (self.body == BodyState::Ended && !self.ready)
    }

    /// Whether the client knows exactly this resource version from this stream.
    pub(super) fn continues_at(&self, resource_version: &str) -> bool {
        self.can_continue() && self.delivered_resource_version() == Some(resource_version)
    }

    /// Goes back to what the client had been given at an earlier resource version, if the log reaches back to it.
    pub(super) fn rewind(&mut self, resource_version: &str) -> bool {
        let not_after = |version: &str| {
            compare_resource_versions(version, resource_version)
                .is_some_and(std::cmp::Ordering::is_le)
        };
        let initial = match self.frames.iter().position(|f| f.kind == FrameKind::InitialEnd) {
            Some(end) => end + 1,
            None => 0,
        };
        if !self.can_continue()
            || !not_after(self.log.initial_resource_version())
            || self.delivered_resource_version().is_none_or(|newest| {
                compare_resource_versions(resource_version, newest)
                    .is_none_or(std::cmp::Ordering::is_gt)
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
        self.is_detached() && self.ready && !matches!(self.upstream, Upstream::Expired)
    }

    pub(super) fn claim(&mut self) -> impl FnOnce(&mut Self) + use<> {
        let before = std::mem::replace(&mut self.body, BodyState::Opening);
        move |stream| {
            if stream.body == BodyState::Opening {
                stream.body = before;
            }
        }
    }

    // --- upstream ----------------------------------------------------------------------------

    /// Takes in one line of the watch. Returns whether the client may have it now.
    pub(super) fn receive(&mut self, epoch: u64, line: Bytes) -> Option<Waker> {
        if epoch != self.epoch {
            return None;
        }
        let parsed: Option<Value> = serde_json::from_slice(&line).ok();
        let events = self.log.len();
        let (kind, resource_version) = match parsed {
            Some(frame) => self.read(frame),
            None => (FrameKind::Error, None),
        };
        let events = events + usize::from(kind == FrameKind::Event);
        self.frames.push(Frame { bytes: line, kind, resource_version, events });
        self.wake()
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
        if !matches!(self.upstream, Upstream::Expired) {
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
        matches!(self.upstream, Upstream::Expired)
            || !self.initial_complete()
            || self.received_resource_version().is_none()
    }

    // --- the body ----------------------------------------------------------------------------

    /// The client asks for the next frame. The error is the text of what broke the connection.
    pub(super) fn poll(
        &mut self,
        epoch: u64,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, String>>> {
        if epoch != self.epoch || self.body != BodyState::Open {
            return Poll::Ready(None);
        }
        self.shown = self.handed;
        if self.handed < self.frames.len() {
            if self.may_pass(self.handed) {
                let frame = &self.frames[self.handed];
                self.ready |= frame.kind == FrameKind::InitialEnd;
                self.handed += 1;
                return Poll::Ready(Some(Ok(frame.bytes.clone())));
            }
        } else if self.gate == Gate::Open || self.ends_for_good() {
            match &mut self.upstream {
                Upstream::Flowing => {}
                Upstream::Over(error) => {
                    let error = error.take();
                    self.end();
                    return Poll::Ready(error.map(Err));
                }
                // The server closes such a watch; ours ends even where it would not.
                Upstream::Expired => {
                    self.end();
                    return Poll::Ready(None);
                }
            }
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// The client has dropped the body: whatever it was given, it is done with.
    pub(super) fn body_dropped(&mut self, epoch: u64) {
        if epoch != self.epoch {
            return;
        }
        if self.body == BodyState::Open {
            self.body = BodyState::Dropped;
        }
        self.shown = self.handed;
        self.waker = None;
        self.stop_draining();
    }

    fn end(&mut self) {
        self.body = BodyState::Ended;
        self.stop_draining();
    }

    fn stop_draining(&mut self) {
        if let Some(drain) = self.drain.take() {
            drain.abort();
        }
    }

    fn may_pass(&self, frame: usize) -> bool {
        match self.gate {
            Gate::Open => true,
            // All frames before this one have passed, so a bookmark here overtakes nothing.
            Gate::Held { up_to } => {
                frame < up_to
                    || !matches!(self.frames[frame].kind, FrameKind::Event | FrameKind::Error)
            }
        }
    }

    fn wake(&mut self) -> Option<Waker> {
        let more = self.handed < self.frames.len() && self.may_pass(self.handed);
        let over = self.handed == self.frames.len() && !matches!(self.upstream, Upstream::Flowing);
        if more || over { self.waker.take() } else { None }
    }

    // --- the gate ----------------------------------------------------------------------------

    pub(super) fn hold(&mut self) {
        if self.gate == Gate::Open {
            self.gate = Gate::Held { up_to: self.handed };
        }
    }

    /// Lifts the hold. Returns the frames that have to be shown for the release to be complete.
    pub(super) fn open_gate(&mut self) -> (usize, Option<Waker>) {
        self.gate = Gate::Open;
        (self.frames.len(), self.wake())
    }

    /// The end of the next event that is not released yet, counted in frames.
    pub(super) fn next_held(&self) -> Option<usize> {
        let first = self.first_unreleased();
        let waiting = self.frames.get(first..)?;
        let stops = |frame: &Frame| matches!(frame.kind, FrameKind::Event | FrameKind::Error);
        Some(first + waiting.iter().position(stops)? + 1)
    }

    /// The end of everything up to a resource version, counted in frames.
    /// `None` if that version has not been received.
    pub(super) fn end_of(&self, resource_version: &str) -> Option<usize> {
        let at_most = |version: &str| {
            compare_resource_versions(version, resource_version)
                .is_some_and(std::cmp::Ordering::is_le)
        };
        let received = self.received_resource_version()?;
        compare_resource_versions(received, resource_version).filter(|order| order.is_ge())?;
        let last =
            self.frames.iter().rposition(|f| f.resource_version.as_deref().is_some_and(at_most));
        Some(last.map_or(0, |last| last + 1))
    }

    /// Lets the frames below `up_to` pass.
    pub(super) fn release(&mut self, up_to: usize) -> Option<Waker> {
        if let Gate::Held { up_to: limit } = &mut self.gate {
            *limit = up_to.max(*limit);
        }
        self.wake()
    }

    /// Takes back what was released and has not been handed on.
    pub(super) fn revoke(&mut self) {
        let handed = self.handed;
        if let Gate::Held { up_to } = &mut self.gate {
            *up_to = (*up_to).min(handed);
        }
    }

    fn first_unreleased(&self) -> usize {
        match self.gate {
            Gate::Open => self.handed,
            Gate::Held { up_to } => self.handed.max(up_to),
        }
    }

    // --- looking -----------------------------------------------------------------------------

    pub(super) fn is_held(&self) -> bool {
        self.gate != Gate::Open
    }

    /// Whether the client has shown to have taken in the first `frames` frames.
    pub(super) fn has_shown(&self, frames: usize) -> bool {
        self.shown >= frames
    }

    /// The same for an incarnation that may be over. `None` if it ended before the client had them.
    pub(super) fn has_shown_in(&self, incarnation: u32, frames: usize) -> Option<bool> {
        if incarnation == self.incarnation {
            return Some(self.has_shown(frames));
        }
        (incarnation + 1 == self.incarnation && self.shown_before >= frames).then_some(true)
    }

    pub(super) fn has_handed(&self, frames: usize) -> bool {
        self.handed >= frames
    }

    /// Tells one incarnation from another, since frames are counted anew in each.
    pub(super) fn incarnation(&self) -> u32 {
        self.incarnation
    }

    pub(super) fn position(&self) -> usize {
        self.handed.checked_sub(1).map_or(0, |last| self.frames[last].events)
    }

    pub(super) fn behind(&self) -> usize {
        self.log.len() - self.position()
    }

    /// What the frames from `from` to `to` carry, bookmarks left out.
    pub(super) fn carried(&self, from: usize, to: usize) -> Vec<Carried<'_>> {
        let frames = self.frames.get(from..to).unwrap_or_default();
        frames
            .iter()
            .filter_map(|frame| match frame.kind {
                FrameKind::Event => frame
                    .events
                    .checked_sub(1)
                    .and_then(|index| self.log.events().get(index))
                    .map(Carried::Event),
                FrameKind::Error => Some(Carried::Error(&frame.bytes)),
                FrameKind::Initial | FrameKind::InitialEnd | FrameKind::Bookmark => None,
            })
            .collect()
    }

    /// How many frames have been handed on.
    pub(super) fn handed(&self) -> usize {
        self.handed
    }

    /// The frames that have not been handed on, as a message lists them.
    pub(super) fn waiting(&self) -> Vec<Carried<'_>> {
        self.carried(self.handed, self.frames.len())
    }

    pub(super) fn view(&self) -> View {
        View { incarnation: self.incarnation, position: self.position(), ready: self.ready }
    }

    /// What the store of the client shows.
    pub(super) fn objects(&self) -> BTreeMap<ObjectKey, Value> {
        if !self.ready {
            return self.before.clone();
        }
        let objects = self.log.fold(self.position()).unwrap_or_default();
        objects.into_iter().map(|(key, object)| (key.clone(), object.clone())).collect()
    }

    pub(super) fn kind(&self) -> Option<&(String, String)> {
        self.kind.as_ref()
    }

    pub(super) fn delivered_resource_version(&self) -> Option<&str> {
        // Within an initial list the client knows no version that it could come back with.
        self.ready.then(|| self.version_before(self.handed))?
    }

    pub(super) fn received_resource_version(&self) -> Option<&str> {
        self.version_before(self.frames.len())
    }

    fn version_before(&self, frames: usize) -> Option<&str> {
        let seen = self.frames[..frames].iter().rev();
        let initial = self.log.initial_resource_version();
        seen.filter_map(|frame| frame.resource_version.as_deref())
            .next()
            .or_else(|| (self.initial_complete() && !initial.is_empty()).then_some(initial))
    }

    pub(super) fn connection(&self) -> Connection {
        match self.body {
            BodyState::Open => Connection::Open,
            BodyState::Opening | BodyState::Ended => Connection::BetweenWatches,
            BodyState::Dropped => Connection::Closed,
        }
    }

    pub(super) fn describe(&self) -> StreamDescription {
        StreamDescription {
            identity: self.identity.clone(),
            instance: self.instance,
            view: self.view(),
            behind: self.behind(),
            held: self.is_held(),
            connection: self.connection(),
            delivered_resource_version: self.delivered_resource_version().map(str::to_owned),
            received_resource_version: self.received_resource_version().map(str::to_owned),
            trouble: self.trouble.clone(),
        }
    }
}

/// What one frame brings to the client.
pub(super) enum Carried<'a> {
    Event(&'a Event),
    Error(&'a Bytes),
}
