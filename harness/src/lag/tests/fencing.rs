//! Replies to writes wait for their events.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::{
    Error, Resource,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams},
};
use tokio::task::JoinHandle;

use super::*;
use crate::lag::{Answer, FenceError, Requests};

fn maps(lag: &Lag) -> Api<ConfigMap> {
    Api::namespaced(lag.client(), NAMESPACE)
}

fn merge(value: Value) -> Patch<Value> {
    Patch::Merge(value)
}

/// A reflector of Pods with this configuration, held.
async fn pods(lag: &Lag, config: watcher::Config) -> JoinHandle<()> {
    let pods: Api<Pod> = Api::namespaced(lag.client(), NAMESPACE);
    let stream = watcher(pods, config);
    let task = tokio::spawn(stream.for_each(|_| std::future::ready(())));
    lag.stream::<Pod>().hold();
    task
}

/// Whether `write` is answered while the events are stalled; then lets them flow and awaits it.
async fn waits_for_its_event<T: Send + 'static>(
    server: &Server,
    lag: &Lag,
    write: impl Future<Output = kube::Result<T>> + Send + 'static,
) -> bool {
    server.stall();
    let mark = lag.mark();
    let revision = server.revision();
    let write = tokio::spawn(write);
    until("the write has taken effect", || server.revision() != revision).await;
    // What is not held back by a fence is through after a few turns of this one thread.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let waited = !write.is_finished();
    assert_eq!(lag.requests_since(mark)[0].finished.is_none(), waited);
    server.flow();
    within(write).await.unwrap().unwrap();
    waited
}

#[tokio::test]
async fn behind_is_exact_right_after_each_kind_of_write() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    let maps = maps(&fixture.lag);
    cache.hold();
    let behind = std::cell::Cell::new(0);
    let one_more = |what: &str| {
        behind.set(behind.get() + 1);
        assert_eq!(cache.behind().unwrap(), behind.get(), "after {what}");
    };
    let mut object: ConfigMap =
        serde_json::from_value(json!({"metadata": {"finalizers": ["laggard.dev/test"]}})).unwrap();
    let params = PatchParams::default();
    for round in 0..50 {
        let name = format!("a{round}");
        object.meta_mut().name = Some(name.clone());
        maps.create(&PostParams::default(), &object).await.unwrap();
        one_more("a create");
        maps.patch(&name, &params, &merge(data("1"))).await.unwrap();
        one_more("a patch");
        maps.patch_status(&name, &params, &merge(data("2"))).await.unwrap();
        one_more("a patch of the status");
        maps.delete(&name, &DeleteParams::default()).await.unwrap();
        one_more("a deletion that a finalizer delays");
        let unfinished = merge(json!({"metadata": {"finalizers": null}}));
        let last = maps.patch(&name, &params, &unfinished).await.unwrap();
        assert!(last.metadata.deletion_timestamp.is_some());
        one_more("the removal of the last finalizer");
        maps.patch(&name, &params, &merge(data("3"))).await.unwrap();
        one_more("a create under the same name");
        maps.delete(&name, &DeleteParams::default()).await.unwrap();
        one_more("a deletion");
    }
}

#[tokio::test]
async fn a_reply_waits_until_its_event_is_received_and_not_until_it_is_shown() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    let patch = |value: &'static str| {
        let maps = maps(&fixture.lag);
        async move { maps.patch("a", &PatchParams::default(), &merge(data(value))).await }
    };
    assert!(waits_for_its_event(&fixture.server, &fixture.lag, patch("1")).await);
    assert_eq!((cache.behind().unwrap(), fixture.shown("a")), (1, None));
    let lag = fixture.lag.clone().with_fences(false);
    assert!(!waits_for_its_event(&fixture.server, &lag, patch("2")).await);
}

#[tokio::test]
async fn a_write_that_changes_nothing_waits_for_nothing() {
    let fixture = Fixture::start().await;
    let maps = maps(&fixture.lag);
    fixture.lag.stream::<ConfigMap>().hold();
    let params = PatchParams::default();
    let first = maps.patch("a", &params, &merge(data("1"))).await.unwrap();
    fixture.server.stall();
    let second = within(maps.patch("a", &params, &merge(data("1")))).await.unwrap();
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    // Neither do writes that are only tried.
    let dry = PatchParams { dry_run: true, ..params };
    within(maps.patch("a", &dry, &merge(data("2")))).await.unwrap();
    within(maps.delete("a", &DeleteParams { dry_run: true, ..DeleteParams::default() }))
        .await
        .unwrap();
    let nothing_there = within(maps.delete("b", &DeleteParams::default())).await;
    assert!(matches!(nothing_there, Err(Error::Api(_))));
    assert_eq!(fixture.lag.stream::<ConfigMap>().behind().unwrap(), 1);
}

#[tokio::test]
async fn an_event_that_does_not_come_fails_the_request_and_says_which() {
    let fixture = Fixture::start().await;
    let lag = fixture.lag.clone().with_deadline(Duration::from_millis(100));
    let maps = maps(&lag);
    fixture.server.stall();
    let error = maps.patch("a", &PatchParams::default(), &merge(data("1"))).await.unwrap_err();
    let Error::Service(error) = error else { panic!("no reply: {error:?}") };
    let error = error.downcast::<FenceError>().unwrap();
    let text = error.to_string();
    let version = fixture.server.revision();
    for part in [
        "failed to hand back the reply to patch (merge) /api/v1/namespaces/demo/configmaps/a"
            .to_owned(),
        "within 100ms".to_owned(),
        format!("\n  demo/a at rv {version} in configmaps (v1) in namespace \"demo\""),
    ] {
        assert!(text.contains(&part), "{part:?} in {text}");
    }
    assert!(lag.requests().to_string().contains("failed"), "{}", lag.requests());
    fixture.server.flow();
    lag.stream::<ConfigMap>().shown(&version).await.unwrap();
    fixture.server.stall();
    let error = maps.delete("a", &DeleteParams::default()).await.unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("the deletion of demo/a (uid uid-1) in"), "{text}");
}

#[tokio::test]
async fn only_streams_that_must_show_the_write_are_waited_for() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    server.put("pods", NAMESPACE, "p", json!({"metadata": {"labels": {"tier": "front"}}}));
    server.put("pods", NAMESPACE, "q", json!({"metadata": {"labels": {"tier": "back"}}}));
    let _front = pods(&lag, watcher::Config::default().labels("tier=front")).await;
    let front = lag.stream::<Pod>().labels("tier=front");
    front.opened().await.unwrap();
    let api: Api<Pod> = Api::namespaced(lag.client(), NAMESPACE);
    let patch = |name: &'static str, tier: &str| {
        let (api, patch) = (api.clone(), merge(json!({"metadata": {"labels": {"tier": tier}}})));
        async move { api.patch(name, &PatchParams::default(), &patch).await }
    };
    assert!(!waits_for_its_event(&server, &lag, patch("q", "middle")).await, "not selected");
    assert_eq!(front.behind().unwrap(), 0);
    assert!(waits_for_its_event(&server, &lag, patch("q", "front")).await, "it enters");
    assert!(waits_for_its_event(&server, &lag, patch("p", "back")).await, "it leaves");
    assert_eq!(front.behind().unwrap(), 2);
    let released = front.release_all().await.unwrap();
    let changes: Vec<String> = released.iter().map(|r| r.change().unwrap().to_string()).collect();
    assert_eq!(changes, ["ADDED", "DELETED"]);
    assert_eq!(front.view().unwrap()[0].metadata.name.as_deref(), Some("q"));
    let elsewhere: Api<Pod> = Api::namespaced(lag.client(), "elsewhere");
    let foreign = async move {
        let labels = merge(json!({"metadata": {"labels": {"tier": "front"}}}));
        elsewhere.patch("p", &PatchParams::default(), &labels).await
    };
    assert!(!waits_for_its_event(&server, &lag, foreign).await, "another namespace");
}

#[tokio::test]
async fn a_field_selector_is_judged_by_the_whole_object() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    server.put("pods", NAMESPACE, "p", json!({"spec": {"nodeName": "n1"}}));
    server.put("pods", NAMESPACE, "q", json!({"spec": {"nodeName": "n2"}}));
    let _pods = pods(&lag, watcher::Config::default().fields("spec.nodeName=n1")).await;
    lag.stream::<Pod>().opened().await.unwrap();
    let api: Api<Pod> = Api::namespaced(lag.client(), NAMESPACE);
    // The reply carries the metadata alone, so the engine looks itself.
    let patch = |name: &'static str, value: &str| {
        let (api, patch) = (api.clone(), merge(json!({"metadata": {"labels": {"x": value}}})));
        async move { api.patch_metadata(name, &PatchParams::default(), &patch).await }
    };
    assert!(waits_for_its_event(&server, &lag, patch("p", "1")).await);
    assert!(!waits_for_its_event(&server, &lag, patch("q", "1")).await);
    assert_eq!(lag.stream::<Pod>().behind().unwrap(), 1);
    assert_eq!(lag.requests().count(&Requests::get::<Pod>()), 0, "{}", lag.requests());
}

#[tokio::test]
async fn replies_without_a_version_are_fenced_by_what_the_server_has() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    for name in ["p", "q", "r"] {
        server.put("pods", NAMESPACE, name, json!({}));
    }
    server.put("pods", NAMESPACE, "s", json!({"metadata": {"finalizers": ["a/b"]}}));
    let _pods = pods(&lag, watcher::Config::default()).await;
    let stream = lag.stream::<Pod>();
    stream.opened().await.unwrap();
    let api: Api<Pod> = Api::namespaced(lag.client(), NAMESPACE);
    let bind = {
        let api = api.clone();
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "target": {"name": "n1"}});
        async move {
            let params = PostParams::default();
            api.create_subresource::<Value, Value>("binding", "p", &params, &binding).await
        }
    };
    assert!(waits_for_its_event(&server, &lag, bind).await);
    assert_eq!(stream.behind().unwrap(), 1);
    let evict = {
        let api = api.clone();
        async move { api.evict("q", &EvictParams::default()).await }
    };
    assert!(waits_for_its_event(&server, &lag, evict).await);
    assert_eq!(stream.behind().unwrap(), 2);
    let delete_all = {
        let api = api.clone();
        async move { api.delete_collection(&DeleteParams::default(), &ListParams::default()).await }
    };
    assert!(waits_for_its_event(&server, &lag, delete_all).await);
    // Two deletions, and one mark that a finalizer turns into an update.
    assert_eq!(stream.behind().unwrap(), 5);
    assert_eq!(
        lag.requests().count(&Requests::get::<Pod>()),
        0,
        "the engine's own looks are not recorded"
    );
}

#[tokio::test]
async fn a_scale_and_a_metadata_stream_are_fenced_too() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    server.put("statefulsets", NAMESPACE, "s", json!({"spec": {"replicas": 1}}));
    let sets: Api<StatefulSet> = Api::namespaced(lag.client(), NAMESPACE);
    let metadata: Api<kube::core::PartialObjectMeta<StatefulSet>> =
        Api::namespaced(lag.client(), NAMESPACE);
    let watch = watcher(metadata, watcher::Config::default());
    let _watch = tokio::spawn(watch.for_each(|_| std::future::ready(())));
    let stream = lag.stream::<StatefulSet>().metadata();
    stream.hold();
    stream.opened().await.unwrap();
    let scale = {
        let sets = sets.clone();
        let patch = merge(json!({"spec": {"replicas": 2}}));
        async move { sets.patch_scale("s", &PatchParams::default(), &patch).await }
    };
    assert!(waits_for_its_event(&server, &lag, scale).await);
    assert_eq!(stream.behind().unwrap(), 1);
}

#[tokio::test]
async fn what_others_wrote_before_a_write_has_been_received_with_it() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    let maps = maps(&fixture.lag);
    for round in 1..=50 {
        fixture.server.stall();
        fixture.put("theirs", round.to_string());
        let patch = {
            let (maps, patch) = (maps.clone(), merge(data(round.to_string())));
            tokio::spawn(async move { maps.patch("ours", &PatchParams::default(), &patch).await })
        };
        let key = format!("PATCH /api/v1/namespaces/{NAMESPACE}/configmaps/ours");
        until("the server has ours", || {
            fixture.server.log().iter().filter(|line| line.starts_with(&key)).count() == round
        })
        .await;
        fixture.server.flow();
        within(patch).await.unwrap().unwrap();
        assert_eq!(cache.behind().unwrap(), 2 * round);
    }
}

#[tokio::test]
async fn what_others_wrote_is_not_waited_for_by_a_write_that_the_stream_does_not_show() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    let own = maps(&fixture.lag);
    let patch = merge(data("1"));
    own.patch("ours", &PatchParams::default(), &patch).await.unwrap();
    fixture.server.stall();
    let theirs = fixture.put("theirs", "1");
    // It changes nothing, and is about what they have not touched.
    within(own.patch("ours", &PatchParams::default(), &patch)).await.unwrap();
    let sets: Api<StatefulSet> = Api::namespaced(fixture.lag.client(), NAMESPACE);
    within(sets.patch("s", &PatchParams::default(), &merge(json!({})))).await.unwrap();
    assert_eq!(cache.behind().unwrap(), 1, "that is ours");
    fixture.server.flow();
    cache.received(&theirs).await.unwrap();
    assert_eq!(cache.behind().unwrap(), 2);
    // Through a client of this engine they are waited for.
    let actor: Api<ConfigMap> = Api::namespaced(fixture.lag.actor_client(), NAMESPACE);
    actor.patch("theirs", &PatchParams::default(), &merge(data("2"))).await.unwrap();
    assert_eq!(cache.behind().unwrap(), 3);
}

#[tokio::test]
async fn a_write_whose_reply_is_lost_is_fenced_all_the_same() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    fixture.lag.answer(Requests::any().writes(), Answer::LostReply);
    let maps = maps(&fixture.lag);
    for behind in 1..=50 {
        let patch = merge(data(behind.to_string()));
        let error = maps.patch("a", &PatchParams::default(), &patch).await.unwrap_err();
        assert!(matches!(error, Error::Service(_)), "{error:?}");
        assert_eq!(cache.behind().unwrap(), behind);
    }
}

#[tokio::test]
async fn a_closed_stream_and_one_that_never_was_hold_no_reply_back() {
    let fixture = Fixture::start().await;
    let maps = maps(&fixture.lag);
    fixture.reflector.abort();
    until("it is gone", || {
        fixture.lag.streams()[0].connection == crate::lag::model::Connection::Closed
    })
    .await;
    within(maps.patch("a", &PatchParams::default(), &merge(data("1")))).await.unwrap();
}
