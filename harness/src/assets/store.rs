//! The store of binaries on this machine, in setup-envtest's layout, so that both find each
//! other's files.
//!
//! `k8s/<version>-<os>-<arch>/` holds the files; it appears whole, by a rename. What is only ours,
//! the locks, the staging directories and the digests, lives beside it under `laggard/`, and so does
//! a kube-controller-manager that has no etcd and kube-apiserver beside it: setup-envtest takes
//! every directory that exists for a complete one.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::event::OnEvent;
use super::{AssetError, Binary, Event, Version, platform};

mod record;
mod upkeep;

pub use upkeep::{Checked, Prune, Removed, Verdict};

pub(crate) use record::Known;

/// The store of binaries of the current user, shared with setup-envtest.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// The right to write one version of the store; released when dropped.
#[derive(Debug)]
pub(crate) struct StoreLock {
    _file: File,
}

impl Store {
    /// The one in `XDG_DATA_HOME`, or in the home directory; it need not exist. `None` where neither
    /// is known.
    ///
    /// # Errors
    ///
    /// [`AssetError::BadSource`] where `XDG_DATA_HOME` is no absolute path.
    pub fn of_this_user() -> Result<Option<Self>, AssetError> {
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

    /// Where a binary of one version is, or would be.
    pub(crate) fn file(&self, version: &Version, binary: Binary) -> PathBuf {
        let path = self.directory(version).join(binary.name());
        let apart = self.apart(version).join(binary.name());
        if !path.exists() && apart.exists() { apart } else { path }
    }

    /// Those of `wanted` that are not there, or not as they were put there. Blocks while files are
    /// read, if they have to be.
    pub(crate) fn missing(&self, version: &Version, wanted: &[Binary]) -> Vec<Binary> {
        let is_there = |binary: &Binary| {
            self.file(version, *binary).exists() && self.check(version, *binary).is_ok()
        };
        wanted.iter().copied().filter(|binary| !is_there(binary)).collect()
    }

    /// The directory of what must not stand alone where setup-envtest looks.
    fn apart(&self, version: &Version) -> PathBuf {
        self.root.join("laggard/apart").join(directory_name(version))
    }

    /// The versions of which there is something, newest first.
    pub(crate) fn versions(&self) -> Vec<Version> {
        let suffix = format!("-{}", platform_name());
        let mut versions: Vec<Version> = ["k8s", "laggard/apart"]
            .into_iter()
            .flat_map(|folder| fs::read_dir(self.root.join(folder)).into_iter().flatten())
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                name.strip_suffix(&suffix)?.parse().ok()
            })
            .collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions.dedup();
        versions
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Waits for the right to write `version`. `purpose` is what others are told who wait for us.
    ///
    /// The wait is for the kernel's lock, which ends with its holder: there is no stale lock.
    pub(crate) async fn lock(
        &self,
        version: &Version,
        purpose: &str,
        on_event: OnEvent<'_>,
    ) -> Result<StoreLock, AssetError> {
        let on_wait = |holder, doing| on_event(Event::Waiting { version: *version, holder, doing });
        self.lock_file(&directory_name(version), purpose, &on_wait).await
    }

    /// Waits for the right to write what has this name. `on_wait` is told the process that has it, and its purpose.
    pub(crate) async fn lock_file(
        &self,
        name: &str,
        purpose: &str,
        on_wait: &(dyn Fn(Option<u32>, String) + Sync),
    ) -> Result<StoreLock, AssetError> {
        let own = self.root.join("laggard");
        let failed = |source| self.failed("take the lock", source);
        fs::create_dir_all(&own).map_err(failed)?;
        let path = own.join(format!("{name}.lock"));
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
                let (pid, doing) = holder.trim().split_once(' ').unwrap_or((holder.trim(), ""));
                on_wait(pid.parse().ok(), doing.to_owned());
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
            writeln!(file, "{} {purpose}", std::process::id())
        };
        note().map_err(failed)?;
        Ok(StoreLock { _file: file })
    }

    /// A fresh directory on the store's own file system, so that a rename will do.
    pub(crate) fn staging(&self) -> Result<Staging, AssetError> {
        let parent = self.root.join("laggard/staging");
        let make = || -> io::Result<Staging> {
            fs::create_dir_all(&parent)?;
            let directory = tempfile::Builder::new().prefix("new-").tempdir_in(&parent)?;
            let lock = File::open(directory.path())?;
            // Where a file system has no such locks, its age alone says whether it is in use.
            let _ = lock.try_lock();
            Ok(Staging { directory, _lock: lock })
        };
        make().map_err(|source| self.failed("make a staging directory", source))
    }

    /// Removes the staging directories of processes that did not get to it. Call it with the lock.
    pub(crate) fn sweep_staging(&self, _lock: &StoreLock) {
        for directory in self.abandoned(SystemTime::now()) {
            if let Err(error) = fs::remove_dir_all(&directory) {
                tracing::warn!(?directory, %error, "failed to remove an abandoned directory");
            }
        }
    }

    /// Staging directories that nobody works in, when it is `now`.
    fn abandoned(&self, now: SystemTime) -> Vec<PathBuf> {
        // One lock a version, so a build of another minor may be under way: leave what is young, and
        // what is locked, since the clock may have jumped.
        let young = Duration::from_secs(2 * 60 * 60);
        let entries = fs::read_dir(self.root.join("laggard/staging")).into_iter().flatten();
        let is_old = |entry: &fs::DirEntry| {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            modified.is_ok_and(|time| now.duration_since(time).is_ok_and(|age| age > young))
        };
        let is_locked = |path: &PathBuf| {
            let lock = File::open(path).map(|directory| directory.try_lock());
            matches!(lock, Ok(Err(fs::TryLockError::WouldBlock)))
        };
        let old = entries.flatten().filter(is_old).map(|entry| entry.path());
        old.filter(|path| !is_locked(path)).collect()
    }

    /// Puts finished files into the store: the directory appears whole, or the files are added to
    /// one that is there one by one, each by a rename.
    pub(crate) fn admit(
        &self,
        version: &Version,
        finished: &Path,
        binaries: &[Binary],
        origin: &str,
        _lock: &StoreLock,
    ) -> Result<(), AssetError> {
        let failed = |source| self.failed("put the new binaries", source);
        let mut record = self.record(version).unwrap_or_default();
        for binary in binaries {
            let path = finished.join(binary.name());
            let file = File::open(&path).map_err(failed)?;
            make_executable(&file).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            record.enter(*binary, &file, origin).map_err(failed)?;
        }
        let stands_alone =
            !(binaries.contains(&Binary::Etcd) && binaries.contains(&Binary::KubeApiserver));
        let directory = match self.directory(version) {
            directory if stands_alone && !directory.exists() => self.apart(version),
            directory => directory,
        };
        if let Some(parent) = directory.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        // The record goes first: a file that does not match it is refused, never run.
        self.write_record(version, &record).map_err(failed)?;
        if directory.exists() {
            make_writable(&directory).map_err(failed)?;
            for binary in binaries {
                fs::rename(finished.join(binary.name()), directory.join(binary.name()))
                    .map_err(failed)?;
            }
        } else {
            fs::rename(finished, &directory).map_err(failed)?;
        }
        sync_directory(&directory).map_err(failed)?;
        if let Some(parent) = directory.parent() {
            sync_directory(parent).map_err(failed)?;
        }
        Ok(())
    }

    pub(crate) fn failed(&self, attempt: &'static str, source: io::Error) -> AssetError {
        AssetError::Store { attempt, path: self.root.clone(), source }
    }
}

fn directory_name(version: &Version) -> String {
    format!("{version}-{}", platform_name())
}

/// `linux-amd64` and so on.
fn platform_name() -> String {
    let (os, architecture) = platform();
    format!("{os}-{architecture}")
}

/// A rename is on disk once its directory is.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
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

/// A directory in which a version is made, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    directory: tempfile::TempDir,
    _lock: File,
}

impl Staging {
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn close(self) -> io::Result<()> {
        self.directory.close()
    }
}

#[cfg(test)]
mod tests {
    use super::record::Trust;
    use super::*;

    fn store_with(content: &[u8]) -> (tempfile::TempDir, Store, Version) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::at(root.path().to_owned());
        let version: Version = "1.37.2".parse().unwrap();
        let lock = StoreLock { _file: tempfile::tempfile().unwrap() };
        let staging = store.staging().unwrap().directory.keep();
        fs::write(staging.join("etcd"), content).unwrap();
        let binaries = [Binary::Etcd, Binary::KubeApiserver];
        fs::write(staging.join("kube-apiserver"), content).unwrap();
        store.admit(&version, &staging, &binaries, "a test", &lock).unwrap();
        (root, store, version)
    }

    fn replace(path: &Path, content: &[u8]) {
        fs::remove_file(path).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn a_clock_that_jumps_takes_nothing_from_whoever_builds() {
        let (_root, store, _) = store_with(b"whole");
        let under_way = store.staging().unwrap();
        // Its owner was killed, and so was whoever watched over it.
        let left = store.staging().unwrap().directory.keep();
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 60 * 60);
        let is_among = |now, path: &Path| store.abandoned(now).iter().any(|it| it == path);
        for jump in [now - day, now, now + day] {
            assert!(!is_among(jump, under_way.path()));
            assert_eq!(is_among(jump, &left), jump > now);
        }
    }

    #[test]
    fn a_truncated_file_is_noticed() {
        let (_root, store, version) = store_with(b"whole");
        assert_eq!(store.check(&version, Binary::Etcd), Ok(Known::AsRecorded));
        replace(&store.file(&version, Binary::Etcd), b"who");
        let problem = store.check(&version, Binary::Etcd).unwrap_err();
        assert_eq!(problem, "it has 3 bytes instead of the 5 recorded");
        assert_eq!(store.check(&version, Binary::KubeApiserver), Ok(Known::AsRecorded));
    }

    #[test]
    fn a_changed_byte_is_noticed_also_after_the_file_was_found_intact() {
        use std::os::unix::fs::MetadataExt as _;
        use std::os::unix::fs::PermissionsExt as _;
        let (_root, store, version) = store_with(b"whole");
        let path = store.file(&version, Binary::Etcd);
        let later = SystemTime::now() + Duration::from_secs(10);
        let check = || store.compare(&version, Binary::Etcd, Trust::Stamp, later);
        assert_eq!(check(), Ok(Known::AsRecorded));
        assert!(store.stamps_path(&version).exists());
        // In place, with the time of change set back: the inode's own time tells.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let before = fs::metadata(&path).unwrap();
        while fs::metadata(&path).unwrap().ctime_nsec() == before.ctime_nsec() {
            let mut file = File::options().write(true).open(&path).unwrap();
            file.write_all(b"whale").unwrap();
            file.set_modified(before.modified().unwrap()).unwrap();
        }
        for round in 0..2 {
            let problem = check().unwrap_err();
            assert!(problem.contains("it comes to SHA-256"), "{round}: {problem}");
        }
        replace(&path, b"whole");
        assert_eq!(check(), Ok(Known::AsRecorded));
    }

    #[test]
    fn a_file_that_was_just_changed_is_read_again() {
        let (_root, store, version) = store_with(b"whole");
        assert_eq!(store.check(&version, Binary::Etcd), Ok(Known::AsRecorded));
        assert!(!store.stamps_path(&version).exists());
    }

    #[test]
    fn what_is_no_whole_version_stays_out_of_setup_envtests_sight() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::at(root.path().to_owned());
        let version: Version = "1.37.2".parse().unwrap();
        let lock = StoreLock { _file: tempfile::tempfile().unwrap() };
        let staging = store.staging().unwrap().directory.keep();
        let manager = Binary::KubeControllerManager;
        fs::write(staging.join(manager.name()), "x").unwrap();
        store.admit(&version, &staging, &[manager], "a test", &lock).unwrap();
        assert!(!store.directory(&version).exists());
        assert_eq!(store.versions(), [version]);
        assert!(store.file(&version, manager).exists());
        assert_eq!(store.check(&version, manager), Ok(Known::AsRecorded));
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
        let first = store.lock(&version, "builds", &|_| {}).await.unwrap();
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let on_event = move |event| sender.send(event).unwrap();
        let second = store.lock(&version, "downloads", &on_event);
        tokio::pin!(second);
        tokio::select! {
            _ = &mut second => panic!("two holders at once"),
            event = receiver.recv() => match event {
                Some(Event::Waiting { holder, doing, .. }) => {
                    assert_eq!((holder, &*doing), (Some(std::process::id()), "builds"));
                }
                other => panic!("{other:?}"),
            },
        }
        drop(first);
        tokio::time::timeout(std::time::Duration::from_secs(10), second).await.unwrap().unwrap();
    }
}
