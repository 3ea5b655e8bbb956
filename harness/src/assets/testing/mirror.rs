//! A mirror of the tests: an index, archives and binaries that say they are of some version. The
//! tests of the command include this file, too.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha512};

/// What envtest's archives hold.
pub(crate) const ARCHIVED: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];

/// A program that says it is of some version.
pub(crate) fn stand_in(binary: &str, version: &str) -> Vec<u8> {
    let answer = match binary {
        "etcd" => "etcd Version: 3.6.8".to_owned(),
        "kubectl" => format!("Client Version: v{version}"),
        _ => format!("Kubernetes v{version}"),
    };
    // Long enough for a download to break off in the middle of it, and not to compress to nothing.
    let noise: String = (0..2_000_u32).map(|number| sha512(&number.to_le_bytes())).collect();
    format!("#!/bin/sh\necho '{answer}'\nexit\n{noise}").into_bytes()
}

/// An archive as envtest's.
pub(crate) fn packed(contents: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(encoder);
    for (name, content) in contents {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        let path = format!("controller-tools/envtest/{name}");
        builder.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

pub(crate) fn sha512(content: &[u8]) -> String {
    Sha512::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The operating system and the processor of this machine, in Go's words.
pub(crate) fn platform() -> (&'static str, &'static str) {
    let os = std::env::consts::OS;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    (if os == "macos" { "darwin" } else { os }, architecture)
}

/// A mirror's files, of stand-ins: the index, the archives of these versions, and their
/// controller-managers.
pub(crate) fn mirror(versions: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let contents = |version: &&str| {
        let content = |binary: &'static str| (binary, stand_in(binary, version));
        let manager = stand_in("kube-controller-manager", version);
        ((*version).to_owned(), ARCHIVED.map(content).to_vec(), manager)
    };
    mirror_of(versions.iter().map(contents))
}

/// A mirror's files: for each version what goes into its archive, and its controller-manager.
pub(crate) fn mirror_of(
    versions: impl IntoIterator<Item = (String, Vec<(&'static str, Vec<u8>)>, Vec<u8>)>,
) -> BTreeMap<String, Vec<u8>> {
    let (os, architecture) = platform();
    let mut files = BTreeMap::new();
    let mut index = "releases:\n".to_owned();
    for (version, archived, manager) in versions {
        let name = format!("envtest-v{version}-{os}-{architecture}.tar.gz");
        let content = packed(&archived);
        index.push_str(&format!(
            "  v{version}:\n    {name}:\n      hash: {}\n      selfLink: https://example.invalid/{name}\n",
            sha512(&content)
        ));
        files.insert(format!("/{name}"), content);
        let path = format!("/release/v{version}/bin/{os}/{architecture}/kube-controller-manager");
        files.insert(format!("{path}.sha512"), sha512(&manager).into_bytes());
        files.insert(path, manager);
    }
    files.insert("/envtest-releases.yaml".to_owned(), index.into_bytes());
    files
}
