//! What is recalled in a world is what the server did in another one.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use kube::Client;
use laggard::check::{Check, Scenario, SetUp, World};
use serde_json::{Value, json};

use super::equal::{Script, same};
use super::operations::{Operation, operations};
use super::stage::Stage;

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
