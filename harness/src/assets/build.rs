//! Building the servers from their Go modules, pinned in files that ship inside this crate.
//!
//! The recipe is `go build` in a module whose `go.mod` requires `k8s.io/kubernetes` and etcd and
//! whose `go.sum` fixes every byte of what they need, so anyone can repeat it. A build runs in a
//! process group that ends with this process: a killed test leaves no compiler.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::event::OnEvent;
use super::settings::Reach;
use super::store::Store;
use super::version::Pinned;
use super::{AssetError, Binary, Event};
use crate::lifeline::{Lifeline, Spawn};
use crate::text::tail;

/// With less than this left, a failed build has failed for lack of room.
const FULL_BYTES: u64 = 64 << 20;

/// How many of the last lines of a failed build its error shows.
const SHOWN_LINES: usize = 15;

/// Builds `missing` of one pinned version into the store.
///
/// Whoever comes second waits for the first, and then finds everything there.
///
/// # Errors
///
/// [`AssetError::Build`], [`AssetError::Store`], and what `no_go` makes of the fact that there is
/// no Go.
pub(crate) async fn into_store(
    store: &Store,
    pinned: &Pinned,
    missing: &[Binary],
    reach: Reach,
    no_go: impl FnOnce(String) -> AssetError,
    on_event: OnEvent<'_>,
) -> Result<(), AssetError> {
    let version = pinned.version;
    let Some(go) = find_go() else {
        return Err(no_go("there is no `go` in PATH or GOROOT".to_owned()));
    };

    let lock = store.lock(&version, "builds it from its Go modules", on_event).await?;
    let still_missing = store.missing(&version, missing);
    if still_missing.is_empty() {
        return Ok(());
    }
    store.sweep_staging(&lock);
    let staging = store.staging()?;
    let module = staging.path().join("module");
    let finished = staging.path().join("finished");
    let write = || -> std::io::Result<()> {
        fs::create_dir(&module)?;
        fs::create_dir(&finished)?;
        fs::create_dir(staging.path().join("tmp"))?;
        fs::write(module.join("go.mod"), pinned.go_mod)?;
        fs::write(module.join("go.sum"), pinned.go_sum)
    };
    write().map_err(|source| store.failed("write the Go module to build", source))?;

    for (index, &binary) in still_missing.iter().enumerate() {
        on_event(Event::Building {
            binary,
            version: recipe_version(binary, pinned),
            number: index + 1,
            of: still_missing.len(),
            usual: usual(binary),
        });
        let begun = Instant::now();
        build_one(&go, binary, pinned, store, staging.path(), reach).await?;
        on_event(Event::Built { binary, took: begun.elapsed() });
    }
    store.admit(&version, &finished, &still_missing, "built from its Go modules", &lock)
}

async fn build_one(
    go: &Path,
    binary: Binary,
    pinned: &Pinned,
    store: &Store,
    staging: &Path,
    reach: Reach,
) -> Result<(), AssetError> {
    let version = pinned.version;
    // Without these the servers report v0.0.0-master.
    let package = "k8s.io/component-base/version";
    let link = format!(
        "-s -w -X {package}.gitVersion=v{version} -X {package}.gitMajor={} -X {package}.gitMinor={}",
        version.major(),
        version.minor(),
    );
    let output = staging.join("finished").join(binary.name());
    let arguments: Vec<String> = [
        "build",
        "-mod=readonly",
        "-buildvcs=false",
        "-trimpath",
        "-ldflags",
        &link,
        "-o",
        &output.to_string_lossy(),
        go_package(binary),
    ]
    .map(str::to_owned)
    .into();
    let command = format!("{} {}", go.display(), arguments.join(" "));
    let log_path = staging.join(format!("{binary}.log"));
    let log =
        File::create(&log_path).map_err(|source| store.failed("write a build log", source))?;
    let go_build = Lifeline::spawn(Spawn {
        program: go,
        arguments: &arguments,
        environment: environment(store, staging, reach),
        working_directory: &staging.join("module"),
        remove: Some(staging),
        output: log,
    })
    .map_err(|source| store.failed("start a Go build", source))?;
    let status = go_build.wait().await;
    if status.is_some_and(|status| status.success()) && output.is_file() {
        return Ok(());
    }
    let problem = match status {
        Some(status) if status.success() => "it made no file".to_owned(),
        Some(status) => format!("it ended with {status}"),
        None => "nobody saw it end".to_owned(),
    };
    let output = tail(&log_path, SHOWN_LINES);
    let is_full = rustix::fs::statvfs(staging)
        .is_ok_and(|free| free.f_bavail.saturating_mul(free.f_frsize) < FULL_BYTES);
    // On a full disk not even the log could be written.
    let remedy = if is_full || output.contains("no space left on device") {
        "; the disk is full: make room (a build takes about 2 GB, Go's cache included), or move the \
         store (XDG_DATA_HOME) and GOCACHE"
    } else if reach < Reach::Network && output.contains("GOPROXY=off") {
        "; its modules are not all on this machine, and offline mode forbids to download them"
    } else {
        ""
    };
    Err(AssetError::Build { binary, problem: format!("{problem}{remedy}"), command, output })
}

/// The caller's environment, since it says which proxy and caches to use, and what we insist on.
fn environment(store: &Store, staging: &Path, reach: Reach) -> Vec<(OsString, OsString)> {
    let has = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let mut environment: Vec<_> = std::env::vars_os().collect();
    let mut set = |name: &str, value: OsString| {
        environment.retain(|(known, _)| known != name);
        environment.push((name.into(), value));
    };
    set("CGO_ENABLED", "0".into()); // static, so that the binary also runs in an empty image
    set("GO111MODULE", "on".into());
    set("GOWORK", "off".into());
    set("GOFLAGS", "".into()); // `-mod=vendor` and the like belong to the caller's own module
    set("GOTMPDIR", staging.join("tmp").into());
    if reach < Reach::Network {
        set("GOPROXY", "off".into());
        set("GOTOOLCHAIN", "local".into());
        set("GOVCS", "*:off".into());
        set("GOTELEMETRY", "off".into());
    }
    // Go refuses to start where it cannot name its caches.
    let cache = store.path().join("laggard");
    if !has("HOME") {
        if !has("GOCACHE") && !has("XDG_CACHE_HOME") {
            set("GOCACHE", cache.join("go-build").into());
        }
        if !has("GOPATH") {
            set("GOPATH", cache.join("go").into());
        }
    }
    environment
}

fn find_go() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let root = std::env::var_os("GOROOT").map(|root| PathBuf::from(root).join("bin"));
    std::env::split_paths(&path)
        .chain(root)
        .map(|directory| directory.join("go"))
        .find(|candidate| candidate.is_file())
}

fn go_package(binary: Binary) -> &'static str {
    match binary {
        Binary::Etcd => "go.etcd.io/etcd/server/v3",
        Binary::KubeApiserver => "k8s.io/kubernetes/cmd/kube-apiserver",
        Binary::KubeControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
        Binary::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
    }
}

fn recipe_version(binary: Binary, pinned: &Pinned) -> String {
    match binary {
        Binary::Etcd => pinned.etcd.to_owned(),
        _ => pinned.version.to_string(),
    }
}

/// Measured on two cores with nothing cached but the downloaded modules.
fn usual(binary: Binary) -> Duration {
    Duration::from_secs(match binary {
        Binary::Etcd => 35,
        Binary::KubeApiserver => 190,
        Binary::KubeControllerManager => 70,
        Binary::Kubectl => 20,
    })
}
