//! What can go wrong while the servers are looked for or built.

use std::path::PathBuf;
use std::time::Duration;

use super::Binary;

/// Why the binaries of a control plane could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssetError {
    /// The text is no version.
    #[error(
        "{text:?} is no Kubernetes version; write a minor such as \"1.37\" or an exact version such as \"1.37.2\""
    )]
    BadVersion {
        /// As it was given.
        text: String,
    },
    /// A version that is neither on this machine nor can be built.
    #[error(
        "Kubernetes {wanted} is not on this machine, and this version of laggard can build only {}; \
         point KUBEBUILDER_ASSETS at a directory that has it, or ask for one of those",
        known.join(", ")
    )]
    UnknownVersion {
        /// What was asked for.
        wanted: String,
        /// What can be built.
        known: Vec<String>,
    },
    /// A place that was named explicitly, and cannot be used.
    #[error("{source_name} cannot be used: {problem}; correct it or unset it")]
    BadSource {
        /// The variable or setting.
        source_name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no binary, and nothing to build one with.
    #[error("{}", not_found(binaries, version, looked_at, why_not_built))]
    NotFound {
        /// What is missing.
        binaries: Vec<Binary>,
        /// The version that was looked for.
        version: String,
        /// Every place that was looked at, with what was found there.
        looked_at: Vec<String>,
        /// Why it was not built.
        why_not_built: String,
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

fn not_found(binaries: &[Binary], version: &str, looked_at: &[String], why: &str) -> String {
    let names: Vec<_> = binaries.iter().map(|binary| binary.name()).collect();
    format!(
        "no {} of Kubernetes {version} on this machine\n  looked at:\n    {}\n  not built: {why}\n  \
         three ways out:\n    1. install Go 1.26 or newer, and `laggard assets get` builds it (about 5 minutes)\n    \
         2. `setup-envtest use {version}` fetches it into the same store (kube-controller-manager excepted)\n    \
         3. point KUBEBUILDER_ASSETS, or TEST_ASSET_… for one binary, at what you have",
        names.join(", "),
        looked_at.join("\n    "),
    )
}
