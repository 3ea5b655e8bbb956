//! Fences against a real API server: right after each kind of write it is exact how far a stream is behind, in a
//! namespace that the engine watches itself and in a forked world, whose streams are cut from one watch.

use std::{fmt::Debug, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams},
    core::NamespaceResourceScope,
    runtime::watcher,
};
use laggard::{
    Check, Lag,
    check::{Scenario, World},
    lag::StreamSelector,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::world::stage::{Stage, slow_rounds};

on_each_server!(
    behind_is_exact_after_every_kind_of_write,
    behind_is_exact_after_every_kind_of_write_in_a_fork,
);

async fn behind_is_exact_after_every_kind_of_write(stage: &Stage) -> Result<()> {
    let namespace = stage.plane.namespace("fences").await?;
    let lag = Lag::over(stage.plane.config())?;
    every_kind_of_write(&lag, &namespace, stage.client.clone(), slow_rounds(5, 100)?).await
}

async fn behind_is_exact_after_every_kind_of_write_in_a_fork(stage: &Stage) -> Result<()> {
    let (other, rounds) = (stage.client.clone(), slow_rounds(5, 100)?);
    let process = move |world: World| {
        let other = other.clone();
        async move {
            // No pass begins, so nothing moves but what this releases.
            every_kind_of_write(world.lag(), world.namespace(), other, rounds).await
        }
    };
    // All rounds are one run.
    let scenario = Scenario::new("fences", process).deadline(Duration::from_secs(1200));
    let report = Check::new().without_files().run(&stage.plane, scenario).await?;
    ensure!(report.verdict.worlds.as_deref() == Some("forked in etcd"), "{report}");
    Ok(())
}

async fn every_kind_of_write(
    lag: &Lag,
    namespace: &str,
    other: Client,
    rounds: usize,
) -> Result<()> {
    let mut pods = Held::<Pod>::start(lag, namespace).await?;
    let mut widgets = Held::<Widget>::start(lag, namespace).await?;
    let mut sets = Held::<StatefulSet>::start(lag, namespace).await?;
    for round in 0..rounds {
        pods_in_their_life(&mut pods, round).await?;
        widgets_in_their_life(&mut widgets, round).await?;
    }
    a_scale(&mut sets).await?;
    // Nothing else was on its way: the next event is that of somebody else's next write.
    let others: Api<Pod> = Api::namespaced(other, namespace);
    let last = others.create(&PostParams::default(), &pod("last", &[])?).await?;
    pods.stream.received(&last.metadata.resource_version.context("no resource version")?).await?;
    pods.more("a write of another client", 1)
}

/// A stream that is held, and how many events are expected in it.
struct Held<K> {
    lag: Lag,
    api: Api<K>,
    stream: StreamSelector<K>,
    expected: usize,
    /// Ends with this.
    _watching: JoinSet<()>,
}

impl<K> Held<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    async fn start(lag: &Lag, namespace: &str) -> Result<Self> {
        let api: Api<K> = Api::namespaced(lag.client(), namespace);
        let watch = watcher(api.clone(), watcher::Config::default());
        let mut watching = JoinSet::new();
        watching.spawn(watch.for_each(|_| std::future::ready(())));
        let stream = lag.stream::<K>();
        stream.opened().await?;
        stream.hold();
        Ok(Self { lag: lag.clone(), api, stream, expected: 0, _watching: watching })
    }

    /// So many more events are there, at this very moment.
    fn more(&mut self, what: &str, events: usize) -> Result<()> {
        self.expected += events;
        let (behind, expected) = (self.stream.behind()?, self.expected);
        ensure!(behind == expected, "{behind} behind, not {expected}, after {what}\n{}", self.lag);
        Ok(())
    }
}

fn pod(name: &str, finalizers: &[&str]) -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name, "finalizers": finalizers},
        "spec": {"containers": [{"name": "x", "image": "x"}], "automountServiceAccountToken": false},
    }))?)
}

fn label(value: &str) -> Patch<Value> {
    Patch::Merge(json!({"metadata": {"labels": {"x": value}}}))
}

/// A kind that the server stores as protobuf.
async fn pods_in_their_life(held: &mut Held<Pod>, round: usize) -> Result<()> {
    let (post, delete, params) =
        (PostParams::default(), DeleteParams::default(), PatchParams::default());
    let pods = held.api.clone();
    let name = format!("p{round}");
    pods.create(&post, &pod(&name, &["laggard.dev/test"])?).await?;
    held.more("a create", 1)?;
    pods.patch(&name, &params, &label("1")).await?;
    held.more("a patch", 1)?;
    pods.patch(&name, &params, &label("1")).await?;
    held.more("a patch that changes nothing", 0)?;
    let same = pods.get(&name).await?;
    pods.replace(&name, &post, &same).await?;
    held.more("an update that changes nothing", 0)?;
    pods.patch_metadata(&name, &params, &label("2")).await?;
    held.more("a patch answered with the metadata", 1)?;
    let dry = PatchParams { dry_run: true, ..PatchParams::default() };
    pods.patch(&name, &dry, &label("3")).await?;
    held.more("a dry run", 0)?;
    let phase = Patch::Merge(json!({"status": {"phase": "Running"}}));
    pods.patch_status(&name, &params, &phase).await?;
    held.more("a patch of the status", 1)?;
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"},
    });
    pods.create_subresource::<Value, Value>("binding", &name, &post, &binding).await?;
    held.more("a binding", 1)?;
    // Bound to a node it has a grace period; then it has none, and a finalizer keeps it.
    pods.delete(&name, &delete).await?;
    held.more("a deletion with a grace period", 1)?;
    pods.delete(&name, &DeleteParams::default().grace_period(0)).await?;
    held.more("a deletion that a finalizer delays", 1)?;
    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    pods.patch(&name, &params, &none).await?;
    held.more("the removal of the last finalizer", 1)?;
    pods.create(&post, &pod(&name, &[])?).await?;
    held.more("a create under the same name", 1)?;
    pods.delete(&name, &delete).await?;
    // Without a node the server marks it and removes it at once.
    held.more("a deletion", 2)?;
    pods.create(&post, &pod(&name, &[])?).await?;
    held.more("another create", 1)?;
    pods.evict(&name, &EvictParams::default()).await?;
    // A condition, a mark, the removal.
    held.more("an eviction", 3)?;
    for name in ["q", "r"] {
        pods.create(&post, &pod(name, &[])?).await?;
    }
    held.more("two creates", 2)?;
    pods.delete_collection(&delete, &ListParams::default()).await?;
    held.more("a deletion of the collection", 4)
}

/// A custom resource, which it stores as JSON.
async fn widgets_in_their_life(held: &mut Held<Widget>, round: usize) -> Result<()> {
    let (post, delete, params) =
        (PostParams::default(), DeleteParams::default(), PatchParams::default());
    let widgets = held.api.clone();
    let name = format!("w{round}");
    let apply = |size: u32, finalizers: &[&str]| {
        Patch::Apply(json!({
            "apiVersion": "laggard.test/v2", "kind": "Widget", "spec": {"size": size},
            "metadata": {"name": name, "finalizers": finalizers},
        }))
    };
    let applied = PatchParams::apply("test").force();
    widgets.patch(&name, &applied, &apply(1, &["laggard.dev/test"])).await?;
    held.more("an apply that creates", 1)?;
    widgets.patch(&name, &applied, &apply(1, &["laggard.dev/test"])).await?;
    held.more("an apply that changes nothing", 0)?;
    widgets.patch(&name, &applied, &apply(2, &["laggard.dev/test"])).await?;
    held.more("an apply", 1)?;
    let mut newest = widgets.get(&name).await?;
    newest = widgets.replace(&name, &post, &newest).await?;
    held.more("an update that changes nothing", 0)?;
    newest.spec.size = Some(3);
    widgets.replace(&name, &post, &newest).await?;
    held.more("an update", 1)?;
    let status = Patch::Merge(json!({"status": {"size": 3}}));
    widgets.patch_status(&name, &params, &status).await?;
    held.more("a patch of the status", 1)?;
    widgets.patch_status(&name, &params, &status).await?;
    held.more("a patch of the status that changes nothing", 0)?;
    widgets.delete(&name, &delete).await?;
    held.more("a deletion that a finalizer delays", 1)?;
    widgets.delete(&name, &delete).await?;
    held.more("a second deletion, which changes nothing", 0)?;
    let mut marked = widgets.get(&name).await?;
    marked.metadata.finalizers = None;
    widgets.replace(&name, &post, &marked).await?;
    held.more("the removal of the last finalizer by an update", 1)?;
    let gone = widgets.get_opt(&name).await?;
    ensure!(gone.is_none(), "{gone:?}");
    for (name, finalizers) in [("x", vec![]), ("y", vec!["laggard.dev/test"])] {
        let widget = json!({
            "apiVersion": "laggard.test/v2", "kind": "Widget", "spec": {},
            "metadata": {"name": name, "finalizers": finalizers},
        });
        widgets.create(&post, &serde_json::from_value(widget)?).await?;
    }
    held.more("two creates", 2)?;
    // One goes, and one is marked.
    widgets.delete_collection(&delete, &ListParams::default()).await?;
    held.more("a deletion of the collection", 2)?;
    let none = Patch::Json::<()>(serde_json::from_value(
        json!([{"op": "remove", "path": "/metadata/finalizers"}]),
    )?);
    widgets.patch("y", &params, &none).await?;
    held.more("the removal of the last finalizer by a patch", 1)?;
    widgets.delete_collection(&delete, &ListParams::default()).await?;
    held.more("a deletion of an empty collection", 0)
}

async fn a_scale(held: &mut Held<StatefulSet>) -> Result<()> {
    let sets = held.api.clone();
    let set: StatefulSet = serde_json::from_value(json!({
        "metadata": {"name": "s"},
        "spec": {
            "replicas": 0, "serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "x", "image": "x"}]},
            },
        },
    }))?;
    sets.create(&PostParams::default(), &set).await?;
    held.more("a create", 1)?;
    let scale = Patch::Merge(json!({"spec": {"replicas": 3}}));
    sets.patch_scale("s", &PatchParams::default(), &scale).await?;
    held.more("a scale", 1)?;
    let deleted = sets.delete("s", &DeleteParams::foreground()).await?;
    ensure!(deleted.is_left(), "without a garbage collector it waits for one");
    held.more("a deletion that waits for a garbage collector", 1)
}

/// The custom resource of the planes here.
#[derive(kube::CustomResource, Clone, Debug, Deserialize, Serialize)]
#[kube(
    group = "laggard.test",
    version = "v2",
    kind = "Widget",
    namespaced,
    status = "Value",
    schema = "disabled"
)]
struct WidgetSpec {
    size: Option<i64>,
    plan: Option<String>,
}
