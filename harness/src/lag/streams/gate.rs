//! Handing frames to the client, and deciding which may pass.

use std::{
    cmp::Ordering,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{
    super::model::compare_resource_versions, BodyState, Frame, FrameKind, Gate, Stream, Upstream,
};

/// The body of the watch that is open.
impl Stream {
    /// The client asks for the next frame. The error is the text of what broke the connection.
    pub(in crate::lag) fn poll(
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
    pub(in crate::lag) fn body_dropped(&mut self, epoch: u64) {
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

    pub(super) fn may_pass(&self, frame: usize) -> bool {
        match self.gate {
            Gate::Open => true,
            // All frames before this one have passed, so a bookmark here overtakes nothing.
            Gate::Held { up_to } => {
                frame < up_to
                    || !matches!(self.frames[frame].kind, FrameKind::Event | FrameKind::Error)
            }
        }
    }

    pub(super) fn wake(&mut self) -> Option<Waker> {
        let more = self.handed < self.frames.len() && self.may_pass(self.handed);
        let over = self.handed == self.frames.len() && !matches!(self.upstream, Upstream::Flowing);
        if more || over { self.waker.take() } else { None }
    }
}

/// The gate before it.
impl Stream {
    pub(in crate::lag) fn hold(&mut self) {
        if self.gate == Gate::Open {
            self.gate = Gate::Held { up_to: self.handed };
        }
    }

    /// Lifts the hold. Returns the frames that have to be shown for the release to be complete.
    pub(in crate::lag) fn open_gate(&mut self) -> (usize, Option<Waker>) {
        self.gate = Gate::Open;
        (self.frames.len(), self.wake())
    }

    /// The end of the next event that is not released yet, counted in frames.
    pub(in crate::lag) fn next_held(&self) -> Option<usize> {
        let first = self.first_unreleased();
        let waiting = self.frames.get(first..)?;
        let stops = |frame: &Frame| matches!(frame.kind, FrameKind::Event | FrameKind::Error);
        Some(first + waiting.iter().position(stops)? + 1)
    }

    /// The end of the next `count` events or errors that have not been handed on, counted in frames.
    pub(in crate::lag) fn end_of_waiting(&self, count: usize) -> Option<usize> {
        let waiting = self.frames.get(self.handed..)?.iter().enumerate();
        let mut stops =
            waiting.filter(|(_, frame)| matches!(frame.kind, FrameKind::Event | FrameKind::Error));
        stops.nth(count.checked_sub(1)?).map(|(index, _)| self.handed + index + 1)
    }

    /// The end of what a wrapped read has shown, counted in frames.
    pub(in crate::lag) fn end_of_read(&self) -> Option<usize> {
        let shown = |frame: &Frame| frame.kind == FrameKind::Event && frame.events == self.read;
        self.frames.iter().position(shown).map(|index| index + 1)
    }

    /// Whether a wrapped read has shown more than the store.
    pub(in crate::lag) fn is_read_ahead(&self) -> bool {
        self.read > self.position() && self.body == BodyState::Open
    }

    /// The end of everything up to a resource version, counted in frames.
    /// `None` if that version has not been received.
    pub(in crate::lag) fn end_of(&self, resource_version: &str) -> Option<usize> {
        let at_most = |version: &str| {
            compare_resource_versions(version, resource_version).is_some_and(Ordering::is_le)
        };
        let received = self.received_resource_version()?;
        compare_resource_versions(received, resource_version).filter(|order| order.is_ge())?;
        let last =
            self.frames.iter().rposition(|f| f.resource_version.as_deref().is_some_and(at_most));
        Some(last.map_or(0, |last| last + 1))
    }

    /// Lets the frames below `up_to` pass.
    pub(in crate::lag) fn release(&mut self, up_to: usize) -> Option<Waker> {
        if let Gate::Held { up_to: limit } = &mut self.gate {
            *limit = up_to.max(*limit);
        }
        self.wake()
    }

    /// Takes back what was released and has not been handed on.
    pub(in crate::lag) fn revoke(&mut self) {
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
}
