//! Checking by runs that are drawn at random, and making one run again and again.

use std::sync::Arc;

use super::{
    Check, Inspector, Report, Server, error::CheckError, rehearse, runs, scenario::Scenario,
};
use crate::{
    check::ground::{Ground, RunError, Source},
    explore::{Choices, Outcome, Sample, Subject, Token},
    lag::model::Run,
};

impl Check {
    /// Calls this with what each run has left: its record, its trace, how it ended. Several may look.
    ///
    /// Runs that only prepare, reduce or confirm are left out. It is called between two runs, so keep it short.
    pub fn inspect(mut self, inspector: impl Fn(&Outcome<Run>) + Send + Sync + 'static) -> Self {
        self.inspectors.push(Inspector(Arc::new(inspector)));
        self
    }

    /// Draws runs, for what is too large to [explore](Self::run). How many at once, and after which time no more,
    /// the sample says; the bounds and limits of this check do not count. Reads no saved tokens, and writes no
    /// files but that of the results.
    ///
    /// ```no_run
    /// use laggard::{check::{Check, Scenario}, explore::Sample};
    ///
    /// # async fn example(plane: laggard::Plane, scenario: Scenario) -> Result<(), Box<dyn std::error::Error>> {
    /// let sample = Sample::pct(1, 500, 3).parallel(4);
    /// let report = Check::new().sample(&plane, scenario, &sample).await?;
    /// println!("{report}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn sample(
        &self,
        server: impl Into<Server>,
        scenario: Scenario,
        sample: &Sample,
    ) -> Result<Report, CheckError> {
        let ground = Ground::prepare(&server.into(), &scenario).await?;
        let report = self.sample_on(&ground, &scenario, sample).await;
        let closed = ground.close().await;
        let mut report = report?;
        closed?;
        self.files.write(&mut report)?;
        match report.findings.is_empty() {
            true => Ok(report),
            false => Err(CheckError::Found(Box::new(report))),
        }
    }

    async fn sample_on(
        &self,
        ground: &Ground,
        scenario: &Scenario,
        sample: &Sample,
    ) -> Result<Report, CheckError> {
        rehearse(ground, scenario, Source::Moment).await?;
        let mut sample = sample.clone();
        for exclusion in super::exclusions(scenario) {
            sample = sample.leaves_out(exclusion);
        }
        let subject = self.inspected(runs(ground, scenario, Source::Moment));
        let explored = ground.with_worlds_ahead(sample.at_once(), sample.run(&subject)).await?;
        let mut report = self.report(ground, scenario, &explored).await;
        if let Some(first) = explored.failures.into_iter().next() {
            report.findings.push(self.reduce(ground, scenario, first, &report.verdict).await?);
        }
        Ok(report)
    }

    /// Makes the run of one token so many times, each in a world of its own, one after the other, and compares what
    /// happened. Returns what all had in common: a line for each step, with everything replaced that differs
    /// between runs of one schedule.
    ///
    /// The lines do not depend on the runtime, so those of two can be compared.
    ///
    /// # Errors
    /// [`CheckError::Explore`] with [`ExploreError::TraceDiffers`](crate::explore::ExploreError::TraceDiffers) if two runs differ; [`CheckError::OutOfDate`] if the
    /// token does not fit the process. That a run violates an oracle is none. The others as [`run`](Self::run).
    pub async fn repeat(
        &self,
        server: impl Into<Server>,
        scenario: Scenario,
        token: &Token,
        times: u64,
    ) -> Result<Vec<String>, CheckError> {
        // Else it would be memory that is compared with itself.
        let server = server.into().without_recall();
        let ground = Ground::prepare(&server, &scenario).await?;
        let lines = self.repeat_on(&ground, &scenario, token, times).await;
        let closed = ground.close().await;
        let lines = lines?;
        closed?;
        Ok(lines)
    }

    async fn repeat_on(
        &self,
        ground: &Ground,
        scenario: &Scenario,
        token: &Token,
        times: u64,
    ) -> Result<Vec<String>, CheckError> {
        rehearse(ground, scenario, Source::Moment).await?;
        let subject = self.inspected(runs(ground, scenario, Source::Moment));
        let repeated = crate::explore::repeat(&subject, token, times).await;
        repeated.map_err(CheckError::of_replay)
    }

    /// The runs with those who look at them.
    pub(super) fn inspected<S: Subject<Record = Run, Error = RunError>>(
        &self,
        subject: S,
    ) -> Inspected<'_, S> {
        Inspected { subject, inspectors: &self.inspectors }
    }
}

/// A subject at whose runs somebody looks.
pub(super) struct Inspected<'a, S> {
    subject: S,
    inspectors: &'a [Inspector],
}

impl<S: Subject<Record = Run, Error = RunError>> Subject for Inspected<'_, S> {
    type Record = Run;
    type Error = RunError;

    async fn run(&self, choices: Choices) -> Result<Outcome<Run>, RunError> {
        let outcome = self.subject.run(choices).await?;
        for Inspector(inspector) in self.inspectors {
            inspector(&outcome);
        }
        Ok(outcome)
    }
}
