//! Whether an exploration can go on for ever: memory, etcd's data and the cost of a schedule, over many of them.

#![expect(clippy::print_stdout, reason = "a bench is a program that prints")]

#[path = "../../harness/benches/figures/mod.rs"]
mod figures;
mod memory;
#[path = "../../harness/benches/processes/mod.rs"]
mod processes;
mod rollouts;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::reflector::ObjectRef;
use laggard::Plane;
use laggard::check::{BoxError, Check, Scenario, SetUp, World};
use laggard::explore::Sample;
use rollout_tests::rollout;
use serde_json::json;
use tokio::sync::mpsc;

use figures::{Figures, Limit};
use memory::{Memory, Servers};
use rollouts::ears::{Ears, Times};
use rollouts::{end, exploring};

/// One figure of what is used.
type FigureOf = fn(&Memory) -> f64;

/// How many schedules, unless `LAGGARD_PLATEAU` says otherwise. `LAGGARD_PLATEAU_OF=rollout` makes them of the operator, at some
/// seven a second.
const SCHEDULES: u64 = 20_000;

/// A point of the curve each time so many parts of the whole are done.
const POINTS: u64 = 40;

const AT_ONCE: usize = 4;

/// What the second half of the schedules may need of anything, against the half before.
const GROWTH: f64 = 1.15;

/// And how many files more etcd's log may have: one that is full goes when etcd looks next, which it does every 30 s.
const LOGS: f64 = 1.0;

/// How things stand after some schedules.
struct At {
    schedules: u64,
    memory: Memory,
    /// Of a schedule since the point before.
    cost: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let schedules = match std::env::var("LAGGARD_PLATEAU") {
        Ok(text) => text.parse().with_context(|| format!("LAGGARD_PLATEAU={text:?}"))?,
        Err(_) => SCHEDULES,
    };
    ensure!(schedules >= POINTS, "LAGGARD_PLATEAU={schedules}: at least {POINTS} schedules");
    let ears = Ears::listen();
    let (plane, scenario) = match std::env::var("LAGGARD_PLATEAU_OF").as_deref() {
        Err(_) | Ok("" | "small") => {
            (Arc::new(Plane::builder().exploring().start().await?), small())
        }
        Ok("rollout") => {
            let plane = exploring().await?;
            let scenario = rollout::node_update(&plane);
            (plane, scenario)
        }
        Ok(other) => bail!("LAGGARD_PLATEAU_OF={other:?}; write \"small\" or \"rollout\""),
    };
    let curve = followed(&ears, &plane, scenario, schedules).await?;
    end(plane).await?;
    write(&curve)?;
    judge(&curve, schedules)
}

/// A process that is over in a few passes: what a run costs is then mostly the harness's own, and so many of them take
/// minutes.
fn small() -> Scenario {
    Scenario::new("plateau", passes)
        .set_up(|world: SetUp| async move {
            for (name, data) in
                [("wanted", json!({"size": "1"})), ("status", json!({"reached": "1"}))]
            {
                let map =
                    serde_json::from_value(json!({"metadata": {"name": name}, "data": data}))?;
                world.api::<ConfigMap>().create(&PostParams::default(), &map).await?;
            }
            anyhow::Ok(())
        })
        .after_settle("the size is reported", |truth| {
            truth.get::<ConfigMap>("status").is_some_and(|map| number(&map, "reached") == SIZE)
        })
}

const SIZE: u32 = 4;

/// Raises a size by one where its cache does not show that yet, reads it back, and reports it, until its cache shows that
/// it has got there.
async fn passes(world: World) -> Result<(), BoxError> {
    let (maps, apply) = (world.api::<ConfigMap>(), PatchParams::default());
    let cache = world.cache::<ConfigMap>().await?;
    let cached = |name: &str, key: &str| {
        let map = cache.get(&ObjectRef::new(name).within(world.namespace()));
        map.map_or(0, |map| number(&map, key))
    };
    let pass = || async {
        let size = cached("status", "reached") + 1;
        if size > SIZE {
            return Ok(());
        }
        if cached("wanted", "size") != size {
            let size = json!({"data": {"size": size.to_string()}});
            maps.patch("wanted", &apply, &Patch::Merge(size)).await?;
        }
        let size = json!({"data": {"reached": value(&maps.get("wanted").await?, "size")}});
        maps.patch("status", &apply, &Patch::Merge(size)).await?;
        Ok::<(), kube::Error>(())
    };
    world.until_settled("demo", pass).await?;
    Ok(())
}

fn number(map: &ConfigMap, key: &str) -> u32 {
    value(map, key).parse().unwrap_or_default()
}

fn value(map: &ConfigMap, key: &str) -> String {
    map.data.as_ref().and_then(|data| data.get(key)).cloned().unwrap_or_default()
}

/// Makes the schedules, and looks now and then.
async fn followed(
    ears: &Ears,
    plane: &Arc<Plane>,
    scenario: Scenario,
    schedules: u64,
) -> Result<Vec<At>> {
    let servers = Servers::of_this_process()?;
    let (sender, mut due) = mpsc::unbounded_channel();
    let (made, listening) = (AtomicU64::new(0), ears.clone());
    let each = schedules / POINTS;
    let check = Check::new().without_files().inspect(move |_| {
        let made = made.fetch_add(1, Ordering::SeqCst) + 1;
        // The requests are of no interest here.
        listening.take_sent();
        if made.is_multiple_of(each) {
            // Nobody listens any more if the bench is about to fail.
            let _ = sender.send(made);
        }
    });
    let ran = async move {
        let sample = Sample::pct(1, schedules, 2).parallel(AT_ONCE);
        // With the check goes the sender, which ends the looking.
        check.sample(&**plane, scenario, &sample).await
    };
    let looked = async {
        let mut curve: Vec<At> = Vec::new();
        let mut last = Instant::now();
        while let Some(schedules) = due.recv().await {
            let before = curve.last().map_or(0, |at| at.schedules);
            let made = u32::try_from(schedules - before)?.max(1);
            let cost = last.elapsed() / made;
            last = Instant::now();
            ears.take();
            let at = At { schedules, memory: servers.memory()?, cost };
            println!("{}", row(&at));
            curve.push(at);
        }
        anyhow::Ok(curve)
    };
    let (report, curve) = tokio::join!(ran, looked);
    println!("{}", report?.verdict);
    curve
}

fn row(at: &At) -> String {
    let Memory { own, apiserver, etcd, database, logs } = at.memory;
    let cost = at.cost.as_secs_f64() * 1000.0;
    format!(
        "{:>7} schedules: test {own:>6.1} MiB, apiserver {apiserver:>7.1} MiB, etcd {etcd:>6.1} MiB, its database \
         {database:>6.1} MiB, {logs} files of log, {cost:.2} ms each",
        at.schedules
    )
}

/// The curve as a table, beside the figures.
fn write(curve: &[At]) -> Result<()> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("no target")?;
    let mut file = File::create(target.join("plateau.csv"))?;
    writeln!(
        file,
        "schedules,test MiB,apiserver MiB,etcd MiB,etcd's database MiB,etcd's log files,ms a schedule"
    )?;
    for At { schedules, memory: Memory { own, apiserver, etcd, database, logs }, cost } in curve {
        let cost = cost.as_secs_f64() * 1000.0;
        writeln!(
            file,
            "{schedules},{own:.1},{apiserver:.1},{etcd:.1},{database:.1},{logs},{cost:.3}"
        )?;
    }
    Ok(())
}

/// The second half against the quarter before it: by then everything has been filled once.
fn judge(curve: &[At], schedules: u64) -> Result<()> {
    let mut figures = Figures::of("plateau");
    let quarter = curve.len() / 4;
    let (before, after) = (&curve[quarter..2 * quarter], &curve[2 * quarter..]);
    let most = |points: &[At], of: fn(&Memory) -> f64| {
        points.iter().map(|at| of(&at.memory)).fold(0.0, f64::max)
    };
    let parts: [(&str, FigureOf); 4] = [
        ("test process", |it| it.own),
        ("API server", |it| it.apiserver),
        ("etcd", |it| it.etcd),
        ("etcd's database", |it| it.database),
    ];
    for (part, of) in parts {
        let (before, after) = (most(before, of), most(after, of));
        figures.count(&format!("{part} after {schedules} schedules"), after, "MiB", Limit::None);
        let name = format!("{part}, the second half against the quarter before");
        figures.ratio(&name, after / before, Limit::AtMost(GROWTH));
    }
    let logs = |points: &[At]| most(points, |it| it.logs);
    let name = "files of etcd's log, the second half's most beyond the quarter's before";
    figures.count(name, logs(after) - logs(before), "", Limit::AtMost(LOGS));
    let mean = |points: &[At]| {
        let sum: f64 = points.iter().map(|at| at.cost.as_secs_f64()).sum();
        sum / points.len() as f64
    };
    let name = "cost of a schedule, the last quarter against the second";
    let last = mean(&curve[3 * quarter..]);
    figures.ratio(name, last / mean(before), Limit::AtMost(GROWTH));
    figures.rate("schedules a second", 1.0 / mean(curve), Limit::None);
    figures.finish()
}

/// This bench has no use for them.
const _: () = {
    let _ = (Times::whole, figures::spread, figures::share);
    let _ = rollouts::written;
};
