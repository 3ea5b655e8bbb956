//! Trigger before cache: `owns` and the application's own reflector are two watches, with no order between them.
//!
//! The trigger for a change begins a pass whose store does not have the change yet. When the store has it, nothing begins
//! another pass, since a store triggers nothing: the change is never acted upon.

use std::sync::Arc;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{
        Controller,
        controller::Action,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use laggard::{
    check::{Actor, BoxError, Scenario, SetUp, World},
    lag::model::Needs,
};
use serde_json::json;

use crate::{expect, found, passes, plane};

/// How a pass reads the secret.
#[derive(Clone)]
enum Read {
    Cached(Store<Secret>),
    Live,
}

struct App {
    world: World,
    read: Read,
}

/// Writes down which token the secret has.
async fn reconcile(map: Arc<ConfigMap>, app: Arc<App>) -> Result<Action, kube::Error> {
    let secret = match &app.read {
        Read::Cached(store) => {
            let secret = store.get(&ObjectRef::new("token").within(app.world.namespace()));
            secret.map(|secret| (*secret).clone())
        }
        Read::Live => app.world.api::<Secret>().get_opt("token").await?,
    };
    let token = secret.and_then(|secret| secret.annotations().get("token").cloned());
    if map.annotations().get("token") != token.as_ref() {
        let seen = Patch::Merge(json!({"metadata": {"annotations": {"token": token}}}));
        app.world.api::<ConfigMap>().patch("app", &PatchParams::default(), &seen).await?;
    }
    Ok(Action::await_change())
}

fn wait_for_change<T>(_: Arc<ConfigMap>, _: &T, _: Arc<App>) -> Action {
    Action::await_change()
}

async fn process(world: World, live: bool, bracketed: bool) -> Result<(), BoxError> {
    let read = if live { Read::Live } else { Read::Cached(world.store::<Secret>().await?) };
    let app = Arc::new(App { world: world.clone(), read });
    let controller = Controller::new(world.api::<ConfigMap>(), watcher::Config::default())
        .owns(world.api::<Secret>(), watcher::Config::default());
    if bracketed {
        let bracketed = |map: Arc<ConfigMap>, app: Arc<App>| async move {
            app.world.passes().run(map.name_any(), reconcile(map, Arc::clone(&app))).await
        };
        world.drive(controller.run(bracketed, wait_for_change, app)).await?;
    } else {
        world.drive_unbracketed(controller.run(reconcile, wait_for_change, app)).await?;
    }
    Ok(())
}

async fn set_up(world: SetUp) -> Result<()> {
    let app = serde_json::from_value(json!({"metadata": {"name": "app"}}))?;
    let app: ConfigMap = world.api().create(&PostParams::default(), &app).await?;
    let secret = serde_json::from_value(json!({"metadata": {
        "name": "token", "annotations": {"token": "1"}, "ownerReferences": [app.controller_owner_ref(&())],
    }}))?;
    world.api::<Secret>().create(&PostParams::default(), &secret).await?;
    Ok(())
}

fn token(of: Option<&impl ResourceExt>) -> Option<String> {
    of?.annotations().get("token").cloned()
}

fn scenario(name: &str, live: bool, bracketed: bool) -> Scenario {
    Scenario::new(name, move |world: World| process(world, live, bracketed))
        .set_up(set_up)
        .actor(Actor::new("rotation", |truth, acting| {
            let secret = truth.get::<Secret>("token")?;
            secret.annotations().get("token").filter(|token| *token == "1")?;
            let secrets = acting.api::<Secret>();
            Some(Box::pin(async move {
                let next = Patch::Merge(json!({"metadata": {"annotations": {"token": "2"}}}));
                secrets.patch("token", &PatchParams::default(), &next).await?;
                Ok(())
            }))
        }))
        .after_settle("the app knows the token", |truth| {
            let (app, secret) = (truth.get::<ConfigMap>("app"), truth.get::<Secret>("token"));
            token(app.as_ref()) == token(secret.as_ref())
        })
}

async fn found_and_fixed(bracketed: bool) -> Result<()> {
    let plane = plane().await?;
    let name = "trigger before cache";
    let finding = found(&plane, scenario(name, false, bracketed)).await?;
    expect(&finding, "the app knows the token", Needs::Staleness, "secrets@t1:-1")?;
    let report = passes(&plane, scenario(name, true, bracketed)).await?;
    ensure!(report.verdict.runs > 10 && report.verdict.is_at_boundaries(), "{report}");
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_pass_that_runs_before_its_store_has_the_change_is_found_and_a_live_read_passes()
-> Result<()> {
    found_and_fixed(true).await
}

#[tokio::test]
async fn the_same_with_a_controller_whose_passes_are_not_bracketed() -> Result<()> {
    found_and_fixed(false).await
}
