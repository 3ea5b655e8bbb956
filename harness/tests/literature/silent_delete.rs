//! Silent deletion: an object that is deleted while its watch begins anew triggers nothing.
//!
//! A watch whose resource version has expired lists again. kube's triggers are made of the objects in that list, so the
//! owner of one that has gone meanwhile is not triggered, and the object is never made again.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use futures::{StreamExt, future::ready};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Resource, ResourceExt,
    api::{DeleteParams, PostParams},
    runtime::{
        Controller, WatchStreamExt, controller::Action, utils::Backoff, watcher, watcher::Event,
    },
};
use laggard::{
    check::{Actor, BoxError, Scenario, SetUp, World},
    lag::model::Needs,
};
use serde_json::json;

use crate::{expect, found, passes, plane};

/// Makes the secret of the app where there is none.
async fn reconcile(app: Arc<ConfigMap>, world: Arc<World>) -> Result<Action, kube::Error> {
    let secrets = world.api::<Secret>();
    if secrets.get_opt("made").await?.is_none() {
        let mut secret = Secret::default();
        secret.metadata.name = Some("made".to_owned());
        secret.metadata.owner_references = app.controller_owner_ref(&()).map(|owner| vec![owner]);
        secrets.create(&PostParams::default(), &secret).await?;
    }
    Ok(Action::await_change())
}

/// How the controller hears of its secrets.
#[derive(Clone, Copy)]
enum Triggers {
    Owns,
    /// A list is a reason to look at everything again.
    AllOnList,
}

async fn process(world: World, triggers: Triggers) -> Result<(), BoxError> {
    let (apps, secrets) = (world.api::<ConfigMap>(), world.api::<Secret>());
    let any = watcher::Config::default;
    let controller = Controller::new(apps, any()).trigger_backoff(Briefly);
    let controller = match triggers {
        Triggers::Owns => controller.owns(secrets, any()),
        Triggers::AllOnList => {
            let changes = watcher(secrets, any()).backoff(Briefly).filter_map(|event| {
                let change =
                    matches!(event, Ok(Event::Delete(_) | Event::Apply(_) | Event::InitDone));
                ready(change.then_some(()))
            });
            controller.reconcile_all_on(changes)
        }
    };
    let bracketed = |app: Arc<ConfigMap>, world: Arc<World>| async move {
        world.passes().run(app.name_any(), reconcile(app, Arc::clone(&world))).await
    };
    let policy = |_: Arc<ConfigMap>, _: &kube::Error, _: Arc<World>| Action::await_change();
    world.drive(controller.run(bracketed, policy, Arc::new(world.clone()))).await?;
    Ok(())
}

/// kube's own pause after an error is a second, which is no part of what is shown here.
struct Briefly;

impl Iterator for Briefly {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(5))
    }
}

impl Backoff for Briefly {
    fn reset(&mut self) {}
}

async fn set_up(world: SetUp) -> Result<()> {
    let app = serde_json::from_value(json!({"metadata": {"name": "app"}}))?;
    world.api::<ConfigMap>().create(&PostParams::default(), &app).await?;
    Ok(())
}

fn scenario(triggers: Triggers) -> Scenario {
    Scenario::new("silent deletion", move |world: World| process(world, triggers))
        .set_up(set_up)
        .with_relists()
        .actor(Actor::disturbance("deletion", |truth, acting| {
            truth.get::<Secret>("made")?;
            let secrets = acting.api::<Secret>();
            Some(Box::pin(async move {
                secrets.delete("made", &DeleteParams::default()).await?;
                Ok(())
            }))
        }))
        .after_settle("the app has its secret", |truth| truth.get::<Secret>("made").is_some())
}

#[tokio::test]
async fn a_deletion_behind_a_new_list_is_found_and_to_look_again_after_a_list_passes() -> Result<()>
{
    let plane = plane().await?;
    let finding = found(&plane, scenario(Triggers::Owns)).await?;
    let token = "deletion@e1:commit,secrets/metadata@f1:relist";
    expect(&finding, "the app has its secret", Needs::Environment, token)?;
    let report = passes(&plane, scenario(Triggers::AllOnList)).await?;
    ensure!(report.verdict.runs > 10, "{report}");
    plane.stop().await?;
    Ok(())
}
