//! Who removes a plane from the engine when this process can no longer do it.
//!
//! A destructor does not run in a process that is killed. So before the first container there is
//! somebody outside of it who waits for its end and then removes what has the plane's label: a
//! shell with the `docker` command, or, where that is not installed, Ryuk, the reaper of the
//! testcontainers project, in a container of its own. Where there is neither, what a killed process
//! leaves stays until the next start sweeps it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use testcontainers::bollard::errors::Error;
use testcontainers::bollard::models::{ContainerCreateBody, HostConfig, PortBinding};
use testcontainers::bollard::query_parameters::{CreateContainerOptions, StartContainerOptions};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::engine::{Engine, remove};
use super::images::{Pull, pulled};
use super::labels;
use crate::lifeline::{Afterwards, search_path};
use crate::text::chain;

/// `$1` is the `docker` command, `$2` the label.
///
/// A container may just be being made when its owner dies, and appear only after the first look:
/// so it looks until nothing has been there for five seconds. It gives up after two minutes, with
/// an engine that answers no more.
const SCRIPT: &str = r#"docker=$1 label=$2 quiet=0 looks=0
while [ "$quiet" -lt 6 ] && [ "$looks" -lt 120 ]; do
  if containers=$("$docker" ps -a -q --filter "label=$label"); then
    quiet=$((quiet + 1))
    [ -z "$containers" ] || { quiet=0; "$docker" rm -f -v $containers; }
  fi
  looks=$((looks + 1))
  sleep 1
done"#;

/// What the `docker` command needs to reach the engine that testcontainers uses.
const PASSED_ON: [&str; 3] = ["DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION"];

const RYUK: (&str, &str) = ("testcontainers/ryuk", "0.13.0");
const RYUK_PORT: &str = "8080/tcp";
/// Ryuk leaves alone what has this label, itself among them.
const RYUK_LABEL: &str = "org.testcontainers.ryuk";
/// It answers within milliseconds once it listens.
const RYUK_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);

/// Waits for the end of this process, or of this value, and then removes a plane.
#[derive(Debug)]
pub(super) enum Reaper {
    Command(Afterwards),
    /// The open connection is what Ryuk watches.
    Ryuk(TcpStream),
    Nobody,
}

impl Reaper {
    /// Starts one. It must be there before the first thing that has the label.
    pub(super) async fn start(engine: &Engine, id: &str) -> Self {
        let command = find("docker", std::env::var_os("PATH").as_deref());
        let by_command = match command {
            Some(docker) => by_command(&docker, engine.address(), id).map_err(|error| {
                format!("{} could not be made to wait: {error}", docker.display())
            }),
            None => Err("there is no docker command in PATH".to_owned()),
        };
        let no_command = match by_command {
            Ok(watcher) => return Self::Command(watcher),
            Err(problem) => problem,
        };
        match by_ryuk(engine, id).await {
            Ok(connection) => Self::Ryuk(connection),
            Err(no_ryuk) => {
                tracing::warn!(
                    %no_command, %no_ryuk,
                    "should this process be killed, its containers stay until the next start",
                );
                Self::Nobody
            }
        }
    }

    /// Ends it: there is nothing left to remove.
    pub(super) fn dismiss(self) {
        match self {
            Self::Command(watcher) => watcher.dismiss(),
            // It looks once more when the connection is closed, finds nothing, and ends.
            Self::Ryuk(connection) => drop(connection),
            Self::Nobody => {}
        }
    }
}

fn by_command(docker: &Path, address: &str, id: &str) -> io::Result<Afterwards> {
    let label = labels::filter(id);
    let command = ["/bin/sh", "-c", SCRIPT, "laggard"].map(OsStr::new);
    let arguments = [docker.as_os_str(), OsStr::new(&label)];
    // Its own files, such as the chosen context, must not lead it to another engine: no HOME.
    let mut environment = search_path();
    environment.extend(
        PASSED_ON.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))),
    );
    environment.extend(host_for_command(address));
    Afterwards::watch(&[&command[..], &arguments[..]].concat(), environment)
}

/// The engine's address as the `docker` command takes it: it knows no `http` and no `https`.
fn host_for_command(address: &str) -> Vec<(OsString, OsString)> {
    let (host, tls) = match address.split_once("://") {
        Some(("http", rest)) => (format!("tcp://{rest}"), false),
        Some(("https", rest)) => (format!("tcp://{rest}"), true),
        _ => (address.to_owned(), false),
    };
    let mut variables = vec![("DOCKER_HOST".into(), host.into())];
    if tls {
        variables.push(("DOCKER_TLS_VERIFY".into(), "1".into()));
    }
    variables
}

/// The file that a command's name stands for.
fn find(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    std::env::split_paths(path?).map(|directory| directory.join(name)).find(|file| {
        file.is_absolute()
            && file
                .metadata()
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

/// Starts Ryuk and tells it the plane's label.
async fn by_ryuk(engine: &Engine, id: &str) -> Result<TcpStream, String> {
    let docker = engine.docker().clone();
    let Some(socket) = engine.address().strip_prefix("unix://").map(str::to_owned) else {
        return Err("Ryuk needs an engine on a unix socket".to_owned());
    };
    let label = labels::filter(id);
    let name = format!("laggard-{id}-ryuk");
    let started = engine.run(async move {
        let (image, tag) = RYUK;
        let reference = format!("{image}:{tag}");
        if docker.inspect_image(&reference).await.is_err() {
            match Pull::from_environment() {
                Ok(Pull::Missing) => pulled(&docker, image, tag).await?,
                _ => return Err(format!("the engine has no {reference}")),
            }
        }
        let work = async {
            let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
            docker.create_container(Some(options), ryuk(&reference, &socket)).await?;
            docker.start_container(&name, None::<StartContainerOptions>).await?;
            let about = docker.inspect_container(&name, None).await?;
            let ports = about.network_settings.and_then(|it| it.ports).unwrap_or_default();
            Ok::<_, Error>(published(&ports, RYUK_PORT))
        };
        let registered = async {
            let port = work.await.map_err(|error| chain(&error))?;
            let port = port.ok_or("its port is not published")?;
            register(port, &label).await.map_err(|error| error.to_string())
        };
        let registered = tokio::time::timeout(RYUK_LIMIT, registered)
            .await
            .unwrap_or_else(|_| Err(format!("it did not answer within {RYUK_LIMIT:?}")));
        if registered.is_err() {
            let _ = remove(&docker, &name).await;
        }
        registered.map_err(|problem| format!("Ryuk could not be started: {problem}"))
    });
    started.await.unwrap_or_else(|error| Err(error.to_string()))
}

fn ryuk(reference: &str, socket: &str) -> ContainerCreateBody {
    let binding = PortBinding {
        host_ip: Some(Ipv4Addr::LOCALHOST.to_string()),
        host_port: Some(String::new()),
    };
    ContainerCreateBody {
        image: Some(reference.to_owned()),
        labels: Some(HashMap::from([(RYUK_LABEL.to_owned(), "true".to_owned())])),
        // Its default is 10 s, which is all the time we allow.
        env: Some(vec!["RYUK_RECONNECTION_TIMEOUT=1s".to_owned()]),
        exposed_ports: Some(vec![RYUK_PORT.to_owned()]),
        host_config: Some(HostConfig {
            auto_remove: Some(true),
            binds: Some(vec![format!("{socket}:/var/run/docker.sock")]),
            port_bindings: Some(HashMap::from([(RYUK_PORT.to_owned(), Some(vec![binding]))])),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// The port on loopback through which a container's port is reached.
pub(super) fn published(
    ports: &HashMap<String, Option<Vec<PortBinding>>>,
    inside: &str,
) -> Option<u16> {
    let bindings = ports.get(inside)?.as_ref()?;
    bindings.iter().find_map(|binding| binding.host_port.as_ref()?.parse().ok())
}

/// Tells Ryuk what to remove once the connection ends, and waits until it has understood.
///
/// It confirms a line that it could not parse, too, and mixes up the results of several filters:
/// so it is sent one, encoded as the query of a URL, which is how it reads it.
///
/// Source: testcontainers/moby-ryuk, its README and `reaper.go`.
async fn register(port: u16, label: &str) -> io::Result<TcpStream> {
    let mut stream = loop {
        // The engine accepts on the port before Ryuk does, so a connection may end at once.
        match tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(CONNECT_INTERVAL).await,
        }
        // The caller has the limit.
    };
    let filter = format!("label={}\n", encoded(label));
    loop {
        match confirmed(&mut stream, &filter).await {
            Ok(()) => return stream.into_std(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            Err(_) => {
                tokio::time::sleep(CONNECT_INTERVAL).await;
                if let Ok(again) = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await
                {
                    stream = again;
                }
            }
        }
    }
}

async fn confirmed(stream: &mut tokio::net::TcpStream, filter: &str) -> io::Result<()> {
    stream.write_all(filter.as_bytes()).await?;
    let mut answer = String::new();
    // Nothing follows the answer, so nothing is lost in the buffer.
    BufReader::new(stream).read_line(&mut answer).await?;
    match answer.as_str() {
        "ACK\n" => Ok(()),
        "" => Err(io::ErrorKind::UnexpectedEof.into()),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("Ryuk answered {other:?} instead of ACK"),
        )),
    }
}

/// A label `key=value` as the value of a query: its own `=` must not look like the query's.
fn encoded(label: &str) -> String {
    label.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(byte));
            }
            other => text.push_str(&format!("%{other:02X}")),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn ryuk_is_sent_one_filter_and_the_connection_stays_open_until_it_is_dropped() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            // As the engine's proxy does before Ryuk listens behind it.
            drop(listener.accept().await.unwrap());
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            stream.get_mut().write_all(b"ACK\n").await.unwrap();
            let mut more = Vec::new();
            stream.read_to_end(&mut more).await.unwrap();
            (line, more)
        });
        let limit = Duration::from_secs(10);
        let registered = register(port, "laggard.plane=a b");
        let connection = tokio::time::timeout(limit, registered).await.unwrap().unwrap();
        assert!(!server.is_finished(), "the connection was closed too early");
        Reaper::Ryuk(connection).dismiss();
        let (line, more) = tokio::time::timeout(limit, server).await.unwrap().unwrap();
        assert_eq!(line, "label=laggard.plane%3Da%20b\n");
        assert!(more.is_empty());
    }

    #[tokio::test]
    async fn an_answer_that_is_no_confirmation_is_an_error() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"NAK\n").await.unwrap();
            stream
        });
        let registered = tokio::time::timeout(Duration::from_secs(10), register(port, "a=b")).await;
        let error = registered.unwrap().unwrap_err().to_string();
        assert!(error.contains("NAK"), "{error}");
        drop(server.await.unwrap());
    }

    #[test]
    fn the_command_is_told_the_engine_in_words_that_it_knows() {
        let told = |address| {
            let variables = host_for_command(address);
            variables.into_iter().map(|(_, value)| value.into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(told("unix:///a.sock"), ["unix:///a.sock"]);
        assert_eq!(told("http://localhost:2375"), ["tcp://localhost:2375"]);
        assert_eq!(told("https://localhost:2376"), ["tcp://localhost:2376", "1"]);
    }

    #[test]
    fn a_command_is_a_file_that_can_be_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().as_os_str();
        let file = directory.path().join("docker");
        assert_eq!(find("docker", Some(path)), None);
        std::fs::write(&file, "").unwrap();
        assert_eq!(find("docker", Some(path)), None);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&file, mode).unwrap();
        assert_eq!(find("docker", Some(path)), Some(file));
        assert_eq!(find("docker", None), None);
    }

    /// A stand-in for the `docker` command that keeps its containers in a file.
    fn stand_in(directory: &Path) -> PathBuf {
        let script = r#"#!/bin/sh
cd "${0%/*}" || exit 1
echo "$*" >> calls
case "$1 $2" in
  "ps -a") [ "$5" = label=laggard.plane=x ] && cat containers ;;
  "rm -f") [ -e second ] && mv second containers || : > containers ;;
esac
"#;
        let path = directory.join("docker");
        std::fs::write(&path, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        path
    }

    #[tokio::test]
    async fn the_script_looks_again_for_what_appears_after_its_first_look() {
        let directory = tempfile::tempdir().unwrap();
        let docker = stand_in(directory.path());
        std::fs::write(directory.path().join("containers"), "one\ntwo\n").unwrap();
        std::fs::write(directory.path().join("second"), "late\n").unwrap();
        let watcher = by_command(&docker, "unix:///nowhere", "x").unwrap();
        watcher.run(Duration::from_secs(60)).await.unwrap();
        let calls = std::fs::read_to_string(directory.path().join("calls")).unwrap();
        for removed in ["rm -f -v one two\n", "rm -f -v late\n"] {
            assert!(calls.contains(removed), "{removed} is not in\n{calls}");
        }
        assert_eq!(std::fs::read_to_string(directory.path().join("containers")).unwrap(), "");
    }
}
