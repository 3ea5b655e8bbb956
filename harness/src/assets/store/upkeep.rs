//! Looking after the store: what is in it, whether it is intact, and what can go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Known, Store, make_writable};
use crate::assets::event::OnEvent;
use crate::assets::{AssetError, Binary, Event, Selector, Version, locate};

/// One file of the store, and what a look at it told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Checked {
    /// The version it belongs to.
    pub version: Version,
    /// Which binary it is.
    pub binary: Binary,
    /// Where it is.
    pub path: PathBuf,
    /// What the look told.
    pub verdict: Verdict,
}

/// What a look at a file of the store told.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// It is, byte for byte, what was put there.
    Intact,
    /// Somebody else put it there, so there is no digest; it runs, and says it is of this version.
    Unrecorded,
    /// It is not what it should be, and will not be used.
    Damaged(String),
}

/// What was removed, or would be.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Removed {
    /// The directory.
    pub path: PathBuf,
    /// The space it took.
    pub size_bytes: u64,
}

impl Store {
    /// What is in the store, newest first: the versions, and which binaries there are of each.
    #[must_use]
    pub fn installed(&self) -> Vec<(Version, Vec<Binary>)> {
        let present = |version: &Version| {
            let is_there = |binary: &Binary| self.file(version, *binary).is_file();
            Binary::ALL.into_iter().filter(is_there).collect()
        };
        self.versions().into_iter().map(|version| (version, present(&version))).collect()
    }

    /// Where a binary of the store came from, in words; empty where nobody recorded it.
    #[must_use]
    pub fn origin_of(&self, version: &Version, binary: Binary) -> String {
        self.origin(version, binary).unwrap_or_default()
    }

    /// Reads every file of the versions that `selector` allows, without one of all, and compares it with its record.
    ///
    /// A file without a record is run once and asked for its version.
    pub async fn verify(&self, selector: Option<&Selector>) -> Vec<Checked> {
        let mut checked = Vec::new();
        for (version, binaries) in self.installed() {
            if selector.is_some_and(|selector| !selector.allows(&version)) {
                continue;
            }
            for binary in binaries {
                let path = self.file(&version, binary);
                let store = self.clone();
                let look =
                    tokio::task::spawn_blocking(move || store.check_thoroughly(&version, binary));
                let verdict = match look.await {
                    Ok(Ok(Known::AsRecorded)) => Verdict::Intact,
                    Ok(Ok(Known::Nothing)) => match locate::reported_version(binary, &path).await {
                        Ok(None) => Verdict::Unrecorded,
                        Ok(Some(reported)) if reported == version => Verdict::Unrecorded,
                        Ok(Some(reported)) => {
                            Verdict::Damaged(format!("it says that it is {reported}"))
                        }
                        Err(problem) => Verdict::Damaged(problem),
                    },
                    Ok(Err(problem)) => Verdict::Damaged(problem),
                    Err(error) => Verdict::Damaged(error.to_string()),
                };
                checked.push(Checked { version, binary, path, verdict });
            }
        }
        checked
    }

    /// Removes the versions that `selector` allows, and always what broken-off attempts left.
    ///
    /// With [`Prune::DryRun`] nothing is removed. A running server goes on: its file goes when it
    /// ends. Waits for whoever writes one of these versions, and tells `on_event` so.
    ///
    /// # Errors
    ///
    /// [`AssetError::Store`] where something cannot be removed.
    pub async fn prune(
        &self,
        selector: Option<&Selector>,
        prune: Prune,
        on_event: impl Fn(Event) + Send + Sync,
    ) -> Result<Vec<Removed>, AssetError> {
        let on_event: OnEvent<'_> = &on_event;
        let mut removed = Vec::new();
        let versions = self.versions();
        let chosen =
            versions.iter().filter(|version| selector.is_some_and(|it| it.allows(version)));
        for version in chosen {
            let lock = match prune {
                Prune::Remove => Some(self.lock(version, "removes it", on_event).await?),
                Prune::DryRun => None,
            };
            for directory in [self.directory(version), self.apart(version)] {
                if !directory.exists() {
                    continue;
                }
                removed.push(Removed { size_bytes: size(&directory), path: directory.clone() });
                if lock.is_some() {
                    self.remove_at_once(&directory)?;
                }
            }
            if lock.is_some() {
                for path in [self.record_path(version), self.stamps_path(version)] {
                    self.forgive_absence(fs::remove_file(path))?;
                }
            }
        }
        for directory in self.abandoned(SystemTime::now()) {
            removed.push(Removed { size_bytes: size(&directory), path: directory.clone() });
            if prune == Prune::Remove {
                self.forgive_absence(fs::remove_dir_all(directory))?;
            }
        }
        Ok(removed)
    }

    /// First out of sight, by a rename: nobody finds half a version.
    fn remove_at_once(&self, directory: &Path) -> Result<(), AssetError> {
        let failed = |source| self.failed("remove a version", source);
        let away = self.staging()?;
        let target = away.path().join("removed");
        // The parent of what is renamed changes, so the directory itself must be writable too.
        make_writable(directory).map_err(failed)?;
        fs::rename(directory, &target).map_err(failed)?;
        away.close().map_err(failed)
    }

    fn forgive_absence(&self, result: io::Result<()>) -> Result<(), AssetError> {
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove what is not needed", error))
            }
            _ => Ok(()),
        }
    }
}

/// Whether to remove, or only to say what would be removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Prune {
    /// Remove.
    Remove,
    /// Say what would go.
    DryRun,
}

/// The space that the files of a directory take.
fn size(directory: &Path) -> u64 {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
