//! Machines in no good shape: a plane does its work there all the same, or one error says what to do.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams};
use laggard::assets::{Binary, Wanted};
use laggard::{Lag, Plane};
use rstest::rstest;
use tokio::process::Command;

use crate::start::{eventually, processes_of};

/// Nobody, on every Linux.
const NOBODY: &str = "65534";

/// Tells the process of a test that it is to have loopback and no other network.
const ALONE: &str = "LAGGARD_TEST_ALONE";

/// A start has 60 s of its own, and says more than this deadline could.
const LIMIT: Duration = Duration::from_secs(120);

/// What every machine here is asked to do.
#[tokio::test]
#[ignore = "run by other tests, in a process of its own"]
async fn a_plane_does_its_work() -> Result<()> {
    if std::env::var_os(ALONE).is_some() {
        let devices = std::fs::read_to_string("/proc/self/net/dev")?;
        ensure!(devices.lines().skip(2).all(|line| line.trim().starts_with("lo:")), "{devices}");
        let routes = std::fs::read_to_string("/proc/self/net/route")?;
        ensure!(routes.lines().count() <= 1, "{routes}");
    }
    let plane = Plane::builder().start().await?;
    let namespace = plane.namespace("faults").await?;
    let maps: Api<ConfigMap> = Api::namespaced(plane.client()?, &namespace);
    let map = serde_json::from_value(serde_json::json!({ "metadata": { "name": "one" } }))?;
    maps.create(&PostParams::default(), &map).await?;
    let lag = Lag::over(plane.config())?;
    let lagging: Api<ConfigMap> = Api::namespaced(lag.client(), &namespace);
    ensure!(lagging.list(&ListParams::default()).await?.items.len() == 1);
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_plane_needs_no_network_but_loopback() -> Result<()> {
    let machine = Machine::new()?;
    // As root, or as whoever may become root of a namespace of its own.
    let mut refusals = Vec::new();
    for flags in [&["--net"][..], &["--user", "--map-root-user", "--net"]] {
        let up = ["--", "sh", "-c", "ip link set lo up || ifconfig lo up || exit 77"];
        let output = Command::new("unshare").args(flags).args(up).output().await;
        match output {
            Ok(output) if output.status.success() => {
                let up = "ip link set lo up || ifconfig lo up || exit 77; exec \"$@\"";
                let command = machine.command("unshare", |command| {
                    command.args(flags).args(["--", "sh", "-c", up, "sh"]).env(ALONE, "1")
                })?;
                return machine.works(command).await;
            }
            Ok(output) => refusals.push(text(&output.stderr).trim().to_owned()),
            Err(error) => refusals.push(format!("unshare: {error}")),
        }
    }
    skipped(&format!("no network namespace can be made here: {}", refusals.join("; ")));
    Ok(())
}

#[rstest]
#[case::that_is_no_url("https://user:hunter2@:::")]
#[case::where_nobody_listens("http://127.0.0.1:1")]
#[tokio::test]
async fn a_plane_and_its_clients_are_behind_no_proxy(#[case] proxy: &str) -> Result<()> {
    let machine = Machine::new()?;
    let mut command = machine.command("env", |command| command)?;
    for name in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"] {
        command.env(name, proxy).env(name.to_lowercase(), proxy);
    }
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    machine.works(command).await
}

#[tokio::test]
async fn a_plane_needs_no_home() -> Result<()> {
    let machine = Machine::new()?;
    let servers = machine.servers().await?;
    let mut command = machine.command("env", |command| command)?;
    command.env_remove("HOME").env_remove("XDG_DATA_HOME").env("KUBEBUILDER_ASSETS", servers);
    machine.works(command).await
}

#[tokio::test]
async fn a_plane_needs_no_directory_that_it_can_write_but_the_temporary_one() -> Result<()> {
    if !is_root("become another user") {
        return Ok(());
    }
    let machine = Machine::new()?;
    let servers = machine.copied_servers().await?;
    let mut command = machine.as_nobody()?;
    command.env("KUBEBUILDER_ASSETS", servers);
    machine.works(command).await
}

#[tokio::test]
async fn without_a_store_or_servers_the_error_says_how_to_name_them() -> Result<()> {
    if !is_root("become another user") {
        return Ok(());
    }
    let machine = Machine::new()?;
    // Its home is a directory that it cannot make.
    let error = machine.fails(machine.as_nobody()?.env("LAGGARD_OFFLINE", "1")).await?;
    contains_each(&error, &["at the step \"assets\"", "XDG_DATA_HOME", "KUBEBUILDER_ASSETS"])
}

#[tokio::test]
async fn a_temporary_directory_that_cannot_be_written_is_one_error_that_names_it() -> Result<()> {
    if !is_root("become another user") {
        return Ok(());
    }
    let machine = Machine::new()?;
    let servers = machine.copied_servers().await?;
    set_mode(&machine.temporary(), 0o755)?;
    let mut command = machine.as_nobody()?;
    let error = machine.fails(command.env("KUBEBUILDER_ASSETS", servers)).await?;
    let temporary = machine.temporary().display().to_string();
    contains_each(&error, &["Permission denied", "TMPDIR", &temporary])
}

#[tokio::test]
async fn a_full_disk_is_one_error_and_a_plane_starts_once_there_is_room() -> Result<()> {
    if !is_root("make a small disk") {
        return Ok(());
    }
    let machine = Machine::new()?;
    // The disk goes with the namespace, however this ends.
    let script = "mount -t tmpfs -o size=\"$SIZE\" tmpfs \"$TMPDIR\" && exec \"$@\"";
    let on_a_disk_of = |size: &'static str| {
        machine.command("unshare", move |command| {
            command.args(["--mount", "sh", "-c", script, "sh"]).env("SIZE", size)
        })
    };
    let error = machine.fails(&mut on_a_disk_of("1m")?).await?;
    contains_each(&error, &["no space left on device", "since the disk is full", "set TMPDIR"])?;
    machine.works(on_a_disk_of("500m")?).await
}

#[rstest]
#[case::once("once", true)]
#[case::each_time("always", false)]
#[tokio::test]
async fn a_port_that_was_taken_after_it_was_chosen_is_changed(
    #[case] taken: &str,
    #[case] works: bool,
) -> Result<()> {
    let machine = Machine::new()?;
    let servers = machine.servers().await?;
    let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let real = servers.join("real");
    std::fs::rename(servers.join("kube-apiserver"), &real)?;
    let notes = machine.place.path().join("notes");
    // A port cannot be taken from us, so the server is sent to one that is a stranger's.
    let script = format!(
        "#!/bin/sh
        case $1 in --version|--help) exec '{real}' \"$@\";; esac
        echo \"$*\" >>'{notes}'
        [ {taken} = once ] && [ \"$(wc -l <'{notes}')\" -gt 1 ] && exec '{real}' \"$@\"
        exec '{real}' \"$@\" --secure-port={port} --permit-port-sharing=false",
        real = real.display(),
        notes = notes.display(),
        port = stranger.local_addr()?.port(),
    );
    write_program(&servers.join("kube-apiserver"), script.as_bytes())?;
    let mut command = machine.command("env", |command| command)?;
    command.env("KUBEBUILDER_ASSETS", &servers);
    if works {
        machine.works(command).await?;
    } else {
        let error = machine.fails(&mut command).await?;
        contains_each(&error, &["address already in use", "kube-apiserver: exit status 1"])?;
    }
    let notes = std::fs::read_to_string(notes)?;
    let mut ports: Vec<_> = notes
        .lines()
        .filter_map(|line| line.split(' ').find(|it| it.starts_with("--secure-port=")))
        .collect();
    ensure!(ports.len() == if works { 2 } else { 3 }, "{notes}");
    ports.dedup();
    ensure!(ports.len() == if works { 2 } else { 3 }, "the same port again: {notes}");
    Ok(())
}

#[rstest]
#[case::corrupt(b"\x7fELF and then nothing", "", &["kube-apiserver cannot be run (exit status 126)", "xec format error"])]
#[case::empty(b"", "", &["KUBEBUILDER_ASSETS cannot be used", "kube-apiserver"])]
#[case::of_another_version(
    b"#!/bin/sh\necho Kubernetes v1.20.1\n",
    "1.37",
    &["KUBEBUILDER_ASSETS cannot be used", "is version 1.20.1, but 1.37 was asked for"],
)]
#[tokio::test]
async fn a_server_that_cannot_be_run_is_one_error_that_says_whose(
    #[case] content: &[u8],
    #[case] version: &str,
    #[case] expected: &[&str],
) -> Result<()> {
    let machine = Machine::new()?;
    let servers = machine.servers().await?;
    // A link to the file in the store, which is not to be written.
    std::fs::remove_file(servers.join("kube-apiserver"))?;
    write_program(&servers.join("kube-apiserver"), content)?;
    let mut command = machine.command("env", |command| command)?;
    command.env("KUBEBUILDER_ASSETS", servers).env("LAGGARD_KUBERNETES", version);
    let error = machine.fails(&mut command).await?;
    contains_each(&error, expected)
}

/// A place of its own for the planes of another process.
struct Machine {
    place: tempfile::TempDir,
}

impl Machine {
    fn new() -> Result<Self> {
        let machine = Self { place: tempfile::tempdir()? };
        // Another user must get in, and have a temporary directory.
        set_mode(machine.place.path(), 0o755)?;
        std::fs::create_dir(machine.temporary())?;
        set_mode(&machine.temporary(), 0o1777)?;
        Ok(machine)
    }

    fn temporary(&self) -> PathBuf {
        self.place.path().join("tmp")
    }

    /// A directory with etcd and kube-apiserver.
    async fn servers(&self) -> Result<PathBuf> {
        self.servers_by(|path, to| Ok(std::os::unix::fs::symlink(path, to)?)).await
    }

    /// The same, where another user can read them. No hard links: those would change the times of
    /// the store's files, which would then be read again.
    async fn copied_servers(&self) -> Result<PathBuf> {
        self.servers_by(|path, to| Ok(std::fs::copy(path, to).map(|_| ())?)).await
    }

    async fn servers_by(&self, put: impl Fn(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
        let directory = self.place.path().join("servers");
        std::fs::create_dir(&directory)?;
        let wanted = match std::env::var("LAGGARD_KUBERNETES") {
            Ok(version) if !version.is_empty() => Wanted::kubernetes(version),
            _ => Wanted::newest(),
        };
        let servers = [Binary::Etcd, Binary::KubeApiserver];
        for (binary, path) in wanted.binaries(servers).get(|_| ()).await?.iter() {
            put(path, &directory.join(binary.name()))?;
        }
        Ok(directory)
    }

    /// The test above, run by a program that changes what it runs in.
    fn command(
        &self,
        program: &str,
        arguments: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Command> {
        let test = self.place.path().join("test");
        if !test.exists() {
            link(&std::env::current_exe()?, &test)?;
        }
        let mut command = Command::new(program);
        arguments(&mut command);
        command
            .arg(test)
            .args(["--exact", "faults::a_plane_does_its_work", "--ignored", "--nocapture"])
            .env("TMPDIR", self.temporary())
            .env("LAGGARD_BACKEND", "process")
            .current_dir(self.place.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        for binary in Binary::ALL {
            command.env_remove(binary.variable());
        }
        Ok(command)
    }

    /// The same as a user who has no home, and can write nothing but the temporary directory.
    fn as_nobody(&self) -> Result<Command> {
        let mut command = self.command("setpriv", |command| {
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        })?;
        for name in ["HOME", "XDG_DATA_HOME", "KUBEBUILDER_ASSETS"] {
            command.env_remove(name);
        }
        Ok(command)
    }

    async fn works(&self, mut command: Command) -> Result<()> {
        let (success, output) = self.run(&mut command).await?;
        ensure!(success, "{output}");
        ensure!(output.contains("test result: ok. 1 passed"), "{output}");
        Ok(())
    }

    /// What is said where it does not work.
    async fn fails(&self, command: &mut Command) -> Result<String> {
        let (success, output) = self.run(command).await?;
        ensure!(!success, "it worked: {output}");
        ensure!(!output.contains("panicked"), "{output}");
        Ok(output)
    }

    /// Whether it ended well, and all that it said; nothing of its plane is left.
    async fn run(&self, command: &mut Command) -> Result<(bool, String)> {
        let output = tokio::time::timeout(LIMIT, command.output())
            .await
            .with_context(|| format!("{command:?} had not ended after {LIMIT:?}"))?
            .with_context(|| format!("failed to run {command:?}"))?;
        let mut planes = Vec::new();
        for user in std::fs::read_dir(self.temporary())? {
            let user = user?.path().join("planes");
            planes.extend(std::fs::read_dir(user).into_iter().flatten().flatten());
        }
        ensure!(planes.is_empty(), "{planes:?}");
        // Those that watch over the directory end after it.
        eventually("its processes to end", || processes_of(self.place.path()).is_empty())?;
        let said = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
        ensure!(!said.contains("hunter2"), "a password is in what was said");
        Ok((output.status.success(), said))
    }
}

fn contains_each(text: &str, expected: &[&str]) -> Result<()> {
    for expected in expected {
        ensure!(text.contains(expected), "{expected:?} is missing in:\n{text}");
    }
    Ok(())
}

/// The same file, where the file system has a way; or else a copy.
fn link(from: &Path, to: &Path) -> Result<()> {
    if std::fs::hard_link(from, to).is_err() {
        std::fs::copy(from, to)?;
    }
    Ok(())
}

fn write_program(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content)?;
    set_mode(path, 0o755)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether this user can do it; says so if not.
fn is_root(what: &str) -> bool {
    let is_root = rustix::process::getuid().is_root();
    if !is_root {
        skipped(&format!("only root can {what}"));
    }
    is_root
}

/// Past the runner, which shows nobody what a test says that does not fail.
fn skipped(why: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
