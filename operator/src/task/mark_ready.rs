//! mark-ready: tells the sidecar that the node may serve. Done as soon as the sidecar has taken it.

use serde_json::json;

use super::{Input, Kind, Outcome};

pub(super) async fn run(input: &Input<'_>) -> Outcome {
    let params = input.task.params.clone().unwrap_or_else(|| json!({}));
    match input.sidecar.submit(&input.task.id, Kind::MarkReady.name(), &params).await {
        Ok(()) => Outcome::complete(),
        Err(error) => Outcome::Transient(error.to_string()),
    }
}
