//! The scheduler of a run: streams, reads, actors and faults, each put to the chooser as a named point.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;

use super::{
    actor::{Acting, Actor},
    reduction::Moment,
    scenario::{BoxError, Scenario},
    truth::Truth,
};
use crate::{
    explore,
    lag::{
        Boundary, ChoiceRecord, Choices, Lag, Released, ReplyFault, Scheduler, StreamError, Wait,
        model::{Action, Alt, CachedRead, Fault, Identity, Kind, PointId, Run, StreamDescription},
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
    state: Mutex<State>,
    record: ChoiceRecord,
}

struct State {
    choices: Choices<explore::Choices>,
    /// How many steps each actor has made.
    made: Vec<usize>,
    in_pass: bool,
    waited: bool,
    chances: Vec<(usize, Moment)>,
    error: Option<BoxError>,
}

/// Who may act, and what is free.
#[derive(Clone, Copy, Eq, PartialEq)]
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
    ) -> Self {
        let choices = Choices::new(choices);
        let record = choices.record();
        let acting = Acting { client: lag.actor_client(), namespace: namespace.to_owned() };
        let made = vec![0; scenario.actors.len()];
        let (in_pass, waited, chances) = (false, false, Vec::new());
        let state = State { choices, made, in_pass, waited, chances, error: None };
        Self {
            shared: Arc::new(Shared {
                lag: lag.clone(),
                acting,
                actors: scenario.actors.clone(),
                restarts: scenario.restarts,
                relists: scenario.relists,
                lost_replies: scenario.lost_replies,
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
        self.lock().in_pass = true;
    }

    pub(super) fn leave_pass(&self) {
        self.lock().in_pass = false;
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
            Action::Fault(_) => Some("lost".to_owned()),
            _ => None,
        });
        acted.chain(faults).collect::<Vec<_>>().join(", ")
    }

    /// Whether an actor who acts by itself has something to do.
    pub(super) fn has_work(&self) -> bool {
        let truth = self.shared.lag.truth();
        let made = self.lock().made.clone();
        self.shared.actors.iter().zip(made).any(|(actor, made)| {
            actor.acts_by_itself() && actor.next(made, &truth, &self.shared.acting).is_some()
        })
    }

    /// Lets the actors act, one step after the other. Whether any did.
    pub(super) async fn environment(&self, chance: Chance) -> bool {
        let mut acted = false;
        for _ in 0..STEPS_AT_ONCE {
            let mut any = false;
            // Looking at the truth costs more than anything else here.
            let mut truth = self.shared.lag.truth();
            for index in 0..self.shared.actors.len() {
                if self.chance_of(index, chance, &truth).await {
                    any = true;
                    truth = self.shared.lag.truth();
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

    async fn chance_of(&self, index: usize, chance: Chance, truth: &Truth) -> bool {
        let Shared { lag, acting, actors, .. } = &*self.shared;
        let actor = &actors[index];
        truth.forget_looks();
        let made = self.lock().made[index];
        let Some(step) = actor.next(made, truth, acting) else { return false };
        let eager = actor.acts_by_itself();
        let (menu, acts_at) = match chance {
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
                looked_at: truth.looked_at(),
                wrote: None,
                declared: actor.declared().cloned(),
            };
            state.chances.push((notes, chance));
            (taken, state.chances.len() - 1)
        };
        if taken != acts_at {
            return false;
        }
        self.lock().made[index] += 1;
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
        faults.get(taken).copied().flatten()
    }

    fn environment(&mut self, boundary: &Boundary) -> BoxFuture<'static, ()> {
        self.lock().waited |= boundary.wait.is_some();
        // Before a pass everybody has had a chance already.
        if boundary.pass.is_some() || !self.lock().in_pass || self.shared.actors.is_empty() {
            return Box::pin(std::future::ready(()));
        }
        let chance = match boundary.wait {
            Some(Wait::GoesOn) => Chance::NothingElse,
            _ => Chance::WithinAPass,
        };
        let this = self.clone();
        Box::pin(async move {
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
        if state.in_pass { state.choices.release(boundary, stream, waiting) } else { 0 }
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
