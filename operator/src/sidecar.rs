//! The HTTP interface of a node's sidecar: a health check, and tasks that it takes.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::api::SeiNode;
use crate::settings::Settings;

/// The port of a sidecar whose node names none.
pub const DEFAULT_PORT: i32 = 7777;

/// What a health check found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Health {
    /// It answered 200.
    Ready,
    /// It answered 503.
    NotReady,
    /// Anything else, or nothing.
    Unreachable,
}

/// A sidecar refused a task or could not be reached.
#[derive(Clone, Debug, thiserror::Error)]
#[error("failed to submit {task} to the sidecar: {problem}")]
pub struct SubmitError {
    task: String,
    problem: String,
}

/// The sidecar of one node.
#[async_trait]
pub trait Sidecar: Debug + Send + Sync {
    /// Asks whether it is ready.
    async fn health(&self) -> Health;

    /// Hands it a task. The id makes a repeated submission the same one.
    ///
    /// # Errors
    ///
    /// If it does not say that it took the task.
    async fn submit(&self, id: &str, kind: &str, params: &Value) -> Result<(), SubmitError>;
}

/// Makes the clients of sidecars.
pub trait Sidecars: Debug + Send + Sync {
    /// The client of one node's sidecar.
    fn of(&self, node: &SeiNode) -> Box<dyn Sidecar>;
}

/// Sidecars under the names that the cluster's DNS gives them.
#[derive(Clone, Debug)]
pub struct InCluster {
    settings: Settings,
}

impl InCluster {
    /// With the time limits of these settings.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self { settings: settings.clone() }
    }
}

impl Sidecars for InCluster {
    fn of(&self, node: &SeiNode) -> Box<dyn Sidecar> {
        let name = node.name_any();
        let namespace = node.namespace().unwrap_or_default();
        let port =
            node.spec.sidecar.as_ref().and_then(|sidecar| sidecar.port).unwrap_or(DEFAULT_PORT);
        let base = format!("http://{name}-0.{name}.{namespace}.svc.cluster.local:{port}");
        Box::new(HttpSidecar::new(base, &self.settings))
    }
}

/// A sidecar behind an address.
#[derive(Clone, Debug)]
pub struct HttpSidecar {
    base: String,
    probe_timeout: Duration,
    timeout: Duration,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl HttpSidecar {
    /// `base` is an `http` address without a path.
    #[must_use]
    pub fn new(base: impl Into<String>, settings: &Settings) -> Self {
        Self {
            base: base.into(),
            probe_timeout: settings.probe_timeout,
            timeout: settings.sidecar_timeout,
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }
}

#[async_trait]
impl Sidecar for HttpSidecar {
    async fn health(&self) -> Health {
        let request = http::Request::get(format!("{}/v0/healthz", self.base)).body(Full::default());
        let Ok(request) = request else { return Health::Unreachable };
        let answer = tokio::time::timeout(self.probe_timeout, self.client.request(request)).await;
        match answer {
            Ok(Ok(response)) => match response.status().as_u16() {
                200 => Health::Ready,
                503 => Health::NotReady,
                _ => Health::Unreachable,
            },
            Ok(Err(_)) | Err(_) => Health::Unreachable,
        }
    }

    async fn submit(&self, id: &str, kind: &str, params: &Value) -> Result<(), SubmitError> {
        let failed = |problem: String| SubmitError { task: kind.to_owned(), problem };
        let body = json!({ "id": id, "type": kind, "params": params }).to_string();
        let request = http::Request::post(format!("{}/v0/tasks", self.base))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| failed(error.to_string()))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
            Ok::<_, String>((status, body.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(self.timeout, exchange)
            .await
            .map_err(|_| failed(format!("no answer within {:?}", self.timeout)))?
            .map_err(failed)?;
        let said = serde_json::from_slice::<Value>(&body).unwrap_or_default();
        let taken = matches!(status.as_u16(), 201 | 202) && said["id"].as_str() == Some(id);
        if taken { Ok(()) } else { Err(failed(format!("it answered {status} {said}"))) }
    }
}
