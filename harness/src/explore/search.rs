//! The exhaustive search: every run within bounds, those that depart least first.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    Choices, Clock, Ending, ExploreError, Failure, OutOfDate, Outcome, Progress, ReplayError,
    Stopwatch, Subject, Token,
    pool::{Judged, Pool, run},
    replay::{confirm, replay},
    states::{Known, Spent, Visited, lock},
};
use crate::lag::model::{Bound, Bounds, Chosen, Completeness, Ended, Shard, Verdict};

/// Of the runs that could end in a state known from another, one in so many goes on, to compare the two.
const LOOK_AGAIN: u64 = 16;

/// Enumerates the runs of a subject within bounds.
///
/// The first run is the baseline, everything fresh. Each run tells which points it met; for each of them
/// and each other alternative there is a run that does the same up to that point, takes the alternative
/// there, and the freshest afterwards. So each sequence of choices is run exactly once. Runs that cost
/// less come first: all that need one stale answer or hold before any that needs two.
///
/// By default: [`Bounds::default`], as many runs as it takes, no limit of time, one run at a time, stop at
/// the first failure. A failing run is made a second time, and must go the same way.
#[derive(Clone)]
#[must_use]
pub struct Search {
    bounds: Bounds,
    runs: Option<u64>,
    time: Option<Duration>,
    parallel: usize,
    shard: Option<Shard>,
    keep_going: bool,
    first: Vec<Token>,
    exclusions: Vec<String>,
    keep_passed: usize,
    keep_failures: usize,
    observers: Vec<Observer>,
    clock: Arc<dyn Clock>,
}

type Observer = Arc<dyn Fn(&Progress) + Send + Sync>;

impl Search {
    /// A search with the defaults.
    pub fn new() -> Self {
        Self {
            bounds: Bounds::default(),
            runs: None,
            time: None,
            parallel: 1,
            shard: None,
            keep_going: false,
            first: Vec::new(),
            exclusions: Vec::new(),
            keep_passed: 0,
            keep_failures: usize::MAX,
            observers: Vec::new(),
            clock: Arc::new(Stopwatch::start()),
        }
    }

    /// Departs at most so far from the baseline.
    pub fn bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// Makes at most so many runs.
    pub fn max_runs(mut self, runs: u64) -> Self {
        self.runs = Some(runs);
        self
    }

    /// Begins no run when so much time has passed since the start of the search.
    pub fn max_time(mut self, time: Duration) -> Self {
        self.time = Some(time);
        self
    }

    /// Keeps so many runs under way at once; at least one.
    pub fn parallel(mut self, runs: usize) -> Self {
        self.parallel = runs.max(1);
        self
    }

    /// Explores one part of the whole. The parts together make every run exactly once.
    ///
    /// A part begins with the baseline, since only that run tells what there is to split; it is judged and
    /// counted by part 1 alone.
    pub fn shard(mut self, shard: Shard) -> Self {
        self.shard = Some(shard);
        self
    }

    /// Goes on after a failure, to count and collect all of them.
    pub fn keep_going(mut self) -> Self {
        self.keep_going = true;
        self
    }

    /// Replays these tokens before everything else, such as those of a regression file. They are not counted
    /// as runs, and of a search in parts only the first part replays them.
    pub fn first(mut self, tokens: impl IntoIterator<Item = Token>) -> Self {
        self.first.extend(tokens);
        self
    }

    /// States something that these runs leave out whatever the bounds are; printed with the verdict.
    pub fn leaves_out(mut self, exclusion: impl Into<String>) -> Self {
        self.exclusions.push(exclusion.into());
        self
    }

    /// Keeps the records of the first so many runs that pass, in [`Explored::passed`]; none unless said.
    pub fn keep_passed(mut self, runs: usize) -> Self {
        self.keep_passed = runs;
        self
    }

    /// Keeps the records of the first so many failures, and counts the others; all of them unless said.
    pub fn keep_failures(mut self, runs: usize) -> Self {
        self.keep_failures = runs;
        self
    }

    /// Calls this each time a run is judged. Several may watch. It is called between runs, so it should be quick.
    ///
    /// ```
    /// use laggard::explore::{Progress, Search};
    ///
    /// let search = Search::new().observe(|progress: &Progress| {
    ///     tracing::info!(progress.runs, progress.left, "exploring");
    /// });
    /// # let _ = search;
    /// ```
    pub fn observe(mut self, observer: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Measures time by this clock.
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Searches. Dropping the future drops the runs under way.
    ///
    /// # Errors
    /// [`ExploreError::Run`] if a run could not be made, [`ExploreError::Diverged`] or
    /// [`ExploreError::TraceDiffers`] if the subject is not deterministic.
    pub async fn run<S: Subject>(
        &self,
        subject: &S,
    ) -> Result<Explored<S::Record>, ExploreError<S::Error>> {
        let mut state = State::new(self);
        self.replay_first(subject, &mut state).await?;
        let mut pool = Pool::new(subject);
        loop {
            while pool.len() < self.parallel
                && let Some(node) = state.next_node(pool.len())
            {
                let choices = state.choices(&node);
                pool.start(node, choices);
            }
            let Some((node, finished)) = pool.next().await else { break };
            let judged = finished?;
            let taken = state.take(node, &judged);
            if let Some(place) = taken.departed() {
                let token = Token::of(&judged.choices);
                return Err(ExploreError::StatesDiffer { token, place: place.to_owned() });
            }
            state.tell(pool.len());
            match taken {
                Taken::Failed => {
                    // A failure is shown whole, whether another run has been where it leads or not.
                    let judged = match judged.ended_early {
                        true => run(subject, Choices::again(Arc::clone(&judged.choices))).await?,
                        false => judged,
                    };
                    confirm(subject, &judged.choices, &judged.outcome).await?;
                    let number = state.runs;
                    let Judged { choices, outcome, .. } = judged;
                    state.keep(Failure { number, choices, outcome });
                }
                Taken::Passed if state.passed.len() < self.keep_passed => {
                    let Judged { choices, outcome, .. } = judged;
                    state.passed.push(Passed { number: state.runs, choices, outcome });
                }
                Taken::Passed | Taken::NotCounted | Taken::Departed(_) => {}
            }
        }
        Ok(state.finish())
    }

    async fn replay_first<S: Subject>(
        &self,
        subject: &S,
        state: &mut State<'_, S::Record>,
    ) -> Result<(), ExploreError<S::Error>> {
        if !self.counts_baseline() {
            return Ok(());
        }
        for token in &self.first {
            match replay(subject, token).await {
                Ok(None) => {}
                Ok(Some(failure)) => {
                    confirm(subject, &failure.choices, &failure.outcome).await?;
                    state.failed += 1;
                    state.keep(Failure { number: 0, ..failure });
                    if !self.keep_going {
                        state.ended = Some(Ended::Failure);
                        return Ok(());
                    }
                }
                Err(ReplayError::OutOfDate(out_of_date)) => state.out_of_date.push(out_of_date),
                Err(ReplayError::Explore(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn counts_baseline(&self) -> bool {
        self.shard.is_none_or(|shard| shard.number() == 1)
    }
}

impl Default for Search {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Search")
            .field("bounds", &self.bounds)
            .field("runs", &self.runs)
            .field("time", &self.time)
            .field("parallel", &self.parallel)
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

/// What a search found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explored<R> {
    /// How it ended, and what it counted.
    pub verdict: Verdict,
    /// The failing runs, in the order of the search: the first departs least. As many as
    /// [`Search::keep_failures`] says; the verdict counts all.
    pub failures: Vec<Failure<R>>,
    /// The first runs that passed, as many as [`Search::keep_passed`] says, in the order of the search.
    pub passed: Vec<Passed<R>>,
    /// The points of the run in which everything is fresh; `None` if it was not made.
    pub baseline: Option<Arc<[Chosen]>>,
    /// The tokens of [`Search::first`] that no longer fit. They prove nothing, and should be replaced.
    pub out_of_date: Vec<OutOfDate>,
    /// How many runs were made at each cost, from 0.
    pub runs_by_cost: Vec<u64>,
}

/// A run that violated no oracle.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Passed<R> {
    /// Which run of the search it was, from 1.
    pub number: u64,
    /// The points it met and what was taken there.
    pub choices: Arc<[Chosen]>,
    /// How it ended, with its record.
    pub outcome: Outcome<R>,
}

impl<R> Passed<R> {
    /// What makes it again.
    #[must_use]
    pub fn token(&self) -> Token {
        Token::of(&self.choices)
    }
}

/// What became of a run that was made.
enum Taken {
    Passed,
    Failed,
    /// It is impossible, or counted by another part.
    NotCounted,
    /// From a state in which another run was, it has gone on in another way. Where, in words.
    Departed(String),
}

impl Taken {
    fn departed(&self) -> Option<&str> {
        match self {
            Self::Departed(place) => Some(place),
            _ => None,
        }
    }
}

/// A run that is still to be made: as another run up to a point, then something else.
#[derive(Clone, Debug)]
struct Node {
    recorded: Arc<[Chosen]>,
    at: usize,
    taken: usize,
    spent: Spent,
    /// How many choices are fixed. Only points behind them branch from here.
    fixed: usize,
}

impl Node {
    fn baseline() -> Self {
        Self { recorded: Arc::new([]), at: 0, taken: 0, spent: Spent::default(), fixed: 0 }
    }

    fn choices(&self) -> Choices {
        Choices::prefix(Arc::clone(&self.recorded), self.at, self.taken)
    }
}

struct State<'a, R> {
    search: &'a Search,
    started: Duration,
    /// The nodes to run, by cost; of one cost in the order in which they came up: earlier points and less
    /// lag first.
    frontier: BTreeMap<u32, VecDeque<Node>>,
    /// The cost of the runs in flight.
    level: u32,
    /// Runs begun, to keep to the limit; runs judged; the same, with those that do not count.
    begun: u64,
    runs: u64,
    judged: u64,
    visited: Arc<Mutex<Visited>>,
    /// Runs that came to a known state; those among them that went on.
    merged: u64,
    looked_again: u64,
    started_runs: u64,
    runs_by_cost: Vec<u64>,
    impossible: u64,
    redundant: u64,
    points: usize,
    naive: u64,
    cut: BTreeSet<Bound>,
    ended: Option<Ended>,
    failed: u64,
    failures: Vec<Failure<R>>,
    passed: Vec<Passed<R>>,
    baseline: Option<Arc<[Chosen]>>,
    out_of_date: Vec<OutOfDate>,
}

impl<'a, R> State<'a, R> {
    fn new(search: &'a Search) -> Self {
        Self {
            search,
            started: search.clock.elapsed(),
            frontier: BTreeMap::from([(0, VecDeque::from([Node::baseline()]))]),
            level: 0,
            begun: 0,
            runs: 0,
            judged: 0,
            visited: Arc::new(Mutex::new(Visited::new(search.bounds))),
            merged: 0,
            looked_again: 0,
            started_runs: 0,
            runs_by_cost: Vec::new(),
            impossible: 0,
            redundant: 0,
            points: 0,
            naive: 0,
            cut: BTreeSet::new(),
            ended: None,
            failed: 0,
            failures: Vec::new(),
            passed: Vec::new(),
            baseline: None,
            out_of_date: Vec::new(),
        }
    }

    fn next_node(&mut self, in_flight: usize) -> Option<Node> {
        if self.ended.is_some() {
            return None;
        }
        let (&cost, _) = self.frontier.first_key_value()?;
        // A run in flight may still bring up others of its own cost; those come before dearer ones.
        if in_flight > 0 && cost > self.level {
            return None;
        }
        if let Some(most) = self.search.runs.filter(|most| self.begun >= *most) {
            self.ended = Some(Ended::Runs(most));
            return None;
        }
        let elapsed = self.elapsed();
        if let Some(most) = self.search.time.filter(|most| elapsed >= *most) {
            self.ended = Some(Ended::Time(most));
            return None;
        }
        let mut nodes = self.frontier.first_entry()?;
        let node = nodes.get_mut().pop_front();
        if nodes.get().is_empty() {
            nodes.remove();
        }
        self.level = cost;
        self.begun += 1;
        node
    }

    /// The choices of a run that begins now.
    fn choices(&mut self, node: &Node) -> Choices {
        self.started_runs += 1;
        node.choices().knowing(Known {
            visited: Arc::clone(&self.visited),
            as_of: self.judged,
            fixed: node.fixed,
            goes_on: self.started_runs.is_multiple_of(LOOK_AGAIN),
        })
    }

    /// Counts a finished run and notes what branches from it.
    fn take(&mut self, node: Node, judged: &Judged<R>) -> Taken {
        let choices = &judged.choices;
        self.judged += 1;
        let mut open = match &judged.outcome.ending {
            // What was taken at later points is not to blame for a choice that cannot be made, and what
            // would be offered there is not known.
            Ending::Impossible { point, .. } => {
                self.impossible += 1;
                choices.iter().position(|chosen| chosen.point.id() == point).map_or(0, |i| i + 1)
            }
            _ => choices.len(),
        };
        if open == choices.len() {
            let mut visited = lock(&self.visited);
            let compared = &judged.marks[..judged.marks.len() - usize::from(judged.ended_early)];
            if let Some(mark) = visited.departure(&judged.marks, compared.len(), node.fixed) {
                return Taken::Departed(mark.place.clone());
            }
            let failed = judged.outcome.ending.oracle().is_some();
            let (marks, number) = (&judged.marks, self.judged);
            if let Some(known_from) = visited.note(choices, marks, node.fixed, number, failed) {
                open = known_from;
                self.merged += 1;
                self.looked_again += u64::from(!judged.ended_early);
            }
        }
        self.branch(&node, choices, open, &judged.outcome.redundant);
        let is_baseline = node.fixed == 0;
        if is_baseline {
            self.baseline = Some(Arc::clone(choices));
        }
        let counts = !is_baseline || self.search.counts_baseline();
        if !counts || matches!(judged.outcome.ending, Ending::Impossible { .. }) {
            // A limit on runs is one on runs that count, so that one run a shard is one run.
            self.begun -= 1;
            return Taken::NotCounted;
        }
        self.runs += 1;
        let cost = usize::try_from(node.spent.total()).unwrap_or(usize::MAX);
        if self.runs_by_cost.len() <= cost {
            self.runs_by_cost.resize(cost + 1, 0);
        }
        self.runs_by_cost[cost] += 1;
        self.points = self.points.max(choices.len());
        self.naive = self.naive.saturating_add(judged.outcome.interleavings);
        if judged.outcome.ending.oracle().is_none() {
            return Taken::Passed;
        }
        self.failed += 1;
        if !self.search.keep_going && self.ended.is_none() {
            self.ended = Some(Ended::Failure);
        }
        Taken::Failed
    }

    fn keep(&mut self, failure: Failure<R>) {
        if self.failures.len() < self.search.keep_failures {
            self.failures.push(failure);
        }
    }

    /// Tells those who watch.
    fn tell(&self, under_way: usize) {
        let progress = Progress {
            runs: self.runs,
            failures: self.failed,
            left: self.frontier.values().map(VecDeque::len).sum(),
            under_way,
            level: self.level,
            elapsed: self.elapsed(),
        };
        for observer in &self.search.observers {
            observer(&progress);
        }
    }

    /// Notes the other alternatives at the points that are neither fixed nor closed.
    fn branch(
        &mut self,
        node: &Node,
        choices: &Arc<[Chosen]>,
        open: usize,
        redundant: &BTreeSet<(usize, usize)>,
    ) {
        let mut spent = Spent::default();
        let mut siblings = Vec::new();
        for (at, chosen) in choices.iter().enumerate().take(open) {
            if at >= node.fixed {
                for (taken, alt) in chosen.point.menu().iter().enumerate().skip(1) {
                    if redundant.contains(&(at, taken)) {
                        // Every part meets those of the baseline.
                        let counts = node.fixed > 0 || self.search.counts_baseline();
                        self.redundant += u64::from(counts);
                        continue;
                    }
                    let spent = spent.plus(chosen.point.kind(), alt);
                    let cut = match self.search.bounds.lag.filter(|most| alt.lag > *most) {
                        Some(most) => Some(Bound::Lag(most)),
                        None => spent.exceeds(&self.search.bounds),
                    };
                    match cut {
                        Some(bound) => {
                            self.cut.insert(bound);
                        }
                        None => siblings.push(Node {
                            recorded: Arc::clone(choices),
                            at,
                            taken,
                            spent,
                            fixed: at + 1,
                        }),
                    }
                }
            }
            spent = spent.plus(chosen.point.kind(), chosen.alternative());
        }
        if let Some(shard) = self.search.shard.filter(|_| node.fixed == 0) {
            // Whole subtrees are dealt out in turn. A subtree of an early point is larger than one of a late
            // point, and neighbours are alike.
            let of = usize::try_from(shard.of()).unwrap_or(usize::MAX);
            let mine = usize::try_from(shard.number() - 1).unwrap_or(usize::MAX);
            let mut index = 0;
            siblings.retain(|_| {
                index += 1;
                (index - 1) % of == mine
            });
        }
        for sibling in siblings {
            self.frontier.entry(sibling.spent.total()).or_default().push_back(sibling);
        }
    }

    fn elapsed(&self) -> Duration {
        self.search.clock.elapsed().saturating_sub(self.started)
    }

    fn finish(self) -> Explored<R> {
        let elapsed = self.elapsed();
        let completeness = match self.ended {
            // The last run may have been the one that failed.
            Some(Ended::Failure) if self.frontier.is_empty() => {
                Completeness::Exhausted { within: self.cut.into_iter().collect() }
            }
            Some(by) => Completeness::NotExhausted { by },
            None => Completeness::Exhausted { within: self.cut.into_iter().collect() },
        };
        let verdict = Verdict {
            completeness,
            runs: self.runs,
            failures: self.failed,
            impossible: self.impossible,
            redundant: self.redundant,
            merged: self.merged,
            looked_again: self.looked_again,
            points: self.points,
            naive: self.naive,
            elapsed,
            shard: self.search.shard,
            exclusions: self.search.exclusions.clone(),
            worlds: None,
            requests: 0,
            recalled: 0,
        };
        Explored {
            verdict,
            failures: self.failures,
            passed: self.passed,
            baseline: self.baseline,
            out_of_date: self.out_of_date,
            runs_by_cost: self.runs_by_cost,
        }
    }
}
