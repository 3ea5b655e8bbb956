//! Bugs of the literature, one file each: found by exploring, and gone in the fixed form.

mod placements;
mod read_own_write;

use laggard::Plane;

/// A plane as explorations want it.
async fn plane() -> anyhow::Result<Plane> {
    Ok(Plane::builder().start().await?)
}
