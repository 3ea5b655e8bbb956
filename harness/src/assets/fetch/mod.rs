//! Getting pages and files over HTTP, patiently: retries with back-off, resumed where they stopped.

mod connector;
mod partial;
#[cfg(test)]
pub(crate) mod tests;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::AssetError;
use super::checksum::Checksum;
use super::event::{Event, OnEvent};
use super::settings::{Reach, Settings, against};
use connector::Connector;
use partial::Partial;

/// Redirects that are followed; GitHub's release pages need one.
const REDIRECTS: usize = 10;

/// A try that brought this much counts as the first one again.
const HEADWAY_BYTES: u64 = 1 << 20;

/// However often a server makes headway and breaks off, this is enough.
const TRIES_IN_ALL: u32 = 50;

/// How patient a download is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// How often a request is made that brings nothing.
    pub(crate) tries: u32,
    /// The pause after the first failure; it doubles with each.
    pub(crate) first_pause: Duration,
    /// A server that asks for a longer pause is given up.
    pub(crate) longest_pause: Duration,
    /// Without a byte for so long, a connection is given up.
    pub(crate) silence: Duration,
    pub(crate) connect: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            tries: 5,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(300),
            silence: Duration::from_secs(30),
            connect: Duration::from_secs(10),
        }
    }
}

/// Why something did not come.
#[derive(Debug)]
pub(crate) enum FetchError {
    /// The server says that there is no such thing.
    Missing,
    /// It could not be had, however often it was tried.
    Unreachable { problem: String },
    /// What came is not what it should be.
    WrongContent { problem: String },
    /// It could not be written here.
    Write(std::io::Error),
}

/// How one try ended that did not succeed.
enum Failure {
    /// Another one may.
    Passing {
        problem: String,
        pause: Option<Duration>,
        no_connection: bool,
    },
    Final(FetchError),
}

impl Failure {
    fn passing(problem: impl Into<String>) -> Self {
        Self::Passing { problem: problem.into(), pause: None, no_connection: false }
    }
}

/// The only place of this crate's assets that opens a connection; there is none unless the settings
/// allow the network.
pub(crate) struct Fetcher<'a> {
    client: Client<HttpsConnector<Connector>, Empty<Bytes>>,
    no_tls: Option<String>,
    settings: &'a Settings,
    pace: Pace,
    on_event: OnEvent<'a>,
}

impl<'a> Fetcher<'a> {
    /// `None` where the settings forbid the network.
    ///
    /// # Errors
    ///
    /// [`AssetError::BadSource`] for a proxy variable that names none.
    pub(crate) fn new(
        settings: &'a Settings,
        pace: Pace,
        on_event: OnEvent<'a>,
    ) -> Result<Option<Self>, AssetError> {
        if settings.reach < Reach::Network {
            return Ok(None);
        }
        let (connector, no_tls) = connector::connector(pace.connect)?;
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Some(Self { client, no_tls, settings, pace, on_event }))
    }

    pub(crate) fn settings(&self) -> &'a Settings {
        self.settings
    }

    /// A page of at most `limit_bytes`.
    pub(crate) async fn page(
        &self,
        what: &str,
        url: &Uri,
        limit_bytes: usize,
    ) -> Result<Bytes, FetchError> {
        self.tell(what, url);
        let mut tries = Tries::default();
        loop {
            match self.try_page(url, limit_bytes).await {
                Ok(page) => return Ok(page),
                Err(failure) => self.pause(&mut tries, what, failure).await?,
            }
        }
    }

    /// A file, written to `path`, that comes to `expected`.
    ///
    /// Goes on where a broken connection left it, if the server can. Dropping the future leaves
    /// what there was by then at `path`.
    pub(crate) async fn file(
        &self,
        what: &str,
        url: &Uri,
        path: &Path,
        expected: &Checksum,
    ) -> Result<(), FetchError> {
        self.tell(what, url);
        let begun = Instant::now();
        let mut partial = Partial::create(path, expected).await.map_err(FetchError::Write)?;
        let mut tries = Tries::default();
        loop {
            let before = partial.received();
            let failure = match self.try_file(what, url, &mut partial).await {
                Ok(()) => match partial.finish().await.map_err(FetchError::Write)? {
                    actual if actual == *expected => {
                        let took = begun.elapsed();
                        (self.on_event)(Event::Downloaded { what: what.to_owned(), took });
                        return Ok(());
                    }
                    actual if !partial.was_resumed() => {
                        let problem = format!("it comes to {actual} instead of {expected}");
                        return Err(FetchError::WrongContent { problem });
                    }
                    // Two halves of two files, perhaps.
                    _ => {
                        partial.restart().await.map_err(FetchError::Write)?;
                        Failure::passing("the parts of the download do not belong together")
                    }
                },
                Err(failure) => failure,
            };
            if partial.received().saturating_sub(before) >= HEADWAY_BYTES {
                tries.fruitless = 0;
            }
            self.pause(&mut tries, what, failure).await?;
        }
    }

    fn tell(&self, what: &str, url: &Uri) {
        (self.on_event)(Event::Downloading { what: what.to_owned(), url: url.to_string() });
    }

    async fn try_page(&self, url: &Uri, limit_bytes: usize) -> Result<Bytes, Failure> {
        let mut body = self.send(url, HeaderMap::new()).await?.into_body();
        let mut page = Vec::new();
        while let Some(bytes) = self.next(&mut body).await? {
            if page.len() + bytes.len() > limit_bytes {
                let problem = format!("it has more than {limit_bytes} bytes");
                return Err(Failure::Final(FetchError::WrongContent { problem }));
            }
            page.extend_from_slice(&bytes);
        }
        Ok(page.into())
    }

    async fn try_file(&self, what: &str, url: &Uri, partial: &mut Partial) -> Result<(), Failure> {
        let write = |error| Failure::Final(FetchError::Write(error));
        let response = self.send(url, partial.range()).await?;
        partial.begin(&response).await.map_err(write)?.map_err(Failure::passing)?;
        if let Some(kind) = response.headers().get(header::CONTENT_TYPE)
            && kind.as_bytes().starts_with(b"text/html")
        {
            let problem = "the server answered with a page of HTML; \
                           is there a login or a proxy in between"
                .to_owned();
            return Err(Failure::Final(FetchError::WrongContent { problem }));
        }
        let mut body = response.into_body();
        let mut told = Instant::now();
        while let Some(bytes) = self.next(&mut body).await? {
            partial.write(&bytes).await.map_err(write)?;
            if told.elapsed() >= Duration::from_millis(250) {
                told = Instant::now();
                (self.on_event)(Event::Progress {
                    what: what.to_owned(),
                    received_bytes: partial.received(),
                    total_bytes: partial.total(),
                });
            }
        }
        Ok(())
    }

    async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = match tokio::time::timeout(self.pace.silence, body.frame()).await {
                Err(_) => {
                    let problem = format!("no byte came for {:?}", self.pace.silence);
                    return Err(Failure::passing(problem));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(Failure::passing(format!("broken off: {}", chain(&error))));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
    }

    /// One request, and those that its redirects ask for.
    async fn send(&self, url: &Uri, headers: HeaderMap) -> Result<Response<Incoming>, Failure> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS {
            let response = self.send_once(&url, &headers).await?;
            if !response.status().is_redirection() {
                return judge(response);
            }
            let location = response.headers().get(header::LOCATION);
            let next = location
                .and_then(|location| against(&url, location.to_str().ok()?))
                // What was asked for with TLS does not come without.
                .filter(|next| {
                    url.scheme_str() != Some("https") || next.scheme_str() == Some("https")
                });
            let Some(next) = next else {
                let problem = format!("{url} points elsewhere, but to no usable address");
                return Err(Failure::Final(FetchError::Unreachable { problem }));
            };
            url = next;
        }
        let problem = format!("{REDIRECTS} redirects led nowhere");
        Err(Failure::Final(FetchError::Unreachable { problem }))
    }

    async fn send_once(
        &self,
        url: &Uri,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, Failure> {
        if let Some(problem) = &self.no_tls
            && url.scheme_str() == Some("https")
        {
            let problem = format!(
                "this machine has no certificate authorities ({problem}); SSL_CERT_FILE names some"
            );
            return Err(Failure::Final(FetchError::Unreachable { problem }));
        }
        let mut request = Request::get(url)
            .header(header::USER_AGENT, concat!("laggard/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| {
                Failure::Final(FetchError::Unreachable { problem: error.to_string() })
            })?;
        request.headers_mut().extend(headers.clone());
        if let Some(token) = &self.settings.token
            && self.settings.trusts(url)
        {
            request.headers_mut().insert(header::AUTHORIZATION, token.clone());
        }
        match tokio::time::timeout(self.pace.silence, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Failure::Passing {
                no_connection: error.is_connect(),
                problem: chain(&error),
                pause: None,
            }),
            Err(_) => {
                Err(Failure::passing(format!("no answer came within {:?}", self.pace.silence)))
            }
        }
    }

    /// Waits before the next try, or says that there will be none.
    async fn pause(
        &self,
        tries: &mut Tries,
        what: &str,
        failure: Failure,
    ) -> Result<(), FetchError> {
        let (problem, asked, no_connection) = match failure {
            Failure::Passing { problem, pause, no_connection } => (problem, pause, no_connection),
            Failure::Final(error) => return Err(error),
        };
        tries.made += 1;
        tries.fruitless += 1;
        // A machine without a network is one most of the time, and something else can be tried.
        let allowed = if no_connection { self.pace.tries.min(2) } else { self.pace.tries };
        if tries.fruitless >= allowed || tries.made >= TRIES_IN_ALL {
            let problem = format!("{problem} (tried {} times)", tries.made);
            return Err(FetchError::Unreachable { problem });
        }
        let after = asked.unwrap_or_else(|| {
            let doubled = 2_u32.saturating_pow(tries.fruitless - 1);
            self.pace.first_pause.saturating_mul(doubled).min(self.pace.longest_pause)
        });
        if after > self.pace.longest_pause {
            let problem = format!("{problem}, and asks for a pause of {} s", after.as_secs());
            return Err(FetchError::Unreachable { problem });
        }
        (self.on_event)(Event::Retrying { what: what.to_owned(), problem, after });
        // The server, or the network, has no event to offer.
        tokio::time::sleep(after).await;
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Tries {
    made: u32,
    fruitless: u32,
}

fn judge(response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    let status = response.status();
    let pause = pause_asked_for(response.headers(), time::OffsetDateTime::now_utc());
    let problem = format!("the server answered {status}");
    match status {
        status if status.is_success() => Ok(response),
        // Partial::begin knows what to do.
        StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
        StatusCode::NOT_FOUND | StatusCode::GONE => Err(Failure::Final(FetchError::Missing)),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Err(Failure::Passing { problem, pause, no_connection: false })
        }
        status if status.is_server_error() => {
            Err(Failure::Passing { problem, pause, no_connection: false })
        }
        // GitHub's way of saying 429.
        StatusCode::FORBIDDEN if pause.is_some() => {
            Err(Failure::Passing { problem, pause, no_connection: false })
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let problem = format!(
                "{problem}; LAGGARD_ASSETS_TOKEN is sent to a mirror or index that you name"
            );
            Err(Failure::Final(FetchError::Unreachable { problem }))
        }
        _ => Err(Failure::Final(FetchError::Unreachable { problem })),
    }
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3), which is counted from the date of the answer,
/// if it has one: our own clock, at `now`, may be another than the server's, and may jump.
fn pause_asked_for(headers: &HeaderMap, now: time::OffsetDateTime) -> Option<Duration> {
    let said = |name| headers.get(name)?.to_str().ok();
    let text = said(header::RETRY_AFTER)?;
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = said(header::DATE).and_then(date).unwrap_or(now);
    // A date that has passed: now.
    Some((date(text)? - now).try_into().unwrap_or_default())
}

fn date(text: &str) -> Option<time::OffsetDateTime> {
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc2822).ok()
}

/// An error with its sources: hyper says what happened in the last one.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
