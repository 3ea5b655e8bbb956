//! A role of a world holds at the first request after the world is ready, and so does its loss.

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};

use super::stage::{Stage, request, rounds};

on_each_server!(
    a_role_holds_at_the_first_request,
    what_a_role_lost_is_lost_at_the_first_request,
    what_was_lost_for_a_while_is_granted_at_the_first_request,
);

/// Several forks at a time: then the authorizer is behind more often.
const AT_ONCE: usize = 8;

async fn a_role_holds_at_the_first_request(stage: &Stage) -> Result<()> {
    let source = stage.namespace().await?;
    for number in 0..3 {
        let role = format!("r{number}");
        bound(stage, &source, &role, &["get", "list"]).await?;
    }
    in_each_fork(stage, &source, async |round, world| {
        // The last one first: it is what the authorizer sees last.
        for number in (0..3).rev() {
            let first = as_account(stage, world, &format!("r{number}"), "").await;
            assert!(first.is_ok(), "round {round}: {first:?}");
        }
    })
    .await
}

async fn what_a_role_lost_is_lost_at_the_first_request(stage: &Stage) -> Result<()> {
    let source = stage.namespace().await?;
    bound(stage, &source, "r", &["get", "list"]).await?;
    allow(stage, &source, &["get"]).await?;
    in_each_fork(stage, &source, async |round, world| {
        match as_account(stage, world, "r", "").await {
            Err(kube::Error::Api(status)) if status.code == 403 => {}
            first => panic!("round {round}: {first:?}"),
        }
        match as_account(stage, world, "r", "/none").await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            first => panic!("round {round}: {first:?}"),
        }
    })
    .await
}

/// All that the authorizer answers at the end, it answers before the loss too.
async fn what_was_lost_for_a_while_is_granted_at_the_first_request(stage: &Stage) -> Result<()> {
    let source = stage.namespace().await?;
    bound(stage, &source, "r", &["get", "list"]).await?;
    allow(stage, &source, &["get"]).await?;
    allow(stage, &source, &["get", "list"]).await?;
    in_each_fork(stage, &source, async |round, world| {
        let first = as_account(stage, world, "r", "").await;
        assert!(first.is_ok(), "round {round}: {first:?}");
    })
    .await
}

/// Forks a namespace as it is now again and again, and looks at each fork once it is ready.
async fn in_each_fork(stage: &Stage, source: &str, look: impl AsyncFn(usize, &str)) -> Result<()> {
    let moment = stage.worlds.moment(source).await?;
    let forks = (0..rounds(200)?).map(async |round| {
        let world = stage.worlds.fork(&moment).await?;
        world.ready(&stage.client).await?;
        look(round, world.namespace()).await;
        stage.worlds.erase(world).await?;
        Ok(())
    });
    futures::stream::iter(forks).buffer_unordered(AT_ONCE).try_collect().await
}

/// What the role `r` allows from now on.
async fn allow(stage: &Stage, namespace: &str, verbs: &[&str]) -> Result<()> {
    let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/r");
    let role = json!({ "rules": rules(verbs) });
    request(&stage.client, "PATCH", &path, Some(&role)).await?;
    Ok(())
}

/// Of config maps.
fn rules(verbs: &[&str]) -> Value {
    json!([{ "apiGroups": [""], "resources": ["configmaps"], "verbs": verbs }])
}

/// A service account with a role of its own.
pub(super) async fn bound(
    stage: &Stage,
    namespace: &str,
    name: &str,
    verbs: &[&str],
) -> Result<()> {
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}");
    let role = json!({
        "metadata": { "name": name },
        "rules": rules(verbs),
    });
    stage.create(&format!("{rbac}/roles"), &role).await?;
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": namespace }],
    });
    stage.create(&format!("{rbac}/rolebindings"), &binding).await?;
    Ok(())
}

/// Reads config maps as a service account, on a connection that is open already: a new one would take
/// longer than the authorizer does.
async fn as_account(
    stage: &Stage,
    namespace: &str,
    name: &str,
    map: &str,
) -> Result<Value, kube::Error> {
    let request = http::Request::get(format!("/api/v1/namespaces/{namespace}/configmaps{map}"))
        .header("Impersonate-User", format!("system:serviceaccount:{namespace}:{name}"))
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    stage.client.request(request).await
}
