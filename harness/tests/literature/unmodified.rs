//! Unmodified controllers under exploration: what their runs cover, what only a wrapped cache shows, and what they say
//! when they cannot be driven.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{Controller, controller::Action, reflector::Store, watcher},
};
use laggard::{
    check::{Actor, BoxError, BuiltIn, Check, Scenario, SetUp, World},
    lag::{
        Cache,
        model::{Bounds, Completeness, Needs, READS_BETWEEN_REPLIES},
    },
};
use serde_json::json;

use crate::{expect, found, passes, plane};

/// The secrets of a world, with a wrapper or without.
enum Secrets {
    Wrapped(Cache<Secret>),
    Plain(Store<Secret>),
}

struct App {
    world: World,
    secrets: Secrets,
}

impl App {
    /// How many there are, and then which: two reads.
    fn count_and_names(&self) -> (usize, Vec<String>) {
        let (count, secrets) = match &self.secrets {
            Secrets::Wrapped(cache) => (cache.len(), cache.state()),
            Secrets::Plain(store) => (store.len(), store.state()),
        };
        let mut names: Vec<String> = secrets.iter().map(|secret| secret.name_any()).collect();
        names.sort();
        (count, names)
    }
}

/// Reports how many secrets there are, and which.
async fn report_secrets(map: Arc<ConfigMap>, app: Arc<App>) -> Result<Action, kube::Error> {
    let (count, names) = app.count_and_names();
    let (count, names) = (count.to_string(), names.join(","));
    let known = |key: &str| map.annotations().get(key).cloned().unwrap_or_default();
    if (known("count"), known("names")) != (count.clone(), names.clone()) {
        let annotations = json!({"count": count, "names": names});
        let report = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        app.world.api::<ConfigMap>().patch("app", &PatchParams::default(), &report).await?;
    }
    Ok(Action::await_change())
}

async fn process(world: World, wrapped: bool) -> Result<(), BoxError> {
    let secrets = match wrapped {
        true => Secrets::Wrapped(world.cache().await?),
        false => Secrets::Plain(world.store().await?),
    };
    let app = Arc::new(App { world: world.clone(), secrets });
    let bracketed = |map: Arc<ConfigMap>, app: Arc<App>| async move {
        app.world.passes().run(map.name_any(), report_secrets(map, Arc::clone(&app))).await
    };
    let policy = |_: Arc<ConfigMap>, _: &kube::Error, _: Arc<App>| Action::await_change();
    let controller = Controller::new(world.api::<ConfigMap>(), watcher::Config::default())
        .owns(world.api::<Secret>(), watcher::Config::default())
        .run(bracketed, policy, app);
    world.drive(controller).await?;
    Ok(())
}

async fn make(map: &str, world: SetUp) -> Result<()> {
    let app = serde_json::from_value(json!({"metadata": {"name": map}}))?;
    world.api::<ConfigMap>().create(&PostParams::default(), &app).await?;
    Ok(())
}

/// Somebody makes a second secret for the app.
fn second_secret() -> Actor {
    Actor::new("second", |truth, acting| {
        let owner = truth.get::<ConfigMap>("app")?.controller_owner_ref(&())?;
        let metadata = json!({"name": "second", "ownerReferences": [owner]});
        if truth.get::<Secret>("second").is_some() {
            return None;
        }
        let (secrets, secret) = (acting.api::<Secret>(), json!({ "metadata": metadata }));
        Some(Box::pin(async move {
            secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
            Ok(())
        }))
    })
}

fn counting(wrapped: bool) -> Scenario {
    Scenario::new("count and names", move |world: World| process(world, wrapped))
        .set_up(|world: SetUp| make("app", world))
        .actor(second_secret())
        // That a secret may be missed for good is another defect, and found elsewhere.
        .without(BuiltIn::SameEnd)
        .never("a count that is not that of the names", |truth| {
            let map = truth.get::<ConfigMap>("app").unwrap_or_default();
            let count: usize = map.annotations().get("count")?.parse().ok()?;
            let names = map.annotations().get("names").cloned().unwrap_or_default();
            let named = names.split(',').filter(|name| !name.is_empty()).count();
            (named != count).then(|| format!("{count} of {names:?}"))
        })
}

#[tokio::test]
async fn two_reads_between_replies_are_told_apart_by_a_wrapped_cache_and_the_verdict_says_so()
-> Result<()> {
    let plane = plane().await?;
    let report = passes(&plane, counting(false)).await?;
    ensure!(report.verdict.runs > 5, "{report}");
    ensure!(report.to_string().contains("exhausted at request boundaries"), "{report}");
    let left_out = |left_out: &str| report.verdict.exclusions.iter().any(|it| it == left_out);
    ensure!(left_out(READS_BETWEEN_REPLIES) && left_out("triggers that merge"), "{report}");

    let finding = found(&plane, counting(true)).await?;
    let oracle = "a count that is not that of the names";
    expect(&finding, oracle, Needs::Staleness, "secrets@r1:-1")?;
    plane.stop().await?;
    Ok(())
}

/// Marks every map that it is given.
async fn mark(map: Arc<ConfigMap>, world: Arc<World>) -> Result<Action, kube::Error> {
    let namespace = map.namespace().unwrap_or_default();
    assert_eq!(namespace, world.namespace(), "a map of another world");
    if !map.annotations().contains_key("marked") {
        let marked = Patch::Merge(json!({"metadata": {"annotations": {"marked": "yes"}}}));
        let maps: Api<ConfigMap> = Api::namespaced(world.client(), &namespace);
        maps.patch(&map.name_any(), &PatchParams::default(), &marked).await?;
    }
    Ok(Action::await_change())
}

fn marking(
    drive: fn(World) -> futures::future::BoxFuture<'static, Result<(), BoxError>>,
) -> Scenario {
    Scenario::new("marking", drive)
        .set_up(|world: SetUp| async move {
            make("a", world.clone()).await?;
            make("b", world).await
        })
        .actor(Actor::new("third", |truth, acting| {
            if truth.get::<ConfigMap>("c").is_some() {
                return None;
            }
            let maps = acting.api::<ConfigMap>();
            Some(Box::pin(async move {
                let map = serde_json::from_value(json!({"metadata": {"name": "c"}}))?;
                maps.create(&PostParams::default(), &map).await?;
                Ok(())
            }))
        }))
        .after_settle("every map is marked", |truth| {
            let maps = truth.list::<ConfigMap>();
            maps.len() == 3 && maps.iter().all(|map| map.annotations().contains_key("marked"))
        })
}

fn wait_for_change(_: Arc<ConfigMap>, _: &kube::Error, _: Arc<World>) -> Action {
    Action::await_change()
}

#[tokio::test]
async fn a_controller_of_all_namespaces_sees_its_own_world_alone() -> Result<()> {
    let plane = plane().await?;
    let scenario = marking(|world| {
        Box::pin(async move {
            let bracketed = |map: Arc<ConfigMap>, world: Arc<World>| async move {
                world.passes().run(map.name_any(), mark(map, Arc::clone(&world))).await
            };
            let all = Api::<ConfigMap>::all(world.client());
            let controller = Controller::new(all, watcher::Config::default())
                .owns(Api::<Secret>::all(world.client()), watcher::Config::default())
                .run(bracketed, wait_for_change, Arc::new(world.clone()));
            world.drive(controller).await?;
            Ok(())
        })
    });
    let report = passes(&plane, scenario).await?;
    ensure!(report.verdict.runs > 20, "{report}");
    plane.stop().await?;
    Ok(())
}

/// Restarts begin the controller anew in the middle of a pass, and on this runtime in another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_ends_before_a_reply_begins_anew_and_finishes_its_work() -> Result<()> {
    let plane = plane().await?;
    let scenario = marking(|world| {
        Box::pin(async move {
            let bracketed = |map: Arc<ConfigMap>, world: Arc<World>| async move {
                world.passes().run(map.name_any(), mark(map, Arc::clone(&world))).await
            };
            let controller = Controller::new(world.api(), watcher::Config::default()).run(
                bracketed,
                wait_for_change,
                Arc::new(world.clone()),
            );
            world.drive(controller).await?;
            Ok(())
        })
    });
    let bounds = Bounds { holds: Some(1), ..Bounds::default() };
    let check = Check::new().without_files().bounds(bounds);
    let report = check.run(&plane, scenario.with_restarts()).await?;
    println!("{report}");
    let exhausted = matches!(report.verdict.completeness, Completeness::Exhausted { .. });
    ensure!(exhausted && report.verdict.runs > 20, "{report}");
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_controller_that_is_not_bracketed_is_told_so() -> Result<()> {
    let plane = plane().await?;
    let scenario = marking(|world| {
        Box::pin(async move {
            let controller = Controller::new(world.api(), watcher::Config::default()).run(
                mark,
                wait_for_change,
                Arc::new(world.clone()),
            );
            world.drive(controller).await?;
            Ok(())
        })
    });
    let error = Check::new().without_files().run(&plane, scenario).await.err().context("passes")?;
    let text = error.to_string();
    ensure!(
        text.contains("a pass that is not bracketed") && text.contains("drive_unbracketed"),
        "{text}"
    );
    plane.stop().await?;
    Ok(())
}
