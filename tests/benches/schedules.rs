//! How many schedules a second, against those made without worlds, and what a run costs beside its requests.

#![expect(clippy::print_stdout, reason = "a bench is a program that prints")]

#[path = "../../harness/benches/figures/mod.rs"]
mod figures;
mod replayed;
mod rollouts;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use laggard::Plane;
use laggard::check::{Check, Scenario, Server};
use laggard::explore::Sample;
use laggard::lag::model::Verdict;
use rollout_tests::{Stage, rollout};

use figures::{Figures, Limit, spread};
use rollouts::ears::{Ears, Times};
use rollouts::{end, exploring, written};

/// One part of the time that a run takes.
type PartOf = fn(&Times) -> Duration;

/// Each arm makes so many schedules in a round, the same in all arms, and the arms take turns.
const ROUNDS: u64 = 4;
const SCHEDULES: u64 = 40;

/// How many points of a schedule are not the freshest.
const DEPTH: usize = 2;

/// On one thread, as under `#[tokio::test]`.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let ears = Ears::listen();
    let mut figures = Figures::of("schedules");
    let preset = exploring().await?;
    let standard = Arc::new(Stage::plane_from(Plane::builder()).await?);
    for at_once in [1, 4] {
        rates(&mut figures, &ears, &preset, &standard, at_once).await?;
    }
    end(standard).await?;
    replayed::beside_their_requests(&mut figures, &ears, &preset).await?;
    end(preset).await?;
    figures.finish()
}

/// What one way to make schedules has come to.
struct Arm {
    name: &'static str,
    server: Server,
    scenario: Box<dyn Fn() -> Scenario>,
    made: u64,
    took: Duration,
    rounds: Vec<Verdict>,
    runs: Vec<Times>,
}

impl Arm {
    fn new(name: &'static str, server: Server, scenario: impl Fn() -> Scenario + 'static) -> Self {
        let (rounds, runs) = (Vec::new(), Vec::new());
        let scenario = Box::new(scenario);
        Self { name, server, scenario, made: 0, took: Duration::ZERO, rounds, runs }
    }

    /// Makes the schedules of one round.
    async fn round(&mut self, ears: &Ears, seed: u64, at_once: usize) -> Result<()> {
        let sample = Sample::pct(seed, SCHEDULES, DEPTH).parallel(at_once);
        let check = Check::new().without_files();
        let report = check.sample(self.server.clone(), (self.scenario)(), &sample).await?;
        self.made += SCHEDULES;
        self.took += report.verdict.elapsed;
        self.rounds.push(report.verdict);
        // The first ones were rehearsals.
        let heard = ears.take().runs;
        let rehearsals = heard.len() - usize::try_from(SCHEDULES)?;
        self.runs.extend(heard.into_iter().skip(rehearsals));
        Ok(())
    }

    fn rate(&self) -> f64 {
        self.made as f64 / self.took.as_secs_f64()
    }
}

async fn rates(
    figures: &mut Figures,
    ears: &Ears,
    preset: &Arc<Plane>,
    standard: &Arc<Plane>,
    at_once: usize,
) -> Result<()> {
    let on_preset = written(preset).await?;
    let on_standard = written(standard).await?;
    let plane = Arc::clone(preset);
    let mut arms = [
        Arm::new("forked", Server::from(&**preset), move || rollout::node_update(&plane)),
        Arm::new("without worlds, on the preset", Server::from(&**preset).without_worlds(), {
            move || rollout::node_update_written(&on_preset)
        }),
        Arm::new("without worlds, default server", Server::from(&**standard).without_worlds(), {
            move || rollout::node_update_written(&on_standard)
        }),
    ];
    for seed in 0..ROUNDS {
        for arm in &mut arms {
            arm.round(ears, seed, at_once).await?;
        }
    }
    for arm in &mut arms {
        let name = format!("{}, {at_once} at once", arm.name);
        figures.rate(&name, arm.rate(), Limit::None);
        parts(figures, &name, &arm.runs);
    }
    let [forked, others @ ..] = &arms;
    for other in others {
        same_schedules(forked, other)?;
    }
    for (other, least) in others.iter().zip([1.5, 3.0]) {
        let name = format!("forked against {}, {at_once} at once", other.name);
        figures.ratio(&name, forked.rate() / other.rate(), Limit::AtLeast(least));
    }
    Ok(())
}

/// Where the time of a run goes.
fn parts(figures: &mut Figures, name: &str, runs: &[Times]) {
    let parts: [(&str, PartOf); 5] = [
        ("a run", Times::whole),
        ("making its world", |run| run.world),
        ("its process", |run| run.process),
        ("judging it", |run| run.judge),
        ("leaving it", |run| run.leave),
    ];
    for (part, of) in parts {
        let mut times: Vec<Duration> = runs.iter().map(of).collect();
        figures.time(&format!("{name}: {part}, median"), spread(&mut times).0, None);
    }
}

/// Both have made the same: as many different schedules, of as many points, that stand for as many interleavings.
fn same_schedules(one: &Arm, other: &Arm) -> Result<()> {
    let digest = |verdict: &Verdict| {
        (verdict.runs, verdict.impossible, verdict.points, verdict.naive, verdict.failures)
    };
    for (seed, (first, second)) in one.rounds.iter().zip(&other.rounds).enumerate() {
        ensure!(
            digest(first) == digest(second),
            "{:?} and {:?} made other schedules with the seed {seed}: {first}; {second}",
            one.name,
            other.name
        );
    }
    Ok(())
}
