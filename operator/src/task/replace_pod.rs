//! replace-pod: deletes the pod that is not at the StatefulSet's update revision.
//!
//! Under `OnDelete` the controller then makes a new one at that revision. What is decided here is
//! decided from the StatefulSet and the pods as the API server has them at this moment.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Preconditions};

use super::rollout::off_revision;
use super::{Input, LookAgain, Outcome, Report, revision_and_pods, stateful_set_unread};

pub(super) async fn run(input: &Input<'_>) -> Outcome {
    let (namespace, name) = (input.namespace(), input.name());
    let set = match input.live.get::<StatefulSet>(&namespace, &name).await {
        Ok(set) => set,
        Err(error) => return stateful_set_unread(error, &name),
    };
    let (revision, pods) = match revision_and_pods(&set, input).await {
        Ok(found) => found,
        Err(outcome) => return outcome,
    };
    let stale = off_revision(&pods, &set, &revision);
    if stale.is_empty() {
        return Outcome::complete();
    }
    if set.spec.replicas.unwrap_or(1) > 1 {
        return Outcome::Terminal(format!(
            "statefulset {name:?} is multi-replica; its pods are not replaced one by one here"
        ));
    }
    for pod in stale {
        if let Err(problem) = delete(input, &namespace, pod).await {
            return Outcome::Transient(format!(
                "failed to delete pod {:?}: {problem}",
                pod.name_any()
            ));
        }
    }
    // A pass that deleted ends here, so that what it did is written down before anything else; the
    // next one looks again.
    Outcome::Waiting {
        until: "the deleted pod to be replaced".to_owned(),
        look_again: LookAgain::AtOnce,
        report: Report::default(),
    }
}

/// Deletes this very pod: not another one of its name, and not one that has changed since.
async fn delete(input: &Input<'_>, namespace: &str, pod: &Pod) -> Result<(), String> {
    let api: Api<Pod> = Api::namespaced(input.client.clone(), namespace);
    let preconditions = Preconditions { uid: pod.uid(), resource_version: pod.resource_version() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let limit = input.settings.api_timeout;
    match tokio::time::timeout(limit, api.delete(&pod.name_any(), &params)).await {
        Ok(Ok(_)) => Ok(()),
        // It has changed, or is another one: what to do is for the next look to say.
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}
