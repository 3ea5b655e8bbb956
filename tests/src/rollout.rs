//! The rollout as a scenario to explore: a settled node that was asked for another image, and the operator's passes.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use laggard::Plane;
use laggard::check::{BuiltIn, Scenario, SetUp, Truth, World};
use laggard::lag::model::{Outcome, RequestStep, Verb};
use seinode_operator::api::{PlanPhase, SeiNode};
use seinode_operator::controller::{self, Context};
use seinode_operator::readers::Cached;
use seinode_operator::settings::{Clock, Settings};
use seinode_operator::sidecar::{Health, Sidecar, Sidecars, SubmitError};
use serde_json::Value;

use crate::actors::{deletion_from_outside, garbage_collector, kubelet, stateful_set_controller};
use crate::stage::{NODE, Stage};
use crate::written::Written;

/// What is reported as running, and does not.
pub const STAMPED_EARLY: &str = "stamped before rollout";

/// A pod at the revision that is rolled out goes.
pub const NEW_POD_DELETED: &str = "the new pod is deleted";

/// How it must end.
pub const ENDS_WELL: &str = "the rollout ends as it should";

/// The NodeUpdate from v1 to v2, from the moment at which its plan was written down.
pub fn node_update(plane: &Arc<Plane>) -> Scenario {
    let scenario = Scenario::new("node update", |world: World| operator(world));
    judged(set_up(scenario, plane)).after_settle(ENDS_WELL, rolled_out)
}

/// The same, with somebody who deletes the StatefulSet at any moment.
pub fn node_update_disturbed(plane: &Arc<Plane>) -> Scenario {
    let scenario = Scenario::new("node update, disturbed", |world: World| operator(world));
    judged(set_up(scenario, plane))
        .actor(garbage_collector())
        .actor(deletion_from_outside())
        // What is left depends on when it was deleted.
        .without(BuiltIn::SameEnd)
        .after_settle(ENDS_WELL, |truth| rolled_out(truth).or_else(|_| failed_visibly(truth)))
}

/// The original's pass in the same place, with its reads turned to the cache.
pub fn original(plane: &Arc<Plane>) -> Scenario {
    let scenario = Scenario::new("the original", |world: World| async move {
        let context = context(&world).await?;
        let node = context.cached.get::<SeiNode>(world.namespace(), NODE).await?;
        world.pass(NODE, crate::original::pass(&context, &node)).await
    });
    judged(set_up(scenario, plane)).without(BuiltIn::UidCare)
}

/// The NodeUpdate from the same moment, where its objects are written through the API.
pub fn node_update_written(written: &Written) -> Scenario {
    let scenario = Scenario::new("node update, written", |world: World| operator(world));
    let written = written.clone();
    judged(scenario.set_up(move |world: SetUp| {
        let written = written.clone();
        async move { written.write(world.client(), world.namespace()).await }
    }))
}

fn set_up(scenario: Scenario, plane: &Arc<Plane>) -> Scenario {
    let plane = Arc::clone(plane);
    scenario.set_up(move |world: SetUp| {
        let plane = Arc::clone(&plane);
        async move { settle(plane, world.namespace()).await }
    })
}

/// Leaves a node that runs v1, was asked for v2 and has its plan written down; the controllers of the plane are paused.
///
/// # Errors
///
/// If the node does not settle.
pub async fn settle(plane: Arc<Plane>, namespace: &str) -> Result<()> {
    let stage = Stage::in_namespace(plane, namespace.to_owned()).await?;
    stage.create_node("v1").await?;
    stage.resume().await?;
    stage.converge().await.context("the node did not settle")?;
    stage.pause().await?;
    stage.set_image("v2").await?;
    stage.pass().await?; // writes the plan down
    stage.end().await
}

/// The actors that a rollout needs, and what must hold in every one.
fn judged(scenario: Scenario) -> Scenario {
    scenario
        .actor(stateful_set_controller())
        .actor(kubelet())
        .never(STAMPED_EARLY, stamped_early)
        .never_write(NEW_POD_DELETED, new_pod_deleted)
}

async fn operator(world: World) -> Result<()> {
    let context = context(&world).await?;
    let pass = || controller::pass(&context, world.namespace(), NODE);
    world.until_settled(NODE, pass).await?;
    Ok(())
}

async fn context(world: &World) -> Result<Arc<Context>> {
    let nodes = world.cache::<SeiNode>().await?;
    let sets = world.cache::<StatefulSet>().await?;
    let cached = Cached::looking_up(move |node| nodes.get(node), move |set| sets.get(set));
    // A clock that stands: what waits for the time to pass is not explored.
    let now = Timestamp::now();
    let settings = Settings { clock: Clock::new(move || now), ..Settings::default() };
    Ok(Arc::new(Context::new(world.client(), cached, Arc::new(Willing), settings)))
}

fn stamped_early(truth: &Truth) -> Option<String> {
    let status = truth.get::<SeiNode>(NODE)?.status.unwrap_or_default();
    let stamped = status.current_image?;
    let runs = image_of(&truth.get::<Pod>(&format!("{NODE}-0"))?)?;
    (stamped == "v2" && runs != stamped)
        .then(|| format!("currentImage is {stamped}, but the pod runs {runs}"))
}

fn image_of(pod: &Pod) -> Option<String> {
    let containers = &pod.spec.as_ref()?.containers;
    containers.iter().find(|container| container.name == "seid")?.image.clone()
}

fn new_pod_deleted(write: &RequestStep, before: &Truth) -> Option<String> {
    let request = &write.request;
    if request.verb != Verb::Delete
        || request.resource != "pods"
        || !matches!(request.outcome, Outcome::Status(200..=299))
    {
        return None;
    }
    let name = request.name.as_deref()?;
    let image = image_of(&before.get::<Pod>(name)?)?;
    (image == "v2").then(|| format!("{name} runs v2 already"))
}

fn rolled_out(truth: &Truth) -> Result<(), String> {
    let status = truth.get::<SeiNode>(NODE).and_then(|node| node.status).unwrap_or_default();
    let pod = truth.get::<Pod>(&format!("{NODE}-0")).as_ref().and_then(image_of);
    // Somebody may delete the set when all is done.
    let there = truth.get::<StatefulSet>(NODE).is_some();
    let runs = pod.as_deref() == Some("v2") || !there;
    if status.plan.is_none() && status.current_image.as_deref() == Some("v2") && runs {
        return Ok(());
    }
    Err(format!(
        "currentImage is {:?}, the plan is {:?}, and the pod runs {pod:?}",
        status.current_image,
        status.plan.map(|plan| plan.phase)
    ))
}

/// The plan failed for good, and says so where people look.
fn failed_visibly(truth: &Truth) -> Result<(), String> {
    let status = truth.get::<SeiNode>(NODE).and_then(|node| node.status).unwrap_or_default();
    let plan = status.plan.clone().filter(|plan| plan.phase == PlanPhase::Failed);
    let detail = plan.and_then(|plan| plan.failed_task_detail).map(|detail| detail.error);
    let condition = status.conditions.iter().any(|condition| {
        condition.type_ == "NodeUpdateInProgress"
            && condition.status == "False"
            && condition.reason == "UpdateFailed"
    });
    match detail {
        Some(_) if condition && status.last_failure.is_some() => Ok(()),
        detail => Err(format!(
            "the plan is {:?} ({detail:?}), the last failure {:?}, the conditions {:?}",
            status.plan.map(|plan| plan.phase),
            status.last_failure,
            status.conditions
        )),
    }
}

/// A sidecar that is there and takes everything.
#[derive(Clone, Copy, Debug)]
struct Willing;

impl Sidecars for Willing {
    fn of(&self, _: &SeiNode) -> Box<dyn Sidecar> {
        Box::new(Self)
    }
}

#[async_trait]
impl Sidecar for Willing {
    async fn health(&self) -> Health {
        Health::Ready
    }

    async fn submit(&self, _: &str, _: &str, _: &Value) -> Result<(), SubmitError> {
        Ok(())
    }
}
