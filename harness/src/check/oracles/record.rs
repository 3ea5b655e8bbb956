//! A run, indexed for its judges: who made which change, and what a pass had seen.

use std::collections::{BTreeMap, BTreeSet};

use crate::lag::model::{
    Action, Author, Change, Commit, ObjectKey, PassStart, Request, RequestStep, Role, Run, Seen,
    Verb, compare_resource_versions,
};

/// A run and its indexes.
pub(super) struct Record<'a> {
    pub(super) run: &'a Run,
    /// The step of each request, by its number.
    requests: BTreeMap<u64, usize>,
    /// The changes that each request made, by its number.
    commits: BTreeMap<u64, Vec<usize>>,
    /// For each change, the one before it of the same object.
    before: Vec<Option<usize>>,
    passes: BTreeMap<u32, Pass<'a>>,
    /// The streams whose reads are in the record. Of the others it is not known what was read.
    recorded: BTreeSet<usize>,
}

/// One pass.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) start: &'a PassStart,
    /// The index of the step with which it begins.
    pub(super) begun: usize,
}

impl Pass<'_> {
    /// Whether both are of one controller and key.
    pub(super) fn is_of_the_key_of(&self, other: &Self) -> bool {
        (&self.start.controller, &self.start.key) == (&other.start.controller, &other.start.key)
    }
}

/// An object, as a pass has seen it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight<'a> {
    pub(super) resource_version: &'a str,
    pub(super) uid: Option<&'a str>,
}

/// What a pass has seen of one object, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Sights<'a> {
    /// In its own reads and replies.
    pub(super) read: Vec<Sight<'a>>,
    /// On streams whose reads are not recorded, a list each: it may have read any of these.
    pub(super) shown: BTreeMap<usize, Vec<Sight<'a>>>,
}

impl<'a> Sights<'a> {
    /// The newest version that it may have seen.
    pub(super) fn newest(&self) -> Option<&'a str> {
        let all = self.read.iter().chain(self.shown.values().flatten());
        all.map(|sight| sight.resource_version).reduce(|newest, other| {
            let newer = compare_resource_versions(newest, other).is_some_and(|order| order.is_lt());
            if newer { other } else { newest }
        })
    }
}

impl<'a> Record<'a> {
    pub(super) fn of(run: &'a Run) -> Self {
        let mut record = Self {
            run,
            requests: BTreeMap::new(),
            commits: BTreeMap::new(),
            before: Vec::with_capacity(run.history.len()),
            passes: BTreeMap::new(),
            recorded: BTreeSet::new(),
        };
        let mut last = BTreeMap::new();
        for (number, commit) in run.history.iter().enumerate() {
            record.before.push(last.insert((&commit.resource, &commit.key), number));
            if let Author::Request(request) = commit.by {
                record.commits.entry(request).or_default().push(number);
            }
        }
        for (index, step) in run.steps.iter().enumerate() {
            match &step.action {
                Action::Request(request) => {
                    record.requests.insert(request.request.number, index);
                }
                Action::PassStart(start) => {
                    record.passes.insert(start.pass, Pass { start, begun: index });
                }
                Action::Read(read) => {
                    record.recorded.insert(read.stream);
                }
                _ => {}
            }
        }
        record
    }

    /// The request with this number, and the index of its step.
    pub(super) fn request(&self, number: u64) -> Option<(usize, &'a RequestStep)> {
        let index = *self.requests.get(&number)?;
        match &self.run.steps.get(index)?.action {
            Action::Request(request) => Some((index, request)),
            _ => None,
        }
    }

    /// The requests of passes, with the index of their step.
    pub(super) fn requests_of_passes(
        &self,
    ) -> impl Iterator<Item = (usize, Pass<'a>, &'a RequestStep)> {
        self.run.steps.iter().enumerate().filter_map(|(index, step)| match &step.action {
            Action::Request(request) => Some((index, self.pass(step.pass?)?, &**request)),
            _ => None,
        })
    }

    /// The indexes of the changes that a request made.
    pub(super) fn commits_of(&self, request: u64) -> &[usize] {
        self.commits.get(&request).map_or(&[], Vec::as_slice)
    }

    /// The change that a request made to the object that it names.
    pub(super) fn commit_of(&self, request: &Request) -> Option<(usize, &'a Commit)> {
        let name = request.name.as_deref()?;
        let resource = resource_of(request);
        self.commits_of(request.number).iter().find_map(|number| {
            let commit = self.run.history.get(*number)?;
            (commit.resource == resource && commit.key.name == name).then_some((*number, commit))
        })
    }

    /// The change of the same object in front of this one.
    pub(super) fn before(&self, commit: usize) -> Option<(usize, &'a Commit)> {
        let number = (*self.before.get(commit)?)?;
        Some((number, self.run.history.get(number)?))
    }

    pub(super) fn pass(&self, number: u32) -> Option<Pass<'a>> {
        self.passes.get(&number).copied()
    }

    /// The pass that made a request.
    pub(super) fn pass_of(&self, request: u64) -> Option<Pass<'a>> {
        let index = self.requests.get(&request)?;
        self.pass(self.run.steps.get(*index)?.pass?)
    }

    /// After how many steps a reader has seen what made a change: its request, or the step with which it is
    /// in the server's state.
    pub(super) fn shown_after(&self, commit: usize) -> usize {
        let commit = &self.run.history[commit];
        let step = commit.step.map_or(0, |step| step + 1);
        let request = match commit.by {
            Author::Request(number) => self.requests.get(&number).map_or(0, |index| index + 1),
            _ => 0,
        };
        step.max(request).min(self.run.steps.len())
    }

    /// Who made a change, for a person. Requests have other numbers in the report than in the record.
    pub(super) fn author(&self, commit: &Commit) -> String {
        match &commit.by {
            Author::Request(number) => match self.pass_of(*number) {
                Some(pass) => {
                    format!(
                        "pass {} of {} {}",
                        pass.start.pass, pass.start.controller, pass.start.key
                    )
                }
                None => "a request outside passes".to_owned(),
            },
            other => other.to_string(),
        }
    }

    /// What a pass can have seen of an object in the first `steps` steps.
    pub(super) fn sights(
        &self,
        pass: Pass<'a>,
        steps: usize,
        resource: &str,
        key: &ObjectKey,
    ) -> Sights<'a> {
        let mut sights = Sights::default();
        for (index, step) in self.run.steps.iter().enumerate().take(steps) {
            let own = step.pass == Some(pass.start.pass) && index >= pass.begun;
            match &step.action {
                Action::Read(read) if own && self.shows(read.stream, resource) => {
                    sights.read.extend(self.sight_in(&read.answer, resource, key));
                }
                Action::Request(request) if own && resource_of(&request.request) == resource => {
                    sights.read.extend(self.sight_in(&request.reply, resource, key));
                }
                Action::ListEnd(list) if self.is_unrecorded_store(list.stream, resource) => {
                    let shown = sights.shown.entry(list.stream).or_default();
                    shown.extend(self.sight_in(&list.objects, resource, key));
                }
                Action::Release(release) if self.is_unrecorded_store(release.stream, resource) => {
                    let shown = sights.shown.entry(release.stream).or_default();
                    let events = release.events.iter();
                    let of_it =
                        events.filter(|event| event.key == *key && event.change != Change::Deleted);
                    shown.extend(of_it.map(|event| Sight {
                        resource_version: &event.resource_version,
                        uid: self.uid_at(resource, key, &event.resource_version),
                    }));
                }
                _ => {}
            }
        }
        sights
    }

    fn sight_in(&self, seen: &'a [Seen], resource: &str, key: &ObjectKey) -> Option<Sight<'a>> {
        let seen = seen.iter().find(|seen| seen.key == *key)?;
        let version = seen.resource_version.as_str();
        let uid = seen.uid.as_deref().or_else(|| self.uid_at(resource, key, version));
        Some(Sight { resource_version: version, uid })
    }

    fn uid_at(&self, resource: &str, key: &ObjectKey, version: &str) -> Option<&'a str> {
        uid_of(self.run.change_to(resource, key, version)?)
    }

    fn shows(&self, stream: usize, resource: &str) -> bool {
        let stream = self.run.streams.get(stream);
        stream.is_some_and(|stream| stream.identity.qualified_resource() == resource)
    }

    /// Whether code under test can read this stream without a trace in the record. Triggers alone show
    /// it a name, no object.
    fn is_unrecorded_store(&self, stream: usize, resource: &str) -> bool {
        let role = self.run.streams.get(stream).map(|stream| stream.role);
        !self.recorded.contains(&stream)
            && !matches!(role, Some(Role::Replica | Role::Triggers))
            && self.shows(stream, resource)
    }
}

/// `statefulsets.apps`, or `pods` in the core group.
pub(super) fn resource_of(request: &Request) -> String {
    if request.group.is_empty() {
        request.resource.clone()
    } else {
        format!("{}.{}", request.resource, request.group)
    }
}

/// The UID of the object that was changed.
pub(super) fn uid_of(commit: &Commit) -> Option<&str> {
    let in_object = || commit.object.as_ref()?.pointer("/metadata/uid")?.as_str();
    commit.uid.as_deref().or_else(in_object)
}

/// What a write asks the server to check before it takes effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Precondition {
    None,
    Uid,
    /// A resource version, or the value of a field: neither holds once the object has been changed.
    Version,
}

pub(super) fn precondition(request: &Request) -> Precondition {
    let body = request.body.as_ref();
    let text = |pointer: &str| {
        let value = body.and_then(|body| body.pointer(pointer)).and_then(|value| value.as_str());
        value.filter(|text| !text.is_empty())
    };
    // Source: Kubernetes, apiserver `registry/generic/registry/store.go`: 0 is an unconditional update.
    let version = |version: Option<&str>| version.is_some_and(|v| !v.is_empty() && v != "0");
    let tests = body.and_then(|body| body.as_array()).is_some_and(|operations| {
        operations.iter().any(|operation| operation.get("op").is_some_and(|op| op == "test"))
    });
    // A delete bears its options as body; an eviction has them inside.
    let preconditions = ["/preconditions", "/deleteOptions/preconditions"];
    let of_delete =
        |field: &str| preconditions.iter().find_map(|pointer| text(&format!("{pointer}/{field}")));
    let is_delete = request.verb == Verb::Delete || is_eviction(request);
    let asked = if is_delete { None } else { request.resource_version_asked.as_deref() };
    if tests || version(asked) || version(of_delete("resourceVersion")) {
        Precondition::Version
    } else if of_delete("uid").is_some() || (!is_delete && text("/metadata/uid").is_some()) {
        Precondition::Uid
    } else {
        Precondition::None
    }
}

/// A delete that asks disruption budgets first. It is a POST.
pub(super) fn is_eviction(request: &Request) -> bool {
    request.verb == Verb::Create && request.subresource.as_deref() == Some("eviction")
}
