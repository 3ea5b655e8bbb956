//! The two tasks as the *original* operator has them, with their reads turned to the cache: what act
//! one of the demo shows. It is not the operator's code and has none of its floors and checks.
//!
//! The original reads the StatefulSet from the API server in both tasks, and its comments say why;
//! nothing in its tests would notice if somebody changed that. This is that change.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Resource as _, ResourceExt as _};
use seinode_operator::api::{PlanPhase, PlannedTask, SeiNode, TaskStatus};
use seinode_operator::controller::Context;
use seinode_operator::status::patch;
use seinode_operator::task::rollout::{off_revision, selector};
use seinode_operator::task::{FIELD_MANAGER, Kind, render_service, render_stateful_set};
use serde_json::json;

/// One pass of the original over a node whose NodeUpdate plan is written down: task after task
/// until one is not complete, then one status patch.
///
/// # Errors
///
/// If the API server or the sidecar refuses something, or the node has no plan.
pub async fn pass(context: &Context, node: &SeiNode) -> Result<()> {
    let before = node.status_or_default();
    let mut after = before.clone();
    let plan = after.plan.as_mut().context("the node has no plan")?;
    for task in &mut plan.tasks {
        let kind = Kind::named(&task.kind).context("an unknown task")?;
        let complete = match kind {
            Kind::ApplyStatefulSet => apply_stateful_set(context, node).await?,
            Kind::ApplyService => apply_service(context, node).await?,
            Kind::ReplacePod => replace_pod(context, node).await?,
            Kind::ObserveImage => {
                let complete = observe_image(context, node).await?;
                if complete {
                    after.current_image = Some(node.spec.image.clone());
                }
                complete
            }
            Kind::MarkReady => mark_ready(context, node, task).await?,
        };
        if !complete {
            break;
        }
        task.status = TaskStatus::Complete;
    }
    if plan.tasks.iter().all(|task| task.status == TaskStatus::Complete) {
        plan.phase = PlanPhase::Complete;
    }
    let version = node.resource_version().context("a node without resource version")?;
    if let Some(body) = patch(&before, &after, &version) {
        let nodes: Api<SeiNode> = Api::namespaced(context.client.clone(), &namespace(node));
        nodes.patch_status(&node.name_any(), &PatchParams::default(), &Patch::Merge(body)).await?;
    }
    Ok(())
}

async fn apply_stateful_set(context: &Context, node: &SeiNode) -> Result<bool> {
    let mut set = render_stateful_set(node, &node.spec.image, &context.settings.platform);
    set["metadata"]["ownerReferences"] = json!([node.controller_owner_ref(&())]);
    let sets: Api<StatefulSet> = Api::namespaced(context.client.clone(), &namespace(node));
    // The reply is thrown away.
    sets.patch(&node.name_any(), &apply(), &Patch::Apply(&set)).await?;
    Ok(true)
}

async fn apply_service(context: &Context, node: &SeiNode) -> Result<bool> {
    let mut service = render_service(node);
    service["metadata"]["ownerReferences"] = json!([node.controller_owner_ref(&())]);
    let services: Api<Service> = Api::namespaced(context.client.clone(), &namespace(node));
    services.patch(&node.name_any(), &apply(), &Patch::Apply(&service)).await?;
    Ok(true)
}

async fn replace_pod(context: &Context, node: &SeiNode) -> Result<bool> {
    // The read that the original makes live.
    let set: StatefulSet = context.cached.get(&namespace(node), &node.name_any()).await?;
    let status = set.status.clone().unwrap_or_default();
    if status.observed_generation < set.metadata.generation {
        return Ok(false);
    }
    let revision = status.update_revision.unwrap_or_default();
    if revision.is_empty() {
        return Ok(false);
    }
    if status.current_revision.as_ref() == Some(&revision) {
        return Ok(true);
    }
    let Some(labels) = selector(&set) else { bail!("a StatefulSet without selector") };
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace(node));
    let found = pods.list(&ListParams::default().labels(&labels)).await?.items;
    for pod in off_revision(&found, &set, &revision) {
        pods.delete(&pod.name_any(), &DeleteParams::default()).await?;
    }
    Ok(true)
}

async fn observe_image(context: &Context, node: &SeiNode) -> Result<bool> {
    // And this one.
    let set: StatefulSet = context.cached.get(&namespace(node), &node.name_any()).await?;
    let status = set.status.clone().unwrap_or_default();
    let observed = status.observed_generation >= set.metadata.generation;
    let rolled =
        set.spec.replicas.is_some_and(|replicas| status.updated_replicas.unwrap_or(0) >= replicas);
    Ok(observed && rolled)
}

async fn mark_ready(context: &Context, node: &SeiNode, task: &PlannedTask) -> Result<bool> {
    let sidecar = context.sidecars.of(node);
    sidecar.submit(&task.id, Kind::MarkReady.name(), &json!({})).await?;
    Ok(true)
}

fn apply() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

fn namespace(node: &SeiNode) -> String {
    node.namespace().unwrap_or_default()
}
