//! A machine that is in no good shape.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::machine::{Machine, skipped, text};
use crate::mirror::{mirror, platform, stand_in};
use crate::server::Server;

/// Nobody, on every Linux.
const NOBODY: &str = "65534";

/// Whether this user may mount and become another; says so if not.
fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    let is_root = text(&id.stdout).trim() == "0";
    if !is_root {
        skipped("only root can make such a machine");
    }
    is_root
}

/// Runs `laggard` with its store on a disk of a megabyte, and once more when the disk has grown.
fn on_a_small_disk(machine: &Machine, environment: &[(&str, &str)], version: &str) -> [String; 2] {
    let disk = machine.root.path().join("disk");
    fs::create_dir(&disk).unwrap();
    // The disk goes with the namespace, however this ends.
    let script = r#"mount -t tmpfs -o size=1m tmpfs "$1" || exit 77
        disk=$1; shift
        "$@" 2>&1; echo "status $?"
        find "$disk" -path '*k8s*' -o -path '*staging/*'
        echo ====
        mount -o remount,size=100m "$disk" || exit 77
        unset FILL; "$@" 2>&1; echo "status $?""#;
    let mut command = Command::new("unshare");
    machine.prepare(&mut command);
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&disk);
    command.arg(env!("CARGO_BIN_EXE_laggard")).args(["assets", "get", version]);
    command.env("XDG_DATA_HOME", &disk).envs(environment.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "could not make a small disk: {}", text(&output.stderr));
    let output = text(&output.stdout);
    let (full, grown) = output.split_once("====").unwrap();
    [full.to_owned(), grown.to_owned()]
}

#[test]
fn a_disk_that_is_full_ends_a_download_with_one_error_and_the_store_is_usable_afterwards() {
    if !is_root() {
        return;
    }
    let server = Server::of_files(mirror(&["1.36.2"]));
    let machine = Machine::new();
    let mirror = server.url("");
    let [full, grown] = on_a_small_disk(&machine, &[("LAGGARD_ASSETS_MIRROR", &mirror)], "1.36");
    for expected in
        ["error: failed to ", "in the asset store", "XDG_DATA_HOME", "o space left", "status 1"]
    {
        assert!(full.contains(expected), "{expected:?} is missing in:\n{full}");
    }
    assert!(full.trim_end().ends_with("status 1"), "something was left:\n{full}");
    assert!(grown.contains("status 0"), "{grown}");
}

#[test]
fn a_disk_that_is_full_ends_a_build_with_one_error_and_the_store_is_usable_afterwards() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    let [full, grown] =
        on_a_small_disk(&machine, &[("LAGGARD_OFFLINE", "1"), ("FILL", "1")], "1.37");
    for expected in ["error: failed to build etcd", "the disk is full: make room", "status 1"] {
        assert!(full.contains(expected), "{expected:?} is missing in:\n{full}");
    }
    assert!(full.trim_end().ends_with("status 1"), "something was left:\n{full}");
    assert!(grown.contains("status 0"), "{grown}");
}

/// The command as another user, who can reach it.
fn as_nobody(machine: &Machine, version: &str, server: &Server) -> Command {
    let root = machine.root.path();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    let program = root.join("laggard");
    fs::copy(env!("CARGO_BIN_EXE_laggard"), &program).unwrap();
    let mut command = Command::new("setpriv");
    machine.prepare(&mut command);
    command
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .arg(program)
        .args(["assets", "get", version])
        .env("LAGGARD_ASSETS_MIRROR", server.url(""));
    command
}

#[test]
fn a_store_that_cannot_be_written_can_be_read_and_else_is_one_error() {
    if !is_root() {
        return;
    }
    let server = Server::of_files(mirror(&["1.35.4", "1.36.2"]));
    let machine = Machine::new();
    let mine = machine.get("1.36", &server).output().unwrap();
    assert!(mine.status.success());
    let theirs = as_nobody(&machine, "1.36", &server).output().unwrap();
    assert!(theirs.status.success(), "{}", text(&theirs.stderr));
    assert_eq!(mine.stdout, theirs.stdout);

    let other = as_nobody(&machine, "1.35", &server).output().unwrap();
    let talk = text(&other.stderr);
    assert_eq!(other.status.code(), Some(1), "{talk}");
    let store = machine.store().display().to_string();
    for expected in ["error: failed to take the lock", &store, "XDG_DATA_HOME", "Permission denied"]
    {
        assert!(talk.contains(expected), "{expected:?} is missing in:\n{talk}");
    }
    let mine = machine.get("1.35", &server).output().unwrap();
    assert!(mine.status.success(), "{}", text(&mine.stderr));
}

#[test]
fn without_a_home_the_store_is_where_it_is_said_to_be_or_that_is_the_error() {
    let server = Server::of_files(mirror(&["1.36.2"]));
    let machine = Machine::new();
    let said = machine.root.path().join("said");
    let mut command = machine.get("1.36", &server);
    let output = command.env_remove("HOME").env("XDG_DATA_HOME", &said).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with(&said.display().to_string()));

    if !is_root() {
        return;
    }
    // Nobody's home is a directory that nobody can make.
    let output = as_nobody(&machine, "1.36", &server).env_remove("HOME").output().unwrap();
    let talk = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{talk}");
    assert!(talk.contains("XDG_DATA_HOME") && talk.contains("because: "), "{talk}");
}

#[test]
fn a_build_without_a_home_keeps_gos_caches_in_the_store() {
    let machine = Machine::new();
    let mut command = machine.offline();
    let store = machine.root.path().join("said");
    let output = command.env_remove("HOME").env("XDG_DATA_HOME", &store).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let noted = fs::read_to_string(machine.root.path().join("caches")).unwrap();
    let expected = store.join("kubebuilder-envtest/laggard/go-build");
    assert!(noted.contains(&expected.display().to_string()), "{noted}");
}

#[test]
fn a_proxy_that_is_none_matters_only_where_the_network_is_needed() {
    let server = Server::of_files(mirror(&["1.36.2"]));
    let machine = Machine::new();
    let nonsense = "https://user:hunter2@:::";
    let output = machine.get("1.36", &server).env("HTTPS_PROXY", nonsense).output().unwrap();
    let talk = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{talk}");
    assert!(talk.contains("error: HTTPS_PROXY cannot be used: it is no URL"), "{talk}");
    assert!(!talk.contains("hunter2"), "{talk}");
    assert!(server.requests().is_empty());
    assert!(machine.get("1.36", &server).output().unwrap().status.success());
    let output = machine.get("1.36", &server).env("HTTPS_PROXY", nonsense).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_proxy_is_asked_for_a_tunnel_unless_no_proxy_says_otherwise() {
    let proxy = Server::of_files(mirror(&[]));
    let server = Server::of_files(mirror(&["1.36.2"]));
    let machine = Machine::new();
    let get = || {
        let mut command = machine.get("1.36", &server);
        command.env("HTTP_PROXY", proxy.url(""));
        command
    };
    let output = get().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let talk = text(&output.stderr);
    assert!(talk.contains("the proxy at 127.0.0.1"), "{talk}");
    let authority = server.url("").trim_start_matches("http://").to_owned();
    assert!(proxy.paths().contains(&authority), "{:?}", proxy.paths());
    assert!(server.requests().is_empty());
    let output = get().env("NO_PROXY", "127.0.0.1").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_binary_that_is_corrupt_or_of_another_version_is_one_error_where_somebody_named_it() {
    let server = Server::of_files(mirror(&["1.36.2"]));
    let machine = Machine::new();
    let named = machine.root.path().join("named");
    for (content, expected) in [
        (stand_in("kube-apiserver", "1.35.4"), "is version 1.35.4, but 1.36 was asked for"),
        (b"\x7fELF and then nothing".to_vec(), "does not run"),
        (b"#!/bin/sh\nexit 3\n".to_vec(), "ended with exit status: 3"),
    ] {
        fs::write(&named, content).unwrap();
        fs::set_permissions(&named, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = machine.get("1.36", &server);
        let output = command.env("TEST_ASSET_KUBE_APISERVER", &named).output().unwrap();
        let talk = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{talk}");
        assert!(talk.contains("error: TEST_ASSET_KUBE_APISERVER cannot be used"), "{talk}");
        assert!(talk.contains(expected) && talk.contains("correct it or unset it"), "{talk}");
    }
}

#[test]
fn what_setup_envtest_left_half_written_is_put_right() {
    let server = Server::of_files(mirror(&["1.36.2"]));
    let machine = Machine::new();
    let (os, architecture) = platform();
    let directory = machine.store().join(format!("k8s/1.36.2-{os}-{architecture}"));
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("kube-apiserver"), b"\x7fELF and then nothing").unwrap();
    fs::set_permissions(directory.join("kube-apiserver"), fs::Permissions::from_mode(0o555))
        .unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o555)).unwrap();
    let output = machine.get("1.36", &server).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("damaged "), "{}", text(&output.stderr));
    let whole = stand_in("kube-apiserver", "1.36.2");
    assert!(fs::read(directory.join("kube-apiserver")).unwrap() == whole);
}
