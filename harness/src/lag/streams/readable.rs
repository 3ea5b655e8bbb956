//! The views that a wrapped read may show.

use super::{
    super::model::{Change, Event, Objects},
    Stream,
};

/// From where the reads of a stream have come to everything that has been received.
pub(in crate::lag) struct Readable<'a> {
    pub(in crate::lag) incarnation: u32,
    /// Of the first view.
    pub(in crate::lag) position: usize,
    first: Objects<'a>,
    events: &'a [Event],
}

impl Stream {
    /// Before the initial list is complete there is one view: the one that the store still has.
    pub(in crate::lag) fn readable(&self) -> Readable<'_> {
        if !self.ready {
            return Readable {
                incarnation: self.incarnation.saturating_sub(1),
                position: self.position_before,
                first: self.before.iter().collect(),
                events: &[],
            };
        }
        let position = self.position().max(self.read);
        Readable {
            incarnation: self.incarnation,
            position,
            first: self.log.fold(position).unwrap_or_default(),
            events: self.log.events().get(position..).unwrap_or_default(),
        }
    }

    /// Notes that a read has shown this position; later ones do not go back.
    pub(in crate::lag) fn note_read(&mut self, incarnation: u32, position: usize) {
        if incarnation == self.incarnation {
            self.read = self.read.max(position);
        }
    }
}

impl<'a> Readable<'a> {
    /// The oldest view.
    pub(in crate::lag) fn first(&self) -> &Objects<'a> {
        &self.first
    }

    /// What leads from it to the newest one.
    pub(in crate::lag) fn events(&self) -> &'a [Event] {
        self.events
    }

    /// What `take` makes of each view, the oldest first; at least one.
    pub(in crate::lag) fn states<T>(&self, take: impl Fn(&Objects<'a>) -> T) -> Vec<T> {
        let mut objects = self.first.clone();
        let mut states = vec![take(&objects)];
        for event in self.events {
            match event.change {
                Change::Added | Change::Modified => objects.insert(&event.key, &event.object),
                Change::Deleted => objects.remove(&event.key),
            };
            states.push(take(&objects));
        }
        states
    }
}
