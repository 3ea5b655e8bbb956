//! What the verbs promise, against a scripted server and unmodified kube-rs clients.

mod answering;
mod boundaries;
mod caching;
mod controllers;
mod fencing;
mod gate;
mod hazards;
mod recording;
mod relisting;
mod resuming;
mod selecting;
mod server;
mod tapping;

use std::{future::Future, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    runtime::{WatchStreamExt, reflector, reflector::Store, watcher},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use self::server::Server;
use super::Lag;

const NAMESPACE: &str = "demo";

/// A `Lag` over a scripted server, with a reflector of ConfigMaps running on its client.
struct Fixture {
    server: Server,
    lag: Lag,
    store: Store<ConfigMap>,
    reflector: JoinHandle<()>,
}

impl Fixture {
    async fn start() -> Self {
        Self::with(Server::new(), watcher::Config::default(), |_| {}).await
    }

    async fn with(server: Server, config: watcher::Config, before: impl FnOnce(&Lag)) -> Self {
        let lag = Lag::over_service(server.clone(), NAMESPACE);
        before(&lag);
        let (store, reflector) = reflect(&lag, config);
        within(store.wait_until_ready()).await.unwrap();
        lag.stream::<ConfigMap>().opened().await.unwrap();
        Self { server, lag, store, reflector }
    }

    fn put(&self, name: &str, value: impl Into<Value>) -> String {
        self.server.put("configmaps", NAMESPACE, name, data(value))
    }

    /// `data.value` of an object in the store.
    fn shown(&self, name: &str) -> Option<String> {
        shown(&self.store, name)
    }
}

fn data(value: impl Into<Value>) -> Value {
    json!({"data": {"value": value.into()}})
}

fn shown(store: &Store<ConfigMap>, name: &str) -> Option<String> {
    let object = store.get(&reflector::ObjectRef::new(name).within(NAMESPACE))?;
    object.data.as_ref()?.get("value").cloned()
}

/// A plain reflector on a client of its own.
fn reflect(lag: &Lag, config: watcher::Config) -> (Store<ConfigMap>, JoinHandle<()>) {
    let maps: Api<ConfigMap> = Api::namespaced(lag.client(), NAMESPACE);
    let (store, writer) = reflector::store();
    // No back-off: an error is followed by the next attempt at once.
    let stream = watcher(maps, config).reflect(writer);
    (store, tokio::spawn(stream.for_each(|_| std::future::ready(()))))
}

/// Bounds a wait whose end the test is sure of.
async fn within<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it ends within 20 s")
}

/// Waits for something that no event of ours tells, such as a connection seen by the scripted server.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "{what} within 20 s");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
