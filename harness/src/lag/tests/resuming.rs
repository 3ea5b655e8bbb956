//! Watches that end, break, expire and come back.

use std::time::Duration;

use kube::{api::WatchEvent, core::params::WatchParams};

use super::*;
use crate::lag::{
    Requests, StreamErrorKind,
    model::{AnsweredBy, Connection},
};

fn watch_requests(server: &Server) -> Vec<String> {
    server.log().into_iter().filter(|line| line.contains("watch=true")).collect()
}

#[tokio::test]
async fn a_watch_that_comes_back_continues_its_stream() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    let first = fixture.put("a", "1");
    cache.shown(&first).await.unwrap();
    fixture.server.close_watches("configmaps");
    until("the client is back", || watch_requests(&fixture.server).len() == 2).await;
    let second = fixture.put("a", "2");
    cache.shown(&second).await.unwrap();
    assert_eq!(fixture.shown("a").as_deref(), Some("2"));
    assert_eq!(fixture.lag.streams().len(), 1, "{}", fixture.lag);
    let view = cache.state().unwrap();
    assert_eq!((view.incarnation, view.position), (1, 2));
    assert!(watch_requests(&fixture.server)[1].contains(&format!("resourceVersion={first}")));
    let watches = fixture.lag.requests().matching(&Requests::watch::<ConfigMap>());
    assert_eq!(watches[1].answered_by, AnsweredBy::Log, "{watches}");
}

#[tokio::test]
async fn a_hold_survives_the_end_of_the_watch_at_the_server() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    let first = fixture.put("a", "1");
    cache.received(&first).await.unwrap();
    for end in [Server::close_watches, Server::break_watches] {
        end(&fixture.server, "configmaps");
        until("the engine watches on", || fixture.server.watches("configmaps") == 1).await;
    }
    let second = fixture.put("a", "2");
    cache.received(&second).await.unwrap();
    assert_eq!((cache.behind().unwrap(), fixture.shown("a")), (2, None));
    let watches = Requests::watch::<ConfigMap>();
    assert_eq!(fixture.lag.requests().count(&watches), 1, "the client has not noticed anything");
    assert!(watch_requests(&fixture.server)[2].contains(&format!("resourceVersion={first}")));
    cache.release_one().await.unwrap();
    assert_eq!(fixture.shown("a").as_deref(), Some("1"));
    cache.release_one().await.unwrap();
    assert_eq!(fixture.shown("a").as_deref(), Some("2"));
}

/// As an API server without a watch cache words it.
const WITHOUT_PREVIOUS: &str = "Internal error occurred: etcd event received with PrevKv=nil \
                                (key=\"/registry/configmaps/x/a\", modRevision=9, type=PUT)";

#[tokio::test]
async fn an_update_that_etcd_tells_without_the_version_before_it_is_no_frame_of_a_held_stream() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    for value in ["1", "2"] {
        fixture.server.error_saying("configmaps", 500, WITHOUT_PREVIOUS);
        fixture.server.close_watches("configmaps");
        until("the engine watches on", || fixture.server.watches("configmaps") == 1).await;
        let version = fixture.put("a", value);
        cache.received(&version).await.unwrap();
        let released = cache.release_one().await.unwrap();
        assert_eq!(released.resource_version(), Some(&*version), "{released:?}");
        assert_eq!(fixture.shown("a").as_deref(), Some(value));
    }
    let watches = Requests::watch::<ConfigMap>();
    assert_eq!(fixture.lag.requests().count(&watches), 1, "the client has not noticed anything");
}

#[tokio::test]
async fn a_version_before_that_is_gone_for_good_is_told() {
    let fixture = Fixture::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(fixture.lag.client(), NAMESPACE);
    let cache = fixture.lag.stream::<ConfigMap>();
    fixture.reflector.abort();
    until("it is gone", || fixture.lag.streams()[0].connection == Connection::Closed).await;
    let at = cache.delivered_resource_version().unwrap().unwrap();
    let open = async || Box::pin(maps.watch(&WatchParams::default(), &at).await.unwrap());
    let mut watch = open().await;
    let tell = || fixture.server.error_saying("configmaps", 500, WITHOUT_PREVIOUS);
    tell();
    fixture.server.close_watches("configmaps");
    assert!(within(watch.next()).await.is_none(), "the first time it only ends");
    let mut watch = open().await;
    tell();
    let Some(Ok(WatchEvent::Error(status))) = within(watch.next()).await else {
        panic!("an error")
    };
    assert_eq!((status.code, &*status.message), (500, WITHOUT_PREVIOUS));
}

#[tokio::test]
async fn nothing_is_lost_while_the_server_cannot_be_reached() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.hold();
    fixture.server.refuse_watches(3);
    fixture.server.close_watches("configmaps");
    let missed = fixture.put("a", "1");
    until("the refusals are used up", || watch_requests(&fixture.server).len() >= 4).await;
    cache.received(&missed).await.unwrap();
    cache.release_all().await.unwrap();
    assert_eq!(fixture.shown("a").as_deref(), Some("1"));
}

#[tokio::test]
async fn held_events_of_a_watch_that_ended_wait_for_the_client_that_comes_back() {
    let fixture = Fixture::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(fixture.lag.client(), NAMESPACE);
    fixture.reflector.abort();
    let cache = fixture.lag.stream::<ConfigMap>();
    let closed =
        || cache.state().is_ok() && fixture.lag.streams()[0].connection == Connection::Closed;
    until("the reflector is gone", closed).await;

    // A bare watch from a version that this very stream has delivered continues it.
    let at = cache.delivered_resource_version().unwrap().unwrap();
    cache.hold();
    let watch = maps.watch(&WatchParams::default(), &at).await.unwrap();
    let mut watch = Box::pin(watch);
    let first = fixture.put("a", "1");
    let second = fixture.put("a", "2");
    cache.received(&second).await.unwrap();
    // Nobody pulls after the first event, so it is the drop that acknowledges.
    let taken = async {
        let event = watch.next().await;
        assert!(matches!(event, Some(Ok(WatchEvent::Added(_)))), "{event:?}");
        drop(watch);
    };
    let (released, ()) = tokio::join!(cache.release_to(&first), taken);
    assert_eq!(released.unwrap().len(), 1);
    let watch = maps.watch(&WatchParams::default(), &first).await.unwrap();
    assert_eq!(fixture.lag.streams().len(), 1);
    assert_eq!(cache.behind().unwrap(), 1, "{}", fixture.lag);
    let mut watch = Box::pin(watch);
    let drained = async {
        let event = within(watch.next()).await;
        assert!(matches!(event, Some(Ok(WatchEvent::Modified(_)))), "{event:?}");
        watch.next().await;
    };
    // The second `next` is what acknowledges; it ends with the watch.
    let released = async {
        let released = cache.release_one().await.unwrap();
        assert_eq!(released.resource_version(), Some(second.as_str()));
        cache.release_all().await.unwrap();
        fixture.server.close_watches("configmaps");
    };
    tokio::join!(drained, released);
}

#[tokio::test]
async fn a_version_before_the_delivered_one_goes_back_within_the_log() {
    let fixture = Fixture::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(fixture.lag.client(), NAMESPACE);
    let cache = fixture.lag.stream::<ConfigMap>();
    let first = fixture.put("a", "1");
    let second = fixture.put("a", "2");
    cache.shown(&second).await.unwrap();
    fixture.reflector.abort();
    until("it is gone", || fixture.lag.streams()[0].connection == Connection::Closed).await;
    let mut watch = Box::pin(maps.watch(&WatchParams::default(), &first).await.unwrap());
    assert_eq!(cache.position().unwrap(), 1);
    let Some(Ok(WatchEvent::Modified(object))) = within(watch.next()).await else {
        panic!("an event")
    };
    assert_eq!(object.metadata.resource_version, Some(second));
    assert_eq!(cache.position().unwrap(), 2);
}

#[tokio::test]
async fn a_version_that_the_log_does_not_know_gets_an_error_frame_with_410() {
    let fixture = Fixture::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(fixture.lag.client(), NAMESPACE);
    fixture.reflector.abort();
    until("it is gone", || fixture.lag.streams()[0].connection == Connection::Closed).await;
    for unknown in ["7", "4711"] {
        let asked = watch_requests(&fixture.server).len();
        let mut watch = Box::pin(maps.watch(&WatchParams::default(), unknown).await.unwrap());
        let Some(Ok(WatchEvent::Error(status))) = within(watch.next()).await else {
            panic!("an error")
        };
        assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
        assert!(within(watch.next()).await.is_none(), "and the watch ends");
        assert_eq!(watch_requests(&fixture.server).len(), asked, "the server was not asked");
        let record = fixture.lag.requests().last().cloned().unwrap();
        assert_eq!(record.answered_by, AnsweredBy::Log);
    }
}

#[tokio::test]
async fn an_expired_watch_is_followed_by_a_new_incarnation_of_the_same_stream() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    fixture.put("a", "1");
    fixture.server.compact();
    fixture.server.close_watches("configmaps");
    until("the client has listed anew", || cache.state().is_ok_and(|view| view.incarnation == 2))
        .await;
    let version = fixture.put("b", "2");
    cache.shown(&version).await.unwrap();
    assert_eq!(fixture.store.len(), 2);
    assert_eq!(fixture.lag.streams().len(), 1, "{}", fixture.lag);
    assert_eq!(cache.view().unwrap().len(), 2);
}

#[tokio::test]
async fn a_broken_connection_of_a_stream_that_is_not_held_reaches_the_client() {
    let fixture = Fixture::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(fixture.lag.client(), NAMESPACE);
    let params = WatchParams::default().fields("metadata.name=a");
    let mut watch = Box::pin(maps.watch(&params, "0").await.unwrap());
    fixture.server.break_watches("configmaps");
    let error = within(watch.next()).await.unwrap().unwrap_err();
    assert!(format!("{error:?}").contains("the wire was cut"), "{error:?}");
}

#[tokio::test]
async fn a_paged_list_is_one_initial_state() {
    let server = Server::new();
    for name in ["a", "b", "c"] {
        server.put("configmaps", NAMESPACE, name, data("1"));
    }
    let config = watcher::Config::default().page_size(2);
    let fixture = Fixture::with(server, config, |_| {}).await;
    let lists = fixture.lag.requests().matching(&Requests::list::<ConfigMap>());
    assert_eq!(lists.len(), 2, "{lists}");
    assert_eq!(fixture.lag.stream::<ConfigMap>().view().unwrap().len(), 3);
}

#[tokio::test]
async fn two_reflectors_of_the_same_are_two_instances() {
    let fixture = Fixture::start().await;
    let (store, _reflector) = reflect(&fixture.lag, watcher::Config::default());
    within(store.wait_until_ready()).await.unwrap();
    let (first, second) = (
        fixture.lag.stream::<ConfigMap>().instance(1),
        fixture.lag.stream::<ConfigMap>().instance(2),
    );
    second.opened().await.unwrap();
    first.hold();
    let version = fixture.put("a", "1");
    second.shown(&version).await.unwrap();
    first.received(&version).await.unwrap();
    assert_eq!((fixture.shown("a"), shown(&store, "a").as_deref()), (None, Some("1")));
    // Each comes back as itself.
    fixture.server.close_watches("configmaps");
    until("both watch again", || fixture.server.watches("configmaps") == 2).await;
    assert_eq!((first.behind().unwrap(), second.behind().unwrap()), (1, 0), "{}", fixture.lag);
    first.release_all().await.unwrap();
    assert_eq!(fixture.shown("a").as_deref(), Some("1"));
}

#[tokio::test]
async fn a_watch_refused_by_the_server_leaves_the_stream_as_it_was() {
    let fixture = Fixture::start().await;
    let lag = fixture.lag.clone().with_deadline(Duration::from_secs(20));
    let cache = lag.stream::<ConfigMap>();
    fixture.server.refuse_watches(1);
    fixture.server.close_watches("configmaps");
    until("it was refused and asked again", || watch_requests(&fixture.server).len() >= 3).await;
    let version = fixture.put("a", "1");
    cache.shown(&version).await.unwrap();
    assert_eq!(cache.state().unwrap().incarnation, 1);
    let refused = fixture.lag.requests().matching(&Requests::watch::<ConfigMap>());
    assert_eq!(refused[1].outcome.to_string(), "500", "{refused}");
    assert_eq!(refused[1].answered_by, AnsweredBy::Server);
}

#[tokio::test]
async fn a_verb_on_a_closed_stream_says_that_its_watch_is_closed() {
    let fixture = Fixture::start().await;
    let lag = fixture.lag.clone().with_deadline(Duration::from_millis(50));
    let cache = lag.stream::<ConfigMap>();
    cache.hold();
    let version = fixture.put("a", "1");
    cache.received(&version).await.unwrap();
    fixture.reflector.abort();
    until("it is gone", || fixture.lag.streams()[0].connection == Connection::Closed).await;
    let error = cache.release_one().await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::NotTaken);
    assert!(error.to_string().contains("closed by the client"), "{error}");
    assert_eq!(cache.behind().unwrap(), 1);
}
