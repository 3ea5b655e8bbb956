//! Watch caches that lag on purpose: a client whose streams stand still, and move when the test says so.
//!
//! [`Lag`] makes ordinary [`kube::Client`]s. Whatever runs on such a client, an unmodified `Controller`,
//! a `reflector`, a wait, gets real replies of a real server; between the two sits a tower layer that
//! holds watch events back, hands them on one at a time, records every request, and answers some itself.
//!
//! # How a release knows that the store has it
//! kube pulls: it asks the body of a watch for the next chunk only after the event of the last one has been
//! applied to the store. Each event is one chunk here, so being asked for more *is* the acknowledgement,
//! and nothing sleeps. A client that drops its watch is done with what it was given. This holds for
//! consumers in the same process that read a watch in order, as everything in kube-rs does, except
//! for `shared` streams, whose subscribers lag on their own.
//!
//! ```no_run
//! use futures::StreamExt;
//! use k8s_openapi::api::core::v1::ConfigMap;
//! use kube::{Api, api::PostParams, runtime::{WatchStreamExt, reflector, watcher}};
//! use laggard::lag::{Lag, Requests};
//!
//! # async fn example(config: kube::Config) -> Result<(), Box<dyn std::error::Error>> {
//! let lag = Lag::over(&config)?;
//! let maps: Api<ConfigMap> = Api::namespaced(lag.client(), "demo");
//! let (store, writer) = reflector::store();
//! let stream = watcher(maps.clone(), watcher::Config::default()).default_backoff().reflect(writer);
//! tokio::spawn(stream.for_each(|_| std::future::ready(())));
//! store.wait_until_ready().await?;
//!
//! let cache = lag.stream::<ConfigMap>().in_namespace("demo");
//! cache.opened().await?;
//! cache.hold();
//! let mut made = ConfigMap::default();
//! made.metadata.name = Some("late".to_owned());
//! let made = maps.create(&PostParams::default(), &made).await?;
//! cache.received(made.metadata.resource_version.as_deref().unwrap_or_default()).await?;
//! assert_eq!((cache.behind()?, store.len()), (1, 0));
//! cache.release_one().await?;
//! assert_eq!((cache.behind()?, store.len()), (0, 1));
//! assert_eq!(lag.requests().count(&Requests::create::<ConfigMap>()), 1, "{lag}");
//! # Ok(())
//! # }
//! ```

use std::{borrow::Borrow, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use kube::{Client, Config, Resource, client::Body};
use tower::{BoxError, Service, ServiceExt};

use crate::connect::{Connector, Upstream};

mod answers;
mod boundary;
mod cache;
mod choices;
mod chronicle;
mod driving;
mod engine;
mod error;
mod fence;
mod filter;
mod flips;
mod layer;
pub mod model;
mod passes;
mod reading;
pub(crate) mod recall;
mod record;
mod released;
mod relist;
mod replica;
mod requests;
mod selector;
mod state;
mod streams;
pub(crate) mod tap;
mod upstream;
mod verbs;
mod waits;
mod wire;
mod worlds;

#[cfg(test)]
mod tests;

pub use self::{
    answers::{Answer, AnswerHandle, FlipHandle},
    boundary::{Boundary, ReplyFault, Scheduler, Wait},
    cache::{Cache, ReadLog},
    choices::{ChoiceRecord, Choices},
    error::{StreamError, StreamErrorKind},
    fence::FenceError,
    passes::{PassError, Passes},
    released::Released,
    replica::ObserveError,
    requests::{Mark, RequestLog, Requests},
    selector::StreamSelector,
};
pub(crate) use self::{driving::PASSES_BEGIN, state::Shapes};
use self::{
    engine::Engine,
    filter::Filter,
    layer::{ActorService, LagService},
    model::StreamDescription,
};

/// How long a verb waits unless [`Lag::with_deadline`] says otherwise.
const DEADLINE: Duration = Duration::from_secs(5);

/// Makes clients whose watches can be held, and knows what they have asked and been shown.
///
/// A clone is another handle on the same streams and records. See the [module](self) for an example.
#[derive(Clone)]
pub struct Lag {
    engine: Arc<Engine>,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Server(Box<Connector>),
    Service { upstream: Upstream, default_namespace: String },
}

impl Lag {
    /// Prepares clients of the cluster that `config` names; opens no connection.
    ///
    /// The clients set TCP_NODELAY, and leave aside the configuration's proxy, read and write timeouts and
    /// `default_retry`: a 429 or 503 reaches the code under test at once.
    ///
    /// # Errors
    /// If the configuration's keys, certificates, tokens or headers cannot be used.
    pub fn over(config: impl Borrow<Config>) -> Result<Self, LagError> {
        let connector = Connector::new(config.borrow()).map_err(LagError::Config)?;
        Ok(Self::from_source(Source::Server(Box::new(connector))))
    }

    /// The same over any service that answers as an API server does, such as a scripted one.
    pub fn over_service<S, B>(service: S, default_namespace: impl Into<String>) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let service = service
            .map_response(|reply: Response<B>| {
                reply.map(|body| body.map_err(Into::into).boxed_unsync())
            })
            .map_err(Into::into);
        Self::from_source(Source::Service {
            upstream: Upstream::new(service),
            default_namespace: default_namespace.into(),
        })
    }

    fn from_source(source: Source) -> Self {
        Self { engine: Arc::new(Engine::new(DEADLINE)), source }
    }

    /// How long the verbs of its streams wait; 5 s unless set, for all handles on it.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        self.engine.set_deadline(deadline);
        self
    }

    /// Whether the reply to a write waits for the event of that write; it does unless this says `false`,
    /// for all handles on it.
    ///
    /// A fenced reply is handed back once every open stream that must show the write has *received* its event,
    /// held or not. A write that changed nothing does not wait; a deletion waits for that of the object with its
    /// UID. So right after a write of these clients [`behind`](StreamSelector::behind) is exact for the streams
    /// that show it: they have it, and all that anybody wrote before it, since a watch tells commits in their order.
    ///
    /// What somebody else wrote after it may be on its way; so may what somebody else wrote before it, where a
    /// stream does not show this write, or where it changed nothing. Let them write through an
    /// [`actor_client`](Self::actor_client), or wait with [`received`](StreamSelector::received).
    ///
    /// If the event does not arrive within the deadline, the request fails with a [`FenceError`] in a
    /// [`kube::Error::Service`], though the write has taken effect.
    #[must_use]
    pub fn with_fences(self, fences: bool) -> Self {
        self.engine.set_fences(fences);
        self
    }

    /// An ordinary client, with connections of its own.
    ///
    /// It belongs to the runtime in which it is made, of either flavour. Tokio's paused time is not for it:
    /// time would jump while a reply is on its way.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as every way to make a kube client.
    #[must_use]
    pub fn client(&self) -> Client {
        let (upstream, namespace) = self.upstream();
        Client::new(LagService { engine: Arc::clone(&self.engine), upstream }, namespace)
    }

    /// An ordinary client for those who are not under test: a user, a kubelet, another controller.
    ///
    /// Its writes are fenced as those of [`client`](Self::client) are. Its requests are not recorded, answered or
    /// flipped, are no boundaries, and its watches are no streams.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as every way to make a kube client.
    #[must_use]
    pub fn actor_client(&self) -> Client {
        let (upstream, namespace) = self.upstream();
        Client::new(ActorService { engine: Arc::clone(&self.engine), upstream }, namespace)
    }

    fn upstream(&self) -> (Upstream, &str) {
        match &self.source {
            Source::Server(connector) => (connector.upstream(), connector.default_namespace()),
            Source::Service { upstream, default_namespace } => {
                (upstream.clone(), default_namespace.as_str())
            }
        }
    }

    /// Holds every stream, now and later, of whatever resource and form.
    pub fn hold(&self) {
        self.every_stream().hold();
    }

    /// Lifts every hold; see [`StreamSelector::release_all`].
    ///
    /// # Errors
    /// As that.
    pub async fn release_all(&self) -> Result<Vec<Released>, StreamError> {
        self.every_stream().release_all().await
    }

    fn every_stream(&self) -> StreamSelector<()> {
        StreamSelector::from_filter(Arc::clone(&self.engine), Filter::everything())
    }

    /// Asks `scheduler` from now on, at every boundary, what the held streams show; the one before is dropped.
    ///
    /// A boundary is the moment before the reply to a request of a [`client`](Self::client) is handed back, watches
    /// left out; the write has taken effect and is fenced. Replies go back in the order of their requests
    /// meanwhile. Streams that are not held move by themselves, so [`hold`](Self::hold) them first. What others
    /// write is among what waits once it has been received: see [`with_fences`](Self::with_fences).
    ///
    /// The bookmarks of the server are dropped meanwhile, but for one that ends an initial list: they come when
    /// its clock says so, and a schedule could not be repeated.
    pub fn set_scheduler(&self, scheduler: impl Scheduler + 'static) {
        drop(self.engine.schedule.set(Some(Box::new(scheduler))));
    }

    /// Asks no scheduler any more; holds stay as they are.
    pub fn clear_scheduler(&self) {
        drop(self.engine.schedule.set(None));
    }

    /// From now on the clients get no bookmarks, also before a scheduler is set and when it is set no more.
    pub(crate) fn without_bookmarks(&self) {
        self.engine.change(|registry| registry.without_bookmarks = true);
    }

    /// Waits until the scheduler has decided for the `count`th time, since this was made, that the process under
    /// test ends ([`ReplyFault::Restart`]). The reply at which that was decided is never handed back: drop
    /// the code under test, and begin it anew.
    pub async fn restarted(&self, count: u64) {
        let mut restarts = self.engine.restarts.subscribe();
        // The sender lives as long as `self`.
        let _ = restarts.wait_for(|restarts| *restarts >= count).await;
    }

    /// Names the streams that carry whole objects of `K`; to be narrowed, held and released.
    pub fn stream<K: Resource<DynamicType = ()>>(&self) -> StreamSelector<K> {
        StreamSelector::new(Arc::clone(&self.engine))
    }

    /// All streams there have been, closed ones too, in the order in which they were first opened.
    #[must_use]
    pub fn streams(&self) -> StreamList {
        StreamList(self.engine.look(engine::Registry::descriptions))
    }

    /// Answers every request that `requests` means in the server's place, until lifted.
    ///
    /// The newest answer or flip that matches decides. A watch is answered when it is opened; an open one
    /// goes on. Dropping the handle does not lift it.
    pub fn answer(&self, requests: Requests, answer: Answer) -> AnswerHandle {
        self.engine.rules.answer(requests, answer, false)
    }

    /// Answers the next request that `requests` means, and none after it.
    pub fn answer_once(&self, requests: Requests, answer: Answer) -> AnswerHandle {
        self.engine.rules.answer(requests, answer, true)
    }

    /// Answers every get and list that `requests` means from the lagging view, until lifted.
    ///
    /// The reply shows what the client's own stream of whole objects of that resource and scope has been
    /// shown so far: the object or a 404, the list at its resource version. Streams without selectors go first.
    /// Without any such stream the reply is a 500 that says so. Other verbs are not touched; a reflector's
    /// own list is a list too, so name a span or a namespace where that matters. `limit` is not
    /// heeded, and of field selectors only `metadata.name` and `metadata.namespace` are known.
    pub fn flip(&self, requests: Requests) -> FlipHandle {
        self.engine.rules.flip(requests)
    }

    /// The passes whose reconcile function is bracketed with [`Passes::run`].
    #[must_use]
    pub fn passes(&self) -> Passes {
        Passes::new(Arc::clone(&self.engine))
    }

    /// The reads of its [caches](Cache) so far, in order.
    #[must_use]
    pub fn reads(&self) -> ReadLog {
        self.engine.reads.log()
    }

    /// Forgets the reads so far.
    pub fn clear_reads(&self) {
        self.engine.reads.clear();
    }

    /// The requests made so far by all its clients, in order, from the last [`clear_requests`](Self::clear_requests).
    #[must_use]
    pub fn requests(&self) -> RequestLog {
        self.engine.recorder.since(Mark(0))
    }

    /// The point in the record that has been reached.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.engine.recorder.mark()
    }

    /// The requests made after `mark`.
    #[must_use]
    pub fn requests_since(&self, mark: Mark) -> RequestLog {
        self.engine.recorder.since(mark)
    }

    /// Forgets the requests made so far; numbers go on.
    pub fn clear_requests(&self) {
        self.engine.recorder.clear();
    }
}

impl fmt::Debug for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lag").field("streams", &self.streams().len()).finish_non_exhaustive()
    }
}

/// All requests and how far each stream is behind, for messages of assertions.
impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "requests:\n{}\nstreams:\n{}", self.requests(), self.streams())
    }
}

/// The streams of a [`Lag`] as they stood; printed one a line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StreamList(Vec<StreamDescription>);

impl std::ops::Deref for StreamList {
    type Target = [StreamDescription];

    fn deref(&self) -> &[StreamDescription] {
        &self.0
    }
}

impl fmt::Display for StreamList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(filter::list_streams(&self.0).trim_start_matches('\n'))
    }
}

/// Why a [`Lag`] could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LagError {
    /// The configuration cannot be used.
    #[error(
        "failed to prepare clients from the configuration; are its keys and certificates whole?"
    )]
    Config(#[source] kube::Error),
}
