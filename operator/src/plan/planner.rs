//! Which plan a node needs: pure decisions on the node, its status and the time.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use super::{Class, new_plan};
use crate::api::{Phase, PlanPhase, SeiNode, SeiNodeStatus, Target, TaskPlan};
use crate::status::{NODE_UPDATE_IN_PROGRESS, SIDECAR_READY, Statement, condition, enter, state};
use crate::task::Kind;

/// The tasks of a node's first plan.
const INIT: [Kind; 3] = [Kind::ApplyStatefulSet, Kind::ApplyService, Kind::MarkReady];

/// The tasks that take a node from one image to the next.
const NODE_UPDATE: [Kind; 5] = [
    Kind::ApplyStatefulSet,
    Kind::ApplyService,
    Kind::ReplacePod,
    Kind::ObserveImage,
    Kind::MarkReady,
];

/// What a pass has to do about the plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolution {
    /// A plan was made. It is written down before any of its tasks runs.
    Built,
    /// A plan goes on.
    Resume,
    /// The last plan failed; nothing is built for so long.
    HoldOff(Duration),
    /// Nothing is to be done.
    Settled,
}

/// Resolves the plan of a node, in its status.
///
/// An ended plan is put away first, and building goes on in the same call.
pub fn resolve(node: &SeiNode, status: &mut SeiNodeStatus, now: &Time) -> Resolution {
    let generation = node.metadata.generation.unwrap_or_default();
    if let Some(plan) = status.plan.clone() {
        match plan.phase {
            PlanPhase::Active => return Resolution::Resume,
            PlanPhase::Complete => put_away_complete(status, &plan, generation, now),
            PlanPhase::Failed => {
                if let Some(rest) = hold_off(status, generation, now) {
                    return Resolution::HoldOff(rest);
                }
                status.plan = None;
            }
        }
    }
    build(node, status, generation, now)
}

fn put_away_complete(status: &mut SeiNodeStatus, plan: &TaskPlan, generation: i64, now: &Time) {
    let in_progress = condition(status, NODE_UPDATE_IN_PROGRESS)
        .is_some_and(|condition| condition.status == "True");
    if in_progress {
        let message = format!("plan {} completed", plan.id);
        let statement = Statement {
            kind: NODE_UPDATE_IN_PROGRESS,
            status: "False",
            reason: "UpdateComplete",
            message,
        };
        state(status, generation, now, statement);
    }
    if Class::of(plan) == Class::NodeUpdate {
        status.last_failure = None;
        status.hold_off_until = None;
    }
    status.plan = None;
}

/// How long the node is left alone after a failure. A new spec is a new chance.
fn hold_off(status: &SeiNodeStatus, generation: i64, now: &Time) -> Option<Duration> {
    let failed_at = status.last_failure.as_ref().map(|failure| failure.generation);
    if failed_at != Some(generation) {
        return None;
    }
    let until = status.hold_off_until.as_ref()?;
    let rest = until.0.as_second() - now.0.as_second();
    u64::try_from(rest).ok().filter(|rest| *rest > 0).map(Duration::from_secs)
}

fn build(node: &SeiNode, status: &mut SeiNodeStatus, generation: i64, now: &Time) -> Resolution {
    let name = node.name_any();
    let namespace = node.namespace().unwrap_or_default();
    let target = Target { image: node.spec.image.clone(), generation };
    let plan = match status.phase {
        Some(Phase::Running) if status.current_image.as_ref() != Some(&node.spec.image) => {
            let message = format!(
                "image drift detected: spec={} current={}",
                node.spec.image,
                status.current_image.as_deref().unwrap_or_default()
            );
            let statement = Statement {
                kind: NODE_UPDATE_IN_PROGRESS,
                status: "True",
                reason: "UpdateStarted",
                message,
            };
            state(status, generation, now, statement);
            TaskPlan {
                target_phase: Some(Phase::Running),
                target: Some(target),
                ..new_plan(&NODE_UPDATE, &name, &namespace)
            }
        }
        Some(Phase::Running) if sidecar_lost_it(status) => TaskPlan {
            target_phase: Some(Phase::Running),
            ..new_plan(&[Kind::MarkReady], &name, &namespace)
        },
        Some(Phase::Running | Phase::Failed | Phase::Terminating) => return Resolution::Settled,
        None | Some(Phase::Pending | Phase::Initializing) => TaskPlan {
            target_phase: Some(Phase::Running),
            failed_phase: Some(Phase::Failed),
            target: Some(target),
            ..new_plan(&INIT, &name, &namespace)
        },
    };
    if matches!(status.phase, None | Some(Phase::Pending)) {
        enter(status, Phase::Initializing, now);
    }
    status.plan = Some(plan);
    Resolution::Built
}

fn sidecar_lost_it(status: &SeiNodeStatus) -> bool {
    condition(status, SIDECAR_READY)
        .is_some_and(|condition| condition.status == "False" && condition.reason == "NotReady")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::api::LastFailure;
    use crate::task::rollout::tests::node;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn settled() -> SeiNodeStatus {
        SeiNodeStatus {
            phase: Some(Phase::Running),
            current_image: Some("v1".into()),
            ..SeiNodeStatus::default()
        }
    }

    fn kinds(status: &SeiNodeStatus) -> Vec<&str> {
        status.plan.iter().flat_map(|plan| &plan.tasks).map(|task| task.kind.as_str()).collect()
    }

    fn reason(status: &SeiNodeStatus) -> Option<&str> {
        condition(status, NODE_UPDATE_IN_PROGRESS).map(|condition| condition.reason.as_str())
    }

    #[test]
    fn a_new_node_gets_an_init_plan_that_says_nothing_of_an_update() {
        let mut status = SeiNodeStatus::default();
        assert_eq!(resolve(&node("n0", "v1"), &mut status, &at(0)), Resolution::Built);
        assert_eq!(kinds(&status), ["apply-statefulset", "apply-service", "mark-ready"]);
        assert_eq!(status.phase, Some(Phase::Initializing));
        assert_eq!(status.plan.as_ref().unwrap().failed_phase, Some(Phase::Failed));
        assert_eq!(reason(&status), None);
    }

    #[test]
    fn drift_gets_a_node_update_with_its_target_pinned() {
        let mut status = settled();
        assert_eq!(resolve(&node("n0", "v2"), &mut status, &at(0)), Resolution::Built);
        assert_eq!(
            kinds(&status),
            ["apply-statefulset", "apply-service", "replace-pod", "observe-image", "mark-ready"]
        );
        let plan = status.plan.as_ref().unwrap();
        assert_eq!(plan.target, Some(Target { image: "v2".into(), generation: 1 }));
        assert_eq!(plan.failed_phase, None);
        assert_eq!(reason(&status), Some("UpdateStarted"));
    }

    #[test]
    fn drift_wins_over_a_sidecar_that_is_not_ready() {
        let not_ready = |status: &mut SeiNodeStatus| {
            let message = String::new();
            let statement =
                Statement { kind: SIDECAR_READY, status: "False", reason: "NotReady", message };
            state(status, 1, &at(0), statement);
        };
        let mut status = settled();
        not_ready(&mut status);
        resolve(&node("n0", "v1"), &mut status, &at(0));
        assert_eq!(kinds(&status), ["mark-ready"]);
        let mut status = settled();
        not_ready(&mut status);
        resolve(&node("n0", "v2"), &mut status, &at(0));
        assert_eq!(kinds(&status).len(), 5);
    }

    #[test]
    fn a_settled_node_and_a_failed_one_are_left_alone() {
        let mut status = settled();
        assert_eq!(resolve(&node("n0", "v1"), &mut status, &at(0)), Resolution::Settled);
        status.phase = Some(Phase::Failed);
        assert_eq!(resolve(&node("n0", "v2"), &mut status, &at(0)), Resolution::Settled);
    }

    #[test]
    fn a_complete_update_is_said_and_forgets_the_failure_before_it() {
        let mut status = settled();
        resolve(&node("n0", "v2"), &mut status, &at(0));
        status.last_failure = Some(failure(1));
        status.current_image = Some("v2".into());
        status.plan.as_mut().unwrap().phase = PlanPhase::Complete;
        assert_eq!(resolve(&node("n0", "v2"), &mut status, &at(1)), Resolution::Settled);
        assert_eq!(reason(&status), Some("UpdateComplete"));
        assert_eq!((status.plan, status.last_failure), (None, None));
    }

    #[test]
    fn a_failed_update_is_held_off_and_the_failure_outlives_the_next_plan() {
        let mut status = failed_until(30);
        let node = node("n0", "v2");
        assert_eq!(
            resolve(&node, &mut status, &at(1)),
            Resolution::HoldOff(Duration::from_secs(29))
        );
        assert_eq!(status.plan.as_ref().unwrap().phase, PlanPhase::Failed);
        assert_eq!(resolve(&node, &mut status, &at(30)), Resolution::Built);
        assert_eq!(status.plan.as_ref().unwrap().phase, PlanPhase::Active);
        assert_eq!(status.last_failure, Some(failure(1)));
    }

    #[test]
    fn a_new_generation_ends_the_hold_off() {
        let mut status = failed_until(30);
        let mut node = node("n0", "v3");
        node.metadata.generation = Some(2);
        assert_eq!(resolve(&node, &mut status, &at(1)), Resolution::Built);
    }

    fn failed_until(second: i64) -> SeiNodeStatus {
        let mut status = settled();
        resolve(&node("n0", "v2"), &mut status, &at(0));
        status.plan.as_mut().unwrap().phase = PlanPhase::Failed;
        status.last_failure = Some(failure(1));
        status.hold_off_until = Some(at(second));
        status
    }

    fn failure(generation: i64) -> LastFailure {
        LastFailure {
            plan_id: "p".into(),
            task_type: "replace-pod".into(),
            task_id: "t".into(),
            error: "e".into(),
            time: at(0),
            count: 1,
            generation,
        }
    }
}
