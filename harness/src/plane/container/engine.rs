//! The container engine: where it is, whether it answers, and the one runtime that talks to it.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use testcontainers::bollard::Docker;
use testcontainers::bollard::errors::Error;
use testcontainers::bollard::query_parameters::RemoveContainerOptionsBuilder;
use testcontainers::core::client::docker_client_instance;
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

use crate::plane::error::StartErrorKind;
use crate::text::chain;

/// An engine on this machine answers within milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Where testcontainers looks when `DOCKER_HOST` is not set: a variable that names a directory
/// (or none), and the rest of the path.
///
/// Source: testcontainers 0.28, `core/env/config.rs`, `Config::docker_host`.
const SOCKETS: [(Option<&str>, &str); 4] = [
    (None, "/var/run/docker.sock"),
    (Some("XDG_RUNTIME_DIR"), ".docker/run/docker.sock"),
    (Some("HOME"), ".docker/run/docker.sock"),
    (Some("HOME"), ".docker/desktop/docker.sock"),
];

/// A container engine that answered.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct DockerEngine {
    /// Where it is, in the form that `DOCKER_HOST` takes.
    pub address: String,
    /// Its version, such as `20.10.24`.
    pub version: String,
    /// The newest version of the API that it speaks, such as `1.41`.
    pub api_version: String,
}

/// Asks the container engine for its version: for tests that need one, and want to say why they
/// do not run.
///
/// The engine is the one a plane in containers would use: `DOCKER_HOST`, or else the first of the
/// usual sockets that exists. Waits 10 s at most.
///
/// # Errors
///
/// [`StartErrorKind::Engine`], with where the engine was looked for and what was wrong there;
/// [`StartErrorKind::System`] if this process can start no thread.
///
/// # Example
///
/// ```no_run
/// # async fn example() {
/// match laggard::plane::docker_engine().await {
///     Ok(engine) => println!("Docker {} at {}", engine.version, engine.address),
///     Err(error) => println!("skipped: no Docker engine: {error}"),
/// }
/// # }
/// ```
pub async fn docker_engine() -> Result<DockerEngine, StartErrorKind> {
    Engine::connect().await.map(|(_, answer)| answer)
}

/// A client of the engine, together with the runtime in which it is used.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    docker: Docker,
    address: String,
    runtime: Handle,
}

impl Engine {
    /// Finds the engine and asks it for its version.
    pub(super) async fn connect() -> Result<(Self, DockerEngine), StartErrorKind> {
        let address = address();
        let runtime = runtime()?;
        if !is_here(&address) {
            return Err(unusable(
                &address,
                "it is on another machine, and a plane's ports are published on loopback alone",
            ));
        }
        let asked = runtime.spawn(async {
            let docker = docker_client_instance().await.map_err(|error| chain(&error))?;
            match tokio::time::timeout(ANSWER_LIMIT, docker.version()).await {
                Ok(Ok(version)) => Ok((docker, version)),
                Ok(Err(error)) => Err(chain(&error)),
                Err(_) => Err(format!("no answer within {ANSWER_LIMIT:?}")),
            }
        });
        // testcontainers panics where DOCKER_TLS_VERIFY is set and DOCKER_CERT_PATH is not.
        let asked = asked.await.unwrap_or_else(|error| Err(error.to_string()));
        let (docker, version) = asked.map_err(|problem| unusable(&address, &problem))?;
        let answer = DockerEngine {
            address: address.clone(),
            version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
        };
        Ok((Self { docker, address, runtime }, answer))
    }

    pub(super) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// In the form that `DOCKER_HOST` takes.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Does something in the engine's own runtime; it goes on even if the handle is dropped.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.spawn(work)
    }
}

/// The runtime of everything that is said to the engine, with a thread of its own.
///
/// A container's destructor in testcontainers needs a runtime: it panics without one, and also in
/// a current-thread one that was made while another kind is entered; and it blocks. The runtime of
/// the test that started a plane may be gone, or be anything, when the plane is dropped. So
/// containers are made, kept alive and removed in this one, which lasts as long as the process.
/// Work in it also goes on when the future that asked for it is dropped, so that a container
/// which is just being made is still known to whoever removes it.
fn runtime() -> Result<Handle, StartErrorKind> {
    static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = &*runtime {
        return Ok(runtime.handle().clone());
    }
    // Multi-threaded, since the destructor then blocks in place rather than the whole runtime.
    let new = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("laggard-engine")
        .enable_all()
        .build()
        .map_err(|error| {
            StartErrorKind::system("start a thread for the container engine", error)
        })?;
    Ok(runtime.insert(new).handle().clone())
}

/// The address at which testcontainers looks for the engine.
fn address() -> String {
    resolve(|name| std::env::var(name).ok(), |path| path.exists())
}

fn resolve(variable: impl Fn(&str) -> Option<String>, exists: impl Fn(&PathBuf) -> bool) -> String {
    if let Some(host) = variable("DOCKER_HOST") {
        return host;
    }
    let socket = sockets(variable).into_iter().find(exists);
    format!("unix://{}", socket.unwrap_or_else(|| SOCKETS[0].1.into()).display())
}

fn sockets(variable: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    SOCKETS
        .iter()
        .filter_map(|(directory, rest)| match directory {
            None => Some(PathBuf::from(rest)),
            Some(name) => Some(PathBuf::from(variable(name)?).join(rest)),
        })
        .collect()
}

/// Whether loopback there is loopback here.
fn is_here(address: &str) -> bool {
    let Some((scheme, rest)) = address.split_once("://") else { return true };
    if !matches!(scheme, "tcp" | "http" | "https") {
        return true;
    }
    let authority = rest.split('/').next().unwrap_or(rest);
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn unusable(address: &str, problem: &str) -> StartErrorKind {
    let host = match std::env::var("DOCKER_HOST") {
        Ok(host) => format!("DOCKER_HOST={host}"),
        Err(_) => {
            let sockets = sockets(|name| std::env::var(name).ok());
            let sockets: Vec<_> = sockets.iter().map(|path| path.display().to_string()).collect();
            format!("DOCKER_HOST (not set), {}", sockets.join(", "))
        }
    };
    StartErrorKind::Engine {
        problem: format!(
            "no container engine can be used at {address}: {problem}\n  looked for: {host}\n  \
             start Docker, point DOCKER_HOST at an engine on this machine, or do without: \
             LAGGARD_BACKEND=process"
        ),
    }
}

/// Removes a container with its volumes, running or not. That it is gone, or that somebody else is removing it, is no error.
pub(super) async fn remove(docker: &Docker, name: &str) -> Result<(), Error> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match docker.remove_container(name, Some(options)).await {
        Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
        removed => removed,
    }
}

/// An error of the engine as a cause of a failed start.
pub(super) fn failed(attempt: &str, error: &dyn std::error::Error) -> StartErrorKind {
    StartErrorKind::Engine { problem: format!("failed to {attempt}: {}", chain(error)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_looked_for_where_testcontainers_looks() {
        let home = |name: &str| (name == "HOME").then(|| "/home/me".to_owned());
        let host = |name: &str| (name == "DOCKER_HOST").then(|| "tcp://localhost:2375".to_owned());
        assert_eq!(resolve(host, |_| true), "tcp://localhost:2375");
        assert_eq!(resolve(home, |_| true), "unix:///var/run/docker.sock");
        assert_eq!(
            resolve(home, |path| path.starts_with("/home")),
            "unix:///home/me/.docker/run/docker.sock"
        );
        assert_eq!(resolve(home, |_| false), "unix:///var/run/docker.sock");
    }

    #[test]
    fn an_engine_whose_loopback_is_not_ours_is_told_apart() {
        for here in ["unix:///a.sock", "tcp://localhost:1", "tcp://127.0.0.1:1", "http://[::1]:1/"]
        {
            assert!(is_here(here), "{here}");
        }
        for elsewhere in ["tcp://docker:2375", "https://10.0.0.1:2376", "tcp://[fd00::1]:2375"] {
            assert!(!is_here(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn the_error_says_where_it_looked_and_what_to_do() {
        let error = unusable("unix:///nowhere", "no such file").to_string();
        for part in ["unix:///nowhere", "no such file", "DOCKER_HOST", "LAGGARD_BACKEND=process"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
