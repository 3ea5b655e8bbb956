//! What can go wrong while the servers are looked for or built.

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
    #[error("{}", unknown(wanted, buildable, installed, offered, why_not_downloaded))]
    UnknownVersion {
        /// What was asked for.
        wanted: String,
        /// What can be built.
        buildable: Vec<Version>,
        /// What is in the store.
        installed: Vec<Version>,
        /// What the index has for this kind of machine; empty where it was not asked.
        offered: Vec<Version>,
        /// Why it was not downloaded.
        why_not_downloaded: String,
    },
    /// A place that was named explicitly, and cannot be used.
    #[error("{source_name} cannot be used: {problem}; correct it or unset it")]
    BadSource {
        /// The variable or setting.
        source_name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no binary, and none can be had.
    #[error("{}", not_found(binaries, version, looked_at, why_not_downloaded, why_not_built))]
    NotFound {
        /// What is missing.
        binaries: Vec<Binary>,
        /// The version that was looked for.
        version: String,
        /// Every place that was looked at, with what was found there.
        looked_at: Vec<String>,
        /// Why it was not downloaded.
        why_not_downloaded: String,
        /// Why it was not built.
        why_not_built: String,
    },
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

fn unknown(
    wanted: &str,
    buildable: &[Version],
    installed: &[Version],
    offered: &[Version],
    why_not_downloaded: &str,
) -> String {
    let list = |versions: &[Version]| match versions {
        [] => "none".to_owned(),
        versions => {
            let texts: Vec<_> = versions.iter().map(ToString::to_string).collect();
            texts.join(", ")
        }
    };
    let mut text = format!(
        "Kubernetes {wanted} is not on this machine, and can be neither downloaded nor built\n  \
         in the store: {}\n  can be built: {}\n",
        list(installed),
        list(buildable),
    );
    if !offered.is_empty() {
        text.push_str(&format!("  can be downloaded: {}\n", list(offered)));
    }
    text.push_str(&format!(
        "  not downloaded: {why_not_downloaded}\n  \
         ask for one of these, or point KUBEBUILDER_ASSETS at a directory that has {wanted}"
    ));
    text
}

fn not_found(
    binaries: &[Binary],
    version: &str,
    looked_at: &[String],
    why_not_downloaded: &str,
    why_not_built: &str,
) -> String {
    let names: Vec<_> = binaries.iter().map(|binary| binary.name()).collect();
    format!(
        "no {} of Kubernetes {version} on this machine\n  looked at:\n    {}\n  \
         not downloaded: {why_not_downloaded}\n  not built: {why_not_built}\n  \
         three ways out:\n    1. with a network, or Go 1.26 and its module cache: \
         `laggard assets get {version}`\n    \
         2. `setup-envtest use {version}` fetches it into the same store (kube-controller-manager excepted)\n    \
         3. point KUBEBUILDER_ASSETS, or TEST_ASSET_… for one binary, at what you have",
        names.join(", "),
        looked_at.join("\n    "),
    )
}
