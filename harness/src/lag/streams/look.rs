//! How a stream stands.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

use super::{
    super::model::{Connection, Event, ObjectKey, Objects, PointId, StreamDescription, View},
    BodyState, FrameKind, Gate, Stream,
};

impl Stream {
    pub(in crate::lag) fn is_held(&self) -> bool {
        self.gate != Gate::Open
    }

    /// Whether the client has shown to have taken in the first `frames` frames.
    pub(in crate::lag) fn has_shown(&self, frames: usize) -> bool {
        self.shown >= frames
    }

    /// The same for an incarnation that may be over. `None` if it ended before the client had them.
    pub(in crate::lag) fn has_shown_in(&self, incarnation: u32, frames: usize) -> Option<bool> {
        if incarnation == self.incarnation {
            return Some(self.has_shown(frames));
        }
        (incarnation + 1 == self.incarnation && self.shown_before >= frames).then_some(true)
    }

    pub(in crate::lag) fn has_handed(&self, frames: usize) -> bool {
        self.handed >= frames
    }

    /// Tells one incarnation from another, since frames are counted anew in each.
    pub(in crate::lag) fn incarnation(&self) -> u32 {
        self.incarnation
    }

    pub(in crate::lag) fn position(&self) -> usize {
        self.handed.checked_sub(1).map_or(0, |last| self.frames[last].events)
    }

    /// The events that have been received in this incarnation.
    pub(in crate::lag) fn events(&self) -> &[Event] {
        self.log.events()
    }

    /// Tells one watch of the stream from the next.
    pub(in crate::lag) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// All objects as they were received last.
    pub(in crate::lag) fn newest(&self) -> Objects<'_> {
        self.log.fold(self.log.len()).unwrap_or_default()
    }

    /// The objects of the initial list.
    pub(in crate::lag) fn listed(&self) -> Vec<&Value> {
        self.log.fold(0).unwrap_or_default().into_values().collect()
    }

    /// What the frame with this number brought to the client, and the point at which it was let go.
    pub(in crate::lag) fn brought(&self, frame: usize) -> Option<(Brought<'_>, Option<&PointId>)> {
        let at = self.frames.get(frame)?;
        let brought = match at.kind {
            FrameKind::Event => Brought::Event(self.log.events().get(at.events.checked_sub(1)?)?),
            FrameKind::Bookmark => Brought::Bookmark(at.resource_version.as_deref()?),
            FrameKind::InitialEnd => Brought::InitialEnd,
            FrameKind::Initial | FrameKind::Error | FrameKind::Cut => return None,
        };
        let point = self.released_at.as_ref().filter(|(end, _)| frame < *end);
        Some((brought, point.map(|(_, point)| point)))
    }

    pub(in crate::lag) fn behind(&self) -> usize {
        self.log.len() - self.position()
    }

    /// What the frames from `from` to `to` carry, bookmarks left out.
    pub(in crate::lag) fn carried(&self, from: usize, to: usize) -> Vec<Carried<'_>> {
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
                FrameKind::Initial
                | FrameKind::InitialEnd
                | FrameKind::Bookmark
                | FrameKind::Cut => None,
            })
            .collect()
    }

    /// How many frames have been handed on.
    pub(in crate::lag) fn handed(&self) -> usize {
        self.handed
    }

    /// The frames that have not been handed on, as a message lists them.
    pub(in crate::lag) fn waiting(&self) -> Vec<Carried<'_>> {
        self.carried(self.handed, self.frames.len())
    }

    pub(in crate::lag) fn view(&self) -> View {
        View { incarnation: self.incarnation, position: self.position(), ready: self.ready }
    }

    /// What the store of the client shows.
    pub(in crate::lag) fn objects(&self) -> BTreeMap<ObjectKey, Value> {
        if !self.ready {
            return self.before.clone();
        }
        let objects = self.log.fold(self.position()).unwrap_or_default();
        objects.into_iter().map(|(key, object)| (key.clone(), object.clone())).collect()
    }

    pub(in crate::lag) fn kind(&self) -> Option<&(String, String)> {
        self.kind.as_ref()
    }

    pub(in crate::lag) fn delivered_resource_version(&self) -> Option<&str> {
        // Within an initial list the client knows no version that it could come back with.
        self.ready.then(|| self.version_before(self.handed))?
    }

    pub(in crate::lag) fn received_resource_version(&self) -> Option<&str> {
        self.version_before(self.frames.len())
    }

    fn version_before(&self, frames: usize) -> Option<&str> {
        let seen = self.frames[..frames].iter().rev();
        let initial = self.log.initial_resource_version();
        seen.filter_map(|frame| frame.resource_version.as_deref())
            .next()
            .or_else(|| (self.initial_complete() && !initial.is_empty()).then_some(initial))
    }

    pub(in crate::lag) fn connection(&self) -> Connection {
        match self.body {
            BodyState::Open => Connection::Open,
            BodyState::Opening | BodyState::Ended => Connection::BetweenWatches,
            BodyState::Dropped => Connection::Closed,
        }
    }

    pub(in crate::lag) fn describe(&self) -> StreamDescription {
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

/// What one frame has brought to the client.
pub(in crate::lag) enum Brought<'a> {
    Event(&'a Event),
    Bookmark(&'a str),
    InitialEnd,
}

/// What one frame brings to the client.
pub(in crate::lag) enum Carried<'a> {
    Event(&'a Event),
    Error(&'a Bytes),
}
