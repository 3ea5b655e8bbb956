//! Worlds on real servers: moments, forks, erasures, and what is left of them.
//!
//! What a test claims is claimed of the API server with its watch cache, without it, and in
//! containers. `LAGGARD_WORLD_ROUNDS` says how often what has to hold every time is tried; the
//! default is right for a change, and a thousand for a night.

#![expect(clippy::print_stdout, reason = "figures for whoever runs these with --nocapture")]
#![expect(clippy::type_complexity, reason = "a table of cases is read more easily than its type")]

/// The same tests on each kind of server; those after the semicolon not in containers, where they
/// would show the same once more.
macro_rules! on_each_server {
    ($($test:ident),+; $($process:ident),*) => {
        on_each_server!(; $($test,)+ $($process),*);
        #[cfg(feature = "container")]
        on_each_server!(@ container $($test)+);
    };
    (; $($process:ident),* $(,)?) => {
        on_each_server!(@ cached $($process)*);
        on_each_server!(@ uncached $($process)*);
    };
    (@ $server:ident $($test:ident)*) => {
        mod $server {
            use crate::world::stage::{Server, Stage};
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() -> anyhow::Result<()> {
                    let Some(stage) = Stage::start(Server::$server).await? else { return Ok(()) };
                    super::$test(&stage).await?;
                    stage.stop().await
                }
            )*
        }
    };
}

mod between;
mod broken;
mod compacted;
mod complete;
mod equal;
mod gone;
mod interrupted;
mod live;
mod measure;
mod operations;
mod refused;
mod roles;
pub(crate) mod stage;
mod watched;
mod watches;
