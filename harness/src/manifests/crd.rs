//! Custom resource definitions: installed all at once, and usable when this returns.

use std::time::Duration;

use futures::TryStreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionSpec,
};
use kube::api::{Api, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Client, Error, ResourceExt as _};
use serde_json::json;

use super::discovery::serves_resource;
use crate::ask::is_without_previous;

/// Between two tries to list a resource that is not served yet; it takes some 20 ms, and there is
/// no event for it.
const LIST_INTERVAL: Duration = Duration::from_millis(2);

/// An Established condition older than two seconds; see [`back_date`].
const LONG_AGO: &str = "2000-01-01T00:00:00Z";

/// Installs definitions, waits until each is established and every served version can be listed,
/// and makes the first creation of an object as quick as every other.
///
/// For planes of our own alone, since it writes a condition that is the server's to write. Has no
/// limit of its own.
pub(crate) async fn install_crds(
    client: &Client,
    definitions: &[CustomResourceDefinition],
) -> Result<(), Error> {
    let installs = definitions.iter().map(|definition| install_crd(client, definition));
    futures::future::try_join_all(installs).await?;
    Ok(())
}

async fn install_crd(client: &Client, definition: &CustomResourceDefinition) -> Result<(), Error> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = definition.name_any();
    let apply = PatchParams::apply("laggard").force();
    let applied = api.patch(&name, &apply, &Patch::Apply(definition)).await?;
    let established = established(&api, applied).await?;
    back_date(&api, &established).await?;
    until_served(client, definition).await
}

/// Waits until every served version of an established definition can be listed. Has no limit of its own.
pub(crate) async fn until_served(
    client: &Client,
    definition: &CustomResourceDefinition,
) -> Result<(), Error> {
    for version in definition.spec.versions.iter().filter(|version| version.served) {
        let CustomResourceDefinitionSpec { group, names, .. } = &definition.spec;
        while !serves_resource(client, group, &version.name, &names.plural).await? {
            tokio::time::sleep(LIST_INTERVAL).await;
        }
    }
    Ok(())
}

async fn established(
    api: &Api<CustomResourceDefinition>,
    mut definition: CustomResourceDefinition,
) -> Result<CustomResourceDefinition, Error> {
    while !is_established(&definition) {
        let params =
            WatchParams::default().fields(&format!("metadata.name={}", definition.name_any()));
        let version = definition.resource_version().unwrap_or_default();
        let mut events = std::pin::pin!(api.watch(&params, &version).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(changed) | WatchEvent::Modified(changed) => {
                    definition = changed;
                    if is_established(&definition) {
                        break;
                    }
                }
                WatchEvent::Error(status) if is_without_previous(&status.message) => break,
                WatchEvent::Error(status) => return Err(Error::Api(status)),
                WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
            }
        }
    }
    Ok(definition)
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Established" && condition.status == "True")
}

/// Makes the Established condition an old one.
///
/// The API server answers the first POST of a custom resource only after two seconds while that
/// condition is younger than that: a guard for control planes with several API servers, which a
/// plane of ours is not. Source: Kubernetes, `apiextensions-apiserver`,
/// `customresource_handler.go`, `longRunningCreationDelay` around the Established time.
async fn back_date(
    api: &Api<CustomResourceDefinition>,
    definition: &CustomResourceDefinition,
) -> Result<(), Error> {
    let mut conditions =
        json!(definition.status.as_ref().and_then(|status| status.conditions.as_ref()));
    for condition in conditions.as_array_mut().into_iter().flatten() {
        condition["lastTransitionTime"] = json!(LONG_AGO);
    }
    let patch = json!({ "status": { "conditions": conditions } });
    let name = definition.name_any();
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    /// A definition at a version, established or not.
    fn gadgets(version: &str, established: &str) -> CustomResourceDefinition {
        let names = json!({ "plural": "gadgets", "kind": "Gadget" });
        let condition = json!({
            "type": "Established", "status": established, "reason": "", "message": "",
            "lastTransitionTime": LONG_AGO,
        });
        serde_json::from_value(json!({
            "metadata": { "name": "gadgets.laggard.test", "resourceVersion": version },
            "spec": { "group": "laggard.test", "names": names, "scope": "Namespaced", "versions": [] },
            "status": { "conditions": [condition] },
        }))
        .unwrap()
    }

    /// Waits where each watch is answered with the next of these; returns what came of it and the requests.
    async fn wait_where(
        watches: &[serde_json::Value],
    ) -> (Result<CustomResourceDefinition, Error>, Vec<String>) {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, watches) = (Arc::clone(&asked), watches.to_vec());
        let service = tower::service_fn(move |request: Request<Body>| {
            let mut log = log.lock().unwrap();
            let answer = Body::from(format!("{}\n", watches[log.len()]).into_bytes());
            log.push(request.uri().query().unwrap_or_default().to_owned());
            std::future::ready(Ok::<_, std::convert::Infallible>(Response::new(answer)))
        });
        let api = Api::all(Client::new(service, "default"));
        let result = established(&api, gadgets("7", "False")).await;
        let asked = asked.lock().unwrap().clone();
        (result, asked)
    }

    fn error(message: &str) -> serde_json::Value {
        let status = json!({ "kind": "Status", "code": 500, "reason": "x", "message": message });
        json!({ "type": "ERROR", "object": status })
    }

    #[tokio::test]
    async fn a_change_that_etcd_tells_without_the_version_before_it_is_asked_for_again() {
        let race = error("Internal error occurred: etcd event received with PrevKv=nil (key=…)");
        let done = json!({ "type": "MODIFIED", "object": gadgets("9", "True") });
        let (definition, asked) = wait_where(&[race, done]).await;
        assert_eq!(definition.unwrap().resource_version().as_deref(), Some("9"));
        assert_eq!(asked.len(), 2);
        assert!(asked.iter().all(|query| query.contains("resourceVersion=7")), "{asked:?}");
    }

    #[tokio::test]
    async fn another_error_of_the_watch_ends_the_wait() {
        let (result, asked) = wait_where(&[error("no more space")]).await;
        assert!(result.unwrap_err().to_string().contains("no more space"));
        assert_eq!(asked.len(), 1);
    }
}
