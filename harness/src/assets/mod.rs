//! The servers a plane is made of: which version, where found, how obtained.
//!
//! Each binary is looked for in this order: the variable of its own (`TEST_ASSET_ETCD`,
//! `TEST_ASSET_KUBE_APISERVER`, `TEST_ASSET_KUBE_CONTROLLER_MANAGER`, `TEST_ASSET_KUBECTL`), the
//! directory in `KUBEBUILDER_ASSETS`, the directory the caller names, the store that is shared
//! with setup-envtest, and `/usr/local/kubebuilder/bin`. What is found nowhere is downloaded, as
//! setup-envtest does it (kube-controller-manager from Kubernetes' own release), and what cannot be
//! downloaded is built from its Go modules, pinned in files that ship inside this crate. Both end up
//! in the store.
//!
//! A variable that is set and does not name a usable binary is an error, never a reason to look
//! further: the person who set it meant it.
//!
//! | setting | variable | meaning |
//! |---|---|---|
//! | [`Wanted::kubernetes`] | `LAGGARD_KUBERNETES` (planes and the command) | which version: see [`Selector`] |
//! | [`Wanted::offline`] | `LAGGARD_OFFLINE` | open no socket: what is there, or can be built from Go's module cache |
//! | [`Wanted::installed_only`] | `LAGGARD_INSTALLED_ONLY`, `ENVTEST_INSTALLED_ONLY` | neither download nor build |
//! | [`Wanted::mirror`] | `LAGGARD_ASSETS_MIRROR` | a folder that has all that is downloaded |
//! | [`Wanted::index`] | `LAGGARD_ASSETS_INDEX` | another index of releases |
//! | | `LAGGARD_ASSETS_TOKEN` | sent to that mirror or index, and nowhere else |
//! | | `XDG_DATA_HOME` | moves the store |
//!
//! The builder wins over `LAGGARD_…`, and that over setup-envtest's variables. Proxies are those of
//! `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.

mod archive;
mod build;
mod checksum;
mod download;
mod error;
mod event;
mod fetch;
mod index;
mod locate;
mod minor;
mod obtain;
mod selector;
mod settings;
mod store;
#[cfg(test)]
mod testing;
mod version;
mod wanted;

use std::path::{Path, PathBuf};

pub(crate) use checksum::hexadecimal;
pub use error::{AssetError, NotFound, UnknownVersion};
pub use event::Event;
pub use minor::Minor;
pub use selector::Selector;
pub(crate) use store::StoreLock;
pub use store::{Checked, Prune, Removed, Store, Verdict};
pub use version::Version;
pub use wanted::{Known, Listing, Wanted};

/// One of the binaries of a control plane.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Binary {
    /// The database of the API server.
    Etcd,
    /// The API server.
    KubeApiserver,
    /// The controllers of Kubernetes itself, among them the StatefulSet controller.
    KubeControllerManager,
    /// The command-line client; no plane needs it, people do.
    Kubectl,
}

impl Binary {
    /// All of them, in the order in which they are built.
    pub const ALL: [Self; 4] =
        [Self::Etcd, Self::KubeApiserver, Self::KubeControllerManager, Self::Kubectl];

    /// The name of the file, and of the program in Kubernetes' own documentation.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::Kubectl => "kubectl",
        }
    }

    /// The environment variable that names this one binary.
    ///
    /// The rule is controller-runtime's (`pkg/internal/testing/process/bin_path_finder.go`):
    /// upper case, and `_` for whatever is not alphanumeric.
    #[must_use]
    pub fn variable(self) -> String {
        let name = self.name().to_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        format!("TEST_ASSET_{name}")
    }
}

impl std::fmt::Display for Binary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Tags under which the Kubernetes project publishes images; `None` where none is known.
#[cfg(feature = "container")]
#[derive(Debug)]
pub(crate) struct OfficialTags {
    pub(crate) kubernetes: Option<String>,
    pub(crate) etcd: Option<&'static str>,
}

/// The version that a binary says it has, etcd's own for etcd; the error is what is wrong with it.
#[cfg(feature = "container")]
pub(crate) async fn own_version(binary: Binary, path: &Path) -> Result<Version, String> {
    locate::own_version(binary, path).await
}

/// Binaries that were found or built.
#[derive(Clone, Debug, Default)]
pub struct Assets {
    version: Option<Version>,
    paths: Vec<(Binary, PathBuf)>,
}

impl Assets {
    /// The path of one binary.
    ///
    /// # Errors
    ///
    /// [`AssetError::NotWanted`] if it was not among those asked for.
    pub fn path(&self, binary: Binary) -> Result<&Path, AssetError> {
        self.paths
            .iter()
            .find(|(found, _)| *found == binary)
            .map(|(_, path)| path.as_path())
            .ok_or(AssetError::NotWanted { binary })
    }

    /// The version of Kubernetes, where it is known without asking the binary: from the store's
    /// directory, or because a certain version was asked for.
    #[must_use]
    pub fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// Every binary with its path.
    pub fn iter(&self) -> impl Iterator<Item = (Binary, &Path)> {
        self.paths.iter().map(|(binary, path)| (*binary, path.as_path()))
    }

    fn add(&mut self, binary: Binary, path: PathBuf) {
        self.paths.push((binary, path));
        self.paths.sort();
    }

    fn note_version(&mut self, version: Version) {
        self.version.get_or_insert(version);
    }
}

/// The operating system and the processor of this machine, in Go's words.
fn platform() -> (&'static str, &'static str) {
    let os = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    (os, architecture)
}
