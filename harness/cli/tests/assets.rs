//! `laggard assets get` as a person runs it, with a stand-in for Go that builds at once or never.
#![expect(clippy::unwrap_used, reason = "all of this is a test, its helpers included")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

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
printf '#!/bin/sh\necho Kubernetes v1.37.2\n' > "$2"
"#;

struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let go = root.path().join("bin/go");
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::write(&go, STAND_IN).unwrap();
        fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).unwrap();
        Self { root }
    }

    fn get(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_laggard"));
        let path = format!("{}:/usr/bin:/bin", self.root.path().join("bin").display());
        command
            .args(["assets", "get", "1.37"])
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.root.path())
            .env("NOTES", self.root.path())
            .stdin(Stdio::null());
        command
    }

    fn store(&self) -> PathBuf {
        self.root.path().join(".local/share/kubebuilder-envtest")
    }

    fn built(&self) -> Vec<String> {
        let text = fs::read_to_string(self.root.path().join("built")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn what_is_missing_is_built_once_and_then_found() {
    let machine = Machine::new();
    let first = machine.get().output().unwrap();
    assert!(first.status.success(), "{first:?}");
    let talk = text(&first.stderr);
    assert!(talk.contains("building kube-apiserver 1.37.2 (2 of 4); about 3 min 10 s"), "{talk}");
    assert_eq!(text(&first.stdout).lines().count(), 4, "{first:?}");
    for path in text(&first.stdout).lines() {
        assert!(Path::new(path).starts_with(machine.store().join("k8s")), "{path}");
    }
    let second = machine.get().output().unwrap();
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(machine.built().len(), 4);
}

#[test]
fn two_processes_at_the_same_moment_build_once() {
    let machine = Machine::new();
    let children: Vec<Child> = (0..4)
        .map(|_| machine.get().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    let outputs: Vec<Output> =
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    for output in &outputs {
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(output.stdout, outputs[0].stdout);
    }
    assert_eq!(machine.built().len(), 4, "{:?}", machine.built());
}

#[test]
fn a_failed_build_shows_the_command_and_what_it_printed() {
    let machine = Machine::new();
    let output = machine.get().env("FAIL", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let talk = text(&output.stderr);
    assert!(talk.contains("failed to build etcd from its Go modules: it ended with"), "{talk}");
    assert!(talk.contains("go build -mod=readonly"), "{talk}");
    assert!(talk.contains("undefined: everything"), "{talk}");
    assert!(!machine.store().join("k8s").exists(), "a failed build left something in the store");
    assert_eq!(staged(&machine), 0);
}

#[test]
fn a_killed_build_leaves_no_compiler_and_nothing_half_made() {
    let machine = Machine::new();
    let mut child = machine.get().env("HANG", "1").stderr(Stdio::null()).spawn().unwrap();
    let pid_file = machine.root.path().join("pid");
    eventually("the compiler to run", || pid_file.exists());
    let compiler: u32 = fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    assert!(is_running(compiler));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the compiler to end", || !is_running(compiler));
    eventually("the staging directory to go", || staged(&machine) == 0);
    // And whoever comes next is not kept waiting by a dead holder of the lock.
    let next = machine.get().output().unwrap();
    assert!(next.status.success(), "{}", text(&next.stderr));
}

#[test]
fn without_go_the_error_says_where_it_looked_and_the_ways_out() {
    let machine = Machine::new();
    let output = machine.get().env("PATH", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let talk = text(&output.stderr);
    for expected in [
        "no etcd, kube-apiserver, kube-controller-manager, kubectl of Kubernetes 1.37.2",
        "KUBEBUILDER_ASSETS: not set",
        "TEST_ASSET_KUBE_APISERVER: not set",
        "kubebuilder-envtest: no version 1.37",
        "/usr/local/kubebuilder/bin/etcd",
        "there is no `go`",
        "1. install Go",
        "2. `setup-envtest use 1.37.2`",
        "3. point KUBEBUILDER_ASSETS",
    ] {
        assert!(talk.contains(expected), "{expected:?} is missing in:\n{talk}");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn staged(machine: &Machine) -> usize {
    fs::read_dir(machine.store().join("laggard/staging")).map_or(0, Iterator::count)
}

/// A process that exists and is no zombie.
fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// Another process's doing: there is no event that reaches us.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::yield_now();
    }
}
