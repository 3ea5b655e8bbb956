//! The watch of etcd breaks, and comes back without having missed anything, or says what it missed.

use anyhow::Result;
use laggard::Plane;
use laggard::plane::BackendKind;
use laggard::world::{EtcdAddress, Moment, WorldError, Worlds};
use serde_json::json;

use super::between::Between;
use super::stage::{Stage, etcd, keys_of_worlds, request, slow_rounds};

/// A plane, and worlds that have their own way to its etcd, which can be cut.
struct Cut {
    stage: Stage,
    between: Between,
    worlds: Worlds,
    _directory: tempfile::TempDir,
}

impl Cut {
    async fn start() -> Result<Self> {
        let stage = Stage::of(Plane::builder().backend(BackendKind::Process)).await?;
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("s");
        let EtcdAddress::Unix(socket) = stage.plane.etcd()? else { anyhow::bail!("no socket") };
        let between = Between::start(&path, socket)?;
        let worlds = Worlds::new(&EtcdAddress::Unix(path)).await?;
        Ok(Self { stage, between, worlds, _directory: directory })
    }

    async fn stop(self) -> Result<()> {
        self.worlds.close().await?;
        self.stage.stop().await
    }

    /// Makes, changes and deletes some objects.
    async fn work(&self, namespace: &str, round: usize) -> Result<()> {
        let maps = format!("/api/v1/namespaces/{namespace}/configmaps");
        for number in 0..3 {
            let name = format!("o{round}-{number}");
            self.stage.create(&maps, &json!({ "metadata": { "name": name } })).await?;
            let path = format!("{maps}/{name}");
            request(&self.stage.client, "PATCH", &path, Some(&json!({ "data": { "a": "b" } })))
                .await?;
            if number == 1 {
                request(&self.stage.client, "DELETE", &path, None).await?;
            }
        }
        Ok(())
    }
}

fn changes(moment: &Moment) -> Vec<(i64, String, bool)> {
    moment.changes().map(|it| (it.revision, it.name, it.deleted)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_etcd_that_breaks_comes_back_and_misses_nothing() -> Result<()> {
    let cut = Cut::start().await?;
    for round in 0..slow_rounds(15, 100)? {
        let source = cut.stage.namespace().await?;
        cut.work(&source, 1).await?;
        let forked = cut.worlds.fork(&cut.worlds.moment(&source).await?).await?;
        cut.between.break_watches(true);
        cut.work(&source, 2).await?;
        // Written while nobody looks, by a client of a world that is being erased.
        cut.work(forked.namespace(), 3).await?;
        let (name, erasure) = (forked.namespace().to_owned(), cut.worlds.erase(forked));
        let back = async {
            // While whoever needs the watch waits for it.
            tokio::task::yield_now().await;
            cut.between.break_watches(false);
        };
        let (erased, ()) = futures::join!(erasure, back);
        erased?;
        let left = keys_of_worlds(&cut.stage.plane).await?;
        assert!(left.iter().all(|key| !key.contains(&name)), "round {round}: {left:?}");

        let moment = cut.worlds.moment(&source).await?;
        let expected = cut.stage.worlds.moment_at(&source, moment.revision()).await?;
        assert_eq!(changes(&moment), changes(&expected), "round {round}");
        let world = cut.worlds.fork(&moment).await?;
        cut.worlds.erase(world).await?;
        cut.worlds.erase_namespace(&source).await?;
    }
    cut.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_compacted_while_the_watch_was_away_is_missed_and_said() -> Result<()> {
    let cut = Cut::start().await?;
    let source = cut.stage.namespace().await?;
    cut.work(&source, 1).await?;
    let before = cut.worlds.moment(&source).await?;
    let erased = cut.worlds.fork(&before).await?;
    let name = erased.namespace().to_owned();
    cut.worlds.erase(erased).await?;

    cut.between.break_watches(true);
    cut.work(&source, 2).await?;
    use base64::Engine as _;
    let late = format!("/registry/configmaps/{name}/late");
    let late = base64::engine::general_purpose::STANDARD.encode(late);
    let put = etcd(&cut.stage.plane, "/v3/kv/put", json!({ "key": late, "value": "" })).await?;
    // One more, so that the late one is older than what is kept.
    cut.stage.namespace().await?;
    let revision: i64 = put["header"]["revision"].as_str().unwrap_or_default().parse()?;
    let compaction = json!({ "revision": revision + 1, "physical": true });
    etcd(&cut.stage.plane, "/v3/kv/compaction", compaction).await?;
    cut.between.break_watches(false);

    let error = cut.worlds.moment(&source).await.expect_err("a part of its past is gone");
    assert!(matches!(error, WorldError::Compacted { .. }), "{error:?}");
    // What is kept as bytes is as good as before, and so is what begins after the gap.
    let world = cut.worlds.fork(&before).await?;
    let forked = cut.worlds.moment(world.namespace()).await?;
    assert_eq!(changes(&forked).len(), changes(&before).len());
    cut.worlds.erase(world).await?;
    cut.worlds.settle().await?;
    let left = keys_of_worlds(&cut.stage.plane).await?;
    assert!(left.iter().all(|key| !key.contains(&name)), "a late write is still there: {left:?}");
    cut.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_does_not_come_back_is_an_error_that_says_why() -> Result<()> {
    let cut = Cut::start().await?;
    let source = cut.stage.namespace().await?;
    cut.worlds.moment(&source).await?;
    cut.between.break_watches(true);
    cut.work(&source, 1).await?;
    let error = cut.worlds.moment(&source).await.expect_err("it cannot know of this");
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains("follow the changes") && text.contains("watch"), "{text}");
    cut.stage.stop().await
}
