//! How far a start has come, and what it says when it comes no further.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::backend::{Backend, Server};
use super::error::{ServerEvidence, StartError, StartErrorKind, Step};
use super::ready::Probe;
use super::refusal::{self, Refusal, Refused};
use crate::assets::Binary;

/// How far a start has come.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) step: Step,
    pub(super) begun: Instant,
    pub(super) answer: Answer,
}

impl Attempt {
    pub(super) fn failed(&self, kind: StartErrorKind) -> StartError {
        StartError {
            step: self.step,
            waited: self.begun.elapsed(),
            evidence: Box::default(),
            kind: Box::new(kind),
        }
    }
}

/// What was seen last, for the error of a deadline that comes from outside.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer(Arc<Mutex<Option<String>>>);

impl Answer {
    pub(super) fn set(&self, answer: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer.to_owned());
    }

    pub(super) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Polls the wait, and notes the probe's last answer whenever the wait is dropped or ends.
    pub(super) async fn follow<T>(&self, probe: &Probe, wait: impl Future<Output = T>) -> T {
        struct Note<'a>(&'a Answer, &'a Probe);
        impl Drop for Note<'_> {
            fn drop(&mut self) {
                self.0.set(&self.1.last_answer());
            }
        }
        let _note = Note(self, probe);
        wait.await
    }
}

/// Waits for something, but not longer than the servers live.
pub(super) async fn watched<T>(
    backend: &dyn Backend,
    wait: impl Future<Output = Result<T, StartErrorKind>>,
) -> Result<T, StartErrorKind> {
    tokio::select! {
        biased;
        result = wait => result,
        (server, status) = backend.ended() => Err(StartErrorKind::Exited { server, status }),
    }
}

/// The refusal in the log of a server that ended, if it ended of one.
pub(super) async fn refusal_of(
    backend: &dyn Backend,
    kind: &StartErrorKind,
    evidence: &[ServerEvidence],
) -> Option<Refusal> {
    let StartErrorKind::Exited { server, .. } = kind else { return None };
    let evidence = evidence.iter().find(|evidence| evidence.server == *server)?;
    let refused = refusal::refused(&evidence.log_tail)?.asked_by(&evidence.command);
    let help = backend.ask(*server, "--help").await;
    Some(refusal(backend, *server, refused, help.as_deref()).await)
}

/// An error if a flag was to be removed that neither we set nor the server has: a typo that no
/// server would ever complain about.
pub(super) async fn refuse_removals(
    backend: &dyn Backend,
    server: &Server,
) -> Result<(), StartErrorKind> {
    if server.removed.is_empty() {
        return Ok(());
    }
    // Without an answer, let it be: it changes nothing.
    let Some(help) = backend.ask(server.binary, "--help").await else { return Ok(()) };
    let known = refusal::flags(&help);
    match server.removed.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let refused = Refused::Flag { name: name.clone() };
            let refusal = refusal(backend, server.binary, refused, Some(&help)).await;
            Err(StartErrorKind::Refused(Box::new(refusal)))
        }
    }
}

async fn refusal(
    backend: &dyn Backend,
    server: Binary,
    refused: Refused,
    help: Option<&str>,
) -> Refusal {
    let version = backend.ask(server, "--version").await;
    let version =
        version.and_then(|answer| answer.split_whitespace().find_map(|word| word.parse().ok()));
    let mut refusal = Refusal { server, version, refused, near: Vec::new() };
    refusal.look_up(help.unwrap_or_default());
    refusal
}
