//! observe-image: waits until a pod at the update revision has started the target image, and
//! reports it. Nothing else in the operator says which image a node runs.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;

use super::rollout::{Container, off_revision, started};
use super::{Input, LookAgain, Outcome, Report, revision_and_pods, stateful_set_unread};

pub(super) async fn run(input: &Input<'_>) -> Outcome {
    let (namespace, name) = (input.namespace(), input.name());
    let set = match input.live.get::<StatefulSet>(&namespace, &name).await {
        Ok(set) => set,
        Err(error) => return stateful_set_unread(error, &name),
    };
    let (revision, pods) = match revision_and_pods(&set, input).await {
        Ok(found) => found,
        Err(outcome) => return outcome,
    };
    conclude(&set, &pods, &revision, input.target_image())
}

/// What the StatefulSet and its pods together say.
fn conclude(set: &StatefulSet, pods: &[Pod], revision: &str, target_image: &str) -> Outcome {
    if !off_revision(pods, set, revision).is_empty() {
        return Outcome::waiting("a pod that is not at the update revision to be replaced");
    }
    let wanted = set.spec.replicas;
    let updated = set.status.as_ref().and_then(|status| status.updated_replicas).unwrap_or(0);
    if wanted.is_none_or(|wanted| updated < wanted) {
        return Outcome::waiting(format!(
            "updated replicas: {updated} of {}",
            wanted.map_or_else(|| "an unknown number".to_owned(), |wanted| wanted.to_string())
        ));
    }
    let container = started(pods, set, revision, target_image);
    let report = Report { container: Some(container.clone()), ..Report::default() };
    match container {
        Container::Started => {
            Outcome::Complete(Report { running_image: Some(target_image.to_owned()), ..report })
        }
        Container::NotStarted { reason } => Outcome::Waiting {
            until: format!("the container of {target_image:?} to be started: {reason}"),
            look_again: LookAgain::Later,
            report,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::rollout::tests::{pod, running, set, waiting};

    fn complete(outcome: &Outcome) -> Option<&str> {
        match outcome {
            Outcome::Complete(report) => report.running_image.as_deref(),
            _ => None,
        }
    }

    #[test]
    fn a_started_container_at_the_update_revision_completes_it_ready_or_not() {
        let outcome = conclude(&set(), &[running(pod("rev-2", "v2"))], "rev-2", "v2");
        assert_eq!(complete(&outcome), Some("v2"));
    }

    #[test]
    fn an_image_that_cannot_be_pulled_is_never_stamped() {
        let outcome =
            conclude(&set(), &[waiting(pod("rev-2", "v2"), "ImagePullBackOff")], "rev-2", "v2");
        assert_eq!(complete(&outcome), None);
        let Outcome::Waiting { until, report, .. } = outcome else { panic!("{outcome:?}") };
        assert!(until.contains("ImagePullBackOff"), "{until}");
        assert_eq!(
            report.container,
            Some(Container::NotStarted { reason: "ImagePullBackOff".into() })
        );
    }

    #[test]
    fn a_pod_of_another_image_is_not_the_targets() {
        let outcome = conclude(&set(), &[running(pod("rev-2", "v3"))], "rev-2", "v2");
        assert_eq!(complete(&outcome), None);
    }

    #[test]
    fn an_old_pod_or_too_few_new_ones_are_waited_for() {
        let outcome = conclude(&set(), &[running(pod("rev-1", "v1"))], "rev-2", "v2");
        assert!(
            matches!(&outcome, Outcome::Waiting { until, .. } if until.contains("not at the update"))
        );
        let mut short = set();
        short.status.as_mut().unwrap().updated_replicas = Some(0);
        let outcome = conclude(&short, &[], "rev-2", "v2");
        assert!(matches!(&outcome, Outcome::Waiting { until, .. } if until.contains("0 of 1")));
        let mut unknown = set();
        unknown.spec.replicas = None;
        let outcome = conclude(&unknown, &[running(pod("rev-2", "v2"))], "rev-2", "v2");
        assert!(matches!(outcome, Outcome::Waiting { .. }));
    }
}
