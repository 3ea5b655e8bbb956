//! The tasks of a plan, a file each. A task is told everything, does its one thing, and returns an
//! outcome; it writes no status.

mod apply_service;
mod apply_stateful_set;
mod mark_ready;
mod observe_image;
mod replace_pod;
pub mod rollout;

pub use apply_service::render as render_service;
pub use apply_stateful_set::render as render_stateful_set;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::ResourceExt as _;
use tracing::Instrument as _;

use crate::api::{Applied, PlannedTask, SeiNode, Target};
use crate::readers::{Cached, Live, ReadError};
use crate::settings::Settings;
use crate::sidecar::Sidecar;
use rollout::Container;

/// The field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "seinode-controller";

/// Which task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Applies the node's StatefulSet.
    ApplyStatefulSet,
    /// Applies the node's Service.
    ApplyService,
    /// Deletes the pod that is not at the StatefulSet's update revision.
    ReplacePod,
    /// Waits until the target image was started, and reports it.
    ObserveImage,
    /// Tells the sidecar that the node may serve.
    MarkReady,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::ApplyStatefulSet,
        Self::ApplyService,
        Self::ReplacePod,
        Self::ObserveImage,
        Self::MarkReady,
    ];

    /// Its name in a plan, and the name of the tracing span that it runs in.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ApplyStatefulSet => "apply-statefulset",
            Self::ApplyService => "apply-service",
            Self::ReplacePod => "replace-pod",
            Self::ObserveImage => "observe-image",
            Self::MarkReady => "mark-ready",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// How often it may fail and be tried again.
    #[must_use]
    pub fn max_retries(self) -> i32 {
        if self == Self::ReplacePod { 3 } else { 0 }
    }
}

/// What a task is given.
#[derive(Clone)]
pub struct Input<'a> {
    /// The node, as this pass has it.
    pub node: &'a SeiNode,
    /// Reads from the API server.
    pub live: &'a Live,
    /// Reads from the watch cache.
    pub cached: &'a Cached,
    /// For writes.
    pub client: &'a Client,
    /// The node's sidecar.
    pub sidecar: &'a dyn Sidecar,
    /// Limits and images.
    pub settings: &'a Settings,
    /// The task itself.
    pub task: &'a PlannedTask,
    /// What the plan rolls out.
    pub target: Option<&'a Target>,
    /// What the API server answered when this plan applied the StatefulSet.
    pub applied: Option<&'a Applied>,
    /// Whether this is a node's first plan, which never ends because of something that may pass.
    pub initial: bool,
}

impl Input<'_> {
    fn namespace(&self) -> String {
        self.node.namespace().unwrap_or_default()
    }

    fn name(&self) -> String {
        self.node.name_any()
    }

    /// The image to roll out: what the plan pinned, never the spec of the day.
    fn target_image(&self) -> &str {
        self.target.map_or(&self.node.spec.image, |target| &target.image)
    }
}

/// How a task came out.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Done.
    Complete(Report),
    /// Not yet; nothing is wrong.
    Waiting {
        /// What is being waited for.
        until: String,
        /// When to look again.
        look_again: LookAgain,
        /// What is known meanwhile.
        report: Report,
    },
    /// It failed, and may work the next time.
    Transient(String),
    /// It failed, and the plan with it.
    Terminal(String),
}

impl Outcome {
    fn waiting(until: impl Into<String>) -> Self {
        Self::Waiting {
            until: until.into(),
            look_again: LookAgain::Later,
            report: Report::default(),
        }
    }

    fn complete() -> Self {
        Self::Complete(Report::default())
    }
}

/// When a task that waits is looked at again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LookAgain {
    /// At once, in a pass of its own.
    AtOnce,
    /// After the poll interval, or when something wakes the node.
    Later,
}

/// What a task found out; the reconciler writes it into the status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The reply to an apply of the StatefulSet.
    pub applied: Option<Applied>,
    /// The image that was seen to be started.
    pub running_image: Option<String>,
    /// Whether the node's container was started.
    pub container: Option<Container>,
}

/// Carries a task out, in a span of its name: whoever looks at the requests of this process can
/// tell by it whose they are.
pub async fn run(kind: Kind, input: &Input<'_>) -> Outcome {
    let node = input.name();
    match kind {
        Kind::ApplyStatefulSet => {
            let span = tracing::info_span!("apply-statefulset", %node);
            apply_stateful_set::run(input).instrument(span).await
        }
        Kind::ApplyService => {
            let span = tracing::info_span!("apply-service", %node);
            apply_service::run(input).instrument(span).await
        }
        Kind::ReplacePod => {
            let span = tracing::info_span!("replace-pod", %node);
            replace_pod::run(input).instrument(span).await
        }
        Kind::ObserveImage => {
            let span = tracing::info_span!("observe-image", %node);
            observe_image::run(input).instrument(span).await
        }
        Kind::MarkReady => {
            let span = tracing::info_span!("mark-ready", %node);
            mark_ready::run(input).instrument(span).await
        }
    }
}

/// What a failed read of the StatefulSet means after it was applied.
///
/// Only the API server's own word that it is gone ends the plan; a cache that lacks it proves
/// nothing, and whatever else went wrong may pass.
fn stateful_set_unread(error: ReadError, name: &str) -> Outcome {
    match error {
        ReadError::Missing => Outcome::Terminal(format!(
            "statefulset {name:?} missing during rollout (apply-statefulset preceded us); \
             external deletion?"
        )),
        ReadError::NotCached => {
            Outcome::waiting(format!("statefulset {name:?} to appear in the cache"))
        }
        ReadError::Transient(problem) => {
            Outcome::Transient(format!("failed to get statefulset {name:?}: {problem}"))
        }
    }
}

/// The update revision that a StatefulSet rolls out, and its pods, or what to do instead.
///
/// The list is live: a cache that lacks the old pod would complete a replacement, and one that still
/// has it would delete the new pod of the same name.
async fn revision_and_pods(
    set: &StatefulSet,
    input: &Input<'_>,
) -> Result<(String, Vec<Pod>), Outcome> {
    let (namespace, name) = (input.namespace(), input.name());
    let revision = rollout::judge(set, input.node, input.target_image(), input.applied)?;
    let labels = rollout::selector(set).ok_or_else(|| {
        Outcome::Terminal(format!(
            "statefulset {name:?} has no selector; cannot identify owned pods"
        ))
    })?;
    let pods = input.live.list::<Pod>(&namespace, &labels).await.map_err(|error| {
        Outcome::Transient(format!("failed to list the pods of {name:?}: {error}"))
    })?;
    Ok((revision, pods))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_word_that_it_is_gone_is_terminal() {
        assert_eq!(
            stateful_set_unread(ReadError::Missing, "n0"),
            Outcome::Terminal(
                "statefulset \"n0\" missing during rollout (apply-statefulset preceded us); \
                 external deletion?"
                    .to_owned()
            )
        );
        let not_cached = stateful_set_unread(ReadError::NotCached, "n0");
        assert!(matches!(not_cached, Outcome::Waiting { .. }), "{not_cached:?}");
        let transient = stateful_set_unread(ReadError::Transient("503".to_owned()), "n0");
        assert!(matches!(transient, Outcome::Transient(_)), "{transient:?}");
    }
}
