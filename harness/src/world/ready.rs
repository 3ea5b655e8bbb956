//! When a fork may be used: once the API server's caches have it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::try_join_all;
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::WorldError;
use super::fork::World;
use super::key::{NAMESPACES, ROLE_BINDINGS, ROLES};
use super::rbac::{Binding, Changes, Question, RoleRef, Rule, Subject, telling};
use crate::ask::{ask, if_found, review};

/// What is awaited takes milliseconds; a crowded machine takes longer.
const LIMIT: Duration = Duration::from_secs(30);

/// The authorizer has no event to offer, so it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// How many bindings of a ClusterRole are told by one rule of it; the role itself is not the world's.
const RULES_OF_A_CLUSTER_ROLE: usize = 1;

impl World {
    /// Waits until the API server shows all of the fork: each of its watch caches has the fork's
    /// last change of that resource, and its authorizer gives the answers that the world's roles and
    /// bindings ask for.
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

    /// Waits for the second half of [`ready`](Self::ready) alone: until the authorizer gives the answers that the
    /// world's roles and bindings ask for. For whoever knows otherwise that the caches have the world.
    ///
    /// # Errors
    ///
    /// As for [`ready`](Self::ready).
    pub async fn authorized(&self, client: &Client) -> Result<(), WorldError> {
        self.authorized_by(client, Instant::now() + LIMIT).await
    }

    async fn authorized_by(&self, client: &Client, deadline: Instant) -> Result<(), WorldError> {
        let questions = self.questions(client).await?;
        let answers = questions
            .iter()
            .map(|(question, answer)| self.authorizer_says(client, question, *answer, deadline));
        try_join_all(answers).await?;
        Ok(())
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

    async fn authorizer_says(
        &self,
        client: &Client,
        question: &Question,
        answer: bool,
        deadline: Instant,
    ) -> Result<(), WorldError> {
        let spec = spec(question, self.namespace());
        let mut last = Value::Null;
        loop {
            let text = || format!("the access review {spec}, allowed: {answer}");
            match tokio::time::timeout_at(deadline, review(client, &spec)).await {
                Ok(Ok(status)) => {
                    last = status;
                    if agrees(&last, answer, self.namespace()) {
                        return Ok(());
                    }
                }
                Ok(Err(error)) => return Err(self.asking(text(), error)),
                Err(_) => return Err(self.not_ready(text(), format!("; last: {last}"))),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn questions(&self, client: &Client) -> Result<Vec<(Question, bool)>, WorldError> {
        let bindings: Changes<Binding> = self
            .written(ROLE_BINDINGS)
            .into_iter()
            .map(|(name, value)| (name, value.as_deref().and_then(Binding::of_stored)))
            .collect();
        if bindings.is_empty() {
            return Ok(Vec::new());
        }
        let roles: Changes<Vec<Rule>> = self
            .written(ROLES)
            .into_iter()
            .map(|(name, value)| (name, value.as_deref().map(Rule::of_role)))
            .collect();
        let mut cluster_roles = BTreeMap::new();
        for binding in bindings.iter().filter_map(|(_, binding)| binding.as_ref()) {
            if let RoleRef::ClusterRole(name) = &binding.role
                && !cluster_roles.contains_key(name)
            {
                cluster_roles.insert(name.clone(), self.cluster_role(client, name).await?);
            }
        }
        Ok(telling(&roles, &bindings, &cluster_roles))
    }

    /// The rules of a ClusterRole, as far as they are needed; none if there is no such role.
    async fn cluster_role(&self, client: &Client, name: &str) -> Result<Vec<Rule>, WorldError> {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}");
        let role = if_found(ask(client, Method::GET, &path, None).await)
            .map_err(|error| self.asking(format!("get the ClusterRole {name}"), error))?;
        let Some(role) = role else { return Ok(Vec::new()) };
        let texts = |value: &Value| -> Vec<String> {
            let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
            texts.map(str::to_owned).collect()
        };
        let rules = role["rules"].as_array().into_iter().flatten().map(|rule| Rule {
            verbs: texts(&rule["verbs"]),
            groups: texts(&rule["apiGroups"]),
            resources: texts(&rule["resources"]),
            names: texts(&rule["resourceNames"]),
        });
        let rules = rules.filter(|rule| !rule.resources.is_empty());
        Ok(rules.take(RULES_OF_A_CLUSTER_ROLE).collect())
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

/// Whether a review's status is what a world's roles and bindings ask for. What is granted beyond its
/// namespace is not its affair, and stays granted.
fn agrees(status: &Value, answer: bool, namespace: &str) -> bool {
    let allowed = status["allowed"] == true;
    // `RBAC: allowed by RoleBinding "<name>/<namespace>" of …`
    let reason = status["reason"].as_str().unwrap_or_default();
    match answer {
        true => allowed,
        false => !(allowed && reason.contains(&format!("/{namespace}\" of "))),
    }
}

/// What an access review is asked.
fn spec(question: &Question, namespace: &str) -> Value {
    let (resource, subresource) =
        question.resource.split_once('/').unwrap_or((&question.resource, ""));
    let mut spec = json!({
        "resourceAttributes": {
            "namespace": namespace,
            "verb": question.verb,
            "group": question.group,
            "resource": resource,
            "subresource": subresource,
            "name": question.name.as_deref().unwrap_or_default(),
        },
    });
    match &question.subject {
        Subject::User(user) => spec["user"] = json!(user),
        Subject::Group(group) => spec["groups"] = json!([group]),
    }
    spec
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
    fn what_is_lost_here_may_still_be_granted_by_the_cluster() {
        let status = |allowed, by: &str| json!({ "allowed": allowed, "reason": by });
        let here = r#"RBAC: allowed by RoleBinding "b/lw-aaaa0000" of Role "r" to User "u""#;
        let cluster = r#"RBAC: allowed by ClusterRoleBinding "b" of ClusterRole "r" to User "u""#;
        for (status, granted, lost) in [
            (status(true, here), true, false),
            (status(true, cluster), true, true),
            (status(false, ""), false, true),
        ] {
            assert_eq!(agrees(&status, true, "lw-aaaa0000"), granted, "{status}");
            assert_eq!(agrees(&status, false, "lw-aaaa0000"), lost, "{status}");
        }
    }

    #[test]
    fn a_collection_has_the_path_that_the_api_server_gives_it() {
        let at = |directory, version, plural| path(directory, version, plural, "n");
        assert_eq!(at("namespaces", "v1", "namespaces"), "/api/v1/namespaces");
        assert_eq!(at("services/specs", "v1", "services"), "/api/v1/namespaces/n/services");
        assert_eq!(at("a.b/cs", "a.b/v2", "cs"), "/apis/a.b/v2/namespaces/n/cs");
    }
}
