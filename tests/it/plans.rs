//! Plans: what one rolls out is pinned, and none runs before it is written down.

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use laggard::lag::Requests;
use laggard::plane::BackendKind::Process;
use rollout_tests::Stage;
use rollout_tests::stage::{Kubelet, is_complete};
use rstest::rstest;
use seinode_operator::api::SeiNode;

/// S9, W3: the spec changes under a running plan. What was rolled is what is stamped, never the
/// spec of the day, and the change is rolled next.
#[rstest]
#[case::after_the_apply("apply-service")]
#[case::after_the_replacement("replace-pod")]
#[tokio::test]
async fn s9_a_change_under_way_is_neither_hidden_nor_lost(#[case] after: &str) -> Result<()> {
    let stage = Stage::settled(Process).await?;
    stage.apply_paused("v2").await?;
    if after == "replace-pod" {
        stage.resume().await?;
        stage.replace_pod().await?;
    }
    ensure!(is_complete(&stage.task(after).await?));
    stage.set_image("v3").await?;
    stage.resume().await?;

    let stamped = |node: &SeiNode| node.status_or_default().current_image.as_deref() != Some("v1");
    stage.passes_until("an image to be stamped", stamped, Kubelet::Plays).await?;
    let status = stage.status().await?;
    ensure!(status.current_image.as_deref() == Some("v2"), "stamped {:?}", status.current_image);

    stage.converge().await?;
    ensure!(stage.status().await?.current_image.as_deref() == Some("v3"));
    let pod = stage.pod().await?.context("no pod")?;
    let spec = pod.spec.context("no spec")?;
    let image = spec.containers.iter().find(|container| container.name == "seid");
    ensure!(image.and_then(|it| it.image.as_deref()) == Some("v3"));
    stage.end().await
}

/// S10: two passes on one stale copy that has no plan. One plan is written down, the other pass
/// loses by its optimistic lock, and no task has run.
#[tokio::test]
async fn s10_a_pass_on_a_stale_copy_loses() -> Result<()> {
    let stage = Stage::settled(Process).await?;
    stage.set_image("v2").await?;
    let changed = stage.node().await?.resource_version().context("no resource version")?;
    let nodes = stage.lag.stream::<SeiNode>();
    nodes.shown(&changed).await?;
    nodes.hold();
    stage.lag.clear_requests();
    stage.pass_as_cached().await?;
    let first = stage.status().await?.plan.context("no plan")?;
    ensure!(nodes.until_behind(1).await? > 0);
    let lost = stage.pass_as_cached().await.err().context("the second pass did not lose")?;
    ensure!(format!("{lost:#}").contains("write the status"), "{lost:#}");
    let second = stage.status().await?.plan.context("no plan")?;
    ensure!(first == second, "the plan was written twice");
    let writes = Requests::any().writes();
    let requests = stage.lag.requests();
    ensure!(
        requests.matching(&writes).iter().all(|request| request.resource == "seinodes"),
        "a task ran\n{requests}"
    );
    let refused = requests.matching(&writes);
    ensure!(
        refused.iter().any(|it| it.outcome == laggard::lag::model::Outcome::Status(409)),
        "no write was refused\n{refused}"
    );
    stage.end().await
}
