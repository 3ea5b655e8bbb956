//! Connections to where assets are: through the proxy that the environment names, if it names one.

use std::ffi::OsString;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::{BoxError, Service};

use crate::assets::AssetError;

/// Variables that name a proxy, as curl and Go read them.
const VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// TCP, or a tunnel through a proxy.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    http: HttpConnector,
    proxies: Arc<Matcher>,
}

/// A connector, and why it can make no TLS connection if it cannot.
///
/// # Errors
///
/// [`AssetError::BadSource`] for a proxy variable that names no proxy that can be used.
pub(super) fn connector(
    connect_limit: Duration,
) -> Result<(HttpsConnector<Connector>, Option<String>), AssetError> {
    for name in VARIABLES {
        if let Some(value) = std::env::var_os(name) {
            check(name, value)?;
        }
    }
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(connect_limit));
    let connector = Connector { http, proxies: Arc::new(Matcher::from_env()) };
    let provider = rustls::crypto::ring::default_provider();
    // A machine without authorities can still use a mirror in the house that has no TLS.
    let (tls, problem) = match HttpsConnectorBuilder::new().with_provider_and_native_roots(provider)
    {
        Ok(tls) => (tls, None),
        Err(error) => {
            let config = rustls::ClientConfig::builder_with_provider(Arc::new(
                rustls::crypto::ring::default_provider(),
            ))
            .with_safe_default_protocol_versions()
            .map_err(|error| AssetError::BadSource {
                source_name: "TLS".to_owned(),
                problem: error.to_string(),
            })?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
            (HttpsConnectorBuilder::new().with_tls_config(config), Some(error.to_string()))
        }
    };
    Ok((tls.https_or_http().enable_http1().wrap_connector(connector), problem))
}

/// The value itself is not shown: a proxy's URL often has a password in it.
fn check(name: &str, value: OsString) -> Result<(), AssetError> {
    let bad = |problem: &str| AssetError::BadSource {
        source_name: name.to_owned(),
        problem: problem.to_owned(),
    };
    let value = value.into_string().map_err(|_| bad("it is no text"))?;
    if value.is_empty() {
        return Ok(());
    }
    let uri: Uri = value.parse().map_err(|_| bad("it is no URL"))?;
    match uri.scheme_str() {
        None | Some("http") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(()),
        None | Some("http") => Err(bad("it names no host")),
        Some(_) => Err(bad("only http:// proxies are supported here")),
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(context).map_err(BoxError::from)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.intercept(&destination) else {
            let connecting = self.http.call(destination);
            return Box::pin(async { connecting.await.map_err(BoxError::from) });
        };
        let host = proxy.uri().host().unwrap_or("?").to_owned();
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.http.clone());
        if let Some(credentials) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(credentials.clone());
        }
        let connecting = tunnel.call(destination);
        Box::pin(async move {
            connecting.await.map_err(|error| {
                format!(
                    "the proxy at {host}, from HTTPS_PROXY or its like: {}",
                    super::chain(&error)
                )
                .into()
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_is_none_is_named_and_its_password_is_not_shown() {
        for (value, expected) in [
            ("http://", "no URL"),
            ("not a proxy", "no URL"),
            ("socks5://me:hunter2@host", "only http://"),
            (":::", "no URL"),
        ] {
            let error = check("HTTPS_PROXY", value.into()).unwrap_err().to_string();
            assert!(error.starts_with("HTTPS_PROXY") && error.contains(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        for value in ["", "proxy:3128", "http://me:secret@proxy:3128/"] {
            check("HTTPS_PROXY", value.into()).unwrap();
        }
    }
}
