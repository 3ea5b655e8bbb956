//! Lists anew: expired watches, earlier states, and what an initial list may not show.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kube::{
    Resource,
    api::{ListParams, Patch, PatchParams},
    core::PartialObjectMeta,
};
use tokio::sync::Notify;
use tower::ServiceExt;

use super::*;
use crate::lag::{
    Answer, Boundary, Released, Requests, Scheduler, StreamErrorKind, StreamSelector,
    model::{Connection, Identity, StreamDescription},
};

/// Lists at resource version 0: with a page size kube leaves the version out, and the list is consistent.
fn any() -> watcher::Config {
    let mut config = watcher::Config::default().any_semantic();
    config.page_size = None;
    config
}

fn streaming() -> watcher::Config {
    watcher::Config::default().streaming_lists()
}

async fn fixture(config: watcher::Config) -> Fixture {
    Fixture::with(Server::new(), config, |_| {}).await
}

fn names(fixture: &Fixture) -> Vec<String> {
    let mut names: Vec<_> = fixture
        .store
        .state()
        .iter()
        .map(|object| {
            let value = &object.data.as_ref().unwrap()["value"];
            format!("{}={value}", object.metadata.name.as_deref().unwrap())
        })
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_expired_watch_is_told_so_as_the_server_tells_it_and_its_client_lists_anew() {
    for config in [watcher::Config::default(), any(), streaming()] {
        let fixture = fixture(config).await;
        let cache = fixture.lag.stream::<ConfigMap>();
        cache.hold();
        for value in ["1", "2"] {
            let version = fixture.put("a", value);
            cache.received(&version).await.unwrap();
        }
        cache.release_one().await.unwrap();
        assert_eq!(names(&fixture), ["a=1"]);
        cache.relist().await.unwrap();
        assert_eq!(names(&fixture), ["a=2"], "a fresh start, even under a hold");
        assert_eq!((cache.state().unwrap().incarnation, cache.behind().unwrap()), (2, 0));
        assert_eq!(fixture.lag.streams().len(), 1, "{}", fixture.lag);
        let version = fixture.put("a", "3");
        cache.received(&version).await.unwrap();
        assert_eq!(names(&fixture), ["a=2"], "and the hold goes on");
        cache.release_one().await.unwrap();
        assert_eq!(names(&fixture), ["a=3"]);
    }
}

#[tokio::test]
async fn a_relist_at_an_earlier_state_travels_back_in_time() {
    for config in [any(), streaming()] {
        let fixture = fixture(config).await;
        let cache = fixture.lag.stream::<ConfigMap>();
        let first = fixture.put("a", "1");
        fixture.put("b", "1");
        fixture.put("a", "2");
        fixture.server.delete("configmaps", NAMESPACE, "b");
        let last = fixture.put("c", "1");
        cache.shown(&last).await.unwrap();
        assert_eq!(names(&fixture), ["a=2", "c=1"]);
        cache.hold();
        cache.relist_from(&first).await.unwrap();
        // The store has seen c and the end of b, and shows a world that has neither.
        assert_eq!(names(&fixture), ["a=1"]);
        cache.until_behind(4).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..4 {
            cache.release_one().await.unwrap();
            seen.push(names(&fixture).join(" "));
        }
        assert_eq!(seen, ["a=1 b=1", "a=2 b=1", "a=2", "a=2 c=1"]);
        let newer = fixture.put("a", "3");
        cache.received(&newer).await.unwrap();
        cache.release_all().await.unwrap();
        assert_eq!(names(&fixture), ["a=3", "c=1"], "it goes on with what the server has");
        let states: usize = cache.retained().unwrap().len();
        assert_eq!(states, 7, "{:?}", cache.retained());
    }
}

#[tokio::test]
async fn what_waited_when_a_watch_expired_is_received_once_after_a_journey_to_before_it() {
    for config in [any(), streaming()] {
        // Its log is that of the incarnation before, or still the present one.
        for relisted in [true, false] {
            let fixture = fixture(config.clone()).await;
            let cache = fixture.lag.stream::<ConfigMap>();
            cache.hold();
            let first = fixture.put("a", "1");
            fixture.put("a", "2");
            let third = fixture.put("b", "1");
            cache.received(&third).await.unwrap();
            cache.release_one().await.unwrap();
            if relisted {
                cache.relist().await.unwrap();
            }
            cache.relist_from(&first).await.unwrap();
            assert_eq!(names(&fixture), ["a=1"]);
            let newest = fixture.put("a", "3");
            cache.received(&newest).await.unwrap();
            assert_eq!(cache.behind().unwrap(), 3, "relisted: {relisted}\n{}", fixture.lag);
            let mut seen = Vec::new();
            for _ in 0..3 {
                cache.release_one().await.unwrap();
                seen.push(names(&fixture).join(" "));
            }
            assert_eq!(seen, ["a=2", "a=2 b=1", "a=3 b=1"]);
            assert_eq!(cache.behind().unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn the_state_comes_from_the_server_at_exactly_that_version() {
    let server = Server::new();
    let old = server.put("configmaps", NAMESPACE, "a", data("1"));
    server.put("configmaps", NAMESPACE, "a", data("2"));
    // No log reaches back to before the stream was opened.
    let start = |lag: &Lag| lag.stream::<ConfigMap>().start_from(&old).unwrap();
    let fixture = Fixture::with(server, any(), start).await;
    let cache = fixture.lag.stream::<ConfigMap>();
    let log = fixture.server.log();
    let exactly = format!("resourceVersion={old}&resourceVersionMatch=Exact");
    assert!(log[0].contains(&exactly), "{log:?}");
    assert!(log[1].contains(&format!("resourceVersion={old}")) && log[1].contains("watch=true"));
    until("the store has caught up", || names(&fixture) == ["a=2"]).await;
    assert_eq!(cache.position().unwrap(), 1);
    assert_eq!(cache.view().unwrap().len(), 1);
}

#[tokio::test]
async fn a_streamed_list_begins_at_a_state_that_only_the_server_knows() {
    let server = Server::new();
    let old = server.put("configmaps", NAMESPACE, "a", data("1"));
    server.put("configmaps", NAMESPACE, "a", data("2"));
    let start = |lag: &Lag| {
        lag.stream::<ConfigMap>().start_from(&old).unwrap();
        lag.stream::<ConfigMap>().hold();
    };
    let fixture = Fixture::with(server, streaming(), start).await;
    assert_eq!(names(&fixture), ["a=1"]);
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.until_behind(1).await.unwrap();
    cache.release_one().await.unwrap();
    assert_eq!(names(&fixture), ["a=2"]);
}

#[tokio::test]
async fn what_the_server_has_forgotten_is_served_from_the_log() {
    for config in [any(), streaming()] {
        let fixture = fixture(config).await;
        let cache = fixture.lag.stream::<ConfigMap>();
        let first = fixture.put("a", "1");
        let second = fixture.put("b", "1");
        cache.shown(&second).await.unwrap();
        // After a relist the old state is known from the incarnation before.
        cache.relist().await.unwrap();
        let third = fixture.put("a", "2");
        cache.shown(&third).await.unwrap();
        fixture.server.compact();
        fixture.put("d", "1");
        cache.hold();
        cache.relist_from(&first).await.unwrap();
        assert_eq!(names(&fixture), ["a=1"]);
        // So is what followed it, as far as that log goes; only then the client is told that more is gone.
        cache.release_one().await.unwrap();
        assert_eq!(names(&fixture), ["a=1", "b=1"]);
        let gone = cache.release_one().await.unwrap();
        assert!(gone.to_string().contains("too old resource version"), "{gone}");
    }
}

#[tokio::test]
async fn a_state_that_a_list_may_not_show_is_refused() {
    let fixture = fixture(watcher::Config::default()).await;
    let lag = fixture.lag.clone().with_deadline(Duration::from_secs(2));
    let cache = lag.stream::<ConfigMap>();
    let first = fixture.put("a", "1");
    let second = fixture.put("a", "2");
    cache.shown(&second).await.unwrap();
    let error = cache.relist_from(&first).await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::IllegalStart);
    let text = error.to_string();
    assert!(text.contains("only a list at resource version 0 can show an older one"), "{text}");
    assert_eq!(cache.state().unwrap().incarnation, 1, "nothing has happened");
    let error = cache.relist_from("99999").await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NotReceived);
    let error = cache.relist_from("x").await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NoNumber);

    // Chosen before anybody knew how the client lists: the list itself says no, and the next one is as asked.
    cache.start_from(&first).unwrap();
    cache.relist().await.unwrap();
    assert_eq!(names(&fixture), ["a=2"]);
    let refused = lag.requests();
    let refused = refused.iter().find(|request| request.outcome.to_string() == "500").unwrap();
    assert_eq!(refused.verb, crate::lag::model::Verb::List);
    let maps: Api<ConfigMap> = Api::namespaced(lag.client(), NAMESPACE);
    cache.start_from(&first).unwrap();
    let error = maps.list(&ListParams::default()).await.unwrap_err();
    assert!(error.to_string().contains("the client lists consistently"), "{error}");
    let least = ListParams::default().at(&second).matching(kube::api::VersionMatch::NotOlderThan);
    cache.start_from(&first).unwrap();
    let error = maps.list(&least).await.unwrap_err();
    assert!(error.to_string().contains("NotOlderThan"), "{error}");
}

#[tokio::test]
async fn a_client_that_has_gone_cannot_be_made_to_list() {
    let fixture = fixture(any()).await;
    let lag = fixture.lag.clone().with_deadline(Duration::from_millis(50));
    let cache = lag.stream::<ConfigMap>();
    fixture.reflector.abort();
    until("it is gone", || lag.streams()[0].connection == Connection::Closed).await;
    let error = cache.expire().unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NoWatch);
    assert_eq!(cache.relist().await.unwrap_err().kind(), StreamErrorKind::NoWatch);
}

#[tokio::test]
async fn a_relist_that_comes_to_nothing_leaves_no_choice_behind() {
    let fixture = fixture(any()).await;
    let cache = fixture.lag.stream::<ConfigMap>();
    let first = fixture.put("a", "1");
    let second = fixture.put("a", "2");
    cache.shown(&second).await.unwrap();
    fixture.reflector.abort();
    until("it is gone", || fixture.lag.streams()[0].connection == Connection::Closed).await;
    let error = cache.relist_from(&first).await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NoWatch);
    fixture.lag.hold();
    let (store, _reflector) = reflect(&fixture.lag, any());
    within(store.wait_until_ready()).await.unwrap();
    assert_eq!(shown(&store, "a").as_deref(), Some("2"), "as the client asks");
}

#[tokio::test]
async fn a_client_between_two_watches_is_told_that_the_next_has_expired() {
    let fixture = fixture(any()).await;
    let cache = fixture.lag.stream::<ConfigMap>();
    let refused = fixture.lag.answer(Requests::watch::<ConfigMap>(), Answer::Status(500));
    fixture.server.close_watches("configmaps");
    until("it does not get in", || refused.hits() > 0).await;
    assert_eq!(fixture.lag.streams()[0].connection, Connection::BetweenWatches);
    cache.expire().unwrap();
    fixture.put("a", "1");
    refused.lift();
    until("it has listed anew", || cache.state().is_ok_and(|view| view.incarnation == 2)).await;
    cache.opened().await.unwrap();
    assert_eq!(names(&fixture), ["a=1"]);
    assert_eq!(fixture.lag.streams().len(), 1, "{}", fixture.lag);
}

#[tokio::test]
async fn a_watch_that_expires_on_its_way_to_the_server_is_over_when_it_is_answered() {
    let server = Server::new();
    let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = Arc::new(AtomicBool::new(false));
    let service = {
        let (server, asked, answer, slow) =
            (server.clone(), asked.clone(), answer.clone(), slow.clone());
        tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (server, asked, answer, slow) =
                (server.clone(), asked.clone(), answer.clone(), slow.clone());
            async move {
                if slow.load(Ordering::SeqCst) && request.uri().to_string().contains("watch=true") {
                    asked.notify_one();
                    answer.notified().await;
                }
                server.oneshot(request).await
            }
        })
    };
    let lag = Lag::over_service(service, NAMESPACE);
    let (store, _reflector) = reflect(&lag, any());
    within(store.wait_until_ready()).await.unwrap();
    let cache = lag.stream::<ConfigMap>();
    cache.opened().await.unwrap();
    slow.store(true, Ordering::SeqCst);
    server.close_watches("configmaps");
    within(asked.notified()).await;
    cache.expire().unwrap();
    slow.store(false, Ordering::SeqCst);
    answer.notify_one();
    until("it has listed anew", || cache.state().is_ok_and(|view| view.incarnation == 2)).await;
    assert_eq!(lag.streams().len(), 1, "{lag}");
}

#[tokio::test]
async fn each_of_two_instances_travels_by_itself() {
    for config in [any(), streaming()] {
        let fixture = fixture(config.clone()).await;
        let (other, _reflector) = reflect(&fixture.lag, config);
        let (one, two) = instances(&fixture.lag);
        two.opened().await.unwrap();
        let versions = ["1", "2", "3"].map(|value| fixture.put("a", value));
        for stream in [&one, &two] {
            stream.shown(&versions[2]).await.unwrap();
        }
        fixture.lag.hold();
        let shown = || [fixture.shown("a"), shown(&other, "a")].map(Option::unwrap);
        two.relist_from(&versions[0]).await.unwrap();
        assert_eq!(shown(), ["3", "1"]);
        one.relist_from(&versions[1]).await.unwrap();
        assert_eq!(shown(), ["2", "1"]);
        assert_eq!([one.behind().unwrap(), two.behind().unwrap()], [1, 2], "{}", fixture.lag);
        assert_eq!(fixture.lag.streams().len(), 2);
    }
}

#[tokio::test]
async fn a_list_is_that_of_the_instance_that_has_expired_and_not_of_one_that_has_left() {
    let fixture = fixture(any()).await;
    let (store, _reflector) = reflect(&fixture.lag, any());
    let (one, two) = instances(&fixture.lag);
    two.opened().await.unwrap();
    let first = fixture.put("a", "1");
    let second = fixture.put("a", "2");
    two.shown(&second).await.unwrap();
    fixture.reflector.abort();
    until("it is gone", || fixture.lag.streams()[0].connection == Connection::Closed).await;
    two.hold();
    two.relist_from(&first).await.unwrap();
    assert_eq!(shown(&store, "a").as_deref(), Some("1"));
    let incarnations = [&one, &two].map(|stream| stream.state().unwrap().incarnation);
    assert_eq!(incarnations, [1, 2], "{}", fixture.lag);
    // The place of the one that left is for the next that comes, and so is what is chosen for it.
    one.start_from(&first).unwrap();
    one.hold();
    two.relist().await.unwrap();
    assert_eq!(shown(&store, "a").as_deref(), Some("2"), "it is not for this one");
    let (store, _reflector) = reflect(&fixture.lag, any());
    within(store.wait_until_ready()).await.unwrap();
    assert_eq!(shown(&store, "a").as_deref(), Some("1"));
}

#[tokio::test]
async fn the_first_list_of_a_later_instance_can_be_chosen() {
    let server = Server::new();
    let old = server.put("configmaps", NAMESPACE, "a", data("1"));
    server.put("configmaps", NAMESPACE, "a", data("2"));
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    let (one, two) = instances(&lag);
    lag.hold();
    two.start_from(&old).unwrap();
    for (stream, expected) in [(one, "2"), (two, "1")] {
        // A task goes on without its handle.
        let (store, _) = reflect(&lag, any());
        within(store.wait_until_ready()).await.unwrap();
        stream.opened().await.unwrap();
        assert_eq!(shown(&store, "a").as_deref(), Some(expected), "{lag}");
    }
}

#[tokio::test]
async fn a_choice_for_one_of_several_that_may_be_listing_is_refused() {
    let fixture = fixture(any()).await;
    let (_, other) = reflect(&fixture.lag, any());
    let (_, two) = instances(&fixture.lag);
    two.opened().await.unwrap();
    let first = fixture.put("a", "1");
    let second = fixture.put("a", "2");
    two.shown(&second).await.unwrap();
    for reflector in [&fixture.reflector, &other] {
        reflector.abort();
    }
    let gone = || fixture.lag.streams().iter().all(|s| s.connection == Connection::Closed);
    until("they are gone", gone).await;
    let maps: Api<ConfigMap> = Api::namespaced(fixture.lag.client(), NAMESPACE);
    let any_state = ListParams::default().match_any();
    two.start_from(&first).unwrap();
    let error = maps.list(&any_state).await.unwrap_err().to_string();
    assert!(error.contains("this list may be that of instance 1 or 2"), "{error}");
    let list = maps.list(&any_state).await.unwrap();
    assert_eq!(list.metadata.resource_version, Some(second.clone()), "the next is as it asks");
    // A choice that names none needs no telling apart.
    fixture.lag.stream::<ConfigMap>().start_from(&first).unwrap();
    let list = maps.list(&any_state).await.unwrap();
    assert_eq!(list.metadata.resource_version, Some(first));
}

fn instances(lag: &Lag) -> (StreamSelector<ConfigMap>, StreamSelector<ConfigMap>) {
    (lag.stream::<ConfigMap>().instance(1), lag.stream::<ConfigMap>().instance(2))
}

#[tokio::test]
async fn a_client_that_does_not_list_is_an_error_and_not_a_hang() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE).with_deadline(Duration::from_millis(50));
    let maps: Api<ConfigMap> = Api::namespaced(lag.client(), NAMESPACE);
    // Takes its watch and never looks at it.
    let watch = maps.watch(&kube::core::params::WatchParams::default(), "100").await.unwrap();
    let error = lag.stream::<ConfigMap>().relist().await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NotRelisted);
    assert!(error.to_string().contains("has not listed anew; waited 50ms"), "{error}");
    drop(watch);
}

#[tokio::test]
async fn a_new_client_is_a_new_incarnation_of_the_same_stream() {
    let fixture = fixture(any()).await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    let first = fixture.put("a", "1");
    let second = fixture.put("a", "2");
    cache.received(&second).await.unwrap();
    fixture.reflector.abort();
    until("it is gone", || fixture.lag.streams()[0].connection == Connection::Closed).await;
    // The process starts anew, and its first list is answered by a server that is behind.
    cache.start_from(&first).unwrap();
    let (store, _reflector) = reflect(&fixture.lag, any());
    within(store.wait_until_ready()).await.unwrap();
    cache.opened().await.unwrap();
    assert_eq!(shown(&store, "a").as_deref(), Some("1"));
    assert_eq!(cache.state().unwrap().incarnation, 2);
    assert_eq!(fixture.lag.streams().len(), 1);
    cache.until_behind(1).await.unwrap();
    cache.release_one().await.unwrap();
    assert_eq!(shown(&store, "a").as_deref(), Some("2"));
}

#[tokio::test]
async fn a_metadata_stream_travels_as_well() {
    let server = Server::new();
    let old = server.put("configmaps", NAMESPACE, "a", data("1"));
    server.put("configmaps", NAMESPACE, "a", data("2"));
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    for (round, config) in [any(), streaming()].into_iter().enumerate() {
        let metadata: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(lag.client(), NAMESPACE);
        let (store, writer) = reflector::store();
        let stream = watcher(metadata, config).reflect(writer);
        let task = tokio::spawn(stream.for_each(|_| std::future::ready(())));
        let cache = lag.stream::<ConfigMap>().metadata();
        cache.hold();
        within(store.wait_until_ready()).await.unwrap();
        cache.opened().await.unwrap();
        cache.relist_from(&old).await.unwrap();
        let object = store.get(&reflector::ObjectRef::new("a").within(NAMESPACE)).unwrap();
        assert_eq!(object.meta().resource_version, Some(old.clone()), "round {round}");
        task.abort();
        until("it is gone", || lag.streams()[0].connection == Connection::Closed).await;
    }
}

struct Initials(Vec<usize>, Arc<std::sync::Mutex<Vec<Vec<String>>>>);

impl Scheduler for Initials {
    fn release(&mut self, _: &Boundary, _: &StreamDescription, _: &[Released]) -> usize {
        0
    }

    fn initial(&mut self, _: &Identity, versions: &[String]) -> usize {
        self.1.lock().unwrap().push(versions.to_vec());
        self.0.remove(0)
    }
}

#[tokio::test]
async fn a_scheduler_picks_among_the_states_that_a_list_may_show() {
    let fixture = fixture(any()).await;
    let cache = fixture.lag.stream::<ConfigMap>();
    let start = fixture.server.revision();
    let first = fixture.put("a", "1");
    let second = fixture.put("a", "2");
    cache.shown(&second).await.unwrap();
    let menus = Arc::default();
    fixture.lag.set_scheduler(Initials(vec![1, 0], Arc::clone(&menus)));
    fixture.lag.hold();
    cache.relist().await.unwrap();
    assert_eq!(names(&fixture), ["a=1"]);
    cache.relist().await.unwrap();
    assert_eq!(names(&fixture), ["a=2"]);
    let menu = vec![second, first, start];
    assert_eq!(*menus.lock().unwrap(), [menu.clone(), menu]);
    // A consistent list has no choice.
    let maps: Api<ConfigMap> = Api::namespaced(fixture.lag.client(), NAMESPACE);
    maps.list(&ListParams::default()).await.unwrap();
    assert_eq!(menus.lock().unwrap().len(), 2);
    fixture.lag.clear_scheduler();
    let patch = Patch::Merge(data("3"));
    maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(fixture.lag.requests().count(&Requests::list::<ConfigMap>()), 4);
}
