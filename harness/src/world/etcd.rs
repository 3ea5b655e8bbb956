//! A client of etcd's JSON gateway: ranges, transactions, leases and watches, and no more.
//!
//! The gateway is a part of etcd, on by default, and speaks HTTP on the port or socket of its other
//! protocol. So neither a code generator nor a second HTTP implementation is needed here.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::WorldError;
use super::address::{Dialer, EtcdAddress, Stream};
use super::error::EtcdError;
use super::wire::{
    Base64, Compact, Done, Empty, Grant, Lease, LeaseId, Range, Read, Status, Streamed, Txn,
    WatchCreate, WatchRequest,
};

/// No single request of ours takes long: the largest is 1.5 MiB, on this machine.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);

/// How much of an answer an error shows.
const SHOWN_BYTES: usize = 300;

/// One etcd, by connections that are kept open.
pub(super) struct Etcd {
    address: String,
    dialer: Dialer,
    idle: Mutex<Vec<Connected>>,
}

/// A connection, which goes on only while somebody polls it. Whoever waits for an answer does, in
/// its own task: to pass each request to another task and each answer back would cost more than
/// etcd does.
struct Connected {
    sender: SendRequest<Full<Bytes>>,
    connection: HttpConnection,
}

type HttpConnection = Connection<TokioIo<Box<dyn Stream>>, Full<Bytes>>;

impl Connected {
    async fn while_it_goes_on<T>(&mut self, needed: impl Future<Output = T>) -> (T, bool) {
        while_it_goes_on(&mut self.connection, needed).await
    }
}

/// Waits for something that needs the connection to go on; also says whether it still does.
async fn while_it_goes_on<T>(
    connection: &mut HttpConnection,
    needed: impl Future<Output = T>,
) -> (T, bool) {
    let mut needed = std::pin::pin!(needed);
    tokio::select! {
        biased;
        // First, as it may have ended by now.
        _ = &mut *connection => (needed.await, false),
        done = &mut needed => (done, true),
    }
}

impl Etcd {
    /// Reads the keys, connects, and asks the gateway for its version.
    pub(super) async fn connect(address: &EtcdAddress) -> Result<Self, WorldError> {
        let name = address.to_string();
        let attempt = "reach the JSON gateway";
        let dialer = Dialer::new(address).map_err(|error| WorldError::Etcd {
            attempt: attempt.to_owned(),
            address: name.clone(),
            source: Box::new(EtcdError::Connect(error)),
        })?;
        let etcd = Self { address: name, dialer, idle: Mutex::default() };
        let status: Result<Status, _> = etcd.ask("/v3/maintenance/status", &Empty {}).await;
        match status {
            Ok(Status { version, .. }) => {
                tracing::debug!(%address, %version, "etcd's gateway answers")
            }
            Err(EtcdError::Refused { status, body }) => {
                return Err(etcd.failed(attempt, EtcdError::NoGateway { status, body }));
            }
            Err(EtcdError::Answer { body, .. }) => {
                return Err(etcd.failed(attempt, EtcdError::NoGateway { status: 200, body }));
            }
            Err(error) => return Err(etcd.failed(attempt, error)),
        }
        Ok(etcd)
    }

    /// Reads keys.
    pub(super) async fn range(&self, attempt: &str, range: &Range) -> Result<Read, WorldError> {
        self.ask("/v3/kv/range", range).await.map_err(|error| self.failed(attempt, error))
    }

    /// etcd's present revision: all that was acknowledged before this call is in it.
    pub(super) async fn revision(&self) -> Result<i64, WorldError> {
        let range = Range { key: Base64(b"\0".to_vec()), count_only: true, ..Range::default() };
        Ok(self.range("read the revision", &range).await?.header.revision)
    }

    /// Does all of it, or nothing if a comparison fails.
    pub(super) async fn txn(&self, attempt: &str, txn: &Txn) -> Result<Done, WorldError> {
        self.ask("/v3/kv/txn", txn).await.map_err(|error| self.failed(attempt, error))
    }

    /// Forgets what is older than `revision`, which has to be in the past; returns once the space is
    /// free. What was forgotten before by somebody else is no error.
    pub(super) async fn compact(&self, revision: i64) -> Result<(), WorldError> {
        match self.ask::<Empty>("/v3/kv/compaction", &Compact { revision, physical: true }).await {
            Ok(_) => Ok(()),
            // etcd: api/v3rpc/rpctypes/error.go, ErrGRPCCompacted.
            Err(EtcdError::Refused { body, .. }) if body.contains("has been compacted") => Ok(()),
            Err(error) => Err(self.failed("compact", error)),
        }
    }

    /// How much space it uses.
    pub(super) async fn status(&self) -> Result<Status, WorldError> {
        let status = self.ask("/v3/maintenance/status", &Empty {}).await;
        status.map_err(|error| self.failed("ask how much space is used", error))
    }

    /// A new lease.
    pub(super) async fn grant(&self, ttl: Duration) -> Result<i64, WorldError> {
        let granted: Result<Lease, _> =
            self.ask("/v3/lease/grant", &Grant { ttl: ttl.as_secs().max(1) }).await;
        let lease = granted.map_err(|error| self.failed("take a lease", error))?;
        Ok(lease.id)
    }

    /// Renews a lease; false if there is none any more.
    pub(super) async fn keep_alive(&self, lease: i64) -> Result<bool, WorldError> {
        let kept: Result<Streamed<Lease>, _> =
            self.ask("/v3/lease/keepalive", &LeaseId { id: lease }).await;
        let kept = kept.map_err(|error| self.failed("renew a lease", error))?;
        Ok(kept.result.ttl > 0)
    }

    /// Ends a lease, and with it the keys that hang on it. It may have ended before: by itself, if
    /// this process was stopped for so long that nobody renewed it.
    pub(super) async fn revoke(&self, lease: i64) -> Result<(), WorldError> {
        match self.ask::<Empty>("/v3/lease/revoke", &LeaseId { id: lease }).await {
            Ok(_) | Err(EtcdError::Refused { status: 404, .. }) => Ok(()),
            Err(error) => Err(self.failed("end a lease", error)),
        }
    }

    /// Every change of every key, from a revision on.
    pub(super) async fn watch_everything(&self, from: i64) -> Result<Watch, WorldError> {
        let request = WatchRequest {
            create_request: WatchCreate {
                // From the least key there is (a zero byte) to the end, which is written the same.
                key: Base64(b"\0".to_vec()),
                range_end: Base64(b"\0".to_vec()),
                start_revision: from,
                fragment: true,
            },
        };
        let attempt = "open a watch";
        let opened = async {
            let mut connected = self.dial().await?;
            let sent = connected.sender.send_request(self.request("/v3/watch", &request)?);
            let (response, open) = connected.while_it_goes_on(sent).await;
            let response = response.map_err(EtcdError::Connection)?;
            if !response.status().is_success() {
                let status = response.status().as_u16();
                let (body, _) = connected.while_it_goes_on(response.into_body().collect()).await;
                let body = body.map_err(EtcdError::Connection)?;
                return Err(refused(status, &body.to_bytes()));
            }
            let body = response.into_body();
            Ok(Watch { body, buffer: Vec::new(), read: 0, connected, open })
        };
        match tokio::time::timeout(REQUEST_LIMIT, opened).await {
            Ok(result) => result.map_err(|error| self.failed(attempt, error)),
            Err(_) => Err(self.failed(attempt, EtcdError::Timeout(REQUEST_LIMIT))),
        }
    }

    pub(super) fn failed(&self, attempt: &str, error: EtcdError) -> WorldError {
        WorldError::Etcd {
            attempt: attempt.to_owned(),
            address: self.address.clone(),
            source: Box::new(error),
        }
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        path: &'static str,
        question: &impl Serialize,
    ) -> Result<A, EtcdError> {
        let exchange = async {
            let request = self.request(path, question)?;
            let mut connected = self.connected().await?;
            let sent = connected.sender.send_request(request);
            let answer = async {
                let response = sent.await?;
                Ok((response.status(), response.into_body().collect().await?.to_bytes()))
            };
            let (answer, open) = connected.while_it_goes_on(answer).await;
            let (status, body) = answer.map_err(EtcdError::Connection)?;
            // Only a connection whose answer was read to its end is free for the next request.
            if open {
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connected);
            }
            if !status.is_success() {
                return Err(refused(status.as_u16(), &body));
            }
            serde_json::from_slice(&body)
                .map_err(|source| EtcdError::Answer { body: shown(&body), source })
        };
        match tokio::time::timeout(REQUEST_LIMIT, exchange).await {
            Ok(result) => result,
            Err(_) => Err(EtcdError::Timeout(REQUEST_LIMIT)),
        }
    }

    fn request(
        &self,
        path: &'static str,
        question: &impl Serialize,
    ) -> Result<http::Request<Full<Bytes>>, EtcdError> {
        let unusable =
            |source| EtcdError::Answer { body: "that was to be sent".to_owned(), source };
        let body = serde_json::to_vec(question).map_err(unusable)?;
        let mut request = http::Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(path);
        // Over a unix socket there is no name; HTTP/1.1 wants one all the same.
        request
            .headers_mut()
            .insert(http::header::HOST, http::HeaderValue::from_static("localhost"));
        Ok(request)
    }

    /// A connection that was idle and is still open, or a new one.
    async fn connected(&self) -> Result<Connected, EtcdError> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut connected) = idle else { return self.dial().await };
            let Connected { sender, connection } = &mut connected;
            // Nobody has looked at it since: it may have been closed meanwhile.
            let (ready, open) = while_it_goes_on(connection, sender.ready()).await;
            if ready.is_ok() && open {
                return Ok(connected);
            }
        }
    }

    async fn dial(&self) -> Result<Connected, EtcdError> {
        let stream = self.dialer.connect().await.map_err(EtcdError::Connect)?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(EtcdError::Connection)?;
        Ok(Connected { sender, connection })
    }
}

/// Changes as etcd sends them, in the order of their revisions.
pub(super) struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
    /// So many bytes of the buffer were handed out.
    read: usize,
    connected: Connected,
    /// Whether the connection has anything left to do.
    open: bool,
}

impl Watch {
    /// The next message, as it is on the wire: [`Changes`] reads it. `None` when etcd ended it.
    pub(super) async fn next(&mut self) -> Result<Option<&[u8]>, EtcdError> {
        self.buffer.drain(..self.read);
        self.read = 0;
        let mut searched = 0;
        loop {
            if let Some(length) = self.buffer[searched..].iter().position(|&byte| byte == b'\n') {
                let end = searched + length;
                self.read = end + 1;
                return Ok(Some(&self.buffer[..end]));
            }
            searched = self.buffer.len();
            let frame = match self.open {
                true => {
                    let (frame, open) = self.connected.while_it_goes_on(self.body.frame()).await;
                    self.open = open;
                    frame
                }
                false => self.body.frame().await,
            };
            match frame {
                Some(frame) => {
                    let frame = frame.map_err(EtcdError::Connection)?;
                    self.buffer.extend_from_slice(&frame.into_data().unwrap_or_default());
                }
                None => return Ok(None),
            }
        }
    }
}

/// What etcd means by an answer that is no success.
fn refused(status: u16, body: &[u8]) -> EtcdError {
    let text = shown(body);
    // etcd: api/v3rpc/rpctypes/error.go, ErrGRPCNoSpace.
    match text.contains("database space exceeded") {
        true => EtcdError::NoSpace { body: text },
        false => EtcdError::Refused { status, body: text },
    }
}

fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let mut end = text.len().min(SHOWN_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let more = if end < text.len() { "…" } else { "" };
    format!("{:?}{more}", &text[..end])
}
