//! Right after a fork a LIST has all of it.

use anyhow::Result;
use serde_json::{Value, json};

use super::operations::COLLECTIONS;
use super::stage::{Stage, request, rounds};

on_each_server!(
    a_list_of_any_kind_right_after_a_fork_of_three_objects_is_complete,
    a_list_right_after_a_fork_of_a_hundred_objects_is_complete,
);

async fn a_list_of_any_kind_right_after_a_fork_of_three_objects_is_complete(
    stage: &Stage,
) -> Result<()> {
    lists_are_complete(stage, &kinds(), 3, rounds(48)?).await
}

async fn a_list_right_after_a_fork_of_a_hundred_objects_is_complete(stage: &Stage) -> Result<()> {
    let kinds = kinds().into_iter().filter(|(path, _)| path.ends_with("maps") || is_custom(path));
    lists_are_complete(stage, &kinds.collect::<Vec<_>>(), 100, rounds(20)?).await
}

/// Each kind with the least that it takes to be one. What has two versions is one kind.
fn kinds() -> Vec<(&'static str, Value)> {
    let labels = json!({ "app": "x" });
    let pod = json!({ "containers": [{ "name": "c", "image": "i" }] });
    let kinds = COLLECTIONS.into_iter().filter(|(kind, _)| *kind != "widgets1");
    let kinds = kinds.map(|(kind, path)| {
        let rest = match kind {
            "configmaps" | "secrets" | "accounts" | "roles" | "leases" => json!({}),
            "pods" => json!({ "spec": pod }),
            "services" => json!({ "spec": { "clusterIP": "None" } }),
            "claims" => json!({ "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } },
            } }),
            "sets" => json!({ "spec": {
                "serviceName": "x", "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": pod },
            } }),
            "bindings" => json!({ "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "o0",
            } }),
            "widgets2" => json!({ "apiVersion": "laggard.test/v2", "kind": "Widget" }),
            other => unreachable!("{other}: what does it take?"),
        };
        (path, rest)
    });
    kinds.collect()
}

fn is_custom(path: &str) -> bool {
    path.contains("laggard.test")
}

async fn lists_are_complete(
    stage: &Stage,
    kinds: &[(&str, Value)],
    objects: usize,
    rounds: usize,
) -> Result<()> {
    let source = stage.namespace().await?;
    for number in 0..objects {
        for (path, object) in kinds {
            let mut object = object.clone();
            object["metadata"] = json!({ "name": format!("o{number}") });
            stage.create(&path.replace("{ns}", &source), &object).await?;
        }
    }
    let moment = stage.worlds.moment(&source).await?;
    for round in 0..rounds {
        let world = stage.worlds.fork(&moment).await?;
        // Consistent, at once; or from the cache, as old as it may be, once the world is ready. Not
        // one after the other, since a consistent LIST waits for the cache.
        let (query, what) = match round % 2 {
            0 => ("", "a consistent LIST"),
            _ => {
                world.ready(&stage.client).await?;
                ("?resourceVersion=0", "a LIST from the cache, after `ready`")
            }
        };
        // Each kind is the first one to be asked for in its turn.
        for index in 0..kinds.len() {
            let (path, _) = kinds[(round / 2 + index) % kinds.len()];
            let path = format!("{}{query}", path.replace("{ns}", world.namespace()));
            let list = request(&stage.client, "GET", &path, None).await?;
            let listed = list["items"].as_array().map_or(0, Vec::len);
            assert_eq!(listed, objects, "round {round}, {path}, {what}");
        }
        stage.worlds.erase(world).await?;
    }
    println!("{rounds} forks of {objects} objects of each of {} kinds", kinds.len());
    Ok(())
}
