//! Planes in containers. They need a Docker engine; without one each test says that it is skipped
//! and why, and with `LAGGARD_REQUIRE_DOCKER=1` it fails instead.

mod death;
mod etcd;
mod life;

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use laggard::Plane;
use laggard::plane::{BackendKind, PlaneBuilder, docker_engine};
use testcontainers::bollard::Docker;
use testcontainers::bollard::query_parameters::ListContainersOptionsBuilder;

/// What a plane that is gone, or whose owner is, may still have in the engine, at the longest.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// A client of the engine that planes use; `None`, after saying why, if there is no engine.
pub(crate) async fn docker() -> Option<Docker> {
    match docker_engine().await {
        Ok(engine) => {
            assert!(!engine.version.is_empty() && !engine.api_version.is_empty(), "{engine:?}");
            Some(
                testcontainers::core::client::docker_client_instance()
                    .await
                    .expect("an engine that answers has a client"),
            )
        }
        Err(error) if std::env::var_os("LAGGARD_REQUIRE_DOCKER").is_some_and(|it| it == "1") => {
            panic!("LAGGARD_REQUIRE_DOCKER is set, but: {error}")
        }
        Err(error) => {
            // Straight to the terminal: the runner shows a passed test's output to nobody.
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "skipped: no Docker engine: {error}");
            None
        }
    }
}

fn builder() -> PlaneBuilder {
    Plane::builder().backend(BackendKind::Container)
}

/// The id of a plane: that of the container which publishes its API server's port.
pub(crate) async fn id_of(docker: &Docker, plane: &Plane) -> Result<String> {
    let config = plane.config();
    let port = config.cluster_url.port_u16().context("the address has no port")?;
    let options =
        ListContainersOptionsBuilder::new().filters(&filter("laggard.plane".to_owned())).build();
    let containers = docker.list_containers(Some(options)).await?;
    let own = containers.into_iter().find(|container| {
        let ports = container.ports.iter().flatten();
        ports.into_iter().any(|published| published.public_port == Some(port))
    });
    let labels = own.and_then(|own| own.labels).context("no container publishes the port")?;
    labels.get("laggard.plane").cloned().context("its container has no label of a plane")
}

/// The names of all containers, in any state, that have this label.
async fn labelled(docker: &Docker, label: String) -> Result<Vec<String>> {
    let filters = filter(label);
    let containers = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let containers = docker.list_containers(Some(containers)).await?;
    Ok(containers.into_iter().flat_map(|container| container.names).flatten().collect())
}

/// Everything in the engine whose owner is this process of this machine.
async fn owned_by(docker: &Docker, pid: u32) -> Result<Vec<String>> {
    // A filter cannot ask for a prefix, so each is asked for its owner.
    let filters = filter("laggard.owner".to_owned());
    let containers = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let containers = docker.list_containers(Some(containers)).await?;
    let owned = |labels: Option<HashMap<String, String>>| {
        labels.is_some_and(|labels| labels["laggard.owner"].starts_with(&format!("{pid}:")))
    };
    let mut names = Vec::new();
    for container in containers {
        if owned(container.labels) {
            names.extend(container.names.into_iter().flatten());
        }
    }
    Ok(names)
}

fn filter(label: String) -> HashMap<&'static str, Vec<String>> {
    HashMap::from([("label", vec![label])])
}

/// Waits until nothing has the label any more; the error is what still had it.
async fn gone(docker: &Docker, label: &str) -> Result<()> {
    let deadline = tokio::time::Instant::now() + GONE_WITHIN;
    loop {
        let left = labelled(docker, label.to_owned()).await?;
        if left.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(
            tokio::time::Instant::now() < deadline,
            "after {GONE_WITHIN:?} there is still {left:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
