//! A barrier for own writes, itself explored: it lets no stale read through, and never hangs.
//!
//! Read after own write, as in the first file, with a barrier in the place of the live read. And what
//! upstream's own barriers were asked in review: what if the object leaves the selector, is deleted or made anew
//! meanwhile, or the write changes nothing?

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{reflector, watcher},
};
use laggard::{
    barrier::Shown,
    check::{Actor, BoxError, Scenario, SetUp, Step, World},
    lag::model::Needs,
};
use serde_json::{Value, json};

use crate::{value, value_of};

/// What the process waits for after its write.
#[derive(Clone, Copy)]
enum Waits {
    ForItsWrite,
    /// Takes the version that it read before for the one that it wrote.
    ForTheVersionBefore,
    Not,
}

async fn set_up(world: SetUp) -> Result<()> {
    for (name, data) in [("wanted", json!({"size": "1"})), ("status", json!({}))] {
        let metadata = json!({"name": name, "labels": {"app": "demo"}});
        let map = serde_json::from_value(json!({"metadata": metadata, "data": data}))?;
        world.api::<ConfigMap>().create(&PostParams::default(), &map).await?;
    }
    Ok(())
}

/// One pass: patches "wanted", waits, and reports what its store shows.
async fn process(world: World, patch: Value, waits: Waits) -> Result<(), BoxError> {
    let (maps, apply) = (world.api::<ConfigMap>(), PatchParams::default());
    let selected = watcher::Config::default().labels("app=demo");
    let barrier = world.barrier::<ConfigMap>(selected).await?.within(Duration::from_secs(5));
    let pass = async {
        // A vandal may have been faster.
        let Some(before) = maps.get_opt("wanted").await? else { return Ok(()) };
        let written = match maps.patch("wanted", &apply, &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            written => written?,
        };
        let awaited = match waits {
            Waits::ForItsWrite => Some(barrier.wrote(&written)?),
            Waits::ForTheVersionBefore => Some(barrier.wrote(&before)?),
            Waits::Not => None,
        };
        let shown = match &awaited {
            Some(write) => world.waiting(barrier.until_shown(write)).await?,
            None => Shown::Object,
        };
        let key = reflector::ObjectRef::from_obj(&written);
        let read = barrier.store().get(&key).filter(|_| shown == Shown::Object);
        let report = json!({"data": {"reached": read.map(|map| value(&map, "size"))}});
        maps.patch("status", &apply, &Patch::Merge(report)).await?;
        Ok::<(), BoxError>(())
    };
    world.pass("demo", pass).await
}

fn scenario(patch: Value, waits: Waits) -> Scenario {
    Scenario::new("barrier", move |world| process(world, patch.clone(), waits)).set_up(set_up)
}

/// Raises the size, and must report that or nothing.
fn raises(waits: Waits) -> Scenario {
    scenario(json!({"data": {"size": "2"}}), waits)
        .after_settle("no old size is reported", |truth| {
            value_of(truth, "status", "reached").is_none_or(|reached| reached == "2")
        })
}

/// Whoever deletes the object, and makes it anew, at any point.
fn vandal() -> Actor {
    let vandal = Actor::disturbance("vandal", |truth, acting| {
        let maps = acting.api::<ConfigMap>();
        let step: Step = if truth.get::<ConfigMap>("wanted").is_some() {
            Box::pin(async move {
                maps.delete("wanted", &DeleteParams::default()).await?;
                Ok(())
            })
        } else {
            Box::pin(async move {
                let metadata = json!({"name": "wanted", "labels": {"app": "demo"}});
                let map = json!({"metadata": metadata, "data": {"size": "7"}});
                maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
                Ok(())
            })
        };
        Some(step)
    });
    vandal.at_most(2)
}

#[tokio::test]
async fn a_barrier_for_the_write_lets_no_old_view_through_and_one_that_ends_early_is_found()
-> Result<()> {
    let plane = crate::plane().await?;
    for waits in [Waits::Not, Waits::ForTheVersionBefore] {
        let finding = crate::found(&plane, raises(waits)).await?;
        let token = "configmaps@q2:-1";
        crate::expect(&finding, "no old size is reported", Needs::Staleness, token)?;
    }
    let report = crate::passes(&plane, raises(Waits::ForItsWrite)).await?;
    // Held at the reply to the write, the stream moves at the wait.
    anyhow::ensure!(report.verdict.points > 2, "{report}");
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_barrier_does_not_hang_whatever_becomes_of_the_object() -> Result<()> {
    let plane = crate::plane().await?;
    crate::passes(&plane, raises(Waits::ForItsWrite).actor(vandal())).await?;
    let without_label = json!({"metadata": {"labels": {"app": "other"}}});
    let leaves = scenario(without_label, Waits::ForItsWrite);
    crate::passes(&plane, leaves.actor(vandal())).await?;
    let no_op = scenario(json!({"data": {"size": "1"}}), Waits::ForItsWrite);
    crate::passes(&plane, no_op.actor(vandal())).await?;
    plane.stop().await?;
    Ok(())
}
