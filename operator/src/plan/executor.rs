//! Carrying a plan out: one task after the other in one pass, until one has to wait.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use super::Class;
use crate::api::{
    FailedTaskDetail, LastFailure, PlanPhase, SeiNode, SeiNodeStatus, TaskPlan, TaskStatus,
};
use crate::controller::Context;
use crate::sidecar::Sidecar;
use crate::status::{IMAGE_RUNNING, NODE_UPDATE_IN_PROGRESS, Statement, enter, state};
use crate::task::rollout::Container;
use crate::task::{self, Input, Kind, LookAgain, Outcome, Report};

/// How a pass over a plan ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Run {
    /// Look again after this.
    Again(Duration),
    /// A task failed for good, and the plan with it.
    Failed {
        /// What to tell people.
        message: String,
    },
}

/// Runs the plan in `status` as far as it goes. Writes nothing but into `status`.
pub async fn run(
    context: &Context,
    node: &SeiNode,
    status: &mut SeiNodeStatus,
    sidecar: &dyn Sidecar,
) -> Run {
    let settings = &context.settings;
    loop {
        let Some(plan) = status.plan.clone() else { return Run::Again(settings.steady_state) };
        let next = plan.tasks.iter().position(|task| task.status != TaskStatus::Complete);
        let Some(index) = next else {
            complete(status, &plan, &settings.clock.now());
            return Run::Again(settings.immediately);
        };
        let task = &plan.tasks[index];
        let outcome = match Kind::named(&task.kind) {
            Some(kind) => {
                let input = Input {
                    node,
                    live: &context.live,
                    cached: &context.cached,
                    client: &context.client,
                    sidecar,
                    settings,
                    task,
                    target: plan.target.as_ref(),
                    applied: plan.applied(),
                    initial: Class::of(&plan) == Class::Init,
                };
                task::run(kind, &input).await
            }
            None => Outcome::Terminal(format!("unknown task type {:?}", task.kind)),
        };
        tracing::debug!(node = %node.name_any(), task = %task.kind, ?outcome, "task");
        let now = settings.clock.now();
        match outcome {
            Outcome::Complete(report) => {
                note(status, node, index, &report, &now);
                if let Some(task) = task_mut(status, index) {
                    task.status = TaskStatus::Complete;
                }
            }
            Outcome::Waiting { until, look_again, report } => {
                tracing::info!(node = %node.name_any(), task = %task.kind, %until, "waiting");
                note(status, node, index, &report, &now);
                return Run::Again(match look_again {
                    LookAgain::AtOnce => settings.immediately,
                    LookAgain::Later => settings.task_poll,
                });
            }
            Outcome::Transient(problem) => {
                tracing::warn!(node = %node.name_any(), task = %task.kind, %problem, "trying again");
                return Run::Again(settings.task_poll);
            }
            Outcome::Terminal(error) => {
                let message = fail(status, node, index, &error, settings.hold_off, &now);
                tracing::error!(node = %node.name_any(), %message);
                return Run::Failed { message };
            }
        }
    }
}

fn task_mut(status: &mut SeiNodeStatus, index: usize) -> Option<&mut crate::api::PlannedTask> {
    status.plan.as_mut()?.tasks.get_mut(index)
}

/// Writes what a task found out into the status: the one place that does.
fn note(status: &mut SeiNodeStatus, node: &SeiNode, index: usize, report: &Report, now: &Time) {
    if let Some(task) = task_mut(status, index) {
        task.submitted_at.get_or_insert_with(|| now.clone());
        if let Some(applied) = &report.applied {
            task.applied = Some(applied.clone());
        }
    }
    if let Some(container) = &report.container {
        let (value, reason, message) = match container {
            Container::Started => {
                ("True", "ContainerStarted", "the container was started".to_owned())
            }
            Container::NotStarted { reason } => ("False", "ContainerNotStarted", reason.clone()),
        };
        let generation = node.metadata.generation.unwrap_or_default();
        let statement = Statement { kind: IMAGE_RUNNING, status: value, reason, message };
        state(status, generation, now, statement);
    }
    if let Some(image) = &report.running_image {
        status.current_image = Some(image.clone());
    }
}

fn complete(status: &mut SeiNodeStatus, plan: &TaskPlan, now: &Time) {
    if let Some(plan) = status.plan.as_mut() {
        plan.phase = PlanPhase::Complete;
    }
    if let Some(phase) = plan.target_phase {
        enter(status, phase, now);
    }
}

/// Ends the plan, and says so where people look: in this very pass.
fn fail(
    status: &mut SeiNodeStatus,
    node: &SeiNode,
    index: usize,
    error: &str,
    hold_off: Duration,
    now: &Time,
) -> String {
    let generation = node.metadata.generation.unwrap_or_default();
    let Some(plan) = status.plan.as_mut() else { return error.to_owned() };
    let task = &mut plan.tasks[index];
    task.status = TaskStatus::Failed;
    task.error = Some(error.to_owned());
    let detail = FailedTaskDetail {
        kind: task.kind.clone(),
        id: task.id.clone(),
        error: error.to_owned(),
        retry_count: task.retry_count.unwrap_or_default(),
        max_retries: task.max_retries.unwrap_or_default(),
    };
    plan.phase = PlanPhase::Failed;
    plan.failed_task_index = i32::try_from(index).ok();
    plan.failed_task_detail = Some(detail.clone());
    let message = format!("plan {} failed: task {}: {error}", plan.id, detail.kind);
    let plan = plan.clone();
    if let Some(phase) = plan.failed_phase {
        enter(status, phase, now);
    }
    if Class::of(&plan) != Class::Init {
        let statement = Statement {
            kind: NODE_UPDATE_IN_PROGRESS,
            status: "False",
            reason: "UpdateFailed",
            message: message.clone(),
        };
        state(status, generation, now, statement);
        let before = status.last_failure.as_ref();
        let again = before.filter(|failure| failure.generation == generation);
        status.last_failure = Some(LastFailure {
            plan_id: plan.id,
            task_type: detail.kind,
            task_id: detail.id,
            error: error.to_owned(),
            time: now.clone(),
            count: again.map_or(0, |failure| failure.count) + 1,
            generation,
        });
        status.hold_off_until = Some(later(now, hold_off));
    }
    message
}

fn later(now: &Time, by: Duration) -> Time {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    Time(now.0.checked_add(by).unwrap_or(Timestamp::MAX))
}
