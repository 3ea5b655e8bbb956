//! UID care: what is deleted or adopted by name is the object that was read under that name.

use serde_json::Value;

use super::{
    BuiltIn, Found,
    record::{Pass, Precondition, Record, Sights, is_eviction, precondition, resource_of, uid_of},
};
use crate::lag::model::{Change, Commit, RequestStep, Verb};

pub(super) fn judge(record: &Record<'_>) -> Option<Found> {
    record.requests_of_passes().find_map(|(index, pass, request)| {
        let text = wrong_object(record, pass, request, request.sent.min(index))?;
        Some(Found::new(index + 1, BuiltIn::UidCare, text))
    })
}

/// Which other object was hit, in words.
fn wrong_object(
    record: &Record<'_>,
    pass: Pass<'_>,
    step: &RequestStep,
    sent: usize,
) -> Option<String> {
    let request = &step.request;
    if precondition(request) != Precondition::None {
        return None;
    }
    let (number, commit) = record.commit_of(request)?;
    let (_, before) = record.before(number)?;
    if before.change == Change::Deleted {
        return None; // it made the object
    }
    let what = match request.verb {
        Verb::Delete => "deletes",
        Verb::Create if is_eviction(request) => "evicts",
        Verb::Update | Verb::Patch(_) if adds_owner(before, commit) => "adopts",
        _ => return None,
    };
    let hit = uid_of(commit).or_else(|| uid_of(before))?;
    let resource = resource_of(request);
    let read = other_uid(&record.sights(pass, sent, &resource, &commit.key), hit)?;
    Some(format!(
        "pass {} {what} {resource} {} by name: that is uid {hit} now, and it had read uid {read}",
        pass.start.pass, commit.key,
    ))
}

/// The UID that a pass took the object to have, if it cannot have been the one that was hit.
fn other_uid<'a>(sights: &Sights<'a>, hit: &str) -> Option<&'a str> {
    if let Some(last) = sights.read.last() {
        return last.uid.filter(|uid| *uid != hit);
    }
    // It is not known which of these it read: all must agree that it was another.
    let mut last = sights.shown.values().filter_map(|shown| shown.last()).map(|sight| sight.uid);
    let first = last.next()??;
    (first != hit && last.all(|uid| uid.is_some_and(|uid| uid != hit))).then_some(first)
}

/// Whether an owner is there after a change that was not there before, or is told of differently.
fn adds_owner(before: &Commit, after: &Commit) -> bool {
    let owners = |commit: &Commit| -> Vec<Value> {
        let object = commit.object.as_ref();
        let owners = object.and_then(|object| object.pointer("/metadata/ownerReferences"));
        owners.and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let known = owners(before);
    owners(after).iter().any(|owner| !known.contains(owner))
}
