//! Obtaining from a mirror, good and bad, into a store of the test's own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::assets::fetch::tests::{QUICK, settings};
use crate::assets::platform;
use crate::assets::settings::Chosen;
use crate::assets::testing::mirror::{ARCHIVED, mirror, packed, sha512, stand_in};
use crate::assets::testing::server::{Reply, Server};

struct Machine {
    root: tempfile::TempDir,
    events: Mutex<Vec<Event>>,
    chosen: Chosen,
}

impl Machine {
    fn new(server: &Server) -> Self {
        let chosen = Chosen { mirror: Some(server.url("")), ..Chosen::default() };
        Self { root: tempfile::tempdir().unwrap(), events: Mutex::default(), chosen }
    }

    fn store(&self) -> Store {
        Store::at(self.root.path().to_owned())
    }

    async fn get(&self, version: &str) -> Result<Assets, String> {
        self.get_wanted(&Wanted::kubernetes(version)).await
    }

    async fn get_wanted(&self, wanted: &Wanted) -> Result<Assets, String> {
        let store = self.store();
        let obtain = Obtain {
            wanted,
            settings: &settings(self.chosen.clone(), &[]),
            store: Some(&store),
            pace: QUICK,
            variable: &|_| None,
            on_event: &|event| self.events.lock().unwrap().push(event),
        };
        obtain.run().await.map_err(|error| error.to_string())
    }

    /// The versions that setup-envtest would see.
    fn versions(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.path().join("k8s")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.root.path().join("laggard/staging")).map_or(0, Iterator::count)
    }
}

fn name(version: &str) -> String {
    let (os, architecture) = platform();
    format!("/envtest-v{version}-{os}-{architecture}.tar.gz")
}

fn manager(version: &str) -> String {
    let (os, architecture) = platform();
    format!("/release/v{version}/bin/{os}/{architecture}/kube-controller-manager")
}

const INDEX: &str = "/envtest-releases.yaml";

#[tokio::test]
async fn what_is_missing_is_downloaded_once_and_then_found_without_asking() {
    let server = Server::of_files(mirror(&["1.36.2", "1.36.1", "1.35.0"]));
    let machine = Machine::new(&server);
    let assets = machine.get("1.36").await.unwrap();
    assert_eq!(assets.version().unwrap().to_string(), "1.36.2");
    for binary in Binary::ALL {
        let path = assets.path(binary).unwrap();
        assert!(fs::read(path).unwrap() == stand_in(binary.name(), "1.36.2"), "{binary}");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o555);
        assert!(path.starts_with(machine.store().directory(&"1.36.2".parse().unwrap())));
    }
    assert_eq!(
        server.paths(),
        [INDEX, &name("1.36.2"), &format!("{}.sha512", manager("1.36.2")), &manager("1.36.2")]
    );
    assert_eq!(machine.staged(), 0);
    let again = machine.get("1.36").await.unwrap();
    assert_eq!(again.path(Binary::Etcd).unwrap(), assets.path(Binary::Etcd).unwrap());
    assert_eq!(server.requests().len(), 4, "{:?}", server.paths());
}

#[tokio::test]
async fn each_selector_takes_the_version_it_means() {
    let server = Server::of_files(mirror(&["1.35.4", "1.36.1", "1.36.3", "1.37.0-rc.1"]));
    for (text, expected) in [
        ("1.36", "1.36.3"),
        ("1.36.x", "1.36.3"),
        ("1.36.1", "1.36.1"),
        ("~1.36.1", "1.36.3"),
        ("<1.36", "1.35.4"),
        ("latest", "1.36.3"),
        ("1.37.0-rc.1", "1.37.0-rc.1"),
    ] {
        let machine = Machine::new(&server);
        let wanted = Wanted::kubernetes(text).binaries([Binary::Etcd, Binary::KubeApiserver]);
        let assets = machine.get_wanted(&wanted).await.unwrap();
        assert_eq!(assets.version().unwrap().to_string(), expected, "{text}");
    }
}

#[tokio::test]
async fn the_mark_asks_for_a_newer_one_and_without_it_what_is_there_will_do() {
    let old = Server::of_files(mirror(&["1.36.1"]));
    let mut machine = Machine::new(&old);
    machine.get("1.36").await.unwrap();
    let new = Server::of_files(mirror(&["1.36.1", "1.36.3"]));
    machine.chosen.mirror = Some(new.url(""));
    let version = |assets: Assets| assets.version().unwrap().to_string();
    assert_eq!(version(machine.get("1.36").await.unwrap()), "1.36.1");
    assert!(new.requests().is_empty());
    assert_eq!(version(machine.get("1.36!").await.unwrap()), "1.36.3");
    assert_eq!(version(machine.get("1.36").await.unwrap()), "1.36.3");
    let requests = new.requests().len();
    assert_eq!(version(machine.get("latest-on-disk").await.unwrap()), "1.36.3");
    assert_eq!(new.requests().len(), requests);
    // And once more: the index alone is asked.
    assert_eq!(version(machine.get("1.36!").await.unwrap()), "1.36.3");
    assert_eq!(new.paths()[requests..], [INDEX]);
}

#[tokio::test]
async fn an_unknown_version_is_an_error_that_lists_the_known_ones() {
    let server = Server::of_files(mirror(&["1.36.2", "1.35.0"]));
    let machine = Machine::new(&server);
    machine.get("1.35").await.unwrap();
    let error = machine.get("1.12").await.unwrap_err();
    for expected in [
        "Kubernetes 1.12 is not on this machine",
        "in the store: 1.35.0",
        "can be built: 1.34.",
        "can be downloaded: 1.35.0, 1.36.2",
    ] {
        assert!(error.contains(expected), "{expected:?} is missing in:\n{error}");
    }
}

#[tokio::test]
async fn where_only_the_controller_manager_is_missing_that_of_the_same_version_comes() {
    let server = Server::of_files(mirror(&["1.36.1", "1.36.2"]));
    let machine = Machine::new(&server);
    // As setup-envtest leaves it.
    let directory = machine.store().directory(&"1.36.1".parse().unwrap());
    fs::create_dir_all(&directory).unwrap();
    for binary in [Binary::Etcd, Binary::KubeApiserver, Binary::Kubectl] {
        let path = directory.join(binary.name());
        fs::write(&path, stand_in(binary.name(), "1.36.1")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
    }
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o555)).unwrap();
    let assets = machine.get("1.36").await.unwrap();
    let path = assets.path(Binary::KubeControllerManager).unwrap();
    assert_eq!(path, directory.join("kube-controller-manager"));
    assert_eq!(server.paths(), [format!("{}.sha512", manager("1.36.1")), manager("1.36.1")]);
}

#[tokio::test]
async fn a_damaged_file_is_told_of_and_obtained_anew() {
    let server = Server::of_files(mirror(&["1.36.2"]));
    let machine = Machine::new(&server);
    let path = machine.get("1.36").await.unwrap().path(Binary::KubeApiserver).unwrap().to_owned();
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&path, damaged).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
    machine.get("1.36").await.unwrap();
    assert!(fs::read(&path).unwrap() == whole);
    let told = machine
        .events
        .lock()
        .unwrap()
        .iter()
        .any(|event| matches!(event, Event::Damaged { path: damaged, .. } if *damaged == path));
    assert!(told);
}

#[tokio::test]
async fn two_at_the_same_moment_download_once_and_the_second_says_what_it_waits_for() {
    let files = mirror(&["1.36.2"]);
    let (begun, mut first_is_in) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, second_waits) = std::sync::mpsc::channel::<()>();
    let second_waits = Mutex::new(second_waits);
    let server = Server::start(move |request, _| {
        if request.path.ends_with(".tar.gz") {
            begun.send(()).unwrap();
            second_waits.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap();
        }
        match files.get(&request.path) {
            Some(body) => Reply::file(request, body),
            None => Reply::status(404),
        }
    });
    let machine = Machine::new(&server);
    let first = machine.get("1.36");
    let second = async {
        first_is_in.recv().await.unwrap();
        let waits = |event: &Event| {
            matches!(event, Event::Waiting { holder, doing, .. }
                if *holder == Some(std::process::id()) && doing == "downloads it")
        };
        let get = machine.get("1.36");
        tokio::pin!(get);
        // Until it waits: it makes steps of its own, and then none.
        while !machine.events.lock().unwrap().iter().any(waits) {
            tokio::select! {
                result = &mut get => panic!("it did not wait: {result:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
        go_on.send(()).unwrap();
        get.await
    };
    let limit = Duration::from_secs(30);
    let (first, second) =
        tokio::time::timeout(limit, async { tokio::join!(first, second) }).await.unwrap();
    assert_eq!(first.unwrap().version(), second.unwrap().version());
    let archives = server.paths().into_iter().filter(|path| path.ends_with(".tar.gz")).count();
    assert_eq!(archives, 1);
}

#[tokio::test]
async fn a_download_that_is_given_up_leaves_nothing() {
    let files = mirror(&["1.36.2"]);
    let (begun, mut is_in) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(move |request, _| {
        let Some(body) = files.get(&request.path) else { return Reply::status(404) };
        let reply = Reply::file(request, body);
        if request.path.ends_with(".tar.gz") {
            begun.send(()).unwrap();
            return reply.stalled_after(1000);
        }
        reply
    });
    let machine = Machine::new(&server);
    tokio::select! {
        result = machine.get("1.36") => panic!("{result:?}"),
        staged = async { is_in.recv().await.map(|()| machine.staged()) } => {
            assert_eq!(staged, Some(1));
        }
    }
    assert_eq!(machine.staged(), 0);
    assert!(machine.versions().is_empty());
}

/// An archive as envtest's, of stand-ins.
fn archive(binaries: &[&str], version: &str) -> Vec<u8> {
    let contents: Vec<_> =
        binaries.iter().map(|binary| (*binary, stand_in(binary, version))).collect();
    packed(&contents)
}

/// What is wrong with a mirror, its files, and a word of what is said about it.
type WrongMirror = (&'static str, BTreeMap<String, Vec<u8>>, &'static str);

fn wrong_mirrors() -> Vec<WrongMirror> {
    let version = "1.36.2";
    let good = || mirror(&[version]);
    let with = |path: &str, content: &[u8]| {
        let mut files = good();
        files.insert(path.to_owned(), content.to_vec()).unwrap();
        files
    };
    // An archive whose digest is as the index says, so that what is in it is looked at.
    let with_archive = |content: Vec<u8>| {
        let mut files = good();
        let index = String::from_utf8(files[INDEX].clone()).unwrap();
        let index = index.replace(&sha512(&archive(&ARCHIVED, version)), &sha512(&content));
        files.insert(INDEX.to_owned(), index.into_bytes());
        files.insert(name(version), content);
        files
    };
    let hostile = |path: &str, kind: tar::EntryType| {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        if kind.is_symlink() {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut builder = tar::Builder::new(encoder);
        builder.append(&header, std::io::empty()).unwrap();
        builder.into_inner().unwrap().finish().unwrap()
    };
    let whole = archive(&ARCHIVED, version);
    vec![
        ("an index of HTML", with(INDEX, b"<!DOCTYPE html><p>Sign in"), "a page of HTML"),
        (
            "an index without a checksum",
            {
                let index = String::from_utf8(good()[INDEX].clone()).unwrap();
                with(INDEX, index.replace(&sha512(&whole), "none").as_bytes())
            },
            "no usable checksum for it: \"none\"",
        ),
        ("another archive than promised", with(&name(version), b"other"), "instead of SHA-512"),
        (
            "a path that leads out",
            with_archive(hostile("../etcd", tar::EntryType::Regular)),
            "leads out",
        ),
        (
            "a link",
            with_archive(hostile("controller-tools/envtest/etcd", tar::EntryType::Symlink)),
            "Symlink",
        ),
        ("half an archive", with_archive(whole[..whole.len() / 2].to_vec()), "cannot be read"),
        ("no archive", with_archive(b"<html>".to_vec()), "cannot be read"),
        (
            "an archive without etcd",
            with_archive(archive(&ARCHIVED[1..], version)),
            "there is no etcd in it",
        ),
        ("another version", with_archive(archive(&ARCHIVED, "1.36.1")), "says that it is 1.36.1"),
        (
            "no checksum",
            with(&format!("{}.sha512", manager(version)), b"<html>"),
            "\"<html>\" is none",
        ),
        ("another controller-manager", with(&manager(version), b"other"), "instead of SHA-512"),
    ]
}

#[tokio::test]
async fn whatever_is_wrong_with_a_mirror_is_one_clear_error_and_the_store_stays_usable() {
    let good = Server::of_files(mirror(&["1.36.2"]));
    for (what, files, expected) in wrong_mirrors() {
        let bad = Server::of_files(files);
        let mut machine = Machine::new(&bad);
        let error = machine.get("1.36").await.unwrap_err();
        assert!(error.contains(expected), "{what}: {error}");
        assert!(error.contains("127.0.0.1") && error.contains("LAGGARD_ASSETS_MIRROR"), "{error}");
        assert_eq!(error.lines().count(), 1, "{what}: {error}");
        assert!(machine.versions().is_empty(), "{what}: {:?}", machine.versions());
        assert_eq!(machine.staged(), 0, "{what}");
        assert!(!Path::new("/tmp/etcd").exists());
        machine.chosen.mirror = Some(good.url(""));
        machine.get("1.36").await.unwrap();
    }
}

#[tokio::test]
async fn a_mirror_that_is_down_is_one_clear_error_and_the_store_stays_usable() {
    let good = Server::of_files(mirror(&["1.36.2"]));
    for (what, expected) in [
        ("breaks off", "broken off"),
        ("stalls", "no byte came for 700ms"),
        ("429", "429"),
        ("500", "500"),
    ] {
        for path in [INDEX, &name("1.36.2"), &manager("1.36.2")] {
            let (files, bad_path) = (mirror(&["1.36.2"]), path.to_owned());
            let bad = Server::start(move |request, _| {
                let Some(body) = files.get(&request.path) else { return Reply::status(404) };
                // Not even a part of it: no try makes headway.
                let reply = Reply::ok(body.clone());
                match what {
                    _ if request.path != bad_path => reply,
                    "breaks off" => reply.broken_off_after(10),
                    "stalls" => reply.stalled_after(10),
                    status => Reply::status(status.parse().unwrap()),
                }
            });
            let mut machine = Machine::new(&bad);
            let error = machine.get("1.36").await.unwrap_err();
            assert!(error.contains("failed to download"), "{what} {path}: {error}");
            assert!(error.contains(expected) && error.contains(path), "{what} {path}: {error}");
            assert!(machine.versions().is_empty() && machine.staged() == 0, "{what} {path}");
            machine.chosen.mirror = Some(good.url(""));
            machine.get("1.36").await.unwrap();
        }
    }
}

#[tokio::test]
async fn offline_and_installed_only_ask_nobody() {
    let server = Server::of_files(mirror(&["1.33.2"]));
    let mut machine = Machine::new(&server);
    machine.chosen.offline = Some(true);
    let error = machine.get("1.33").await.unwrap_err();
    assert!(error.contains("not downloaded: offline mode forbids it"), "{error}");
    let error = machine.get("1.33!").await.unwrap_err();
    assert!(error.contains("offline mode forbids it"), "{error}");
    machine.chosen = Chosen { installed_only: Some(true), ..machine.chosen };
    let error = machine.get("1.33").await.unwrap_err();
    assert!(error.contains("only what is installed was asked for"), "{error}");
    let error = machine.get("latest-on-disk").await.unwrap_err();
    assert!(error.contains("of Kubernetes latest-on-disk"), "{error}");
    assert!(server.requests().is_empty());
}
