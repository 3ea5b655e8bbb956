//! Documents: objects of any kind, applied as they are written.

use std::collections::HashMap;

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, Scope, pinned_kind};
use kube::{Client, Error, ResourceExt as _};

/// A document could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    /// It does not say what it is.
    #[error("document {number} has no apiVersion, kind or name; write all three")]
    NoKind { number: usize },
    /// The server has no such kind, or refuses the object.
    #[error("the server does not take {what}")]
    Refused {
        what: String,
        #[source]
        source: Box<Error>,
    },
}

/// Applies documents in their order, server-side, as `laggard`; a namespaced one without a namespace goes to `default`.
///
/// Has no limit of its own.
pub(crate) async fn apply(
    client: &Client,
    documents: &[&DynamicObject],
) -> Result<(), DocumentError> {
    let mut kinds: HashMap<GroupVersionKind, (kube::core::ApiResource, ApiCapabilities)> =
        HashMap::new();
    for (index, document) in documents.iter().enumerate() {
        let number = index + 1;
        let types =
            document.types.as_ref().and_then(|types| GroupVersionKind::try_from(types).ok());
        let (Some(kind), Some(name)) = (types, document.metadata.name.clone()) else {
            return Err(DocumentError::NoKind { number });
        };
        let what = format!("document {number}, {} {name}", kind.kind);
        let refused =
            |source| DocumentError::Refused { what: what.clone(), source: Box::new(source) };
        if !kinds.contains_key(&kind) {
            let found = pinned_kind(client, &kind).await.map_err(refused)?;
            kinds.insert(kind.clone(), found);
        }
        let (resource, capabilities) = &kinds[&kind];
        let namespace = document.namespace().unwrap_or_else(|| "default".to_owned());
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(client.clone(), resource),
            Scope::Namespaced => Api::namespaced_with(client.clone(), &namespace, resource),
        };
        let params = PatchParams::apply("laggard").force();
        api.patch(&name, &params, &Patch::Apply(document)).await.map_err(refused)?;
    }
    Ok(())
}
