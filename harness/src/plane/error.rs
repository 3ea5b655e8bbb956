//! Why a plane did not come up, with the evidence, and what a stopped plane says of its end.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::refusal::Refusal;
use crate::assets::{AssetError, Binary};

/// A plane that did not come up: at which step, why, and what the servers said last.
#[derive(Debug, thiserror::Error)]
#[error("failed to start a plane, at the step \"{step}\", after {waited:.1?}{evidence}")]
pub struct StartError {
    pub(crate) step: Step,
    pub(crate) waited: Duration,
    pub(crate) evidence: Box<Evidence>,
    #[source]
    pub(crate) kind: Box<StartErrorKind>,
}

impl StartError {
    /// What to branch on.
    #[must_use]
    pub fn kind(&self) -> &StartErrorKind {
        &self.kind
    }

    /// How far the start had come.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// The directory of the servers' logs, if a server had been started; it is kept.
    #[must_use]
    pub fn logs(&self) -> Option<&std::path::Path> {
        self.evidence.logs.as_deref()
    }
}

/// The steps of a start, in their order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Step {
    /// Finding or building the binaries.
    Assets,
    /// Making the directory, the keys and the port.
    Preparation,
    /// Starting the servers.
    Launch,
    /// Waiting until the API server is ready.
    Readiness,
    /// Waiting for the namespace `default`.
    Namespace,
    /// Installing custom resource definitions.
    Crds,
    /// Applying documents.
    Documents,
    /// Waiting until the controller-manager has acted.
    Controllers,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Assets => "assets",
            Self::Preparation => "preparation",
            Self::Launch => "launch",
            Self::Readiness => "readiness",
            Self::Namespace => "namespace",
            Self::Crds => "custom resource definitions",
            Self::Documents => "documents",
            Self::Controllers => "controllers",
        })
    }
}

/// The causes of a failed start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartErrorKind {
    /// The binaries could not be had.
    #[error(transparent)]
    Assets(#[from] AssetError),
    /// A document of the builder is not one, or the server refuses it.
    #[error("failed to apply the documents")]
    Documents {
        /// Which document, and why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The machine did not give what was needed: a directory, a port, a process.
    #[error("failed to {attempt}")]
    System {
        /// What was attempted.
        attempt: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A server ended while it was waited for.
    #[error("{server} ended by itself ({status}); its last lines above say why")]
    Exited {
        /// Which.
        server: Binary,
        /// Its exit status or signal.
        status: String,
    },
    /// A server ended since the disk is full.
    #[error(
        "{server} ended by itself ({status}), since the disk is full; make room, or set TMPDIR to a \
         directory that has more"
    )]
    DiskFull {
        /// Which.
        server: Binary,
        /// Its exit status or signal.
        status: String,
    },
    /// The system does not run the file of a server.
    #[error(
        "{server} cannot be run ({status}), and its last line above says why; is the file whole, and \
         made for this kind of machine?"
    )]
    CannotRun {
        /// Which.
        server: Binary,
        /// The exit status of the shell that tried.
        status: String,
    },
    /// A server does not know a flag, a feature gate, an API or an admission plugin, or does not
    /// take the value of one.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The deadline passed.
    #[error(
        "not ready within {limit:?}; the last answer above names what was missing. \
         `start_timeout` or KUBEBUILDER_CONTROLPLANE_START_TIMEOUT gives it longer"
    )]
    TimedOut {
        /// The limit, counted from when the binaries were at hand.
        limit: Duration,
    },
    /// The API server answered a request of the start itself with an error.
    #[error("failed to {attempt}")]
    Request {
        /// What was attempted.
        attempt: String,
        /// The answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// The container engine did not do as it was told, or there is none.
    #[error("{problem}")]
    Engine {
        /// What it said, and what to do.
        problem: String,
    },
    /// A setting that cannot be.
    #[error("{problem}")]
    Setting {
        /// What was wrong, where, and what to write instead.
        problem: String,
    },
}

impl StartErrorKind {
    pub(crate) fn system(attempt: impl Into<String>, source: std::io::Error) -> Self {
        Self::System { attempt: attempt.into(), source }
    }

    /// The same, or what is known to be behind the end of a server.
    pub(crate) fn explained_by(self, evidence: &[ServerEvidence]) -> Self {
        let Self::Exited { server, status } = self else { return self };
        let log = evidence.iter().find(|it| it.server == server).map(|it| it.log_tail.as_str());
        if log.is_some_and(|log| log.contains("no space left on device")) {
            return Self::DiskFull { server, status };
        }
        // What `sh` ends with where `exec` fails (POSIX, "Shell Command Language" 2.8.2).
        match status.as_str() {
            "exit status 126" | "exit status 127" => Self::CannotRun { server, status },
            _ => Self::Exited { server, status },
        }
    }

    pub(crate) fn request(attempt: impl Into<String>, source: kube::Error) -> Self {
        Self::Request { attempt: attempt.into(), source: Box::new(source) }
    }
}

/// What was seen before the clean-up.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) servers: Vec<ServerEvidence>,
    pub(crate) last_answer: Option<String>,
    pub(crate) logs: Option<PathBuf>,
}

/// One server as it was when the start failed.
#[derive(Debug)]
pub(crate) struct ServerEvidence {
    pub(crate) server: Binary,
    pub(crate) command: String,
    pub(crate) status: Option<String>,
    /// Indented lines.
    pub(crate) log_tail: String,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(answer) = &self.last_answer {
            write!(f, "\n  last readiness answer: {answer}")?;
        }
        for server in &self.servers {
            let status = server.status.as_deref().unwrap_or("still running");
            write!(f, "\n  {}: {status}\n    command: {}", server.server, server.command)?;
            write!(f, "\n    last lines of its log:")?;
            for line in server.log_tail.lines() {
                write!(f, "\n  {line}")?;
            }
        }
        if let Some(logs) = &self.logs {
            write!(f, "\n  logs kept in {}", logs.display())?;
        }
        Ok(())
    }
}

/// What was found when a plane was stopped.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stopped {
    /// Servers that had ended by themselves before they were stopped, with their status.
    pub already_ended: Vec<(Binary, String)>,
    /// How long it took until nothing was left.
    pub took: Duration,
    /// What could not be removed, in words; empty when all went well.
    pub left: Vec<String>,
}
