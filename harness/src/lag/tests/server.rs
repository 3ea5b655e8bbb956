//! A scripted API server in memory: it lists, watches and stores like the real one, and misbehaves on demand.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::{Ready, ready},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::ACCEPT};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower::{BoxError, Service};

use crate::lag::model::{FieldSelector, LabelSelector};

/// Plural name, namespace, name.
type Key = (String, String, String);
type Sender = mpsc::UnboundedSender<Result<Bytes, BoxError>>;
type ServerBody = UnsyncBoxBody<Bytes, BoxError>;

#[derive(Clone, Default)]
pub(super) struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    revision: u64,
    oldest: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<Commit>,
    watches: Vec<Watch>,
    refused_watches: usize,
    /// The state that requests at resource version 0 see, where it is not the newest.
    any_state: Option<u64>,
    /// Frames wait here while the events are stalled.
    stalled: Option<Vec<(Sender, Bytes)>>,
    uids: u64,
    log: Vec<String>,
    encodings: Vec<Option<String>>,
}

/// One change: the object before it and after it.
struct Commit {
    revision: u64,
    key: Key,
    before: Option<Value>,
    /// The new state; of a deletion the last one.
    object: Value,
    deleted: bool,
}

struct Watch {
    query: Query,
    to: Sender,
}

#[derive(Clone, Default)]
struct Query {
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
    metadata: bool,
    parameters: BTreeMap<String, String>,
}

/// Where objects of a resource live in paths.
fn api_of(resource: &str) -> (&'static str, &'static str) {
    match resource {
        "statefulsets" => ("apps/v1", "StatefulSet"),
        "pods" => ("v1", "Pod"),
        _ => ("v1", "ConfigMap"),
    }
}

impl Server {
    pub(super) fn new() -> Self {
        let server = Self::default();
        server.state().revision = 100;
        server
    }

    /// Creates or changes an object as somebody else would; returns its resource version.
    pub(super) fn put(&self, resource: &str, namespace: &str, name: &str, more: Value) -> String {
        self.state().put((resource.into(), namespace.into(), name.into()), more)
    }

    pub(super) fn delete(&self, resource: &str, namespace: &str, name: &str) -> String {
        self.state().delete(&(resource.into(), namespace.into(), name.into()))
    }

    /// Sends a bookmark at the present revision to every watch of the resource.
    pub(super) fn bookmark(&self, resource: &str) -> String {
        let mut state = self.state();
        state.revision += 1;
        let (api_version, kind) = api_of(resource);
        let revision = state.revision.to_string();
        let object = json!({
            "apiVersion": api_version, "kind": kind, "metadata": {"resourceVersion": revision},
        });
        state.send(resource, &json!({"type": "BOOKMARK", "object": object}));
        revision
    }

    /// Sends an ERROR frame to every watch of the resource.
    pub(super) fn error(&self, resource: &str, code: u16) {
        self.error_saying(resource, code, "as the test says");
    }

    pub(super) fn error_saying(&self, resource: &str, code: u16, message: &str) {
        let object = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": "Expired", "code": code,
        });
        self.state().send(resource, &json!({"type": "ERROR", "object": object}));
    }

    /// Ends every watch of the resource in good order.
    pub(super) fn close_watches(&self, resource: &str) {
        self.state().watches.retain(|watch| watch.query.resource != resource);
    }

    /// Breaks the connection of every watch of the resource.
    pub(super) fn break_watches(&self, resource: &str) {
        let mut state = self.state();
        for watch in state.watches.iter().filter(|watch| watch.query.resource == resource) {
            let _ = watch.to.send(Err(std::io::Error::other("the wire was cut").into()));
        }
        state.watches.retain(|watch| watch.query.resource != resource);
    }

    /// Keeps the frames of all watches back from now on, as a slow connection does.
    pub(super) fn stall(&self) {
        self.state().stalled.get_or_insert_default();
    }

    /// Sends what was kept back, and all that follows.
    pub(super) fn flow(&self) {
        for (to, frame) in self.state().stalled.take().unwrap_or_default() {
            let _ = to.send(Ok(frame));
        }
    }

    /// Requests at resource version 0 see this state from now on, as on a lagging replica.
    pub(super) fn serve_any_at(&self, revision: &str) {
        self.state().any_state = Some(revision.parse().unwrap());
    }

    /// The present revision.
    pub(super) fn revision(&self) -> String {
        self.state().revision.to_string()
    }

    /// Forgets the past: watches from before now get a 410.
    pub(super) fn compact(&self) {
        let mut state = self.state();
        state.revision += 1;
        state.oldest = state.revision;
    }

    /// Refuses the next watches with a 500.
    pub(super) fn refuse_watches(&self, times: usize) {
        self.state().refused_watches = times;
    }

    /// How many watches of a resource are open.
    pub(super) fn watches(&self, resource: &str) -> usize {
        let mut state = self.state();
        state.watches.retain(|watch| !watch.to.is_closed());
        state.watches.iter().filter(|watch| watch.query.resource == resource).count()
    }

    /// Every request so far, as `METHOD path?query`.
    pub(super) fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    pub(super) fn accepted_encodings(&self) -> Vec<Option<String>> {
        self.state().encodings.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn handle(&self, request: &Request<()>, body: &[u8]) -> Response<ServerBody> {
        let mut state = self.state();
        state.log.push(format!("{} {}", request.method(), request.uri()));
        let encoding = request.headers().get(http::header::ACCEPT_ENCODING);
        state.encodings.push(encoding.map(|value| value.to_str().unwrap().to_owned()));
        let query = Query::of(request);
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        match (request.method(), &query.name) {
            (&Method::GET, None) if query.is("watch", "true") && state.refused_watches > 0 => {
                state.refused_watches -= 1;
                let status = json!({"kind": "Status", "status": "Failure", "code": 500});
                reply(StatusCode::INTERNAL_SERVER_ERROR, &status)
            }
            (&Method::GET, None) if query.is("watch", "true") => state.watch(query),
            (&Method::GET, None) => match state.revision_asked(&query) {
                Ok(revision) => reply(StatusCode::OK, &state.list(&query, revision)),
                Err(code) => reply(code, &expired(&query)),
            },
            (&Method::GET, Some(_)) => match state.objects.get(&query.key()) {
                Some(object) => reply(StatusCode::OK, object),
                None => reply(StatusCode::NOT_FOUND, &not_found(&query)),
            },
            (&Method::DELETE, Some(_)) => {
                let (key, dry) = (query.key(), sent["dryRun"] == json!(["All"]));
                let Some(object) = state.objects.get(&key).cloned() else {
                    return reply(StatusCode::NOT_FOUND, &not_found(&query));
                };
                if dry {
                    return reply(StatusCode::OK, &object);
                }
                reply(StatusCode::OK, &state.ask_to_delete(&key))
            }
            (&Method::DELETE, None) => {
                let keys: Vec<Key> = state
                    .objects
                    .iter()
                    .filter(|(key, object)| query.selects(key, object))
                    .map(|(key, _)| key.clone())
                    .collect();
                let items: Vec<Value> = keys.iter().map(|key| state.objects[key].clone()).collect();
                for key in &keys {
                    state.ask_to_delete(key);
                }
                let (api_version, kind) = api_of(&query.resource);
                let list = json!({
                    "kind": format!("{kind}List"), "apiVersion": api_version,
                    "metadata": {"resourceVersion": state.revision.to_string()}, "items": items,
                });
                reply(StatusCode::OK, &list)
            }
            (&Method::POST, Some(_)) if query.subresource.as_deref() == Some("binding") => {
                let node = sent["target"]["name"].clone();
                state.put(query.key(), json!({"spec": {"nodeName": node}}));
                reply(StatusCode::CREATED, &success())
            }
            (&Method::POST, Some(_)) if query.subresource.as_deref() == Some("eviction") => {
                state.ask_to_delete(&query.key());
                reply(StatusCode::CREATED, &success())
            }
            (&Method::POST, _) => {
                let named = sent["metadata"]["name"].as_str().map(str::to_owned);
                let name = named.unwrap_or_else(|| {
                    format!("{}x7", sent["metadata"]["generateName"].as_str().unwrap())
                });
                let key = (query.resource.clone(), query.namespace.clone().unwrap(), name);
                state.put(key.clone(), sent);
                reply(StatusCode::CREATED, &state.objects[&key])
            }
            _ if query.subresource.as_deref() == Some("scale") => {
                state.change(&query.key(), sent);
                let metadata = &state.objects[&query.key()]["metadata"];
                let scale = json!({
                    "kind": "Scale", "apiVersion": "autoscaling/v1",
                    "metadata": {
                        "name": metadata["name"], "namespace": metadata["namespace"],
                        "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
                    },
                });
                reply(StatusCode::OK, &scale)
            }
            _ if query.is("dryRun", "All") => {
                let mut object = state.objects[&query.key()].clone();
                merge(&mut object, sent);
                object["metadata"]["resourceVersion"] = json!("999999");
                reply(StatusCode::OK, &object)
            }
            _ => {
                let object = state.change(&query.key(), sent);
                reply(StatusCode::OK, &query.shaped(&object))
            }
        }
    }
}

impl State {
    fn put(&mut self, key: Key, more: Value) -> String {
        self.revision += 1;
        let before = self.objects.remove(&key);
        let (api_version, kind) = api_of(&key.0);
        self.uids += u64::from(before.is_none());
        let new = || json!({"metadata": {"uid": format!("uid-{}", self.uids)}});
        let mut object = before.clone().unwrap_or_else(new);
        merge(&mut object, more);
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        object["metadata"]["namespace"] = json!(key.1);
        object["metadata"]["name"] = json!(key.2);
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.objects.insert(key.clone(), object.clone());
        self.commit(Commit { revision: self.revision, key, before, object, deleted: false })
    }

    /// A client's update or patch: one that changes nothing makes no revision, one that removes the last
    /// finalizer of an object under deletion removes it, and is answered with the revision before.
    fn change(&mut self, key: &Key, more: Value) -> Value {
        let Some(before) = self.objects.get(key).cloned() else {
            self.put(key.clone(), more);
            return self.objects[key].clone();
        };
        let mut object = before.clone();
        merge(&mut object, more.clone());
        object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        let none = |finalizers: &Value| finalizers.as_array().is_none_or(Vec::is_empty);
        let metadata = &object["metadata"];
        if metadata["deletionTimestamp"].is_string() && none(&metadata["finalizers"]) {
            self.delete(key);
            return object;
        }
        if object == before {
            return before;
        }
        self.put(key.clone(), more);
        self.objects[key].clone()
    }

    /// A client's deletion: at once, or marked if something keeps the object. Returns the reply.
    fn ask_to_delete(&mut self, key: &Key) -> Value {
        let metadata = &self.objects[key]["metadata"];
        if metadata["finalizers"].as_array().is_none_or(Vec::is_empty) {
            let uid = metadata["uid"].clone();
            self.delete(key);
            let mut status = success();
            status["details"] = json!({"name": key.2, "kind": key.0, "uid": uid});
            return status;
        }
        self.put(
            key.clone(),
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0}}),
        );
        self.objects[key].clone()
    }

    fn delete(&mut self, key: &Key) -> String {
        self.revision += 1;
        let before = self.objects.remove(key).expect("the test deletes what there is");
        let mut object = before.clone();
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let (key, before) = (key.clone(), Some(before));
        self.commit(Commit { revision: self.revision, key, before, object, deleted: true })
    }

    fn commit(&mut self, commit: Commit) -> String {
        for watch in &self.watches {
            if let Some(frame) = watch.query.event(&commit) {
                deliver(&mut self.stalled, &watch.to, frame);
            }
        }
        self.history.push(commit);
        self.revision.to_string()
    }

    fn send(&mut self, resource: &str, frame: &Value) {
        for watch in self.watches.iter().filter(|watch| watch.query.resource == resource) {
            deliver(&mut self.stalled, &watch.to, Bytes::from(format!("{frame}\n")));
        }
    }

    /// The state that a list is to show.
    fn revision_asked(&self, query: &Query) -> Result<u64, StatusCode> {
        let asked = query.number("resourceVersion").unwrap_or(usize::MAX);
        match u64::try_from(asked).unwrap() {
            0 => Ok(self.any_state.unwrap_or(self.revision)),
            exact if query.is("resourceVersionMatch", "Exact") => {
                if exact < self.oldest {
                    Err(StatusCode::GONE)
                } else {
                    Ok(exact)
                }
            }
            _ => Ok(self.revision),
        }
    }

    fn objects_at(&self, revision: u64) -> BTreeMap<Key, Value> {
        let mut objects = BTreeMap::new();
        for commit in self.history.iter().filter(|commit| commit.revision <= revision) {
            if commit.deleted {
                objects.remove(&commit.key);
            } else {
                objects.insert(commit.key.clone(), commit.object.clone());
            }
        }
        objects
    }

    fn list(&self, query: &Query, revision: u64) -> Value {
        let selected: Vec<Value> = self
            .objects_at(revision)
            .iter()
            .filter(|(key, object)| query.selects(key, object))
            .map(|(_, object)| {
                let mut item = query.shaped(object);
                // The server leaves these out of the items of a list.
                item.as_object_mut().unwrap().remove("kind");
                item.as_object_mut().unwrap().remove("apiVersion");
                item
            })
            .collect();
        let first: usize = query.number("continue").unwrap_or(0);
        let limit = query.number("limit").unwrap_or(usize::MAX);
        let rest = selected.len() - first;
        let page: Vec<Value> = selected.into_iter().skip(first).take(limit).collect();
        let (api_version, kind) = if query.metadata {
            ("meta.k8s.io/v1", "PartialObjectMetadata")
        } else {
            api_of(&query.resource)
        };
        let next = if page.len() < rest { (first + page.len()).to_string() } else { String::new() };
        json!({
            "kind": format!("{kind}List"), "apiVersion": api_version,
            "metadata": {"resourceVersion": revision.to_string(), "continue": next},
            "items": page,
        })
    }

    fn watch(&mut self, query: Query) -> Response<ServerBody> {
        let (to, from) = mpsc::unbounded_channel();
        let start: u64 =
            query.parameters.get("resourceVersion").map_or(0, |rv| rv.parse().unwrap_or(0));
        let mut from_revision = start;
        if query.is("sendInitialEvents", "true") {
            from_revision = self.any_state.unwrap_or(self.revision);
            for (_, object) in self
                .objects_at(from_revision)
                .iter()
                .filter(|(key, object)| query.selects(key, object))
            {
                to.send(Ok(query.frame("ADDED", object))).unwrap();
            }
            let (api_version, kind) = api_of(&query.resource);
            let end = json!({"type": "BOOKMARK", "object": {
                "apiVersion": api_version, "kind": kind,
                "metadata": {
                    "resourceVersion": from_revision.to_string(),
                    "annotations": {"k8s.io/initial-events-end": "true"},
                },
            }});
            deliver(&mut self.stalled, &to, Bytes::from(format!("{end}\n")));
        } else if start < self.oldest {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": format!("too old resource version: {start}"), "reason": "Expired", "code": 410,
            });
            to.send(Ok(Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status})))))
                .unwrap();
            return stream(from);
        }
        for commit in self.history.iter().filter(|commit| commit.revision > from_revision) {
            if let Some(frame) = query.event(commit) {
                deliver(&mut self.stalled, &to, frame);
            }
        }
        self.watches.push(Watch { query, to });
        stream(from)
    }
}

impl Query {
    fn of(request: &Request<()>) -> Self {
        let mut segments = request.uri().path().split('/').skip(1);
        match segments.next() {
            Some("api") => drop(segments.next()),
            Some("apis") => drop((segments.next(), segments.next())),
            other => panic!("the scripted server has no {other:?}"),
        }
        let mut segments = segments.peekable();
        let namespace = segments.next_if_eq(&"namespaces").and_then(|_| segments.next());
        let accept = request.headers().get(ACCEPT).map_or("", |value| value.to_str().unwrap());
        Self {
            resource: segments.next().unwrap().to_owned(),
            namespace: namespace.map(str::to_owned),
            name: segments.next().map(str::to_owned),
            subresource: segments.next().map(str::to_owned),
            metadata: accept.contains("PartialObjectMetadata"),
            parameters: form_urlencoded::parse(request.uri().query().unwrap_or("").as_bytes())
                .into_owned()
                .collect(),
        }
    }

    fn is(&self, parameter: &str, value: &str) -> bool {
        self.parameters.get(parameter).is_some_and(|found| found == value)
    }

    fn number(&self, parameter: &str) -> Option<usize> {
        self.parameters.get(parameter)?.parse().ok()
    }

    fn key(&self) -> Key {
        (self.resource.clone(), self.namespace.clone().unwrap(), self.name.clone().unwrap())
    }

    fn selects(&self, (resource, namespace, _): &Key, object: &Value) -> bool {
        let selector = |name: &str| self.parameters.get(name).map(String::as_str);
        *resource == self.resource
            && self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
            && selector("labelSelector")
                .is_none_or(|text| text.parse::<LabelSelector>().unwrap().matches(object))
            && selector("fieldSelector")
                .is_none_or(|text| text.parse::<FieldSelector>().unwrap().matches(object))
    }

    /// The frame that a commit makes in this watch: crossing the selectors is an ADDED or a DELETED.
    fn event(&self, commit: &Commit) -> Option<Bytes> {
        let before = commit.before.as_ref().is_some_and(|object| self.selects(&commit.key, object));
        let after = !commit.deleted && self.selects(&commit.key, &commit.object);
        let change = match (before, after) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        // Source: Kubernetes apiserver, `storage/cacher`: what leaves the selectors is sent as it was
        // before, at the revision at which it left.
        let mut object = if after { &commit.object } else { commit.before.as_ref()? }.clone();
        object["metadata"]["resourceVersion"] = json!(commit.revision.to_string());
        Some(self.frame(change, &object))
    }

    fn shaped(&self, object: &Value) -> Value {
        if !self.metadata {
            return object.clone();
        }
        json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        })
    }

    fn frame(&self, change: &str, object: &Value) -> Bytes {
        Bytes::from(format!("{}\n", json!({"type": change, "object": self.shaped(object)})))
    }
}

fn deliver(stalled: &mut Option<Vec<(Sender, Bytes)>>, to: &Sender, frame: Bytes) {
    match stalled {
        Some(stalled) => stalled.push((to.clone(), frame)),
        None => drop(to.send(Ok(frame))),
    }
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})
}

fn expired(query: &Query) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
        "message": format!("The provided resource version for {} is too old", query.resource),
    })
}

fn stream(mut from: mpsc::UnboundedReceiver<Result<Bytes, BoxError>>) -> Response<ServerBody> {
    let frames = futures::stream::poll_fn(move |context| from.poll_recv(context));
    let frames = futures::StreamExt::map(frames, |frame| frame.map(Frame::data));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn reply(code: StatusCode, value: &Value) -> Response<ServerBody> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {});
    let mut reply = Response::new(body.boxed_unsync());
    *reply.status_mut() = code;
    reply
}

fn not_found(query: &Query) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
        "message": format!("{} {:?} not found", query.resource, query.name.as_ref().unwrap()),
    })
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

impl Service<Request<kube::client::Body>> for Server {
    type Response = Response<ServerBody>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let body = futures::FutureExt::now_or_never(body.collect()).unwrap().unwrap().to_bytes();
        ready(Ok(self.handle(&Request::from_parts(parts, ()), &body)))
    }
}

/// Serves `server` on a loopback port for as long as the runtime lives; returns a configuration for it.
pub(super) async fn on_loopback(server: Server) -> kube::Config {
    use hyper_util::rt::TokioIo;

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let server = server.clone();
            let service =
                hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let server = server.clone();
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        Ok::<_, hyper::Error>(server.handle(&Request::from_parts(parts, ()), &body))
                    }
                });
            let connection = hyper::server::conn::http1::Builder::new();
            tokio::spawn(connection.serve_connection(TokioIo::new(socket), service));
        }
    });
    kube::Config::new(format!("http://{address}").parse().unwrap())
}
