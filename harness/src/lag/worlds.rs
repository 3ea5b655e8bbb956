//! What whoever runs a whole process needs of a `Lag`: its streams as they open, the true state, who acts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
};

use super::{
    Lag, Source,
    boundary::PASSES_BEGIN,
    chronicle::Entry,
    engine::Registry,
    error::{StreamError, StreamErrorKind},
    filter::Filter,
    model::{Connection, Fault, StreamDescription},
    selector::StreamSelector,
    streams::Stream,
};
use crate::{check::Truth, connect::Upstream};

/// The watches that were open at some moment.
pub(crate) struct OpenWatches(BTreeSet<(usize, u64)>);

impl Lag {
    /// Clients over a service that is shared with others.
    pub(crate) fn over_upstream(upstream: Upstream, default_namespace: &str) -> Self {
        let default_namespace = default_namespace.to_owned();
        Self::from_source(Source::Service { upstream, default_namespace })
    }

    pub(crate) fn open_watches(&self) -> OpenWatches {
        self.engine.look(|registry| OpenWatches(registry.open_watches().collect()))
    }

    /// The true state, as the replicas know it.
    pub(crate) fn truth(&self) -> Truth {
        self.engine.look(Registry::truth)
    }

    /// How many changes of the server's state have been seen since the beginning.
    pub(crate) fn observed(&self) -> usize {
        self.engine.look(|registry| registry.replicas.iter().map(|it| it.events().len()).sum())
    }

    /// The same by resource.
    pub(crate) fn observed_by_resource(&self) -> BTreeMap<String, usize> {
        let count =
            |replica: &Stream| (replica.identity.qualified_resource(), replica.events().len());
        self.engine.look(|registry| registry.replicas.iter().map(count).collect())
    }

    /// How many notes have been taken for the record of the run.
    pub(crate) fn notes(&self) -> usize {
        self.engine.look(|registry| registry.chronicle.as_ref().map_or(0, |it| it.notes.len()))
    }

    /// The resources of the streams whose reads are not seen: those of clients, without a wrapper.
    pub(crate) fn unwrapped(&self) -> BTreeSet<String> {
        self.engine.look(|registry| {
            let streams = registry.streams.iter().filter(|stream| !stream.wrapped);
            streams.map(|stream| stream.identity.qualified_resource()).collect()
        })
    }

    /// From now on the writes of actors are those of this one.
    pub(crate) fn act_as(&self, actor: Option<&str>) {
        self.engine.change(|registry| {
            if let Some(chronicle) = &mut registry.chronicle {
                chronicle.acting = actor.map(str::to_owned);
            }
        });
    }

    /// The passes under way are none any more, though they have not ended.
    pub(crate) fn forget_passes(&self) {
        self.engine.change(|registry| registry.passes.forget());
    }

    /// Brings every view to the newest state; holds stay.
    pub(crate) async fn show_everything(&self) -> Result<(), StreamError> {
        let held: Vec<(Filter, bool)> = self.engine.change(|registry| {
            let mut held = Vec::new();
            for index in registry.release_order() {
                let stream = &mut registry.streams[index];
                if stream.connection() == Connection::Open && stream.is_held() {
                    let (incarnation, events) = (stream.incarnation(), stream.events().len());
                    stream.note_read(incarnation, events);
                    let begins_passes = stream.begins_passes && !stream.waiting().is_empty();
                    let filter = Filter::exactly(&stream.identity, stream.instance);
                    held.push((filter, begins_passes));
                }
            }
            held
        });
        for (filter, begins_passes) in held {
            let selector = StreamSelector::<()>::from_filter(self.engine.clone(), filter);
            selector.release_what_waits().await?;
            if begins_passes {
                tokio::time::sleep(PASSES_BEGIN).await;
            }
        }
        self.engine.schedule.ask(|scheduler| scheduler.all_released());
        Ok(())
    }

    /// The streams that a relist can hit now, in the order in which they were opened.
    pub(crate) fn watching(&self) -> Vec<StreamDescription> {
        self.engine.look(|registry| {
            let open = registry.open_watches().map(|(index, _)| &registry.streams[index]);
            open.filter(|stream| stream.view().ready).map(Stream::describe).collect()
        })
    }

    /// Makes the client of one stream list anew; see [`StreamSelector::relist`].
    pub(crate) async fn relist(&self, stream: &StreamDescription) -> Result<(), StreamError> {
        let filter = Filter::exactly(&stream.identity, stream.instance);
        self.engine.change(|registry| {
            let expired = |it: &Stream| filter.matches(&it.identity, it.instance);
            if let Some(index) = registry.streams.iter().position(expired) {
                registry.note(Entry::Fault(Fault::Expired(index)));
            }
        });
        StreamSelector::<()>::from_filter(self.engine.clone(), filter).relist().await
    }

    /// Ends everything of ours: nobody is asked any more, nothing is followed any more.
    pub(crate) fn close(&self) {
        self.clear_scheduler();
        self.engine.change(|registry| registry.replicas.clear());
    }
}

impl Registry {
    /// The true state; objects that have not changed since the last call are shared with it.
    fn truth(&self) -> Truth {
        let counts: Vec<usize> = self.replicas.iter().map(|it| it.events().len()).collect();
        let mut known = self.truth.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match known.take() {
            Some((at, truth)) if at == counts => {
                return known.insert((at, truth)).1.clone();
            }
            before => before.map(|(_, truth)| truth).unwrap_or_default(),
        };
        let mut truth = Truth::default();
        for replica in &self.replicas {
            let resource = replica.identity.qualified_resource();
            for (key, object) in replica.newest() {
                truth.insert(&resource, key.clone(), before.share(&resource, key, object));
            }
        }
        known.insert((counts, truth)).1.clone()
    }

    /// The streams with a watch that is open and was not `before`.
    pub(super) fn opened_beside(&self, before: &OpenWatches) -> impl Iterator<Item = usize> {
        let new = self.open_watches().filter(|watch| !before.0.contains(watch));
        new.map(|(index, _)| index)
    }

    fn open_watches(&self) -> impl Iterator<Item = (usize, u64)> {
        let streams = self.streams.iter().enumerate();
        streams
            .filter(|(_, stream)| stream.connection() == Connection::Open)
            .map(|(index, stream)| (index, stream.epoch()))
    }
}

impl<K> StreamSelector<K> {
    /// Waits until a stream that matches is open and was not open `before`.
    pub(crate) async fn opened_beside(&self, before: &OpenWatches) -> Result<(), StreamError> {
        let deadline = self.deadline();
        let opened = |registry: &Registry| self.opens_in(registry, before).then_some(());
        match self.engine.wait(deadline, opened).await {
            Some(()) => Ok(()),
            None => Err(self.not_opened()),
        }
    }

    /// Whether there is one now.
    pub(crate) fn is_open_beside(&self, before: &OpenWatches) -> bool {
        self.engine.look(|registry| self.opens_in(registry, before))
    }

    fn opens_in(&self, registry: &Registry, before: &OpenWatches) -> bool {
        registry.opened_beside(before).any(|index| {
            let stream = &registry.streams[index];
            self.filter.matches(&stream.identity, stream.instance) && stream.view().ready
        })
    }

    /// Narrows to the newest instance that matches.
    pub(crate) fn last_opened(mut self) -> Self {
        let newest = self.engine.look(|registry| {
            let streams = registry.streams.iter();
            let matching = streams.filter(|it| self.filter.matches(&it.identity, it.instance));
            matching
                .max_by_key(|it| it.epoch())
                .map(|it| Filter::exactly(&it.identity, it.instance))
        });
        if let Some(filter) = newest {
            self.filter = filter;
        }
        self
    }

    fn not_opened(&self) -> StreamError {
        let streams = super::filter::list_streams(&self.engine.look(Registry::descriptions));
        StreamError::new("see a watch open", &self.filter, StreamErrorKind::NoStream, streams)
    }
}
