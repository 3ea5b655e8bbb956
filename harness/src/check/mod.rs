//! Checking a process: every legal view within bounds, on a real server, each run in a world of its own.
//!
//! A [`Scenario`] says what is set up, what the process under test does, who else acts, and what must hold.
//! [`check`](crate::check()) explores it, reduces what fails to the one stale read, makes it again from nothing, and
//! says how to replay it. [`Check`] is the same with other bounds.

mod actor;
mod director;
mod drive;
mod error;
mod files;
mod finding;
mod flips;
mod ground;
mod laps;
mod oracles;
mod progress;
mod reduction;
mod run;
mod sampled;
mod scenario;
mod truth;
mod world;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

pub use self::{
    actor::{Acting, Actor, Step},
    drive::DriveError,
    error::CheckError,
    files::write_results,
    flips::{CachedSite, FlipReport, FlipVerdict, FlippedSite, Flips, ReadSite},
    ground::{RunError, Server},
    oracles::{BuiltIn, Claim, Oracles, SeenPass, Sighting},
    scenario::{BoxError, Scenario},
    truth::Truth,
    world::{SetUp, World},
};
use self::{
    files::Files,
    ground::{Ground, Source},
    run::Runs,
};
use crate::{
    explore::{
        Choices, ExploreError, Explored, Failure, OutOfDate, Outcome, Passed, Progress,
        Regressions, Search, Shrink, Subject, Token, replay,
    },
    lag::model::{Bounds, Chosen, Finding, Run, Shard, Verdict},
    report::{self, KeptRun, Results},
};

/// The variable whose token is replayed in place of a search.
pub(crate) const REPLAY: &str = "LAGGARD_REPLAY";

/// Explores a scenario on a server with the bounds of [`Check::new`], and judges every run.
///
/// # Errors
/// [`CheckError::Found`] if a run violates an oracle; its text explains the race and how to replay it. The others if
/// that could not be found out.
///
/// See [`Scenario`] for an example.
pub async fn check(server: impl Into<Server>, scenario: Scenario) -> Result<Report, CheckError> {
    Check::new().run(server, scenario).await
}

/// How a scenario is explored.
#[derive(Clone, Debug)]
#[must_use]
pub struct Check {
    bounds: Bounds,
    runs: Option<u64>,
    time: Option<Duration>,
    parallel: usize,
    shard: Option<Shard>,
    keep_going: bool,
    keep_runs: usize,
    observers: Vec<Observer>,
    inspectors: Vec<Inspector>,
    every_moment: bool,
    files: Files,
}

#[derive(Clone)]
struct Observer(Arc<dyn Fn(&Progress) + Send + Sync>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// Somebody who looks at what each run has left.
#[derive(Clone)]
struct Inspector(Inspect);

type Inspect = Arc<dyn Fn(&Outcome<Run>) + Send + Sync>;

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inspector")
    }
}

impl Check {
    /// At most two stale reads, two holds and one fault in a run, as many runs as that takes, four at once; stops at
    /// the first failure.
    pub fn new() -> Self {
        Self {
            bounds: Bounds::default(),
            runs: None,
            time: None,
            parallel: 4,
            shard: None,
            keep_going: false,
            keep_runs: 200,
            observers: Vec::new(),
            inspectors: Vec::new(),
            every_moment: false,
            files: Files::default(),
        }
    }

    /// Departs at most so far from the run in which everything is fresh.
    pub fn bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// Makes at most so many runs.
    pub fn max_runs(mut self, runs: u64) -> Self {
        self.runs = Some(runs);
        self
    }

    /// Begins no run when so much time has passed.
    pub fn max_time(mut self, time: Duration) -> Self {
        self.time = Some(time);
        self
    }

    /// Keeps so many runs under way at once, each in a world of its own; four unless said.
    pub fn parallel(mut self, runs: usize) -> Self {
        self.parallel = runs.max(1);
        self
    }

    /// Explores one part of the whole; see [`Search::shard`]. By default what the variables `LAGGARD_SHARD=i/n`, or
    /// `JOB_COMPLETION_INDEX` with `LAGGARD_SHARDS=n`, say.
    pub fn shard(mut self, shard: Shard) -> Self {
        self.shard = Some(shard);
        self
    }

    /// Goes on after a failure, and counts all of them. The first is the one that is reduced.
    pub fn keep_going(mut self) -> Self {
        self.keep_going = true;
        self
    }

    /// The directory for the tokens of failing runs, which are tried first the next time. By default
    /// `laggard-regressions` beside the manifest of the package under test.
    ///
    /// Each scenario has a file of its own, after the source file that calls [`Scenario::new`] and its name:
    /// `laggard-regressions/tests/nodes/rollout.txt` of the scenario `rollout` in `tests/nodes.rs`. So two of one
    /// name do not try each other's tokens, unless they are in one file.
    pub fn regressions(mut self, directory: impl Into<PathBuf>) -> Self {
        self.files.regressions = Some(directory.into());
        self
    }

    /// Shows so many runs on the page and in the results, in the order of the search; 200 unless said. The run that
    /// is reduced is always among them, and the page says how many are left out.
    pub fn keep_runs(mut self, runs: usize) -> Self {
        self.keep_runs = runs;
        self
    }

    /// Calls this each time a run is judged; see [`Search::observe`]. Several may watch.
    ///
    /// Without it, a check shows one line where standard error is a terminal, rewrites it as it goes on, and takes it
    /// away at the end. The variable `LAGGARD_PROGRESS=off` turns that off.
    pub fn observe(mut self, observer: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        self.observers.push(Observer(Arc::new(observer)));
        self
    }

    /// The directory for `NAME.json` and `NAME.html`, after the name of the scenario; of a part of the work,
    /// `NAME.shard-1-of-4.json`. What a check of the same name wrote there before is replaced.
    ///
    /// By default it is the one that the variable `LAGGARD_OUTPUT` names, or `laggard` in the target directory of the
    /// test. In these each test has a directory of its own, called after its binary and itself, so that scenarios of one
    /// name in two tests do not meet. (libtest with one test thread does not tell the test's name; then they meet.)
    pub fn output(mut self, directory: impl Into<PathBuf>) -> Self {
        self.files.output = Some(directory.into());
        self
    }

    /// Lets actors act at every moment, also where a later one leads to the same. To see that the reduction leaves
    /// nothing out.
    pub fn at_every_moment(mut self) -> Self {
        self.every_moment = true;
        self
    }

    /// Reads and writes no files: for a scenario that is meant to fail.
    pub fn without_files(mut self) -> Self {
        self.files.off = true;
        self
    }

    /// Explores the scenario on a server.
    ///
    /// If the variable `LAGGARD_REPLAY` has a token, that one run is made, from nothing and through the API, and
    /// nothing else. Dropping the future ends the runs under way; what they left is removed in the background.
    ///
    /// # Errors
    /// See [`check`].
    pub async fn run(
        &self,
        server: impl Into<Server>,
        scenario: Scenario,
    ) -> Result<Report, CheckError> {
        let server = server.into();
        let token = replayed()?;
        self.part()?;
        let ground = Ground::prepare(&server, &scenario).await?;
        let report = match token {
            Some(token) => self.replay(&ground, &scenario, &token).await,
            None => self.explore(&ground, &scenario).await,
        };
        // Also after an error, but then that is what matters.
        let closed = ground.close().await;
        let mut report = report?;
        if let Err(error) = closed {
            if report.findings.is_empty() {
                return Err(error);
            }
            tracing::warn!(%error, "worlds were left behind");
        }
        self.files.write(&mut report)?;
        if report.findings.is_empty() {
            Ok(report)
        } else {
            Err(CheckError::Found(Box::new(report)))
        }
    }

    async fn explore(&self, ground: &Ground, scenario: &Scenario) -> Result<Report, CheckError> {
        rehearse(ground, scenario, Source::Moment).await?;
        self.explore_with(ground, scenario, runs(ground, scenario, Source::Moment)).await
    }

    async fn explore_with(
        &self,
        ground: &Ground,
        scenario: &Scenario,
        forked: Runs<'_>,
    ) -> Result<Report, CheckError> {
        let file = self.files.regressions_of(scenario);
        let mut search = self.search(scenario)?.keep_passed(self.keep_runs);
        search = search.keep_failures(self.keep_runs.max(1));
        for Observer(observer) in self.observers.iter().cloned() {
            search = search.observe(move |progress| observer(progress));
        }
        if let Some(line) = progress::on_terminal(&scenario.name) {
            search = search.observe(move |progress| line.show(progress));
        }
        let mut forked = forked;
        forked.every_moment = self.every_moment;
        if let Some(file) = &file {
            let saved = Regressions::read(file).map_err(files::regressions)?;
            search = search.first(saved.tokens().iter().cloned());
        }
        let forked = self.inspected(forked);
        let explored = ground.with_worlds_ahead(self.parallel, search.run(&forked)).await?;
        // With it goes the line on the terminal.
        drop(search);
        let mut report = self.report(ground, scenario, &explored).await;
        let Explored { failures, out_of_date, .. } = explored;
        report.out_of_date = out_of_date;
        let Some(first) = failures.into_iter().next() else { return Ok(report) };
        let finding = self.reduce(ground, scenario, first, &report.verdict).await?;
        if let (Some(file), Ok(token)) = (file, finding.token.parse()) {
            let remark = finding.run.violations().next().map(|(_, it)| it.oracle.clone());
            Regressions::add(&file, &token, &remark.unwrap_or_default())
                .map_err(files::regressions)?;
            report.saved = Some(file.display().to_string());
        }
        report.findings.push(finding);
        Ok(report)
    }

    async fn replay(
        &self,
        ground: &Ground,
        scenario: &Scenario,
        token: &Token,
    ) -> Result<Report, CheckError> {
        let subject = runs(ground, scenario, Source::Nothing);
        rehearse(ground, scenario, Source::Nothing).await?;
        let failure = match replay(&subject, token).await {
            Ok(failure) => failure,
            Err(error) => return Err(CheckError::of_replay(error)),
        };
        let verdict = finding::verdict_of_replay(failure.is_some());
        let mut report = Report::new(scenario, verdict, self.bounds);
        report.server = ground.server_version().await;
        if let Some(failure) = failure {
            let needs = finding::needs_of(token);
            report.findings.push(finding::of(failure, needs, &report.verdict, true));
        }
        Ok(report)
    }

    /// What a search has come to, without its findings.
    async fn report(
        &self,
        ground: &Ground,
        scenario: &Scenario,
        explored: &Explored<Run>,
    ) -> Report {
        let mut verdict = explored.verdict.clone();
        verdict.worlds = Some(ground.way());
        (verdict.recalled, verdict.requests) = ground.recalled();
        verdict.exclusions.extend(ground.left_out().map(str::to_owned));
        let mut report = Report::new(scenario, verdict, self.bounds);
        report.server = ground.server_version().await;
        report.runs_by_cost.clone_from(&explored.runs_by_cost);
        report.baseline = explored.baseline.as_deref().map(digest);
        report.runs = kept(&explored.failures, &explored.passed, self.keep_runs);
        report
    }

    async fn reduce(
        &self,
        ground: &Ground,
        scenario: &Scenario,
        failure: Failure<Run>,
        verdict: &Verdict,
    ) -> Result<Finding, CheckError> {
        let forked = runs(ground, scenario, Source::Moment);
        let shrunk = Shrink::new().max_runs(200).run(&forked, failure).await;
        let shrunk = shrunk.map_err(CheckError::Explore)?;
        let mut finding = finding::of(shrunk.failure, shrunk.needs, verdict, shrunk.minimal);
        finding::confirm(&runs(ground, scenario, Source::Nothing), &mut finding).await?;
        Ok(finding)
    }

    /// The part of the work that is ours; the whole if `None`.
    fn part(&self) -> Result<Option<Shard>, CheckError> {
        self.shard.map_or_else(files::shard, |shard| Ok(Some(shard)))
    }

    fn search(&self, scenario: &Scenario) -> Result<Search, CheckError> {
        let mut search = Search::new().bounds(self.bounds).parallel(self.parallel);
        if let Some(runs) = self.runs {
            search = search.max_runs(runs);
        }
        if let Some(time) = self.time {
            search = search.max_time(time);
        }
        if let Some(shard) = self.part()? {
            search = search.shard(shard);
        }
        if self.keep_going {
            search = search.keep_going();
        }
        for exclusion in exclusions(scenario) {
            search = search.leaves_out(exclusion);
        }
        Ok(search)
    }
}

impl Default for Check {
    fn default() -> Self {
        Self::new()
    }
}

fn runs<'a>(ground: &'a Ground, scenario: &'a Scenario, from: Source) -> Runs<'a> {
    Runs {
        ground,
        scenario,
        from,
        flip: None,
        looker: None,
        every_moment: false,
        ends: Arc::default(),
    }
}

/// Makes the run in which everything is fresh until nothing new is asked about, so that all that the process asks
/// about is followed from the first run of the search on.
///
/// A run that fails before something new is followed is made again: an actor may have had to see it.
async fn rehearse(ground: &Ground, scenario: &Scenario, from: Source) -> Result<(), CheckError> {
    let subject = runs(ground, scenario, from);
    for _ in 0..3 {
        let known = ground.followed_count();
        let rehearsed = subject.run(Choices::fresh()).await;
        if ground.followed_count() == known {
            return rehearsed.map(drop).map_err(rehearsal);
        }
    }
    Ok(())
}

fn rehearsal(error: RunError) -> CheckError {
    CheckError::Explore(ExploreError::Run { token: Token::default(), source: error })
}

/// What no run of the scenario has, whatever the bounds are.
fn exclusions(scenario: &Scenario) -> Vec<&'static str> {
    let mut exclusions = vec!["other orders of concurrent replies and of keys", "requeue timers"];
    if scenario.actors.is_empty() {
        exclusions.push("steps of other actors");
    }
    if !scenario.restarts {
        exclusions.push("restarts");
    }
    exclusions.push(if scenario.relists { "relists within a pass" } else { "relists" });
    if !scenario.lost_replies {
        exclusions.push("lost replies");
    }
    exclusions
}

fn replayed() -> Result<Option<Token>, CheckError> {
    match std::env::var(REPLAY) {
        Ok(text) if !text.trim().is_empty() => {
            text.parse().map(Some).map_err(|error| CheckError::token(&text, &error))
        }
        _ => Ok(None),
    }
}

/// What a check has found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The name of the scenario.
    pub name: String,
    /// How the search ended, and what it counted.
    pub verdict: Verdict,
    /// How far its runs could depart from the one in which everything is fresh.
    pub bounds: Bounds,
    /// What the server says its version is, such as `v1.37.2`; `None` if it did not.
    pub server: Option<String>,
    /// A digest of the choice points of the run in which everything is fresh; `None` if that run was not made.
    pub baseline: Option<String>,
    /// The first failure, reduced; empty if the scenario passes.
    pub findings: Vec<Finding>,
    /// How many runs were made at each cost, from 0.
    pub runs_by_cost: Vec<u64>,
    /// The saved tokens that no longer fit, which prove nothing any more.
    pub out_of_date: Vec<OutOfDate>,
    /// The file that the token of the finding was saved in.
    pub saved: Option<String>,
    /// The file of the page, or why there is none; `None` if nobody asked for one.
    pub page_file: Option<String>,
    /// The first runs of the search, as many as [`Check::keep_runs`] says.
    pub runs: Vec<KeptRun>,
}

impl Report {
    fn new(scenario: &Scenario, verdict: Verdict, bounds: Bounds) -> Self {
        Self {
            name: scenario.name.clone(),
            verdict,
            bounds,
            server: None,
            baseline: None,
            findings: Vec::new(),
            runs_by_cost: Vec::new(),
            out_of_date: Vec::new(),
            saved: None,
            page_file: None,
            runs: Vec::new(),
        }
    }

    /// All of it as plain data, which [`write_results`] writes and [`report::merge`](crate::report::merge()) joins.
    #[must_use]
    pub fn results(&self) -> Results {
        let mut results = Results::new(&self.name, self.verdict.clone(), self.bounds);
        results.server.clone_from(&self.server);
        results.baseline.clone_from(&self.baseline);
        results.runs_by_cost.clone_from(&self.runs_by_cost);
        results.findings.clone_from(&self.findings);
        results.out_of_date = self.out_of_date.iter().map(ToString::to_string).collect();
        results.replay = report::Replay {
            command: files::command(),
            saved: self.saved.clone(),
            page: self.page_file.clone(),
        };
        results.runs.clone_from(&self.runs);
        results
    }

    /// A page with the findings and runs, for a browser: one file, which asks for nothing else.
    #[must_use]
    pub fn page(&self) -> String {
        report::page(&self.results())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.results().fmt(f)
    }
}

/// The first `most` runs in the order of the search, and the one that is reduced.
fn kept(failures: &[Failure<Run>], passed: &[Passed<Run>], most: usize) -> Vec<KeptRun> {
    let failed = failures.iter().map(|run| {
        let token = run.token().to_string();
        KeptRun::new(run.number, token, Some(run.oracle()), &run.outcome.record)
    });
    let passed = passed
        .iter()
        .map(|run| KeptRun::new(run.number, run.token().to_string(), None, &run.outcome.record));
    let mut runs: Vec<_> = failed.chain(passed).collect();
    let reduced = failures.first().map(|failure| failure.number);
    runs.sort_by_key(|run| (Some(run.number) != reduced, run.number));
    runs.truncate(most.max(1));
    runs.sort_by_key(|run| run.number);
    runs
}

/// Names and menus of the points that a run met.
fn digest(choices: &[Chosen]) -> String {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    for chosen in choices {
        hash.update(chosen.point.id().to_string());
        for alternative in chosen.point.menu() {
            hash.update(format!(" {}", alternative.label));
        }
        hash.update("\n");
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
