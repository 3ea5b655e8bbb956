//! Waiting until an API server is ready, on one patient connection.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Readiness;
use super::pki::SERVER_NAME;

/// Between two tries to connect to a port on which nobody listens yet: there is no event for that.
const CONNECT_INTERVAL: Duration = Duration::from_millis(4);

/// Between two questions to a server that answered "not yet".
const ASK_INTERVAL: Duration = Duration::from_millis(10);

/// What the first step leaves out: two hooks that sleep for one second before they begin, and
/// whose work a member of `system:masters` does not need.
///
/// Source: Kubernetes, `pkg/registry/rbac/rest/storage_rbac.go` and
/// `pkg/registry/scheduling/rest/storage_scheduling.go`, `wait.Poll(1*time.Second, …)`.
const FIRST_STEP: &str = "/readyz?exclude=poststarthook/rbac/bootstrap-roles\
    &exclude=poststarthook/scheduling/bootstrap-system-priority-classes&verbose";
const FULL: &str = "/readyz?verbose";

/// When the stages before readiness were reached, counted from the begin of the wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    pub(crate) listening: Duration,
    pub(crate) tls: Duration,
}

/// One wait, whose last answer can be read while it goes on.
#[derive(Debug)]
pub(crate) struct Probe {
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    last_answer: Arc<Mutex<String>>,
}

impl Probe {
    pub(crate) fn new(address: SocketAddr, mut tls: rustls::ClientConfig) -> Self {
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let last_answer = Arc::new(Mutex::new("nothing listens yet".to_owned()));
        Self { address, tls: Arc::new(tls), last_answer }
    }

    pub(crate) fn last_answer(&self) -> String {
        self.last_answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the server says that it is ready. Has no limit of its own.
    pub(crate) async fn ready(&self, readiness: Readiness) -> Reached {
        let path = match readiness {
            Readiness::FirstStep => FIRST_STEP,
            Readiness::Full => FULL,
        };
        let begun = Instant::now();
        let mut listening = None;
        loop {
            let stream = self.connect().await;
            let listening = *listening.get_or_insert_with(|| begun.elapsed());
            // A handshake with a server that is not up yet hangs until it is, and then completes.
            match self.handshake(stream).await {
                Ok(sender) => {
                    let tls = begun.elapsed();
                    if self.ask_until_ready(sender, path).await {
                        return Reached { listening, tls };
                    }
                }
                Err(error) => self.note(format!("TLS handshake: {error}")),
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }

    async fn connect(&self) -> TcpStream {
        loop {
            match TcpStream::connect(self.address).await {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    return stream;
                }
                Err(error) => self.note(format!("connecting to {}: {error}", self.address)),
            }
            tokio::time::sleep(CONNECT_INTERVAL).await;
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
    ) -> Result<SendRequest<Empty<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let name = ServerName::try_from(SERVER_NAME)?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// `false` if the connection was lost.
    async fn ask_until_ready(&self, mut sender: SendRequest<Empty<Bytes>>, path: &str) -> bool {
        loop {
            let request = http::Request::get(path)
                .header(http::header::HOST, SERVER_NAME)
                .body(Empty::new())
                .expect("a constant path and header make a request");
            match sender.send_request(request).await {
                Ok(response) if response.status().is_success() => return true,
                Ok(response) => {
                    let status = response.status();
                    let body = response.into_body().collect().await;
                    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
                    self.note(format!("{status}; {}", failing(&String::from_utf8_lossy(&body))));
                }
                Err(error) => {
                    self.note(format!("asking for readiness: {error}"));
                    return false;
                }
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }

    fn note(&self, answer: String) {
        *self.last_answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }
}

/// The checks that a verbose answer marks as failing.
fn failing(body: &str) -> String {
    let failing: Vec<_> = body.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
    match failing.is_empty() {
        true => body.trim().to_owned(),
        false => format!("failing checks: {}", failing.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_failing_checks_are_reported() {
        let body = "[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\nreadyz check failed\n";
        assert_eq!(failing(body), "failing checks: etcd failed: reason withheld");
        assert_eq!(failing("unauthorized\n"), "unauthorized");
    }
}
