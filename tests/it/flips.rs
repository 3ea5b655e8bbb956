//! Each live read, answered from the cache: some scenario must notice, by its assertion about the stale read and by
//! nothing else. Two reads by hand, and then all of them in every explored scenario.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use laggard::check::{Check, FlipVerdict};
use laggard::lag::Requests;
use laggard::lag::model::{Bounds, Needs};
use laggard::plane::BackendKind::Process;
use laggard::{Flips, Plane};
use rollout_tests::{Stage, StaleRead, rollout};

use crate::scenarios;

/// Runs a scenario with the task's StatefulSet read flipped; what its stale-read assertion said.
macro_rules! flipped {
    ($task:literal, $scenario:path) => {{
        let stage = Stage::settled(Process).await?;
        let flip = stage.lag.flip(Requests::get::<StatefulSet>().in_span($task));
        let result = $scenario(&stage).await;
        ensure!(flip.served() > 0, "the flip of {}'s read answered no request", $task);
        stage.end().await?;
        result
    }};
}

fn caught(result: Result<()>) -> Result<StaleRead> {
    match result {
        Ok(()) => bail!("nobody noticed that the read was answered from the cache"),
        Err(error) => error
            .downcast::<StaleRead>()
            .context("the scenario failed, but not by its assertion about the stale read"),
    }
}

#[tokio::test]
async fn flipping_the_read_of_replace_pod_is_caught() -> Result<()> {
    let noticed =
        caught(flipped!("replace-pod", scenarios::s3_a_held_cache_does_not_delay_the_replacement))?;
    let text = noticed.to_string();
    ensure!(text.contains("replace-pod must delete the old pod in this pass"), "{text}");
    ensure!(text.contains("events behind"), "the evidence lacks how far the cache was:\n{text}");
    ensure!(text.contains("flip"), "the evidence lacks the flipped request:\n{text}");
    Ok(())
}

#[tokio::test]
async fn flipping_the_read_of_observe_image_is_caught() -> Result<()> {
    let noticed =
        caught(flipped!("observe-image", scenarios::s15_a_held_cache_does_not_delay_the_stamp))?;
    let text = noticed.to_string();
    ensure!(text.contains("observe-image must stamp v2 in this pass"), "{text}");
    ensure!(text.contains("events behind"), "the evidence lacks how far the cache was:\n{text}");
    Ok(())
}

/// Behind the generation floor a flip does no harm, which is why S3 and S15 must exist.
#[tokio::test]
async fn behind_the_floor_a_flip_does_no_harm() -> Result<()> {
    flipped!("replace-pod", scenarios::s1_lag_cannot_complete_a_rollout)?;
    flipped!("observe-image", scenarios::s2_lag_cannot_stamp_an_image)
}

/// Every live read that a pass of a rollout makes: one of the pass itself, the others of its tasks.
const LIVE_READS: [&str; 6] = [
    "list pods #1 [observe-image]",
    "list pods #1 [replace-pod]",
    "get statefulsets.apps/n0 #1 [apply-statefulset]",
    "get statefulsets.apps/n0 #1 [observe-image]",
    "get statefulsets.apps/n0 #1 [replace-pod]",
    "get seinodes.sei.io/n0 #1 [current]",
];

/// With one stale read more in the runs in which a read is flipped.
fn flips(stale_reads: u32) -> Flips {
    let stale_reads = Some(stale_reads);
    let bounds = Bounds { stale_reads, environment: Some(1), ..Bounds::default() };
    Flips::new().exploring(Check::new().bounds(bounds).without_files())
}

/// Each of them is there for a reason that some scenario shows.
#[tokio::test]
async fn every_live_read_is_load_bearing() -> Result<()> {
    let plane = Arc::new(Stage::plane_from(Plane::builder().exploring()).await?);
    let report = flips(1).run(&*plane, rollout::suite(&plane)).await?;
    tracing::warn!(%report, "flipped");
    let mut sites: Vec<_> = report.live.iter().map(|flipped| flipped.site.to_string()).collect();
    let mut expected = LIVE_READS.map(str::to_owned).to_vec();
    sites.sort();
    expected.sort();
    ensure!(sites == expected, "{report}");
    for flipped in &report.live {
        let FlipVerdict::LoadBearing { finding, .. } = &flipped.verdict else {
            bail!("{report}");
        };
        ensure!(finding.needs == Needs::Staleness, "{report}");
    }
    Arc::into_inner(plane).context("somebody still has the plane")?.stop().await?;
    Ok(())
}

/// Behind each of them is a second layer, so that a stale answer makes a pass wait and does no harm: the generation
/// that was applied, the UIDs of preconditions, the lock of the status.
#[tokio::test]
async fn behind_every_live_read_is_a_second_layer() -> Result<()> {
    let plane = Arc::new(Stage::plane_from(Plane::builder().exploring()).await?);
    let second_layer = |flips: Flips, site: &&str| flips.survives(*site, "a second layer holds");
    let flips = LIVE_READS.iter().fold(flips(0), second_layer);
    let report = flips.run(&*plane, [rollout::node_update_safely(&plane)]).await?;
    tracing::warn!(%report, "flipped");
    Arc::into_inner(plane).context("somebody still has the plane")?.stop().await?;
    Ok(())
}
