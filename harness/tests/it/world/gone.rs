//! What is erased is gone, whoever wrote to it meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use laggard::Plane;
use laggard::plane::BackendKind;
use laggard::world::{EtcdAddress, WorldError, Worlds};
use serde_json::json;

use super::between::Between;
use super::stage::{Stage, etcd, keys_of_worlds, request, rounds};

on_each_server!(erasures_under_late_writers_leave_no_key);

async fn erasures_under_late_writers_leave_no_key(stage: &Stage) -> Result<()> {
    let source = stage.namespace().await?;
    let maps = format!("/api/v1/namespaces/{source}/configmaps");
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{source}/leases");
    for number in 0..3 {
        stage.create(&maps, &json!({ "metadata": { "name": format!("o{number}") } })).await?;
    }
    let moment = stage.worlds.moment(&source).await?;
    let late = Arc::new(AtomicUsize::new(0));
    let rounds = rounds(100)?;
    for _ in 0..rounds {
        let world = stage.worlds.fork(&moment).await?;
        let (begun, erased) =
            (Arc::new(tokio::sync::Barrier::new(4)), Arc::new(AtomicUsize::new(0)));
        let mut writers = Vec::new();
        for (writer, path) in [&maps, &maps, &leases].into_iter().enumerate() {
            let path = path.replace(&source, world.namespace());
            let (client, late) = (stage.client.clone(), late.clone());
            let (begun, erased) = (begun.clone(), erased.clone());
            writers.push(tokio::spawn(async move {
                begun.wait().await;
                // Until the namespace is gone for the API server, too.
                for number in 0.. {
                    let name = format!("late-{writer}-{number}");
                    let body = json!({ "metadata": { "name": name } });
                    let begun_late = erased.load(Ordering::SeqCst);
                    match request(&client, "POST", &path, Some(&body)).await {
                        Ok(_) => late.fetch_add(begun_late, Ordering::SeqCst),
                        Err(_) => return,
                    };
                }
            }));
        }
        begun.wait().await;
        stage.worlds.erase(world).await?;
        erased.store(1, Ordering::SeqCst);
        for writer in writers {
            writer.await?;
        }
    }
    let late = late.load(Ordering::SeqCst);
    println!("{rounds} forks and erasures; {late} writes began after an erasure had returned");
    stage.worlds.settle().await?;
    stage.worlds.erase_namespace(&source).await?;
    assert_eq!(keys_of_worlds(&stage.plane).await?, [""; 0]);
    Ok(())
}

/// An erasure that has not yet heard of an object deletes the rest, hears of it, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_an_erasure_returns_everything_written_before_it_is_gone() -> Result<()> {
    let stage = Stage::of(Plane::builder().backend(BackendKind::Process)).await?;
    let directory = tempfile::tempdir()?;
    let EtcdAddress::Unix(socket) = stage.plane.etcd()? else { anyhow::bail!("no socket") };
    let between = Between::start(&directory.path().join("s"), socket)?;
    let worlds = Worlds::new(&EtcdAddress::Unix(directory.path().join("s"))).await?;
    for round in 0..20 {
        let namespace = stage.namespace().await?;
        worlds.moment(&namespace).await?;
        between.hold_watches(true);
        // A kind that the world had not had.
        let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
        stage.create(&leases, &json!({ "metadata": { "name": "l" } })).await?;
        let erasure = worlds.erase_namespace(&namespace);
        let check = async {
            let lease = format!("/registry/leases/{namespace}/l");
            let begun = std::time::Instant::now();
            while keys_of_worlds(&stage.plane).await? != [lease.as_str()] {
                anyhow::ensure!(begun.elapsed().as_secs() < 10, "the namespace is still there");
            }
            between.hold_watches(false);
            anyhow::Ok(())
        };
        let (erased, checked) = futures::join!(erasure, check);
        checked?;
        erased?;
        assert_eq!(keys_of_worlds(&stage.plane).await?, [""; 0], "round {round}");
    }
    worlds.close().await?;
    stage.stop().await
}

/// What is written long after, when nobody who erased anything is there any more.
#[tokio::test]
async fn a_sweep_removes_what_came_after_the_erasure() -> Result<()> {
    let stage = Stage::of(Plane::builder().backend(BackendKind::Process)).await?;
    let source = stage.namespace().await?;
    let orphan = stage.namespace().await?;
    stage.worlds.erase_namespace(&orphan).await?;
    stage.worlds.clone().close().await?;
    let Stage { plane, client, worlds } = stage;
    drop(worlds);
    use base64::Engine as _;
    let key = format!("/registry/configmaps/{orphan}/late");
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    etcd(&plane, "/v3/kv/put", json!({ "key": key, "value": "" })).await?;
    assert_eq!(keys_of_worlds(&plane).await?.len(), 2);

    let worlds = Worlds::new(&plane.etcd()?).await?;
    let left = keys_of_worlds(&plane).await?;
    assert_eq!(left, [format!("/registry/namespaces/{source}")], "only what has a namespace stays");
    drop(Stage { plane, client, worlds });
    Ok(())
}

#[tokio::test]
async fn only_a_world_can_be_erased() -> Result<()> {
    let stage = Stage::of(Plane::builder().backend(BackendKind::Process)).await?;
    let error = stage.worlds.erase_namespace("default").await.expect_err("it is no world");
    assert!(matches!(error, WorldError::Name { .. }), "{error:?}");
    request(&stage.client, "GET", "/api/v1/namespaces/default", None).await?;
    stage.stop().await
}
