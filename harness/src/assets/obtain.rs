//! The order in which binaries are looked for, downloaded and built.

use std::ffi::OsString;

use super::download::{self, Problem};
use super::error::{NotFound, UnknownVersion};
use super::event::{Event, OnEvent};
use super::fetch::{FetchError, Fetcher, Pace};
use super::index::Index;
use super::locate::{Places, Search};
use super::settings::{Reach, Settings};
use super::store::Store;
use super::version::{PINNED, Pinned};
use super::{AssetError, Assets, Binary, Selector, Version, Wanted, build};

#[cfg(test)]
mod tests;

/// One call of [`Wanted::get`].
pub(crate) struct Obtain<'a> {
    pub(crate) wanted: &'a Wanted,
    pub(crate) settings: &'a Settings,
    pub(crate) store: Option<&'a Store>,
    pub(crate) pace: Pace,
    /// The environment.
    pub(crate) variable: &'a (dyn Fn(&str) -> Option<OsString> + Send + Sync),
    pub(crate) on_event: OnEvent<'a>,
}

impl Obtain<'_> {
    pub(crate) async fn run(&self) -> Result<Assets, AssetError> {
        let asked = self.wanted.selector()?;
        let fetcher = Lazy::new(self);
        let mut selector = asked;
        if asked.asks_index() && self.settings.reach == Reach::Network {
            // Who named a place meant what is there.
            let mut search = self.search(&asked);
            let (assets, missing) =
                search.find(&self.wanted.binaries, Places::Named, self.on_event).await?;
            if missing.is_empty() {
                return Ok(assets);
            }
            match self.index(&fetcher).await {
                Ok(index) => {
                    if let Some((newest, _)) = index.newest(&asked) {
                        selector = Selector::exactly(newest);
                    }
                }
                Err(error) => self.go_on_without(error)?,
            }
        }
        let mut search = self.search(&selector);
        let (assets, missing) =
            search.find(&self.wanted.binaries, Places::All, self.on_event).await?;
        if missing.is_empty() {
            return Ok(assets);
        }
        let looked_at = search.looked_at().to_vec();
        if self.settings.reach == Reach::Installed || selector.is_on_disk() {
            return Err(AssetError::NotFound(Box::new(NotFound {
                binaries: missing,
                version: selector.to_string(),
                looked_at,
                why_not_downloaded: "only what is installed was asked for".to_owned(),
                why_not_built: "only what is installed was asked for".to_owned(),
            })));
        }
        self.obtain(&fetcher, &asked, &selector, assets, missing, looked_at).await
    }

    async fn obtain(
        &self,
        fetcher: &Lazy<'_>,
        asked: &Selector,
        selector: &Selector,
        mut assets: Assets,
        mut missing: Vec<Binary>,
        looked_at: Vec<String>,
    ) -> Result<Assets, AssetError> {
        let Some(store) = self.store else {
            return Err(AssetError::no_home());
        };
        let mut why_not_downloaded = "offline mode forbids it".to_owned();
        let mut offered = Vec::new();
        let mut chosen = assets.version().copied();
        if self.settings.reach == Reach::Network {
            let downloading = self.download(fetcher, store, selector, chosen, &missing).await;
            match downloading {
                Ok(Downloaded::Version(version, left)) => {
                    chosen = Some(version);
                    assets.note_version(version);
                    for &binary in missing.iter().filter(|binary| !left.contains(binary)) {
                        assets.add(binary, store.file(&version, binary));
                    }
                    missing = left;
                    why_not_downloaded = format!("it is not published for version {version}");
                }
                Ok(Downloaded::NotOffered(versions)) => {
                    why_not_downloaded = format!("the index has no version {selector}");
                    offered = versions;
                }
                Err(problem) => {
                    why_not_downloaded = error_text(problem.error());
                    self.go_on_without(problem)?;
                }
            }
        }
        if missing.is_empty() {
            return Ok(assets);
        }
        let Some(pinned) = buildable(asked, chosen) else {
            return Err(AssetError::UnknownVersion(Box::new(UnknownVersion {
                wanted: selector.to_string(),
                buildable: PINNED.iter().map(|pinned| pinned.version).collect(),
                installed: store.versions(),
                offered,
                why_not_downloaded,
            })));
        };
        let no_go = |why_not_built| {
            AssetError::NotFound(Box::new(NotFound {
                binaries: missing.clone(),
                version: pinned.version.to_string(),
                looked_at,
                why_not_downloaded,
                why_not_built,
            }))
        };
        build::into_store(store, pinned, &missing, self.settings.reach, no_go, self.on_event)
            .await?;
        for &binary in &missing {
            assets.add(binary, store.file(&pinned.version, binary));
        }
        assets.note_version(pinned.version);
        Ok(assets)
    }

    /// `found` is the version of what is there already: what is missing should be of the same.
    async fn download(
        &self,
        fetcher: &Lazy<'_>,
        store: &Store,
        selector: &Selector,
        found: Option<Version>,
        missing: &[Binary],
    ) -> Result<Downloaded, Problem> {
        let Some(fetcher_of_all) = fetcher.get()? else {
            return Ok(Downloaded::NotOffered(Vec::new()));
        };
        // kube-controller-manager is in no archive, so no index need be asked about it.
        if let (Some(version), [Binary::KubeControllerManager]) = (found, missing) {
            let left =
                download::into_store(store, fetcher_of_all, &version, None, missing, self.on_event)
                    .await?;
            return Ok(Downloaded::Version(version, left));
        }
        let index = self.index(fetcher).await?;
        let same = found.map(Selector::exactly);
        let newest = same.and_then(|same| index.newest(&same)).or_else(|| index.newest(selector));
        let Some((version, archive)) = newest else {
            return Ok(Downloaded::NotOffered(index.versions().collect()));
        };
        let left = download::into_store(
            store,
            fetcher_of_all,
            &version,
            Some(archive),
            missing,
            self.on_event,
        )
        .await?;
        Ok(Downloaded::Version(version, left))
    }

    /// The index, asked once.
    pub(crate) async fn index<'f>(&self, fetcher: &'f Lazy<'_>) -> Result<&'f Index, Problem> {
        let ask = async {
            let Some(fetcher) = fetcher.get()? else {
                return Err(Problem::Unreachable(AssetError::Download {
                    what: "the index of releases".to_owned(),
                    problem: "offline mode forbids it".to_owned(),
                }));
            };
            let url = self.settings.index();
            Index::fetch(fetcher)
                .await
                .map_err(|error: FetchError| Problem::of(error, "the index of releases", url))
        };
        fetcher.index.get_or_try_init(|| ask).await
    }

    /// Takes note of a download that did not work out, unless that is the end of it: where somebody
    /// named a place, nothing else will do.
    fn go_on_without(&self, problem: Problem) -> Result<(), AssetError> {
        match problem {
            Problem::Unreachable(error) if !self.settings.is_named => {
                (self.on_event)(Event::NotDownloaded { problem: error_text(&error) });
                Ok(())
            }
            Problem::Unreachable(error) | Problem::Serious(error) => Err(error),
        }
    }

    fn search<'s>(&'s self, selector: &'s Selector) -> Search<'s> {
        Search::new(selector, self.wanted.directory.as_deref(), self.store, self.variable)
    }
}

/// Made when it is first needed: it reads the machine's certificate authorities.
pub(crate) struct Lazy<'a> {
    settings: &'a Settings,
    pace: Pace,
    on_event: OnEvent<'a>,
    fetcher: std::sync::OnceLock<Option<Fetcher<'a>>>,
    index: tokio::sync::OnceCell<Index>,
}

impl<'a> Lazy<'a> {
    pub(crate) fn new(obtain: &Obtain<'a>) -> Self {
        Self {
            settings: obtain.settings,
            pace: obtain.pace,
            on_event: obtain.on_event,
            fetcher: std::sync::OnceLock::new(),
            index: tokio::sync::OnceCell::new(),
        }
    }

    fn get(&self) -> Result<Option<&Fetcher<'a>>, AssetError> {
        if self.fetcher.get().is_none() {
            let fetcher = Fetcher::new(self.settings, self.pace, self.on_event)?;
            // Whoever came first at the same moment made the same.
            let _ = self.fetcher.set(fetcher);
        }
        Ok(self.fetcher.get().and_then(Option::as_ref))
    }
}

enum Downloaded {
    /// This version, except for these.
    Version(Version, Vec<Binary>),
    /// The index has others.
    NotOffered(Vec<Version>),
}

/// What is built in place of what could not be downloaded: the same version, or its minor.
fn buildable(selector: &Selector, chosen: Option<Version>) -> Option<&'static Pinned> {
    let of_minor = |version: Version| {
        move |pinned: &&Pinned| pinned.version.is_of_minor(version.major(), version.minor())
    };
    match chosen {
        Some(version) => PINNED
            .iter()
            .rev()
            .filter(|pinned| selector.exact().is_none_or(|exact| exact == pinned.version))
            .find(of_minor(version)),
        None => selector.pinned(),
    }
}

fn error_text(error: &AssetError) -> String {
    error.to_string()
}

impl Problem {
    pub(crate) fn into_error(self) -> AssetError {
        match self {
            Self::Unreachable(error) | Self::Serious(error) => error,
        }
    }

    fn error(&self) -> &AssetError {
        match self {
            Self::Unreachable(error) | Self::Serious(error) => error,
        }
    }
}
