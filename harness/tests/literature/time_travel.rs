//! Time travel: a process lists at resource version 0, sees the past, and deletes by name what has been made anew.
//!
//! Figure 5 of "Automatic Reliability Testing for Cluster Management Controllers" (Sieve, OSDI 2022). The process
//! deletes what is marked obsolete, and waits until its store shows that, so that mere lag does not mislead it. After a
//! restart an API server that is behind shows it the mark again.

use anyhow::Result;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
    runtime::watcher,
};
use laggard::{
    check::{Actor, BoxError, Scenario, World},
    lag::model::Needs,
};
use serde_json::json;

use crate::{make_maps, value};

/// From where a store is filled, and what a deletion says.
#[derive(Clone)]
struct Form {
    config: watcher::Config,
    by_uid: bool,
}

async fn process(world: World, form: Form) -> Result<(), BoxError> {
    let maps = world.api::<ConfigMap>();
    let barrier = world.barrier::<ConfigMap>(form.config).await?;
    let pass = || async {
        let obsolete = barrier.store().find(|map| value(map, "obsolete").is_some());
        let Some(map) = obsolete else { return Ok(()) };
        let uid = form.by_uid.then(|| map.metadata.uid.clone()).flatten();
        let preconditions = uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match maps.delete(&map.name_any(), &params).await {
            // Whoever is not there, or is another one, need not be deleted.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            deleted => drop(deleted?),
        }
        world.waiting(barrier.until_shown(&barrier.deleted(&map)?)).await?;
        Ok::<(), BoxError>(())
    };
    world.until_settled("demo", pass).await?;
    Ok(())
}

fn scenario(config: watcher::Config, by_uid: bool) -> Scenario {
    let form = Form { config, by_uid };
    let user = Actor::new("user", |truth, acting| {
        let gone = truth.get::<ConfigMap>("volume").is_none();
        let maps = acting.api::<ConfigMap>();
        gone.then(|| -> laggard::check::Step {
            Box::pin(async move {
                let map = serde_json::from_value(json!({"metadata": {"name": "volume"}}))?;
                maps.create(&PostParams::default(), &map).await?;
                Ok(())
            })
        })
    });
    Scenario::new("time travel", move |world| process(world, form.clone()))
        .set_up(|world| async move {
            make_maps(&world, [("volume", json!({"obsolete": "yes"}))]).await
        })
        .actor(user.at_most(1))
        .after_settle("the new volume is there", |truth| truth.get::<ConfigMap>("volume").is_some())
}

fn any_state() -> watcher::Config {
    watcher::Config { page_size: None, ..watcher::Config::default().any_semantic() }
}

#[tokio::test]
async fn a_restart_that_lists_the_past_deletes_the_new_object_unless_it_says_which() -> Result<()> {
    let plane = crate::plane().await?;
    let finding = crate::found(&plane, scenario(any_state(), false).with_restarts()).await?;
    let token = "write@f1:restart,configmaps@i1:-1,configmaps@t1:-2";
    crate::expect(&finding, "uid care", Needs::Staleness, token)?;
    // With consistent lists there is no way back in time; without a restart there is none either.
    let consistent = watcher::Config::default();
    crate::passes(&plane, scenario(consistent, false).with_restarts().with_relists()).await?;
    crate::passes(&plane, scenario(any_state(), false)).await?;
    crate::passes(&plane, scenario(any_state(), true).with_restarts()).await?;
    plane.stop().await?;
    Ok(())
}

/// `streaming_lists` asks for any state again whenever the server has forgotten where the watch was.
#[tokio::test]
async fn a_relist_of_a_streaming_list_is_as_bad() -> Result<()> {
    let plane = crate::plane().await?;
    let forgetful =
        |by_uid| scenario(watcher::Config::default().streaming_lists(), by_uid).with_relists();
    let finding = crate::found(&plane, forgetful(false)).await?;
    let token = "configmaps@f2:relist,configmaps@i1:-2,configmaps@t2:-2";
    crate::expect(&finding, "uid care", Needs::Staleness, token)?;
    crate::passes(&plane, forgetful(true)).await?;
    plane.stop().await?;
    Ok(())
}
