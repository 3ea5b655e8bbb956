//! Which resources are namespaced, as the server's discovery documents say.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use http::StatusCode;
use serde_json::Value;

use super::{TapError, TapResource, api_path, follow, lock};
use crate::connect::Upstream;

/// What has been asked so far, by group and version; kept for good.
#[derive(Debug, Default)]
pub(super) struct Scopes(Mutex<HashMap<(String, String), Arc<Resources>>>);

/// By plural, whether the resource is namespaced.
type Resources = HashMap<String, bool>;

impl Scopes {
    /// Whether a resource is namespaced; `None` if the server does not have it.
    ///
    /// One that is not in a document that was read before may have been defined since, so the server is asked again.
    pub(super) async fn is_namespaced(
        &self,
        upstream: &Upstream,
        resource: &TapResource,
    ) -> Result<Option<bool>, TapError> {
        let key = (resource.group.clone(), resource.version.clone());
        let known = lock(&self.0).get(&key).cloned();
        if let Some(namespaced) = known.and_then(|known| known.get(&resource.plural).copied()) {
            return Ok(Some(namespaced));
        }
        let path = api_path(&resource.group, &resource.version);
        let reply = follow::ask(upstream, &path).await?;
        if reply.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let found = resources(&follow::read_json(&path, reply).await?);
        let namespaced = found.get(&resource.plural).copied();
        lock(&self.0).insert(key, Arc::new(found));
        Ok(namespaced)
    }
}

/// Source: Kubernetes apimachinery, `pkg/apis/meta/v1/types.go`, `APIResourceList`.
fn resources(document: &Value) -> Resources {
    let resources = document["resources"].as_array().into_iter().flatten();
    resources
        .filter_map(|resource| {
            Some((resource["name"].as_str()?.to_owned(), resource["namespaced"].as_bool()?))
        })
        .collect()
}
