//! Driving an unmodified `Controller`: its events are delivered and its passes run one at a time, as the search says.
//!
//! The stream that a controller is, is polled in the task that drives it, and everything that it does happens there. So
//! what it is about to do is known without guessing: requests that it has made have arrived when one made after them
//! has, and a pass that an event triggers has begun when a timer that was set after the event has fired.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use futures::Stream;
use kube::{
    Resource,
    runtime::{controller::Action, reflector::ObjectRef},
};

use super::{director::Chance, truth::resource_of, world::World};
use crate::lag::{Lag, PASSES_BEGIN, PassError, Passes, StreamError};

/// What all that a controller does while its passes are not told apart is called in the record.
const STRETCH: &str = "controller";

impl World {
    /// Runs an unmodified `Controller` until it has settled: every event has been delivered, no pass is left to run, and no
    /// actor has anything left to do.
    ///
    /// `controller` is what `Controller::run` returns, on [`client`](Self::client), with a reconcile function that is
    /// bracketed with [`Passes::run`] where it is handed to `run`; the function itself needs no change. Open the stores of
    /// the process before. Passes run one at a time, those that wait in alphabetical order. Whenever nothing goes on,
    /// actors act and events are delivered: to stores, to the controller's own, then those of `owns` and `watches`,
    /// unless the search holds some of them back; a trigger can so begin a pass of which a store knows nothing. Within a
    /// pass the stores move at replies.
    ///
    /// Timers are not waited for: neither requeues with a delay nor a debounce. Those without a delay are part of the run.
    /// Returns whether it settled within [`max_passes`](super::Scenario::max_passes).
    ///
    /// Dropped, the controller ends.
    ///
    /// ```no_run
    /// use std::{convert::Infallible, sync::Arc};
    /// use k8s_openapi::api::core::v1::ConfigMap;
    /// use kube::runtime::{Controller, controller::Action, watcher};
    /// use laggard::check::{BoxError, World};
    ///
    /// async fn reconcile(map: Arc<ConfigMap>, world: Arc<World>) -> Result<Action, Infallible> {
    ///     Ok(Action::await_change())
    /// }
    ///
    /// async fn process(world: World) -> Result<(), BoxError> {
    ///     let bracketed = |map: Arc<ConfigMap>, world: Arc<World>| async move {
    ///         let name = map.metadata.name.clone().unwrap_or_default();
    ///         world.passes().run(name, reconcile(map, world.clone())).await
    ///     };
    ///     let policy = |_: Arc<ConfigMap>, _: &Infallible, _: Arc<World>| Action::await_change();
    ///     let controller = Controller::new(world.api::<ConfigMap>(), watcher::Config::default())
    ///         .run(bracketed, policy, Arc::new(world.clone()));
    ///     world.drive(controller).await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`DriveError`], which is a defect of the set-up and no finding.
    pub async fn drive<K, E>(
        &self,
        controller: impl Stream<Item = Result<(ObjectRef<K>, Action), E>>,
    ) -> Result<bool, DriveError>
    where
        K: Resource<DynamicType = ()>,
        E: fmt::Display,
    {
        Driver::new(self, controller, Told::ByBracket).run().await
    }

    /// The same with a reconcile function that is not bracketed, for controllers whose `run` cannot be reached.
    ///
    /// Then the start of a pass cannot be told, nor one pass from another: what the controller does from a delivery until it
    /// is quiet counts as one pass of `controller` in the record, and as one for
    /// [`max_passes`](super::Scenario::max_passes). It is quiet when no request is under way and all watches wait. A pass
    /// that waits for anything but a request, such as a timer or another task, is taken for over. Passes of several keys
    /// run at once, in an order that a schedule does not decide: use one object, or the search may find that the process
    /// is not deterministic. A list that is the first request of a pass is no choice point.
    ///
    /// # Errors
    /// As [`drive`](Self::drive).
    pub async fn drive_unbracketed<K, E>(
        &self,
        controller: impl Stream<Item = Result<(ObjectRef<K>, Action), E>>,
    ) -> Result<bool, DriveError>
    where
        K: Resource<DynamicType = ()>,
        E: fmt::Display,
    {
        Driver::new(self, controller, Told::ByRequests).run().await
    }
}

/// How passes are told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Told {
    ByBracket,
    ByRequests,
}

/// A controller, and who polls it.
struct Driver<'a, S> {
    world: &'a World,
    lag: Lag,
    passes: Passes,
    controller: Pin<Box<S>>,
    told: Told,
    /// How many results it has given.
    results: u64,
    reconciled: bool,
    over: bool,
    last_error: Option<String>,
}

impl<'a, S, K, E> Driver<'a, S>
where
    S: Stream<Item = Result<(ObjectRef<K>, Action), E>>,
    K: Resource<DynamicType = ()>,
    E: fmt::Display,
{
    fn new(world: &'a World, controller: S, told: Told) -> Self {
        Self {
            world,
            lag: world.lag.clone(),
            passes: world.lag.passes(),
            controller: Box::pin(controller),
            told,
            results: 0,
            reconciled: false,
            over: false,
            last_error: None,
        }
    }

    async fn run(mut self) -> Result<bool, DriveError> {
        self.open().await?;
        let settled = self.settle().await?;
        self.world.note_settled(settled);
        Ok(settled)
    }

    /// Lets the controller open its watches, and no pass begin.
    async fn open(&mut self) -> Result<(), DriveError> {
        let (world, lag) = (self.world, self.lag.clone());
        let _turn = world.turn_to_open().await;
        let before = lag.open_watches();
        self.passes.gate();
        lag.draw_curtain(self.told == Told::ByRequests);
        world.director.drive();
        world.begin();
        // One list and one watch after the other, the controller's own last: else it is a matter of milliseconds how many
        // passes begin.
        lag.order_openings(true);
        let main = resource_of::<K>();
        loop {
            self.along(Lag::arrived(&world.client())).await.map_err(DriveError::client)?;
            if !self.along(lag.until_answered()).await {
                return Err(self.failure(Problem::Busy));
            }
            if !self.along(lag.open_next(&main)).await {
                if lag.stream::<K>().is_open_beside(&before) && lag.nothing_under_way() {
                    break;
                }
                self.along(lag.until_something_opens::<K>(&before)).await?;
            }
        }
        lag.order_openings(false);
        self.quiet().await?;
        lag.begin_passes(&before, &main);
        Ok(())
    }

    async fn settle(&mut self) -> Result<bool, DriveError> {
        let (director, lag) = (self.world.director.clone(), self.lag.clone());
        let mut chance = Chance::BetweenPasses;
        let mut left = self.world.passes;
        let mut rounds = 0..self.world.passes.saturating_mul(2);
        while rounds.next().is_some() {
            while self.has_begun() {
                let Some(fewer) = left.checked_sub(1) else { return Ok(false) };
                left = fewer;
                self.pass().await?;
            }
            let acted = self.along(director.environment(chance)).await;
            chance = Chance::BetweenPasses;
            if lag.anything_waits() {
                self.along(director.relists()).await;
                self.quiet().await?;
                self.along(lag.deliver()).await;
                self.quiet().await?;
            }
            // What was held back comes at the latest when there is nothing else.
            if !self.has_begun() && lag.anything_waits() {
                self.along(lag.show_everything()).await?;
                self.quiet().await?;
            }
            if acted || self.has_begun() {
                continue;
            }
            if !director.has_work() {
                return Ok(true);
            }
            chance = Chance::NothingElse;
        }
        Ok(false)
    }

    /// Whether a pass waits to be let go.
    fn has_begun(&self) -> bool {
        match self.told {
            Told::ByBracket => !self.passes.waiting().is_empty(),
            Told::ByRequests => self.lag.behind_curtain() > 0,
        }
    }

    /// Lets the next pass run to its end.
    async fn pass(&mut self) -> Result<(), DriveError> {
        let director = &self.world.director;
        match self.told {
            Told::ByBracket => {
                let Some(key) = self.passes.waiting().into_iter().next() else { return Ok(()) };
                let passes = self.passes.clone();
                director.enter_pass();
                let ended = self.along(passes.step(&key)).await;
                director.leave_pass();
                ended?;
                self.quiet().await
            }
            Told::ByRequests => {
                let stretch = self.passes.stretch(STRETCH);
                director.enter_pass();
                self.lag.draw_curtain(false);
                let quiet = self.quiet().await;
                self.lag.draw_curtain(true);
                director.leave_pass();
                drop(stretch);
                quiet
            }
        }
    }

    /// Waits until the controller does nothing any more, and no trigger that it has been given can make it.
    async fn quiet(&mut self) -> Result<(), DriveError> {
        let (lag, client) = (self.lag.clone(), self.world.client());
        loop {
            let before = (lag.activity(), self.results);
            self.along(Lag::arrived(&client)).await.map_err(DriveError::client)?;
            if !self.along(lag.until_at_rest()).await {
                return Err(self.failure(Problem::Busy));
            }
            self.along(tokio::time::sleep(PASSES_BEGIN)).await;
            self.along(Lag::arrived(&client)).await.map_err(DriveError::client)?;
            if self.over {
                return Err(self.failure(Problem::Over));
            }
            if self.told == Told::ByBracket && self.reconciled && lag.activity().no_passes() {
                return Err(self.failure(Problem::NotBracketed));
            }
            if lag.is_at_rest() && before == (lag.activity(), self.results) {
                return Ok(());
            }
        }
    }

    /// Waits for something while the controller goes on, which is always polled first.
    async fn along<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            self.poll(context);
            work.as_mut().poll(context)
        })
        .await
    }

    fn poll(&mut self, context: &mut Context<'_>) {
        while !self.over {
            match self.controller.as_mut().poll_next(context) {
                Poll::Pending => return,
                Poll::Ready(None) => self.over = true,
                Poll::Ready(Some(result)) => {
                    self.results += 1;
                    match result {
                        Ok(_) => self.reconciled = true,
                        Err(error) => {
                            tracing::debug!(%error, "a result of the controller");
                            self.last_error = Some(error.to_string());
                        }
                    }
                }
            }
        }
    }

    fn failure(&self, problem: Problem) -> DriveError {
        let last_error =
            self.last_error.as_ref().map(|error| format!("\n  its last error: {error}"));
        let waits = format!("\n  {:?}\n  {}", self.passes, self.lag);
        let evidence = last_error.unwrap_or_default() + &waits;
        DriveError(DriveProblem::Controller { problem, evidence })
    }
}

/// Why a controller could not be driven.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DriveError(DriveProblem);

#[derive(Debug, thiserror::Error)]
enum DriveProblem {
    #[error("failed to drive the controller: {problem}{evidence}")]
    Controller { problem: Problem, evidence: String },
    #[error(transparent)]
    Stream(StreamError),
    #[error(transparent)]
    Pass(PassError),
    #[error("failed to ask the client of the world what it has sent")]
    Client(#[source] kube::Error),
}

#[derive(Clone, Copy, Debug)]
enum Problem {
    Busy,
    Over,
    NotBracketed,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => {
                "it has not come to rest within the deadline: does a pass wait for something that no reply brings, \
                 or does nobody poll one of the watches?"
            }
            Self::Over => "it has ended by itself",
            Self::NotBracketed => {
                "it has made a pass that is not bracketed: hand `run` a function that calls yours in \
                 `world.passes().run(key, ..)`, or use `drive_unbracketed`"
            }
        })
    }
}

impl DriveError {
    fn client(error: kube::Error) -> Self {
        Self(DriveProblem::Client(error))
    }
}

impl From<StreamError> for DriveError {
    fn from(error: StreamError) -> Self {
        Self(DriveProblem::Stream(error))
    }
}

impl From<PassError> for DriveError {
    fn from(error: PassError) -> Self {
        Self(DriveProblem::Pass(error))
    }
}
