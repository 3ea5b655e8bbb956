//! A session of processes, as Linux shows it in `/proc`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::Server;

/// Both servers of a plane.
const SERVERS: [&str; 2] = ["etcd", "kube-apiserver"];

/// All processes of one session. A member of it has left its process group, perhaps, but nobody
/// leaves a session without making one.
pub(super) struct Session {
    leader: u32,
}

/// A member.
#[derive(Debug)]
pub(super) struct Member {
    id: u32,
    name: String,
}

impl Session {
    /// That of this process, once it has made one.
    pub(super) fn of(leader: u32) -> Self {
        Self { leader }
    }

    fn members(&self) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        for process in fs::read_dir("/proc")? {
            let name = process?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // It may have ended meanwhile.
            let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
            // "pid (comm) state ppid pgrp session …"; the name may have spaces in it.
            let Some((head, tail)) = stat.rsplit_once(')') else { continue };
            let fields: Vec<_> = tail.split_whitespace().take(4).collect();
            let [state, _, _, session] = fields[..] else { continue };
            // A zombie has ended; who reaps it is another's business.
            if session.parse() == Ok(self.leader) && state != "Z" {
                let name = head.split_once('(').map_or("", |(_, name)| name).to_owned();
                members.push(Member { id, name });
            }
        }
        Ok(members)
    }

    /// The servers of its one plane, in the order of [`SERVERS`].
    pub(super) fn servers(&self) -> Result<Vec<Server>> {
        let members = self.members()?;
        SERVERS
            .into_iter()
            .map(|name| {
                let member = members.iter().find(|member| member.name == name);
                let id = member.with_context(|| format!("no {name} among {members:?}"))?.id;
                Ok(Server { name, program: program(id)?, peak: peak(id)? })
            })
            .collect()
    }

    /// The peak memory of the process that made it, in MiB.
    pub(super) fn leader_peak(&self) -> Result<f64> {
        peak(self.leader)
    }

    /// Waits until it has no member, for `grace`; then ends those that are left, and returns them.
    pub(super) async fn end(&self, grace: Duration) -> Result<Vec<Member>> {
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

fn peak(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))
        .with_context(|| format!("process {process} has ended"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
