//! Frozen-cache idempotence: what was created once is not created again while nothing new can be seen.

use serde_json::{Map, Value};

use super::{
    BuiltIn, Found,
    record::{Pass, Record, resource_of},
};
use crate::lag::model::{
    Action, Change, Commit, Fault, ObjectKey, RequestStep, Role, Seen, Verb, is_moment,
    replace_uuids,
};

pub(super) fn judge(record: &Record<'_>) -> Option<Found> {
    let mut earlier: Vec<Create<'_>> = Vec::new();
    for (index, pass, request) in record.requests_of_passes() {
        let Some(create) = Create::of(record, index, pass, request) else { continue };
        let again = earlier.iter().find(|first| {
            first.pass.start.pass < pass.start.pass
                && first.pass.is_of_the_key_of(&pass)
                && first.resource == create.resource
                && first.body == create.body
                && is_there_still(record, first.commit, create.commit)
                && is_unchanged(record, first.pass.begun, request.sent.min(index))
                && told(record, first.pass, first.index) == told(record, pass, index)
        });
        if let Some(first) = again {
            let text = format!(
                "pass {} creates {} {} although pass {} has created {} with the same body, and saw \
                 the same",
                pass.start.pass,
                create.resource,
                name(record, create.commit),
                first.pass.start.pass,
                name(record, first.commit),
            );
            return Some(Found::new(index + 1, BuiltIn::FrozenCache, text));
        }
        earlier.push(create);
    }
    None
}

/// A create that took effect.
struct Create<'a> {
    index: usize,
    pass: Pass<'a>,
    resource: String,
    body: Value,
    /// The index of its change.
    commit: usize,
}

impl<'a> Create<'a> {
    fn of(record: &Record<'a>, index: usize, pass: Pass<'a>, step: &RequestStep) -> Option<Self> {
        let request = &step.request;
        let resource = resource_of(request);
        // An Event says that something happened; saying so twice is no duplicate.
        if request.verb != Verb::Create
            || matches!(resource.as_str(), "events" | "events.events.k8s.io")
        {
            return None;
        }
        let mut commits = record.commits_of(request.number).iter().copied();
        let commit = commits.find(|number| {
            let commit: &Commit = &record.run.history[*number];
            commit.resource == resource && commit.change == Change::Added
        })?;
        let mut body = request.body.clone()?;
        normalise(&mut body);
        Some(Self { index, pass, resource, body, commit })
    }
}

/// Leaves out of a body what differs each time it is made.
fn normalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for value in fields.values_mut() {
                normalise(value);
            }
            let keys: Vec<_> = fields.keys().filter(|key| mask(key) != **key).cloned().collect();
            for key in keys {
                let value = fields.remove(&key);
                fields.extend(value.map(|value| (mask(&key), value)));
            }
            // What a client leaves empty, another may leave out.
            fields.retain(|_, value| !value.is_null() && *value != Value::Object(Map::new()));
        }
        Value::Array(items) => items.iter_mut().for_each(normalise),
        Value::String(text) => *text = mask(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn mask(text: &str) -> String {
    if is_moment(text) {
        return "<time>".to_owned();
    }
    replace_uuids(text, |_| "<uuid>".to_owned())
}

/// Whether nobody has deleted the object of the first change before the second was made.
fn is_there_still(record: &Record<'_>, first: usize, second: usize) -> bool {
    let made = &record.run.history[first];
    let between = record.run.history.get(first + 1..second).unwrap_or_default();
    !between.iter().any(|commit| {
        commit.resource == made.resource
            && commit.key == made.key
            && commit.change == Change::Deleted
    })
}

/// Whether no view of the code under test moved from one step up to another.
fn is_unchanged(record: &Record<'_>, from: usize, to: usize) -> bool {
    let own = |stream: usize| {
        record.run.streams.get(stream).is_none_or(|stream| stream.role != Role::Replica)
    };
    let steps = record.run.steps.get(from..to).unwrap_or_default();
    !steps.iter().any(|step| match &step.action {
        Action::Release(release) => own(release.stream) && !release.events.is_empty(),
        Action::ListEnd(list) => own(list.stream),
        Action::Fault(Fault::Restart) => true,
        _ => false,
    })
}

/// A read, and what it was told.
#[derive(Eq, PartialEq)]
struct Told<'a> {
    asked: String,
    /// Without an order: a store has none.
    answer: Vec<&'a Seen>,
    /// A refusal is an answer too.
    outcome: String,
}

/// All reads of a pass in front of a step.
fn told<'a>(record: &Record<'a>, pass: Pass<'_>, before: usize) -> Vec<Told<'a>> {
    let steps = record.run.steps.get(pass.begun..before).unwrap_or_default();
    let of_it = steps.iter().filter(|step| step.pass == Some(pass.start.pass));
    of_it
        .filter_map(|step| {
            let (asked, answer, outcome) = match &step.action {
                Action::Read(read) => {
                    (format!("{} {}", read.stream, read.query), &read.answer, String::new())
                }
                Action::Request(step) if matches!(step.request.verb, Verb::Get | Verb::List) => {
                    let request = &step.request;
                    let asked = format!(
                        "{} {} {:?} {:?} {:?}",
                        request.verb, request.path, request.labels, request.fields, request.name
                    );
                    (asked, &step.reply, request.outcome.to_string())
                }
                _ => return None,
            };
            let mut answer: Vec<_> = answer.iter().collect();
            answer.sort();
            Some(Told { asked, answer, outcome })
        })
        .collect()
}

fn name(record: &Record<'_>, commit: usize) -> ObjectKey {
    record.run.history[commit].key.clone()
}
