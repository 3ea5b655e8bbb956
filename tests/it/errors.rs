//! What may pass is tried again: no answer of an API server but its own NotFound ends a plan.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use laggard::lag::{Answer, Requests};
use laggard::plane::BackendKind::Process;
use rollout_tests::Stage;
use rollout_tests::stage::NODE;
use seinode_operator::api::{PlanPhase, TaskStatus};
use seinode_operator::readers::ReadError;

/// S7, for each task and each answer, on one plane.
#[tokio::test]
async fn s7_a_read_that_fails_is_transient() -> Result<()> {
    let stage = Stage::settled(Process).await?;
    stage.apply_paused("v2").await?;
    every_answer_is_transient(&stage, "replace-pod").await?;

    stage.resume().await?;
    stage.replace_pod().await?;
    every_answer_is_transient(&stage, "observe-image").await?;

    stage.converge().await?;
    ensure!(stage.status().await?.current_image.as_deref() == Some("v2"));
    stage.end().await
}

async fn every_answer_is_transient(stage: &Stage, task: &str) -> Result<()> {
    let answers = [401, 403, 409, 429, 500, 503].map(Answer::Status);
    for answer in answers.into_iter().chain([Answer::Timeout, Answer::BrokenConnection]) {
        let what = format!("{task}, {answer:?}");
        let read = Requests::get::<StatefulSet>().in_span(task);
        let answering = stage.lag.answer(read, answer);
        stage.pass().await.with_context(|| what.clone())?;
        ensure!(answering.hits() == 1, "{what}: answered {} times", answering.hits());
        answering.lift();
        let status = stage.status().await?;
        let plan = status.plan.with_context(|| format!("{what}: the plan is gone"))?;
        ensure!(plan.phase == PlanPhase::Active, "{what}: {plan:?}");
        ensure!(stage.task(task).await?.status == TaskStatus::Pending, "{what}");
        ensure!(status.last_failure.is_none(), "{what}: {:?}", status.last_failure);
    }
    Ok(())
}

/// A cache that has not been shown the StatefulSet says so in words of its own, which no task takes
/// for a deletion (the tasks' side of it is a unit test of theirs).
#[tokio::test]
async fn what_only_a_cache_lacks_is_not_missing() -> Result<()> {
    let stage = Stage::empty(Process).await?;
    stage.sets().hold();
    stage.create_node("v1").await?;
    stage.pass().await?; // writes the plan down
    stage.pass().await?; // applies
    stage.set().await?;
    ensure!(stage.sets().until_behind(1).await? > 0);
    let cached = stage.context.cached.get::<StatefulSet>(&stage.namespace, NODE).await;
    ensure!(cached == Err(ReadError::NotCached), "{cached:?}");
    stage.end().await
}
