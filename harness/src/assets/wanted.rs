//! What a caller wants, and the ways to get it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

#[cfg(feature = "container")]
use super::OfficialTags;
use super::error::{NotFound, UnknownVersion};
use super::event::{Event, OnEvent};
use super::fetch::Pace;
use super::obtain::{Lazy, Obtain};
use super::settings::{Chosen, Reach, Settings};
use super::store::Store;
use super::version::PINNED;
use super::{AssetError, Assets, Binary, Selector, Version, build};

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
    pub(super) binaries: Vec<Binary>,
    pub(super) directory: Option<PathBuf>,
    chosen: Chosen,
    limit: Duration,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            kubernetes: None,
            binaries: Binary::ALL.to_vec(),
            directory: None,
            chosen: Chosen::default(),
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

    /// A version, such as `1.37` (any patch of it) or `1.37.2` (exactly); [`Selector`] has all forms.
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

    /// Whether to open no socket at all: what is there will do, or what Go can build from its module
    /// cache. Default: what `LAGGARD_OFFLINE` says, else no.
    pub fn offline(mut self, offline: bool) -> Self {
        self.chosen.offline = Some(offline);
        self
    }

    /// Whether only what is on this machine will do, as setup-envtest's `-i`. Default: what
    /// `LAGGARD_INSTALLED_ONLY` or `ENVTEST_INSTALLED_ONLY` says, else no.
    pub fn installed_only(mut self, installed_only: bool) -> Self {
        self.chosen.installed_only = Some(installed_only);
        self
    }

    /// The URL of the index of releases; archives are where it says. Default: what
    /// `LAGGARD_ASSETS_INDEX` says, else controller-tools' own.
    pub fn index(mut self, url: impl Into<String>) -> Self {
        self.chosen.index = Some(url.into());
        self
    }

    /// The URL of a folder that has all that is downloaded: `envtest-releases.yaml`, the archives
    /// that it names, and `release/v1.37.2/bin/linux/amd64/kube-controller-manager` (and so on) with
    /// its `.sha512`, as dl.k8s.io has it. Default: what `LAGGARD_ASSETS_MIRROR` says, else none.
    ///
    /// Where a mirror or an index is named and cannot be reached, that is an error.
    pub fn mirror(mut self, url: impl Into<String>) -> Self {
        self.chosen.mirror = Some(url.into());
        self
    }

    /// How long obtaining may take, the wait for another process included; default 30
    /// minutes, wall clock.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Finds the binaries, or downloads or builds those that are nowhere.
    ///
    /// `on_event` is called as things happen, from the task that polls this future. Dropping the
    /// future ends what it had begun, compilers included, and leaves the store as it was.
    ///
    /// # Errors
    ///
    /// [`AssetError::BadVersion`] and [`AssetError::UnknownVersion`] for a version that is none or
    /// that is nowhere to be had; [`AssetError::BadSource`] for a variable, directory or URL that
    /// was named and cannot be used; [`AssetError::NotFound`] where there is neither a binary nor a
    /// way to one; [`AssetError::Download`], [`AssetError::WrongContent`], [`AssetError::Build`],
    /// [`AssetError::Store`] and [`AssetError::TimedOut`] as they say.
    pub async fn get(&self, on_event: impl Fn(Event) + Send + Sync) -> Result<Assets, AssetError> {
        let on_event = traced(on_event);
        self.within_limit(async {
            let settings = self.settings()?;
            let store = Store::of_this_user()?;
            self.obtain(&settings, store.as_ref(), &on_event).run().await
        })
        .await
    }

    /// Builds the binaries from their Go modules into the store, wherever else there are some; those
    /// that are in the store and intact stay.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn build(
        &self,
        on_event: impl Fn(Event) + Send + Sync,
    ) -> Result<Assets, AssetError> {
        let on_event = traced(on_event);
        self.within_limit(async {
            let selector = self.selector()?;
            let settings = self.settings()?;
            let store = Store::of_this_user()?.ok_or_else(AssetError::no_home)?;
            let pinned = selector.pinned().ok_or_else(|| {
                AssetError::UnknownVersion(Box::new(UnknownVersion {
                    wanted: selector.to_string(),
                    buildable: PINNED.iter().map(|pinned| pinned.version).collect(),
                    installed: store.versions(),
                    offered: Vec::new(),
                    why_not_downloaded: "a build was asked for".to_owned(),
                }))
            })?;
            let missing = store.missing(&pinned.version, &self.binaries);
            if !missing.is_empty() {
                let no_go = |why_not_built| {
                    AssetError::NotFound(Box::new(NotFound {
                        binaries: missing.clone(),
                        version: pinned.version.to_string(),
                        looked_at: vec![store.path().display().to_string()],
                        why_not_downloaded: "a build was asked for".to_owned(),
                        why_not_built,
                    }))
                };
                // Where a build is asked for, what it needs may be downloaded.
                let reach = settings.reach.max(Reach::Offline);
                build::into_store(&store, pinned, &missing, reach, no_go, &on_event).await?;
            }
            let mut assets = Assets::default();
            for &binary in &self.binaries {
                assets.add(binary, store.file(&pinned.version, binary));
            }
            assets.note_version(pinned.version);
            Ok(assets)
        })
        .await
    }

    /// All versions that will do: in the store, in the index, and those that can be built; newest
    /// first. Without a version, all there are.
    ///
    /// # Errors
    ///
    /// [`AssetError::BadVersion`], [`AssetError::BadSource`] and [`AssetError::TimedOut`]. That the
    /// index cannot be asked is no error, but [`Listing::index_problem`].
    pub async fn list(
        &self,
        on_event: impl Fn(Event) + Send + Sync,
    ) -> Result<Listing, AssetError> {
        let on_event = traced(on_event);
        self.within_limit(async {
            let selector = self.selector()?;
            let settings = self.settings()?;
            let store = Store::of_this_user()?;
            let installed = store.as_ref().map(Store::installed).unwrap_or_default();
            let mut index_problem = None;
            let mut offered = Vec::new();
            if settings.reach == Reach::Network && !selector.is_on_disk() {
                let obtain = self.obtain(&settings, store.as_ref(), &on_event);
                match obtain.index(&Lazy::new(&obtain)).await {
                    Ok(index) => offered.extend(index.versions()),
                    Err(problem) => index_problem = Some(problem.into_error().to_string()),
                }
            }
            let can_build = settings.reach > Reach::Installed && !selector.is_on_disk();
            let pinned: Vec<_> =
                PINNED.iter().filter(|_| can_build).map(|pinned| pinned.version).collect();
            let mut versions: Vec<Version> = installed
                .iter()
                .map(|(version, _)| *version)
                .chain(offered.iter().copied())
                .chain(pinned.iter().copied())
                .filter(|version| selector.allows(version))
                .collect();
            versions.sort_unstable_by(|a, b| b.cmp(a));
            versions.dedup();
            let known = versions.into_iter().map(|version| Known {
                version,
                installed: installed
                    .iter()
                    .find(|(other, _)| *other == version)
                    .map(|(_, binaries)| binaries.clone())
                    .unwrap_or_default(),
                can_be_downloaded: offered.contains(&version),
                can_be_built: pinned.contains(&version),
            });
            Ok(Listing { versions: known.collect(), index_problem })
        })
        .await
    }

    /// The version as it was given.
    pub(crate) fn version(&self) -> Option<&str> {
        self.kubernetes.as_deref()
    }

    pub(crate) fn with_version(mut self, version: String) -> Self {
        self.kubernetes = Some(version);
        self
    }

    pub(super) fn selector(&self) -> Result<Selector, AssetError> {
        Selector::parse(self.kubernetes.as_deref())
    }

    fn settings(&self) -> Result<Settings, AssetError> {
        Settings::resolve(&self.chosen, &environment)
    }

    fn obtain<'a>(
        &'a self,
        settings: &'a Settings,
        store: Option<&'a Store>,
        on_event: OnEvent<'a>,
    ) -> Obtain<'a> {
        Obtain {
            wanted: self,
            settings,
            store,
            pace: Pace::default(),
            variable: &environment,
            on_event,
        }
    }

    async fn within_limit<T>(
        &self,
        work: impl Future<Output = Result<T, AssetError>>,
    ) -> Result<T, AssetError> {
        match tokio::time::timeout(self.limit, work).await {
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
        let selector = self.selector()?;
        let kubernetes = match selector.exact() {
            Some(version) => Some(version),
            None => selector.pinned().map(|pinned| pinned.version),
        };
        // Any API server works with any etcd that is not older than its own.
        let etcd = selector.pinned().or(PINNED.last()).map(|pinned| pinned.etcd_image);
        Ok(OfficialTags { kubernetes: kubernetes.map(|version| format!("v{version}")), etcd })
    }
}

/// What there is to choose from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Listing {
    /// Newest first.
    pub versions: Vec<Known>,
    /// Why the index could not be asked, if it could not.
    pub index_problem: Option<String>,
}

/// One version, and how it can be had.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Known {
    /// Which.
    pub version: Version,
    /// Which binaries of it the store has.
    pub installed: Vec<Binary>,
    /// Whether the index has it for this kind of machine.
    pub can_be_downloaded: bool,
    /// Whether its Go modules are pinned in this crate.
    pub can_be_built: bool,
}

fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Events as tracing sees them, too.
fn traced(on_event: impl Fn(Event) + Send + Sync) -> impl Fn(Event) + Send + Sync {
    move |event: Event| {
        match &event {
            Event::Progress { .. } => tracing::trace!(target: "laggard::assets", ?event),
            Event::Damaged { .. } | Event::NotDownloaded { .. } => {
                tracing::warn!(target: "laggard::assets", ?event);
            }
            _ => tracing::info!(target: "laggard::assets", ?event),
        }
        on_event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gets_builds_and_lists_can_be_spawned() {
        fn can_be_spawned(_: impl Send) {}
        let wanted = Wanted::newest();
        can_be_spawned(wanted.get(|_| ()));
        can_be_spawned(wanted.build(|_| ()));
        can_be_spawned(wanted.list(|_| ()));
    }
}
