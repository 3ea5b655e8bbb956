//! Connections to an API server as every client of this crate makes them: TCP_NODELAY set, no proxy, no retries.
//!
//! kube's own connector leaves Nagle's algorithm on. The server delays its acknowledgement of the last
//! TLS flight, so each new connection, hence each watch, would start 40 ms late.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Config,
    client::{
        Body, Client, ConfigExt,
        middleware::{AuthLayer, BaseUriLayer, ExtraHeadersLayer},
    },
};
use std::sync::Arc;
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};

/// The body of a reply before anything of ours has looked at it.
pub(crate) type ReplyBody = UnsyncBoxBody<Bytes, BoxError>;

/// A service that sends requests to one API server; cheap to clone.
pub(crate) type Upstream = BoxCloneSyncService<Request<Body>, Response<ReplyBody>, BoxError>;

/// All that is needed to make clients of one API server, with its keys and certificates already read.
///
/// Of the configuration's settings it leaves aside: the proxy, `default_retry`, and the read and write
/// timeouts (a watch must be able to stay silent, and an answer must reach the code under test as given).
#[derive(Clone)]
pub(crate) struct Connector {
    https: HttpsConnector<HttpConnector>,
    base_uri: BaseUriLayer,
    headers: ExtraHeadersLayer,
    auth: Arc<Option<AuthLayer>>,
    default_namespace: String,
}

impl Connector {
    /// Reads the keys and certificates of `config`; opens no connection.
    ///
    /// # Errors
    /// What kube says about unusable keys, certificates, tokens or headers.
    pub(crate) fn new(config: &Config) -> Result<Self, kube::Error> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(config.connect_timeout);
        Ok(Self {
            https: config.rustls_https_connector_with_connector(http)?,
            base_uri: config.base_uri_layer(),
            headers: config.extra_headers_layer()?,
            auth: Arc::new(config.auth_layer()?),
            default_namespace: config.default_namespace.clone(),
        })
    }

    /// A service with a connection pool of its own. It belongs to the runtime that first uses it.
    pub(crate) fn upstream(&self) -> Upstream {
        let hyper: HyperClient<_, Body> =
            HyperClient::builder(TokioExecutor::new()).build(self.https.clone());
        let hyper = hyper
            .map_response(|reply| reply.map(|body| body.map_err(BoxError::from).boxed_unsync()))
            .map_err(BoxError::from);
        let service =
            ServiceBuilder::new().layer(&self.base_uri).layer(&self.headers).service(hyper);
        match &*self.auth {
            Some(auth) => Upstream::new(auth.layer(service)),
            None => Upstream::new(service),
        }
    }

    /// The namespace that the configuration names for requests that give none.
    pub(crate) fn default_namespace(&self) -> &str {
        &self.default_namespace
    }
}

/// An ordinary client on such connections. Must be called inside a runtime, and belongs to it.
///
/// # Errors
/// See [`Connector::new`].
pub(crate) fn client(config: &Config) -> Result<Client, kube::Error> {
    let connector = Connector::new(config)?;
    Ok(Client::new(connector.upstream(), connector.default_namespace()))
}
