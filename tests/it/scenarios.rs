//! The scenarios about lag, as functions of a stage: the tests run them as they are, and the flips
//! run them with one read of the operator answered from its cache.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt as _;
use laggard::lag::Requests;
use rollout_tests::Stage;
use rollout_tests::stage::{NODE, is_complete};
use seinode_operator::api::Target;
use seinode_operator::api::{Phase, TaskPlan};
use seinode_operator::plan::new_plan;
use seinode_operator::task::Kind;

/// S1: the StatefulSet stream is held at the state before the apply; one pass must not get past
/// replace-pod. The real controller is paused, or it might roll in time, and rightly.
pub(crate) async fn s1_lag_cannot_complete_a_rollout(stage: &Stage) -> Result<()> {
    stage.pause().await?;
    stage.sets().hold();
    let old = stage.pod().await?.context("a settled node has a pod")?;
    stage.set_image("v2").await?;
    stage.pass().await?; // writes the plan down
    stage.lag.clear_requests();
    stage.pass().await?;
    stage.cache_is_behind().await?;

    let requests = stage.lag.requests();
    let reads = requests.matching(&Requests::get::<StatefulSet>());
    ensure!(
        reads.len() == 2 && reads.iter().all(|read| read.resource_version_asked.is_none()),
        "a GET at a resource version may be answered from the API server's own cache\n{reads}"
    );
    let status = stage.status().await?;
    let replace = stage.task("replace-pod").await?;
    stage.claim(!is_complete(&replace), "replace-pod must be Pending after this pass")?;
    stage.claim(
        status.current_image.as_deref() == Some("v1"),
        format_args!("currentImage must still be v1, but is {:?}", status.current_image),
    )?;
    stage.claim(stage.deletes() == 0, "no pod may be deleted in this pass")?;
    let pod = stage.pod().await?.context("the pod is gone")?;
    ensure!(pod.uid() == old.uid(), "the pod was replaced although its controller is paused");
    Ok(())
}

/// S2: the same for observe-image right after an apply, with no replace-pod to end the pass first.
pub(crate) async fn s2_lag_cannot_stamp_an_image(stage: &Stage) -> Result<()> {
    stage.pause().await?;
    stage.sets().hold();
    stage.set_image("v2").await?;
    let generation = stage.node().await?.metadata.generation.context("no generation")?;
    let plan = TaskPlan {
        target: Some(Target { image: "v2".to_owned(), generation }),
        target_phase: Some(Phase::Running),
        ..new_plan(&[Kind::ApplyStatefulSet, Kind::ObserveImage], NODE, &stage.namespace)
    };
    stage.install_plan(&plan).await?;
    stage.lag.clear_requests();
    stage.pass().await?;
    stage.cache_is_behind().await?;

    let observe = stage.task("observe-image").await?;
    stage.claim(!is_complete(&observe), "observe-image must be Pending after this pass")?;
    let status = stage.status().await?;
    stage.claim(
        status.current_image.as_deref() == Some("v1"),
        format_args!("currentImage must still be v1, but is {:?}", status.current_image),
    )
}

/// S3: the live StatefulSet has moved on while the cache stands still; the pass must act on it now.
pub(crate) async fn s3_a_held_cache_does_not_delay_the_replacement(stage: &Stage) -> Result<()> {
    let old = stage.pod().await?.context("a settled node has a pod")?;
    stage.pause().await?;
    stage.sets().hold();
    stage.set_image("v2").await?;
    stage.pass().await?; // writes the plan down
    stage.pass().await?; // applies, and waits in replace-pod
    stage.resume().await?;
    let live = stage
        .set_until("the new generation to be observed", |set| {
            set.status.as_ref().is_some_and(|status| {
                status.observed_generation == set.metadata.generation
                    && status.update_revision != status.current_revision
            })
        })
        .await?;
    stage.pause().await?;
    stage.cache_is_behind().await?;
    ensure!(stage.deletes() == 0, "a pod was deleted before its controller had a new revision");

    stage.lag.clear_requests();
    stage.pass().await?;
    stage.claim(
        stage.deletes() == 1,
        format_args!(
            "replace-pod must delete the old pod in this pass, since the live StatefulSet is \
             observed at generation {:?}",
            live.metadata.generation
        ),
    )?;
    let requests = stage.lag.requests();
    let delete = requests
        .iter()
        .find(|request| Requests::delete::<k8s_openapi::api::core::v1::Pod>().matches(request))
        .context("no delete was recorded")?;
    let body = delete.body.clone().context("the delete has no body")?;
    ensure!(
        body["preconditions"]["uid"].as_str() == old.uid().as_deref(),
        "the delete must be of the old pod and no other: {body}"
    );

    stage.pass().await?;
    ensure!(stage.deletes() == 1, "a second pod was deleted\n{}", stage.lag.requests());
    ensure!(is_complete(&stage.task("replace-pod").await?), "replace-pod must be Complete now");
    let observe = stage.task("observe-image").await?;
    ensure!(!is_complete(&observe), "observe-image must wait: the new pod is not there");
    ensure!(stage.status().await?.current_image.as_deref() == Some("v1"));
    Ok(())
}

/// S15: everything is in place and only the cache is behind; observe-image must complete in this
/// pass. It catches a flip even where a generation floor makes the stale read harmless.
pub(crate) async fn s15_a_held_cache_does_not_delay_the_stamp(stage: &Stage) -> Result<()> {
    let old = stage.pod().await?.context("a settled node has a pod")?;
    stage.sets().hold();
    stage.set_image("v2").await?;
    stage.replace_pod().await?;
    stage.pod_until(old.uid().as_deref()).await?;
    stage.observed(1).await?;
    stage.play_kubelet().await?;
    stage.cache_is_behind().await?;
    ensure!(stage.status().await?.current_image.as_deref() == Some("v1"));

    stage.lag.clear_requests();
    stage.pass().await?;
    let status = stage.status().await?;
    stage.claim(
        status.current_image.as_deref() == Some("v2"),
        format_args!(
            "observe-image must stamp v2 in this pass, since the live StatefulSet is rolled; \
             currentImage is {:?}",
            status.current_image
        ),
    )
}

/// S13: once everything is released the rollout completes as usual.
pub(crate) async fn s13_after_the_release_everything_completes(stage: &Stage) -> Result<()> {
    let old = stage.pod().await?.context("a settled node has a pod")?;
    s1_lag_cannot_complete_a_rollout(stage).await?;
    let released = stage.sets().release_all().await?;
    ensure!(!released.is_empty(), "nothing was held");
    let cached: StatefulSet = stage.context.cached.get(&stage.namespace, NODE).await?;
    ensure!(
        cached.metadata.generation == stage.set().await?.metadata.generation,
        "after the release the cache shows what is true"
    );
    stage.resume().await?;
    stage.converge().await?;
    let pod = stage.pod().await?.context("no pod")?;
    ensure!(pod.uid() != old.uid(), "the pod was not replaced");
    ensure!(stage.status().await?.current_image.as_deref() == Some("v2"));
    Ok(())
}
