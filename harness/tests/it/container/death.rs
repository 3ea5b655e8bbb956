//! However a plane's owner ends, nothing of the plane stays in the engine. (That it may be killed at
//! any moment is shown where the operator's scenarios are, for both backends.)
//!
//! The owners are child processes: this test binary again, with the name of one test.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use laggard::plane::Controller;
use rustix::process::{Pid, Signal};
use tokio::time::Instant;

use super::{GONE_WITHIN, builder, docker, gone, id_of, owned_by};

/// What the child does, in the variable that says so.
const ROLE: &str = "LAGGARD_TEST_ROLE";

#[tokio::test]
async fn a_plane_that_is_dropped_without_a_stop_goes() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let plane = builder().start().await?;
    let label = format!("laggard.plane={}", id_of(&docker, &plane).await?);
    let begun = Instant::now();
    drop(plane);
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(500), "the drop blocked for {took:?}");
    gone(&docker, &label).await
}

#[tokio::test]
async fn a_process_that_ends_right_after_the_drop_leaves_nothing() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let mut child = Owner::start("drop and exit")?;
    child.says("up").await?;
    let pid = child.pid();
    assert!(!owned_by(&docker, pid).await?.is_empty());
    child.ended().await?;
    tokio::time::sleep_until(Instant::now() + GONE_WITHIN).await;
    assert_eq!(owned_by(&docker, pid).await?, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing_while_its_owner_lives() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let mut child = Owner::start("give up")?;
    child.says("given up").await?;
    // Six planes are being made and removed at once, beside whatever else runs: the ten seconds are
    // promised for one whose owner is gone, and shown where that is tested.
    let deadline = Instant::now() + 6 * GONE_WITHIN;
    loop {
        let left = owned_by(&docker, child.pid()).await?;
        if left.is_empty() {
            break;
        }
        anyhow::ensure!(Instant::now() < deadline, "there is still {left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nor does anything appear afterwards.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(owned_by(&docker, child.pid()).await?, [""; 0]);
    child.kill()?;
    Ok(())
}

#[tokio::test]
async fn the_logs_of_a_failed_test_are_kept() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let mut child = Owner::start("panic")?;
    let id = child.says("id ").await?;
    let pid = child.pid();
    child.ended().await?;
    let logs = std::env::temp_dir()
        .join(format!("laggard-{}", rustix::process::getuid().as_raw()))
        .join("logs")
        .join(id.trim());
    let log = std::fs::read_to_string(logs.join("kube-apiserver.log"))
        .with_context(|| format!("reading the log in {}", logs.display()))?;
    assert!(log.contains("Serving securely"), "{log}");
    std::fs::remove_dir_all(logs)?;
    tokio::time::sleep_until(Instant::now() + GONE_WITHIN).await;
    assert_eq!(owned_by(&docker, pid).await?, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn without_an_engine_there_is_one_clear_error() -> Result<()> {
    for (host, problem) in [
        ("unix:///nowhere/docker.sock", "/nowhere/docker.sock"),
        ("tcp://engine.invalid:2375", "on another machine"),
    ] {
        let mut child = Owner::start_with("fail", &[("DOCKER_HOST", OsStr::new(host))])?;
        let text = child.says("error: ").await?;
        for part in [problem, "DOCKER_HOST", "LAGGARD_BACKEND=process"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        child.ended().await?;
    }
    Ok(())
}

/// What the children run.
#[tokio::test]
#[ignore = "the child process of the other tests here"]
async fn owner() -> Result<()> {
    // The parent reads lines; the test runner's own have other beginnings.
    let say = |text: &str| println!("\nsays: {text}");
    match std::env::var(ROLE)?.as_str() {
        "hold" => {
            let plane = builder().controllers([Controller::StatefulSet]).start().await?;
            say("up");
            let docker = docker().await.context("no engine")?;
            say(&format!("id {}", id_of(&docker, &plane).await?));
            std::future::pending::<()>().await;
            drop(plane);
        }
        "drop and exit" => {
            let plane = builder().start().await?;
            say("up");
            // Until the parent has looked.
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(plane);
            std::process::exit(0);
        }
        "give up" => {
            let limits = [30, 100, 250, 500, 800, 1200].map(Duration::from_millis);
            let starts = limits.map(|limit| tokio::time::timeout(limit, builder().start()));
            let ends = futures::future::join_all(starts).await;
            assert!(ends.iter().any(Result::is_err), "no start was given up");
            drop(ends);
            say("given up");
            std::future::pending::<()>().await;
        }
        "panic" => {
            let docker = docker().await.context("no engine")?;
            let plane = builder().start().await?;
            say(&format!("id {}", id_of(&docker, &plane).await?));
            panic!("as a failing test does");
        }
        "fail" => {
            let error = builder().start().await.expect_err("there is no engine");
            let text = format!("{:#}", anyhow::Error::new(error));
            say(&format!("error: {}", text.replace('\n', " ")));
        }
        other => anyhow::bail!("no role {other:?}"),
    }
    Ok(())
}

/// A child process that owns planes.
pub(crate) struct Owner {
    child: Option<Child>,
    lines: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl Owner {
    fn start(role: &str) -> Result<Self> {
        Self::start_with(role, &[])
    }

    pub(crate) fn start_with(role: &str, variables: &[(&str, &OsStr)]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--exact", "container::death::owner", "--ignored", "--nocapture"])
            .env(ROLE, role)
            .envs(variables.iter().copied())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn()?;
        let output = child.stdout.take().context("its output is not piped")?;
        let (sender, lines) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Self { child: Some(child), lines })
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Waits until the child says something that begins so; returns the rest of it.
    pub(crate) async fn says(&mut self, beginning: &str) -> Result<String> {
        let mut before = Vec::new();
        let wait = async {
            while let Some(line) = self.lines.recv().await {
                let said = line.strip_prefix("says: ");
                if let Some(rest) = said.and_then(|said| said.strip_prefix(beginning)) {
                    return Some(rest.to_owned());
                }
                before.push(line);
            }
            None
        };
        let said = tokio::time::timeout(Duration::from_secs(90), wait).await;
        said.ok().flatten().with_context(|| format!("no {beginning:?}, but {before:#?}"))
    }

    /// SIGKILL to its whole process group, as a runner does; returns what was its pid.
    pub(crate) fn kill(mut self) -> Result<u32> {
        let mut child = self.child.take().context("it was killed before")?;
        let pid = child.id();
        let group = Pid::from_raw(i32::try_from(pid)?).context("no pid")?;
        rustix::process::kill_process_group(group, Signal::KILL)?;
        child.wait()?;
        Ok(pid)
    }

    /// Waits until it has ended by itself.
    async fn ended(mut self) -> Result<()> {
        let mut child = self.child.take().context("it was killed before")?;
        let wait = tokio::task::spawn_blocking(move || child.wait());
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .context("it does not end")???;
        Ok(())
    }
}

/// A failed assertion must not leave a process behind.
impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
