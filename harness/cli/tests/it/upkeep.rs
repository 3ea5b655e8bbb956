//! `list`, `verify`, `prune` and `build`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::machine::{Machine, text};
use crate::mirror::{mirror, platform};
use crate::server::Server;

fn with(machine: &Machine, versions: &[&str]) -> Server {
    let server = Server::of_files(mirror(&["1.35.4", "1.36.1", "1.36.2"]));
    for version in versions {
        let output = machine.get(version, &server).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    server
}

#[test]
fn list_says_of_each_version_how_it_can_be_had() {
    let machine = Machine::new();
    let server = with(&machine, &["1.36.1"]);
    let list = |arguments: &[&str]| {
        let mut command = machine.laggard(&[&["assets", "list"], arguments].concat());
        let output = command.env("LAGGARD_ASSETS_MIRROR", server.url("")).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let all = list(&[]);
    let all = |version: &str| {
        let words = |line: &&String| line.split_whitespace().next() == Some(version);
        all.iter().find(words).unwrap_or_else(|| panic!("{version} is missing: {all:?}")).clone()
    };
    assert!(all("1.37.2").ends_with(" can be built"));
    assert!(all("1.36.2").ends_with(" can be downloaded"));
    assert!(all("1.36.1").contains(
        "installed (etcd, kube-apiserver, kube-controller-manager, kubectl); can be downloaded"
    ));
    let minor = list(&["1.36"]);
    assert_eq!(minor.len(), 3, "{minor:?}"); // 1.36.3, which can be built, too
    let installed = list(&["-i"]);
    assert_eq!(installed.len(), 1, "{installed:?}");
    assert!(!installed[0].contains("downloaded"));
}

#[test]
fn list_without_a_network_says_so_and_lists_the_rest() {
    let machine = Machine::new();
    let mut command = machine.laggard(&["assets", "list"]);
    let output = command.env("HTTPS_PROXY", "http://127.0.0.1:1").output().unwrap();
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("1.37.2"));
    assert!(text(&output.stderr).contains("what can be downloaded is not known"));
}

#[test]
fn verify_finds_the_one_damaged_file_and_get_repairs_it() {
    let machine = Machine::new();
    let server = with(&machine, &["1.36.2", "1.35.4"]);
    let verify = |arguments: &[&str]| {
        let output =
            machine.laggard(&[&["assets", "verify"], arguments].concat()).output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout))
    };
    let (code, lines) = verify(&[]);
    assert_eq!((code, lines.lines().count()), (0, 8), "{lines}");
    assert!(lines.lines().all(|line| line.ends_with(": intact (downloaded)")), "{lines}");

    let (os, architecture) = platform();
    let directory = machine.store().join(format!("k8s/1.36.2-{os}-{architecture}"));
    let path = directory.join("kubectl");
    let mut content = fs::read(&path).unwrap();
    content[40] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
    let (code, lines) = verify(&[]);
    assert_eq!(code, 3, "{lines}");
    let damaged: Vec<_> = lines.lines().filter(|line| line.contains("damaged")).collect();
    assert_eq!(damaged.len(), 1, "{lines}");
    assert!(damaged[0].starts_with(&path.display().to_string()), "{lines}");
    assert_eq!(verify(&["1.35"]).0, 0);

    let output = machine.get("1.36", &server).output().unwrap();
    assert!(output.status.success());
    assert!(text(&output.stderr).contains(&format!("damaged {}", path.display())));
    assert_eq!(verify(&[]).0, 0);
}

#[test]
fn verify_asks_what_setup_envtest_left() {
    let machine = Machine::new();
    let (os, architecture) = platform();
    let directory = machine.store().join(format!("k8s/1.36.2-{os}-{architecture}"));
    fs::create_dir_all(&directory).unwrap();
    let write = |name: &str, content: &str| {
        fs::write(directory.join(name), content).unwrap();
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o555)).unwrap();
    };
    write("kube-apiserver", "#!/bin/sh\necho Kubernetes v1.36.2\n");
    write("etcd", "#!/bin/sh\n");
    let output = machine.laggard(&["assets", "verify"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let lines = text(&output.stdout);
    assert!(lines.contains("kube-apiserver: runs; no digest"), "{lines}");
    assert!(lines.contains("etcd: damaged: "), "{lines}");
}

#[test]
fn prune_removes_what_it_is_told_and_nothing_else() {
    let machine = Machine::new();
    let _server = with(&machine, &["1.35.4", "1.36.1", "1.36.2"]);
    let prune = |arguments: &[&str]| {
        let output = machine.laggard(&[&["assets", "prune"], arguments].concat()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout).lines().count(), text(&output.stderr))
    };
    let versions = || fs::read_dir(machine.store().join("k8s")).unwrap().count();
    assert_eq!(prune(&[]).0, 0);
    let (removed, talk) = prune(&["<1.36.2", "--dry-run"]);
    assert_eq!((removed, versions()), (2, 3));
    assert!(talk.contains("would free"), "{talk}");
    assert_eq!((prune(&["<1.36.2"]).0, versions()), (2, 1));
    let (removed, talk) = prune(&["1.35"]);
    assert_eq!(removed, 0);
    assert!(talk.contains("no such version in the store; there is 1.36.2 (4)"), "{talk}");
    assert_eq!((prune(&["--all"]).0, versions()), (1, 0));
    let left: Vec<_> = fs::read_dir(machine.store().join("laggard"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(machine.staged(), 0);
}

#[test]
fn build_builds_into_the_store_whatever_could_be_downloaded() {
    let server = Server::of_files(mirror(&["1.36.2"]));
    let machine = Machine::new();
    let build = || {
        let mut command = machine.laggard(&["assets", "build", "1.36"]);
        let output = command.env("LAGGARD_ASSETS_MIRROR", server.url("")).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let paths = build();
    assert_eq!(paths.lines().count(), 4);
    assert!(paths.contains("1.36.3-"), "{paths}");
    assert_eq!(machine.built().len(), 4);
    assert_eq!(build(), paths);
    assert_eq!(machine.built().len(), 4);
    assert!(server.requests().is_empty());
}

#[test]
fn nonsense_is_refused_before_anything_is_done() {
    let machine = Machine::new();
    for arguments in [
        &["get", "newest"][..],
        &["build", "1.x"],
        &["list", "1"],
        &["verify", "~"],
        &["prune", ">1.36"],
    ] {
        let output = machine.laggard(&[&["assets"], arguments].concat()).output().unwrap();
        let talk = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {talk}");
        assert!(talk.contains("is no Kubernetes version"), "{talk}");
        assert!(talk.contains("~1.37.1"), "the forms are not named: {talk}");
    }
    let output = machine.laggard(&["assets", "prune", "1.36", "--all"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!machine.store().exists());
}
