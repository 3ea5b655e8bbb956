//! Forks beside the real StatefulSet controller and garbage collector, which see a fork's kinds in any
//! order. They may write a status more often than in a world that grew; but it must end the same.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use laggard::Plane;
use laggard::plane::{BackendKind, Controller, Readiness};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::stage::{Stage, request, slow_rounds};

/// Another process's doing, in steps that no watch of one kind shows.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_beside_live_controllers_ends_as_a_world_that_grew() -> Result<()> {
    let builder = Plane::builder()
        .backend(BackendKind::Process)
        .readiness(Readiness::Full)
        .controllers([Controller::StatefulSet, Controller::GarbageCollector]);
    let stage = Stage::of(builder).await?;
    let source = stage.namespace().await?;
    let sets = format!("/apis/apps/v1/namespaces/{source}/statefulsets");
    stage.create(&sets, &set("v1")).await?;
    rolled_out(&stage, &source, "v1").await?;
    let moment = stage.worlds.moment(&source).await?;

    // What it is to end in: the source itself, taken further.
    let before = end(&stage, &source).await?;
    roll(&stage, &source).await?;
    let expected = end(&stage, &source).await?;
    assert_ne!(before, expected);

    let (mut status_writes, mut more) = (Vec::new(), 0);
    for round in 0..slow_rounds(5, 50)? {
        let world = stage.worlds.fork(&moment).await?;
        world.ready(&stage.client).await?;
        let namespace = world.namespace().to_owned();
        let context = || format!("round {round}, {namespace}");
        // Nothing is taken for an orphan, and nothing is made twice.
        ends_as(&stage, &namespace, &before).await.with_context(context)?;
        roll(&stage, &namespace).await.with_context(context)?;
        ends_as(&stage, &namespace, &expected).await.with_context(context)?;
        let history = stage.worlds.moment(&namespace).await?;
        let count = |resource: &str| {
            history.changes().filter(|change| change.resource.plural == resource).count()
        };
        status_writes.push(count("statefulsets"));
        stage.worlds.erase(world).await?;
        // The controllers notice, and what they write meanwhile is erased as well.
        stage.worlds.settle().await?;
    }
    let usual = status_writes.iter().min().copied().unwrap_or_default();
    more += status_writes.iter().filter(|&&writes| writes > usual).count();
    println!("writes of the StatefulSet: {status_writes:?}; {more} forks had more than others");
    stage.stop().await
}

pub(crate) fn set(image: &str) -> Value {
    let labels = json!({ "app": "x" });
    json!({
        "metadata": { "name": "x" },
        "spec": {
            "replicas": 2, "serviceName": "x", "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "x", "image": image }] },
            },
        },
    })
}

async fn roll(stage: &Stage, namespace: &str) -> Result<()> {
    let path = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/x");
    let patch = json!({ "spec": { "template": set("v2")["spec"]["template"] } });
    request(&stage.client, "PATCH", &path, Some(&patch)).await?;
    rolled_out(stage, namespace, "v2").await
}

/// Plays the kubelet until all pods run this image and the set's status says so.
async fn rolled_out(stage: &Stage, namespace: &str, image: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let set = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/x");
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    loop {
        let listed = request(&stage.client, "GET", &pods, None).await?;
        let mut running = 0;
        for pod in listed["items"].as_array().into_iter().flatten() {
            running += usize::from(pod["spec"]["containers"][0]["image"] == image);
            if pod["status"]["phase"] == "Running"
                || !pod["metadata"]["deletionTimestamp"].is_null()
            {
                continue;
            }
            let name = pod["metadata"]["name"].as_str().context("no name")?;
            let status = json!({ "status": {
                "phase": "Running",
                "conditions": [{ "type": "Ready", "status": "True" }],
            } });
            let path = format!("{pods}/{name}/status");
            match request(&stage.client, "PATCH", &path, Some(&status)).await {
                // The controller has deleted it meanwhile.
                Err(kube::Error::Api(gone)) if gone.code == 404 => {}
                answer => drop(answer?),
            }
        }
        let now = request(&stage.client, "GET", &set, None).await?;
        let (spec, status) = (&now["spec"], &now["status"]);
        let whole = ["replicas", "readyReplicas", "updatedReplicas", "currentReplicas"];
        let done = running == 2
            && status["observedGeneration"] == now["metadata"]["generation"]
            && status["currentRevision"] == status["updateRevision"]
            && whole.iter().all(|field| status[*field] == spec["replicas"]);
        if done {
            return Ok(());
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "{image} is not rolled out in {namespace} after {LIMIT:?}; last: {status}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the namespace is in this state. The StatefulSet controller hears of the pods of a fork
/// one by one and writes a status for each of them.
async fn ends_as(stage: &Stage, namespace: &str, expected: &BTreeMap<String, Value>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = end(stage, namespace).await?;
        if found == *expected {
            return Ok(());
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "not as in a world that grew after {LIMIT:?}: {found:#?}\nexpected: {expected:#?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What there is, without what differs from run to run.
async fn end(stage: &Stage, namespace: &str) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    let kinds = [
        ("/apis/apps/v1", "statefulsets"),
        ("/apis/apps/v1", "controllerrevisions"),
        ("/api/v1", "pods"),
    ];
    let set = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/x");
    let set = request(&stage.client, "GET", &set, None).await?;
    let uid = &set["metadata"]["uid"];
    for (root, kind) in kinds {
        let path = format!("{root}/namespaces/{namespace}/{kind}");
        let list = request(&stage.client, "GET", &path, None).await?;
        for item in list["items"].as_array().into_iter().flatten() {
            let metadata = &item["metadata"];
            for owner in metadata["ownerReferences"].as_array().into_iter().flatten() {
                anyhow::ensure!(owner["uid"] == *uid, "{kind}: {owner} is not {uid}");
            }
            let name = metadata["name"].as_str().context("no name")?;
            let mut status = item["status"].clone();
            if let Some(status) = status.as_object_mut() {
                status.remove("conditions");
            }
            let kept = json!({
                "spec": item["spec"], "data": item["data"], "revision": item["revision"],
                "status": status, "labels": metadata["labels"],
                "generation": metadata["generation"],
                "deleting": !metadata["deletionTimestamp"].is_null(),
            });
            found.insert(format!("{kind}/{name}"), kept);
        }
    }
    Ok(found)
}
