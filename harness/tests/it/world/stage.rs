//! A plane with worlds on it, and direct questions to its etcd that share no code with them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::stream::BoxStream;
use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use laggard::Plane;
use laggard::plane::{BackendKind, Flags, PlaneBuilder, Readiness};
use laggard::world::{EtcdAddress, Worlds};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, from_value, json};

/// How an API server runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(non_camel_case_types, reason = "they are the names of modules, too")]
pub(crate) enum Server {
    /// As always.
    cached,
    /// Without its watch cache.
    uncached,
    /// Tuned for exploring.
    exploring,
    /// In a container, as always otherwise.
    #[cfg(feature = "container")]
    container,
    /// In a container, tuned for exploring.
    #[cfg(feature = "container")]
    container_exploring,
}

impl Server {
    fn builder(self) -> PlaneBuilder {
        let builder = Plane::builder();
        match self {
            Self::cached => builder.backend(BackendKind::Process),
            Self::uncached => {
                let flags = Flags::new().set("watch-cache", "false");
                builder.backend(BackendKind::Process).apiserver_flags(flags)
            }
            Self::exploring => builder.backend(BackendKind::Process).exploring(),
            #[cfg(feature = "container")]
            Self::container => builder.backend(BackendKind::Container),
            #[cfg(feature = "container")]
            Self::container_exploring => builder.backend(BackendKind::Container).exploring(),
        }
    }

    /// Whether it is there; if not, it says why.
    async fn can_start(self) -> bool {
        match self {
            Self::cached | Self::uncached | Self::exploring => true,
            #[cfg(feature = "container")]
            Self::container | Self::container_exploring => {
                crate::container::docker().await.is_some()
            }
        }
    }
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
        if !server.can_start().await {
            return Ok(None);
        }
        let builder = server.builder().crds([widgets()?]).readiness(Readiness::Full);
        Ok(Some(Self::of(builder).await?))
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

/// The same for what takes seconds: at most so often, whatever is asked for.
pub(crate) fn slow_rounds(default: usize, most: usize) -> Result<usize> {
    Ok(rounds(default)?.min(most))
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

/// What a watch is waited for comes within milliseconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The events of a watch.
pub(crate) type Events = BoxStream<'static, Result<Value>>;

/// A watch as it comes, with its errors.
pub(crate) async fn events(stage: &Stage, path_and_query: &str) -> Result<Events> {
    let request = http::Request::get(path_and_query).body(Vec::new())?;
    let lines = stage.client.request_stream(request).await?.lines();
    let lines = lines.map_err(anyhow::Error::from);
    Ok(lines.and_then(async |line| Ok(serde_json::from_str(&line)?)).boxed())
}

/// A watch that goes on, as any client's does, where a race of etcd's has ended it.
pub(crate) struct Watch<'a> {
    stage: &'a Stage,
    pub(crate) path: String,
    events: Events,
    /// The last revision that it has seen.
    pub(crate) at: i64,
    /// How often the race has ended it there.
    ended: usize,
}

impl<'a> Watch<'a> {
    pub(crate) async fn open(stage: &'a Stage, path: String, at: i64) -> Result<Self> {
        let events = Self::events(stage, &path, at).await?;
        Ok(Self { stage, path, events, at, ended: 0 })
    }

    async fn events(stage: &Stage, path: &str, at: i64) -> Result<Events> {
        events(stage, &format!("{path}?watch=true&resourceVersion={at}")).await
    }

    /// The next event, which comes within 20 s.
    pub(crate) async fn next(&mut self) -> Result<Value> {
        loop {
            let event = tokio::time::timeout(LIMIT, self.events.next()).await;
            let place = || format!("{}, after {}", self.path, self.at);
            let event = event.with_context(|| format!("nothing came: {}", place()))?;
            let event = event.with_context(|| format!("it ended: {}", place()))??;
            if event["type"] == "ERROR" {
                self.go_on_after(&event).await?;
                continue;
            }
            let version = &event["object"]["metadata"]["resourceVersion"];
            self.at = version.as_str().context("no rv")?.parse()?;
            self.ended = 0;
            return Ok(event);
        }
    }

    /// Where a watch is so young that etcd has not yet noted its wish for previous versions, etcd tells an update or a
    /// deletion without, and a server without a watch cache ends the watch. It is there for the next one; if it is not for
    /// five, it is no race. Source: etcd, `etcdserver/api/v3rpc/watch.go`, `recvLoop`.
    async fn go_on_after(&mut self, error: &Value) -> Result<()> {
        let message = error["object"]["message"].as_str().unwrap_or_default();
        self.ended += 1;
        anyhow::ensure!(message.contains("PrevKv=nil") && self.ended <= 5, "{error}");
        println!("{} at {}: etcd's race ended a watch: {message}", self.path, self.at);
        self.events = Self::events(self.stage, &self.path, self.at).await?;
        Ok(())
    }
}

/// Asks a plane's etcd.
pub(crate) async fn etcd(plane: &Plane, path: &'static str, body: Value) -> Result<Value> {
    match plane.etcd()? {
        EtcdAddress::Unix(socket) => {
            ask(tokio::net::UnixStream::connect(socket).await?, path, body).await
        }
        EtcdAddress::Tls { address, ca, cert, key } => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
            let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes())?];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)?;
            let host = address.rsplit_once(':').context("no port")?.0.to_owned();
            let stream = tokio::net::TcpStream::connect(&address).await?;
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            let stream = connector.connect(ServerName::try_from(host)?, stream).await?;
            ask(stream, path, body).await
        }
        other => anyhow::bail!("it is at {other}"),
    }
}

/// One request on a connection of its own.
async fn ask<S>(stream: S, path: &'static str, body: Value) -> Result<Value>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
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
