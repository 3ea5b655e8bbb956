//! A plane with worlds on it, and direct questions to its etcd that share no code with them.

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use laggard::Plane;
use laggard::plane::{BackendKind, Flags, PlaneBuilder, Readiness};
use laggard::world::{EtcdAddress, Worlds};
use serde_json::{Value, from_value, json};

/// How an API server runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(non_camel_case_types, reason = "they are the names of modules, too")]
pub(crate) enum Server {
    /// As always.
    cached,
    /// Without its watch cache.
    uncached,
    /// In a container, as always otherwise.
    #[cfg(feature = "container")]
    container,
}

/// What a test of worlds needs.
pub(crate) struct Stage {
    pub(crate) plane: Plane,
    pub(crate) client: Client,
    pub(crate) worlds: Worlds,
}

impl Stage {
    /// `None`, after saying why, if there is no container engine and one is needed.
    pub(crate) async fn start(server: Server) -> Result<Option<Self>> {
        let builder = Plane::builder().crds([widgets()?]).readiness(Readiness::Full);
        Ok(match server {
            Server::cached => Some(Self::of(builder.backend(BackendKind::Process)).await?),
            Server::uncached => {
                let flags = Flags::new().set("watch-cache", "false");
                let builder = builder.backend(BackendKind::Process).apiserver_flags(flags);
                Some(Self::of(builder).await?)
            }
            #[cfg(feature = "container")]
            Server::container => match crate::container::docker().await {
                Some(_) => Some(Self::of(builder.backend(BackendKind::Container)).await?),
                None => None,
            },
        })
    }

    pub(crate) async fn of(builder: PlaneBuilder) -> Result<Self> {
        // One is set already for every test but the first.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let plane = builder.start().await?;
        let worlds = Worlds::new(&plane.etcd()?).await?;
        Ok(Self { client: plane.client()?, worlds, plane })
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.worlds.close().await?;
        self.plane.stop().await?;
        Ok(())
    }

    /// A new namespace, made through the API server.
    pub(crate) async fn namespace(&self) -> Result<String> {
        let name = self.worlds.name().await?;
        let body = json!({ "metadata": { "name": name } });
        request(&self.client, "POST", "/api/v1/namespaces", Some(&body)).await?;
        Ok(name)
    }

    /// Makes an object through the API server.
    pub(crate) async fn create(&self, path: &str, body: &Value) -> Result<Value> {
        Ok(request(&self.client, "POST", path, Some(body)).await?)
    }
}

/// How often something is tried that has to hold every time.
pub(crate) fn rounds(default: usize) -> Result<usize> {
    match std::env::var("LAGGARD_WORLD_ROUNDS") {
        Ok(text) => text.parse().context("LAGGARD_WORLD_ROUNDS is no number"),
        Err(_) => Ok(default),
    }
}

/// One request; the body decides on the content type.
pub(crate) async fn request(
    client: &Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, kube::Error> {
    let content =
        if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    request_as(client, method, path, content, body).await
}

pub(crate) async fn request_as(
    client: &Client,
    method: &str,
    path: &str,
    content: &str,
    body: Option<&Value>,
) -> Result<Value, kube::Error> {
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content)
        .body(body)
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// Asks a plane's etcd, on its socket.
pub(crate) async fn etcd(plane: &Plane, path: &'static str, body: Value) -> Result<Value> {
    let EtcdAddress::Unix(socket) = plane.etcd()? else { anyhow::bail!("it has no socket") };
    let stream = tokio::net::UnixStream::connect(socket).await?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection);
    let body = Full::new(bytes::Bytes::from(body.to_string()));
    let request = http::Request::post(path).header("host", "x").body(body)?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    anyhow::ensure!(status.is_success(), "etcd answered {status}: {body:?}");
    Ok(serde_json::from_slice(&body)?)
}

/// All keys of a plane's etcd that have to do with worlds, but for the names that are never used again.
pub(crate) async fn keys_of_worlds(plane: &Plane) -> Result<Vec<String>> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let body = json!({ "key": "AA==", "range_end": "AA==", "keys_only": true });
    let answer = etcd(plane, "/v3/kv/range", body).await?;
    let mut keys = Vec::new();
    for found in answer["kvs"].as_array().context("etcd is empty")? {
        let key = STANDARD.decode(found["key"].as_str().context("no key")?)?;
        let key = String::from_utf8_lossy(&key).into_owned();
        if key.contains("lw-") {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// A custom resource with two versions, a status, a scale and a rule about the past.
pub(crate) fn widgets() -> Result<CustomResourceDefinition> {
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage,
            "subresources": {
                "status": {},
                "scale": { "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size" },
            },
            "schema": { "openAPIV3Schema": {
                "type": "object",
                "properties": {
                    "spec": {
                        "type": "object",
                        "properties": {
                            "size": {
                                "type": "integer",
                                "x-kubernetes-validations": [{
                                    "rule": "self >= oldSelf", "message": "it cannot shrink",
                                }],
                            },
                            "home": { "type": "string" },
                            "plan": { "type": "string", "default": "none" },
                        },
                    },
                    "status": {
                        "type": "object",
                        "properties": { "size": { "type": "integer" } },
                    },
                },
            } },
        })
    };
    Ok(from_value(json!({
        "metadata": { "name": "widgets.laggard.test" },
        "spec": {
            "group": "laggard.test", "scope": "Namespaced",
            "names": { "plural": "widgets", "singular": "widget", "kind": "Widget" },
            "versions": [version("v1", false), version("v2", true)],
        },
    }))?)
}
