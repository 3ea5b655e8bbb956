//! Making an image of one static binary, by the engine's classic builder.
//!
//! The builder is given a tar archive with two files in it, written here: its format is a header
//! of 512 bytes before each file (POSIX.1-1988, `ustar`), and the binary, a hundred megabytes,
//! goes from the disk to the engine in pieces.

use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use testcontainers::bollard::Docker;
use testcontainers::bollard::body_try_stream;
use testcontainers::bollard::query_parameters::BuildImageOptionsBuilder;
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;

use super::engine::failed;
use super::images::drain;
use crate::assets::Binary;
use crate::plane::error::StartErrorKind;
use crate::text::last_lines;

const BLOCK: usize = 512;
const PIECE: usize = 256 * 1024;

/// Where each image has its server, as the official ones do.
pub(super) fn program(binary: Binary) -> String {
    format!("/usr/local/bin/{binary}")
}

/// Makes an image of the binary at `path`, under the name `called` and with one label.
pub(super) async fn image(
    docker: &Docker,
    binary: Binary,
    path: &Path,
    called: &str,
    (label, value): (&str, &str),
) -> Result<(), StartErrorKind> {
    let unreadable = |error| StartErrorKind::system(format!("read {}", path.display()), error);
    let mut file = File::open(path).await.map_err(unreadable)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).await.map_err(unreadable)?;
    if magic != *b"\x7fELF" {
        return Err(StartErrorKind::Engine {
            problem: format!(
                "no image can be made of {}: it is no Linux program; point TEST_ASSET_… or \
                 KUBEBUILDER_ASSETS at one, or use LAGGARD_BACKEND=process",
                path.display()
            ),
        });
    }
    let size = file.metadata().await.map_err(unreadable)?.len();
    let program = program(binary);
    let dockerfile = format!(
        "FROM scratch\nCOPY {binary} {program}\nENTRYPOINT [\"{program}\"]\nLABEL {label}={value}\n"
    );
    let rest = io::Cursor::new(magic).chain(file);
    let archive = stream::iter([
        Ok(header("Dockerfile", 0o644, dockerfile.len() as u64)),
        Ok(Bytes::from(padded(dockerfile.into_bytes()))),
        Ok(header(binary.name(), 0o755, size)),
    ])
    .chain(pieces(rest, size))
    // Two empty blocks end an archive.
    .chain(stream::iter([Ok(Bytes::from_static(&[0; 2 * BLOCK]))]));

    let attempt = format!("make the image {called}");
    let options = BuildImageOptionsBuilder::new().t(called).rm(true).forcerm(true).build();
    let mut output = String::new();
    let mut error_in_stream = None;
    let built = docker.build_image(options, None, Some(body_try_stream(archive)));
    let built = drain(built, |step| {
        output.push_str(&step.stream.unwrap_or_default());
        error_in_stream = error_in_stream.take().or(step.error_detail);
    });
    if let Err(error) = built.await {
        return Err(failed(&format!("{attempt}\n{}", last_lines(&output, 6)), &error));
    }
    match error_in_stream {
        None => Ok(()),
        Some(detail) => Err(StartErrorKind::Engine {
            problem: format!(
                "failed to {attempt}: {}\n{}",
                detail.message.unwrap_or_default(),
                last_lines(&output, 6)
            ),
        }),
    }
}

/// The header of a regular file that belongs to root.
fn header(name: &str, mode: u32, size: u64) -> Bytes {
    let mut block = [0u8; BLOCK];
    let mut put =
        |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, &format!("{:07o}", 0)); // user
    put(116, &format!("{:07o}", 0)); // group
    put(124, &format!("{size:011o}"));
    put(136, &format!("{:011o}", 0)); // time: that of the file is no part of the image's content
    put(148, "        "); // the checksum counts as blanks in its own sum
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Bytes::copy_from_slice(&block)
}

fn padded(mut content: Vec<u8>) -> Vec<u8> {
    content.resize(content.len().next_multiple_of(BLOCK), 0);
    content
}

/// A file's content in pieces, and what fills its last block. Exactly `size` bytes: the header
/// has promised them, whatever happens to the file meanwhile.
fn pieces(
    file: impl tokio::io::AsyncRead + Send + Unpin + 'static,
    size: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold((file, size), move |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; length];
        file.read_exact(&mut piece).await?;
        let left = left - length as u64;
        if left == 0 {
            piece = padded(piece);
        }
        Ok(Some((Bytes::from(piece), (file, left))))
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use futures::TryStreamExt as _;

    use super::*;

    #[tokio::test]
    async fn tar_reads_what_is_written_here() {
        // Neither a multiple of a block nor of a piece.
        let content: Vec<u8> = (0..PIECE + 1000).map(|at| (at % 251) as u8).collect();
        let mut archive = header("kube-apiserver", 0o755, content.len() as u64).to_vec();
        let size = content.len() as u64;
        let body: Vec<_> =
            pieces(io::Cursor::new(content.clone()), size).try_collect().await.unwrap();
        archive.extend(body.concat());
        archive.extend([0; 2 * BLOCK]);

        let directory = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar")
            .args(["-x", "-f", "-", "-C"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        io::Write::write_all(&mut tar.stdin.take().unwrap(), &archive).unwrap();
        assert!(tar.wait().unwrap().success());
        let path = directory.path().join("kube-apiserver");
        assert!(std::fs::read(&path).unwrap() == content);
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o755);
    }
}
