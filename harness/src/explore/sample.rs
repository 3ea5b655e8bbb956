//! Runs drawn at random, for what is too large to enumerate.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    Choices, Clock, Ending, ExploreError, Explored, Failure, Stopwatch, Subject, Token,
    pool::{Judged, Pool, run},
    random::Random,
    replay::confirm,
};
use crate::lag::model::{Completeness, Ended, Verdict};

/// Draws runs of a subject with a seed. The same seed draws the same runs.
///
/// The first run is the baseline. A sample never says "exhausted". By default it stops at the first
/// failure and makes one run at a time; a failing run is made a second time, and must go the same way.
#[derive(Clone)]
#[must_use]
pub struct Sample {
    how: How,
    seed: u64,
    runs: u64,
    time: Option<Duration>,
    parallel: usize,
    keep_going: bool,
    exclusions: Vec<String>,
    clock: Arc<dyn Clock>,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Uniform,
    Pct { depth: usize },
}

impl Sample {
    /// Draws `runs` runs in which any alternative may be taken at any point.
    pub fn uniform(seed: u64, runs: u64) -> Self {
        Self::new(How::Uniform, seed, runs)
    }

    /// Draws `runs` runs that are fresh but for `depth` points: see [`Choices::pct`].
    pub fn pct(seed: u64, runs: u64, depth: usize) -> Self {
        Self::new(How::Pct { depth }, seed, runs)
    }

    fn new(how: How, seed: u64, runs: u64) -> Self {
        Self {
            how,
            seed,
            runs,
            time: None,
            parallel: 1,
            keep_going: false,
            exclusions: Vec::new(),
            clock: Arc::new(Stopwatch::start()),
        }
    }

    /// Begins no run when so much time has passed since the start.
    pub fn max_time(mut self, time: Duration) -> Self {
        self.time = Some(time);
        self
    }

    /// Keeps so many runs under way at once; at least one.
    pub fn parallel(mut self, runs: usize) -> Self {
        self.parallel = runs.max(1);
        self
    }

    /// How many runs are under way at once.
    pub(crate) fn at_once(&self) -> usize {
        self.parallel
    }

    /// Goes on after a failure.
    pub fn keep_going(mut self) -> Self {
        self.keep_going = true;
        self
    }

    /// States something that no run can do, however many are drawn; printed with the verdict.
    pub fn leaves_out(mut self, exclusion: impl Into<String>) -> Self {
        self.exclusions.push(exclusion.into());
        self
    }

    /// Measures time by this clock.
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Draws the runs. A run that was drawn before is made again and counted once; among the failures each
    /// schedule is listed once.
    ///
    /// # Errors
    /// As [`Search::run`](super::Search::run).
    pub async fn run<S: Subject>(
        &self,
        subject: &S,
    ) -> Result<Explored<S::Record>, ExploreError<S::Error>> {
        let started = self.clock.elapsed();
        let elapsed = || self.clock.elapsed().saturating_sub(started);
        let mut random = Random::new(self.seed);
        let mut seen = BTreeSet::new();
        let mut failures = Vec::new();
        let (mut impossible, mut points, mut naive) = (0, 0, 0_u64);
        let mut begun = 1;
        let mut by = Ended::Sampled { seed: self.seed };
        let mut pool = Pool::new(subject);
        let mut next = Some(run(subject, Choices::fresh()).await?);
        while let Some(judged) = next.take() {
            points = points.max(judged.choices.len());
            let new = seen.insert(Token::of(&judged.choices));
            match &judged.outcome.ending {
                Ending::Impossible { .. } => impossible += 1,
                ending if new => {
                    naive = naive.saturating_add(judged.outcome.interleavings);
                    if ending.oracle().is_some() {
                        confirm(subject, &judged.choices, &judged.outcome).await?;
                        let number = u64::try_from(seen.len()).unwrap_or(u64::MAX);
                        let Judged { choices, outcome, .. } = judged;
                        failures.push(Failure { number, choices, outcome });
                        if !self.keep_going {
                            by = Ended::Failure;
                        }
                    }
                }
                _ => {}
            }
            if by != Ended::Failure && self.time.is_some_and(|most| elapsed() >= most) {
                by = Ended::Time(self.time.unwrap_or_default());
            }
            while matches!(by, Ended::Sampled { .. })
                && begun < self.runs
                && pool.len() < self.parallel
            {
                begun += 1;
                pool.start((), self.draw(random.next(), points));
            }
            if let Some(((), finished)) = pool.next().await {
                next = Some(finished?);
            }
        }
        let verdict = Verdict {
            completeness: Completeness::NotExhausted { by },
            runs: u64::try_from(seen.len()).unwrap_or(u64::MAX) - impossible,
            failures: u64::try_from(failures.len()).unwrap_or(u64::MAX),
            impossible,
            redundant: 0,
            merged: 0,
            looked_again: 0,
            points,
            naive,
            elapsed: elapsed(),
            shard: None,
            exclusions: self.exclusions.clone(),
            worlds: None,
            requests: 0,
            recalled: 0,
        };
        Ok(Explored {
            verdict,
            failures,
            passed: Vec::new(),
            baseline: None,
            out_of_date: Vec::new(),
            runs_by_cost: Vec::new(),
        })
    }

    fn draw(&self, seed: u64, points: usize) -> Choices {
        match self.how {
            How::Uniform => Choices::random(seed),
            How::Pct { depth } => Choices::pct(seed, depth, points),
        }
    }
}
