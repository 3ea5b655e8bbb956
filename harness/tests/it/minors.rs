//! Each minor that is pinned: its plane starts and does its work.

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use laggard::Plane;
use laggard::assets::Minor;
use laggard::plane::Controller;
use rstest::rstest;
use serde_json::json;

laggard::minors! {
    #[rstest]
    #[tokio::test]
    async fn a_plane_of_it_starts_and_its_controllers_work(minor: Minor) -> Result<()> {
        let plane =
            Plane::builder().kubernetes(minor).controllers([Controller::StatefulSet]).start().await?;
        let client = plane.client()?;
        let version = client.apiserver_version().await?;
        ensure!(format!("{}.{}", version.major, version.minor) == minor.to_string(), "{version:?}");

        let namespace = plane.namespace("minors").await?;
        let sets: Api<StatefulSet> = Api::namespaced(client.clone(), &namespace);
        let pods: Api<Pod> = Api::namespaced(client, &namespace);
        let set = serde_json::from_value(json!({
            "metadata": { "name": "n" },
            "spec": {
                "serviceName": "n",
                "selector": { "matchLabels": { "app": "n" } },
                "template": {
                    "metadata": { "labels": { "app": "n" } },
                    "spec": { "containers": [{ "name": "c", "image": "i" }] },
                },
            },
        }))?;
        sets.create(&PostParams::default(), &set).await?;
        let mut events = pods.watch(&WatchParams::default().timeout(30), "0").await?.boxed();
        let pod = loop {
            match events.try_next().await?.context("no pod within 30 s")? {
                WatchEvent::Added(pod) => break pod,
                WatchEvent::Bookmark(_) => {}
                other => anyhow::bail!("{other:?}"),
            }
        };
        ensure!(pod.metadata.name.as_deref() == Some("n-0"), "{pod:?}");
        plane.stop().await?;
        Ok(())
    }
}
