//! etcd's published port: open to whoever has the plane's certificate, and to nobody else.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use http_body_util::{BodyExt as _, Full};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use testcontainers::bollard::Docker;
use testcontainers::bollard::query_parameters::DownloadFromContainerOptionsBuilder;

use super::{builder, docker, id_of};

#[tokio::test]
async fn etcd_refuses_whoever_has_no_certificate_of_the_plane() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let (plane, other) = futures::try_join!(builder().start(), builder().start())?;
    let id = id_of(&docker, &plane).await?;
    let port = etcd_port(&docker, &id).await?;
    let own = Certificates::of(&docker, &id).await?;
    let others = Certificates::of(&docker, &id_of(&docker, &other).await?).await?;

    // The one that may: through the JSON gateway, which calls the server with its own certificate.
    let answer = range(port, &own, Some(&own)).await?;
    assert!(answer.contains("\"revision\""), "{answer}");

    for (who, client) in [("no", None), ("another plane's", Some(&others))] {
        let refused = range(port, &own, client).await;
        let error = refused.expect_err(&format!("etcd answered a client with {who} certificate"));
        println!("with {who} certificate: {error:#}");
    }
    let plain = plain(port).await?;
    assert!(!plain.contains("revision"), "etcd speaks without TLS: {plain}");
    plane.stop().await?;
    other.stop().await?;
    Ok(())
}

struct Certificates {
    ca: String,
    certificate: String,
    key: String,
}

impl Certificates {
    /// Those that the plane's API server was given.
    async fn of(docker: &Docker, id: &str) -> Result<Self> {
        let file = |name: &'static str| async move {
            let path = format!("/pki/{name}");
            let options = DownloadFromContainerOptionsBuilder::new().path(&path).build();
            let container = format!("laggard-{id}-kube-apiserver");
            let archive = docker.download_from_container(&container, Some(options));
            let archive: Vec<_> = archive.try_collect().await?;
            let archive = archive.concat();
            // A tar archive of one file: a header of 512 bytes with the mode and the size in octal.
            let header = std::str::from_utf8(archive.get(..512).context("no header")?)?;
            assert!(header[100..107].ends_with("600"), "the mode of {path}: {}", &header[100..107]);
            let size = usize::from_str_radix(header[124..135].trim(), 8)?;
            Ok::<_, anyhow::Error>(String::from_utf8(archive[512..512 + size].to_vec())?)
        };
        Ok(Self {
            ca: file("etcd-ca.crt").await?,
            certificate: file("etcd-client.crt").await?,
            key: file("etcd-client.key").await?,
        })
    }
}

async fn etcd_port(docker: &Docker, id: &str) -> Result<u16> {
    let about = docker.inspect_container(&format!("laggard-{id}-etcd"), None).await?;
    let mut ports = about.network_settings.and_then(|it| it.ports).context("no ports")?;
    let bindings = ports.remove("2379/tcp").flatten().context("it is not published")?;
    let port = bindings.into_iter().find_map(|binding| binding.host_port).context("no number")?;
    Ok(port.parse()?)
}

/// Asks for a key, as the gateway takes it.
async fn range(port: u16, server: &Certificates, client: Option<&Certificates>) -> Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.ca.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some(client) => config.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(client.certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(client.key.as_bytes())?,
        )?,
    };
    let ask = async {
        let stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        let request = http::Request::post("/v3/kv/range")
            .header("host", "localhost")
            .body(Full::new(bytes::Bytes::from_static(b"{\"key\":\"YQ==\"}")))?;
        let response = sender.send_request(request).await?;
        anyhow::ensure!(response.status().is_success(), "it answered {}", response.status());
        let body = response.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    tokio::time::timeout(Duration::from_secs(10), ask).await.context("asking etcd for a key")?
}

/// What a client without TLS is told.
async fn plain(port: u16) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let request = "POST /v3/kv/range HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                   content-length: 14\r\n\r\n{\"key\":\"YQ==\"}";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await.context("reading")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
