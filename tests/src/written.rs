//! The settled node made again as one would without worlds: each of its objects written through the API.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::{NamespaceResourceScope, Resource};
use kube::{Client, ResourceExt as _};
use laggard::Plane;
use seinode_operator::api::SeiNode;
use seinode_operator::task::FIELD_MANAGER;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The objects of a node that was asked for another image, as they were found on a plane.
///
/// Written again they are the least that the passes to come need: the revision that the real StatefulSet controller
/// has made, which nobody reads, is left out.
#[derive(Clone, Debug)]
pub struct Written {
    node: Value,
    service: Vec<Value>,
    set: Value,
    pod: Value,
}

impl Written {
    /// What is in this namespace of a plane.
    ///
    /// # Errors
    ///
    /// If the plane does not answer, or there is no such node.
    pub async fn found(plane: &Arc<Plane>, namespace: &str) -> Result<Self> {
        let client = plane.client()?;
        let one = |objects: Vec<Value>| objects.into_iter().next();
        Ok(Self {
            node: one(all::<SeiNode>(&client, namespace).await?).context("no node")?,
            service: all::<Service>(&client, namespace).await?,
            set: one(all::<StatefulSet>(&client, namespace).await?).context("no set")?,
            pod: one(all::<Pod>(&client, namespace).await?).context("no pod")?,
        })
    }

    /// Writes them into a namespace.
    ///
    /// # Errors
    ///
    /// If the API server refuses one of them.
    pub async fn write(&self, client: Client, namespace: &str) -> Result<()> {
        let mut writer = Writer { client, namespace, uids: BTreeMap::new() };
        // Asked for another image than it was made with, so that its generation is what it was.
        let mut node = self.node.clone();
        let image = node["spec"]["image"].take();
        node["spec"]["image"] = node["status"]["currentImage"].clone();
        writer.create::<SeiNode>(&node).await?;
        let patch = Patch::Merge(json!({ "spec": { "image": image } }));
        let name = self.node["metadata"]["name"].as_str().unwrap_or_default();
        writer.api::<SeiNode>().patch(name, &PatchParams::default(), &patch).await?;
        writer.status::<SeiNode>(&self.node).await?;
        for service in &self.service {
            writer.create::<Service>(service).await?;
        }
        writer.create::<StatefulSet>(&self.set).await?;
        writer.status::<StatefulSet>(&self.set).await?;
        writer.create::<Pod>(&self.pod).await?;
        writer.status::<Pod>(&self.pod).await
    }
}

async fn all<K>(client: &Client, namespace: &str) -> Result<Vec<Value>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let found = api.list(&ListParams::default()).await?;
    Ok(found.items.iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
}

struct Writer<'a> {
    client: Client,
    namespace: &'a str,
    /// What became of each UID.
    uids: BTreeMap<String, String>,
}

impl Writer<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    async fn create<K>(&mut self, found: &Value) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Serialize,
    {
        let mut object = found.clone();
        object["metadata"] = json!({});
        for field in ["name", "labels", "annotations", "finalizers", "ownerReferences"] {
            if let Some(value) = found["metadata"].get(field) {
                object["metadata"][field] = value.clone();
            }
        }
        for owner in object["metadata"]["ownerReferences"].as_array_mut().into_iter().flatten() {
            let uid = owner["uid"].as_str().and_then(|uid| self.uids.get(uid));
            owner["uid"] = json!(uid.context("an owner that was not written")?);
        }
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
            // Null where there are no owners: indexing has made it.
            if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.retain(|_, value| !value.is_null());
            }
        }
        let how =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let made = self.api::<K>().create(&how, &serde_json::from_value(object)?).await?;
        let before = found["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        self.uids.insert(before, made.uid().unwrap_or_default());
        Ok(())
    }

    async fn status<K>(&self, found: &Value) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let name = found["metadata"]["name"].as_str().unwrap_or_default();
        let patch = Patch::Merge(json!({ "status": found["status"] }));
        self.api::<K>().patch_status(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}
