//! Choosers: a forced prefix, named choices, and two ways of drawing them at random.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    random::Random,
    states::{Known, Mark, Reached, StateId},
    token::Token,
};
use crate::lag::model::{Chooser, Chosen, Label, Point, PointId};

/// The choices of one run: decides them, and records the points that were met.
///
/// Clones share the record, so the subject can hand one to an engine while the search keeps another.
#[derive(Clone, Debug)]
pub struct Choices {
    inner: Arc<Mutex<Inner>>,
}

impl Choices {
    /// The freshest everywhere.
    #[must_use]
    pub fn fresh() -> Self {
        Self::new(Plan::Named(BTreeMap::new()))
    }

    /// The first `at` choices as they were `recorded`, then the alternative `taken`, then the freshest
    /// everywhere. Each of these points must be met as recorded, or [`met`](Self::met) is an error.
    #[must_use]
    pub fn prefix(recorded: Arc<[Chosen]>, at: usize, taken: usize) -> Self {
        Self::new(Plan::Prefix { recorded, at, taken })
    }

    /// All choices as they were `recorded`.
    #[must_use]
    pub fn again(recorded: Arc<[Chosen]>) -> Self {
        let at = recorded.len();
        Self::prefix(recorded, at, 0)
    }

    /// The named choices where their points are met, the freshest elsewhere. What was not met or not on
    /// the menu is told by [`unmatched`](Self::unmatched).
    #[must_use]
    pub fn named(token: &Token) -> Self {
        let named = token.choices().iter().cloned().collect();
        Self::new(Plan::Named(named))
    }

    /// Any alternative of each menu, drawn with `seed`.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        Self::new(Plan::Random(Random::new(seed)))
    }

    /// An alternative other than the freshest at `depth` points, the freshest elsewhere; drawn with `seed`
    /// among the first `points` points, a number that an earlier run had.
    ///
    /// This is the idea of probabilistic concurrency testing, with delays in place of priorities: a
    /// failure that needs `d` deviations is hit with a probability of about 1 in `points`^`d`, however
    /// many schedules there are.
    ///
    /// Source: Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs",
    /// ASPLOS 2010.
    #[must_use]
    pub fn pct(seed: u64, depth: usize, points: usize) -> Self {
        let mut random = Random::new(seed);
        let mut deviate = BTreeSet::new();
        while deviate.len() < depth.min(points) {
            deviate.insert(random.below(points));
        }
        Self::new(Plan::Pct { deviate, random })
    }

    fn new(plan: Plan) -> Self {
        let inner = Inner {
            plan,
            met: Vec::new(),
            divergence: None,
            misfits: BTreeMap::new(),
            marks: Vec::new(),
            known: None,
            ended_early: false,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// With what the search knows of other runs.
    pub(super) fn knowing(self, known: Known) -> Self {
        self.lock().known = Some(known);
        self
    }

    /// Tells the search which state the run is in; `place` says where that is, in words.
    ///
    /// A subject that never calls this is explored as a tree: each sequence of choices is a run. With it, what
    /// follows from a state is explored once. Two runs that are in one state, and choose alike from there, must meet the same
    /// points and the same states.
    pub fn reach(&self, state: StateId, place: impl Into<String>) -> Reached {
        let mut inner = self.lock();
        let points = inner.met.len();
        inner.marks.push(Mark { points, state, place: place.into() });
        let known = inner.known.as_ref().is_some_and(|known| known.covers(&inner.met, state));
        if !known {
            return Reached::New;
        }
        inner.ended_early = true;
        Reached::Known
    }

    /// Whether the run is one of a search, which wants to know what states it comes to and what need not be tried.
    pub(crate) fn is_one_of_a_search(&self) -> bool {
        self.lock().known.is_some()
    }

    /// Whether the run is compared with another of the same choices, so that its trace is looked at though it passes.
    pub(crate) fn is_compared(&self) -> bool {
        let inner = self.lock();
        inner.known.is_none() && !matches!(inner.plan, Plan::Random(_) | Plan::Pct { .. })
    }

    /// The states that were told, and whether the run was ended at the last of them.
    pub(super) fn marks(&self) -> (Vec<Mark>, bool) {
        let inner = self.lock();
        (inner.marks.clone(), inner.ended_early)
    }

    /// The points met so far and what was taken there.
    ///
    /// # Errors
    /// [`Divergence`] if a forced point was met in another form than recorded, or, when the run is over,
    /// not at all.
    pub fn met(&self) -> Result<Vec<Chosen>, Box<Divergence>> {
        let inner = self.lock();
        if let Some(divergence) = &inner.divergence {
            return Err(Box::new(divergence.clone()));
        }
        match &inner.plan {
            Plan::Prefix { recorded, at, taken: _ } if inner.met.len() <= *at => {
                match recorded.get(inner.met.len()) {
                    Some(missing) => Err(Box::new(Divergence {
                        step: inner.met.len() + 1,
                        recorded: missing.point.to_string(),
                        met: None,
                    })),
                    None => Ok(inner.met.clone()),
                }
            }
            _ => Ok(inner.met.clone()),
        }
    }

    /// The named choices that had no effect, and why.
    #[must_use]
    pub fn unmatched(&self) -> Vec<Unmatched> {
        let inner = self.lock();
        let Plan::Named(named) = &inner.plan else { return Vec::new() };
        let met: BTreeSet<&PointId> = inner.met.iter().map(|chosen| chosen.point.id()).collect();
        named
            .iter()
            .filter_map(|(id, label)| {
                let why = match inner.misfits.get(id) {
                    Some(point) => Why::NotOnTheMenu { point: point.to_string() },
                    None if met.contains(id) => return None,
                    None => Why::NotMet,
                };
                Some(Unmatched { id: id.clone(), label: label.clone(), why })
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chooser for Choices {
    fn choose(&mut self, point: &Point) -> usize {
        self.lock().choose(point)
    }
}

#[derive(Debug)]
struct Inner {
    plan: Plan,
    met: Vec<Chosen>,
    divergence: Option<Divergence>,
    /// Named points whose menu has no such label.
    misfits: BTreeMap<PointId, Point>,
    marks: Vec<Mark>,
    known: Option<Known>,
    ended_early: bool,
}

#[derive(Debug)]
enum Plan {
    Prefix { recorded: Arc<[Chosen]>, at: usize, taken: usize },
    Named(BTreeMap<PointId, Label>),
    Random(Random),
    Pct { deviate: BTreeSet<usize>, random: Random },
}

impl Inner {
    fn choose(&mut self, point: &Point) -> usize {
        let index = self.met.len();
        let wanted = match &mut self.plan {
            Plan::Prefix { recorded, at, taken } => match recorded.get(index) {
                Some(forced) if index <= *at && self.divergence.is_none() => {
                    if forced.point == *point {
                        if index < *at { forced.taken } else { *taken }
                    } else {
                        self.divergence = Some(Divergence {
                            step: index + 1,
                            recorded: forced.point.to_string(),
                            met: Some(point.to_string()),
                        });
                        0
                    }
                }
                _ => 0,
            },
            Plan::Named(named) => match named.get(point.id()) {
                Some(label) => point.position_of(label).unwrap_or_else(|| {
                    self.misfits.insert(point.id().clone(), point.clone());
                    0
                }),
                None => 0,
            },
            Plan::Random(random) => random.below(point.menu().len()),
            Plan::Pct { deviate, random } if deviate.contains(&index) && point.menu().len() > 1 => {
                1 + random.below(point.menu().len() - 1)
            }
            Plan::Pct { .. } => 0,
        };
        let taken = if wanted < point.menu().len() { wanted } else { 0 };
        self.met.push(Chosen { point: point.clone(), taken });
        taken
    }
}

/// The subject did not do the same again: two runs with the same choices went different ways.
///
/// What decides and is not chosen here is to be looked for: wall time, a hash map's order, a thread, memory
/// shared between runs, a server's own timing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the subject is not deterministic: choice point {step} was {recorded} when it was recorded and {} now",
    met.as_deref().unwrap_or("is not met")
)]
pub struct Divergence {
    step: usize,
    recorded: String,
    met: Option<String>,
}

impl Divergence {
    /// Which point of the run differs first, from 1.
    #[must_use]
    pub fn step(&self) -> usize {
        self.step
    }
}

/// A named choice that had no effect.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Unmatched {
    /// The point.
    pub id: PointId,
    /// The alternative.
    pub label: Label,
    /// Why it had none.
    pub why: Why,
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} ", self.id, self.label)?;
        match &self.why {
            Why::NotMet => f.write_str("is not met"),
            Why::NotOnTheMenu { point } => write!(f, "is not on the menu, {point}"),
        }
    }
}

/// Why a named choice had no effect.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Why {
    /// The run has no such point.
    NotMet,
    /// The point is there, the alternative is not.
    NotOnTheMenu {
        /// The point with its menu.
        point: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lag::model::{Alt, Kind};

    fn point(number: u32, older: u32) -> Point {
        let menu = std::iter::once(Alt::freshest()).chain((1..=older).map(Alt::behind)).collect();
        Point::new(PointId::new("pods", Kind::Read, number), menu).unwrap()
    }

    fn walk(choices: &Choices, points: &[Point]) -> Vec<usize> {
        let mut choices = choices.clone();
        points.iter().map(|point| choices.choose(point)).collect()
    }

    #[test]
    fn a_prefix_is_taken_as_recorded_then_one_alternative_then_the_freshest() {
        let points = [point(1, 2), point(2, 2), point(3, 2), point(4, 2)];
        let first = Choices::named(&"pods@r1:-2".parse().unwrap());
        assert_eq!(walk(&first, &points), [2, 0, 0, 0]);
        let recorded: Arc<[Chosen]> = first.met().unwrap().into();
        let second = Choices::prefix(recorded, 2, 1);
        assert_eq!(walk(&second, &points), [2, 0, 1, 0]);
        assert!(second.met().is_ok());
    }

    #[test]
    fn a_forced_point_that_is_met_in_another_form_is_a_divergence_that_names_it() {
        let first = Choices::fresh();
        walk(&first, &[point(1, 1), point(2, 1)]);
        let recorded: Arc<[Chosen]> = first.met().unwrap().into();
        let other_menu = Choices::prefix(Arc::clone(&recorded), 1, 1);
        walk(&other_menu, &[point(1, 1), point(2, 2)]);
        let text = other_menu.met().unwrap_err().to_string();
        assert_eq!(
            text,
            "the subject is not deterministic: choice point 2 was pods@r2 {0 -1} when it was recorded \
             and pods@r2 {0 -1 -2} now"
        );
        let too_short = Choices::prefix(Arc::clone(&recorded), 1, 1);
        walk(&too_short, &[point(1, 1)]);
        assert!(too_short.met().unwrap_err().to_string().ends_with("is not met now"));
        // After the prefix anything may come.
        let longer = Choices::prefix(recorded, 0, 1);
        walk(&longer, &[point(1, 1), point(7, 3)]);
        assert!(longer.met().is_ok());
    }

    #[test]
    fn named_choices_without_effect_are_told() {
        let token: Token = "pods@r1:-2,pods@r2:-1,pods@r9:-1".parse().unwrap();
        let choices = Choices::named(&token);
        assert_eq!(walk(&choices, &[point(1, 1), point(2, 1)]), [0, 1]);
        let unmatched: Vec<_> = choices.unmatched().iter().map(ToString::to_string).collect();
        assert_eq!(
            unmatched,
            ["pods@r1:-2 is not on the menu, pods@r1 {0 -1}", "pods@r9:-1 is not met"]
        );
    }

    #[test]
    fn one_seed_draws_one_run_and_pct_deviates_at_its_depth() {
        let points: Vec<_> = (1..=30).map(|number| point(number, 3)).collect();
        let drawn = |seed| walk(&Choices::random(seed), &points);
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        for seed in 0..100 {
            let taken = walk(&Choices::pct(seed, 3, points.len()), &points);
            assert_eq!(taken.iter().filter(|index| **index > 0).count(), 3, "{taken:?}");
        }
        assert_eq!(
            walk(&Choices::pct(1, 9, 2), &points)[..2].iter().filter(|i| **i > 0).count(),
            2
        );
    }
}
