//! Every cache view that a rollout can be shown, tried one after another on the real server.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use laggard::Plane;
use laggard::check::Check;
use laggard::lag::model::{Completeness, Confirmation, Needs};
use rollout_tests::{Stage, rollout};

async fn plane() -> Result<Arc<Plane>> {
    Ok(Arc::new(Stage::plane_from(Plane::builder().exploring()).await?))
}

async fn end(plane: Arc<Plane>) -> Result<()> {
    Arc::into_inner(plane).context("somebody still has the plane")?.stop().await?;
    Ok(())
}

/// As the default: at most two stale reads and two holds, any number of steps of other actors.
fn check() -> Check {
    Check::new().max_time(std::time::Duration::from_secs(90))
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

#[tokio::test]
async fn no_view_within_the_bounds_breaks_the_operator() -> Result<()> {
    let plane = plane().await?;
    let report = check().run(&*plane, rollout::node_update(&plane)).await?;
    let verdict = &report.verdict;
    tracing::warn!(%verdict, "explored");
    ensure!(matches!(verdict.completeness, Completeness::Exhausted { .. }), "{verdict}");
    ensure!(verdict.runs >= 20, "a search over next to nothing: {verdict}");
    end(plane).await
}

#[tokio::test]
async fn no_view_and_no_deletion_from_outside_breaks_the_operator() -> Result<()> {
    let plane = plane().await?;
    let report = check().run(&*plane, rollout::node_update_disturbed(&plane)).await?;
    let verdict = &report.verdict;
    tracing::warn!(%verdict, "explored");
    ensure!(matches!(verdict.completeness, Completeness::Exhausted { .. }), "{verdict}");
    end(plane).await
}
