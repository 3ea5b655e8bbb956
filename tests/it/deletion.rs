//! A StatefulSet that somebody deleted in the middle of a rollout ends the plan, visibly.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use laggard::lag::{Answer, Requests};
use laggard::plane::BackendKind::{self, Container, Process};
use rollout_tests::Stage;
use rollout_tests::stage::{NODE, is_complete};
use rstest::rstest;
use seinode_operator::api::{Phase, PlanPhase, TaskStatus};
use seinode_operator::status::{NODE_UPDATE_IN_PROGRESS, condition};

use crate::backends::is_available;

const TEXT: &str = "statefulset \"n0\" missing during rollout (apply-statefulset preceded us); \
                    external deletion?";

#[rstest]
#[case::before_replace_pod("replace-pod", 3, Process)]
#[case::before_observe_image("observe-image", 0, Process)]
#[case::before_replace_pod_in_containers("replace-pod", 3, Container)]
#[case::before_observe_image_in_containers("observe-image", 0, Container)]
#[tokio::test]
async fn s6_external_deletion_is_terminal(
    #[case] task: &str,
    #[case] max_retries: i32,
    #[case] backend: BackendKind,
) -> Result<()> {
    if !is_available(backend).await? {
        return Ok(());
    }
    let stage = Stage::settled(backend).await?;
    if task == "replace-pod" {
        // Paused, so that replace-pod waits for the new generation to be observed.
        stage.apply_paused("v2").await?;
    } else {
        stage.set_image("v2").await?;
        stage.replace_pod().await?;
    }
    ensure!(stage.task(task).await?.status == TaskStatus::Pending);
    let plan = stage.status().await?.plan.context("no plan")?.id;
    let deletes = stage.deletes();
    stage.delete_set().await?;

    stage.pass().await?;
    let failed = stage.status().await?;
    let ended = failed.plan.clone().context("the failed plan must stay readable")?;
    ensure!((&ended.id, ended.phase) == (&plan, PlanPhase::Failed), "{ended:?}");
    let detail = ended.failed_task_detail.clone().context("no detail of the failure")?;
    ensure!(detail.kind == task && detail.error == TEXT, "{detail:?}");
    ensure!((detail.retry_count, detail.max_retries) == (0, max_retries), "{detail:?}");
    ensure!(ended.failed_task_index.is_some());
    ensure!(stage.task(task).await?.error.as_deref() == Some(TEXT));
    ensure!(failed.phase == Some(Phase::Running), "a failed update leaves the node Running");
    ensure!(failed.current_image.as_deref() == Some("v1"));
    ensure!(stage.deletes() == deletes, "no pod may be deleted in that pass");
    let message = format!("plan {plan} failed: task {task}: {TEXT}");
    said(&failed, "UpdateFailed", &message)?;
    let events = warnings(&stage).await?;
    ensure!(events.iter().filter(|note| **note == message).count() == 1, "{events:?}");

    // The next pass, within the hold-off: everything still says so, and no event says it again.
    stage.pass().await?;
    let held_off = stage.status().await?;
    said(&held_off, "UpdateFailed", &message)?;
    ensure!(held_off.plan == failed.plan, "the failed plan must stay until the hold-off ends");
    ensure!(warnings(&stage).await? == events, "the failure was reported twice");

    // After the hold-off a new plan heals, and the failure is still told until it has.
    stage.advance(Duration::from_secs(31));
    stage.pass().await?;
    let rebuilt = stage.status().await?;
    let next = rebuilt.plan.context("no new plan after the hold-off")?;
    ensure!(next.id != plan && next.phase == PlanPhase::Active);
    let failure = rebuilt.last_failure.context("the failure is forgotten after the rebuild")?;
    ensure!((failure.error.as_str(), failure.count) == (TEXT, 1), "{failure:?}");
    stage.resume().await?;
    stage.converge().await?;
    let healed = stage.status().await?;
    ensure!(healed.current_image.as_deref() == Some("v2"));
    ensure!(healed.last_failure.is_none(), "a success ends the failure");
    said(&healed, "UpdateComplete", &format!("plan {} completed", next.id))?;
    stage.end().await
}

#[tokio::test]
async fn s14_an_init_plan_is_not_affected() -> Result<()> {
    let stage = Stage::empty(Process).await?;
    stage.create_node("v1").await?;
    let sets = Requests::apply::<StatefulSet>();
    stage.pass().await?; // adds the finalizer and writes the plan down
    ensure!(stage.lag.requests().count(&sets) == 0, "a task ran before its plan was written down");
    ensure!(stage.api::<StatefulSet>().get_opt(NODE).await?.is_none());
    // The last task waits for its sidecar, so the plan is still there when the set goes.
    let lost = stage.lag.answer(Requests::any().in_span("apply-service"), Answer::Status(503));
    stage.pass().await?;
    ensure!(is_complete(&stage.task("apply-statefulset").await?));
    stage.delete_set().await?;
    lost.lift();
    stage.pass().await?;
    let status = stage.status().await?;
    ensure!(status.phase == Some(Phase::Running), "{status:?}");
    ensure!(status.last_failure.is_none() && condition(&status, NODE_UPDATE_IN_PROGRESS).is_none());
    // What follows is the update plan that every fresh node gets; it makes the set anew.
    stage.converge().await?;
    ensure!(stage.status().await?.last_failure.is_none());
    stage.end().await
}

fn said(status: &seinode_operator::api::SeiNodeStatus, reason: &str, message: &str) -> Result<()> {
    let condition = condition(status, NODE_UPDATE_IN_PROGRESS).context("no condition")?;
    ensure!(condition.status == "False", "{condition:?}");
    ensure!(condition.reason == reason && condition.message == message, "{condition:?}");
    Ok(())
}

/// What the operator's Warning events of a failed update say.
async fn warnings(stage: &Stage) -> Result<Vec<String>> {
    let events = stage.api::<Event>().list(&ListParams::default()).await?.items;
    let warning = |event: &Event| {
        event.type_.as_deref() == Some("Warning")
            && event.reason.as_deref() == Some("NodeUpdateFailed")
    };
    Ok(events.into_iter().filter(warning).filter_map(|event| event.note).collect())
}
