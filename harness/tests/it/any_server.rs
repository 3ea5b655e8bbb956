//! A check on a server that nobody here started: all that is known of it is a kubeconfig.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, Config,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::reflector::ObjectRef,
};
use laggard::{
    Check, Plane,
    check::{BoxError, Scenario, SetUp, World},
    lag::model::{Completeness, Confirmation, Needs},
    plane::Flags,
};
use serde_json::json;

/// Where the process that checks finds the server of the one that started it.
const KUBECONFIG: &str = "LAGGARD_TEST_ANY_SERVER";

const WAY: &str = "made through the API, since the etcd of this server is not known";

#[tokio::test]
async fn a_server_that_another_process_started_is_checked_through_its_api_alone() -> Result<()> {
    for cache in ["true", "false"] {
        let flags = Flags::new().set("watch-cache", cache);
        let plane = Plane::builder().apiserver_flags(flags).start().await?;
        let files = tempfile::tempdir()?;
        let kubeconfig = files.path().join("kubeconfig");
        std::fs::write(&kubeconfig, plane.kubeconfig())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "any_server::in_another_process", "--ignored", "--nocapture"]);
        command.env(KUBECONFIG, &kubeconfig);
        let ended = tokio::task::spawn_blocking(move || command.output()).await??;
        let said = [&ended.stdout, &ended.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        ensure!(ended.status.success(), "watch cache {cache}: {}", said.concat());
        plane.stop().await?;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "the process that the test above starts"]
async fn in_another_process() -> Result<()> {
    let kubeconfig = std::env::var_os(KUBECONFIG).context("the test above has not started this")?;
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let how = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &how).await?;
    let check = Check::new().without_files();

    let error = check.run(config.clone(), scenario(false)).await.err().context("it passes")?;
    let report = error.report().with_context(|| error.to_string())?;
    let finding = report.findings.first().context("no finding")?;
    ensure!(finding.needs == Needs::Staleness, "{error}");
    ensure!(finding.confirmed == Confirmation::ThroughApi { runs: 2 }, "{error}");
    ensure!(error.to_string().contains(&format!("\n  worlds: {WAY}\n")), "{error}");
    ensure!(report.page().contains(WAY), "the page does not say it");

    let report = check.run(config.clone(), scenario(true)).await?;
    let exhausted = matches!(report.verdict.completeness, Completeness::Exhausted { .. });
    ensure!(exhausted && report.verdict.runs > 1, "{report}");
    ensure!(report.verdict.worlds.as_deref() == Some(WAY), "{report}");
    ensure!(report.to_string().contains(&format!("worlds: {WAY}")), "{report}");

    // Nobody there removes what is in a namespace, but each is given back.
    let namespaces: Api<Namespace> = Api::all(Client::try_from(config)?);
    let mut worlds = 0;
    for namespace in namespaces.list(&ListParams::default()).await? {
        let name = namespace.metadata.name.context("no name")?;
        if name.starts_with("laggard-") {
            worlds += 1;
            ensure!(namespace.metadata.deletion_timestamp.is_some(), "{name} is left");
        }
    }
    // At least the runs of both searches and two that confirm.
    ensure!(worlds >= 6, "{worlds} worlds");
    Ok(())
}

/// Writes, and reads its cache; or waits with the report until the cache shows it.
fn scenario(careful: bool) -> Scenario {
    let process = move |world: World| async move { pass(&world, careful).await };
    Scenario::new("any server", process).set_up(set_up).never("an old report", |truth| {
        let report = truth.get::<ConfigMap>("report").and_then(|map| map.data);
        report.is_some_and(|data| data.get("n").map(String::as_str) == Some("0"))
    })
}

async fn set_up(world: SetUp) -> Result<()> {
    for (name, data) in [("m", json!({"n": "0"})), ("report", json!({}))] {
        let map = serde_json::from_value(json!({"metadata": {"name": name}, "data": data}))?;
        world.api::<ConfigMap>().create(&PostParams::default(), &map).await?;
    }
    Ok(())
}

async fn pass(world: &World, careful: bool) -> Result<(), BoxError> {
    let (maps, how) = (world.api::<ConfigMap>(), PatchParams::default());
    let cache = world.cache::<ConfigMap>().await?;
    let work = async {
        let one = Patch::Merge(json!({"data": {"n": "1"}}));
        let written = maps.patch("m", &how, &one).await?;
        let Some(read) = cache.get(&ObjectRef::new("m").within(world.namespace())) else {
            return Ok(());
        };
        if careful && read.metadata.resource_version != written.metadata.resource_version {
            return Ok(());
        }
        maps.patch("report", &how, &Patch::Merge(json!({"data": read.data}))).await?;
        Ok::<(), kube::Error>(())
    };
    world.pass("m", work).await?;
    Ok(())
}
