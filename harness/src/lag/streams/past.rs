//! What a stream still knows of earlier states: the log of each of its incarnations.

use std::cmp::Ordering;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    super::{
        model::{Event, ListVersion, Log, compare_resource_versions},
        wire,
    },
    BodyState, Frame, FrameKind, Stream, Upstream,
};

/// The log of an incarnation that is over.
#[derive(Debug)]
pub(super) struct Past {
    log: Log,
    received: String,
}

/// A state that a log reaches back to, and what has followed it.
pub(in crate::lag) struct Retained {
    pub(in crate::lag) objects: Vec<Value>,
    pub(in crate::lag) kind: Option<(String, String)>,
    pub(in crate::lag) after: Replay,
}

/// The lines of a watch that a log can give again.
#[derive(Debug, Default)]
pub(in crate::lag) struct Replay {
    pub(in crate::lag) lines: Vec<Bytes>,
    /// Where the server goes on.
    pub(in crate::lag) upstream_from: String,
}

impl Stream {
    /// Keeps the log of the incarnation that ends, if its state was known as a whole.
    pub(super) fn archive(&mut self) {
        let received = self.logged_resource_version().map(str::to_owned);
        let log = std::mem::take(&mut self.log);
        if let (true, Some(received)) = (self.whole, received) {
            self.past.push(Past { log, received });
        }
    }

    /// Ends the watch as the server ends one whose resource version it no longer knows.
    ///
    /// What waits is never handed on: the client lists anew. Returns `false` if the client has dropped it.
    pub(in crate::lag) fn expire(&mut self) -> (bool, Option<std::task::Waker>) {
        match self.body {
            BodyState::Open => {}
            // Its client is told so when it comes back.
            BodyState::Opening | BodyState::Ended => {
                self.upstream = Upstream::Expired;
                return (true, None);
            }
            BodyState::Dropped => return (false, None),
        }
        self.frames.truncate(self.handed);
        let events = self.position();
        let known = self.delivered_resource_version().unwrap_or_default();
        let bytes = wire::gone_frame(known);
        let kind = FrameKind::Cut;
        self.frames.push(Frame { bytes, kind, resource_version: None, events });
        self.upstream = Upstream::Expired;
        if let Some(drain) = self.drain.take() {
            drain.abort();
        }
        (true, self.wake())
    }

    pub(in crate::lag) fn asked(&self) -> Option<&ListVersion> {
        self.asked.as_ref()
    }

    pub(in crate::lag) fn initial_resource_version(&self) -> &str {
        self.log.initial_resource_version()
    }

    /// The resource versions whose states the logs hold, from the oldest.
    pub(in crate::lag) fn retained(&self) -> Vec<String> {
        let mut versions: Vec<String> = self
            .logs()
            .flat_map(|(log, _)| (0..=log.len()).filter_map(|at| log.resource_version_at(at)))
            .map(str::to_owned)
            .collect();
        versions.sort_by(|left, right| {
            compare_resource_versions(left, right).unwrap_or(Ordering::Equal)
        });
        versions.dedup();
        versions
    }

    /// The state at a resource version, from the newest log that reaches it.
    pub(in crate::lag) fn state_at(&self, resource_version: &str) -> Option<Retained> {
        let is = |left: &str, wanted: fn(Ordering) -> bool| {
            compare_resource_versions(left, resource_version).is_some_and(wanted)
        };
        let (log, received) = self.logs().find(|(log, received)| {
            is(log.initial_resource_version(), Ordering::is_le) && is(received, Ordering::is_ge)
        })?;
        let position = log
            .events()
            .iter()
            .take_while(|event| is(&event.resource_version, Ordering::is_le))
            .count();
        let objects = log.fold(position)?.into_values().cloned().collect();
        let lines = log.events()[position..].iter().map(line).collect();
        let after = Replay { lines, upstream_from: received.to_owned() };
        Some(Retained { objects, kind: self.kind.clone(), after })
    }

    /// The logs with what was received of each, the newest first.
    fn logs(&self) -> impl Iterator<Item = (&Log, &str)> {
        let present = (self.whole && self.initial_complete())
            .then(|| Some((&self.log, self.logged_resource_version()?)))
            .flatten();
        present.into_iter().chain(self.past.iter().rev().map(|past| (&past.log, &*past.received)))
    }

    /// How far the log goes: also to what waited when the watch was cut, which no frame carries any more.
    ///
    /// Who watches on behind a replay of the log from before this would be sent its end a second time.
    fn logged_resource_version(&self) -> Option<&str> {
        let received = self.received_resource_version()?;
        let last = self.log.resource_version_at(self.log.len())?;
        let further = compare_resource_versions(last, received).is_some_and(Ordering::is_gt);
        Some(if further { last } else { received })
    }
}

/// The lines by which a watch sends a state, up to the bookmark that ends it.
pub(in crate::lag) fn initial_lines(
    objects: &[Value],
    kind: Option<&(String, String)>,
    resource_version: &str,
) -> Vec<Bytes> {
    let (api_version, kind) = kind.map(|(a, k)| (a.as_str(), k.as_str())).unwrap_or_default();
    let end = json!({"type": "BOOKMARK", "object": {
        "kind": kind, "apiVersion": api_version,
        "metadata": {
            "resourceVersion": resource_version,
            "creationTimestamp": null,
            "annotations": {"k8s.io/initial-events-end": "true"},
        },
    }});
    let added = objects.iter().map(|object| json!({"type": "ADDED", "object": object}));
    added.chain([end]).map(|frame| Bytes::from(format!("{frame}\n"))).collect()
}

fn line(event: &Event) -> Bytes {
    let frame = json!({"type": event.change.to_string(), "object": event.object});
    Bytes::from(format!("{frame}\n"))
}
