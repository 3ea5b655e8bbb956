//! What a StatefulSet and its pods say about a rollout: pure functions, without a request.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::{Resource as _, ResourceExt as _};

use super::Outcome;
use crate::api::{Applied, SeiNode};

/// The label by which the StatefulSet controller says which revision a pod was made from.
const REVISION_LABEL: &str = "controller-revision-hash";

/// The container whose image is rolled out.
pub const CONTAINER: &str = "seid";

/// Whether the node's container was started.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Container {
    /// The kubelet reports that it runs or has run.
    Started,
    /// It was not.
    NotStarted {
        /// The kubelet's reason, or what is missing for there to be one.
        reason: String,
    },
}

/// The update revision of a StatefulSet that may be acted on, or what to do instead.
///
/// A read that is older than what this plan applied waits; so does a set whose controller has not
/// seen its newest generation. A set that is another object, somebody else's, on its way out, or
/// rolls out another image ends the plan. `currentRevision` decides nothing: under `OnDelete` it may
/// stay at the first revision for ever.
///
/// # Errors
///
/// The outcome of a task that cannot go on.
pub fn judge(
    set: &StatefulSet,
    node: &SeiNode,
    target_image: &str,
    applied: Option<&Applied>,
) -> Result<String, Outcome> {
    let name = set.name_any();
    if let Some(applied) = applied
        && set.uid().as_deref() != Some(&applied.uid)
    {
        return Err(Outcome::Terminal(format!(
            "statefulset {name:?} is not the one that apply-statefulset wrote: uid {}, then {}",
            applied.uid,
            set.uid().unwrap_or_default(),
        )));
    }
    if !is_controlled_by(set, node) {
        return Err(Outcome::Terminal(format!(
            "statefulset {name:?} is no longer controlled by this node"
        )));
    }
    if set.metadata.deletion_timestamp.is_some() {
        return Err(Outcome::Terminal(format!("statefulset {name:?} is being deleted")));
    }
    let generation = set.metadata.generation.unwrap_or_default();
    if let Some(applied) = applied
        && generation < applied.generation
    {
        return Err(Outcome::waiting(format!(
            "a read of statefulset {name:?} at generation {} or later; this one is of {generation}",
            applied.generation
        )));
    }
    let status = set.status.as_ref();
    let observed = status.and_then(|status| status.observed_generation).unwrap_or_default();
    if observed < generation {
        return Err(Outcome::waiting(format!(
            "the controller to observe generation {generation} of statefulset {name:?}; \
             it has observed {observed}"
        )));
    }
    let revision = status.and_then(|status| status.update_revision.clone()).unwrap_or_default();
    if revision.is_empty() {
        return Err(Outcome::waiting(format!("statefulset {name:?} to have an update revision")));
    }
    let image = template_image(set).unwrap_or_default();
    if image != target_image {
        return Err(Outcome::Terminal(format!(
            "statefulset {name:?} rolls out image {image:?}, but this plan {target_image:?}"
        )));
    }
    Ok(revision)
}

/// Whether the set's controller is this very node, by uid.
#[must_use]
pub fn is_controlled_by(set: &StatefulSet, node: &SeiNode) -> bool {
    let owners = set.owner_references();
    let controller = owners.iter().find(|owner| owner.controller == Some(true));
    controller.is_some_and(|owner| Some(&owner.uid) == node.meta().uid.as_ref())
}

/// The label selector of the set's pods; `None` if it selects nothing in particular.
#[must_use]
pub fn selector(set: &StatefulSet) -> Option<String> {
    let labels = set.spec.selector.match_labels.as_ref()?;
    let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    (!pairs.is_empty()).then(|| pairs.join(","))
}

/// The pods of the set that are not at this revision and not on their way out.
#[must_use]
pub fn off_revision<'a>(pods: &'a [Pod], set: &StatefulSet, revision: &str) -> Vec<&'a Pod> {
    owned(pods, set)
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter(|pod| pod.labels().get(REVISION_LABEL).is_some_and(|at| at != revision))
        .collect()
}

/// Whether a pod at this revision, with the target image in its spec, was started.
///
/// The image in the container's status is not compared: a runtime may rewrite it. Nor are the flags
/// `started` and `ready`: they wait for a probe that passes only after mark-ready, the task after
/// the one that asks this.
#[must_use]
pub fn started(pods: &[Pod], set: &StatefulSet, revision: &str, target_image: &str) -> Container {
    let mut reason = "no pod of that image at the update revision".to_owned();
    for pod in owned(pods, set) {
        let at_revision = pod.labels().get(REVISION_LABEL).is_some_and(|at| at == revision);
        let image = pod.spec.as_ref().and_then(|spec| {
            spec.containers.iter().find(|container| container.name == CONTAINER)?.image.as_deref()
        });
        if !at_revision || pod.metadata.deletion_timestamp.is_some() || image != Some(target_image)
        {
            continue;
        }
        let statuses =
            pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        match statuses.into_iter().find(|status| status.name == CONTAINER) {
            Some(status) if was_started(status) => return Container::Started,
            Some(status) => reason = waiting_reason(status),
            None => reason = "the kubelet has not reported on it".to_owned(),
        }
    }
    Container::NotStarted { reason }
}

fn was_started(status: &ContainerStatus) -> bool {
    [&status.state, &status.last_state]
        .into_iter()
        .flatten()
        .any(|state| state.running.is_some() || state.terminated.is_some())
}

fn waiting_reason(status: &ContainerStatus) -> String {
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    waiting.and_then(|waiting| waiting.reason.clone()).unwrap_or_else(|| "waiting".to_owned())
}

fn owned<'a>(pods: &'a [Pod], set: &StatefulSet) -> impl Iterator<Item = &'a Pod> {
    let uid = set.uid().unwrap_or_default();
    pods.iter().filter(move |pod| {
        pod.owner_references().iter().any(|owner| owner.kind == "StatefulSet" && owner.uid == uid)
    })
}

fn template_image(set: &StatefulSet) -> Option<String> {
    let spec = set.spec.template.spec.as_ref()?;
    spec.containers.iter().find(|container| container.name == CONTAINER)?.image.clone()
}

#[cfg(test)]
pub(crate) mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::api::SeiNodeSpec;

    pub(crate) fn node(name: &str, image: &str) -> SeiNode {
        let spec = SeiNodeSpec { chain_id: "c".into(), image: image.into(), ..Default::default() };
        let mut node = SeiNode::new(name, spec);
        node.metadata.uid = Some("node-uid".into());
        node.metadata.namespace = Some("ns".into());
        node.metadata.generation = Some(1);
        node
    }

    /// Rolled to v2 in full: observed, one pod updated; currentRevision is stuck, as `OnDelete` does.
    pub(crate) fn set() -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {
                "name": "n0", "namespace": "ns", "uid": "set-uid", "generation": 2,
                "ownerReferences": [{
                    "apiVersion": "sei.io/v1alpha1", "kind": "SeiNode", "name": "n0",
                    "uid": "node-uid", "controller": true,
                }],
            },
            "spec": {
                "replicas": 1, "serviceName": "n0",
                "selector": { "matchLabels": { "sei.io/node": "n0" } },
                "template": { "spec": { "containers": [{ "name": "seid", "image": "v2" }] } },
            },
            "status": {
                "replicas": 1, "observedGeneration": 2, "updatedReplicas": 1,
                "currentRevision": "rev-1", "updateRevision": "rev-2",
            },
        }))
        .unwrap()
    }

    pub(crate) fn pod(revision: &str, image: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "n0-0", "uid": "pod-uid",
                "labels": { "controller-revision-hash": revision },
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "n0", "uid": "set-uid",
                }],
            },
            "spec": { "containers": [{ "name": "seid", "image": image }] },
        }))
        .unwrap()
    }

    fn with_state(mut pod: Pod, state: &str, value: serde_json::Value) -> Pod {
        let status = json!({ "containerStatuses": [{
            "name": "seid", "image": "rewritten@sha256:1", "imageID": "", "ready": false,
            "restartCount": 0, state: value,
        }] });
        pod.status = serde_json::from_value(status).unwrap();
        pod
    }

    pub(crate) fn running(pod: Pod) -> Pod {
        with_state(pod, "state", json!({ "running": {} }))
    }

    pub(crate) fn waiting(pod: Pod, reason: &str) -> Pod {
        with_state(pod, "state", json!({ "waiting": { "reason": reason } }))
    }

    fn applied(generation: i64) -> Applied {
        Applied { uid: "set-uid".into(), generation }
    }

    fn judged(set: &StatefulSet, applied: &Applied) -> Result<String, Outcome> {
        judge(set, &node("n0", "v2"), "v2", Some(applied))
    }

    fn terminal(result: Result<String, Outcome>) -> String {
        match result {
            Err(Outcome::Terminal(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    fn waits(result: Result<String, Outcome>) -> String {
        match result {
            Err(Outcome::Waiting { until, .. }) => until,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_set_that_is_observed_and_ours_may_be_acted_on() {
        assert_eq!(judged(&set(), &applied(2)), Ok("rev-2".to_owned()));
    }

    #[test]
    fn a_read_below_the_applied_generation_waits_however_settled_it_looks() {
        let mut old = set();
        old.metadata.generation = Some(1);
        old.status.as_mut().unwrap().observed_generation = Some(1);
        assert!(waits(judged(&old, &applied(2))).contains("generation 2 or later"));
    }

    #[test]
    fn a_generation_that_the_controller_has_not_observed_waits() {
        let mut set = set();
        set.status.as_mut().unwrap().observed_generation = Some(1);
        assert!(waits(judged(&set, &applied(2))).contains("it has observed 1"));
        set.status = None;
        assert!(waits(judged(&set, &applied(2))).contains("it has observed 0"));
    }

    #[test]
    fn a_missing_update_revision_waits() {
        let mut set = set();
        set.status.as_mut().unwrap().update_revision = Some(String::new());
        assert!(waits(judged(&set, &applied(2))).contains("update revision"));
    }

    #[test]
    fn another_object_of_the_name_is_terminal_in_words_of_its_own() {
        let mut set = set();
        set.metadata.uid = Some("another".into());
        let text = terminal(judged(&set, &applied(2)));
        assert!(text.contains("uid set-uid, then another"), "{text}");
        assert!(!text.contains("external deletion"), "{text}");
    }

    #[test]
    fn a_foreign_or_terminating_set_is_terminal() {
        let mut foreign = set();
        foreign.owner_references_mut()[0].uid = "somebody".into();
        assert!(terminal(judged(&foreign, &applied(2))).contains("no longer controlled"));
        let mut going = set();
        going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert!(terminal(judged(&going, &applied(2))).contains("is being deleted"));
    }

    #[test]
    fn a_template_with_another_image_than_the_plans_is_terminal() {
        let mut set = set();
        set.spec.template.spec.as_mut().unwrap().containers[0].image = Some("v3".into());
        let text = terminal(judged(&set, &applied(2)));
        assert!(text.contains("\"v3\", but this plan \"v2\""), "{text}");
    }

    #[test]
    fn the_current_revision_decides_nothing() {
        // v1 -> v2 -> v1: both revisions are named alike again, and the pod is still on v2.
        let mut rolled_back = set();
        let status = rolled_back.status.as_mut().unwrap();
        status.current_revision = Some("rev-1".into());
        status.update_revision = Some("rev-1".into());
        let pods = [pod("rev-2", "v2")];
        assert_eq!(off_revision(&pods, &rolled_back, "rev-1").len(), 1);
    }

    #[test]
    fn only_own_labelled_living_pods_off_the_revision_count() {
        let own = pod("rev-1", "v1");
        let mut foreign = pod("rev-1", "v1");
        foreign.owner_references_mut()[0].uid = "another-set".into();
        let mut unlabelled = pod("rev-1", "v1");
        unlabelled.labels_mut().clear();
        let mut going = pod("rev-1", "v1");
        going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let at_revision = pod("rev-2", "v2");
        let pods = [foreign, unlabelled, going, at_revision, own];
        let found = off_revision(&pods, &set(), "rev-2");
        assert_eq!(found, [&pods[4]]);
    }

    #[test]
    fn a_container_that_ran_and_ended_was_started() {
        let ended = json!({ "terminated": { "exitCode": 1 } });
        for state in ["state", "lastState"] {
            let pods = [with_state(pod("rev-2", "v2"), state, ended.clone())];
            assert_eq!(started(&pods, &set(), "rev-2", "v2"), Container::Started, "{state}");
        }
    }

    #[test]
    fn a_set_without_match_labels_selects_nothing() {
        let mut set = set();
        assert_eq!(selector(&set).as_deref(), Some("sei.io/node=n0"));
        set.spec.selector.match_labels = None;
        assert_eq!(selector(&set), None);
    }
}
