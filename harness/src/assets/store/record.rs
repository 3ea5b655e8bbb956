//! What the store knows of its files: the digest each had when it came, checked before it is run.
//!
//! Reading 120 MB at every start of a plane would be felt, so a file that was found intact is not
//! read again while the kernel says that nobody touched it: its inode, its size, and the times of
//! its last change, of which no program can set the inode's own. Those times are coarse, so a file
//! that was just changed is not believed yet.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Store, directory_name};
use crate::assets::checksum::hexadecimal;
use crate::assets::{Binary, Version};

/// What is known of the files of one version.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Record {
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct FileRecord {
    sha256: String,
    size_bytes: u64,
    /// Where it came from, for people.
    #[serde(default)]
    origin: String,
}

/// What the store knows of a file.
#[derive(Debug, PartialEq)]
pub(crate) enum Known {
    Nothing,
    AsRecorded,
}

/// A file as the kernel sees it: another stamp means that somebody may have changed it.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Stamp {
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

type Stamps = BTreeMap<String, Stamp>;

impl Record {
    /// Takes note of a new file.
    pub(super) fn enter(&mut self, binary: Binary, file: &File, origin: &str) -> io::Result<()> {
        let (sha256, size_bytes) = digest(file)?;
        let record = FileRecord { sha256, size_bytes, origin: origin.to_owned() };
        self.files.insert(binary.name().to_owned(), record);
        Ok(())
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether another change would show: a file system's clock may move by whole seconds.
    fn is_settled(&self, now: SystemTime) -> bool {
        let changed = u64::try_from(self.changed.0).unwrap_or(u64::MAX);
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(changed))
            .and_then(|changed| now.duration_since(changed).ok())
            .is_some_and(|age| age > Duration::from_secs(2))
    }
}

impl Store {
    /// Whether a file of the store is what was put there; the error says what is wrong with it.
    /// Blocks while it is read, if it has to be.
    ///
    /// Without a record (setup-envtest put it there) nothing is known, and the caller asks the
    /// binary itself.
    pub(crate) fn check(&self, version: &Version, binary: Binary) -> Result<Known, String> {
        self.compare(version, binary, Trust::Stamp, SystemTime::now())
    }

    /// The same, and the file is read whatever the kernel says.
    pub(crate) fn check_thoroughly(
        &self,
        version: &Version,
        binary: Binary,
    ) -> Result<Known, String> {
        self.compare(version, binary, Trust::Nothing, SystemTime::now())
    }

    /// Where a file came from, as far as the store knows.
    pub(crate) fn origin(&self, version: &Version, binary: Binary) -> Option<String> {
        let mut record = self.record(version)?;
        record.files.remove(binary.name()).map(|file| file.origin)
    }

    pub(super) fn compare(
        &self,
        version: &Version,
        binary: Binary,
        trust: Trust,
        now: SystemTime,
    ) -> Result<Known, String> {
        let Some(mut record) = self.record(version) else { return Ok(Known::Nothing) };
        let Some(expected) = record.files.remove(binary.name()) else { return Ok(Known::Nothing) };
        let path = self.file(version, binary);
        let read = || -> io::Result<(File, Stamp)> {
            let file = File::open(&path)?;
            let stamp = Stamp::of(&file.metadata()?);
            Ok((file, stamp))
        };
        let (file, stamp) = read().map_err(|error| error.to_string())?;
        if stamp.size_bytes != expected.size_bytes {
            return Err(format!(
                "it has {} bytes instead of the {} recorded",
                stamp.size_bytes, expected.size_bytes
            ));
        }
        let mut stamps = self.stamps(version);
        if trust == Trust::Stamp && stamps.get(binary.name()) == Some(&stamp) {
            return Ok(Known::AsRecorded);
        }
        let (actual, _) = digest(&file).map_err(|error| error.to_string())?;
        if actual != expected.sha256 {
            return Err(format!(
                "it comes to SHA-256 {}… instead of the {}… recorded",
                &actual[..16],
                expected.sha256.get(..16).unwrap_or_default()
            ));
        }
        if !stamp.is_settled(now) {
            return Ok(Known::AsRecorded);
        }
        stamps.insert(binary.name().to_owned(), stamp);
        // A store that cannot be written is read each time.
        if let Err(error) = write(&self.stamps_path(version), &stamps) {
            tracing::debug!(%error, "did not note that a file of the store is intact");
        }
        Ok(Known::AsRecorded)
    }

    pub(super) fn record(&self, version: &Version) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.record_path(version)).ok()?).ok()
    }

    pub(super) fn write_record(&self, version: &Version, record: &Record) -> io::Result<()> {
        write(&self.record_path(version), record)
    }

    pub(super) fn record_path(&self, version: &Version) -> PathBuf {
        self.root.join("laggard").join(format!("{}.json", directory_name(version)))
    }

    pub(super) fn stamps_path(&self, version: &Version) -> PathBuf {
        self.root.join("laggard").join(format!("{}.intact.json", directory_name(version)))
    }

    fn stamps(&self, version: &Version) -> Stamps {
        let read = || serde_json::from_slice(&fs::read(self.stamps_path(version)).ok()?).ok();
        read().unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Trust {
    /// A file that nobody touched since it was found intact.
    Stamp,
    Nothing,
}

/// Whole or not at all, whoever else writes.
fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer_pretty(&mut file, value).map_err(io::Error::other)?;
    io::Write::write_all(&mut file, b"\n")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

fn digest(mut file: &File) -> io::Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let size_bytes = io::copy(&mut file, &mut hasher)?;
    Ok((hexadecimal(&hasher.finalize()), size_bytes))
}
