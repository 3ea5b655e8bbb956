//! The task that follows the server for one tap, and comes back when the connection ends.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING},
};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;
use tower::ServiceExt;

use super::{
    Tap, TapError,
    state::{Taken, excerpt},
};
use crate::{
    connect::{ReplyBody, Upstream},
    lag::wire,
    text::chain,
};

/// The pause after the first and before every later attempt to reach the server again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Fills one tap.
pub(super) struct Follower {
    pub(super) upstream: Upstream,
    pub(super) tap: Arc<Tap>,
}

/// How a connection ended.
struct End {
    /// Whether it had brought anything.
    useful: bool,
    /// What broke it, if something did.
    trouble: Option<String>,
}

impl Follower {
    /// Begins from the present state or after a resource version; returns the watch to go on with.
    pub(super) async fn begin(&self, since: Option<&str>) -> Result<ReplyBody, TapError> {
        let Some(since) = since else { return self.begin_anew().await };
        let Some(revision) = since.parse().ok().filter(|revision| *revision > 0) else {
            let (resource, since) = (self.tap.resource.clone(), since.to_owned());
            return Err(TapError::NoVersion { resource, since });
        };
        self.tap.change(|state| state.begin_after(revision));
        self.watch(revision).await
    }

    async fn begin_anew(&self) -> Result<ReplyBody, TapError> {
        let path = self.tap.resource.path();
        let reply = ask(&self.upstream, &path).await?;
        let list = read_json(&path, reply).await?;
        let shown = excerpt(list.to_string().as_bytes());
        let begun = self.tap.change(|state| {
            state.begin_with(list, &self.tap.keep)?;
            // Its own resource version, which is numeric.
            Ok(state.resumes_at().unwrap_or_default())
        });
        let revision = begun.map_err(|problem: &'static str| TapError::Unreadable {
            attempt: format!("list {path}"),
            problem: problem.to_owned(),
            body: shown,
        })?;
        self.watch(revision).await
    }

    async fn watch(&self, after: i64) -> Result<ReplyBody, TapError> {
        let path = self.tap.resource.path();
        let query = format!("{path}?watch=true&allowWatchBookmarks=true&resourceVersion={after}");
        let reply = ask(&self.upstream, &query).await?;
        match reply.status() {
            StatusCode::OK => Ok(reply.into_body()),
            // The same news in the form in which a watch tells it.
            StatusCode::GONE => Ok(wire::whole(wire::gone_frame(&after.to_string()))),
            _ => Err(refused(&query, reply).await),
        }
    }

    /// Follows for ever; ended from outside.
    pub(super) async fn run(self, mut body: ReplyBody) {
        let mut pause = Duration::ZERO;
        loop {
            let end = self.take_in(&mut body).await;
            tracing::debug!(resource = %self.tap.resource, trouble = ?end.trouble, "a tap's watch ended");
            self.tap.change(|state| state.trouble = end.trouble);
            if end.useful {
                pause = Duration::ZERO;
            }
            body = self.come_back(&mut pause).await;
        }
    }

    async fn come_back(&self, pause: &mut Duration) -> ReplyBody {
        loop {
            // The one thing that is awaited by time: nothing tells when a server can be reached again.
            if !pause.is_zero() {
                tokio::time::sleep(*pause).await;
            }
            *pause = (*pause * 2).clamp(PAUSES.0, PAUSES.1);
            let watch = match self.tap.look(|state| state.resumes_at()) {
                Some(revision) => self.watch(revision).await,
                None => self.begin_anew().await,
            };
            match watch {
                Ok(body) => return body,
                Err(error) => {
                    let trouble = chain(&error);
                    tracing::debug!(resource = %self.tap.resource, %trouble, "failed to open a tap again");
                    self.tap.change(|state| state.trouble = Some(trouble));
                }
            }
        }
    }

    async fn take_in(&self, body: &mut ReplyBody) -> End {
        let mut rest = BytesMut::new();
        let mut searched = 0;
        let mut useful = false;
        loop {
            let trouble = match body.frame().await {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    rest.extend_from_slice(&data);
                    let mut taken = Ok(Taken::InOrder);
                    while let (Ok(Taken::InOrder), Some(found)) =
                        (&taken, rest[searched..].iter().position(|byte| *byte == b'\n'))
                    {
                        let line = rest.split_to(searched + found + 1).freeze();
                        searched = 0;
                        taken = self.receive(line);
                        useful |= taken.is_ok();
                    }
                    match taken {
                        Ok(Taken::InOrder) => {
                            searched = rest.len();
                            continue;
                        }
                        Ok(Taken::Expired) => None,
                        Err(trouble) => Some(trouble),
                    }
                }
                Some(Err(error)) => Some(chain(&*error)),
                // A line that the connection cut off is no event: it comes again with the next one.
                None => None,
            };
            return End { useful, trouble };
        }
    }

    fn receive(&self, line: Bytes) -> Result<Taken, String> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(Taken::InOrder);
        }
        self.tap.change(|state| {
            let taken = state.take_in(line, &self.tap.keep);
            if taken.is_ok() {
                state.trouble = None;
            }
            taken
        })
    }
}

/// A GET as this module makes all of them: JSON, in plain text.
pub(super) async fn ask(
    upstream: &Upstream,
    path_and_query: &str,
) -> Result<Response<ReplyBody>, TapError> {
    let attempt = || format!("ask for {path_and_query}");
    let mut request =
        Request::get(path_and_query).body(Body::empty()).map_err(|error| TapError::Unreadable {
            attempt: attempt(),
            problem: error.to_string(),
            body: path_and_query.to_owned(),
        })?;
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
    // Servers from 1.37 on would compress each event by itself.
    request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let reply = upstream.clone().oneshot(request).await;
    reply.map_err(|source| TapError::Unreachable { attempt: attempt(), source })
}

/// The document that a request is answered with, if that is a success.
pub(super) async fn read_json(
    path_and_query: &str,
    reply: Response<ReplyBody>,
) -> Result<Value, TapError> {
    if reply.status() != StatusCode::OK {
        return Err(refused(path_and_query, reply).await);
    }
    let attempt = || format!("read the reply to {path_and_query}");
    let body = reply.into_body().collect().await;
    let body = body.map_err(|source| TapError::Unreachable { attempt: attempt(), source })?;
    let body = body.to_bytes();
    serde_json::from_slice(&body).map_err(|error| TapError::Unreadable {
        attempt: attempt(),
        problem: error.to_string(),
        body: excerpt(&body),
    })
}

async fn refused(path_and_query: &str, reply: Response<ReplyBody>) -> TapError {
    let status = reply.status();
    let body = match reply.into_body().collect().await {
        Ok(body) => excerpt(&body.to_bytes()),
        Err(error) => chain(&*error),
    };
    TapError::Refused { attempt: format!("ask for {path_and_query}"), status, body }
}
