//! The tower service between a client and its server: every request is recorded here, every watch gated.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING},
    request::Parts,
};
use http_body::Frame;
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;
use tower::{BoxError, Service, ServiceExt};

use super::{
    answers::{Answer, Applied, Effect},
    boundary::{self, Reached},
    chronicle::{Act, AnsweredFrom, Entry},
    engine::{self, Engine, Opening, Registry, Which},
    fence::{self, Looker},
    flips,
    model::{AnsweredBy, Identity, ObjectKey, Outcome, Seen, Verb},
    relist::ListStart,
    state::Told,
    streams::{Brought, Replay, Start, initial_lines},
    upstream::Drain,
    wire::{self, Asked},
};
use crate::connect::{ReplyBody, Upstream};
use crate::text::chain;

/// Serves the requests of one client.
pub(super) struct LagService {
    pub(super) engine: Arc<Engine>,
    pub(super) upstream: Upstream,
}

impl Service<Request<Body>> for LagService {
    type Response = Response<ReplyBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<ReplyBody>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.extensions().get::<Passing>().is_some() {
            return Box::pin(std::future::ready(Ok(Response::new(wire::whole(Bytes::new())))));
        }
        let (parts, body) = request.into_parts();
        let asked = Asked::read(&parts, &body);
        // The buffer inside the client enters the caller's span before it calls us.
        let span = tracing::Span::current().metadata().map(|span| span.name().to_owned());
        let (engine, upstream) = (Arc::clone(&self.engine), self.upstream.clone());
        let waiting = match asked.verb {
            Verb::List | Verb::Watch => None,
            _ => BehindCurtain::wait(&engine),
        };
        match waiting {
            None => begin(engine, upstream, asked, span, parts, body),
            Some(waiting) => Box::pin(async move {
                waiting.until_open().await;
                begin(engine, upstream, asked, span, parts, body).await
            }),
        }
    }
}

/// Puts a request into the record, and in line with the others.
fn begin(
    engine: Arc<Engine>,
    upstream: Upstream,
    asked: Asked,
    span: Option<String>,
    mut parts: Parts,
    body: Body,
) -> BoxFuture<'static, Reply> {
    let mut record = asked.record(span);
    engine.change(|registry| registry.count_in_pass(&mut record));
    let flippable =
        matches!(asked.verb, Verb::Get | Verb::List) && !asked.target.resource.is_empty();
    let applied = engine.rules.apply(&record, flippable);
    let ticket = Ticket::new(&engine, record, asked.streams_its_reply());
    if !asked.streams_its_reply() {
        // Replies are read here, so they must come as plain text.
        parts.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    let serving = Serving { engine, upstream, asked, ticket };
    Box::pin(serving.serve(applied, Request::from_parts(parts, body)))
}

/// Marks a request that is answered at once, and neither recorded nor sent: since a client hands its requests on in
/// their order, those made before it have arrived when its reply is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passing;

/// A request that waits for the curtain to be opened.
struct BehindCurtain(Arc<Engine>);

impl BehindCurtain {
    /// `None` if the curtain is open.
    fn wait(engine: &Arc<Engine>) -> Option<Self> {
        let waits = engine.change(|registry| {
            let closed = registry.curtain.closed;
            registry.curtain.waiting += usize::from(closed);
            closed
        });
        waits.then(|| Self(Arc::clone(engine)))
    }

    async fn until_open(self) {
        self.0.wait_for_ever(|registry| (!registry.curtain.closed).then_some(())).await;
    }
}

impl Drop for BehindCurtain {
    fn drop(&mut self) {
        self.0.change(|registry| registry.curtain.waiting -= 1);
    }
}

/// Serves the requests of an actor: its writes are fenced, and nothing else is touched.
pub(super) struct ActorService {
    pub(super) engine: Arc<Engine>,
    pub(super) upstream: Upstream,
}

impl Service<Request<Body>> for ActorService {
    type Response = Response<ReplyBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<ReplyBody>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (engine, upstream) = (Arc::clone(&self.engine), self.upstream.clone());
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let asked = Asked::read(&parts, &body);
            asked.tell(&parts.method, &parts.uri, &parts.headers);
            if !asked.verb.is_write() || asked.streams_its_reply() {
                return upstream.oneshot(Request::from_parts(parts, body)).await;
            }
            parts.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            let headers = parts.headers.clone();
            let number = engine.change(Registry::act_begins);
            let reply = upstream.clone().oneshot(Request::from_parts(parts, body)).await?;
            let (reply, value) = read_whole(reply).await?;
            let looker = Looker { upstream, headers };
            fence::pass(&engine, &looker, &asked, reply.status(), value.as_ref()).await?;
            engine.change(|registry| {
                registry.act_ends(number, &asked, reply.status(), value.as_ref());
            });
            Ok(reply)
        })
    }
}

/// One request on its way.
struct Serving {
    engine: Arc<Engine>,
    upstream: Upstream,
    asked: Asked,
    ticket: Ticket,
}

/// Where the frames of a watch come from before those of its own connection.
enum Source {
    Known(usize),
    New(Start),
}

type Reply = Result<Response<ReplyBody>, BoxError>;

impl Serving {
    async fn serve(mut self, applied: Option<Applied>, request: Request<Body>) -> Reply {
        let Some(applied) = applied else { return self.ask_server(request).await };
        match applied.effect {
            Effect::Flip => {
                self.ticket.by = AnsweredBy::Flip;
                let flipped = flips::answer(&self.engine, &self.asked);
                self.ticket.from = flipped.from.unwrap_or(AnsweredFrom::Test);
                self.finish_with(flipped.code, &flipped.value).await
            }
            Effect::Answer(Answer::Status(code)) => {
                self.ticket.by = AnsweredBy::Answer;
                let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let refusal = wire::refusal(code, &self.asked);
                self.finish_with(code, &refusal).await
            }
            Effect::Answer(Answer::Timeout) => {
                self.ticket.by = AnsweredBy::Answer;
                // It may never be answered, and those after it are.
                self.engine.change(|registry| registry.request_ends(self.ticket.number));
                applied.lifted().await;
                self.ticket.by = AnsweredBy::Server;
                self.ask_server(request).await
            }
            Effect::Answer(Answer::BrokenConnection) => self.break_connection().await,
            Effect::Answer(Answer::LostReply) => {
                // Whatever the server says is lost, a refusal as well; what it has done is fenced all the same.
                let headers = request.headers().clone();
                self.asked.tell(request.method(), request.uri(), request.headers());
                let Ok(reply) = self.upstream.clone().oneshot(request).await else {
                    return self.break_connection().await;
                };
                let (reply, value) = self.read(reply).await?;
                self.fence(headers, reply.status(), value.as_ref()).await?;
                self.break_connection().await
            }
        }
    }

    async fn ask_server(mut self, request: Request<Body>) -> Reply {
        if self.asked.streams_its_reply() {
            let reply = self.send(request).await?;
            self.ticket.finish(Outcome::Status(reply.status().as_u16()));
            return Ok(reply);
        }
        match (self.asked.verb, self.asked.identity()) {
            (Verb::Watch, Some(identity)) => self.watch(request, &identity).await,
            (_, identity) => self.exchange(request, identity).await,
        }
    }

    /// A request with one reply.
    async fn exchange(mut self, mut request: Request<Body>, identity: Option<Identity>) -> Reply {
        let headers = request.headers().clone();
        let page = self.asked.parameter("continue").map(str::to_owned);
        let version = self.asked.list_version();
        let mut chosen = None;
        if let (Some(identity), None) = (&identity, &page) {
            match self.engine.list_start(identity, &version) {
                ListStart::AsAsked => {}
                ListStart::At(start) => {
                    *request.uri_mut() = wire::list_exactly(request.uri(), &start);
                    chosen = Some(start);
                }
                ListStart::Refused(message) => return self.refuse(&message).await,
            }
        }
        let reply = self.send(request).await?;
        let (mut reply, mut value) = self.read(reply).await?;
        if let (Some(identity), Some(start)) = (&identity, &chosen)
            && reply.status() != StatusCode::OK
            && let Some(known) = self.engine.look(|registry| registry.state_at(identity, start))
        {
            // The server has forgotten what our log still knows.
            self.ticket.by = AnsweredBy::Log;
            let list = wire::list_reply(known.objects, known.kind.as_ref(), start);
            reply = wire::json_reply(StatusCode::OK, &list);
            value = Some(list);
        }
        if let (Some(identity), StatusCode::OK, Some(value)) = (identity, reply.status(), &value) {
            self.engine.change(|registry| {
                let number = self.ticket.number;
                let chosen = chosen.is_some();
                registry.listed(&identity, page.as_deref(), value, version, chosen, number)
            });
        }
        self.ticket.answered(value.as_ref());
        self.fence(headers, reply.status(), value.as_ref()).await?;
        let outcome = Outcome::Status(reply.status().as_u16());
        match self.reach_boundary(&outcome).await {
            Reached::HandedBack => {
                self.ticket.finish(outcome);
                Ok(reply)
            }
            Reached::Lost => {
                let error = connection_reset("as the schedule says");
                self.ticket.finish(Outcome::Failed(error.to_string()));
                Err(error.into())
            }
        }
    }

    /// Waits until the streams have received what a write has done.
    async fn fence(
        &mut self,
        headers: HeaderMap,
        status: StatusCode,
        reply: Option<&Value>,
    ) -> Result<(), BoxError> {
        let looker = Looker { upstream: self.upstream.clone(), headers };
        let passed = fence::pass(&self.engine, &looker, &self.asked, status, reply).await;
        passed.map_err(|error| {
            self.ticket.finish(Outcome::Failed(error.to_string()));
            error.into()
        })
    }

    /// A watch of which the client gets what its stream lets pass.
    async fn watch(mut self, mut request: Request<Body>, identity: &Identity) -> Reply {
        let resource_version =
            self.asked.parameter("resourceVersion").unwrap_or_default().to_owned();
        let initial_events = self.asked.parameter("sendInitialEvents") == Some("true");
        let mut before = None;
        if initial_events {
            match self.engine.list_start(identity, &self.asked.list_version()) {
                ListStart::AsAsked => {}
                ListStart::At(start) => {
                    let mut list = Request::new(Body::empty());
                    *list.uri_mut() = wire::list_exactly(request.uri(), &start);
                    *list.headers_mut() = wire::headers_of_list(request.headers());
                    match self.initial_events(list, identity, &start).await? {
                        Ok(replay) => before = Some(replay),
                        Err(refusal) => return Ok(refusal),
                    }
                }
                ListStart::Refused(message) => return self.refuse(&message).await,
            }
        }
        let (opening, claim) = self.engine.change(|registry| {
            let opening = registry.opening(identity, &resource_version, initial_events);
            let claim = match &opening {
                Opening::Continue { index, .. } => {
                    Some(Claim::new(&self.engine, *index, registry.streams[*index].claim()))
                }
                Opening::Begin(..) | Opening::Gone => None,
            };
            (opening, claim)
        });
        let source = match opening {
            Opening::Gone => return self.expired(&resource_version),
            Opening::Continue { index, upstream_from } => {
                self.ticket.by = AnsweredBy::Log;
                *request.uri_mut() = wire::watch_from(request.uri(), &upstream_from);
                Source::Known(index)
            }
            Opening::Begin(start, replay) => {
                before = before.or(replay);
                Source::New(start)
            }
        };
        if let Some(replay) = &before {
            *request.uri_mut() = wire::watch_from(request.uri(), &replay.upstream_from);
        }
        let (uri, headers) = (request.uri().clone(), request.headers().clone());
        let reply = self.send(request).await?;
        if reply.status() != StatusCode::OK {
            let (reply, _) = self.read(reply).await?;
            self.ticket.by = AnsweredBy::Server;
            self.ticket.finish(Outcome::Status(reply.status().as_u16()));
            return Ok(reply);
        }
        let (parts, incoming) = reply.into_parts();
        let number = self.ticket.number;
        if self.engine.schedule.is_set() {
            // The order of streams is part of what a schedule repeats.
            boundary::turn(&self.engine, number).await;
        }
        let opened = self.engine.change(|registry| match source {
            // While the request was on its way; it could continue nothing that had expired before.
            Source::Known(index) if registry.streams[index].is_expired() => None,
            Source::Known(index) => {
                let resource_version = resource_version.clone();
                registry.note(Entry::Resumed { stream: index, resource_version });
                Some((index, registry.streams[index].open()))
            }
            Source::New(start) => {
                let begun = registry.begin(identity, start);
                registry.streams[begun.0].list_request = number;
                Some(begun)
            }
        });
        let Some((stream, epoch)) = opened else { return self.expired(&resource_version) };
        drop(claim);
        for line in before.map(|replay| replay.lines).into_iter().flatten() {
            self.engine.receive(Which::Client(stream), epoch, line);
        }
        let engine = Arc::downgrade(&self.engine);
        let upstream = self.upstream.clone();
        let which = Which::Client(stream);
        let drain = Drain { engine, upstream, stream: which, epoch, uri, headers };
        let drain = tokio::spawn(drain.run(incoming)).abort_handle();
        self.engine.change(|registry| registry.streams[stream].drained_by(drain));
        self.ticket.finish(Outcome::Status(200));
        let body = GatedBody { engine: Arc::clone(&self.engine), stream, epoch };
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }

    /// Tells that a watch has expired as the real server tells it; a refusal with code 410 would be retried for ever.
    fn expired(mut self, resource_version: &str) -> Reply {
        self.ticket.by = AnsweredBy::Log;
        self.ticket.finish(Outcome::Status(200));
        Ok(watch_reply(wire::whole(wire::gone_frame(resource_version))))
    }

    /// The lines by which a streamed initial list shows the state at `start`, and what is known to follow.
    ///
    /// From the log if it reaches back, since the server has no such watch; otherwise from its list.
    async fn initial_events(
        &mut self,
        list: Request<Body>,
        identity: &Identity,
        start: &str,
    ) -> Result<Result<Replay, Response<ReplyBody>>, BoxError> {
        if let Some(known) = self.engine.look(|registry| registry.state_at(identity, start)) {
            let mut lines = initial_lines(&known.objects, known.kind.as_ref(), start);
            lines.extend(known.after.lines);
            return Ok(Ok(Replay { lines, upstream_from: known.after.upstream_from }));
        }
        let reply = self.send(list).await?;
        let (reply, value) = self.read(reply).await?;
        let Some(value) = value.filter(|_| reply.status() == StatusCode::OK) else {
            self.ticket.finish(Outcome::Status(reply.status().as_u16()));
            return Ok(Err(reply));
        };
        let (kind, objects) = engine::items(&value);
        let lines = initial_lines(&objects, kind.as_ref(), start);
        Ok(Ok(Replay { lines, upstream_from: start.to_owned() }))
    }

    async fn send(&mut self, request: Request<Body>) -> Reply {
        self.asked.tell(request.method(), request.uri(), request.headers());
        let reply = self.upstream.clone().oneshot(request).await;
        if let Err(error) = &reply {
            self.ticket.finish(Outcome::Failed(chain(&**error)));
        }
        reply
    }

    /// Reads a whole reply, and what it says where it is JSON.
    async fn read(
        &mut self,
        reply: Response<ReplyBody>,
    ) -> Result<(Response<ReplyBody>, Option<Value>), BoxError> {
        let read = read_whole(reply).await;
        if let Err(error) = &read {
            self.ticket.finish(Outcome::Failed(chain(&**error)));
        }
        read
    }

    /// Lets the streams move before a reply is handed back.
    async fn reach_boundary(&mut self, outcome: &Outcome) -> Reached {
        self.ticket.decided(outcome);
        boundary::reach(&self.engine, self.ticket.number).await
    }

    /// Answers in the server's place that what the test has chosen cannot be done.
    async fn refuse(mut self, message: &str) -> Reply {
        self.ticket.by = AnsweredBy::Answer;
        let status = wire::status_object(500, "InternalError", message, serde_json::json!({}));
        self.finish_with(StatusCode::INTERNAL_SERVER_ERROR, &status).await
    }

    async fn finish_with(mut self, code: StatusCode, value: &Value) -> Reply {
        self.ticket.answered(Some(value));
        let outcome = Outcome::Status(code.as_u16());
        self.reach_boundary(&outcome).await;
        self.ticket.finish(outcome);
        Ok(wire::json_reply(code, value))
    }

    async fn break_connection(mut self) -> Reply {
        self.ticket.by = AnsweredBy::Answer;
        let error = connection_reset("as the test's answer says");
        let outcome = Outcome::Failed(error.to_string());
        self.reach_boundary(&outcome).await;
        self.ticket.finish(outcome);
        Err(error.into())
    }
}

fn connection_reset(why: &str) -> std::io::Error {
    let text = format!("connection reset, {why}");
    std::io::Error::new(std::io::ErrorKind::ConnectionReset, text)
}

pub(super) async fn read_whole(
    reply: Response<ReplyBody>,
) -> Result<(Response<ReplyBody>, Option<Value>), BoxError> {
    let (mut parts, body) = reply.into_parts();
    let bytes = body.collect().await?.to_bytes();
    // The body is in one piece now.
    parts.headers.remove(TRANSFER_ENCODING);
    parts.headers.remove(CONTENT_LENGTH);
    let value = serde_json::from_slice(&bytes).ok();
    Ok((Response::from_parts(parts, wire::whole(bytes)), value))
}

fn watch_reply(body: ReplyBody) -> Response<ReplyBody> {
    let mut reply = Response::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// The record of a request that is under way; one that is dropped unfinished was abandoned by its caller.
struct Ticket {
    engine: Arc<Engine>,
    number: u64,
    by: AnsweredBy,
    /// What a read was answered from.
    from: AnsweredFrom,
    /// The objects of the reply.
    reply: Vec<Seen>,
    /// All that it says, if anybody wants to know what passes are told.
    told: Option<Value>,
    /// Whether what came of it is in the record of the run.
    noted: bool,
}

impl Ticket {
    fn new(engine: &Arc<Engine>, record: super::model::Request, streams: bool) -> Self {
        // A watch has no end, and neither need the reply to an exec or a log have one.
        let ordered = !streams && record.verb != Verb::Watch;
        // Numbered and put in line in one step, since others are made at the same time.
        let number = engine.change(|registry| {
            let number = engine.recorder.begin(record);
            registry.note(Entry::Sent { number });
            if ordered {
                registry.request_begins(number);
            } else if !streams {
                registry.watch_begins(number);
            }
            number
        });
        Self {
            engine: Arc::clone(engine),
            number,
            by: AnsweredBy::Server,
            from: AnsweredFrom::Server,
            reply: Vec::new(),
            told: None,
            noted: false,
        }
    }

    /// Notes what the reply says about itself.
    fn answered(&mut self, value: Option<&Value>) {
        let Some(value) = value else { return };
        self.told = self.engine.look(Registry::tells).then(|| value.clone());
        self.reply = match value.get("items").and_then(Value::as_array) {
            Some(items) => items.iter().filter_map(Seen::of).collect(),
            None => Seen::of(value).into_iter().collect(),
        };
        self.engine.recorder.update(self.number, |request| {
            request.resource_version_answered = wire::text(value, "/metadata/resourceVersion");
            if request.verb == Verb::Create && request.name.is_none() {
                request.name = wire::text(value, "/metadata/name");
            }
        });
    }

    /// Notes what has come of it, though the caller does not know yet.
    fn decided(&mut self, outcome: &Outcome) {
        self.engine.recorder.update(self.number, |request| {
            request.outcome = outcome.clone();
            request.answered_by = self.by;
        });
        self.note();
    }

    fn finish(&mut self, outcome: Outcome) {
        self.engine.recorder.finish(self.number, outcome, self.by);
        self.note();
    }

    fn note(&mut self) {
        if std::mem::replace(&mut self.noted, true) {
            return;
        }
        let Some(request) = self.engine.recorder.get(self.number) else { return };
        let from = if self.by == AnsweredBy::Answer { AnsweredFrom::Test } else { self.from };
        let (request, reply) = (Box::new(request), std::mem::take(&mut self.reply));
        let told = self.told.take();
        self.engine.change(|registry| {
            registry.tell(&request, told);
            registry.note(Entry::Done { request, from, reply });
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.engine.change(|registry| registry.request_ends(self.number));
        self.engine.recorder.update(self.number, |request| {
            if request.finished.is_none() {
                request.outcome = Outcome::Abandoned;
                request.answered_by = self.by;
            }
        });
    }
}

/// A stream that a watch request is about to continue; given back if the request comes to nothing.
struct Claim<F: FnOnce(&mut super::streams::Stream)> {
    engine: Arc<Engine>,
    stream: usize,
    give_back: Option<F>,
}

impl<F: FnOnce(&mut super::streams::Stream)> Claim<F> {
    fn new(engine: &Arc<Engine>, stream: usize, give_back: F) -> Self {
        Self { engine: Arc::clone(engine), stream, give_back: Some(give_back) }
    }
}

impl<F: FnOnce(&mut super::streams::Stream)> Drop for Claim<F> {
    fn drop(&mut self) {
        if let Some(give_back) = self.give_back.take() {
            self.engine.change(|registry| give_back(&mut registry.streams[self.stream]));
        }
    }
}

/// The body of a watch as the client gets it: one frame a chunk, and only those that may pass.
struct GatedBody {
    engine: Arc<Engine>,
    stream: usize,
    epoch: u64,
}

impl http_body::Body for GatedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = self.engine.change(|registry| registry.poll(self.stream, self.epoch, context));
        polled.map(|frame| {
            frame.map(|frame| match frame {
                Ok(bytes) => Ok(Frame::data(bytes)),
                Err(error) => Err(std::io::Error::other(error).into()),
            })
        })
    }
}

impl Drop for GatedBody {
    fn drop(&mut self) {
        self.engine.change(|registry| registry.streams[self.stream].body_dropped(self.epoch));
    }
}

impl Registry {
    /// The client of a stream asks for its next frame.
    fn poll(
        &mut self,
        stream: usize,
        epoch: u64,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, String>>> {
        let before = self.streams[stream].handed();
        let polled = self.streams[stream].poll(epoch, context);
        if self.chronicle.is_some() && self.streams[stream].handed() > before {
            let entry = self.brought(stream, before);
            if let Some(entry) = entry {
                self.note(entry);
            }
        }
        polled
    }

    /// What a frame that has just been handed over means for the record of the run.
    fn brought(&self, index: usize, frame: usize) -> Option<Entry> {
        let stream = &self.streams[index];
        let (brought, point) = stream.brought(frame)?;
        Some(match brought {
            Brought::Event(event) => Entry::Released {
                stream: index,
                incarnation: stream.incarnation(),
                event: event.into(),
                point: point.cloned(),
            },
            Brought::Bookmark(resource_version) => {
                Entry::Bookmark { stream: index, resource_version: resource_version.to_owned() }
            }
            Brought::InitialEnd => Entry::Listed {
                stream: index,
                incarnation: stream.incarnation(),
                request: stream.list_request,
                asked: stream.asked().cloned()?,
                resource_version: stream.initial_resource_version().to_owned(),
                objects: stream.listed().into_iter().filter_map(Seen::of).collect(),
                point: None,
            },
        })
    }

    /// Whether anybody wants to know what passes are told.
    fn tells(&self) -> bool {
        self.chronicle.as_ref().is_some_and(|chronicle| chronicle.told.is_some())
    }

    /// Notes what a reply tells the pass that gets it.
    fn tell(&mut self, request: &super::model::Request, value: Option<Value>) {
        let resource = match request.group.as_str() {
            "" => request.resource.clone(),
            group => format!("{}.{group}", request.resource),
        };
        if let Some(chronicle) = &mut self.chronicle
            && !Told::is_for_people(&resource)
        {
            chronicle.tell(|| {
                let (verb, target, outcome) = (request.verb, request.target(), &request.outcome);
                Told::new(format!("{verb} {target}: {outcome:?}"), resource, value)
            });
        }
    }

    fn act_begins(&mut self) -> Option<u64> {
        let number = self.chronicle.as_mut()?.next_act();
        self.note(Entry::ActorSent { number });
        Some(number)
    }

    fn act_ends(
        &mut self,
        number: Option<u64>,
        asked: &Asked,
        status: StatusCode,
        value: Option<&Value>,
    ) {
        let (Some(chronicle), Some(number)) = (&self.chronicle, number) else { return };
        let target = &asked.target;
        let reply: Vec<Seen> = value.and_then(Seen::of).into_iter().collect();
        let name = target.name.clone().or_else(|| Some(reply.first()?.key.name.clone()));
        let subresource =
            target.subresource.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
        let on = name.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
        let refused =
            if status.is_success() { String::new() } else { format!(", refused: {status}") };
        let act = Act {
            number,
            actor: chronicle.actor(),
            text: format!("{} {}{subresource}{on}{refused}", asked.verb, target.resource),
            resource: target.qualified_resource(),
            key: name.map(|name| ObjectKey { namespace: target.namespace.clone(), name }),
            refused: !status.is_success(),
            reply,
        };
        self.note(Entry::ActorDone(Box::new(act)));
    }
}
