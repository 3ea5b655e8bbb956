//! Holding and releasing, with the store looked at the moment a verb returns.

use std::time::Duration;

use kube::runtime::{WatchStreamExt, reflector, watcher};

use super::*;
use crate::lag::{StreamErrorKind, model::Change};

async fn the_store_shows_every_release_when_the_verb_returns(releases: usize) {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    let mut newest = String::new();
    for number in 0..releases {
        newest = fixture.put("a", number.to_string());
    }
    cache.received(&newest).await.unwrap();
    assert_eq!(fixture.shown("a"), None, "nothing moves without a release");
    for number in 0..releases {
        assert_eq!(cache.behind().unwrap(), releases - number);
        let released = cache.release_one().await.unwrap();
        assert_eq!(fixture.shown("a"), Some(number.to_string()), "after {released}");
        assert_eq!(cache.position().unwrap(), number + 1);
    }
    assert_eq!(cache.behind().unwrap(), 0);
}

#[tokio::test]
async fn the_store_shows_every_release_when_the_verb_returns_on_one_thread() {
    the_store_shows_every_release_when_the_verb_returns(1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_shows_every_release_when_the_verb_returns_on_two_threads() {
    the_store_shows_every_release_when_the_verb_returns(1000).await;
}

#[tokio::test]
async fn the_store_shows_every_release_over_a_socket_too() {
    let server = Server::new();
    let config = server::on_loopback(server.clone()).await;
    let lag = Lag::over(&config).unwrap();
    let (store, _reflector) = reflect(&lag, watcher::Config::default());
    within(store.wait_until_ready()).await.unwrap();
    let cache = lag.stream::<ConfigMap>();
    cache.opened().await.unwrap();
    cache.hold();
    // Larger than any buffer between the server and the store.
    let large = "x".repeat(200_000);
    for number in 0..50 {
        let version = server.put("configmaps", NAMESPACE, "a", data(format!("{number} {large}")));
        cache.received(&version).await.unwrap();
        assert_eq!(cache.behind().unwrap(), 1);
        cache.release_one().await.unwrap();
        assert_eq!(shown(&store, "a"), Some(format!("{number} {large}")));
    }
}

#[tokio::test]
async fn a_stream_that_is_not_held_passes_everything_on() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    let version = fixture.put("a", "1");
    cache.shown(&version).await.unwrap();
    assert_eq!(fixture.shown("a").as_deref(), Some("1"));
    let error = cache.release_one().await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NotHeld);
    let error = cache.release_to(&version).await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NotHeld);
    let error = cache.release_all().await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NotHeld);
    assert!(error.to_string().contains("call hold() first"), "{error}");
}

#[tokio::test]
async fn a_release_up_to_a_version_stops_right_there() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    fixture.put("a", "1");
    let second = fixture.put("b", "2");
    fixture.put("a", "3");
    fixture.server.delete("configmaps", NAMESPACE, "b");
    cache.until_behind(4).await.unwrap();

    let released = cache.release_to(&second).await.unwrap();
    assert_eq!(released.iter().map(|event| event.name().unwrap()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(released[1].resource_version(), Some(second.as_str()));
    assert_eq!(fixture.shown("a").as_deref(), Some("1"));
    assert_eq!(fixture.shown("b").as_deref(), Some("2"));
    assert_eq!(cache.delivered_resource_version().unwrap(), Some(second.clone()));
    assert_eq!(cache.release_to(&second).await.unwrap(), [], "it is there already");
    assert_eq!(cache.behind().unwrap(), 2);

    let released = cache.release_all().await.unwrap();
    let changes: Vec<_> = released.iter().map(|event| event.change().unwrap()).collect();
    assert_eq!(changes, [Change::Modified, Change::Deleted]);
    assert_eq!((fixture.shown("a").as_deref(), fixture.shown("b")), (Some("3"), None));
    let later = fixture.put("c", "4");
    cache.shown(&later).await.unwrap();
    assert_eq!(fixture.shown("c").as_deref(), Some("4"), "the hold is lifted");
}

#[tokio::test]
async fn a_version_that_never_comes_is_an_error_that_shows_what_came() {
    let fixture = Fixture::start().await;
    let lag = fixture.lag.clone().with_deadline(Duration::from_millis(100));
    let cache = lag.stream::<ConfigMap>();
    cache.hold();
    let version = fixture.put("a", "1");
    cache.received(&version).await.unwrap();
    let error = cache.release_to("4711").await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NotReceived);
    let text = error.to_string();
    assert!(text.contains("4711") && text.contains("waited 100ms"), "{text}");
    assert!(text.contains(&format!("waiting: ADDED demo/a rv {version}")), "{text}");
    assert_eq!(cache.behind().unwrap(), 1, "nothing was released");

    let error = cache.until_behind(2).await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NotReceived);
    let error = cache.release_to("v1").await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NoNumber);
    cache.release_one().await.unwrap();
    let error = cache.release_one().await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NothingHeld);
}

#[tokio::test]
async fn a_hold_before_the_first_list_lets_the_list_pass_and_nothing_after_it() {
    let server = Server::new();
    server.put("configmaps", NAMESPACE, "old", data("1"));
    let hold = |lag: &Lag| lag.stream::<ConfigMap>().hold();
    let fixture = Fixture::with(server, watcher::Config::default(), hold).await;
    assert_eq!(fixture.shown("old").as_deref(), Some("1"));
    let cache = fixture.lag.stream::<ConfigMap>();
    let version = fixture.put("new", "2");
    cache.received(&version).await.unwrap();
    assert_eq!((fixture.shown("new"), cache.behind().unwrap()), (None, 1));
    cache.release_all().await.unwrap();
    assert_eq!(fixture.shown("new").as_deref(), Some("2"));
}

#[tokio::test]
async fn a_hold_lets_a_streamed_initial_list_pass_as_one() {
    let server = Server::new();
    for name in ["a", "b"] {
        server.put("configmaps", NAMESPACE, name, data("1"));
    }
    let config = watcher::Config::default().streaming_lists();
    let hold = |lag: &Lag| lag.stream::<ConfigMap>().hold();
    let fixture = Fixture::with(server, config, hold).await;
    let cache = fixture.lag.stream::<ConfigMap>();
    assert_eq!(fixture.store.len(), 2);
    assert_eq!((cache.position().unwrap(), cache.behind().unwrap()), (0, 0));
    assert_eq!(cache.view().unwrap().len(), 2);
    let version = fixture.put("c", "2");
    cache.received(&version).await.unwrap();
    assert_eq!((fixture.store.len(), cache.behind().unwrap()), (2, 1));
    cache.release_one().await.unwrap();
    assert_eq!(fixture.store.len(), 3);
}

#[tokio::test]
async fn a_bookmark_waits_behind_a_held_event_and_passes_where_none_waits() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    let alone = fixture.server.bookmark("configmaps");
    cache.shown(&alone).await.unwrap();
    assert_eq!(cache.delivered_resource_version().unwrap(), Some(alone.clone()));

    let event = fixture.put("a", "1");
    let behind = fixture.server.bookmark("configmaps");
    cache.received(&behind).await.unwrap();
    assert_eq!(cache.delivered_resource_version().unwrap(), Some(alone));
    assert_eq!(cache.behind().unwrap(), 1, "bookmarks are not counted");
    let released = cache.release_one().await.unwrap();
    assert_eq!(released.resource_version(), Some(event.as_str()));
    cache.shown(&behind).await.unwrap();
    assert_eq!(cache.delivered_resource_version().unwrap(), Some(behind));
}

#[tokio::test]
async fn an_error_frame_is_released_in_its_turn() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    fixture.put("a", "1");
    fixture.server.error("configmaps", 410);
    cache.until_behind(1).await.unwrap();
    assert_eq!(cache.release_one().await.unwrap().name(), Some("a"));
    assert_eq!(cache.state().unwrap().incarnation, 1, "the error is still held");
    fixture.put("b", "2");
    let released = cache.release_one().await.unwrap();
    assert!(released.to_string().contains("410"), "{released}");
    // The client lists anew, which is a fresh start even under a hold.
    let relisted = || cache.state().is_ok_and(|view| view.incarnation == 2);
    until("the client lists anew", relisted).await;
    assert_eq!(fixture.shown("b").as_deref(), Some("2"));
    let later = fixture.put("c", "3");
    cache.received(&later).await.unwrap();
    assert_eq!((fixture.shown("c"), cache.behind().unwrap()), (None, 1), "the hold goes on");
}

#[tokio::test]
async fn a_reflector_that_is_busy_is_an_error_and_not_a_hang() {
    let server = Server::new();
    let lag =
        Lag::over_service(server.clone(), NAMESPACE).with_deadline(Duration::from_millis(200));
    let maps: Api<ConfigMap> = Api::namespaced(lag.client(), NAMESPACE);
    let (store, writer) = reflector::store();
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let consumer = {
        let gate = gate.clone();
        watcher(maps, watcher::Config::default()).reflect(writer).applied_objects().for_each(
            move |_| {
                let gate = gate.clone();
                async move { gate.acquire().await.unwrap().forget() }
            },
        )
    };
    let _reflector = tokio::spawn(consumer);
    within(store.wait_until_ready()).await.unwrap();
    let cache = lag.stream::<ConfigMap>();
    cache.opened().await.unwrap();
    cache.hold();
    server.put("configmaps", NAMESPACE, "a", data("1"));
    server.put("configmaps", NAMESPACE, "a", data("2"));
    cache.until_behind(2).await.unwrap();

    // The store has the first event, but its consumer does not come back for more.
    let error = cache.release_one().await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NotTaken);
    let text = error.to_string();
    assert!(text.contains("handed over") && text.contains("busy"), "{text}");
    let error = cache.release_one().await.unwrap_err();
    assert!(error.to_string().contains("still held"), "{error}");
    // A release that is dropped is taken back as well.
    let dropped = tokio::time::timeout(Duration::from_millis(20), cache.release_one()).await;
    assert!(dropped.is_err());

    gate.add_permits(1);
    until("the consumer is done with the first event", || gate.available_permits() == 0).await;
    server.put("configmaps", NAMESPACE, "b", data("1"));
    cache.until_behind(2).await.unwrap();
    assert_eq!(shown(&store, "a").as_deref(), Some("1"), "what was not taken is held as before");
    gate.add_permits(10);
    cache.release_one().await.unwrap();
    assert_eq!(shown(&store, "a").as_deref(), Some("2"));
}

#[tokio::test]
async fn a_release_that_is_dropped_is_taken_back() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    // Nothing to release yet: the future waits, and is dropped.
    assert!(tokio::time::timeout(Duration::from_millis(20), cache.release_one()).await.is_err());
    let version = fixture.put("a", "1");
    cache.received(&version).await.unwrap();
    assert_eq!((cache.behind().unwrap(), fixture.shown("a")), (1, None));
}

#[tokio::test]
async fn a_wait_that_ends_with_the_released_event_counts_as_acknowledgement() {
    use kube::runtime::wait::await_condition;

    let server = Server::new();
    server.put("configmaps", NAMESPACE, "a", data("1"));
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    let maps: Api<ConfigMap> = Api::namespaced(lag.client(), NAMESPACE);
    let second = |object: Option<&ConfigMap>| {
        object.is_some_and(|object| object.data.as_ref().unwrap()["value"] == "2")
    };
    let waiting = tokio::spawn(await_condition(maps, "a", second));
    let cache = lag.stream::<ConfigMap>().fields("metadata.name=a");
    cache.opened().await.unwrap();
    cache.hold();
    let version = server.put("configmaps", NAMESPACE, "a", data("2"));
    cache.received(&version).await.unwrap();
    assert!(!waiting.is_finished());
    cache.release_one().await.unwrap();
    within(waiting).await.unwrap().unwrap();
    until("the watch is closed at the server too", || server.watches("configmaps") == 0).await;
}

#[tokio::test]
async fn the_view_is_what_the_store_shows() {
    let server = Server::new();
    server.put("configmaps", NAMESPACE, "a", data("1"));
    let fixture = Fixture::with(server, watcher::Config::default(), |_| {}).await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    fixture.put("b", "2");
    fixture.server.delete("configmaps", NAMESPACE, "a");
    fixture.put("a", "3");
    cache.until_behind(3).await.unwrap();
    for _ in 0..4 {
        let mut stored: Vec<ConfigMap> =
            fixture.store.state().iter().map(|object| ConfigMap::clone(object)).collect();
        stored.sort_by(|left, right| left.metadata.name.cmp(&right.metadata.name));
        assert_eq!(cache.view().unwrap(), stored);
        for name in ["a", "b"] {
            let object = cache.get(NAMESPACE, name).unwrap();
            assert_eq!(
                object.map(|object| object.data.unwrap()["value"].clone()),
                fixture.shown(name)
            );
        }
        if cache.behind().unwrap() > 0 {
            cache.release_one().await.unwrap();
        }
    }
    assert_eq!(fixture.shown("a").as_deref(), Some("3"));
}
