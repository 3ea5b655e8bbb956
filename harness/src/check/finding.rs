//! A failure as it is reported: its certificate, what would prevent it, and whether it happens from nothing.

use std::time::Duration;

use super::{
    error::CheckError,
    run::{Runs, point_of, trace},
};
use crate::{
    explore::{Failure, ReplayError, Token, replay},
    lag::model::{
        Action, Author, CachedRead, Completeness, Confirmation, Ended, Finding, Needs, Repair, Run,
        Verdict, check,
    },
};

/// How often a failure must happen from nothing to count as confirmed.
const CONFIRMATIONS: u32 = 2;

/// What is known of a failing run. `minimal` says that no choice in it can be left out, and no lag reduced.
pub(super) fn of(failure: Failure<Run>, needs: Needs, verdict: &Verdict, minimal: bool) -> Finding {
    let token = failure.token().to_string();
    let found_in_run = failure.number;
    let run = failure.outcome.record;
    let certificate = check(&run).unwrap_or_default();
    let window = window(&run);
    let repairs = if minimal && needs == Needs::Staleness { repairs(&run) } else { Vec::new() };
    Finding {
        run,
        certificate,
        needs,
        found_in_run,
        token,
        repairs,
        window,
        verdict: verdict.clone(),
        confirmed: Confirmation::NotTried,
    }
}

/// What a token makes stale, or has others do.
pub(super) fn needs_of(token: &Token) -> Needs {
    let stale = token.choices().iter().any(|(id, _)| id.kind().is_staleness());
    match stale {
        true => Needs::Staleness,
        false if token.is_fresh() => Needs::Nothing,
        false => Needs::Environment,
    }
}

/// The verdict of one run that was asked for by its token.
pub(super) fn verdict_of_replay(failed: bool) -> Verdict {
    Verdict {
        completeness: Completeness::NotExhausted { by: Ended::Runs(1) },
        runs: 1,
        failures: u64::from(failed),
        impossible: 0,
        redundant: 0,
        merged: 0,
        looked_again: 0,
        points: 0,
        naive: 1,
        elapsed: Duration::ZERO,
        shard: None,
        exclusions: Vec::new(),
        worlds: Some("made through the API".to_owned()),
        requests: 0,
        recalled: 0,
    }
}

/// Makes the failing run again, each time from nothing and through the API.
pub(super) async fn confirm(
    from_nothing: &Runs<'_>,
    finding: &mut Finding,
) -> Result<(), CheckError> {
    let Ok(token) = finding.token.parse::<Token>() else { return Ok(()) };
    let expected = trace(&finding.run);
    let mut last = None;
    for _ in 0..CONFIRMATIONS {
        let again = match replay(from_nothing, &token).await {
            Ok(again) => again,
            Err(ReplayError::OutOfDate(_)) => None,
            Err(ReplayError::Explore(error)) => return Err(CheckError::Explore(error)),
        };
        let Some(again) = again else {
            finding.confirmed = Confirmation::ForkOnly;
            return Ok(());
        };
        let lines = trace(&again.outcome.record);
        if let Some((step, first, second)) = first_difference(&expected, &lines) {
            finding.confirmed = Confirmation::Diverged { step, first, second };
            return Ok(());
        }
        last = Some(again.outcome.record);
    }
    if let Some(run) = last {
        // The same, but for its times: here the server has answered every request.
        finding.window = window(&run);
        finding.certificate = check(&run).unwrap_or_default();
        finding.run = run;
    }
    finding.confirmed = Confirmation::ThroughApi { runs: CONFIRMATIONS };
    Ok(())
}

fn first_difference(first: &[String], second: &[String]) -> Option<(usize, String, String)> {
    let length = first.len().max(second.len());
    let line = |lines: &[String], at: usize| lines.get(at).cloned().unwrap_or_default();
    (0..length)
        .map(|at| (at, line(first, at), line(second, at)))
        .find(|(_, first, second)| first != second)
}

/// How late an event must be in production: from the reply to its write to the last moment at which it was missed.
fn window(run: &Run) -> Option<Duration> {
    stale_reads(run)
        .filter_map(|(step, read)| {
            let (_, written) = first_held(run, step, read)?;
            let read_at = run.steps[step].at;
            Some(read_at.saturating_sub(run.steps.get(written)?.at))
        })
        .chain(held(run))
        .max()
}

/// From the write of the first event that a hold kept back to the last reply before it was let go.
fn held(run: &Run) -> impl Iterator<Item = Duration> + '_ {
    run.steps.iter().enumerate().filter_map(|(at, step)| {
        let Action::Hold(hold) = &step.action else { return None };
        let first = hold.first.as_ref()?;
        let commit = run.history.iter().find(|commit| {
            commit.key == first.key && commit.resource_version == first.resource_version
        })?;
        let written = run.steps.get(commit.step?)?.at;
        let missed = run.steps[at..]
            .iter()
            .take_while(
                |step| !matches!(&step.action, Action::Release(r) if r.stream == hold.stream),
            )
            .filter(|step| matches!(step.action, Action::Request(_) | Action::Read(_)))
            .last()?;
        Some(missed.at.saturating_sub(written))
    })
}

fn stale_reads(run: &Run) -> impl Iterator<Item = (usize, &CachedRead)> {
    run.reads().filter(|(_, read)| read.stale)
}

/// The first change that a read missed, and the step from which on it was there.
fn first_held<'a>(
    run: &'a Run,
    step: usize,
    read: &CachedRead,
) -> Option<(&'a crate::lag::model::Commit, usize)> {
    let certificate = check(run).ok()?;
    let view = certificate.views.into_iter().find(|view| view.step == step)?;
    let held = view.held?;
    let stream = run.streams.get(read.stream)?;
    let resource = stream.identity.qualified_resource();
    let commit = run.change_to(&resource, &held.key, &held.resource_version)?;
    Some((commit, commit.step?))
}

/// What would have prevented a minimal run: each of its stale reads is needed, so a live one in its place is
/// enough, and so is one that waits for what the process itself wrote, if that is what it missed.
fn repairs(run: &Run) -> Vec<Repair> {
    let mut repairs = Vec::new();
    for (step, read) in stale_reads(run) {
        if point_of(&run.steps[step].action).is_none() {
            continue;
        }
        let repair =
            |text: String, extra_requests| Repair { step, text, passes: true, extra_requests };
        repairs.push(repair("is a live read".to_owned(), 1));
        if let Some((commit, _)) = first_held(run, step, read)
            && matches!(commit.by, Author::Request(_))
        {
            repairs.push(repair(format!("waits for rv {}", commit.resource_version), 0));
        }
    }
    repairs
}
