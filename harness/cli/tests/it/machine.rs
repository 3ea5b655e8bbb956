//! A machine with a home of its own, and a stand-in for Go.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::server::Server;

/// Notes what it is asked to build; makes a program that says its version, or hangs with a child
/// of its own, as a compiler would.
const STAND_IN: &str = r#"#!/bin/sh
while [ "$1" != -o ]; do shift; done
echo "$3" >> "$NOTES/built"
if [ -n "$HANG" ]; then
  sleep 600 &
  echo "$!" > "$NOTES/pid.new"
  mv "$NOTES/pid.new" "$NOTES/pid"
  wait
fi
if [ -n "$FAIL" ]; then
  echo 'undefined: everything' >&2
  exit 3
fi
echo "$GOCACHE" >> "$NOTES/caches"
if [ -n "$FILL" ]; then dd if=/dev/zero of="$2" bs=64k count=100 || exit 1; fi
printf '#!/bin/sh\necho Kubernetes v1.37.2\n' > "$2"
"#;

pub(crate) struct Machine {
    pub(crate) root: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let go = root.path().join("bin/go");
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::write(&go, STAND_IN).unwrap();
        fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).unwrap();
        Self { root }
    }

    /// The command, in an environment of its own.
    pub(crate) fn laggard(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_laggard"));
        self.prepare(&mut command);
        command.args(arguments);
        command
    }

    /// Clears the environment of a command, and sets what it needs.
    pub(crate) fn prepare(&self, command: &mut Command) {
        let path =
            format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.root.path().join("bin").display());
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.root.path())
            .env("NOTES", self.root.path())
            .stdin(Stdio::null());
    }

    /// `laggard assets get 1.37` that downloads nothing.
    pub(crate) fn offline(&self) -> Command {
        let mut command = self.laggard(&["assets", "get", "1.37"]);
        command.env("LAGGARD_OFFLINE", "1");
        command
    }

    /// `laggard assets get` of a version, from a mirror.
    pub(crate) fn get(&self, version: &str, mirror: &Server) -> Command {
        let mut command = self.laggard(&["assets", "get", version]);
        command.env("LAGGARD_ASSETS_MIRROR", mirror.url(""));
        command
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.root.path().join(".local/share/kubebuilder-envtest")
    }

    pub(crate) fn built(&self) -> Vec<String> {
        let text = fs::read_to_string(self.root.path().join("built")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(crate) fn staged(&self) -> usize {
        fs::read_dir(self.store().join("laggard/staging")).map_or(0, Iterator::count)
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A process that exists and is no zombie.
pub(crate) fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// A case that this machine does not allow: visibly so.
#[expect(clippy::print_stderr, reason = "a test that did not run must not look as if it had")]
pub(crate) fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// Another process's doing: there is no event that reaches us.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::yield_now();
    }
}
