//! The barrier behind hand-made streams.

use std::{sync::atomic::AtomicBool, task::Waker};

use futures::channel::mpsc::{self, UnboundedSender};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, reflector};
use rstest::rstest;
use serde_json::json;
use tokio::task::JoinHandle;

use super::*;

type Item = Result<Event<ConfigMap>, watcher::Error>;

struct Bench {
    barrier: Barrier<ConfigMap>,
    events: UnboundedSender<Item>,
    feed: JoinHandle<()>,
}

impl Bench {
    fn new(config: &watcher::Config) -> Self {
        let (store, writer) = reflector::store();
        let barrier = Barrier::new(store, config).within(Duration::from_secs(5));
        let (events, stream) = mpsc::unbounded();
        let mut stream = Box::pin(barrier.track(stream.reflect(writer)));
        // One that has ended is kept, so that its end is seen and not only its drop.
        let feed = tokio::spawn(async move {
            while stream.next().await.is_some() {}
            std::future::pending().await
        });
        Self { barrier, events, feed }
    }

    fn send(&self, events: impl IntoIterator<Item = Event<ConfigMap>>) {
        for event in events {
            self.events.unbounded_send(Ok(event)).unwrap();
        }
    }

    fn list(&self, objects: impl IntoIterator<Item = ConfigMap>) {
        self.send([Event::Init]);
        self.send(objects.into_iter().map(Event::InitApply));
        self.send([Event::InitDone]);
    }

    /// Until all that was sent is in the store.
    async fn taken_in(&self, name: &str, version: u32) {
        let mark = self.barrier.wrote(&map(name, name, version)).unwrap();
        self.barrier.until_shown(&mark).await.unwrap();
    }

    /// Until the store has this version, though it may have shown a later one before.
    async fn shows(&self, name: &str, version: u32) {
        let key = ObjectRef::from_obj(&map(name, name, version));
        let wanted = Some(version.to_string());
        let shown = async {
            while self.barrier.store().get(&key).and_then(|it| it.metadata.resource_version.clone())
                != wanted
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), shown).await.unwrap();
    }

    /// Until the list that is under way has this version in it.
    async fn lists(&self, version: u32) {
        let newest = Some(version.to_string());
        let listed = async {
            while self.barrier.shared.lock().listing.as_ref().is_none_or(|it| it.newest != newest) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), listed).await.unwrap();
    }

    fn waits(&self, write: &Write<ConfigMap>) -> bool {
        let mut wait = std::pin::pin!(self.barrier.until_shown(write));
        wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}

fn map(name: &str, uid: &str, version: u32) -> ConfigMap {
    serde_json::from_value(json!({
        "metadata": {"namespace": "n", "name": name, "uid": uid, "resourceVersion": version.to_string()},
    }))
    .unwrap()
}

fn consistent() -> watcher::Config {
    watcher::Config::default()
}

#[tokio::test]
async fn all_waiters_go_on_once_the_store_shows_the_write_and_none_before() {
    let bench = Bench::new(&consistent());
    let write = bench.barrier.wrote(&map("a", "u", 12)).unwrap();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let (barrier, write) = (bench.barrier.clone(), write.clone());
            tokio::spawn(async move {
                barrier.read_after(&write, |store| store.get(&write.key).unwrap()).await
            })
        })
        .collect();
    bench.list([map("a", "u", 10)]);
    bench.send([Event::Apply(map("a", "u", 11)), Event::Apply(map("b", "v", 11))]);
    bench.taken_in("b", 11).await;
    assert!(bench.waits(&write) && waiters.iter().all(|waiter| !waiter.is_finished()));
    bench.send([Event::Apply(map("a", "u", 12))]);
    for waiter in waiters {
        let read = waiter.await.unwrap().unwrap();
        assert_eq!(read.metadata.resource_version.as_deref(), Some("12"));
    }
}

#[tokio::test]
async fn whatever_became_of_the_object_a_wait_ends_and_says_so() {
    let bench = Bench::new(&consistent());
    bench.list([map("a", "u", 10), map("c", "w", 9)]);
    let no_op = bench.barrier.wrote(&map("a", "u", 10)).unwrap();
    assert_eq!(bench.barrier.until_shown(&no_op).await, Ok(Shown::Object));
    let write = bench.barrier.wrote(&map("a", "u", 11)).unwrap();
    let deletion = bench.barrier.deleted(&map("a", "u", 10)).unwrap();
    assert!(bench.waits(&write) && bench.waits(&deletion), "it is there and old");
    // Deleted, or out of the selector by that very write: the event has its version.
    bench.send([Event::Delete(map("a", "u", 11))]);
    assert_eq!(bench.barrier.until_shown(&write).await, Ok(Shown::Nothing));
    assert_eq!(bench.barrier.until_shown(&deletion).await, Ok(Shown::Nothing));
    bench.send([Event::Apply(map("a", "other", 14))]);
    bench.taken_in("a", 14).await;
    assert_eq!(bench.barrier.until_shown(&write).await, Ok(Shown::Another));
    assert_eq!(bench.barrier.until_shown(&deletion).await, Ok(Shown::Another));
}

#[tokio::test]
async fn the_deletion_of_what_the_store_has_not_seen_yet_is_waited_for() {
    let bench = Bench::new(&consistent());
    bench.list([map("c", "w", 9)]);
    bench.taken_in("c", 9).await;
    // Created at 10 and deleted at 11, of which nothing has arrived.
    let deletion = bench.barrier.deleted(&map("a", "u", 10)).unwrap();
    assert!(bench.waits(&deletion));
    bench.send([Event::Apply(map("a", "u", 10))]);
    bench.taken_in("a", 10).await;
    assert!(bench.waits(&deletion));
    bench.send([Event::Delete(map("a", "u", 11))]);
    assert_eq!(bench.barrier.until_shown(&deletion).await, Ok(Shown::Nothing));
}

#[tokio::test]
async fn a_list_counts_when_it_is_swapped_in_and_only_if_it_began_after_the_write() {
    let bench = Bench::new(&consistent());
    bench.send([Event::Init]);
    bench.send([Event::InitApply(map("c", "w", 9)), Event::InitDone]);
    bench.taken_in("c", 9).await;
    let sees_nothing = |version| bench.barrier.wrote(&map("a", "u", version)).unwrap();
    let before = sees_nothing(25);
    bench.send([Event::Init, Event::InitApply(map("b", "v", 20))]);
    bench.lists(20).await;
    // Gone before the list that is under way; the newest that is left is older.
    let during = sees_nothing(19);
    for write in [&before, &during] {
        assert!(bench.waits(write), "the list is not swapped in");
    }
    bench.send([Event::InitDone]);
    for write in [&before, &during] {
        assert_eq!(bench.barrier.until_shown(write).await, Ok(Shown::Nothing));
    }
    let late = sees_nothing(30);
    assert!(bench.waits(&late), "the list began before the write");
    bench.list([map("b", "v", 20)]);
    assert_eq!(bench.barrier.until_shown(&late).await, Ok(Shown::Nothing));
}

#[rstest]
#[case(watcher::Config::default().any_semantic())]
#[case(watcher::Config::default().streaming_lists())]
#[tokio::test]
async fn a_list_of_any_state_takes_the_position_back_with_it(#[case] config: watcher::Config) {
    let bench = Bench::new(&config);
    bench.list([map("a", "u", 50)]);
    bench.taken_in("a", 50).await;
    let write = bench.barrier.wrote(&map("a", "u", 50)).unwrap();
    let gone = bench.barrier.wrote(&map("b", "v", 40)).unwrap();
    assert!(!bench.waits(&write) && !bench.waits(&gone));
    bench.list([map("a", "u", 5)]);
    bench.shows("a", 5).await;
    assert!(bench.waits(&write) && bench.waits(&gone), "the store shows the past");
    bench.send([Event::Apply(map("a", "u", 50))]);
    assert_eq!(bench.barrier.until_shown(&write).await, Ok(Shown::Object));
}

#[tokio::test]
async fn a_wait_ends_at_its_deadline_and_says_how_far_the_store_is() {
    let bench = Bench::new(&consistent());
    bench.list([map("a", "u", 10)]);
    bench.taken_in("a", 10).await;
    let barrier = bench.barrier.clone().within(Duration::from_millis(50));
    let write = barrier.wrote(&map("a", "u", 11)).unwrap();
    let mut polls = 0;
    let mut wait = std::pin::pin!(barrier.until_shown(&write));
    let counted = std::future::poll_fn(|context| {
        polls += 1;
        wait.as_mut().poll(context)
    });
    let ended = tokio::time::timeout(Duration::from_secs(5), counted).await;
    let error = ended.unwrap().unwrap_err().to_string();
    assert!(error.contains("a.n at rv 11") && error.contains("it shows rv 10"), "{error}");
    // At its beginning and at its end; a third is the runtime's to make.
    assert!(polls <= 3, "it looked {polls} times while nothing moved");
}

#[tokio::test]
async fn nobody_looks_between_what_the_store_shows_and_what_is_known_of_it() {
    let (store, writer) = reflector::store();
    let barrier = Barrier::new(store, &consistent());
    let shared = Arc::clone(&barrier.shared);
    let events = [Event::Init, Event::InitApply(map("a", "u", 10)), Event::InitDone];
    let applied = futures::stream::iter(events.map(Ok)).reflect(writer).inspect(move |_| {
        assert!(shared.state.try_lock().is_err(), "a wait may look in the middle of an event");
    });
    let applied: Vec<Item> = barrier.track(applied).collect().await;
    assert_eq!(applied.len(), 3);
    assert_eq!(barrier.shared.lock().position.as_deref(), Some("10"));
}

#[rstest]
#[case::ended(false)]
#[case::dropped(true)]
#[tokio::test]
async fn a_wait_fails_when_nothing_feeds_the_store_any_more(#[case] dropped: bool) {
    let bench = Bench::new(&consistent());
    bench.list([map("z", "z", 10)]);
    // A list that begins after the write would show it.
    bench.shows("z", 10).await;
    let write = bench.barrier.wrote(&map("a", "u", 11)).unwrap();
    let barrier = bench.barrier.clone();
    let waiter = tokio::spawn(async move { barrier.until_shown(&write).await });
    tokio::task::yield_now().await;
    if dropped {
        bench.feed.abort();
    } else {
        bench.events.close_channel();
    }
    assert_eq!(waiter.await.unwrap(), Err(BarrierError::Ended));
}

#[tokio::test]
async fn what_is_no_reply_is_refused() {
    let bench = Bench::new(&consistent());
    let mut opaque = map("a", "u", 1);
    opaque.metadata.resource_version = Some("opaque".to_owned());
    let error = bench.barrier.wrote(&opaque).unwrap_err().to_string();
    assert!(error.contains("a resource version that is a number"), "{error}");
    let error = bench.barrier.wrote(&ConfigMap::default()).unwrap_err().to_string();
    assert!(error.contains("lacks a name"), "{error}");
}

/// Many threads, each of which reads right after its wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_reader_is_let_through_before_the_store_has_it() {
    let bench = Bench::new(&consistent());
    bench.list([map("a", "u", 1)]);
    let stale = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (2..500_u32)
        .map(|version| {
            let (barrier, stale) = (bench.barrier.clone(), Arc::clone(&stale));
            tokio::spawn(async move {
                let write = barrier.wrote(&map("a", "u", version)).unwrap();
                barrier.until_shown(&write).await.unwrap();
                let read = barrier.store().get(&write.key).unwrap();
                let read: u32 = version_of(&*read).unwrap().parse().unwrap();
                stale.fetch_or(read < version, std::sync::atomic::Ordering::SeqCst);
            })
        })
        .collect();
    for version in 2..500 {
        bench.send([Event::Apply(map("a", "u", version))]);
        tokio::task::yield_now().await;
    }
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(!stale.load(std::sync::atomic::Ordering::SeqCst));
}
