//! Making a run again, and noticing when it is no longer the same.

use std::{error::Error, fmt, sync::Arc};

use super::{
    Choices, Ending, ExploreError, Failure, Outcome, Subject, Token, Unmatched,
    pool::{Judged, run},
};
use crate::lag::model::Chosen;

/// Makes the run that `token` names. `Ok(None)` if no oracle is violated in it.
///
/// # Errors
/// [`ReplayError::OutOfDate`] if the token names points or alternatives that the run does not have any
/// more. Such a run says nothing about the failure the token was made for, so it is never a pass; whether
/// it fails nonetheless is in the error. [`ReplayError::Explore`] if the run could not be made.
pub async fn replay<S: Subject>(
    subject: &S,
    token: &Token,
) -> Result<Option<Failure<S::Record>>, ReplayError<S::Error>> {
    let (choices, outcome) = named(subject, token).await?;
    let failed = matches!(outcome.ending, Ending::Failed { .. });
    Ok(failed.then_some(Failure { number: 1, choices, outcome }))
}

/// Makes the run that `token` names, and looks whether it is the one that is meant.
async fn named<S: Subject>(
    subject: &S,
    token: &Token,
) -> Result<(Arc<[Chosen]>, Outcome<S::Record>), ReplayError<S::Error>> {
    let choices = Choices::named(token);
    let Judged { choices: met, outcome, .. } = run(subject, choices.clone()).await?;
    let unmatched = choices.unmatched();
    if !unmatched.is_empty() || matches!(outcome.ending, Ending::Impossible { .. }) {
        let ending = outcome.ending;
        return Err(ReplayError::OutOfDate(OutOfDate { token: token.clone(), unmatched, ending }));
    }
    Ok((met, outcome))
}

/// Makes a run again with the same choices and compares what happened.
///
/// # Errors
/// [`ExploreError::Diverged`] at the first point that differs, [`ExploreError::TraceDiffers`] at the first
/// line of the trace that does, [`ExploreError::Run`] if the run could not be made.
pub async fn confirm<S: Subject>(
    subject: &S,
    choices: &Arc<[Chosen]>,
    outcome: &Outcome<S::Record>,
) -> Result<(), ExploreError<S::Error>> {
    let again = run(subject, Choices::again(Arc::clone(choices))).await?;
    compare(&Token::of(choices), &lines(outcome), &lines(&again.outcome))
}

/// Makes the run that `token` names so many times, and returns the lines of its trace and its end, which all had.
///
/// # Errors
/// As [`confirm`]; [`ReplayError::OutOfDate`] as [`replay`].
pub async fn repeat<S: Subject>(
    subject: &S,
    token: &Token,
    times: u64,
) -> Result<Vec<String>, ReplayError<S::Error>> {
    let (met, outcome) = named(subject, token).await?;
    let first = lines(&outcome);
    for _ in 1..times {
        let again = run(subject, Choices::again(Arc::clone(&met))).await?;
        compare(token, &first, &lines(&again.outcome))?;
    }
    Ok(first)
}

/// The trace, and how the run ended.
fn lines<R>(outcome: &Outcome<R>) -> Vec<String> {
    let ending = match outcome.ending.oracle() {
        Some(oracle) => format!("violates {oracle:?}"),
        None => "violates nothing".to_owned(),
    };
    outcome.trace.iter().cloned().chain([ending]).collect()
}

fn compare<E: Error>(
    token: &Token,
    first: &[String],
    second: &[String],
) -> Result<(), ExploreError<E>> {
    if first == second {
        return Ok(());
    }
    let line = first.iter().zip(second).take_while(|(first, second)| first == second).count();
    let at = |lines: &[String]| lines.get(line).cloned().unwrap_or_else(|| "its end".to_owned());
    Err(ExploreError::TraceDiffers {
        token: token.clone(),
        line: line + 1,
        first: at(first),
        second: at(second),
    })
}

/// A replay that shows neither a failure nor its absence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError<E: Error + 'static> {
    /// The token no longer fits the code under test.
    #[error("{0}")]
    OutOfDate(OutOfDate),
    /// The run could not be made.
    #[error(transparent)]
    Explore(#[from] ExploreError<E>),
}

/// A token that names what the run does not have.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OutOfDate {
    /// The token.
    pub token: Token,
    /// What had no effect. Empty if a named alternative was on the menu and then could not be made.
    pub unmatched: Vec<Unmatched>,
    /// How the run ended with what was left of the token.
    pub ending: Ending,
}

impl fmt::Display for OutOfDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the token {} is out of date, explore again to find what became of it",
            self.token
        )?;
        for unmatched in &self.unmatched {
            write!(f, "\n  {unmatched}")?;
        }
        match &self.ending {
            Ending::Passed => f.write_str("\n  with what is left of it no oracle is violated"),
            Ending::Failed { oracle, text } => {
                write!(f, "\n  with what is left of it {oracle:?} is violated all the same: {text}")
            }
            Ending::Impossible { point, why } => write!(f, "\n  {point} cannot be made: {why}"),
        }
    }
}
