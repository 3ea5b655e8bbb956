//! What the servers log, on this process's standard error as well, as it comes.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::watch;

use crate::assets::Binary;

/// What an ended server wrote is read within a millisecond.
const REST_LIMIT: Duration = Duration::from_secs(2);

/// Cuts pieces of a server's output into lines, each behind the server's name.
#[derive(Debug)]
pub(crate) struct Lines<W: Write> {
    server: Binary,
    begun: Vec<u8>,
    to: W,
}

impl<W: Write> Lines<W> {
    pub(crate) fn new(server: Binary, to: W) -> Self {
        Self { server, begun: Vec::new(), to }
    }

    pub(crate) fn push(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|&byte| byte == b'\n') {
            self.begun.extend(part);
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let mut line = format!("{}: ", self.server).into_bytes();
        line.append(&mut self.begun);
        // At once, so that lines of two servers do not mix. Nobody can be told if it is closed.
        let _ = self.to.write_all(&line);
    }
}

/// A server that was killed may have left a line without an end.
impl<W: Write> Drop for Lines<W> {
    fn drop(&mut self) {
        if !self.begun.is_empty() {
            self.push(b"\n");
        }
    }
}

/// The thread that hands on what one server writes.
#[derive(Debug)]
pub(crate) struct Attached {
    at_work: watch::Receiver<()>,
}

impl Attached {
    /// A file to give to the server; what it writes there goes to `log` and to standard error.
    ///
    /// The thread ends once the server has: nobody else holds the other end.
    pub(crate) fn new(server: Binary, mut log: File) -> io::Result<(File, Self)> {
        let (mut output, input) = io::pipe()?;
        let (sender, at_work) = watch::channel(());
        // A thread, as it must not depend on the runtime of the test that started the plane.
        std::thread::Builder::new().name("laggard-output".to_owned()).spawn(move || {
            let mut lines = Lines::new(server, io::stderr());
            let mut buffer = [0; 8192];
            loop {
                match output.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => {
                        if let Err(error) = log.write_all(&buffer[..read]) {
                            tracing::warn!(%server, %error, "failed to write a log");
                        }
                        lines.push(&buffer[..read]);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            drop(sender);
        })?;
        Ok((File::from(OwnedFd::from(input)), Self { at_work }))
    }

    /// Waits until all that an ended server wrote is in its log.
    pub(crate) async fn rest(&self) {
        let mut at_work = self.at_work.clone();
        // Nothing is ever sent: an error is the end.
        let _ = tokio::time::timeout(REST_LIMIT, at_work.changed()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines_with_a_name() {
        let mut out = Vec::new();
        let mut lines = Lines::new(Binary::Etcd, &mut out);
        for piece in ["a", "b\nc\n", "\n", "d"] {
            lines.push(piece.as_bytes());
        }
        drop(lines);
        assert_eq!(String::from_utf8(out).unwrap(), "etcd: ab\netcd: c\netcd: \netcd: d\n");
    }

    #[tokio::test]
    async fn what_was_written_is_in_the_log_once_the_writer_is_gone() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let (mut input, attached) = Attached::new(Binary::Etcd, log.reopen().unwrap()).unwrap();
        input.write_all(b"one\ntwo\n").unwrap();
        drop(input);
        attached.rest().await;
        assert_eq!(std::fs::read_to_string(log.path()).unwrap(), "one\ntwo\n");
    }
}
