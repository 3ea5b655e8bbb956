//! The real kube-controller-manager beside a plane: which controllers, and when they work.
//!
//! It can be asked nothing about its readiness (its port is off), and starts its controllers only
//! after the API server is ready in full. So each chosen controller is given a canary: an object
//! that it must act on.

use std::collections::BTreeSet;

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, DynamicObject, ListParams, PostParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::wait::await_condition;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::error::StartErrorKind;

/// A controller of kube-controller-manager.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Controller {
    /// Fills the rules of `view`, `edit` and `admin`, which are empty without it.
    ClusterRoleAggregation,
    /// Makes ReplicaSets for Deployments.
    Deployment,
    /// Removes what an absent owner owned; needed for cascading deletion.
    GarbageCollector,
    /// Makes Pods for Jobs.
    Job,
    /// Empties deleted namespaces and lets them go, about 5 s after the deletion.
    Namespace,
    /// Makes Pods for ReplicaSets.
    ReplicaSet,
    /// Makes the account `default` of each namespace. With it the admission plugin `ServiceAccount`
    /// is on, which gives a Pod that account and a volume with its token.
    ServiceAccount,
    /// Makes Pods and revisions for StatefulSets.
    StatefulSet,
}

impl Controller {
    /// The name that `--controllers` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterRoleAggregation => "clusterrole-aggregation-controller",
            Self::Deployment => "deployment-controller",
            Self::GarbageCollector => "garbage-collector-controller",
            Self::Job => "job-controller",
            Self::Namespace => "namespace-controller",
            Self::ReplicaSet => "replicaset-controller",
            Self::ServiceAccount => "serviceaccount-controller",
            Self::StatefulSet => "statefulset-controller",
        }
    }
}

/// The value of `--controllers`.
pub(crate) fn flag(controllers: &BTreeSet<Controller>) -> String {
    let names: Vec<_> = controllers.iter().map(|controller| controller.name()).collect();
    names.join(",")
}

/// Waits until each controller has acted on a canary, and removes the canaries.
///
/// Has no limit of its own; `on_wait` is told what is being waited for.
pub(crate) async fn wait_until_at_work(
    client: &Client,
    controllers: &BTreeSet<Controller>,
    on_wait: impl Fn(String),
) -> Result<(), StartErrorKind> {
    for &controller in controllers {
        let Some(canary) = canary(controller) else {
            // Every namespace is its canary.
            on_wait("the account default".to_owned());
            wait_for_default_account(client, "default").await?;
            continue;
        };
        on_wait(format!("{} to act on its canary", controller.name()));
        let attempt = format!("use a canary of {}", controller.name());
        sing(client, &canary).await.map_err(|error| StartErrorKind::request(attempt, error))?;
    }
    Ok(())
}

/// Waits until a namespace has its account; has no limit of its own.
pub(crate) async fn wait_for_default_account(
    client: &Client,
    namespace: &str,
) -> Result<(), StartErrorKind> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let is_there = |account: Option<&ServiceAccount>| account.is_some();
    match await_condition(accounts, "default", is_there).await {
        Ok(_) => Ok(()),
        Err(error) => Err(StartErrorKind::System {
            attempt: format!("wait for the account default of the namespace {namespace}"),
            source: std::io::Error::other(error),
        }),
    }
}

/// An object that a controller must act on, and how to see that it did.
struct Canary {
    object: Value,
    /// For controllers that act on a deletion.
    delete_first: bool,
    acted: fn(&DynamicObject) -> bool,
    /// Seen as the object's end rather than as a change.
    ends: bool,
}

const LABEL: &str = "laggard.local/canary";

fn canary(controller: Controller) -> Option<Canary> {
    let observed: fn(&DynamicObject) -> bool =
        |object| object.data["status"]["observedGeneration"].as_i64() == object.metadata.generation;
    let labels = json!({ LABEL: controller.name() });
    let template = json!({
        "metadata": { "labels": labels },
        "spec": { "containers": [{ "name": "canary", "image": "laggard.local/canary" }] },
    });
    let metadata = json!({ "generateName": "laggard-canary-", "labels": labels });
    let replicated = |kind: &str, more: Value| {
        let mut spec = json!({
            "replicas": 0,
            "selector": { "matchLabels": labels },
            "template": template,
        });
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        let object = json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec,
        });
        Canary { object, delete_first: false, acted: observed, ends: false }
    };
    Some(match controller {
        Controller::ServiceAccount => return None,
        Controller::StatefulSet => replicated("StatefulSet", json!({ "serviceName": "canary" })),
        Controller::Deployment => replicated("Deployment", json!({})),
        Controller::ReplicaSet => replicated("ReplicaSet", json!({})),
        Controller::Job => {
            let mut template = template.clone();
            template["spec"]["restartPolicy"] = json!("Never");
            Canary {
                object: json!({
                    "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata,
                    "spec": { "suspend": true, "template": template },
                }),
                delete_first: false,
                acted: |object| object.data["status"]["conditions"].is_array(),
                ends: false,
            }
        }
        Controller::GarbageCollector => {
            let mut metadata = metadata.clone();
            // Nobody has this uid, so the owner is gone.
            metadata["ownerReferences"] = json!([{
                "apiVersion": "v1", "kind": "ConfigMap", "name": "laggard-no-such-owner",
                "uid": "00000000-0000-4000-8000-000000000000",
            }]);
            Canary {
                object: json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata }),
                delete_first: false,
                acted: |_| false,
                ends: true,
            }
        }
        Controller::Namespace => Canary {
            object: json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }),
            delete_first: true,
            // Its end takes five seconds more; that it has looked is enough.
            acted: |object| object.data["status"]["conditions"].is_array(),
            ends: true,
        },
        Controller::ClusterRoleAggregation => Canary {
            object: json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": metadata, "rules": [],
                // The labels of the role that a fresh cluster aggregates into `view`.
                "aggregationRule": { "clusterRoleSelectors": [
                    { "matchLabels": { "rbac.authorization.k8s.io/aggregate-to-view": "true" } },
                ] },
            }),
            delete_first: false,
            acted: |object| object.data["rules"].as_array().is_some_and(|rules| !rules.is_empty()),
            ends: false,
        },
    })
}

async fn sing(client: &Client, canary: &Canary) -> Result<(), kube::Error> {
    let object: DynamicObject =
        serde_json::from_value(canary.object.clone()).map_err(kube::Error::SerdeError)?;
    let types = object.types.clone().unwrap_or_default();
    let kind = GroupVersionKind::try_from(&types).expect("a canary names its kind");
    let resource = ApiResource::from_gvk(&kind);
    let cluster_scoped = matches!(types.kind.as_str(), "Namespace" | "ClusterRole");
    let api: Api<DynamicObject> = match cluster_scoped {
        true => Api::all_with(client.clone(), &resource),
        false => Api::namespaced_with(client.clone(), "default", &resource),
    };
    let created = api.create(&PostParams::default(), &object).await?;
    let name = created.name_any();
    if canary.delete_first {
        api.delete(&name, &Default::default()).await?;
    }
    let mut seen = created;
    'acted: while !(canary.acted)(&seen) {
        // From the last version that was seen, so nothing is missed between the two requests.
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        let version = seen.resource_version().unwrap_or_default();
        let mut events = std::pin::pin!(api.watch(&params, &version).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    seen = object;
                    if (canary.acted)(&seen) {
                        break 'acted;
                    }
                }
                WatchEvent::Deleted(_) if canary.ends => return Ok(()),
                WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
            }
        }
    }
    if !canary.delete_first {
        api.delete(&name, &Default::default()).await?;
        remove_revisions(client, &seen).await?;
    }
    Ok(())
}

/// Without a garbage collector the revisions of a deleted StatefulSet would stay.
async fn remove_revisions(client: &Client, owner: &DynamicObject) -> Result<(), kube::Error> {
    let Some(canary) = owner.labels().get(LABEL) else { return Ok(()) };
    let types = owner.types.as_ref().map(|types| types.kind.as_str());
    if types != Some("StatefulSet") {
        return Ok(());
    }
    let kind = GroupVersionKind::gvk("apps", "v1", "ControllerRevision");
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk(&kind));
    let labelled = ListParams::default().labels(&format!("{LABEL}={canary}"));
    api.delete_collection(&Default::default(), &labelled).await?;
    Ok(())
}
