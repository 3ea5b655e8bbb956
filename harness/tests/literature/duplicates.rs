//! Duplicate children: a pass creates a child under a generated name whenever its list shows none.
//!
//! k0smotron #1535 (six Machines for `replicas: 1`), KubeRay #704 and #715 (duplicate pods): the list is the
//! cache's, and that has not seen the child of the pass before. Their fix, and the one here: a name that
//! follows from the owner, which the server gives to one object only.

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use laggard::{
    check::{BoxError, Scenario, World},
    lag::model::Needs,
};
use serde_json::{Value, json};

fn worker(metadata: &Value) -> Result<Pod, serde_json::Error> {
    let containers = json!([{"name": "worker", "image": "worker:1"}]);
    serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": containers}}))
}

/// One worker is wanted.
async fn process(world: World, metadata: Value) -> Result<(), BoxError> {
    let (pods, worker) = (world.api::<Pod>(), worker(&metadata)?);
    let cache = world.cache::<Pod>().await?;
    let pass = || async {
        if cache.is_empty() {
            match pods.create(&PostParams::default(), &worker).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                created => drop(created?),
            }
        }
        Ok::<(), kube::Error>(())
    };
    world.until_settled("demo", pass).await?;
    Ok(())
}

fn scenario(metadata: Value) -> Scenario {
    Scenario::new("duplicates", move |world| process(world, metadata.clone()))
        .never("two workers", |truth| truth.list::<Pod>().len() > 1)
}

#[tokio::test]
async fn a_stale_list_makes_a_second_child_unless_its_name_is_fixed() -> Result<()> {
    let plane = crate::plane().await?;
    let generated = json!({"generateName": "worker-"});
    let finding = crate::found(&plane, scenario(generated.clone())).await?;
    crate::expect(&finding, "two workers", Needs::Staleness, "pods@r1:-1")?;
    // Nobody has to say what is wrong with that.
    let unsaid = Scenario::new("duplicates", move |world| process(world, generated.clone()));
    let finding = crate::found(&plane, unsaid).await?;
    crate::expect(&finding, "frozen-cache idempotence", Needs::Staleness, "pods@r1:-1")?;
    crate::passes(&plane, scenario(json!({"name": "worker-0"}))).await?;
    plane.stop().await?;
    Ok(())
}
