//! A fork equals the world that it was forked from, and behaves as that one did.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use laggard::world::World;
use serde_json::{Value, json};

use super::operations::{COLLECTIONS, Operation, operations};
use super::stage::{Stage, request, request_as};

on_each_server!(a_fork_of_any_moment_equals_its_source_and_goes_on_as_it_did);

/// Forks each moment of a world that is made through the API server, past ones included, and does
/// in the fork what was done in the source after it: after each operation the answer and all
/// objects are the same but for names, UIDs, times and revisions.
async fn a_fork_of_any_moment_equals_its_source_and_goes_on_as_it_did(stage: &Stage) -> Result<()> {
    let operations = operations();
    assert!(operations.len() >= 50, "{}", operations.len());
    let source = stage.namespace().await?;
    let mut script = Script::new(stage.client.clone(), source.clone());
    let mut steps = vec![script.look(String::new()).await?];
    for (index, operation) in operations.iter().enumerate() {
        let step = script.step(operation).await?;
        assert_eq!(
            script.status, operation.expected,
            "operation {index}, {} {}: {}",
            operation.method, operation.path, step.answer,
        );
        steps.push(step);
    }

    let mut compared = 0;
    let every = if std::env::var_os("LAGGARD_WORLD_ROUNDS").is_some() { 1 } else { 6 };
    for begin in (0..steps.len()).rev().step_by(every) {
        let moment = stage.worlds.moment_at(&source, steps[begin].revision).await?;
        let world = stage.worlds.fork(&moment).await?;
        world.ready(&stage.client).await?;
        let mut forked = script.in_fork(&world, &steps[begin]);
        let step = forked.look(String::new()).await?;
        same(&steps[begin].state, &step.state, &format!("the fork at step {begin}"))?;
        for (index, operation) in operations.iter().enumerate().skip(begin) {
            let step = forked.step(operation).await?;
            let what = format!("operation {index} in the fork at step {begin}");
            same(&json!(steps[index + 1].answer), &json!(step.answer), &what)?;
            same(&steps[index + 1].state, &step.state, &what)?;
            compared += 1;
        }
        stage.worlds.erase(world).await?;
    }
    println!("{} operations, {compared} compared in forks", operations.len());
    Ok(())
}

pub(super) fn same(source: &Value, fork: &Value, what: &str) -> Result<()> {
    let text = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_default();
    let (source, fork) = (text(source), text(fork));
    if source != fork {
        let differing = source.lines().zip(fork.lines()).position(|(a, b)| a != b).unwrap_or(0);
        let near = |text: &str| {
            let lines = text.lines().skip(differing.saturating_sub(8)).take(16);
            lines.collect::<Vec<_>>().join("\n")
        };
        anyhow::bail!("{what} differs; source:\n{}\nfork:\n{}", near(&source), near(&fork));
    }
    Ok(())
}

/// Operations in one namespace, and what they show, normalised.
pub(super) struct Script {
    client: Client,
    /// Who lists everything.
    onlooker: Client,
    namespace: String,
    /// UIDs and generated names, and what they are called in every namespace.
    labels: HashMap<String, String>,
    /// How many of each label there have been.
    seen: HashMap<String, usize>,
    /// The objects as they are, by kind and name.
    objects: HashMap<String, Value>,
    pub(super) status: u16,
}

/// What there is after an operation.
pub(super) struct Step {
    pub(super) answer: String,
    pub(super) state: Value,
    /// No older than the operation, and older than the next one.
    revision: i64,
    labels: HashMap<String, String>,
    seen: HashMap<String, usize>,
}

impl Script {
    pub(super) fn new(client: Client, namespace: String) -> Self {
        let (labels, seen, objects) = <_>::default();
        Self { onlooker: client.clone(), client, namespace, labels, seen, objects, status: 0 }
    }

    /// With another client for what is only looked at.
    pub(super) fn looked_at_by(self, onlooker: Client) -> Self {
        Self { onlooker, ..self }
    }

    /// The same labels, for what has other UIDs there.
    fn in_fork(&self, world: &World, step: &Step) -> Self {
        let renamed = step.labels.iter().map(|(name, label)| {
            let name = world.renames().uid(name).unwrap_or(name).to_owned();
            (name, label.clone())
        });
        let mut script = Self::new(self.client.clone(), world.namespace().to_owned());
        script.labels = renamed.collect();
        script.seen = step.seen.clone();
        script
    }

    pub(super) async fn step(&mut self, operation: &Operation) -> Result<Step> {
        let path = self.fill(&operation.path)?;
        let body = match &operation.body {
            Some(body) => Some(serde_json::from_str(&self.fill(&body.to_string())?)?),
            None => None,
        };
        let Operation { method, content, .. } = operation;
        let answer = request_as(&self.client, method, &path, content, body.as_ref()).await;
        let answer = match answer {
            Ok(answer) => {
                // Which of the two a success has is not to be seen here; creations say so.
                self.status = if operation.expected < 300 { operation.expected } else { 200 };
                answer
            }
            Err(kube::Error::Api(status)) => {
                self.status = status.code;
                serde_json::to_value(&status)?
            }
            Err(error) => return Err(error.into()),
        };
        self.label(&answer);
        let answer = self.normal(&answer);
        self.look(answer.to_string()).await
    }

    /// Lists everything.
    pub(super) async fn look(&mut self, answer: String) -> Result<Step> {
        let mut lists = Vec::new();
        self.objects.clear();
        let mut revision = 0;
        for (kind, path) in COLLECTIONS {
            let path = self.fill(path)?;
            let list = request(&self.onlooker, "GET", &path, None).await?;
            let at: i64 = list["metadata"]["resourceVersion"].as_str().context("no rv")?.parse()?;
            revision = revision.max(at);
            let mut items = list["items"].as_array().cloned().unwrap_or_default();
            for item in &items {
                let name = item["metadata"]["name"].as_str().context("no name")?;
                self.objects.insert(format!("{kind}/{name}"), item.clone());
                self.label(item);
            }
            // Of revisions only their order is the same.
            let rv = |item: &Value| -> Option<i64> {
                item["metadata"]["resourceVersion"].as_str()?.parse().ok()
            };
            items.sort_by_key(rv);
            lists.push(json!({ "kind": kind, "in the order of their revisions": items }));
        }
        let state = self.normal(&json!(lists));
        let (labels, seen) = (self.labels.clone(), self.seen.clone());
        Ok(Step { answer, state, revision, labels, seen })
    }

    fn fill(&self, text: &str) -> Result<String> {
        let mut filled = text.replace("{ns}", &self.namespace);
        for (field, key) in [("{uid ", "uid"), ("{rv ", "resourceVersion")] {
            while let Some(start) = filled.find(field) {
                let end = start + filled[start..].find('}').context("unclosed")?;
                let object = self.objects.get(&filled[start + field.len()..end]);
                let object = object.with_context(|| format!("{filled}: no such object"))?;
                let value = object["metadata"][key].as_str().context("no such field")?.to_owned();
                filled.replace_range(start..=end, &value);
            }
        }
        Ok(filled)
    }

    /// Gives the UID of an object, and its name if it was generated, a label that does not depend on
    /// the namespace.
    fn label(&mut self, object: &Value) {
        let metadata = &object["metadata"];
        let (Some(name), Some(uid)) = (metadata["name"].as_str(), metadata["uid"].as_str()) else {
            return;
        };
        let name = match metadata["generateName"].as_str() {
            Some(prefix) if name != prefix => {
                self.name(name, format!("<{prefix}generated>"));
                prefix
            }
            _ => name,
        };
        let kind = &object["kind"].as_str().unwrap_or("an object");
        // Lists do not say the kind, and the answer came before.
        self.name(uid, format!("<uid of {kind} {name}>"));
    }

    fn name(&mut self, what: &str, label: String) {
        if !self.labels.contains_key(what) {
            let count = self.seen.entry(label.clone()).or_default();
            *count += 1;
            self.labels.insert(what.to_owned(), format!("{label} {count}"));
        }
    }

    fn normal(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => {
                // Secrets are shown in base64.
                let decoded = STANDARD.decode(text).ok().and_then(|it| String::from_utf8(it).ok());
                let text = decoded.filter(|it| it.contains("lw-")).unwrap_or(text.clone());
                let mut text = text.replace(&self.namespace, "<namespace>");
                for (name, label) in &self.labels {
                    text = text.replace(name, label);
                }
                if text.len() >= 20 && text.ends_with('Z') && text.as_bytes()[10] == b'T' {
                    text = "<time>".to_owned();
                }
                json!(text)
            }
            Value::Array(items) => {
                json!(items.iter().map(|it| self.normal(it)).collect::<Vec<_>>())
            }
            Value::Object(fields) => {
                let fields = fields.iter().filter(|(key, _)| *key != "resourceVersion");
                let normal = fields.map(|(key, value)| {
                    let mut value = self.normal(value);
                    // Their order depends on the second in which something was written.
                    if key == "managedFields"
                        && let Some(entries) = value.as_array_mut()
                    {
                        entries.sort_by_key(ToString::to_string);
                    }
                    // Generated names come in any order.
                    if key == "items"
                        && let Some(items) = value.as_array_mut()
                    {
                        items.sort_by_key(|item| item["metadata"]["name"].to_string());
                    }
                    let Value::String(key) = self.normal(&json!(key)) else { unreachable!() };
                    (key, value)
                });
                Value::Object(normal.collect())
            }
            other => other.clone(),
        }
    }
}
