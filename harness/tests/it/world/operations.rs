//! A list of operations on one namespace: each verb, subresource and refusal that leaves traces in
//! what the API server stores.

use serde_json::{Value, json};

/// One request. In paths and bodies `{ns}` is the namespace, `{uid kind/name}` and `{rv kind/name}`
/// are those of an object as it is before the request.
pub(crate) struct Operation {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) content: &'static str,
    pub(crate) body: Option<Value>,
    /// The status that the server is to answer with.
    pub(crate) expected: u16,
}

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const JSON: &str = "application/json";

const CORE: &str = "/api/v1/namespaces/{ns}";
const APPS: &str = "/apis/apps/v1/namespaces/{ns}";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/{ns}/leases";
const WIDGETS_1: &str = "/apis/laggard.test/v1/namespaces/{ns}/widgets";
const WIDGETS_2: &str = "/apis/laggard.test/v2/namespaces/{ns}/widgets";

/// The collections to look at: kind as it is named here, and path.
pub(crate) const COLLECTIONS: [(&str, &str); 12] = [
    ("configmaps", "/api/v1/namespaces/{ns}/configmaps"),
    ("secrets", "/api/v1/namespaces/{ns}/secrets"),
    ("pods", "/api/v1/namespaces/{ns}/pods"),
    ("services", "/api/v1/namespaces/{ns}/services"),
    ("claims", "/api/v1/namespaces/{ns}/persistentvolumeclaims"),
    ("accounts", "/api/v1/namespaces/{ns}/serviceaccounts"),
    ("sets", "/apis/apps/v1/namespaces/{ns}/statefulsets"),
    ("roles", "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/roles"),
    ("bindings", "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings"),
    ("leases", LEASES),
    ("widgets1", WIDGETS_1),
    ("widgets2", WIDGETS_2),
];

pub(crate) fn operations() -> Vec<Operation> {
    let op = |method, path: String, content, body: Value, expected| {
        let body = (!body.is_null()).then_some(body);
        Operation { method, path, content, body, expected }
    };
    let post = |path: &str, body| op("POST", path.to_owned(), JSON, body, 201);
    let patch = |path: String, content, body| op("PATCH", path, content, body, 200);
    let delete = |path: String, body| op("DELETE", path, JSON, body, 200);
    let refused = |expected, operation: Operation| Operation { expected, ..operation };

    let maps = format!("{CORE}/configmaps");
    let map = |name: &str| format!("{maps}/{name}");
    let secrets = format!("{CORE}/secrets");
    let pods = format!("{CORE}/pods");
    let services = format!("{CORE}/services");
    let claims = format!("{CORE}/persistentvolumeclaims");
    let sets = format!("{APPS}/statefulsets");
    let apply = |manager: &str, force: bool| {
        format!("{}?fieldManager={manager}&force={force}", map("applied"))
    };
    let applied = |value: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "applied" },
            "data": { "a": value },
        })
    };
    let labels = json!({ "app": "s" });
    let pod = json!({ "containers": [{ "name": "c", "image": "i:1" }] });
    let owned_by_a = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "{uid configmaps/a}",
    }]);

    vec![
        // ConfigMaps: every way to write.
        post(&maps, json!({ "metadata": { "name": "a" }, "data": { "k": "1" } })),
        patch(map("a"), MERGE, json!({ "data": { "home": "a.{ns}.svc", "k": "2" } })),
        patch(map("a"), STRATEGIC, json!({ "metadata": { "labels": { "x": "y" } } })),
        patch(
            map("a"),
            PATCH,
            json!([{ "op": "add", "path": "/data/j", "value": "{uid configmaps/a}" }]),
        ),
        patch(map("a"), MERGE, json!({ "data": { "k": "2" } })), // changes nothing
        refused(409, post(&maps, json!({ "metadata": { "name": "a" } }))),
        op(
            "PUT",
            map("a"),
            JSON,
            json!({
                "metadata": { "name": "a", "resourceVersion": "{rv configmaps/a}" }, "data": { "k": "3" },
            }),
            200,
        ),
        refused(
            409,
            op(
                "PUT",
                map("a"),
                JSON,
                json!({
                    "metadata": { "name": "a", "resourceVersion": "1" }, "data": {},
                }),
                0,
            ),
        ),
        op("PATCH", apply("one", false), APPLY, applied("1"), 201),
        refused(409, patch(apply("two", false), APPLY, applied("2"))),
        patch(apply("two", true), APPLY, applied("2")),
        patch(
            apply("one", false),
            APPLY,
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "applied" },
                "data": { "b": "1" },
            }),
        ),
        post(
            &maps,
            json!({ "metadata": { "name": "b" }, "immutable": true, "data": { "k": "1" } }),
        ),
        refused(422, patch(map("b"), MERGE, json!({ "data": { "k": "2" } }))),
        post(&maps, json!({ "metadata": { "name": "owned", "ownerReferences": owned_by_a } })),
        refused(
            409,
            delete(
                map("b"),
                json!({ "preconditions": {
            "uid": "11111111-2222-3333-4444-555555555555",
        } }),
            ),
        ),
        delete(map("b"), json!({ "preconditions": { "uid": "{uid configmaps/b}" } })),
        post(&maps, json!({ "metadata": { "name": "b" }, "data": { "again": "1" } })),
        post(&maps, json!({ "metadata": { "name": "f", "finalizers": ["laggard.test/x"] } })),
        delete(map("f"), Value::Null), // waits for its finalizer
        refused(409, post(&maps, json!({ "metadata": { "name": "f" } }))),
        patch(map("f"), MERGE, json!({ "metadata": { "finalizers": null } })),
        post(&maps, json!({ "metadata": { "generateName": "g-", "labels": { "gen": "1" } } })),
        post(&maps, json!({ "metadata": { "generateName": "g-", "labels": { "gen": "1" } } })),
        delete(format!("{maps}?labelSelector=gen%3D1"), Value::Null),
        // Secrets.
        post(
            &secrets,
            json!({
                "metadata": { "name": "s" }, "stringData": { "k": "of {ns}" }, "type": "Opaque",
            }),
        ),
        patch(format!("{secrets}/s"), MERGE, json!({ "stringData": { "k": "2" } })),
        refused(422, patch(format!("{secrets}/s"), MERGE, json!({ "type": "other" }))),
        // StatefulSets: generation, status, scale.
        post(
            &sets,
            json!({
                "metadata": { "name": "s" },
                "spec": {
                    "replicas": 1, "serviceName": "s", "selector": { "matchLabels": labels },
                    "template": { "metadata": { "labels": labels }, "spec": pod },
                },
            }),
        ),
        patch(
            format!("{sets}/s"),
            STRATEGIC,
            json!({ "spec": { "template": { "spec": {
            "containers": [{ "name": "c", "image": "i:2" }],
        } } } }),
        ),
        patch(
            format!("{sets}/s/status"),
            MERGE,
            json!({ "status": {
            "observedGeneration": 2, "replicas": 1, "currentRevision": "s-1",
        } }),
        ),
        patch(format!("{sets}/s/scale"), MERGE, json!({ "spec": { "replicas": 3 } })),
        refused(422, patch(format!("{sets}/s"), MERGE, json!({ "spec": { "serviceName": "t" } }))),
        patch(format!("{sets}/s/status"), MERGE, json!({ "status": { "observedGeneration": 3 } })),
        // Pods: binding, status, graceful deletion.
        post(
            &pods,
            json!({
                "metadata": { "name": "p", "labels": labels, "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "s", "controller": true,
                    "blockOwnerDeletion": true, "uid": "{uid sets/s}",
                }] },
                "spec": pod,
            }),
        ),
        post(
            &format!("{pods}/p/binding"),
            json!({
                "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n" },
            }),
        ),
        patch(
            format!("{pods}/p/status"),
            STRATEGIC,
            json!({ "status": {
            "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
        } }),
        ),
        refused(422, patch(format!("{pods}/p"), MERGE, json!({ "spec": { "nodeName": "m" } }))),
        delete(format!("{pods}/p"), Value::Null), // gracefully: it stays
        delete(format!("{pods}/p?gracePeriodSeconds=0"), Value::Null),
        post(&pods, json!({ "metadata": { "name": "p" }, "spec": pod })),
        delete(format!("{sets}/s?propagationPolicy=Orphan"), Value::Null), // waits for a collector
        // RBAC.
        post(&format!("{CORE}/serviceaccounts"), json!({ "metadata": { "name": "sa" } })),
        post(
            &format!("{RBAC}/roles"),
            json!({
                "metadata": { "name": "r" },
                "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }],
            }),
        ),
        post(
            &format!("{RBAC}/rolebindings"),
            json!({
                "metadata": { "name": "r" },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r" },
                "subjects": [{ "kind": "ServiceAccount", "name": "sa", "namespace": "{ns}" }],
            }),
        ),
        patch(
            format!("{RBAC}/roles/r"),
            PATCH,
            json!([
                { "op": "add", "path": "/rules/0/verbs/-", "value": "list" },
            ]),
        ),
        refused(
            422,
            patch(
                format!("{RBAC}/rolebindings/r"),
                MERGE,
                json!({ "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "other",
        } }),
            ),
        ),
        // A claim that is not bound, a Service without an address, a Lease.
        post(
            &claims,
            json!({
                "metadata": { "name": "c" },
                "spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } },
                },
            }),
        ),
        patch(format!("{claims}/c"), MERGE, json!({ "metadata": { "labels": { "x": "y" } } })),
        refused(
            422,
            patch(
                format!("{claims}/c"),
                MERGE,
                json!({
                    "spec": { "resources": { "requests": { "storage": "2Gi" } } },
                }),
            ),
        ),
        post(
            &services,
            json!({
                "metadata": { "name": "h" },
                "spec": { "clusterIP": "None", "selector": labels, "ports": [{ "port": 80 }] },
            }),
        ),
        patch(format!("{services}/h"), MERGE, json!({ "spec": { "ports": [{ "port": 81 }] } })),
        post(LEASES, json!({ "metadata": { "name": "l" }, "spec": { "holderIdentity": "{ns}" } })),
        // Custom resources: two versions, a rule about the past, subresources.
        post(
            WIDGETS_1,
            json!({
                "apiVersion": "laggard.test/v1", "kind": "Widget", "metadata": { "name": "w" },
                "spec": { "size": 2, "home": "w.{ns}.svc" },
            }),
        ),
        patch(format!("{WIDGETS_2}/w"), MERGE, json!({ "spec": { "size": 3 } })),
        refused(422, patch(format!("{WIDGETS_1}/w"), MERGE, json!({ "spec": { "size": 1 } }))),
        patch(
            format!("{WIDGETS_2}/w/status"),
            MERGE,
            json!({ "status": { "size": 1 }, "spec": { "size": 1 } }),
        ),
        patch(format!("{WIDGETS_1}/w/scale"), MERGE, json!({ "spec": { "replicas": 5 } })),
        patch(
            format!("{WIDGETS_2}/w?fieldManager=m&force=true"),
            APPLY,
            json!({
                "apiVersion": "laggard.test/v2", "kind": "Widget", "metadata": {
                    "name": "w", "finalizers": ["laggard.test/x"], "ownerReferences": owned_by_a,
                },
                "spec": { "plan": "11111111-2222-3333-4444-555555555555" },
            }),
        ),
        delete(format!("{WIDGETS_1}/w"), Value::Null), // waits for its finalizer
        patch(format!("{WIDGETS_2}/w"), MERGE, json!({ "metadata": { "finalizers": null } })),
    ]
}
