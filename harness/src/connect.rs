//! Clients for a `kube::Config` whose connections do not wait for delayed acknowledgements.
//!
//! kube's own connector leaves TCP_NODELAY off. Each new connection then stalls 40 ms, when the
//! last flight of the TLS handshake meets the server's delayed ACK, and every open watch takes a
//! connection of its own over HTTP/1.1.

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use tower::{BoxError, ServiceBuilder, ServiceExt as _};

/// The transport of a client: everything between kube's request and the socket.
pub(crate) type Transport = tower::util::BoxCloneSyncService<
    http::Request<Body>,
    http::Response<hyper::body::Incoming>,
    BoxError,
>;

/// Builds the transport for a configuration: base address, authentication, extra headers, TLS.
///
/// There is no retry in it: what the server answered is what the caller sees.
pub(crate) fn transport(config: &kube::Config) -> Result<Transport, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(Transport::new(service.map_err(BoxError::from)))
}

/// Makes a client, which belongs to the runtime it is made in.
pub(crate) fn client(config: &kube::Config) -> Result<kube::Client, kube::Error> {
    Ok(kube::Client::new(transport(config)?, config.default_namespace.clone()))
}
