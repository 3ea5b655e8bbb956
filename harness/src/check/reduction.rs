//! Which placements of an actor's step need no run of their own, since a later one is the same.
//!
//! An actor may act before any reply. Most of these moments cannot be told apart: between two of them the
//! process only asks about other resources than those that the step looks at or writes. Then the later of the
//! two stands for both, and the search leaves the earlier one out.

use std::collections::BTreeSet;

use super::truth::EVERYTHING;
use crate::lag::model::{Action, Run};

/// A moment at which an actor could have acted.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) actor: usize,
    /// The index of the choice point, and that of the alternative to act; `None` where nothing was chosen.
    pub(super) alternative: Option<(usize, usize)>,
    /// How many steps the run had.
    pub(super) step: usize,
    /// The resources that the actor looked at in order to decide.
    pub(super) looked_at: BTreeSet<String>,
    /// What it wrote, if it acted.
    pub(super) wrote: Option<BTreeSet<String>>,
    /// What it said that it writes at most.
    pub(super) declared: Option<BTreeSet<String>>,
}

/// The alternatives of a run that lead to nothing which another alternative does not lead to as well.
///
/// `unwrapped` are the resources of streams whose reads are not seen: with such a stream every moment counts.
pub(super) fn redundant(
    run: &Run,
    chances: &[Moment],
    unwrapped: &BTreeSet<String>,
) -> BTreeSet<(usize, usize)> {
    let mut redundant = BTreeSet::new();
    for (at, chance) in chances.iter().enumerate() {
        let (Some(alternative), None) = (chance.alternative, &chance.wrote) else { continue };
        let later = || chances[at + 1..].iter().filter(|later| later.actor == chance.actor);
        let Some(next) = later().next() else { continue };
        // The same step, if nothing that it looks at has changed until it was made.
        let made = later().find(|later| later.wrote.is_some()).filter(|made| {
            let changed = changed_between(run, chance.step, made.step);
            changed.is_disjoint(&chance.looked_at)
        });
        let known = made.and_then(|made| made.wrote.as_ref()).or(chance.declared.as_ref());
        let Some(writes) = known.filter(|_| !chance.looked_at.contains(EVERYTHING)) else {
            continue;
        };
        if writes.is_disjoint(unwrapped)
            && is_independent(run, chance.step..next.step, &chance.looked_at, writes)
        {
            redundant.insert(alternative);
        }
    }
    redundant
}

/// Whether nothing that happened in these steps could tell that the step had been made before, or would have changed it.
fn is_independent(
    run: &Run,
    steps: std::ops::Range<usize>,
    looked_at: &BTreeSet<String>,
    writes: &BTreeSet<String>,
) -> bool {
    let touched = |resource: &str| looked_at.contains(resource) || writes.contains(resource);
    let changed = changed_between(run, steps.start, steps.end);
    if changed.iter().any(|resource| touched(resource)) {
        return false;
    }
    run.steps[steps].iter().all(|step| match &step.action {
        Action::Request(request) => {
            let request = &request.request;
            let resource = qualified(&request.group, &request.resource);
            let parent = request.resource.is_empty();
            let seen = if request.verb.is_write() {
                touched(&resource)
            } else {
                writes.contains(&resource)
            };
            !seen && !parent
        }
        Action::Read(read) => run
            .streams
            .get(read.stream)
            .is_some_and(|stream| !writes.contains(&stream.identity.qualified_resource())),
        Action::Fault(_) | Action::ListStart(_) | Action::ListEnd(_) | Action::Resume { .. } => {
            false
        }
        _ => true,
    })
}

/// The resources of which something changed between two numbers of steps.
fn changed_between(run: &Run, from: usize, to: usize) -> BTreeSet<String> {
    let within = |step: Option<usize>| step.is_some_and(|step| (from..to).contains(&step));
    let commits = run.history.iter().filter(|commit| within(commit.step));
    commits.map(|commit| commit.resource.clone()).collect()
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}
