//! A client of etcd's gRPC services: ranges, transactions, leases and watches, and no more.
//!
//! A call of gRPC is a request of HTTP/2 whose body is one message behind five bytes, answered by messages of the same form
//! and a status in the trailers: with the messages at hand (see [`wire`](super::wire)) no code generator is needed. Source:
//! grpc, `doc/PROTOCOL-HTTP2.md`.

use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use prost::Message;

use super::WorldError;
use super::address::{Dialer, EtcdAddress, Stream};
use super::error::EtcdError;
use super::wire::{
    Changes, Compact, Done, Empty, Grant, Lease, LeaseId, Range, Read, Status, Txn, WatchCreate,
    WatchRequest,
};

/// No single request of ours takes long: the largest is 1.5 MiB, on this machine.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);

/// How much may be on its way to us: more than one fragment of a watch.
const WINDOW: u32 = 8 << 20;

/// Whether a message is compressed, which is never asked for, and its length.
const PREFIX: usize = 5;

/// Statuses of gRPC. Source: grpc, `doc/statuscodes.md`.
const OK: u32 = 0;
const NOT_FOUND: u32 = 5;

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
    sender: SendRequest<Bytes>,
    /// Until it has ended.
    connection: Option<Connection<Box<dyn Stream>, Bytes>>,
}

impl Connected {
    /// Waits for something that needs the connection to go on.
    async fn while_it_goes_on<T>(&mut self, needed: impl Future<Output = T>) -> T {
        let mut needed = std::pin::pin!(needed);
        if let Some(connection) = &mut self.connection {
            tokio::select! {
                biased;
                // First, as it may have ended by now.
                _ = connection => {}
                done = &mut needed => return done,
            }
            // A connection that could not be written to ends without a word to its streams, which
            // would wait for ever; dropping it tells them. What they have received stays theirs.
            self.connection = None;
        }
        needed.await
    }

    /// Sends one message; the answer is the server's first headers. `more` messages may follow on the stream.
    fn call(
        &mut self,
        path: &'static str,
        message: &impl Message,
        more: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut request = http::Request::new(());
        *request.method_mut() = http::Method::POST;
        // Over a unix socket there is no name; gRPC wants one all the same.
        *request.uri_mut() = http::Uri::builder()
            .scheme("http")
            .authority("localhost")
            .path_and_query(path)
            .build()
            .expect("constant parts");
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
            request.headers_mut().insert(name, http::HeaderValue::from_static(value));
        }
        let (answer, mut body) = self.sender.send_request(request, false)?;
        body.send_data(framed(message), !more)?;
        Ok((answer, body))
    }
}

impl Etcd {
    /// Reads the keys, connects, and asks etcd for its version.
    pub(super) async fn connect(address: &EtcdAddress) -> Result<Self, WorldError> {
        let name = address.to_string();
        let attempt = "connect";
        let dialer = Dialer::new(address).map_err(|error| WorldError::Etcd {
            attempt: attempt.to_owned(),
            address: name.clone(),
            source: Box::new(EtcdError::Connect(error)),
        })?;
        let etcd = Self { address: name, dialer, idle: Mutex::default() };
        let status: Result<Status, _> =
            etcd.ask("/etcdserverpb.Maintenance/Status", &Empty {}).await;
        let Status { version, .. } = status.map_err(|error| etcd.failed(attempt, error))?;
        tracing::debug!(%address, %version, "etcd answers");
        Ok(etcd)
    }

    /// Reads keys.
    pub(super) async fn range(&self, attempt: &str, range: &Range) -> Result<Read, WorldError> {
        self.ask("/etcdserverpb.KV/Range", range).await.map_err(|error| self.failed(attempt, error))
    }

    /// etcd's present revision: all that was acknowledged before this call is in it.
    pub(super) async fn revision(&self) -> Result<i64, WorldError> {
        let range = Range { key: b"\0".to_vec(), count_only: true, ..Range::default() };
        Ok(self.range("read the revision", &range).await?.header.revision)
    }

    /// Does all of it, or nothing if a comparison fails.
    pub(super) async fn txn(&self, attempt: &str, txn: &Txn) -> Result<Done, WorldError> {
        self.ask("/etcdserverpb.KV/Txn", txn).await.map_err(|error| self.failed(attempt, error))
    }

    /// Forgets what is older than `revision`, which has to be in the past; returns once the space is
    /// free. What was forgotten before by somebody else is no error.
    pub(super) async fn compact(&self, revision: i64) -> Result<(), WorldError> {
        match self
            .ask::<Empty>("/etcdserverpb.KV/Compact", &Compact { revision, physical: true })
            .await
        {
            Ok(_) => Ok(()),
            // etcd: api/v3rpc/rpctypes/error.go, ErrGRPCCompacted.
            Err(EtcdError::Refused { message, .. }) if message.contains("has been compacted") => {
                Ok(())
            }
            Err(error) => Err(self.failed("compact", error)),
        }
    }

    /// How much space it uses.
    pub(super) async fn status(&self) -> Result<Status, WorldError> {
        let status = self.ask("/etcdserverpb.Maintenance/Status", &Empty {}).await;
        status.map_err(|error| self.failed("ask how much space is used", error))
    }

    /// A new lease.
    pub(super) async fn grant(&self, ttl: Duration) -> Result<i64, WorldError> {
        let grant = Grant { ttl: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1) };
        let granted: Result<Lease, _> = self.ask("/etcdserverpb.Lease/LeaseGrant", &grant).await;
        let lease = granted.map_err(|error| self.failed("take a lease", error))?;
        Ok(lease.id)
    }

    /// Renews a lease; false if there is none any more.
    pub(super) async fn keep_alive(&self, lease: i64) -> Result<bool, WorldError> {
        // A stream, of which this is the only message.
        let kept: Result<Lease, _> =
            self.ask("/etcdserverpb.Lease/LeaseKeepAlive", &LeaseId { id: lease }).await;
        let kept = kept.map_err(|error| self.failed("renew a lease", error))?;
        Ok(kept.ttl > 0)
    }

    /// Ends a lease, and with it the keys that hang on it. It may have ended before: by itself, if
    /// this process was stopped for so long that nobody renewed it.
    pub(super) async fn revoke(&self, lease: i64) -> Result<(), WorldError> {
        match self.ask::<Empty>("/etcdserverpb.Lease/LeaseRevoke", &LeaseId { id: lease }).await {
            Ok(_) | Err(EtcdError::Refused { status: NOT_FOUND, .. }) => Ok(()),
            Err(error) => Err(self.failed("end a lease", error)),
        }
    }

    /// Every change of every key, from a revision on.
    pub(super) async fn watch_everything(&self, from: i64) -> Result<Watch, WorldError> {
        let create = WatchCreate {
            // From the least key there is (a zero byte) to the end, which is written the same.
            key: b"\0".to_vec(),
            range_end: b"\0".to_vec(),
            start_revision: from,
            fragment: true,
        };
        let request = WatchRequest { create: Some(create) };
        let attempt = "open a watch";
        let opened = async {
            let mut connected = self.dial().await?;
            let (answer, request) = connected
                .call("/etcdserverpb.Watch/Watch", &request, true)
                .map_err(EtcdError::Connection)?;
            let body = connected.while_it_goes_on(began(answer)).await?;
            Ok(Watch { body, buffer: BytesMut::new(), connected, _request: request })
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

    /// One message there and one back.
    async fn ask<A: Message + Default>(
        &self,
        path: &'static str,
        question: &impl Message,
    ) -> Result<A, EtcdError> {
        let exchange = async {
            let mut connected = self.connected().await?;
            let (answer, _) =
                connected.call(path, question, false).map_err(EtcdError::Connection)?;
            let mut answer = connected.while_it_goes_on(whole(answer)).await?;
            // Only a connection whose answer was read to its end is free for the next request.
            if connected.connection.is_some() {
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connected);
            }
            let message = take_message(&mut answer).ok_or(EtcdError::NoMessage)?;
            A::decode(message).map_err(EtcdError::Answer)
        };
        match tokio::time::timeout(REQUEST_LIMIT, exchange).await {
            Ok(result) => result,
            Err(_) => Err(EtcdError::Timeout(REQUEST_LIMIT)),
        }
    }

    /// A connection that was idle and is still open, or a new one.
    async fn connected(&self) -> Result<Connected, EtcdError> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut connected) = idle else { return self.dial().await };
            let mut sender = connected.sender.clone();
            let ready = poll_fn(|context| sender.poll_ready(context));
            // Nobody has looked at it since: it may have been closed meanwhile.
            let ready = connected.while_it_goes_on(ready).await;
            if ready.is_ok() && connected.connection.is_some() {
                return Ok(connected);
            }
        }
    }

    async fn dial(&self) -> Result<Connected, EtcdError> {
        let stream = self.dialer.connect().await.map_err(EtcdError::Connect)?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(EtcdError::Connection)?;
        Ok(Connected { sender, connection: Some(connection) })
    }
}

/// Changes as etcd sends them, in the order of their revisions.
pub(super) struct Watch {
    body: RecvStream,
    buffer: BytesMut,
    connected: Connected,
    /// etcd ends the watch when this is dropped.
    _request: SendStream<Bytes>,
}

impl Watch {
    /// The next message. `None` when etcd ended it.
    pub(super) async fn next(&mut self) -> Result<Option<Changes>, EtcdError> {
        loop {
            if let Some(message) = take_message(&mut self.buffer) {
                return Changes::decode(message).map(Some).map_err(EtcdError::Answer);
            }
            match self.connected.while_it_goes_on(next_data(&mut self.body)).await? {
                Some(data) => self.buffer.extend_from_slice(&data),
                None => return Ok(None),
            }
        }
    }
}

/// A message as it goes over the wire.
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode(&mut bytes).expect("there is room");
    bytes.freeze()
}

/// The first message of a buffer, once all of it is there.
fn take_message(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = buffer.get(1..PREFIX)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    if buffer.len() < PREFIX + length {
        return None;
    }
    buffer.advance(PREFIX);
    Some(buffer.split_to(length).freeze())
}

/// The messages of an answer, if its status is that of a success.
async fn whole(answer: ResponseFuture) -> Result<BytesMut, EtcdError> {
    let mut body = began(answer).await?;
    let mut bytes = BytesMut::new();
    while let Some(data) = next_data(&mut body).await? {
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// Waits for the headers of an answer.
async fn began(answer: ResponseFuture) -> Result<RecvStream, EtcdError> {
    let (head, body) = answer.await.map_err(EtcdError::Connection)?.into_parts();
    if !head.status.is_success() {
        return Err(EtcdError::NoEtcd { status: head.status.as_u16() });
    }
    // An answer without messages has its status here.
    check(&head.headers)?;
    Ok(body)
}

/// The next piece of an answer; `None` after its last one, if its status is that of a success.
async fn next_data(body: &mut RecvStream) -> Result<Option<Bytes>, EtcdError> {
    match body.data().await {
        Some(data) => {
            let data = data.map_err(EtcdError::Connection)?;
            body.flow_control().release_capacity(data.len()).map_err(EtcdError::Connection)?;
            Ok(Some(data))
        }
        None => {
            if let Some(trailers) = body.trailers().await.map_err(EtcdError::Connection)? {
                check(&trailers)?;
            }
            Ok(None)
        }
    }
}

/// What etcd means by a status that is no success.
fn check(headers: &HeaderMap) -> Result<(), EtcdError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(status) = text("grpc-status") else { return Ok(()) };
    let status = status.parse().unwrap_or(u32::MAX);
    if status == OK {
        return Ok(());
    }
    let message = text("grpc-message").unwrap_or_default();
    let message = percent_encoding::percent_decode_str(message).decode_utf8_lossy().into_owned();
    // etcd: api/v3rpc/rpctypes/error.go, ErrGRPCNoSpace.
    match message.contains("database space exceeded") {
        true => Err(EtcdError::NoSpace { message }),
        false => Err(EtcdError::Refused { status, message }),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;

    /// Says nothing, and from some moment on cannot be written to.
    struct Mute {
        broken: Arc<AtomicBool>,
    }

    impl AsyncRead for Mute {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Mute {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(match self.broken.load(Ordering::SeqCst) {
                true => Err(io::ErrorKind::BrokenPipe.into()),
                false => Ok(bytes.len()),
            })
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_a_connection_that_cannot_be_written_to() {
        let broken = Arc::new(AtomicBool::new(false));
        let stream: Box<dyn Stream> = Box::new(Mute { broken: broken.clone() });
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let mut connected = Connected { sender, connection: Some(connection) };
        let (answer, _request) = connected.call("/a", &Empty {}, true).unwrap();
        broken.store(true, Ordering::SeqCst);

        let began = connected.while_it_goes_on(began(answer));
        let began = tokio::time::timeout(Duration::from_secs(10), began).await;
        let error = began.expect("it waits for what cannot come").unwrap_err();
        assert!(matches!(error, EtcdError::Connection(_)), "{error:?}");
    }
}
