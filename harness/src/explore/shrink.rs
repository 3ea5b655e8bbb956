//! Reducing a failing run until every choice in it is needed.

use std::collections::HashSet;

use super::{Choices, ExploreError, Failure, Subject, Token, pool::run, token::is_staleness};
use crate::lag::model::{Label, Needs, PointId};

/// Reduces a failing run: fewest stale choices, then least lag, then fewest steps of other actors.
///
/// A smaller run counts only if it violates the same oracle. The result is 1-minimal: with any one of its
/// choices made fresh, or any one lag reduced, it no longer fails in that way.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Shrink {
    runs: u64,
}

impl Shrink {
    /// With the default limit of 1,000 runs.
    pub fn new() -> Self {
        Self { runs: 1_000 }
    }

    /// Makes at most so many runs; what has been reached by then is the result.
    pub fn max_runs(mut self, runs: u64) -> Self {
        self.runs = runs;
        self
    }

    /// Shrinks.
    ///
    /// # Errors
    /// [`ExploreError::Run`] if a run could not be made.
    pub async fn run<S: Subject>(
        &self,
        subject: &S,
        failure: Failure<S::Record>,
    ) -> Result<Shrunk<S::Record>, ExploreError<S::Error>> {
        let oracle = failure.oracle().to_owned();
        let mut shrinking = Shrinking {
            subject,
            oracle,
            left: self.runs,
            smallest: failure,
            tried: HashSet::new(),
            others: Vec::new(),
        };
        if shrinking.fails(&[]).await? {
            return Ok(shrinking.finish(self.runs, Needs::Nothing));
        }
        loop {
            let before = shrinking.current();
            shrinking.drop_choices(is_staleness).await?;
            shrinking.reduce_lag().await?;
            shrinking.drop_choices(|id| !is_staleness(id)).await?;
            if shrinking.current() == before || shrinking.left == 0 {
                break;
            }
        }
        let stale = shrinking.current().iter().any(|(id, _)| is_staleness(id));
        let needs = if stale { Needs::Staleness } else { Needs::Environment };
        Ok(shrinking.finish(self.runs, needs))
    }
}

impl Default for Shrink {
    fn default() -> Self {
        Self::new()
    }
}

/// A failing run that has been reduced.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Shrunk<R> {
    /// The smallest failing run.
    pub failure: Failure<R>,
    /// What it needs.
    pub needs: Needs,
    /// How many runs were made.
    pub runs: u64,
    /// Whether every choice in it is known to be needed: false if the limit on runs was met before.
    pub minimal: bool,
    /// Oracles that other runs violated on the way, with the choices that did it.
    pub others: Vec<(String, Token)>,
}

struct Shrinking<'a, S: Subject> {
    subject: &'a S,
    oracle: String,
    left: u64,
    smallest: Failure<S::Record>,
    /// Choices that were tried and did not fail in this way.
    tried: HashSet<Token>,
    others: Vec<(String, Token)>,
}

type Named = (PointId, Label);

impl<S: Subject> Shrinking<'_, S> {
    fn current(&self) -> Vec<Named> {
        self.smallest.token().choices().to_vec()
    }

    /// Whether the run with these choices fails in the same way; if so it is the smallest now.
    ///
    /// Choices whose point is gone fall away: what was taken then is what the run itself recorded.
    async fn fails(&mut self, choices: &[Named]) -> Result<bool, ExploreError<S::Error>> {
        let token = Token::new(choices.iter().cloned());
        if self.left == 0 || self.tried.contains(&token) {
            return Ok(false);
        }
        self.left -= 1;
        let judged = run(self.subject, Choices::named(&token)).await?;
        match judged.outcome.ending.oracle() {
            Some(oracle) if oracle == self.oracle => {
                self.smallest = Failure {
                    number: self.smallest.number,
                    choices: judged.choices,
                    outcome: judged.outcome,
                };
                return Ok(true);
            }
            Some(oracle) => self.others.push((oracle.to_owned(), Token::of(&judged.choices))),
            None => {}
        }
        self.tried.insert(token);
        Ok(false)
    }

    /// Delta debugging over the choices that `which` selects; the others stay.
    ///
    /// Source: Zeller, Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002; only the
    /// complements are tried, since a subset alone is the complement of the rest at the next step.
    async fn drop_choices(
        &mut self,
        which: impl Fn(&PointId) -> bool,
    ) -> Result<(), ExploreError<S::Error>> {
        let mut parts = 1;
        loop {
            let all = self.current();
            let selected: Vec<_> =
                all.iter().enumerate().filter(|(_, (id, _))| which(id)).map(|(i, _)| i).collect();
            if selected.is_empty() {
                return Ok(());
            }
            parts = parts.min(selected.len());
            let size = selected.len().div_ceil(parts);
            let mut reduced = false;
            for part in selected.chunks(size) {
                let rest: Vec<_> = all
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| !part.contains(index))
                    .map(|(_, named)| named.clone())
                    .collect();
                if self.fails(&rest).await? {
                    reduced = true;
                    break;
                }
            }
            if reduced {
                parts = (parts - 1).max(1);
            } else if size == 1 {
                return Ok(());
            } else {
                parts *= 2;
            }
        }
    }

    /// Moves each stale choice to the least lag with which the run still fails.
    async fn reduce_lag(&mut self) -> Result<(), ExploreError<S::Error>> {
        let ids: Vec<_> = self.current().into_iter().map(|(id, _)| id).collect();
        for id in ids.into_iter().filter(is_staleness) {
            let Some(labels) = self.less_lag(&id) else { continue };
            for label in labels {
                let mut choices = self.current();
                for named in &mut choices {
                    if named.0 == id {
                        named.1 = label.clone();
                    }
                }
                if self.fails(&choices).await? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The alternatives at a point of the smallest run with less lag than the one taken, least first.
    fn less_lag(&self, id: &PointId) -> Option<Vec<Label>> {
        let chosen = self.smallest.choices.iter().find(|chosen| chosen.point.id() == id)?;
        let taken = chosen.alternative().lag;
        let mut less: Vec<_> =
            chosen.point.menu()[1..].iter().filter(|alt| alt.lag < taken).collect();
        less.sort_by_key(|alt| alt.lag);
        Some(less.into_iter().map(|alt| alt.label.clone()).collect())
    }

    fn finish(self, limit: u64, needs: Needs) -> Shrunk<S::Record> {
        Shrunk {
            failure: self.smallest,
            needs,
            runs: limit - self.left,
            minimal: self.left > 0,
            others: self.others,
        }
    }
}
