//! Planes that are put back to a moment, and what is seen of it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, WatchEvent, WatchParams};
use kube::discovery::Discovery;
use kube::{Client, ResourceExt as _};
use laggard::Plane;
use laggard::plane::{BackendKind, Controller, PlaneBuilder, Readiness, Reset};
use rstest::rstest;
use serde_json::{Value, json};

use crate::world::{live, stage};

/// A plane where all that the server makes is there: whatever differs later was made by the test. `None` where there
/// can be none, which has been said.
async fn on(backend: BackendKind) -> Option<PlaneBuilder> {
    Some(crate::settings::on(backend).await?.readiness(Readiness::Full))
}

/// A body of `null` is none.
async fn answer(
    client: &Client,
    method: &str,
    path: &str,
    body: Value,
) -> Result<Value, kube::Error> {
    stage::request(client, method, path, (!body.is_null()).then_some(&body)).await
}

async fn request(client: &Client, method: &str, path: &str, body: Value) -> Result<Value> {
    answer(client, method, path, body).await.with_context(|| format!("{method} {path}"))
}

async fn code(client: &Client, method: &str, path: &str, body: Value) -> Result<u16> {
    match answer(client, method, path, body).await {
        Ok(_) => Ok(200),
        Err(kube::Error::Api(status)) => Ok(status.code),
        Err(error) => Err(error.into()),
    }
}

/// A definition whose objects must have `field`.
fn gadgets(field: &str) -> CustomResourceDefinition {
    serde_json::from_value(json!({
        "metadata": { "name": "gadgets.reset.test.local" },
        "spec": {
            "group": "reset.test.local",
            "scope": "Cluster",
            "names": { "kind": "Gadget", "plural": "gadgets", "singular": "gadget" },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": {
                    "type": "object", "required": [field],
                    "properties": { field: { "type": "string" } },
                } },
            }],
        },
    }))
    .expect("a constant definition")
}

fn gadget(name: &str, field: &str) -> Value {
    json!({
        "apiVersion": "reset.test.local/v1", "kind": "Gadget",
        "metadata": { "name": name, "finalizers": ["test.local/never"] }, field: "x",
    })
}

const GADGETS: &str = "/apis/reset.test.local/v1/gadgets";
const CLUSTER_ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
const CLUSTER_BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";

/// Leaves something of every kind that a test may leave, and changes and deletes what was there.
async fn dirty(plane: &Plane, client: &Client, field: &str) -> Result<()> {
    plane.install_crds(&[gadgets(field)]).await?;
    for index in 0..10 {
        request(client, "POST", GADGETS, gadget(&format!("g{index}"), field)).await?;
    }
    for number in 0..3 {
        let name = format!("made-{number}");
        let namespace = json!({ "metadata": { "name": name } });
        request(client, "POST", "/api/v1/namespaces", namespace).await?;
        for index in 0..30 {
            let map = json!({ "metadata": { "name": format!("m{index}") }, "data": { "a": "b" } });
            let path = format!("/api/v1/namespaces/{name}/configmaps");
            request(client, "POST", &path, map).await?;
        }
    }
    let service = json!({
        "metadata": { "name": "s" }, "spec": { "ports": [{ "port": 80 }] },
    });
    request(client, "POST", "/api/v1/namespaces/made-0/services", service).await?;
    let role = json!({
        "metadata": { "name": "gadgeteer" },
        "rules": [{ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"] }],
    });
    request(client, "POST", CLUSTER_ROLES, role).await?;
    let binding = json!({
        "metadata": { "name": "gadgeteer" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "gadgeteer" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann" }],
    });
    request(client, "POST", CLUSTER_BINDINGS, binding).await?;
    let labels = json!({ "metadata": { "labels": { "dirty": "yes" } } });
    request(client, "PATCH", "/api/v1/namespaces/default", labels).await?;
    let kept = json!({ "data": { "a": "changed" } });
    request(client, "PATCH", "/api/v1/namespaces/kept/configmaps/changed", kept).await?;
    request(client, "DELETE", "/api/v1/namespaces/kept/configmaps/deleted", Value::Null).await?;
    // Without a namespace controller it stays on its way out for ever.
    request(client, "DELETE", "/api/v1/namespaces/kept", Value::Null).await?;
    Ok(())
}

/// All that can be listed, by path, without what a reset says it leaves.
async fn everything(client: &Client) -> Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for group in Discovery::new(client.clone()).run().await?.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let listable = capabilities.supports_operation(kube::discovery::verbs::LIST);
            if !listable || ["Event", "Lease", "ComponentStatus"].contains(&&*resource.kind) {
                continue;
            }
            let root = if resource.group.is_empty() { "/api" } else { "/apis" };
            let path = format!("{root}/{}/{}", resource.api_version, resource.plural);
            let list = request(client, "GET", &path, Value::Null).await?;
            for mut object in list["items"].as_array().cloned().unwrap_or_default() {
                // On a crowded machine it is made late.
                if is_of_the_service_of_the_server(&object) {
                    continue;
                }
                let metadata = object["metadata"].as_object_mut().context("no metadata")?;
                metadata.remove("resourceVersion");
                let place = format!(
                    "{path} {}/{}",
                    metadata.get("namespace").and_then(Value::as_str).unwrap_or_default(),
                    metadata["name"].as_str().context("no name")?,
                );
                all.insert(place, object);
            }
        }
    }
    Ok(all)
}

/// The Service kubernetes, its address and its endpoints.
fn is_of_the_service_of_the_server(object: &Value) -> bool {
    let of = [&object["metadata"], &object["spec"]["parentRef"]];
    of.iter().any(|it| it["name"] == "kubernetes" && it["namespace"] == "default")
}

async fn allowed(client: &Client, user: &str) -> Result<bool> {
    let review = json!({ "spec": { "user": user, "resourceAttributes": {
        "resource": "configmaps", "verb": "list", "namespace": "default",
    } } });
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    Ok(request(client, "POST", path, review).await?["status"]["allowed"] == true)
}

#[rstest]
#[tokio::test]
async fn everything_is_as_it_was(
    #[values(BackendKind::Process, BackendKind::Container)] backend: BackendKind,
    #[values(true, false)] watch_cache: bool,
) -> Result<()> {
    let Some(mut builder) = on(backend).await else { return Ok(()) };
    if !watch_cache {
        builder = builder.exploring();
    }
    let plane = builder.start().await?;
    let client = plane.client()?;
    request(&client, "POST", "/api/v1/namespaces", json!({ "metadata": { "name": "kept" } }))
        .await?;
    for name in ["changed", "deleted"] {
        let map = json!({ "metadata": { "name": name }, "data": { "a": "b" } });
        request(&client, "POST", "/api/v1/namespaces/kept/configmaps", map).await?;
    }
    // First, since it waits until the server has made what it makes for itself.
    let moment = plane.moment().await?;
    let before = everything(&client).await?;
    // Each time with another schema: the one of the round before must be forgotten.
    for field in ["one", "two", "three"] {
        dirty(&plane, &client, field).await?;
        assert!(allowed(&client, "ann").await?);
        assert_eq!(code(&client, "POST", GADGETS, gadget("bad", "none")).await?, 422);
        let reset = plane.reset(&moment).await?;
        // At once, without a wait for anything.
        assert_eq!(code(&client, "GET", GADGETS, Value::Null).await?, 404);
        assert!(!allowed(&client, "ann").await?);
        let map = json!({ "metadata": { "name": "late" } });
        let gone = "/api/v1/namespaces/made-2/configmaps?dryRun=All";
        assert_eq!(code(&client, "POST", gone, map.clone()).await?, 404);
        let kept = "/api/v1/namespaces/kept/configmaps?dryRun=All";
        assert_eq!(code(&client, "POST", kept, map).await?, 200);
        let after = everything(&client).await?;
        for (place, object) in &after {
            assert_eq!(before.get(place), Some(object), "{place}");
        }
        assert_eq!(before.len(), after.len());
        assert!(reset.deleted.len() >= 108, "{}", reset.deleted.len());
        for key in ["configmaps/kept/changed", "configmaps/kept/deleted", "namespaces/kept"] {
            let key = format!("/registry/{key}");
            assert!(reset.restored.contains(&key), "{key}: {:?}", reset.restored);
        }
    }
    // Nothing to do.
    assert_eq!(plane.reset(&moment).await?, Reset::default());
    plane.stop().await?;
    Ok(())
}

#[rstest]
#[tokio::test]
async fn a_watch_sees_the_way_back_event_by_event(
    #[values(BackendKind::Process, BackendKind::Container)] backend: BackendKind,
) -> Result<()> {
    let Some(builder) = on(backend).await else { return Ok(()) };
    let plane = builder.start().await?;
    let client = plane.client()?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let moment = plane.moment().await?;
    let path = "/api/v1/namespaces/default/configmaps";
    for name in ["a", "b", "c"] {
        request(&client, "POST", path, json!({ "metadata": { "name": name } })).await?;
    }
    let list = maps.list(&kube::api::ListParams::default()).await?;
    let version = list.metadata.resource_version.context("no version")?;
    plane.reset(&moment).await?;
    // As one that was away: from before the reset.
    let params = WatchParams::default().timeout(20);
    let mut events = std::pin::pin!(maps.watch(&params, &version).await?);
    let mut seen = Vec::new();
    while seen.len() < 3 {
        match events.try_next().await?.context("the watch ended")? {
            WatchEvent::Deleted(map) => {
                let version: u64 = map.resource_version().context("no version")?.parse()?;
                seen.push((version, map.name_any()));
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
    let mut versions: Vec<u64> = seen.iter().map(|(version, _)| *version).collect();
    versions.dedup();
    assert!(versions.len() == 3 && versions.is_sorted(), "{seen:?}");
    plane.stop().await?;
    Ok(())
}

#[rstest]
#[tokio::test]
async fn the_start_is_a_moment_where_it_was_complete(
    #[values(BackendKind::Process, BackendKind::Container)] backend: BackendKind,
) -> Result<()> {
    let Some(builder) = on(backend).await else { return Ok(()) };
    let plane = builder.crds([gadgets("kept")]).start().await?;
    let client = plane.client()?;
    request(&client, "POST", GADGETS, gadget("g", "kept")).await?;
    plane.namespace("made").await?;
    let start = plane.start_moment().await?;
    let reset = plane.reset(&start).await?;
    assert!(
        reset.deleted.contains(&"/registry/reset.test.local/gadgets/g".to_owned()),
        "{reset:?}"
    );
    // The definition of the builder is a part of the start.
    let listed = request(&client, "GET", GADGETS, Value::Null).await?;
    assert_eq!(listed["items"], json!([]));
    let namespaces = Api::<Namespace>::all(client).list(&Default::default()).await?;
    assert!(namespaces.iter().all(|it| !it.name_any().starts_with("made")));

    let early = Plane::builder().backend(BackendKind::Process).start().await?;
    let error = format!("{:#}", anyhow::Error::from(early.start_moment().await.unwrap_err()));
    assert!(error.contains("Readiness::Full") && error.contains("Plane::moment"), "{error}");
    // What the server makes for itself a second later is in a moment that is taken at once.
    let moment = early.moment().await?;
    let roles =
        request(&early.client()?, "GET", &format!("{CLUSTER_ROLES}/cluster-admin"), Value::Null)
            .await?;
    assert!(roles["rules"].as_array().is_some());
    assert_eq!(early.reset(&moment).await?, Reset::default());
    let error = format!("{:#}", anyhow::Error::from(plane.reset(&moment).await.unwrap_err()));
    assert!(error.contains("another plane"), "{error}");
    early.stop().await?;
    plane.stop().await?;
    Ok(())
}

#[rstest]
#[tokio::test]
async fn controllers_stand_still_meanwhile_and_go_on_afterwards(
    #[values(BackendKind::Process, BackendKind::Container)] backend: BackendKind,
) -> Result<()> {
    let Some(builder) = on(backend).await else { return Ok(()) };
    // The collector removes a pod that the other one may make for a set of which it has yet to hear that it is gone.
    let controllers = [Controller::StatefulSet, Controller::GarbageCollector];
    let plane = builder.controllers(controllers).start().await?;
    let client = plane.client()?;
    let moment = plane.moment().await?;
    let mut set = live::set("v1");
    set["spec"]["replicas"] = json!(3);
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), "default");
    for _ in 0..2 {
        let sets = "/apis/apps/v1/namespaces/default/statefulsets";
        request(&client, "POST", sets, set.clone()).await?;
        let ready = kube::runtime::wait::await_condition(
            pods.clone(),
            "x-2",
            |pod: Option<&k8s_openapi::api::core::v1::Pod>| pod.is_some(),
        );
        tokio::time::timeout(std::time::Duration::from_secs(30), ready)
            .await
            .context("no pod")??;
        let reset = plane.reset(&moment).await?;
        assert!(reset.deleted.contains(&"/registry/statefulsets/default/x".to_owned()));
        let path = format!("{sets}/x");
        assert_eq!(code(&client, "GET", &path, Value::Null).await?, 404);
    }
    plane.stop().await?;
    Ok(())
}

const GROUP: &str = "reset.test.local";

/// Whether the group is discovered, and whether the server has registered it with its aggregator.
async fn discovered(client: &Client) -> Result<[bool; 4]> {
    let groups = request(client, "GET", "/apis", Value::Null).await?;
    let groups = groups["groups"].as_array().context("no groups")?;
    let version = format!("/apis/{GROUP}/v1");
    let service = format!("/apis/apiregistration.k8s.io/v1/apiservices/v1.{GROUP}");
    Ok([
        groups.iter().any(|group| group["name"] == GROUP),
        code(client, "GET", &version, Value::Null).await? == 200,
        code(client, "GET", &service, Value::Null).await? == 200,
        Discovery::new(client.clone()).run_aggregated().await?.has_group(GROUP),
    ])
}

/// Discovery has other watches than the custom resources themselves, and the aggregator writes objects of its own.
#[rstest]
#[tokio::test]
async fn what_is_discovered_is_of_the_moment(
    #[values(true, false)] watch_cache: bool,
) -> Result<()> {
    let Some(mut builder) = on(BackendKind::Process).await else { return Ok(()) };
    if !watch_cache {
        builder = builder.exploring();
    }
    let plane = builder.start().await?;
    let client = plane.client()?;
    let without = plane.moment().await?;
    plane.install_crds(&[gadgets("one")]).await?;
    let with = plane.moment().await?;
    for round in 0..10 {
        plane.reset(&without).await?;
        assert_eq!(discovered(&client).await?, [false; 4], "away, round {round}");
        plane.reset(&with).await?;
        assert_eq!(discovered(&client).await?, [true; 4], "back, round {round}");
    }
    assert_eq!(plane.reset(&with).await?, Reset::default());
    plane.stop().await?;
    Ok(())
}
