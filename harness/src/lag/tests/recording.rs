//! The record of requests.

use kube::api::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams};
use tracing::Instrument;

use super::*;
use crate::lag::{
    Requests,
    model::{Outcome, PatchType, Verb},
};

fn maps(lag: &Lag) -> Api<ConfigMap> {
    Api::namespaced(lag.client(), NAMESPACE)
}

#[tokio::test]
async fn a_record_says_what_was_asked_and_answered() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    let maps = maps(&lag);
    let mut object = ConfigMap::default();
    object.metadata.generate_name = Some("g-".to_owned());
    let made = maps.create(&PostParams::default(), &object).await.unwrap();
    object.metadata = made.metadata.clone();
    let replaced = maps.replace("g-x7", &PostParams::default(), &object).await.unwrap();
    let apply =
        Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"value": "1"}}));
    maps.patch("g-x7", &PatchParams::apply("test").force(), &apply).await.unwrap();
    maps.patch_status("g-x7", &PatchParams::default(), &Patch::Merge(json!({}))).await.unwrap();
    maps.get_with("g-x7", &GetParams::any()).await.unwrap();
    maps.list(&ListParams::default().match_any().labels("a=b")).await.unwrap();
    maps.delete("g-x7", &DeleteParams::default()).await.unwrap();
    maps.get_opt("g-x7").await.unwrap();

    let requests = lag.requests();
    let verbs: Vec<Verb> = requests.iter().map(|request| request.verb).collect();
    let [apply, merge] = [PatchType::Apply, PatchType::Merge].map(Verb::Patch);
    let expected =
        [Verb::Create, Verb::Update, apply, merge, Verb::Get, Verb::List, Verb::Delete, Verb::Get];
    assert_eq!(verbs, expected, "{requests}");
    assert_eq!(requests.iter().map(|r| r.number).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    assert_eq!(requests[0].name.as_deref(), Some("g-x7"), "the name that the server made up");
    assert_eq!(requests[0].resource_version_answered, made.metadata.resource_version);
    assert_eq!(requests[0].body.as_ref().unwrap()["metadata"]["generateName"], "g-");
    assert_eq!(requests[1].resource_version_asked, made.metadata.resource_version);
    assert_eq!(requests[1].resource_version_answered, replaced.metadata.resource_version);
    assert_eq!(requests[2].body.as_ref().unwrap()["data"]["value"], "1");
    assert_eq!(requests[3].target(), "configmaps/status");
    assert_eq!(requests[4].resource_version_asked.as_deref(), Some("0"));
    let cached: Vec<u64> =
        requests.iter().filter(|request| request.is_cached_read()).map(|r| r.number).collect();
    assert_eq!(cached, [5, 6], "the live read and the writes are none");
    assert_eq!(requests[5].labels.as_deref(), Some("a=b"));
    assert_eq!(requests[5].resource_version_match.as_deref(), Some("NotOlderThan"));
    assert_eq!(requests[7].outcome, Outcome::Status(404));
    for pair in requests.windows(2) {
        assert!(pair[0].finished.unwrap() <= pair[1].started, "{requests}");
    }
}

#[tokio::test]
async fn requests_can_be_counted_from_a_point_and_printed() {
    let server = Server::new();
    server.put("configmaps", NAMESPACE, "a", data("1"));
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    let maps = maps(&lag);
    maps.get("a").await.unwrap();
    let mark = lag.mark();
    maps.get("b").await.unwrap_err();
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let since = lag.requests_since(mark);
    assert_eq!(since.len(), 2);
    assert_eq!(since.count(&Requests::get::<ConfigMap>().named("b")), 1);
    assert_eq!(since.count(&Requests::any().writes()), 1);
    assert_eq!(since.of::<k8s_openapi::api::core::v1::Pod>().len(), 0);
    let table = since.to_string();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words(lines[1])[..9],
        ["2", "get", "configmaps", "demo/b", "-", "-", "-", "server", "404"]
    );
    assert_eq!(words(lines[2])[..4], ["3", "delete", "configmaps", "demo/a"]);
    let report = lag.to_string();
    assert!(report.contains("requests:\n#") && report.contains("streams:\n  (none)"), "{report}");

    lag.clear_requests();
    assert_eq!(lag.requests().to_string(), "no requests");
    maps.get("b").await.unwrap_err();
    assert_eq!(lag.requests()[0].number, 4, "numbers go on");
}

#[tokio::test]
async fn a_request_knows_the_innermost_span_in_which_it_was_made() {
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::sink).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = Server::new();
    server.put("configmaps", NAMESPACE, "a", data("1"));
    let lag = Lag::over_service(server, NAMESPACE);
    let maps = maps(&lag);
    maps.get("a").await.unwrap();
    async {
        maps.get("a").await.unwrap();
        maps.list(&ListParams::default()).instrument(tracing::info_span!("inner")).await.unwrap();
    }
    .instrument(tracing::info_span!("replace-pod"))
    .await;
    let requests = lag.requests();
    let spans: Vec<_> = requests.iter().map(|request| request.span.as_deref()).collect();
    assert_eq!(spans, [None, Some("replace-pod"), Some("inner")], "{requests}");
    assert_eq!(requests.count(&Requests::any().in_span("replace-pod")), 1);
}

#[tokio::test]
async fn the_server_is_asked_for_plain_text() {
    let fixture = Fixture::start().await;
    maps(&fixture.lag).get_opt("a").await.unwrap();
    let encodings = fixture.server.accepted_encodings();
    assert_eq!(encodings.len(), 3, "a list, a watch, a get");
    assert!(encodings.iter().all(|e| e.as_deref() == Some("identity")), "{encodings:?}");
}

#[tokio::test]
async fn a_failed_connection_is_recorded_with_its_cause() {
    // A port that was free a moment ago, and that nobody listens on.
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let config = kube::Config::new(format!("http://127.0.0.1:{port}").parse().unwrap());
    let lag = Lag::over(config).unwrap();
    maps(&lag).get("a").await.unwrap_err();
    let Outcome::Failed(cause) = lag.requests()[0].outcome.clone() else { panic!("{lag}") };
    assert!(cause.to_lowercase().contains("refused"), "{cause}");
}
