//! apply-statefulset: writes the whole StatefulSet of the node by server-side apply.

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use super::rollout::is_controlled_by;
use super::{FIELD_MANAGER, Input, Outcome, Report};
use crate::api::{Applied, NODE_LABEL, SeiNode};
use crate::readers::{ReadError, within};
use crate::settings::Platform;
use crate::sidecar::DEFAULT_PORT;

pub(super) async fn run(input: &Input<'_>) -> Outcome {
    let (namespace, name) = (input.namespace(), input.name());
    let Some(owner) = input.node.controller_owner_ref(&()) else {
        return Outcome::Terminal(format!("node {name:?} has no uid, so it can own nothing"));
    };
    // An apply by force would adopt whatever has this name, so look first, and at what is true.
    let found = match input.live.get::<StatefulSet>(&namespace, &name).await {
        Ok(found) => {
            if let Some(outcome) = not_ours_to_write(&found, input) {
                return outcome;
            }
            Some(found)
        }
        Err(ReadError::Missing) => None,
        Err(error) => {
            return Outcome::Transient(format!("failed to get statefulset {name:?}: {error}"));
        }
    };
    let mut set = render(input.node, input.target_image(), &input.settings.platform);
    set["metadata"]["ownerReferences"] = json!([owner]);
    if let Some(version) = found.as_ref().and_then(|found| found.resource_version()) {
        // A conflict, if it is another object by the time this arrives, or somebody else's.
        set["metadata"]["resourceVersion"] = json!(version);
    }
    let api: Api<StatefulSet> = Api::namespaced(input.client.clone(), &namespace);
    // By force only what was looked at: where nothing was, somebody may have been quicker.
    let apply = PatchParams { force: found.is_some(), ..PatchParams::apply(FIELD_MANAGER) };
    let patch = Patch::Apply(&set);
    match within(input.settings.api_timeout, api.patch(&name, &apply, &patch)).await {
        Ok(reply) => {
            // Between that look and this write the object may have become another one.
            if let Some(outcome) = not_ours_to_write(&reply, input) {
                return outcome;
            }
            let applied = Applied {
                uid: reply.uid().unwrap_or_default(),
                generation: reply.metadata.generation.unwrap_or_default(),
            };
            Outcome::Complete(Report { applied: Some(applied), ..Report::default() })
        }
        Err(error) => Outcome::Transient(format!("failed to apply statefulset {name:?}: {error}")),
    }
}

fn not_ours_to_write(set: &StatefulSet, input: &Input<'_>) -> Option<Outcome> {
    let name = set.name_any();
    if !is_controlled_by(set, input.node) {
        let text =
            format!("statefulset {name:?} is not controlled by this node; nothing was changed");
        // After a node was deleted and made again, the old set lives until it is collected.
        return Some(match input.initial {
            true => Outcome::waiting(format!("{text}; waiting for it to go")),
            false => Outcome::Terminal(text),
        });
    }
    set.metadata
        .deletion_timestamp
        .is_some()
        .then(|| Outcome::waiting(format!("statefulset {name:?} to be gone; it is being deleted")))
}

/// The StatefulSet of a node: the full intent, without defaults and without status.
#[must_use]
pub fn render(node: &SeiNode, image: &str, platform: &Platform) -> Value {
    let name = node.name_any();
    let mut labels = node.spec.pod_labels.clone();
    labels.insert(NODE_LABEL.to_owned(), name.clone());
    let sidecar = node.spec.sidecar.clone().unwrap_or_default();
    let port = sidecar.port.unwrap_or(DEFAULT_PORT);
    let healthz = json!({ "path": "/v0/healthz", "port": port });
    let data = json!([{ "name": "data", "mountPath": "/sei" }]);
    let mut sidecar_container = json!({
        "name": "sei-sidecar",
        "image": sidecar.image.as_ref().unwrap_or(&platform.sidecar_image),
        "restartPolicy": "Always",
        "ports": [{ "name": "sidecar", "containerPort": port }],
        "livenessProbe": { "httpGet": { "path": "/v0/livez", "port": port } },
        "readinessProbe": { "httpGet": healthz },
        "volumeMounts": data,
    });
    if let Some(resources) = &sidecar.resources {
        sidecar_container["resources"] = json!(resources);
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {
            "name": name,
            "namespace": node.namespace().unwrap_or_default(),
            "labels": labels,
        },
        "spec": {
            "replicas": 1,
            "serviceName": name,
            // Immutable, so no more than it takes.
            "selector": { "matchLabels": { NODE_LABEL: name } },
            // The operator decides when a pod goes.
            "updateStrategy": { "type": "OnDelete" },
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": { "karpenter.sh/do-not-disrupt": "true" },
                },
                "spec": {
                    "initContainers": [
                        { "name": "seid-init", "image": image, "command": ["seid", "init"], "volumeMounts": data },
                        sidecar_container,
                    ],
                    "containers": [{
                        "name": "seid",
                        "image": image,
                        "args": ["start", "--chain-id", node.spec.chain_id],
                        // An upgrade may take the node hours: the sidecar says when it serves.
                        "startupProbe": { "httpGet": healthz, "failureThreshold": 86400 },
                        "readinessProbe": { "httpGet": { "path": "/lag_status", "port": 26657 } },
                        "volumeMounts": data,
                    }],
                    "volumes": [
                        { "name": "data", "persistentVolumeClaim": { "claimName": node.data_claim() } },
                    ],
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::rollout::tests::node;

    #[test]
    fn the_systems_label_wins_and_the_selector_is_minimal() {
        let mut node = node("n0", "v1");
        node.spec.pod_labels = [("a", "b"), (NODE_LABEL, "evil")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let set = render(&node, "v2", &Platform::default());
        assert_eq!(
            set["spec"]["template"]["metadata"]["labels"],
            json!({ "a": "b", NODE_LABEL: "n0" })
        );
        assert_eq!(set["spec"]["selector"]["matchLabels"], json!({ NODE_LABEL: "n0" }));
        assert_eq!(set["spec"]["template"]["spec"]["containers"][0]["image"], "v2");
        assert_eq!(set["spec"]["template"]["spec"]["initContainers"][0]["image"], "v2");
    }

    #[test]
    fn a_rendered_set_is_a_stateful_set() {
        let set = render(&node("n0", "v1"), "v1", &Platform::default());
        let typed: StatefulSet = serde_json::from_value(set).unwrap();
        assert_eq!(typed.spec.replicas, Some(1));
    }
}
