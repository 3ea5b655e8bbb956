//! The service between the clients of one world and the server, which answers what is known from memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering};

use http::{
    HeaderMap, Request, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, TRANSFER_ENCODING, USER_AGENT},
    request::Parts,
};
use http_body::Body as _;
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;
use tower::{BoxError, ServiceExt};

use super::{
    Answer, Asking, Known, Place, Recall, Resource, To, Unknown,
    place::{Exchange, Foreign},
};
use crate::{
    connect::{ReplyBody, Upstream},
    lag::{
        model::{Verb, is_for_people},
        wire::{self, Asked},
    },
    world::{World, WorldError, Written},
};

/// Answers the requests of one world's clients from memory, where it can.
///
/// These go to the server, and change nothing about what is known: everything that is in no namespace, reviews, Events,
/// watches, dry runs, reads at a resource version, lists in pages, and reads of subresources but `status` and `scale`.
/// After a write to such a subresource or of a collection, one whose body is not JSON, or one that is under way beside
/// another request, it is not known any more how things stand in this world, and the server answers all that follows. A
/// write outside of the world ends all recall.
#[derive(Clone)]
pub(crate) struct RecallService {
    recall: Recall,
    namespace: Arc<str>,
    /// The revision from which on the world was whole.
    forked: i64,
    place: Arc<Mutex<Place>>,
    upstream: Upstream,
}

/// What a request may do to what is known.
enum Kind {
    /// It says something about the world, or changes it, in a way that is understood.
    Known { resource: Resource, writes: bool },
    /// It does not matter.
    Beside,
    /// It may have any effect on this world.
    Unclear,
    /// It may have any effect on all worlds.
    Outside,
}

impl RecallService {
    pub(super) fn new(recall: Recall, fork: &World, upstream: Upstream) -> Self {
        let (namespace, place) = (fork.namespace().into(), Arc::new(Mutex::new(Place::of(fork))));
        Self { recall, namespace, forked: fork.last_revision(), place, upstream }
    }

    /// What the clients of this world send their requests to.
    pub(crate) fn upstream(&self) -> Upstream {
        let service = self.clone();
        Upstream::new(tower::service_fn(move |request| service.clone().serve(request)))
    }

    /// Looks whether anybody but the clients of this world, who are gone, has written into it.
    pub(crate) async fn close(&self) {
        if self.place().state.is_none() || self.recall.has_ended() {
            return;
        }
        match self.recall.0.worlds.changes_after(&self.namespace, self.forked).await {
            Ok(changes) if changes == self.place().changes => {}
            Ok(_) => self.recall.end(FOREIGN),
            Err(error) => {
                tracing::debug!(%error, "it cannot be told what was written into a world");
                self.recall.end("it cannot be told who has written into the worlds");
            }
        }
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kind(&self, asked: &Asked) -> Kind {
        let target = &asked.target;
        if asked.verb == Verb::Watch
            || is_for_people(&target.group, &target.resource)
            || target.resource.ends_with("reviews")
            || target.resource.is_empty()
            || asked.parameter("dryRun").is_some()
            || asked.parameter("resourceVersion").is_some()
        {
            return Kind::Beside;
        }
        let writes = !matches!(asked.verb, Verb::Get | Verb::List);
        if target.namespace.as_deref() != Some(&*self.namespace) {
            return if writes { Kind::Outside } else { Kind::Beside };
        }
        let plain = matches!(target.subresource.as_deref(), None | Some("status" | "scale"));
        match asked.verb {
            Verb::Get | Verb::List if !plain || asked.parameter("continue").is_some() => {
                Kind::Beside
            }
            Verb::Get
            | Verb::List
            | Verb::Create
            | Verb::Update
            | Verb::Patch(_)
            | Verb::Delete
                if plain =>
            {
                let resource = Resource::new(&*target.group, &*target.resource);
                Kind::Known { resource, writes }
            }
            _ => Kind::Unclear,
        }
    }

    async fn serve(self, request: Request<Body>) -> Reply {
        let (parts, body) = request.into_parts();
        let asked = Asked::read(&parts, &body);
        let request = Request::from_parts(parts.clone(), body);
        // What it says is known if it is JSON.
        let is_read = asked.body.is_some() || request.body().size_hint().exact() == Some(0);
        let kind = match self.kind(&asked) {
            _ if self.recall.has_ended() => Kind::Beside,
            Kind::Known { .. } if !is_read => Kind::Unclear,
            kind => kind,
        };
        let (resource, writes) = match kind {
            Kind::Known { resource, writes } => (resource, writes),
            Kind::Beside => return self.upstream.oneshot(request).await,
            Kind::Unclear => {
                self.place().state = None;
                return self.upstream.oneshot(request).await;
            }
            Kind::Outside => {
                self.recall.end("something outside of the worlds is written");
                return self.upstream.oneshot(request).await;
            }
        };
        let turn = Turn::take(&self.place, writes);
        let (asking, known) = {
            let place = self.place();
            let asking = asking(&place, &parts, &asked, &resource);
            let known = place.state;
            let known = known.and_then(|state| self.recall.memory().look(state, &asking.text));
            (asking, known)
        };
        if let Some(known) = known
            && let Some(reply) = self.recalled(&asking, known).await?
        {
            self.recall.0.recalled.fetch_add(1, Ordering::Relaxed);
            turn.end();
            return Ok(reply);
        }
        self.recall.0.asked.fetch_add(1, Ordering::Relaxed);
        let reply = self.upstream.clone().oneshot(request).await?;
        let (mut parts, body) = reply.into_parts();
        let bytes = body.collect().await?.to_bytes();
        if !parts.headers.contains_key(CONTENT_ENCODING) {
            parts.headers.remove(TRANSFER_ENCODING);
        }
        let value = serde_json::from_slice::<Value>(&bytes).ok();
        match value.filter(|value| is_whole(&parts.headers, value) && is_answer(parts.status)) {
            Some(body) if self.place().state.is_some() => {
                let written = match writes && parts.status.is_success() {
                    true => self.written(&asked, &body).await.unwrap_or_else(|error| {
                        tracing::debug!(%error, "it cannot be told what a write has changed");
                        None
                    }),
                    false => Some(Vec::new()),
                };
                let name = body.pointer("/metadata/name").and_then(Value::as_str);
                let name = asked.target.name.clone().or_else(|| name.map(str::to_owned));
                let (status, headers) = (parts.status, lasting(&parts.headers));
                let (made_up, changes) = (Vec::new(), Vec::new());
                let answer = Answer { status, headers, body, resource, made_up, changes };
                let mut place = self.place();
                match written {
                    None => place.state = None,
                    Some(written) => {
                        let exchange = Exchange { asking, answer, name, written };
                        if let Err(Foreign) = place.see(&self.recall, exchange) {
                            self.recall.end(FOREIGN);
                        }
                    }
                }
            }
            Some(_) => {}
            None if writes => self.place().state = None,
            None => {}
        }
        turn.end();
        Ok(Response::from_parts(parts, wire::whole(bytes)))
    }

    /// What a write has changed in this world; `None` if other worlds must not hold it.
    async fn written(
        &self,
        asked: &Asked,
        reply: &Value,
    ) -> Result<Option<Vec<Written>>, WorldError> {
        let worlds = &self.recall.0.worlds;
        let goes = || reply.pointer("/metadata/deletionTimestamp").is_some();
        let version = || reply.pointer("/metadata/resourceVersion")?.as_str()?.parse().ok();
        let until = match version().filter(|_| asked.verb != Verb::Delete && !goes()) {
            Some(version) => version,
            // There may be more than it says.
            None => worlds.revision().await?,
        };
        let before = self.place().revision;
        // A write that changes nothing answers with an older version.
        if until <= before {
            return Ok(Some(Vec::new()));
        }
        worlds.written(&self.namespace, before, until).await
    }

    /// Answers from memory, after everything that the server wrote then has been written again. `None` if the world is gone.
    async fn recalled(
        &self,
        asking: &Asking,
        known: Known,
    ) -> Result<Option<Response<ReplyBody>>, RecallError> {
        let Known { answer, then } = known;
        self.place().name(&answer, &asking.new);
        for changed in &answer.changes {
            let change = changed.again(&self.place().names, &answer.resource)?;
            let Some(revision) = self.recall.0.worlds.write(&self.namespace, change).await? else {
                self.place().state = None;
                return Ok(None);
            };
            self.place().wrote_again(changed, revision);
        }
        let mut place = self.place();
        let mut body = answer.body.clone();
        place.names.value(&mut body, &answer.resource, To::World)?;
        set_list_version(&mut body, place.revision.to_string());
        if place.state.is_some() {
            place.state = Some(then);
        }
        drop(place);
        let mut reply = wire::json_reply(answer.status, &body);
        *reply.headers_mut() = answer.headers.clone();
        Ok(Some(reply))
    }
}

/// Why something is not answered as it was before. It reaches the code under test as [`kube::Error::Service`].
#[derive(Debug, thiserror::Error)]
enum RecallError {
    #[error("failed to write again what the server has written in the same state of another world")]
    World(#[from] WorldError),
    #[error(
        "failed to answer as the server has in the same state of another world: the answer names a resource version \
         that this one does not have; `Server::without_recall` asks the server every time"
    )]
    Unknown,
}

impl From<Unknown> for RecallError {
    fn from(_: Unknown) -> Self {
        Self::Unknown
    }
}

/// All of a request that may make a difference to its answer.
fn asking(place: &Place, parts: &Parts, asked: &Asked, resource: &Resource) -> Asking {
    let path = parts.uri.path_and_query().map_or("", |it| it.as_str());
    let mut lines = vec![parts.method.as_str(), path];
    let mut headers: Vec<(&str, &str)> = parts
        .headers
        .iter()
        .filter(|(name, _)| !matches!(**name, USER_AGENT | CONTENT_LENGTH))
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .collect();
    headers.sort_unstable();
    lines.extend(headers.iter().flat_map(|(name, value)| [*name, *value]));
    Asking::of(&place.names, &lines, asked.body.as_ref(), resource)
}

/// Whether an answer can be kept: JSON of one piece.
fn is_whole(headers: &HeaderMap, body: &Value) -> bool {
    let is_json = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|it| it.starts_with("application/json"));
    let more = body.pointer("/metadata/continue").and_then(Value::as_str).unwrap_or_default();
    is_json && more.is_empty() && !headers.contains_key(CONTENT_ENCODING)
}

/// Whether it is the server's last word, and not that it is busy or has not heard of a role yet.
fn is_answer(status: StatusCode) -> bool {
    const PASSING: [StatusCode; 4] = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    status.is_success() || (status.is_client_error() && !PASSING.contains(&status))
}

/// Without what belongs to one connection or one moment.
fn lasting(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for gone in [CONTENT_LENGTH, TRANSFER_ENCODING, DATE] {
        headers.remove(gone);
    }
    headers.remove("audit-id");
    headers
}

/// The version of a list is that of all of etcd; another world has its own.
pub(super) fn set_list_version(body: &mut Value, new: String) {
    if body.get("items").is_some_and(Value::is_array)
        && let Some(version) = body.pointer_mut("/metadata/resourceVersion")
    {
        *version = Value::String(new);
    }
}

const FOREIGN: &str = "something was changed that no client of its world has asked for";

/// A request that is under way.
struct Turn {
    place: Arc<Mutex<Place>>,
    writes: bool,
    ended: bool,
}

impl Turn {
    /// Beside a write, or as one, nobody knows what comes first.
    fn take(place: &Arc<Mutex<Place>>, writes: bool) -> Self {
        let mut own = place.lock().unwrap_or_else(PoisonError::into_inner);
        if own.writes > 0 || (writes && own.reads > 0) {
            own.state = None;
        }
        match writes {
            true => own.writes += 1,
            false => own.reads += 1,
        }
        drop(own);
        Self { place: Arc::clone(place), writes, ended: false }
    }

    fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        match self.writes {
            true => place.writes -= 1,
            false => place.reads -= 1,
        }
        // What was cut off may have been done all the same.
        if self.writes && !self.ended {
            place.state = None;
        }
    }
}

type Reply = Result<Response<ReplyBody>, BoxError>;
