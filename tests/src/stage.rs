//! A stage: a plane, one node that is settled on it, and an operator whose passes the test calls.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, CustomResourceExt as _, ResourceExt as _};
use laggard::Plane;
use laggard::lag::{Lag, Requests, StreamSelector};
use laggard::plane::{BackendKind, Controller, PlaneBuilder};
use seinode_operator::api::{PlannedTask, SeiNode, SeiNodeStatus, TaskPlan, TaskStatus};
use seinode_operator::controller::{self, Context};
use seinode_operator::readers::{Cached, reflect};
use seinode_operator::settings::{Clock, Settings};
use seinode_operator::sidecar::{HttpSidecar, Sidecars};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::Sidecar;

/// The node on every stage.
pub const NODE: &str = "n0";

/// How long anything on a stage may take that a plane does in milliseconds.
const LIMIT: Duration = Duration::from_secs(30);

/// A plane with a node on it, and all that a test needs to act and to look.
///
/// Two clients: the operator's, over [`Lag`], and the test's own, which sees what is true.
pub struct Stage {
    /// Holds and releases the operator's caches, and knows what it has asked.
    pub lag: Lag,
    /// What a pass of the operator is given.
    pub context: Arc<Context>,
    /// The sidecar of the node.
    pub sidecar: Sidecar,
    /// The namespace that everything is in.
    pub namespace: String,
    client: Client,
    clock: Arc<AtomicI64>,
    changes: Arc<Notify>,
    /// The watches; aborted with the stage.
    watches: JoinSet<()>,
    plane: Arc<Plane>,
}

/// An assertion about a stale read did not hold: what was claimed, and everything that explains it.
///
/// A type of its own, so that a flip can tell that a test failed for the reason it should.
#[derive(Debug, thiserror::Error)]
#[error("{claim}\n{evidence}")]
pub struct StaleRead {
    claim: String,
    evidence: String,
}

impl Stage {
    /// A stage with a node that runs `v1` and needs nothing, on a plane of its own.
    ///
    /// # Errors
    ///
    /// If the plane does not come up or the node does not settle.
    pub async fn settled(backend: BackendKind) -> Result<Self> {
        let stage = Self::empty(backend).await?;
        stage.create_node("v1").await?;
        stage.converge().await.context("the node did not settle")?;
        Ok(stage)
    }

    /// A stage without a node.
    ///
    /// # Errors
    ///
    /// If the plane does not come up.
    pub async fn empty(backend: BackendKind) -> Result<Self> {
        Self::empty_on(Arc::new(Self::plane(backend).await?)).await
    }

    /// A plane as every stage needs it.
    ///
    /// # Errors
    ///
    /// If the plane does not come up.
    pub async fn plane(backend: BackendKind) -> Result<Plane> {
        Self::plane_from(Plane::builder().backend(backend)).await
    }

    /// The same, of a plane that is described so far.
    ///
    /// # Errors
    ///
    /// If the plane does not come up.
    pub async fn plane_from(builder: PlaneBuilder) -> Result<Plane> {
        trace();
        let plane = builder
            // The collector, too: on its resume the StatefulSet controller may hear that a pod is gone
            // before it hears that its set is, and make a pod for a set that is no more. Nobody
            // else removes that, and the next set of the name could not make its own.
            .controllers([Controller::StatefulSet, Controller::GarbageCollector])
            .crds([SeiNode::crd()])
            .start()
            .await?;
        Ok(plane)
    }

    /// A stage without a node, in a namespace of its own on a plane that others use too. Pausing the
    /// controllers pauses them for all.
    ///
    /// # Errors
    ///
    /// If the plane does not answer.
    pub async fn empty_on(plane: Arc<Plane>) -> Result<Self> {
        let namespace = plane.namespace("rollout").await?;
        Self::in_namespace(plane, namespace).await
    }

    /// A stage without a node, in a namespace that is there and empty.
    ///
    /// # Errors
    ///
    /// If the plane does not answer.
    pub async fn in_namespace(plane: Arc<Plane>, namespace: String) -> Result<Self> {
        let lag = Lag::over(plane.config())?;
        let sidecar = Sidecar::start().await?;
        let clock = Arc::new(AtomicI64::new(0));
        let offset = Arc::clone(&clock);
        let settings = Settings {
            api_timeout: Duration::from_secs(2),
            clock: Clock::new(move || {
                Timestamp::now() + SignedDuration::from_secs(offset.load(Ordering::SeqCst))
            }),
            ..Settings::default()
        };
        let cached_client = lag.client();
        let (nodes, feed_nodes) = reflect(Api::namespaced(cached_client.clone(), &namespace));
        let (sets, feed_sets) = reflect(Api::namespaced(cached_client.clone(), &namespace));
        let mut watches = JoinSet::new();
        // One after the other: the order of the streams is part of what a search repeats.
        watches.spawn(feed_nodes);
        lag.stream::<SeiNode>().opened().await?;
        watches.spawn(feed_sets);
        lag.stream::<StatefulSet>().opened().await?;
        let sidecars = Arc::new(Stub { url: sidecar.url(), settings: settings.clone() });
        let cached = Cached::new(nodes, sets);
        let context = Arc::new(Context::new(cached_client, cached, sidecars, settings));
        let client = plane.client()?;
        let changes = Arc::new(Notify::new());
        watches.spawn(notify::<Pod>(&client, &namespace, &changes));
        watches.spawn(notify::<StatefulSet>(&client, &namespace, &changes));
        watches.spawn(notify::<SeiNode>(&client, &namespace, &changes));
        Ok(Self { lag, context, sidecar, namespace, client, clock, changes, watches, plane })
    }

    /// Ends the plane, if nobody else uses it. (Dropping the stage does too.)
    ///
    /// # Errors
    ///
    /// If something of the plane could not be removed.
    pub async fn end(self) -> Result<()> {
        let Self { mut watches, plane, .. } = self;
        // First, or each of them reports that its server is gone.
        watches.shutdown().await;
        if let Some(plane) = Arc::into_inner(plane) {
            plane.stop().await?;
        }
        Ok(())
    }

    /// The operator's StatefulSet cache.
    pub fn sets(&self) -> StreamSelector<StatefulSet> {
        self.lag.stream::<StatefulSet>().in_namespace(&self.namespace)
    }

    /// An API of the test's own client, which sees what is true.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The test's own client, which sees what is true.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A second [`Lag`], whose clients act as somebody else.
    ///
    /// # Errors
    ///
    /// If the configuration cannot be used.
    pub fn lag_as(&self, user: &str) -> Result<Lag> {
        let mut config = self.plane.config();
        config.auth_info.impersonate = Some(user.to_owned());
        Ok(Lag::over(config)?)
    }

    /// Makes the node.
    ///
    /// # Errors
    ///
    /// If the API server refuses it.
    pub async fn create_node(&self, image: &str) -> Result<()> {
        let node = serde_json::from_value(json!({
            "metadata": { "name": NODE },
            "spec": { "chainId": "pacific-1", "image": image, "fullNode": {} },
        }))?;
        self.api::<SeiNode>().create(&PostParams::default(), &node).await?;
        Ok(())
    }

    /// Asks for another image.
    ///
    /// # Errors
    ///
    /// If the API server refuses it.
    pub async fn set_image(&self, image: &str) -> Result<()> {
        let patch = Patch::Merge(json!({ "spec": { "image": image } }));
        self.api::<SeiNode>().patch(NODE, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Writes a plan into the node's status by hand, in place of the planner.
    ///
    /// # Errors
    ///
    /// If the API server refuses it.
    pub async fn install_plan(&self, plan: &TaskPlan) -> Result<()> {
        let patch = Patch::Merge(json!({ "status": { "plan": plan } }));
        self.api::<SeiNode>().patch_status(NODE, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Stops the StatefulSet controller in its tracks.
    ///
    /// # Errors
    ///
    /// If it cannot be stopped.
    pub async fn pause(&self) -> Result<()> {
        Ok(self.plane.pause_controllers().await?)
    }

    /// Lets the StatefulSet controller go on.
    ///
    /// # Errors
    ///
    /// If it cannot.
    pub async fn resume(&self) -> Result<()> {
        Ok(self.plane.resume_controllers().await?)
    }

    /// Asks for another image with the StatefulSet controller paused, and passes until the plan has
    /// applied it and waits in replace-pod.
    ///
    /// # Errors
    ///
    /// If a pass fails.
    pub async fn apply_paused(&self, image: &str) -> Result<()> {
        self.pause().await?;
        self.set_image(image).await?;
        self.pass().await?; // writes the plan down
        self.pass().await?;
        Ok(())
    }

    /// Passes until replace-pod is complete, with nobody who starts the new pod.
    ///
    /// # Errors
    ///
    /// As [`passes_until`](Self::passes_until).
    pub async fn replace_pod(&self) -> Result<()> {
        let replaced = |node: &SeiNode| {
            let plan = node.status_or_default().plan;
            plan.is_some_and(|plan| {
                plan.tasks.iter().any(|task| task.kind == "replace-pod" && is_complete(task))
            })
        };
        self.passes_until("replace-pod to be complete", replaced, Kubelet::Absent).await
    }

    /// Moves the operator's clock ahead.
    pub fn advance(&self, by: Duration) {
        let seconds = i64::try_from(by.as_secs()).unwrap_or(i64::MAX);
        self.clock.fetch_add(seconds, Ordering::SeqCst);
    }

    /// One pass of the operator over the node as its cache shows it; the cache of nodes is let
    /// catch up first, since a pass on an old copy loses by its optimistic lock.
    ///
    /// # Errors
    ///
    /// What the pass returns.
    pub async fn pass(&self) -> Result<Action> {
        if let Some(node) = self.api::<SeiNode>().get_opt(NODE).await? {
            let version = node.resource_version().context("a node without resource version")?;
            self.lag.stream::<SeiNode>().shown(&version).await?;
        }
        self.pass_as_cached().await
    }

    /// One pass of the operator over the node as its cache shows it, however old that is.
    ///
    /// # Errors
    ///
    /// What the pass returns; and if it wrote the status more than once (S12).
    pub async fn pass_as_cached(&self) -> Result<Action> {
        let begin = self.lag.mark();
        let result = controller::pass(&self.context, &self.namespace, NODE).await;
        let writes = Requests::patch::<SeiNode>().subresource("status");
        let requests = self.lag.requests_since(begin);
        ensure!(requests.count(&writes) <= 1, "more than one status patch in a pass\n{requests}");
        Ok(result?)
    }

    /// Passes until the node runs the image it asks for and has no plan, with the kubelet played.
    ///
    /// # Errors
    ///
    /// If it does not get there within 30 s; the error has the node's status.
    pub async fn converge(&self) -> Result<()> {
        let settled = |node: &SeiNode| {
            let status = node.status_or_default();
            status.plan.is_none() && status.current_image.as_ref() == Some(&node.spec.image)
        };
        self.passes_until("the node to be settled", settled, Kubelet::Plays).await
    }

    /// Passes until the node is as wanted.
    ///
    /// # Errors
    ///
    /// If it does not get there within 30 s; the error has the node's status.
    pub async fn passes_until(
        &self,
        what: &str,
        wanted: impl Fn(&SeiNode) -> bool,
        kubelet: Kubelet,
    ) -> Result<()> {
        let go = async {
            loop {
                // Registered before anything is looked at, so that no change falls in between.
                let changed = self.changes.notified();
                if kubelet == Kubelet::Plays {
                    self.play_kubelet().await?;
                }
                let action = self.pass().await?;
                if wanted(&self.node().await?) {
                    return Ok(());
                }
                let at_once = Action::requeue(self.context.settings.immediately);
                if action != at_once {
                    changed.await;
                }
            }
        };
        match tokio::time::timeout(LIMIT, go).await {
            Ok(result) => result,
            Err(_) => {
                let status = serde_json::to_string_pretty(&self.status().await?)?;
                let set = serde_json::to_string(&self.api::<StatefulSet>().get_opt(NODE).await?)?;
                let pod = serde_json::to_string(&self.pod().await?)?;
                bail!(
                    "waited {LIMIT:?} for {what}; the node's status is {status}\nits StatefulSet is \
                     {set}\nits pod is {pod}\n{}",
                    self.lag
                )
            }
        }
    }

    /// Waits, with the kubelet played, until the node runs this image and has no plan: for an
    /// operator that makes its passes by itself.
    ///
    /// # Errors
    ///
    /// If it does not get there within 30 s; the error has the node's status.
    pub async fn reaches(&self, image: &str) -> Result<()> {
        let reached = self.until(async || {
            self.play_kubelet().await?;
            let status = self.status().await?;
            let there = status.current_image.as_deref() == Some(image) && status.plan.is_none();
            Ok(there.then_some(()))
        });
        match reached.await? {
            Some(()) => Ok(()),
            None => bail!("waited {LIMIT:?} for {image}; the node is {:?}", self.node().await?),
        }
    }

    /// Waits until there is no node any more.
    ///
    /// # Errors
    ///
    /// If there still is one after 30 s.
    pub async fn node_gone(&self) -> Result<()> {
        let gone = self
            .until(async || Ok(self.api::<SeiNode>().get_opt(NODE).await?.is_none().then_some(())));
        match gone.await? {
            Some(()) => Ok(()),
            None => bail!("waited {LIMIT:?} for its end; the node is {:?}", self.node().await?),
        }
    }

    /// Looks now and after every change, until there is an answer; `None` after the limit.
    async fn until<T>(
        &self,
        mut look: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let wait = async {
            loop {
                // Registered before anything is looked at, so that no change falls in between.
                let changed = self.changes.notified();
                if let Some(found) = look().await? {
                    return Ok(Some(found));
                }
                changed.await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.unwrap_or(Ok(None))
    }

    /// Waits for the true StatefulSet to be as wanted.
    ///
    /// # Errors
    ///
    /// If it is not within 30 s; the error has the last one seen.
    pub async fn set_until(
        &self,
        what: &str,
        wanted: impl Fn(&StatefulSet) -> bool,
    ) -> Result<StatefulSet> {
        let mut last = None;
        let found = self.until(async || {
            last = self.api::<StatefulSet>().get_opt(NODE).await?;
            Ok(last.clone().filter(&wanted))
        });
        let found = found.await?;
        found.with_context(|| format!("waited {LIMIT:?} for {what}; the StatefulSet is {last:?}"))
    }

    /// Waits for the true StatefulSet's controller to have observed it and rolled `updated` pods.
    ///
    /// # Errors
    ///
    /// As [`set_until`](Self::set_until).
    pub async fn observed(&self, updated: i32) -> Result<StatefulSet> {
        let what = format!("the StatefulSet to be observed with {updated} updated");
        self.set_until(&what, |set| {
            set.status.as_ref().is_some_and(|status| {
                status.observed_generation == set.metadata.generation
                    && status.updated_replicas.unwrap_or(0) == updated
            })
        })
        .await
    }

    /// Waits for the node's pod, another one than `but_not` if that is given.
    ///
    /// # Errors
    ///
    /// If there is none within 30 s.
    pub async fn pod_until(&self, but_not: Option<&str>) -> Result<Pod> {
        let other = |pod: &Pod| pod.uid().as_deref() != but_not;
        let found = self.until(async || Ok(self.pod().await?.filter(other))).await?;
        found.with_context(|| format!("waited {LIMIT:?} for a pod other than {but_not:?}"))
    }

    /// Says of the pod, if it is there and not started, what a kubelet would: that `seid` runs.
    ///
    /// It does not say Ready, which on some versions would promote `currentRevision`.
    ///
    /// # Errors
    ///
    /// If the API server refuses it.
    pub async fn play_kubelet(&self) -> Result<()> {
        if let Some(pod) = self.pod().await?
            && pod.status.as_ref().is_none_or(|status| status.container_statuses.is_none())
        {
            self.report_container(json!({ "running": {} })).await?;
        }
        Ok(())
    }

    /// Says of the pod's container what a kubelet would.
    ///
    /// # Errors
    ///
    /// If the API server refuses it.
    pub async fn report_container(&self, state: serde_json::Value) -> Result<()> {
        let status = json!({ "status": { "containerStatuses": [{
            "name": "seid", "image": "rewritten-by-the-runtime", "imageID": "", "ready": false,
            "restartCount": 0, "state": state,
        }] } });
        let name = format!("{NODE}-0");
        let pods = self.api::<Pod>();
        pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await?;
        Ok(())
    }

    /// Deletes the StatefulSet from outside. What it leaves behind is for the garbage collector.
    ///
    /// # Errors
    ///
    /// If the API server refuses it.
    pub async fn delete_set(&self) -> Result<()> {
        self.api::<StatefulSet>().delete(NODE, &DeleteParams::background()).await?;
        Ok(())
    }

    /// The true node.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub async fn node(&self) -> Result<SeiNode> {
        Ok(self.api::<SeiNode>().get(NODE).await?)
    }

    /// The true node's status.
    ///
    /// # Errors
    ///
    /// If there is no node.
    pub async fn status(&self) -> Result<SeiNodeStatus> {
        Ok(self.node().await?.status_or_default())
    }

    /// A task of the true node's plan.
    ///
    /// # Errors
    ///
    /// If there is no such task.
    pub async fn task(&self, kind: &str) -> Result<PlannedTask> {
        let status = self.status().await?;
        let plan = status.plan.with_context(|| format!("no plan, so no task {kind}"))?;
        let task = plan.tasks.into_iter().find(|task| task.kind == kind);
        task.with_context(|| format!("the plan has no task {kind}"))
    }

    /// The true StatefulSet.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub async fn set(&self) -> Result<StatefulSet> {
        Ok(self.api::<StatefulSet>().get(NODE).await?)
    }

    /// The true pod of the node.
    ///
    /// # Errors
    ///
    /// If it cannot be asked for.
    pub async fn pod(&self) -> Result<Option<Pod>> {
        Ok(self.api::<Pod>().get_opt(&format!("{NODE}-0")).await?)
    }

    /// How many pods the operator has asked to be deleted.
    #[must_use]
    pub fn deletes(&self) -> usize {
        self.lag.requests().count(&Requests::delete::<Pod>())
    }

    /// Makes sure that the operator's StatefulSet cache really is behind the truth: a test of lag
    /// that has none would prove nothing.
    ///
    /// # Errors
    ///
    /// If it is not.
    pub async fn cache_is_behind(&self) -> Result<()> {
        let live = self.set().await?;
        let version = live.resource_version().context("a StatefulSet without resource version")?;
        self.sets().received(&version).await?;
        let cached: StatefulSet = self
            .context
            .cached
            .get(&self.namespace, NODE)
            .await
            .context("the cache should show the old StatefulSet")?;
        ensure!(self.sets().behind()? > 0, "no event is held: the cache is not behind");
        ensure!(
            cached.metadata.generation < live.metadata.generation,
            "the cache shows generation {:?}, the API server {:?}: it is not behind",
            cached.metadata.generation,
            live.metadata.generation
        );
        Ok(())
    }

    /// An assertion about what a stale read must not do. Its failure shows what the operator asked,
    /// what it was shown, and how far its cache was behind.
    ///
    /// # Errors
    ///
    /// [`StaleRead`] if the claim does not hold.
    pub fn claim(&self, holds: bool, claim: impl fmt::Display) -> Result<()> {
        if holds {
            return Ok(());
        }
        let behind = match self.sets().behind() {
            Ok(events) => format!("{events} events behind"),
            Err(error) => error.to_string(),
        };
        let shown = match self.sets().view() {
            Ok(sets) => {
                let set = |set: &StatefulSet| {
                    format!(
                        "generation {:?} at resource version {}",
                        set.metadata.generation.unwrap_or_default(),
                        set.resource_version().unwrap_or_default()
                    )
                };
                sets.iter().map(set).collect::<Vec<_>>().join(", ")
            }
            Err(error) => error.to_string(),
        };
        let evidence = format!(
            "  the StatefulSet cache was {behind}; it shows {shown}\n  the operator asked:\n{}",
            self.lag.requests()
        );
        Err(StaleRead { claim: claim.to_string(), evidence }.into())
    }
}

/// Whether somebody says of new pods that their container runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kubelet {
    /// Each new pod is reported as started.
    Plays,
    /// Nobody does.
    Absent,
}

/// Whether a task has come to an end.
#[must_use]
pub fn is_complete(task: &PlannedTask) -> bool {
    task.status == TaskStatus::Complete
}

/// Sends the operator to the stage's sidecar.
#[derive(Debug)]
struct Stub {
    url: String,
    settings: Settings,
}

impl Sidecars for Stub {
    fn of(&self, _: &SeiNode) -> Box<dyn seinode_operator::sidecar::Sidecar> {
        Box::new(HttpSidecar::new(self.url.clone(), &self.settings))
    }
}

/// Wakes whoever waits for a change of some kind.
fn notify<K>(
    client: &Client,
    namespace: &str,
    changes: &Arc<Notify>,
) -> impl Future<Output = ()> + Send + 'static
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let changes = Arc::clone(changes);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    events.for_each(move |_| {
        changes.notify_waiters();
        // For a waiter that is between looking and waiting.
        changes.notify_one();
        std::future::ready(())
    })
}

/// Lets the operator's spans through, whatever `RUST_LOG` says: by them the harness knows whose a
/// request is.
fn trace() {
    // Another test of this process, or the demo, may have been first.
    let _ = tracing_subscriber::fmt().with_env_filter(filter()).with_test_writer().try_init();
}

/// The same without a word on the terminal, unless `RUST_LOG` asks for one; for the demo.
pub fn trace_silently() {
    if std::env::var_os("RUST_LOG").is_none() {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter())
            .with_writer(std::io::sink)
            .try_init();
    }
}

fn filter() -> tracing_subscriber::EnvFilter {
    use tracing_subscriber::EnvFilter;
    let operator = "seinode_operator=info".parse().expect("a constant directive");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    filter.add_directive(operator)
}
