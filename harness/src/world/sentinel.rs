//! The sentinel of a fork that holds RBAC: what tells that the API server's authorizer has seen all of it.
//!
//! The authorizer answers from two caches of its own, of roles and of bindings, and no list shows how far they are. Nor do
//! its answers about the world's own roles: what was not granted yet looks like what is granted no more. So a fork ends its
//! RBAC with one role and one binding more, outside of the world and later than all of the world's own. Each of the caches
//! follows its stream in order: once the sentinel's user is allowed what the sentinel's role allows, both have the fork.

use serde_json::{Value, json};

use super::key::{ROLE_BINDINGS, ROLES, object_key};
use super::wire::Operation;

/// Where all sentinels are: no world, and no namespace that exists, so nobody is told of it.
const NAMESPACE: &str = "laggard-forks";
const GROUP: &str = "laggard";
const RESOURCE: &str = "forks";
const VERB: &str = "see";
const RBAC: &str = "rbac.authorization.k8s.io";

/// Writes the sentinel of a world: each operation with the directory whose stream it comes last in.
pub(super) fn put(world: &str) -> [(&'static str, Operation); 2] {
    let metadata = json!({ "name": world, "namespace": NAMESPACE });
    // The API server reads JSON in etcd as well as protobuf.
    let role = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": &metadata,
        "rules": [{ "verbs": [VERB], "apiGroups": [GROUP], "resources": [RESOURCE] }],
    });
    let binding = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding", "metadata": &metadata,
        "subjects": [{ "kind": "User", "apiGroup": RBAC, "name": user(world) }],
        "roleRef": { "kind": "Role", "apiGroup": RBAC, "name": world },
    });
    [(ROLES, role), (ROLE_BINDINGS, binding)].map(|(directory, object)| {
        (directory, Operation::put(key(directory, world), object.to_string()))
    })
}

/// Removes the sentinel of a world, if it has one.
pub(super) fn delete(world: &str) -> [Operation; 2] {
    [ROLES, ROLE_BINDINGS].map(|directory| Operation::delete(key(directory, world)))
}

/// What an access review asks for, which is allowed once the authorizer has the fork.
pub(super) fn question(world: &str) -> Value {
    json!({
        "user": user(world),
        "resourceAttributes": {
            "namespace": NAMESPACE, "verb": VERB, "group": GROUP, "resource": RESOURCE,
        },
    })
}

fn key(directory: &str, world: &str) -> String {
    object_key(directory, NAMESPACE, world)
}

fn user(world: &str) -> String {
    format!("laggard:{world}")
}
