//! Where one world is among the states that are known.

use serde_json::Value;

use super::{
    Answer, Asking, Changed, Known, Names, Recall, Resource, State, Stored, To, Unknown, Written,
};
use crate::world::{Change, World, fresh_uid};

/// One world.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) names: Names,
    /// `None`: it is not known how things stand.
    pub(super) state: Option<State>,
    /// Requests that are under way.
    pub(super) reads: usize,
    pub(super) writes: usize,
    /// All changes of this world up to here are accounted for.
    pub(super) revision: i64,
    /// How many there were since it was forked.
    pub(super) changes: usize,
}

/// What the server has said, and what it has written.
pub(super) struct Exchange {
    pub(super) asking: Asking,
    /// With the changes that are `written` left out.
    pub(super) answer: Answer,
    /// The object that it was about, if it has one name.
    pub(super) name: Option<String>,
    pub(super) written: Vec<Written>,
}

impl Place {
    pub(super) fn of(fork: &World) -> Self {
        Self {
            names: Names::of(fork),
            state: Some(State::default()),
            reads: 0,
            writes: 0,
            revision: fork.last_revision(),
            changes: 0,
        }
    }

    /// Remembers what the server has said, and goes on to the state after it.
    ///
    /// # Errors
    /// [`Foreign`].
    pub(super) fn see(&mut self, recall: &Recall, exchange: Exchange) -> Result<(), Foreign> {
        let Exchange { asking, answer, name, written } = exchange;
        let Some(state) = self.state else { return Ok(()) };
        let own = written.iter().all(|written| answer.is_about(name.as_deref(), written));
        if !own || written.len() > MOST_CHANGES {
            self.state = None;
            return Err(Foreign);
        }
        self.changes += written.len();
        self.revision = written.iter().fold(self.revision, |last, it| last.max(it.revision));
        let known = recall.memory().look(state, &asking.text);
        self.state = match known {
            Some(known) => self.as_known(&known, &asking, answer, &written),
            None => self.as_new(recall, state, asking, answer, &written),
        };
        Ok(())
    }

    /// What nobody has asked before in this state. The names of this world are those in memory from here on.
    fn as_new(
        &mut self,
        recall: &Recall,
        state: State,
        asking: Asking,
        answer: Answer,
        written: &[Written],
    ) -> Option<State> {
        let names = &mut self.names;
        // Another world may have made up the same moment before, for something else.
        if asking.new.iter().any(|text| names.knows(text, To::World)) {
            return written.is_empty().then_some(state);
        }
        for text in &asking.new {
            names.add_text(text, text);
        }
        for written in written {
            names.add_revision(written.revision, written.revision);
            if let Some(uid) = written.uid().filter(|uid| !names.knows(uid, To::Memory)) {
                names.add_text(uid, uid);
            }
        }
        let made_up = asking.new.clone();
        let answer = self.in_memory(answer, &asking, made_up, written);
        match answer {
            Ok(answer) => recall.memory().add(state, asking.text.into(), answer),
            Err(Unknown) => written.is_empty().then_some(state),
        }
    }

    /// What another world has asked meanwhile: if the server has done the same here, things have the names that they have
    /// there.
    fn as_known(
        &mut self,
        known: &Known,
        asking: &Asking,
        answer: Answer,
        written: &[Written],
    ) -> Option<State> {
        let mut names = self.names.clone();
        for (in_memory, here) in known.answer.made_up.iter().zip(&asking.new) {
            names.add_text(in_memory, here);
        }
        for (there, here) in known.answer.changes.iter().zip(written) {
            names.add_revision(there.revision, here.revision);
            if let (Some(there), Some(here)) = (&there.uid, here.uid())
                && !names.knows(here, To::Memory)
            {
                names.add_text(there, here);
            }
        }
        std::mem::swap(&mut self.names, &mut names);
        let answer = self.in_memory(answer, asking, known.answer.made_up.clone(), written).ok()?;
        (answer.changes == known.answer.changes).then_some(known.then)
    }

    /// Gives this world's names to what a client and the server have made up in another one.
    pub(super) fn name(&mut self, answer: &Answer, new: &[String]) {
        for (in_memory, here) in answer.made_up.iter().zip(new) {
            self.names.add_text(in_memory, here);
        }
        for uid in answer.changes.iter().filter_map(|change| change.uid.as_deref()) {
            if !self.names.knows(uid, To::World) {
                self.names.add_text(uid, &fresh_uid(uid));
            }
        }
    }

    /// A change that was made in another world has been made here.
    pub(super) fn wrote_again(&mut self, changed: &Changed, revision: i64) {
        self.names.add_revision(changed.revision, revision);
        self.revision = revision;
        self.changes += 1;
    }

    fn in_memory(
        &self,
        answer: Answer,
        asking: &Asking,
        made_up: Vec<String>,
        written: &[Written],
    ) -> Result<Answer, Unknown> {
        let names = &self.names;
        let changes = written.iter().map(|written| {
            let change = &written.change;
            let value = match &change.value {
                None => None,
                Some(bytes) => Some(Stored::remember(bytes, names, &answer.resource)?),
            };
            // Its moments are numbers there, which nobody finds again.
            if asking.has_moments && matches!(value, Some(Stored::Protobuf(_))) {
                return Err(Unknown);
            }
            Ok(Changed {
                revision: names.revision_in_memory(written.revision).ok_or(Unknown)?,
                uid: written.uid().map(|uid| names.text(uid, To::Memory)),
                directory: change.directory.clone(),
                name: names.text(&change.name, To::Memory),
                value,
            })
        });
        let changes = changes.collect::<Result<Vec<Changed>, Unknown>>()?;
        let mut body: Value = answer.body;
        super::service::set_list_version(&mut body, String::new());
        names.value(&mut body, &answer.resource, To::Memory)?;
        Ok(Answer { body, made_up, changes, ..answer })
    }
}

/// A pod that is to go is first marked, and then removed.
const MOST_CHANGES: usize = 2;

/// Something was changed that no client of this world has asked for.
#[derive(Debug)]
pub(super) struct Foreign;

impl Changed {
    /// The same change in another world.
    pub(super) fn again(&self, names: &Names, resource: &Resource) -> Result<Change, Unknown> {
        let value = self.value.as_ref().map(|value| value.recall(names, resource)).transpose()?;
        let name = names.text(&self.name, To::World);
        Ok(Change { directory: self.directory.clone(), name, value: value.map(Into::into) })
    }
}

impl Answer {
    fn is_about(&self, name: Option<&str>, written: &Written) -> bool {
        let same_kind = written.object.as_ref().is_none_or(|it| it.resource == self.resource);
        same_kind && name == Some(&*written.change.name)
    }
}
