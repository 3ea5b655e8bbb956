//! A scheduler at the boundaries: what it is asked, and what the code under test sees.

use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    api::{Patch, PatchParams},
    client::Body,
    core::PartialObjectMeta,
};
use tokio::sync::Notify;
use tower::{Service, ServiceExt};

use super::*;
use crate::lag::{
    Answer, Boundary, Choices, Released, Requests, Scheduler, StreamError, StreamErrorKind,
    model::{Chooser, Point, StreamDescription},
};

type Seen = Arc<Mutex<Vec<String>>>;

/// Releases as many events as its list says, one number a question; then all.
struct Scripted {
    releases: Vec<usize>,
    seen: Seen,
    environment: Option<Box<dyn FnMut(u64) -> BoxFuture<'static, ()> + Send>>,
    not_taken: Arc<Mutex<Vec<StreamError>>>,
}

impl Scripted {
    fn new(releases: &[usize]) -> Self {
        Self {
            releases: releases.iter().rev().copied().collect(),
            seen: Seen::default(),
            environment: None,
            not_taken: Arc::default(),
        }
    }
}

impl Scheduler for Scripted {
    fn environment(&mut self, boundary: &Boundary) -> BoxFuture<'static, ()> {
        match &mut self.environment {
            Some(environment) => environment(boundary.number),
            None => std::future::ready(()).boxed(),
        }
    }

    fn release(
        &mut self,
        boundary: &Boundary,
        stream: &StreamDescription,
        waiting: &[Released],
    ) -> usize {
        let names: Vec<&str> = waiting.iter().filter_map(Released::name).collect();
        let resource = &stream.identity.resource;
        self.seen.lock().unwrap().push(format!(
            "{} {} {resource} {}: {}",
            boundary.number,
            boundary.request.as_ref().expect("a reply").verb,
            stream.identity.representation,
            names.join(" ")
        ));
        self.releases.pop().unwrap_or(usize::MAX)
    }

    fn not_taken(&mut self, _: &Boundary, _: &StreamDescription, error: StreamError) {
        self.not_taken.lock().unwrap().push(error);
    }
}

fn maps(lag: &Lag) -> Api<ConfigMap> {
    Api::namespaced(lag.client(), NAMESPACE)
}

async fn patch(maps: &Api<ConfigMap>, name: &str, value: &str) {
    let patch = Patch::Merge(data(value));
    within(maps.patch(name, &PatchParams::default(), &patch)).await.unwrap();
}

#[tokio::test]
async fn what_the_scheduler_lets_go_is_what_the_store_shows_when_the_reply_is_there() {
    let fixture = Fixture::start().await;
    fixture.lag.hold();
    let scheduler = Scripted::new(&[0, 1, 0, 2]);
    let seen = Arc::clone(&scheduler.seen);
    fixture.lag.set_scheduler(scheduler);
    let maps = maps(&fixture.lag);
    let mut shown = Vec::new();
    for value in ["1", "2", "3", "4", "5"] {
        patch(&maps, "a", value).await;
        shown.push(fixture.shown("a"));
    }
    let shown: Vec<_> = shown.iter().map(|shown| shown.as_deref().unwrap_or("-")).collect();
    // Behind after each write: 1, 1, 2, 1, and nothing.
    assert_eq!(shown, ["-", "1", "1", "3", "5"]);
    assert_eq!(
        seen.lock().unwrap()[..],
        [
            "1 patch (merge) configmaps full objects: a",
            "2 patch (merge) configmaps full objects: a a",
            "3 patch (merge) configmaps full objects: a a",
            "4 patch (merge) configmaps full objects: a a a",
            "5 patch (merge) configmaps full objects: a a",
        ]
    );
    fixture.lag.clear_scheduler();
    patch(&maps, "a", "6").await;
    assert_eq!(fixture.lag.stream::<ConfigMap>().behind().unwrap(), 1, "nobody is asked any more");
}

#[tokio::test]
async fn the_clock_of_the_server_brings_no_bookmark_into_a_schedule() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    fixture.lag.set_scheduler(Scripted::new(&[]));
    fixture.server.bookmark("configmaps");
    let event = fixture.put("a", "1");
    cache.received(&event).await.unwrap();
    fixture.server.bookmark("configmaps");
    let last = fixture.put("a", "2");
    cache.shown(&last).await.unwrap();
    let frames = fixture.lag.engine.look(|registry| registry.streams[0].handed());
    assert_eq!(frames, 2, "two events, and no bookmark");

    fixture.lag.clear_scheduler();
    let bookmark = fixture.server.bookmark("configmaps");
    cache.shown(&bookmark).await.unwrap();
    assert_eq!(cache.delivered_resource_version().unwrap(), Some(bookmark));
    // A check has none in its record, whatever comes between the run and the judgement.
    fixture.lag.without_bookmarks();
    fixture.server.bookmark("configmaps");
    let event = fixture.put("a", "3");
    cache.shown(&event).await.unwrap();
    let frames = fixture.lag.engine.look(|registry| registry.streams[0].handed());
    assert_eq!(frames, 4, "three events and the one bookmark");
}

#[tokio::test]
async fn stores_are_released_before_what_only_triggers() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    // Opened first, and released last.
    let metadata: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(lag.client(), NAMESPACE);
    let metadata = watcher(metadata, watcher::Config::default());
    let _metadata = tokio::spawn(metadata.for_each(|_| std::future::ready(())));
    lag.stream::<ConfigMap>().metadata().opened().await.unwrap();
    let watched = watcher(maps(&lag), watcher::Config::default().labels("a!=b"));
    let _watched = tokio::spawn(watched.for_each(|_| std::future::ready(())));
    lag.stream::<ConfigMap>().labels("a!=b").opened().await.unwrap();
    lag.stream::<ConfigMap>().labels("a!=b").only_trigger();
    let (store, _reflector) = reflect(&lag, watcher::Config::default());
    within(store.wait_until_ready()).await.unwrap();
    lag.stream::<ConfigMap>().without_labels().opened().await.unwrap();
    lag.hold();
    let scheduler = Scripted::new(&[]);
    let seen = Arc::clone(&scheduler.seen);
    lag.set_scheduler(scheduler);
    patch(&maps(&lag), "a", "1").await;
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen[0].contains("full objects"), "{seen:?}");
    assert!(seen[1].contains("metadata only"), "{seen:?}");
    let order = lag.engine.look(crate::lag::engine::Registry::release_order);
    assert_eq!(order, [2, 0, 1]);
}

/// A server on which reads of "slow" last until they are told to go on.
#[derive(Clone)]
struct Slow {
    server: Server,
    go_on: Arc<Notify>,
}

impl Service<Request<Body>> for Slow {
    type Response = <Server as Service<Request<Body>>>::Response;
    type Error = <Server as Service<Request<Body>>>::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (server, go_on) = (self.server.clone(), Arc::clone(&self.go_on));
        async move {
            if request.uri().path().ends_with("/slow") {
                go_on.notified().await;
            }
            let reply: Result<Response<_>, _> = server.oneshot(request).await;
            reply
        }
        .boxed()
    }
}

#[tokio::test]
async fn replies_go_back_in_the_order_of_their_requests() {
    let slow = Slow { server: Server::new(), go_on: Arc::default() };
    for name in ["slow", "quick"] {
        slow.server.put("configmaps", NAMESPACE, name, data("1"));
    }
    let lag = Lag::over_service(slow.clone(), NAMESPACE);
    lag.set_scheduler(Scripted::new(&[]));
    let order = Seen::default();
    let get = |name: &'static str| {
        let (maps, order) = (maps(&lag), Arc::clone(&order));
        tokio::spawn(async move {
            maps.get(name).await.unwrap();
            order.lock().unwrap().push(name.to_owned());
        })
    };
    let first = get("slow");
    until("the first request is made", || lag.requests().len() == 1).await;
    let second = get("quick");
    until("the second is answered by the server", || {
        slow.server.log().iter().any(|line| line.ends_with("/quick"))
    })
    .await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!second.is_finished(), "its reply waits for the one before");
    slow.go_on.notify_one();
    within(first).await.unwrap();
    within(second).await.unwrap();
    assert_eq!(*order.lock().unwrap(), ["slow", "quick"]);

    // A request whose caller has gone holds nobody up, nor does one that the test leaves unanswered.
    let abandoned = get("slow");
    until("it is made", || lag.requests().len() == 3).await;
    abandoned.abort();
    lag.answer_once(Requests::any().named("never"), Answer::Timeout);
    let _never = get("never");
    until("it is made", || lag.requests().len() == 4).await;
    within(get("quick")).await.unwrap();
}

#[tokio::test]
async fn an_actor_commits_at_a_boundary_and_the_streams_have_it_when_they_are_asked() {
    let fixture = Fixture::start().await;
    fixture.lag.hold();
    let mut scheduler = Scripted::new(&[0]);
    let seen = Arc::clone(&scheduler.seen);
    let actor: Api<ConfigMap> = Api::namespaced(fixture.lag.actor_client(), NAMESPACE);
    scheduler.environment = Some(Box::new(move |number| {
        let actor = actor.clone();
        async move { patch(&actor, &format!("by-actor-{number}"), "1").await }.boxed()
    }));
    fixture.lag.set_scheduler(scheduler);
    let maps = maps(&fixture.lag);
    patch(&maps, "a", "1").await;
    patch(&maps, "a", "2").await;
    assert_eq!(
        seen.lock().unwrap()[..],
        [
            "1 patch (merge) configmaps full objects: a by-actor-1",
            "2 patch (merge) configmaps full objects: a by-actor-1 a by-actor-2",
        ]
    );
    assert!(fixture.shown("by-actor-2").is_some());
    let writes = fixture.lag.requests().count(&Requests::any().writes());
    assert_eq!(writes, 2, "the actor's requests are not those of the code under test");
}

#[tokio::test]
async fn a_reflector_that_waits_for_the_held_reply_is_reported_and_does_not_hang() {
    let server = Server::new();
    let lag =
        Lag::over_service(server.clone(), NAMESPACE).with_deadline(Duration::from_millis(100));
    // The consumer of the stream writes, and takes nothing in until its reply is there.
    let (other, written) = (maps(&lag), Arc::new(Notify::new()));
    let go_on = Arc::new(Notify::new());
    let consumer = {
        let (written, go_on) = (Arc::clone(&written), Arc::clone(&go_on));
        let (_, writer) = reflector::store();
        let stream = watcher(maps(&lag), watcher::Config::default()).reflect(writer);
        stream.applied_objects().for_each(move |object| {
            let (other, written, go_on) = (other.clone(), Arc::clone(&written), Arc::clone(&go_on));
            async move {
                if object.unwrap().metadata.name.as_deref() == Some("a") {
                    go_on.notified().await;
                    patch(&other, "b", "1").await;
                    written.notify_one();
                }
            }
        })
    };
    let _consumer = tokio::spawn(consumer);
    let stream = lag.stream::<ConfigMap>();
    stream.opened().await.unwrap();
    let scheduler = Scripted::new(&[]);
    let not_taken = Arc::clone(&scheduler.not_taken);
    lag.set_scheduler(scheduler);
    server.put("configmaps", NAMESPACE, "a", data("1"));
    until("the consumer has it", || stream.position().unwrap() == 1).await;
    stream.hold();
    go_on.notify_one();
    within(written.notified()).await;
    let errors = not_taken.lock().unwrap();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].kind(), StreamErrorKind::NotTaken);
    let text = errors[0].to_string();
    assert!(text.contains("what consumes the stream is busy"), "{text}");
    assert_eq!(stream.behind().unwrap(), 1, "it is held as before");
}

/// Takes what its list says, then the freshest.
struct Forced(Vec<usize>);

impl Chooser for Forced {
    fn choose(&mut self, _: &Point) -> usize {
        if self.0.is_empty() { 0 } else { self.0.remove(0) }
    }
}

#[tokio::test]
async fn every_combination_of_views_inside_a_pass_is_reached_through_the_menus() {
    // The pass writes twice and looks at its cache after each reply.
    let mut outcomes = std::collections::BTreeMap::new();
    let mut prefixes = vec![Vec::new()];
    while let Some(prefix) = prefixes.pop() {
        let fixture = Fixture::start().await;
        fixture.lag.hold();
        let choices = Choices::new(Forced(prefix.clone()));
        let record = choices.record();
        fixture.lag.set_scheduler(choices);
        let maps = maps(&fixture.lag);
        let mut seen = Vec::new();
        for value in ["1", "2"] {
            patch(&maps, "a", value).await;
            seen.push(fixture.shown("a").unwrap_or_default());
        }
        let chosen = record.chosen();
        for at in prefix.len()..chosen.len() {
            for other in 1..chosen[at].point.menu().len() {
                let before = chosen[..at].iter().map(|chosen| chosen.taken);
                prefixes.push(before.chain([other]).collect());
            }
        }
        let token: Vec<String> = chosen.iter().map(ToString::to_string).collect();
        assert!(outcomes.insert(token.join(","), seen).is_none());
    }
    let views: std::collections::BTreeSet<_> = outcomes.values().cloned().collect();
    let legal = [["", ""], ["", "1"], ["", "2"], ["1", "1"], ["1", "2"]];
    assert_eq!(views, legal.map(|view| view.map(str::to_owned).to_vec()).into(), "{outcomes:#?}");
    assert_eq!(outcomes.len(), 5, "one run each");
    assert!(outcomes.contains_key("configmaps@q1:0,configmaps@q2:0"), "{outcomes:#?}");
    assert!(outcomes.contains_key("configmaps@q1:-1,configmaps@q2:-2"), "{outcomes:#?}");
}

#[tokio::test]
async fn a_hold_costs_where_it_opens_and_not_where_it_goes_on() {
    let fixture = Fixture::start().await;
    fixture.lag.hold();
    let choices = Choices::new(Forced(vec![1, 2, 1]));
    let record = choices.record();
    fixture.lag.set_scheduler(choices);
    let maps = maps(&fixture.lag);
    for value in ["1", "2", "3"] {
        patch(&maps, "a", value).await;
    }
    let costs: Vec<Vec<u8>> = record
        .chosen()
        .iter()
        .map(|chosen| chosen.point.menu().iter().map(|alternative| alternative.cost).collect())
        .collect();
    assert_eq!(costs, [vec![0, 1], vec![0, 1, 0], vec![0, 1, 1, 0]]);
    assert!(record.impossible().is_empty());
    let pods: Api<Pod> = Api::namespaced(fixture.lag.client(), NAMESPACE);
    assert!(pods.get_opt("p").await.unwrap().is_none(), "a read is a boundary too");
    assert_eq!(record.chosen().len(), 4);
}
