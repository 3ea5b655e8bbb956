//! Processes that have one plane each, told what to do from outside, and watched.
//!
//! The protocol: a line with what is [`Wanted`]; the answer `{"what": "up", "seconds": …}`; an empty
//! line; the answer `{"what": "stopped", "seconds": …}`. The end of its input ends a subject at any
//! moment. It is the leader of a session, by which whatever it leaves behind is found and ended.

pub(crate) mod ours;
mod session;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};

use session::Session;

/// envtest tries five times, for twenty seconds each.
const LIMIT: Duration = Duration::from_secs(150);

/// Nothing of a subject is left this long after its own end, or after the order to end.
const GRACE: Duration = Duration::from_secs(45);

/// What a subject does between start and stop. envtest reads the first two.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Wanted {
    crd: Option<CustomResourceDefinition>,
    object: Option<Value>,
    is_fully_ready: bool,
    watches: usize,
    is_contained: bool,
    /// For the process itself, not for what it reads.
    #[serde(skip)]
    variables: Vec<(String, PathBuf)>,
    #[serde(skip)]
    age: Duration,
}

impl Wanted {
    /// A plane with a definition, and an object of it.
    pub(crate) fn first_custom_resource() -> Self {
        let crd = json!({
            "metadata": { "name": "gadgets.start.bench.local" },
            "spec": {
                "group": "start.bench.local", "scope": "Namespaced",
                "names": { "kind": "Gadget", "plural": "gadgets", "singular": "gadget" },
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": {
                        "type": "object", "properties": { "spec": {
                            "type": "object", "properties": { "size": { "type": "integer" } },
                        } },
                    } },
                }],
            },
        });
        let object = json!({
            "apiVersion": "start.bench.local/v1", "kind": "Gadget",
            "metadata": { "name": "first", "namespace": "default" }, "spec": { "size": 1 },
        });
        let crd = serde_json::from_value(crd).expect("the definition above is one");
        Self { crd: Some(crd), object: Some(object), ..Self::default() }
    }

    pub(crate) fn fully_ready(mut self) -> Self {
        self.is_fully_ready = true;
        self
    }

    pub(crate) fn with_watches(mut self, watches: usize) -> Self {
        self.watches = watches;
        self
    }

    /// In containers of the binaries that these servers ran.
    pub(crate) fn in_containers(mut self, servers: &[Server]) -> Self {
        self.is_contained = true;
        self.variables = variables(servers);
        self
    }

    /// Not stopped before it is this old.
    pub(crate) fn until(mut self, age: Duration) -> Self {
        self.age = age;
        self
    }
}

/// What was seen of one subject.
pub(crate) struct Run {
    /// Until everything wanted was there.
    pub(crate) up: Duration,
    pub(crate) stop: Duration,
    /// Of the subject itself, in MiB.
    pub(crate) own_peak: f64,
    /// etcd and kube-apiserver, just before the stop; none if they run in containers.
    pub(crate) servers: Vec<Server>,
}

impl Run {
    pub(crate) fn start_and_stop(&self) -> f64 {
        (self.up + self.stop).as_secs_f64()
    }

    /// The peak memory of both servers, in MiB.
    pub(crate) fn peak(&self) -> f64 {
        self.servers.iter().map(|server| server.peak).sum()
    }
}

/// A server that was running.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    /// Resident, in MiB.
    pub(crate) peak: f64,
}

/// The variables that make both sides run these very binaries.
fn variables(servers: &[Server]) -> Vec<(String, PathBuf)> {
    let name = |server: &Server| server.name.to_uppercase().replace('-', "_");
    servers
        .iter()
        .map(|server| (format!("TEST_ASSET_{}", name(server)), server.program.clone()))
        .collect()
}

/// A program that has planes, and how it is run.
pub(crate) struct Subject {
    program: PathBuf,
    argument: Option<&'static str>,
    variables: Vec<(String, PathBuf)>,
}

impl Subject {
    /// This program again.
    pub(crate) fn ours() -> Result<Self> {
        let program = std::env::current_exe()?;
        Ok(Self { program, argument: Some(ours::ARGUMENT), variables: Vec::new() })
    }

    /// envtest with the binaries that these servers ran. Its directories are made below `scratch`,
    /// since it leaves them where it is killed.
    pub(crate) fn envtest(program: &Path, scratch: &Path, servers: &[Server]) -> Self {
        let mut variables = variables(servers);
        variables.push(("TMPDIR".to_owned(), scratch.to_owned()));
        variables.push(("XDG_CACHE_HOME".to_owned(), scratch.join("cache")));
        Self { program: program.to_owned(), argument: None, variables }
    }

    /// Runs one. Nothing of it is left afterwards, whatever is returned.
    pub(crate) async fn run(&self, wanted: &Wanted) -> Result<Run> {
        let begun = Instant::now();
        let mut child = Command::new(&self.program)
            .args(self.argument)
            .envs(self.variables.iter().chain(&wanted.variables).map(|(name, value)| (name, value)))
            // A bench of defaults: another cluster, other output and other limits are none.
            .env_remove("USE_EXISTING_CLUSTER")
            .env_remove("KUBEBUILDER_ATTACH_CONTROL_PLANE_OUTPUT")
            .env_remove("KUBEBUILDER_CONTROLPLANE_START_TIMEOUT")
            .env_remove("KUBEBUILDER_CONTROLPLANE_STOP_TIMEOUT")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("run {}", self.program.display()))?;
        let session = Session::of(child.id().context("it has ended")?);
        let mut talk = Talk {
            orders: child.stdin.take().context("no standard input")?,
            answers: BufReader::new(child.stdout.take().context("no standard output")?).lines(),
        };
        let run = tokio::time::timeout(LIMIT, talk.whole(wanted, &session, begun)).await;
        let run = run.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {LIMIT:?}")));
        // Where the talk broke off, the end of its input is what ends it.
        let talk = run.is_ok().then_some(talk);
        let ended = tokio::time::timeout(GRACE, child.wait()).await;
        drop(talk);
        let left = session.end(if ended.is_ok() { GRACE } else { Duration::ZERO }).await?;
        let run = run.with_context(|| format!("{} with {wanted:?}", self.program.display()))?;
        let status = ended.context("it did not end when it was told to")??;
        ensure!(status.success(), "{} ended: {status}", self.program.display());
        ensure!(left.is_empty(), "{} left behind: {left:?}", self.program.display());
        Ok(run)
    }
}

struct Talk {
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    async fn whole(&mut self, wanted: &Wanted, session: &Session, begun: Instant) -> Result<Run> {
        let line = serde_json::to_string(wanted)?;
        self.order(&line).await?;
        let up = self.answer("up").await?;
        tokio::time::sleep(wanted.age.saturating_sub(begun.elapsed())).await;
        let own_peak = session.leader_peak()?;
        let servers = if wanted.is_contained { Vec::new() } else { session.servers()? };
        self.order("").await?;
        Ok(Run { up, stop: self.answer("stopped").await?, own_peak, servers })
    }

    async fn order(&mut self, line: &str) -> Result<()> {
        self.orders.write_all(format!("{line}\n").as_bytes()).await.context("it reads nothing")
    }

    async fn answer(&mut self, what: &str) -> Result<Duration> {
        let line = self.answers.next_line().await?.context("it ended without an answer")?;
        let answer: Answer = serde_json::from_str(&line).with_context(|| line.clone())?;
        ensure!(answer.what == what, "{line} where {what} was expected");
        Ok(Duration::from_secs_f64(answer.seconds))
    }
}

#[derive(Deserialize, Serialize)]
struct Answer {
    what: String,
    seconds: f64,
}
