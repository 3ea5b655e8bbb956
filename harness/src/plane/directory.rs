//! The directories of a plane on this machine: one for what it needs while it lives, keys
//! included, and one for its logs, without keys.
//!
//! Both are below one directory of the current user (`laggard-<uid>` in the system's temporary
//! directory), mode 0700; that of a plane in memory is below a directory of that name in memory,
//! while its logs are where all are. A plane's directory holds a lock for as long as its owner lives, so a
//! later start can tell what a dead one left behind, and removes it.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::lifeline::Afterwards;

/// Where a plane is in memory, if it is: Linux has it, and so has every container.
pub(crate) const MEMORY: &str = "/dev/shm";

/// Logs that a failed run kept are swept after a day.
const LOGS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// A `rm -rf` of a plane's directory takes milliseconds.
const REMOVE_LIMIT: Duration = Duration::from_secs(20);

/// The directory of one live plane; removed when this process ends, however it ends.
#[derive(Debug)]
pub(crate) struct PlaneDirectory {
    path: PathBuf,
    watcher: Option<Afterwards>,
    _lock: File,
}

impl PlaneDirectory {
    /// Makes the directory of a plane, after removing what dead owners left; below `memory`, if
    /// that is given.
    ///
    /// The watcher is there before the directory is, so nothing is left whenever the owner dies.
    pub(crate) fn create(id: &str, memory: Option<&Path>) -> io::Result<Self> {
        let base = match memory {
            Some(memory) => base_in(memory)?,
            None => base()?,
        };
        let planes = base.join("planes");
        make_private(&planes)?;
        // A directory without a held lock is a dead plane's; so nobody may look while one is made.
        let guard = open_lock(&base.join("lock"))?;
        guard.lock()?;
        sweep(&base, SystemTime::now());
        let path = planes.join(id);
        let watcher = Afterwards::remove_directory(&path)?;
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = open_lock(&path.join("lock"))?;
        lock.lock()?;
        drop(guard);
        Ok(Self { path, watcher: Some(watcher), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file that only this user can read; it never exists with wider permissions.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            DirBuilder::new().mode(0o700).recursive(true).create(parent)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)
    }

    /// Notes which processes belong to the plane, for a sweep after a death that left them.
    pub(crate) fn record(&self, pids: &[i32]) -> io::Result<()> {
        let processes =
            pids.iter().map(|&pid| Process { pid, start_time: start_time(pid) }).collect();
        let text = serde_json::to_vec(&Owner { processes }).map_err(io::Error::other)?;
        let temporary = self.path.join("owner.json.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&text)?;
        fs::rename(temporary, self.path.join("owner.json"))
    }

    /// Removes the directory, keys and all, and waits until it is gone.
    pub(crate) async fn remove(&mut self) -> io::Result<()> {
        if let Some(watcher) = self.watcher.take() {
            watcher.run(REMOVE_LIMIT).await?;
        }
        match self.path.try_exists() {
            Ok(false) => Ok(()),
            Ok(true) => fs::remove_dir_all(&self.path),
            Err(error) => Err(error),
        }
    }
}

/// The directory of a plane's logs: removed with the plane, unless something went wrong.
#[derive(Debug)]
pub(crate) struct LogDirectory {
    path: PathBuf,
    keep: bool,
}

impl LogDirectory {
    pub(crate) fn create(id: &str) -> io::Result<Self> {
        let logs = base()?.join("logs");
        make_private(&logs)?;
        let path = logs.join(id);
        DirBuilder::new().mode(0o700).create(&path)?;
        let keep = std::env::var_os("LAGGARD_KEEP_LOGS").is_some_and(|value| value != "0");
        Ok(Self { path, keep })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }

    /// A new file for the output of a server.
    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.path.join(name))
    }
}

impl Drop for LogDirectory {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::warn!(logs = %self.path.display(), "the logs of the plane are kept");
        } else if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// A name for a plane that no other has.
pub(crate) fn new_id() -> String {
    let mut id = uuid::Uuid::new_v4().simple().to_string();
    id.truncate(12);
    id
}

#[derive(Debug, Deserialize, Serialize)]
struct Owner {
    processes: Vec<Process>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Process {
    pid: i32,
    start_time: Option<u64>,
}

fn base() -> io::Result<PathBuf> {
    base_in(&std::env::temp_dir())
}

fn base_in(directory: &Path) -> io::Result<PathBuf> {
    let base = base_name(directory);
    make_private(&base)?;
    Ok(base)
}

fn base_name(directory: &Path) -> PathBuf {
    directory.join(format!("laggard-{}", rustix::process::getuid().as_raw()))
}

/// Makes a directory that only this user can enter, or checks that an existing one is such.
///
/// The system's temporary directory is everybody's: what stands there under our name may be a
/// trap.
fn make_private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            let problem = format!("{}: {error}; TMPDIR names another place", path.display());
            return Err(io::Error::new(error.kind(), problem));
        }
        Ok(()) => return Ok(()),
    }
    let metadata = fs::symlink_metadata(path)?;
    let private = metadata.is_dir()
        && metadata.uid() == rustix::process::getuid().as_raw()
        && metadata.mode() & 0o077 == 0;
    if private {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "{} is not a directory that only this user can enter; remove it, or set TMPDIR",
            path.display()
        ),
    ))
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Removes what dead planes left: their processes, their directories, their old logs.
///
/// Only logs are judged by the time, `now`: where the clock jumps, they go too early or too late.
fn sweep(base: &Path, now: SystemTime) {
    for entry in fs::read_dir(base.join("planes")).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(lock) = OpenOptions::new().read(true).write(true).open(path.join("lock")) else {
            // Its owner died between two lines above, or its watcher is just removing it.
            let _ = fs::remove_dir_all(&path);
            continue;
        };
        if lock.try_lock().is_err() {
            continue;
        }
        let owner = fs::read(path.join("owner.json")).ok();
        let owner = owner.and_then(|text| serde_json::from_slice::<Owner>(&text).ok());
        for process in owner.into_iter().flat_map(|owner| owner.processes) {
            // The pid alone may be a stranger's by now.
            if process.start_time.is_some()
                && process.start_time == start_time(process.pid)
                && let Some(pid) = Pid::from_raw(process.pid)
            {
                tracing::warn!(pid = process.pid, "ending a server that a dead plane left behind");
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            }
        }
        let _ = fs::remove_dir_all(&path);
    }
    // The logs are in one place, whichever of two the plane itself is in.
    let lives = |id: &OsStr| {
        [base, &base_name(Path::new(MEMORY))].iter().any(|it| it.join("planes").join(id).exists())
    };
    for entry in fs::read_dir(base.join("logs")).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
        let old = age.is_some_and(|age| age > LOGS_KEPT);
        if old && !lives(&entry.file_name()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A lock that all processes of this user share; it is held until the file is dropped.
///
/// Blocks until whoever holds it is done, or gone.
#[cfg(feature = "container")]
pub(crate) fn hold_lock(name: &str) -> io::Result<File> {
    let lock = open_lock(&base()?.join(name))?;
    lock.lock()?;
    Ok(lock)
}

/// When a process started, in ticks since boot (Linux, proc(5) field 22); `None` where unknown.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything, spaces included.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_never_readable_by_others_and_goes_with_the_plane() {
        let mut directory = PlaneDirectory::create(&new_id(), None).unwrap();
        directory.write("pki/some.key", b"secret").unwrap();
        let key = directory.path().join("pki/some.key");
        assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(directory.path()).unwrap().mode() & 0o777, 0o700);
        directory.remove().await.unwrap();
        assert!(!directory.path().exists());
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("open");
        DirBuilder::new().mode(0o755).create(&path).unwrap();
        let error = make_private(&path).unwrap_err().to_string();
        assert!(error.contains("remove it, or set TMPDIR"), "{error}");
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        assert!(make_private(&link).is_err());
    }

    #[test]
    fn the_sweep_takes_dead_planes_and_leaves_live_ones() {
        let base = tempfile::tempdir().unwrap();
        for name in ["dead", "live", "unlocked"] {
            fs::create_dir_all(base.path().join("planes").join(name)).unwrap();
        }
        open_lock(&base.path().join("planes/dead/lock")).unwrap();
        let live = open_lock(&base.path().join("planes/live/lock")).unwrap();
        live.lock().unwrap();
        sweep(base.path(), SystemTime::now());
        let left: Vec<_> = fs::read_dir(base.path().join("planes"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["live"]);
    }

    #[test]
    fn a_clock_that_jumps_takes_no_logs_of_a_live_plane() {
        let base = tempfile::tempdir().unwrap();
        for directory in ["logs/live", "logs/dead", "planes/live"] {
            fs::create_dir_all(base.path().join(directory)).unwrap();
        }
        let live = open_lock(&base.path().join("planes/live/lock")).unwrap();
        live.lock().unwrap();
        let logs_after = |now| {
            sweep(base.path(), now);
            let logs = fs::read_dir(base.path().join("logs")).unwrap();
            let mut names: Vec<_> = logs.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let (now, year) = (SystemTime::now(), Duration::from_secs(365 * 24 * 60 * 60));
        assert_eq!(logs_after(now - year), ["dead", "live"]);
        assert_eq!(logs_after(now), ["dead", "live"]);
        assert_eq!(logs_after(now + year), ["live"]);
    }

    #[test]
    fn the_sweep_ends_a_recorded_process_but_no_stranger_with_its_pid() {
        let base = tempfile::tempdir().unwrap();
        let planes = base.path().join("planes");
        let mut spawned = Vec::new();
        for (name, offset) in [("ours", 0), ("stranger", 1)] {
            use std::os::unix::process::CommandExt as _;
            let child = std::process::Command::new("/bin/sleep")
                .arg("600")
                .process_group(0)
                .spawn()
                .unwrap();
            let pid = i32::try_from(child.id()).unwrap();
            fs::create_dir_all(planes.join(name)).unwrap();
            open_lock(&planes.join(name).join("lock")).unwrap();
            let start_time = start_time(pid).map(|time| time + offset);
            let owner = Owner { processes: vec![Process { pid, start_time }] };
            fs::write(planes.join(name).join("owner.json"), serde_json::to_vec(&owner).unwrap())
                .unwrap();
            spawned.push(child);
        }
        sweep(base.path(), SystemTime::now());
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(spawned[0].wait().unwrap().signal(), Some(9));
        assert!(spawned[1].try_wait().unwrap().is_none(), "a stranger was ended");
        spawned[1].kill().unwrap();
        spawned[1].wait().unwrap();
    }
}
