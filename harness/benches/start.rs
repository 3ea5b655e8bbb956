//! What a plane costs beside one of controller-runtime's envtest: time to start, to stop and to the
//! first custom resource, and memory. Both run the same two binaries.
//!
//! Each plane has a process of its own, as in a test run: this program again, or `envtest/`, which is
//! built here where Go is at hand. They are taken in turns, and what is judged is the median of the
//! ratios of neighbours.

#![expect(clippy::print_stdout, reason = "a bench is a program that prints")]
#![expect(clippy::print_stderr, reason = "and says what it leaves out")]

mod figures;
mod processes;
mod subject;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use figures::{Figures, Limit, middle, spread};
use subject::{Run, Subject, Wanted, ours};

/// How many times each is taken.
const ROUNDS: usize = 5;

/// How old a plane is when its memory is read, on both sides: everything that a server does at its
/// start is over by then.
const AGE: Duration = Duration::from_secs(8);

const WATCHES: usize = 50;

/// A plane is stopped with this many open watches within this time.
const STOP: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> Result<()> {
    if env::args().nth(1).as_deref() == Some(ours::ARGUMENT) {
        return ours::serve().await;
    }
    let ours = Subject::ours()?;
    // Once without a figure: the binaries are read from the disk, and found intact.
    let first = ours.run(&Wanted::default()).await?;
    for server in &first.servers {
        println!("{}: {}", server.name, server.program.display());
    }
    let engine = engine().await?;
    let scratch = tempfile::Builder::new().prefix("laggard-bench-").tempdir()?;
    let envtest = match built(&scratch).await? {
        Some(program) => {
            let envtest = Subject::envtest(&program, scratch.path(), &first.servers);
            envtest.run(&Wanted::default()).await?;
            Some(envtest)
        }
        None => None,
    };
    if engine {
        // The engine has the images then.
        ours.run(&containers(&first)).await?;
    }

    let mut taken = Taken::default();
    for _ in 0..ROUNDS {
        taken.started.push(ours.run(&Wanted::default()).await?);
        if let Some(envtest) = &envtest {
            taken.envtest_started.push(envtest.run(&Wanted::default()).await?);
        }
        taken.created.push(ours.run(&Wanted::first_custom_resource()).await?);
        if let Some(envtest) = &envtest {
            let wanted = Wanted::first_custom_resource().until(AGE);
            taken.envtest_created.push(envtest.run(&wanted).await?);
        }
        // envtest waits for all checks, so it is compared with a plane that has passed all of them.
        taken.aged.push(ours.run(&Wanted::first_custom_resource().fully_ready().until(AGE)).await?);
        taken.full.push(ours.run(&Wanted::default().fully_ready()).await?);
        if engine {
            taken.contained.push(ours.run(&containers(&first)).await?);
        }
        taken.watched.push(ours.run(&Wanted::default().with_watches(WATCHES)).await?);
    }
    taken.figures()?.finish()
}

/// Every run of a kind, in the order in which they were made.
#[derive(Default)]
struct Taken {
    started: Vec<Run>,
    envtest_started: Vec<Run>,
    created: Vec<Run>,
    envtest_created: Vec<Run>,
    /// As `created`, to full readiness, and looked at when it is as old as envtest's.
    aged: Vec<Run>,
    full: Vec<Run>,
    contained: Vec<Run>,
    watched: Vec<Run>,
}

impl Taken {
    fn figures(&self) -> Result<Figures> {
        let mut figures = Figures::of("start");
        figures.time("start, median", median(&self.started, |it| it.up), None);
        figures.time("stop, median", median(&self.started, |it| it.stop), None);
        figures.time(
            "from nothing to a custom resource, median",
            median(&self.created, |it| it.up),
            None,
        );
        figures.time("start to full readiness, median", median(&self.full, |it| it.up), None);
        let stop = median(&self.watched, |it| it.stop);
        figures.time(&format!("stop with {WATCHES} open watches, median"), stop, Some(STOP));
        if !self.contained.is_empty() {
            figures.time(
                "containers: start to full readiness, median",
                median(&self.contained, |it| it.up),
                None,
            );
            let ratio = ratio(&self.contained, &self.full, Run::start_and_stop);
            let name = "full readiness and stop, containers against processes";
            figures.ratio(name, ratio, Limit::AtMost(1.6));
        }
        let peak = middle(self.aged.iter().map(Run::peak).collect());
        figures.count("peak memory of the servers, median", peak, "MiB", Limit::None);
        let own = middle(self.aged.iter().map(|it| it.own_peak).collect());
        figures.count("peak memory of the process that has the plane", own, "MiB", Limit::None);
        if self.envtest_started.is_empty() {
            return Ok(figures);
        }

        // What was compared is one and the same, whatever variables were set.
        let programs =
            |run: &Run| run.servers.iter().map(|it| it.program.clone()).collect::<Vec<_>>();
        let (left, right) = (programs(&self.aged[0]), programs(&self.envtest_created[0]));
        ensure!(left == right, "not the same binaries: {left:?}, {right:?}");

        figures.time("envtest: start, median", median(&self.envtest_started, |it| it.up), None);
        figures.time("envtest: stop, median", median(&self.envtest_started, |it| it.stop), None);
        let created = median(&self.envtest_created, |it| it.up);
        figures.time("envtest: from nothing to a custom resource, median", created, None);
        let peak = middle(self.envtest_created.iter().map(Run::peak).collect());
        figures.count("envtest: peak memory of the servers, median", peak, "MiB", Limit::None);
        let own = middle(self.envtest_created.iter().map(|it| it.own_peak).collect());
        figures.count("envtest: peak memory of its process", own, "MiB", Limit::None);

        let cycle = ratio(&self.started, &self.envtest_started, Run::start_and_stop);
        figures.ratio("start and stop against envtest", cycle, Limit::AtMost(0.3));
        let created = ratio(&self.created, &self.envtest_created, |it| seconds(it.up));
        let name = "from nothing to a custom resource against envtest";
        figures.ratio(name, created, Limit::AtMost(0.25));
        let full = ratio(&self.full, &self.envtest_started, Run::start_and_stop);
        figures.ratio("full readiness and stop against envtest", full, Limit::None);
        let memory = ratio(&self.aged, &self.envtest_created, Run::peak);
        figures.ratio("peak memory of the servers against envtest", memory, Limit::AtMost(1.0));
        Ok(figures)
    }
}

/// What the container backend is asked for: the same binaries, by the variables that say so.
fn containers(first: &Run) -> Wanted {
    Wanted::default().fully_ready().in_containers(&first.servers)
}

/// Whether there is an engine; said if there is none.
async fn engine() -> Result<bool> {
    #[cfg(feature = "container")]
    let why = match laggard::plane::docker_engine().await {
        Ok(_) => return Ok(true),
        Err(error) => format!("no Docker engine: {error}"),
    };
    #[cfg(not(feature = "container"))]
    let why = "this is built without the feature `container`".to_owned();
    left_out("containers", &why, "LAGGARD_REQUIRE_DOCKER")?;
    Ok(false)
}

/// envtest's side, built; said if there is no Go. Where there is one, a build that fails is an error.
async fn built(scratch: &TempDir) -> Result<Option<PathBuf>> {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("envtest");
    println!("building {} (minutes, the first time)", program.display());
    let mut build = Command::new("go");
    build
        .args(["build", "-trimpath", "-buildvcs=false", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/envtest"))
        .env("GOFLAGS", "-mod=readonly")
        .env("GOTOOLCHAIN", "local")
        .env("GOTMPDIR", scratch.path())
        .kill_on_drop(true);
    match build.status().await {
        Ok(status) => {
            ensure!(status.success(), "go build of benches/envtest: {status}");
            Ok(Some(program))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            left_out("envtest", "there is no Go in PATH", "LAGGARD_REQUIRE_GO")?;
            Ok(None)
        }
        Err(error) => Err(error).context("run go"),
    }
}

/// Says that these figures are left out, or fails where a variable demands them.
fn left_out(what: &str, why: &str, variable: &str) -> Result<()> {
    ensure!(env::var_os(variable).is_none_or(|it| it != "1"), "{variable} is set, but {why}");
    eprintln!("start: no figures of {what}: {why}");
    Ok(())
}

fn median(runs: &[Run], of: impl Fn(&Run) -> Duration) -> Duration {
    spread(&mut runs.iter().map(of).collect::<Vec<_>>()).0
}

/// The median of the ratios of those that were taken beside each other.
fn ratio(runs: &[Run], others: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    middle(runs.iter().zip(others).map(|(run, other)| of(run) / of(other)).collect())
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
