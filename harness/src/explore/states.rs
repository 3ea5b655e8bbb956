//! States that runs have been in, so that what follows from one is explored once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::lag::model::{Alt, Bound, Bounds, Chosen, Kind};

/// What decides how a run goes on, as a digest: two runs in equal states that choose alike go on alike.
///
/// Whoever makes one promises that. A search looks whether the promise is kept, on some of the runs that it
/// could have ended.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StateId([u8; 16]);

impl StateId {
    /// The state with this digest.
    #[must_use]
    pub fn new(digest: [u8; 16]) -> Self {
        Self(digest)
    }
}

/// What a run is told that has come to a state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use = "a run in a known state is to be ended"]
#[non_exhaustive]
pub enum Reached {
    /// Nobody has been there, or with less left to spend: the run goes on.
    New,
    /// What follows is explored from another run that was there: this one can end.
    Known,
}

/// A state that a run was in.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    /// How many points the run had met.
    pub(super) points: usize,
    pub(super) state: StateId,
    /// Where the run was, in words.
    pub(super) place: String,
}

/// What the choices of a run cost, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    stale_reads: u32,
    holds: u32,
    environment: u32,
    faults: u32,
}

impl Spent {
    pub(super) fn plus(mut self, kind: Kind, alt: &Alt) -> Self {
        let account = match kind {
            Kind::Read | Kind::Init => &mut self.stale_reads,
            Kind::Boundary | Kind::Trigger => &mut self.holds,
            Kind::Environment => &mut self.environment,
            Kind::Fault => &mut self.faults,
        };
        *account += u32::from(alt.cost);
        self
    }

    pub(super) fn of(choices: &[Chosen]) -> Self {
        choices.iter().fold(Self::default(), |spent, chosen| {
            spent.plus(chosen.point.kind(), chosen.alternative())
        })
    }

    pub(super) fn total(self) -> u32 {
        self.stale_reads + self.holds + self.environment + self.faults
    }

    /// The first bound that is exceeded.
    pub(super) fn exceeds(self, bounds: &Bounds) -> Option<Bound> {
        let over = |spent: u32, most: Option<u32>| most.filter(|most| spent > *most);
        over(self.stale_reads, bounds.stale_reads)
            .map(Bound::StaleReads)
            .or_else(|| over(self.holds, bounds.holds).map(Bound::Holds))
            .or_else(|| over(self.environment, bounds.environment).map(Bound::Environment))
            .or_else(|| over(self.faults, bounds.faults).map(Bound::Faults))
    }

    /// Whether whoever has spent this has at least as much left as whoever has spent `other`.
    fn leaves_as_much_as(self, other: Self, bounds: &Bounds) -> bool {
        let fewer = |this: u32, other: u32, most: Option<u32>| most.is_none() || this <= other;
        fewer(self.stale_reads, other.stale_reads, bounds.stale_reads)
            && fewer(self.holds, other.holds, bounds.holds)
            && fewer(self.environment, other.environment, bounds.environment)
            && fewer(self.faults, other.faults, bounds.faults)
    }
}

/// The states from which a search explores everything that is within its bounds.
#[derive(Debug)]
pub(super) struct Visited {
    bounds: Bounds,
    states: HashMap<StateId, State>,
}

#[derive(Debug, Default)]
struct State {
    /// What those had spent who came here, and how many runs had been judged when it was noted.
    visits: Vec<(Spent, u64)>,
    /// The state after this one where everything is fresh; `None` if the run ended.
    next: Option<StateId>,
}

impl Visited {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, states: HashMap::new() }
    }

    /// Whether everything that can follow is explored already, as known when `as_of` runs had been judged.
    fn covers(&self, state: StateId, spent: Spent, as_of: u64) -> bool {
        let visits = self.states.get(&state).map_or(&[][..], |state| &state.visits);
        visits
            .iter()
            .any(|(before, noted)| *noted <= as_of && before.leaves_as_much_as(spent, &self.bounds))
    }

    /// Notes the states of a run that was judged as number `judged`; `fixed` of its choices were forced. If it `failed`, no
    /// state is noted: what else could have been found behind the first violation was not seen.
    ///
    /// Answers how many of its points are to be branched from, if not all: those in front of a known state.
    pub(super) fn note(
        &mut self,
        choices: &[Chosen],
        marks: &[Mark],
        fixed: usize,
        judged: u64,
        failed: bool,
    ) -> Option<usize> {
        for (index, mark) in marks.iter().enumerate().filter(|(_, mark)| mark.points >= fixed) {
            let spent = Spent::of(&choices[..mark.points]);
            if self.covers(mark.state, spent, u64::MAX) {
                return Some(mark.points);
            }
            if failed {
                continue;
            }
            let state = self.states.entry(mark.state).or_default();
            state.visits.push((spent, judged));
            state.next = marks.get(index + 1).map(|mark| mark.state);
        }
        None
    }

    /// The first place at which a run that met known states went on in another way than the run that had been
    /// there before.
    ///
    /// Looks at the first `compared` of its marks: the last one of a run that was ended there leads nowhere.
    pub(super) fn departure<'m>(
        &self,
        marks: &'m [Mark],
        compared: usize,
        fixed: usize,
    ) -> Option<&'m Mark> {
        let known = |mark: &Mark| self.states.get(&mark.state);
        let steps = marks.iter().zip(marks.iter().skip(1).map(Some).chain([None]));
        steps
            .take(compared)
            .filter(|(mark, _)| mark.points >= fixed)
            .find(|(mark, next)| {
                let next = next.map(|next| next.state);
                known(mark).is_some_and(|state| state.next != next)
            })
            .map(|(mark, _)| mark)
    }
}

/// What a run that is under way knows of the others.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) visited: Arc<Mutex<Visited>>,
    /// How many runs had been judged when this one began: what was found since depends on which was quicker.
    pub(super) as_of: u64,
    pub(super) fixed: usize,
    /// It goes on in any case, to see that it would have been right to end it.
    pub(super) goes_on: bool,
}

impl Known {
    pub(super) fn covers(&self, choices: &[Chosen], state: StateId) -> bool {
        !self.goes_on
            && choices.len() >= self.fixed
            && lock(&self.visited).covers(state, Spent::of(choices), self.as_of)
    }
}

pub(super) fn lock(visited: &Mutex<Visited>) -> MutexGuard<'_, Visited> {
    visited.lock().unwrap_or_else(PoisonError::into_inner)
}
