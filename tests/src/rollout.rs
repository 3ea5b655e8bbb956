//! The rollout as a scenario to explore: a settled node that was asked for another image, and the operator's passes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::DeleteParams;
use laggard::Plane;
use laggard::check::{Actor, BuiltIn, Scenario, SetUp, Truth, World};
use seinode_operator::api::SeiNode;
use seinode_operator::controller::{self, Context};
use seinode_operator::readers::Cached;
use seinode_operator::settings::{Clock, Settings};
use seinode_operator::sidecar::{Health, Sidecar, Sidecars, SubmitError};
use serde_json::Value;

use crate::actors::{
    change_of_mind, deletion_from_outside, edit_from_outside, foreign_set, garbage_collector,
    kubelet, orphaning, other_template, recreation_from_outside, replacement_from_outside,
    slow_deletion_from_outside, slow_kubelet, stateful_set_controller, usurper,
};
pub use crate::oracles::{
    AT_ONCE, ENDS_WELL, FOREIGN_WRITTEN, NEW_POD_DELETED, OLD_COPY, STAMPED_EARLY,
    STAMPED_UNSTARTED, WRITTEN_DOWN,
};
use crate::oracles::{
    does_what_there_is_to_do, failed_visibly, foreign_written, new_pod_deleted,
    old_copy_changes_nothing, rolled_out, stamped_early, stamps_what_was_started,
    waits_for_it_to_go, written_down_first,
};
use crate::stage::{NODE, Stage};
use crate::written::Written;

/// The scenarios in which each live read of the operator has a reason.
#[must_use]
pub fn suite(plane: &Arc<Plane>) -> Vec<Scenario> {
    [
        node_update,
        pod_replaced_by_others,
        pod_made_late,
        refused_status,
        foreign_set_in_the_way,
        set_deleted,
    ]
    .map(|scenario| scenario(plane))
    .into()
}

/// The NodeUpdate from v1 to v2, from the moment at which its plan was written down.
pub fn node_update(plane: &Arc<Plane>) -> Scenario {
    ends_rolled_out(scenario("node update", plane, Begin::Planned))
}

/// The same, judged only by what must never happen: what waits longer than it has to passes.
pub fn node_update_safely(plane: &Arc<Plane>) -> Scenario {
    let scenario = begun("node update, safety alone", plane, Begin::Planned);
    ends_rolled_out(never_wrong(scenario.actor(kubelet())))
}

/// The same from the moment at which the other image was asked for: no plan is there yet (S10).
pub fn from_the_drift_on(plane: &Arc<Plane>) -> Scenario {
    ends_rolled_out(scenario("node update, from the drift on", plane, Begin::Drifted))
}

/// Somebody replaces the old pod, so that a view of the pods that is behind shows one that is gone (S4).
pub fn pod_replaced_by_others(plane: &Arc<Plane>) -> Scenario {
    let scenario = scenario("pod replaced by others", plane, Begin::Planned);
    ends_rolled_out(scenario.actor(replacement_from_outside()))
}

/// The old pod is made after the operator's streams were opened, so that a view of the pods may be empty (S5).
pub fn pod_made_late(plane: &Arc<Plane>) -> Scenario {
    ends_rolled_out(scenario("pod made late", plane, Begin::WithoutPod))
}

/// A status is refused after a task has acted, since somebody edits the node (S11).
pub fn refused_status(plane: &Arc<Plane>) -> Scenario {
    let scenario = scenario("status refused", plane, Begin::Planned);
    ends_rolled_out(scenario.actor(edit_from_outside()))
}

/// Somebody asks for the first image again while the second is rolled out (S8, S9).
pub fn image_changed_back(plane: &Arc<Plane>) -> Scenario {
    let scenario = scenario("image changed back", plane, Begin::Planned);
    ends_rolled_out(scenario.actor(change_of_mind()))
}

/// The new image cannot be pulled at first (W16).
pub fn image_pulled_slowly(plane: &Arc<Plane>) -> Scenario {
    let scenario = never_wrong(begun("image pulled slowly", plane, Begin::Planned));
    ends_rolled_out(at_once(scenario.actor(slow_kubelet())))
}

/// Somebody deletes the StatefulSet at any moment (S6).
pub fn set_deleted(plane: &Arc<Plane>) -> Scenario {
    interfered("set deleted", plane, deletion_from_outside())
}

/// The same, and it stays until its pod is gone (W17).
pub fn set_deleted_slowly(plane: &Arc<Plane>) -> Scenario {
    interfered("set deleted slowly", plane, slow_deletion_from_outside())
}

/// The same, and nobody lets it go.
pub fn set_never_gone(plane: &Arc<Plane>) -> Scenario {
    let scenario = scenario("set never gone", plane, Begin::Planned);
    let either = |truth: &_| ended(truth).or_else(|_| waits_for_it_to_go(truth));
    scenario
        .actor(slow_deletion_from_outside())
        .without(BuiltIn::SameEnd)
        .after_settle(ENDS_WELL, either)
}

/// Somebody puts another StatefulSet of the node in place of the one that was applied (W17).
pub fn set_recreated(plane: &Arc<Plane>) -> Scenario {
    interfered("set recreated", plane, recreation_from_outside())
}

/// Somebody puts a StatefulSet of their own in its place (W17).
pub fn set_usurped(plane: &Arc<Plane>) -> Scenario {
    interfered("set usurped", plane, usurper())
}

/// Somebody takes the StatefulSet from the node (W17).
pub fn set_taken_away(plane: &Arc<Plane>) -> Scenario {
    interfered("set taken away", plane, orphaning())
}

/// Somebody has the StatefulSet roll out another image (W3).
pub fn template_changed(plane: &Arc<Plane>) -> Scenario {
    interfered("template changed", plane, other_template())
}

fn interfered(name: &str, plane: &Arc<Plane>, somebody: Actor) -> Scenario {
    let scenario = scenario(name, plane, Begin::Planned);
    ends_somehow(scenario.actor(garbage_collector()).actor(somebody))
}

/// The StatefulSet is gone when the rollout begins, and somebody makes one of its name (W17).
pub fn foreign_set_in_the_way(plane: &Arc<Plane>) -> Scenario {
    ends_somehow(scenario("foreign set", plane, Begin::WithoutSet).actor(foreign_set()))
}

/// The original's pass in the same place, with its reads turned to the cache.
pub fn original(plane: &Arc<Plane>) -> Scenario {
    let scenario = Scenario::new("the original", |world: World| async move {
        let context = context(&world).await?;
        let node = context.cached.get::<SeiNode>(world.namespace(), NODE).await?;
        world.pass(NODE, crate::original::pass(&context, &node)).await
    });
    set_up(scenario, plane, Begin::Planned)
        .actor(stateful_set_controller())
        .actor(kubelet())
        .never_write(STAMPED_EARLY, stamped_early)
        .never_write(NEW_POD_DELETED, new_pod_deleted)
        .without(BuiltIn::UidCare)
}

/// The NodeUpdate from the same moment, where its objects are written through the API.
pub fn node_update_written(written: &Written) -> Scenario {
    let scenario = Scenario::new("node update, written", |world: World| operator(world));
    let written = written.clone();
    let scenario = scenario.with_pure_passes().set_up(move |world: SetUp| {
        let written = written.clone();
        async move { written.write(world.client(), world.namespace()).await }
    });
    let scenario = scenario.actor(stateful_set_controller()).actor(kubelet());
    ends_rolled_out(at_once(never_wrong(scenario)))
}

/// How far things are when the operator begins.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Begin {
    /// v2 was asked for.
    Drifted,
    /// And its plan was written down.
    Planned,
    /// And the pod is gone.
    WithoutPod,
    /// And so is the StatefulSet.
    WithoutSet,
}

/// The operator, judged in every way.
fn scenario(name: &str, plane: &Arc<Plane>, begin: Begin) -> Scenario {
    at_once(never_wrong(begun(name, plane, begin).actor(kubelet())))
}

/// The operator with nothing but the controller of its StatefulSets.
fn begun(name: &str, plane: &Arc<Plane>, begin: Begin) -> Scenario {
    let scenario = Scenario::new(name, |world: World| operator(world));
    // A pass keeps nothing: what its context remembers is how long to wait after errors, and which events were told.
    set_up(scenario.with_pure_passes(), plane, begin).actor(stateful_set_controller())
}

/// What a pass owes to what is true.
fn at_once(scenario: Scenario) -> Scenario {
    scenario
        .each_pass(OLD_COPY, old_copy_changes_nothing)
        .each_pass(AT_ONCE, does_what_there_is_to_do)
}

fn set_up(scenario: Scenario, plane: &Arc<Plane>, begin: Begin) -> Scenario {
    let plane = Arc::clone(plane);
    // A run takes half a second. The deadline is for a machine on which everything crawls.
    scenario.deadline(Duration::from_secs(300)).set_up(move |world: SetUp| {
        let plane = Arc::clone(&plane);
        async move { begin_at(plane, world.namespace(), begin).await }
    })
}

/// A settled node that was asked for v2, and its plan written down, in this namespace.
///
/// # Errors
///
/// If the server refuses something, or the node does not settle.
pub async fn settle(plane: Arc<Plane>, namespace: &str) -> Result<()> {
    begin_at(plane, namespace, Begin::Planned).await
}

async fn begin_at(plane: Arc<Plane>, namespace: &str, begin: Begin) -> Result<()> {
    let stage = Stage::in_namespace(plane, namespace.to_owned()).await?;
    stage.create_node("v1").await?;
    stage.resume().await?;
    stage.converge().await.context("the node did not settle")?;
    stage.pause().await?;
    stage.set_image("v2").await?;
    if begin != Begin::Drifted {
        stage.pass().await?; // writes the plan down
    }
    if begin == Begin::WithoutSet {
        stage.delete_set().await?;
    }
    if matches!(begin, Begin::WithoutPod | Begin::WithoutSet) {
        let pod = format!("{NODE}-0");
        stage.api::<Pod>().delete(&pod, &DeleteParams::default()).await?;
    }
    stage.end().await
}

/// What must never be so.
fn never_wrong(scenario: Scenario) -> Scenario {
    scenario
        .never_write(STAMPED_EARLY, stamped_early)
        .never_write(NEW_POD_DELETED, new_pod_deleted)
        .never_write(FOREIGN_WRITTEN, foreign_written)
        .never_write(WRITTEN_DOWN, written_down_first)
        .each_pass(STAMPED_UNSTARTED, stamps_what_was_started)
}

fn ends_rolled_out(scenario: Scenario) -> Scenario {
    scenario.after_settle(ENDS_WELL, rolled_out)
}

/// What is left depends on when somebody interfered.
fn ends_somehow(scenario: Scenario) -> Scenario {
    scenario.without(BuiltIn::SameEnd).after_settle(ENDS_WELL, ended)
}

fn ended(truth: &Truth) -> Result<(), String> {
    rolled_out(truth).or_else(|_| failed_visibly(truth))
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
