//! Many private planes at the same moment.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams};
use laggard::Plane;
use laggard::plane::BackendKind;

use crate::start::{directory_of, eventually, processes_of};

/// Enough to clash, and no burden for the tests beside; `make soak` starts twenty.
const FEW: usize = 4;

/// Twenty take two cores half a minute; a crowd beside this one as long again.
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn planes_that_start_at_once_all_work_and_share_nothing() -> Result<()> {
    let count = match std::env::var("LAGGARD_PLANES_AT_ONCE") {
        Ok(text) => text.parse().context("LAGGARD_PLANES_AT_ONCE is a number")?,
        Err(_) => FEW,
    };
    let begun = Instant::now();
    let starts = (0..count).map(|_| {
        let builder = Plane::builder().backend(BackendKind::Process).start_timeout(LIMIT);
        tokio::spawn(builder.start())
    });
    let mut planes = Vec::new();
    for start in futures::future::join_all(starts).await {
        planes.push(start??);
    }
    let up = begun.elapsed();

    let mut addresses = BTreeSet::new();
    let mut directories = BTreeSet::new();
    for (number, plane) in planes.iter().enumerate() {
        addresses.insert(plane.config().cluster_url.to_string());
        directories.insert(directory_of(plane)?);
        plane.namespace("crowd").await?;
        let maps: Api<ConfigMap> = Api::namespaced(plane.client()?, "default");
        let map = serde_json::from_value(
            serde_json::json!({ "metadata": { "name": format!("of-{number}") } }),
        )?;
        maps.create(&PostParams::default(), &map).await?;
    }
    ensure!(addresses.len() == count, "two have the same port: {addresses:?}");
    ensure!(directories.len() == count, "two have the same directory: {directories:?}");
    for (number, plane) in planes.iter().enumerate() {
        let maps: Api<ConfigMap> = Api::namespaced(plane.client()?, "default");
        let names = maps.list(&ListParams::default()).await?.items.into_iter();
        let names: Vec<_> = names.filter_map(|map| map.metadata.name).collect();
        let others = names.iter().filter(|name| name.starts_with("of-"));
        ensure!(others.eq([&format!("of-{number}")]), "plane {number} has {names:?}");
    }

    let begun = Instant::now();
    for stopped in futures::future::join_all(planes.into_iter().map(Plane::stop)).await {
        let stopped = stopped?;
        ensure!(stopped.already_ended.is_empty() && stopped.left.is_empty(), "{stopped:?}");
    }
    println!("{count} planes up after {up:.1?}, and gone after {:.1?}", begun.elapsed());
    for directory in directories {
        ensure!(!directory.exists(), "{directory:?} is left");
        eventually("the servers' watchers to end", || processes_of(&directory).is_empty())?;
    }
    Ok(())
}
