//! What is recalled in a world is what the server did in another one.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use laggard::check::{Check, Report, Scenario, Server, SetUp, World};
use serde_json::{Value, json};

use super::equal::{Script, same};
use super::operations::{Operation, operations};
use super::stage::{self, Stage, request};

on_each_server!(each_answer_and_each_object_is_as_the_server_left_them);

/// What each step of each run has shown: the answer, and everything that is there then.
type Runs = Arc<Mutex<Vec<Vec<(String, Value)>>>>;

/// Makes the operations up to some point in a set-up, and those from there on in runs: in the first one the server
/// answers, in the later ones memory does. After each operation the answer and all objects, as somebody sees them who asks
/// the server, are the same but for names, UIDs, times and revisions.
async fn each_answer_and_each_object_is_as_the_server_left_them(stage: &Stage) -> Result<()> {
    for part in parts(&operations()) {
        let runs = Runs::default();
        let (client, seen, process) = (stage.client.clone(), Arc::clone(&runs), part.clone());
        let begin = part.start;
        let scenario = Scenario::new("operations", move |world: World| {
            let (client, seen, part) = (client.clone(), Arc::clone(&seen), process.clone());
            async move {
                let steps = in_world(&world, client, part).await?;
                seen.lock().expect("no run panics").push(steps);
                anyhow::Ok(())
            }
        });
        let scenario = scenario.set_up(move |world: SetUp| async move {
            let mut script = Script::new(world.client(), world.namespace().to_owned());
            script.look(String::new()).await?;
            for operation in &operations()[..begin] {
                script.step(operation).await?;
            }
            anyhow::Ok(())
        });
        let report = Check::new().without_files().run(&stage.plane, scenario).await?;
        let runs = std::mem::take(&mut *runs.lock().expect("no run panics"));
        let [first, rest @ ..] = &*runs else { anyhow::bail!("no run: {report}") };
        ensure!(!rest.is_empty(), "one run alone: {report}");
        for (number, run) in rest.iter().enumerate() {
            ensure!(first.len() == run.len(), "{} and {} steps", first.len(), run.len());
            for (index, (one, other)) in first.iter().zip(run).enumerate() {
                let what = format!("operation {} in run {}", begin + index, number + 1);
                same(&json!(one.0), &json!(other.0), &what)?;
                same(&one.1, &other.1, &what)?;
            }
        }
        // All but those of the first run.
        let (recalled, all) = (report.verdict.recalled, report.verdict.requests);
        let operations = u64::try_from(part.len())?;
        ensure!(recalled + operations == all, "{recalled} of {all}, {} runs: {report}", runs.len());
    }
    Ok(())
}

async fn in_world(
    world: &World,
    onlooker: Client,
    part: Range<usize>,
) -> Result<Vec<(String, Value)>> {
    let mut script =
        Script::new(world.client(), world.namespace().to_owned()).looked_at_by(onlooker);
    script.look(String::new()).await?;
    let mut steps = Vec::new();
    for operation in &operations()[part] {
        let step = script.step(operation).await?;
        ensure!(script.status == operation.expected, "{} {}", operation.path, step.answer);
        steps.push((step.answer, step.state));
    }
    Ok(steps)
}

/// The operations without those after which nobody knows how things stand, which end each part.
fn parts(operations: &[Operation]) -> Vec<Range<usize>> {
    let unclear = |operation: &Operation| {
        operation.path.ends_with("/binding")
            || (operation.method == "DELETE" && operation.path.contains("labelSelector"))
    };
    let mut parts = Vec::new();
    let mut begin = 0;
    for (index, operation) in operations.iter().enumerate() {
        if unclear(operation) {
            parts.push(begin..index);
            begin = index + 1;
        }
    }
    parts.push(begin..operations.len());
    parts
}

/// What a process does in a world, and whoever asks the server beside it.
type Process = fn(World, Client) -> BoxFuture<'static, Result<()>>;

/// Where it is not known how things stand, the server is asked, and says how they do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_understood_is_asked() -> Result<()> {
    let stage = Stage::start(stage::Server::exploring).await?.context("no plane")?;
    let understood = made(&stage, |world, _| Box::pin(in_turn(world)), true).await?;
    ensure!(understood.verdict.recalled > 0, "else the others show nothing: {understood}");
    let processes: [(&str, Process); 4] = [
        ("another client writes", |world, other| Box::pin(beside_another(world, other))),
        ("something outside is written", |world, _| Box::pin(outside(world))),
        ("writes at once", |world, _| Box::pin(at_once(world))),
        ("a body that is no JSON", |world, _| Box::pin(yaml(world))),
    ];
    for (what, process) in processes {
        let report = made(&stage, process, true).await?;
        ensure!(report.verdict.recalled == 0, "{what}: {report}");
    }
    let asked = made(&stage, |world, _| Box::pin(in_turn(world)), false).await?;
    ensure!(asked.verdict.recalled == 0 && asked.verdict.requests == 0, "{asked}");
    // It is not there, and nothing asks it; but another one may be the code under test.
    let hook = json!({ "metadata": { "name": "none" }, "webhooks": [{
        "name": "none.laggard.test", "failurePolicy": "Ignore", "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "clientConfig": { "url": "https://127.0.0.1:1/" },
        "rules": [{ "apiGroups": ["laggard.none"], "apiVersions": ["*"], "resources": ["*"], "operations": ["*"] }],
    }] });
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    request(&stage.client, "POST", path, Some(&hook)).await?;
    let hooked = made(&stage, |world, _| Box::pin(in_turn(world)), true).await?;
    ensure!(hooked.verdict.recalled == 0 && hooked.verdict.requests == 0, "{hooked}");
    stage.stop().await
}

async fn made(stage: &Stage, process: Process, recall: bool) -> Result<Report> {
    let other = stage.client.clone();
    let scenario = Scenario::new("recall", move |world: World| process(world, other.clone()));
    let server = Server::from(&stage.plane);
    let server = if recall { server } else { server.without_recall() };
    Ok(Check::new().without_files().run(server, scenario).await?)
}

fn map(name: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(json!({ "metadata": { "name": name } }))?)
}

/// Makes two maps, and sees them.
async fn in_turn(world: World) -> Result<()> {
    let maps = world.api::<ConfigMap>();
    for name in ["a", "b"] {
        maps.create(&PostParams::default(), &map(name)?).await?;
    }
    sees_both(&maps).await
}

async fn at_once(world: World) -> Result<()> {
    let maps = world.api::<ConfigMap>();
    let (post, a, b) = (PostParams::default(), map("a")?, map("b")?);
    tokio::try_join!(maps.create(&post, &a), maps.create(&post, &b))?;
    sees_both(&maps).await
}

async fn beside_another(world: World, other: Client) -> Result<()> {
    let maps = world.api::<ConfigMap>();
    maps.create(&PostParams::default(), &map("a")?).await?;
    let others: Api<ConfigMap> = Api::namespaced(other, world.namespace());
    others.create(&PostParams::default(), &map("b")?).await?;
    sees_both(&maps).await
}

async fn outside(world: World) -> Result<()> {
    let outside: Api<ConfigMap> = Api::namespaced(world.client(), "default");
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "outside" } });
    outside.patch("outside", &PatchParams::apply("test"), &Patch::Apply(map)).await?;
    in_turn(world).await
}

async fn yaml(world: World) -> Result<()> {
    let path = format!("/api/v1/namespaces/{}/configmaps/a?fieldManager=x", world.namespace());
    let body = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}";
    let request = http::Request::patch(path)
        .header("content-type", "application/apply-patch+yaml")
        .body(body.as_bytes().to_vec())?;
    world.client().request::<Value>(request).await?;
    let maps = world.api::<ConfigMap>();
    maps.create(&PostParams::default(), &map("b")?).await?;
    sees_both(&maps).await
}

async fn sees_both(maps: &Api<ConfigMap>) -> Result<()> {
    let mut seen: Vec<String> = maps
        .list(&ListParams::default())
        .await?
        .into_iter()
        .filter_map(|map| map.metadata.name)
        .collect();
    seen.retain(|name| name.len() == 1);
    ensure!(seen == ["a", "b"], "{seen:?}");
    Ok(())
}
