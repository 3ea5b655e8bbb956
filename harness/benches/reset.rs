//! What it takes to put a plane back, against a restart.

#![expect(clippy::print_stdout, reason = "a bench is a program that prints")]

mod figures;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use laggard::Plane;
use serde_json::{from_value, json};

use figures::{Figures, Limit, spread};

/// Resets and restarts, taken in turns.
const ROUNDS: usize = 10;

/// How many objects are made between two resets, the definition and its object included.
const OBJECTS: usize = 100;

#[tokio::main]
async fn main() -> Result<()> {
    let plane = Plane::builder().start().await?;
    let moment = plane.moment().await?;
    let (mut resets, mut restarts) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        dirty(&plane, round).await?;
        let begun = Instant::now();
        let reset = plane.reset(&moment).await?;
        resets.push(begun.elapsed());
        ensure!(reset.deleted.len() >= OBJECTS, "{} objects were deleted", reset.deleted.len());

        let another = Plane::builder().start().await?;
        dirty(&another, round).await?;
        restarts.push(restarted(another).await?);
    }
    plane.stop().await?;
    let mut figures = Figures::of("reset");
    let (reset, _) = spread(&mut resets);
    let (restart, _) = spread(&mut restarts);
    figures.time(&format!("reset after {OBJECTS} objects, median"), reset, None);
    figures.time("restart, to the first step of readiness, median", restart, None);
    let ratio = reset.as_secs_f64() / restart.as_secs_f64();
    figures.ratio("reset against restart", ratio, Limit::AtMost(0.1));
    figures.finish()
}

/// How long it takes to stop a plane and to start one.
async fn restarted(plane: Plane) -> Result<Duration> {
    let begun = Instant::now();
    plane.stop().await?;
    let plane = Plane::builder().start().await?;
    let took = begun.elapsed();
    plane.stop().await?;
    Ok(took)
}

async fn dirty(plane: &Plane, round: usize) -> Result<()> {
    let definition: CustomResourceDefinition = from_value(json!({
        "metadata": { "name": "gadgets.reset.bench.local" },
        "spec": {
            "group": "reset.bench.local", "scope": "Cluster",
            "names": { "kind": "Gadget", "plural": "gadgets", "singular": "gadget" },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": {
                    "type": "object", "properties": { format!("of{round}"): { "type": "string" } },
                } },
            }],
        },
    }))?;
    plane.install_crds(&[definition]).await?;
    let client = plane.client()?;
    let kind = GroupVersionKind::gvk("reset.bench.local", "v1", "Gadget");
    let resource = ApiResource::from_gvk_with_plural(&kind, "gadgets");
    let gadgets: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    gadgets.create(&PostParams::default(), &DynamicObject::new("g", &resource)).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    for index in 2..OBJECTS {
        let map: ConfigMap = from_value(json!({ "metadata": { "name": format!("m{index}") } }))?;
        maps.create(&PostParams::default(), &map).await?;
    }
    Ok(())
}
