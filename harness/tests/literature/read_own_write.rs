//! Read after own write: a pass raises a size, reads the object back from its cache, and reports the old one as reached.
//!
//! The seed of this project: the StatefulSet that was just applied is read from the watch cache, which still
//! has the one before.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    api::{Patch, PatchParams},
    runtime::reflector::ObjectRef,
};
use laggard::{
    check::{BoxError, Scenario, SetUp, World},
    lag::model::Needs,
};
use serde_json::json;

use crate::{make_maps, value, value_of};

async fn set_up(world: SetUp) -> Result<()> {
    make_maps(&world, [("wanted", json!({"size": "1"})), ("status", json!({"reached": "1"}))]).await
}

/// Until 2 is reported: wants 2, and reports what it reads back.
async fn process(world: World, live: bool) -> Result<(), BoxError> {
    let (maps, apply) = (world.api::<ConfigMap>(), PatchParams::default());
    let cache = world.cache::<ConfigMap>().await?;
    let cached = |name| cache.get(&ObjectRef::new(name).within(world.namespace()));
    let pass = || async {
        if cached("status").is_some_and(|status| value(&status, "reached").as_deref() == Some("2"))
        {
            return Ok(());
        }
        maps.patch("wanted", &apply, &Patch::Merge(json!({"data": {"size": "2"}}))).await?;
        let size = if live {
            value(&maps.get("wanted").await?, "size")
        } else {
            cached("wanted").and_then(|map| value(&map, "size"))
        };
        maps.patch("status", &apply, &Patch::Merge(json!({"data": {"reached": size}}))).await?;
        Ok::<(), kube::Error>(())
    };
    world.until_settled("demo", pass).await?;
    Ok(())
}

fn scenario(live: bool) -> Scenario {
    Scenario::new("read own write", move |world| process(world, live)).set_up(set_up).never_write(
        "what is reported is so",
        |write, truth| {
            let reported =
                write.request.body.as_ref().and_then(|body| body.pointer("/data/reached"));
            let wanted = value_of(truth, "wanted", "size");
            reported.is_some_and(|reported| reported.as_str() != wanted.as_deref())
        },
    )
}

#[tokio::test]
async fn the_stale_read_is_found_and_a_live_one_passes() -> Result<()> {
    let plane = crate::plane().await?;
    let finding = crate::found(&plane, scenario(false)).await?;
    let token = "configmaps/wanted@r1:-1";
    crate::expect(&finding, "what is reported is so", Needs::Staleness, token)?;
    let report = crate::passes(&plane, scenario(true)).await?;
    // All that the process reads from is wrapped.
    ensure!(!report.verdict.is_at_boundaries(), "{report}");
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
    let blind = Scenario::new("blind", |world: World| process(world, true)).set_up(set_up);
    let error = laggard::Flips::new().run(&plane, [blind]).await.err();
    let text = error.context("nobody noticed, and that was good")?.to_string();
    ensure!(
        text.contains("survives: this live read protects nothing that a test checks"),
        "{text}"
    );
    plane.stop().await?;
    Ok(())
}
