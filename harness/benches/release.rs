//! What it costs to hand one waiting event on, until the store shows it.

#![expect(clippy::print_stdout, reason = "a bench is a program that prints")]

mod figures;

use std::future::ready;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{WatchStreamExt as _, watcher};
use laggard::Plane;
use laggard::lag::Lag;
use laggard::plane::Readiness;
use serde_json::json;
use tokio::runtime::Builder;

use figures::{Figures, share};

/// So many events wait, are released one by one, and so on.
const ROUNDS: usize = 10;
const EVENTS: usize = 200;

fn main() -> Result<()> {
    let mut figures = Figures::of("release");
    // As under `#[tokio::test]`.
    let one = Builder::new_current_thread().enable_all().build()?;
    let limit = Duration::from_micros(200);
    one.block_on(on_a_plane(&mut figures, "on one thread", Some(limit)))?;
    // Here another thread has to be woken, which is the kernel's time.
    let several = Builder::new_multi_thread().enable_all().build()?;
    several.block_on(on_a_plane(&mut figures, "on several", None))?;
    figures.finish()
}

async fn on_a_plane(figures: &mut Figures, threads: &str, limit: Option<Duration>) -> Result<()> {
    let plane = Plane::builder().exploring().readiness(Readiness::Full).start().await?;
    println!("plane: {}", plane.preset());
    let mut times = released(&plane).await?;
    let name = format!("release and acknowledgement, {threads}");
    figures.time(&format!("{name}, median"), share(&mut times, 0.5), None);
    figures.time(&format!("{name}, 99th percentile"), share(&mut times, 0.99), limit);
    plane.stop().await?;
    Ok(())
}

async fn released(plane: &Plane) -> Result<Vec<Duration>> {
    let namespace = plane.namespace("release").await?;
    let lag = Lag::over(plane.config())?;
    let seen: Api<ConfigMap> = Api::namespaced(lag.client(), &namespace);
    let (store, writer) = reflector::store();
    let feed = watcher(seen, watcher::Config::default()).default_backoff().reflect(writer);
    let feed = tokio::spawn(feed.for_each(|_| ready(())));
    let cache = lag.stream::<ConfigMap>().in_namespace(&namespace);
    cache.opened().await?;
    cache.hold();
    let maps: Api<ConfigMap> = Api::namespaced(plane.client()?, &namespace);
    let (map, how) = (ObjectRef::new("m").within(&namespace), PatchParams::apply("bench"));
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        for event in 0..EVENTS {
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" },
                "data": { "at": format!("{round}.{event}") },
            });
            maps.patch("m", &how, &Patch::Apply(object)).await?;
        }
        cache.until_behind(EVENTS).await?;
        for _ in 0..EVENTS {
            let begun = Instant::now();
            let released = cache.release_one().await?;
            times.push(begun.elapsed());
            let shown = store.get(&map).context("the store does not show it")?;
            let shown = shown.metadata.resource_version.as_deref();
            ensure!(shown == released.resource_version(), "{shown:?} is shown after {released}");
        }
    }
    feed.abort();
    Ok(times)
}
