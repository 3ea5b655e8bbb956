//! The labels on everything a plane has in the engine, and what can be done by label: find,
//! remove, sweep.
//!
//! A container is somebody's for as long as the process that its label names is alive.
//! A pid alone says little: numbers are used again, and two machines or containers that share an
//! engine count theirs apart. So the label has the start time too, and a second one says which
//! system's numbers these are.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Pid;
use testcontainers::bollard::Docker;
use testcontainers::bollard::errors::Error;
use testcontainers::bollard::models::ContainerSummaryStateEnum;
use testcontainers::bollard::query_parameters::ListContainersOptionsBuilder;

use super::engine::remove;
use crate::plane::directory::start_time;

/// Whose it is: the id of the plane.
pub(super) const PLANE: &str = "laggard.plane";
/// The process that owns the plane: `<pid>:<start time>`.
const OWNER: &str = "laggard.owner";
/// The system that counted that pid.
const SYSTEM: &str = "laggard.system";

/// What is not running and has had no owner that could be asked for this long is nobody's.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// The labels of everything that belongs to a plane of this process.
pub(super) fn of_plane(id: &str) -> HashMap<String, String> {
    HashMap::from([
        (PLANE.to_owned(), id.to_owned()),
        (OWNER.to_owned(), Owner::this_process().to_string()),
        (SYSTEM.to_owned(), system()),
    ])
}

/// The filter that finds everything of one plane.
pub(super) fn filter(id: &str) -> String {
    format!("{PLANE}={id}")
}

/// What the engine has under a label.
#[derive(Debug)]
pub(super) struct Labelled(Vec<Thing>);

#[derive(Debug)]
struct Thing {
    id: String,
    name: String,
    labels: HashMap<String, String>,
    running: bool,
    age: Option<Duration>,
}

impl Labelled {
    /// Everything with this label (`key` or `key=value`), containers in any state.
    pub(super) async fn find(docker: &Docker, label: &str) -> Result<Self, Error> {
        let filters = HashMap::from([("label", vec![label])]);
        let containers = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = docker.list_containers(Some(containers)).await?;
        let since = |seconds: i64| {
            let created = UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?);
            SystemTime::now().duration_since(created).ok()
        };
        let containers = containers.into_iter().map(|container| Thing {
            name: container.names.and_then(|names| names.into_iter().next()).unwrap_or_default(),
            id: container.id.unwrap_or_default(),
            labels: container.labels.unwrap_or_default(),
            running: matches!(
                container.state,
                Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::PAUSED)
            ),
            age: container.created.and_then(since),
        });
        Ok(Self(containers.collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What there is, in words.
    pub(super) fn names(&self) -> Vec<String> {
        let name = |it: &Thing| format!("container {}", it.name.trim_start_matches('/'));
        self.0.iter().map(name).collect()
    }

    /// Removes all of it, running or not.
    ///
    /// Failures are logged only: what matters is what is left, and somebody else may be removing
    /// the same.
    pub(super) async fn remove(&self, docker: &Docker) {
        let removals = self.0.iter().map(|container| async move {
            if let Err(error) = remove(docker, &container.id).await {
                tracing::warn!(name = %container.name, %error, "could not be removed");
            }
        });
        futures::future::join_all(removals).await;
    }

    fn retain(&mut self, keep: impl Fn(&Thing) -> bool) {
        self.0.retain(keep);
    }
}

/// Removes what dead owners left in the engine.
pub(super) async fn sweep(docker: &Docker) {
    let mut found = match Labelled::find(docker, PLANE).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "could not look for what dead planes left behind");
            return;
        }
    };
    let here = system();
    found.retain(|thing| is_nobodys(thing, &here));
    if !found.is_empty() {
        tracing::warn!(left = ?found.names(), "removing what a dead plane left behind");
        found.remove(docker).await;
    }
}

fn is_nobodys(thing: &Thing, here: &str) -> bool {
    let owner = thing.labels.get(OWNER).and_then(|owner| Owner::parse(owner));
    match owner {
        Some(owner) if thing.labels.get(SYSTEM).is_some_and(|there| there == here) => {
            !owner.is_alive()
        }
        // It cannot be asked from here: another container's, or this machine's before it rebooted.
        _ => !thing.running && thing.age.is_some_and(|age| age > ABANDONED),
    }
}

/// A process, told apart from others that had its number.
#[derive(Debug)]
struct Owner {
    pid: i32,
    start_time: Option<u64>,
}

impl Owner {
    fn this_process() -> Self {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Self { pid, start_time: start_time(pid) }
    }

    fn parse(text: &str) -> Option<Self> {
        let (pid, start_time) = text.split_once(':')?;
        Some(Self { pid: pid.parse().ok()?, start_time: start_time.parse().ok() })
    }

    fn is_alive(&self) -> bool {
        match self.start_time {
            Some(_) => start_time(self.pid) == self.start_time,
            None => Pid::from_raw(self.pid)
                .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok()),
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.start_time {
            Some(start_time) => write!(f, "{}:{start_time}", self.pid),
            None => write!(f, "{}:unknown", self.pid),
        }
    }
}

/// Where pids are counted: this boot of this machine, and this pid namespace (Linux, proc(5) and
/// pid_namespaces(7)).
fn system() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let namespace = std::fs::read_link("/proc/self/ns/pid");
    match (boot, namespace) {
        (Ok(boot), Ok(namespace)) => format!("{}/{}", boot.trim(), namespace.display()),
        // macOS: one machine counts all its pids together, and has its engines to itself.
        _ => "host".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(owner: &str, system: &str, running: bool, age: Duration) -> Thing {
        let labels = HashMap::from([
            (OWNER.to_owned(), owner.to_owned()),
            (SYSTEM.to_owned(), system.to_owned()),
        ]);
        Thing { id: String::new(), name: String::new(), labels, running, age: Some(age) }
    }

    #[test]
    fn only_what_has_a_dead_owner_is_nobodys() {
        let here = system();
        let own = Owner::this_process();
        let reused = Owner { pid: own.pid, start_time: own.start_time.map(|time| time + 1) };
        let (young, old) = (Duration::from_secs(1), ABANDONED + Duration::from_secs(1));
        let (own, reused) = (own.to_string(), reused.to_string());

        assert!(!is_nobodys(&thing(&own, &here, false, old), &here), "its owner lives");
        assert!(is_nobodys(&thing(&reused, &here, true, young), &here), "a stranger has the pid");
        assert!(!is_nobodys(&thing(&reused, "elsewhere", false, young), &here), "cannot be asked");
        assert!(!is_nobodys(&thing(&reused, "elsewhere", true, old), &here), "it still runs");
        assert!(is_nobodys(&thing(&reused, "elsewhere", false, old), &here), "left for a day");
    }

    #[test]
    fn an_owner_reads_back_as_it_was_written() {
        let own = Owner::this_process();
        let read = Owner::parse(&own.to_string()).unwrap();
        assert_eq!((read.pid, read.start_time), (own.pid, own.start_time));
        assert!(read.is_alive());
        let unknown = Owner::parse(&format!("{}:unknown", own.pid)).unwrap();
        assert!(unknown.start_time.is_none() && unknown.is_alive());
    }
}
