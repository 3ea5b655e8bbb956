//! The custom resource `SeiNode`: what a person asks for, and what the operator says about it.
#![expect(unreachable_pub, reason = "KubeSchema copies the types into a scope of its own")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The finalizer of a node.
pub const FINALIZER: &str = "sei.io/seinode-finalizer";

/// The label that ties a node's objects to it.
pub const NODE_LABEL: &str = "sei.io/node";

/// What a node is to be.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "sei.io",
    version = "v1alpha1",
    kind = "SeiNode",
    plural = "seinodes",
    singular = "seinode",
    shortname = "snode",
    namespaced,
    status = "SeiNodeStatus",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "(has(self.fullNode) ? 1 : 0) + (has(self.archive) ? 1 : 0) + (has(self.replayer) ? 1 : 0) \
     + (has(self.validator) ? 1 : 0) == 1"
).message("exactly one of fullNode, archive, replayer and validator must be set"))]
#[x_kube(validation = Rule::new(
    "!has(self.replayer) || (has(self.peers) && size(self.peers) > 0)"
).message("a replayer needs at least one entry in peers"))]
#[x_kube(validation = Rule::new(
    "!has(oldSelf.dataVolume) || !has(oldSelf.dataVolume.__import__) || \
     (has(self.dataVolume) && has(self.dataVolume.__import__))"
).message("dataVolume.import may not be unset"))]
pub struct SeiNodeSpec {
    /// The chain that the node belongs to.
    #[schemars(length(min = 1))]
    pub chain_id: String,
    /// The image of the node. A change of it is what a rollout begins with.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// A node that follows the chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_node: Option<Mode>,
    /// A node that keeps all of the chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<Mode>,
    /// A node that replays what its peers have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replayer: Option<Mode>,
    /// A node that signs blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validator: Option<Mode>,
    /// The second container of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<SidecarSpec>,
    /// Labels of the pod, beside the operator's own, which wins.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pod_labels: BTreeMap<String, String>,
    /// Where the node's data lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_volume: Option<DataVolume>,
    /// Settings of the node, handed on as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overrides: BTreeMap<String, String>,
    /// Where the node finds others; handed on as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "list_of_anything")]
    pub peers: Vec<Value>,
}

/// The settings of one mode of a node, handed on as they are.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Mode(pub BTreeMap<String, Value>);

impl JsonSchema for Mode {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Mode".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
    }
}

/// The sidecar of a node.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarSpec {
    /// Its image; default the platform's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The port it listens on; default 7777.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// What it may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// Where the data of a node lies.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DataVolume {
    /// An existing claim to adopt, in place of one of the operator's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<Import>,
}

/// An existing claim.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Import {
    /// The name of the PersistentVolumeClaim.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("pvcName is immutable"))]
    pub pvc_name: String,
}

/// How far a node is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Phase {
    /// Nothing was done yet.
    Pending,
    /// Its first plan runs.
    Initializing,
    /// It is there.
    Running,
    /// Its first plan failed; nothing goes on by itself.
    Failed,
    /// It is being deleted.
    Terminating,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// What the operator says about a node.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SeiNodeStatus {
    /// How far the node is; absent on a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The image that was seen to be started; set by observe-image and by nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_image: Option<String>,
    /// When the phase changed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase_transition_time: Option<Time>,
    /// Conditions, one of each type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The plan that runs, or ended last; absent in the steady state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<TaskPlan>,
    /// The last failure of a NodeUpdate plan, kept until a plan succeeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
    /// No NodeUpdate plan is built before this time, unless the spec changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_off_until: Option<Time>,
}

/// An ordered list of tasks, and what became of it.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskPlan {
    /// A random UUID; new with each plan.
    pub id: String,
    /// Whether it goes on.
    pub phase: PlanPhase,
    /// The tasks, in order.
    pub tasks: Vec<PlannedTask>,
    /// The phase of the node once the plan is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_phase: Option<Phase>,
    /// The phase of the node if the plan fails; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_phase: Option<Phase>,
    /// Which task failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_task_index: Option<i32>,
    /// That task, for a reader who has only the status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_task_detail: Option<FailedTaskDetail>,
    /// What this plan rolls out; tasks act on this and never on the spec of the day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// Whether a plan goes on.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum PlanPhase {
    /// It goes on.
    Active,
    /// Every task is complete.
    Complete,
    /// A task failed.
    Failed,
}

/// What a plan rolls out.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// The image.
    pub image: String,
    /// The generation of the spec that it was taken from.
    pub generation: i64,
}

/// One task of a plan.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedTask {
    /// Which task.
    #[serde(rename = "type")]
    pub kind: String,
    /// A UUID that follows from the plan and the place in it; also the key under which a sidecar
    /// knows the task.
    pub id: String,
    /// What became of it.
    pub status: TaskStatus,
    /// What the task was given, for people to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything")]
    pub params: Option<Value>,
    /// When it was carried out first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<Time>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How often it may fail and be tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<i32>,
    /// How often it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_count: Option<i32>,
    /// What the API server answered to the apply of this task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied: Option<Applied>,
}

/// What became of a task. There is no "in flight": a task that waits is `Pending` and is carried
/// out again on each pass.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum TaskStatus {
    /// Not done.
    Pending,
    /// Done.
    Complete,
    /// Failed.
    Failed,
}

/// The StatefulSet as the API server answered it to an apply: the floor for every later read.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Its uid: another one is another object.
    pub uid: String,
    /// Its generation: a read of an older one is a stale read.
    pub generation: i64,
}

/// The task that made a plan fail.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedTaskDetail {
    /// Which task.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its id.
    pub id: String,
    /// Why.
    pub error: String,
    /// How often it was tried again.
    pub retry_count: i32,
    /// How often it might have been.
    pub max_retries: i32,
}

/// The last failure of a NodeUpdate plan.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// The plan.
    pub plan_id: String,
    /// Which task.
    pub task_type: String,
    /// Its id.
    pub task_id: String,
    /// Why.
    pub error: String,
    /// When.
    pub time: Time,
    /// How many plans in a row failed for this generation.
    pub count: i32,
    /// The generation of the spec.
    pub generation: i64,
}

fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
}

fn list_of_anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    })
}

impl SeiNode {
    /// The status, or an empty one.
    #[must_use]
    pub fn status_or_default(&self) -> SeiNodeStatus {
        self.status.clone().unwrap_or_default()
    }

    /// The name of the claim that holds the data.
    #[must_use]
    pub fn data_claim(&self) -> String {
        match self.spec.data_volume.as_ref().and_then(|volume| volume.import.as_ref()) {
            Some(import) => import.pvc_name.clone(),
            None => format!("data-{}", self.metadata.name.as_deref().unwrap_or_default()),
        }
    }
}

impl TaskPlan {
    /// The reply to the apply of the StatefulSet, if this plan has applied it.
    #[must_use]
    pub fn applied(&self) -> Option<&Applied> {
        self.tasks.iter().find_map(|task| task.applied.as_ref())
    }
}
