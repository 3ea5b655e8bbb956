//! Why a check did not pass, or could not be made.

use std::fmt;

use super::{FlipReport, Report, ground::RunError, scenario::BoxError};
use crate::{
    explore::{ExploreError, OutOfDate, ParseTokenError, ReplayError},
    world::WorldError,
};

/// A check that did not pass.
///
/// Its text, and its debug output, is what a person needs: a failed test prints it as it is.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// Runs violated an oracle. The report has all that is known of them.
    #[error("{0}")]
    Found(Box<Report>),
    /// Live reads that protect nothing that a test checks.
    #[error("{0}")]
    Survivors(Box<FlipReport>),
    /// The token of `LAGGARD_REPLAY`, or one that is repeated, no longer fits the process.
    #[error("{0}")]
    OutOfDate(OutOfDate),
    /// A variable of the environment cannot be read.
    #[error("failed to read {variable}={value:?}: {problem}")]
    Variable {
        /// Which.
        variable: &'static str,
        /// What it said.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The configuration of the server cannot be used.
    #[error("failed to prepare clients of the server: {0}")]
    Config(#[source] kube::Error),
    /// The set-up of the scenario failed.
    #[error("failed to set the scenario up: {0}")]
    SetUp(#[source] BoxError),
    /// Worlds could not be made or removed.
    #[error("failed to make or remove a world: {0}")]
    World(#[source] WorldError),
    /// A run could not be made, or the process is not deterministic.
    #[error("{}", Chain(.0))]
    Explore(#[source] ExploreError<RunError>),
    /// A file of the check could not be read or written.
    #[error("failed to {attempt}: {source}")]
    File {
        /// What was tried.
        attempt: String,
        /// Why it failed.
        source: BoxError,
    },
}

impl CheckError {
    pub(super) fn config(error: kube::Error) -> Self {
        Self::Config(error)
    }

    pub(super) fn set_up(error: BoxError) -> Self {
        Self::SetUp(error)
    }

    pub(super) fn world(error: WorldError) -> Self {
        Self::World(error)
    }

    pub(super) fn of_replay(error: ReplayError<RunError>) -> Self {
        match error {
            ReplayError::OutOfDate(error) => Self::OutOfDate(error),
            ReplayError::Explore(error) => Self::Explore(error),
        }
    }

    pub(super) fn token(value: &str, error: &ParseTokenError) -> Self {
        Self::Variable {
            variable: super::REPLAY,
            value: value.to_owned(),
            problem: error.to_string(),
        }
    }

    /// The report, if runs violated an oracle.
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::Found(report) => Some(report),
            _ => None,
        }
    }
}

impl fmt::Debug for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An error with its causes, each once.
struct Chain<'a>(&'a ExploreError<RunError>);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = std::error::Error::source(self.0);
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
