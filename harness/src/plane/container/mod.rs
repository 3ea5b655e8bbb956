//! The backend `container`: the servers run in containers of a Docker engine, through
//! testcontainers.
//!
//! The servers of a plane share the network of etcd's container, as the containers of a pod do: they
//! reach each other on its loopback, the engine sets one network up instead of four, and there is
//! none to make and to remove. The API server and etcd are published on this machine's loopback, on
//! ports that the engine chooses; etcd demands a client certificate, since loopback is open to
//! everybody on the machine. All that a plane has in the engine carries its label, and goes by it:
//! removed by [`Backend::stop`] or when the backend is dropped, by a reaper if this process is
//! killed, by the sweep of a later start otherwise.
//!
//! The engine must share this process's loopback: one on another machine is refused, and one that
//! is reached through a socket mounted into this container, but runs outside of it, publishes its
//! ports where this process cannot connect.

mod build;
mod engine;
mod files;
mod images;
mod labels;
mod reaper;
mod remains;
mod server;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::FutureExt as _;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

pub use engine::{DockerEngine, docker_engine};
pub(crate) use images::Images;

use super::backend::{
    ANSWER_LIMIT, Backend, GO_SETTINGS, Ingredients, Server, ServerFile, StopFindings,
    Surroundings, files, first_ended, no_such_server,
};
use super::directory::LogDirectory;
use super::error::{ServerEvidence, StartErrorKind};
use super::flags::Flags;
use super::pki::EtcdPki;
use crate::assets::Binary;
use crate::text::chain;
use crate::text::last_lines;
use crate::world::EtcdAddress;
use engine::{Engine, failed};
use reaper::Reaper;
use remains::{Making, Remains};
use server::{Network, Running, Spec};

/// The ports inside.
const APISERVER_PORT: u16 = 6443;
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;

/// Where the servers see their files.
const FILES: &str = "/pki/";

/// etcd's data, in memory: nothing of a plane shall outlive it.
const ETCD_DATA: &str = "/etcd";

/// How much of each server's log an error shows.
const SHOWN_LINES: usize = 12;

/// A server whose port was not published has ended, or will have by then.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Dropping a plane blocks no longer than this, and only to save the logs of a failed test.
const SAVE_LIMIT: Duration = Duration::from_secs(2);

/// A plane of containers.
#[derive(Debug)]
pub(crate) struct ContainerBackend {
    id: String,
    images: Images,
    files: Vec<ServerFile>,
    /// Whether the servers see them as they are here.
    are_copied: bool,
    /// The copy while it is being made, whether or not anybody still waits for it.
    copying: Option<Making<()>>,
    containers: BTreeMap<Binary, Running>,
    /// Containers that are being made, whether or not anybody still waits for them.
    starting: FuturesUnordered<Making<(Binary, Running)>>,
    logs: Option<LogDirectory>,
    attach_output: bool,
    /// `None` once everything is removed.
    reaper: Option<Reaper>,
}

impl ContainerBackend {
    /// Sweeps, and starts the reaper.
    pub(crate) async fn prepare(
        from: &Ingredients<'_>,
        images: Images,
    ) -> Result<Self, StartErrorKind> {
        let etcd = EtcdPki::new()
            .map_err(|error| StartErrorKind::system("make keys", std::io::Error::other(error)))?;
        let engine = images.engine().clone();
        let docker = engine.docker().clone();
        let swept = engine.run(async move { labels::sweep(&docker).await });
        let (reaper, _) = futures::join!(Reaper::start(&engine, from.id), swept);
        // From here on, dropping it removes what was made, and what is just being made.
        Ok(Self {
            id: from.id.to_owned(),
            images,
            files: files(from.pki, Some(&etcd)),
            are_copied: false,
            copying: None,
            containers: BTreeMap::new(),
            starting: FuturesUnordered::new(),
            logs: None,
            attach_output: from.attach_output,
            reaper: Some(reaper),
        })
    }

    /// Where things are, as the servers see them.
    pub(crate) fn surroundings(&self) -> Surroundings {
        let client = format!("https://127.0.0.1:{ETCD_PORT}");
        let peer = format!("https://127.0.0.1:{ETCD_PEER_PORT}");
        let (ca, certificate, key) =
            (format!("{FILES}etcd-ca.crt"), format!("{FILES}etcd.crt"), format!("{FILES}etcd.key"));
        Surroundings {
            files: FILES.to_owned(),
            etcd: Flags::new()
                .set("data-dir", ETCD_DATA)
                .set("listen-client-urls", format!("https://0.0.0.0:{ETCD_PORT}"))
                .set("advertise-client-urls", &client)
                .set("client-cert-auth", "true")
                .set("trusted-ca-file", &ca)
                .set("cert-file", &certificate)
                .set("key-file", &key)
                // It has no peers; but its loopback is that of the plane's other servers.
                .set("listen-peer-urls", &peer)
                .set("initial-advertise-peer-urls", &peer)
                .set("initial-cluster", format!("default={peer}"))
                .set("peer-client-cert-auth", "true")
                .set("peer-trusted-ca-file", &ca)
                .set("peer-cert-file", &certificate)
                .set("peer-key-file", &key),
            apiserver: Flags::new()
                .set("etcd-servers", &client)
                .set("etcd-cafile", &ca)
                .set("etcd-certfile", format!("{FILES}etcd-client.crt"))
                .set("etcd-keyfile", format!("{FILES}etcd-client.key"))
                .set("bind-address", "0.0.0.0")
                .set("secure-port", APISERVER_PORT.to_string()),
            apiserver_url: format!("https://127.0.0.1:{APISERVER_PORT}"),
            // Standard output; its own log goes to standard error.
            audit_log: "-".to_owned(),
        }
    }

    /// A file for the servers that are launched from now on and whose arguments name it.
    pub(crate) fn add_file(&mut self, name: &'static str, content: String) {
        self.files.retain(|file| file.name != name);
        self.files.push(ServerFile { name, content });
        self.are_copied = false;
    }

    fn engine(&self) -> &Engine {
        self.images.engine()
    }

    fn spec(&self, server: &Server) -> Result<Spec, StartErrorKind> {
        let binary = server.binary;
        Ok(Spec {
            binary,
            image: self.images.of(binary)?.clone(),
            name: container_name(&self.id, binary),
            network: match binary {
                Binary::Etcd => Network::Own { published: vec![ETCD_PORT, APISERVER_PORT] },
                _ => Network::Of { container: container_name(&self.id, Binary::Etcd) },
            },
            labels: labels::of_plane(&self.id),
            arguments: server.arguments.clone(),
            go: server.go,
            files: Some(files_name(&self.id)),
            memory: (binary == Binary::Etcd).then_some(ETCD_DATA),
            attach_output: self.attach_output,
        })
    }

    /// Puts the files where the servers see them, if one has changed.
    async fn copy_files(&mut self) -> Result<(), StartErrorKind> {
        if self.are_copied {
            return Ok(());
        }
        let (docker, name) = (self.engine().docker().clone(), files_name(&self.id));
        let image = self.images.of(Binary::Etcd)?;
        let image = format!("{}:{}", image.name, image.tag);
        let labels = labels::of_plane(&self.id);
        let archive = files::archive(&self.files)
            .map_err(|error| StartErrorKind::system("pack the servers' files", error))?;
        let making = self.copying.insert(self.images.engine().run(async move {
            files::make(&docker, &name, image, labels).await?;
            files::copy(&docker, &name, archive).await
        }));
        let made = making.await;
        self.copying = None;
        made.unwrap_or_else(|error| Err(failed("copy the servers' files", &error)))?;
        self.are_copied = true;
        Ok(())
    }

    /// Waits until no container is being made any more; the error is the first one's.
    async fn started(&mut self) -> Result<(), StartErrorKind> {
        let mut result = Ok(());
        // Nothing is awaited between taking a container and keeping it, so none is lost.
        while let Some(started) = self.starting.next().await {
            match started {
                Ok(Ok((binary, running))) => {
                    self.containers.insert(binary, running);
                }
                Ok(Err(error)) => result = result.and(Err(error)),
                Err(error) => result = result.and(Err(failed("start a container", &error))),
            }
        }
        result
    }

    /// How etcd ended, if it has by now, as a cause.
    async fn end_of_etcd(&self) -> Option<StartErrorKind> {
        let ended = self.containers.get(&Binary::Etcd)?.ended_by_now();
        let status = self.engine().run(ended).await.ok()??;
        Some(StartErrorKind::Exited { server: Binary::Etcd, status })
    }

    /// Takes everything that is to be removed out of this value.
    fn remains(&mut self) -> Option<Remains> {
        let reaper = self.reaper.take()?;
        Some(Remains {
            engine: self.engine().clone(),
            id: self.id.clone(),
            copying: self.copying.take(),
            containers: std::mem::take(&mut self.containers),
            starting: std::mem::take(&mut self.starting),
            reaper,
        })
    }
}

impl Backend for ContainerBackend {
    fn launch<'a>(
        &'a mut self,
        servers: &'a [Server],
    ) -> BoxFuture<'a, Result<(), StartErrorKind>> {
        async move {
            self.copy_files().await?;
            // The network of etcd's container must be there before another can join it.
            let (first, then): (Vec<_>, Vec<_>) =
                servers.iter().partition(|server| server.binary == Binary::Etcd);
            for servers in [first, then] {
                for server in servers {
                    let spec = self.spec(server)?;
                    let engine = self.engine().clone();
                    let old = self.containers.remove(&server.binary);
                    let start = self.engine().run(async move {
                        if let Some(old) = old {
                            old.remove().await;
                        }
                        let binary = spec.binary;
                        Ok((binary, Running::start(engine, spec).await?))
                    });
                    self.starting.push(start);
                }
                if let Err(error) = self.started().await {
                    // Nothing can join a network that is gone with its container.
                    return Err(self.end_of_etcd().await.unwrap_or(error));
                }
                if let Some(etcd) = self.containers.get(&Binary::Etcd)
                    && !etcd.is_published()
                {
                    // Ports are withdrawn when a container ends, and some end at once.
                    let ended = tokio::time::timeout(END_LIMIT, etcd.wait()).await;
                    return Err(match ended {
                        Ok(status) => StartErrorKind::Exited { server: Binary::Etcd, status },
                        Err(_) => StartErrorKind::Engine {
                            problem: "the engine published no port on loopback".to_owned(),
                        },
                    });
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn apiserver(&self) -> Option<SocketAddr> {
        let port = self.containers.get(&Binary::Etcd)?.port(APISERVER_PORT)?;
        Some((Ipv4Addr::LOCALHOST, port).into())
    }

    fn etcd(&self) -> Option<EtcdAddress> {
        let port = self.containers.get(&Binary::Etcd)?.port(ETCD_PORT)?;
        let file = |name| {
            let file = self.files.iter().find(|file| file.name == name)?;
            Some(file.content.clone())
        };
        Some(EtcdAddress::Tls {
            address: format!("{}:{port}", Ipv4Addr::LOCALHOST),
            ca: file("etcd-ca.crt")?,
            cert: file("etcd-client.crt")?,
            key: file("etcd-client.key")?,
        })
    }

    fn ended(&self) -> BoxFuture<'_, (Binary, String)> {
        let waits = self
            .containers
            .iter()
            .map(|(&binary, running)| async move { (binary, running.wait().await) }.boxed());
        first_ended(waits).boxed()
    }

    fn set_paused(
        &self,
        server: Binary,
        paused: bool,
    ) -> BoxFuture<'_, Result<(), StartErrorKind>> {
        async move {
            let Some(running) = self.containers.get(&server) else {
                return Err(no_such_server(server));
            };
            let (docker, id) = (self.engine().docker().clone(), running.id().to_owned());
            // The engine's freezer stands when the call returns.
            let done = self.engine().run(async move {
                match paused {
                    true => docker.pause_container(&id).await,
                    false => docker.unpause_container(&id).await,
                }
            });
            let attempt = format!("{} {server}", if paused { "pause" } else { "resume" });
            match done.await {
                Ok(done) => done.map_err(|error| failed(&attempt, &error)),
                Err(error) => Err(failed(&attempt, &error)),
            }
        }
        .boxed()
    }

    fn evidence(&self) -> BoxFuture<'_, Vec<ServerEvidence>> {
        let evidence = self.containers.iter().map(|(&server, running)| async move {
            let (docker, id) = (self.engine().docker().clone(), running.id().to_owned());
            let read = self.engine().run(async move {
                // More than is shown, since empty lines are not, and what etcd says of a flag it does
                // not have is above two dozen lines of usage.
                server::log(&docker, &id, Some(4 * SHOWN_LINES)).await
            });
            let log = match read.await {
                Ok(Ok(log)) => last_lines(&log, SHOWN_LINES),
                Ok(Err(error)) => format!("    (could not be read: {})", chain(&error)),
                Err(error) => format!("    (could not be read: {error})"),
            };
            let (command, status) = (running.command().to_owned(), running.exited());
            ServerEvidence { server, command, status, log_tail: log }
        });
        futures::future::join_all(evidence).boxed()
    }

    fn ask(&self, server: Binary, question: &'static str) -> BoxFuture<'_, Option<String>> {
        async move {
            let nothing = Server {
                binary: server,
                arguments: vec![question.to_owned()],
                removed: Vec::new(),
                go: GO_SETTINGS,
            };
            let spec = Spec {
                name: format!("{}-asked", container_name(&self.id, server)),
                attach_output: false,
                memory: None,
                network: Network::None,
                files: None,
                ..self.spec(&nothing).ok()?
            };
            let engine = self.engine().clone();
            let answer = self.engine().run(async move {
                let running = Running::start(engine, spec).await.ok()?;
                let ended = tokio::time::timeout(ANSWER_LIMIT, running.wait()).await;
                let answer = running.log(None).await;
                running.remove().await;
                ended.ok().and(answer.ok())
            });
            answer.await.ok()?
        }
        .boxed()
    }

    fn audit_log(&self) -> Option<&Path> {
        None
    }

    fn read_audit_log(&self) -> BoxFuture<'_, std::io::Result<String>> {
        async move {
            let Some(running) = self.containers.get(&Binary::KubeApiserver) else {
                return Err(std::io::Error::other("the API server is not running"));
            };
            let (docker, id) = (self.engine().docker().clone(), running.id().to_owned());
            let read = self.engine().run(async move { server::output(&docker, &id).await });
            match read.await {
                Ok(read) => read.map_err(|error| std::io::Error::other(chain(&error))),
                Err(error) => Err(std::io::Error::other(error)),
            }
        }
        .boxed()
    }

    fn keep_logs(&mut self) -> BoxFuture<'_, Option<PathBuf>> {
        async move {
            let mut logs = new_logs(&self.id)?;
            let engine = self.engine().clone();
            let containers = std::mem::take(&mut self.containers);
            let path = logs.path().to_owned();
            // There and back, since a container must not be dropped here if this future is.
            let saved = engine.run(async move {
                save_logs(&path, &containers).await;
                containers
            });
            if let Ok(containers) = saved.await {
                self.containers = containers;
            }
            logs.keep();
            let path = logs.path().to_owned();
            self.logs = Some(logs);
            Some(path)
        }
        .boxed()
    }

    fn logs(&self) -> Option<&Path> {
        self.logs.as_ref().map(LogDirectory::path)
    }

    fn stop_servers(&mut self) -> BoxFuture<'_, ()> {
        async move {
            if let Err(error) = self.started().await {
                tracing::debug!(%error, "a server had not started when it was stopped");
            }
            let containers = std::mem::take(&mut self.containers);
            let removed = self.engine().run(async move {
                futures::future::join_all(containers.into_values().map(Running::remove)).await;
            });
            let _ = removed.await;
        }
        .boxed()
    }

    fn stop(&mut self) -> BoxFuture<'_, StopFindings> {
        async move {
            let ended = self.containers.iter().map(|(&binary, running)| {
                let ended = running.ended_by_now();
                async move { Some((binary, ended.await?)) }
            });
            let ended = self.engine().run(futures::future::join_all(ended.collect::<Vec<_>>()));
            let ended = ended.await.unwrap_or_default().into_iter().flatten().collect();
            if keeps_logs() && self.logs.is_none() {
                self.keep_logs().await;
            }
            let Some(remains) = self.remains() else { return (ended, Vec::new()) };
            let left = self.engine().run(remains.remove()).await;
            (ended, left.unwrap_or_else(|error| vec![format!("all of it: {error}")]))
        }
        .boxed()
    }
}

impl Drop for ContainerBackend {
    /// Hands everything to the engine's runtime and does not wait for it. Should the process end
    /// meanwhile, so does the reaper's patience.
    fn drop(&mut self) {
        let Some(remains) = self.remains() else { return };
        let engine = remains.engine.clone();
        let failed = std::thread::panicking() || keeps_logs();
        let logs = failed.then(|| new_logs(&self.id)).flatten();
        let Some(mut logs) = logs else {
            engine.run(remains.remove());
            return;
        };
        logs.keep();
        let (saved, wait) = std::sync::mpsc::channel();
        let path = logs.path().to_owned();
        engine.run(async move {
            save_logs(&path, &remains.containers).await;
            // Nobody may be waiting any more.
            let _ = saved.send(());
            remains.remove().await;
        });
        // A thread that waits here is no task that others wait for: this one holds none of theirs.
        match wait.recv_timeout(SAVE_LIMIT) {
            Ok(()) => tracing::warn!(logs = %logs.path().display(), "the plane's logs are kept"),
            Err(_) => tracing::warn!("the plane's logs could not be saved in time"),
        }
    }
}

fn container_name(id: &str, binary: Binary) -> String {
    format!("laggard-{id}-{binary}")
}

/// The container whose volume has the servers' files; it is never started.
fn files_name(id: &str) -> String {
    format!("laggard-{id}-files")
}

fn keeps_logs() -> bool {
    std::env::var_os("LAGGARD_KEEP_LOGS").is_some_and(|value| value != "0")
}

fn new_logs(id: &str) -> Option<LogDirectory> {
    LogDirectory::create(id)
        .map_err(|error| tracing::warn!(%error, "there is no directory for the plane's logs"))
        .ok()
}

/// Writes the log of each container into a file.
async fn save_logs(directory: &Path, containers: &BTreeMap<Binary, Running>) {
    let saves = containers.iter().map(|(binary, running)| async move {
        let path = directory.join(format!("{binary}.log"));
        let saved = match running.log(None).await {
            Ok(log) => tokio::fs::write(&path, log).await.map_err(|error| error.to_string()),
            Err(error) => Err(chain(&error)),
        };
        if let Err(problem) = saved {
            tracing::warn!(path = %path.display(), %problem, "could not save a server's log");
        }
    });
    futures::future::join_all(saves).await;
}
