//! Where the operator is more careful than the one it was ported from.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use laggard::lag::Requests;
use laggard::plane::BackendKind::Process;
use rollout_tests::Stage;
use rollout_tests::stage::{NODE, is_complete};
use seinode_operator::api::{Phase, PlanPhase, TaskStatus};
use seinode_operator::readers::reflect;
use seinode_operator::status::{IMAGE_RUNNING, condition};
use serde_json::json;

/// S8, W2: back to the first image, whose revision keeps its name, with a pod that is never Ready,
/// so that `currentRevision` stays at it for ever.
#[tokio::test]
async fn s8_a_rollback_replaces_the_pod() -> Result<()> {
    let stage = Stage::settled(Process).await?;
    let first = stage.set().await?.status.context("no status")?;
    stage.set_image("v2").await?;
    stage.converge().await?;
    let second = stage.set().await?.status.context("no status")?;
    ensure!(second.update_revision != first.update_revision);
    ensure!(
        second.current_revision == first.update_revision,
        "this scenario needs a currentRevision that stays: {second:?}"
    );
    let on_second = stage.pod().await?.context("no pod")?;

    stage.set_image("v1").await?;
    stage.converge().await?;
    let third = stage.set().await?.status.context("no status")?;
    ensure!(
        third.update_revision == first.update_revision,
        "the rollback must re-use the name of the first revision: {third:?}"
    );
    let pod = stage.pod().await?.context("no pod")?;
    ensure!(pod.uid() != on_second.uid(), "the pod of v2 was left in place");
    ensure!(image(&pod) == Some("v1"), "{:?}", image(&pod));
    ensure!(stage.status().await?.current_image.as_deref() == Some("v1"));
    stage.end().await
}

/// W5: the list of pods is old, and has the pod that was already replaced. The new one of the same
/// name survives, since the delete names a uid; the next look completes.
#[tokio::test]
async fn w5_a_stale_list_cannot_delete_the_new_pod() -> Result<()> {
    let stage = Stage::settled(Process).await?;
    let old = stage.pod().await?.context("no pod")?;
    let pods = Api::<Pod>::namespaced(stage.lag.client(), &stage.namespace);
    let (_store, feed) = reflect(pods);
    let feed = tokio::spawn(feed);
    let view = stage.lag.stream::<Pod>();
    view.opened().await?;
    view.hold();

    stage.apply_paused("v2").await?;
    stage.resume().await?;
    stage.observed(0).await?;
    // Somebody else replaces the pod: an eviction, say.
    stage.api::<Pod>().delete(&old.name_any(), &DeleteParams::default()).await?;
    let new = stage.pod_until(old.uid().as_deref()).await?;
    view.received(&new.resource_version().context("no resource version")?).await?;
    ensure!(view.behind()? > 0, "the view of the pods is not behind");

    let flip = stage.lag.flip(Requests::list::<Pod>().in_span("replace-pod"));
    stage.lag.clear_requests();
    stage.pass().await?;
    ensure!(flip.served() == 1, "the old list was not used\n{}", stage.lag.requests());
    let requests = stage.lag.requests();
    let delete = requests
        .iter()
        .find(|request| Requests::delete::<Pod>().matches(request))
        .with_context(|| format!("the stale list must lead to a delete\n{requests}"))?;
    let body = delete.body.clone().context("a delete without body")?;
    ensure!(body["preconditions"]["uid"] == json!(old.uid()), "{body}");
    ensure!(body["preconditions"]["resourceVersion"] == json!(old.resource_version()), "{body}");
    let survivor = stage.pod().await?.context("the new pod was deleted")?;
    ensure!(survivor.uid() == new.uid(), "the new pod was deleted");
    ensure!(stage.task("replace-pod").await?.status == TaskStatus::Pending);

    flip.lift();
    stage.pass().await?;
    ensure!(is_complete(&stage.task("replace-pod").await?), "{}", stage.lag.requests());
    ensure!(stage.pod().await?.context("no pod")?.uid() == new.uid());
    feed.abort();
    stage.end().await
}

/// W6: a view of the pods that shows none does not complete replace-pod; the old pod is found live.
#[tokio::test]
async fn w6_an_empty_view_does_not_complete_the_replacement() -> Result<()> {
    let stage = Stage::empty(Process).await?;
    let pods = Api::<Pod>::namespaced(stage.lag.client(), &stage.namespace);
    let (store, feed) = reflect(pods);
    let feed = tokio::spawn(feed);
    stage.lag.stream::<Pod>().opened().await?;
    stage.lag.stream::<Pod>().hold();
    stage.create_node("v1").await?;
    stage.converge().await?;
    let old = stage.pod().await?.context("no pod")?;
    stage.apply_paused("v2").await?;
    stage.resume().await?;
    stage.observed(0).await?;
    stage.pause().await?;
    ensure!(store.is_empty() && stage.lag.stream::<Pod>().behind()? > 0, "the view is not behind");

    stage.lag.clear_requests();
    stage.pass().await?;
    ensure!(stage.task("replace-pod").await?.status == TaskStatus::Pending);
    ensure!(stage.deletes() == 1, "the old pod was not found\n{}", stage.lag.requests());
    ensure!(stage.pod().await?.is_none_or(|pod| pod.uid() != old.uid()));
    let requests = stage.lag.requests();
    let list = requests
        .iter()
        .find(|request| Requests::list::<Pod>().matches(request))
        .context("no list of pods was recorded")?;
    ensure!(
        list.resource_version_asked.is_none(),
        "a list at a resource version may be answered from the API server's own cache: {list:?}"
    );
    feed.abort();
    stage.end().await
}

/// W16: a pod at the new revision whose image cannot be pulled is never stamped, and the condition
/// says why; a container that was started is enough, Ready or not.
#[tokio::test]
async fn w16_an_image_that_never_started_is_never_stamped() -> Result<()> {
    let stage = Stage::settled(Process).await?;
    let old = stage.pod().await?.context("no pod")?;
    stage.set_image("v2").await?;
    stage.replace_pod().await?;
    stage.pod_until(old.uid().as_deref()).await?;
    stage.observed(1).await?;
    stage.report_container(json!({ "waiting": { "reason": "ImagePullBackOff" } })).await?;
    for _ in 0..3 {
        stage.pass().await?;
    }
    let status = stage.status().await?;
    ensure!(status.current_image.as_deref() == Some("v1"), "stamped: {:?}", status.current_image);
    let said = condition(&status, IMAGE_RUNNING).context("no condition ImageRunning")?;
    ensure!((said.status.as_str(), said.reason.as_str()) == ("False", "ContainerNotStarted"));
    ensure!(said.message == "ImagePullBackOff", "{said:?}");

    stage.report_container(json!({ "running": {} })).await?;
    stage.pass().await?;
    let status = stage.status().await?;
    ensure!(status.current_image.as_deref() == Some("v2"));
    let said = condition(&status, IMAGE_RUNNING).context("no condition ImageRunning")?;
    ensure!((said.status.as_str(), said.reason.as_str()) == ("True", "ContainerStarted"));
    stage.end().await
}

/// W17: a StatefulSet of the node's name that is somebody else's is not touched, even if the cache
/// still shows the node's own. An update fails, and says so; a first plan waits.
#[tokio::test]
async fn w17_a_foreign_set_is_not_touched() -> Result<()> {
    let stage = Stage::settled(Process).await?;
    stage.pause().await?;
    stage.sets().hold();
    stage.delete_set().await?;
    let foreign = create_foreign_set(&stage).await?;
    stage.sets().received(&foreign.resource_version().context("no version")?).await?;
    let cached: StatefulSet = stage.context.cached.get(&stage.namespace, NODE).await?;
    ensure!(cached.uid() != foreign.uid(), "the cache is not behind");

    stage.set_image("v2").await?;
    stage.pass().await?; // writes the plan down
    stage.lag.clear_requests();
    stage.pass().await?;
    let plan = stage.status().await?.plan.context("no plan")?;
    ensure!(plan.phase == PlanPhase::Failed, "{plan:?}");
    let detail = plan.failed_task_detail.context("no detail")?;
    ensure!(detail.kind == "apply-statefulset", "{detail:?}");
    ensure!(detail.error.contains("is not controlled by this node"), "{detail:?}");
    ensure!(!detail.error.contains("external deletion"), "{detail:?}");
    let applies = Requests::apply::<StatefulSet>();
    ensure!(stage.lag.requests().count(&applies) == 0, "{}", stage.lag.requests());
    ensure!(stage.set().await?.resource_version() == foreign.resource_version(), "it was written");
    stage.end().await
}

#[tokio::test]
async fn w17_a_first_plan_waits_for_a_foreign_set_to_go() -> Result<()> {
    let stage = Stage::empty(Process).await?;
    stage.pause().await?;
    let foreign = create_foreign_set(&stage).await?;
    stage.create_node("v1").await?;
    stage.pass().await?; // writes the plan down
    stage.pass().await?;
    let status = stage.status().await?;
    ensure!(status.phase == Some(Phase::Initializing), "{status:?}");
    ensure!(stage.task("apply-statefulset").await?.status == TaskStatus::Pending);
    ensure!(stage.set().await?.resource_version() == foreign.resource_version(), "it was written");
    stage.api::<StatefulSet>().delete(NODE, &DeleteParams::default()).await?;
    stage.resume().await?;
    stage.converge().await?;
    stage.end().await
}

/// W17: a set that is being deleted is waited for, not written.
#[tokio::test]
async fn w17_a_set_on_its_way_out_is_waited_for() -> Result<()> {
    let stage = Stage::settled(Process).await?;
    stage.pause().await?;
    let sets = stage.api::<StatefulSet>();
    let hold_back = Patch::Merge(json!({ "metadata": { "finalizers": ["test.local/hold"] } }));
    sets.patch(NODE, &PatchParams::default(), &hold_back).await?;
    stage.delete_set().await?;
    let going = stage.set().await?;
    stage.set_image("v2").await?;
    stage.pass().await?; // writes the plan down
    stage.pass().await?;
    ensure!(stage.task("apply-statefulset").await?.status == TaskStatus::Pending);
    ensure!(stage.set().await?.resource_version() == going.resource_version(), "it was written");
    let let_go = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    sets.patch(NODE, &PatchParams::default(), &let_go).await?;
    stage.resume().await?;
    stage.converge().await?;
    ensure!(stage.set().await?.uid() != going.uid());
    stage.end().await
}

/// The operator as its binary runs it, with its own controller: triggers, requeues and wiring.
#[tokio::test]
async fn the_controller_itself_takes_a_node_to_its_image() -> Result<()> {
    let stage = Stage::empty(Process).await?;
    let sidecars = std::sync::Arc::clone(&stage.context.sidecars);
    let settings = stage.context.settings.clone();
    let client = stage.lag.client();
    let controller = tokio::spawn(seinode_operator::controller::run(client, sidecars, settings));
    stage.create_node("v1").await?;
    for image in ["v1", "v2"] {
        stage.set_image(image).await?;
        stage.reaches(image).await.with_context(|| stage.lag.to_string())?;
    }
    controller.abort();
    stage.end().await
}

async fn create_foreign_set(stage: &Stage) -> Result<StatefulSet> {
    let set = serde_json::from_value(json!({
        "metadata": { "name": NODE },
        "spec": {
            "replicas": 0, "serviceName": NODE, "selector": { "matchLabels": { "a": "b" } },
            "template": {
                "metadata": { "labels": { "a": "b" } },
                "spec": { "containers": [{ "name": "c", "image": "somebody-elses" }] },
            },
        },
    }))?;
    Ok(stage.api::<StatefulSet>().create(&PostParams::default(), &set).await?)
}

fn image(pod: &Pod) -> Option<&str> {
    let containers = &pod.spec.as_ref()?.containers;
    containers.iter().find(|container| container.name == "seid")?.image.as_deref()
}
