//! What the two ways of running servers have in common, as the rest of the plane sees it.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;

use super::error::{ServerEvidence, StartErrorKind};
use super::flags::Flags;
use super::pki::{EtcdPki, Pki};
use crate::assets::Binary;
use crate::world::EtcdAddress;

/// Where servers run, and what can be done to them there.
///
/// A value exists before the first server does, and dropping it ends whatever was started.
pub(crate) trait Backend: Debug + Send + Sync {
    /// Starts the servers, all at once. A second call, after some have ended, starts those anew.
    fn launch<'a>(&'a mut self, servers: &'a [Server])
    -> BoxFuture<'a, Result<(), StartErrorKind>>;

    /// Where the API server is reached from here.
    fn apiserver(&self) -> Option<SocketAddr>;

    /// Where etcd is reached from here, and with which keys; `None` before it is started.
    fn etcd(&self) -> Option<EtcdAddress>;

    /// Resolves when a server ends by itself: which, and its exit status in words.
    fn ended(&self) -> BoxFuture<'_, (Binary, String)>;

    /// Stops a server in its tracks, or lets it go on; returns when that holds.
    fn set_paused(&self, server: Binary, paused: bool)
    -> BoxFuture<'_, Result<(), StartErrorKind>>;

    /// What every server was started with and said last.
    fn evidence(&self) -> BoxFuture<'_, Vec<ServerEvidence>>;

    /// What the program of a server answers to `--help` or `--version`; `None` if it cannot be asked.
    fn ask(&self, server: Binary, question: &'static str) -> BoxFuture<'_, Option<String>>;

    /// The file with the audit log, where it is one on this machine.
    fn audit_log(&self) -> Option<&Path>;

    /// The text of the audit log, a line an event.
    fn read_audit_log(&self) -> BoxFuture<'_, std::io::Result<String>>;

    /// Keeps the logs beyond the end of the plane; their directory.
    fn keep_logs(&mut self) -> BoxFuture<'_, Option<PathBuf>>;

    /// The directory of the logs.
    fn logs(&self) -> Option<&Path>;

    /// Ends the servers alone and waits for that; they can be launched again.
    fn stop_servers(&mut self) -> BoxFuture<'_, ()>;

    /// Ends everything at once and waits until it is gone; returns who had ended before, and what
    /// could not be removed.
    fn stop(&mut self) -> BoxFuture<'_, StopFindings>;
}

/// Which servers had ended before the stop, with their status, and what could not be removed.
pub(crate) type StopFindings = (Vec<(Binary, String)>, Vec<String>);

/// The first of several servers to end; never, where there is none.
pub(crate) async fn first_ended<'a>(
    ends: impl Iterator<Item = BoxFuture<'a, (Binary, String)>>,
) -> (Binary, String) {
    let ends: Vec<_> = ends.collect();
    if ends.is_empty() {
        return futures::future::pending().await;
    }
    futures::future::select_all(ends).await.0
}

/// Somebody pauses a server that the plane was not asked to have.
pub(crate) fn no_such_server(server: Binary) -> StartErrorKind {
    StartErrorKind::Setting {
        problem: format!("this plane has no {server}; add `controllers` to its builder"),
    }
}

/// One server to start.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) binary: Binary,
    pub(crate) arguments: Vec<String>,
    /// Flags that somebody had removed, but that were not there.
    pub(crate) removed: Vec<String>,
    /// What its Go runtime is told.
    pub(crate) go: [(&'static str, &'static str); 2],
}

/// Names under which the servers see their files and each other; what differs between backends.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Put before the name of each file; ends with a slash.
    pub(crate) files: String,
    /// Flags of each server that say where it listens and whom it calls.
    pub(crate) etcd: Flags,
    pub(crate) apiserver: Flags,
    /// The address that a controller-manager beside the API server calls.
    pub(crate) apiserver_url: String,
    /// What the API server is told of where its audit log is to be.
    pub(crate) audit_log: String,
}

/// A file that the servers need, under a name relative to [`Surroundings::files`].
#[derive(Clone)]
pub(crate) struct ServerFile {
    pub(crate) name: &'static str,
    pub(crate) content: String,
}

/// Never prints the content, which may be a key.
impl Debug for ServerFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerFile").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The files of every plane; of etcd's only where it is reached over TCP.
pub(crate) fn files(pki: &Pki, etcd: Option<&EtcdPki>) -> Vec<ServerFile> {
    let file = |name, content: &str| ServerFile { name, content: content.to_owned() };
    let mut files = vec![
        file("client-ca.crt", pki.client_ca.certificate()),
        file("serving.crt", &pki.serving.certificate),
        file("serving.key", &pki.serving.key),
        file("service-accounts.pub", &pki.service_accounts.public),
        file("service-accounts.key", &pki.service_accounts.private),
    ];
    if let Some(etcd) = etcd {
        files.extend([
            file("etcd-ca.crt", etcd.ca.certificate()),
            file("etcd.crt", &etcd.server.certificate),
            file("etcd.key", &etcd.server.key),
            file("etcd-client.crt", &etcd.client.certificate),
            file("etcd-client.key", &etcd.client.key),
        ]);
    }
    files
}

/// What every backend is made from.
#[derive(Debug)]
pub(crate) struct Ingredients<'a> {
    pub(crate) id: &'a str,
    pub(crate) pki: &'a Pki,
    /// Where to keep everything but the logs, if it is to be in memory.
    pub(crate) memory: Option<&'a Path>,
    /// Whether what the servers log goes to standard error as well.
    pub(crate) attach_output: bool,
}

/// A server answers a question about itself within a tenth of a second.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What the Go runtime of a server is told: fewer collections while it starts, and a limit below which a plane needs less
/// memory than with the defaults (`harness/benches/start.rs`). The limit is a soft one: beyond it a server collects more often,
/// with up to half of its time, but goes on.
pub(crate) const GO_SETTINGS: [(&str, &str); 2] = [("GOGC", "400"), ("GOMEMLIMIT", "170MiB")];
