//! apply-service: writes the headless Service that gives the node's pod its name.

use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use super::{FIELD_MANAGER, Input, Outcome};
use crate::api::{NODE_LABEL, SeiNode};
use crate::readers::within;

pub(super) async fn run(input: &Input<'_>) -> Outcome {
    let (namespace, name) = (input.namespace(), input.name());
    let Some(owner) = input.node.controller_owner_ref(&()) else {
        return Outcome::Terminal(format!("node {name:?} has no uid, so it can own nothing"));
    };
    let mut service = render(input.node);
    service["metadata"]["ownerReferences"] = json!([owner]);
    let api: Api<Service> = Api::namespaced(input.client.clone(), &namespace);
    let apply = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&service);
    match within(input.settings.api_timeout, api.patch(&name, &apply, &patch)).await {
        Ok(_) => Outcome::complete(),
        Err(error) => Outcome::Transient(format!("failed to apply service {name:?}: {error}")),
    }
}

/// The Service of a node.
#[must_use]
pub fn render(node: &SeiNode) -> Value {
    let name = node.name_any();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": node.namespace().unwrap_or_default(),
            "labels": { NODE_LABEL: name },
        },
        "spec": {
            "clusterIP": "None",
            // The sidecar has to be reached before the node is ready.
            "publishNotReadyAddresses": true,
            "selector": { NODE_LABEL: name },
        },
    })
}
