//! What a fork and its erasure cost, for larger worlds and beside many others.

#![expect(clippy::print_stdout, reason = "a bench is a program that prints")]

mod figures;

use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use laggard::Plane;
use laggard::plane::Readiness;
use laggard::world::{Moment, Worlds};
use serde_json::{from_value, json};

use figures::{Figures, Limit, spread};

/// How often the small world is forked.
const FORKS: usize = 200;

/// How many other worlds there are, few and many.
const FEW: usize = 10;
const MANY: usize = 1000;

/// On one thread, as under `#[tokio::test]`.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let plane = Plane::builder().exploring().readiness(Readiness::Full).start().await?;
    println!("plane: {}", plane.preset());
    let client = plane.client()?;
    let worlds = Worlds::new(&plane.etcd()?).await?;
    let mut figures = Figures::of("world");

    let small = source(&worlds, &client, 10).await?;
    forks_and_erasures(&worlds, &small, 20).await?;
    let mut parts = forks_and_erasures(&worlds, &small, FORKS).await?;
    let limit = Duration::from_millis(8);
    let (median, tenth) = spread(&mut parts.both);
    figures.time("fork and erase, 10 objects, 15 events, median", median, Some(limit));
    figures.time("the same, 90th percentile", tenth, None);
    figures.time("fork, median", spread(&mut parts.forks).0, None);
    figures.time("erase, median", spread(&mut parts.erasures).0, None);

    // Taken in turns, so that whatever else the machine does disturbs all of them.
    let sizes = [10, 50, 100];
    let mut sources = Vec::new();
    for size in sizes {
        sources.push(source(&worlds, &client, size).await?);
    }
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..FORKS / 4 {
        for (moment, times) in sources.iter().zip(&mut times) {
            times.extend(forks_and_erasures(&worlds, moment, 1).await?.both);
        }
    }
    let medians = times.map(|mut times| spread(&mut times).0);
    for (size, median) in sizes.into_iter().zip(medians) {
        figures.time(&format!("fork and erase, {size} objects, median"), median, None);
    }
    for (place, size) in sizes.into_iter().enumerate().skip(1) {
        let of = |place: usize| medians[place].as_secs_f64() / sizes[place] as f64;
        let name = format!("cost of an object, among {size} against among {}", sizes[0]);
        figures.ratio(&name, of(place) / of(0), Limit::AtMost(1.2));
    }

    let mut others = Vec::new();
    let mut costs = Vec::new();
    for count in [FEW, MANY] {
        while others.len() < count {
            others.push(worlds.fork(&small).await?);
        }
        forks_and_erasures(&worlds, &small, 20).await?;
        let mut parts = forks_and_erasures(&worlds, &small, FORKS).await?;
        costs.push(spread(&mut parts.both).0);
        let name = format!("fork and erase beside {count} worlds, median");
        figures.time(&name, costs[costs.len() - 1], None);
    }
    let ratio = costs[1].as_secs_f64() / costs[0].as_secs_f64();
    let name = format!("fork and erase beside {MANY} worlds against beside {FEW}");
    figures.ratio(&name, ratio, Limit::AtMost(1.3));

    worlds.close().await?;
    plane.stop().await?;
    figures.finish()
}

#[derive(Default)]
struct Parts {
    forks: Vec<Duration>,
    erasures: Vec<Duration>,
    both: Vec<Duration>,
}

async fn forks_and_erasures(worlds: &Worlds, moment: &Moment, count: usize) -> Result<Parts> {
    let mut parts = Parts::default();
    for _ in 0..count {
        let begun = Instant::now();
        let world = worlds.fork(moment).await?;
        let forked = begun.elapsed();
        worlds.erase(world).await?;
        let both = begun.elapsed();
        parts.forks.push(forked);
        parts.erasures.push(both - forked);
        parts.both.push(both);
    }
    Ok(parts)
}

/// A world of so many objects and half as many changes more: the namespace, config maps that were
/// changed once, and secrets that were not.
async fn source(worlds: &Worlds, client: &Client, objects: usize) -> Result<Moment> {
    let source = worlds.name().await?;
    let namespace: Namespace = from_value(json!({ "metadata": { "name": source } }))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &source);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &source);
    for number in 0..objects - 1 {
        let name = format!("o{number}");
        let object = json!({ "metadata": { "name": name }, "data": {} });
        if number % 2 == 0 {
            maps.create(&PostParams::default(), &from_value(object)?).await?;
            let patch = json!({ "data": { "a": "b" } });
            maps.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        } else {
            secrets.create(&PostParams::default(), &from_value(object)?).await?;
        }
    }
    let moment = worlds.moment(&source).await?;
    anyhow::ensure!(moment.changes().count() == objects + objects / 2);
    Ok(moment)
}
