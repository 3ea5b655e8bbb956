//! Holding, releasing and listing anew against a real API server, with unmodified clients.

use std::{future::Future, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt, reflector,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use laggard::{
    Lag, Plane,
    lag::{StreamErrorKind, StreamSelector, model::Change},
};
use serde_json::json;
use tokio::task::JoinHandle;

/// How a reflector makes its initial list, and whether that may show an earlier state.
fn ways_to_list() -> [(&'static str, watcher::Config, bool); 4] {
    let mut any = watcher::Config::default().any_semantic();
    any.page_size = None;
    [
        ("consistent", watcher::Config::default(), false),
        ("paged", watcher::Config::default().page_size(2), false),
        ("resource version 0", any, true),
        ("streamed", watcher::Config::default().streaming_lists(), true),
    ]
}

struct Watched {
    lag: Lag,
    maps: Api<ConfigMap>,
    store: Store<ConfigMap>,
    namespace: String,
    task: JoinHandle<()>,
}

impl Watched {
    async fn start(plane: &Plane, config: watcher::Config) -> Result<Self> {
        let namespace = plane.namespace("lag").await?;
        let lag = Lag::over(plane.config())?.with_deadline(Duration::from_secs(20));
        let maps: Api<ConfigMap> = Api::namespaced(lag.client(), &namespace);
        let (store, task) = reflect(&maps, config);
        let watched = Self { lag, maps, store, namespace, task };
        watched.cache().opened().await?;
        Ok(watched)
    }

    fn cache(&self) -> StreamSelector<ConfigMap> {
        self.lag.stream::<ConfigMap>()
    }

    async fn write(&self, name: &str, value: &str) -> Result<String> {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"value": value},
            "metadata": {"name": name, "labels": {"value": value}},
        });
        let params = PatchParams::apply("test").force();
        let object = self.maps.patch(name, &params, &Patch::Apply(object)).await?;
        object.resource_version().context("no resource version")
    }

    /// `name=value` of every object in the client's store; the certificates that the server adds are left out.
    fn shown(&self) -> String {
        let mut shown: Vec<String> = self
            .store
            .state()
            .iter()
            .filter_map(|object| {
                Some(format!("{}={}", object.name_any(), object.data.as_ref()?.get("value")?))
            })
            .collect();
        shown.sort();
        shown.join(" ")
    }
}

fn reflect(maps: &Api<ConfigMap>, config: watcher::Config) -> (Store<ConfigMap>, JoinHandle<()>) {
    let (store, writer) = reflector::store();
    let stream = watcher(maps.clone(), config).reflect(writer);
    (store, tokio::spawn(stream.for_each(|_| std::future::ready(()))))
}

async fn within<T>(what: &str, wait: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(Duration::from_secs(30), wait).await.with_context(|| what.to_owned())
}

/// Asks again until it is so: for what no event of the engine tells.
async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let asked = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, asked).await
}

#[tokio::test]
async fn a_stream_stands_moves_travels_and_comes_back_whatever_way_it_lists() -> Result<()> {
    let plane = Plane::builder().start().await?;
    for (way, config, may_travel) in ways_to_list() {
        cycle(&plane, config, may_travel).await.with_context(|| format!("a list that is {way}"))?;
    }
    plane.stop().await?;
    Ok(())
}

async fn cycle(plane: &Plane, config: watcher::Config, may_travel: bool) -> Result<()> {
    let watched = Watched::start(plane, config.clone()).await?;
    let cache = watched.cache();
    cache.hold();
    let first = watched.write("a", "1").await?;
    watched.write("b", "1").await?;
    watched.write("a", "2").await?;
    watched.maps.delete("b", &DeleteParams::default()).await?;
    ensure!(cache.behind()? == 4, "{}", watched.lag);
    ensure!(watched.shown().is_empty());
    let mut seen = Vec::new();
    for _ in 0..4 {
        cache.release_one().await?;
        seen.push(watched.shown());
    }
    ensure!(seen == ["a=1", "a=1 b=1", "a=2 b=1", "a=2"], "{seen:?}");

    // The server itself has closed such watches after this; the client is told that they have expired.
    let newest = watched.write("c", "1").await?;
    cache.relist().await?;
    ensure!(watched.shown() == "a=2 c=1", "{}", watched.shown());
    ensure!(cache.state()?.incarnation == 2 && cache.behind()? == 0);
    let travelled = cache.relist_from(&first).await;
    if may_travel {
        travelled?;
        ensure!(watched.shown() == "a=1", "{}", watched.shown());
        cache.until_behind(4).await?;
        let released = cache.release_to(&newest).await?;
        ensure!(released.len() == 4, "{released:?}");
        ensure!(watched.shown() == "a=2 c=1", "{}", watched.shown());
    } else {
        let error = travelled.err().context("it travelled")?;
        ensure!(error.kind() == StreamErrorKind::IllegalStart, "{error}");
    }
    watched.write("c", "2").await?;
    ensure!(cache.behind()? == 1, "{}", watched.lag);
    cache.release_all().await?;
    ensure!(watched.shown() == "a=2 c=2", "{}", watched.shown());

    // A new process: the same stream, at what its first list shows.
    watched.task.abort();
    let incarnation = cache.state()?.incarnation;
    until("the client is gone", || {
        let closed = laggard::lag::model::Connection::Closed;
        watched.lag.streams().iter().all(|stream| stream.connection == closed)
    })
    .await?;
    let (store, task) = reflect(&watched.maps, config);
    cache.opened().await?;
    ensure!(cache.state()?.incarnation == incarnation + 1, "{}", watched.lag);
    ensure!(store.get(&ObjectRef::new("c").within(&watched.namespace)).is_some());
    task.abort();
    Ok(())
}

#[tokio::test]
async fn watches_that_the_server_ends_and_bookmarks_leave_a_hold_as_it_is() -> Result<()> {
    let plane = Plane::builder().start().await?;
    let watched = Watched::start(&plane, watcher::Config::default().timeout(4)).await?;
    let cache = watched.cache();
    cache.hold();
    let held = watched.write("a", "1").await?;
    ensure!(cache.behind()? == 1);
    let before = cache.delivered_resource_version()?;
    // A commit that this stream does not show; the server tells it by a bookmark before it ends the watch.
    let elsewhere: Api<ConfigMap> = Api::namespaced(plane.client()?, "default");
    let other = serde_json::from_value(json!({"metadata": {"name": "elsewhere"}}))?;
    let other = elsewhere.create(&PostParams::default(), &other).await?;
    let other = other.resource_version().context("no resource version")?;
    let received = tokio::time::timeout(Duration::from_secs(20), cache.received(&other)).await?;
    received.context("a bookmark")?;
    ensure!(cache.delivered_resource_version()? == before, "no bookmark overtakes a held event");
    ensure!(watched.shown().is_empty());
    // The server ends the watch 4 s after its beginning; the engine watches on.
    tokio::time::sleep(Duration::from_secs(5)).await;
    watched.write("b", "1").await?;
    ensure!(cache.behind()? == 2, "{}", watched.lag);
    let released = cache.release_one().await?;
    ensure!(released.resource_version() == Some(held.as_str()));
    ensure!(watched.shown() == "a=1");
    cache.release_all().await?;
    ensure!(watched.shown() == "a=1 b=1");
    // Without a hold the client comes back by itself, and goes on where it was.
    let watches = laggard::lag::Requests::watch::<ConfigMap>();
    let opened = watched.lag.requests().count(&watches);
    until("the client watches again", || watched.lag.requests().count(&watches) > opened).await?;
    let newest = watched.write("c", "1").await?;
    cache.shown(&newest).await?;
    ensure!(watched.shown() == "a=1 b=1 c=1");
    ensure!(cache.state()?.incarnation == 1, "{}", watched.lag);
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn streams_with_selectors_show_what_enters_and_what_leaves() -> Result<()> {
    let plane = Plane::builder().start().await?;
    let watched = Watched::start(&plane, watcher::Config::default()).await?;
    let by_label = watcher::Config::default().labels("value=1");
    let by_field = watcher::Config::default().fields("metadata.name=a");
    let (_labelled, _one) = (reflect(&watched.maps, by_label), reflect(&watched.maps, by_field));
    let labelled = watched.cache().labels("value=1");
    let field = watched.cache().fields("metadata.name=a");
    let all = watched.cache().without_labels().without_fields();
    labelled.opened().await?;
    field.opened().await?;
    watched.lag.hold();
    watched.write("a", "1").await?;
    watched.write("b", "1").await?;
    watched.write("a", "2").await?;
    watched.write("a", "3").await?;
    let behind = [&all, &labelled, &field].map(StreamSelector::behind);
    let behind: Vec<usize> = behind.into_iter().collect::<Result<_, _>>()?;
    ensure!(behind == [4, 3, 3], "{behind:?}");
    // Two streams of one resource that disagree, as two reflectors may.
    all.release_one().await?;
    let released = labelled.release_all().await?;
    let changes: Vec<Option<Change>> = released.iter().map(|released| released.change()).collect();
    let expected = [Change::Added, Change::Added, Change::Deleted].map(Some);
    ensure!(changes == expected, "{changes:?}");
    let names = |maps: Vec<ConfigMap>| {
        let maps = maps.into_iter().filter(|map| map.name_any() != "kube-root-ca.crt");
        maps.map(|map| map.name_any()).collect::<Vec<_>>()
    };
    ensure!(names(all.view()?) == ["a"]);
    ensure!(names(labelled.view()?) == ["b"]);
    ensure!(names(field.view()?).is_empty());
    plane.stop().await?;
    Ok(())
}
