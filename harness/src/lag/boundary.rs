//! Boundaries: the moments at which a scheduler says what each stream shows: before a reply is handed back,
//! before a pass begins, and while one waits.
//!
//! A request has taken effect and its events have been received; its caller does not know yet. Between two replies a
//! sequential pass does nothing but cached reads, so if streams move here and nowhere else, every
//! combination of views that such a pass can see is a list of numbers.

use std::{
    fmt,
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{
    chronicle::Entry,
    engine::{Engine, Registry},
    error::StreamError,
    filter::Filter,
    model::{
        AnsweredBy, CachedRead, Connection, Fault, Hold, Identity, Outcome, PointId, Request,
        StreamDescription,
    },
    released::Released,
    selector::StreamSelector,
};

/// Decides what streams show: how far each moves at a boundary, which answer a cached read gets, which
/// state an initial list has.
///
/// Set with [`Lag::set_scheduler`](super::Lag::set_scheduler). Methods are called one at a time, and must not call the
/// [`Lag`](super::Lag) back. [`Choices`](super::Choices) is the one that puts each decision to a
/// [`Chooser`](super::model::Chooser).
pub trait Scheduler: Send {
    /// Called before anything else at the boundary of a write that the server has carried out: whether the
    /// caller ever hears of it.
    fn fault(&mut self, boundary: &Boundary) -> Option<ReplyFault> {
        let _ = boundary;
        None
    }

    /// Called first at each boundary: what other actors do before any stream moves.
    ///
    /// They act through [`Lag::actor_client`](super::Lag::actor_client), so that the streams have received what
    /// they did when the future is done. The reply waits for it.
    fn environment(&mut self, boundary: &Boundary) -> BoxFuture<'static, ()> {
        let _ = boundary;
        Box::pin(ready(()))
    }

    /// How many of the events `waiting` in a held stream are released before the reply is handed back.
    ///
    /// Asked for each held, open stream in which something waits, in the order in which they were opened, those
    /// that only trigger passes last. Streams that are read through a [`Cache`](super::Cache) are left
    /// out, but where a pass waits: they move by their reads. More than there are means all. Not asked
    /// where a wait [goes on](Wait::GoesOn): everything is released then.
    fn release(
        &mut self,
        boundary: &Boundary,
        stream: &StreamDescription,
        waiting: &[Released],
    ) -> usize;

    /// Says that the client did not take in what `release` let go: that choice cannot happen with this code.
    ///
    /// What was not handed over is held as before; the reply is handed back.
    fn not_taken(&mut self, boundary: &Boundary, stream: &StreamDescription, error: StreamError) {
        tracing::debug!(%boundary, %stream, %error, "a release was not taken in");
    }

    /// Says that everything has been released without asking: no stream is behind any more.
    fn all_released(&mut self) {}

    /// Which of the distinct `answers` a cached read gets; they run from the newest to that of the present
    /// position. Only asked where there are two or more.
    fn read(&mut self, stream: &StreamDescription, answers: &[CachedRead]) -> usize {
        let _ = (stream, answers);
        0
    }

    /// Which of the states that it may show an initial list shows, by resource version; the newest, which is
    /// whatever the server answers, comes first. Only asked where there are two or more.
    fn initial(&mut self, stream: &Identity, versions: &[String]) -> usize {
        let _ = (stream, versions);
        0
    }

    /// The name of the choice that was made last, for the record of the run; none by default.
    fn last_point(&self) -> Option<PointId> {
        None
    }
}

/// What becomes of the reply to a write that has taken effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ReplyFault {
    /// The connection breaks before it arrives.
    Lost,
    /// The process under test ends before it arrives: nothing is handed back to it any more. Whoever runs it
    /// hears of it by [`Lag::restarted`](super::Lag::restarted).
    Restart,
}

/// Whether a reply goes back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reached {
    HandedBack,
    Lost,
}

/// How far a [wait](super::Passes::wait_for) inside a pass has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Wait {
    /// It has just begun.
    Begins,
    /// What has happened since was not enough: whatever can happen by itself does now.
    GoesOn,
}

/// The moment before a reply is handed back, before a pass begins, or while one waits; or, where a whole controller is
/// driven, at which nothing goes on any more.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Boundary {
    /// Counts the boundaries of its kind since the scheduler was set, from 1; replies and waits together.
    pub number: u64,
    /// The request, with what came of it so far; `None` before a pass, in a wait, and between passes.
    pub request: Option<Request>,
    /// The key of the pass that is about to begin.
    pub pass: Option<String>,
    /// The wait, where it is one.
    pub wait: Option<Wait>,
}

impl Boundary {
    /// Whether nothing goes on, and what is released may begin passes.
    pub(crate) fn is_delivery(&self) -> bool {
        self.request.is_none() && self.pass.is_none() && self.wait.is_none()
    }
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.request, &self.pass) {
            (Some(request), _) => {
                let Request { number, verb, .. } = request;
                write!(f, "boundary {} after #{number} {verb} {}", self.number, request.target())
            }
            (None, Some(key)) => write!(f, "the start of pass {} of {key}", self.number),
            (None, None) if self.wait.is_some() => write!(f, "boundary {}, a wait", self.number),
            (None, None) => write!(f, "delivery {}", self.number),
        }
    }
}

/// The scheduler that is set, if one is.
#[derive(Default)]
pub(super) struct Schedule(Mutex<Scheduled>);

#[derive(Default)]
pub(super) struct Scheduled {
    pub(super) scheduler: Option<Box<dyn Scheduler>>,
    boundaries: u64,
    passes: u64,
    deliveries: u64,
}

impl Schedule {
    pub(super) fn set(&self, scheduler: Option<Box<dyn Scheduler>>) -> Option<Box<dyn Scheduler>> {
        let mut scheduled = self.lock();
        (scheduled.boundaries, scheduled.passes, scheduled.deliveries) = (0, 0, 0);
        std::mem::replace(&mut scheduled.scheduler, scheduler)
    }

    pub(super) fn is_set(&self) -> bool {
        self.lock().scheduler.is_some()
    }

    /// Asks the scheduler, if one is set.
    pub(super) fn ask<T>(
        &self,
        ask: impl FnOnce(&mut (dyn Scheduler + 'static)) -> T,
    ) -> Option<T> {
        self.lock().scheduler.as_deref_mut().map(ask)
    }

    fn next_boundary(&self) -> u64 {
        let mut scheduled = self.lock();
        scheduled.boundaries += 1;
        scheduled.boundaries
    }

    fn next_pass(&self) -> u64 {
        let mut scheduled = self.lock();
        scheduled.passes += 1;
        scheduled.passes
    }

    fn next_delivery(&self) -> u64 {
        let mut scheduled = self.lock();
        scheduled.deliveries += 1;
        scheduled.deliveries
    }

    fn lock(&self) -> MutexGuard<'_, Scheduled> {
        // A scheduler that panics has failed the run by that; what follows need not fail as well.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schedule").field(&self.is_set()).finish()
    }
}

/// What happens before the reply to request `number` is handed back.
///
/// Replies go back in the order of their requests while a scheduler is set: one waits for those before it,
/// as long as their callers do.
pub(super) async fn reach(engine: &Arc<Engine>, number: u64) -> Reached {
    let mut reached = Reached::HandedBack;
    if engine.schedule.is_set() {
        turn(engine, number).await;
        if let Some(request) = engine.recorder.get(number) {
            let took_effect = request.verb.is_write()
                && request.answered_by == AnsweredBy::Server
                && matches!(request.outcome, Outcome::Status(200..=299));
            let count = engine.schedule.next_boundary();
            let boundary =
                Boundary { number: count, request: Some(request), pass: None, wait: None };
            let fault = took_effect
                .then(|| engine.schedule.ask(|scheduler| scheduler.fault(&boundary)).flatten());
            match fault.flatten() {
                Some(ReplyFault::Restart) => {
                    engine.change(|registry| {
                        registry.note(Entry::Fault(Fault::Restart));
                        registry.passes.forget();
                    });
                    engine.restarts.send_modify(|count| *count += 1);
                    std::future::pending::<()>().await;
                }
                Some(ReplyFault::Lost) => {
                    let fault = Fault::ReplyLost(number);
                    engine.change(|registry| registry.note(Entry::Fault(fault)));
                    reached = Reached::Lost;
                }
                None => {}
            }
            schedule(engine, &boundary).await;
        }
    }
    catch_up(engine).await;
    reached
}

/// Waits for the turn of a request whose reply is there: after those before it, or as whoever drives a controller says.
pub(super) async fn turn(engine: &Arc<Engine>, number: u64) {
    if engine.look(|registry| registry.openings.ordered) {
        engine.change(|registry| registry.openings.waiting.insert(number));
    }
    engine.wait_for_ever(|registry| registry.is_its_turn(number).then_some(())).await;
}

/// What happens before a pass of `key` begins.
pub(super) async fn reach_pass(engine: &Arc<Engine>, key: &str) {
    if engine.schedule.is_set() {
        let number = engine.schedule.next_pass();
        let boundary = Boundary { number, request: None, pass: Some(key.to_owned()), wait: None };
        schedule(engine, &boundary).await;
    }
}

/// What happens where nothing goes on any more: events are delivered, first to the stores, then those that trigger.
///
/// After each stream that may begin a pass it is waited until that has happened, so that how many passes there are is no
/// matter of milliseconds.
pub(super) async fn deliver(engine: &Arc<Engine>) {
    let number = engine.schedule.next_delivery();
    schedule(engine, &Boundary { number, request: None, pass: None, wait: None }).await;
}

/// What happens while a pass waits. Whether anything did, where the wait goes on.
pub(super) async fn reach_wait(engine: &Arc<Engine>, wait: Wait) -> bool {
    // What a wrapped read has shown is where its stream stands.
    catch_up(engine).await;
    let number = engine.schedule.next_boundary();
    let boundary = Boundary { number, request: None, pass: None, wait: Some(wait) };
    let before = engine.look(Registry::progress);
    schedule(engine, &boundary).await;
    engine.look(Registry::progress) != before
}

async fn schedule(engine: &Arc<Engine>, boundary: &Boundary) {
    if let Some(environment) = engine.schedule.ask(|scheduler| scheduler.environment(boundary)) {
        environment.await;
    }
    let forced = boundary.wait == Some(Wait::GoesOn);
    for index in engine.look(Registry::release_order) {
        let asked = engine.look(|registry| {
            let stream = &registry.streams[index];
            let waiting: Vec<Released> = stream.waiting().iter().map(Released::from).collect();
            let by_reads = stream.wrapped && boundary.wait.is_none();
            let moves = stream.is_held() && stream.connection() == Connection::Open && !by_reads;
            let asked = || (stream.describe(), waiting.clone(), stream.begins_passes);
            (moves && !waiting.is_empty()).then(asked)
        });
        let Some((stream, waiting, begins_passes)) = asked else { continue };
        let chosen = engine.schedule.ask(|scheduler| match forced {
            true => (waiting.len(), None),
            false => (scheduler.release(boundary, &stream, &waiting), scheduler.last_point()),
        });
        let Some((count, point)) = chosen else { continue };
        let count = count.min(waiting.len());
        note_choice(engine, index, count, &waiting, point);
        if count == 0 {
            continue;
        }
        let selector = exactly(engine, index);
        if let Err(error) = selector.release_waiting(index, count).await {
            engine.schedule.ask(|scheduler| scheduler.not_taken(boundary, &stream, error));
        }
        passes_begin(boundary, begins_passes).await;
    }
    if forced {
        engine.schedule.ask(|scheduler| scheduler.all_released());
    }
}

/// How long after a trigger its pass has begun, by the clock of the runtime.
///
/// A `Controller` puts a trigger into a `DelayQueue` before it asks for the next event, which is when a release counts
/// as acknowledged; the queue gives it out at the next millisecond or the one after. A timer that is set later for
/// a later millisecond fires after it. So whoever polls the controller in the task that waits for this timer, before
/// it looks at the timer, has polled a pass that the trigger begins.
///
/// Source: tokio-util, `time/delay_queue.rs` (`normalize_deadline`); kube-runtime 5.0, `scheduler.rs`.
pub(super) const PASSES_BEGIN: Duration = Duration::from_millis(3);

async fn passes_begin(boundary: &Boundary, begins_passes: bool) {
    if boundary.is_delivery() && begins_passes {
        tokio::time::sleep(PASSES_BEGIN).await;
    }
}

/// Writes down what was chosen for a stream: where its next events come from, and what is kept back.
fn note_choice(
    engine: &Engine,
    index: usize,
    count: usize,
    waiting: &[Released],
    point: Option<PointId>,
) {
    let first = waiting.get(count).and_then(Released::event);
    engine.change(|registry| {
        let stream = &mut registry.streams[index];
        let end = stream.end_of_waiting(count).unwrap_or_else(|| stream.handed());
        stream.released_at = point.clone().map(|point| (end, point));
        // A hold that only goes on is not told again.
        let goes_on = count == 0 && first.is_some() && stream.held_from == first;
        stream.held_from.clone_from(&first);
        if first.is_some() && !goes_on {
            let behind = waiting.len() - count;
            registry.note(Entry::Held(Hold { stream: index, behind, first, point }));
        }
    });
}

/// Brings each store up to what a wrapped read has shown of its stream already.
pub(super) async fn catch_up(engine: &Arc<Engine>) {
    let behind = |registry: &Registry| -> Vec<usize> {
        let streams = registry.streams.iter().enumerate();
        streams.filter(|(_, stream)| stream.is_read_ahead()).map(|(index, _)| index).collect()
    };
    for index in engine.look(behind) {
        if let Err(error) = exactly(engine, index).catch_up(index).await {
            let stream = engine.look(|registry| registry.streams[index].describe());
            tracing::warn!(%stream, %error, "a store is behind what was read through the wrapper");
        }
    }
}

fn exactly(engine: &Arc<Engine>, index: usize) -> StreamSelector<()> {
    let filter = engine.look(|registry| {
        let stream = &registry.streams[index];
        Filter::exactly(&stream.identity, stream.instance)
    });
    StreamSelector::from_filter(Arc::clone(engine), filter)
}

/// The end of the waits of one boundary.
impl StreamSelector<()> {
    async fn release_waiting(&self, index: usize, count: usize) -> Result<(), StreamError> {
        let attempt = "release events at a boundary";
        let deadline = Instant::now() + self.engine.deadline();
        let _turn = self.turn(attempt, index, deadline).await?;
        self.release(attempt, index, deadline, |stream| stream.end_of_waiting(count)).await?;
        Ok(())
    }

    /// Releases what waits in the one stream that matches, and holds on.
    pub(super) async fn release_what_waits(&self) -> Result<(), StreamError> {
        let chosen = self.engine.look(|registry| self.filter.choose(&registry.streams));
        let index = self.only("release what waits", &chosen)?;
        let count = self.engine.look(|registry| registry.streams[index].waiting().len());
        if count == 0 { Ok(()) } else { self.release_waiting(index, count).await }
    }

    async fn catch_up(&self, index: usize) -> Result<(), StreamError> {
        let attempt = "bring the store up to what was read";
        let deadline = Instant::now() + self.engine.deadline();
        let _turn = self.turn(attempt, index, deadline).await?;
        self.release(attempt, index, deadline, |stream| stream.end_of_read()).await?;
        Ok(())
    }
}
