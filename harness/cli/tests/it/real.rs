//! The real servers, packed as their projects publish them and downloaded from a mirror.

use std::fs;
use std::process::Command;

use laggard::assets::{Binary, Wanted};

use crate::machine::{Machine, text};
use crate::mirror::mirror_of;
use crate::server::Server;

#[tokio::test]
async fn the_real_servers_come_through_a_mirror_as_they_are() {
    let assets = Wanted::newest()
        .installed_only(true)
        .get(|_| ())
        .await
        .expect("`make assets` gets the servers that this test packs");
    let read = |binary: Binary| fs::read(assets.path(binary).unwrap()).unwrap();
    let version = {
        let output = Command::new(assets.path(Binary::KubeApiserver).unwrap())
            .arg("--version")
            .output()
            .unwrap();
        text(&output.stdout).trim().strip_prefix("Kubernetes v").unwrap().to_owned()
    };
    let archived = [Binary::Etcd, Binary::KubeApiserver, Binary::Kubectl]
        .map(|binary| (binary.name(), read(binary)))
        .to_vec();
    let manager = read(Binary::KubeControllerManager);
    let server = Server::of_files(mirror_of([(version.clone(), archived, manager)]));

    let machine = Machine::new();
    let output = machine.get(&version, &server).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let downloaded = text(&output.stdout);
    for ((binary, original), path) in assets.iter().zip(downloaded.lines()) {
        assert!(path.ends_with(&format!("/{binary}")), "{path}");
        assert!(fs::read(original).unwrap() == fs::read(path).unwrap(), "{binary} is another");
    }
    assert_eq!(downloaded.lines().count(), 4);
    let verified = machine.laggard(&["assets", "verify"]).output().unwrap();
    assert!(verified.status.success(), "{}", text(&verified.stdout));
}
