//! Where one stream stands, and what it may show next.

use std::collections::BTreeSet;

use super::{
    super::{
        ListEnd, ListStart, ListVersion, ObjectKey, Query, Role, Seen, ShownEvent, StreamRecord,
        Trigger, compare_resource_versions,
    },
    Axiom, Illegal,
    visible::{Visible, answers},
};

/// One stream.
pub(super) struct Stream<'a> {
    pub(super) record: &'a StreamRecord,
    pub(super) visible: Visible<'a>,
    /// The last initial list that was completed, from 1; 0 before the first.
    pub(super) incarnation: u32,
    /// How many events of the history that list covers.
    pub(super) base: usize,
    /// How many events of the incarnation have been given to the client.
    pub(super) released: usize,
    /// The furthest position from which something was read.
    pub(super) read: usize,
    /// The resource version that the client knows.
    pub(super) known: Option<String>,
    /// The resource version of the initial list, and what was in it.
    pub(super) listed_at: Option<String>,
    pub(super) listed: BTreeSet<ObjectKey>,
    pub(super) triggered: BTreeSet<ObjectKey>,
    pub(super) listing: Option<Listing<'a>>,
    /// The process that had it is gone.
    pub(super) over: bool,
}

/// An initial list that is not complete.
pub(super) struct Listing<'a> {
    pub(super) start: &'a ListStart,
    pub(super) step: usize,
    pub(super) triggered: BTreeSet<ObjectKey>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(record: &'a StreamRecord, visible: Visible<'a>) -> Self {
        Self {
            record,
            visible,
            incarnation: 0,
            base: 0,
            released: 0,
            read: 0,
            known: None,
            listed_at: None,
            listed: BTreeSet::new(),
            triggered: BTreeSet::new(),
            listing: None,
            over: false,
        }
    }

    /// Takes the next event, which must be exactly the next one of the history.
    pub(super) fn take(&mut self, step: usize, shown: &ShownEvent) -> Result<(), Illegal> {
        let reached = self.base + self.released;
        let next = self.visible.get(reached);
        let is_it = next.is_some_and(|next| {
            next.commit.key == shown.key
                && next.commit.resource_version == shown.resource_version
                && next.change == shown.change
        });
        let text = format!(
            "{} shows {} {} at rv {}",
            self.record, shown.change, shown.key, shown.resource_version
        );
        if is_it {
            if reached >= self.visible.available(step) {
                let text = format!("{text}, which is not committed yet");
                return Err(Illegal::new(Axiom::Available, step, text));
            }
            self.released += 1;
            self.known = Some(shown.resource_version.clone());
            return Ok(());
        }
        let expected = next.map_or_else(
            || "nothing more".to_owned(),
            |next| {
                format!(
                    "{} {} at rv {}",
                    next.change, next.commit.key, next.commit.resource_version
                )
            },
        );
        let known = self.visible.index_of(&shown.key, &shown.resource_version).is_some();
        let elsewhere = !known && self.visible.is_elsewhere(&shown.key, &shown.resource_version);
        let axiom = if elsewhere { Axiom::Independence } else { Axiom::Prefix };
        Err(Illegal::new(axiom, step, format!("{text}, and next in it is {expected}")))
    }

    pub(super) fn list(&mut self, step: usize, end: &ListEnd) -> Result<(), Illegal> {
        let name = self.record.to_string();
        let illegal = |axiom, text: String| Err(Illegal::new(axiom, step, text));
        let Some(listing) =
            self.listing.take().filter(|listing| listing.start.incarnation == end.incarnation)
        else {
            let text = format!("{name} ends an initial list that did not begin");
            return illegal(Axiom::AtomicInit, text);
        };
        let Some(base) = self.visible.up_to(&end.resource_version) else {
            let text = format!("{name} is listed at {:?}", end.resource_version);
            return illegal(Axiom::History, text);
        };
        if base > self.visible.available(step) {
            let text = format!(
                "{name} is listed at rv {}, and not all up to it is committed",
                end.resource_version
            );
            return illegal(Axiom::Available, text);
        }
        let order = |asked: &str| compare_resource_versions(&end.resource_version, asked);
        let fresh = match &listing.start.asked {
            ListVersion::Consistent => base >= self.visible.available(listing.step),
            ListVersion::Any => true,
            ListVersion::NotOlderThan(asked) => order(asked).is_some_and(|order| order.is_ge()),
            ListVersion::Exact(asked) => order(asked).is_some_and(|order| order.is_eq()),
        };
        if !fresh {
            let text = format!(
                "{name} is listed at rv {}, and what was asked for is {:?}",
                end.resource_version, listing.start.asked
            );
            return illegal(Axiom::FreshStart, text);
        }
        let state = self.visible.state(base);
        if answers(&state, &Query::All, &end.objects) != Ok(true) {
            let part = answers(&state, &Query::Filtered, &end.objects) == Ok(true);
            let axiom = if part { Axiom::AtomicInit } else { Axiom::Prefix };
            let text = format!(
                "{name} is listed at rv {} with {}, and has {} objects there",
                end.resource_version,
                words(&end.objects),
                state.len()
            );
            return illegal(axiom, text);
        }
        let listed: BTreeSet<_> = end.objects.iter().map(|seen| seen.key.clone()).collect();
        if let Some(vanished) = listing.triggered.iter().find(|key| !listed.contains(*key)) {
            let text = format!("{name} triggered for {vanished}, which its initial list lacks");
            return illegal(Axiom::Compression, text);
        }
        self.incarnation = end.incarnation;
        self.base = base;
        self.released = 0;
        self.read = 0;
        self.known = Some(end.resource_version.clone());
        self.listed_at = Some(end.resource_version.clone());
        self.listed = listed;
        self.triggered = listing.triggered;
        self.over = false;
        Ok(())
    }

    pub(super) fn trigger(&mut self, step: usize, trigger: &Trigger) -> Result<(), Illegal> {
        let name = self.record.to_string();
        let illegal = |axiom, text: String| Err(Illegal::new(axiom, step, text));
        if trigger.from_list {
            let (triggered, complete) = match &mut self.listing {
                Some(listing) => (&mut listing.triggered, false),
                None => (&mut self.triggered, true),
            };
            if complete && !self.listed.contains(&trigger.object) {
                let text = format!("{name} triggered for {}, which its list lacks", trigger.object);
                return illegal(Axiom::Compression, text);
            }
            if !triggered.insert(trigger.object.clone()) {
                let text = format!("{name} triggered twice for {} of one list", trigger.object);
                return illegal(Axiom::Compression, text);
            }
            return Ok(());
        }
        let shown = self
            .visible
            .index_of(&trigger.object, &trigger.resource_version)
            .is_some_and(|index| index < self.base + self.released);
        if shown {
            return Ok(());
        }
        let axiom =
            if self.record.role == Role::Main { Axiom::TriggerAndView } else { Axiom::Prefix };
        let text = format!(
            "{name} triggered for {} at rv {}, which it has not shown",
            trigger.object, trigger.resource_version
        );
        illegal(axiom, text)
    }
}

/// Objects in words.
pub(super) fn words(seen: &[Seen]) -> String {
    if seen.is_empty() {
        return "nothing".to_owned();
    }
    let one = |seen: &Seen| format!("{} at rv {}", seen.key, seen.resource_version);
    seen.iter().map(one).collect::<Vec<_>>().join(", ")
}
