//! Flips: each live read of a suite is answered from the lagging view instead, and the suite must go red.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Check, Report, Server,
    error::CheckError,
    finding,
    ground::{Ground, Source},
    rehearse,
    run::Runs,
    runs,
    scenario::Scenario,
};
use crate::{
    explore::{Failure, Outcome, Search, Shrink},
    lag::{
        Requests,
        model::{Action, Bounds, Completeness, Ended, Finding, Query, Request, Run, Verb, Verdict},
    },
    report,
};

/// Looks for the live reads of a suite, and whether anything notices when one of them is answered from a cache.
///
/// A live read is a GET or LIST that the process makes in a pass. Each site of one, named by verb, resource, name,
/// `tracing` span (where a subscriber records spans) and how many of these the pass had made before, is flipped in runs
/// of its own: what it answers is then a choice among what the lagging view of that resource could show. The code
/// under test is not changed.
///
/// The suite is explored within the bounds of its [`Check`], and with a read flipped within the same and one stale read
/// more, which is for that read. A flip is load-bearing if a run fails in which the flipped read was told something old.
///
/// To see that a second layer holds behind a live read, excuse the read by [`survives`](Self::survives) in a suite that
/// judges only what must never happen: if the layer gives way, the flip is noticed and the excuse is wrong.
///
/// ```no_run
/// # use laggard::check::Scenario;
/// # fn suite() -> Vec<Scenario> { Vec::new() }
/// # async fn example(plane: laggard::Plane) -> Result<(), Box<dyn std::error::Error>> {
/// let flips = laggard::Flips::new()
///     .survives("list pods #1", "only the metrics need it")
///     .run(&plane, suite())
///     .await?;
/// println!("{flips}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Flips {
    check: Check,
    excused: BTreeMap<String, String>,
}

impl Flips {
    /// Explores each flip as [`Check::new`] does.
    pub fn new() -> Self {
        Self::default()
    }

    /// Explores each flip in this way.
    pub fn exploring(mut self, check: Check) -> Self {
        self.check = check;
        self
    }

    /// A read, as the report names its site, that nothing has to notice, and why.
    pub fn survives(mut self, site: impl Into<String>, reason: impl Into<String>) -> Self {
        self.excused.insert(site.into(), reason.into());
        self
    }

    /// Checks the suite as it is, which must pass, then with each of its live reads flipped.
    ///
    /// # Errors
    /// [`CheckError::Found`] if the suite fails without a flip; [`CheckError::Survivors`] if a flip is noticed by no
    /// scenario and not excused, or if one is excused that is not a survivor; the others as [`Check::run`].
    pub async fn run(
        &self,
        server: impl Into<Server>,
        suite: impl IntoIterator<Item = Scenario>,
    ) -> Result<FlipReport, CheckError> {
        let server = server.into();
        let mut report = FlipReport::default();
        let mut found: BTreeMap<ReadSite, Vec<usize>> = BTreeMap::new();
        let mut stage = Vec::new();
        for scenario in suite {
            let ground = Ground::prepare(&server, &scenario).await?;
            rehearse(&ground, &scenario, Source::Moment).await?;
            let seen = Arc::new(Mutex::new(Seen::default()));
            let mut subject = runs(&ground, &scenario, Source::Moment);
            subject.looker = Some(Arc::clone(&seen));
            let checked = self.check.explore_with(&ground, &scenario, subject).await?;
            if !checked.findings.is_empty() {
                return Err(CheckError::Found(Box::new(checked)));
            }
            let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
            for site in seen.live {
                found.entry(site).or_default().push(stage.len());
            }
            report.cached.extend(seen.cached.into_iter().map(|(site, stale)| CachedSite {
                scenario: scenario.name.clone(),
                site,
                stale_in: stale.runs,
                told_apart: stale.told_apart,
            }));
            report.unflipped.push((scenario.name.clone(), checked.verdict));
            stage.push((ground, scenario));
        }
        for (site, scenarios) in found {
            let stage: Vec<_> = scenarios.iter().map(|index| &stage[*index]).collect();
            let verdict = self.flip(&stage, &site).await?;
            let excuse = self.excused.get(&site.to_string()).cloned();
            let flipped = FlippedSite { site, verdict, excuse };
            tracing::info!("{flipped}");
            report.live.push(flipped);
        }
        for (ground, _) in stage {
            ground.close().await?;
        }
        report.unknown_excuses = self
            .excused
            .keys()
            .filter(|name| report.live.iter().all(|flipped| flipped.site.to_string() != **name))
            .cloned()
            .collect();
        if report.is_good() { Ok(report) } else { Err(CheckError::Survivors(Box::new(report))) }
    }

    /// Explores the scenarios with one read flipped until something notices: few runs of each first, and more of each
    /// as long as nothing does, so that one that never notices is not explored to its end before another that does.
    async fn flip(
        &self,
        stage: &[&(Ground, Scenario)],
        site: &ReadSite,
    ) -> Result<FlipVerdict, CheckError> {
        let most = self.check.runs.unwrap_or(u64::MAX);
        let mut runs = vec![0; stage.len()];
        let mut left: Vec<usize> = (0..stage.len()).collect();
        let mut limit = FIRST_ROUND.min(most);
        while !left.is_empty() {
            let mut unfinished = Vec::new();
            for index in left {
                let (ground, scenario) = stage[index];
                let mut subject = runs_flipped(ground, scenario, site);
                subject.every_moment = self.check.every_moment;
                let search = self.flipped_search(scenario)?.max_runs(limit);
                let explored =
                    ground.with_worlds_ahead(self.check.parallel, search.run(&subject)).await?;
                runs[index] = explored.verdict.runs;
                let Verdict { completeness, .. } = &explored.verdict;
                if matches!(completeness, Completeness::NotExhausted { by: Ended::Runs(_) })
                    && limit < most
                {
                    unfinished.push(index);
                }
                if let Some(failure) = explored.failures.into_iter().next() {
                    let finding =
                        self.reduce_flipped(scenario, &subject, failure, &explored.verdict);
                    return Ok(FlipVerdict::LoadBearing {
                        scenario: scenario.name.clone(),
                        runs: runs.iter().sum(),
                        finding: Box::new(finding.await?),
                    });
                }
            }
            left = unfinished;
            limit = limit.saturating_mul(NEXT_ROUND).min(most);
        }
        Ok(FlipVerdict::Survives { runs: runs.iter().sum() })
    }

    /// A flipped read is one more that may be stale.
    fn flipped_search(&self, scenario: &Scenario) -> Result<Search, CheckError> {
        let Bounds { stale_reads, .. } = self.check.bounds;
        let bounds = Bounds {
            stale_reads: stale_reads.map(|most| most.saturating_add(1)),
            ..self.check.bounds
        };
        Ok(self.check.search(scenario)?.bounds(bounds))
    }

    /// Reduces what fails with a read flipped, and makes sure that it fails because of that.
    async fn reduce_flipped(
        &self,
        scenario: &Scenario,
        flipped: &Runs<'_>,
        failure: Failure<Run>,
        verdict: &Verdict,
    ) -> Result<Finding, CheckError> {
        let reduced = Shrink::new().max_runs(200).run(flipped, failure).await;
        let reduced = reduced.map_err(CheckError::Explore)?;
        let finding = finding::of(reduced.failure, reduced.needs, verdict, reduced.minimal);
        let run = &finding.run;
        let flipped = |step: &usize| matches!(run.steps[*step].action, Action::Request(_));
        if (0..run.steps.len()).filter(flipped).any(|step| run.is_stale_read(step)) {
            return Ok(finding);
        }
        // Beyond the bounds of the suite, or the flipped read could not be answered: no stale answer to it is at fault.
        let mut report = Report::new(scenario, verdict.clone(), self.check.bounds);
        report.findings.push(finding);
        Err(CheckError::Found(Box::new(report)))
    }
}

/// So many runs of each scenario are made with a read flipped before any is explored further.
const FIRST_ROUND: u64 = 64;

/// By so much each further round is longer.
const NEXT_ROUND: u64 = 8;

fn runs_flipped<'a>(ground: &'a Ground, scenario: &'a Scenario, site: &ReadSite) -> Runs<'a> {
    Runs { flip: Some(site.requests()), ..runs(ground, scenario, Source::Moment) }
}

/// A place at which a process reads from the server.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub struct ReadSite {
    /// `get` or `list`.
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The plural.
    pub resource: String,
    /// The name, of a get.
    pub name: Option<String>,
    /// The `tracing` span in which it is made, where one is recorded.
    pub span: Option<String>,
    /// Which read of its like in a pass, and in its span there, from 1.
    pub ordinal: u32,
}

impl ReadSite {
    /// The site of a request, if it is a live read of a pass.
    fn of(request: &Request) -> Option<Self> {
        let reads = matches!(request.verb, Verb::Get | Verb::List);
        let live = reads && !request.is_cached_read() && request.pass.is_some();
        let whole = request.subresource.is_none() && !request.resource.is_empty();
        (live && whole && request.namespace.is_some()).then(|| Self {
            verb: request.verb.to_string(),
            group: request.group.clone(),
            resource: request.resource.clone(),
            name: request.name.clone(),
            span: request.span.clone(),
            ordinal: request.ordinal,
        })
    }

    fn requests(&self) -> Requests {
        let verb = if self.verb == "get" { Verb::Get } else { Verb::List };
        let requests = Requests::resource(&self.group, &self.resource).verb(verb);
        let requests = requests.nth_in_pass(self.ordinal);
        let requests = match &self.name {
            Some(name) => requests.named(name),
            None => requests,
        };
        match &self.span {
            Some(span) => requests.in_span(span),
            None => requests,
        }
    }
}

impl fmt::Display for ReadSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if let Some(name) = &self.name {
            write!(f, "/{name}")?;
        }
        write!(f, " #{}", self.ordinal)?;
        match &self.span {
            Some(span) => write!(f, " [{span}]"),
            None => Ok(()),
        }
    }
}

/// What came of flipping one read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FlipVerdict {
    /// A scenario fails when it is answered from a lagging view.
    LoadBearing {
        /// Which.
        scenario: String,
        /// The failing run, reduced.
        finding: Box<Finding>,
        /// After how many runs that was found.
        runs: u64,
    },
    /// No scenario notices: this live read protects nothing that a test checks.
    Survives {
        /// How many runs were made with it flipped.
        runs: u64,
    },
}

/// A live read, and what came of flipping it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FlippedSite {
    /// The read.
    pub site: ReadSite,
    /// What came of it.
    pub verdict: FlipVerdict,
    /// Why nothing has to notice.
    pub excuse: Option<String>,
}

impl FlippedSite {
    fn is_good(&self) -> bool {
        matches!(self.verdict, FlipVerdict::LoadBearing { .. }) != self.excuse.is_some()
    }
}

impl fmt::Display for FlippedSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<40} ", self.site.to_string())?;
        match &self.verdict {
            FlipVerdict::LoadBearing { scenario, runs, finding } => {
                let violation = finding.run.violations().next();
                let oracle = violation.map_or("", |(_, violation)| violation.oracle.as_str());
                let token = &finding.token;
                write!(
                    f,
                    "load-bearing: {scenario:?} violates {oracle:?} with {token}, in run {runs}"
                )?;
            }
            FlipVerdict::Survives { runs } => write!(
                f,
                "survives: this live read protects nothing that a test checks ({runs} runs)"
            )?,
        }
        match (&self.excuse, self.is_good()) {
            (Some(reason), true) => write!(f, "; excused: {reason}"),
            (Some(reason), false) => {
                write!(f, "; excused ({reason}), and it is noticed: remove that")?;
                match &self.verdict {
                    FlipVerdict::LoadBearing { finding, .. } => {
                        // Without the flip the token replays something else.
                        let finding = Finding { token: String::new(), ..(**finding).clone() };
                        write!(f, "\n{}", report::failure(&finding, &report::Replay::default()))
                    }
                    FlipVerdict::Survives { .. } => Ok(()),
                }
            }
            (None, _) => Ok(()),
        }
    }
}

/// A read of a wrapped cache, and whether a stale answer made a difference.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CachedSite {
    /// The scenario.
    pub scenario: String,
    /// File, line and question.
    pub site: String,
    /// In how many runs it had a stale answer.
    pub stale_in: u64,
    /// Whether a run in which nothing else was out of the ordinary wrote something else than the one in which everything
    /// is fresh.
    pub told_apart: bool,
}

impl fmt::Display for CachedSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<40} ", self.site)?;
        match (self.stale_in, self.told_apart) {
            (0, _) => write!(f, "never stale in {:?}: as good as a live read there", self.scenario),
            (runs, false) => write!(
                f,
                "stale in {runs} runs of {:?}, which wrote what a live read would have: not told apart",
                self.scenario
            ),
            (runs, true) => {
                write!(f, "stale in {runs} runs of {:?}, and that matters", self.scenario)
            }
        }
    }
}

/// What a suite notices of stale reads.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct FlipReport {
    /// Every live read of the suite.
    pub live: Vec<FlippedSite>,
    /// Every read of a wrapped cache, in each scenario.
    pub cached: Vec<CachedSite>,
    /// How each scenario was explored without a flip.
    pub unflipped: Vec<(String, Verdict)>,
    /// The excuses that name no live read of the suite.
    pub unknown_excuses: Vec<String>,
}

impl FlipReport {
    fn is_good(&self) -> bool {
        self.unknown_excuses.is_empty() && self.live.iter().all(FlippedSite::is_good)
    }

    /// How many live reads are load-bearing.
    #[must_use]
    pub fn load_bearing(&self) -> usize {
        let noticed = |site: &&FlippedSite| matches!(site.verdict, FlipVerdict::LoadBearing { .. });
        self.live.iter().filter(noticed).count()
    }
}

impl fmt::Display for FlipReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "live reads: load-bearing {}/{}", self.load_bearing(), self.live.len())?;
        for site in &self.live {
            write!(f, "\n  {site}")?;
        }
        for name in &self.unknown_excuses {
            write!(f, "\n  {name:?} is excused, and the suite has no such live read")?;
        }
        if !self.cached.is_empty() {
            write!(f, "\ncached reads:")?;
        }
        for site in &self.cached {
            write!(f, "\n  {site}")?;
        }
        for (scenario, verdict) in &self.unflipped {
            write!(f, "\nwithout a flip, {scenario:?}: {verdict}")?;
        }
        Ok(())
    }
}

/// What is seen of the reads in the runs of one scenario.
#[derive(Debug, Default)]
pub(super) struct Seen {
    live: BTreeSet<ReadSite>,
    cached: BTreeMap<String, Stale>,
    /// What the run wrote in which everything is fresh.
    baseline: Option<Vec<String>>,
}

#[derive(Debug, Default)]
struct Stale {
    runs: u64,
    told_apart: bool,
}

impl Seen {
    pub(super) fn look(&mut self, outcome: &Outcome<Run>) {
        let run = &outcome.record;
        self.live.extend(run.requests().filter_map(|(_, step)| ReadSite::of(&step.request)));
        let wrote = writes(&outcome.trace);
        if run.deviations().next().is_none() && self.baseline.is_none() {
            self.baseline = Some(wrote.clone());
        }
        let differs = self.baseline.as_ref().is_some_and(|baseline| *baseline != wrote);
        let mut stale_sites = BTreeSet::new();
        for (_, read) in run.reads() {
            let Some(site) = &read.site else { continue };
            let site = format!("{site} {}", query(&read.query));
            self.cached.entry(site.clone()).or_default();
            if read.stale {
                stale_sites.insert(site);
            }
        }
        // What other actors did, or what another read was told, may be why it wrote something else.
        let alone = stale_sites.len() == 1
            && run.deviations().all(|chosen| chosen.point.kind().is_staleness());
        for site in stale_sites {
            let stale = self.cached.entry(site).or_default();
            stale.runs += 1;
            stale.told_apart |= differs && alone;
        }
    }
}

/// What a cached read asks. The namespace is another one in each run.
fn query(query: &Query) -> String {
    match query {
        Query::Get(key) => format!("get {}", key.name),
        other => other.to_string(),
    }
}

/// The lines of a trace that are writes.
fn writes(trace: &[String]) -> Vec<String> {
    const READS: [&str; 2] = [r#""verb":"get""#, r#""verb":"list""#];
    let request = |line: &&String| line.contains(r#"{"request":"#);
    let reads = |line: &str| READS.iter().any(|read| line.contains(read));
    trace.iter().filter(request).filter(|line| !reads(line)).cloned().collect()
}
