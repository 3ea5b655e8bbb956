//! Where others may act: leaving out the moments that cannot be told apart loses nothing that a process can see.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Resource;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::reflector::ObjectRef;
use laggard::Plane;
use laggard::check::{Actor, BoxError, Check, Scenario, SetUp, World};
use laggard::lag::model::{Bounds, Completeness};
use serde::de::DeserializeOwned;
use serde_json::json;

type Seen = Arc<Mutex<BTreeSet<Vec<String>>>>;

/// What a read of one object says about it, in any world.
async fn state<K>(world: &World, name: &str) -> Result<String, BoxError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let object = world.api::<K>().get_opt(name).await?;
    let value =
        |object: K| object.meta().annotations.clone().unwrap_or_default().get("is").cloned();
    Ok(format!("{name} {:?}", object.map(value)))
}

async fn process(world: World, seen: Seen) -> Result<(), BoxError> {
    let cache = world.cache::<Secret>().await?;
    let key = ObjectRef::new("s").within(world.namespace());
    let mut saw = Vec::new();
    world
        .pass("one", async {
            saw.push(state::<ConfigMap>(&world, "a").await?);
            saw.push(format!(
                "cached {:?}",
                cache.get(&key).map(|s| s.metadata.annotations.clone())
            ));
            saw.push(state::<Secret>(&world, "s").await?);
            let touch = Patch::Merge(json!({"metadata": {"annotations": {"touched": "yes"}}}));
            world.api::<ConfigMap>().patch("c", &PatchParams::default(), &touch).await?;
            saw.push(state::<ConfigMap>(&world, "a").await?);
            saw.push(format!(
                "cached {:?}",
                cache.get(&key).map(|s| s.metadata.annotations.clone())
            ));
            Ok::<(), BoxError>(())
        })
        .await?;
    seen.lock().unwrap().insert(saw);
    Ok(())
}

fn scenario(seen: &Seen) -> Scenario {
    let seen = Arc::clone(seen);
    Scenario::new("placements", move |world: World| process(world, Arc::clone(&seen)))
        .set_up(|world: SetUp| async move {
            for name in ["a", "c"] {
                let map = serde_json::from_value(json!({"metadata": {"name": name}}))?;
                world.api::<ConfigMap>().create(&PostParams::default(), &map).await?;
            }
            let secret = serde_json::from_value(json!({"metadata": {"name": "s"}}))?;
            world.api::<Secret>().create(&PostParams::default(), &secret).await?;
            Ok::<(), BoxError>(())
        })
        .actor(
            Actor::disturbance("annotates the secret", |truth, acting| {
                truth.get::<Secret>("s")?;
                let secrets = acting.api::<Secret>();
                Some(Box::pin(async move {
                    let is = Patch::Merge(json!({"metadata": {"annotations": {"is": "new"}}}));
                    secrets.patch("s", &PatchParams::default(), &is).await?;
                    Ok(())
                }))
            })
            .writing::<Secret>(),
        )
        .actor(
            Actor::disturbance("deletes a map", |truth, acting| {
                truth.get::<ConfigMap>("a")?;
                let maps = acting.api::<ConfigMap>();
                Some(Box::pin(async move {
                    maps.delete("a", &DeleteParams::default()).await?;
                    Ok(())
                }))
            })
            .writing::<ConfigMap>(),
        )
}

async fn explore(plane: &Plane, check: Check) -> Result<(BTreeSet<Vec<String>>, u64)> {
    let seen = Seen::default();
    let check = check.bounds(Bounds::none()).without_files();
    let report = check.run(plane, scenario(&seen)).await?;
    println!("{report}");
    let exhausted = matches!(report.verdict.completeness, Completeness::Exhausted { .. });
    ensure!(exhausted, "{report}");
    let seen = seen.lock().unwrap().clone();
    Ok((seen, report.verdict.runs))
}

#[tokio::test]
async fn fewer_moments_show_a_process_everything_that_all_moments_do() -> Result<()> {
    let plane = crate::plane().await?;
    let (all, many) = explore(&plane, Check::new().at_every_moment()).await?;
    let (reduced, few) = explore(&plane, Check::new()).await?;
    ensure!(reduced == all, "{few} of {many} runs, {} of {} sequences", reduced.len(), all.len());
    ensure!(few < many && few >= all.len() as u64, "{few} of {many} runs for {}", all.len());
    plane.stop().await?;
    Ok(())
}
