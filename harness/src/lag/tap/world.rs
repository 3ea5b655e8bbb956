//! The service of one world: what its clients see of the server, cut down to one namespace.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use http_body::Frame;
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::{sync::mpsc, time::Sleep};
use tower::{BoxError, Service, ServiceExt};

use super::{
    Tap, TapResource, Taps, World, follow,
    state::{Form, Listing},
};
use crate::{
    connect::{ReplyBody, Upstream},
    lag::{
        model::Verb,
        wire::{self, Asked},
    },
};

/// Sends the requests of one world's clients on to the server, and answers lists and watches of its
/// namespace from the taps where these are sure to know.
///
/// - A watch of whole objects without selectors, from a resource version since which the tap knows everything.
/// - A list of the same, after [`complete`](Self::complete) and before the first write of any client of this world.
/// - Lists and watches of all namespaces are narrowed to this one; namespaces themselves, as all that is
///   in none, are those of the server.
#[derive(Clone)]
pub(crate) struct WorldService {
    pub(super) taps: Taps,
    pub(super) world: Arc<World>,
    /// Where it sends requests on to.
    pub(super) upstream: Upstream,
}

impl WorldService {
    /// Says that the taps have all of this world, since [`Taps::reached`] was awaited for the last revision of each
    /// resource, and that only clients of this world write to it.
    pub(crate) fn complete(&self) {
        self.world.complete.store(true, Ordering::SeqCst);
    }

    /// Sends requests on to another than the server of the taps.
    pub(crate) fn through(self, upstream: Upstream) -> Self {
        Self { upstream, ..self }
    }

    async fn serve(self, request: Request<Body>, mut asked: Asked) -> Reply {
        let (mut parts, body) = request.into_parts();
        if self.is_too_wide(&asked).await? {
            parts.uri = wire::in_namespace(&parts.uri, &asked.target, &self.world.namespace);
            asked.target.namespace = Some(self.world.namespace.clone());
        }
        if let Some(reply) = self.tap_answer(&asked, &parts.headers).await {
            return Ok(reply);
        }
        self.upstream.oneshot(Request::from_parts(parts, body)).await
    }

    /// Whether a request would show the objects of other worlds.
    async fn is_too_wide(&self, asked: &Asked) -> Result<bool, BoxError> {
        let target = &asked.target;
        if !matches!(asked.verb, Verb::List | Verb::Watch)
            || target.resource.is_empty()
            || target.name.is_some()
            || target.namespace.is_some()
        {
            return Ok(false);
        }
        let resource = TapResource::of(target);
        if self.taps.is_open(&resource) {
            return Ok(true);
        }
        // The server refuses what it does not have.
        let namespaced = self.taps.0.scopes.is_namespaced(&self.taps.0.upstream, &resource).await?;
        Ok(namespaced.unwrap_or(false))
    }

    async fn tap_answer(&self, asked: &Asked, headers: &HeaderMap) -> Option<Response<ReplyBody>> {
        let target = &asked.target;
        if target.namespace.as_ref() != Some(&self.world.namespace)
            || target.name.is_some()
            || !takes_json(headers)
        {
            return None;
        }
        let tap = self.taps.0.tap(&TapResource::of(target))?;
        match asked.verb {
            Verb::List => self.list(&tap, asked).await,
            Verb::Watch => self.watch(&tap, asked),
            _ => None,
        }
    }

    fn watch(&self, tap: &Tap, asked: &Asked) -> Option<Response<ReplyBody>> {
        if !asks_only(asked, &["watch", "resourceVersion", "allowWatchBookmarks", "timeoutSeconds"])
        {
            return None;
        }
        let after = asked.parameter("resourceVersion")?.parse().ok()?;
        let bookmarks = match asked.parameter("allowWatchBookmarks") {
            None | Some("false" | "0") => false,
            Some("true" | "1") => true,
            Some(_) => return None,
        };
        let seconds = asked.parameter("timeoutSeconds").map(|seconds| seconds.parse::<u32>());
        let seconds = seconds.transpose().ok()?.filter(|seconds| *seconds > 0);
        let lines =
            tap.change(|state| state.watch(&self.world.namespace, after, bookmarks, &tap.keep))?;
        let end = seconds
            .map(|seconds| Box::pin(tokio::time::sleep(Duration::from_secs(seconds.into()))));
        let mut reply = Response::new(TapBody { lines, end }.boxed_unsync());
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Some(reply)
    }

    async fn list(&self, tap: &Tap, asked: &Asked) -> Option<Response<ReplyBody>> {
        const KNOWN: [&str; 4] =
            ["limit", "resourceVersion", "resourceVersionMatch", "timeoutSeconds"];
        // A write that begins after this check overlaps with this list, which may show the state before it.
        if !self.world.is_as_the_taps_show() || !asks_only(asked, &KNOWN) {
            return None;
        }
        let any_state = match asked.parameter("resourceVersion") {
            None => false,
            Some("0") => true,
            Some(_) => return None,
        };
        match asked.parameter("resourceVersionMatch") {
            None => {}
            Some("NotOlderThan") if any_state => {}
            Some(_) => return None,
        }
        let limit = match asked.parameter("limit").map(str::parse::<usize>) {
            None | Some(Ok(0)) => usize::MAX,
            Some(Ok(limit)) => limit,
            Some(Err(_)) => return None,
        };
        let listing = || tap.look(|state| state.list(&self.world.namespace, limit, &tap.keep));
        let known = match listing() {
            Listing::FormUnknown => {
                self.learn_form(tap).await?;
                listing()
            }
            known => known,
        };
        match known {
            Listing::Known(list) => Some(wire::json_reply(StatusCode::OK, &list)),
            Listing::FormUnknown | Listing::NotOurs => None,
        }
    }

    /// Asks the server for the list, to see how it writes lists of this resource; once for a tap that has seen none
    /// with objects.
    async fn learn_form(&self, tap: &Tap) -> Option<()> {
        let path = tap.resource.path_in(&self.world.namespace);
        let list = async {
            let reply = follow::ask(&self.taps.0.upstream, &path).await?;
            follow::read_json(&path, reply).await
        };
        match list.await {
            Ok(list) => {
                let form = Form::of(&list)?;
                tap.change(|state| state.learn(form));
                Some(())
            }
            Err(error) => {
                // The server is asked for the list itself, and its client is told.
                tracing::debug!(%error, "failed to learn how lists are written");
                None
            }
        }
    }
}

type Reply = Result<Response<ReplyBody>, BoxError>;

impl Service<Request<Body>> for WorldService {
    type Response = Response<ReplyBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Reply>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let asked = Asked::read(&parts, &Body::empty());
        // Before it is sent: from the moment at which it may take effect, the taps may be behind.
        if asked.verb.is_write() || asked.verb == Verb::Connect {
            self.world.written.store(true, Ordering::SeqCst);
        }
        Box::pin(self.clone().serve(Request::from_parts(parts, body), asked))
    }
}

/// Whether the query has no parameters but these.
fn asks_only(asked: &Asked, known: &[&str]) -> bool {
    asked.query.iter().all(|(key, value)| value.is_empty() || known.contains(&&**key))
}

/// Whether plain JSON of whole objects is what the client wants.
fn takes_json(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().all(|accept| {
        let ranges = accept.to_str().unwrap_or("?").split(',');
        ranges.map(|range| range.split(';').map(str::trim)).all(|mut parts| {
            matches!(parts.next(), Some("application/json" | "application/*" | "*/*"))
                && !parts.any(|parameter| parameter.starts_with("as="))
        })
    })
}

/// A watch: one event a chunk.
struct TapBody {
    lines: mpsc::UnboundedReceiver<Bytes>,
    /// When the client wants it to end.
    end: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for TapBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(line) = self.lines.poll_recv(context) {
            return Poll::Ready(line.map(|line| Ok(Frame::data(line))));
        }
        match &mut self.end {
            Some(end) => end.as_mut().poll(context).map(|()| None),
            None => Poll::Pending,
        }
    }
}
