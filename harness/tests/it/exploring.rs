//! The preset for exploring: what differs from other planes, seen from outside, on each backend.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use laggard::Plane;
use laggard::plane::{BackendKind, Flags, PlaneBuilder, Preset, Readiness};
use laggard::world::EtcdAddress;
use serde_json::{Value, json};

use crate::world::stage::{etcd, request};

#[tokio::test]
async fn an_exploring_plane_is_tuned_and_says_so() -> Result<()> {
    let plane = exploring(BackendKind::Process).await?;
    let Preset::Exploring { etcd_in_memory, .. } = plane.preset() else {
        anyhow::bail!("it is {}", plane.preset());
    };
    let EtcdAddress::Unix(socket) = plane.etcd()? else { anyhow::bail!("no socket") };
    let directory = socket.parent().context("no directory")?.to_owned();
    let memory = std::fs::read_to_string("/proc/mounts")?
        .lines()
        .any(|line| line.split(' ').collect::<Vec<_>>()[1..3] == ["/dev/shm", "tmpfs"]);
    // A file system of 64 MiB, as a container has it, is too small.
    println!("{}; there is a file system in memory: {memory}", plane.preset());
    ensure!(memory || !etcd_in_memory);
    ensure!(etcd_in_memory == directory.starts_with("/dev/shm"), "{}", directory.display());
    ensure!(directory.join("etcd/member").is_dir(), "etcd's data are elsewhere");

    // More operations in a transaction, and more bytes in a request, than etcd takes by default.
    let put = |number: usize, value: &str| json!({ "request_put": { "key": encoded(&format!("k{number:04}")), "value": encoded(value) } });
    let many: Vec<_> = (0..500).map(|number| put(number, "")).collect();
    etcd(&plane, "/v3/kv/txn", json!({ "success": many })).await?;
    let large = put(0, &"x".repeat(4 << 20));
    etcd(&plane, "/v3/kv/txn", json!({ "success": [large] })).await?;
    let command = command_of(&directory, "etcd")?;
    let quota = command.iter().find_map(|it| it.strip_prefix("--quota-backend-bytes="));
    let quota: u64 = quota.context("no quota")?.parse()?;
    // 20,000 schedules of 8 kB and more are far below half of it.
    ensure!(quota >= 700 << 20, "{quota}");

    plane.stop().await?;
    ensure!(!directory.exists(), "{} is still there", directory.display());
    Ok(())
}

#[tokio::test]
async fn a_dropped_exploring_plane_leaves_nothing_in_memory() -> Result<()> {
    let plane = exploring(BackendKind::Process).await?;
    let EtcdAddress::Unix(socket) = plane.etcd()? else { anyhow::bail!("no socket") };
    let directory = socket.parent().context("no directory")?.to_owned();
    drop(plane);
    let begun = std::time::Instant::now();
    while directory.exists() {
        ensure!(begun.elapsed().as_secs() < 10, "{} is still there", directory.display());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_flag_of_the_test_wins_over_the_preset() -> Result<()> {
    let flags = Flags::new().set("watch-cache", "true");
    let builder = Plane::builder().backend(BackendKind::Process).exploring();
    let plane = builder.apiserver_flags(flags).start().await?;
    ensure!(has_watch_cache(&plane.client()?).await?);
    plane.stop().await?;
    Ok(())
}

#[cfg(feature = "container")]
#[tokio::test]
async fn an_exploring_plane_in_containers_is_tuned_the_same() -> Result<()> {
    let Some(docker) = crate::container::docker().await else { return Ok(()) };
    let plane = exploring(BackendKind::Container).await?;
    ensure!(matches!(plane.preset(), Preset::Exploring { etcd_in_memory: true, .. }));
    let id = crate::container::id_of(&docker, &plane).await?;
    let about = docker.inspect_container(&format!("laggard-{id}-etcd"), None).await?;
    let config = about.config.context("no configuration")?;
    let (command, environment) =
        (config.cmd.unwrap_or_default().join(" "), config.env.unwrap_or_default());
    for flag in ["--max-txn-ops=", "--max-request-bytes=", "--quota-backend-bytes="] {
        ensure!(command.contains(flag), "{flag} is not in {command}");
    }
    ensure!(environment.iter().any(|it| it == "GOMEMLIMIT=1GiB"), "{environment:?}");
    let memory = about.host_config.and_then(|host| host.mounts).unwrap_or_default();
    ensure!(memory.iter().any(|mount| mount.target.as_deref() == Some("/etcd")), "{memory:?}");
    plane.stop().await?;
    Ok(())
}

/// A plane of this kind, after a look at its API server beside one that is not tuned.
async fn exploring(backend: BackendKind) -> Result<Plane> {
    let builder = || Plane::builder().backend(backend).readiness(Readiness::Full);
    let (standard, plane) =
        futures::try_join!(seen(builder(), true), seen(builder().exploring(), false))?;
    ensure!(standard.preset() == Preset::Standard, "{}", standard.preset());
    standard.stop().await?;
    Ok(plane)
}

/// Whether the API server has what the preset turns off.
async fn seen(builder: PlaneBuilder, expected: bool) -> Result<Plane> {
    let plane = builder.start().await?;
    let client = plane.client()?;
    ensure!(has_watch_cache(&client).await? == expected, "the watch cache: not {expected}");
    let limits = gauge(&client, "go_gc_gomemlimit_bytes").await?;
    ensure!((limits < (1 << 29) as f64) == expected, "GOMEMLIMIT is {limits}");
    ensure!(limits_are_set(&plane, &client).await? == expected, "LimitRanger: not {expected}");
    Ok(plane)
}

async fn has_watch_cache(client: &Client) -> Result<bool> {
    Ok(metrics(client).await?.contains("\nwatch_cache_capacity{"))
}

async fn gauge(client: &Client, name: &str) -> Result<f64> {
    let metrics = metrics(client).await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name}"))?.parse()?)
}

async fn metrics(client: &Client) -> Result<String> {
    Ok(client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?)
}

/// Whether a pod gets the limits that a LimitRange of its namespace asks for.
async fn limits_are_set(plane: &Plane, client: &Client) -> Result<bool> {
    let namespace = plane.namespace("limits").await?;
    let root = format!("/api/v1/namespaces/{namespace}");
    let range = json!({
        "metadata": { "name": "r" },
        "spec": { "limits": [{ "type": "Container", "default": { "cpu": "1" } }] },
    });
    request(client, "POST", &format!("{root}/limitranges"), Some(&range)).await?;
    let pod = json!({
        "metadata": { "name": "p" },
        "spec": { "containers": [{ "name": "c", "image": "i" }] },
    });
    let made: Value = request(client, "POST", &format!("{root}/pods"), Some(&pod)).await?;
    Ok(made["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "1")
}

/// The command line of the server that works in this directory.
fn command_of(directory: &Path, server: &str) -> Result<Vec<String>> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(cwd) = std::fs::read_link(entry.path().join("cwd")) else { continue };
        let Ok(command) = std::fs::read_to_string(entry.path().join("cmdline")) else { continue };
        let command: Vec<_> = command.split('\0').map(str::to_owned).collect();
        if cwd == directory && Path::new(&command[0]).ends_with(server) {
            return Ok(command);
        }
    }
    anyhow::bail!("no {server} works in {}", directory.display())
}

fn encoded(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
