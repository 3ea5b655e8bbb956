//! Answers and flips.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::{
    Error,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};

use super::*;
use crate::lag::{
    Answer, Requests,
    model::{AnsweredBy, Outcome},
};

fn maps(lag: &Lag) -> Api<ConfigMap> {
    Api::namespaced(lag.client(), NAMESPACE)
}

fn named(name: &str) -> ConfigMap {
    let mut object = ConfigMap::default();
    object.metadata.name = Some(name.to_owned());
    object
}

fn refused(error: &Error) -> (u16, &str) {
    match error {
        Error::Api(status) => (status.code, &status.reason),
        other => panic!("an API error, not {other:?}"),
    }
}

#[tokio::test]
async fn a_status_answer_is_the_error_that_the_server_would_send() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    let maps = maps(&lag);
    for (code, reason) in [
        (403, "Forbidden"),
        (404, "NotFound"),
        (409, "Conflict"),
        (410, "Expired"),
        (422, "Invalid"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
        (418, "Unknown"),
    ] {
        let answer = lag.answer(Requests::get::<ConfigMap>(), Answer::Status(code));
        let error = maps.get("a").await.unwrap_err();
        assert_eq!(refused(&error), (code, reason));
        answer.lift();
        assert_eq!(answer.hits(), 1);
    }
    let _answer = lag.answer(Requests::create::<ConfigMap>(), Answer::Status(409));
    let Error::Api(status) = maps.create(&PostParams::default(), &named("a")).await.unwrap_err()
    else {
        panic!("an API error")
    };
    assert!(status.is_already_exists());
    assert_eq!(status.message, r#"configmaps "a" already exists"#);
    assert_eq!(status.details.unwrap().kind, "configmaps");
    assert_eq!(server.log(), Vec::<String>::new(), "the server was not asked");
}

#[tokio::test]
async fn an_answer_hits_what_it_names_until_it_is_lifted() {
    let server = Server::new();
    server.put("configmaps", NAMESPACE, "a", data("1"));
    server.put("configmaps", NAMESPACE, "b", data("1"));
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    let maps = maps(&lag);
    let all = lag.answer(Requests::of::<ConfigMap>(), Answer::Status(500));
    let one = lag.answer(Requests::get::<ConfigMap>().named("a"), Answer::Status(409));
    assert_eq!(
        refused(&maps.get("a").await.unwrap_err()).0,
        409,
        "the newest that matches decides"
    );
    assert_eq!(refused(&maps.get("b").await.unwrap_err()).0, 500);
    assert_eq!((all.hits(), one.hits()), (1, 1));
    all.lift();
    one.lift();
    one.lift();
    maps.get("a").await.unwrap();

    let once = lag.answer_once(Requests::of::<ConfigMap>().writes(), Answer::Status(429));
    maps.get("a").await.unwrap();
    let error = maps.delete("a", &DeleteParams::default()).await.unwrap_err();
    assert_eq!(refused(&error).0, 429, "at once, with no retry behind the caller's back");
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(once.hits(), 1);

    let status = Requests::patch::<ConfigMap>().subresource("status").in_namespace(NAMESPACE);
    let _status = lag.answer(status, Answer::Status(403));
    let patch = Patch::Merge(json!({"data": {"value": "2"}}));
    maps.patch("b", &PatchParams::default(), &patch).await.unwrap();
    let error = maps.patch_status("b", &PatchParams::default(), &patch).await.unwrap_err();
    assert_eq!(refused(&error).0, 403);
}

#[tokio::test]
async fn a_broken_connection_never_reaches_the_server_and_a_lost_reply_does() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    let maps = maps(&lag);
    lag.answer_once(Requests::any(), Answer::BrokenConnection);
    let error = maps.create(&PostParams::default(), &named("a")).await.unwrap_err();
    assert!(matches!(error, Error::Service(_)), "{error:?}");
    assert_eq!(server.log(), Vec::<String>::new());
    lag.answer_once(Requests::any(), Answer::LostReply);
    let error = maps.create(&PostParams::default(), &named("a")).await.unwrap_err();
    assert!(matches!(error, Error::Service(_)), "{error:?}");
    maps.get("a").await.unwrap();
    let outcomes: Vec<_> = lag
        .requests()
        .iter()
        .map(|r| (r.answered_by, matches!(r.outcome, Outcome::Failed(_))))
        .collect();
    let answered = (AnsweredBy::Answer, true);
    assert_eq!(outcomes, [answered, answered, (AnsweredBy::Server, false)]);
}

#[tokio::test]
async fn a_timeout_lasts_until_it_is_lifted_and_then_the_server_answers() {
    let server = Server::new();
    server.put("configmaps", NAMESPACE, "a", data("1"));
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    let maps = maps(&lag);
    let answer = lag.answer_once(Requests::get::<ConfigMap>(), Answer::Timeout);
    let waited = tokio::time::timeout(Duration::from_millis(30), maps.get("a")).await;
    assert!(waited.is_err(), "the caller's own timeout fires");
    assert_eq!(lag.requests()[0].outcome, Outcome::Abandoned);
    assert_eq!(lag.requests()[0].answered_by, AnsweredBy::Answer);
    maps.get("a").await.unwrap();

    let answer_again = lag.answer(Requests::get::<ConfigMap>(), Answer::Timeout);
    let pending = tokio::spawn({
        let maps = maps.clone();
        async move { maps.get("a").await }
    });
    until("the request waits", || answer_again.hits() == 1).await;
    answer_again.lift();
    within(pending).await.unwrap().unwrap();
    assert_eq!(lag.requests().last().unwrap().answered_by, AnsweredBy::Server);
    answer.lift();
}

#[tokio::test]
async fn a_flipped_read_sees_what_the_lagging_store_sees() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    let maps = maps(&fixture.lag);
    let old = fixture.put("a", "1");
    cache.shown(&old).await.unwrap();
    cache.hold();
    fixture.put("a", "2");
    fixture.put("b", "2");
    cache.until_behind(2).await.unwrap();
    let value = |object: ConfigMap| object.data.unwrap()["value"].clone();
    assert_eq!(value(maps.get("a").await.unwrap()), "2");

    let flip = fixture.lag.flip(Requests::get::<ConfigMap>());
    let stale = maps.get("a").await.unwrap();
    assert_eq!(stale.metadata.resource_version, Some(old.clone()));
    assert_eq!(value(stale), "1");
    let error = maps.get("b").await.unwrap_err();
    assert_eq!(refused(&error), (404, "NotFound"));
    assert!(error.to_string().contains(r#"configmaps "b" not found"#), "as the server words it");
    let metadata = maps.get_metadata("a").await.unwrap();
    assert_eq!(metadata.metadata.resource_version, Some(old));
    cache.release_all().await.unwrap();
    assert_eq!(value(maps.get("b").await.unwrap()), "2", "the view moves with the stream");
    maps.list(&ListParams::default()).await.unwrap();
    assert_eq!(flip.served(), 4);
    flip.lift();
    maps.get("b").await.unwrap();
    assert_eq!(flip.served(), 4);
    let flipped = fixture.lag.requests();
    let flipped: Vec<_> = flipped.iter().filter(|r| r.answered_by == AnsweredBy::Flip).collect();
    assert_eq!(flipped.len(), 4);
    assert_eq!(flipped[1].outcome, Outcome::Status(404));
}

#[tokio::test]
async fn a_flipped_list_filters_the_view_by_its_selectors() {
    let fixture = Fixture::start().await;
    let cache = fixture.lag.stream::<ConfigMap>();
    let maps = maps(&fixture.lag);
    let labelled = |tier: &str| json!({"metadata": {"labels": {"tier": tier}}});
    fixture.server.put("configmaps", NAMESPACE, "a", labelled("front"));
    let shown = fixture.server.put("configmaps", NAMESPACE, "b", labelled("back"));
    cache.shown(&shown).await.unwrap();
    cache.hold();
    let held = fixture.server.put("configmaps", NAMESPACE, "c", labelled("front"));
    cache.received(&held).await.unwrap();
    let _flip = fixture.lag.flip(Requests::list::<ConfigMap>());
    let list = maps.list(&ListParams::default().labels("tier in (front)")).await.unwrap();
    let names: Vec<_> = list.items.iter().map(|o| o.metadata.name.clone().unwrap()).collect();
    assert_eq!(names, ["a"]);
    assert_eq!(list.metadata.resource_version, Some(shown.clone()));
    assert_eq!(list.types.kind, "ConfigMapList");
    let list = maps.list(&ListParams::default().fields("metadata.name=b")).await.unwrap();
    assert_eq!(list.items.len(), 1);
    let error = maps.list(&ListParams::default().fields("spec.x=b")).await.unwrap_err();
    assert_eq!(refused(&error).0, 500);
    let error = maps.list(&ListParams::default().labels("a>1")).await.unwrap_err();
    assert!(error.to_string().contains("no requirement"), "{error}");
}

#[tokio::test]
async fn a_flip_without_a_stream_says_so() {
    let fixture = Fixture::start().await;
    let sets: Api<StatefulSet> = Api::namespaced(fixture.lag.client(), NAMESPACE);
    let elsewhere: Api<ConfigMap> = Api::namespaced(fixture.lag.client(), "elsewhere");
    let flip = fixture.lag.flip(Requests::any());
    for error in [sets.get("a").await.unwrap_err(), elsewhere.get("a").await.unwrap_err()] {
        assert_eq!(refused(&error).0, 500);
        let text = error.to_string();
        assert!(text.contains("no stream of full objects that covers it"), "{text}");
        assert!(text.contains("configmaps (v1) in namespace \"demo\""), "{text}");
    }
    let patch = Patch::Merge(json!({}));
    maps(&fixture.lag).patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(flip.served(), 2, "a write is never flipped");
}
