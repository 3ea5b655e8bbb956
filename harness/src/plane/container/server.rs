//! One server in its container: started, watched, read, paused, removed.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures::StreamExt as _;
use testcontainers::bollard::Docker;
use testcontainers::bollard::errors::Error;
use testcontainers::bollard::models::{HostConfig, HostConfigLogConfig, PortBinding};
use testcontainers::bollard::query_parameters::{LogsOptionsBuilder, WaitContainerOptionsBuilder};
use testcontainers::core::{ContainerPort, Mount};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _};
use tokio::sync::watch;

use super::build::program;
use super::engine::{Engine, remove};
use super::images::{Image, drain};
use super::reaper::published;
use crate::assets::Binary;
use crate::plane::attach::Lines;
use crate::plane::error::StartErrorKind;
use crate::text::chain;

/// The user of the official images may be another, who could not read a file of mode 0600.
const USER: &str = "0:0";

/// The engine chooses a port and then binds it; somebody may be quicker.
const PORT_TRIES: usize = 3;

/// The engine starts a container within a second; this is for one that is busy with twenty.
const START_LIMIT: Duration = Duration::from_secs(50);

/// What a container is made from.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) binary: Binary,
    pub(super) image: Image,
    pub(super) name: String,
    pub(super) network: Network,
    pub(super) labels: HashMap<String, String>,
    pub(super) arguments: Vec<String>,
    /// What its Go runtime is told.
    pub(super) go: [(&'static str, &'static str); 2],
    /// The container whose volume has the files that the arguments name.
    pub(super) files: Option<String>,
    /// A directory in memory.
    pub(super) memory: Option<&'static str>,
    /// Whether what it logs goes to this process's standard error as well.
    pub(super) attach_output: bool,
}

/// What a container has for a network.
#[derive(Clone, Debug)]
pub(super) enum Network {
    None,
    /// On the engine's default bridge, with ports published on this machine's loopback.
    Own {
        published: Vec<u16>,
    },
    /// That of another container, which must be running.
    Of {
        container: String,
    },
}

/// A server in its container.
///
/// It is made, kept and dropped in the engine's runtime only, for the sake of the container's
/// destructor.
#[derive(Debug)]
pub(super) struct Running {
    container: ContainerAsync<GenericImage>,
    docker: Docker,
    exit: watch::Receiver<Option<String>>,
    command: String,
    ports: HashMap<u16, u16>,
}

impl Network {
    fn published(&self) -> &[u16] {
        match self {
            Self::Own { published } => published,
            Self::None | Self::Of { .. } => &[],
        }
    }
}

impl Running {
    /// Makes the container and starts it. To be called in the engine's
    /// runtime.
    pub(super) async fn start(engine: Engine, spec: Spec) -> Result<Self, StartErrorKind> {
        let docker = engine.docker().clone();
        let mut tries = 0;
        let container = loop {
            tries += 1;
            // No condition of readiness: testcontainers would drop the container, and its logs
            // with it, when one is not met in time.
            match request(&spec).start().await {
                Ok(container) => break container,
                Err(error) => {
                    let problem = error.to_string();
                    // It was made and then not started, so testcontainers has no guard for it.
                    let _ = remove(&docker, &spec.name).await;
                    let taken = problem.contains("address already in use")
                        || problem.contains("port is already allocated");
                    if !(taken && tries < PORT_TRIES) {
                        return Err(not_started(&spec, &problem));
                    }
                    tracing::warn!(%problem, "the engine's port was taken meanwhile; again");
                }
            }
        };
        let exit = watch_exit(&engine, container.id().to_owned());
        if spec.attach_output {
            attach(&engine, spec.binary, container.id().to_owned());
        }
        let about = docker.inspect_container(container.id(), None).await.ok();
        let ports = about.and_then(|about| about.network_settings).and_then(|it| it.ports);
        let ports = ports.unwrap_or_default();
        let at = |&port: &u16| Some((port, published(&ports, &format!("{port}/tcp"))?));
        let ports = spec.network.published().iter().filter_map(at).collect();
        let Spec { image, binary, arguments, .. } = &spec;
        let command = format!(
            "in a container of {}: {} {}",
            image.called,
            program(*binary),
            arguments.join(" ")
        );
        tracing::debug!(server = %binary, container = container.id(), %command, "started");
        Ok(Self { container, docker, exit, command, ports })
    }

    pub(super) fn command(&self) -> &str {
        &self.command
    }

    /// Where a port is published on loopback; `None` if it is not, or the container ended before that was seen.
    pub(super) fn port(&self, inside: u16) -> Option<u16> {
        self.ports.get(&inside).copied()
    }

    /// Whether it has any port on loopback.
    pub(super) fn is_published(&self) -> bool {
        !self.ports.is_empty()
    }

    /// How it ended, once it has.
    pub(super) fn exited(&self) -> Option<String> {
        self.exit.borrow().clone()
    }

    /// How it ended, if it has by now: the engine is asked, since it tells of an end a little late.
    /// To be polled in the engine's runtime.
    pub(super) fn ended_by_now(&self) -> impl Future<Output = Option<String>> + Send + 'static {
        let (docker, id) = (self.docker.clone(), self.id().to_owned());
        let mut exit = self.exit.clone();
        async move {
            if exit.borrow().is_none() {
                let about = docker.inspect_container(&id, None).await.ok()?;
                if about.state?.running != Some(false) {
                    return None;
                }
            }
            exit.wait_for(Option::is_some).await.ok().and_then(|status| status.clone())
        }
    }

    /// Waits for its end; returns at once if it has ended.
    pub(super) async fn wait(&self) -> String {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        // The watching task sends before it ends.
        ended.ok().and_then(|status| status.clone()).unwrap_or_else(|| "nobody watched".to_owned())
    }

    pub(super) fn id(&self) -> &str {
        self.container.id()
    }

    /// Removes it, running, paused or ended, and waits until it is gone.
    pub(super) async fn remove(self) {
        if let Err(error) = self.container.rm().await {
            // Whether it is gone is seen by its label.
            tracing::debug!(%error, "could not remove a container");
        }
    }

    /// What it wrote, or its last `lines` lines, a line each as `docker logs` shows them.
    pub(super) async fn log(&self, lines: Option<usize>) -> Result<String, Error> {
        log(&self.docker, self.id(), lines).await
    }
}

/// What a container wrote, or the last `lines` lines of it.
pub(super) async fn log(docker: &Docker, id: &str, lines: Option<usize>) -> Result<String, Error> {
    let lines = lines.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&lines).build();
    let mut bytes = Vec::new();
    drain(docker.logs(id, Some(options)), |piece| bytes.extend(piece.into_bytes())).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a container wrote to its standard output alone.
pub(super) async fn output(docker: &Docker, id: &str) -> Result<String, Error> {
    let options = LogsOptionsBuilder::new().stdout(true).tail("all").build();
    let mut bytes = Vec::new();
    drain(docker.logs(id, Some(options)), |piece| bytes.extend(piece.into_bytes())).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Hands on what a container writes, until it ends.
fn attach(engine: &Engine, binary: Binary, id: String) {
    let docker = engine.docker().clone();
    engine.run(async move {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).follow(true).build();
        let mut lines = Lines::new(binary, std::io::stderr());
        let pieces = docker.logs(&id, Some(options));
        if let Err(error) = drain(pieces, |piece| lines.push(&piece.into_bytes())).await {
            tracing::debug!(server = %binary, error = %chain(&error), "its output ended");
        }
    });
}

fn request(spec: &Spec) -> testcontainers::ContainerRequest<GenericImage> {
    let mut image = GenericImage::new(spec.image.name.clone(), spec.image.tag.clone())
        .with_entrypoint(&program(spec.binary));
    for &port in spec.network.published() {
        image = image.with_exposed_port(ContainerPort::Tcp(port));
    }
    let (network, files) = (spec.network.clone(), spec.files.clone());
    let mut request = image
        .with_cmd(spec.arguments.iter().cloned())
        .with_container_name(&spec.name)
        .with_labels(spec.labels.clone())
        .with_user(USER)
        .with_startup_timeout(START_LIMIT)
        .with_ready_conditions(Vec::new())
        .with_host_config_modifier(move |host| {
            modify(host, &network);
            host.volumes_from = files.as_ref().map(|container| vec![format!("{container}:ro")]);
        });
    for (name, value) in spec.go {
        request = request.with_env_var(name, value);
    }
    if let Some(directory) = spec.memory {
        request = request.with_mount(Mount::tmpfs_mount(directory).with_mode(0o700));
    }
    request
}

/// What testcontainers has no method for.
fn modify(host: &mut HostConfig, network: &Network) {
    // A mapped port would be published on all addresses of the machine, for everybody near it.
    let loopback = PortBinding {
        host_ip: Some(Ipv4Addr::LOCALHOST.to_string()),
        host_port: Some(String::new()),
    };
    let bindings = network.published().iter();
    let bindings = bindings.map(|port| (format!("{port}/tcp"), Some(vec![loopback.clone()])));
    host.publish_all_ports = Some(false);
    host.port_bindings = Some(bindings.collect());
    // Not `with_network`, which makes a network of any name that the engine does not have.
    host.network_mode = match network {
        Network::None => Some("none".to_owned()),
        Network::Own { .. } => None,
        Network::Of { container } => Some(format!("container:{container}")),
    };
    // A server that opens a port and reads its own files needs no capability.
    host.cap_drop = Some(vec!["ALL".to_owned()]);
    host.security_opt = Some(vec!["no-new-privileges".to_owned()]);
    // The engine's default may be a driver that cannot be read from.
    host.log_config = Some(HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(HashMap::from([("max-size".to_owned(), "64m".to_owned())])),
    });
}

fn not_started(spec: &Spec, problem: &str) -> StartErrorKind {
    let binary = spec.binary;
    let mut text = format!("failed to start {binary} in a container of {}", spec.image.called);
    // The error of an image without this program, and of one without the program's loader.
    if problem.contains("no such file or directory") {
        let _ = write!(text, " (a program that is not linked statically cannot run there)");
    }
    StartErrorKind::Engine { problem: format!("{text}: {problem}") }
}

/// Notes how a container ends, in a task of the engine's runtime, which ends with the container.
fn watch_exit(engine: &Engine, id: String) -> watch::Receiver<Option<String>> {
    let (sender, receiver) = watch::channel(None);
    let docker = engine.docker().clone();
    engine.run(async move {
        let status = exit_status(&docker, &id).await;
        sender.send_replace(Some(status));
    });
    receiver
}

async fn exit_status(docker: &Docker, id: &str) -> String {
    loop {
        let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let mut ends = std::pin::pin!(docker.wait_container(id, Some(options)));
        let code = match ends.next().await {
            Some(Ok(end)) => Some(end.status_code),
            // The client makes an error of each status but 0.
            Some(Err(Error::DockerContainerWaitError { code, .. })) => Some(code),
            Some(Err(Error::DockerResponseServerError { status_code: 404, .. })) => {
                return "its container is gone".to_owned();
            }
            Some(Err(error)) => {
                tracing::debug!(error = %chain(&error), "waiting for a container; again");
                None
            }
            None => None,
        };
        let state = match docker.inspect_container(id, None).await {
            Ok(about) => about.state.unwrap_or_default(),
            Err(error) if code.is_none() => {
                return format!("the engine no longer says anything about it: {}", chain(&error));
            }
            Err(_) => Default::default(),
        };
        let code = match code {
            Some(code) => code,
            // The connection was lost, or the engine was started anew, and the container lives.
            None if state.running == Some(true) => continue,
            None => state.exit_code.unwrap_or_default(),
        };
        let memory = if state.oom_killed == Some(true) { ", out of memory" } else { "" };
        return format!("exit status {code}{memory}");
    }
}
