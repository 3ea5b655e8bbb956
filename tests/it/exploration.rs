//! Every cache view that a rollout can be shown, tried one after another on the real server.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use laggard::Plane;
use laggard::check::{Check, Scenario};
use laggard::lag::model::{Bounds, Completeness, Confirmation, Needs};
use rollout_tests::{Stage, rollout};
use rstest::rstest;

async fn plane() -> Result<Arc<Plane>> {
    Ok(Arc::new(Stage::plane_from(Plane::builder().exploring()).await?))
}

async fn end(plane: Arc<Plane>) -> Result<()> {
    Arc::into_inner(plane).context("somebody still has the plane")?.stop().await?;
    Ok(())
}

/// What fits into a test: at most two stale reads and one early step of another actor. `LAGGARD_EXPLORE=wide` is the
/// default of a check: two stale reads and two holds, and any number of steps of others (`make soak`).
fn check() -> Check {
    if std::env::var("LAGGARD_EXPLORE").is_ok_and(|how| how == "wide") {
        return Check::new();
    }
    Check::new().bounds(Bounds { stale_reads: Some(2), environment: Some(1), ..Bounds::default() })
}

/// The seed's race: found, reduced to the one stale read, made again from nothing.
#[tokio::test]
async fn the_originals_race_is_found_reduced_and_confirmed() -> Result<()> {
    let plane = plane().await?;
    let found = Check::new().without_files().run(&*plane, rollout::original(&plane)).await;
    let error = found.err().context("the race was not found")?;
    let report = error.report().with_context(|| error.to_string())?;
    let finding = &report.findings[0];
    ensure!(finding.needs == Needs::Staleness, "{report}");
    let (_, violation) = finding.run.violations().next().context("no violation")?;
    ensure!(violation.oracle == rollout::STAMPED_EARLY, "{report}");
    ensure!(finding.token.starts_with("statefulsets.apps/n0@r"), "{report}");
    ensure!(matches!(finding.confirmed, Confirmation::ThroughApi { .. }), "{report}");
    end(plane).await
}

/// The operator as it is, in each of its scenarios: no view within the bounds makes it do anything wrong.
#[rstest]
#[case::node_update(rollout::node_update)]
#[case::from_the_drift_on(rollout::from_the_drift_on)]
#[case::s4_pod_replaced_by_others(rollout::pod_replaced_by_others)]
#[case::s5_pod_made_late(rollout::pod_made_late)]
#[case::s11_refused_status(rollout::refused_status)]
#[case::image_changed_back(rollout::image_changed_back)]
#[case::image_pulled_slowly(rollout::image_pulled_slowly)]
#[case::set_deleted(rollout::set_deleted)]
#[case::set_deleted_slowly(rollout::set_deleted_slowly)]
#[case::set_never_gone(rollout::set_never_gone)]
#[case::set_recreated(rollout::set_recreated)]
#[case::set_usurped(rollout::set_usurped)]
#[case::set_taken_away(rollout::set_taken_away)]
#[case::template_changed(rollout::template_changed)]
#[case::foreign_set_in_the_way(rollout::foreign_set_in_the_way)]
#[tokio::test]
async fn no_view_breaks_the_operator(#[case] scenario: fn(&Arc<Plane>) -> Scenario) -> Result<()> {
    let plane = plane().await?;
    let scenario = scenario(&plane);
    let name = scenario.name().to_owned();
    let report = check().run(&*plane, scenario).await?;
    let verdict = &report.verdict;
    tracing::warn!(name, %verdict, "explored");
    ensure!(matches!(verdict.completeness, Completeness::Exhausted { .. }), "{verdict}");
    ensure!(verdict.runs >= 20, "a search over next to nothing: {verdict}");
    end(plane).await
}
