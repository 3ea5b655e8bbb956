//! Where one world is among the states that are known, and what it has seen since it left them.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::{
    Answer, Asking, Changed, Names, Recall, Resource, State, Stored, To, Unknown, Written,
};
use crate::world::World;

/// One world.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) names: Names,
    pub(super) at: At,
    /// Requests that are with the server, and writes that are made again.
    pub(super) reads: usize,
    pub(super) writes: usize,
    /// All changes of this world up to here are accounted for.
    pub(super) revision: i64,
    /// Where it left the states that are known, and what it has seen from there on.
    left: State,
    seen: Vec<Seen>,
    /// Up to which revision changes belong to states that were known.
    left_at: i64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum At {
    /// This state is known.
    State(State),
    /// The server was asked to change something in a way that was not known. What comes now is remembered at the end.
    Beyond,
    /// It is not known how things stand.
    Nowhere,
}

/// A request and its answer, beyond what is known.
#[derive(Debug)]
struct Seen {
    asking: Arc<str>,
    has_moments: bool,
    made_up: Vec<String>,
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
    resource: Resource,
    /// The object that a write was about, and the revision after it.
    write: Option<(Option<String>, i64)>,
}

/// A whole exchange with the server.
pub(super) struct Exchange {
    pub(super) asking: Asking,
    pub(super) resource: Resource,
    /// Whether it was to change something.
    pub(super) writes: bool,
    pub(super) name: Option<String>,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
    /// For a write: the revision after it.
    pub(super) revision: i64,
}

impl Place {
    pub(super) fn of(fork: &World) -> Self {
        let revision = fork.last_revision();
        Self {
            names: Names::of(fork),
            at: At::State(0),
            reads: 0,
            writes: 0,
            revision,
            left: 0,
            seen: Vec::new(),
            left_at: revision,
        }
    }

    /// Remembers what the server has said.
    pub(super) fn see(&mut self, recall: &Recall, exchange: Exchange) {
        let Exchange { asking, resource, writes, name, status, headers, body, revision } = exchange;
        // From here on these are the names in memory as well.
        for text in &asking.new {
            if !self.names.knows(text, To::Memory) {
                self.names.add_text(text, text);
            }
        }
        if writes && status.is_success() {
            for uid in super::names::uids(&body) {
                if !self.names.knows(uid, To::Memory) {
                    self.names.add_text(uid, uid);
                }
            }
            if revision > self.revision {
                self.names.add_revision(revision, revision);
                self.revision = revision;
            }
        }
        let changed = writes && status.is_success();
        if let (At::State(state), true) = (self.at, changed) {
            (self.at, self.left) = (At::Beyond, state);
        }
        let name = name.or_else(|| Some(body.pointer("/metadata/name")?.as_str()?.to_owned()));
        let seen = Seen {
            asking: asking.text.into(),
            has_moments: asking.has_moments,
            made_up: asking.new,
            status,
            headers,
            body,
            resource,
            write: changed.then_some((name, self.revision)),
        };
        match self.at {
            At::State(state) => {
                if let Some(answer) = seen.answer(&self.names, Vec::new()) {
                    recall.memory().add(state, &seen.asking, answer);
                }
            }
            At::Beyond => self.seen.push(seen),
            At::Nowhere => {}
        }
    }

    /// A write has been made again, and came to this state.
    pub(super) fn move_to(&mut self, state: State) {
        if matches!(self.at, At::State(_)) {
            self.at = At::State(state);
            self.left_at = self.revision;
        }
    }

    /// Puts what was seen beyond the known states into memory. `written` is all that was written into this world since it left
    /// them.
    pub(super) fn remember(&mut self, recall: &Recall, written: &[Written]) -> Result<(), Foreign> {
        let mut state = self.left;
        let mut rest = written;
        for seen in std::mem::take(&mut self.seen) {
            let mut changes = Vec::new();
            if let Some((name, until)) = &seen.write {
                let end = rest.partition_point(|written| written.revision <= *until);
                let (own, later) = rest.split_at(end);
                rest = later;
                if !own.iter().all(|written| seen.is_its_own(name.as_deref(), written))
                    || own.len() > MOST_CHANGES
                {
                    return Err(Foreign);
                }
                let Ok(known) = self.changes(own, &seen) else { return Ok(()) };
                changes = known;
            }
            let Some(answer) = seen.answer(&self.names, changes) else {
                if seen.write.is_some() {
                    return Ok(());
                }
                continue;
            };
            match recall.memory().add(state, &seen.asking, answer) {
                Some(then) => state = then,
                None if seen.write.is_none() => {}
                None => return Ok(()),
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(Foreign) }
    }

    fn changes(&mut self, written: &[Written], seen: &Seen) -> Result<Vec<Changed>, Unknown> {
        written
            .iter()
            .map(|written| {
                let revision = written.revision;
                self.names.add_revision(revision, revision);
                let change = &written.change;
                let value = match &change.value {
                    None => None,
                    Some(bytes) => Some(Stored::remember(bytes, &self.names, &seen.resource)?),
                };
                // Its moments are numbers there, which nobody finds again.
                if seen.has_moments && matches!(value, Some(Stored::Protobuf(_))) {
                    return Err(Unknown);
                }
                let uid = written.object.as_ref();
                Ok(Changed {
                    revision,
                    uid: uid.map(|object| self.names.text(&object.uid, To::Memory)),
                    directory: change.directory.clone(),
                    name: self.names.text(&change.name, To::Memory),
                    value,
                })
            })
            .collect()
    }

    /// From which revision on changes belong to what was seen beyond the known states.
    pub(super) fn left_at(&self) -> Option<i64> {
        (!self.seen.is_empty()).then_some(self.left_at)
    }
}

/// A pod that is to go is first marked, and then removed.
const MOST_CHANGES: usize = 2;

/// Something was changed that no client of this world has asked for.
#[derive(Debug)]
pub(super) struct Foreign;

impl Seen {
    fn is_its_own(&self, name: Option<&str>, written: &Written) -> bool {
        let same_kind = written.object.as_ref().is_none_or(|it| it.resource == self.resource);
        same_kind && name == Some(&*written.change.name)
    }

    /// `None` if it names a version of something else.
    fn answer(&self, names: &Names, changes: Vec<Changed>) -> Option<Answer> {
        let mut body = self.body.clone();
        super::service::without_list_version(&mut body);
        names.value(&mut body, &self.resource, To::Memory).ok()?;
        Some(Answer {
            status: self.status,
            headers: self.headers.clone(),
            body,
            resource: self.resource.clone(),
            made_up: self.made_up.clone(),
            changes,
        })
    }
}
