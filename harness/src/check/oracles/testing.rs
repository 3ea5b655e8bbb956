//! Hand-made runs: a script of what happens, with the record that a real run of it would leave.

use std::time::Duration;

use serde_json::{Value, json};

use crate::lag::model::{
    Action, Author, CachedRead, Change, Commit, EnvironmentStep, Fault, Identity, ListEnd,
    ListStart, ListVersion, ObjectKey, Outcome, PassStart, Query, Reference, Release,
    Representation, Request, RequestStep, Role, Run, Seen, ShownEvent, Source, Step, StreamRecord,
    Verb, check,
};

pub(super) const SETS: &str = "statefulsets.apps";
pub(super) const PODS: &str = "pods";

/// A run that is being made up. Everything is in the namespace `ns`.
pub(super) struct Script {
    run: Run,
    revision: u64,
    requests: u64,
    pass: Option<u32>,
    passes: u32,
    /// Of each stream: how many changes its list covers, and how many events it has shown since.
    shown: Vec<(usize, usize)>,
}

impl Script {
    pub(super) fn new() -> Self {
        Self {
            run: Run::new("made up"),
            revision: 10,
            requests: 0,
            pass: None,
            passes: 0,
            shown: Vec::new(),
        }
    }

    /// The run, which must be one of a real cluster.
    pub(super) fn finish(self) -> Run {
        check(&self.run).unwrap();
        self.run
    }

    /// An object that is there from the beginning.
    pub(super) fn given(mut self, resource: &str, name: &str, content: Value) -> Self {
        let step = None;
        self.commit(resource, name, Some(content), Author::SetUp, step);
        self
    }

    /// A stream that has listed what is there.
    pub(super) fn stream(mut self, resource: &str, role: Role) -> Self {
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        let same = |stream: &&StreamRecord| stream.identity.qualified_resource() == resource;
        let instance = self.run.streams.iter().filter(same).count() + 1;
        self.run.streams.push(StreamRecord {
            identity: Identity {
                group: group.to_owned(),
                version: "v1".to_owned(),
                resource: plural.to_owned(),
                namespace: Some("ns".to_owned()),
                labels: None,
                fields: None,
                representation: Representation::Full,
            },
            instance,
            role,
        });
        let stream = self.run.streams.len() - 1;
        let asked = ListVersion::Consistent;
        self.step(Action::ListStart(ListStart { stream, incarnation: 1, asked }));
        let count = self.events(resource).len();
        self.shown.push((count, 0));
        let objects = self.state(resource, count);
        let resource_version = self.revision.to_string();
        let end = ListEnd { stream, incarnation: 1, resource_version, objects, point: None };
        self.step(Action::ListEnd(end));
        self
    }

    /// The next pass of a key.
    pub(super) fn pass(mut self, key: &str) -> Self {
        self = self.end();
        self.passes += 1;
        let (pass, controller, key) = (self.passes, "sets".to_owned(), key.to_owned());
        self.pass = Some(pass);
        self.step(Action::PassStart(PassStart { pass, controller, key }));
        self
    }

    pub(super) fn end(mut self) -> Self {
        if let Some(pass) = self.pass {
            self.step(Action::PassEnd { pass, outcome: "done".to_owned() });
            self.pass = None;
        }
        self
    }

    /// A cached read of one object, so many events after the list.
    pub(super) fn read(mut self, stream: usize, name: &str, position: usize) -> Self {
        let resource = self.run.streams[stream].identity.qualified_resource();
        let (base, _) = self.shown[stream];
        let mut answer = self.state(&resource, base + position);
        answer.retain(|seen| seen.key.name == name);
        let behind = self.events(&resource).len() - base - position;
        self.step(Action::Read(CachedRead {
            stream,
            incarnation: 1,
            position,
            query: Query::Get(ObjectKey::namespaced("ns", name)),
            answer,
            site: None,
            behind,
            stale: behind > 0,
            point: None,
        }));
        self
    }

    /// A GET at the server.
    pub(super) fn get(mut self, resource: &str, name: &str) -> Self {
        let mut reply = self.state(resource, self.events(resource).len());
        reply.retain(|seen| seen.key.name == name);
        let status = if reply.is_empty() { 404 } else { 200 };
        let mut request = self.request(Verb::Get, resource, Some(name), None);
        request.outcome = Outcome::Status(status);
        self.sent(request, reply);
        self
    }

    /// A create with this body, of an object that the server names as the test says.
    pub(super) fn create(mut self, resource: &str, name: &str, body: Value) -> Self {
        let mut content = body.clone();
        content.as_object_mut().unwrap().retain(|field, _| field != "metadata");
        if let Some(prefix) = body.pointer("/metadata/generateName") {
            content["metadata"] = json!({"generateName": prefix});
        }
        self = self.write(Verb::Create, resource, name, body, Some(content));
        self
    }

    /// A write after which the object has this content, or is gone.
    pub(super) fn write(
        mut self,
        verb: Verb,
        resource: &str,
        name: &str,
        body: Value,
        content: Option<Value>,
    ) -> Self {
        let mut request = self.request(verb, resource, Some(name), Some(body));
        let by = Author::Request(request.number);
        self.commit(resource, name, content, by, Some(self.run.steps.len()));
        request.outcome = Outcome::Status(200);
        // Deletes answer with a status, or with the object as it was.
        let mut reply = self.state(resource, self.events(resource).len());
        reply.retain(|seen| seen.key.name == name);
        self.sent(request, reply);
        self
    }

    /// A write that was refused.
    pub(super) fn refused(mut self, verb: Verb, resource: &str, name: &str, status: u16) -> Self {
        let mut request = self.request(verb, resource, Some(name), Some(json!({})));
        request.outcome = Outcome::Status(status);
        self.sent(request, Vec::new());
        self
    }

    /// Another actor gives an object this content, or deletes it.
    pub(super) fn actor(
        mut self,
        actor: &str,
        resource: &str,
        name: &str,
        content: Option<Value>,
    ) -> Self {
        let by = Author::Actor(actor.to_owned());
        self.commit(resource, name, content, by, Some(self.run.steps.len()));
        let commit = Reference {
            resource: resource.to_owned(),
            resource_version: self.revision.to_string(),
        };
        let pass = self.pass.take();
        self.step(Action::Environment(EnvironmentStep {
            actor: actor.to_owned(),
            text: format!("changes {name}"),
            commits: vec![commit],
        }));
        self.pass = pass;
        self
    }

    /// All that a stream has not shown yet is shown.
    pub(super) fn release(mut self, stream: usize) -> Self {
        let resource = self.run.streams[stream].identity.qualified_resource();
        let (base, shown) = self.shown[stream];
        let events: Vec<_> = self.events(&resource)[base + shown..]
            .iter()
            .map(|commit| ShownEvent {
                change: commit.change,
                key: commit.key.clone(),
                resource_version: commit.resource_version.clone(),
            })
            .collect();
        self.shown[stream].1 += events.len();
        let pass = self.pass.take();
        self.step(Action::Release(Release { stream, incarnation: 1, events, point: None }));
        self.pass = pass;
        self
    }

    pub(super) fn restart(mut self) -> Self {
        self.pass = None;
        self.step(Action::Fault(Fault::Restart));
        self
    }

    /// Changes the last request: a precondition, a subresource.
    pub(super) fn but(mut self, change: impl FnOnce(&mut RequestStep)) -> Self {
        let mut steps = self.run.steps.iter_mut().rev();
        let last = steps.find_map(|step| match &mut step.action {
            Action::Request(request) => Some(request),
            _ => None,
        });
        change(last.unwrap());
        self
    }

    fn commit(
        &mut self,
        resource: &str,
        name: &str,
        content: Option<Value>,
        by: Author,
        step: Option<usize>,
    ) {
        self.revision += 1;
        let key = ObjectKey::namespaced("ns", name);
        let last = self.events(resource).into_iter().rfind(|commit| commit.key == key).cloned();
        let last = last.filter(|last| last.change != Change::Deleted);
        let uid = last
            .as_ref()
            .and_then(|last| last.uid.clone())
            .unwrap_or_else(|| format!("{:08x}-0000-4000-8000-000000000000", self.revision));
        let change = match (&last, &content) {
            (None, Some(_)) => Change::Added,
            (Some(_), Some(_)) => Change::Modified,
            (_, None) => Change::Deleted,
        };
        let mut object = content.or_else(|| last?.object).unwrap();
        if object.get("metadata").is_none() {
            object["metadata"] = json!({});
        }
        for (field, value) in [
            ("namespace", json!("ns")),
            ("name", json!(name)),
            ("uid", json!(uid)),
            ("resourceVersion", json!(self.revision.to_string())),
            ("creationTimestamp", json!(format!("2026-01-01T00:00:{:02}Z", self.revision % 60))),
        ] {
            object["metadata"][field] = value;
        }
        self.run.history.push(Commit {
            resource_version: self.revision.to_string(),
            resource: resource.to_owned(),
            key,
            uid: Some(uid),
            change,
            by,
            step,
            object: Some(object),
        });
    }

    fn request(
        &mut self,
        verb: Verb,
        resource: &str,
        name: Option<&str>,
        body: Option<Value>,
    ) -> Request {
        self.requests += 1;
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        Request {
            path: format!("/{plural}"),
            group: group.to_owned(),
            namespace: Some("ns".to_owned()),
            name: name.map(str::to_owned),
            outcome: Outcome::Pending,
            body,
            // The report counts otherwise.
            ..Request::sample(100 + self.requests, verb, plural)
        }
    }

    fn sent(&mut self, request: Request, reply: Vec<Seen>) {
        let sent = self.run.steps.len();
        self.step(Action::Request(Box::new(RequestStep {
            request,
            sent,
            source: Source::Live,
            reply,
        })));
    }

    fn step(&mut self, action: Action) {
        let at = Duration::from_millis(self.run.steps.len() as u64);
        self.run.steps.push(Step { at, pass: self.pass, action });
    }

    fn events(&self, resource: &str) -> Vec<&Commit> {
        self.run.history.iter().filter(|commit| commit.resource == resource).collect()
    }

    fn state(&self, resource: &str, count: usize) -> Vec<Seen> {
        let mut state = std::collections::BTreeMap::new();
        for commit in &self.events(resource)[..count] {
            match commit.change {
                Change::Deleted => state.remove(&commit.key),
                _ => state.insert(&commit.key, Seen::of(commit.object.as_ref().unwrap()).unwrap()),
            };
        }
        state.into_values().collect()
    }
}
