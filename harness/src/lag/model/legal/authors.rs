//! Whether the history is one, and whether everyone did what the history says.

use std::collections::BTreeMap;

use super::{
    super::{
        Action, AnsweredBy, Author, Change, Commit, Outcome, RequestStep, Run,
        compare_resource_versions,
    },
    Axiom, Illegal,
};

/// Whether the changes can be those of one server.
pub(super) fn check_history(run: &Run) -> Result<(), Illegal> {
    let illegal = |text: String| Err(Illegal::new(Axiom::History, None, text));
    let mut newest: BTreeMap<&str, &str> = BTreeMap::new();
    let mut alive = BTreeMap::new();
    let mut last_step = None;
    for commit in &run.history {
        let name = name(commit);
        if let Some(before) = newest.insert(&commit.resource, &commit.resource_version) {
            match compare_resource_versions(before, &commit.resource_version) {
                Some(order) if order.is_lt() => {}
                Some(_) => return illegal(format!("{name} does not come after rv {before}")),
                None => return illegal(format!("{name} cannot be compared with rv {before}")),
            }
        }
        if commit.step < last_step {
            return illegal(format!("{name} is committed before the change in front of it"));
        }
        if commit.step.is_some_and(|step| step > run.steps.len()) {
            return illegal(format!("{name} is committed after the end of the run"));
        }
        last_step = commit.step;
        let object = (&commit.resource, &commit.key);
        let there = alive.contains_key(&object);
        match (commit.change, there) {
            (Change::Added, true) => return illegal(format!("{name} is added and was there")),
            (Change::Modified | Change::Deleted, false) => {
                return illegal(format!("{name} is {} and was not there", commit.change));
            }
            (Change::Deleted, true) => {
                alive.remove(&object);
            }
            (Change::Added | Change::Modified, _) => {
                let before = alive.insert(object, &commit.uid).and_then(Option::as_ref);
                if let (Some(before), Some(uid)) = (before, &commit.uid)
                    && before != uid
                {
                    return illegal(format!("{name} has uid {uid}, and had {before}"));
                }
            }
        }
    }
    Ok(())
}

/// Whether each change has the author that it names.
pub(super) fn check_authors(run: &Run) -> Result<(), Illegal> {
    for commit in &run.history {
        match &commit.by {
            Author::SetUp | Author::Server => {}
            Author::Actor(actor) => check_actor(run, commit, actor)?,
            Author::Request(number) => check_request(run, commit, *number)?,
        }
    }
    for (index, step) in run.steps.iter().enumerate() {
        let Action::Environment(environment) = &step.action else { continue };
        for reference in &environment.commits {
            let is_it = |commit: &Commit| {
                commit.resource == reference.resource
                    && commit.resource_version == reference.resource_version
                    && commit.by == Author::Actor(environment.actor.clone())
                    && commit.is_committed_at(index)
            };
            if !run.history.iter().any(is_it) {
                let text = format!(
                    "{} is said to have committed {reference}, and the history has no such change of it",
                    environment.actor
                );
                return Err(Illegal::new(Axiom::Environment, index, text));
            }
        }
    }
    Ok(())
}

fn check_actor(run: &Run, commit: &Commit, actor: &str) -> Result<(), Illegal> {
    let said = run.steps.iter().any(|step| {
        matches!(
            &step.action,
            Action::Environment(environment)
                if environment.actor == actor
                    && environment.commits.iter().any(|reference| {
                        reference.resource == commit.resource
                            && reference.resource_version == commit.resource_version
                    })
        )
    });
    if said {
        return Ok(());
    }
    let text = format!("{} is by {actor}, and no step of it says so", name(commit));
    Err(Illegal::new(Axiom::Environment, commit.step, text))
}

fn check_request(run: &Run, commit: &Commit, number: u64) -> Result<(), Illegal> {
    let name = name(commit);
    let illegal = |step: Option<usize>, text| Err(Illegal::new(Axiom::Writes, step, text));
    let made = run.requests().find(|(_, request)| request.request.number == number);
    let Some((index, request)) = made else {
        return illegal(commit.step, format!("{name} is by #{number}, which was never sent"));
    };
    if !request.request.verb.is_write() {
        return illegal(Some(index), format!("{name} is by #{number}, which is no write"));
    }
    if let Outcome::Status(status @ 400..) = request.request.outcome {
        return illegal(
            Some(index),
            format!("{name} is by #{number}, which was refused with {status}"),
        );
    }
    if commit.step.is_none_or(|step| step < request.sent || step > index) {
        return illegal(
            Some(index),
            format!("{name} is by #{number}, and not between its request and its reply"),
        );
    }
    Ok(())
}

/// Whether what the reply of a write says is in the history.
pub(super) fn check_write(run: &Run, index: usize, step: &RequestStep) -> Result<(), Illegal> {
    let request = &step.request;
    let by_server = request.answered_by == AnsweredBy::Server;
    if !request.verb.is_write()
        || !by_server
        || !matches!(request.outcome, Outcome::Status(200..=299))
    {
        return Ok(());
    }
    let resource = qualified(&request.group, &request.resource);
    let made: Vec<_> =
        run.history.iter().filter(|commit| commit.by == Author::Request(request.number)).collect();
    for seen in &step.reply {
        let committed = run.history.iter().any(|commit| {
            commit.resource == resource
                && commit.key == seen.key
                && commit.resource_version == seen.resource_version
                && commit.is_committed_at(index)
        });
        if !committed {
            let text = format!(
                "the reply to #{} says rv {} of {}, and the history has no such change by then",
                request.number, seen.resource_version, seen.key
            );
            return Err(Illegal::new(Axiom::Writes, index, text));
        }
        // The reply to a write that changed the object bears the revision of that change; only where the
        // object is gone by it (its last finalizer was removed) it bears the one before.
        let other = made.iter().find(|commit| {
            commit.resource == resource
                && commit.key == seen.key
                && commit.change != Change::Deleted
                && commit.resource_version != seen.resource_version
        });
        if let Some(other) = other {
            let text = format!(
                "the reply to #{} says rv {}, and its change is {}",
                request.number,
                seen.resource_version,
                name(other)
            );
            return Err(Illegal::new(Axiom::Writes, index, text));
        }
    }
    Ok(())
}

pub(super) fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn name(commit: &Commit) -> String {
    format!("{} {} at rv {}", commit.resource, commit.key, commit.resource_version)
}
