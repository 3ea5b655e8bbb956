//! Read after own write: a pass raises a size, reads the object back from its cache, and reports the old one as reached.
//!
//! The seed of this project: the StatefulSet that was just applied is read from the watch cache, which still
//! has the one before.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    runtime::reflector::ObjectRef,
};
use laggard::check::{BoxError, Check, Scenario, SetUp, Truth, World};
use serde_json::json;

async fn set_up(world: SetUp) -> Result<()> {
    let maps: Api<ConfigMap> = world.api();
    for (name, data) in [("wanted", json!({"size": "1"})), ("status", json!({"reached": "1"}))] {
        let map = serde_json::from_value(json!({"metadata": {"name": name}, "data": data}))?;
        maps.create(&PostParams::default(), &map).await?;
    }
    Ok(())
}

/// One pass: wants 2, and reports what it reads back.
async fn pass(world: &World, live: bool) -> Result<(), BoxError> {
    let (maps, apply) = (world.api::<ConfigMap>(), PatchParams::default());
    let cache = world.cache::<ConfigMap>().await?;
    world
        .pass("demo", async {
            let wanted = Patch::Merge(json!({"data": {"size": "2"}}));
            maps.patch("wanted", &apply, &wanted).await?;
            let read = if live {
                Some(maps.get("wanted").await?)
            } else {
                let read = cache.get(&ObjectRef::new("wanted").within(world.namespace()));
                read.map(|map| (*map).clone())
            };
            let size = read.and_then(|map| map.data?.get("size").cloned());
            let reached = Patch::Merge(json!({"data": {"reached": size}}));
            maps.patch("status", &apply, &reached).await?;
            Ok::<(), kube::Error>(())
        })
        .await?;
    Ok(())
}

fn value(truth: &Truth, name: &str, key: &str) -> Option<String> {
    truth.get::<ConfigMap>(name)?.data?.get(key).cloned()
}

fn scenario(live: bool) -> Scenario {
    Scenario::new("read own write", move |world: World| async move { pass(&world, live).await })
        .set_up(set_up)
        .after_settle("what is reported is so", |truth| {
            value(truth, "wanted", "size") == value(truth, "status", "reached")
        })
}

#[tokio::test]
async fn the_stale_read_is_found_and_a_live_one_passes() -> Result<()> {
    let plane = crate::plane().await?;
    let found = Check::new().without_files().run(&plane, scenario(false)).await;
    let error = found.err().context("not found")?;
    let report = error.report().with_context(|| error.to_string())?;
    println!("{error}");
    ensure!(report.findings[0].token == "configmaps/wanted@r1:-1", "{error}");
    let report = laggard::check(&plane, scenario(true)).await?;
    println!("{report}");
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn the_live_read_is_load_bearing() -> Result<()> {
    let plane = crate::plane().await?;
    let flips = laggard::Flips::new().run(&plane, [scenario(true)]).await?;
    println!("{flips}");
    ensure!(flips.load_bearing() == 1 && flips.live.len() == 1, "{flips}");
    ensure!(flips.to_string().contains("get configmaps/wanted #1"), "{flips}");
    // A suite that looks at nothing notices nothing.
    let blind = Scenario::new("blind", |world: World| async move { pass(&world, true).await });
    let error = laggard::Flips::new().run(&plane, [blind.set_up(set_up)]).await.err();
    let text = error.context("nobody noticed, and that was good")?.to_string();
    ensure!(
        text.contains("survives: this live read protects nothing that a test checks"),
        "{text}"
    );
    plane.stop().await?;
    Ok(())
}
