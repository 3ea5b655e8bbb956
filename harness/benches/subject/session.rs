//! A session of processes, as Linux shows it in `/proc`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::Server;
use crate::processes::{self, Process, mebibytes};

/// The most that was resident.
const PEAK: &str = "VmHWM";

/// Both servers of a plane.
const SERVERS: [&str; 2] = ["etcd", "kube-apiserver"];

/// All processes of one session. A member of it has left its process group, perhaps, but nobody
/// leaves a session without making one.
pub(super) struct Session {
    leader: u32,
}

impl Session {
    /// That of this process, once it has made one.
    pub(super) fn of(leader: u32) -> Self {
        Self { leader }
    }

    fn members(&self) -> Result<Vec<Process>> {
        let mut all = processes::all()?;
        all.retain(|process| process.session == self.leader && !process.is_zombie);
        Ok(all)
    }

    /// The servers of its one plane, in the order of [`SERVERS`].
    pub(super) fn servers(&self) -> Result<Vec<Server>> {
        let members = self.members()?;
        SERVERS
            .into_iter()
            .map(|name| {
                let member = members.iter().find(|member| member.name == name);
                let id = member.with_context(|| format!("no {name} among {members:?}"))?.id;
                Ok(Server { name, program: program(id)?, peak: mebibytes(id, PEAK)? })
            })
            .collect()
    }

    /// The peak memory of the process that made it, in MiB.
    pub(super) fn leader_peak(&self) -> Result<f64> {
        mebibytes(self.leader, PEAK)
    }

    /// Waits until it has no member, for `grace`; then ends those that are left, and returns them.
    pub(super) async fn end(&self, grace: Duration) -> Result<Vec<Process>> {
        let deadline = Instant::now() + grace;
        loop {
            let members = self.members()?;
            if members.is_empty() {
                return Ok(members);
            }
            if Instant::now() >= deadline {
                for member in &members {
                    let id = i32::try_from(member.id).ok().and_then(Pid::from_raw);
                    let id = id.context("no process has this number")?;
                    // It may have ended meanwhile.
                    let _ = kill_process(id, Signal::KILL);
                }
                return Ok(members);
            }
            // Nobody tells of the end of a process that is no child.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn program(process: u32) -> Result<PathBuf> {
    fs::read_link(format!("/proc/{process}/exe")).context("it has ended")
}
