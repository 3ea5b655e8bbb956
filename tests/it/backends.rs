//! On which backend a case runs, and how one that cannot says so.

use anyhow::{Context as _, Result};
use laggard::plane::{BackendKind, docker_engine};

/// Whether planes of this backend can be had here. Where there is no engine, the case says plainly
/// that it was skipped and why; with `LAGGARD_REQUIRE_DOCKER=1` that is a failure.
pub(crate) async fn is_available(backend: BackendKind) -> Result<bool> {
    if backend != BackendKind::Container {
        return Ok(true);
    }
    match docker_engine().await {
        Ok(_) => Ok(true),
        Err(error) if std::env::var("LAGGARD_REQUIRE_DOCKER").is_ok_and(|value| value == "1") => {
            Err(error).context("LAGGARD_REQUIRE_DOCKER=1 forbids skipping the container cases")
        }
        Err(error) => {
            // Straight to the terminal: the runner shows a passed test's output to nobody.
            use std::io::Write as _;
            writeln!(std::io::stderr(), "skipped: no container cases here: {error}")?;
            Ok(false)
        }
    }
}
