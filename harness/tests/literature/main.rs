//! Bugs of the literature, one file each: found by exploring, and gone in the fixed form.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "what is found is to be read, and closures of a test may panic"
)]

mod barrier;
mod crash;
mod duplicates;
#[path = "../../benches/figures/mod.rs"]
mod figures;
mod placements;
mod read_own_write;
mod silent_delete;
mod time_travel;
mod trigger_before_cache;
mod unmodified;
mod unobserved;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use laggard::{
    Check, Plane,
    check::{Report, Scenario, SetUp, Truth},
    lag::model::{Completeness, Finding, Needs},
};
use serde_json::{Value, json};

use crate::figures::Figures;

/// Set by `scripts/bench`: then the time that finding a bug takes is a figure.
const BENCH: &str = "LAGGARD_BENCH";

/// What is bearable while one waits for it.
const FOUND_WITHIN: Duration = Duration::from_secs(5);

/// A plane as explorations want it.
async fn plane() -> Result<Plane> {
    Ok(Plane::builder().start().await?)
}

/// What is found in a scenario that has a bug.
async fn found(plane: &Plane, scenario: Scenario) -> Result<Finding> {
    let error = Check::new().without_files().run(plane, scenario).await.err();
    let error = error.context("a scenario with a bug passes")?;
    let report = error.report().with_context(|| error.to_string())?;
    println!("{error}");
    if std::env::var_os(BENCH).is_some() {
        let mut figures = Figures::of("literature");
        let name = format!("the bug of \"{}\" is found after", report.name);
        figures.time(&name, report.verdict.elapsed, Some(FOUND_WITHIN));
        figures.finish()?;
    }
    report.findings.first().cloned().context("no finding")
}

/// Explores the fixed form; it must pass, in more runs than one.
async fn passes(plane: &Plane, scenario: Scenario) -> Result<Report> {
    let report = Check::new().without_files().run(plane, scenario).await?;
    println!("{report}");
    let exhausted = matches!(report.verdict.completeness, Completeness::Exhausted { .. });
    ensure!(exhausted && report.verdict.runs > 1, "{report}");
    Ok(report)
}

/// Asserts which oracle a finding violates, what it needs, and its token.
fn expect(finding: &Finding, oracle: &str, needs: Needs, token: &str) -> Result<()> {
    let violated = finding.run.violations().next().map(|(_, violation)| violation.oracle.clone());
    let found = (violated.as_deref(), finding.needs, finding.token.as_str());
    ensure!(found == (Some(oracle), needs, token), "{found:?}");
    Ok(())
}

async fn make_maps<const N: usize>(world: &SetUp, maps: [(&str, Value); N]) -> Result<()> {
    for (name, data) in maps {
        let map = serde_json::from_value(json!({"metadata": {"name": name}, "data": data}))?;
        world.api::<ConfigMap>().create(&PostParams::default(), &map).await?;
    }
    Ok(())
}

fn value(map: &ConfigMap, key: &str) -> Option<String> {
    map.data.as_ref()?.get(key).cloned()
}

fn value_of(truth: &Truth, name: &str, key: &str) -> Option<String> {
    value(&truth.get::<ConfigMap>(name)?, key)
}
