//! A plane comes up, works, and goes.

use anyhow::Result;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, ListParams, PostParams};
use laggard::Plane;
use laggard::plane::Controller;
use serde_json::json;

#[tokio::test]
async fn a_plane_comes_up_and_goes() -> Result<()> {
    let plane = Plane::builder().start().await?;
    println!("{:#?}", plane.timings());
    let namespace = plane.namespace("life").await?;
    let maps: Api<ConfigMap> = Api::namespaced(plane.client()?, &namespace);
    let map = serde_json::from_value(json!({ "metadata": { "name": "one" } }))?;
    maps.create(&PostParams::default(), &map).await?;
    assert_eq!(maps.list(&ListParams::default()).await?.items.len(), 1);
    let stopped = plane.stop().await?;
    println!("{stopped:?}");
    Ok(())
}

#[tokio::test]
async fn the_real_statefulset_controller_makes_pods() -> Result<()> {
    let plane = Plane::builder().controllers([Controller::StatefulSet]).start().await?;
    println!("{:#?}", plane.timings());
    let namespace = plane.namespace("life").await?;
    let sets: Api<StatefulSet> = Api::namespaced(plane.client()?, &namespace);
    let labels = json!({ "app": "x" });
    let set = serde_json::from_value(json!({
        "metadata": { "name": "x" },
        "spec": {
            "replicas": 1, "serviceName": "x", "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "x", "image": "x" }] },
            },
        },
    }))?;
    sets.create(&PostParams::default(), &set).await?;
    let pods: Api<Pod> = Api::namespaced(plane.client()?, &namespace);
    let created =
        kube::runtime::wait::await_condition(pods, "x-0", |pod: Option<&Pod>| pod.is_some());
    tokio::time::timeout(std::time::Duration::from_secs(10), created).await??;
    plane.pause_controllers().await?;
    plane.pause_controllers().await?;
    plane.resume_controllers().await?;
    plane.pause_controllers().await?;
    plane.stop().await?;
    Ok(())
}
