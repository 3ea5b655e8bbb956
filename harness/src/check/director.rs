//! The scheduler of a run: streams, reads, actors and faults, each put to the chooser as a named point.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;

use super::{
    actor::{Acting, Actor, Step},
    reduction::Moment,
    scenario::{BoxError, Scenario},
    truth::EVERYTHING,
};
use crate::{
    explore::{self, Reached, StateId},
    lag::{
        Boundary, ChoiceRecord, Choices, Lag, Released, ReplyFault, Scheduler, Shapes, StreamError,
        Wait,
        model::{
            Action, Alt, CachedRead, Fault, Identity, Kind, PointId, Run, StreamDescription,
            is_for_people,
        },
    },
};

/// No actor makes so many steps at one point; one that would go on for ever is an error.
const STEPS_AT_ONCE: usize = 100;

/// Decides everything in one run. Clones decide together.
#[derive(Clone)]
pub(super) struct Director {
    shared: Arc<Shared>,
}

struct Shared {
    lag: Lag,
    acting: Acting,
    actors: Vec<Actor>,
    restarts: bool,
    relists: bool,
    lost_replies: bool,
    /// Where states are told: nowhere, if passes are not pure or nobody searches.
    states: Option<States>,
    state: Mutex<State>,
    record: ChoiceRecord,
}

/// Tells the search which states the run comes to.
struct States {
    choices: explore::Choices,
    flipping: bool,
    /// Whether oracles look at passes as a whole.
    judges_passes: bool,
    shapes: Mutex<Shapes>,
    /// Somebody has been here, so the run ends.
    known: tokio::sync::Notify,
}

/// How far the process has come, as far as no view and no object tells it.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Which of the passes that it calls one by one, or of its loops over passes.
    place: String,
    /// What its loop remembers of the steps before this one.
    acted: bool,
    commits: usize,
    choices: usize,
    /// How the pass under way began, and whether somebody has acted since, if oracles look at passes as a whole.
    began: Option<[u8; 16]>,
    disturbed: bool,
}

struct State {
    choices: Choices<explore::Choices>,
    /// How many steps each actor has made.
    made: Vec<usize>,
    /// What each has answered to the question for its next step, while that holds.
    asked: Vec<Option<Asked>>,
    in_pass: bool,
    /// A whole controller is driven: what only triggers moves when everything is quiet, and no stream when a pass begins.
    driven: bool,
    waited: bool,
    chances: Vec<(usize, Moment)>,
    progress: Progress,
    loops: usize,
    passes: usize,
    lost: usize,
    error: Option<BoxError>,
}

/// How many changes of each resource have been seen.
type Seen = BTreeMap<String, usize>;

/// What an actor does next. It was asked when so much had been `seen`, and looked at these resources; until one of them
/// changes, it need not be asked again, which costs more than anything else at a point where it does not act.
struct Asked {
    seen: Seen,
    looked_at: BTreeSet<String>,
    step: Option<Step>,
}

impl Asked {
    fn holds(&self, seen: &Seen) -> bool {
        if self.looked_at.contains(EVERYTHING) {
            return self.seen == *seen;
        }
        self.looked_at.iter().all(|resource| self.seen.get(resource) == seen.get(resource))
    }
}

/// Who may act, and what is free.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Chance {
    /// Before a reply: to wait is free.
    WithinAPass,
    /// Between two passes: who has work to do does it, unless the search says otherwise.
    BetweenPasses,
    /// The same, and nothing else can happen: who has work to do does it.
    NothingElse,
}

impl Director {
    pub(super) fn new(
        lag: &Lag,
        namespace: &str,
        scenario: &Scenario,
        choices: explore::Choices,
        flipping: bool,
    ) -> Self {
        let told = scenario.merges_states() && choices.is_one_of_a_search();
        let states = told.then(|| {
            lag.keep_what_is_told();
            States {
                choices: choices.clone(),
                flipping,
                judges_passes: scenario.oracles.look_at_passes(),
                shapes: Mutex::new(Shapes::new(namespace)),
                known: tokio::sync::Notify::new(),
            }
        });
        let choices = Choices::new(choices);
        let record = choices.record();
        let acting = Acting { client: lag.actor_client(), namespace: namespace.to_owned() };
        let state = State {
            choices,
            made: vec![0; scenario.actors.len()],
            asked: scenario.actors.iter().map(|_| None).collect(),
            in_pass: false,
            driven: false,
            waited: false,
            chances: Vec::new(),
            progress: Progress::default(),
            loops: 0,
            passes: 0,
            lost: 0,
            error: None,
        };
        Self {
            shared: Arc::new(Shared {
                lag: lag.clone(),
                acting,
                actors: scenario.actors.clone(),
                restarts: scenario.restarts,
                relists: scenario.relists,
                lost_replies: scenario.lost_replies,
                states,
                state: Mutex::new(state),
                record,
            }),
        }
    }

    /// What has been chosen.
    pub(super) fn record(&self) -> &ChoiceRecord {
        &self.shared.record
    }

    /// Whether anything chosen since the first `before` choices kept a view from being the newest.
    pub(super) fn was_stale_since(&self, before: usize) -> bool {
        self.record().chosen()[before..].iter().any(|chosen| chosen.alternative().lag > 0)
    }

    pub(super) fn enter_pass(&self) {
        let began = match &self.shared.states {
            Some(states) if states.judges_passes => self.state(states, "a pass begins"),
            _ => None,
        };
        let mut state = self.lock();
        state.in_pass = true;
        state.passes += 1;
        (state.progress.began, state.progress.disturbed) = (began, false);
    }

    /// The process begins a loop over passes.
    pub(super) fn begin_loop(&self) -> usize {
        let mut state = self.lock();
        state.loops += 1;
        state.loops
    }

    /// Comes to the beginning of the next round of a loop over passes, from which only `place` is remembered. Never comes
    /// back if somebody has been there: the run ends.
    pub(super) async fn begin_round(&self, place: String) {
        let (commits, choices) = (self.shared.lag.observed(), self.record().len());
        self.lock().progress =
            Progress { place: place.clone(), commits, choices, ..Progress::default() };
        self.reach(&place).await;
    }

    /// Remembers that actors have acted since the round began.
    pub(super) fn note_acted(&self, acted: bool) {
        self.lock().progress.acted = acted;
    }

    /// A pass that the process calls by itself begins.
    pub(super) fn begin_bare_pass(&self) {
        let (commits, choices) = (self.shared.lag.observed(), self.record().len());
        let mut state = self.lock();
        let place = format!("pass {}", state.passes + 1);
        state.progress = Progress { place, commits, choices, ..Progress::default() };
    }

    /// Resolves when the run has come to a state that somebody has been in.
    pub(super) async fn came_to_a_known_state(&self) {
        match &self.shared.states {
            Some(states) => states.known.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Tells the search where the run is. Never comes back if somebody has been there: the run ends.
    async fn reach(&self, place: &str) {
        let Some(states) = &self.shared.states else { return };
        let progress = self.lock().progress.clone();
        let Progress { place: round, acted, commits, choices, began, disturbed } = progress;
        let changed = self.shared.lag.observed() > commits;
        let stale = self.was_stale_since(choices);
        let loops = format!("{round} {acted} {changed} {stale} {began:?} {disturbed}");
        let Some(id) = self.state(states, &loops) else { return };
        if states.choices.reach(StateId::new(id), place) == Reached::Known {
            // What is under way is dropped; that does not end it.
            self.shared.lag.forget_passes();
            states.known.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// The state of the run, `loops` being what the process remembers of its passes.
    fn state(&self, states: &States, loops: &str) -> Option<[u8; 16]> {
        let rest = {
            let state = self.lock();
            let actors = self.shared.actors.iter().zip(&state.made);
            let made: Vec<usize> =
                actors.map(|(actor, made)| if actor.is_limited() { *made } else { 0 }).collect();
            let behind = state.choices.behind();
            format!("{loops} {} {made:?} {} {behind:?}", state.in_pass, state.lost)
        };
        let mut shapes = states.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.lag.state(&mut shapes, &rest, states.flipping)
    }

    pub(super) fn leave_pass(&self) {
        self.lock().in_pass = false;
    }

    /// From now on a whole controller is driven.
    pub(super) fn drive(&self) {
        self.lock().driven = true;
    }

    /// The moments at which actors could have acted, each with the number of notes that had been taken then.
    pub(super) fn chances(&self) -> Vec<(usize, Moment)> {
        self.lock().chances.clone()
    }

    /// Whether a pass has waited for what a stream shows, which no read in the record tells.
    pub(super) fn has_waited(&self) -> bool {
        self.lock().waited
    }

    /// What kept an actor from doing its step.
    pub(super) fn take_error(&self) -> Option<BoxError> {
        self.lock().error.take()
    }

    /// What may make a run end in another way than others: who acted that need not, and what failed.
    pub(super) fn disturbances(&self, run: &Run) -> String {
        let made = self.lock().made.clone();
        let actors = self.shared.actors.iter().zip(made);
        let acted = actors.filter(|(actor, made)| !actor.acts_by_itself() && *made > 0);
        let acted = acted.map(|(actor, made)| format!("{} {made}", actor.name()));
        let faults = run.steps.iter().filter_map(|step| match &step.action {
            Action::Fault(Fault::Restart) => Some("restart".to_owned()),
            // A list is one more view: it is no reason to end in another way.
            Action::Fault(Fault::Expired(_)) => None,
            Action::Fault(_) => Some("lost".to_owned()),
            _ => None,
        });
        acted.chain(faults).collect::<Vec<_>>().join(", ")
    }

    /// Whether an actor who acts by itself has something to do.
    pub(super) fn has_work(&self) -> bool {
        let seen = self.shared.lag.observed_by_resource();
        let mut actors = self.shared.actors.iter().enumerate();
        actors.any(|(index, actor)| actor.acts_by_itself() && self.ask(index, &seen).is_some())
    }

    /// What an actor looked at to find its next step; `None` if it has none. It is not asked again while what it answered
    /// before holds.
    fn ask(&self, index: usize, seen: &Seen) -> Option<BTreeSet<String>> {
        let mut state = self.lock();
        let known = state.asked[index].take().filter(|known| known.holds(seen));
        let made = state.made[index];
        drop(state);
        let asked = known.unwrap_or_else(|| {
            let truth = self.shared.lag.truth();
            let step = self.shared.actors[index].next(made, &truth, &self.shared.acting);
            Asked { seen: seen.clone(), looked_at: truth.looked_at(), step }
        });
        let looked_at = asked.step.is_some().then(|| asked.looked_at.clone());
        self.lock().asked[index] = Some(asked);
        looked_at
    }

    /// Lets the actors act, one step after the other. Whether any did.
    pub(super) async fn environment(&self, chance: Chance) -> bool {
        let mut acted = false;
        for _ in 0..STEPS_AT_ONCE {
            let mut any = false;
            let mut seen = self.shared.lag.observed_by_resource();
            for index in 0..self.shared.actors.len() {
                if self.chance_of(index, chance, &seen).await {
                    any = true;
                    seen = self.shared.lag.observed_by_resource();
                }
            }
            if !any {
                return acted;
            }
            acted = true;
        }
        self.lock().error = Some("the actors of the scenario go on for ever at one point".into());
        acted
    }

    /// Lets the server forget the resource version of each watch, if the search says so.
    pub(super) async fn relists(&self) {
        if !self.shared.relists {
            return;
        }
        for stream in self.shared.lag.watching() {
            let hit = self.lock().choices.relist(&stream);
            if hit && let Err(error) = self.shared.lag.relist(&stream).await {
                self.lock().error.get_or_insert_with(|| error.into());
            }
        }
    }

    async fn chance_of(&self, index: usize, chance: Chance, seen: &Seen) -> bool {
        let Shared { lag, actors, .. } = &*self.shared;
        let actor = &actors[index];
        if matches!(chance, Chance::WithinAPass) && !actor.is_placed() {
            return false;
        }
        let Some(looked_at) = self.ask(index, seen) else { return false };
        let eager = actor.acts_by_itself();
        let (menu, acts_at) = match chance {
            _ if !actor.is_placed() => (Vec::new(), 0),
            Chance::NothingElse if eager => (Vec::new(), 0),
            Chance::BetweenPasses if eager => {
                (vec![Alt::other("commit", 0), Alt::other("wait", 1)], 0)
            }
            _ => (vec![Alt::freshest(), Alt::other("commit", 1)], 1),
        };
        let notes = lag.notes();
        let (taken, number) = {
            let mut state = self.lock();
            let point = (!menu.is_empty()).then(|| self.record().len());
            let taken = match point {
                None => acts_at,
                Some(_) => state.choices.decide(actor.name(), Kind::Environment, menu),
            };
            let chance = Moment {
                actor: index,
                alternative: point.filter(|_| acts_at > 0).map(|point| (point, acts_at)),
                step: 0,
                looked_at,
                wrote: None,
                declared: actor.declared().cloned(),
            };
            state.chances.push((notes, chance));
            (taken, state.chances.len() - 1)
        };
        if taken != acts_at {
            return false;
        }
        let asked = self.lock().asked[index].take();
        let Some(step) = asked.and_then(|asked| asked.step) else { return false };
        {
            let mut state = self.lock();
            state.made[index] += 1;
            state.progress.disturbed = true;
        }
        let before = lag.observed_by_resource();
        lag.act_as(Some(actor.name()));
        let done = step.await;
        lag.act_as(None);
        let wrote: BTreeSet<String> = lag
            .observed_by_resource()
            .into_iter()
            .filter(|(resource, count)| before.get(resource) != Some(count))
            .map(|(resource, _)| resource)
            .collect();
        if let Some(declared) = actor.declared()
            && let Some(other) = wrote.iter().find(|resource| !declared.contains(*resource))
        {
            let text =
                format!("the actor {:?} wrote {other}, and said that it does not", actor.name());
            self.lock().error.get_or_insert_with(|| text.into());
        }
        self.lock().chances[number].1.wrote = Some(wrote);
        if let Err(error) = done {
            let text = format!("the actor {:?} could not act: {error}", actor.name());
            self.lock().error.get_or_insert_with(|| text.into());
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of a chooser has failed the run by that.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scheduler for Director {
    fn fault(&mut self, boundary: &Boundary) -> Option<ReplyFault> {
        let Shared { restarts, lost_replies, .. } = *self.shared;
        let mut state = self.lock();
        if boundary.request.is_none() || !state.in_pass || !(restarts || lost_replies) {
            return None;
        }
        let mut menu = vec![Alt::freshest()];
        let mut faults = vec![None];
        if lost_replies {
            menu.push(Alt::other("lost", 1));
            faults.push(Some(ReplyFault::Lost));
        }
        if restarts {
            menu.push(Alt::other("restart", 1));
            faults.push(Some(ReplyFault::Restart));
        }
        let taken = state.choices.decide("write", Kind::Fault, menu);
        state.lost += usize::from(taken > 0);
        faults.get(taken).copied().flatten()
    }

    fn environment(&mut self, boundary: &Boundary) -> BoxFuture<'static, ()> {
        self.lock().waited |= boundary.wait.is_some();
        // Before a pass everybody has had a chance already.
        if boundary.pass.is_some() || !self.lock().in_pass {
            return Box::pin(std::future::ready(()));
        }
        // What was read without a wrapper, and what was waited for, is in no state.
        let told =
            boundary.request.as_ref().is_some_and(|it| !is_for_people(&it.group, &it.resource))
                && !self.lock().waited
                && !self.lock().driven
                && self.shared.states.is_some()
                && self.shared.lag.unwrapped().is_empty();
        if self.shared.actors.is_empty() && !told {
            return Box::pin(std::future::ready(()));
        }
        let place = boundary.to_string();
        let chance = match boundary.wait {
            Some(Wait::GoesOn) => Chance::NothingElse,
            _ => Chance::WithinAPass,
        };
        let this = self.clone();
        Box::pin(async move {
            if told {
                this.reach(&place).await;
            }
            Self::environment(&this, chance).await;
        })
    }

    fn release(
        &mut self,
        boundary: &Boundary,
        stream: &StreamDescription,
        waiting: &[Released],
    ) -> usize {
        let mut state = self.lock();
        let moves = match (boundary.is_delivery(), state.driven) {
            (true, _) => true,
            (false, false) => state.in_pass,
            (false, true) => {
                let within = state.in_pass && boundary.pass.is_none();
                within && !self.shared.lag.only_triggers(stream)
            }
        };
        if moves { state.choices.release(boundary, stream, waiting) } else { 0 }
    }

    fn not_taken(&mut self, boundary: &Boundary, stream: &StreamDescription, error: StreamError) {
        self.lock().choices.not_taken(boundary, stream, error);
    }

    fn all_released(&mut self) {
        self.lock().choices.all_released();
    }

    fn read(&mut self, stream: &StreamDescription, answers: &[CachedRead]) -> usize {
        self.lock().choices.read(stream, answers)
    }

    fn initial(&mut self, stream: &Identity, versions: &[String]) -> usize {
        self.lock().choices.initial(stream, versions)
    }

    fn last_point(&self) -> Option<PointId> {
        self.lock().choices.last_point()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_is_asked_again_when_what_it_looked_at_has_changed() {
        let seen =
            |pods, sets| Seen::from([("pods".into(), pods), ("statefulsets.apps".into(), sets)]);
        let asked = |looked_at: &[&str]| Asked {
            seen: seen(1, 1),
            looked_at: looked_at.iter().map(|resource| (*resource).to_owned()).collect(),
            step: None,
        };
        let holds = |looked_at: &[&str]| {
            let asked = asked(looked_at);
            [seen(1, 1), seen(1, 2), seen(2, 1)].map(|seen| asked.holds(&seen))
        };
        assert_eq!(holds(&["pods"]), [true, true, false]);
        assert_eq!(holds(&["pods", "statefulsets.apps"]), [true, false, false]);
        assert_eq!(holds(&["*"]), [true, false, false]);
        assert_eq!(holds(&[]), [true; 3], "it decides by nothing that changes");
        assert_eq!(holds(&["configmaps"]), [true; 3], "nobody has made one");
        let mut more = seen(1, 1);
        more.insert("configmaps".into(), 1);
        assert!(!asked(&["configmaps"]).holds(&more));
    }
}
