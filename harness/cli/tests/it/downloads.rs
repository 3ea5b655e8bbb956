//! Downloading, from a mirror of the test's own.

use std::fs;
use std::process::{Child, Output, Stdio};

use crate::machine::{Machine, eventually, skipped, text};
use crate::mirror::{mirror, platform, stand_in};
use crate::server::{Reply, Server};

#[test]
fn what_is_missing_is_downloaded_and_said_and_then_found() {
    let server = Server::of_files(mirror(&["1.36.1", "1.36.2"]));
    let machine = Machine::new();
    let first = machine.get("~1.36.1", &server).output().unwrap();
    let talk = text(&first.stderr);
    assert!(first.status.success(), "{talk}");
    let (os, architecture) = platform();
    let name = format!("envtest-v1.36.2-{os}-{architecture}.tar.gz");
    for expected in [
        format!("downloading the index of releases from {}", server.url("/envtest-releases.yaml")),
        format!("downloading {name} from {}", server.url(&format!("/{name}"))),
        format!("downloaded {name} in"),
        "downloaded kube-controller-manager 1.36.2 in".to_owned(),
    ] {
        assert!(talk.contains(&expected), "{expected:?} is missing in:\n{talk}");
    }
    let paths: Vec<_> = text(&first.stdout).lines().map(str::to_owned).collect();
    assert_eq!(paths.len(), 4);
    assert!(fs::read(&paths[0]).unwrap() == stand_in("etcd", "1.36.2"));
    let requests = server.requests().len();
    let second = machine.get("1.36.x", &server).output().unwrap();
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(server.requests().len(), requests);
    assert!(machine.built().is_empty());
}

#[test]
fn processes_at_the_same_moment_download_once() {
    let server = Server::of_files(mirror(&["1.36.2"]));
    let machine = Machine::new();
    let children: Vec<Child> = (0..4)
        .map(|_| {
            let mut command = machine.get("1.36", &server);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let outputs: Vec<Output> =
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    for output in &outputs {
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(output.stdout, outputs[0].stdout);
    }
    let archives = server.paths().into_iter().filter(|path| path.ends_with(".tar.gz")).count();
    assert_eq!(archives, 1);
}

#[test]
fn a_killed_download_leaves_nothing_and_the_next_one_is_not_kept_waiting() {
    let files = mirror(&["1.36.2"]);
    let server = Server::start(move |request, before| {
        let Some(body) = files.get(&request.path) else { return Reply::status(404) };
        let reply = Reply::file(request, body);
        let stalls = before == 0 && request.path.ends_with(".tar.gz");
        if stalls { reply.stalled_after(1000) } else { reply }
    });
    let machine = Machine::new();
    let mut child = machine.get("1.36", &server).stderr(Stdio::null()).spawn().unwrap();
    eventually("the download to begin", || machine.staged() == 1 && server.requests().len() == 2);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the staging directory to go", || machine.staged() == 0);
    assert!(!machine.store().join("k8s").exists());
    let next = machine.get("1.36", &server).output().unwrap();
    assert!(next.status.success(), "{}", text(&next.stderr));
}

#[test]
fn what_a_mirror_does_not_have_is_built() {
    let (os, architecture) = platform();
    let mut files = mirror(&["1.37.0"]);
    let path = format!("/release/v1.37.0/bin/{os}/{architecture}/kube-controller-manager");
    files.remove(&path).unwrap();
    files.remove(&format!("{path}.sha512")).unwrap();
    let server = Server::of_files(files);
    let machine = Machine::new();
    let output = machine.get("1.37", &server).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let built = machine.built();
    assert_eq!(built.len(), 1, "{built:?}");
    assert!(built[0].ends_with("/kube-controller-manager"), "{built:?}");
    // It is of another patch, so it must not pass for a whole version where setup-envtest looks.
    let versions: Vec<_> = fs::read_dir(machine.store().join("k8s"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(versions, [format!("1.37.0-{os}-{architecture}")]);
}

#[test]
fn where_nobody_named_a_place_and_it_cannot_be_reached_a_build_follows() {
    let machine = Machine::new();
    let mut command = machine.laggard(&["assets", "get", "1.37"]);
    // Nobody listens there: the network is out of reach, also where there is one.
    let output = command.env("HTTPS_PROXY", "http://127.0.0.1:1").output().unwrap();
    let talk = text(&output.stderr);
    assert!(output.status.success(), "{talk}");
    assert!(talk.contains("not downloaded: failed to download the index of releases"), "{talk}");
    assert!(talk.contains("the proxy at 127.0.0.1"), "{talk}");
    assert_eq!(machine.built().len(), 4);
}

#[test]
fn offline_asks_nobody_whatever_it_is_told_of() {
    let server = Server::of_files(mirror(&["1.36.2"]));
    let machine = Machine::new();
    for arguments in [
        &["assets", "get", "1.36", "--offline"][..],
        &["assets", "get", "1.36!", "--offline"],
        &["assets", "get", "latest", "-i"],
        &["assets", "list", "--offline"],
    ] {
        let mut command = machine.laggard(arguments);
        command
            .env("PATH", "/nowhere") // no Go
            .env("LAGGARD_ASSETS_MIRROR", server.url(""))
            .env("GOPROXY", server.url("/go"))
            .env("HTTP_PROXY", server.url(""))
            .env("HTTPS_PROXY", server.url(""));
        command.output().unwrap();
    }
    assert_eq!(server.paths(), [""; 0]);
    // The kernel's word: not a single socket, also where all is found.
    assert!(machine.get("1.36", &server).output().unwrap().status.success());
    for arguments in [&["assets", "get", "1.36", "--offline"][..], &["assets", "get", "1.35", "-i"]]
    {
        let trace = machine.root.path().join("trace");
        let mut command = std::process::Command::new("strace");
        machine.prepare(&mut command);
        command.args(["-f", "-e", "trace=socket,connect,execve", "-o"]).arg(&trace);
        command.arg(env!("CARGO_BIN_EXE_laggard")).args(arguments);
        match command.output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                skipped("there is no strace, so the system calls were not counted");
            }
            output => {
                let output = output.unwrap();
                let trace = fs::read_to_string(trace).unwrap();
                assert!(trace.contains("execve("), "nothing was traced: {}", text(&output.stderr));
                assert!(!trace.contains("socket(") && !trace.contains("connect("), "{trace}");
            }
        }
    }
}
