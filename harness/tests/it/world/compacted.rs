//! etcd forgets what nobody can ask about any more, and nothing else.

use anyhow::{Context as _, Result};
use laggard::Plane;
use laggard::plane::{BackendKind, Flags};
use laggard::world::{EtcdError, Moment, WorldError};
use serde_json::{Value, json};

use super::stage::{Stage, request, rounds};

/// Some ten objects of a kilobyte.
async fn source(stage: &Stage) -> Result<Moment> {
    let source = stage.namespace().await?;
    let maps = format!("/api/v1/namespaces/{source}/configmaps");
    for number in 0..10 {
        let data = json!({ "x": "x".repeat(1000) });
        let map = json!({ "metadata": { "name": format!("o{number}") }, "data": data });
        stage.create(&maps, &map).await?;
    }
    Ok(stage.worlds.moment(&source).await?)
}

async fn fork_and_erase(stage: &Stage, moment: &Moment, count: usize) -> Result<()> {
    for _ in 0..count {
        let world = stage.worlds.fork(moment).await?;
        stage.worlds.erase(world).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_uses_comes_to_a_plateau_if_it_is_compacted() -> Result<()> {
    let stage = Stage::of(Plane::builder().backend(BackendKind::Process).exploring()).await?;
    let moment = source(&stage).await?;
    let count = rounds(100)?;
    let begun = stage.worlds.compact().await?.in_use;
    fork_and_erase(&stage, &moment, count).await?;
    // It is brought up to date ten times a second, and there is no event.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let grown = stage.worlds.usage().await?.in_use - begun;
    let written = u64::try_from(count * moment.size_bytes())?;
    assert!(grown > written / 2, "without compaction it grew by {grown} after {written} bytes");
    let mut in_use = Vec::new();
    for _ in 0..4 {
        let usage = stage.worlds.compact().await?;
        assert!(usage.in_use <= usage.allocated, "{usage:?}");
        assert!(usage.quota.is_some_and(|quota| quota >= 700 << 20), "{usage:?}");
        in_use.push(usage.in_use);
        fork_and_erase(&stage, &moment, count).await?;
    }
    println!("{begun} bytes, {grown} more after {count} forks, then {in_use:?}");
    // Pages are not all full, so it is more than in the beginning; but five times as many forks
    // later it is no more than half of what a fifth of them had left.
    let most = in_use.iter().max().context("none")?;
    assert!(most - begun < grown / 2, "{begun}, then {in_use:?}");
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_is_done_once() -> Result<()> {
    let stage = Stage::of(Plane::builder().backend(BackendKind::Process).exploring()).await?;
    let source = stage.namespace().await?;
    let map = format!("/api/v1/namespaces/{source}/configmaps");
    let first = stage.create(&map, &json!({ "metadata": { "name": "o" } })).await?;
    stage.worlds.moment(&source).await?;
    assert!(!stage.worlds.compact_if_due().await?, "nothing was written yet");
    // 10,000 revisions, without the server.
    use base64::Engine as _;
    let key = base64::engine::general_purpose::STANDARD.encode("/somewhere/else");
    let put = json!({ "request_put": { "key": key, "value": "" } });
    for _ in 0..10 {
        let puts = (0..1000)
            .map(|_| super::stage::etcd(&stage.plane, "/v3/kv/txn", json!({ "success": [put] })));
        use futures::{StreamExt as _, TryStreamExt as _};
        futures::stream::iter(puts).buffer_unordered(16).try_collect::<Vec<_>>().await?;
    }
    stage.worlds.settle().await?;
    let (one, two) = futures::join!(stage.worlds.compact_if_due(), stage.worlds.compact_if_due());
    assert_eq!(usize::from(one?) + usize::from(two?), 1);
    let rv = first["metadata"]["resourceVersion"].as_str().context("no rv")?.to_owned();
    assert_eq!(list_at(&stage, &map, &rv).await, Err(410));
    assert!(!stage.worlds.compact_if_due().await?);
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_of_a_world_stays_as_long_as_the_world() -> Result<()> {
    for preset in [true, false] {
        let builder = Plane::builder().backend(BackendKind::Process);
        let stage = Stage::of(if preset { builder.exploring() } else { builder }).await?;
        let moment = source(&stage).await?;
        let world = stage.worlds.fork(&moment).await?;
        let by_hand = stage.namespace().await?;
        let maps = format!("/api/v1/namespaces/{}/configmaps", world.namespace());
        // Each version of the fork, and how many objects there were.
        let revisions: Vec<_> = world
            .changes()
            .filter(|change| change.resource.plural == "configmaps")
            .map(|change| change.revision)
            .collect();
        fork_and_erase(&stage, &moment, 5).await?;
        stage.worlds.compact().await?;
        for (before, revision) in revisions.iter().enumerate() {
            let listed = list_at(&stage, &maps, &revision.to_string()).await;
            assert_eq!(listed, Ok(before + 1), "preset {preset}, revision {revision}");
        }

        // What is older than any world is gone.
        assert!(is_forgotten(&stage, moment.revision() - 1).await?, "preset {preset}");
        assert!(!is_forgotten(&stage, world.first_revision()).await?, "preset {preset}");

        // With the fork goes its past, and what was made by hand still has its own.
        let last = world.last_revision() - 1;
        stage.worlds.erase(world).await?;
        stage.worlds.compact().await?;
        assert!(is_forgotten(&stage, last).await?, "preset {preset}");
        let by_hand = stage.worlds.moment(&by_hand).await?;
        assert_eq!(by_hand.changes().count(), 1);

        // A moment is bytes.
        let world = stage.worlds.fork(&moment).await?;
        let again = stage.worlds.moment(world.namespace()).await?;
        assert_eq!(again.changes().count(), moment.changes().count());
        let maps = format!("/api/v1/namespaces/{}/configmaps", world.namespace());
        let list = request(&stage.client, "GET", &maps, None).await?;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(10));
        stage.worlds.erase(world).await?;
        stage.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_full_says_so_and_what_to_do() -> Result<()> {
    let flags = Flags::new().set("quota-backend-bytes", (24 << 20).to_string());
    let builder = Plane::builder().backend(BackendKind::Process).etcd_flags(flags).exploring();
    let stage = Stage::of(builder).await?;
    let source = stage.namespace().await?;
    let maps = format!("/api/v1/namespaces/{source}/configmaps");
    let data = json!({ "x": "x".repeat(500_000) });
    stage.create(&maps, &json!({ "metadata": { "name": "o" }, "data": data })).await?;
    let moment = stage.worlds.moment(&source).await?;
    let mut forks = 0;
    let error = loop {
        match stage.worlds.fork(&moment).await {
            Ok(world) => stage.worlds.erase(world).await?,
            Err(error) => break error,
        }
        forks += 1;
        assert!(forks < 100, "it takes more than its quota");
    };
    let WorldError::Etcd { source: reason, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**reason, EtcdError::NoSpace { .. }), "{error:?}");
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains("compact") && text.contains("--quota-backend-bytes"), "{text}");
    assert!(forks > 10, "{forks} forks were too many");
    // There is always space to erase.
    stage.worlds.settle().await?;
    stage.worlds.erase_namespace(&source).await?;
    stage.stop().await
}

/// Whether etcd can no longer say what there was. A server with a watch cache may still know.
async fn is_forgotten(stage: &Stage, revision: i64) -> Result<bool> {
    let question =
        json!({ "key": "AA==", "range_end": "AA==", "count_only": true, "revision": revision });
    match super::stage::etcd(&stage.plane, "/v3/kv/range", question).await {
        Ok(_) => Ok(false),
        Err(error) if error.to_string().contains("has been compacted") => Ok(true),
        Err(error) => Err(error),
    }
}

/// How many objects a LIST at exactly this revision shows, or the code of the error.
async fn list_at(stage: &Stage, path: &str, revision: &str) -> Result<usize, u16> {
    let path = format!("{path}?resourceVersion={revision}&resourceVersionMatch=Exact");
    match request(&stage.client, "GET", &path, None).await {
        Ok(list) => Ok(list["items"].as_array().map_or(0, Vec::<Value>::len)),
        Err(kube::Error::Api(status)) => Err(status.code),
        Err(error) => panic!("{error}"),
    }
}
