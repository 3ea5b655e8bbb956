//! When a fork may be used: once the API server's caches have it.

use std::time::Duration;

use futures::future::try_join_all;
use http::Method;
use kube::Client;
use serde_json::Value;
use tokio::time::Instant;

use super::WorldError;
use super::fork::{World, has_rbac};
use super::key::NAMESPACES;
use super::sentinel;
use crate::ask::{ask, until_allowed};

/// What is awaited takes milliseconds; a crowded machine takes longer.
const LIMIT: Duration = Duration::from_secs(30);

impl World {
    /// Waits until the API server shows all of the fork: each of its watch caches has the fork's
    /// last change of that resource, and its authorizer has the world's roles and bindings.
    ///
    /// `client` must be allowed to list everything in the world and to make access reviews, as a
    /// plane's own user is. Waits for 30 s at most, wall clock. Dropping the future is harmless.
    ///
    /// # Errors
    ///
    /// [`WorldError::NotReady`], which says what was awaited; [`WorldError::Asking`] if the server
    /// refuses a request, for example since the definition of a custom resource is gone.
    pub async fn ready(&self, client: &Client) -> Result<(), WorldError> {
        let deadline = Instant::now() + LIMIT;
        let last = self.last_revisions();
        let caches = self.source().resources().iter().filter_map(|(directory, known)| {
            let revision = *last.get(&known.resource)?;
            let path =
                path(directory, &known.api_version, &known.resource.plural, self.namespace());
            Some(self.cache_has(client, path, revision, deadline))
        });
        try_join_all(caches).await?;
        self.authorized_by(client, deadline).await
    }

    /// Waits for the second half of [`ready`](Self::ready) alone: until the authorizer has the world's roles and
    /// bindings. For whoever knows otherwise that the caches have the world.
    ///
    /// # Errors
    ///
    /// As for [`ready`](Self::ready).
    pub async fn authorized(&self, client: &Client) -> Result<(), WorldError> {
        self.authorized_by(client, Instant::now() + LIMIT).await
    }

    async fn authorized_by(&self, client: &Client, deadline: Instant) -> Result<(), WorldError> {
        if !has_rbac(self.source()) {
            return Ok(());
        }
        let question = sentinel::question(self.namespace());
        let text = || format!("the access review {question}");
        let mut last = Value::Null;
        let allowed = until_allowed(client, &question, &mut last);
        match tokio::time::timeout_at(deadline, allowed).await {
            Ok(allowed) => allowed.map_err(|error| self.asking(text(), error)),
            Err(_) => Err(self.not_ready(text(), format!("; last: {last}"))),
        }
    }

    /// A LIST that may be answered from the cache, but not before the cache has this revision: the
    /// server itself waits.
    async fn cache_has(
        &self,
        client: &Client,
        path: String,
        revision: i64,
        deadline: Instant,
    ) -> Result<(), WorldError> {
        // Nothing has this name: only the wait is wanted. Not `limit=1`, which bypasses the cache.
        let query = format!(
            "{path}?fieldSelector=metadata.name%3Dlaggard-none&resourceVersion={revision}\
             &resourceVersionMatch=NotOlderThan"
        );
        let awaited = || format!("revision {revision} of {path}");
        loop {
            match tokio::time::timeout_at(deadline, ask(client, Method::GET, &query, None)).await {
                Ok(Ok(_)) => return Ok(()),
                // The server waits for three seconds, says how far it is, and wants to be asked again.
                Ok(Err(kube::Error::Api(status))) if status.code == 504 => {
                    tracing::debug!(namespace = self.namespace(), %status, "not ready yet");
                }
                Ok(Err(error)) => return Err(self.asking(awaited(), error)),
                Err(_) => return Err(self.not_ready(awaited(), String::new())),
            }
        }
    }

    fn asking(&self, attempt: String, error: kube::Error) -> WorldError {
        let namespace = self.namespace().to_owned();
        WorldError::Asking { namespace, attempt, source: Box::new(error) }
    }

    fn not_ready(&self, awaited: String, last: String) -> WorldError {
        let namespace = self.namespace().to_owned();
        WorldError::NotReady { namespace, awaited, limit: LIMIT, last }
    }
}

/// The path of a collection in a namespace, or of all namespaces.
fn path(directory: &str, api_version: &str, plural: &str, namespace: &str) -> String {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    match directory {
        NAMESPACES => format!("/{root}/{api_version}/{plural}"),
        _ => format!("/{root}/{api_version}/namespaces/{namespace}/{plural}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_has_the_path_that_the_api_server_gives_it() {
        let at = |directory, version, plural| path(directory, version, plural, "n");
        assert_eq!(at("namespaces", "v1", "namespaces"), "/api/v1/namespaces");
        assert_eq!(at("services/specs", "v1", "services"), "/api/v1/namespaces/n/services");
        assert_eq!(at("a.b/cs", "a.b/v2", "cs"), "/apis/a.b/v2/namespaces/n/cs");
    }
}
