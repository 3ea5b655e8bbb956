//! Every cache view that one pass can be shown, tried one after another on the real server.
//!
//! At each reply that a pass gets, each held stream may move by any number of the events that wait.
//! A run is one list of such choices, in a namespace of its own that is set up through the API; the
//! real StatefulSet controller settles the node, and stands still during the pass.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use laggard::Plane;
use laggard::explore::{Choices, Ending, Outcome, Search, Shrink, Subject, Token, replay};
use laggard::lag::model::{Bounds, Completeness, Needs, Verb};
use laggard::lag::{self, Requests};
use laggard::plane::BackendKind::Process;
use rollout_tests::{Stage, original};

/// What is stamped as running, and does not.
const ORACLE: &str = "stamped before rollout";

/// The pass that applies v2, under choices.
struct Rollout {
    plane: Arc<Plane>,
    code: Code,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Code {
    /// The original's two tasks with their reads turned to the cache.
    Original,
    /// The operator.
    Port,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
struct NotMade(anyhow::Error);

impl Subject for Rollout {
    /// What the code under test asked, for people.
    type Record = String;
    type Error = NotMade;

    async fn run(&self, choices: Choices) -> Result<Outcome<String>, NotMade> {
        self.one(choices).await.map_err(NotMade)
    }
}

impl Rollout {
    async fn on_a_plane(code: Code) -> Result<Self> {
        Ok(Self { plane: Arc::new(Stage::plane(Process).await?), code })
    }

    async fn one(&self, choices: Choices) -> Result<Outcome<String>> {
        let stage = Stage::empty_on(Arc::clone(&self.plane)).await?;
        stage.create_node("v1").await?;
        stage.resume().await?;
        stage.converge().await?;
        stage.pause().await?;
        stage.set_image("v2").await?;
        stage.pass().await?; // writes the plan down
        let planned = stage.node().await?;
        let version = planned.metadata.resource_version.clone().context("no version")?;
        stage.lag.stream::<seinode_operator::api::SeiNode>().shown(&version).await?;

        stage.lag.hold();
        let begin = stage.lag.mark();
        let scheduler = lag::Choices::new(choices);
        let chosen = scheduler.record();
        stage.lag.set_scheduler(scheduler);
        match self.code {
            Code::Original => original::pass(&stage.context, &planned).await?,
            // Two passes, since the second may be shown the node as it was before the first; that one
            // loses by its optimistic lock, which is no failure.
            Code::Port => {
                stage.pass_as_cached().await?;
                let _ = stage.pass_as_cached().await;
            }
        }
        stage.lag.clear_scheduler();

        let requests = stage.lag.requests_since(begin);
        let trace = requests
            .iter()
            .filter(|request| request.verb != Verb::Watch)
            .map(|request| format!("{} {} {}", request.verb, request.target(), request.outcome))
            .collect();
        let status = stage.status().await?;
        let pod =
            stage.pod().await?.context("the pod is gone, though its controller stands still")?;
        let runs = pod.spec.iter().flat_map(|spec| &spec.containers).find(|it| it.name == "seid");
        let runs = runs.and_then(|container| container.image.clone()).unwrap_or_default();
        let stamped = status.current_image.unwrap_or_default();
        let ending = if let Some((point, why)) = chosen.impossible().into_iter().next() {
            Ending::Impossible { point, why }
        } else if stamped != runs {
            Ending::failed(ORACLE, format!("currentImage is {stamped}, but the pod runs {runs}"))
        } else if requests.count(&Requests::delete::<k8s_openapi::api::core::v1::Pod>()) > 0 {
            Ending::failed("deleted too early", "no pod may go before there is a new revision")
        } else {
            Ending::Passed
        };
        let record = requests.to_string();
        stage.end().await?;
        Ok(Outcome::new(ending, record).with_trace(trace))
    }
}

fn search() -> Search {
    Search::new()
        .bounds(Bounds { holds: Some(2), ..Bounds::default() })
        .leaves_out("steps of other actors")
        .leaves_out("two reads of one stream between two replies")
}

/// The seed's race: found, reduced to the one stream that has to be behind, and replayed from its
/// token.
#[tokio::test]
async fn the_originals_race_is_found_reduced_and_replayed() -> Result<()> {
    let subject = Rollout::on_a_plane(Code::Original).await?;
    let explored = search().run(&subject).await?;
    let found = explored.failures.into_iter().next().context("the race was not found")?;
    ensure!(found.oracle() == ORACLE, "{}", found.oracle());
    ensure!(found.number > 1, "the first run, in which everything is fresh, must pass");

    let reduced = Shrink::new().max_runs(20).run(&subject, found).await?;
    ensure!(reduced.needs == Needs::Staleness, "{:?}", reduced.needs);
    let token = reduced.failure.token().to_string();
    ensure!(
        token.starts_with("statefulsets.apps@") && !token.contains("seinodes"),
        "only the StatefulSet stream has to be behind: {token}"
    );

    let token: Token = token.parse()?;
    let again = replay(&subject, &token).await?.context("the token no longer fails")?;
    ensure!(again.oracle() == ORACLE);
    subject.end().await
}

/// The same search over the operator: every view within the bounds, and none breaks it.
#[tokio::test]
async fn no_view_within_the_bounds_breaks_the_operator() -> Result<()> {
    let subject = Rollout::on_a_plane(Code::Port).await?;
    let explored = search().keep_going().run(&subject).await?;
    if let Some(failure) = explored.failures.first() {
        bail!("{} with {}\n{}", failure.oracle(), failure.token(), failure.outcome.record);
    }
    let verdict = &explored.verdict;
    ensure!(matches!(verdict.completeness, Completeness::Exhausted { .. }), "{verdict}");
    ensure!(verdict.runs >= 10, "a search over next to nothing: {verdict}");
    ensure!(verdict.to_string().contains("left out: steps of other actors"), "{verdict}");
    tracing::warn!(%verdict, "explored");
    subject.end().await
}

impl Rollout {
    async fn end(self) -> Result<()> {
        let plane = Arc::into_inner(self.plane).context("somebody still has the plane")?;
        plane.stop().await?;
        Ok(())
    }
}
