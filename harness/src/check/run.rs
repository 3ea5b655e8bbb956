//! One run of a scenario: a world, the process in it, and the judgement.

use std::{
    collections::BTreeSet,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
};

use futures::FutureExt;
use tokio::time::timeout;

use super::{
    director::Director,
    error::CheckError,
    flips::Seen,
    ground::{Ground, Place, RunError, Source},
    laps::{Laps, Part},
    oracles::{self, BuiltIn, End, Ends},
    reduction::{self, Moment},
    scenario::{BoxError, Scenario},
    world::World,
};
use crate::{
    explore::{Choices, Ending, Outcome, Subject},
    lag::{
        Requests,
        model::{self, Action, ListEnd, PointId, Run, Step, Verb, Violation},
    },
};

/// The oracle that a panic of the process violates.
const PANICS: &str = "the process does not panic";

/// A scenario on a ground, to be run with any choices.
pub(super) struct Runs<'a> {
    pub(super) ground: &'a Ground,
    pub(super) scenario: &'a Scenario,
    pub(super) from: Source,
    /// The reads that are answered from the lagging view.
    pub(super) flip: Option<Requests>,
    /// Looks at every run.
    pub(super) looker: Option<Arc<Mutex<Seen>>>,
    /// No placement of an actor's step stands for another.
    pub(super) every_moment: bool,
    pub(super) ends: Arc<Mutex<Ends>>,
}

impl Subject for Runs<'_> {
    type Record = Run;
    type Error = RunError;

    async fn run(&self, choices: Choices) -> Result<Outcome<Run>, RunError> {
        let mut laps = Laps::begin();
        let place = self.ground.world(self.scenario, self.from).await.map_err(RunError::of)?;
        laps.end(Part::World);
        let ran = timeout(self.scenario.deadline, self.in_world(&place, choices.clone())).await;
        place.lag.clear_scheduler();
        self.ground.note_left_out(&place.lag);
        laps.end(Part::Process);
        let outcome = match ran {
            Ok(Ok(ran)) => Ok(self.judge(&place, ran, &choices)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(RunError {
                what: format!("the process has not ended within {:?}", self.scenario.deadline),
                evidence: format!("\n{}", place.lag),
                source: None,
            }),
        };
        // Also after an error, whose reason may be that something is not followed.
        self.ground.learn(place.lag.requests().iter(), &place.namespace).await;
        if let Ok(outcome) = &outcome {
            let requests = outcome.record.requests().map(|(_, step)| &step.request);
            self.ground.learn(requests, &place.namespace).await;
            if let Some(looker) = &self.looker {
                looker.lock().unwrap_or_else(PoisonError::into_inner).look(outcome);
            }
        }
        laps.end(Part::Judge);
        let namespace = place.namespace.clone();
        self.ground.leave(place).await.map_err(RunError::of)?;
        laps.end(Part::Leave);
        laps.tell(&namespace);
        outcome
    }
}

/// What a process has come to.
struct Ran {
    director: Director,
    end: End,
    panic: Option<String>,
}

/// Why a run goes on no further.
enum Ended<T> {
    Process(T),
    /// It is to begin anew.
    Restart,
    /// Another run goes on from here.
    Known,
}

impl Runs<'_> {
    async fn in_world(&self, place: &Place, choices: Choices) -> Result<Ran, RunError> {
        let Place { lag, namespace, .. } = place;
        lag.hold();
        if let Some(flip) = &self.flip {
            lag.flip(flip.clone());
        }
        let flipping = self.flip.is_some();
        let director = Director::new(lag, namespace, self.scenario, choices, flipping);
        let mut restarts = 0;
        loop {
            let world = World::new(lag, namespace, &director, self.scenario.passes);
            let process = (self.scenario.process)(world.clone());
            let mut process = Box::pin(AssertUnwindSafe(process).catch_unwind());
            let ended = tokio::select! {
                ended = &mut process => Ended::Process(ended),
                () = lag.restarted(restarts + 1) => Ended::Restart,
                () = director.came_to_a_known_state() => Ended::Known,
            };
            // Whatever is under way of it ends here.
            drop(process);
            let settled = world.settled();
            world.end().await;
            director.leave_pass();
            if let Some(error) = director.take_error() {
                let what = "what the scenario says could not be done".to_owned();
                return Err(RunError { what, evidence: String::new(), source: Some(error) });
            }
            match ended {
                Ended::Restart => restarts += 1,
                Ended::Known => return Ok(Ran { director, end: End::NotReached, panic: None }),
                Ended::Process(Ok(Ok(()))) => {
                    return Ok(Ran { director, end: End::of(settled), panic: None });
                }
                Ended::Process(Ok(Err(error))) => return Err(self.process_failed(place, error)),
                Ended::Process(Err(panic)) => {
                    let panic = Some(text_of(&*panic));
                    return Ok(Ran { director, end: End::of(settled), panic });
                }
            }
        }
    }

    fn process_failed(&self, place: &Place, error: BoxError) -> RunError {
        let evidence = format!("\n{}", place.lag);
        let what = format!("the process of {:?} returned an error: {error}", self.scenario.name);
        RunError { what, evidence, source: None }
    }

    /// What a run of these choices has come to, with what is wanted of such a run.
    fn judge(&self, place: &Place, ran: Ran, choices: &Choices) -> Outcome<Run> {
        let chances = ran.director.chances();
        let notes: Vec<usize> = chances.iter().map(|(notes, _)| *notes).collect();
        let (mut run, steps) = place.lag.run_with_steps(&self.scenario.name, &notes);
        let moments: Vec<Moment> = chances
            .into_iter()
            .zip(steps)
            .map(|((_, moment), step)| Moment { step, ..moment })
            .collect();
        // Before the judgement, which adds a step.
        let all_count = self.every_moment || ran.director.has_waited();
        let redundant = match all_count || !choices.is_one_of_a_search() {
            true => BTreeSet::new(),
            false => reduction::redundant(&run, &moments, &place.lag.unwrapped()),
        };
        run.choices = ran.director.record().chosen();
        if let Some((point, why)) = ran.director.record().impossible().into_iter().next() {
            return Outcome::new(Ending::Impossible { point, why }, run);
        }
        let ending = self.ending(&mut run, &ran);
        let compared = choices.is_compared() || ending.oracle().is_some();
        let trace = if compared { trace(&run) } else { Vec::new() };
        let interleavings = model::interleavings(&run).unwrap_or(1);
        Outcome::new(ending, run)
            .with_trace(trace)
            .with_interleavings(interleavings)
            .with_redundant(redundant)
    }

    fn ending(&self, run: &mut Run, ran: &Ran) -> Ending {
        let oracles = &self.scenario.oracles;
        if let Some(text) = &ran.panic {
            let violation = Violation { oracle: PANICS.to_owned(), text: text.clone() };
            return add_violation(run, violation);
        }
        // What no cluster can show proves nothing about the process.
        if let Err(illegal) = model::check(run) {
            let violation = Violation { oracle: ILLEGAL.to_owned(), text: illegal.to_string() };
            return add_violation(run, violation);
        }
        if let Some(violation) = oracles::judge(run, oracles, ran.end) {
            return Ending::failed(violation.oracle, violation.text);
        }
        if oracles.has(BuiltIn::SameEnd) && ran.end == End::Settled {
            let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
            let group = ran.director.disturbances(run);
            if let Some(violation) = oracles::judge_end(run, oracles, &mut ends, &group) {
                return Ending::failed(violation.oracle, violation.text);
            }
        }
        Ending::Passed
    }
}

/// The oracle that a run violates which the checker refuses: a defect of this library.
pub(super) const ILLEGAL: &str = "the harness shows only legal views";

fn add_violation(run: &mut Run, violation: Violation) -> Ending {
    let at = run.steps.last().map(|step| step.at).unwrap_or_default();
    run.steps.push(Step::new(at, Action::Violation(violation.clone())));
    Ending::failed(violation.oracle, violation.text)
}

/// What two runs of one schedule have in common: all from the first pass on. How the process gets its streams
/// open is not scheduled. And the version of a list is one of the whole server, to which other worlds write too; what
/// the list has in it is compared.
pub(super) fn trace(run: &Run) -> Vec<String> {
    let first = run.steps.iter().position(|step| matches!(step.action, Action::PassStart(_)));
    let first = first.unwrap_or_default();
    let mut part = run.clone();
    part.steps.drain(..first);
    for step in &mut part.steps {
        if let Action::Request(request) = &mut step.action {
            request.sent = request.sent.saturating_sub(first);
            // Numbers count the lists and watches of the beginning too.
            request.request.number = 0;
        }
        match &mut step.action {
            Action::Request(step) if matches!(step.request.verb, Verb::List | Verb::Watch) => {
                step.request.resource_version_answered = None;
                if step.request.verb == Verb::Watch {
                    step.request.resource_version_asked = None;
                }
            }
            Action::ListEnd(ListEnd { resource_version, .. })
            | Action::Resume { resource_version, .. } => resource_version.clear(),
            _ => {}
        }
    }
    model::normalised(&part)
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it panicked without a text".to_owned())
}

/// The points of a run that its record names.
pub(super) fn point_of(action: &Action) -> Option<&PointId> {
    match action {
        Action::Read(read) => read.point.as_ref(),
        Action::Release(release) => release.point.as_ref(),
        Action::Hold(hold) => hold.point.as_ref(),
        Action::ListEnd(end) => end.point.as_ref(),
        _ => None,
    }
}

impl RunError {
    fn of(error: CheckError) -> Self {
        let source = Some(error.into());
        Self {
            what: "the world of a run could not be made".to_owned(),
            evidence: String::new(),
            source,
        }
    }
}
