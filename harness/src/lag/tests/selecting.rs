//! Saying which stream is meant.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{core::PartialObjectMeta, runtime::watcher};

use super::*;
use crate::lag::{StreamErrorKind, model::Representation};

/// Streams over all namespaces and one, with labels, and of metadata alone.
async fn several() -> (Server, Lag) {
    let server = Server::new();
    let lag =
        Lag::over_service(server.clone(), NAMESPACE).with_deadline(Duration::from_millis(300));
    let all: Api<ConfigMap> = Api::all(lag.client());
    let one: Api<ConfigMap> = Api::namespaced(lag.client(), NAMESPACE);
    let drive = |maps: Api<ConfigMap>, config| {
        let (_, writer) = reflector::store();
        tokio::spawn(watcher(maps, config).reflect(writer).for_each(|_| std::future::ready(())));
    };
    drive(all, watcher::Config::default());
    drive(one.clone(), watcher::Config::default());
    drive(one.clone(), watcher::Config::default().labels("tier=front"));
    until("three are open", || lag.streams().len() == 3).await;
    let metadata: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(lag.client(), NAMESPACE);
    let metadata = watcher(metadata, watcher::Config::default());
    tokio::spawn(metadata.for_each(|_| std::future::ready(())));
    until("four are open", || lag.streams().len() == 4).await;
    (server, lag)
}

#[tokio::test]
async fn several_matches_are_listed_with_the_calls_that_tell_them_apart() {
    let (_server, lag) = several().await;
    let error = lag.stream::<ConfigMap>().release_one().await.unwrap_err();
    assert_eq!(error.kind(), StreamErrorKind::Ambiguous);
    let text = error.to_string();
    for line in [
        "failed to release one event (configmaps (v1), full objects): several streams match",
        "  .in_all_namespaces().without_labels(): configmaps (v1) in all namespaces, full objects, instance 1: position 0",
        "  .in_namespace(\"demo\").without_labels(): configmaps (v1) in namespace \"demo\", full objects",
        "  .in_namespace(\"demo\").labels(\"tier=front\"): ",
        "0 behind",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    assert!(!text.contains("metadata only"), "{text}");

    lag.stream::<ConfigMap>().in_all_namespaces().behind().unwrap();
    lag.stream::<ConfigMap>().in_namespace("demo").without_labels().behind().unwrap();
    lag.stream::<ConfigMap>().labels("tier=front").without_fields().behind().unwrap();
    lag.stream::<ConfigMap>().metadata().behind().unwrap();
}

#[tokio::test]
async fn no_match_lists_the_streams_that_there_are() {
    let (_server, lag) = several().await;
    for error in [
        lag.stream::<Pod>().release_one().await.unwrap_err(),
        lag.stream::<ConfigMap>().in_namespace("other").behind().unwrap_err(),
        lag.stream::<ConfigMap>().instance(2).release_all().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), StreamErrorKind::NoStream);
        let text = error.to_string();
        assert_eq!(text.matches("\n  configmaps (v1)").count(), 4, "{text}");
        assert!(text.contains("metadata only"), "{text}");
    }
    let empty = Lag::over_service(Server::new(), NAMESPACE);
    let text = empty.stream::<Pod>().position().unwrap_err().to_string();
    assert!(text.ends_with("(none)"), "{text}");
}

#[tokio::test]
async fn a_hold_on_several_holds_them_all_and_only_them() {
    let (server, lag) = several().await;
    let narrow = lag.stream::<ConfigMap>().in_namespace("demo");
    narrow.hold();
    let held: Vec<bool> = lag.streams().iter().map(|stream| stream.held).collect();
    assert_eq!(held, [false, true, true, false]);
    let version = server.put(
        "configmaps",
        NAMESPACE,
        "a",
        json!({"metadata": {"labels": {"tier": "front"}}}),
    );
    lag.stream::<ConfigMap>().in_all_namespaces().shown(&version).await.unwrap();
    for stream in [narrow.clone().without_labels(), narrow.clone().labels("tier=front")] {
        stream.received(&version).await.unwrap();
        assert_eq!(stream.behind().unwrap(), 1);
    }
    assert_eq!(narrow.release_all().await.unwrap().len(), 2);
    assert!(lag.streams().iter().all(|stream| !stream.held && stream.behind == 0), "{lag}");
}

#[tokio::test]
async fn a_metadata_stream_is_another_stream_with_views_of_its_own() {
    let (server, lag) = several().await;
    let metadata = lag.stream::<ConfigMap>().metadata();
    let full = lag.stream::<ConfigMap>().in_namespace("demo").without_labels();
    metadata.hold();
    let version = server.put("configmaps", NAMESPACE, "a", data("1"));
    full.shown(&version).await.unwrap();
    metadata.received(&version).await.unwrap();
    assert_eq!((full.behind().unwrap(), metadata.behind().unwrap()), (0, 1));
    assert_eq!(full.view().unwrap()[0].data.as_ref().unwrap()["value"], "1");
    metadata.release_one().await.unwrap();
    let view: Vec<PartialObjectMeta<ConfigMap>> = metadata.view().unwrap();
    assert_eq!(view[0].metadata.name.as_deref(), Some("a"));
    let kinds: Vec<_> = lag.streams().iter().map(|stream| stream.identity.representation).collect();
    assert_eq!(kinds[3], Representation::Metadata);
}

#[tokio::test]
async fn a_hold_that_was_lifted_does_not_meet_the_streams_to_come() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    lag.stream::<ConfigMap>().in_namespace("demo").hold();
    assert_eq!(lag.stream::<ConfigMap>().in_namespace("demo").release_all().await.unwrap(), []);
    let (_store, _reflector) = reflect(&lag, watcher::Config::default());
    lag.stream::<ConfigMap>().opened().await.unwrap();
    assert!(!lag.streams()[0].held);
    // A wider lift ends a narrower hold as well.
    lag.stream::<ConfigMap>().instance(1).hold();
    lag.stream::<ConfigMap>().release_all().await.unwrap();
    assert!(!lag.streams()[0].held);
}
