//! Runs beside the requests that they sent, sent again by an ordinary client in worlds of the same form.
//!
//! Every schedule is made three times, and its requests are sent after each; of the three, the middle one counts on both
//! sides. A garbage collection of the server's, or a neighbour of this machine's, makes one of many twice as slow.

mod aliases;

use std::slice;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use laggard::Plane;
use laggard::check::Check;
use laggard::explore::Sample;
use laggard::lag::model::Run;
use laggard::world::{Moment, Worlds};
use rollout_tests::rollout;

use crate::figures::{Figures, Limit, middle, most, spread};
use crate::rollouts::ears::{Ears, Sent, Times};
use aliases::Aliases;

/// Runs, each with what it sent.
type Kept = Vec<(Run, Vec<Sent>)>;

/// So many schedules are made, then their requests are sent, and so on.
const ROUNDS: u64 = 4;
const SCHEDULES: u64 = 25;

/// How often each is made.
const TIMES: usize = 3;

/// A run, and its requests sent again.
type Pair = (Times, Again);

/// Compares nineteen of twenty runs with their requests.
pub(crate) async fn beside_their_requests(
    figures: &mut Figures,
    ears: &Ears,
    plane: &Arc<Plane>,
) -> Result<()> {
    let worlds = Worlds::new(&plane.etcd()?).await?;
    let source = worlds.name().await?;
    let namespace = json_namespace(&source)?;
    kube::Api::all(plane.client()?).create(&kube::api::PostParams::default(), &namespace).await?;
    rollout::settle(Arc::clone(plane), &source).await?;
    let moment = worlds.moment(&source).await?;
    let raw = Raw { worlds, moment, client: plane.client()? };
    // By schedule.
    let mut pairs: Vec<Vec<Pair>> = Vec::new();
    for seed in 0..ROUNDS {
        let first = pairs.len();
        for _ in 0..TIMES {
            let runs = made(ears, plane, seed).await?;
            // The first ones open connections.
            for made in &runs[..2] {
                raw.again(made).await?;
            }
            pairs.resize_with(first + runs.len(), Vec::new);
            for (made, pairs) in runs.into_iter().zip(&mut pairs[first..]) {
                let again = raw.again(&made).await?;
                ensure!(
                    pairs.iter().all(|(_, before)| before.sent == again.sent),
                    "a schedule sent {} requests, and another number the time before",
                    again.sent
                );
                pairs.push((made.times, again));
            }
        }
    }
    raw.worlds.erase_namespace(&source).await?;
    raw.worlds.close().await?;
    let parts: [(&str, PartOfRun, PartOfRaw, Limit); 3] = [
        (
            "a whole run against fork, requests and erasure",
            Times::whole,
            Again::whole,
            Limit::AtMost(1.5),
        ),
        (
            "the process of a run against its requests",
            |it| it.process,
            |it| it.requests,
            Limit::AtMost(1.5),
        ),
        ("a whole run against its requests alone", Times::whole, |it| it.requests, Limit::None),
    ];
    for (name, run, raw, limit) in parts {
        let ratio = |made: &[Pair]| seconds(made, |it| run(&it.0)) / seconds(made, |it| raw(&it.1));
        let ratios: Vec<f64> = pairs.iter().map(|made| ratio(made)).collect();
        figures.ratio(&format!("{name}, median"), middle(ratios.clone()), Limit::None);
        figures.ratio(&format!("{name}, nineteen of twenty"), most(ratios), limit);
        let once = most(pairs.iter().flatten().map(|it| ratio(slice::from_ref(it))).collect());
        figures.ratio(&format!("{name}, each made once, nineteen of twenty"), once, Limit::None);
    }
    // How much of it is the machine: the same work against itself.
    let noise = pairs.iter().flat_map(|made| {
        let middle = seconds(made, |it| it.1.whole());
        made.iter().map(move |it| it.1.whole().as_secs_f64() / middle)
    });
    let name = "fork, requests and erasure once, against the middle of three, nineteen of twenty";
    figures.ratio(name, most(noise.collect()), Limit::None);
    let pairs: Vec<Pair> = pairs.into_iter().flatten().collect();
    let requests = pairs.iter().map(|(_, again)| again.sent).sum::<usize>() / pairs.len();
    figures.count("requests of a run, mean", requests as f64, "", Limit::None);
    let mut times: Vec<Duration> = pairs.iter().map(|(_, again)| again.requests).collect();
    figures.time("the requests of a run, sent again, median", spread(&mut times).0, None);
    Ok(())
}

type PartOfRun = fn(&Times) -> Duration;
type PartOfRaw = fn(&Again) -> Duration;

/// The middle one of these times, in seconds.
fn seconds(pairs: &[Pair], of: impl Fn(&Pair) -> Duration) -> f64 {
    middle(pairs.iter().map(|it| of(it).as_secs_f64()).collect())
}

/// A run, and what it sent.
struct Made {
    run: Run,
    sent: Vec<Sent>,
    times: Times,
}

/// Makes schedules one at a time.
async fn made(ears: &Ears, plane: &Arc<Plane>, seed: u64) -> Result<Vec<Made>> {
    let runs: Arc<Mutex<Kept>> = Arc::default();
    let (kept, listening) = (Arc::clone(&runs), ears.clone());
    let mut times = Vec::new();
    ears.take();
    let keep = move |run: &Run| {
        let namespace = namespace_of(run);
        let sent = listening.take_sent();
        let sent = sent.into_iter().filter(|sent| sent.uri.contains(&namespace)).collect();
        kept.lock().unwrap_or_else(PoisonError::into_inner).push((run.clone(), sent));
    };
    let check = Check::new().without_files().inspect(move |outcome| keep(&outcome.record));
    let sample = Sample::pct(seed, SCHEDULES, crate::DEPTH);
    check.sample(&**plane, rollout::node_update(plane), &sample).await?;
    times.extend(ears.take().runs);
    let runs = std::mem::take(&mut *runs.lock().unwrap_or_else(PoisonError::into_inner));
    ensure!(runs.len() == usize::try_from(SCHEDULES)?, "{} runs were seen", runs.len());
    let mut made = Vec::new();
    for (run, sent) in runs {
        let namespace = namespace_of(&run);
        let times = times.iter().find(|it| it.namespace == namespace);
        made.push(Made { run, sent, times: times.context("a run without its times")?.clone() });
    }
    Ok(made)
}

fn namespace_of(run: &Run) -> String {
    let first = run.history.first().and_then(|commit| commit.key.namespace.clone());
    first.unwrap_or_default()
}

fn json_namespace(name: &str) -> Result<k8s_openapi::api::core::v1::Namespace> {
    Ok(serde_json::from_value(serde_json::json!({ "metadata": { "name": name } }))?)
}

/// The same requests, from an ordinary client.
struct Raw {
    worlds: Worlds,
    moment: Moment,
    client: Client,
}

/// How long they took.
struct Again {
    fork: Duration,
    requests: Duration,
    erasure: Duration,
    sent: usize,
}

impl Again {
    fn whole(&self) -> Duration {
        self.fork + self.requests + self.erasure
    }
}

impl Raw {
    async fn again(&self, made: &Made) -> Result<Again> {
        let begun = Instant::now();
        let world = self.worlds.fork(&self.moment).await?;
        let fork = begun.elapsed();
        let namespace = world.namespace().to_owned();
        let mut aliases = Aliases::between(&made.run, &self.client, &namespace).await?;
        let mut requests = Duration::ZERO;
        let (mut sent, mut refused) = (0, 0);
        for request in made.sent.iter().filter(|request| reaches_the_server(request)) {
            let request = aliases.translated(request)?;
            let method = request.method().clone();
            let begun = Instant::now();
            let reply = self.client.request_text(request).await;
            requests += begun.elapsed();
            sent += 1;
            match reply {
                Ok(text) => aliases.learn(&method, &text)?,
                Err(kube::Error::Api(_)) => refused += 1,
                Err(error) => return Err(error.into()),
            }
        }
        let were_refused = made.run.requests().filter(|(_, step)| {
            matches!(step.request.outcome, laggard::lag::model::Outcome::Status(400..))
        });
        // Else it would not be the same work.
        let were_refused = were_refused.count();
        ensure!(
            refused == were_refused,
            "{refused} requests were refused, {were_refused} in the run"
        );
        let begun = Instant::now();
        self.worlds.erase(world).await?;
        Ok(Again { fork, requests, erasure: begun.elapsed(), sent })
    }
}

/// Lists and watches of whole collections are cut from what is followed anyway.
fn reaches_the_server(sent: &Sent) -> bool {
    let (path, query) = sent.uri.split_once('?').unwrap_or((&sent.uri, ""));
    let collection = ["seinodes", "statefulsets"].iter().any(|plural| path.ends_with(plural));
    !(sent.method == "GET" && collection && !query.contains("Selector"))
}
