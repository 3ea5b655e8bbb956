//! What can go wrong while the servers are looked for or built.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{Binary, Version};

/// Why the binaries of a control plane could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssetError {
    /// The text is no version.
    #[error(
        "{text:?} is no Kubernetes version; write \"1.37\" (any patch), \"1.37.2\" (this one), \"~1.37.1\" (this patch or \
         a later one), \"<1.37\", \"latest\" or \"latest-on-disk\"; a trailing ! asks the index for a newer one"
    )]
    BadVersion {
        /// As it was given.
        text: String,
    },
    /// A version that is neither on this machine nor can be downloaded or built.
    #[error("{0}")]
    UnknownVersion(Box<UnknownVersion>),
    /// A place that was named explicitly, and cannot be used.
    #[error("{source_name} cannot be used: {problem}; correct it or unset it")]
    BadSource {
        /// The variable or setting.
        source_name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no binary, and none can be had.
    #[error("{0}")]
    NotFound(Box<NotFound>),
    /// A download did not come, however often it was tried.
    #[error(
        "failed to download {what}: {problem}; \
         LAGGARD_ASSETS_MIRROR names another place, LAGGARD_OFFLINE=1 does without"
    )]
    Download {
        /// What was being downloaded.
        what: String,
        /// From where, and what happened last.
        problem: String,
    },
    /// What was downloaded is not what it should be. Nothing of it was kept.
    #[error(
        "refused {what}: {problem}; nothing of it was kept, try again, or name another place in \
         LAGGARD_ASSETS_MIRROR"
    )]
    WrongContent {
        /// What was downloaded.
        what: String,
        /// From where, and what is wrong with it.
        problem: String,
    },
    /// A build ended badly.
    #[error(
        "failed to build {binary} from its Go modules: {problem}\n  command: {command}\n  last output:\n{output}"
    )]
    Build {
        /// What was being built.
        binary: Binary,
        /// How it ended.
        problem: String,
        /// What was run.
        command: String,
        /// The last lines that the build printed, indented.
        output: String,
    },
    /// The store could not be read or written.
    #[error(
        "failed to {attempt} in the asset store at {}; \
         XDG_DATA_HOME moves the store, KUBEBUILDER_ASSETS goes around it",
        path.display()
    )]
    Store {
        /// What was attempted.
        attempt: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The time was up.
    #[error(
        "the servers could not be had within {limit:?}; `laggard assets get` shows what takes so long"
    )]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// A binary that was not among those asked for.
    #[error("{binary} was not asked for; add it to `binaries`")]
    NotWanted {
        /// Which.
        binary: Binary,
    },
}

impl AssetError {
    pub(crate) fn no_home() -> Self {
        Self::BadSource {
            source_name: "the asset store".to_owned(),
            problem: "neither XDG_DATA_HOME nor HOME says where it is".to_owned(),
        }
    }
}

/// A version that cannot be had, and those that can.
#[derive(Debug)]
#[non_exhaustive]
pub struct UnknownVersion {
    /// What was asked for.
    pub wanted: String,
    /// What can be built.
    pub buildable: Vec<Version>,
    /// What is in the store.
    pub installed: Vec<Version>,
    /// What the index has for this kind of machine; empty where it was not asked.
    pub offered: Vec<Version>,
    /// Why it was not downloaded.
    pub why_not_downloaded: String,
}

impl fmt::Display for UnknownVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, buildable, installed, offered, why_not_downloaded } = self;
        writeln!(
            f,
            "Kubernetes {wanted} is not on this machine, and can be neither downloaded nor built"
        )?;
        writeln!(f, "  in the store: {}", list(installed))?;
        writeln!(f, "  can be built: {}", list(buildable))?;
        if !offered.is_empty() {
            writeln!(f, "  can be downloaded: {}", list(offered))?;
        }
        writeln!(f, "  not downloaded: {why_not_downloaded}")?;
        write!(
            f,
            "  ask for one of these, or point KUBEBUILDER_ASSETS at a directory that has {wanted}"
        )
    }
}

/// Binaries that are not there, every place that was looked at, and why none was obtained.
#[derive(Debug)]
#[non_exhaustive]
pub struct NotFound {
    /// What is missing.
    pub binaries: Vec<Binary>,
    /// The version that was looked for.
    pub version: String,
    /// Every place that was looked at, with what was found there.
    pub looked_at: Vec<String>,
    /// Why it was not downloaded.
    pub why_not_downloaded: String,
    /// Why it was not built.
    pub why_not_built: String,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { binaries, version, looked_at, why_not_downloaded, why_not_built } = self;
        let names = list(binaries);
        writeln!(f, "no {names} of Kubernetes {version} on this machine\n  looked at:")?;
        for place in looked_at {
            writeln!(f, "    {place}")?;
        }
        writeln!(f, "  not downloaded: {why_not_downloaded}")?;
        writeln!(f, "  not built: {why_not_built}")?;
        write!(
            f,
            "  three ways out:\n    \
             1. with a network, or Go 1.26 and its module cache: `laggard assets get {version}`\n    \
             2. `setup-envtest use {version}` fetches it into the same store (kube-controller-manager excepted)\n    \
             3. point KUBEBUILDER_ASSETS, or TEST_ASSET_… for one binary, at what you have"
        )
    }
}

fn list(items: &[impl fmt::Display]) -> String {
    match items {
        [] => "none".to_owned(),
        items => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}
