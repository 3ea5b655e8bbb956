//! A fork that is interrupted leaves nothing: when nobody waits for it any more, when etcd fails
//! in the middle of it, when its process is killed.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use laggard::Plane;
use laggard::plane::BackendKind;
use laggard::world::{EtcdAddress, WorldError, Worlds};
use serde_json::json;
use tokio::time::Instant;

use super::between::Between;
use super::roles::bound;
use super::stage::{Stage, etcd, keys_of_worlds, rounds, slow_rounds};

/// Where the child finds etcd, and what it forks.
const ETCD: &str = "LAGGARD_TEST_ETCD";
const SOURCE: &str = "LAGGARD_TEST_SOURCE";
const KEEPS: &str = "LAGGARD_TEST_KEEPS";

on_each_server!(
    a_fork_that_nobody_waits_for_any_more_leaves_nothing,
    what_a_killed_process_left_is_swept,
);

async fn a_fork_that_nobody_waits_for_any_more_leaves_nothing(stage: &Stage) -> Result<()> {
    let source = source(stage).await?;
    let moment = stage.worlds.moment(&source).await?;
    let (mut whole, mut dropped) = (0, 0);
    for round in 0..rounds(200)? {
        // From before the first transaction until after the last.
        let patience = Duration::from_micros(500 * (round as u64 % 100));
        match tokio::time::timeout(patience, stage.worlds.fork(&moment)).await {
            Ok(world) => {
                whole += 1;
                stage.worlds.erase(world?).await?;
            }
            Err(_) => dropped += 1,
        }
    }
    println!("{dropped} given up, {whole} whole");
    assert!(dropped > 0, "nothing was interrupted");
    stage.worlds.settle().await?;
    assert_eq!(keys_of_others(stage, &source).await?, [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_that_fails_in_the_middle_leaves_nothing() -> Result<()> {
    let stage = Stage::of(Plane::builder().backend(BackendKind::Process)).await?;
    let source = source(&stage).await?;
    let directory = tempfile::tempdir()?;
    let EtcdAddress::Unix(socket) = stage.plane.etcd()? else { anyhow::bail!("no socket") };
    let between = Between::start(&directory.path().join("s"), socket)?;
    let worlds = Worlds::new(&EtcdAddress::Unix(directory.path().join("s"))).await?;
    let moment = worlds.moment(&source).await?;
    for cut_after in 0..20 {
        between.cut_after(cut_after);
        let error = worlds.fork(&moment).await.expect_err("the connection was cut");
        assert!(matches!(error, WorldError::Etcd { .. }), "{error:?}");
        assert!(between.has_cut(), "it failed by itself: {error:?}");
        worlds.settle().await?;
        let left = keys_of_others(&stage, &source).await?;
        assert_eq!(left, [""; 0], "cut after request {cut_after}");
    }
    worlds.close().await?;
    stage.stop().await
}

async fn what_a_killed_process_left_is_swept(stage: &Stage) -> Result<()> {
    let source = source(stage).await?;
    let mut swept = 0;
    for round in 0..slow_rounds(3, 50)? {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", "world::interrupted::in_a_process_that_is_killed"])
            .args(["--ignored", "--nocapture"])
            .env(ETCD, text_of(&stage.plane.etcd()?)?)
            .env(SOURCE, &source)
            .env(KEEPS, (round == 0).to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        tokio::task::spawn_blocking(move || -> Result<()> {
            for line in output.lines() {
                // The first one has a world when it is killed, the others are in the middle of something.
                if line?.contains(if round == 0 { "forked" } else { "forking" }) {
                    return Ok(());
                }
            }
            anyhow::bail!("the child ended by itself")
        })
        .await??;
        if round > 0 {
            tokio::time::sleep(Duration::from_micros(1_700 * (round as u64 - 1))).await;
        }
        child.kill()?;
        child.wait()?;
        // While its lease lasts nobody can know; then it is dead for everybody.
        let deadline = Instant::now() + Duration::from_secs(20);
        while owners(&stage.plane).await? > 1 {
            anyhow::ensure!(Instant::now() < deadline, "a dead owner still counts as alive");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        swept += stage.worlds.sweep().await?.len();
        assert_eq!(keys_of_others(stage, &source).await?, [""; 0], "round {round}");
    }
    println!("{swept} worlds were swept");
    assert!(swept > 0, "the first child was killed while it had a world");
    Ok(())
}

#[tokio::test]
async fn an_owner_that_lives_is_never_taken_for_dead() -> Result<()> {
    let stage = Stage::of(Plane::builder().backend(BackendKind::Process)).await?;
    let source = source(&stage).await?;
    let worlds = Worlds::with_patience(&stage.plane.etcd()?, Duration::from_secs(4)).await?;
    let moment = worlds.moment(&source).await?;
    let world = worlds.fork(&moment).await?;
    // Three times as long as a dead one would last.
    let until = Instant::now() + Duration::from_secs(12);
    while Instant::now() < until {
        assert_eq!(stage.worlds.sweep().await?, [""; 0]);
        assert_eq!(owners(&stage.plane).await?, 2);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let name = world.namespace().to_owned();
    worlds.close().await?;
    assert_eq!(stage.worlds.sweep().await?, [name], "now its world belongs to nobody");
    stage.stop().await
}

/// What the child runs.
#[tokio::test]
#[ignore = "the child process of the tests here"]
async fn in_a_process_that_is_killed() -> Result<()> {
    let address = address_of(&std::env::var(ETCD).context("the test above has not started this")?)?;
    let source = std::env::var(SOURCE)?;
    let worlds = Worlds::with_patience(&address, Duration::from_secs(1)).await?;
    let moment = worlds.moment(&source).await?;
    println!("forking");
    let keeps = std::env::var(KEEPS)? == "true";
    loop {
        let world = worlds.fork(&moment).await?;
        if keeps {
            println!("forked");
            std::future::pending::<()>().await;
        }
        worlds.erase(world).await?;
    }
}

/// An address as it is handed to the child.
fn text_of(address: &EtcdAddress) -> Result<String> {
    let parts = match address {
        EtcdAddress::Unix(path) => vec![path.to_str().context("no UTF-8")?],
        EtcdAddress::Tls { address, ca, cert, key } => vec![&**address, ca, cert, key],
        other => anyhow::bail!("what is {other}?"),
    };
    Ok(serde_json::to_string(&parts)?)
}

fn address_of(text: &str) -> Result<EtcdAddress> {
    let parts: Vec<String> = serde_json::from_str(text)?;
    match <[String; 4]>::try_from(parts) {
        Ok([address, ca, cert, key]) => Ok(EtcdAddress::Tls { address, ca, cert, key }),
        Err(parts) => Ok(EtcdAddress::Unix(parts.first().context("no path")?.into())),
    }
}

/// With the namespace of its source, one fork takes more than twenty transactions.
async fn source(stage: &Stage) -> Result<String> {
    let source = stage.namespace().await?;
    for number in 0..25 {
        let path = format!("/api/v1/namespaces/{source}/configmaps");
        stage.create(&path, &json!({ "metadata": { "name": format!("o{number}") } })).await?;
    }
    // Of RBAC a fork keeps keys elsewhere too.
    bound(stage, &source, "r", &["get"]).await?;
    Ok(source)
}

/// The keys of all worlds but this one.
async fn keys_of_others(stage: &Stage, source: &str) -> Result<Vec<String>> {
    let mut keys = keys_of_worlds(&stage.plane).await?;
    keys.retain(|key| !key.contains(source));
    Ok(keys)
}

async fn owners(plane: &Plane) -> Result<usize> {
    use base64::Engine as _;
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let body = json!({
        "key": encoded("/laggard/owners/"), "range_end": encoded("/laggard/owners0"),
        "keys_only": true,
    });
    let answer = etcd(plane, "/v3/kv/range", body).await?;
    Ok(answer["kvs"].as_array().map_or(0, Vec::len))
}
