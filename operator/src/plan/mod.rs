//! Plans: which one a node needs, and carrying it out.

pub mod executor;
pub mod planner;

use uuid::{Uuid, uuid};

use crate::api::{PlanPhase, PlannedTask, TaskPlan, TaskStatus};
use crate::task::Kind;

/// The namespace of task ids; with the plan's id and the place in the plan it makes an id that
/// stays the same from pass to pass and is new with each plan.
const TASK_IDS: Uuid = uuid!("b7e89c3a-4f12-4d8b-9a6e-1c2d3e4f5a6b");

/// What a plan is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// The first plan of a node.
    Init,
    /// From one image to the next.
    NodeUpdate,
    /// The sidecar lost what mark-ready had told it.
    MarkReadyAgain,
    /// None of these: somebody wrote it by hand.
    Unknown,
}

impl Class {
    /// Told by the tasks, since a plan does not say it.
    #[must_use]
    pub fn of(plan: &TaskPlan) -> Self {
        let has = |kind: Kind| plan.tasks.iter().any(|task| task.kind == kind.name());
        if has(Kind::ObserveImage) {
            Self::NodeUpdate
        } else if plan.failed_phase.is_some() {
            Self::Init
        } else if has(Kind::MarkReady) && plan.tasks.len() == 1 {
            Self::MarkReadyAgain
        } else {
            Self::Unknown
        }
    }
}

/// A new plan of these tasks, with an id that no other plan has.
#[must_use]
pub fn new_plan(kinds: &[Kind], node: &str, namespace: &str) -> TaskPlan {
    let id = Uuid::new_v4().to_string();
    let tasks = kinds.iter().enumerate().map(|(index, &kind)| {
        let params = match kind {
            Kind::MarkReady => serde_json::json!({}),
            _ => serde_json::json!({ "nodeName": node, "namespace": namespace }),
        };
        let retries = kind.max_retries();
        PlannedTask {
            kind: kind.name().to_owned(),
            id: task_id(&id, kind.name(), index),
            status: TaskStatus::Pending,
            params: Some(params),
            submitted_at: None,
            error: None,
            max_retries: (retries > 0).then_some(retries),
            retry_count: None,
            applied: None,
        }
    });
    TaskPlan {
        tasks: tasks.collect(),
        id,
        phase: PlanPhase::Active,
        target_phase: None,
        failed_phase: None,
        failed_task_index: None,
        failed_task_detail: None,
        target: None,
    }
}

fn task_id(plan: &str, kind: &str, index: usize) -> String {
    Uuid::new_v5(&TASK_IDS, format!("{plan}/{kind}/{index}").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_ids_follow_from_the_plan_and_the_place() {
        let plan = new_plan(&[Kind::ReplacePod, Kind::ReplacePod], "n0", "ns");
        assert_eq!(plan.tasks[0].id, task_id(&plan.id, "replace-pod", 0));
        assert_ne!(plan.tasks[0].id, plan.tasks[1].id);
        // From an independent implementation of RFC 4122, version 5.
        assert_eq!(
            task_id("00000000-0000-4000-8000-000000000000", "mark-ready", 4),
            "24a077ba-ec00-5269-89e1-b478d8c4b7e9"
        );
        assert_eq!(plan.tasks[0].max_retries, Some(3));
    }
}
