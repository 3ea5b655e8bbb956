//! Downloading the servers into the store: staged, verified, asked for their version, renamed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use http::Uri;

use super::archive::{UnpackError, unpack};
use super::checksum::Checksum;
use super::event::OnEvent;
use super::fetch::{FetchError, Fetcher};
use super::index::Archive;
use super::store::Store;
use super::{AssetError, Binary, Version, locate};
use crate::lifeline::Afterwards;

/// What envtest's archives hold.
const ARCHIVED: [Binary; 3] = [Binary::Etcd, Binary::KubeApiserver, Binary::Kubectl];

/// A published checksum has 128 characters.
const CHECKSUM_BYTES: usize = 4096;

/// Puts those of `missing` into the store that are published, and says which are not.
///
/// Whoever comes second waits for the first, and then finds everything there. Dropping the future
/// leaves the store as it was; so does the end of this process.
pub(crate) async fn into_store(
    store: &Store,
    fetcher: &Fetcher<'_>,
    version: &Version,
    archive: Option<&Archive>,
    missing: &[Binary],
    on_event: OnEvent<'_>,
) -> Result<Vec<Binary>, Problem> {
    let lock = store.lock(version, "downloads it", on_event).await?;
    let missing = store.missing(version, missing);
    if missing.is_empty() {
        return Ok(missing);
    }
    store.sweep_staging(&lock);
    let staging = store.staging()?;
    let failed = |attempt| move |error| store.failed(attempt, error);
    // Should this process be killed, nothing of the download stays.
    let _watcher = Afterwards::remove_directory(staging.path())
        .map_err(failed("watch over a staging directory"))?;
    let finished = staging.path().join("finished");
    fs::create_dir(&finished).map_err(failed("make a staging directory"))?;

    let mut there = Vec::new();
    if missing.iter().any(|binary| ARCHIVED.contains(binary))
        && let Some(archive) = archive
    {
        let download = Download { store, fetcher, version };
        there.extend(download.archive(archive, staging.path(), &finished).await?);
    }
    let manager = Binary::KubeControllerManager;
    if missing.contains(&manager)
        && let Some(url) = fetcher.settings().release(version, manager)
    {
        let download = Download { store, fetcher, version };
        if download.release(&url, manager, &finished).await? {
            there.push(manager);
        }
    }
    for &binary in &there {
        let path = finished.join(binary.name());
        executable(&path).map_err(failed("make a binary executable"))?;
        let reported = locate::reported_version(binary, &path).await;
        let problem = match reported {
            Ok(None) => continue,
            Ok(Some(reported)) if reported == *version => continue,
            Ok(Some(reported)) => format!("it says that it is {reported}"),
            Err(problem) => problem,
        };
        let what = format!("{binary} {version}");
        let source = fetcher.settings().source();
        return Err(wrong(&what, format!("{source}: {problem}")).into());
    }
    if !there.is_empty() {
        store.admit(version, &finished, &there, "downloaded", &lock)?;
    }
    Ok(missing.into_iter().filter(|binary| !there.contains(binary)).collect())
}

/// Why nothing was downloaded.
#[derive(Debug)]
pub(crate) enum Problem {
    /// It cannot be had now; another way to obtain it may be tried.
    Unreachable(AssetError),
    /// It must not be gone on: what came is wrong, or the store cannot be written.
    Serious(AssetError),
}

impl From<AssetError> for Problem {
    fn from(error: AssetError) -> Self {
        Self::Serious(error)
    }
}

impl Problem {
    /// What a failed request comes to.
    pub(crate) fn of(error: FetchError, what: &str, url: &Uri) -> Self {
        let at = |problem: String| format!("{url}: {problem}");
        match error {
            FetchError::Missing => Self::Unreachable(AssetError::Download {
                what: what.to_owned(),
                problem: at("the server has no such page".to_owned()),
            }),
            FetchError::Unreachable { problem } => Self::Unreachable(AssetError::Download {
                what: what.to_owned(),
                problem: at(problem),
            }),
            FetchError::WrongContent { problem } => Self::Serious(wrong(what, at(problem))),
            FetchError::Write(source) => Self::Serious(AssetError::Download {
                what: what.to_owned(),
                problem: source.to_string(),
            }),
        }
    }
}

struct Download<'a> {
    store: &'a Store,
    fetcher: &'a Fetcher<'a>,
    version: &'a Version,
}

impl Download<'_> {
    /// The servers of an archive; all of them, so that the directory is whole for setup-envtest.
    async fn archive(
        &self,
        archive: &Archive,
        staging: &Path,
        finished: &Path,
    ) -> Result<Vec<Binary>, Problem> {
        let what = &archive.name;
        let index = self.fetcher.settings().index();
        let url = archive.url(self.fetcher).map_err(|error| Problem::of(error, what, index))?;
        let expected = archive.checksum().map_err(|error| Problem::of(error, what, index))?;
        let path = staging.join("archive.tar.gz");
        self.file(what, &url, &path, &expected).await?;
        let unpacked = unpack(path.clone(), finished.to_owned(), ARCHIVED.to_vec()).await;
        let unpacked = unpacked.map_err(|error| match error {
            UnpackError::Refused(problem) => wrong(what, format!("{url}: {problem}")),
            UnpackError::Write(source) => self.store.failed("unpack an archive", source),
        })?;
        if let Some(absent) = ARCHIVED.iter().find(|binary| !unpacked.contains(binary)) {
            return Err(wrong(what, format!("{url}: there is no {absent} in it")).into());
        }
        // A build of what is not published may follow, and needs the room.
        fs::remove_file(path).map_err(|error| self.store.failed("remove an archive", error))?;
        Ok(unpacked)
    }

    /// One binary as Kubernetes itself publishes it, if it does.
    async fn release(&self, url: &Uri, binary: Binary, finished: &Path) -> Result<bool, Problem> {
        let what = format!("{binary} {}", self.version);
        for algorithm in ["sha512", "sha256"] {
            let checksum_of = format!("the checksum of {what}");
            let address: Uri = format!("{url}.{algorithm}")
                .parse()
                .map_err(|_| wrong(&checksum_of, format!("{url} has no usable address")))?;
            let page = match self.fetcher.page(&checksum_of, &address, CHECKSUM_BYTES).await {
                Ok(page) => page,
                Err(FetchError::Missing) => continue,
                Err(error) => return Err(Problem::of(error, &checksum_of, &address)),
            };
            let text = String::from_utf8_lossy(&page);
            let Some(expected) = Checksum::parse(&text) else {
                let begins: String = text.chars().take(40).collect();
                return Err(wrong(&checksum_of, format!("{address}: {begins:?} is none")).into());
            };
            self.file(&what, url, &finished.join(binary.name()), &expected).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn file(
        &self,
        what: &str,
        url: &Uri,
        path: &Path,
        expected: &Checksum,
    ) -> Result<(), Problem> {
        match self.fetcher.file(what, url, path, expected).await {
            Ok(()) => Ok(()),
            Err(FetchError::Write(source)) => {
                Err(self.store.failed("write a download", source).into())
            }
            Err(error) => Err(Problem::of(error, what, url)),
        }
    }
}

fn wrong(what: &str, problem: String) -> AssetError {
    AssetError::WrongContent { what: what.to_owned(), problem }
}

fn executable(path: &Path) -> std::io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o555))
}
