//! Where an etcd is, and connections to it.

use std::fmt::{self, Display};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// Where an etcd answers, and what it wants to see of whoever asks.
///
/// # Example
///
/// ```
/// use laggard::world::EtcdAddress;
///
/// let address = EtcdAddress::Unix("/run/plane/c.sock".into());
/// assert_eq!(address.to_string(), "/run/plane/c.sock");
/// ```
#[derive(Clone, Eq, PartialEq)]
#[non_exhaustive]
pub enum EtcdAddress {
    /// The path of a unix socket. It may be longer than a socket address can be (on Linux).
    Unix(PathBuf),
    /// TCP with TLS on both sides.
    Tls {
        /// Host and port, such as `127.0.0.1:32768`.
        address: String,
        /// The certificate authority that signed the server's certificate, PEM.
        ca: String,
        /// The client's certificate, PEM.
        cert: String,
        /// The client's key, PEM.
        key: String,
    },
}

/// Never prints the key.
impl fmt::Debug for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EtcdAddress").field(&format_args!("{self}")).finish()
    }
}

impl Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tls { address, .. } => f.write_str(address),
        }
    }
}

/// A stream of bytes to an etcd.
pub(super) trait Stream:
    tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin
{
}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

/// What makes connections to one address, with its keys already read.
pub(super) enum Dialer {
    Unix(PathBuf),
    Tls { address: String, name: ServerName<'static>, connector: TlsConnector },
}

impl Dialer {
    pub(super) fn new(address: &EtcdAddress) -> io::Result<Self> {
        match address {
            EtcdAddress::Unix(path) => Ok(Self::Unix(path.clone())),
            EtcdAddress::Tls { address, ca, cert, key } => {
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                let connector = connector(ca, cert, key).map_err(io::Error::other)?;
                Ok(Self::Tls { address: address.clone(), name, connector })
            }
        }
    }

    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(path) => Ok(Box::new(connect_unix(path).await?)),
            Self::Tls { address, name, connector } => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(connector.connect(name.clone(), stream).await?))
            }
        }
    }
}

fn connector(
    ca: &str,
    cert: &str,
    key: &str,
) -> Result<TlsConnector, Box<dyn std::error::Error + Send + Sync>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Connects to a socket whose path may be longer than `sun_path`.
///
/// The kernel copies the path into a socket address of 108 bytes (unix(7)), but follows links on the
/// way: an open directory has a short name below `/proc/self/fd`, whatever its own path is. A link
/// in some private directory would do too, but temporary directories are what is long to begin with.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= SUN_PATH {
        return UnixStream::connect(path).await;
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("it is no path of a socket"));
    };
    if !cfg!(target_os = "linux") {
        let problem = format!(
            "a path of more than {SUN_PATH} bytes is no socket address here; use a shorter \
             temporary directory"
        );
        return Err(io::Error::other(problem));
    }
    let directory = std::fs::File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    // The directory stays open until the kernel has followed the link.
    let connected = UnixStream::connect(short).await;
    drop(directory);
    connected
}

/// Bytes of a path that surely fit into a socket address: 104 with the final zero on macOS.
const SUN_PATH: usize = 103;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_never_prints_its_key() {
        let address = EtcdAddress::Tls {
            address: "127.0.0.1:1".to_owned(),
            ca: "ca".to_owned(),
            cert: "cert".to_owned(),
            key: "secret".to_owned(),
        };
        assert_eq!(format!("{address} {address:?}"), "127.0.0.1:1 EtcdAddress(127.0.0.1:1)");
    }

    #[tokio::test]
    async fn a_socket_is_reached_by_a_path_longer_than_a_socket_address() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("d".repeat(120));
        std::fs::create_dir(&directory).unwrap();
        let short = base.path().join("s");
        std::os::unix::fs::symlink(&directory, &short).unwrap();
        let _listener = tokio::net::UnixListener::bind(short.join("c.sock")).unwrap();
        let path = directory.join("c.sock");
        assert!(
            UnixStream::connect(&path).await.is_err(),
            "it is not long enough to show anything"
        );
        connect_unix(&path).await.unwrap();
    }
}
