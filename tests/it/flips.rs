//! Each live read of the StatefulSet, answered from the cache: some scenario must notice, by its
//! assertion about the stale read and by nothing else.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use laggard::lag::Requests;
use laggard::plane::BackendKind::Process;
use rollout_tests::{Stage, StaleRead};

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
