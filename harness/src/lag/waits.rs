//! Waits inside a pass: the one thing besides a request during which a view can move.

use std::{pin::pin, task::Poll};

use super::{
    boundary::{self, Wait},
    engine::Registry,
    model::Connection,
    passes::Passes,
};

impl Passes {
    /// A wait inside a pass for something that streams or other actors bring about: a
    /// [`Barrier`](crate::barrier::Barrier), a condition of an object, a store that is ready.
    ///
    /// Held streams move at replies, and such a wait has none. So, while a scheduler is set, it is a boundary itself:
    /// once when it begins, with what other actors and each stream do as the scheduler says, and, if that was not
    /// enough, again and again with everything that can happen, until the wait is over or nothing
    /// can. From then on it takes what time it takes. A wait that is over at once is no boundary, and without a
    /// scheduler this is the wait alone.
    ///
    /// What brings the wait about is to happen in the tasks that feed the stores: these have done their work when a
    /// release is over. What others do later, the wait sees later, with everything released.
    pub async fn wait_for<F: Future>(&self, wait: F) -> F::Output {
        let engine = self.engine();
        let mut wait = pin!(wait);
        if let Poll::Ready(output) = futures::poll!(wait.as_mut()) {
            return output;
        }
        if !engine.schedule.is_set() {
            return wait.await;
        }
        boundary::reach_wait(engine, Wait::Begins).await;
        loop {
            if let Poll::Ready(output) = futures::poll!(wait.as_mut()) {
                return output;
            }
            if boundary::reach_wait(engine, Wait::GoesOn).await {
                continue;
            }
            tokio::select! {
                biased;
                output = wait.as_mut() => return output,
                () = engine.wait_for_ever(|registry| registry.has_something_held().then_some(())) => {}
            }
        }
    }
}

impl Registry {
    /// Changes whenever a stream has received or handed on anything.
    pub(super) fn progress(&self) -> usize {
        let streams = self.streams.iter();
        let clients = streams.map(|stream| stream.position() + stream.events().len());
        clients.sum::<usize>() + self.replicas.iter().map(|it| it.events().len()).sum::<usize>()
    }

    fn has_something_held(&self) -> bool {
        let mut streams = self.streams.iter();
        streams.any(|stream| {
            let open = stream.connection() == Connection::Open;
            open && stream.is_held() && !stream.waiting().is_empty()
        })
    }
}
