//! A check that is split into parts, on a real server: in this process, and in processes that read their part from
//! the environment, as the pods of a job do.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{batch::v1::Job, core::v1::ConfigMap};
use kube::{
    Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::reflector::ObjectRef,
};
use laggard::{
    Check, Plane,
    check::{BoxError, Report, Scenario, SetUp, World},
    lag::model::Verdict,
    report::{Results, merge},
};
use serde_json::json;

const MANIFEST: &str = include_str!("../../../docs/indexed-job.yaml");

/// Where the process of one part finds the server of the whole.
const KUBECONFIG: &str = "LAGGARD_TEST_KUBECONFIG";

async fn set_up(world: SetUp) -> Result<()> {
    let map = serde_json::from_value(json!({"metadata": {"name": "m"}, "data": {"n": "0"}}))?;
    world.api::<ConfigMap>().create(&PostParams::default(), &map).await?;
    Ok(())
}

/// One pass: three writes, each read back from the cache.
async fn pass(world: &World) -> Result<(), BoxError> {
    let (maps, how) = (world.api::<ConfigMap>(), PatchParams::default());
    let cache = world.cache::<ConfigMap>().await?;
    world
        .pass("m", async {
            for number in 1..=3 {
                let data = json!({"data": {"n": number.to_string()}});
                maps.patch("m", &how, &Patch::Merge(data)).await?;
                let _ = cache.get(&ObjectRef::new("m").within(world.namespace()));
            }
            Ok::<(), kube::Error>(())
        })
        .await?;
    Ok(())
}

fn scenario() -> Scenario {
    Scenario::new("three writes", |world: World| async move { pass(&world).await }).set_up(set_up)
}

/// The tokens of all runs that were made, each once.
fn tokens<'a>(results: impl IntoIterator<Item = &'a Results>) -> Result<BTreeSet<String>> {
    let mut tokens = BTreeSet::new();
    for results in results {
        ensure!(results.left_out() == 0, "{results}");
        for run in &results.runs {
            ensure!(tokens.insert(run.token.clone()), "{} was made twice", run.token);
        }
    }
    Ok(tokens)
}

/// Holds the parts against the whole: they have made the same runs, and merge to the same verdict.
fn make_the_whole(whole: &Report, parts: Vec<Results>) -> Result<()> {
    ensure!(parts.iter().all(|part| part.verdict.runs > 0), "a part had nothing to do: {parts:?}");
    ensure!(tokens(&parts)? == tokens([&whole.results()])?, "{parts:?}");
    let named = parts.into_iter().enumerate().map(|(index, part)| (index.to_string(), part));
    let merged = merge(named)?;
    ensure!(merged.runs_by_cost == whole.runs_by_cost, "{merged}");
    let (one, other) = (&merged.verdict, &whole.verdict);
    ensure!(
        (one.runs, one.naive, one.points) == (other.runs, other.naive, other.points),
        "{merged}"
    );
    let dropped = |verdict: &Verdict| (verdict.impossible, verdict.redundant);
    ensure!(dropped(one) == dropped(other), "{merged} is not {whole}");
    ensure!(one.completeness == other.completeness, "{merged} is not {whole}");
    Ok(())
}

#[tokio::test]
async fn the_parts_make_exactly_the_runs_of_the_whole() -> Result<()> {
    let plane = Plane::builder().start().await?;
    let files = tempfile::tempdir()?;
    let check = Check::new().regressions(files.path()).output(files.path());
    let whole = check.run(&plane, scenario()).await?;
    ensure!(whole.verdict.runs > 6, "there is something to split: {whole}");
    ensure!(whole.server.is_some() && whole.baseline.is_some(), "{whole:?}");
    let mut parts = Vec::new();
    for number in 1..=3 {
        let part = check.clone().shard(format!("{number}/3").parse()?);
        parts.push(part.run(&plane, scenario()).await?.results());
    }
    let kept = std::fs::read_to_string(files.path().join("three-writes.shard-3-of-3.json"))?;
    ensure!(Results::parse(&kept)?.runs == parts[2].runs, "the file is not what was returned");
    ensure!(files.path().join("three-writes.html").exists());
    make_the_whole(&whole, parts)?;

    let kubeconfig = files.path().join("kubeconfig");
    std::fs::write(&kubeconfig, plane.kubeconfig())?;
    for by_index in [false, true] {
        let output = files.path().join(by_index.to_string());
        let mut parts = Vec::new();
        for number in 1..=3 {
            let number: u32 = number;
            let variables = match by_index {
                true => vec![
                    ("LAGGARD_SHARDS", "3".to_owned()),
                    ("JOB_COMPLETION_INDEX", (number - 1).to_string()),
                ],
                false => vec![("LAGGARD_SHARD", format!("{number}/3"))],
            };
            let ended = process(&kubeconfig, &output, &variables).await?;
            ensure!(ended.status.success(), "{variables:?}: {}", talk(&ended));
            let file = format!("it.shards.one_part/three-writes.shard-{number}-of-3.json");
            let text = std::fs::read_to_string(output.join(&file)).context(file)?;
            parts.push(Results::parse(&text)?);
        }
        make_the_whole(&whole, parts)?;
    }

    let malformed = [("LAGGARD_SHARD", "4/3".to_owned())];
    let ended = process(&kubeconfig, files.path(), &malformed).await?;
    ensure!(!ended.status.success(), "{}", talk(&ended));
    let said = "failed to read LAGGARD_SHARD=\"4/3\": expected \"1/4\" for the first of four";
    ensure!(talk(&ended).matches(said).count() == 1, "{}", talk(&ended));
    plane.stop().await?;
    Ok(())
}

/// Runs one part in a process of its own, which has these variables and none of ours that say what to do.
async fn process(kubeconfig: &Path, output: &Path, variables: &[(&str, String)]) -> Result<Output> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "shards::one_part", "--ignored", "--nocapture", "--test-threads=2"]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LAGGARD_") || name == "JOB_COMPLETION_INDEX" {
            command.env_remove(name);
        }
    }
    command.env(KUBECONFIG, kubeconfig).env("LAGGARD_OUTPUT", output);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

fn talk(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

#[tokio::test]
#[ignore = "a part of the test above, which starts it"]
async fn one_part() -> Result<()> {
    let kubeconfig = std::env::var_os(KUBECONFIG).context("the test above has not started this")?;
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let how = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &how).await?;
    let report = laggard::check(config, scenario()).await?;
    println!("{report}");
    Ok(())
}

#[test]
fn the_manifest_of_the_page_is_an_indexed_job_that_splits_the_work() -> Result<()> {
    let job = serde_saphyr::from_multiple::<serde_json::Value>(MANIFEST)?
        .into_iter()
        .find(|object| object["kind"] == "Job")
        .context("there is no job in it")?;
    // What is misspelt is not lost in silence.
    let read: Job = serde_json::from_value(job.clone())?;
    ensure!(serde_json::to_value(&read)? == job, "{read:?}");
    let spec = read.spec.context("it has no spec")?;
    ensure!(spec.completion_mode.as_deref() == Some("Indexed"), "{spec:?}");
    let completions = spec.completions.context("it does not say how many parts")?;
    let pod = spec.template.spec.context("it has no pod")?;
    let container = pod.containers.first().context("it has no container")?;
    let variable = |name: &str| {
        let found = container.env.iter().flatten().find(|variable| variable.name == name);
        found.and_then(|variable| variable.value.clone())
    };
    ensure!(variable("LAGGARD_SHARDS") == Some(completions.to_string()), "{container:?}");
    let output = variable("LAGGARD_OUTPUT").context("it says nowhere where results go")?;
    let mounts = container.volume_mounts.iter().flatten();
    let mount = mounts.into_iter().find(|mount| output.starts_with(&mount.mount_path));
    let mount = mount.context("the results are not on a volume")?;
    ensure!(pod.volumes.iter().flatten().any(|volume| volume.name == mount.name), "{pod:?}");
    // Kubernetes sets it by itself; a value here would be the same in each pod.
    ensure!(variable("JOB_COMPLETION_INDEX").is_none(), "{container:?}");
    Ok(())
}
