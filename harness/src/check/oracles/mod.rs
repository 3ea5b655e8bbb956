//! What must hold in every run: what the test says, and five rules that hold for any controller.
//!
//! Oracles are pure: they see a record, never a server. So one run can be judged again, and a judgement
//! tested by hand-made runs.

mod end;
mod fields;
mod frozen;
mod overwrite;
mod pass;
mod record;
mod spin;
#[cfg(test)]
mod testing;
mod uid;
mod user;

use std::{collections::BTreeSet, fmt};

use serde_json::Value;

pub(crate) use self::end::{Ends, judge_end};
use self::{
    end::Projection,
    pass::AboutPass,
    record::Record,
    user::{AboutState, AboutWrite},
};
pub use self::{
    pass::SeenPass,
    user::{Claim, Sighting},
};
use super::Truth;
use crate::lag::model::{Action, RequestStep, Run, Step, Violation};

/// So many requests may be made in one pass, unless the test says otherwise.
const REQUESTS_IN_A_PASS: usize = 100;

/// What must hold in every run of a scenario.
///
/// The [built-in](BuiltIn) ones are all on at first. A run is reported with its first violation: that of
/// the earliest step; of one step, the oracles of the test before the built-in ones, in their order, and
/// those about writes before those about states.
///
/// ```
/// use k8s_openapi::api::apps::v1::StatefulSet;
/// use laggard::check::{BuiltIn, Oracles};
///
/// let mut oracles = Oracles::new();
/// oracles
///     .never("two sets", |truth| truth.list::<StatefulSet>().len() > 1)
///     .always("a set has pods", |truth| match truth.get::<StatefulSet>("n0") {
///         Some(set) if set.spec.replicas == Some(0) => Err("n0 wants none"),
///         _ => Ok(()),
///     })
///     .after_settle("the set is there", |truth| truth.get::<StatefulSet>("n0").is_some())
///     .never_write("writes outside its namespace", |write, _| {
///         write.request.namespace.as_deref() != Some("mine")
///     })
///     .each_pass("it settles on what it was shown", |pass| {
///         pass.was_shown_old::<StatefulSet>() || pass.requests().count() < 10
///     })
///     .without(BuiltIn::SameEnd);
/// assert!(!oracles.has(BuiltIn::SameEnd) && oracles.has(BuiltIn::NoSpin));
/// ```
pub struct Oracles {
    states: Vec<AboutState>,
    writes: Vec<AboutWrite>,
    passes: Vec<AboutPass>,
    built_in: BTreeSet<BuiltIn>,
    requests_in_a_pass: usize,
    compared: Option<Projection>,
}

impl Oracles {
    /// The built-in oracles alone.
    #[must_use]
    pub fn new() -> Self {
        Self {
            states: Vec::new(),
            writes: Vec::new(),
            passes: Vec::new(),
            built_in: BuiltIn::ALL.into(),
            requests_in_a_pass: REQUESTS_IN_A_PASS,
            compared: None,
        }
    }

    /// What must not be so after any change. The closure answers whether it is: `true`, or `Some` with what
    /// it saw.
    ///
    /// It is asked about the state that the set-up leaves and after each later change of anybody; the states
    /// in the middle of the set-up are nobody's fault.
    pub fn never<S: Sighting>(
        &mut self,
        name: impl Into<String>,
        check: impl Fn(&Truth) -> S + Send + Sync + 'static,
    ) -> &mut Self {
        self.states.push(AboutState::never(name.into(), check));
        self
    }

    /// What must be so after every change. The closure answers whether it is: `true`, or `Ok`; it is asked
    /// when [`never`](Self::never) is.
    pub fn always<C: Claim>(
        &mut self,
        name: impl Into<String>,
        check: impl Fn(&Truth) -> C + Send + Sync + 'static,
    ) -> &mut Self {
        self.states.push(AboutState::always(name.into(), check));
        self
    }

    /// What must be so when nothing is left to do: all events shown, no pass queued. The closure answers as
    /// that of [`always`](Self::always).
    ///
    /// A run that does not settle violates [`BuiltIn::NoSpin`], or, where that is off, this.
    pub fn after_settle<C: Claim>(
        &mut self,
        name: impl Into<String>,
        check: impl Fn(&Truth) -> C + Send + Sync + 'static,
    ) -> &mut Self {
        self.states.push(AboutState::after_settle(name.into(), check));
        self
    }

    /// What the code under test must not write. The closure sees each write that it sent, those that were
    /// refused or lost too, and the state just before it took effect; it answers as that of
    /// [`never`](Self::never).
    pub fn never_write<S: Sighting>(
        &mut self,
        name: impl Into<String>,
        check: impl Fn(&RequestStep, &Truth) -> S + Send + Sync + 'static,
    ) -> &mut Self {
        self.writes.push(AboutWrite::new(name.into(), check));
        self
    }

    /// What must be so of every pass that has come to its end, such as that it did what there was to do. The closure
    /// sees what the pass was shown and asked for, and what was true before and after it; it answers as that of
    /// [`always`](Self::always).
    ///
    /// A stale read that a second layer makes harmless shows in nothing but this: the pass does nothing, and the next
    /// one, which sees everything, does it.
    pub fn each_pass<C: Claim>(
        &mut self,
        name: impl Into<String>,
        check: impl Fn(&SeenPass<'_>) -> C + Send + Sync + 'static,
    ) -> &mut Self {
        self.passes.push(AboutPass::new(name.into(), check));
        self
    }

    /// Turns a built-in oracle off.
    pub fn without(&mut self, oracle: BuiltIn) -> &mut Self {
        self.built_in.remove(&oracle);
        self
    }

    /// Turns a built-in oracle on.
    pub fn with(&mut self, oracle: BuiltIn) -> &mut Self {
        self.built_in.insert(oracle);
        self
    }

    /// How many requests one pass may make before it counts as spinning (default 100). Watches do not count.
    pub fn requests_in_a_pass(&mut self, most: usize) -> &mut Self {
        self.requests_in_a_pass = most;
        self
    }

    /// What [`BuiltIn::SameEnd`] compares: the closure gets each object in normal form with its resource,
    /// such as `pods`, may cut away what may differ, and answers whether the object counts at all. By default
    /// everything does but Events.
    pub fn compare_ends(
        &mut self,
        projection: impl Fn(&str, &mut Value) -> bool + Send + Sync + 'static,
    ) -> &mut Self {
        self.compared = Some(Box::new(projection));
        self
    }

    /// Whether some are about passes as a whole.
    pub(crate) fn look_at_passes(&self) -> bool {
        !self.passes.is_empty()
    }

    /// Whether a built-in oracle is on.
    #[must_use]
    pub fn has(&self, oracle: BuiltIn) -> bool {
        self.built_in.contains(&oracle)
    }
}

impl Default for Oracles {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Oracles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oracles")
            .field("states", &self.states)
            .field("writes", &self.writes)
            .field("passes", &self.passes)
            .field("built_in", &self.built_in)
            .field("requests_in_a_pass", &self.requests_in_a_pass)
            .finish_non_exhaustive()
    }
}

/// The rules that hold for any controller.
///
/// Each judges only what the record shows for certain, so that none cries wolf: where a pass may have seen
/// more than the record says, it is taken to have seen it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum BuiltIn {
    /// A pass that sees what an earlier pass of its key saw creates nothing that the earlier one has created
    /// already: bodies are compared, so this finds duplicates whose names the server makes up.
    ///
    /// *Saw the same* means that no stream of the code under test moved from the beginning of the first pass
    /// to the create of the second, and that all reads before it had equal answers. Not judged are Events,
    /// and a create whose first object was gone by then.
    FrozenCache,
    /// All runs with the same disturbances end in one normalised state.
    SameEnd,
    /// An update or patch without precondition sets no field back to the value that it had before somebody
    /// else changed it, in a version that the pass had not seen.
    ///
    /// Somebody else is another actor, the server, or a pass for another key. A pass that had seen no version
    /// of the object is not judged: it writes what it wants, not what it read. Server-side apply is judged
    /// where it took fields from another manager, which only a forced one can.
    NoBlindOverwrite,
    /// A delete by name, or a write by name that adds an owner, hits the very object that the pass has read
    /// under that name, not one that was made anew since; or it says in its body which UID it means.
    UidCare,
    /// A pass makes a bounded number of requests, and a run comes to rest.
    NoSpin,
}

impl BuiltIn {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::FrozenCache, Self::SameEnd, Self::NoBlindOverwrite, Self::UidCare, Self::NoSpin];
}

impl fmt::Display for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FrozenCache => "frozen-cache idempotence",
            Self::SameEnd => "same end",
            Self::NoBlindOverwrite => "no blind overwrite",
            Self::UidCare => "uid care",
            Self::NoSpin => "no spin",
        })
    }
}

/// Judges a run by all oracles but [`BuiltIn::SameEnd`], which needs several: see [`judge_end`].
///
/// The first violation is put into the
/// run as a step of its own, right behind the step that shows it, and returned.
pub(crate) fn judge(run: &mut Run, oracles: &Oracles, end: End) -> Option<Violation> {
    let record = Record::of(run);
    // Without that one nobody else would say that the run did not settle.
    let alone = !oracles.has(BuiltIn::NoSpin);
    let mut found =
        user::judge(&record, &oracles.states, &oracles.writes, &oracles.passes, end, alone);
    let built_in: [(BuiltIn, &dyn Fn() -> Option<Found>); 4] = [
        (BuiltIn::FrozenCache, &|| frozen::judge(&record)),
        (BuiltIn::NoBlindOverwrite, &|| overwrite::judge(&record)),
        (BuiltIn::UidCare, &|| uid::judge(&record)),
        (BuiltIn::NoSpin, &|| spin::judge(&record, oracles.requests_in_a_pass, end)),
    ];
    for (oracle, judge) in built_in {
        if oracles.has(oracle) {
            found = earliest(found, judge());
        }
    }
    let found = found?;
    Some(insert(run, found))
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// The process ended by itself, and nobody asked whether anything was left to do.
    Finished,
    /// It came to rest with everything shown.
    Settled,
    /// It did not.
    Restless,
    /// It was ended where another run goes on.
    NotReached,
}

impl End {
    /// `settled` is `None` if nobody asked.
    pub(crate) fn of(settled: Option<bool>) -> Self {
        match settled {
            None => Self::Finished,
            Some(true) => Self::Settled,
            Some(false) => Self::Restless,
        }
    }
}

/// A violation, and the number of steps in front of it.
#[derive(Debug)]
struct Found {
    at: usize,
    violation: Violation,
}

impl Found {
    fn new(at: usize, oracle: impl ToString, text: String) -> Self {
        Self { at, violation: Violation { oracle: oracle.to_string(), text } }
    }
}

/// The first, where neither is earlier.
fn earliest(first: Option<Found>, second: Option<Found>) -> Option<Found> {
    match (first, second) {
        (Some(first), Some(second)) => Some(if second.at < first.at { second } else { first }),
        (first, second) => first.or(second),
    }
}

/// Puts a violation between two steps, and corrects what counts steps.
fn insert(run: &mut Run, found: Found) -> Violation {
    let at = found.at.min(run.steps.len());
    for commit in &mut run.history {
        if let Some(step) = commit.step.as_mut().filter(|step| **step >= at) {
            *step += 1;
        }
    }
    for step in &mut run.steps {
        // What was sent when so many steps had been recorded comes behind this one too.
        if let Action::Request(request) = &mut step.action
            && request.sent >= at
        {
            request.sent += 1;
        }
    }
    let action = Action::Violation(found.violation.clone());
    let step = match at.checked_sub(1).and_then(|before| run.steps.get(before)) {
        Some(before) => Step { at: before.at, pass: before.pass, action },
        None => Step::new(std::time::Duration::ZERO, action),
    };
    run.steps.insert(at, step);
    found.violation
}

#[cfg(test)]
mod tests;
