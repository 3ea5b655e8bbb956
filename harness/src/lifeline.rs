//! Child processes that end with this process, however it ends.
//!
//! Each child is started through a few lines of `sh` in a process group of its own, with a pipe on
//! its standard input whose write end only this process holds. A watcher in that group reads the
//! pipe to its end, which comes when this process closes it or is gone, and then ends the group it
//! is a member of. No pid is ever looked up that might by then be a stranger's, and nothing can
//! happen between the spawn and some registration, since there is none.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdin, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::sync::watch;

/// `$1` is the directory that goes with the group (and the working directory of the command), the
/// rest is the command.
///
/// The watcher is in the group before the shell becomes the command, ignores what a runner or a
/// terminal sends to groups, and signals group 0, its own. It ends the command first, so that nothing
/// is written into the directory while that goes; `$$` cannot be a stranger's pid, since the number
/// stays taken as long as the group has a member. The word `keep` ends the group and leaves the
/// directory: for a command that ended by itself. The command does not inherit the pipe, so
/// nothing that it forks keeps the watcher waiting.
const GROUP_SCRIPT: &str = r#"exec 3<&0 </dev/null
( trap '' HUP INT TERM PIPE
  while read -r word; do [ "$word" = keep ] && kill -9 0; done <&3
  kill -9 $$; [ -z "$1" ] || rm -rf "$1" || rm -rf "$1"; kill -9 0 ) >/dev/null 2>&1 &
cd "$2" && shift 2 && exec "$@" 3<&-"#;

/// The same for a directory or an engine alone: runs `$@` once the pipe has ended, unless the word
/// `dismiss` came first.
const AFTERWARDS_SCRIPT: &str = r#"exec 3<&0 </dev/null
trap '' HUP INT TERM PIPE
while read -r word; do [ "$word" = dismiss ] && exit 0; done <&3
exec "$@" 3<&-"#;

/// What to run, before it runs.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    pub(crate) program: &'a Path,
    pub(crate) arguments: &'a [String],
    /// The whole environment of the child: it inherits none.
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) working_directory: &'a Path,
    /// Removed by the watcher before it ends the group.
    pub(crate) remove: Option<&'a Path>,
    /// Standard output and error; a file, never a pipe that would make a test runner wait.
    pub(crate) output: File,
}

/// A child in its own group. Dropping it ends the group without waiting for it, and leaves the
/// directory: that goes only when this process is gone.
#[derive(Debug)]
pub(crate) struct Lifeline {
    pid: Pid,
    state: Arc<Mutex<Reaped>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    pipe: Option<ChildStdin>,
}

/// Whether the pid may still be signalled: once the child is reaped, the number is anybody's.
#[derive(Debug)]
struct Reaped(bool);

impl Lifeline {
    /// Starts the command in a group of its own.
    pub(crate) fn spawn(spawn: Spawn<'_>) -> io::Result<Self> {
        let mut command = std::process::Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(GROUP_SCRIPT)
            .arg("laggard")
            .arg(spawn.remove.map_or(OsStr::new(""), Path::as_os_str))
            .arg(spawn.working_directory)
            .arg(spawn.program)
            .args(spawn.arguments)
            .env_clear()
            .envs(spawn.environment)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(spawn.output.try_clone()?)
            .stderr(spawn.output);
        let mut child = command.spawn()?;
        let pipe = child.stdin.take();
        let pid = Pid::from_child(&child);
        let state = Arc::new(Mutex::new(Reaped(false)));
        let (sender, exit) = watch::channel(None);
        let reaper_state = Arc::clone(&state);
        // A thread rather than a task: it must outlive the runtime of the test that made it.
        std::thread::Builder::new().name("laggard-wait".to_owned()).spawn(move || {
            // First without reaping, so that the pid stays ours until nobody can signal it any more.
            while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(
                WaitId::Pid(pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            ) {}
            let mut state = reaper_state.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 = true;
            let status = child.wait();
            drop(state);
            sender.send_replace(status.ok());
        })?;
        Ok(Self { pid, state, exit, pipe })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The exit status, once there is one.
    pub(crate) fn exited(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// The exit status, if the child has ended by now: the kernel is asked, since the thread that
    /// waits may not have come to tell of it.
    pub(crate) async fn ended_by_now(&self) -> Option<ExitStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::Pid(self.pid), options) {
            Ok(None) => None,
            // It has, or is reaped already.
            Ok(Some(_)) | Err(_) => self.wait().await,
        }
    }

    /// Waits for the end of the child; returns at once if it has ended.
    pub(crate) async fn wait(&self) -> Option<ExitStatus> {
        let mut exit = self.exit.clone();
        // An error means that the waiting thread is gone: there is nothing left to wait for.
        match exit.wait_for(Option::is_some).await {
            Ok(status) => *status,
            Err(_) => None,
        }
    }

    /// Sends `signal` to the child, or to its whole group. Does nothing once the child has ended.
    pub(crate) fn signal(&self, signal: Signal, reach: Reach) -> io::Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 {
            return Ok(());
        }
        match reach {
            Reach::Child => rustix::process::kill_process(self.pid, signal)?,
            Reach::Group => rustix::process::kill_process_group(self.pid, signal)?,
        }
        Ok(())
    }

    /// Waits until the child has stopped or gone on, as `state` says, or has ended.
    ///
    /// The signal is sent before this is called, and the kernel keeps the change until somebody
    /// has asked for it, so it cannot be missed.
    pub(crate) async fn state_changed(&self, state: WaitIdOptions) -> io::Result<()> {
        let pid = self.pid;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("laggard-wait".to_owned()).spawn(move || {
            let options = state | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let result = loop {
                match rustix::process::waitid(WaitId::Pid(pid), options) {
                    Err(rustix::io::Errno::INTR) => {}
                    result => break result,
                }
            };
            // Nobody may be waiting any more.
            let _ = sender.send(result);
        })?;
        match receiver.await {
            // The child was reaped meanwhile: it has ended.
            Ok(Ok(_) | Err(rustix::io::Errno::CHILD)) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(io::Error::other("the thread that waited is gone")),
        }
    }

    /// Ends the group at once, by SIGKILL, and waits until the child is reaped.
    pub(crate) async fn kill(&mut self) -> Option<ExitStatus> {
        self.end();
        self.wait().await
    }

    /// Ends the group, and with it the watcher, so that the directory stays.
    fn end(&mut self) {
        let Some(mut pipe) = self.pipe.take() else { return };
        // Where the child has ended by itself, only the watcher is left: it ends its own group,
        // whose number we may no longer use.
        let _ = pipe.write_all(b"keep\n");
        if let Err(error) = self.signal(Signal::KILL, Reach::Group) {
            tracing::warn!(pid = self.pid(), %error, "failed to end a process group");
        }
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whom a signal reaches.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reach {
    Child,
    Group,
}

/// A command that runs when this process is gone, or when the value is dropped.
///
/// What it runs must be harmless to run twice, and quick: nobody waits for it but [`Self::run`].
#[derive(Debug)]
pub(crate) struct Afterwards {
    child: Option<std::process::Child>,
}

impl Afterwards {
    /// Starts the watcher. The command's environment is `environment` and nothing else.
    pub(crate) fn watch(
        command: &[&OsStr],
        environment: Vec<(OsString, OsString)>,
    ) -> io::Result<Self> {
        let child = std::process::Command::new("/bin/sh")
            .arg("-c")
            .arg(AFTERWARDS_SCRIPT)
            .arg("laggard")
            .args(command)
            .env_clear()
            .envs(environment)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child: Some(child) })
    }

    /// A watcher that removes one directory.
    pub(crate) fn remove_directory(path: &Path) -> io::Result<Self> {
        // More than once: a server that is about to be ended may still write into it.
        let script = r#"for _ in 1 2 3 4 5 6 7 8 9; do rm -rf -- "$1" && break; done"#;
        let command = ["/bin/sh", "-c", script, "laggard"].map(OsStr::new);
        Self::watch(&[&command[..], &[path.as_os_str()]].concat(), search_path())
    }

    /// Ends the watcher without running the command: what it was to remove is gone.
    #[cfg(feature = "container")]
    pub(crate) fn dismiss(mut self) {
        if let Some(pipe) = self.child.as_mut().and_then(|child| child.stdin.as_mut()) {
            // Should this fail, the command runs and finds nothing.
            let _ = pipe.write_all(b"dismiss\n");
        }
    }

    /// Lets the command run now, and waits for its end, `limit` at most.
    pub(crate) async fn run(mut self, limit: Duration) -> io::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        drop(child.stdin.take());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("laggard-wait".to_owned())
            .spawn(move || sender.send(child.wait()))?;
        match tokio::time::timeout(limit, receiver).await {
            Ok(Ok(status)) => status.map(|_| ()),
            Ok(Err(_)) => Err(io::Error::other("the thread that waited for the clean-up is gone")),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the clean-up still ran after {limit:?}"),
            )),
        }
    }
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Its end is what the watcher waits for.
            drop(child.stdin.take());
            // Somebody has to reap it, or it stays a zombie while this process lives.
            let _ = std::thread::Builder::new()
                .name("laggard-wait".to_owned())
                .spawn(move || child.wait());
        }
    }
}

/// The `PATH` that a watcher needs to find `rm`.
pub(crate) fn search_path() -> Vec<(OsString, OsString)> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    vec![("PATH".into(), path)]
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn output() -> File {
        tempfile::tempfile().unwrap()
    }

    #[tokio::test]
    async fn the_exit_status_is_the_commands_own() {
        let directory = tempfile::tempdir().unwrap();
        let child = Lifeline::spawn(Spawn {
            program: Path::new("/bin/sh"),
            arguments: &["-c".to_owned(), "exit 7".to_owned()],
            environment: search_path(),
            working_directory: directory.path(),
            remove: None,
            output: output(),
        })
        .unwrap();
        assert_eq!(child.wait().await.and_then(|status| status.code()), Some(7));
    }

    #[tokio::test]
    async fn the_end_of_the_pipe_ends_the_group_and_removes_the_directory() {
        let directory = tempfile::tempdir().unwrap().keep();
        let mut child = Lifeline::spawn(Spawn {
            program: Path::new("/bin/sleep"),
            arguments: &["600".to_owned()],
            environment: search_path(),
            working_directory: &directory,
            remove: Some(&directory),
            output: output(),
        })
        .unwrap();
        // All that a dead process does.
        child.pipe = None;
        let status = tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap();
        assert_eq!(status.and_then(|status| status.signal()), Some(9));
        tokio::time::timeout(Duration::from_secs(10), async {
            while directory.exists() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the directory is still there");
    }

    #[tokio::test]
    async fn a_command_that_ended_by_itself_leaves_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let child = Lifeline::spawn(Spawn {
            program: Path::new("/bin/sh"),
            arguments: &["-c".to_owned(), "echo made > result".to_owned()],
            environment: search_path(),
            working_directory: directory.path(),
            remove: Some(directory.path()),
            output: output(),
        })
        .unwrap();
        child.wait().await.unwrap();
        let group = child.pid;
        drop(child);
        tokio::time::timeout(Duration::from_secs(10), async {
            while rustix::process::test_kill_process_group(group).is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the watcher is still there");
        assert!(directory.path().join("result").exists());
    }

    #[tokio::test]
    async fn kill_ends_what_the_command_forked_too() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let mut child = Lifeline::spawn(Spawn {
            program: Path::new("/bin/sh"),
            arguments: &[
                "-c".to_owned(),
                "sleep 600 & echo $! > pid.new; mv pid.new pid; wait".to_owned(),
            ],
            environment: search_path(),
            working_directory: directory.path(),
            remove: None,
            output: output(),
        })
        .unwrap();
        let forked: i32 = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                if let Ok(text) = std::fs::read_to_string(&pid_file) {
                    break text.trim().parse().unwrap();
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        child.kill().await;
        tokio::time::timeout(Duration::from_secs(10), async {
            while is_running(forked) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the forked process is still there");
    }

    #[tokio::test]
    async fn dropping_a_directory_watcher_removes_the_directory() {
        let directory = tempfile::tempdir().unwrap().keep();
        let watcher = Afterwards::remove_directory(&directory).unwrap();
        assert!(directory.exists());
        watcher.run(Duration::from_secs(10)).await.unwrap();
        assert!(!directory.exists());
    }

    #[cfg(feature = "container")]
    #[tokio::test]
    async fn a_dismissed_watcher_ends_without_running_its_command() {
        let directory = tempfile::tempdir().unwrap();
        let ran = directory.path().join("ran");
        for dismissed in [true, false] {
            let command = [OsStr::new("/bin/sh"), OsStr::new("-c"), OsStr::new(": > \"$0\"")];
            let watcher =
                Afterwards::watch(&[&command[..], &[ran.as_os_str()]].concat(), search_path())
                    .unwrap();
            let pid = i32::try_from(watcher.child.as_ref().unwrap().id()).unwrap();
            match dismissed {
                true => watcher.dismiss(),
                false => drop(watcher),
            }
            tokio::time::timeout(Duration::from_secs(10), async {
                while is_running(pid) {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("the watcher is still there");
            assert_eq!(ran.exists(), !dismissed);
        }
    }

    /// A process that exists and is no zombie.
    fn is_running(pid: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
    }
}
