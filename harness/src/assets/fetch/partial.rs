//! A file on its way: what has come of it, and how to ask for the rest.

use std::io;
use std::path::Path;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use crate::assets::checksum::{Checksum, Hasher};

pub(super) struct Partial {
    file: File,
    fresh: Hasher,
    hasher: Hasher,
    received: u64,
    total: Option<u64>,
    /// What the server calls this edition of the file.
    edition: Option<HeaderValue>,
    was_resumed: bool,
}

impl Partial {
    pub(super) async fn create(path: &Path, expected: &Checksum) -> io::Result<Self> {
        let fresh = expected.hasher();
        Ok(Self {
            file: File::create(path).await?,
            hasher: fresh.clone(),
            fresh,
            received: 0,
            total: None,
            edition: None,
            was_resumed: false,
        })
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    /// Whether what there is came in more than one piece.
    pub(super) fn was_resumed(&self) -> bool {
        self.was_resumed
    }

    /// The headers that ask for what is missing.
    pub(super) fn range(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.received > 0
            && let Ok(range) = HeaderValue::try_from(format!("bytes={}-", self.received))
        {
            headers.insert(header::RANGE, range);
            if let Some(edition) = &self.edition {
                headers.insert(header::IF_RANGE, edition.clone());
            }
        }
        headers
    }

    /// Takes note of an answer. The inner error says why it is of no use; all is begun anew then.
    pub(super) async fn begin<B>(
        &mut self,
        response: &Response<B>,
    ) -> io::Result<Result<(), String>> {
        let headers = response.headers();
        if response.status() == StatusCode::PARTIAL_CONTENT && self.received > 0 {
            let expected = format!("bytes {}-", self.received);
            let range = headers.get(header::CONTENT_RANGE).map(HeaderValue::as_bytes);
            if range.is_some_and(|range| range.starts_with(expected.as_bytes())) {
                self.was_resumed = true;
                return Ok(Ok(()));
            }
            self.restart().await?;
            return Ok(Err("the server sent another part than the one asked for".to_owned()));
        }
        if response.status() != StatusCode::OK {
            self.restart().await?;
            return Ok(Err(format!("the server answered {}", response.status())));
        }
        self.restart().await?;
        self.total = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        // A weak one does not promise the same bytes.
        self.edition = headers
            .get(header::ETAG)
            .filter(|edition| !edition.as_bytes().starts_with(b"W/"))
            .cloned();
        Ok(Ok(()))
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.received += bytes.len() as u64;
        self.file.write_all(bytes).await
    }

    /// Throws away what there is.
    pub(super) async fn restart(&mut self) -> io::Result<()> {
        self.hasher = self.fresh.clone();
        self.received = 0;
        self.total = None;
        self.edition = None;
        self.was_resumed = false;
        self.file.rewind().await?;
        self.file.set_len(0).await
    }

    /// Sees to it that all is on disk, and says what it comes to.
    pub(super) async fn finish(&mut self) -> io::Result<Checksum> {
        self.file.flush().await?;
        self.file.sync_all().await?;
        Ok(self.hasher.clone().finish())
    }
}
