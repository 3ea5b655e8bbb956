//! What is explored: a set-up, a process under test, other actors, and what must hold.

use std::{error::Error, future::Future, panic::Location, sync::Arc, time::Duration};

use futures::future::BoxFuture;

use super::{
    actor::Actor,
    oracles::{BuiltIn, Claim, Oracles, SeenPass, Sighting},
    truth::Truth,
    world::{SetUp, World},
};
use crate::lag::model::RequestStep;

/// Any error, as the closures of a scenario return it.
pub type BoxError = Box<dyn Error + Send + Sync>;

pub(super) type Process =
    Arc<dyn Fn(World) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync>;
pub(super) type Making =
    Arc<dyn Fn(SetUp) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync>;

/// A process under test in a world of its own, with all that may happen around it.
///
/// The process is a closure that is called once for each run, and again after each restart that a schedule
/// has in it. Everything it knows it must get from its [`World`]; runs go on at the same time.
///
/// ```no_run
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use kube::runtime::reflector::ObjectRef;
/// use laggard::check::{BoxError, Scenario, World};
///
/// async fn reconcile(world: &World) -> Result<(), BoxError> {
///     let maps = world.cache::<ConfigMap>().await?;
///     world
///         .until_settled("demo", || async {
///             let _ = maps.get(&ObjectRef::new("demo").within(world.namespace()));
///         })
///         .await?;
///     Ok(())
/// }
///
/// # async fn example(plane: laggard::Plane) -> Result<(), Box<dyn std::error::Error>> {
/// let scenario = Scenario::new("demo", |world: World| async move { reconcile(&world).await })
///     .never("two maps", |truth| truth.list::<ConfigMap>().len() > 1);
/// let report = laggard::check(&plane, scenario).await?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Scenario {
    pub(super) name: String,
    /// The source file that it is made in.
    pub(super) file: &'static str,
    pub(super) set_up: Option<Making>,
    pub(super) process: Process,
    pub(super) actors: Vec<Actor>,
    pub(super) oracles: Oracles,
    pub(super) restarts: bool,
    pub(super) relists: bool,
    pub(super) lost_replies: bool,
    pub(super) pure_passes: bool,
    pub(super) passes: u32,
    pub(super) deadline: Duration,
}

impl Scenario {
    /// A scenario with this name. The name, and the source file that this is called in, say which file of saved tokens
    /// is its own: see [`Check::regressions`](super::Check::regressions).
    #[track_caller]
    pub fn new<F, R, E>(name: impl Into<String>, process: F) -> Self
    where
        F: Fn(World) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let process: Process = Arc::new(move |world| {
            let run = process(world);
            Box::pin(async move { run.await.map_err(Into::into) })
        });
        Self {
            name: name.into(),
            file: Location::caller().file(),
            set_up: None,
            process,
            actors: Vec::new(),
            oracles: Oracles::default(),
            restarts: false,
            relists: false,
            lost_replies: false,
            pure_passes: false,
            passes: 30,
            deadline: Duration::from_secs(60),
        }
    }

    /// What is there before the process begins. Made once through the API server and forked for each run, or made
    /// anew for each where that cannot be.
    pub fn set_up<F, R, E>(mut self, set_up: F) -> Self
    where
        F: Fn(SetUp) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.set_up = Some(Arc::new(move |world| {
            let made = set_up(world);
            Box::pin(async move { made.await.map_err(Into::into) })
        }));
        self
    }

    /// Somebody else who acts meanwhile.
    pub fn actor(mut self, actor: Actor) -> Self {
        self.actors.push(actor);
        self
    }

    /// The process may end before the reply to any of its writes, and begins anew. Off unless said.
    pub fn with_restarts(mut self) -> Self {
        self.restarts = true;
        self
    }

    /// The server may forget the resource version of any watch between two passes, so that its client lists anew.
    /// Off unless said.
    ///
    /// A list that asks for any state, as with [`streaming_lists`](kube::runtime::watcher::Config::streaming_lists),
    /// can then show an earlier one; all others skip what they had not been shown yet. A client's own back-off
    /// takes its time; stores that are made by [`World::store`] have a short one. A `Controller` pauses with all its
    /// streams, by default for about a second; `Controller::trigger_backoff` sets that. Where one is
    /// [driven](World::drive), watches expire where events wait.
    pub fn with_relists(mut self) -> Self {
        self.relists = true;
        self
    }

    /// The reply to any write may be lost although the write took effect. Off unless said.
    pub fn with_lost_replies(mut self) -> Self {
        self.lost_replies = true;
        self
    }

    /// Promises that a pass depends on nothing but what it reads: what one pass has learnt, the next one knows only from
    /// the server and from caches. Then what follows from a state is explored once, by whatever way runs have come to it, and
    /// larger bounds can be exhausted.
    ///
    /// A state is all objects (but for events), what each stream shows and what waits in it, what the pass under way has been
    /// told, and how many steps disturbances have made. Names that are made up do not count: UIDs, resource
    /// versions but for their order, the namespace, names of `generateName`; nor do moments. Memory in the process does not
    /// count either, which is why it has to be promised; one run in sixteen that could have been ended is not, and must go the
    /// way of the other, or the check fails with [`ExploreError::StatesDiffer`](crate::explore::ExploreError::StatesDiffer).
    ///
    /// Without effect where restarts or relists are explored, which bring states of long ago back, and for a process that
    /// [drives](World::drive) a whole controller, whose queue is memory. Where a store is read without a
    /// [`Cache`](crate::lag::Cache), states are compared between passes alone.
    pub fn with_pure_passes(mut self) -> Self {
        self.pure_passes = true;
        self
    }

    /// Whether what follows from a state is explored once.
    pub(super) fn merges_states(&self) -> bool {
        self.pure_passes && !self.restarts && !self.relists
    }

    /// How many passes [`World::until_settled`] and [`World::drive`] make at most; 30 unless said. A run that has not settled by
    /// then violates the oracle [`BuiltIn::NoSpin`], if that is on.
    pub fn max_passes(mut self, passes: u32) -> Self {
        self.passes = passes;
        self
    }

    /// How long one run may take, wall clock; 60 s unless said. A run that takes longer is an error.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// What must not be so after any change of the server's state; see [`Oracles::never`].
    pub fn never<S: Sighting>(
        mut self,
        name: impl Into<String>,
        check: impl Fn(&Truth) -> S + Send + Sync + 'static,
    ) -> Self {
        self.oracles.never(name, check);
        self
    }

    /// What must be so after every change of the server's state; see [`Oracles::always`].
    pub fn always<C: Claim>(
        mut self,
        name: impl Into<String>,
        check: impl Fn(&Truth) -> C + Send + Sync + 'static,
    ) -> Self {
        self.oracles.always(name, check);
        self
    }

    /// What must be so at the end of a run; see [`Oracles::after_settle`].
    pub fn after_settle<C: Claim>(
        mut self,
        name: impl Into<String>,
        check: impl Fn(&Truth) -> C + Send + Sync + 'static,
    ) -> Self {
        self.oracles.after_settle(name, check);
        self
    }

    /// What the process must not write; see [`Oracles::never_write`].
    pub fn never_write<S: Sighting>(
        mut self,
        name: impl Into<String>,
        check: impl Fn(&RequestStep, &Truth) -> S + Send + Sync + 'static,
    ) -> Self {
        self.oracles.never_write(name, check);
        self
    }

    /// What must be so of every pass that has come to its end; see [`Oracles::each_pass`].
    pub fn each_pass<C: Claim>(
        mut self,
        name: impl Into<String>,
        check: impl Fn(&SeenPass<'_>) -> C + Send + Sync + 'static,
    ) -> Self {
        self.oracles.each_pass(name, check);
        self
    }

    /// Judges by this oracle of the library, which it does unless told not to.
    pub fn with(mut self, oracle: BuiltIn) -> Self {
        self.oracles.with(oracle);
        self
    }

    /// Does not judge by this oracle of the library.
    pub fn without(mut self, oracle: BuiltIn) -> Self {
        self.oracles.without(oracle);
        self
    }

    /// All oracles, for what has no method here.
    pub fn oracles(mut self, change: impl FnOnce(&mut Oracles)) -> Self {
        change(&mut self.oracles);
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scenario").field("name", &self.name).finish_non_exhaustive()
    }
}
