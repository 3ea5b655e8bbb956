//! Naming the streams that a verb is about.

use std::{fmt, marker::PhantomData, sync::Arc};

use kube::{Resource, core::PartialObjectMeta};

use super::{engine::Engine, filter::Filter, model::Representation};

/// Names streams of one resource, and moves them.
///
/// Made by [`Lag::stream`](super::Lag::stream). It names every stream of the resource that carries whole
/// objects, until it is narrowed; verbs that need one stream say so when several match. Streams whose
/// client has dropped its watch count only where no other matches.
///
/// All waits end after the deadline of the [`Lag`](super::Lag) (5 s unless set) with an error that says
/// what was awaited and how the stream stood. Verbs that wait also wait for the stream itself to be opened.
#[must_use]
pub struct StreamSelector<K> {
    pub(super) engine: Arc<Engine>,
    pub(super) filter: Filter,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for StreamSelector<K> {
    fn clone(&self) -> Self {
        Self { engine: Arc::clone(&self.engine), filter: self.filter.clone(), kind: PhantomData }
    }
}

impl<K> fmt::Debug for StreamSelector<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StreamSelector").field(&self.filter).finish()
    }
}

/// Which streams are meant.
impl<K> StreamSelector<K> {
    pub(super) fn new(engine: Arc<Engine>) -> Self
    where
        K: Resource<DynamicType = ()>,
    {
        let filter = Filter {
            group: K::group(&()).into_owned(),
            version: K::version(&()).into_owned(),
            resource: K::plural(&()).into_owned(),
            representation: Some(Representation::Full),
            namespace: None,
            labels: None,
            fields: None,
            instance: None,
        };
        Self::from_filter(engine, filter)
    }

    pub(super) fn from_filter(engine: Arc<Engine>, filter: Filter) -> Self {
        Self { engine, filter, kind: PhantomData }
    }

    /// Means the streams that carry metadata alone, as `Controller::owns` opens them.
    pub fn metadata(mut self) -> StreamSelector<PartialObjectMeta<K>> {
        self.filter.representation = Some(Representation::Metadata);
        StreamSelector { engine: self.engine, filter: self.filter, kind: PhantomData }
    }

    /// Narrows to the streams over this one namespace; one over all namespaces is not meant.
    pub fn in_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.filter.namespace = Some(Some(namespace.into()));
        self
    }

    /// Narrows to the streams over all namespaces.
    pub fn in_all_namespaces(mut self) -> Self {
        self.filter.namespace = Some(None);
        self
    }

    /// Narrows to the streams with this label selector, spelled as the client sends it.
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.filter.labels = Some(Some(selector.into()));
        self
    }

    /// Narrows to the streams without a label selector.
    pub fn without_labels(mut self) -> Self {
        self.filter.labels = Some(None);
        self
    }

    /// Narrows to the streams with this field selector, spelled as the client sends it.
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.filter.fields = Some(Some(selector.into()));
        self
    }

    /// Narrows to the streams without a field selector.
    pub fn without_fields(mut self) -> Self {
        self.filter.fields = Some(None);
        self
    }

    /// Narrows to one of several watches that ask for the same, counted from 1 in the order in which they were opened.
    pub fn instance(mut self, number: usize) -> Self {
        self.filter.instance = Some(number);
        self
    }
}
