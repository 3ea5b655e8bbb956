//! What no fork may hold is refused by name, and other mistakes are told apart.

use anyhow::{Context as _, Result};
use laggard::Plane;
use laggard::plane::{BackendKind, Flags};
use laggard::world::{EtcdAddress, EtcdError, RefusalReason, WorldError, Worlds};
use serde_json::{Value, json};

use super::stage::{Stage, etcd, keys_of_worlds, request};

#[tokio::test]
async fn what_belongs_to_the_cluster_is_refused_by_name() -> Result<()> {
    let stage = Stage::of(Plane::builder().backend(BackendKind::Process)).await?;
    let port = json!([{ "port": 80 }]);
    let cases: [(&str, Value, fn(&RefusalReason) -> bool); 5] = [
        (
            "services",
            json!({ "spec": { "ports": port } }),
            |it| matches!(it, RefusalReason::ClusterIp(address) if address.starts_with("10.0.0.")),
        ),
        ("services", json!({ "spec": { "ports": port, "type": "NodePort" } }), |it| {
            matches!(it, RefusalReason::ClusterIp(_))
        }),
        (
            "persistentvolumeclaims",
            json!({ "spec": {
                "accessModes": ["ReadWriteOnce"], "volumeName": "v",
                "resources": { "requests": { "storage": "1Gi" } },
            } }),
            |it| *it == RefusalReason::BoundVolume("v".to_owned()),
        ),
        ("secrets", json!({ "type": "kubernetes.io/service-account-token" }), |it| {
            *it == RefusalReason::ServiceAccountToken
        }),
        ("resourcequotas", json!({ "spec": { "hard": { "pods": "9" } } }), |it| {
            *it == RefusalReason::ResourceQuota
        }),
    ];
    for (plural, mut object, expected) in cases {
        let namespace = stage.namespace().await?;
        let core = format!("/api/v1/namespaces/{namespace}");
        object["metadata"] = json!({ "name": "x" });
        if plural == "secrets" {
            let account = json!({ "metadata": { "name": "sa" } });
            stage.create(&format!("{core}/serviceaccounts"), &account).await?;
            object["metadata"]["annotations"] =
                json!({ "kubernetes.io/service-account.name": "sa" });
        }
        let before = stage.worlds.moment(&namespace).await?;
        stage.create(&format!("{core}/{plural}"), &object).await?;
        let error = stage.worlds.moment(&namespace).await.expect_err(plural);
        let WorldError::Refused { refusals, .. } = &error else { panic!("{error:?}") };
        assert_eq!(refusals.len(), 1, "{error}");
        assert!(expected(&refusals[0].reason), "{error}");
        assert!(error.to_string().contains(&format!("{plural} x")), "{error}");
        println!("{error}");
        // What was before it can still be forked.
        let world = stage.worlds.fork(&before).await?;
        stage.worlds.erase(world).await?;
        request(&stage.client, "DELETE", &format!("{core}/{plural}/x"), None).await?;
    }
    stage.stop().await
}

#[tokio::test]
async fn events_are_left_out() -> Result<()> {
    let stage = Stage::of(Plane::builder().backend(BackendKind::Process)).await?;
    let namespace = stage.namespace().await?;
    let events = format!("/api/v1/namespaces/{namespace}/events");
    let event = json!({
        "metadata": { "name": "e" }, "reason": "r", "message": "m", "type": "Normal",
        "involvedObject": { "kind": "Pod", "name": "p", "namespace": namespace },
    });
    stage.create(&events, &event).await?;
    let moment = stage.worlds.moment(&namespace).await?;
    let world = stage.worlds.fork(&moment).await?;
    world.ready(&stage.client).await?;
    let list = events.replace(&namespace, world.namespace());
    let list = request(&stage.client, "GET", &list, None).await?;
    assert_eq!(list["items"], json!([]));
    // But not when a world is erased.
    let made = events.replace(&namespace, world.namespace());
    let event = serde_json::from_str(&event.to_string().replace(&namespace, world.namespace()))?;
    stage.create(&made, &event).await?;
    stage.worlds.erase(world).await?;
    stage.worlds.erase_namespace(&namespace).await?;
    assert_eq!(keys_of_worlds(&stage.plane).await?, [""; 0]);
    stage.stop().await
}

#[tokio::test]
async fn a_moment_that_is_not_there_says_why() -> Result<()> {
    let stage = Stage::of(Plane::builder().backend(BackendKind::Process)).await?;
    let error = stage.worlds.moment("default").await.expect_err("it is no world");
    assert!(matches!(error, WorldError::Name { .. }), "{error:?}");
    let error = stage.worlds.moment("lw-missing0").await.expect_err("there is none");
    assert!(matches!(error, WorldError::NoSuchWorld { .. }), "{error:?}");
    let namespace = stage.namespace().await?;
    let now = stage.worlds.moment(&namespace).await?;
    let made = now.changes().next().context("no namespace")?.revision;
    let error = stage.worlds.moment_at(&namespace, made - 1).await.expect_err("not yet");
    assert!(matches!(error, WorldError::NoSuchWorld { .. }), "{error:?}");
    let error = stage.worlds.moment_at(&namespace, made + 100_000).await.expect_err("not yet");
    assert!(matches!(error, WorldError::Future { .. }), "{error:?}");

    // A moment outlives its world and etcd's memory; a world whose beginning is forgotten has none.
    let maps = format!("/api/v1/namespaces/{namespace}/configmaps");
    stage.create(&maps, &json!({ "metadata": { "name": "a" } })).await?;
    let moment = stage.worlds.moment(&namespace).await?;
    let body = json!({ "revision": moment.revision() });
    etcd(&stage.plane, "/v3/kv/compaction", body).await?;
    let later = Worlds::new(&stage.plane.etcd()?).await?;
    let error = later.moment(&namespace).await.expect_err("compacted");
    assert!(matches!(error, WorldError::Compacted { .. }), "{error:?}");
    let world = later.fork(&moment).await?;
    let list = maps.replace(&namespace, world.namespace());
    let list = request(&stage.client, "GET", &list, None).await?;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    later.erase(world).await?;
    // Everything of it goes all the same.
    later.erase_namespace(&namespace).await?;
    assert_eq!(keys_of_worlds(&stage.plane).await?, [""; 0]);
    later.close().await?;
    stage.stop().await
}

#[tokio::test]
async fn an_etcd_needs_no_gateway_and_what_is_none_is_told_apart() -> Result<()> {
    let flags = Flags::new().set("enable-grpc-gateway", "false");
    let builder = Plane::builder().backend(BackendKind::Process).etcd_flags(flags);
    let plane = builder.start().await?;
    Worlds::new(&plane.etcd()?).await?.close().await?;
    plane.stop().await?;

    let directory = tempfile::tempdir()?;
    let path = directory.path().join("s");
    let listener = tokio::net::UnixListener::bind(&path)?;
    let other = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
        while let Ok((mut stream, _)) = listener.accept().await {
            drop(stream.write_all(answer).await);
        }
    });
    let error = Worlds::new(&EtcdAddress::Unix(path)).await.expect_err("it is no etcd");
    let WorldError::Etcd { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**source, EtcdError::Connection(_)), "{source:?}");
    println!("{:#}", anyhow::Error::from(error));
    other.abort();

    let nowhere = EtcdAddress::Unix("/nonexistent/c.sock".into());
    let error = Worlds::new(&nowhere).await.expect_err("there is none");
    let WorldError::Etcd { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**source, EtcdError::Connect(_)), "{source:?}");
    println!("{:#}", anyhow::Error::from(error));
    Ok(())
}
