//! Runs that are under way at once, handed back in the order in which they were begun.

use std::{error::Error, future::Future, pin::Pin, sync::Arc};

use futures::{StreamExt, stream::FuturesOrdered};

use super::{Choices, Divergence, Ending, Outcome, Subject, Token, states::Mark};
use crate::lag::model::Chosen;

/// Runs in flight, each with what its maker wants back with it.
///
/// Results come in the order of the starts, so what a search does next depends on what it found and never
/// on which run was quicker.
pub(crate) struct Pool<'a, S: Subject, T> {
    subject: &'a S,
    running: FuturesOrdered<Running<'a, S, T>>,
}

type Running<'a, S, T> = Pin<Box<dyn Future<Output = (T, Finished<S>)> + Send + 'a>>;
pub(crate) type Finished<S> =
    Result<Judged<<S as Subject>::Record>, ExploreError<<S as Subject>::Error>>;

/// A run that was made as it was meant.
pub(crate) struct Judged<R> {
    pub(crate) choices: Arc<[Chosen]>,
    pub(crate) outcome: Outcome<R>,
    pub(super) marks: Vec<Mark>,
    pub(super) ended_early: bool,
}

impl<'a, S: Subject, T: Send + 'a> Pool<'a, S, T> {
    pub(crate) fn new(subject: &'a S) -> Self {
        Self { subject, running: FuturesOrdered::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn start(&mut self, tag: T, choices: Choices) {
        let subject = self.subject;
        self.running.push_back(Box::pin(async move { (tag, run(subject, choices).await) }));
    }

    /// The next finished run; `None` when none is in flight.
    pub(crate) async fn next(&mut self) -> Option<(T, Finished<S>)> {
        self.running.next().await
    }
}

/// Makes one run and looks whether the subject kept to what was forced.
pub(crate) async fn run<S: Subject>(subject: &S, choices: Choices) -> Finished<S> {
    let result = subject.run(choices.clone()).await;
    let met = choices.met();
    // A run that failed to be made may well have stopped before the end of its prefix.
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(source) => {
            let token = met.map(|met| Token::of(&met)).unwrap_or_default();
            return Err(ExploreError::Run { token, source });
        }
    };
    let met = met.map_err(ExploreError::Diverged)?;
    let (marks, ended_early) = choices.marks();
    Ok(Judged { choices: met.into(), outcome, marks, ended_early })
}

/// A run that violated an oracle.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure<R> {
    /// Which run of the search it was, from 1; 0 if a token of [`Search::first`](super::Search::first) found
    /// it.
    pub number: u64,
    /// The points it met and what was taken there.
    pub choices: Arc<[Chosen]>,
    /// How it ended, with its record.
    pub outcome: Outcome<R>,
}

impl<R> Failure<R> {
    /// What replays it.
    #[must_use]
    pub fn token(&self) -> Token {
        Token::of(&self.choices)
    }

    /// The oracle that was violated.
    #[must_use]
    pub fn oracle(&self) -> &str {
        match &self.outcome.ending {
            Ending::Failed { oracle, .. } => oracle,
            _ => "",
        }
    }
}

/// An exploration that could not go on. The cause of one run that could not be made is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExploreError<E: Error + 'static> {
    /// A run could not be made.
    #[error("failed to run the subject with the choices {token}")]
    Run {
        /// The choices of that run.
        token: Token,
        /// What the subject said.
        source: E,
    },
    /// The subject met other points than before with the same choices.
    #[error(transparent)]
    Diverged(Box<Divergence>),
    /// From one state, two runs with the same choices went different ways.
    #[error(
        "two runs were in one state at {place}, and went different ways: something that the state does not \
         tell decides how a run goes on, such as memory that is kept from one pass to the next; one of \
         them had the choices {token}"
    )]
    StatesDiffer {
        /// The choices of one of them.
        token: Token,
        /// Where they were, in words.
        place: String,
    },
    /// A failing run, made again, went another way or ended in another way.
    #[error(
        "the subject is not deterministic: with the choices {token}, line {line} of the trace was \
         {first:?} the first time and {second:?} the second time"
    )]
    TraceDiffers {
        /// The choices of both runs.
        token: Token,
        /// The first line that differs, from 1.
        line: usize,
        /// The line of the first run.
        first: String,
        /// The line of the second run.
        second: String,
    },
}
