//! The store of binaries on this machine, in setup-envtest's layout, so that both find each
//! other's files.
//!
//! `k8s/<version>-<os>-<arch>/` holds the files; it appears whole, by a rename. What is only ours,
//! the lock, the staging directories and the digests, lives beside it under `laggard/`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{AssetError, Binary, Event, Version};

/// The store of the current user.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// What is known of the files of one version: checked before they are used.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Record {
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct FileRecord {
    sha256: String,
    size_bytes: u64,
}

/// The right to write one version of the store; released when dropped.
#[derive(Debug)]
pub(crate) struct StoreLock {
    _file: File,
}

impl Store {
    /// `None` where neither `XDG_DATA_HOME` nor a home directory is known.
    pub(crate) fn of_this_user() -> Result<Option<Self>, AssetError> {
        let data = match std::env::var_os("XDG_DATA_HOME").filter(|value| !value.is_empty()) {
            Some(value) => PathBuf::from(value),
            None => match std::env::home_dir().filter(|home| !home.as_os_str().is_empty()) {
                Some(home) if cfg!(target_os = "macos") => {
                    return Ok(Some(Self {
                        root: home.join("Library/Application Support/io.kubebuilder.envtest"),
                    }));
                }
                Some(home) => home.join(".local/share"),
                None => return Ok(None),
            },
        };
        if data.is_relative() {
            return Err(AssetError::BadSource {
                source_name: "XDG_DATA_HOME".to_owned(),
                problem: format!("{} is not an absolute path", data.display()),
            });
        }
        Ok(Some(Self { root: data.join("kubebuilder-envtest") }))
    }

    #[cfg(test)]
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory of one version on this kind of machine.
    pub(crate) fn directory(&self, version: &Version) -> PathBuf {
        self.root.join("k8s").join(directory_name(version))
    }

    /// The versions that have a directory, newest first.
    pub(crate) fn versions(&self) -> Vec<Version> {
        let suffix = platform();
        let mut versions: Vec<Version> = fs::read_dir(self.root.join("k8s"))
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                name.strip_suffix(&suffix)?.strip_suffix('-')?.parse().ok()
            })
            .collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    /// Whether a file of the store is what was put there, as far as a look tells.
    ///
    /// Without a record (setup-envtest put it there) nothing is known, and the caller asks the
    /// binary itself.
    pub(crate) fn check(&self, version: &Version, binary: Binary) -> Result<Known, String> {
        let path = self.directory(version).join(binary.name());
        let Some(record) = self.record(version) else { return Ok(Known::Nothing) };
        let Some(expected) = record.files.get(binary.name()) else { return Ok(Known::Nothing) };
        let size_bytes = fs::metadata(&path).map_err(|error| error.to_string())?.len();
        if size_bytes == expected.size_bytes {
            Ok(Known::AsRecorded)
        } else {
            Err(format!("{size_bytes} bytes instead of the {} recorded", expected.size_bytes))
        }
    }

    fn record(&self, version: &Version) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.record_path(version)).ok()?).ok()
    }

    fn record_path(&self, version: &Version) -> PathBuf {
        self.root.join("laggard").join(format!("{}.json", directory_name(version)))
    }

    /// Waits for the right to write `version`.
    ///
    /// The wait is for the kernel's lock, which ends with its holder: there is no stale lock.
    pub(crate) async fn lock(
        &self,
        version: &Version,
        on_event: &(dyn Fn(Event) + Send + Sync),
    ) -> Result<StoreLock, AssetError> {
        let own = self.root.join("laggard");
        let failed = |source| self.failed("take the lock", source);
        fs::create_dir_all(&own).map_err(failed)?;
        let path = own.join(format!("{}.lock", directory_name(version)));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
            Err(fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                on_event(Event::Waiting { version: *version, holder: holder.trim().parse().ok() });
                // A thread rather than the runtime's pool: a runtime does not end before what runs
                // in its pool has, and this may wait for half an hour after its caller gave up.
                let (sender, receiver) = tokio::sync::oneshot::channel();
                std::thread::Builder::new()
                    .name("laggard-lock".to_owned())
                    .spawn(move || {
                        let locked = file.lock().map(|()| file);
                        sender.send(locked)
                    })
                    .map_err(failed)?;
                file = receiver
                    .await
                    .map_err(|_| failed(io::Error::other("the waiting thread is gone")))?
                    .map_err(failed)?;
            }
        }
        let note = || -> io::Result<()> {
            let mut file = &file;
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        note().map_err(failed)?;
        Ok(StoreLock { _file: file })
    }

    /// A fresh directory on the store's own file system, so that a rename will do.
    pub(crate) fn staging(&self) -> Result<tempfile::TempDir, AssetError> {
        let parent = self.root.join("laggard/staging");
        fs::create_dir_all(&parent)
            .and_then(|()| tempfile::Builder::new().prefix("build-").tempdir_in(parent))
            .map_err(|source| self.failed("make a staging directory", source))
    }

    /// Removes the staging directories of processes that did not get to it. Call it with the lock.
    pub(crate) fn sweep_staging(&self, _lock: &StoreLock) {
        // One lock a version, so a build of another minor may be under way: leave what is young.
        let young = std::time::Duration::from_secs(2 * 60 * 60);
        for entry in fs::read_dir(self.root.join("laggard/staging")).into_iter().flatten().flatten()
        {
            let age = entry.metadata().and_then(|data| data.modified()).map(|time| time.elapsed());
            if let Ok(Ok(age)) = age
                && age > young
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Puts finished files into the store: the directory appears whole, or the files are added to
    /// one that is there one by one, each by a rename.
    pub(crate) fn admit(
        &self,
        version: &Version,
        finished: &Path,
        binaries: &[Binary],
        _lock: &StoreLock,
    ) -> Result<PathBuf, AssetError> {
        let failed = |source| self.failed("put the new binaries", source);
        let mut record = self.record(version).unwrap_or_default();
        for binary in binaries {
            let path = finished.join(binary.name());
            let file = File::open(&path).map_err(failed)?;
            make_executable(&file).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            record.files.insert(binary.name().to_owned(), describe(&file).map_err(failed)?);
        }
        let directory = self.directory(version);
        if let Some(parent) = directory.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        // The record goes first: a file that does not match it is refused, never run.
        let mut text =
            serde_json::to_vec_pretty(&record).map_err(|error| failed(io::Error::other(error)))?;
        text.push(b'\n');
        let temporary = self.record_path(version).with_extension("json.new");
        fs::write(&temporary, text).map_err(failed)?;
        fs::rename(&temporary, self.record_path(version)).map_err(failed)?;
        if directory.exists() {
            make_writable(&directory).map_err(failed)?;
            for binary in binaries {
                fs::rename(finished.join(binary.name()), directory.join(binary.name()))
                    .map_err(failed)?;
            }
        } else {
            fs::rename(finished, &directory).map_err(failed)?;
        }
        Ok(directory)
    }

    pub(crate) fn failed(&self, attempt: &'static str, source: io::Error) -> AssetError {
        AssetError::Store { attempt, path: self.root.clone(), source }
    }
}

/// What the store knows of a file.
#[derive(Debug, PartialEq)]
pub(crate) enum Known {
    Nothing,
    AsRecorded,
}

fn directory_name(version: &Version) -> String {
    format!("{version}-{}", platform())
}

/// `linux-amd64` and so on, in Go's words.
fn platform() -> String {
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
    format!("{os}-{architecture}")
}

fn describe(file: &File) -> io::Result<FileRecord> {
    let mut file = file;
    let mut hasher = Sha256::new();
    let size_bytes = io::copy(&mut file, &mut hasher)?;
    let digest = hasher.finalize();
    let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileRecord { sha256, size_bytes })
}

fn make_executable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(fs::Permissions::from_mode(0o555))
}

/// setup-envtest leaves its directories without write permission.
fn make_writable(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store_with(content: &[u8]) -> (tempfile::TempDir, Store, Version) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::at(root.path().to_owned());
        let version: Version = "1.37.2".parse().unwrap();
        let lock = StoreLock { _file: tempfile::tempfile().unwrap() };
        let staging = store.staging().unwrap().keep();
        fs::write(staging.join("etcd"), content).unwrap();
        store.admit(&version, &staging, &[Binary::Etcd], &lock).unwrap();
        (root, store, version)
    }

    #[test]
    fn a_truncated_file_is_noticed() {
        let (_root, store, version) = store_with(b"whole");
        assert_eq!(store.check(&version, Binary::Etcd), Ok(Known::AsRecorded));
        let path = store.directory(&version).join("etcd");
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"who").unwrap();
        let problem = store.check(&version, Binary::Etcd).unwrap_err();
        assert_eq!(problem, "3 bytes instead of the 5 recorded");
    }

    #[test]
    fn the_versions_of_other_platforms_are_passed_over() {
        let (root, store, version) = store_with(b"x");
        fs::create_dir(root.path().join("k8s/1.36.0-plan9-mips")).unwrap();
        fs::create_dir(root.path().join("k8s/garbage")).unwrap();
        assert_eq!(store.versions(), [version]);
    }

    #[tokio::test]
    async fn the_second_holder_waits_for_the_first_and_says_for_whom() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::at(root.path().to_owned());
        let version: Version = "1.37.2".parse().unwrap();
        let first = store.lock(&version, &|_| {}).await.unwrap();
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let on_event = move |event| sender.send(event).unwrap();
        let second = store.lock(&version, &on_event);
        tokio::pin!(second);
        tokio::select! {
            _ = &mut second => panic!("two holders at once"),
            event = receiver.recv() => match event {
                Some(Event::Waiting { holder, .. }) => assert_eq!(holder, Some(std::process::id())),
                other => panic!("{other:?}"),
            },
        }
        drop(first);
        tokio::time::timeout(std::time::Duration::from_secs(10), second).await.unwrap().unwrap();
    }
}
