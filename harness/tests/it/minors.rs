//! Each minor that is pinned: its plane starts and does its work.

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use laggard::Plane;
use laggard::assets::{Binary, Wanted};
use laggard::plane::Controller;
use rstest::rstest;
use serde_json::json;

/// With `LAGGARD_MINORS=all` what is not there is obtained; otherwise that is said.
pub(crate) async fn is_here(minor: &str) -> Result<bool> {
    if std::env::var("LAGGARD_MINORS").is_ok_and(|minors| minors == "all") {
        return Ok(true);
    }
    let servers = [Binary::Etcd, Binary::KubeApiserver, Binary::KubeControllerManager];
    let wanted = Wanted::kubernetes(minor).binaries(servers).installed_only(true);
    match wanted.get(|_| ()).await {
        Ok(_) => Ok(true),
        Err(error) => {
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            skipped(&format!("{first}; LAGGARD_MINORS=all obtains it"));
            Ok(false)
        }
    }
}

#[expect(clippy::print_stderr, reason = "a test that did not run must not look as if it had")]
fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

#[rstest]
#[tokio::test]
async fn a_plane_of_it_starts_and_its_controllers_work(
    #[values("1.34", "1.35", "1.36", "1.37")] minor: &str,
) -> Result<()> {
    if !is_here(minor).await? {
        return Ok(());
    }
    let plane =
        Plane::builder().kubernetes(minor).controllers([Controller::StatefulSet]).start().await?;
    let client = plane.client()?;
    let version = client.apiserver_version().await?;
    ensure!(format!("{}.{}", version.major, version.minor) == minor, "{version:?}");

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
