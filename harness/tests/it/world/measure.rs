//! What a fork and its erasure cost.

use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use laggard::Plane;
use laggard::world::Worlds;
use serde_json::{from_value, json};

#[tokio::test]
async fn a_fork_costs_milliseconds() -> Result<()> {
    let plane = Plane::builder().start().await?;
    let client = plane.client()?;
    let worlds = Worlds::new(&plane.etcd()?).await?;
    let source = worlds.name().await?;
    let namespace: Namespace = from_value(json!({ "metadata": { "name": source } }))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &source);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &source);
    // With the namespace: 10 objects, 15 changes.
    for number in 0..5 {
        let name = format!("o{number}");
        let object = json!({ "metadata": { "name": name }, "data": {} });
        maps.create(&PostParams::default(), &from_value(object.clone())?).await?;
        if number < 4 {
            secrets.create(&PostParams::default(), &from_value(object)?).await?;
        }
        let patch = json!({ "data": { "a": "b" } });
        maps.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    let moment = worlds.moment(&source).await?;
    assert_eq!(moment.changes().count(), 15);
    let (mut forks, mut waits, mut erasures, mut moments) = (vec![], vec![], vec![], vec![]);
    for _ in 0..100 {
        let begun = Instant::now();
        let world = worlds.fork(&moment).await?;
        forks.push(begun.elapsed());
        let begun = Instant::now();
        world.ready(&client).await?;
        waits.push(begun.elapsed());
        let copies: Api<ConfigMap> = Api::namespaced(client.clone(), world.namespace());
        assert_eq!(copies.list(&ListParams::default()).await?.items.len(), 5);
        let begun = Instant::now();
        worlds.moment(world.namespace()).await?;
        moments.push(begun.elapsed());
        let begun = Instant::now();
        worlds.erase(world).await?;
        erasures.push(begun.elapsed());
    }
    println!(
        "of 100, median and 90th percentile: fork {}, ready {}, moment {}, erase {}",
        spread(forks),
        spread(waits),
        spread(moments),
        spread(erasures),
    );
    worlds.close().await?;
    plane.stop().await?;
    Ok(())
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("{:?} {:?}", times[times.len() / 2], times[times.len() * 9 / 10])
}
