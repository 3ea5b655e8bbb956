//! Right after a fork a LIST has all of it.

use anyhow::Result;
use serde_json::json;

use super::stage::{Stage, request, rounds};

on_each_server!(
    a_list_right_after_a_fork_of_three_objects_is_complete;
    a_list_right_after_a_fork_of_a_hundred_objects_is_complete
);

async fn a_list_right_after_a_fork_of_three_objects_is_complete(stage: &Stage) -> Result<()> {
    lists_are_complete(stage, 3, rounds(100)?).await
}

async fn a_list_right_after_a_fork_of_a_hundred_objects_is_complete(stage: &Stage) -> Result<()> {
    lists_are_complete(stage, 100, rounds(20)?).await
}

async fn lists_are_complete(stage: &Stage, objects: usize, rounds: usize) -> Result<()> {
    let source = stage.namespace().await?;
    let maps = format!("/api/v1/namespaces/{source}/configmaps");
    let widgets = format!("/apis/laggard.test/v2/namespaces/{source}/widgets");
    for number in 0..objects {
        let name = format!("o{number}");
        stage.create(&maps, &json!({ "metadata": { "name": name } })).await?;
        let widget = json!({
            "apiVersion": "laggard.test/v2", "kind": "Widget", "metadata": { "name": name },
        });
        stage.create(&widgets, &widget).await?;
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
        for path in [&widgets, &maps] {
            let path = format!("{}{query}", path.replace(&source, world.namespace()));
            let list = request(&stage.client, "GET", &path, None).await?;
            let listed = list["items"].as_array().map_or(0, Vec::len);
            assert_eq!(listed, objects, "round {round}, {path}, {what}");
        }
        stage.worlds.erase(world).await?;
    }
    println!("{rounds} forks of {objects} objects");
    Ok(())
}
