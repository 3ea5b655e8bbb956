//! A plane between its first process and the handle that a test gets: either backend, and how clients reach it.

use std::path::Path;
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use kube::Config;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use super::attempt::{Attempt, refusal_of};
use super::backend::{Backend, Ingredients, Surroundings};
use super::error::{Evidence, StartError, StartErrorKind};
use super::pki::{Pair, Pki, SERVER_NAME};
use super::process::ProcessBackend;
use crate::assets::{Assets, Binary};

/// The name of the controller-manager's kubeconfig among the files of a plane.
pub(crate) const CONTROLLER_MANAGER_KUBECONFIG: &str = "controller-manager.kubeconfig";

/// What a backend runs.
#[derive(Debug)]
pub(super) enum Programs {
    Binaries(Assets),
    #[cfg(feature = "container")]
    Images(super::container::Images),
}

/// A backend together with what only one kind of it can do.
#[derive(Debug)]
pub(super) enum Launched {
    Process(ProcessBackend, Surroundings),
    #[cfg(feature = "container")]
    Container(super::container::ContainerBackend, Surroundings),
}

impl Programs {
    /// What they are, in words that change when they do; `None` if a file cannot be looked at.
    pub(super) fn identity(&self) -> Option<String> {
        let of_file = |binary: Binary, path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            Some(format!("{binary} {} {} {modified:?}", path.display(), metadata.len()))
        };
        let servers = [Binary::Etcd, Binary::KubeApiserver];
        let all: Option<Vec<String>> = match self {
            Self::Binaries(assets) => {
                let of = assets.iter().filter(|(binary, _)| servers.contains(binary));
                of.map(|(binary, path)| of_file(binary, path)).collect()
            }
            #[cfg(feature = "container")]
            Self::Images(images) => {
                servers.into_iter().map(|binary| images.identity(binary)).collect()
            }
        };
        Some(all?.join("; "))
    }
}

impl Launched {
    pub(super) async fn prepare(
        from: &Ingredients<'_>,
        programs: Programs,
    ) -> Result<Self, StartErrorKind> {
        match programs {
            Programs::Binaries(assets) => {
                let backend = ProcessBackend::prepare(from, assets)?;
                let surroundings = backend.surroundings();
                Ok(Self::Process(backend, surroundings))
            }
            #[cfg(feature = "container")]
            Programs::Images(images) => {
                let backend = super::container::ContainerBackend::prepare(from, images).await?;
                let surroundings = backend.surroundings();
                Ok(Self::Container(backend, surroundings))
            }
        }
    }

    pub(super) fn backend(&mut self) -> &mut dyn Backend {
        match self {
            Self::Process(backend, _) => backend,
            #[cfg(feature = "container")]
            Self::Container(backend, _) => backend,
        }
    }

    pub(super) fn surroundings(&self) -> &Surroundings {
        match self {
            Self::Process(_, surroundings) => surroundings,
            #[cfg(feature = "container")]
            Self::Container(_, surroundings) => surroundings,
        }
    }

    pub(super) fn into_backend(self) -> Box<dyn Backend> {
        match self {
            Self::Process(backend, _) => Box::new(backend),
            #[cfg(feature = "container")]
            Self::Container(backend, _) => Box::new(backend),
        }
    }

    pub(super) fn config(
        &mut self,
        pki: &Pki,
    ) -> Result<(Config, serde_json::Value), StartErrorKind> {
        let address = self.backend().apiserver();
        let url = match address {
            Some(address) => format!("https://{address}"),
            None => self.surroundings().apiserver_url.clone(),
        };
        let kubeconfig = kubeconfig(&url, pki.serving_ca.certificate(), &pki.admin);
        Ok((config_from(&url, pki, &kubeconfig)?, kubeconfig))
    }

    pub(super) fn write_controller_manager_kubeconfig(
        &mut self,
        pki: &Pki,
    ) -> Result<(), StartErrorKind> {
        let url = &self.surroundings().apiserver_url;
        let text = kubeconfig(url, pki.serving_ca.certificate(), &pki.admin).to_string();
        self.add_file(CONTROLLER_MANAGER_KUBECONFIG, text)
    }

    /// A file for the servers that are launched from now on.
    pub(super) fn add_file(
        &mut self,
        name: &'static str,
        content: String,
    ) -> Result<(), StartErrorKind> {
        match self {
            Self::Process(backend, around) => {
                backend.write(&format!("{}{name}", around.files), content.as_bytes())
            }
            #[cfg(feature = "container")]
            Self::Container(backend, _) => {
                backend.add_file(name, content);
                Ok(())
            }
        }
    }

    /// Whether the API server ended because somebody else listens on its port.
    pub(super) async fn lost_its_port(&mut self) -> bool {
        let evidence = self.backend().evidence().await;
        evidence.iter().any(|server| {
            server.server == Binary::KubeApiserver
                && server.status.is_some()
                && server.log_tail.contains("address already in use")
        })
    }

    pub(super) async fn take_another_port(&mut self) -> Result<(), StartErrorKind> {
        self.backend().stop_servers().await;
        match self {
            Self::Process(backend, surroundings) => {
                backend.take_another_port()?;
                *surroundings = backend.surroundings();
            }
            // The engine chose the port, and nobody else is on the servers' network.
            #[cfg(feature = "container")]
            Self::Container(..) => {}
        }
        Ok(())
    }

    /// Gathers the evidence, ends what was started, and makes the error.
    pub(super) async fn roll_back(
        mut self,
        attempt: Attempt,
        mut kind: StartErrorKind,
    ) -> StartError {
        let backend = self.backend();
        let mut servers = backend.evidence().await;
        let mut last_answer = attempt.answer.get();
        if let Some(refusal) = refusal_of(backend, &kind, &servers).await {
            // What the others were doing explains nothing.
            servers.retain(|server| server.server == refusal.server);
            last_answer = None;
            kind = StartErrorKind::Refused(Box::new(refusal));
        }
        kind = kind.explained_by(&servers);
        let logs = if servers.is_empty() { None } else { backend.keep_logs().await };
        let (_, left) = backend.stop().await;
        for left in left {
            tracing::warn!(%left, "a failed start could not be rolled back in full");
        }
        let mut error = attempt.failed(kind);
        error.evidence = Box::new(Evidence { servers, last_answer, logs });
        error
    }
}

/// A kubeconfig with everything inside.
fn kubeconfig(url: &str, ca: &str, user: &Pair) -> serde_json::Value {
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "laggard",
        "clusters": [{ "name": "laggard", "cluster": {
            "server": url,
            "tls-server-name": SERVER_NAME,
            "certificate-authority-data": encoded(ca),
        } }],
        "users": [{ "name": "laggard", "user": {
            "client-certificate-data": encoded(&user.certificate),
            "client-key-data": encoded(&user.key),
        } }],
        "contexts": [{ "name": "laggard", "context": { "cluster": "laggard", "user": "laggard" } }],
    })
}

/// Not by way of the kubeconfig: kube reads HTTPS_PROXY and NO_PROXY with it, and fails where they
/// are nonsense; loopback is behind no proxy.
fn config_from(
    url: &str,
    pki: &Pki,
    kubeconfig: &serde_json::Value,
) -> Result<Config, StartErrorKind> {
    let made = || -> Result<Config, Box<dyn std::error::Error + Send + Sync>> {
        let mut config = Config::new(url.parse()?);
        let ca = CertificateDer::from_pem_slice(pki.serving_ca.certificate().as_bytes())?;
        config.root_cert = Some(vec![ca.to_vec()]);
        config.tls_server_name = Some(SERVER_NAME.to_owned());
        config.auth_info = serde_json::from_value(kubeconfig["users"][0]["user"].clone())?;
        Ok(config)
    };
    let mut config = made().map_err(|error| {
        StartErrorKind::system("make a client configuration", std::io::Error::other(error))
    })?;
    // What the server answered is what the test sees.
    config.default_retry = false;
    Ok(config)
}
