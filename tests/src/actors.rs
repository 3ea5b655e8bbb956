//! Who else acts while a rollout is explored, each a step at a time: the controllers and the kubelet, played.
//!
//! The real StatefulSet controller settles the node and then stands still. What it would do next is decided
//! here from the true state, as it decides: a revision for each template, a pod at the update revision
//! where there is none, and a status that counts.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use laggard::check::{Acting, Actor, Step, Truth};
use seinode_operator::api::{NODE_LABEL, SeiNode};
use serde_json::{Value, json};

use crate::stage::NODE;

/// The label by which a pod says which revision it was made from.
const REVISION: &str = "controller-revision-hash";

/// The StatefulSet controller under `OnDelete`: observes, replaces what is missing, counts.
pub fn stateful_set_controller() -> Actor {
    Actor::new("statefulset controller", next_of_stateful_set)
}

fn next_of_stateful_set(truth: &Truth, acting: &Acting) -> Option<Step> {
    let set = truth.get::<StatefulSet>(NODE)?;
    // One that is somebody else's wants no pods.
    if set.metadata.deletion_timestamp.is_some() || set.spec.replicas == Some(0) {
        return None;
    }
    let pod = truth.get::<Pod>(&format!("{NODE}-0"));
    let revision = revision(&set);
    let status = set.status.clone().unwrap_or_default();
    // It sees the set before it sees what became of its pods.
    if status.observed_generation != set.metadata.generation
        || status.update_revision.as_ref() != Some(&revision)
    {
        return Some(report(&set, pod.as_ref(), &revision, acting));
    }
    match &pod {
        None => Some(make_pod(&set, &revision, acting)),
        Some(pod) if !is_owned(pod, &set) => None,
        Some(_) if counts(&set, pod.as_ref(), &revision) != counted(&set) => {
            Some(report(&set, pod.as_ref(), &revision, acting))
        }
        Some(_) => None,
    }
}

/// The first template has the revision that the real controller gave it; another one a name made from its image.
fn revision(set: &StatefulSet) -> String {
    let status = set.status.clone().unwrap_or_default();
    let image = image(set);
    match (image.as_str(), status.current_revision) {
        ("v1", Some(current)) => current,
        _ => format!("{}-{image}", set.name_any()),
    }
}

fn image(set: &StatefulSet) -> String {
    let spec = set.spec.template.spec.iter();
    let mut containers = spec.flat_map(|spec| &spec.containers);
    let seid = containers.find(|container| container.name == "seid");
    seid.and_then(|container| container.image.clone()).unwrap_or_default()
}

fn is_owned(pod: &Pod, set: &StatefulSet) -> bool {
    pod.owner_references().iter().any(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
}

/// Pods, and pods at this revision.
fn counts(set: &StatefulSet, pod: Option<&Pod>, revision: &str) -> (i32, i32) {
    let own = pod.filter(|pod| is_owned(pod, set));
    let updated = own.filter(|pod| pod.labels().get(REVISION).is_some_and(|at| at == revision));
    (i32::from(own.is_some()), i32::from(updated.is_some()))
}

fn counted(set: &StatefulSet) -> (i32, i32) {
    let status = set.status.clone().unwrap_or_default();
    (status.replicas, status.updated_replicas.unwrap_or(0))
}

fn report(set: &StatefulSet, pod: Option<&Pod>, revision: &str, acting: &Acting) -> Step {
    let (replicas, updated) = counts(set, pod, revision);
    let first = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
    let (_, current) = counts(set, pod, first.unwrap_or_default());
    let status = json!({ "status": {
        "observedGeneration": set.metadata.generation,
        "updateRevision": revision,
        "replicas": replicas,
        "updatedReplicas": updated,
        "currentReplicas": current,
    } });
    let sets = acting.api::<StatefulSet>();
    Box::pin(async move {
        sets.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    })
}

fn make_pod(set: &StatefulSet, revision: &str, acting: &Acting) -> Step {
    let pod = pod_of(set, revision);
    let pods = acting.api::<Pod>();
    Box::pin(async move {
        let pod: Pod = serde_json::from_value(pod)?;
        pods.create(&PostParams::default(), &pod).await?;
        Ok(())
    })
}

fn pod_of(set: &StatefulSet, revision: &str) -> Value {
    let template = &set.spec.template;
    let mut labels = template.metadata.clone().and_then(|meta| meta.labels).unwrap_or_default();
    labels.insert(REVISION.to_owned(), revision.to_owned());
    let owner = json!([{
        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": NODE, "controller": true,
        "blockOwnerDeletion": true, "uid": set.metadata.uid,
    }]);
    json!({
        "metadata": { "name": format!("{NODE}-0"), "labels": labels, "ownerReferences": owner },
        "spec": template.spec,
    })
}

/// The kubelet: says of a new pod that its container runs.
pub fn kubelet() -> Actor {
    Actor::new("kubelet", |truth, acting| {
        let waits = told(truth)?.is_none();
        waits.then(|| tell(acting, json!({ "running": {} })))
    })
    .writing::<Pod>()
}

/// A kubelet that takes its time: it says nothing, then that it cannot pull the image, and then that the container runs,
/// each as soon as the operator has said in turn what it has seen.
pub fn slow_kubelet() -> Actor {
    Actor::new("kubelet", |truth, acting| {
        let state = told(truth)?;
        let seen = not_started(truth)?;
        match state {
            None => Some(tell(acting, json!({ "waiting": { "reason": PULL_FAILS } }))),
            Some(state) if state.waiting.is_some() && seen == PULL_FAILS => {
                Some(tell(acting, json!({ "waiting": null, "running": {} })))
            }
            Some(_) => None,
        }
    })
    .writing::<Pod>()
}

/// Why an image is not started, in the kubelet's word.
const PULL_FAILS: &str = "ImagePullBackOff";

/// What the operator says of a container that was not started.
fn not_started(truth: &Truth) -> Option<String> {
    let status = truth.get::<SeiNode>(NODE)?.status?;
    let said = status.conditions.into_iter().find(|it| it.type_ == "ImageRunning")?;
    (said.status == "False").then_some(said.message)
}

/// What was said of the container of the pod that is there, if anything.
fn told(truth: &Truth) -> Option<Option<ContainerState>> {
    let pod = truth.get::<Pod>(&format!("{NODE}-0"))?;
    let containers = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
    Some(containers.into_iter().find_map(|container| container.state))
}

fn tell(acting: &Acting, state: Value) -> Step {
    let status = json!({ "status": { "containerStatuses": [{
        "name": "seid", "image": "rewritten-by-the-runtime", "imageID": "", "ready": false,
        "restartCount": 0, "state": state,
    }] } });
    let pods = acting.api::<Pod>();
    Box::pin(async move {
        let name = format!("{NODE}-0");
        pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await?;
        Ok(())
    })
}

/// The garbage collector: removes the pod of a set that is gone, or on its way out, and lets go of such a set.
pub fn garbage_collector() -> Actor {
    Actor::new("garbage collector", |truth, acting| {
        let pod = truth.get::<Pod>(&format!("{NODE}-0"));
        let set = truth.get::<StatefulSet>(NODE);
        let going = |set: &StatefulSet| set.metadata.deletion_timestamp.is_some();
        let (sets, pods) = (acting.api::<StatefulSet>(), acting.api::<Pod>());
        match (pod, set) {
            (Some(pod), Some(set)) if is_owned(&pod, &set) && !going(&set) => None,
            (Some(_), _) => Some(Box::pin(async move {
                pods.delete(&format!("{NODE}-0"), &DeleteParams::default()).await?;
                Ok(())
            }) as Step),
            (None, Some(set)) if going(&set) => Some(Box::pin(async move {
                let let_go = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
                sets.patch(NODE, &PatchParams::default(), &let_go).await?;
                Ok(())
            })),
            (None, _) => None,
        }
    })
    .writing::<Pod>()
    .writing::<StatefulSet>()
}

/// Somebody who deletes the StatefulSet.
pub fn deletion_from_outside() -> Actor {
    deletion("deletion from outside", DeleteParams::background())
}

/// Somebody who deletes the StatefulSet, and wants it to stay until its pod is gone.
pub fn slow_deletion_from_outside() -> Actor {
    deletion("deletion in the foreground", DeleteParams::foreground())
}

fn deletion(name: &str, how: DeleteParams) -> Actor {
    Actor::disturbance(name, move |truth, acting| {
        truth.get::<StatefulSet>(NODE)?;
        let (sets, how) = (acting.api::<StatefulSet>(), how.clone());
        Some(Box::pin(async move {
            sets.delete(NODE, &how).await?;
            Ok(())
        }))
    })
    .writing::<StatefulSet>()
}

/// Somebody who evicts the old pod once its controller has a new revision; the controller makes the new one at once.
pub fn replacement_from_outside() -> Actor {
    Actor::disturbance("replacement from outside", |truth, acting| {
        let set = truth.get::<StatefulSet>(NODE)?;
        let pod = truth.get::<Pod>(&format!("{NODE}-0")).filter(|pod| is_owned(pod, &set))?;
        let revision = revision(&set);
        let status = set.status.clone().unwrap_or_default();
        let observed = status.observed_generation == set.metadata.generation;
        let old = pod.labels().get(REVISION).is_some_and(|at| *at != revision);
        if !observed || !old {
            return None;
        }
        let made = make_pod(&set, &revision, acting);
        let pods = acting.api::<Pod>();
        Some(Box::pin(async move {
            pods.delete(&pod.name_any(), &DeleteParams::default()).await?;
            made.await
        }))
    })
    .writing::<Pod>()
}

/// Somebody who edits the node, but not what it asks for.
pub fn edit_from_outside() -> Actor {
    Actor::disturbance("edit from outside", |truth, acting| {
        truth.get::<SeiNode>(NODE)?;
        let note = json!({ "metadata": { "annotations": { "team": "blue" } } });
        Some(patch_node(acting, note))
    })
    .writing::<SeiNode>()
}

/// Somebody who asks for the first image again.
pub fn change_of_mind() -> Actor {
    Actor::disturbance("change of mind", |truth, acting| {
        truth.get::<SeiNode>(NODE).filter(|node| node.spec.image != "v1")?;
        Some(patch_node(acting, json!({ "spec": { "image": "v1" } })))
    })
    .writing::<SeiNode>()
}

fn patch_node(acting: &Acting, change: Value) -> Step {
    let nodes = acting.api::<SeiNode>();
    Box::pin(async move {
        nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(change)).await?;
        Ok(())
    })
}

/// Somebody who deletes the StatefulSet and makes it again as it was: a restored backup.
pub fn recreation_from_outside() -> Actor {
    Actor::disturbance("recreation from outside", |truth, acting| {
        let set = truth.get::<StatefulSet>(NODE)?;
        let again = json!({
            "metadata": {
                "name": NODE,
                "labels": set.metadata.labels,
                "ownerReferences": set.metadata.owner_references,
            },
            "spec": set.spec,
        });
        let sets = acting.api::<StatefulSet>();
        Some(Box::pin(async move {
            sets.delete(NODE, &DeleteParams::background()).await?;
            sets.create(&PostParams::default(), &serde_json::from_value(again)?).await?;
            Ok(())
        }))
    })
    .writing::<StatefulSet>()
}

/// Somebody who makes a StatefulSet of the node's name where there is none.
pub fn foreign_set() -> Actor {
    Actor::disturbance("somebody else", |truth, acting| {
        truth.get::<StatefulSet>(NODE).is_none().then(|| make_foreign_set(acting))
    })
    .writing::<StatefulSet>()
}

/// Somebody who puts a StatefulSet of another kind in the place of the node's.
pub fn usurper() -> Actor {
    Actor::disturbance("usurper", |truth, acting| {
        truth.get::<StatefulSet>(NODE)?;
        let sets = acting.api::<StatefulSet>();
        let made = make_foreign_set(acting);
        Some(Box::pin(async move {
            sets.delete(NODE, &DeleteParams::background()).await?;
            made.await
        }))
    })
    .writing::<StatefulSet>()
}

fn make_foreign_set(acting: &Acting) -> Step {
    let sets = acting.api::<StatefulSet>();
    Box::pin(async move {
        let foreign = json!({
            "metadata": { "name": NODE },
            "spec": {
                "replicas": 0, "serviceName": NODE, "updateStrategy": { "type": "OnDelete" },
                "selector": { "matchLabels": { NODE_LABEL: NODE } },
                "template": {
                    "metadata": { "labels": { NODE_LABEL: NODE } },
                    "spec": { "containers": [{ "name": "c", "image": "somebody-elses" }] },
                },
            },
        });
        sets.create(&PostParams::default(), &serde_json::from_value(foreign)?).await?;
        Ok(())
    })
}

/// Somebody who takes the StatefulSet from the node.
pub fn orphaning() -> Actor {
    changed_set("orphaning", |set| {
        let owned = set.owner_references().iter().any(|owner| owner.controller == Some(true));
        owned.then(|| json!({ "metadata": { "ownerReferences": null } }))
    })
}

/// Somebody who sets another image in the StatefulSet itself.
pub fn other_template() -> Actor {
    changed_set("other template", |set| {
        let image = json!([{ "name": "seid", "image": "v3" }]);
        let change = json!({ "spec": { "template": { "spec": { "containers": image } } } });
        (self::image(set) == "v2").then_some(change)
    })
}

fn changed_set(name: &str, change: fn(&StatefulSet) -> Option<Value>) -> Actor {
    Actor::disturbance(name, move |truth, acting| {
        let change = Patch::Strategic(change(&truth.get::<StatefulSet>(NODE)?)?);
        let sets = acting.api::<StatefulSet>();
        Some(Box::pin(async move {
            sets.patch(NODE, &PatchParams::default(), &change).await?;
            Ok(())
        }))
    })
    .writing::<StatefulSet>()
}
