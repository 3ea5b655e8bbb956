//! The backend `process`: the servers are child processes of the test, on loopback.
//!
//! etcd listens on a unix socket in the plane's own directory: no port, so no clash and no other
//! user, and no TLS. The API server needs a port with a number; it is held from the moment it is
//! chosen, so that nobody else can take it before the server listens.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rustix::process::{Signal, WaitIdOptions};
use socket2::{Domain, Protocol, Socket, Type};

use super::attach::Attached;
use super::backend::{
    ANSWER_LIMIT, Backend, Ingredients, Server, StopFindings, Surroundings, files, first_ended,
    no_such_server,
};
use super::directory::{LogDirectory, PlaneDirectory};
use super::error::{ServerEvidence, StartErrorKind};
use super::flags::Flags;
use crate::assets::{Assets, Binary};
use crate::lifeline::{Lifeline, Reach, Spawn};
use crate::text::tail;
use crate::world::EtcdAddress;

/// How much of each server's log an error shows.
const SHOWN_LINES: usize = 12;

/// Where etcd listens, in the plane's directory.
const ETCD_SOCKET: &str = "c.sock";

/// A plane of child processes.
#[derive(Debug)]
pub(crate) struct ProcessBackend {
    // The order matters when this is dropped: servers first, then what they write into.
    servers: BTreeMap<Binary, Running>,
    logs: LogDirectory,
    directory: PlaneDirectory,
    port: HeldPort,
    assets: Assets,
    audit_log: PathBuf,
    attach_output: bool,
}

#[derive(Debug)]
struct Running {
    lifeline: Lifeline,
    command: String,
    attached: Option<Attached>,
}

impl Running {
    /// Waits until what an ended server wrote is in its log.
    async fn written(&self) {
        if let Some(attached) = &self.attached {
            attached.rest().await;
        }
    }
}

impl ProcessBackend {
    /// Makes the directories, writes the keys, and takes a port.
    pub(crate) fn prepare(from: &Ingredients<'_>, assets: Assets) -> Result<Self, StartErrorKind> {
        let failed = |attempt: &'static str| move |error| StartErrorKind::system(attempt, error);
        let directory = PlaneDirectory::create(from.id, from.memory)
            .map_err(failed("make the directory of the plane"))?;
        let logs =
            LogDirectory::create(from.id).map_err(failed("make the directory of the logs"))?;
        for file in files(from.pki, None) {
            directory
                .write(&format!("pki/{}", file.name), file.content.as_bytes())
                .map_err(failed("write a key or certificate"))?;
        }
        let port = HeldPort::take().map_err(failed("take a port on loopback"))?;
        let audit_log = logs.path().join("audit.log");
        let attach_output = from.attach_output;
        let servers = BTreeMap::new();
        Ok(Self { servers, logs, directory, port, assets, audit_log, attach_output })
    }

    /// Where things are, as the servers see them: their working directory is the plane's.
    pub(crate) fn surroundings(&self) -> Surroundings {
        // Relative, since an absolute path may be too long for a socket address (about 107 bytes).
        let client = format!("unix://{ETCD_SOCKET}");
        // What etcd advertises nobody reads, since it is alone; but etcd 3.6 refuses to advertise an
        // address without a port, and so a socket (`checkHostURLs` in its `server/embed/config.go`).
        let advertised = "http://127.0.0.1:0";
        Surroundings {
            files: "pki/".to_owned(),
            etcd: Flags::new()
                .set("data-dir", "etcd")
                .set("listen-client-urls", &client)
                .set("advertise-client-urls", advertised)
                .set("listen-peer-urls", "unix://p.sock")
                .set("initial-advertise-peer-urls", advertised)
                .set("initial-cluster", format!("default={advertised}")),
            apiserver: Flags::new()
                .set("etcd-servers", client)
                .set("bind-address", Ipv4Addr::LOCALHOST.to_string())
                .set("secure-port", self.port.number().to_string())
                .set("permit-port-sharing", "true"),
            apiserver_url: format!("https://127.0.0.1:{}", self.port.number()),
            audit_log: self.audit_log.display().to_string(),
        }
    }

    /// A file in the plane's directory, for the owner and for nobody else.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), StartErrorKind> {
        self.directory
            .write(name, content)
            .map_err(|error| StartErrorKind::system(format!("write {name}"), error))
    }

    /// Takes another port; the next launch of the API server is to use it.
    pub(crate) fn take_another_port(&mut self) -> Result<(), StartErrorKind> {
        self.port = HeldPort::take()
            .map_err(|error| StartErrorKind::system("take a port on loopback", error))?;
        Ok(())
    }

    fn launch_one(&self, server: &Server) -> Result<Running, StartErrorKind> {
        let binary = server.binary;
        let program = self.assets.path(binary)?;
        let command = format!("{} {}", program.display(), server.arguments.join(" "));
        let failed = |error| StartErrorKind::system(format!("start {command}"), error);
        let mut output = self.logs.file(&format!("{binary}.log")).map_err(failed)?;
        let mut attached = None;
        if self.attach_output {
            let (input, thread) = Attached::new(binary, output).map_err(failed)?;
            (output, attached) = (input, Some(thread));
        }
        let lifeline = Lifeline::spawn(Spawn {
            program,
            arguments: &server.arguments,
            environment: environment(self.directory.path(), server),
            working_directory: self.directory.path(),
            remove: Some(self.directory.path()),
            output,
        })
        .map_err(failed)?;
        tracing::debug!(server = %binary, pid = lifeline.pid(), %command, "started");
        Ok(Running { lifeline, command, attached })
    }
}

impl Backend for ProcessBackend {
    fn launch<'a>(
        &'a mut self,
        servers: &'a [Server],
    ) -> BoxFuture<'a, Result<(), StartErrorKind>> {
        async move {
            for server in servers {
                let running = self.launch_one(server)?;
                self.servers.insert(server.binary, running);
            }
            let pids: Vec<_> = self.servers.values().map(|server| server.lifeline.pid()).collect();
            self.directory
                .record(&pids)
                .map_err(|error| StartErrorKind::system("note the pids of the servers", error))
        }
        .boxed()
    }

    fn apiserver(&self) -> Option<SocketAddr> {
        Some((Ipv4Addr::LOCALHOST, self.port.number()).into())
    }

    fn etcd(&self) -> Option<EtcdAddress> {
        Some(EtcdAddress::Unix(self.directory.path().join(ETCD_SOCKET)))
    }

    fn ended(&self) -> BoxFuture<'_, (Binary, String)> {
        let waits = self.servers.iter().map(|(&binary, running)| {
            async move { (binary, describe(running.lifeline.wait().await)) }.boxed()
        });
        first_ended(waits).boxed()
    }

    fn set_paused(
        &self,
        server: Binary,
        paused: bool,
    ) -> BoxFuture<'_, Result<(), StartErrorKind>> {
        async move {
            let Some(running) = self.servers.get(&server) else {
                return Err(no_such_server(server));
            };
            let failed = |error| StartErrorKind::system(format!("pause or resume {server}"), error);
            let (signal, state) = match paused {
                true => (Signal::STOP, WaitIdOptions::STOPPED),
                false => (Signal::CONT, WaitIdOptions::CONTINUED),
            };
            running.lifeline.signal(signal, Reach::Child).map_err(failed)?;
            running.lifeline.state_changed(state).await.map_err(failed)
        }
        .boxed()
    }

    fn evidence(&self) -> BoxFuture<'_, Vec<ServerEvidence>> {
        let evidence = self.servers.iter().map(|(&server, running)| async move {
            let status = running.lifeline.exited().map(|status| describe(Some(status)));
            if status.is_some() {
                running.written().await;
            }
            let log = self.logs.path().join(format!("{server}.log"));
            ServerEvidence {
                server,
                command: running.command.clone(),
                status,
                log_tail: tail(&log, SHOWN_LINES),
            }
        });
        futures::future::join_all(evidence).boxed()
    }

    fn ask(&self, server: Binary, question: &'static str) -> BoxFuture<'_, Option<String>> {
        async move {
            let run = tokio::process::Command::new(self.assets.path(server).ok()?)
                .arg(question)
                .env_clear()
                .envs(crate::lifeline::search_path())
                .current_dir(self.directory.path())
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output();
            let output = tokio::time::timeout(ANSWER_LIMIT, run).await.ok()?.ok()?;
            // etcd answers on standard error.
            let answer = [output.stdout, output.stderr].concat();
            Some(String::from_utf8_lossy(&answer).into_owned())
        }
        .boxed()
    }

    fn audit_log(&self) -> Option<&Path> {
        Some(&self.audit_log)
    }

    fn read_audit_log(&self) -> BoxFuture<'_, std::io::Result<String>> {
        tokio::fs::read_to_string(&self.audit_log).boxed()
    }

    fn keep_logs(&mut self) -> BoxFuture<'_, Option<PathBuf>> {
        self.logs.keep();
        async { Some(self.logs.path().to_owned()) }.boxed()
    }

    fn logs(&self) -> Option<&Path> {
        Some(self.logs.path())
    }

    fn stop_servers(&mut self) -> BoxFuture<'_, ()> {
        async move {
            kill_all(self.servers.iter_mut()).await;
            futures::future::join_all(self.servers.values().map(Running::written)).await;
            self.servers.clear();
        }
        .boxed()
    }

    fn stop(&mut self) -> BoxFuture<'_, StopFindings> {
        async move {
            let mut ended = Vec::new();
            for (&binary, running) in &self.servers {
                if let Some(status) = running.lifeline.ended_by_now().await {
                    ended.push((binary, describe(Some(status))));
                }
            }
            let (writers, others): (Vec<_>, Vec<_>) =
                self.servers.iter_mut().partition(|(binary, _)| **binary == Binary::Etcd);
            let (writers, others) = (kill_all(writers), kill_all(others));
            // Nobody else writes into the directory, and the kernel takes its time with the memory of an API server.
            let directory = &mut self.directory;
            let removal = async {
                writers.await;
                directory.remove().await
            };
            let (removed, _) = futures::join!(removal, others);
            self.stop_servers().await;
            let mut left = Vec::new();
            if let Err(error) = removed {
                left.push(format!("{}: {error}", self.directory.path().display()));
            }
            (ended, left)
        }
        .boxed()
    }
}

async fn kill_all<'a>(servers: impl IntoIterator<Item = (&'a Binary, &'a mut Running)>) {
    futures::future::join_all(servers.into_iter().map(|(_, it)| it.lifeline.kill())).await;
}

/// The environment of a server: nothing of the test's, so that what is logged is what ran.
fn environment(home: &Path, server: &Server) -> Vec<(OsString, OsString)> {
    let mut environment = crate::lifeline::search_path();
    environment.push(("HOME".into(), home.into()));
    environment.extend(server.go.map(|(name, value)| (name.into(), value.into())));
    environment
}

fn describe(status: Option<ExitStatus>) -> String {
    match status {
        None => "unknown exit status".to_owned(),
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => status.to_string(),
        },
    }
}

/// A port on loopback that no stranger can take.
///
/// The socket is bound with SO_REUSEPORT and never listens: only a process of the same user that
/// asks for this very port in the same way, as the API server does with `--permit-port-sharing`,
/// can join it, and connections go to the one that listens.
#[derive(Debug)]
struct HeldPort {
    _socket: Socket,
    number: u16,
}

impl HeldPort {
    fn take() -> std::io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let number = socket
            .local_addr()?
            .as_socket()
            .map(|address| address.port())
            .ok_or_else(|| std::io::Error::other("a bound socket without an address"))?;
        Ok(Self { _socket: socket, number })
    }

    fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_port_is_refused_to_strangers_and_open_to_a_server_that_shares() {
        let held = HeldPort::take().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, held.number()));
        assert!(std::net::TcpListener::bind(address).is_err());
        let sharing = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        sharing.set_reuse_port(true).unwrap();
        sharing.bind(&address.into()).unwrap();
        sharing.listen(1).unwrap();
        std::net::TcpStream::connect(address).unwrap();
    }
}
