//! What the tests of this module share.

pub(crate) mod server;

use std::collections::BTreeMap;
use std::io::Write as _;

use sha2::{Digest as _, Sha512};

use super::checksum::hexadecimal;
use super::{Binary, platform};

/// A program that says it is of some version.
pub(crate) fn stand_in(binary: Binary, version: &str) -> Vec<u8> {
    let answer = match binary {
        Binary::Etcd => "etcd Version: 3.6.8".to_owned(),
        Binary::Kubectl => format!("Client Version: v{version}"),
        _ => format!("Kubernetes v{version}"),
    };
    // Long enough for a download to break off in the middle of it.
    format!("#!/bin/sh\necho '{answer}'\nexit\n{}", noise()).into_bytes()
}

/// Text that does not compress to nothing.
fn noise() -> String {
    (0..2_000_u32).map(|number| hexadecimal(&Sha512::digest(number.to_le_bytes()))).collect()
}

/// An archive as envtest's, of programs that say they are of some version.
pub(crate) fn archive(version: &str) -> Vec<u8> {
    archive_of(&[Binary::Etcd, Binary::KubeApiserver, Binary::Kubectl], version)
}

pub(crate) fn archive_of(binaries: &[Binary], version: &str) -> Vec<u8> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(encoder);
    for binary in binaries {
        let content = stand_in(*binary, version);
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        let path = format!("controller-tools/envtest/{binary}");
        builder.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    let mut encoder = builder.into_inner().unwrap();
    encoder.flush().unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn sha512(content: &[u8]) -> String {
    hexadecimal(&Sha512::digest(content))
}

/// A mirror's files: the index, the archives of these versions, and their controller-managers.
pub(crate) fn mirror(versions: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let (os, architecture) = platform();
    let mut files = BTreeMap::new();
    let mut index = "releases:\n".to_owned();
    for version in versions {
        let name = format!("envtest-v{version}-{os}-{architecture}.tar.gz");
        let content = archive(version);
        index.push_str(&format!(
            "  v{version}:\n    {name}:\n      hash: {}\n      selfLink: https://example.invalid/{name}\n",
            sha512(&content)
        ));
        files.insert(format!("/{name}"), content);
        let manager = stand_in(Binary::KubeControllerManager, version);
        let path = format!("/release/v{version}/bin/{os}/{architecture}/kube-controller-manager");
        files.insert(format!("{path}.sha512"), sha512(&manager).into_bytes());
        files.insert(path, manager);
    }
    files.insert("/envtest-releases.yaml".to_owned(), index.into_bytes());
    files
}
