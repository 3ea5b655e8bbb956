//! The task that takes in a watch from the server as fast as it comes, whatever the client may have of it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;
use tower::ServiceExt;

use super::{
    engine::{Engine, Which},
    streams::AfterEnd,
    wire,
};
use crate::connect::{ReplyBody, Upstream};
use crate::text::chain;

/// The pause after the first and before every later attempt to reach the server again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Takes in one watch; lives as long as the body that it feeds.
pub(super) struct Drain {
    /// Not kept alive by this: when all handles on it are gone, so is the task.
    pub(super) engine: Weak<Engine>,
    pub(super) upstream: Upstream,
    pub(super) stream: Which,
    pub(super) epoch: u64,
    /// The request with which the watch was opened, for opening it again while it is held.
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
}

impl Drain {
    pub(super) async fn run(self, mut body: ReplyBody) {
        loop {
            let error = self.take_in(&mut body).await;
            let Some(engine) = self.engine.upgrade() else { return };
            engine.change_and_wake(|registry| {
                ((), registry.at_mut(self.stream).upstream_ended(self.epoch, error))
            });
            match self.reopen(&engine).await {
                Some(next) => body = next,
                None => return,
            }
        }
    }

    /// Returns what broke the connection, or `None` if the server closed it in good order.
    async fn take_in(&self, body: &mut ReplyBody) -> Option<String> {
        let mut rest = BytesMut::new();
        loop {
            match body.frame().await {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    rest.extend_from_slice(&data);
                    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                        self.receive(rest.split_to(end + 1).freeze());
                    }
                }
                Some(Err(error)) => return Some(chain(&*error)),
                None => {
                    // A line that the connection cut off is no event; kube skips it as well.
                    if serde_json::from_slice::<Value>(&rest).is_ok() {
                        rest.extend_from_slice(b"\n");
                        self.receive(rest.freeze());
                    } else if !rest.is_empty() {
                        tracing::debug!(bytes = rest.len(), "watch ended within a line");
                    }
                    return None;
                }
            }
        }
    }

    fn receive(&self, line: Bytes) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        if let Some(engine) = self.engine.upgrade() {
            engine.receive(self.stream, self.epoch, line);
        }
    }

    /// Watches on from where the stream is, if it is held; otherwise its client does that itself.
    async fn reopen(&self, engine: &Arc<Engine>) -> Option<ReplyBody> {
        let mut pause = PAUSES.0;
        loop {
            let after_end = |registry: &super::engine::Registry| {
                let after = registry.at(self.stream).after_end(self.epoch);
                (after != AfterEnd::Wait).then_some(after)
            };
            let AfterEnd::Reopen { resource_version } = engine.wait_for_ever(after_end).await
            else {
                return None;
            };
            let trouble = match self.watch_from(&resource_version).await {
                Ok(body) => {
                    engine.change(|registry| {
                        registry.at_mut(self.stream).upstream_reopened(self.epoch)
                    });
                    return Some(body);
                }
                Err(trouble) => trouble,
            };
            tracing::debug!(%resource_version, %trouble, "failed to open a held watch again");
            engine.change(|registry| registry.at_mut(self.stream).trouble = Some(trouble));
            // The one thing that is awaited by time: nothing tells when a server can be reached again.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn watch_from(&self, resource_version: &str) -> Result<ReplyBody, String> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = wire::watch_from(&self.uri, resource_version);
        *request.headers_mut() = self.headers.clone();
        let reply = self.upstream.clone().oneshot(request).await.map_err(|error| chain(&*error))?;
        match reply.status() {
            StatusCode::OK => Ok(reply.into_body()),
            // The same news in the form in which a watch tells it.
            StatusCode::GONE => Ok(wire::whole(wire::gone_frame(resource_version))),
            status => Err(format!("the server answers {status}")),
        }
    }
}
