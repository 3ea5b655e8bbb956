//! What the benches of schedules share: planes, and the ears that hear of runs.

pub(crate) mod ears;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use laggard::Plane;
use rollout_tests::{Stage, Written, rollout};

/// A plane on which every run is forked.
pub(crate) async fn exploring() -> Result<Arc<Plane>> {
    let plane = Arc::new(Stage::plane_from(Plane::builder().exploring()).await?);
    println!("plane: {}", plane.preset());
    Ok(plane)
}

/// The settled node of a plane, to be written again; the controllers of the plane stand still from then on.
pub(crate) async fn written(plane: &Arc<Plane>) -> Result<Written> {
    let namespace = plane.namespace("settled").await?;
    rollout::settle(Arc::clone(plane), &namespace).await?;
    Written::found(plane, &namespace).await
}

pub(crate) async fn end(plane: Arc<Plane>) -> Result<()> {
    Arc::into_inner(plane).context("somebody still has the plane")?.stop().await?;
    Ok(())
}
