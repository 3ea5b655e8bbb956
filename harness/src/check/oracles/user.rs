//! The oracles that a test writes: closures over the true state, and over each write.

use std::fmt;

use super::{
    End, Found, earliest,
    pass::{AboutPass, UnderWay},
    record::Record,
};
use crate::{
    check::Truth,
    lag::model::{Action, Author, Commit, RequestStep},
};

/// What a closure says that looks for something that must not be: `true`, or `Some` with what it saw.
pub trait Sighting {
    /// What was seen, in words, perhaps empty; `None` if it was not.
    fn seen(self) -> Option<String>;
}

impl Sighting for bool {
    fn seen(self) -> Option<String> {
        self.then(String::new)
    }
}

impl<T: fmt::Display> Sighting for Option<T> {
    fn seen(self) -> Option<String> {
        self.map(|text| text.to_string())
    }
}

/// What a closure says that asks for something that must be: `true`, or `Ok`.
pub trait Claim {
    /// What is wrong, in words, perhaps empty; `None` if it holds.
    fn broken(self) -> Option<String>;
}

impl Claim for bool {
    fn broken(self) -> Option<String> {
        (!self).then(String::new)
    }
}

impl<E: fmt::Display> Claim for Result<(), E> {
    fn broken(self) -> Option<String> {
        self.err().map(|error| error.to_string())
    }
}

/// Answers what is wrong with a state, perhaps with no words; `None` if nothing is.
type OfState = Box<dyn Fn(&Truth) -> Option<String> + Send + Sync>;

/// Answers what is wrong with a write.
type OfWrite = Box<dyn Fn(&RequestStep, &Truth) -> Option<String> + Send + Sync>;

/// An oracle about states.
pub(super) struct AboutState {
    name: String,
    /// Whether it is asked at the end alone.
    settled: bool,
    /// What to say where the closure has no words.
    otherwise: &'static str,
    check: OfState,
}

impl AboutState {
    pub(super) fn never<S: Sighting>(
        name: String,
        check: impl Fn(&Truth) -> S + Send + Sync + 'static,
    ) -> Self {
        let check = Box::new(move |truth: &Truth| check(truth).seen());
        Self { name, settled: false, otherwise: "it is so", check }
    }

    pub(super) fn always<C: Claim>(
        name: String,
        check: impl Fn(&Truth) -> C + Send + Sync + 'static,
    ) -> Self {
        let check = Box::new(move |truth: &Truth| check(truth).broken());
        Self { name, settled: false, otherwise: "it is not so", check }
    }

    pub(super) fn after_settle<C: Claim>(
        name: String,
        check: impl Fn(&Truth) -> C + Send + Sync + 'static,
    ) -> Self {
        Self { settled: true, ..Self::always(name, check) }
    }

    fn ask(&self, truth: &Truth, when: &str) -> Option<String> {
        let said = (self.check)(truth);
        unreadable(truth).or_else(|| said.map(|text| words(text, self.otherwise, when)))
    }
}

impl fmt::Debug for AboutState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// An oracle about writes.
pub(super) struct AboutWrite {
    name: String,
    check: OfWrite,
}

impl AboutWrite {
    pub(super) fn new<S: Sighting>(
        name: String,
        check: impl Fn(&RequestStep, &Truth) -> S + Send + Sync + 'static,
    ) -> Self {
        Self { name, check: Box::new(move |write, truth| check(write, truth).seen()) }
    }

    fn ask(&self, write: &RequestStep, truth: &Truth) -> Option<String> {
        let said = (self.check)(write, truth);
        unreadable(truth).or_else(|| {
            let asked = &write.request;
            let name = asked.name.as_deref().map_or_else(String::new, |name| format!("/{name}"));
            said.map(|text| {
                words(text, "it was sent", &format!(": {} {}{name}", asked.verb, asked.target()))
            })
        })
    }
}

impl fmt::Debug for AboutWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// The first violation. `alone`: nobody else says that a run did not settle.
pub(super) fn judge(
    record: &Record<'_>,
    states: &[AboutState],
    writes: &[AboutWrite],
    passes: &[AboutPass],
    end_of_run: End,
    alone: bool,
) -> Option<Found> {
    let run = record.run;
    let mut under_way = UnderWay::default();
    let end = run.steps.len();
    let mut found: Option<Found> = None;
    let mut truth = Truth::default();
    let mut history = run.history.iter().enumerate().peekable();
    let set_up = |commit: &Commit| commit.step.is_none() || commit.by == Author::SetUp;
    while let Some((_, commit)) = history.next_if(|(_, commit)| set_up(commit)) {
        truth.apply(commit);
    }
    found = earliest(found, about(states, &truth, 0, "once the set-up is done"));
    for (index, step) in run.steps.iter().enumerate() {
        // What comes later cannot be earlier than what was found.
        if found.as_ref().is_some_and(|found| found.at <= index) {
            return found;
        }
        while let Some((number, commit)) =
            history.next_if(|(_, commit)| commit.is_committed_at(index))
        {
            found = earliest(found, of_author(record, writes, number, &truth));
            truth.apply(commit);
            let when = format!(
                "after {} {} was {} at rv {}",
                commit.resource, commit.key, commit.change, commit.resource_version
            );
            found = earliest(found, about(states, &truth, record.shown_after(number), &when));
        }
        // A write that changed nothing was not met on the way through the history.
        if let Action::Request(request) = &step.action
            && request.request.verb.is_write()
            && record.commits_of(request.request.number).is_empty()
        {
            found = earliest(found, of_write(writes, request, &truth, index + 1));
        }
        let of_pass = under_way.take(passes, run, index, &truth);
        found = earliest(found, of_pass.map(|(name, text)| Found::new(index + 1, name, text)));
    }
    for (number, commit) in history {
        truth.apply(commit);
        let when = format!("after the last step, at rv {}", commit.resource_version);
        found = earliest(found, about(states, &truth, record.shown_after(number), &when));
    }
    for state in states.iter().filter(|state| state.settled) {
        let text = match end_of_run {
            End::Settled | End::Finished => state.ask(&truth, "when all was done"),
            End::Restless if alone => {
                Some("the run did not settle, so this could not be asked".to_owned())
            }
            End::Restless | End::NotReached => None,
        };
        found = earliest(found, text.map(|text| Found::new(end, &state.name, text)));
    }
    found
}

fn about(states: &[AboutState], truth: &Truth, at: usize, when: &str) -> Option<Found> {
    let mut asked = states.iter().filter(|state| !state.settled);
    asked.find_map(|state| Some(Found::new(at, &state.name, state.ask(truth, when)?)))
}

/// Asks about the write whose first change this is, before that change.
fn of_author(
    record: &Record<'_>,
    writes: &[AboutWrite],
    number: usize,
    truth: &Truth,
) -> Option<Found> {
    let Author::Request(request) = record.run.history[number].by else { return None };
    if record.commits_of(request).first() != Some(&number) {
        return None;
    }
    let (index, request) = record.request(request)?;
    of_write(writes, request, truth, index + 1)
}

fn of_write(
    writes: &[AboutWrite],
    request: &RequestStep,
    truth: &Truth,
    at: usize,
) -> Option<Found> {
    writes.iter().find_map(|write| Some(Found::new(at, &write.name, write.ask(request, truth)?)))
}

pub(super) fn unreadable(truth: &Truth) -> Option<String> {
    truth.take_unreadable().map(|text| format!("this oracle could not be judged: {text}"))
}

pub(super) fn words(text: String, otherwise: &str, when: &str) -> String {
    if !text.is_empty() {
        return text;
    }
    let space = if when.starts_with(':') { "" } else { " " };
    format!("{otherwise}{space}{when}")
}
