//! A token makes one and the same run, as often as wanted and on either kind of runtime.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use laggard::Plane;
use laggard::check::{Check, Scenario};
use laggard::explore::Token;
use rollout_tests::{Stage, rollout};
use tokio::runtime::{Builder, Runtime};

/// How often on each runtime; `make soak` makes it a hundred.
fn times() -> u64 {
    let times = std::env::var("LAGGARD_REPEATS").ok();
    times.map_or(10, |times| times.parse().expect("LAGGARD_REPEATS is a number"))
}

fn runtimes() -> Result<[Runtime; 2]> {
    let one = Builder::new_current_thread().enable_all().build()?;
    let several = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    Ok([one, several])
}

/// The seed's race, by its token: the run with most to go wrong, a stale read between two writes.
#[test]
fn a_token_makes_one_and_the_same_run_on_either_runtime() -> Result<()> {
    let [one, several] = runtimes()?;
    let token = one.block_on(found())?;
    let first = one.block_on(repeated(rollout::original, &token))?;
    let second = several.block_on(repeated(rollout::original, &token))?;
    ensure!(first.len() > 6, "too little to compare: {first:#?}");
    ensure!(
        first.last().is_some_and(|end| end.contains(rollout::STAMPED_EARLY)),
        "another end: {first:#?}"
    );
    ensure!(first == second, "on one thread:\n{first:#?}\non several:\n{second:#?}");
    Ok(())
}

/// Whoever publishes an Event names it by the time, which no two runs have in common.
#[tokio::test]
async fn a_run_in_which_an_event_is_published_is_made_again_as_well() -> Result<()> {
    let token = "deletion%20from%20outside@e7:commit".parse()?;
    let lines = repeated(rollout::set_deleted, &token).await?;
    let published = lines.iter().filter(|line| line.contains("<event 1>")).count();
    ensure!(published == 1, "{published} Events were published: {lines:#?}");
    Ok(())
}

async fn plane() -> Result<Arc<Plane>> {
    Ok(Arc::new(Stage::plane_from(Plane::builder().exploring()).await?))
}

async fn end(plane: Arc<Plane>) -> Result<()> {
    Arc::into_inner(plane).context("somebody still has the plane")?.stop().await?;
    Ok(())
}

async fn found() -> Result<Token> {
    let plane = plane().await?;
    let found = Check::new().without_files().run(&*plane, rollout::original(&plane)).await;
    let error = found.err().context("the race was not found")?;
    let report = error.report().with_context(|| error.to_string())?;
    let token = report.findings[0].token.parse()?;
    end(plane).await?;
    Ok(token)
}

async fn repeated(scenario: fn(&Arc<Plane>) -> Scenario, token: &Token) -> Result<Vec<String>> {
    let plane = plane().await?;
    let check = Check::new().without_files();
    let lines = check.repeat(&*plane, scenario(&plane), token, times()).await?;
    end(plane).await?;
    Ok(lines)
}
