//! The example of the README, run as it stands there.

// README: begin
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, ResourceExt as _, api::PostParams};
use laggard::{Lag, Plane};

#[tokio::test]
async fn what_was_written_is_not_in_the_cache_yet() -> anyhow::Result<()> {
    let plane = Plane::builder().start().await?;
    let namespace = plane.namespace("example").await?;
    let lag = Lag::over(plane.config())?;

    // The code under test gets this client; here it is the reflector of any kube-rs controller.
    let maps: Api<ConfigMap> = Api::namespaced(lag.client(), &namespace);
    let (store, writer) = reflector::store();
    let watch = watcher(maps.clone(), watcher::Config::default()).reflect(writer);
    tokio::spawn(watch.for_each(|_| std::future::ready(())));
    let cache = lag.stream::<ConfigMap>();
    cache.opened().await?;
    cache.hold(); // from now on it stands still

    let map = serde_json::from_value(serde_json::json!({ "metadata": { "name": "m" } }))?;
    let written = maps.create(&PostParams::default(), &map).await?;
    cache.received(&written.resource_version().unwrap()).await?;
    assert_eq!((cache.behind()?, store.len()), (1, 0));
    cache.release_one().await?; // returns when the store shows it
    assert_eq!((cache.behind()?, store.len()), (0, 1));
    plane.stop().await?;
    Ok(())
}
// README: end

#[test]
fn the_readme_has_this_example_word_for_word() {
    let own = include_str!("readme.rs");
    let example = own
        .split_once("// README: begin\n")
        .and_then(|(_, rest)| rest.split_once("// README: end"))
        .map(|(example, _)| example.trim_end())
        .unwrap();
    let readme = include_str!("../../../README.md");
    assert!(readme.contains(example), "copy this into README.md:\n{example}");
}
