//! A world is erased under open watches: each is told of every object, and others are left alone.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::stage::{Stage, Watch, keys_of_worlds, rounds};

on_each_server!(an_erasure_under_open_watches_is_seen_by_all_of_them,);

/// How many watches of one kind.
const AT_ONCE: usize = 3;

async fn an_erasure_under_open_watches_is_seen_by_all_of_them(stage: &Stage) -> Result<()> {
    let source = stage.namespace().await?;
    let kinds = ["/api/v1/namespaces/{}/configmaps", "/apis/laggard.test/v2/namespaces/{}/widgets"];
    let names: BTreeSet<_> = (0..10).map(|number| format!("o{number}")).collect();
    for kind in kinds {
        for name in &names {
            let version = if kind.contains("widgets") { "laggard.test/v2" } else { "v1" };
            let what = if kind.contains("widgets") { "Widget" } else { "ConfigMap" };
            let body = json!({ "apiVersion": version, "kind": what, "metadata": { "name": name } });
            stage.create(&kind.replace("{}", &source), &body).await?;
        }
    }
    let moment = stage.worlds.moment(&source).await?;
    let neighbour = stage.worlds.fork(&moment).await?;
    let path = kinds[0].replace("{}", neighbour.namespace());
    let mut undisturbed = Watch::open(stage, path.clone(), neighbour.last_revision()).await?;
    for round in 0..rounds(20)? {
        let world = stage.worlds.fork(&moment).await?;
        let mut watches = Vec::new();
        for kind in kinds {
            let narrow = kind.replace("{}", world.namespace());
            let wide = kind.replace("namespaces/{}/", "");
            for number in 0..AT_ONCE * 2 {
                let path = if number % 2 == 0 { &narrow } else { &wide };
                watches.push(Watch::open(stage, path.clone(), world.last_revision()).await?);
            }
        }
        let name = world.namespace().to_owned();
        stage.worlds.erase(world).await?;
        for mut watch in watches {
            let mut left = names.clone();
            while !left.is_empty() {
                let event = watch.next().await;
                let event =
                    event.with_context(|| format!("round {round}: it has not told of {left:?}"))?;
                let (path, metadata) = (&watch.path, &event["object"]["metadata"]);
                if metadata["namespace"] == json!(name) {
                    assert_eq!(event["type"], "DELETED", "round {round}: {path}: {event}");
                    let name = metadata["name"].as_str().context("no name")?;
                    assert!(left.remove(name), "round {round}: {path} tells of {name} twice");
                }
            }
        }
        let left = keys_of(stage, &name).await?;
        assert_eq!(left, [""; 0], "round {round}");
    }
    // The neighbour's watch has seen nothing of all this, and works.
    stage.create(&path, &json!({ "metadata": { "name": "last" } })).await?;
    let event = undisturbed.next().await?;
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("last"))
    );
    stage.worlds.erase(neighbour).await?;
    Ok(())
}

/// The keys of a world that was erased.
async fn keys_of(stage: &Stage, erased: &str) -> Result<Vec<String>> {
    let mut keys = keys_of_worlds(&stage.plane).await?;
    keys.retain(|key| key.contains(erased));
    Ok(keys)
}
