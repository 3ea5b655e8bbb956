//! Cache lag cannot complete a rollout, and does not delay one.

use anyhow::Result;
use laggard::plane::BackendKind::{self, Container, Process};
use rollout_tests::Stage;
use rstest::rstest;

use crate::backends::is_available;
use crate::scenarios;

#[rstest]
#[case::process(Process)]
#[case::container(Container)]
#[tokio::test]
async fn s1_lag_cannot_complete_a_rollout(#[case] backend: BackendKind) -> Result<()> {
    if !is_available(backend).await? {
        return Ok(());
    }
    let stage = Stage::settled(backend).await?;
    scenarios::s1_lag_cannot_complete_a_rollout(&stage).await?;
    stage.end().await
}

#[rstest]
#[case::process(Process)]
#[case::container(Container)]
#[tokio::test]
async fn s2_lag_cannot_stamp_an_image(#[case] backend: BackendKind) -> Result<()> {
    if !is_available(backend).await? {
        return Ok(());
    }
    let stage = Stage::settled(backend).await?;
    scenarios::s2_lag_cannot_stamp_an_image(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn s3_a_held_cache_does_not_delay_the_replacement() -> Result<()> {
    let stage = Stage::settled(Process).await?;
    scenarios::s3_a_held_cache_does_not_delay_the_replacement(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn s13_after_the_release_everything_completes() -> Result<()> {
    let stage = Stage::settled(Process).await?;
    scenarios::s13_after_the_release_everything_completes(&stage).await?;
    stage.end().await
}

#[rstest]
#[case::process(Process)]
#[case::container(Container)]
#[tokio::test]
async fn s15_a_held_cache_does_not_delay_the_stamp(#[case] backend: BackendKind) -> Result<()> {
    if !is_available(backend).await? {
        return Ok(());
    }
    let stage = Stage::settled(backend).await?;
    scenarios::s15_a_held_cache_does_not_delay_the_stamp(&stage).await?;
    stage.end().await
}
