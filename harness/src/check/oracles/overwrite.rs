//! No blind overwrite: nobody's change is undone by a write that was computed without it.

use serde_json::Value;

use super::{
    BuiltIn, Found,
    fields::{fields, shortened, took_ownership},
    record::{Pass, Precondition, Record, precondition, resource_of},
};
use crate::lag::model::{
    Author, Change, Commit, PatchType, RequestStep, Verb, compare_resource_versions,
};

pub(super) fn judge(record: &Record<'_>) -> Option<Found> {
    record.requests_of_passes().find_map(|(index, pass, request)| {
        let text = overwritten(record, pass, request, request.sent.min(index))?;
        Some(Found::new(index + 1, BuiltIn::NoBlindOverwrite, text))
    })
}

/// What a write undid, in words.
fn overwritten(
    record: &Record<'_>,
    pass: Pass<'_>,
    step: &RequestStep,
    sent: usize,
) -> Option<String> {
    let request = &step.request;
    if !matches!(request.verb, Verb::Update | Verb::Patch(_))
        || precondition(request) == Precondition::Version
    {
        return None;
    }
    let (number, write) = record.commit_of(request)?;
    let (mut at, mut commit) = record.before(number)?;
    if write.change != Change::Modified {
        return None;
    }
    let (before, after) = (commit.object.as_ref()?, write.object.as_ref()?);
    if request.verb == Verb::Patch(PatchType::Apply) && !took_ownership(before, after) {
        return None;
    }
    let resource = resource_of(request);
    let sights = record.sights(pass, sent, &resource, &write.key);
    let seen = sights.newest()?;
    let (before, after) = (fields(before), fields(after));
    // Back through what the pass had not seen, as far as it is the same object.
    while commit.change == Change::Modified
        && compare_resource_versions(seen, &commit.resource_version).is_some_and(|o| o.is_lt())
    {
        let (earlier, base) = record.before(at)?;
        if is_of_somebody_else(record, pass, commit)
            && let (Some(base), Some(changed)) = (&base.object, &commit.object)
        {
            let (base, changed) = (fields(base), fields(changed));
            let paths = base.keys().chain(changed.keys().filter(|path| !base.contains_key(*path)));
            let undone = paths.into_iter().find(|path| {
                base.get(*path) != changed.get(*path)
                    && after.get(*path) == base.get(*path)
                    && after.get(*path) != before.get(*path)
            });
            if let Some(path) = undone {
                return Some(format!(
                    "{resource} {}: {path} goes from {} back to {}, as it was before {} changed it at \
                     rv {}; pass {} had seen rv {seen} at most",
                    write.key,
                    value(before.get(path)),
                    value(after.get(path)),
                    record.author(commit),
                    commit.resource_version,
                    pass.start.pass,
                ));
            }
        }
        (at, commit) = (earlier, base);
    }
    None
}

/// Whether a change was not made for the key of this pass.
fn is_of_somebody_else(record: &Record<'_>, pass: Pass<'_>, commit: &Commit) -> bool {
    match &commit.by {
        // A request outside passes may be made for any key, also for this one.
        Author::Request(number) => {
            record.pass_of(*number).is_some_and(|other| !other.is_of_the_key_of(&pass))
        }
        _ => true,
    }
}

fn value(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), shortened)
}
