//! The servers a plane is made of: which version, where found, how obtained.
//!
//! Each binary is looked for in this order: the variable of its own (`TEST_ASSET_ETCD`,
//! `TEST_ASSET_KUBE_APISERVER`, `TEST_ASSET_KUBE_CONTROLLER_MANAGER`, `TEST_ASSET_KUBECTL`), the
//! directory in `KUBEBUILDER_ASSETS`, the directory the caller names, the store that is shared
//! with setup-envtest, and `/usr/local/kubebuilder/bin`. What is found nowhere is built from its
//! Go modules, pinned in files that ship inside this crate, and kept in the store.
//!
//! A variable that is set and does not name a usable binary is an error, never a reason to look
//! further: the person who set it meant it.

mod build;
mod error;
mod locate;
mod store;
mod version;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::AssetError;
pub use version::Version;

use locate::Search;
use store::Store;

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

/// What is going on while assets are obtained; the library prints nothing itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A binary was found.
    Found {
        /// Which.
        binary: Binary,
        /// Where.
        path: PathBuf,
    },
    /// Another process obtains the same binaries; this one waits for it.
    Waiting {
        /// The version that both want.
        version: Version,
        /// The process that has the lock, as far as it said so.
        holder: Option<u32>,
    },
    /// A build has begun.
    Building {
        /// What is being built.
        binary: Binary,
        /// Its version; etcd's own for etcd.
        version: String,
        /// Which of the builds this is, from 1.
        number: usize,
        /// How many builds there are.
        of: usize,
        /// How long it takes on two cores with nothing cached, as measured by this project.
        usual: Duration,
    },
    /// A build has ended well.
    Built {
        /// What was built.
        binary: Binary,
        /// How long it took.
        took: Duration,
    },
}

/// Which binaries are wanted.
///
/// # Example
///
/// ```no_run
/// # async fn example() -> Result<(), laggard::assets::AssetError> {
/// use laggard::assets::{Binary, Wanted};
///
/// let assets = Wanted::kubernetes("1.37")
///     .binaries([Binary::Etcd, Binary::KubeApiserver])
///     .get(|event| eprintln!("{event:?}"))
///     .await?;
/// println!("{}", assets.path(Binary::KubeApiserver)?.display());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is looked for until `get` is called"]
pub struct Wanted {
    kubernetes: Option<String>,
    binaries: Vec<Binary>,
    directory: Option<PathBuf>,
    limit: Duration,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            kubernetes: None,
            binaries: Binary::ALL.to_vec(),
            directory: None,
            limit: Duration::from_secs(30 * 60),
        }
    }
}

impl Wanted {
    /// The newest Kubernetes that this crate knows; a binary that the environment names is then
    /// taken whatever its version.
    pub fn newest() -> Self {
        Self::default()
    }

    /// A version: `1.37` (any patch of it) or `1.37.2` (exactly).
    pub fn kubernetes(version: impl Into<String>) -> Self {
        Self { kubernetes: Some(version.into()), ..Self::default() }
    }

    /// Only these binaries; default all.
    pub fn binaries(mut self, binaries: impl IntoIterator<Item = Binary>) -> Self {
        self.binaries = binaries.into_iter().collect();
        self.binaries.sort_unstable();
        self.binaries.dedup();
        self
    }

    /// A directory to look in before the store.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// How long obtaining may take, the wait for another process's build included; default 30
    /// minutes, wall clock.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Finds the binaries, or builds those that are nowhere.
    ///
    /// `on_event` is called as things happen, from the task that polls this future. Dropping the
    /// future ends a build that it had begun, compilers included, and leaves the store as it was.
    ///
    /// # Errors
    ///
    /// [`AssetError::BadVersion`] and [`AssetError::UnknownVersion`] for a version that is none or
    /// that nothing here can build and nothing on this machine provides;
    /// [`AssetError::BadSource`] for a variable or directory that was named and cannot be used;
    /// [`AssetError::NotFound`] where there is neither a binary nor Go; [`AssetError::Build`],
    /// [`AssetError::Store`] and [`AssetError::TimedOut`] as they say.
    pub async fn get(&self, on_event: impl Fn(Event) + Send + Sync) -> Result<Assets, AssetError> {
        let on_event = |event: Event| {
            tracing::info!(target: "laggard::assets", ?event);
            on_event(event);
        };
        match tokio::time::timeout(self.limit, self.obtain(&on_event)).await {
            Ok(result) => result,
            Err(_) => Err(AssetError::TimedOut { limit: self.limit }),
        }
    }

    /// The binaries that are wanted.
    #[cfg(feature = "container")]
    pub(crate) fn names(&self) -> &[Binary] {
        &self.binaries
    }

    /// The tags of the official images that would do.
    #[cfg(feature = "container")]
    pub(crate) fn official_tags(&self) -> Result<OfficialTags, AssetError> {
        let requirement = version::Requirement::parse(self.kubernetes.as_deref())?;
        let kubernetes = match requirement {
            version::Requirement::Exact(version) => Some(version),
            other => other.pinned().map(|pinned| pinned.version),
        };
        // Any API server works with any etcd that is not older than its own.
        let etcd = requirement.pinned().or(version::PINNED.last()).map(|pinned| pinned.etcd_image);
        Ok(OfficialTags { kubernetes: kubernetes.map(|version| format!("v{version}")), etcd })
    }

    async fn obtain(&self, on_event: &(dyn Fn(Event) + Send + Sync)) -> Result<Assets, AssetError> {
        let requirement = version::Requirement::parse(self.kubernetes.as_deref())?;
        let store = Store::of_this_user()?;
        let mut search = Search::new(&requirement, self.directory.as_deref(), store.as_ref());
        let (mut assets, missing) = search.find(&self.binaries, on_event).await?;
        if missing.is_empty() {
            return Ok(assets);
        }
        let Some(store) = &store else {
            return Err(AssetError::no_home());
        };
        let directory =
            build::into_store(store, &requirement, &missing, search.looked_at(), on_event).await?;
        for binary in missing {
            assets.add(binary, directory.join(binary.name()));
        }
        assets.note_version(requirement.buildable_version()?);
        Ok(assets)
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
