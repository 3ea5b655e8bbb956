//! Random programs that read caches and write, as subjects: each next operation depends on all that was read.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    explore::{Choices, Ending, Outcome, Subject, random::Random},
    lag::model::{
        Action, Alt, Author, CachedRead, Change, Chooser, Commit, EnvironmentStep, Event, Identity,
        Kind, ListEnd, ListStart, ListVersion, Log, ObjectKey, Offer, Outcome as Reply, PassStart,
        PatchType, Point, PointId, Query, Reference, Release, Representation, Request, RequestStep,
        Role, Run, Seen, ShownEvent, Source, Step, StreamRecord, Verb, answers_at, interleavings,
        moves_at,
    },
};

pub(super) const OBJECTS: [&str; 3] = ["a", "b", "c"];
pub(super) const STREAMS: [&str; 2] = ["statefulsets", "pods"];

/// One operation of a pass.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Op {
    /// A cached read of some objects.
    Read { stream: usize, objects: Vec<&'static str> },
    /// A live read.
    Live { stream: usize, object: &'static str },
    /// A write; `None` deletes.
    Write(Change3),
}

/// A write of one of three values, or a deletion.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Change3 {
    pub(super) stream: usize,
    pub(super) object: &'static str,
    pub(super) value: Option<u8>,
}

/// What a read was told of each object it is about: its value, and its revision if the program sees it.
pub(super) type Answer = BTreeMap<&'static str, (u8, u64)>;

/// One operation with its answer.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Observed {
    pub(super) op: Op,
    pub(super) answer: Answer,
}

/// A program, drawn with a seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    pub(super) seed: u64,
    pub(super) operations: usize,
    /// Events that each stream has in front of it at the start, at most.
    pub(super) before: usize,
    /// Steps of another actor.
    pub(super) foreign: usize,
    /// Whether it uses live reads.
    pub(super) live: bool,
    /// Whether an answer is the whole object with its revision, or the value alone.
    pub(super) whole: bool,
}

impl Program {
    pub(super) fn next(&self, seen: &[Observed]) -> Option<Op> {
        if seen.len() >= self.operations {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        (self.seed, seen).hash(&mut hasher);
        let mut random = Random::new(hasher.finish());
        let stream = random.below(STREAMS.len());
        let object = OBJECTS[random.below(OBJECTS.len())];
        Some(match random.below(100) {
            0..55 => {
                let mut objects = vec![object];
                if random.below(10) >= 7 {
                    objects.push(OBJECTS[random.below(OBJECTS.len())]);
                    objects.sort_unstable();
                    objects.dedup();
                }
                Op::Read { stream, objects }
            }
            55..70 if self.live => Op::Live { stream, object },
            _ => {
                let value = (random.below(100) >= 15).then(|| draw_value(&mut random));
                Op::Write(Change3 { stream, object, value })
            }
        })
    }

    /// What is committed before the pass; no stream shows any of it yet.
    pub(super) fn set_up(&self) -> Vec<Change3> {
        let mut random = Random::new(self.seed * 7 + 1);
        let mut changes = Vec::new();
        for stream in 0..STREAMS.len() {
            for _ in 0..random.below(self.before + 1) {
                let object = OBJECTS[random.below(OBJECTS.len())];
                changes.push(Change3 { stream, object, value: Some(draw_value(&mut random)) });
            }
        }
        changes
    }

    /// What the other actor commits, in this order, at any time.
    pub(super) fn foreign_steps(&self) -> Vec<Change3> {
        let mut random = Random::new(self.seed * 11 + 3);
        let draw = |_| Change3 {
            stream: random.below(STREAMS.len()),
            object: OBJECTS[random.below(OBJECTS.len())],
            value: Some(draw_value(&mut random)),
        };
        (0..self.foreign).map(draw).collect()
    }
}

fn draw_value(random: &mut Random) -> u8 {
    u8::try_from(random.below(3)).unwrap()
}

/// How a program is run.
#[derive(Clone, Copy)]
pub(super) struct Explored {
    pub(super) program: Program,
    pub(super) mode: Mode,
}

#[derive(Clone, Copy)]
pub(super) enum Mode {
    /// Each cached read is a choice point; its menu is made by this function.
    Wrapper(fn(Vec<Answer>, usize) -> Vec<Offer>),
    /// Streams move at boundaries only.
    Boundaries,
}

/// The menu of a read as the model makes it. `answers` are those at the positions from `first` on.
pub(super) fn real_menu(answers: Vec<Answer>, first: usize) -> Vec<Offer> {
    answers_at(first..=first + answers.len() - 1, |position| &answers[position - first])
}

impl Subject for Explored {
    type Record = (Vec<Observed>, Run);
    type Error = Infallible;

    async fn run(&self, choices: Choices) -> Result<Outcome<Self::Record>, Infallible> {
        let mut machine = Machine::new(self, choices);
        // Several runs at once shall end in another order than they began.
        for _ in 0..machine.run.history.len() % 3 {
            yield_once().await;
        }
        machine.go();
        // A run that left its prefix is told by the search itself.
        machine.run.choices = machine.choices.met().unwrap_or_default();
        let count = match self.mode {
            Mode::Wrapper(_) => interleavings(&machine.run).expect("all objects are kept"),
            Mode::Boundaries => 1,
        };
        let record = (machine.seen, machine.run);
        Ok(Outcome::new(Ending::Passed, record).with_interleavings(count))
    }
}

pub(super) async fn yield_once() {
    let mut polled = false;
    std::future::poll_fn(move |context| {
        if std::mem::replace(&mut polled, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// One run of a program, on the logs and views of the model.
struct Machine<'a> {
    explored: &'a Explored,
    choices: Choices,
    logs: Vec<Log>,
    positions: Vec<usize>,
    /// Per stream, whether it was left where it is at the last boundary.
    held: Vec<bool>,
    foreign: Vec<Change3>,
    seen: Vec<Observed>,
    run: Run,
    revision: u64,
    requests: u64,
    asked: BTreeMap<(String, Kind), u32>,
}

impl<'a> Machine<'a> {
    fn new(explored: &'a Explored, choices: Choices) -> Self {
        let mut machine = Self {
            explored,
            choices,
            logs: STREAMS.iter().map(|_| Log::new("0", [])).collect(),
            positions: vec![0; STREAMS.len()],
            held: vec![false; STREAMS.len()],
            foreign: explored.program.foreign_steps(),
            seen: Vec::new(),
            run: Run::new("program"),
            revision: 0,
            requests: 0,
            asked: BTreeMap::new(),
        };
        machine.foreign.reverse();
        for (index, resource) in STREAMS.iter().enumerate() {
            let identity = Identity {
                group: String::new(),
                version: "v1".to_owned(),
                resource: (*resource).to_owned(),
                namespace: Some("n".to_owned()),
                labels: None,
                fields: None,
                representation: Representation::Full,
            };
            machine.run.streams.push(StreamRecord { identity, instance: 1, role: Role::Store });
            let asked = ListVersion::Any;
            machine.outside(Action::ListStart(ListStart { stream: index, incarnation: 1, asked }));
            machine.outside(Action::ListEnd(ListEnd {
                stream: index,
                incarnation: 1,
                resource_version: "0".to_owned(),
                objects: vec![],
                point: None,
            }));
        }
        for change in explored.program.set_up() {
            machine.commit(&change, Author::SetUp, None);
        }
        machine
    }

    fn go(&mut self) {
        self.outside(Action::PassStart(PassStart {
            pass: 1,
            controller: "program".to_owned(),
            key: "a".to_owned(),
        }));
        self.boundary();
        while let Some(op) = self.explored.program.next(&self.seen) {
            let answer = match &op {
                Op::Read { stream, objects } => self.read(*stream, objects),
                Op::Live { stream, object } => {
                    let log = &self.logs[*stream];
                    let reply = seen(log, log.len(), &[object]);
                    let answer = self.project(*stream, log.len(), &[object]);
                    self.request(Verb::Get, *stream, object, reply);
                    answer
                }
                Op::Write(change) => {
                    self.write(change);
                    Answer::new()
                }
            };
            let is_request = !matches!(op, Op::Read { .. });
            self.seen.push(Observed { op, answer });
            if is_request {
                self.boundary();
            }
        }
        self.outside(Action::PassEnd { pass: 1, outcome: "done".to_owned() });
    }

    /// The moment before a reply is handed back: the other actor may commit, streams may move.
    fn boundary(&mut self) {
        while !self.foreign.is_empty() {
            let menu = vec![Alt::other("wait", 0), Alt::other("commit", 0)];
            if self.ask("actor", Kind::Environment, menu) == 0 {
                break;
            }
            let Some(change) = self.foreign.pop() else { break };
            let step = self.run.steps.len();
            let commit = self.commit(&change, Author::Actor("actor".to_owned()), Some(step));
            self.outside(Action::Environment(EnvironmentStep {
                actor: "actor".to_owned(),
                text: format!("{change:?}"),
                commits: commit.into_iter().collect(),
            }));
        }
        if !matches!(self.explored.mode, Mode::Boundaries) {
            return;
        }
        for stream in 0..STREAMS.len() {
            let (position, available) = (self.positions[stream], self.logs[stream].len());
            if position == available {
                self.held[stream] = false;
                continue;
            }
            let offers = moves_at(position, available, self.held[stream]);
            let menu = offers.iter().map(|offer| offer.alt.clone()).collect();
            let to = offers[self.ask(STREAMS[stream], Kind::Boundary, menu)].position;
            self.held[stream] = to < available;
            self.positions[stream] = to;
            let events = self.logs[stream].events()[position..to]
                .iter()
                .map(|event| ShownEvent {
                    change: event.change,
                    key: event.key.clone(),
                    resource_version: event.resource_version.clone(),
                })
                .collect();
            self.outside(Action::Release(Release { stream, incarnation: 1, events, point: None }));
        }
    }

    fn read(&mut self, stream: usize, objects: &[&'static str]) -> Answer {
        let (from, available) = (self.positions[stream], self.logs[stream].len());
        let newest = self.project(stream, available, objects);
        if let Mode::Wrapper(menu) = self.explored.mode {
            let answers = (from..=available).map(|at| self.project(stream, at, objects)).collect();
            let offers = menu(answers, from);
            let subject = format!("{}/{}", STREAMS[stream], objects.join("+"));
            let menu = offers.iter().map(|offer| offer.alt.clone()).collect();
            self.positions[stream] = offers[self.ask(&subject, Kind::Read, menu)].position;
        }
        let position = self.positions[stream];
        let answer = self.project(stream, position, objects);
        let query = match objects {
            [object] => Query::Get(key(object)),
            _ => Query::Labels(format!("name in ({})", objects.join(","))),
        };
        let read = CachedRead {
            stream,
            incarnation: 1,
            position,
            query,
            answer: seen(&self.logs[stream], position, objects),
            site: None,
            behind: available - position,
            stale: answer != newest,
            point: None,
        };
        self.in_pass(Action::Read(read));
        answer
    }

    fn write(&mut self, change: &Change3) {
        let step = self.run.steps.len();
        let author = Author::Request(self.requests + 1);
        self.commit(change, author, Some(step));
        let log = &self.logs[change.stream];
        let reply = seen(log, log.len(), &[change.object]);
        let verb =
            if change.value.is_some() { Verb::Patch(PatchType::Apply) } else { Verb::Delete };
        self.request(verb, change.stream, change.object, reply);
    }

    /// Commits a change. A deletion of what is not there changes nothing.
    fn commit(&mut self, change: &Change3, by: Author, step: Option<usize>) -> Option<Reference> {
        let log = &mut self.logs[change.stream];
        let key = key(change.object);
        let present = log.fold(log.len()).unwrap().contains_key(&key);
        let kind = match (change.value, present) {
            (None, false) => return None,
            (None, true) => Change::Deleted,
            (Some(_), true) => Change::Modified,
            (Some(_), false) => Change::Added,
        };
        self.revision += 1;
        let version = self.revision.to_string();
        let object = json!({
            "metadata": {
                "namespace": "n", "name": change.object, "resourceVersion": version,
                "labels": {"name": change.object},
            },
            "value": change.value,
        });
        log.push(Event::from_object(kind, object.clone()).unwrap());
        self.run.history.push(Commit {
            resource_version: version.clone(),
            resource: STREAMS[change.stream].to_owned(),
            key,
            uid: None,
            change: kind,
            by,
            step,
            object: Some(object),
        });
        Some(Reference { resource: STREAMS[change.stream].to_owned(), resource_version: version })
    }

    fn request(&mut self, verb: Verb, stream: usize, object: &str, reply: Vec<Seen>) {
        self.requests += 1;
        let status = if reply.is_empty() && verb == Verb::Get { 404 } else { 200 };
        let request = Request {
            name: Some(object.to_owned()),
            outcome: Reply::Status(status),
            ..Request::sample(self.requests, verb, STREAMS[stream])
        };
        let sent = self.run.steps.len();
        let step = RequestStep { request, sent, source: Source::Live, reply };
        self.in_pass(Action::Request(Box::new(step)));
    }

    fn project(&self, stream: usize, position: usize, objects: &[&'static str]) -> Answer {
        let view = self.logs[stream].fold(position).unwrap();
        let mut answer = Answer::new();
        for name in objects {
            if let Some(object) = view.get(&key(name)) {
                let value = object["value"].as_u64().and_then(|value| u8::try_from(value).ok());
                let version = revision(object);
                let version = if self.explored.program.whole { version } else { 0 };
                answer.insert(name, (value.unwrap(), version));
            }
        }
        answer
    }

    fn ask(&mut self, subject: &str, kind: Kind, menu: Vec<Alt>) -> usize {
        let number = self.asked.entry((subject.to_owned(), kind)).or_default();
        *number += 1;
        let id = PointId::new(subject, kind, *number);
        let point = Point::new(id, menu).expect("the first alternative is free");
        self.choices.choose(&point)
    }

    fn in_pass(&mut self, action: Action) {
        self.run.steps.push(Step::in_pass(Duration::ZERO, 1, action));
    }

    fn outside(&mut self, action: Action) {
        self.run.steps.push(Step::new(Duration::ZERO, action));
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("n", name)
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn seen(log: &Log, position: usize, objects: &[&str]) -> Vec<Seen> {
    let view = log.fold(position).unwrap();
    objects.iter().filter_map(|name| Seen::of(view.get(&key(name))?)).collect()
}
