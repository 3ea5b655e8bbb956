//! A stand-in for the sidecar of a node: answers health checks as told, and takes tasks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

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
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    ready: bool,
    /// By id, since a submission may be repeated.
    tasks: BTreeMap<String, Value>,
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
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Ok(Self { address, state, server })
    }

    /// Where it listens, as a base address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes the health check answer 200, or 503.
    pub fn set_ready(&self, ready: bool) {
        lock(&self.state).ready = ready;
    }

    /// The types of the tasks that were submitted, each id once.
    #[must_use]
    pub fn submitted(&self) -> Vec<String> {
        let kind = |task: &Value| task["type"].as_str().unwrap_or_default().to_owned();
        lock(&self.state).tasks.values().map(kind).collect()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let (status, body) = match (request.method(), path.as_str()) {
        (&Method::GET, "/v0/healthz") => match lock(&state).ready {
            true => (StatusCode::OK, json!({ "status": "ready" })),
            false => (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "not ready" })),
        },
        (&Method::POST, "/v0/tasks") => {
            let body = request.into_body().collect().await.map(|body| body.to_bytes());
            let task = body.ok().and_then(|body| serde_json::from_slice::<Value>(&body).ok());
            match task.as_ref().and_then(|task| task["id"].as_str()) {
                Some(id) => {
                    let mut state = lock(&state);
                    // The submission of mark-ready is what turns a real sidecar ready.
                    state.ready |= task.as_ref().is_some_and(|task| task["type"] == "mark-ready");
                    state.tasks.insert(id.to_owned(), json!(task));
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
