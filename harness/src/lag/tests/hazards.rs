//! What kube-rs 5.0 does with views that lag, shown on the unmodified crate: each a trap for the code under test.
//!
//! A test that goes red after an update of kube says that a trap is gone, or has moved.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures::Stream;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::runtime::{
    Controller,
    controller::{Action, Error as ControllerError},
};
use tokio::sync::mpsc;

use super::*;
use crate::lag::{Answer, Passes, Requests};

/// How long a test looks for something that is not to happen.
const SILENCE: Duration = Duration::from_millis(200);

/// A `Controller` of StatefulSets that owns ConfigMaps; each pass tells the revision in its argument.
struct Running {
    server: Server,
    lag: Lag,
    store: Store<StatefulSet>,
    passes: mpsc::UnboundedReceiver<Option<String>>,
    bracket: Passes,
    errors: Arc<AtomicU32>,
    _task: JoinHandle<()>,
}

struct ReconcileContext {
    told: mpsc::UnboundedSender<Option<String>>,
    bracket: Passes,
}

async fn reconcile(
    object: Arc<StatefulSet>,
    context: Arc<ReconcileContext>,
) -> Result<Action, std::convert::Infallible> {
    let name = object.metadata.name.clone().unwrap();
    context.bracket.run(name, async { context.told.send(revision(&object)).unwrap() }).await;
    Ok(Action::await_change())
}

fn revision(object: &StatefulSet) -> Option<String> {
    object.metadata.labels.as_ref()?.get("revision").cloned()
}

fn labelled(revision: &str) -> Value {
    json!({"metadata": {"labels": {"revision": revision}}})
}

fn owned_by_set(revision: &str) -> Value {
    let owner = json!([{
        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "s", "uid": "uid-1", "controller": true,
    }]);
    json!({"metadata": {"ownerReferences": owner, "labels": {"revision": revision}}})
}

impl Running {
    async fn start(main: watcher::Config) -> Self {
        let server = Server::new();
        server.put("statefulsets", NAMESPACE, "s", labelled("1"));
        server.put("configmaps", NAMESPACE, "c", owned_by_set("1"));
        let lag = Lag::over_service(server.clone(), NAMESPACE);
        let sets: Api<StatefulSet> = Api::namespaced(lag.client(), NAMESPACE);
        let maps: Api<ConfigMap> = Api::namespaced(lag.client(), NAMESPACE);
        let (told, passes) = mpsc::unbounded_channel();
        let bracket = lag.passes();
        let errors = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&errors);
        let controller = Controller::new(sets, main).owns(maps, watcher::Config::default());
        let store = controller.store();
        let context = Arc::new(ReconcileContext { told, bracket: bracket.clone() });
        let run = controller.run(reconcile, |_, _, _| Action::await_change(), context);
        let task = tokio::spawn(run.for_each(move |result| {
            if matches!(result, Err(ControllerError::QueueError(_))) {
                counted.fetch_add(1, Ordering::SeqCst);
            }
            std::future::ready(())
        }));
        let running = Self { server, lag, store, passes, bracket, errors, _task: task };
        running.lag.stream::<StatefulSet>().opened().await.unwrap();
        running.lag.stream::<ConfigMap>().metadata().opened().await.unwrap();
        running
    }

    async fn pass(&mut self) -> Option<String> {
        within(self.passes.recv()).await.unwrap()
    }

    /// Lets the passes of the start go by, and says that no other follows.
    async fn quiet(&mut self) {
        while tokio::time::timeout(SILENCE, self.passes.recv()).await.is_ok() {}
    }

    async fn no_pass(&mut self) {
        let pass = tokio::time::timeout(SILENCE, self.passes.recv()).await;
        assert!(pass.is_err(), "a pass with {pass:?}");
    }

    fn stored(&self) -> Option<String> {
        revision(&*self.store.get(&reflector::ObjectRef::new("s").within(NAMESPACE))?)
    }
}

#[tokio::test]
async fn of_several_who_wait_for_a_store_to_be_ready_all_but_the_last_may_hang() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    let list = lag.answer(Requests::list::<ConfigMap>(), Answer::Timeout);
    let (store, _reflector) = reflect(&lag, watcher::Config::default());
    let waiting: Vec<JoinHandle<()>> = (0..3)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.wait_until_ready().await.unwrap() })
        })
        .collect();
    until("the list is asked for", || list.hits() == 1).await;
    list.lift();
    // The engine waits for the stream, and not in this way.
    lag.stream::<ConfigMap>().opened().await.unwrap();
    tokio::time::sleep(SILENCE).await;
    let woken = waiting.iter().filter(|task| task.is_finished()).count();
    assert_eq!(woken, 1, "one of three");
    within(store.wait_until_ready()).await.unwrap();
    waiting.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_streamed_list_asks_for_any_state_each_time_so_a_store_can_travel_back() {
    let config = watcher::Config::default().streaming_lists();
    let fixture = Fixture::with(Server::new(), config, |_| {}).await;
    let cache = fixture.lag.stream::<ConfigMap>();
    let old = fixture.put("a", "1");
    let new = fixture.put("a", "2");
    cache.shown(&new).await.unwrap();
    assert_eq!(fixture.shown("a").as_deref(), Some("2"));
    // The client is sent to a replica that is behind.
    fixture.server.serve_any_at(&old);
    cache.hold();
    cache.relist().await.unwrap();
    assert_eq!(fixture.shown("a").as_deref(), Some("1"));
    let log = fixture.server.log();
    let relist = log.iter().rfind(|line| line.contains("sendInitialEvents=true")).unwrap();
    assert!(relist.contains("resourceVersion=0"), "not the version that it had seen: {relist}");
}

#[tokio::test]
async fn a_trigger_runs_before_the_cache_has_what_it_is_about_and_none_follows() {
    let mut running = Running::start(watcher::Config::default()).await;
    // The application reads the owned objects from a reflector of its own.
    let (store, _reflector) = reflect(&running.lag, watcher::Config::default());
    within(store.wait_until_ready()).await.unwrap();
    let stored = || {
        let object = store.get(&reflector::ObjectRef::new("c").within(NAMESPACE))?;
        object.metadata.labels.as_ref()?.get("revision").cloned()
    };
    let (cache, trigger) =
        (running.lag.stream::<ConfigMap>(), running.lag.stream::<ConfigMap>().metadata());
    cache.opened().await.unwrap();
    running.quiet().await;
    running.lag.hold();
    let version = running.server.put("configmaps", NAMESPACE, "c", owned_by_set("2"));
    for stream in [cache.received(&version).await, trigger.received(&version).await] {
        stream.unwrap();
    }
    trigger.release_one().await.unwrap();
    running.pass().await;
    assert_eq!(stored().as_deref(), Some("1"), "what the pass could read");
    cache.release_one().await.unwrap();
    assert_eq!(stored().as_deref(), Some("2"));
    running.no_pass().await;
}

#[tokio::test]
async fn a_deletion_during_a_relist_triggers_nothing() {
    let mut running = Running::start(watcher::Config::default()).await;
    running.quiet().await;
    let owned = running.lag.stream::<ConfigMap>().metadata();
    owned.hold();
    let version = running.server.delete("configmaps", NAMESPACE, "c");
    owned.received(&version).await.unwrap();
    owned.relist().await.unwrap();
    assert!(owned.view().unwrap().is_empty(), "the stream has it behind itself");
    running.no_pass().await;
    // A deletion that the watch tells does trigger.
    let made = running.server.put("configmaps", NAMESPACE, "c", owned_by_set("1"));
    owned.received(&made).await.unwrap();
    owned.release_one().await.unwrap();
    running.pass().await;
    running.server.delete("configmaps", NAMESPACE, "c");
    owned.release_one().await.unwrap();
    running.pass().await;
}

#[tokio::test]
async fn the_argument_of_a_pass_is_a_cached_read() {
    let mut running = Running::start(watcher::Config::default()).await;
    running.quiet().await;
    running.lag.hold();
    let main = running.lag.stream::<StatefulSet>();
    let owned = running.lag.stream::<ConfigMap>().metadata();
    let version = running.server.put("statefulsets", NAMESPACE, "s", labelled("2"));
    main.received(&version).await.unwrap();
    running.server.put("configmaps", NAMESPACE, "c", owned_by_set("2"));
    owned.release_one().await.unwrap();
    assert_eq!(running.pass().await.as_deref(), Some("1"), "though the server has the second");
    main.release_one().await.unwrap();
    assert_eq!(running.pass().await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_relist_triggers_before_the_store_has_swapped_and_not_after() {
    let mut running = Running::start(watcher::Config::default().streaming_lists()).await;
    running.quiet().await;
    let main = running.lag.stream::<StatefulSet>();
    // The second state comes with a new initial list, whose end is slow to come.
    running.server.stall();
    running.server.put("statefulsets", NAMESPACE, "s", labelled("2"));
    main.expire().unwrap();
    assert_eq!(running.pass().await.as_deref(), Some("1"), "triggered by the new, shown the old");
    assert_eq!(running.stored().as_deref(), Some("1"));
    running.server.flow();
    main.opened().await.unwrap();
    until("the store has swapped", || running.stored().as_deref() == Some("2")).await;
    running.no_pass().await;
}

#[tokio::test]
async fn one_error_pauses_all_streams_of_a_controller() {
    let mut running = Running::start(watcher::Config::default()).await;
    running.quiet().await;
    let main = running.lag.stream::<StatefulSet>();
    let began = Instant::now();
    running.lag.stream::<ConfigMap>().metadata().expire().unwrap();
    until("the error is there", || running.errors.load(Ordering::SeqCst) == 1).await;
    let version = running.server.put("statefulsets", NAMESPACE, "s", labelled("2"));
    main.received(&version).await.unwrap();
    while running.pass().await.as_deref() != Some("2") {}
    let paused = began.elapsed();
    // Source: kube-runtime 5.0, `DefaultBackoff`: from 800 ms, with jitter.
    assert!(paused >= Duration::from_millis(700), "{paused:?}");
    assert!(paused < Duration::from_secs(4), "{paused:?}");
}

#[tokio::test]
async fn an_expired_version_must_be_told_in_a_frame_since_a_refusal_is_retried_for_ever() {
    let fixture = Fixture::start().await;
    let (lists, watches) = (Requests::list::<ConfigMap>(), Requests::watch::<ConfigMap>());
    let refused = fixture.lag.answer(watches, Answer::Status(410));
    fixture.server.close_watches("configmaps");
    until("it has been refused many times", || refused.hits() >= 20).await;
    assert_eq!(fixture.lag.requests().count(&lists), 1, "and has not listed anew");
    refused.lift();
    let cache = fixture.lag.stream::<ConfigMap>();
    cache.opened().await.unwrap();
    cache.relist().await.unwrap();
    assert_eq!(fixture.lag.requests().count(&lists), 2, "as it does after a frame");
}

#[tokio::test]
async fn a_subscriber_to_a_shared_stream_is_never_woken_again_after_an_object_that_was_gone() {
    let server = Server::new();
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    let maps: Api<ConfigMap> = Api::namespaced(lag.client(), NAMESPACE);
    let (store, writer) = reflector::store_shared(8);
    let mut subscriber = pin!(writer.subscribe().unwrap());
    let stream = watcher(maps, watcher::Config::default()).reflect_shared(writer);
    tokio::spawn(stream.for_each(|_| std::future::ready(())));
    within(store.wait_until_ready()).await.unwrap();
    let cache = lag.stream::<ConfigMap>();
    cache.opened().await.unwrap();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut next = || {
        let object = subscriber.as_mut().poll_next(&mut Context::from_waker(&waker));
        object.map(|object| object.unwrap().metadata.name.clone().unwrap())
    };
    let put = async |name: &str| {
        let version = server.put("configmaps", NAMESPACE, name, data("1"));
        cache.shown(&version).await.unwrap();
    };
    // As long as each object is there when its event is looked at, each event wakes.
    assert_eq!(next(), Poll::Pending);
    for (round, name) in ["a", "b"].into_iter().enumerate() {
        put(name).await;
        assert_eq!(woken.0.load(Ordering::SeqCst), round + 1);
        assert_eq!(next(), Poll::Ready(name.to_owned()));
        assert_eq!(next(), Poll::Pending);
    }
    // This one is created, and deleted before the subscriber gets to look.
    put("c").await;
    let deleted = server.delete("configmaps", NAMESPACE, "c");
    cache.shown(&deleted).await.unwrap();
    assert_eq!(woken.0.load(Ordering::SeqCst), 3);
    assert_eq!(next(), Poll::Pending, "and nothing is to wake it");
    put("d").await;
    put("e").await;
    assert_eq!(woken.0.load(Ordering::SeqCst), 3, "so nothing does");
    // What it would have got is there, if it asked.
    assert_eq!(next(), Poll::Ready("d".to_owned()));
    assert_eq!(next(), Poll::Ready("e".to_owned()));
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn gated_passes_of_a_controller_start_when_they_are_told_and_merge_their_triggers() {
    let mut running = Running::start(watcher::Config::default()).await;
    running.quiet().await;
    running.lag.hold();
    running.bracket.gate();
    let main = running.lag.stream::<StatefulSet>();
    for revision in ["2", "3", "4"] {
        let version = running.server.put("statefulsets", NAMESPACE, "s", labelled(revision));
        main.received(&version).await.unwrap();
    }
    main.release_one().await.unwrap();
    running.bracket.until_waiting("s").await.unwrap();
    assert!(running.passes.try_recv().is_err(), "it waits at its start");
    // What triggers while a pass of its key is under way is one more pass, however often.
    main.release_one().await.unwrap();
    main.release_one().await.unwrap();
    running.bracket.step("s").await.unwrap();
    assert_eq!(running.passes.try_recv().unwrap().as_deref(), Some("2"));
    running.bracket.until_waiting("s").await.unwrap();
    running.bracket.step("s").await.unwrap();
    assert_eq!(running.passes.try_recv().unwrap().as_deref(), Some("4"));
    running.bracket.open();
    running.no_pass().await;
}
