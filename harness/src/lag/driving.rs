//! What whoever drives a whole controller needs of a `Lag`: when nothing goes on, and what waits to be delivered.

use std::time::Duration;

use http::Request;
use kube::{Client, Resource, client::Body};
use tokio::time::Instant;

use super::{
    Lag, boundary,
    engine::{Openings, Registry},
    error::StreamError,
    filter::Filter,
    layer::Passing,
    model::{self, Connection, StreamDescription},
    requests::Mark,
    streams::Stream,
    worlds::OpenWatches,
};

/// How long after a trigger its pass has begun, for whoever polls the controller in the task that waits.
pub(crate) const PASSES_BEGIN: Duration = boundary::PASSES_BEGIN;

/// What has happened so far, as far as a client does it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Activity {
    requests: Mark,
    passes: (u32, u32),
    behind_curtain: usize,
}

impl Activity {
    /// Whether no pass has been bracketed so far.
    pub(crate) fn no_passes(&self) -> bool {
        self.passes.0 == 0
    }
}

impl Lag {
    /// Waits until all requests that were made of `client` before have arrived here.
    ///
    /// # Errors
    /// If the client is not one of these.
    pub(crate) async fn arrived(client: &Client) -> Result<(), kube::Error> {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(Passing);
        client.send(request).await.map(drop)
    }

    pub(crate) fn activity(&self) -> Activity {
        let requests = self.mark();
        self.engine.look(|registry| Activity {
            requests,
            passes: registry.passes.counts(),
            behind_curtain: registry.curtain.waiting,
        })
    }

    /// Whether no request is under way, no pass runs, and every stream has been given all that it may have.
    ///
    /// Requests that wait behind the curtain, and passes that wait at their gate, are no activity.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.engine.look(Registry::is_at_rest)
    }

    /// Waits until [`is_at_rest`](Self::is_at_rest). `false` if it is not within the deadline.
    pub(crate) async fn until_at_rest(&self) -> bool {
        let deadline = Instant::now() + self.engine.deadline();
        let rest = |registry: &Registry| registry.is_at_rest().then_some(());
        self.engine.wait(deadline, rest).await.is_some()
    }

    /// Says that the streams which have been opened since `before` begin passes, and that those of another resource than
    /// `main` do nothing else.
    pub(crate) fn begin_passes(&self, before: &OpenWatches, main: &str) {
        self.engine.change(|registry| {
            let new: Vec<usize> = registry.opened_beside(before).collect();
            for index in new {
                let stream = &mut registry.streams[index];
                stream.begins_passes = true;
                if stream.identity.qualified_resource() != main {
                    let filter = Filter::exactly(&stream.identity, stream.instance);
                    registry.mark_triggers(&filter);
                }
            }
        });
    }

    /// Whether a stream feeds no store.
    pub(crate) fn only_triggers(&self, stream: &StreamDescription) -> bool {
        let is = |known: &&Stream| {
            known.identity == stream.identity && known.instance == stream.instance
        };
        self.engine.look(|registry| {
            registry.streams.iter().find(is).is_some_and(|it| registry.only_triggers(it))
        })
    }

    /// Whether some stream feeds a store whose reads are not seen.
    pub(crate) fn has_unwrapped_store(&self) -> bool {
        self.engine.look(|registry| {
            let mut streams = registry.streams.iter();
            streams.any(|stream| !stream.wrapped && !registry.only_triggers(stream))
        })
    }

    /// Whether a controller was driven.
    pub(crate) fn was_driven(&self) -> bool {
        self.engine.look(|registry| registry.streams.iter().any(|stream| stream.begins_passes))
    }

    /// Whether some stream has something that its client has not been given.
    pub(crate) fn anything_waits(&self) -> bool {
        self.engine.look(|registry| {
            let open = |it: &&Stream| it.connection() == Connection::Open;
            registry.streams.iter().filter(open).any(|stream| !stream.waiting().is_empty())
        })
    }

    /// From now on the replies to lists, and watches, wait until they are let go; or no longer.
    pub(crate) fn order_openings(&self, ordered: bool) {
        self.engine.change(|registry| {
            registry.openings = Openings { ordered, ..Openings::default() };
        });
    }

    /// Waits until every request under way has its reply, or until the deadline: then some server is slow.
    pub(crate) async fn until_answered(&self) -> bool {
        let deadline = Instant::now() + self.engine.deadline();
        let all = |registry: &Registry| registry.all_wait_for_their_turn().then_some(());
        self.engine.wait(deadline, all).await.is_some()
    }

    /// Lets the next request go: the first that is about another resource than `main`, which comes last. When it has gone,
    /// and what it brought has begun to work; `false` if none waits.
    pub(crate) async fn open_next(&self, main: &str) -> bool {
        let waiting = self.engine.look(|registry| registry.openings.waiting.clone());
        let is_main = |number: &u64| {
            let request = self.engine.recorder.get(*number);
            request.is_some_and(|it| qualified_resource(&it) == main)
        };
        let next = waiting.iter().find(|number| !is_main(number)).or(waiting.first());
        let Some(next) = next.copied() else { return false };
        let deadline = Instant::now() + self.engine.deadline();
        self.engine.change(|registry| registry.openings.granted.insert(next));
        let gone = |registry: &Registry| (!registry.is_under_way(next)).then_some(());
        if self.engine.wait(deadline, gone).await.is_none() {
            return false;
        }
        tokio::time::sleep(PASSES_BEGIN).await;
        true
    }

    /// Whether no request is under way.
    pub(crate) fn nothing_under_way(&self) -> bool {
        self.engine.look(Registry::has_nothing_under_way)
    }

    /// Waits until a reply waits to be let go, or a stream of `K` that was not open `before` is.
    pub(crate) async fn until_something_opens<K: Resource<DynamicType = ()>>(
        &self,
        before: &OpenWatches,
    ) -> Result<(), StreamError> {
        let waits = |registry: &Registry| (!registry.openings.waiting.is_empty()).then_some(());
        let stream = self.stream::<K>();
        tokio::select! {
            opened = stream.opened_beside(before) => opened,
            () = self.engine.wait_for_ever(waits) => Ok(()),
        }
    }

    /// Delivers what waits, as the scheduler says.
    pub(crate) async fn deliver(&self) {
        boundary::deliver(&self.engine).await;
    }

    /// Lets requests wait, but for lists and watches, or lets them go on.
    pub(crate) fn draw_curtain(&self, closed: bool) {
        self.engine.change(|registry| registry.curtain.closed = closed);
    }

    /// How many requests wait behind the curtain.
    pub(crate) fn behind_curtain(&self) -> usize {
        self.engine.look(|registry| registry.curtain.waiting)
    }
}

fn qualified_resource(request: &model::Request) -> String {
    match &*request.group {
        "" => request.resource.clone(),
        group => format!("{}.{group}", request.resource),
    }
}

impl Registry {
    fn is_under_way(&self, number: u64) -> bool {
        self.in_flight.contains(&number) || self.opening.contains(&number)
    }

    fn is_at_rest(&self) -> bool {
        self.has_nothing_under_way()
            && self.passes.are_at_rest()
            && self.streams.iter().all(Stream::is_at_rest)
    }
}
