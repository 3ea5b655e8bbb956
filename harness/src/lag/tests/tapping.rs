//! Taps: what their worlds are answered is what the server would say, and costs no request where that is promised.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode, header::ACCEPT};
use http_body_util::BodyExt;
use kube::{
    Client,
    api::{ListParams, PostParams, WatchEvent, WatchParams},
    client::Body,
};
use tower::{BoxError, Service, ServiceExt};

use super::*;
use crate::{
    connect::{ReplyBody, Upstream},
    lag::{
        tap::{TapError, TapResource, Taps, WorldService},
        wire,
    },
};

const MAPS: &str = "/api/v1/namespaces/lw-a/configmaps";
const ALL_MAPS: &str = "/api/v1/configmaps";

/// The scripted server, with discovery documents, and some replies that it would not give by itself.
#[derive(Clone, Default)]
struct Front {
    server: Server,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    documents: HashMap<String, Value>,
    /// Answers by path and query, each given once.
    once: HashMap<String, (StatusCode, Bytes)>,
    /// Lists are written as those of custom resources: items say their kind, and there always is a `continue`.
    custom: bool,
    log: Vec<String>,
}

impl Front {
    fn new() -> Self {
        let front = Self { server: Server::new(), script: Arc::default() };
        front.document("/api/v1", &[("configmaps", true), ("pods", true), ("nodes", false)]);
        front.document("/apis/apps/v1", &[("statefulsets", true)]);
        front
    }

    fn document(&self, path: &str, resources: &[(&str, bool)]) {
        let resources: Vec<Value> = resources
            .iter()
            .map(|(name, namespaced)| json!({"name": name, "namespaced": namespaced}))
            .collect();
        let document = json!({"kind": "APIResourceList", "resources": resources});
        self.script.lock().unwrap().documents.insert(path.to_owned(), document);
    }

    fn answer_once(&self, path_and_query: &str, code: u16, body: impl Into<Bytes>) {
        let answer = (StatusCode::from_u16(code).unwrap(), body.into());
        self.script.lock().unwrap().once.insert(path_and_query.to_owned(), answer);
    }

    fn put(&self, namespace: &str, name: &str) -> i64 {
        self.server.put("configmaps", namespace, name, data("1")).parse().unwrap()
    }

    fn revision(&self) -> i64 {
        self.server.revision().parse().unwrap()
    }

    fn taps(&self) -> Taps {
        Taps::over(Upstream::new(self.clone()))
    }

    /// What it was asked since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.script.lock().unwrap().log)
    }

    fn answer(&self, request: &Request<()>, body: &[u8]) -> Response<ReplyBody> {
        let asked = request.uri().to_string();
        {
            let mut script = self.script.lock().unwrap();
            script.log.push(format!("{} {asked}", request.method()));
            if let Some((code, body)) = script.once.remove(&asked) {
                let mut reply = Response::new(wire::whole(body));
                *reply.status_mut() = code;
                return reply;
            }
            if let Some(document) = script.documents.get(&asked) {
                return wire::json_reply(StatusCode::OK, document);
            }
            let segments = request.uri().path().split('/').count();
            if asked.starts_with("/apis/") && segments == 4 {
                return wire::json_reply(StatusCode::NOT_FOUND, &json!({"kind": "Status"}));
            }
        }
        self.server.handle(request, body)
    }
}

impl Service<Request<Body>> for Front {
    type Response = Response<ReplyBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let list = parts.method == http::Method::GET
                && !parts.uri.query().unwrap_or_default().contains("watch=true");
            let body = body.collect().await?.to_bytes();
            let reply = this.answer(&Request::from_parts(parts, ()), &body);
            if !list || reply.status() != StatusCode::OK {
                return Ok(reply);
            }
            let bytes = reply.into_body().collect().await?.to_bytes();
            let Ok(mut value) = serde_json::from_slice::<Value>(&bytes) else {
                return Ok(Response::new(wire::whole(bytes)));
            };
            if this.script.lock().unwrap().custom {
                for item in value["items"].as_array_mut().into_iter().flatten() {
                    item["apiVersion"] = json!("v1");
                    item["kind"] = json!("ConfigMap");
                }
            } else if value["metadata"]["continue"] == "" {
                value["metadata"].as_object_mut().unwrap().remove("continue");
            }
            Ok(wire::json_reply(StatusCode::OK, &value))
        })
    }
}

fn maps_resource() -> TapResource {
    TapResource::new("", "v1", "configmaps")
}

async fn opened(front: &Front) -> Taps {
    let taps = front.taps();
    taps.open(&maps_resource(), None).await.unwrap();
    front.asked();
    taps
}

async fn reached(taps: &Taps, revision: i64) {
    within(taps.reached(&maps_resource(), "lw-a", revision)).await.unwrap();
}

fn maps_of(service: &WorldService) -> Api<ConfigMap> {
    Api::namespaced(Client::new(service.clone(), "lw-a"), "lw-a")
}

async fn get(service: &WorldService, path_and_query: &str) -> Response<ReplyBody> {
    get_as(service, path_and_query, "application/json").await
}

async fn get_as(service: &WorldService, path_and_query: &str, accept: &str) -> Response<ReplyBody> {
    let request = Request::get(path_and_query).header(ACCEPT, accept).body(Body::empty()).unwrap();
    service.clone().oneshot(request).await.unwrap()
}

async fn value(reply: Response<ReplyBody>) -> Value {
    serde_json::from_slice(&reply.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// What the server itself says.
async fn from_server(front: &Front, path_and_query: &str) -> Response<ReplyBody> {
    let request = Request::get(path_and_query).body(Body::empty()).unwrap();
    let reply = front.clone().oneshot(request).await.unwrap();
    front.asked();
    reply
}

/// The next chunks of a watch.
async fn chunks(body: &mut ReplyBody, count: usize) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    while chunks.len() < count {
        let frame = within(body.frame()).await.expect("the watch goes on").unwrap();
        chunks.push(frame.into_data().unwrap());
    }
    chunks
}

/// Names of the objects of events, in their order, and `!` for a deletion, `-` for a bookmark.
fn names(lines: &[Bytes]) -> Vec<String> {
    let name = |line: &Bytes| {
        let frame: Value = serde_json::from_slice(line).unwrap();
        match frame["type"].as_str().unwrap() {
            "BOOKMARK" => "-".to_owned(),
            "ERROR" => format!("error {}", frame["object"]["code"]),
            "DELETED" => format!("!{}", frame["object"]["metadata"]["name"].as_str().unwrap()),
            _ => frame["object"]["metadata"]["name"].as_str().unwrap().to_owned(),
        }
    };
    lines.iter().map(name).collect()
}

#[tokio::test]
async fn the_list_and_watch_of_a_complete_world_cost_no_request() {
    let front = Front::new();
    front.put("lw-a", "old");
    let taps = front.taps();
    assert!(!taps.is_open(&maps_resource()));
    taps.open(&maps_resource(), None).await.unwrap();
    taps.open(&maps_resource(), None).await.unwrap();
    assert!(taps.is_open(&maps_resource()));
    let tap = [
        "GET /api/v1/configmaps".to_owned(),
        format!("GET {ALL_MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion=101"),
    ];
    assert_eq!(front.asked(), tap, "once, however often it is opened");

    front.put("lw-b", "foreign");
    let last = front.put("lw-a", "forked");
    reached(&taps, last).await;
    let service = taps.service("lw-a");
    service.complete();
    let lag = Lag::over_service(service, "lw-a");
    let maps: Api<ConfigMap> = Api::namespaced(lag.client(), "lw-a");
    let (store, writer) = reflector::store();
    let stream = watcher(maps.clone(), watcher::Config::default()).reflect(writer);
    tokio::spawn(stream.for_each(|_| std::future::ready(())));
    within(store.wait_until_ready()).await.unwrap();
    let cache = lag.stream::<ConfigMap>();
    cache.opened().await.unwrap();
    let shown = || {
        let mut names: Vec<_> =
            store.state().iter().map(|map| map.metadata.name.clone().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(shown(), ["forked", "old"]);
    cache.hold();
    front.put("lw-b", "foreign-too");
    let mut new = ConfigMap::default();
    new.metadata.name = Some("new".to_owned());
    maps.create(&PostParams::default(), &new).await.unwrap();
    assert_eq!(cache.behind().unwrap(), 1, "the fence of a write works over a tap");
    cache.release_one().await.unwrap();
    assert_eq!(shown(), ["forked", "new", "old"]);
    assert_eq!(front.asked(), ["POST /api/v1/namespaces/lw-a/configmaps?"]);
}

#[tokio::test]
async fn a_watch_is_cut_from_the_tap_byte_by_byte_and_in_order() {
    let front = Front::new();
    front.put("lw-a", "before");
    let taps = opened(&front).await;
    let first = front.put("lw-a", "one");
    front.put("lw-b", "foreign");
    front.put("lw-a", "two");
    front.server.delete("configmaps", "lw-a", "two");
    reached(&taps, front.revision()).await;
    let query = format!("{MAPS}?watch=true&resourceVersion={first}");
    let with_bookmarks = format!("{query}&allowWatchBookmarks=true&timeoutSeconds=290");
    let service = taps.service("lw-a");
    let reply = get(&service, &with_bookmarks).await;
    assert_eq!(reply.status(), 200);
    assert_eq!(reply.headers()["content-type"], "application/json");
    let mut from_tap = reply.into_body();
    let mut plain = get(&service, &query).await.into_body();
    assert_eq!(front.asked(), Vec::<String>::new());
    let mut from_server = from_server(&front, &with_bookmarks).await.into_body();
    front.put("lw-a", "three");
    front.put("lw-b", "foreign");
    front.server.bookmark("configmaps");
    front.put("lw-a", "three");
    front.server.bookmark("configmaps");
    let lines = chunks(&mut from_tap, 6).await;
    assert_eq!(names(&lines), ["two", "!two", "three", "-", "three", "-"]);
    assert_eq!(lines, chunks(&mut from_server, 6).await, "the bytes of the server");
    front.put("lw-a", "last");
    let lines = chunks(&mut plain, 5).await;
    assert_eq!(
        names(&lines),
        ["two", "!two", "three", "three", "last"],
        "no bookmarks were wanted"
    );
}

#[tokio::test]
async fn a_watch_from_a_list_that_is_newer_than_the_tap_repeats_nothing() {
    let front = Front::new();
    let taps = opened(&front).await;
    front.server.stall();
    front.put("lw-a", "listed");
    front.server.bookmark("configmaps");
    let maps = maps_of(&taps.service("lw-a"));
    let list = maps.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 1, "from the server: the world is not known to be complete");
    front.put("lw-a", "new");
    front.asked();
    let version = list.metadata.resource_version.unwrap();
    let mut watch = std::pin::pin!(maps.watch(&WatchParams::default(), &version).await.unwrap());
    front.server.flow();
    let Some(Ok(WatchEvent::Added(first))) = within(watch.next()).await else {
        panic!("an event, and no bookmark of the past")
    };
    assert_eq!(first.metadata.name.as_deref(), Some("new"));
    assert_eq!(front.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_tap_cannot_know_goes_to_the_server_as_it_was_asked() {
    let front = Front::new();
    front.put("lw-a", "a");
    let taps = opened(&front).await;
    let now = front.put("lw-a", "b");
    reached(&taps, now).await;
    let service = taps.service("lw-a");
    service.complete();
    let before = now - 2;
    for query in [
        format!("{MAPS}?watch=true&resourceVersion={before}"),
        format!("{MAPS}?watch=true"),
        format!("{MAPS}?watch=true&resourceVersion=0"),
        format!("{MAPS}?watch=true&resourceVersion={now}&labelSelector=a%3Db"),
        format!("{MAPS}?watch=true&resourceVersion={now}&fieldSelector=metadata.name%3Da"),
        format!(
            "{MAPS}?watch=true&resourceVersion={now}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        ),
        format!("{MAPS}?watch=true&resourceVersion={now}&shardSelector=x"),
        format!("/api/v1/namespaces/lw-b/configmaps?watch=true&resourceVersion={now}"),
        format!("/api/v1/namespaces/lw-a/pods?watch=true&resourceVersion={now}"),
        "/api/v1/namespaces/lw-b/configmaps".to_owned(),
        "/api/v1/namespaces/lw-a/pods".to_owned(),
        format!("{MAPS}/a"),
        format!("{MAPS}?labelSelector=a%3Db"),
        format!("{MAPS}?fieldSelector=metadata.name%3Da"),
        format!("{MAPS}?continue=1"),
        format!("{MAPS}?limit=1"),
        format!("{MAPS}?resourceVersion={now}"),
        format!("{MAPS}?resourceVersion={now}&resourceVersionMatch=Exact"),
    ] {
        get(&service, &query).await;
        assert_eq!(front.asked(), [format!("GET {query}")]);
    }
    for accept in [
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        "application/json;as=Table;v=v1;g=meta.k8s.io, application/json",
        "application/vnd.kubernetes.protobuf, application/json",
        "application/cbor",
        "application/yaml",
    ] {
        for query in [MAPS.to_owned(), format!("{MAPS}?watch=true&resourceVersion={now}")] {
            get_as(&service, &query, accept).await;
            assert_eq!(front.asked(), [format!("GET {query}")], "{accept}");
        }
    }
    for accept in ["*/*", "application/json", "application/json, */*"] {
        get_as(&service, MAPS, accept).await;
        get_as(&service, &format!("{MAPS}?watch=1&resourceVersion={now}&labelSelector="), accept)
            .await;
        assert_eq!(front.asked(), Vec::<String>::new(), "{accept}");
    }
}

#[tokio::test]
async fn a_list_from_the_tap_is_the_list_of_the_server() {
    for custom in [false, true] {
        let front = Front::new();
        front.script.lock().unwrap().custom = custom;
        for name in ["c", "a", "gone", "changed"] {
            front.put("lw-a", name);
        }
        front.put("lw-b", "foreign");
        let taps = opened(&front).await;
        for name in ["b", "gone-too", "d"] {
            front.put("lw-a", name);
        }
        front.server.put("configmaps", "lw-a", "changed", data("2"));
        front.server.delete("configmaps", "lw-a", "gone");
        front.server.delete("configmaps", "lw-a", "gone-too");
        let last = front.put("lw-b", "later");
        front.server.bookmark("configmaps");
        reached(&taps, last + 1).await;
        let service = taps.service("lw-a");
        service.complete();
        for query in [
            "",
            "?&limit=500",
            "?limit=5",
            "?resourceVersion=0&resourceVersionMatch=NotOlderThan",
            "?resourceVersion=0&limit=5",
        ] {
            let path = format!("{MAPS}{query}");
            let expected = value(from_server(&front, &path).await).await;
            assert_eq!(expected["metadata"].get("continue").is_some(), custom);
            assert_eq!(expected["items"][0].get("kind").is_some(), custom);
            assert_eq!(expected["items"].as_array().unwrap().len(), 5);
            let reply = get(&service, &path).await;
            assert_eq!(reply.headers()["content-type"], "application/json");
            assert_eq!(value(reply).await, expected, "{query}");
            assert_eq!(front.asked(), Vec::<String>::new(), "{query}");
        }
        assert_eq!(
            value(get(&service, &format!("{MAPS}?limit=0")).await).await,
            value(get(&service, MAPS).await).await,
            "no limit at all"
        );
        assert_eq!(front.asked(), Vec::<String>::new());
        get(&service, &format!("{MAPS}?limit=4")).await;
        assert_eq!(front.asked().len(), 1, "a page is the server's");
    }
}

#[tokio::test]
async fn a_world_is_listed_by_its_tap_from_its_completion_to_its_first_write() {
    let front = Front::new();
    let last = front.put("lw-a", "a");
    front.put("lw-b", "b");
    let taps = opened(&front).await;
    reached(&taps, last).await;
    let service = taps.service("lw-a");
    let twin = service.clone();
    get(&twin, MAPS).await;
    assert_eq!(front.asked(), [format!("GET {MAPS}")], "nobody has said that it is complete");
    service.complete();
    get(&twin, MAPS).await;
    get(&taps.service("lw-a"), MAPS).await;
    maps_of(&taps.service("lw-a")).get("a").await.unwrap();
    assert_eq!(front.asked(), [format!("GET {MAPS}/a")], "a read changes nothing");

    let other = taps.service("lw-b");
    other.complete();
    // Refused, perhaps; it might have taken effect all the same.
    let write = Request::post(MAPS)
        .body(Body::from(json!({"metadata": {"name": "w"}}).to_string().into_bytes()))
        .unwrap();
    let writing = twin.clone().call(write);
    get(&service, MAPS).await;
    get(&taps.service("lw-a"), MAPS).await;
    assert_eq!(front.asked().len(), 2, "from the moment at which the write is made");
    writing.await.unwrap();
    front.asked();
    for service in [&service, &twin, &taps.service("lw-a")] {
        get(service, MAPS).await;
        assert_eq!(front.asked().len(), 1);
    }
    get(&other, "/api/v1/namespaces/lw-b/configmaps").await;
    let watch = format!("{MAPS}?watch=true&resourceVersion={}", front.revision());
    get(&service, &watch).await;
    assert_eq!(
        front.asked(),
        Vec::<String>::new(),
        "other worlds, and watches, go on from the tap"
    );
}

#[tokio::test]
async fn every_kind_of_write_ends_the_lists_of_the_tap() {
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let front = Front::new();
        let last = front.put("lw-a", "a");
        let taps = opened(&front).await;
        reached(&taps, last).await;
        let service = taps.service("lw-a");
        service.complete();
        get(&service, MAPS).await;
        assert_eq!(front.asked(), Vec::<String>::new());
        let request = Request::builder()
            .method(method)
            .uri(format!("{MAPS}/a"))
            .body(Body::from(b"{}".to_vec()))
            .unwrap();
        drop(service.clone().call(request));
        get(&service, MAPS).await;
        assert_eq!(front.asked(), [format!("GET {MAPS}")], "{method}, even if it is given up");
    }
}

#[tokio::test]
async fn a_tap_comes_back_where_it_was_and_its_watches_do_not_notice() {
    let front = Front::new();
    let taps = opened(&front).await;
    let service = taps.service("lw-a");
    let start = front.put("lw-a", "a") - 1;
    let query = format!("{MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion={start}");
    let mut watch = get(&service, &query).await.into_body();
    assert_eq!(names(&chunks(&mut watch, 1).await), ["a"]);

    let ends: [(&str, &dyn Fn()); 4] = [
        ("closed", &|| front.server.close_watches("configmaps")),
        ("broken", &|| front.server.break_watches("configmaps")),
        ("error 500", &|| front.server.error("configmaps", 500)),
        ("refused", &|| {
            front.server.refuse_watches(2);
            front.server.close_watches("configmaps");
        }),
    ];
    for (name, end) in ends {
        let last = front.put("lw-a", name);
        front.server.bookmark("configmaps");
        assert_eq!(names(&chunks(&mut watch, 2).await), [name, "-"]);
        front.asked();
        end();
        front.put("lw-a", "meanwhile");
        assert_eq!(names(&chunks(&mut watch, 1).await), ["meanwhile"], "{name}");
        let asked = front.asked();
        let expected = format!(
            "GET {ALL_MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion={}",
            last + 1
        );
        assert!(asked.iter().all(|asked| *asked == expected), "{name}: {asked:?}");
        assert!(!asked.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_line_that_cannot_be_read_is_asked_for_again() {
    let front = Front::new();
    let taps = opened(&front).await;
    let service = taps.service("lw-a");
    let first = front.put("lw-a", "a");
    let query = format!("{MAPS}?watch=true&resourceVersion={}", first - 1);
    let mut watch = get(&service, &query).await.into_body();
    chunks(&mut watch, 1).await;
    let whole = |more: Value| {
        let mut object = json!({"metadata": {
            "namespace": "lw-a", "name": "x", "resourceVersion": "9999",
        }});
        object["metadata"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("{}\n", json!({"type": "ADDED", "object": object}))
    };
    let mut last = first;
    for line in [
        "{\"type\":\"ADDED\",\"obj\n".to_owned(),
        whole(json!({})).trim_end().to_owned(),
        whole(json!({"resourceVersion": "ten"})),
        whole(json!({"namespace": ""})),
        whole(json!({})).replace("ADDED", "RENAMED"),
    ] {
        let tap = format!("{ALL_MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion={last}");
        front.answer_once(&tap, 200, line.clone());
        front.asked();
        front.server.close_watches("configmaps");
        let mut asked = Vec::new();
        until("the tap asks again", || {
            asked.extend(front.asked());
            asked.len() == 2
        })
        .await;
        assert_eq!(asked, [format!("GET {tap}"), format!("GET {tap}")], "{line}");
        last = front.put("lw-a", "b");
        assert_eq!(names(&chunks(&mut watch, 1).await), ["b"], "and nothing of {line}");
    }
}

#[tokio::test]
async fn a_tap_whose_past_is_gone_says_so_and_begins_anew() {
    for by_status in [false, true] {
        let front = Front::new();
        front.put("lw-a", "kept");
        front.put("lw-a", "gone");
        let taps = opened(&front).await;
        let service = taps.service("lw-a");
        service.complete();
        let start = front.put("lw-a", "changed");
        reached(&taps, start).await;
        let query = format!("{MAPS}?watch=true&resourceVersion={start}");
        let mut watch = get(&service, &query).await.into_body();
        let mut foreign =
            get(&taps.service("lw-b"), &query.replace("lw-a", "lw-b")).await.into_body();
        let tap = format!("{ALL_MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion={start}");
        front.server.close_watches("configmaps");
        front.server.delete("configmaps", "lw-a", "gone");
        if by_status {
            front.answer_once(&tap, 410, "{}");
        } else {
            front.server.compact();
        }
        for body in [&mut watch, &mut foreign] {
            assert_eq!(names(&chunks(body, 1).await), ["error 410"]);
            assert!(within(body.frame()).await.is_none(), "that is the end");
        }
        let now = front.put("lw-a", "new");
        reached(&taps, now).await;
        front.asked();
        let list = value(get(&service, MAPS).await).await;
        let names: Vec<&str> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["changed", "kept", "new"]);
        get(&service, &format!("{MAPS}?watch=true&resourceVersion={now}")).await;
        assert_eq!(front.asked(), Vec::<String>::new());
        get(&service, &query).await;
        assert_eq!(front.asked(), [format!("GET {query}")], "the server says that this is too old");
    }
}

#[tokio::test]
async fn a_controller_over_an_expired_tap_lists_again_and_goes_on() {
    let front = Front::new();
    front.put("lw-a", "a");
    let taps = opened(&front).await;
    let service = taps.service("lw-a");
    let (store, writer) = reflector::store();
    let stream = watcher(maps_of(&service), watcher::Config::default()).reflect(writer);
    tokio::spawn(stream.for_each(|_| std::future::ready(())));
    within(store.wait_until_ready()).await.unwrap();
    until("the watch of the tap alone is open", || front.server.watches("configmaps") == 1).await;
    front.server.close_watches("configmaps");
    front.server.delete("configmaps", "lw-a", "a");
    front.server.compact();
    front.put("lw-a", "b");
    until("the store shows the new state", || {
        let names: Vec<_> =
            store.state().iter().map(|map| map.metadata.name.clone().unwrap()).collect();
        names == ["b"]
    })
    .await;
}

#[tokio::test]
async fn lists_and_watches_of_the_whole_cluster_are_narrowed_to_the_world() {
    let front = Front::new();
    front.put("lw-a", "a");
    let last = front.put("lw-b", "b");
    let taps = opened(&front).await;
    let service = taps.service("lw-a");
    service.complete();
    reached(&taps, last).await;
    let list = value(get(&service, &format!("{ALL_MAPS}?limit=500")).await).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["metadata"]["namespace"], "lw-a");
    let query = format!("?watch=true&resourceVersion={last}");
    let mut watch = get(&service, &format!("{ALL_MAPS}{query}")).await.into_body();
    front.put("lw-b", "b2");
    front.put("lw-a", "a2");
    assert_eq!(names(&chunks(&mut watch, 1).await), ["a2"]);
    assert_eq!(front.asked(), Vec::<String>::new());

    let sets = "/apis/apps/v1/statefulsets";
    let sets_here = "/apis/apps/v1/namespaces/lw-a/statefulsets";
    get(&service, &format!("{ALL_MAPS}?labelSelector=a%3Db")).await;
    get(&service, &format!("{sets}?watch=true&resourceVersion=1")).await;
    get_as(&service, sets, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
        .await;
    get_as(&service, "/api/v1/pods", "application/vnd.kubernetes.protobuf").await;
    get(&taps.service("lw-b"), "/api/v1/pods?limit=1").await;
    get(&service, "/api/v1/nodes").await;
    let expected = [
        format!("{MAPS}?labelSelector=a%3Db"),
        "/apis/apps/v1".to_owned(),
        format!("{sets_here}?watch=true&resourceVersion=1"),
        sets_here.to_owned(),
        "/api/v1".to_owned(),
        "/api/v1/namespaces/lw-a/pods".to_owned(),
        "/api/v1/namespaces/lw-b/pods?limit=1".to_owned(),
        "/api/v1/nodes".to_owned(),
    ];
    assert_eq!(front.asked(), expected.map(|asked| format!("GET {asked}")));
}

#[tokio::test]
async fn a_resource_that_was_defined_later_is_narrowed_too_and_a_doubt_is_an_error() {
    let front = Front::new();
    let taps = front.taps();
    let service = taps.service("lw-a");
    // The scripted server lists whatever it is asked for.
    get(&service, "/apis/g.io/v1/widgets").await;
    assert_eq!(front.asked(), ["GET /apis/g.io/v1", "GET /apis/g.io/v1/widgets"]);
    front.document("/apis/g.io/v1", &[("gadgets", true)]);
    get(&service, "/apis/g.io/v1/gadgets").await;
    front.document("/apis/g.io/v1", &[("gadgets", true), ("widgets", true)]);
    front.asked();
    get(&service, "/apis/g.io/v1/widgets").await;
    get(&service, "/apis/g.io/v1/gadgets").await;
    let narrowed =
        ["widgets", "gadgets"].map(|name| format!("GET /apis/g.io/v1/namespaces/lw-a/{name}"));
    assert_eq!(front.asked(), [&["GET /apis/g.io/v1".to_owned()], &narrowed[..]].concat());

    front.answer_once("/api/v1", 503, "overloaded");
    let request = Request::get("/api/v1/pods").body(Body::empty()).unwrap();
    let error = service.clone().oneshot(request).await.map(drop).unwrap_err().to_string();
    assert_eq!(
        error,
        "failed to ask for /api/v1: the server answers 503 Service Unavailable\n    overloaded"
    );
    assert_eq!(front.asked(), ["GET /api/v1"], "the objects of other worlds are not shown");
}

#[tokio::test]
async fn a_wait_for_a_revision_ends_when_the_tap_is_sure_to_have_it() {
    let front = Front::new();
    let maps = maps_resource();
    let taps = front.taps();
    let error = taps.reached(&maps, "lw-a", 1).await.unwrap_err();
    assert!(matches!(error, TapError::NotOpen { .. }));
    assert_eq!(
        error.to_string(),
        "failed to wait for the tap of configmaps (v1): it is not open; open it first"
    );
    taps.open(&maps, None).await.unwrap();
    reached(&taps, 100).await;

    front.server.stall();
    let revision = front.put("lw-a", "a");
    let waiting = tokio::spawn({
        let (taps, maps) = (taps.clone(), maps.clone());
        async move { taps.reached(&maps, "lw-a", revision).await }
    });
    let soon = Duration::from_millis(20);
    let error = taps.reached_within(&maps, "lw-a", revision, soon).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to see revision 101 of namespace \"lw-a\" in the tap of configmaps (v1) within 20ms; \
         last seen: no event there, revision 100 elsewhere, since 100"
    );
    assert!(!waiting.is_finished());
    front.server.flow();
    within(waiting).await.unwrap().unwrap();

    // An event elsewhere shows that all before it has been seen, though not all at its own revision.
    let elsewhere = front.put("lw-b", "b");
    reached(&taps, elsewhere - 1).await;
    within(taps.reached(&maps, "lw-b", elsewhere)).await.unwrap();
    let error = taps.reached_within(&maps, "lw-a", elsewhere, soon).await.unwrap_err().to_string();
    assert!(
        error.ends_with(
            "last seen: an event at revision 101 there, revision 102 elsewhere, since 100"
        ),
        "{error}"
    );
    let bookmark: i64 = front.server.bookmark("configmaps").parse().unwrap();
    reached(&taps, bookmark).await;

    front.server.refuse_watches(1000);
    front.server.close_watches("configmaps");
    let mut asked = 0;
    until("the tap has been refused", || {
        asked += front.asked().len();
        asked > 2
    })
    .await;
    let error = taps.reached_within(&maps, "lw-a", 999, soon).await.unwrap_err().to_string();
    assert!(
        error.contains("reconnecting (failed to ask for /api/v1/configmaps?watch=true"),
        "{error}"
    );
    assert!(error.contains("the server answers 500"), "{error}");
}

#[tokio::test]
async fn a_tap_that_begins_with_a_watch_asks_for_no_list() {
    let front = Front::new();
    let maps = maps_resource();
    let since = front.put("lw-0", "old");
    let taps = front.taps();
    let error = taps.open(&maps, Some("now")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to open the tap of configmaps (v1): \"now\" is no resource version"
    );
    taps.open(&maps, Some(&since.to_string())).await.unwrap();
    let watch = format!("GET {ALL_MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion=");
    assert_eq!(front.asked(), [format!("{watch}{since}")]);
    let error = taps.reached(&maps, "lw-0", since).await.unwrap_err();
    assert!(matches!(error, TapError::BeforeItsTime { .. }), "{error}");
    assert!(error.to_string().contains("begins after revision 101"), "{error}");

    let last = front.put("lw-a", "a");
    reached(&taps, last).await;
    let service = taps.service("lw-a");
    service.complete();
    for expected in [vec![format!("GET {MAPS}")], vec![]] {
        let list = value(get(&service, MAPS).await).await;
        assert_eq!(list["kind"], "ConfigMapList");
        assert_eq!(list["items"][0]["kind"], Value::Null, "as the server writes items");
        assert_eq!(list["items"][0]["metadata"]["name"], "a");
        assert_eq!(front.asked(), expected, "how the server writes lists is learnt once");
    }
    get(&service, &format!("{MAPS}?watch=true&resourceVersion={since}")).await;
    assert_eq!(front.asked(), Vec::<String>::new());
    get(&service, &format!("{MAPS}?watch=true&resourceVersion={}", since - 1)).await;
    assert_eq!(front.asked().len(), 1);
}

#[tokio::test]
async fn a_tap_whose_since_is_too_old_begins_from_the_present_state() {
    let front = Front::new();
    let since = front.put("lw-a", "a");
    front.server.compact();
    let taps = front.taps();
    taps.open(&maps_resource(), Some(&since.to_string())).await.unwrap();
    within(taps.reached(&maps_resource(), "lw-a", since + 1)).await.unwrap();
    let service = taps.service("lw-a");
    service.complete();
    front.asked();
    assert_eq!(value(get(&service, MAPS).await).await["items"][0]["metadata"]["name"], "a");
    assert_eq!(front.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_tap_that_cannot_be_opened_says_why_and_can_be_opened_later() {
    let front = Front::new();
    let (taps, maps) = (front.taps(), maps_resource());
    let object = |metadata: Value| {
        json!({"kind": "NodeList", "apiVersion": "v1", "metadata": {"resourceVersion": "5"},
               "items": [{"metadata": metadata}]})
    };
    let mut no_version = object(json!({"namespace": "a", "name": "b"}));
    no_version["metadata"] = json!({});
    for (code, body, expected) in [
        (403, "no".to_owned(), "failed to ask for /api/v1/configmaps: the server answers 403"),
        (
            200,
            "<html>".to_owned(),
            "failed to read the reply to /api/v1/configmaps: expected value",
        ),
        (
            200,
            no_version.to_string(),
            "failed to list /api/v1/configmaps: it has no numeric resource version",
        ),
        (
            200,
            object(json!({"name": "n"})).to_string(),
            "an object is in no namespace; is the resource namespaced?",
        ),
    ] {
        front.answer_once(ALL_MAPS, code, body);
        let error = taps.open(&maps, None).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!taps.is_open(&maps));
    }
    front.server.refuse_watches(1);
    let error = taps.open(&maps, None).await.unwrap_err().to_string();
    assert!(error.contains("watch=true"), "{error}");
    let last = front.put("lw-a", "a");
    let service = taps.service("lw-a");
    service.complete();
    front.asked();
    get(&service, MAPS).await;
    assert_eq!(front.asked(), [format!("GET {MAPS}")], "a tap that is not open answers nothing");
    taps.open(&maps, None).await.unwrap();
    reached(&taps, last).await;
    front.asked();
    get(&service, MAPS).await;
    assert_eq!(front.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_forgotten_or_never_kept_is_the_servers_and_open_watches_go_on() {
    let front = Front::new();
    let taps = front.taps();
    taps.keep_only("lw-");
    front.put("default", "d");
    taps.open(&maps_resource(), None).await.unwrap();
    let start = front.put("lw-a", "a") - 1;
    let last = front.put("default", "e");
    within(taps.reached(&maps_resource(), "lw-a", last - 1)).await.unwrap();
    let query = format!("{MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion={start}");
    let elsewhere = query.replace("lw-a", "default");
    let outside = taps.service("default");
    outside.complete();
    front.asked();
    get(&outside, &elsewhere).await;
    get(&outside, "/api/v1/namespaces/default/configmaps").await;
    assert_eq!(front.asked().len(), 2);

    let service = taps.service("lw-a");
    service.complete();
    let mut watch = get(&service, &query).await.into_body();
    get(&service, MAPS).await;
    assert_eq!(front.asked(), Vec::<String>::new());
    assert_eq!(names(&chunks(&mut watch, 1).await), ["a"]);
    taps.forget("lw-a");
    get(&service, &query).await;
    get(&service, MAPS).await;
    front.put("lw-a", "late");
    assert_eq!(names(&chunks(&mut watch, 1).await), ["late"]);
    front.server.bookmark("configmaps");
    assert_eq!(names(&chunks(&mut watch, 1).await), ["-"]);
    let again = taps.service("lw-a");
    again.complete();
    get(&again, &query).await;
    get(&again, MAPS).await;
    assert_eq!(front.asked().len(), 4, "a late write makes it no world again");
    assert_eq!(format!("{taps:?}"), "{\"configmaps (v1)\"}");
}

#[tokio::test]
async fn a_watch_ends_when_its_client_wanted_it_to() {
    let front = Front::new();
    let taps = opened(&front).await;
    let service = taps.service("lw-a");
    let last = front.put("lw-a", "a");
    let query = format!("{MAPS}?watch=true&timeoutSeconds=1&resourceVersion={}", last - 1);
    let mut watch = get(&service, &query).await.into_body();
    assert_eq!(names(&chunks(&mut watch, 1).await), ["a"]);
    assert!(within(watch.frame()).await.is_none(), "in good order");
    assert!(within(watch.frame()).await.is_none(), "and for good");
    assert_eq!(front.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn taps_close_with_the_last_of_those_who_use_them() {
    let front = Front::new();
    let taps = opened(&front).await;
    let service = taps.service("lw-a");
    drop(taps);
    assert_eq!(front.server.watches("configmaps"), 1);
    drop(service);
    until("the watch is given up", || front.server.watches("configmaps") == 0).await;
}
