//! What happened in a run, in the order in which the engine saw it.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    model::{CachedRead, Fault, Hold, ListVersion, ObjectKey, PointId, Request, Seen, ShownEvent},
    state::Told,
};

/// The notes of one run; taken under the lock of the registry, so their order is that of what happened.
#[derive(Debug)]
pub(super) struct Chronicle {
    started: Instant,
    pub(super) notes: Vec<Note>,
    /// Who is acting now, if the scheduler lets somebody.
    pub(super) acting: Option<String>,
    /// Counts the requests of actors.
    acted: u64,
    /// What the pass under way has been told, if anybody wants to know.
    pub(super) told: Option<Vec<Told>>,
}

#[derive(Debug)]
pub(super) struct Note {
    pub(super) at: Duration,
    /// The pass that was under way, if it was exactly one.
    pub(super) pass: Option<u32>,
    pub(super) entry: Entry,
}

#[derive(Debug)]
pub(super) enum Entry {
    /// A request of the client under test was made.
    Sent {
        number: u64,
    },
    /// It took effect, or failed.
    Done {
        request: Box<Request>,
        from: AnsweredFrom,
        reply: Vec<Seen>,
    },
    /// The initial list of a stream is complete; it was asked for by the request with this number.
    Listed {
        stream: usize,
        incarnation: u32,
        request: u64,
        asked: ListVersion,
        resource_version: String,
        objects: Vec<Seen>,
        point: Option<PointId>,
    },
    /// A client came back to its stream.
    Resumed {
        stream: usize,
        resource_version: String,
    },
    /// An event was given to a client.
    Released {
        stream: usize,
        incarnation: u32,
        event: ShownEvent,
        point: Option<PointId>,
    },
    Bookmark {
        stream: usize,
        resource_version: String,
    },
    /// A stream was left behind at a boundary, by choice.
    Held(Hold),
    Read(Box<CachedRead>),
    PassStarted {
        pass: u32,
        key: String,
    },
    PassEnded {
        pass: u32,
    },
    /// A request of an actor was made.
    ActorSent {
        number: u64,
    },
    ActorDone(Box<Act>),
    Fault(Fault),
    /// A replica received its next event.
    Observed {
        replica: usize,
    },
}

/// Where a reply to the client under test came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum AnsweredFrom {
    Server,
    Test,
    View { of: ViewOf, incarnation: u32, position: usize },
}

/// Whose view it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ViewOf {
    Stream(usize),
    Replica(usize),
}

/// A write of an actor.
#[derive(Debug)]
pub(super) struct Act {
    pub(super) number: u64,
    pub(super) actor: String,
    /// What it did, in words.
    pub(super) text: String,
    pub(super) resource: String,
    pub(super) key: Option<ObjectKey>,
    pub(super) refused: bool,
    pub(super) reply: Vec<Seen>,
}

impl Chronicle {
    pub(super) fn start() -> Self {
        Self { started: Instant::now(), notes: Vec::new(), acting: None, acted: 0, told: None }
    }

    pub(super) fn note(&mut self, pass: Option<u32>, entry: Entry) {
        match &entry {
            Entry::PassStarted { .. } | Entry::PassEnded { .. } => {
                self.told.as_mut().into_iter().for_each(Vec::clear);
            }
            Entry::Fault(Fault::ReplyLost(_)) => {
                self.tell(|| Told::new("the reply is lost".to_owned(), String::new(), None));
            }
            _ => {}
        }
        self.notes.push(Note { at: self.started.elapsed(), pass, entry });
    }

    /// Notes what the process is told, if anybody wants to know.
    pub(super) fn tell(&mut self, told: impl FnOnce() -> Told) {
        if let Some(all) = &mut self.told {
            all.push(told());
        }
    }

    pub(super) fn next_act(&mut self) -> u64 {
        self.acted += 1;
        self.acted
    }

    /// The name of whoever acts now.
    pub(super) fn actor(&self) -> String {
        self.acting.clone().unwrap_or_else(|| "another client".to_owned())
    }
}
