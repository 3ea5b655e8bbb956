//! The processes of this machine, as Linux tells of them in `/proc`.

use std::fs;

use anyhow::{Context as _, Result};

/// A process that was there a moment ago.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: u32,
    /// The first 15 bytes of its program's name.
    pub(crate) name: String,
    pub(crate) parent: u32,
    pub(crate) session: u32,
    /// It has ended; who reaps it is another's business.
    pub(crate) is_zombie: bool,
}

/// All of them; one that ends meanwhile may be missing.
pub(crate) fn all() -> Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        all.extend(parse(id, &stat));
    }
    Ok(all)
}

/// `pid (name) state ppid pgrp session …`; the name may have spaces and parentheses in it.
fn parse(id: u32, stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = tail.split_whitespace();
    let (state, parent, session) = (fields.next()?, fields.next()?, fields.nth(1)?);
    let (parent, session) = (parent.parse().ok()?, session.parse().ok()?);
    Some(Process { id, name: name.to_owned(), parent, session, is_zombie: state == "Z" })
}

/// A size in `/proc/<id>/status`, such as `VmRSS`, in MiB.
pub(crate) fn mebibytes(id: u32, what: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))
        .with_context(|| format!("process {id} has ended"))?;
    let of = |line: &str| Some(line.strip_prefix(what)?.strip_prefix(':')?.trim().to_owned());
    let size = status.lines().find_map(of).with_context(|| format!("no {what}"))?;
    let kib: f64 = size.trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// Not every bench looks for the same, and no compiler is to warn of that.
const _: fn(&Process) = |it| {
    let _ = (&it.name, it.parent, it.session, it.is_zombie);
};
