//! The record of a run, made from what the engine noted: plain data for the checker and the report.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Lag,
    chronicle::{Act, AnsweredFrom, Chronicle, Entry, Note, ViewOf},
    engine::Registry,
    model::{
        Action, AnsweredBy, Author, Change, Commit, EnvironmentStep, ListEnd, ListStart,
        ListVersion, ObjectKey, Outcome, PassStart, Reference, Release, RequestStep, Role, Run,
        Seen, Source, Step, StreamRecord, Verb, compare_resource_versions,
    },
    streams::Stream,
};

impl Lag {
    /// Notes everything from now on, for [`run`](Self::run); what was noted before is forgotten.
    ///
    /// The history of the server is that of the resources that are [observed](Self::observe). Call this before
    /// the code under test opens its streams.
    pub fn record(&self) {
        self.engine.change(|registry| registry.chronicle = Some(Chronicle::start()));
    }

    /// The record as [`run`](Self::run) gives it, and the number of steps when so many notes had been taken.
    pub(crate) fn run_with_steps(&self, name: &str, notes: &[usize]) -> (Run, Vec<usize>) {
        self.engine.look(|registry| {
            let Some(chronicle) = &registry.chronicle else {
                return (Run::new(name), vec![0; notes.len()]);
            };
            let mut builder = Builder::new(registry, chronicle);
            builder.build(name);
            let last = builder.run.steps.len();
            let steps = notes.iter().map(|note| builder.steps_before.get(*note).copied());
            let steps = steps.map(|steps| steps.unwrap_or(last)).collect();
            (builder.run, steps)
        })
    }

    /// The record of what has happened since [`record`](Self::record): what the server did, what each client was
    /// shown, what the code under test did.
    ///
    /// Requests about resources that are not [observed](Self::observe) are in it without their reply, and are not
    /// judged. Empty if nothing was recorded.
    #[must_use]
    pub fn run(&self, name: &str) -> Run {
        self.run_with_steps(name, &[]).0
    }
}

/// A request that may have made changes.
struct Writer<'a> {
    sent: usize,
    done: usize,
    resource: String,
    key: Option<ObjectKey>,
    whole_collection: bool,
    reply: &'a [Seen],
    author: Author,
}

struct Builder<'a> {
    registry: &'a Registry,
    notes: &'a [Note],
    /// The requests that were initial lists, with their stream and incarnation.
    lists: BTreeMap<u64, (usize, u32, ListVersion)>,
    /// The index in the run of each stream of a client; `None` for those that began at no known state.
    streams: Vec<Option<usize>>,
    /// The same of each replica.
    replicas: Vec<usize>,
    /// The number of steps when each note was taken.
    steps_before: Vec<usize>,
    /// The number of steps when each request was sent.
    sent: BTreeMap<u64, usize>,
    run: Run,
}

impl<'a> Builder<'a> {
    fn new(registry: &'a Registry, chronicle: &'a Chronicle) -> Self {
        let notes = &chronicle.notes;
        let lists: BTreeMap<_, _> = notes
            .iter()
            .filter_map(|note| match &note.entry {
                Entry::Listed { stream, incarnation, request, asked, .. } => {
                    Some((*request, (*stream, *incarnation, asked.clone())))
                }
                _ => None,
            })
            .collect();
        let listed: BTreeSet<usize> = lists.values().map(|(stream, ..)| *stream).collect();
        let mut next = 0..;
        let streams = (0..registry.streams.len())
            .map(|index| listed.contains(&index).then(|| next.next()).flatten())
            .collect();
        let replicas = registry.replicas.iter().filter_map(|_| next.next()).collect();
        Self {
            registry,
            notes,
            lists,
            streams,
            replicas,
            steps_before: Vec::new(),
            sent: BTreeMap::new(),
            run: Run::default(),
        }
    }

    fn build(&mut self, name: &str) {
        name.clone_into(&mut self.run.name);
        for (index, stream) in self.registry.streams.iter().enumerate() {
            if self.streams[index].is_some() {
                let role =
                    if self.registry.only_triggers(stream) { Role::Triggers } else { Role::Store };
                self.run.streams.push(record_of(stream, role));
            }
        }
        for (index, replica) in self.registry.replicas.iter().enumerate() {
            self.run.streams.push(record_of(replica, Role::Replica));
            let (stream, incarnation) = (self.replicas[index], 1);
            let objects = replica.listed().into_iter().filter_map(Seen::of).collect();
            let resource_version = replica.initial_resource_version().to_owned();
            let asked = ListVersion::Consistent;
            let start = Action::ListStart(ListStart { stream, incarnation, asked });
            let end = ListEnd { stream, incarnation, resource_version, objects, point: None };
            for action in [start, Action::ListEnd(end)] {
                self.run.steps.push(Step::new(std::time::Duration::ZERO, action));
            }
        }
        for note in self.notes {
            self.steps_before.push(self.run.steps.len());
            if let Entry::Sent { number } = &note.entry {
                self.sent.insert(*number, self.run.steps.len());
            }
            if let Some(action) = self.action(&note.entry) {
                self.push(note, action);
            }
        }
        self.run.history = self.history();
        self.name_what_actors_did();
    }

    fn push(&mut self, note: &Note, action: Action) {
        // Events that follow one another in a stream are one delivery.
        if let (Action::Release(release), Some(Step { action: Action::Release(before), .. })) =
            (&action, self.run.steps.last_mut())
            && (before.stream, before.incarnation, &before.point)
                == (release.stream, release.incarnation, &release.point)
        {
            before.events.extend(release.events.iter().cloned());
            return;
        }
        self.run.steps.push(Step { at: note.at, pass: note.pass, action });
    }

    fn action(&self, entry: &Entry) -> Option<Action> {
        let stream = |index: &usize| self.streams.get(*index).copied().flatten();
        Some(match entry {
            Entry::Sent { number } => {
                let (listed, incarnation, asked) = self.lists.get(number)?;
                let (stream, incarnation) = (stream(listed)?, *incarnation);
                Action::ListStart(ListStart { stream, incarnation, asked: asked.clone() })
            }
            Entry::Done { request, from, reply } => {
                // What a watch shows is in the releases, and an initial list is a step of its own.
                if request.verb == Verb::Watch || self.lists.contains_key(&request.number) {
                    return None;
                }
                self.request(request, *from, reply)
            }
            Entry::Listed {
                stream: index, incarnation, resource_version, objects, point, ..
            } => Action::ListEnd(ListEnd {
                stream: stream(index)?,
                incarnation: *incarnation,
                resource_version: resource_version.clone(),
                objects: objects.clone(),
                point: point.clone(),
            }),
            Entry::Resumed { stream: index, resource_version } => Action::Resume {
                stream: stream(index)?,
                resource_version: resource_version.clone(),
            },
            Entry::Released { stream: index, incarnation, event, point } => {
                Action::Release(Release {
                    stream: stream(index)?,
                    incarnation: *incarnation,
                    events: vec![event.clone()],
                    point: point.clone(),
                })
            }
            Entry::Bookmark { stream: index, resource_version } => Action::Bookmark {
                stream: stream(index)?,
                resource_version: resource_version.clone(),
            },
            Entry::Held(hold) => {
                let mut hold = hold.clone();
                hold.stream = stream(&hold.stream)?;
                Action::Hold(hold)
            }
            Entry::Read(read) => {
                let mut read = (**read).clone();
                read.stream = stream(&read.stream)?;
                Action::Read(read)
            }
            Entry::PassStarted { pass, key } => Action::PassStart(PassStart {
                pass: *pass,
                controller: String::new(),
                key: key.clone(),
            }),
            Entry::PassEnded { pass } => Action::PassEnd { pass: *pass, outcome: String::new() },
            Entry::ActorDone(act) => Action::Environment(EnvironmentStep {
                actor: act.actor.clone(),
                text: act.text.clone(),
                commits: Vec::new(),
            }),
            Entry::Fault(fault) => Action::Fault(fault.clone()),
            Entry::ActorSent { .. } | Entry::Observed { .. } => return None,
        })
    }

    fn request(
        &self,
        request: &super::model::Request,
        from: AnsweredFrom,
        reply: &[Seen],
    ) -> Action {
        let sent = self.sent.get(&request.number).copied().unwrap_or_default();
        let observed = self.registry.replicas.iter().any(|replica| {
            replica.identity.group == request.group
                && replica.identity.resource == request.resource
                && replica.identity.namespace == request.namespace
        });
        let view = |of| match of {
            ViewOf::Stream(index) => self.streams.get(index).copied().flatten(),
            ViewOf::Replica(index) => self.replicas.get(index).copied(),
        };
        let source = match from {
            AnsweredFrom::Test => Source::Test,
            _ if !observed => Source::Unobserved,
            AnsweredFrom::View { of, incarnation, position } => match view(of) {
                Some(stream) => Source::View { stream, incarnation, position },
                None => Source::Unobserved,
            },
            AnsweredFrom::Server if request.is_cached_read() => Source::AnyVersion,
            AnsweredFrom::Server => Source::Live,
        };
        let reply = if source == Source::Unobserved { Vec::new() } else { reply.to_vec() };
        Action::Request(Box::new(RequestStep { request: request.clone(), sent, source, reply }))
    }

    /// What the server committed, by what the replicas received.
    fn history(&self) -> Vec<Commit> {
        let writers = self.writers();
        let mut history = Vec::new();
        let mut received = vec![0; self.registry.replicas.len()];
        for replica in &self.registry.replicas {
            for object in replica.listed() {
                let Some(seen) = Seen::of(object) else { continue };
                history.push(Commit {
                    resource_version: seen.resource_version,
                    resource: replica.identity.qualified_resource(),
                    key: seen.key,
                    uid: seen.uid,
                    change: Change::Added,
                    by: Author::SetUp,
                    step: None,
                    object: Some(object.clone()),
                });
            }
        }
        for (at, note) in self.notes.iter().enumerate() {
            let Entry::Observed { replica: index } = &note.entry else { continue };
            let replica = &self.registry.replicas[*index];
            let Some(event) = replica.events().get(received[*index]) else { continue };
            received[*index] += 1;
            let resource = replica.identity.qualified_resource();
            let step = self.steps_before[at];
            let by =
                author(&writers, at, &resource, &event.key, &event.resource_version, event.change);
            history.push(Commit {
                resource_version: event.resource_version.clone(),
                resource,
                key: event.key.clone(),
                uid: super::wire::text(&event.object, "/metadata/uid"),
                change: event.change,
                by,
                step: Some(step),
                object: Some(event.object.clone()),
            });
        }
        history.sort_by(|left, right| {
            compare_resource_versions(&left.resource_version, &right.resource_version)
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        // What is earlier in the history was in the state no later, though its event came by another watch.
        let mut least = None;
        for commit in history.iter_mut().rev() {
            if let (Some(step), Some(later)) = (commit.step, least) {
                commit.step = Some(step.min(later));
            }
            if commit.step.is_some() {
                least = commit.step;
            }
        }
        history
    }

    fn writers(&self) -> Vec<Writer<'_>> {
        let mut sent = BTreeMap::new();
        let mut writers = Vec::new();
        for (at, note) in self.notes.iter().enumerate() {
            match &note.entry {
                Entry::Sent { number } => drop(sent.insert((false, *number), at)),
                Entry::ActorSent { number } => drop(sent.insert((true, *number), at)),
                Entry::Done { request, reply, .. } => {
                    let refused = matches!(request.outcome, Outcome::Status(400..));
                    let by_server = request.answered_by == AnsweredBy::Server;
                    if !request.verb.is_write() || refused || !by_server {
                        continue;
                    }
                    let name = request.name.clone();
                    let key =
                        name.map(|name| ObjectKey { namespace: request.namespace.clone(), name });
                    writers.push(Writer {
                        sent: sent.get(&(false, request.number)).copied().unwrap_or_default(),
                        done: at,
                        resource: qualified(&request.group, &request.resource),
                        key,
                        whole_collection: request.verb == Verb::DeleteCollection,
                        reply,
                        author: Author::Request(request.number),
                    });
                }
                Entry::ActorDone(act) if !act.refused => {
                    let Act { number, actor, resource, key, reply, .. } = &**act;
                    writers.push(Writer {
                        sent: sent.get(&(true, *number)).copied().unwrap_or_default(),
                        done: at,
                        resource: resource.clone(),
                        key: key.clone(),
                        whole_collection: key.is_none(),
                        reply,
                        author: Author::Actor(actor.clone()),
                    });
                }
                _ => {}
            }
        }
        writers
    }

    /// The step of an actor names the changes that it made.
    fn name_what_actors_did(&mut self) {
        let mut step = 0;
        for (at, note) in self.notes.iter().enumerate() {
            let Entry::ActorDone(act) = &note.entry else { continue };
            let index = self.steps_before[at];
            let made = |commit: &&Commit| {
                commit.by == Author::Actor(act.actor.clone())
                    && commit.step.is_some_and(|committed| committed >= step && committed <= index)
            };
            let commits = self.run.history.iter().filter(made).map(|commit| Reference {
                resource: commit.resource.clone(),
                resource_version: commit.resource_version.clone(),
            });
            let commits = commits.collect();
            if let Some(Step { action: Action::Environment(environment), .. }) =
                self.run.steps.get_mut(index)
            {
                environment.commits = commits;
            }
            step = index + 1;
        }
    }
}

/// Who made a change whose event came at a note.
fn author(
    writers: &[Writer<'_>],
    at: usize,
    resource: &str,
    key: &ObjectKey,
    resource_version: &str,
    change: Change,
) -> Author {
    let meanwhile = || {
        writers
            .iter()
            .filter(|writer| writer.sent < at && at < writer.done && writer.resource == resource)
    };
    let says_so = |writer: &&Writer<'_>| {
        let mut reply = writer.reply.iter();
        reply.any(|seen| seen.key == *key && seen.resource_version == resource_version)
    };
    // The reply to a deletion bears the version before it, and that of a lost one is not known.
    let can_have = |writer: &&Writer<'_>| {
        let target = writer.whole_collection || writer.key.as_ref() == Some(key);
        target && (change == Change::Deleted || writer.reply.is_empty())
    };
    meanwhile()
        .find(says_so)
        .or_else(|| meanwhile().find(can_have))
        .map_or(Author::Server, |writer| writer.author.clone())
}

fn record_of(stream: &Stream, role: Role) -> StreamRecord {
    StreamRecord { identity: stream.identity.clone(), instance: stream.instance, role }
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}
