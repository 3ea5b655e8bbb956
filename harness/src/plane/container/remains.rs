//! Removing a plane from the engine, and making sure that nothing is left.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::task::JoinHandle;

use super::engine::{Engine, remove};
use super::labels::{self, Labelled};
use super::reaper::Reaper;
use super::server::Running;
use crate::assets::Binary;
use crate::plane::error::StartErrorKind;
use crate::text::chain;

/// A container that is just being made is known by then, or left to the reaper.
const MADE_LIMIT: Duration = Duration::from_secs(10);

/// Something that the engine's runtime is making. It goes on when it is no longer waited for; so
/// whoever cleans up must wait for it, or it would appear after the last look.
pub(super) type Making<T> = JoinHandle<Result<T, StartErrorKind>>;

/// What is to be removed of a plane. It is only ever dropped in the engine's runtime.
pub(super) struct Remains {
    pub(super) engine: Engine,
    pub(super) id: String,
    pub(super) copying: Option<Making<()>>,
    pub(super) containers: BTreeMap<Binary, Running>,
    pub(super) starting: FuturesUnordered<Making<(Binary, Running)>>,
    pub(super) reaper: Reaper,
}

impl Remains {
    /// Removes everything, and returns what could not be.
    pub(super) async fn remove(mut self) -> Vec<String> {
        let docker = self.engine.docker();
        let mut containers: Vec<_> = self.containers.into_values().collect();
        let all_made = tokio::time::timeout(MADE_LIMIT, async {
            if let Some(copying) = &mut self.copying {
                let _ = copying.await;
            }
            while let Some(started) = self.starting.next().await {
                if let Ok(Ok((_, running))) = started {
                    containers.push(running);
                }
            }
        })
        .await
        .is_ok();
        let servers = futures::future::join_all(containers.into_iter().map(Running::remove));
        let files = super::files_name(&self.id);
        let (_, removed) = futures::join!(servers, remove(docker, &files));
        if let Err(error) = removed {
            // Whether it is gone is seen by its label.
            tracing::debug!(error = %chain(&error), "could not remove a container");
        }
        let label = labels::filter(&self.id);
        let mut left = Labelled::find(docker, &label).await;
        // What somebody else was removing at the same moment may still be there.
        if let Ok(found) = &left
            && !found.is_empty()
        {
            found.remove(docker).await;
            left = Labelled::find(docker, &label).await;
        }
        match left {
            Ok(left) if left.is_empty() && all_made => {
                self.reaper.dismiss();
                Vec::new()
            }
            // Dropping the reaper sets it to work.
            Ok(left) if left.is_empty() => {
                vec![format!("what the engine is still making under the label {label}")]
            }
            Ok(left) => left.names(),
            Err(error) => vec![format!("what has the label {label}: {}", chain(&error))],
        }
    }
}
