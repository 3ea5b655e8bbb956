//! A watch shows a fork as it shows any namespace: every change, in the order of ascending revisions.

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use laggard::world::{Resource, World};
use serde_json::{Value, json};

use super::stage::{LIMIT, Stage, Watch, events, request, rounds, slow_rounds};

on_each_server!(
    a_watch_from_before_a_fork_sees_all_of_it_in_order,
    a_watch_that_resumes_at_any_revision_of_a_fork_sees_all_that_follows,
    a_streaming_list_shows_all_of_a_fork,
);

async fn a_watch_from_before_a_fork_sees_all_of_it_in_order(stage: &Stage) -> Result<()> {
    let source = source(stage).await?;
    let moment = stage.worlds.moment(&source).await?;
    for round in 0..rounds(30)? {
        // Of the whole cluster, since the namespace has no name yet.
        let mut watches = Vec::new();
        for resource in resources() {
            let path = path(&resource, None);
            let list = request(&stage.client, "GET", &path, None).await?;
            let rv = list["metadata"]["resourceVersion"].as_str().context("no rv")?.parse()?;
            watches.push((resource, Watch::open(stage, path, rv).await?));
        }
        let world = stage.worlds.fork(&moment).await?;
        for (resource, watch) in watches {
            let expected = changes(&world, &resource, 0);
            let seen = of_world(watch, world.namespace(), expected.len()).await?;
            assert_eq!(seen, expected, "round {round}: {resource} of {}", world.namespace());
            ascending(&seen);
        }
        stage.worlds.erase(world).await?;
    }
    Ok(())
}

async fn a_watch_that_resumes_at_any_revision_of_a_fork_sees_all_that_follows(
    stage: &Stage,
) -> Result<()> {
    let source = source(stage).await?;
    let moment = stage.worlds.moment(&source).await?;
    for round in 0..slow_rounds(10, 250)? {
        let world = stage.worlds.fork(&moment).await?;
        // With the watch cache the past can be watched from the moment that the cache has it.
        world.ready(&stage.client).await?;
        for resource in resources() {
            for (from, _, _) in changes(&world, &resource, 0) {
                let expected = changes(&world, &resource, from);
                let path = path(&resource, Some(&world));
                let watch = Watch::open(stage, path, from).await?;
                let seen = of_world(watch, world.namespace(), expected.len()).await?;
                assert_eq!(seen, expected, "round {round}: {resource} from {from}");
            }
        }
        // And what comes after the fork comes after it in every watch.
        let last = world.last_revisions()[&Resource::new("", "configmaps")];
        let maps = path(&Resource::new("", "configmaps"), Some(&world));
        let watch = Watch::open(stage, maps.clone(), last).await?;
        let made = stage.create(&maps, &json!({ "metadata": { "name": "later" } })).await?;
        let seen = of_world(watch, world.namespace(), 1).await?;
        assert_eq!(seen[0].1, "later");
        assert_eq!(made["metadata"]["resourceVersion"], json!(seen[0].0.to_string()));
        stage.worlds.erase(world).await?;
    }
    Ok(())
}

async fn a_streaming_list_shows_all_of_a_fork(stage: &Stage) -> Result<()> {
    let source = source(stage).await?;
    let moment = stage.worlds.moment(&source).await?;
    for round in 0..rounds(30)? {
        let world = stage.worlds.fork(&moment).await?;
        for resource in resources() {
            let path = path(&resource, Some(&world));
            let query = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                         &allowWatchBookmarks=true";
            let mut watch = events(stage, &format!("{path}?watch=true{query}")).await?;
            let mut seen = Vec::new();
            let initial = async {
                while let Some(event) = watch.next().await {
                    let event = event?;
                    match event["type"].as_str() {
                        Some("ADDED") => seen.push(name(&event)?),
                        Some("BOOKMARK") => return Ok(()),
                        _ => anyhow::bail!("{event}"),
                    }
                }
                anyhow::bail!("it ended")
            };
            tokio::time::timeout(LIMIT, initial).await.context("no bookmark")??;
            seen.sort();
            let list = request(&stage.client, "GET", &path, None).await?;
            let mut listed: Vec<_> = list["items"].as_array().context("no items")?.iter().collect();
            listed.sort_by_key(|item| item["metadata"]["name"].to_string());
            let listed: Vec<_> = listed
                .iter()
                .map(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned())
                .collect();
            assert_eq!(seen, listed, "round {round}: {resource}");
            assert!(!seen.is_empty());
        }
        stage.worlds.erase(world).await?;
    }
    Ok(())
}

/// A world in which things were made, changed and deleted, in turns.
async fn source(stage: &Stage) -> Result<String> {
    let source = stage.namespace().await?;
    for number in 0..6 {
        for resource in resources() {
            let collection = path(&resource, None)
                .replace(&resource.plural, &format!("namespaces/{source}/{}", resource.plural));
            let name = format!("o{number}");
            let (version, kind) = match resource.group.as_str() {
                "" => ("v1", "ConfigMap"),
                _ => ("laggard.test/v2", "Widget"),
            };
            let object =
                json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name } });
            stage.create(&collection, &object).await?;
            let path = format!("{collection}/{name}");
            let patch = json!({ "metadata": { "labels": { "x": "y" } } });
            request(&stage.client, "PATCH", &path, Some(&patch)).await?;
            if number % 2 == 1 {
                request(&stage.client, "DELETE", &path, None).await?;
            }
        }
    }
    Ok(source)
}

fn resources() -> [Resource; 2] {
    [Resource::new("", "configmaps"), Resource::new("laggard.test", "widgets")]
}

fn path(resource: &Resource, world: Option<&World>) -> String {
    let root = if resource.group.is_empty() { "/api/v1" } else { "/apis/laggard.test/v2" };
    let place = world.map(|world| format!("namespaces/{}/", world.namespace())).unwrap_or_default();
    format!("{root}/{place}{}", resource.plural)
}

/// Revision, name and whether it is deleted.
type Seen = (i64, String, bool);

fn changes(world: &World, resource: &Resource, after: i64) -> Vec<Seen> {
    let changes = world.changes().filter(|it| it.resource == resource && it.revision > after);
    changes.map(|it| (it.revision, it.name, it.deleted)).collect()
}

fn ascending(seen: &[Seen]) {
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "{seen:?}");
}

fn name(event: &Value) -> Result<String> {
    Ok(event["object"]["metadata"]["name"].as_str().context("no name")?.to_owned())
}

/// So many events of a namespace.
async fn of_world(mut watch: Watch<'_>, namespace: &str, count: usize) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let event = watch.next().await;
        let event = event.with_context(|| format!("waited for event {} of {count}", seen.len()))?;
        if event["object"]["metadata"]["namespace"] == namespace {
            seen.push((watch.at, name(&event)?, event["type"] == "DELETED"));
        }
    }
    Ok(seen)
}
