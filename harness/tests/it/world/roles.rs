//! A role of a world holds at the first request after the world is ready, and so does its loss.

use anyhow::Result;
use kube::Client;
use serde_json::json;

use super::stage::{Stage, request, rounds};

on_each_server!(
    ;
    a_role_holds_at_the_first_request,
    what_a_role_lost_is_lost_at_the_first_request
);

async fn a_role_holds_at_the_first_request(stage: &Stage) -> Result<()> {
    let source = stage.namespace().await?;
    for number in 0..3 {
        let role = format!("r{number}");
        bound(stage, &source, &role, &["get", "list"]).await?;
    }
    let moment = stage.worlds.moment(&source).await?;
    for round in 0..rounds(100)? {
        let world = stage.worlds.fork(&moment).await?;
        world.ready(&stage.client).await?;
        for number in 0..3 {
            let client = account(stage, world.namespace(), &format!("r{number}"))?;
            let path = format!("/api/v1/namespaces/{}/configmaps", world.namespace());
            let first = request(&client, "GET", &path, None).await;
            assert!(first.is_ok(), "round {round}: {first:?}");
        }
        stage.worlds.erase(world).await?;
    }
    Ok(())
}

async fn what_a_role_lost_is_lost_at_the_first_request(stage: &Stage) -> Result<()> {
    let source = stage.namespace().await?;
    bound(stage, &source, "r", &["get", "list"]).await?;
    let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{source}/roles/r");
    let rules = json!({ "rules": [
        { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"] },
    ] });
    request(&stage.client, "PATCH", &path, Some(&rules)).await?;
    let moment = stage.worlds.moment(&source).await?;
    for round in 0..rounds(100)? {
        let world = stage.worlds.fork(&moment).await?;
        world.ready(&stage.client).await?;
        let client = account(stage, world.namespace(), "r")?;
        let maps = format!("/api/v1/namespaces/{}/configmaps", world.namespace());
        match request(&client, "GET", &maps, None).await {
            Err(kube::Error::Api(status)) if status.code == 403 => {}
            first => panic!("round {round}: {first:?}"),
        }
        match request(&client, "GET", &format!("{maps}/none"), None).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            first => panic!("round {round}: {first:?}"),
        }
        stage.worlds.erase(world).await?;
    }
    Ok(())
}

/// A service account with a role of its own.
async fn bound(stage: &Stage, namespace: &str, name: &str, verbs: &[&str]) -> Result<()> {
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}");
    let role = json!({
        "metadata": { "name": name },
        "rules": [{ "apiGroups": [""], "resources": ["configmaps"], "verbs": verbs }],
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

fn account(stage: &Stage, namespace: &str, name: &str) -> Result<Client> {
    let mut config = stage.plane.config();
    config.auth_info.impersonate = Some(format!("system:serviceaccount:{namespace}:{name}"));
    Ok(Client::try_from(config)?)
}
