//! Requests that the test answers in place of the server.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::watch;

use super::{model::Request, requests::Requests};

/// What happens to a request in place of the server's answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Answer {
    /// The server refuses with this HTTP status code and the `Status` object that belongs to it; it has not acted.
    ///
    /// Meant for 400 to 599. With 409 a create gets `AlreadyExists`, everything else `Conflict`; 429 asks for
    /// a pause of one second.
    Status(u16),
    /// No reply comes, and the server has not seen the request. Once lifted, the requests that still wait go to the server.
    Timeout,
    /// The connection breaks before the request reaches the server.
    BrokenConnection,
    /// The server acts, and the connection breaks before its reply arrives.
    LostReply,
}

/// A standing [`Answer`]; it stays until it is lifted, also when this is dropped.
#[derive(Clone, Debug)]
pub struct AnswerHandle(RuleHandle);

impl AnswerHandle {
    /// Ends it: from now on the server answers. Does nothing the second time.
    pub fn lift(&self) {
        self.0.lift();
    }

    /// How many requests it has answered.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.0.hits()
    }
}

/// A standing flip of live reads; it stays until it is lifted, also when this is dropped.
#[derive(Clone, Debug)]
pub struct FlipHandle(RuleHandle);

impl FlipHandle {
    /// Ends it: from now on the server answers. Does nothing the second time.
    pub fn lift(&self) {
        self.0.lift();
    }

    /// How many requests it has answered from the lagging view.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.0.hits()
    }
}

/// All standing answers and flips; the newest one that matches decides.
#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<Vec<Rule>>);

#[derive(Debug)]
struct Rule {
    requests: Requests,
    effect: Effect,
    once: bool,
    state: Arc<RuleState>,
}

/// What a rule does to a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Effect {
    Answer(Answer),
    Flip,
}

#[derive(Debug, Default)]
struct RuleState {
    hits: AtomicU64,
    lifted: watch::Sender<bool>,
}

#[derive(Clone, Debug)]
struct RuleHandle {
    rules: Weak<Rules>,
    state: Arc<RuleState>,
}

/// A rule that applies to one request.
pub(super) struct Applied {
    pub(super) effect: Effect,
    state: Arc<RuleState>,
}

impl Rules {
    pub(super) fn answer(
        self: &Arc<Self>,
        requests: Requests,
        answer: Answer,
        once: bool,
    ) -> AnswerHandle {
        AnswerHandle(self.add(requests, Effect::Answer(answer), once))
    }

    pub(super) fn flip(self: &Arc<Self>, requests: Requests) -> FlipHandle {
        FlipHandle(self.add(requests, Effect::Flip, false))
    }

    /// The rule that decides `request`, counted as a hit. `flippable` says whether flips apply to it at all.
    pub(super) fn apply(&self, request: &Request, flippable: bool) -> Option<Applied> {
        let mut rules = self.lock();
        let index = rules.iter().rposition(|rule| {
            (flippable || !matches!(rule.effect, Effect::Flip)) && rule.requests.matches(request)
        })?;
        let rule = &rules[index];
        let applied = Applied { effect: rule.effect, state: Arc::clone(&rule.state) };
        applied.state.hits.fetch_add(1, Ordering::SeqCst);
        if rule.once {
            rules.remove(index);
        }
        Some(applied)
    }

    fn add(self: &Arc<Self>, requests: Requests, effect: Effect, once: bool) -> RuleHandle {
        let state = Arc::new(RuleState::default());
        self.lock().push(Rule { requests, effect, once, state: Arc::clone(&state) });
        RuleHandle { rules: Arc::downgrade(self), state }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Rule>> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RuleHandle {
    fn lift(&self) {
        if let Some(rules) = self.rules.upgrade() {
            rules.lock().retain(|rule| !Arc::ptr_eq(&rule.state, &self.state));
        }
        self.state.lifted.send_replace(true);
    }

    fn hits(&self) -> u64 {
        self.state.hits.load(Ordering::SeqCst)
    }
}

impl Applied {
    /// Waits until the rule is lifted.
    pub(super) async fn lifted(&self) {
        let mut lifted = self.state.lifted.subscribe();
        // The sender lives in `self.state`, so this cannot end early.
        let _ = lifted.wait_for(|lifted| *lifted).await;
    }
}
