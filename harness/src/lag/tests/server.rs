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

/// Plural name, namespace, name.
type Key = (String, String, String);
type ServerBody = UnsyncBoxBody<Bytes, BoxError>;

#[derive(Clone, Default)]
pub(super) struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    revision: u64,
    oldest: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<(u64, &'static str, Key, Value)>,
    watches: Vec<Watch>,
    refused_watches: usize,
    log: Vec<String>,
    encodings: Vec<Option<String>>,
}

struct Watch {
    query: Query,
    to: mpsc::UnboundedSender<Result<Bytes, BoxError>>,
}

#[derive(Clone, Default)]
struct Query {
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
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
        let object = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "as the test says", "reason": "Expired", "code": code,
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
            (&Method::GET, None) => reply(StatusCode::OK, &state.list(&query)),
            (&Method::GET, Some(_)) => match state.objects.get(&query.key()) {
                Some(object) => reply(StatusCode::OK, object),
                None => reply(StatusCode::NOT_FOUND, &not_found(&query)),
            },
            (&Method::DELETE, Some(_)) => {
                state.delete(&query.key());
                reply(
                    StatusCode::OK,
                    &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
                )
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
            _ => {
                state.put(query.key(), sent);
                reply(StatusCode::OK, &state.objects[&query.key()])
            }
        }
    }
}

impl State {
    fn put(&mut self, key: Key, more: Value) -> String {
        self.revision += 1;
        let known = self.objects.contains_key(&key);
        let (api_version, kind) = api_of(&key.0);
        let mut object = self.objects.remove(&key).unwrap_or_else(|| json!({"metadata": {}}));
        merge(&mut object, more);
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        object["metadata"]["namespace"] = json!(key.1);
        object["metadata"]["name"] = json!(key.2);
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.objects.insert(key.clone(), object.clone());
        self.commit(if known { "MODIFIED" } else { "ADDED" }, key, object)
    }

    fn delete(&mut self, key: &Key) -> String {
        self.revision += 1;
        let mut object = self.objects.remove(key).expect("the test deletes what there is");
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.commit("DELETED", key.clone(), object)
    }

    fn commit(&mut self, change: &'static str, key: Key, object: Value) -> String {
        self.history.push((self.revision, change, key.clone(), object.clone()));
        for watch in self.watches.iter().filter(|watch| watch.query.selects(&key, &object)) {
            let _ = watch.to.send(Ok(watch.query.frame(change, &object)));
        }
        self.revision.to_string()
    }

    fn send(&mut self, resource: &str, frame: &Value) {
        for watch in self.watches.iter().filter(|watch| watch.query.resource == resource) {
            let _ = watch.to.send(Ok(Bytes::from(format!("{frame}\n"))));
        }
    }

    fn list(&self, query: &Query) -> Value {
        let selected: Vec<Value> = self
            .objects
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
            "metadata": {"resourceVersion": self.revision.to_string(), "continue": next},
            "items": page,
        })
    }

    fn watch(&mut self, query: Query) -> Response<ServerBody> {
        let (to, from) = mpsc::unbounded_channel();
        let start: u64 =
            query.parameters.get("resourceVersion").map_or(0, |rv| rv.parse().unwrap_or(0));
        if query.is("sendInitialEvents", "true") {
            for (_, object) in
                self.objects.iter().filter(|(key, object)| query.selects(key, object))
            {
                to.send(Ok(query.frame("ADDED", object))).unwrap();
            }
            let (api_version, kind) = api_of(&query.resource);
            let end = json!({"type": "BOOKMARK", "object": {
                "apiVersion": api_version, "kind": kind,
                "metadata": {
                    "resourceVersion": self.revision.to_string(),
                    "annotations": {"k8s.io/initial-events-end": "true"},
                },
            }});
            to.send(Ok(Bytes::from(format!("{end}\n")))).unwrap();
        } else if start < self.oldest {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": format!("too old resource version: {start}"), "reason": "Expired", "code": 410,
            });
            to.send(Ok(Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status})))))
                .unwrap();
            return stream(from);
        } else {
            for (revision, change, key, object) in &self.history {
                if *revision > start && query.selects(key, object) {
                    to.send(Ok(query.frame(change, object))).unwrap();
                }
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

    fn selects(&self, (resource, namespace, name): &Key, object: &Value) -> bool {
        let label = |requirement: &str| {
            let (key, value) = requirement.split_once('=').unwrap();
            object["metadata"]["labels"][key] == *value
        };
        *resource == self.resource
            && self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
            && self.parameters.get("labelSelector").is_none_or(|selector| label(selector))
            && self
                .parameters
                .get("fieldSelector")
                .is_none_or(|selector| *selector == format!("metadata.name={name}"))
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
