//! The custom resource and the role, as they ship, on a real server.

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{CustomResourceExt as _, ResourceExt as _};
use laggard::Plane;
use laggard::lag::model::Outcome;
use laggard::plane::BackendKind::Process;
use rollout_tests::Stage;
use rollout_tests::stage::NODE;
use seinode_operator::api::SeiNode;
use seinode_operator::controller;
use serde_json::{Value, json};

const CRD: &str = include_str!("../../operator/deploy/crd.json");
const RBAC: &str = include_str!("../../operator/deploy/rbac.yaml");

#[test]
fn the_definition_that_ships_is_the_codes() -> Result<()> {
    let shipped: Value = serde_json::from_str(CRD)?;
    ensure!(
        shipped == json!(SeiNode::crd()),
        "run: cargo run -p seinode-operator -- crd > operator/deploy/crd.json"
    );
    Ok(())
}

#[tokio::test]
async fn a_node_that_makes_no_sense_is_refused() -> Result<()> {
    let plane = Plane::builder().crds([SeiNode::crd()]).start().await?;
    let namespace = plane.namespace("resource").await?;
    let nodes: Api<SeiNode> = Api::namespaced(plane.client()?, &namespace);
    let node = |more: Value| -> Result<SeiNode> {
        let mut node = json!({
            "metadata": { "generateName": "n-" },
            "spec": { "chainId": "c", "image": "v1" },
        });
        let spec = node["spec"].as_object_mut().context("no spec")?;
        spec.extend(more.as_object().context("no object")?.clone());
        Ok(serde_json::from_value(node)?)
    };
    let mode = "exactly one of fullNode, archive, replayer and validator";
    for (more, expected) in [
        (json!({}), mode),
        (json!({ "fullNode": {}, "archive": {} }), mode),
        (json!({ "replayer": {} }), "a replayer needs at least one entry in peers"),
        (json!({ "replayer": {}, "peers": [] }), "a replayer needs at least one entry in peers"),
        (json!({ "fullNode": {}, "image": "" }), "spec.image"),
        (json!({ "fullNode": {}, "chainId": "" }), "spec.chainId"),
    ] {
        let refused = nodes.create(&PostParams::default(), &node(more.clone())?).await;
        let error = refused.err().with_context(|| format!("{more} was accepted"))?.to_string();
        ensure!(error.contains(expected), "{more}: {error}");
    }
    for more in [
        json!({ "archive": { "any": { "setting": 1 } } }),
        json!({ "replayer": {}, "peers": [{ "static": {} }] }),
    ] {
        nodes.create(&PostParams::default(), &node(more)?).await?;
    }

    let import = json!({ "fullNode": {}, "dataVolume": { "import": { "pvcName": "a" } } });
    let name = nodes.create(&PostParams::default(), &node(import)?).await?.name_any();
    for (change, expected) in [
        (json!({ "dataVolume": { "import": { "pvcName": "b" } } }), "pvcName is immutable"),
        (json!({ "dataVolume": { "import": null } }), "dataVolume.import may not be unset"),
        (json!({ "dataVolume": null }), "dataVolume.import may not be unset"),
    ] {
        let patch = Patch::Merge(json!({ "spec": change }));
        let refused = nodes.patch(&name, &PatchParams::default(), &patch).await;
        let error = refused.err().with_context(|| format!("{change} was accepted"))?.to_string();
        ensure!(error.contains(expected), "{change}: {error}");
    }
    plane.stop().await?;
    Ok(())
}

/// The controller under the role that ships, from a new node to its deletion: no request is denied.
#[tokio::test]
async fn the_role_is_enough() -> Result<()> {
    let stage = Stage::empty(Process).await?;
    for document in serde_saphyr::from_multiple::<DynamicObject>(RBAC)? {
        apply(&stage, &document).await?;
    }
    let lag = stage.lag_as("system:serviceaccount:seinode-system:seinode-operator")?;
    let sidecars = std::sync::Arc::clone(&stage.context.sidecars);
    let settings = stage.context.settings.clone();
    let controller = tokio::spawn(controller::run(lag.client(), sidecars, settings));
    stage.create_node("v1").await?;
    stage.reaches("v1").await.with_context(|| lag.to_string())?;
    stage.set_image("v2").await?;
    stage.reaches("v2").await.with_context(|| lag.to_string())?;
    stage.api::<SeiNode>().delete(NODE, &Default::default()).await?;
    stage.node_gone().await.with_context(|| lag.to_string())?;
    controller.abort();
    let denied: Vec<_> = lag
        .requests()
        .iter()
        .filter(|request| request.outcome == Outcome::Status(403))
        .map(|request| format!("{} {}", request.verb, request.target()))
        .collect();
    ensure!(denied.is_empty(), "{denied:#?}");
    stage.end().await
}

/// Applies a document of the role; its service account needs a namespace that is not shipped.
async fn apply(stage: &Stage, document: &DynamicObject) -> Result<()> {
    let types = document.types.clone().context("a document without kind")?;
    if types.kind == "ServiceAccount" {
        // Impersonated by name; the object itself grants nothing.
        return Ok(());
    }
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
    let api: Api<DynamicObject> = Api::all_with(stage.client(), &resource);
    let params = PatchParams::apply("test").validation_strict();
    api.patch(&document.name_any(), &params, &Patch::Apply(document)).await?;
    Ok(())
}
