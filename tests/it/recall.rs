//! Recall: what is answered from memory is what the server would say, so all runs are what they are without it.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use laggard::Plane;
use laggard::check::{Check, Scenario, Server};
use laggard::explore::Sample;
use laggard::lag::model::Verdict;
use rollout_tests::{Stage, rollout};

/// With passes on both sides of a deletion, a pod made by another, a conflict, plans that fail and are made anew, and Events;
/// four runs at once, so that some are at the server with the same request.
#[tokio::test]
async fn all_runs_are_the_same_with_recall_and_without() -> Result<()> {
    let plane = Arc::new(Stage::plane_from(Plane::builder().exploring()).await?);
    for scenario in [
        rollout::node_update,
        rollout::set_deleted,
        rollout::pod_made_late,
        rollout::refused_status,
        rollout::foreign_set_in_the_way,
    ] {
        let name = scenario(&plane).name().to_owned();
        let (with, verdict) = runs(Server::from(&*plane), scenario(&plane)).await?;
        let server = Server::from(&*plane).without_recall();
        let (without, other) = runs(server, scenario(&plane)).await?;
        println!("{name}: {verdict}");
        ensure!(other.recalled == 0, "{name}: {other}");
        ensure!(verdict.recalled * 2 > verdict.requests, "{name}: {verdict}");
        ensure!(with.len() == without.len(), "{name}: {} and {} runs", with.len(), without.len());
        for (number, (one, other)) in with.iter().zip(&without).enumerate() {
            let first = one.iter().zip(other).find(|(one, other)| one != other);
            ensure!(one == other, "{name}, run {number}: with and without: {first:#?}");
        }
    }
    Arc::into_inner(plane).context("somebody still has the plane")?.stop().await?;
    Ok(())
}

async fn runs(server: Server, scenario: Scenario) -> Result<(Vec<Vec<String>>, Verdict)> {
    let lines: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
    let seen = Arc::clone(&lines);
    let check = Check::new().without_files().inspect(move |outcome| {
        seen.lock().expect("no run panics here").push(outcome.trace.clone());
    });
    let report = check.sample(server, scenario, &Sample::pct(7, 25, 2).parallel(4)).await?;
    let lines = std::mem::take(&mut *lines.lock().expect("no run panics here"));
    Ok((lines, report.verdict))
}
