//! What a thing of one world is called in another of the same form: names, UIDs, resource versions.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use http::Method;
use kube::Client;
use laggard::lag::model::{Change, Run};
use serde_json::Value;

use crate::rollouts::ears::Sent;

/// Resource and name.
type Object = (String, String);

/// UID and resource version; none for a deletion.
type Version = Option<(String, String)>;

pub(crate) struct Aliases {
    namespace: (String, String),
    /// All versions of each object in the run.
    there: BTreeMap<Object, Vec<Version>>,
    /// The same here, so far.
    here: BTreeMap<Object, Vec<Version>>,
    known: HashMap<String, String>,
    /// The object that the last request was about.
    last: Object,
}

impl Aliases {
    /// Between a run and a world that has its set-up.
    pub(crate) async fn between(run: &Run, client: &Client, namespace: &str) -> Result<Self> {
        let mut there: BTreeMap<Object, Vec<Version>> = BTreeMap::new();
        let mut before = String::new();
        for commit in &run.history {
            before = commit.key.namespace.clone().unwrap_or(before);
            let version = (commit.change != Change::Deleted)
                .then(|| (commit.uid.clone().unwrap_or_default(), commit.resource_version.clone()));
            let object = (commit.resource.clone(), commit.key.name.clone());
            there.entry(object).or_default().push(version);
        }
        let namespace = (before, namespace.to_owned());
        let (here, known, last) = (BTreeMap::new(), HashMap::new(), Object::default());
        let mut aliases = Self { namespace, there, here, known, last };
        let objects: Vec<Object> = aliases.there.keys().cloned().collect();
        for (resource, name) in objects {
            let Some(path) = path(&resource, &aliases.namespace.1, &name) else { continue };
            let request = http::Request::get(path).body(Vec::new())?;
            if let Ok(text) = client.request_text(request).await {
                aliases.last = (resource, name);
                aliases.learn(&Method::GET, &text)?;
            }
        }
        Ok(aliases)
    }

    /// A request as it must be sent here.
    pub(crate) fn translated(&mut self, sent: &Sent) -> Result<http::Request<Vec<u8>>> {
        let uri = sent.uri.replace(&self.namespace.0, &self.namespace.1);
        let mut request = http::Request::builder().method(&*sent.method).uri(&uri);
        if let Some(content_type) = &sent.content_type {
            request = request.header(http::header::CONTENT_TYPE, content_type);
        }
        let mut body = sent.body.as_deref().map(serde_json::from_str::<Value>).transpose()?;
        if let Some(body) = &mut body {
            self.translate(body);
        }
        self.last = object_of(&uri, body.as_ref());
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        Ok(request.body(body)?)
    }

    fn translate(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Some(known) = self.known.get(text) {
                    text.clone_from(known);
                } else if text.contains(&self.namespace.0) {
                    *text = text.replace(&self.namespace.0, &self.namespace.1);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.translate(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.translate(field)),
            _ => {}
        }
    }

    /// Takes in the reply to the last request.
    pub(crate) fn learn(&mut self, method: &Method, reply: &str) -> Result<()> {
        let reply: Value = serde_json::from_str(reply)?;
        let text =
            |pointer: &str| reply.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let version = match (method == Method::DELETE, text("/metadata/uid")) {
            (true, _) => None,
            (false, None) => return Ok(()),
            (false, Some(uid)) => {
                Some((uid, text("/metadata/resourceVersion").context("no version")?))
            }
        };
        let here = self.here.entry(self.last.clone()).or_default();
        if version.is_some() && here.last() == Some(&version) {
            return Ok(());
        }
        here.push(version.clone());
        let there = self.there.get(&self.last).and_then(|there| there.get(here.len() - 1));
        if let (Some((uid, number)), Some(Some((uid_there, number_there)))) = (version, there) {
            self.known.insert(uid_there.clone(), uid);
            self.known.insert(number_there.clone(), number);
        }
        Ok(())
    }
}

/// The object that a request is about.
fn object_of(uri: &str, body: Option<&Value>) -> Object {
    let path = uri.split('?').next().unwrap_or_default();
    let mut parts = path.trim_matches('/').split('/');
    let group = match parts.next() {
        Some("apis") => parts.next().unwrap_or_default(),
        _ => "",
    };
    let mut rest = parts.skip_while(|part| *part != "namespaces").skip(2);
    let plural = rest.next().unwrap_or_default();
    let resource = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
    let named = body.and_then(|body| body.pointer("/metadata/name")).and_then(Value::as_str);
    let name = rest.next().or(named).unwrap_or_default();
    (resource, name.to_owned())
}

/// Where an object of the resources of this scenario is; `None` for those that are no state.
fn path(resource: &str, namespace: &str, name: &str) -> Option<String> {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    let root = match group {
        "" => "/api/v1".to_owned(),
        "apps" => "/apis/apps/v1".to_owned(),
        "events.k8s.io" => return None,
        group => format!("/apis/{group}/v1alpha1"),
    };
    Some(format!("{root}/namespaces/{namespace}/{plural}/{name}"))
}
