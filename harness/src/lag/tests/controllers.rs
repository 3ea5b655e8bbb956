//! An unmodified `Controller` on a client that lags.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::runtime::{Controller, controller::Action};
use tokio::sync::mpsc;

use super::*;

async fn a_controller_reconciles_what_was_released_and_nothing_else() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    let maps: Api<ConfigMap> = Api::namespaced(lag.client(), NAMESPACE);
    let sets: Api<StatefulSet> = Api::namespaced(lag.client(), NAMESPACE);
    let (passes, mut seen) = mpsc::unbounded_channel();
    let reconcile = |object: Arc<ConfigMap>, passes: Arc<mpsc::UnboundedSender<String>>| async move {
        passes.send(object.data.as_ref().unwrap()["value"].clone()).unwrap();
        Ok::<_, std::convert::Infallible>(Action::await_change())
    };
    let controller =
        Controller::new(maps, watcher::Config::default()).owns(sets, watcher::Config::default());
    let store = controller.store();
    let run = controller.run(
        reconcile,
        |_, _, _| Action::requeue(Duration::from_secs(60)),
        Arc::new(passes),
    );
    let _controller = tokio::spawn(run.for_each(|_| std::future::ready(())));
    let (main, owned) = (lag.stream::<ConfigMap>(), lag.stream::<StatefulSet>().metadata());
    main.opened().await.unwrap();
    owned.opened().await.unwrap();
    main.hold();
    owned.hold();
    for number in 0..200 {
        let version = server.put("configmaps", NAMESPACE, "a", data(number.to_string()));
        main.received(&version).await.unwrap();
        assert_ne!(shown(&store, "a"), Some(number.to_string()));
        main.release_one().await.unwrap();
        assert_eq!(shown(&store, "a"), Some(number.to_string()));
        assert_eq!(within(seen.recv()).await, Some(number.to_string()));
    }
    // An owned object triggers its owner when it is released, with the main store where it was.
    let owner = store.get(&reflector::ObjectRef::new("a").within(NAMESPACE)).unwrap();
    let references = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "a", "controller": true,
        "uid": owner.metadata.uid.clone().unwrap_or_default(),
    }]);
    let owned_object = json!({"metadata": {"ownerReferences": references}});
    let version = server.put("statefulsets", NAMESPACE, "s", owned_object);
    owned.received(&version).await.unwrap();
    server.put("configmaps", NAMESPACE, "a", data("unseen"));
    main.until_behind(1).await.unwrap();
    assert!(seen.try_recv().is_err(), "a held trigger triggers nothing");
    owned.release_one().await.unwrap();
    assert_eq!(
        within(seen.recv()).await.as_deref(),
        Some("199"),
        "the pass sees the lagging store"
    );
}

#[tokio::test]
async fn a_controller_on_one_thread() {
    a_controller_reconciles_what_was_released_and_nothing_else().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_on_two_threads() {
    a_controller_reconciles_what_was_released_and_nothing_else().await;
}
