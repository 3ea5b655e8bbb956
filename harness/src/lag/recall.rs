//! Recall: what the server has answered once is not asked again where the same has happened in a world.
//!
//! The worlds of a search are forked from one moment, and most schedules begin as another one did. As long as a run
//! makes the very requests that another has made from the same moment on, the server's answers are known, and so is
//! every byte that it wrote. Reads are answered from memory then; of a write, what the server wrote is written again
//! into etcd, and its events reach the caches through the API server as those of any write. From the first request on
//! that is another, the server is asked, and what it says is remembered.
//!
//! Nothing is guessed: a request counts as the same if all of it is, but for the names that tell two worlds apart
//! ([`Names`]), and if it is made after the same writes, with the same effects. What does not fit is asked of the
//! server: see [`RecallService`].

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::{
    connect::Upstream,
    world::{Resource, World, Worlds, Written},
};

mod names;
mod place;
mod service;

use self::{
    names::{Asking, Names, To, Unknown},
    place::Place,
};

pub(crate) use self::service::RecallService;

/// How many bytes of answers are kept; then nothing is added.
const LIMIT: usize = 64 << 20;

/// What is remembered of all worlds forked from one moment.
#[derive(Clone)]
pub(crate) struct Recall(Arc<Shared>);

struct Shared {
    worlds: Worlds,
    memory: Mutex<Memory>,
    /// Somebody writes whom we do not hear of, or something outside of the worlds was changed.
    ended: AtomicBool,
    asked: AtomicU64,
    recalled: AtomicU64,
}

/// States of a world, each by what was asked in it. The first is the moment.
struct Memory {
    states: Vec<HashMap<Arc<str>, Known>>,
    bytes: usize,
}

/// Where a state is.
type State = usize;

/// A request that was made in a state, and the state after it: the same, unless it has changed something.
#[derive(Clone)]
struct Known {
    answer: Arc<Answer>,
    then: State,
}

/// What the server has said and written, in the words of memory.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
    resource: Resource,
    /// What the client had made up, in the order of its request.
    made_up: Vec<String>,
    changes: Vec<Changed>,
}

/// A change that a write has made, in the words of memory.
#[derive(Debug, PartialEq)]
struct Changed {
    revision: i64,
    /// Of the object; `None` for a deletion.
    uid: Option<String>,
    directory: String,
    name: String,
    value: Option<Stored>,
}

/// An object as the server stores it.
#[derive(Debug, PartialEq)]
enum Stored {
    /// Custom resources.
    Json(Value),
    /// Built-in kinds.
    Protobuf(Vec<u8>),
}

impl Recall {
    /// For the worlds that are forked from one moment.
    pub(crate) fn new(worlds: Worlds) -> Self {
        Self(Arc::new(Shared {
            worlds,
            memory: Mutex::new(Memory { states: vec![HashMap::new()], bytes: 0 }),
            ended: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            recalled: AtomicU64::new(0),
        }))
    }

    /// For the clients of a fork, between them and the server.
    pub(crate) fn service(&self, fork: &World, upstream: Upstream) -> RecallService {
        RecallService::new(self.clone(), fork, upstream)
    }

    /// How many requests were answered from memory, and how many there were.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let recalled = self.0.recalled.load(Ordering::Relaxed);
        (recalled, recalled + self.0.asked.load(Ordering::Relaxed))
    }

    fn end(&self, reason: &str) {
        if !self.0.ended.swap(true, Ordering::SeqCst) {
            tracing::debug!(reason, "the server is asked every time from now on");
        }
    }

    fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::SeqCst)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn look(&self, state: State, asking: &str) -> Option<Known> {
        self.states.get(state)?.get(asking).cloned()
    }

    /// Returns the state after it; `None` if there is no room for it, or somebody was quicker.
    fn add(&mut self, state: State, asking: Arc<str>, answer: Answer) -> Option<State> {
        let size = asking.len() + answer.size();
        let changes = !answer.changes.is_empty();
        if self.bytes + size > LIMIT || self.states.get(state)?.contains_key(&asking) {
            return (!changes).then_some(state);
        }
        self.bytes += size;
        let then = if changes { self.states.len() } else { state };
        if changes {
            self.states.push(HashMap::new());
        }
        let known = Known { answer: Arc::new(answer), then };
        self.states.get_mut(state)?.insert(asking, known);
        Some(then)
    }
}

impl Answer {
    /// About how much memory it takes.
    fn size(&self) -> usize {
        let values = self.changes.iter().map(|change| match &change.value {
            None => 0,
            Some(Stored::Json(value)) => size(value),
            Some(Stored::Protobuf(bytes)) => bytes.len(),
        });
        size(&self.body) + values.sum::<usize>()
    }
}

fn size(value: &Value) -> usize {
    // A node of a map or a list takes some tens of bytes beside its text.
    32 + match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => {
            fields.iter().map(|(field, value)| 32 + field.len() + size(value)).sum()
        }
    }
}

impl Stored {
    /// What is in etcd, in the words of memory.
    fn remember(bytes: &[u8], names: &Names, resource: &Resource) -> Result<Self, Unknown> {
        if bytes.first() != Some(&b'{') {
            let mut bytes = bytes.to_vec();
            names.bytes(&mut bytes, To::Memory);
            return Ok(Self::Protobuf(bytes));
        }
        let mut value = serde_json::from_slice(bytes).map_err(|_| Unknown)?;
        names.value(&mut value, resource, To::Memory)?;
        Ok(Self::Json(value))
    }

    /// The same in the words of another world.
    fn recall(&self, names: &Names, resource: &Resource) -> Result<Vec<u8>, Unknown> {
        match self {
            Self::Protobuf(bytes) => {
                let mut bytes = bytes.clone();
                names.bytes(&mut bytes, To::World);
                Ok(bytes)
            }
            Self::Json(value) => {
                let mut value = value.clone();
                names.value(&mut value, resource, To::World)?;
                // As the API server ends each.
                Ok(format!("{value}\n").into_bytes())
            }
        }
    }
}
