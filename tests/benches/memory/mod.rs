//! What this process and the servers that it has started need, as Linux tells.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::processes::{self, mebibytes};

/// In MiB, but for the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Of this process, resident.
    pub(crate) own: f64,
    /// Of the API server, resident.
    pub(crate) apiserver: f64,
    /// Of etcd, resident.
    pub(crate) etcd: f64,
    /// The file in which etcd keeps what there is.
    pub(crate) database: f64,
    /// How many files etcd's log has, of 64 MiB each whatever is in them.
    pub(crate) logs: f64,
}

/// The servers of the one plane of this process.
pub(crate) struct Servers {
    apiserver: u32,
    etcd: u32,
    data: PathBuf,
}

impl Servers {
    /// Looks for them among the descendants of this process.
    pub(crate) fn of_this_process() -> Result<Self> {
        let apiserver = descendant("kube-apiserver")?;
        let etcd = descendant("etcd")?;
        let command = fs::read_to_string(format!("/proc/{etcd}/cmdline"))?;
        let data = command.split('\0').find_map(|word| word.strip_prefix("--data-dir="));
        let directory = fs::read_link(format!("/proc/{etcd}/cwd"))?;
        let data = directory.join(data.context("etcd has no --data-dir")?);
        Ok(Self { apiserver, etcd, data })
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        Ok(Memory {
            own: resident(std::process::id())?,
            apiserver: resident(self.apiserver)?,
            etcd: resident(self.etcd)?,
            database: fs::metadata(self.data.join("member/snap/db"))?.len() as f64 / MIB,
            logs: fs::read_dir(self.data.join("member/wal"))?.count() as f64,
        })
    }
}

const MIB: f64 = 1024.0 * 1024.0;

/// The one descendant of this process that runs this program.
fn descendant(program: &str) -> Result<u32> {
    let all = processes::all()?;
    let mut of_ours = vec![std::process::id()];
    let mut at = 0;
    while let Some(&parent) = of_ours.get(at) {
        at += 1;
        for process in all.iter().filter(|process| process.parent == parent) {
            if process.name == program {
                return Ok(process.id);
            }
            of_ours.push(process.id);
        }
    }
    anyhow::bail!("no descendant of this process runs {program}")
}

fn resident(process: u32) -> Result<f64> {
    mebibytes(process, "VmRSS")
}
