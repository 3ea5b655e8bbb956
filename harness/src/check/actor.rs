//! Somebody else who acts while the process under test runs.

use std::{collections::BTreeSet, fmt, sync::Arc};

use futures::future::BoxFuture;
use kube::{Api, Client, Resource, core::NamespaceResourceScope};

use super::{scenario::BoxError, truth::Truth};

/// What an actor does next: made when it is wanted, and awaited if the schedule says so.
pub type Step = BoxFuture<'static, Result<(), BoxError>>;

type Next = Arc<dyn Fn(&Truth, &Acting) -> Option<Step> + Send + Sync>;

/// Another controller, the kubelet, or a person.
///
/// It is asked for its next step by the true state of the world, and its step is committed at any point that
/// the search likes: before the reply to any request of the process, and between passes. It is asked again when it has
/// made that step, or when something has changed in a resource that it looked at; it must not decide by anything else.
///
/// ```
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use kube::api::DeleteParams;
/// use laggard::check::Actor;
///
/// let vandal = Actor::disturbance("deletion from outside", |truth, acting| {
///     truth.get::<ConfigMap>("settings")?;
///     let maps = acting.api::<ConfigMap>();
///     Some(Box::pin(async move {
///         maps.delete("settings", &DeleteParams::default()).await?;
///         Ok(())
///     }))
/// });
/// assert_eq!(vandal.name(), "deletion from outside");
/// ```
#[derive(Clone)]
#[must_use]
pub struct Actor {
    name: String,
    next: Next,
    at_most: Option<usize>,
    by_itself: bool,
    placed: bool,
    writes: Option<BTreeSet<String>>,
}

impl Actor {
    /// One who has work to do, and does it sooner or later, such as a controller: at the latest between two passes of
    /// which the first changed nothing.
    pub fn new(
        name: impl Into<String>,
        next: impl Fn(&Truth, &Acting) -> Option<Step> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            next: Arc::new(next),
            at_most: None,
            by_itself: true,
            placed: true,
            writes: None,
        }
    }

    /// One who acts once or never, such as a person who deletes something.
    pub fn disturbance(
        name: impl Into<String>,
        next: impl Fn(&Truth, &Acting) -> Option<Step> + Send + Sync + 'static,
    ) -> Self {
        Self { at_most: Some(1), by_itself: false, ..Self::new(name, next) }
    }

    /// Acts between two passes, all that there is to do, and at no other moment: its steps are none of the choices of the
    /// search. For somebody who must be there, and whose timing is not in question.
    pub fn between_passes(mut self) -> Self {
        self.placed = false;
        self
    }

    /// Makes at most so many steps in a run.
    pub fn at_most(mut self, steps: usize) -> Self {
        self.at_most = Some(steps);
        self
    }

    /// Writes objects of `K`, and, apart from what other calls of this say, no others.
    ///
    /// Not needed, and good to say of a disturbance: what writes where nobody looks need not be tried at every
    /// moment. A step that writes anything else is an error of the scenario.
    pub fn writing<K: Resource<DynamicType = ()>>(mut self) -> Self {
        let (group, plural) = (K::group(&()), K::plural(&()));
        let resource =
            if group.is_empty() { plural.to_string() } else { format!("{plural}.{group}") };
        self.writes.get_or_insert_default().insert(resource);
        self
    }

    pub(super) fn declared(&self) -> Option<&BTreeSet<String>> {
        self.writes.as_ref()
    }

    /// What it is called in tokens and texts.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the search chooses when it acts.
    pub(super) fn is_placed(&self) -> bool {
        self.placed
    }

    /// Whether it matters how many steps it has made.
    pub(super) fn is_limited(&self) -> bool {
        self.at_most.is_some()
    }

    pub(super) fn acts_by_itself(&self) -> bool {
        self.by_itself
    }

    /// Its next step, if it has one after `made` steps.
    pub(super) fn next(&self, made: usize, truth: &Truth, acting: &Acting) -> Option<Step> {
        if self.at_most.is_some_and(|most| made >= most) {
            return None;
        }
        (self.next)(truth, acting)
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Actor")
            .field("name", &self.name)
            .field("at_most", &self.at_most)
            .field("by_itself", &self.by_itself)
            .finish_non_exhaustive()
    }
}

/// What an actor acts with.
#[derive(Clone)]
pub struct Acting {
    pub(super) client: Client,
    pub(super) namespace: String,
}

impl Acting {
    /// A client whose writes are part of the run, as done by this actor.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace of the world.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The objects of this kind in the world.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl fmt::Debug for Acting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acting").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
