//! Unpacking envtest's archives: the servers in it, and nothing that an archive should not have.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Binary;

/// The largest binary so far has 120 MB.
const LIMIT_BYTES: u64 = 1 << 30;

/// Why an archive was not unpacked.
#[derive(Debug)]
pub(crate) enum UnpackError {
    Refused(String),
    Write(io::Error),
}

/// Writes those of `wanted` that the archive has into `directory`, and says which these are.
///
/// The whole archive is refused for one entry that is a link or a device, or whose path is absolute
/// or leads out. Dropping the future ends the work within a moment.
pub(crate) async fn unpack(
    archive: PathBuf,
    directory: PathBuf,
    wanted: Vec<Binary>,
) -> Result<Vec<Binary>, UnpackError> {
    let given_up = Arc::new(AtomicBool::new(false));
    let guard = GiveUp(Arc::clone(&given_up));
    let work = tokio::task::spawn_blocking(move || {
        let file = File::open(archive).map_err(UnpackError::Write)?;
        unpack_from(Watched { inner: file, given_up }, &directory, &wanted)
    });
    let result = match work.await {
        Ok(result) => result,
        Err(error) => Err(UnpackError::Write(io::Error::other(error))),
    };
    drop(guard);
    result
}

fn unpack_from(
    archive: impl Read,
    directory: &Path,
    wanted: &[Binary],
) -> Result<Vec<Binary>, UnpackError> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    let mut unpacked = Vec::new();
    let unreadable = |error: io::Error| UnpackError::Refused(format!("it cannot be read: {error}"));
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let path = entry.path().map_err(unreadable)?.into_owned();
        let refused = |why: &str| {
            UnpackError::Refused(format!("its entry {:?} {why}", path.display().to_string()))
        };
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue; // comments, as `git archive` writes them
        }
        if !kind.is_file() && !kind.is_dir() {
            return Err(refused(&format!("is neither a file nor a folder but {kind:?}")));
        }
        let leads_out =
            path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
        if leads_out {
            return Err(refused("has a path that leads out of the archive"));
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(binary) = wanted.iter().copied().find(|binary| binary.name() == name) else {
            continue;
        };
        if kind.is_dir() {
            return Err(refused("is a folder"));
        }
        if unpacked.contains(&binary) {
            return Err(refused("is there twice"));
        }
        if entry.size() > LIMIT_BYTES {
            return Err(refused(&format!("has more than {LIMIT_BYTES} bytes")));
        }
        let mut file = File::create(directory.join(name)).map_err(UnpackError::Write)?;
        copy(&mut entry, &mut file)?;
        unpacked.push(binary);
    }
    Ok(unpacked)
}

/// Tells what could not be read from what could not be written, which `io::copy` does not.
fn copy(from: &mut impl Read, to: &mut impl io::Write) -> Result<(), UnpackError> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count]).map_err(UnpackError::Write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(UnpackError::Refused(format!("it cannot be read: {error}")));
            }
        }
    }
}

/// Ends the work on a thread that cannot be ended from outside.
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Watched<R> {
    inner: R,
    given_up: Arc<AtomicBool>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        self.inner.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    const BOTH: [Binary; 2] = [Binary::Etcd, Binary::Kubectl];

    fn compressed(tar: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(tar).unwrap();
        encoder.finish().unwrap()
    }

    /// `tar::Builder` would refuse such paths itself.
    fn archive(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o755);
            if kind.is_symlink() || kind.is_hard_link() {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        compressed(&builder.into_inner().unwrap())
    }

    fn unpack(archive: &[u8]) -> (Result<Vec<Binary>, UnpackError>, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("inside");
        fs::create_dir(&inside).unwrap();
        (unpack_from(archive, &inside, &BOTH), directory)
    }

    #[test]
    fn the_servers_come_out_and_nothing_else() {
        use tar::EntryType::{Directory, Regular};
        let archive = archive(&[
            ("controller-tools/", Directory, b""),
            ("controller-tools/envtest/", Directory, b""),
            ("controller-tools/envtest/etcd", Regular, b"etcd's"),
            ("controller-tools/envtest/README", Regular, b"text"),
            ("./controller-tools/envtest/kubectl", Regular, b"kubectl's"),
        ]);
        let (result, directory) = unpack(&archive);
        assert_eq!(result.unwrap(), BOTH);
        let inside = directory.path().join("inside");
        assert_eq!(fs::read(inside.join("etcd")).unwrap(), b"etcd's");
        assert_eq!(fs::read(inside.join("kubectl")).unwrap(), b"kubectl's");
        assert_eq!(fs::read_dir(inside).unwrap().count(), 2);
    }

    #[test]
    fn an_archive_with_what_should_not_be_in_it_is_refused_and_nothing_is_written_outside() {
        use tar::EntryType::{Char, Link, Regular, Symlink};
        for (path, kind, expected) in [
            ("../etcd", Regular, "leads out"),
            ("a/../../etcd", Regular, "leads out"),
            ("/tmp/etcd", Regular, "leads out"),
            ("controller-tools/envtest/etcd", Symlink, "Symlink"),
            ("controller-tools/envtest/etcd", Link, "Link"),
            ("controller-tools/envtest/else", Symlink, "Symlink"),
            ("controller-tools/envtest/etcd", Char, "Char"),
        ] {
            let (result, directory) = unpack(&archive(&[(path, kind, b"")]));
            match result {
                Err(UnpackError::Refused(problem)) => {
                    assert!(problem.contains(expected) && problem.contains(path), "{problem}");
                }
                other => panic!("{path}: {other:?}"),
            }
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "{path}");
            assert_eq!(fs::read_dir(directory.path().join("inside")).unwrap().count(), 0, "{path}");
        }
    }

    #[test]
    fn an_archive_with_one_server_twice_is_refused() {
        use tar::EntryType::Regular;
        let (result, _directory) =
            unpack(&archive(&[("a/etcd", Regular, b"one"), ("b/etcd", Regular, b"two")]));
        assert!(matches!(result, Err(UnpackError::Refused(problem)) if problem.contains("twice")));
    }

    #[test]
    fn half_an_archive_and_no_archive_are_refused() {
        use tar::EntryType::Regular;
        let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let whole = archive(&[("a/etcd", Regular, &content)]);
        for bytes in [&whole[..whole.len() / 2], b"<html>no archive</html>"] {
            let (result, _directory) = unpack(bytes);
            assert!(
                matches!(&result, Err(UnpackError::Refused(problem)) if problem.contains("cannot be read")),
                "{result:?}"
            );
        }
    }
}
