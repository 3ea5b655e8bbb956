//! The demo: a rollout that never happened and is reported as done; the same schedule with live
//! reads; and a deletion from outside. On a real API server, with the real StatefulSet controller.
//!
//! Ends with status 0 only if each act came out as it says.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt as _;
use kube::api::ListParams;
use laggard::plane::BackendKind;
use rollout_tests::stage::is_complete;
use rollout_tests::{Stage, original};
use seinode_operator::api::PlanPhase;
use seinode_operator::status::{NODE_UPDATE_IN_PROGRESS, condition};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    rollout_tests::stage::trace_silently();
    match play().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("\nIt did not come out as stated: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

async fn play() -> Result<()> {
    say("A controller applies a StatefulSet and, in the same pass, reads it back to see how the\n\
         rollout goes. Its watch cache is behind: the event of its own write has not arrived.\n\
         Everything below happens on a real etcd, kube-apiserver and StatefulSet controller.");
    act_one().await.context("act one")?;
    act_two().await.context("act two")?;
    act_three().await.context("act three")?;
    say("\nAll three acts came out as stated.");
    Ok(())
}

async fn act_one() -> Result<()> {
    say("\n== Act one: the original's two tasks, with their reads turned to the cache");
    let stage = set_the_stage().await?;
    let old = stage.pod().await?.context("no pod")?;
    hold_and_ask_for_v2(&stage).await?;
    stage.pass().await?; // the planner's: the plan is written down
    original::pass(&stage.context, &stage.node().await?).await?;
    say("  one pass later:");

    let status = stage.status().await?;
    let plan = status.plan.context("no plan")?;
    let complete = plan.tasks.iter().filter(|task| is_complete(task)).count();
    let set = stage.set().await?;
    let generation = set.metadata.generation.unwrap_or_default();
    let observed = set.status.and_then(|status| status.observed_generation).unwrap_or_default();
    let pod = stage.pod().await?.context("no pod")?;
    let untouched = pod.uid() == old.uid();
    let image = status.current_image.unwrap_or_default();
    fact("tasks complete", &format!("{complete} of {}", plan.tasks.len()));
    fact("status.currentImage", &image);
    fact("the pod", &describe(&pod, untouched));
    fact("live StatefulSet", &format!("generation {generation}, observed {observed}"));
    fact("the cache", &format!("{} event behind", stage.sets().behind()?));
    ensure!(complete == 5 && image == "v2" && untouched && generation > observed);
    stage.cache_is_behind().await?;
    say("  => a rollout that never happened, reported as done.");
    stage.end().await
}

async fn act_two() -> Result<()> {
    say("\n== Act two: the operator, whose reads are live, under the same schedule");
    let stage = set_the_stage().await?;
    let old = stage.pod().await?.context("no pod")?;
    hold_and_ask_for_v2(&stage).await?;
    stage.pass().await?;
    stage.pass().await?;
    stage.cache_is_behind().await?;
    say("  one pass later:");
    let status = stage.status().await?;
    let image = status.current_image.unwrap_or_default();
    let waiting = !is_complete(&stage.task("replace-pod").await?);
    fact("replace-pod", if waiting { "waits" } else { "complete" });
    fact("status.currentImage", &image);
    fact("pods deleted", &stage.deletes().to_string());
    ensure!(waiting && image == "v1" && stage.deletes() == 0);

    say("  the controller goes on, and the cache is given its events one by one:");
    stage.resume().await?;
    stage.replace_pod().await?;
    let pod = stage.pod_until(old.uid().as_deref()).await?;
    fact("the pod", &describe(&pod, false));
    stage.observed(1).await?;
    while stage.sets().behind()? > 0 {
        let released = stage.sets().release_one().await?;
        let shown = stage.sets().view()?;
        let set = shown.first().context("the cache shows no StatefulSet")?;
        let status = set.status.clone().unwrap_or_default();
        fact(
            &format!("released rv {}", released.resource_version().unwrap_or_default()),
            &format!(
                "the cache shows generation {}, observed {}, updated {}",
                set.metadata.generation.unwrap_or_default(),
                status.observed_generation.unwrap_or_default(),
                status.updated_replicas.unwrap_or_default(),
            ),
        );
    }
    stage.converge().await?;
    let status = stage.status().await?;
    let image = status.current_image.clone().unwrap_or_default();
    let said = condition(&status, NODE_UPDATE_IN_PROGRESS).context("no condition")?;
    let (reason, pod) = (said.reason.clone(), stage.pod().await?.context("no pod")?);
    fact("status.currentImage", &image);
    fact(NODE_UPDATE_IN_PROGRESS, &format!("{} ({reason})", said.status));
    ensure!(image == "v2" && reason == "UpdateComplete" && pod.uid() != old.uid());
    say("  => it waits while it has to, and completes with the pod replaced.");
    stage.end().await
}

async fn act_three() -> Result<()> {
    say("\n== Act three: somebody deletes the StatefulSet in the middle of the rollout");
    let stage = set_the_stage().await?;
    hold_and_ask_for_v2(&stage).await?;
    stage.pass().await?;
    stage.pass().await?;
    stage.delete_set().await?;
    say("  the StatefulSet is deleted from outside; one pass later:");
    stage.pass().await?;
    let status = stage.status().await?;
    let plan = status.plan.clone().context("no plan")?;
    let error = plan.failed_task_detail.context("no failed task")?.error;
    let said = condition(&status, NODE_UPDATE_IN_PROGRESS).context("no condition")?;
    let events = stage.api::<Event>().list(&ListParams::default()).await?.items;
    let warning = events
        .iter()
        .find(|event| event.reason.as_deref() == Some("NodeUpdateFailed"))
        .context("no event")?;
    fact("the plan", &format!("{:?}: {error}", plan.phase));
    fact(NODE_UPDATE_IN_PROGRESS, &format!("{} ({})", said.status, said.reason));
    fact("event", &format!("{} NodeUpdateFailed", warning.type_.clone().unwrap_or_default()));
    ensure!(plan.phase == PlanPhase::Failed && said.reason == "UpdateFailed");
    let expected = "statefulset \"n0\" missing during rollout (apply-statefulset preceded us); \
                    external deletion?";
    ensure!(error == expected, "the text is {error}");
    stage.pass().await?;
    let status = stage.status().await?;
    let said = condition(&status, NODE_UPDATE_IN_PROGRESS).context("no condition")?;
    fact("another pass later", &format!("{} ({})", said.status, said.reason));
    ensure!(said.reason == "UpdateFailed", "the failure did not survive the next pass");
    stage.advance(Duration::from_secs(31));
    stage.resume().await?;
    stage.converge().await?;
    fact("half a minute later", "a new plan has made the StatefulSet again, at v2");
    say("  => terminal, visible, and healed.");
    stage.end().await
}

async fn set_the_stage() -> Result<Stage> {
    let stage = Stage::settled(BackendKind::Process).await?;
    let status = stage.status().await?;
    ensure!(status.current_image.as_deref() == Some("v1"));
    say("  a plane is up, and on it a node that runs v1.");
    Ok(stage)
}

async fn hold_and_ask_for_v2(stage: &Stage) -> Result<()> {
    stage.pause().await?;
    stage.sets().hold();
    stage.set_image("v2").await?;
    say(
        "  the StatefulSet controller is paused, the operator's StatefulSet cache is held, and\n  \
         somebody asks for v2.",
    );
    Ok(())
}

fn describe(pod: &Pod, untouched: bool) -> String {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let seid = containers.into_iter().find(|container| container.name == "seid");
    let image = seid.and_then(|container| container.image.clone()).unwrap_or_default();
    let state = if untouched { "untouched" } else { "replaced" };
    format!("{state}, runs {image}")
}

fn fact(what: &str, value: &str) {
    say(&format!("    {what:<24} {value}"));
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
fn say(text: &str) {
    println!("{text}");
}
