//! What a test says to streams: hold, release, look.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{
    engine::{Engine, Registry},
    error::{StreamError, StreamErrorKind},
    filter::{list_choices, list_streams},
    model::{Connection, ObjectKey, View, compare_resource_versions},
    released::Released,
    selector::StreamSelector,
    streams::Stream,
};

/// Holding and releasing.
impl<K> StreamSelector<K> {
    /// Holds every stream that matches, now and later: events are received and not handed on.
    ///
    /// Initial lists pass, so a stream that is held before it is opened starts with what its first list
    /// shows and stands still there. Bookmarks pass where no event waits before them; errors of the
    /// server wait like events. A client that lists anew (after an expired resource version, or because it is
    /// restarted) sees the server's present state, as it would in production.
    pub fn hold(&self) {
        self.engine.change(|registry| registry.hold(&self.filter));
    }

    /// Says that these streams, now and later, only trigger passes and feed no store, as those of `watches` do.
    ///
    /// Streams of [`metadata`](Self::metadata) are taken as such anyway. At a boundary they are released last.
    pub fn only_trigger(&self) {
        self.engine.change(|registry| registry.mark_triggers(&self.filter));
    }

    /// Hands on the next event of the one held stream that matches, and returns when the client's store shows it.
    ///
    /// Waits for an event to be received if none is waiting. Dropping the future takes the release back
    /// unless the event has been handed over.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`, `NotHeld`; `NothingHeld` if no event came; `NotTaken` if the client does
    /// not take it in, which a reflector does not while the code that consumes it waits for something else;
    /// `Relisted`.
    pub async fn release_one(&self) -> Result<Released, StreamError> {
        let attempt = "release one event";
        let deadline = self.deadline();
        let index = self.find(attempt, deadline).await?;
        let _turn = self.turn(attempt, index, deadline).await?;
        let held = |registry: &Registry| {
            let stream = &registry.streams[index];
            if stream.is_held() {
                stream.next_held().map(Ok)
            } else {
                Some(Err(StreamErrorKind::NotHeld))
            }
        };
        match self.engine.wait(deadline, held).await {
            Some(Ok(_)) => {}
            Some(Err(kind)) => return Err(self.failure(attempt, kind, index)),
            None => return Err(self.failure(attempt, StreamErrorKind::NothingHeld, index)),
        }
        let mut released = self.release(attempt, index, deadline, Stream::next_held).await?;
        released.pop().ok_or_else(|| self.failure(attempt, StreamErrorKind::NothingHeld, index))
    }

    /// Hands on everything up to and including a resource version of the one held stream that matches, and
    /// returns when the client's store shows it.
    ///
    /// Nothing is returned if it was there already. Waits for that version, or a newer one, to be received.
    ///
    /// # Errors
    /// As [`release_one`](Self::release_one); `NotReceived` in place of `NothingHeld`, which is also what
    /// follows a write that changed nothing or concerns no object of the stream; `NoNumber`.
    pub async fn release_to(&self, resource_version: &str) -> Result<Vec<Released>, StreamError> {
        let attempt = format!("release up to resource version {resource_version}");
        self.check_number(&attempt, resource_version)?;
        let deadline = self.deadline();
        let index = self.find(&attempt, deadline).await?;
        let _turn = self.turn(&attempt, index, deadline).await?;
        let received = |registry: &Registry| {
            let stream = &registry.streams[index];
            if !stream.is_held() {
                return Some(Err(StreamErrorKind::NotHeld));
            }
            stream.end_of(resource_version).map(Ok)
        };
        match self.engine.wait(deadline, received).await {
            Some(Ok(_)) => {}
            Some(Err(kind)) => return Err(self.failure(&attempt, kind, index)),
            None => return Err(self.failure(&attempt, StreamErrorKind::NotReceived, index)),
        }
        self.release(&attempt, index, deadline, |stream| stream.end_of(resource_version)).await
    }

    /// Lifts the hold of every stream that matches, hands on what waits, and returns when the clients' stores
    /// show it. What is received later passes at once.
    ///
    /// # Errors
    /// `NoStream` if nothing matches and no hold was set for it; `NotHeld` if nothing was held; `NotTaken` and
    /// `Relisted` as [`release_one`](Self::release_one). The hold is lifted even then.
    pub async fn release_all(&self) -> Result<Vec<Released>, StreamError> {
        let attempt = "release everything";
        let deadline = self.deadline();
        let (ruled, opened) = self.engine.look(|registry| {
            let chosen = self.filter.choose(&registry.streams);
            (registry.is_ruled(&self.filter), chosen)
        });
        if !ruled && opened.is_empty() {
            return Err(self.no_stream(attempt));
        }
        if !ruled && !self.engine.look(|r| opened.iter().any(|index| r.streams[*index].is_held())) {
            return Err(self.failure(attempt, StreamErrorKind::NotHeld, opened[0]));
        }
        let (awaited, wakers): (Vec<_>, Vec<_>) = self.engine.change(|registry| {
            registry.lift(&self.filter);
            let matches = |s: &&mut Stream| self.filter.matches(&s.identity, s.instance);
            let streams = registry.streams.iter_mut().enumerate();
            let matching = streams.filter(|(_, stream)| matches(stream) && stream.is_held());
            let opened = matching.map(|(index, stream)| {
                let waiting = stream.waiting().iter().map(Released::from).collect::<Vec<_>>();
                let (frames, waker) = stream.open_gate();
                ((index, stream.incarnation(), frames, waiting), waker)
            });
            opened.unzip()
        });
        wakers.into_iter().flatten().for_each(std::task::Waker::wake);
        let mut released = Vec::new();
        for (index, incarnation, frames, waiting) in awaited {
            // A closed stream has nobody to show it to.
            let closed =
                |registry: &Registry| registry.streams[index].connection() == Connection::Closed;
            if waiting.is_empty() || self.engine.look(closed) {
                continue;
            }
            self.acknowledged(attempt, index, incarnation, frames, deadline).await?;
            released.extend(waiting);
        }
        Ok(released)
    }

    /// Waits until an event of that resource version, or something newer, has been received for the one stream
    /// that matches, whether or not it has been handed on.
    ///
    /// An event follows the reply to its write within a fraction of a millisecond, not before it. Asking
    /// [`behind`](Self::behind) right after a write that no [fence](super::Lag::with_fences) waited for is a
    /// race; asking after this is none.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`, `NoNumber`; `NotReceived`, also after a write that changed nothing.
    pub async fn received(&self, resource_version: &str) -> Result<(), StreamError> {
        let attempt = format!("receive resource version {resource_version}");
        self.check_number(&attempt, resource_version)?;
        let deadline = self.deadline();
        let index = self.find(&attempt, deadline).await?;
        let check = |registry: &Registry| registry.streams[index].end_of(resource_version);
        let received = self.engine.wait(deadline, check).await;
        received
            .map(drop)
            .ok_or_else(|| self.failure(&attempt, StreamErrorKind::NotReceived, index))
    }

    /// Waits until the store of the one stream that matches shows that resource version, or something newer.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`, `NoNumber`; `NotReceived`; `NotTaken`, also where the stream is held.
    pub async fn shown(&self, resource_version: &str) -> Result<(), StreamError> {
        let attempt = format!("see resource version {resource_version} shown");
        self.check_number(&attempt, resource_version)?;
        let deadline = self.deadline();
        let index = self.find(&attempt, deadline).await?;
        let check = |registry: &Registry| {
            let stream = &registry.streams[index];
            let end = stream.end_of(resource_version)?;
            (stream.view().ready && stream.has_shown(end)).then_some(())
        };
        if self.engine.wait(deadline, check).await.is_some() {
            return Ok(());
        }
        let received = self.engine.look(|r| r.streams[index].end_of(resource_version).is_some());
        let kind = if received { StreamErrorKind::NotTaken } else { StreamErrorKind::NotReceived };
        Err(self.failure(&attempt, kind, index))
    }

    /// Waits until at least `events` events wait in the one stream that matches; returns how many do.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`; `NotReceived` if fewer came.
    pub async fn until_behind(&self, events: usize) -> Result<usize, StreamError> {
        let attempt = format!("see {events} events waiting");
        let deadline = self.deadline();
        let index = self.find(&attempt, deadline).await?;
        let check = |registry: &Registry| {
            Some(registry.streams[index].behind()).filter(|behind| *behind >= events)
        };
        let behind = self.engine.wait(deadline, check).await;
        behind.ok_or_else(|| self.failure(&attempt, StreamErrorKind::NotReceived, index))
    }

    /// Waits until the one stream that matches is open and its initial list has been handed over.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`; `NotReceived` if the initial list is not complete.
    pub async fn opened(&self) -> Result<(), StreamError> {
        let attempt = "see the stream opened";
        let deadline = self.deadline();
        let index = self.find(attempt, deadline).await?;
        let check = |registry: &Registry| {
            let stream = &registry.streams[index];
            (stream.view().ready && stream.connection() == Connection::Open).then_some(())
        };
        let opened = self.engine.wait(deadline, check).await;
        opened.ok_or_else(|| self.failure(attempt, StreamErrorKind::NotReceived, index))
    }
}

/// Looking, without waiting.
impl<K> StreamSelector<K> {
    /// How many events of the one stream that matches have been received and not handed on.
    ///
    /// What the server has and has not sent yet is not counted; [`Lag::with_fences`](super::Lag::with_fences)
    /// says of which writes nothing can be on its way.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`.
    pub fn behind(&self) -> Result<usize, StreamError> {
        self.look("tell how far the stream is behind", Stream::behind)
    }

    /// How many events its client has been given since its last initial list.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`.
    pub fn position(&self) -> Result<usize, StreamError> {
        self.look("tell the position", Stream::position)
    }

    /// Position, incarnation and readiness.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`.
    pub fn state(&self) -> Result<View, StreamError> {
        self.look("tell the view", Stream::view)
    }

    /// The resource version that its client knows: the one it would come back with.
    /// `None` while its initial list is being streamed.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`.
    pub fn delivered_resource_version(&self) -> Result<Option<String>, StreamError> {
        self.look("tell the resource version", |stream| {
            stream.delivered_resource_version().map(str::to_owned)
        })
    }

    /// The objects that its client has been shown, by namespace and name.
    ///
    /// Of a watch that was started from a bare resource version only what its events brought is known.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`; `Unreadable`.
    pub fn view(&self) -> Result<Vec<K>, StreamError>
    where
        K: DeserializeOwned,
    {
        let attempt = "show the view";
        let objects = self.look(attempt, Stream::objects)?;
        objects.into_iter().map(|(key, object)| self.read(attempt, &key, object)).collect()
    }

    /// One object as its client has been shown it; `None` if it has been shown none, or its deletion.
    ///
    /// `namespace` is `None` for cluster-scoped resources.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`; `Unreadable`.
    pub fn get<'a>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        name: &str,
    ) -> Result<Option<K>, StreamError>
    where
        K: DeserializeOwned,
    {
        let attempt = "show an object of the view";
        let key =
            ObjectKey { namespace: namespace.into().map(str::to_owned), name: name.to_owned() };
        let object = self.look(attempt, |stream| stream.objects().remove(&key))?;
        object.map(|object| self.read(attempt, &key, object)).transpose()
    }
}

impl<K> StreamSelector<K> {
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.engine.deadline()
    }

    /// The one stream that matches, once there is one.
    pub(super) async fn find(
        &self,
        attempt: &str,
        deadline: Instant,
    ) -> Result<usize, StreamError> {
        let chosen = |registry: &Registry| {
            Some(self.filter.choose(&registry.streams)).filter(|chosen| !chosen.is_empty())
        };
        match self.engine.wait(deadline, chosen).await {
            Some(chosen) => self.only(attempt, &chosen),
            None => Err(self.no_stream(attempt)),
        }
    }

    pub(super) fn only(&self, attempt: &str, chosen: &[usize]) -> Result<usize, StreamError> {
        match chosen {
            [] => Err(self.no_stream(attempt)),
            [index] => Ok(*index),
            several => {
                let descriptions = self.engine.look(|registry| {
                    several
                        .iter()
                        .map(|index| registry.streams[*index].describe())
                        .collect::<Vec<_>>()
                });
                let choices = list_choices(&descriptions);
                Err(StreamError::new(attempt, &self.filter, StreamErrorKind::Ambiguous, choices))
            }
        }
    }

    pub(super) fn look<T>(
        &self,
        attempt: &str,
        look: impl FnOnce(&Stream) -> T,
    ) -> Result<T, StreamError> {
        let chosen = self.engine.look(|registry| self.filter.choose(&registry.streams));
        let index = self.only(attempt, &chosen)?;
        Ok(self.engine.look(|registry| look(&registry.streams[index])))
    }

    /// One release at a time moves a stream.
    pub(super) async fn turn(
        &self,
        attempt: &str,
        index: usize,
        deadline: Instant,
    ) -> Result<tokio::sync::OwnedMutexGuard<()>, StreamError> {
        let releasing = self.engine.look(|registry| Arc::clone(&registry.streams[index].releasing));
        let turn = timeout_at(deadline, releasing.lock_owned()).await;
        turn.map_err(|_| self.failure(attempt, StreamErrorKind::NotTaken, index))
    }

    /// Lets pass what ends at `end`, and waits until the client has it.
    pub(super) async fn release(
        &self,
        attempt: &str,
        index: usize,
        deadline: Instant,
        end: impl FnOnce(&Stream) -> Option<usize>,
    ) -> Result<Vec<Released>, StreamError> {
        let (incarnation, frames, released) = self.engine.change_and_wake(|registry| {
            let stream = &mut registry.streams[index];
            let frames = end(stream).unwrap_or_default();
            let carried = stream.carried(stream.handed(), frames.max(stream.handed()));
            let released: Vec<Released> = carried.iter().map(Released::from).collect();
            let waker = stream.release(frames);
            ((stream.incarnation(), frames, released), waker)
        });
        let mut permit = Permit { engine: &self.engine, index, frames, done: false };
        self.acknowledged(attempt, index, incarnation, frames, deadline).await?;
        permit.done = true;
        Ok(released)
    }

    /// Waits until the client of a stream has taken in its first `frames` frames.
    async fn acknowledged(
        &self,
        attempt: &str,
        index: usize,
        incarnation: u32,
        frames: usize,
        deadline: Instant,
    ) -> Result<(), StreamError> {
        let check =
            |registry: &Registry| match registry.streams[index].has_shown_in(incarnation, frames) {
                Some(true) => Some(Ok(())),
                Some(false) => None,
                None => Some(Err(StreamErrorKind::Relisted)),
            };
        match self.engine.wait(deadline, check).await {
            Some(Ok(())) => Ok(()),
            Some(Err(kind)) => Err(self.failure(attempt, kind, index)),
            None => {
                let handed =
                    self.engine.look(|registry| registry.streams[index].has_handed(frames));
                let why = if handed {
                    "it was handed over, and the client has not asked for more since"
                } else {
                    "the client has not asked for it, so it is still held"
                };
                let hint = "what consumes the stream is busy, or its watch is not open";
                let evidence = format!(
                    "; {why}: {hint}; waited {:?}{}",
                    self.engine.deadline(),
                    self.stand(index)
                );
                Err(StreamError::new(attempt, &self.filter, StreamErrorKind::NotTaken, evidence))
            }
        }
    }

    fn no_stream(&self, attempt: &str) -> StreamError {
        let streams = list_streams(&self.engine.look(Registry::descriptions));
        StreamError::new(attempt, &self.filter, StreamErrorKind::NoStream, streams)
    }

    pub(super) fn failure(
        &self,
        attempt: &str,
        kind: StreamErrorKind,
        index: usize,
    ) -> StreamError {
        let waited = match kind {
            StreamErrorKind::NothingHeld
            | StreamErrorKind::NotReceived
            | StreamErrorKind::NotRelisted
            | StreamErrorKind::NotTaken => {
                format!("; waited {:?}", self.engine.deadline())
            }
            _ => String::new(),
        };
        StreamError::new(attempt, &self.filter, kind, format!("{waited}{}", self.stand(index)))
    }

    /// How a stream stands and what waits in it, each on a line of its own.
    fn stand(&self, index: usize) -> String {
        self.engine.look(|registry| {
            let stream = &registry.streams[index];
            let waiting = stream.waiting();
            let lines =
                waiting.iter().map(|carried| format!("\n    waiting: {}", Released::from(carried)));
            format!("\n  {}{}", stream.describe(), lines.collect::<String>())
        })
    }

    pub(super) fn check_number(
        &self,
        attempt: &str,
        resource_version: &str,
    ) -> Result<(), StreamError> {
        match compare_resource_versions(resource_version, "0") {
            Some(_) => Ok(()),
            None => Err(StreamError::new(attempt, &self.filter, StreamErrorKind::NoNumber, "")),
        }
    }

    fn read(&self, attempt: &str, key: &ObjectKey, object: Value) -> Result<K, StreamError>
    where
        K: DeserializeOwned,
    {
        serde_json::from_value(object).map_err(|error| {
            let evidence = format!("\n  {key}: {error}");
            StreamError::new(attempt, &self.filter, StreamErrorKind::Unreadable, evidence)
        })
    }
}

/// Takes a release back that nobody waits for any more.
struct Permit<'a> {
    engine: &'a Engine,
    index: usize,
    frames: usize,
    done: bool,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.engine.change(|registry| {
                let stream = &mut registry.streams[self.index];
                if !stream.has_handed(self.frames) {
                    stream.revoke();
                }
            });
        }
    }
}
