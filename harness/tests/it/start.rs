//! What a start promises, and what it says when it fails.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use laggard::Plane;
use laggard::plane::{Flags, Readiness, StartErrorKind, Step};
use serde_json::json;

#[tokio::test]
async fn a_server_that_ends_is_shown_with_everything_that_explains_it() -> Result<()> {
    let flags = Flags::new().set("egress-selector-config-file", "no-such-file");
    let error =
        Plane::builder().apiserver_flags(flags).start().await.err().context("it started")?;
    ensure!(matches!(error.kind(), StartErrorKind::Exited { .. }), "{:?}", error.kind());
    ensure!(error.step() == Step::Readiness);
    let text = format!("{:#}", anyhow::Error::from(error));
    for expected in [
        "kube-apiserver: exit status 1",
        "--egress-selector-config-file=no-such-file",
        "open no-such-file: no such file or directory",
        "etcd: still running",
        "logs kept in",
        "ended by itself",
    ] {
        ensure!(text.contains(expected), "{expected:?} is missing in:\n{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_failed_start_leaves_only_its_logs() -> Result<()> {
    let flags = Flags::new().set("no-such-flag", "x");
    let error = Plane::builder().etcd_flags(flags).start().await.err().context("it started")?;
    let logs = error.logs().context("no logs")?.to_owned();
    ensure!(logs.join("etcd.log").exists(), "{logs:?}");
    let id = logs.file_name().context("no id")?;
    let planes = logs.parent().and_then(Path::parent).context("no base")?.join("planes");
    ensure!(!planes.join(id).exists(), "the plane's directory is still there");
    ensure!(processes_of(&planes.join(id)).is_empty());
    for file in std::fs::read_dir(&logs)? {
        let text = std::fs::read_to_string(file?.path())?;
        ensure!(!text.contains("PRIVATE KEY"), "a key is in the logs");
    }
    Ok(())
}

#[tokio::test]
async fn a_start_that_takes_too_long_says_what_it_waited_for_and_is_rolled_back() -> Result<()> {
    // A flag that keeps the server from ever being ready: nobody listens there.
    let flags = Flags::new().set("etcd-servers", "http://127.0.0.1:1");
    let start =
        Plane::builder().apiserver_flags(flags).start_timeout(Duration::from_secs(3)).start();
    let error = start.await.err().context("it started")?;
    ensure!(matches!(error.kind(), StartErrorKind::TimedOut { .. }), "{:?}", error.kind());
    let text = format!("{:#}", anyhow::Error::from(error));
    ensure!(text.contains("last readiness answer: "), "{text}");
    ensure!(text.contains("not ready within 3s"), "{text}");
    Ok(())
}

#[tokio::test]
async fn dropping_a_start_leaves_nothing() -> Result<()> {
    for after in [0, 3, 30, 300] {
        let start = Plane::builder().start();
        let _ = tokio::time::timeout(Duration::from_millis(after), start).await;
    }
    let base = std::env::temp_dir().join(format!("laggard-{}", rustix::process::getuid().as_raw()));
    // Other tests of this process have planes of their own, so look at what belongs to nobody: a
    // plane's directory whose lock is free.
    eventually("the directories of dropped starts to go", || {
        std::fs::read_dir(base.join("planes")).into_iter().flatten().flatten().all(|plane| {
            let lock = std::fs::File::open(plane.path().join("lock"));
            lock.is_err() || lock.is_ok_and(|lock| lock.try_lock().is_err())
        })
    })
}

#[tokio::test]
async fn a_dropped_plane_is_gone() -> Result<()> {
    let plane = Plane::builder().start().await?;
    let directory = directory_of(&plane)?;
    ensure!(!processes_of(&directory).is_empty());
    // Outside of the runtime that it was made in, as a static or a struct of a test would.
    std::thread::spawn(move || drop(plane)).join().map_err(|_| anyhow::anyhow!("it panicked"))?;
    eventually("the servers to end", || processes_of(&directory).is_empty())?;
    eventually("the directory to go", || !directory.exists())
}

#[tokio::test]
async fn keys_are_private_and_etcd_has_no_port() -> Result<()> {
    let plane = Plane::builder().start().await?;
    let directory = directory_of(&plane)?;
    ensure!(std::fs::metadata(&directory)?.mode() & 0o777 == 0o700);
    let mut keys = 0;
    for file in std::fs::read_dir(directory.join("pki"))? {
        let file = file?;
        ensure!(file.metadata()?.mode() & 0o777 == 0o600, "{:?}", file.path());
        keys += usize::from(file.path().extension().is_some_and(|it| it == "key"));
    }
    ensure!(keys >= 2, "{keys} keys");
    for process in processes_of(&directory) {
        let addresses = listening(process)?;
        let command = std::fs::read_to_string(format!("/proc/{process}/cmdline"))?;
        let etcd = command.split('\0').next().is_some_and(|program| program.ends_with("etcd"));
        if etcd {
            ensure!(addresses.is_empty(), "etcd listens on {addresses:?}");
        }
        ensure!(addresses.iter().all(|address| address.starts_with("0100007F:")), "{addresses:?}");
    }
    let stopped = plane.stop().await?;
    ensure!(stopped.already_ended.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_server_that_ended_by_itself_is_told_at_the_stop() -> Result<()> {
    let plane = Plane::builder().start().await?;
    let directory = directory_of(&plane)?;
    let etcd = processes_of(&directory).into_iter().find(|process| {
        std::fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|it| it.trim() == "etcd")
    });
    let etcd = etcd.and_then(rustix::process::Pid::from_raw).context("no etcd")?;
    rustix::process::kill_process(etcd, rustix::process::Signal::KILL)?;
    // Its directory goes first when it is ended, so that is not enough to look at.
    let process = PathBuf::from(format!("/proc/{}", etcd.as_raw_nonzero()));
    eventually("etcd to end", || !process.exists())?;
    let stopped = plane.stop().await?;
    let ended: Vec<_> =
        stopped.already_ended.iter().map(|(server, how)| format!("{server}: {how}")).collect();
    ensure!(ended.contains(&"etcd: signal 9".to_owned()), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn flags_are_set_and_removed() -> Result<()> {
    let flags = Flags::new().set("max-requests-inflight", "77").remove("allow-privileged");
    let plane = Plane::builder().apiserver_flags(flags).start().await?;
    let directory = directory_of(&plane)?;
    let commands: Vec<_> = processes_of(&directory)
        .into_iter()
        .filter_map(|process| std::fs::read_to_string(format!("/proc/{process}/cmdline")).ok())
        .filter(|command| command.contains("kube-apiserver\0"))
        .collect();
    ensure!(commands.len() == 1, "{commands:?}");
    ensure!(commands[0].contains("--max-requests-inflight=77"), "{commands:?}");
    ensure!(!commands[0].contains("--allow-privileged"), "{commands:?}");
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn full_readiness_has_the_default_roles() -> Result<()> {
    let plane = Plane::builder().readiness(Readiness::Full).start().await?;
    let roles: Api<ClusterRole> = Api::all(plane.client()?);
    ensure!(roles.get_opt("system:kube-controller-manager").await?.is_some());
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn the_first_custom_resource_does_not_wait_two_seconds() -> Result<()> {
    let plane = Plane::builder().crds([widgets("a"), widgets("b")]).start().await?;
    plane.install_crds(&[widgets("c")]).await?;
    let namespace = plane.namespace("crds").await?;
    for group in ["a", "b", "c"] {
        let kind = GroupVersionKind::gvk(&format!("{group}.test.local"), "v1", "Widget");
        let resource = ApiResource::from_gvk(&kind);
        let widgets: Api<DynamicObject> =
            Api::namespaced_with(plane.client()?, &namespace, &resource);
        let widget = DynamicObject::new("w", &resource);
        // The delay is two seconds, in the server; anything below it is no delay.
        let params = PostParams::default();
        let post = widgets.create(&params, &widget);
        tokio::time::timeout(Duration::from_millis(1_900), post)
            .await
            .with_context(|| format!("the first POST of {group} was delayed"))??;
    }
    plane.stop().await?;
    Ok(())
}

fn widgets(group: &str) -> CustomResourceDefinition {
    serde_json::from_value(json!({
        "metadata": { "name": format!("widgets.{group}.test.local") },
        "spec": {
            "group": format!("{group}.test.local"),
            "scope": "Namespaced",
            "names": { "kind": "Widget", "plural": "widgets", "singular": "widget" },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object" } },
            }],
        },
    }))
    .expect("a constant definition")
}

/// The plane's directory, which is not part of the API: beside the logs.
pub(crate) fn directory_of(plane: &Plane) -> Result<PathBuf> {
    let logs = plane.logs().context("no logs")?;
    let id = logs.file_name().context("no id")?;
    let base = logs.parent().and_then(Path::parent).context("no base")?;
    Ok(base.join("planes").join(id))
}

/// The servers of a plane: whatever works in its directory.
pub(crate) fn processes_of(directory: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let cwd = std::fs::read_link(entry.path().join("cwd"));
        // A removed directory has a note behind its name.
        if cwd.is_ok_and(|cwd| cwd.to_string_lossy().starts_with(&*directory.to_string_lossy())) {
            found.push(pid);
        }
    }
    found
}

/// The local addresses of the TCP sockets on which a process listens, as the kernel writes them.
fn listening(pid: i32) -> Result<Vec<String>> {
    let mut own = Vec::new();
    for descriptor in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        if let Ok(target) = std::fs::read_link(descriptor.path())
            && let Some(inode) = target.to_string_lossy().strip_prefix("socket:[")
        {
            own.push(inode.trim_end_matches(']').to_owned());
        }
    }
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            // proc(5): state 0A is LISTEN, the tenth field is the inode.
            if fields.get(3) == Some(&"0A")
                && fields.get(9).is_some_and(|it| own.iter().any(|own| own == it))
            {
                found.push(fields[1].to_owned());
            }
        }
    }
    Ok(found)
}

/// Another process's doing: there is no event that reaches us.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let begun = std::time::Instant::now();
    while !condition() {
        ensure!(begun.elapsed() < Duration::from_secs(10), "waited in vain for {what}");
        std::thread::yield_now();
    }
    Ok(())
}
