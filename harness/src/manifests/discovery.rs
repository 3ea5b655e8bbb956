//! Which custom resources a server serves, and which it tells those of who ask.
//!
//! Discovery goes by other watches than the requests for objects do: a resource that can be listed need not be told of
//! yet, and one that is gone may still be.

use http::Method;
use kube::{Client, Error};
use serde_json::Value;

use crate::ask::{ask, if_found};

/// Whether a resource can be listed.
pub(crate) async fn serves_resource(
    client: &Client,
    group: &str,
    version: &str,
    plural: &str,
) -> Result<bool, Error> {
    Ok(get(client, &format!("/apis/{group}/{version}/{plural}?limit=1")).await?.is_some())
}

/// Whether the resources of a version of a group are told, and this one among them.
pub(crate) async fn tells_resource(
    client: &Client,
    group: &str,
    version: &str,
    plural: &str,
) -> Result<bool, Error> {
    let told = get(client, &format!("/apis/{group}/{version}")).await?;
    Ok(told.is_some_and(|told| any(&told["resources"], |resource| resource["name"] == plural)))
}

/// Whether a version of a group is told among the groups of the server, which is where most clients begin.
pub(crate) async fn tells_version(
    client: &Client,
    group: &str,
    version: &str,
) -> Result<bool, Error> {
    let told = get(client, "/apis").await?.unwrap_or_default();
    Ok(any(&told["groups"], |it| {
        it["name"] == group && any(&it["versions"], |it| it["version"] == version)
    }))
}

fn any(list: &Value, is_it: impl Fn(&Value) -> bool) -> bool {
    list.as_array().into_iter().flatten().any(is_it)
}

async fn get(client: &Client, path: &str) -> Result<Option<Value>, Error> {
    if_found(ask(client, Method::GET, path, None).await)
}
