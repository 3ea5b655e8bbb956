//! A stand-in for the sidecar of a node: takes tasks, and is healthy once mark-ready is among
//! them.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A sidecar that listens on loopback until it is dropped.
#[derive(Debug)]
pub struct Sidecar {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Sidecar {
    /// Starts one that is not ready yet.
    ///
    /// # Errors
    ///
    /// If no port on loopback can be had.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let ready = Arc::new(AtomicBool::new(false));
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let ready = Arc::clone(&ready);
                let service = service_fn(move |request| answer(request, Arc::clone(&ready)));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Ok(Self { address, server })
    }

    /// Where it listens, as a base address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    ready: Arc<AtomicBool>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let (status, body) = match (request.method(), path.as_str()) {
        (&Method::GET, "/v0/healthz") => match ready.load(Ordering::SeqCst) {
            true => (StatusCode::OK, json!({ "status": "ready" })),
            false => (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "not ready" })),
        },
        (&Method::POST, "/v0/tasks") => {
            let body = request.into_body().collect().await.map(|body| body.to_bytes());
            let task = body.ok().and_then(|body| serde_json::from_slice::<Value>(&body).ok());
            match task.as_ref().and_then(|task| task["id"].as_str()) {
                Some(id) => {
                    // The submission of mark-ready is what turns a real sidecar ready.
                    let mark_ready = task.as_ref().is_some_and(|task| task["type"] == "mark-ready");
                    ready.fetch_or(mark_ready, Ordering::SeqCst);
                    (StatusCode::ACCEPTED, json!({ "id": id }))
                }
                None => (StatusCode::BAD_REQUEST, json!({ "error": "a task needs an id" })),
            }
        }
        _ => (StatusCode::NOT_FOUND, json!({ "error": "no such path" })),
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    Ok(response)
}
