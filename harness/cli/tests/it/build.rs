//! Building, with a stand-in for Go that builds at once or never.

use std::fs;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use crate::machine::{Machine, eventually, is_running, text};

#[test]
fn what_is_missing_is_built_once_and_then_found() {
    let machine = Machine::new();
    let first = machine.offline().output().unwrap();
    assert!(first.status.success(), "{first:?}");
    let talk = text(&first.stderr);
    assert!(talk.contains("building kube-apiserver 1.37.2 (2 of 4); about 3 min 10 s"), "{talk}");
    assert_eq!(text(&first.stdout).lines().count(), 4, "{first:?}");
    for path in text(&first.stdout).lines() {
        assert!(Path::new(path).starts_with(machine.store().join("k8s")), "{path}");
    }
    let second = machine.offline().output().unwrap();
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(machine.built().len(), 4);
}

#[test]
fn two_processes_at_the_same_moment_build_once() {
    let machine = Machine::new();
    let children: Vec<Child> = (0..4)
        .map(|_| machine.offline().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
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
    let output = machine.offline().env("FAIL", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let talk = text(&output.stderr);
    assert!(talk.contains("failed to build etcd from its Go modules: it ended with"), "{talk}");
    assert!(talk.contains("go build -mod=readonly"), "{talk}");
    assert!(talk.contains("undefined: everything"), "{talk}");
    assert!(!machine.store().join("k8s").exists(), "a failed build left something in the store");
    assert_eq!(machine.staged(), 0);
}

#[test]
fn a_killed_build_leaves_no_compiler_and_nothing_half_made() {
    let machine = Machine::new();
    let mut child = machine.offline().env("HANG", "1").stderr(Stdio::null()).spawn().unwrap();
    let pid_file = machine.root.path().join("pid");
    eventually("the compiler to run", || pid_file.exists());
    let compiler: u32 = fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    assert!(is_running(compiler));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the compiler to end", || !is_running(compiler));
    eventually("the staging directory to go", || machine.staged() == 0);
    // And whoever comes next is not kept waiting by a dead holder of the lock.
    let next = machine.offline().output().unwrap();
    assert!(next.status.success(), "{}", text(&next.stderr));
}

#[test]
fn without_go_the_error_says_where_it_looked_and_the_ways_out() {
    let machine = Machine::new();
    let output = machine.offline().env("PATH", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let talk = text(&output.stderr);
    for expected in [
        "no etcd, kube-apiserver, kube-controller-manager, kubectl of Kubernetes 1.37.2",
        "KUBEBUILDER_ASSETS: not set",
        "TEST_ASSET_KUBE_APISERVER: not set",
        "kubebuilder-envtest: no version 1.37",
        "/usr/local/kubebuilder/bin/etcd",
        "there is no `go`",
        "not downloaded: offline mode forbids it",
        "1. with a network, or Go",
        "2. `setup-envtest use 1.37.2`",
        "3. point KUBEBUILDER_ASSETS",
    ] {
        assert!(talk.contains(expected), "{expected:?} is missing in:\n{talk}");
    }
}
