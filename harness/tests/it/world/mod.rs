//! Worlds on real servers: moments, forks, erasures, and what is left of them.
//!
//! What a test claims is claimed of the API server with its watch cache, without it, as it is tuned for
//! exploring, and of the first and the last in containers too. `LAGGARD_WORLD_ROUNDS` says how often
//! what has to hold every time is tried; the default is right for a change, and `make soak` takes a
//! thousand.

#![expect(clippy::print_stdout, reason = "figures for whoever runs these with --nocapture")]
#![expect(clippy::type_complexity, reason = "a table of cases is read more easily than its type")]

/// The same tests on each kind of server.
macro_rules! on_each_server {
    ($($test:ident),+ $(,)?) => {
        on_each_server!(@ cached $($test)+);
        on_each_server!(@ uncached $($test)+);
        on_each_server!(@ exploring $($test)+);
        #[cfg(feature = "container")]
        on_each_server!(@ container $($test)+);
        #[cfg(feature = "container")]
        on_each_server!(@ container_exploring $($test)+);
    };
    (@ $server:ident $($test:ident)+) => {
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
pub(crate) mod live;
mod measure;
mod operations;
mod recalled;
mod refused;
mod roles;
pub(crate) mod stage;
mod watched;
mod watches;
