//! What must hold in every run of a rollout: what is never reported or written, and what a pass owes to what is true.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use laggard::check::{SeenPass, Truth};
use laggard::lag::model::{Outcome, RequestStep, Verb};
use seinode_operator::api::{PlanPhase, SeiNode, SeiNodeStatus, TaskPlan, TaskStatus};

use crate::stage::NODE;

/// What is reported as running, and does not.
pub const STAMPED_EARLY: &str = "stamped before rollout";

/// What is reported as running, and was never started.
pub const STAMPED_UNSTARTED: &str = "stamped before the container was started";

/// A pod at the revision that is rolled out goes.
pub const NEW_POD_DELETED: &str = "the new pod is deleted";

/// What is somebody else's is written.
pub const FOREIGN_WRITTEN: &str = "a StatefulSet of somebody else is written";

/// A pass does not act on what is out of date.
pub const OLD_COPY: &str = "a pass on an old copy of the node changes nothing";

/// A pass does not wait for a cache where the API server has what it needs.
pub const AT_ONCE: &str = "a pass does what there is to do";

/// A plan is on record before its tasks run.
pub const WRITTEN_DOWN: &str = "a plan is written down before it is carried out";

/// How it must end.
pub const ENDS_WELL: &str = "the rollout ends as it should";

/// A write of the status that names another image than the pod has.
pub(crate) fn stamped_early(write: &RequestStep, before: &Truth) -> Option<String> {
    let request = &write.request;
    if request.resource != "seinodes" || !succeeded(write) {
        return None;
    }
    let stamped = request.body.as_ref()?.pointer("/status/currentImage")?.as_str()?;
    let runs = image_of(&pod(before)?)?;
    (runs != stamped).then(|| format!("currentImage is {stamped}, but the pod runs {runs}"))
}

/// The image was stamped in a pass that a container of it had been started before, or by the end of, or that has read so
/// of the server: what it read may be gone again at its end.
pub(crate) fn stamps_what_was_started(pass: &SeenPass<'_>) -> Result<(), String> {
    let image = |truth: &Truth| status(truth).current_image;
    let Some(stamped) =
        image(pass.after()).filter(|now| Some(now) != image(pass.before()).as_ref())
    else {
        return Ok(());
    };
    let read = pass.read_live::<Pod>().into_iter();
    let mut known = [pass.before(), pass.after()].into_iter().filter_map(pod).chain(read);
    match known.any(|pod| image_of(&pod).as_ref() == Some(&stamped) && is_started(&pod)) {
        true => Ok(()),
        false => Err(format!("currentImage is {stamped}, and no container of it was started")),
    }
}

pub(crate) fn new_pod_deleted(write: &RequestStep, before: &Truth) -> Option<String> {
    let request = &write.request;
    if request.verb != Verb::Delete || request.resource != "pods" || !succeeded(write) {
        return None;
    }
    let name = request.name.as_deref()?;
    let pod = before.get::<Pod>(name)?;
    let set = before.get::<StatefulSet>(NODE).filter(|set| owns(set, &pod))?;
    let status = set.status.unwrap_or_default();
    let observed = status.observed_generation == set.metadata.generation;
    let updated = observed && revision_of(&pod) == status.update_revision.as_deref();
    updated.then(|| {
        format!("{name} is at the update revision, and runs {}", image_of(&pod).unwrap_or_default())
    })
}

pub(crate) fn foreign_written(write: &RequestStep, before: &Truth) -> Option<String> {
    let request = &write.request;
    let set = before.get::<StatefulSet>(NODE)?;
    let hits = request.resource == "statefulsets" && request.verb.is_write() && succeeded(write);
    let foreign = !is_ours(&set, &before.get::<SeiNode>(NODE)?);
    (hits && foreign).then(|| {
        let uid = set.uid().unwrap_or_default();
        format!("{} of {NODE}, which is not controlled by the node (uid {uid})", request.verb)
    })
}

/// A pass that is shown an old copy of the node sends no write, but for a status that is refused by its lock.
pub(crate) fn old_copy_changes_nothing(pass: &SeenPass<'_>) -> Result<(), String> {
    if !pass.was_shown_old::<SeiNode>() {
        return Ok(());
    }
    let refused = |write: &RequestStep| {
        write.request.resource == "seinodes"
            && write.request.subresource.is_some()
            && !succeeded(write)
    };
    let sent = pass.requests().find(|it| it.request.verb.is_write() && !refused(it));
    match sent.map(|write| &write.request) {
        None => Ok(()),
        Some(write) => Err(format!(
            "pass {} was shown an old copy of {NODE}, and sent: {} {}",
            pass.number(),
            write.verb,
            write.target()
        )),
    }
}

/// Whatever a pass writes besides the node, it writes for a plan that was on record when it began.
pub(crate) fn written_down_first(write: &RequestStep, before: &Truth) -> Option<String> {
    let request = &write.request;
    let acts = matches!(request.resource.as_str(), "statefulsets" | "services" | "pods");
    let active = status(before).plan.is_some_and(|plan| plan.phase == PlanPhase::Active);
    (request.verb.is_write() && acts && !active && status(before).phase.is_some())
        .then(|| "the node has no plan that is active".to_owned())
}

/// What a pass brings about that begins like this, whatever a cache shows.
///
/// A stale read that a second layer makes harmless shows in nothing else: the pass waits, and a later one goes on.
pub(crate) fn does_what_there_is_to_do(pass: &SeenPass<'_>) -> Result<(), String> {
    // Then it had nothing to go by, or what it went by has changed.
    if pass.was_shown_old::<SeiNode>() || pass.was_disturbed() {
        return Ok(());
    }
    match Due::of(pass.before()) {
        Some(due) if !due.is_done(pass.after()) => {
            Err(format!("pass {} had to {due}, and did not", pass.number()))
        }
        _ => Ok(()),
    }
}

/// What the next pass owes.
enum Due {
    Apply,
    Delete { pod: String },
    GoOn,
    Stamp { image: String },
    Fail { because: &'static str },
}

impl Due {
    fn of(truth: &Truth) -> Option<Self> {
        let node = truth.get::<SeiNode>(NODE)?;
        let plan = status(truth).plan.filter(|plan| plan.phase == PlanPhase::Active)?;
        let next = plan.tasks.iter().find(|task| task.status != TaskStatus::Complete)?;
        let set = truth.get::<StatefulSet>(NODE);
        match (next.kind.as_str(), set) {
            ("apply-statefulset", None) => Some(Self::Apply),
            ("apply-statefulset", Some(set)) if !is_ours(&set, &node) => {
                Some(Self::Fail { because: "the StatefulSet is somebody else's" })
            }
            ("apply-statefulset", Some(set)) => (!is_going(&set)).then_some(Self::Apply),
            ("replace-pod" | "observe-image", None) => {
                Some(Self::Fail { because: "the StatefulSet is gone" })
            }
            (kind @ ("replace-pod" | "observe-image"), Some(set)) => {
                Self::of_rollout(truth, &node, &plan, &set, kind == "replace-pod")
            }
            _ => None,
        }
    }

    fn of_rollout(
        truth: &Truth,
        node: &SeiNode,
        plan: &TaskPlan,
        set: &StatefulSet,
        replaces: bool,
    ) -> Option<Self> {
        let image = plan.target.as_ref()?.image.clone();
        if set.uid() != plan.applied().map(|applied| applied.uid.clone()) || !is_ours(set, node) {
            return Some(Self::Fail { because: "the StatefulSet is another one" });
        }
        if is_going(set) {
            return Some(Self::Fail { because: "the StatefulSet is being deleted" });
        }
        let status = set.status.clone().unwrap_or_default();
        let revision = status.update_revision?;
        if status.observed_generation != set.metadata.generation {
            return None;
        }
        if template_image(set).as_ref() != Some(&image) {
            return Some(Self::Fail { because: "the StatefulSet rolls out another image" });
        }
        let pod = pod(truth).filter(|pod| owns(set, pod));
        match pod {
            Some(pod) if revision_of(&pod) != Some(revision.as_str()) => {
                replaces.then(|| Self::Delete { pod: pod.uid().unwrap_or_default() })
            }
            Some(pod) if status.updated_replicas == Some(1) && is_started(&pod) => {
                Some(Self::Stamp { image })
            }
            _ => replaces.then_some(Self::GoOn),
        }
    }

    fn is_done(&self, after: &Truth) -> bool {
        let status = status(after);
        let complete = |kind: &str| {
            let plan = status.plan.iter();
            let mut tasks = plan.flat_map(|plan| &plan.tasks);
            tasks.any(|task| task.kind == kind && task.status == TaskStatus::Complete)
        };
        match self {
            Self::Apply => complete("apply-statefulset"),
            Self::Delete { pod: old } => {
                pod(after).is_none_or(|pod| pod.uid().as_ref() != Some(old))
            }
            Self::GoOn => complete("replace-pod"),
            Self::Stamp { image } => status.current_image.as_ref() == Some(image),
            Self::Fail { .. } => failed_visibly(after).is_ok(),
        }
    }
}

impl std::fmt::Display for Due {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Apply => f.write_str("apply the StatefulSet"),
            Self::Delete { pod } => {
                write!(f, "delete the pod with uid {pod}, which is not at the update revision")
            }
            Self::GoOn => f.write_str("complete replace-pod, since no old pod is left"),
            Self::Stamp { image } => write!(f, "stamp {image}, whose container was started"),
            Self::Fail { because } => write!(f, "end the plan and say so, since {because}"),
        }
    }
}

/// The node runs what it was asked to run, and has no plan left.
pub(crate) fn rolled_out(truth: &Truth) -> Result<(), String> {
    let wanted = truth.get::<SeiNode>(NODE).map(|node| node.spec.image);
    let status = status(truth);
    let pod = pod(truth).as_ref().and_then(image_of);
    // Somebody may delete the set, or put another in its place, when all is done.
    let there = truth.get::<StatefulSet>(NODE).zip(truth.get::<SeiNode>(NODE));
    let there = there.is_some_and(|(set, node)| is_ours(&set, &node));
    let runs = pod == wanted || !there;
    if status.plan.is_none() && status.current_image == wanted && runs {
        return Ok(());
    }
    Err(format!(
        "the image is {wanted:?}, currentImage {:?}, the plan is {:?}, and the pod runs {pod:?}",
        status.current_image,
        status.plan.map(|plan| plan.phase)
    ))
}

/// The plan failed for good, and says so where people look.
pub(crate) fn failed_visibly(truth: &Truth) -> Result<(), String> {
    let status = status(truth);
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

/// The StatefulSet is on its way out, and nothing is written before it is gone.
pub(crate) fn waits_for_it_to_go(truth: &Truth) -> Result<(), String> {
    let going = truth.get::<StatefulSet>(NODE).is_some_and(|set| is_going(&set));
    let plan = status(truth).plan.filter(|plan| plan.phase == PlanPhase::Active);
    let next = plan
        .and_then(|plan| plan.tasks.into_iter().find(|task| task.status != TaskStatus::Complete));
    match next.map(|task| task.kind) {
        Some(kind) if going && kind == "apply-statefulset" => Ok(()),
        next => Err(format!("the StatefulSet is going: {going}; the next task is {next:?}")),
    }
}

fn succeeded(write: &RequestStep) -> bool {
    matches!(write.request.outcome, Outcome::Status(200..=299))
}

fn status(truth: &Truth) -> SeiNodeStatus {
    truth.get::<SeiNode>(NODE).and_then(|node| node.status).unwrap_or_default()
}

fn pod(truth: &Truth) -> Option<Pod> {
    truth.get::<Pod>(&format!("{NODE}-0"))
}

fn image_of(pod: &Pod) -> Option<String> {
    let containers = &pod.spec.as_ref()?.containers;
    containers.iter().find(|container| container.name == "seid")?.image.clone()
}

fn template_image(set: &StatefulSet) -> Option<String> {
    let containers = &set.spec.template.spec.as_ref()?.containers;
    containers.iter().find(|container| container.name == "seid")?.image.clone()
}

fn revision_of(pod: &Pod) -> Option<&str> {
    pod.labels().get("controller-revision-hash").map(String::as_str)
}

fn is_started(pod: &Pod) -> bool {
    let reported = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    reported.filter_map(|container| container.state.as_ref()).any(|state| state.running.is_some())
}

fn is_going(set: &StatefulSet) -> bool {
    set.metadata.deletion_timestamp.is_some()
}

fn owns(set: &StatefulSet, pod: &Pod) -> bool {
    pod.owner_references().iter().any(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
}

fn is_ours(set: &StatefulSet, node: &SeiNode) -> bool {
    set.owner_references().iter().any(|owner| {
        owner.controller == Some(true) && Some(&owner.uid) == node.metadata.uid.as_ref()
    })
}
