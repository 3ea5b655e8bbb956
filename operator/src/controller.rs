//! The pass over one node, and the controller around it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{self, Action};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{Controller, watcher};
use kube::{Client, Resource as _, ResourceExt as _};
use tracing::Instrument as _;

use crate::api::{FINALIZER, Phase, PlanPhase, SeiNode, SeiNodeStatus};
use crate::plan::Class;
use crate::plan::executor::{self, Run};
use crate::plan::planner::{self, Resolution};
use crate::readers::{Cached, Live, ReadError, reflect, within};
use crate::settings::Settings;
use crate::sidecar::{Health, Sidecars};
use crate::status::{SIDECAR_READY, Statement, condition, enter, patch, state};

/// Who reports events.
const REPORTER: &str = "seinode-controller";

/// The first delay after a pass that failed; each further one doubles it.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);

/// No delay is longer.
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// Everything a pass needs.
#[derive(Clone)]
pub struct Context {
    /// Reads from the API server: what is true now.
    pub live: Live,
    /// Reads from the watch cache: what has been shown.
    pub cached: Cached,
    /// For writes.
    pub client: Client,
    /// Makes the clients of sidecars.
    pub sidecars: Arc<dyn Sidecars>,
    /// Intervals, limits, the clock.
    pub settings: Settings,
    recorder: Recorder,
    failures: Arc<Mutex<HashMap<String, u32>>>,
}

impl Context {
    /// The one way to make one, for the binary and for tests.
    #[must_use]
    pub fn new(
        client: Client,
        cached: Cached,
        sidecars: Arc<dyn Sidecars>,
        settings: Settings,
    ) -> Self {
        let reporter = Reporter { controller: REPORTER.to_owned(), instance: None };
        Self {
            live: Live::new(client.clone(), settings.api_timeout),
            cached,
            recorder: Recorder::new(client.clone(), reporter),
            client,
            sidecars,
            settings,
            failures: Arc::default(),
        }
    }

    /// Events of one reason and action are counted as one, under the text of the first: so the
    /// action has to tell apart what is not the same.
    async fn report(
        &self,
        node: &SeiNode,
        type_: EventType,
        (reason, action): (&str, String),
        note: String,
    ) {
        let event =
            Event { type_, reason: reason.to_owned(), note: Some(note), action, secondary: None };
        let reference = node.object_ref(&());
        let publish = self.recorder.publish(&event, &reference);
        let publish = publish.instrument(tracing::info_span!("event"));
        match tokio::time::timeout(self.settings.api_timeout, publish).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, reason, "an event could not be reported"),
            Err(_) => tracing::warn!(reason, "an event could not be reported in time"),
        }
    }
}

/// A pass that could not be carried through; it is tried again.
#[derive(Debug, thiserror::Error)]
#[error("failed to {attempt}")]
pub struct Error {
    attempt: &'static str,
    #[source]
    source: ReadError,
}

impl Error {
    fn to(attempt: &'static str) -> impl FnOnce(ReadError) -> Self {
        move |source| Self { attempt, source }
    }
}

/// Runs the controller until the process is asked to stop.
pub async fn run(client: Client, sidecars: Arc<dyn Sidecars>, settings: Settings) {
    let nodes: Api<SeiNode> = Api::all(client.clone());
    let stateful_sets: Api<StatefulSet> = Api::all(client.clone());
    let (sets, fed) = reflect(stateful_sets.clone());
    tokio::spawn(fed);
    let controller = Controller::new(nodes, watcher::Config::default());
    let cached = Cached::new(controller.store(), sets);
    let context = Arc::new(Context::new(client.clone(), cached, sidecars, settings));
    controller
        // The original's: one node after the other.
        .with_config(controller::Config::default().concurrency(1))
        .owns(stateful_sets, watcher::Config::default())
        .owns(Api::<Service>::all(client.clone()), watcher::Config::default())
        .owns(Api::<PersistentVolumeClaim>::all(client), watcher::Config::default())
        .shutdown_on_signal()
        .run(reconcile, back_off, context)
        .for_each(|result| {
            match result {
                Ok((node, action)) => tracing::debug!(%node, ?action, "pass"),
                Err(error) => tracing::warn!(%error, "pass"),
            }
            std::future::ready(())
        })
        .await;
}

/// One pass over a node that the cache shows under this name; nothing if it shows none.
///
/// # Errors
///
/// As [`reconcile`].
pub async fn pass(context: &Arc<Context>, namespace: &str, name: &str) -> Result<Action, Error> {
    match context.cached.get::<SeiNode>(namespace, name).await {
        Ok(node) => reconcile(Arc::new(node), Arc::clone(context)).await,
        Err(_) => Ok(Action::await_change()),
    }
}

/// One pass over a node: resolves its plan, runs it as far as it goes, writes the status once.
///
/// # Errors
///
/// If the API server refuses what the pass itself writes, a stale copy of the node included: the
/// status is written under an optimistic lock.
pub async fn reconcile(node: Arc<SeiNode>, context: Arc<Context>) -> Result<Action, Error> {
    let action = Pass { context: &context }.over(&node).await?;
    let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
    failures.remove(&key(&node));
    Ok(action)
}

/// What the queue of the original does by itself: the delay of a node doubles with each failure.
fn back_off(node: Arc<SeiNode>, _: &Error, context: Arc<Context>) -> Action {
    let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let count = failures.entry(key(&node)).or_default();
    let delay = FIRST_BACKOFF.saturating_mul(1 << (*count).min(20)).min(LONGEST_BACKOFF);
    *count = count.saturating_add(1);
    Action::requeue(delay)
}

fn key(node: &SeiNode) -> String {
    format!("{}/{}", node.namespace().unwrap_or_default(), node.name_any())
}

struct Pass<'a> {
    context: &'a Context,
}

impl Pass<'_> {
    async fn over(&self, node: &SeiNode) -> Result<Action, Error> {
        if node.metadata.deletion_timestamp.is_some() {
            return self.let_go(node).await;
        }
        // Before the status is looked at: the write changes the resource version.
        let node = self.with_finalizer(node).await?;
        let before = node.status_or_default();
        if before.phase == Some(Phase::Failed) {
            return Ok(Action::await_change());
        }
        let mut status = before.clone();
        if before.plan.as_ref().is_some_and(|plan| plan.phase == PlanPhase::Active)
            && !self.is_current(&node).await?
        {
            return Ok(Action::requeue(self.context.settings.immediately));
        }
        let sidecar = self.context.sidecars.of(&node);
        if before.phase == Some(Phase::Running) {
            self.note_health(&node, &mut status, sidecar.health().await);
        }
        let resolution = planner::resolve(&node, &mut status, &self.now());
        let run = match resolution {
            Resolution::Resume => {
                Some(executor::run(self.context, &node, &mut status, sidecar.as_ref()).await)
            }
            _ => None,
        };
        self.flush(&node, &before, &status).await?;
        self.report(&node, &before, &status, run.as_ref()).await;
        Ok(Action::requeue(self.look_again(&status, &resolution, run)))
    }

    /// Whether the node that this pass was given is the one that the API server has.
    ///
    /// It came from the cache. A pass over an old copy would do again what is done, side effects included, and
    /// only then lose by its optimistic lock.
    async fn is_current(&self, node: &SeiNode) -> Result<bool, Error> {
        let (namespace, name) = (node.namespace().unwrap_or_default(), node.name_any());
        let read = self.context.live.get::<SeiNode>(&namespace, &name);
        let current = match read.instrument(tracing::info_span!("current")).await {
            Ok(current) => current,
            Err(ReadError::Missing) => return Ok(false),
            Err(error) => return Err(Error::to("get the node whose plan is to go on")(error)),
        };
        let same = current.uid() == node.uid()
            && current.resource_version() == node.resource_version()
            && current.metadata.deletion_timestamp == node.metadata.deletion_timestamp;
        if !same {
            tracing::info!(node = %name, "the cache shows an old copy; looking again");
        }
        Ok(same)
    }

    fn now(&self) -> Time {
        self.context.settings.clock.now()
    }

    fn look_again(
        &self,
        status: &SeiNodeStatus,
        resolution: &Resolution,
        run: Option<Run>,
    ) -> Duration {
        let settings = &self.context.settings;
        match (resolution, run) {
            (Resolution::Built, _) => settings.immediately,
            (Resolution::HoldOff(rest), _) => *rest,
            (_, Some(Run::Again(after))) => after,
            (_, Some(Run::Failed { .. })) => match &status.hold_off_until {
                Some(_) => settings.hold_off,
                None => settings.steady_state,
            },
            (_, None) => settings.steady_state,
        }
    }

    fn note_health(&self, node: &SeiNode, status: &mut SeiNodeStatus, health: Health) {
        let (value, reason, message) = match health {
            Health::Ready => ("True", "Ready", "the sidecar is ready"),
            Health::NotReady => ("False", "NotReady", "the sidecar says that it is not ready"),
            Health::Unreachable => ("Unknown", "Unreachable", "the sidecar gave no answer"),
        };
        let message = message.to_owned();
        let statement = Statement { kind: SIDECAR_READY, status: value, reason, message };
        state(status, node.metadata.generation.unwrap_or_default(), &self.now(), statement);
    }

    async fn with_finalizer(&self, node: &SeiNode) -> Result<SeiNode, Error> {
        if node.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(node.clone());
        }
        let mut node = node.clone();
        node.finalizers_mut().push(FINALIZER.to_owned());
        self.replace(&node).await.map_err(Error::to("add the finalizer"))
    }

    async fn replace(&self, node: &SeiNode) -> Result<SeiNode, ReadError> {
        let name = node.name_any();
        let nodes = self.nodes(node);
        let params = PostParams::default();
        let replace = nodes.replace(&name, &params, node);
        let replace = replace.instrument(tracing::info_span!("finalizer"));
        within(self.context.settings.api_timeout, replace).await
    }

    /// The only place that writes a status: one merge patch, and none if nothing has changed.
    async fn flush(
        &self,
        node: &SeiNode,
        before: &SeiNodeStatus,
        after: &SeiNodeStatus,
    ) -> Result<(), Error> {
        let version = node.resource_version().unwrap_or_default();
        let Some(body) = patch(before, after, &version) else { return Ok(()) };
        let name = node.name_any();
        let nodes = self.nodes(node);
        let (params, body) = (PatchParams::default(), Patch::Merge(body));
        let write = nodes.patch_status(&name, &params, &body);
        let write = write.instrument(tracing::info_span!("status"));
        within(self.context.settings.api_timeout, write)
            .await
            .map(|_| ())
            .map_err(Error::to("write the status"))
    }

    /// Tells people what has changed, after it was written down.
    async fn report(
        &self,
        node: &SeiNode,
        before: &SeiNodeStatus,
        after: &SeiNodeStatus,
        run: Option<&Run>,
    ) {
        if let Some(Run::Failed { message }) = run {
            let plan = after.plan.as_ref();
            if plan.map(Class::of) != Some(Class::Init) {
                let action = plan.map_or_else(String::new, |plan| plan.id.clone());
                let what = ("NodeUpdateFailed", action);
                self.context.report(node, EventType::Warning, what, message.clone()).await;
            }
        }
        if before.phase != after.phase
            && let Some(phase) = after.phase
        {
            let from = before.phase.map_or_else(|| "none".to_owned(), |phase| phase.to_string());
            let note = format!("phase {from} -> {phase}");
            let what = ("PhaseTransition", phase.to_string());
            self.context.report(node, EventType::Normal, what, note).await;
            if phase == Phase::Failed {
                let plan = after.plan.as_ref().filter(|plan| plan.phase == PlanPhase::Failed);
                let detail = plan.and_then(|plan| plan.failed_task_detail.as_ref());
                let note = detail.map_or_else(String::new, |detail| {
                    format!("task {}: {}", detail.kind, detail.error)
                });
                let action = plan.map_or_else(String::new, |plan| plan.id.clone());
                self.context.report(node, EventType::Warning, ("NodeFailed", action), note).await;
            }
        }
        let ready = |status: &SeiNodeStatus| {
            condition(status, SIDECAR_READY).map(|condition| condition.status == "True")
        };
        match (ready(before), ready(after)) {
            (Some(true), Some(false)) => {
                let note = "the sidecar is no longer ready".to_owned();
                let what = ("SidecarReadinessLost", "Probe".to_owned());
                self.context.report(node, EventType::Warning, what, note).await;
            }
            (Some(false), Some(true)) => {
                let note = "the sidecar is ready again".to_owned();
                let what = ("SidecarReadinessRestored", "Probe".to_owned());
                self.context.report(node, EventType::Normal, what, note).await;
            }
            _ => {}
        }
    }

    /// What is left to do for a node that is being deleted.
    async fn let_go(&self, node: &SeiNode) -> Result<Action, Error> {
        if !node.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(Action::await_change());
        }
        let before = node.status_or_default();
        let mut after = before.clone();
        enter(&mut after, Phase::Terminating, &self.now());
        self.flush(node, &before, &after).await?;
        let imported = node.spec.data_volume.as_ref().is_some_and(|data| data.import.is_some());
        if !imported {
            self.delete_data(node).await?;
        }
        // The patch above has changed the resource version, so remove it from what is there now.
        let namespace = node.namespace().unwrap_or_default();
        let current = match self.context.live.get::<SeiNode>(&namespace, &node.name_any()).await {
            Ok(current) => current,
            Err(ReadError::Missing) => return Ok(Action::await_change()),
            Err(error) => return Err(Error::to("get the node that is being deleted")(error)),
        };
        let mut current = current;
        current.finalizers_mut().retain(|finalizer| finalizer != FINALIZER);
        match self.replace(&current).await {
            Ok(_) | Err(ReadError::Missing) => Ok(Action::await_change()),
            Err(error) => Err(Error::to("remove the finalizer")(error)),
        }
    }

    async fn delete_data(&self, node: &SeiNode) -> Result<(), Error> {
        let namespace = node.namespace().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.context.client.clone(), &namespace);
        let (name, params) = (node.data_claim(), DeleteParams::default());
        let deleted =
            within(self.context.settings.api_timeout, claims.delete(&name, &params)).await;
        match deleted {
            Ok(_) | Err(ReadError::Missing) => Ok(()),
            Err(error) => Err(Error::to("delete the data of the node")(error)),
        }
    }

    fn nodes(&self, node: &SeiNode) -> Api<SeiNode> {
        let namespace = node.namespace().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), &namespace)
    }
}
