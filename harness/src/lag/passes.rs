//! Passes: a bracket around the reconcile function, so that a test says when a pass starts and knows when it has ended.

use std::{collections::BTreeMap, fmt, sync::Arc};

use tokio::time::Instant;

use super::{
    boundary,
    chronicle::Entry,
    engine::{Engine, Registry},
};

/// Lets passes begin one at a time, and tells when they have ended. Made by [`Lag::passes`](super::Lag::passes).
///
/// A pass begins a millisecond or three after its trigger was taken in, so a test that releases two triggers does not
/// know how many passes follow, and one that looks for silence takes a pass that has not begun for the
/// end. With the bracket in the reconcile function both are events:
///
/// ```no_run
/// use std::{convert::Infallible, sync::Arc};
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use kube::runtime::controller::Action;
/// use laggard::lag::{Lag, Passes};
///
/// async fn reconcile(object: Arc<ConfigMap>, passes: Arc<Passes>) -> Result<Action, Infallible> {
///     let name = object.metadata.name.clone().unwrap_or_default();
///     passes.run(name, async { Ok(Action::await_change()) }).await
/// }
///
/// # async fn example(lag: Lag) -> Result<(), Box<dyn std::error::Error>> {
/// let passes = lag.passes();
/// passes.gate();
/// // ... run a `Controller` with `reconcile`, release a trigger ...
/// passes.until_waiting("a").await?;
/// passes.step("a").await?; // returns when the pass has ended
/// # Ok(())
/// # }
/// ```
///
/// A `Controller` reads its argument from the store before it calls the function: a gated pass has the
/// object as it was then. Where that matters, hold the triggers in place of the pass.
#[derive(Clone)]
pub struct Passes(Arc<Engine>);

/// The passes that are known; part of the registry, so that they can be waited for.
#[derive(Debug, Default)]
pub(super) struct Known {
    gated: bool,
    made: u32,
    waiting: BTreeMap<u32, Waiting>,
    running: BTreeMap<u32, String>,
    ended: BTreeMap<String, u32>,
}

#[derive(Debug)]
struct Waiting {
    key: String,
    may_start: bool,
}

impl Passes {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self(engine)
    }

    /// From now on passes wait at their start until they are told to go on.
    pub fn gate(&self) {
        self.0.change(|registry| registry.passes.gated = true);
    }

    /// Lets all go on, those to come too.
    pub fn open(&self) {
        self.0.change(|registry| {
            registry.passes.gated = false;
            registry.passes.waiting.values_mut().for_each(|waiting| waiting.may_start = true);
        });
    }

    /// Runs one pass for `key`: waits at its start if the gate is closed, and brings the stores up to what a
    /// [`Cache`](super::Cache) has shown before it returns.
    ///
    /// Dropped, the pass is over.
    pub async fn run<F: Future>(&self, key: impl Into<String>, pass: F) -> F::Output {
        let key = key.into();
        let number = self.0.change(|registry| registry.passes.begin(key.clone()));
        let _bracket = Bracket { engine: &self.0, number };
        self.0.wait_for_ever(|registry| registry.passes.may_start(number).then_some(())).await;
        boundary::reach_pass(&self.0, &key).await;
        self.0.change(|registry| {
            registry.passes.start(number);
            registry.note(Entry::PassStarted { pass: number, key });
        });
        let output = pass.await;
        boundary::catch_up(&self.0).await;
        output
    }

    /// The keys of the passes that wait at their start, in alphabetical order.
    #[must_use]
    pub fn waiting(&self) -> Vec<String> {
        self.0.look(|registry| registry.passes.keys_waiting())
    }

    /// The keys of the passes that run.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        self.0.look(|registry| registry.passes.running.values().cloned().collect())
    }

    /// How many passes of `key` have ended.
    #[must_use]
    pub fn ended(&self, key: &str) -> u32 {
        self.0.look(|registry| registry.passes.ended.get(key).copied().unwrap_or_default())
    }

    /// Waits until a pass of `key` waits at its start.
    ///
    /// # Errors
    /// If none does within the deadline.
    pub async fn until_waiting(&self, key: &str) -> Result<(), PassError> {
        let there = |registry: &Registry| registry.passes.first_waiting(key).map(drop);
        self.wait("see a pass wait", key, there).await
    }

    /// Lets the pass that waits for `key` begin, and waits until it has ended.
    ///
    /// # Errors
    /// If none waits, or it has not ended within the deadline; then it goes on running.
    pub async fn step(&self, key: &str) -> Result<(), PassError> {
        let attempt = "run a pass";
        let number = self.0.change(|registry| {
            let number = registry.passes.first_waiting(key)?;
            registry.passes.waiting.get_mut(&number)?.may_start = true;
            Some(number)
        });
        let Some(number) = number else { return Err(self.failure(attempt, key, "none waits")) };
        self.wait(attempt, key, |registry| registry.passes.is_over(number).then_some(())).await
    }

    async fn wait(
        &self,
        attempt: &str,
        key: &str,
        check: impl FnMut(&Registry) -> Option<()>,
    ) -> Result<(), PassError> {
        let deadline = Instant::now() + self.0.deadline();
        let done = self.0.wait(deadline, check).await;
        let waited = || format!("it did not happen within {:?}", self.0.deadline());
        done.ok_or_else(|| self.failure(attempt, key, &waited()))
    }

    fn failure(&self, attempt: &str, key: &str, problem: &str) -> PassError {
        let evidence = self.0.look(|registry| {
            let passes = &registry.passes;
            let running: Vec<&String> = passes.running.values().collect();
            format!(
                "\n  waiting: {:?}\n  running: {running:?}\n  ended: {:?}",
                passes.keys_waiting(),
                passes.ended
            )
        });
        PassError {
            attempt: format!("{attempt} of {key:?}"),
            problem: problem.to_owned(),
            evidence,
        }
    }
}

impl fmt::Debug for Passes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.look(|registry| registry.passes.fmt(f))
    }
}

impl Known {
    fn begin(&mut self, key: String) -> u32 {
        self.made += 1;
        self.waiting.insert(self.made, Waiting { key, may_start: !self.gated });
        self.made
    }

    fn may_start(&self, number: u32) -> bool {
        self.waiting.get(&number).is_none_or(|waiting| waiting.may_start)
    }

    fn start(&mut self, number: u32) {
        if let Some(waiting) = self.waiting.remove(&number) {
            self.running.insert(number, waiting.key);
        }
    }

    fn end(&mut self, number: u32) {
        self.waiting.remove(&number);
        if let Some(key) = self.running.remove(&number) {
            *self.ended.entry(key).or_default() += 1;
        }
    }

    fn is_running(&self, number: u32) -> bool {
        self.running.contains_key(&number)
    }

    fn is_over(&self, number: u32) -> bool {
        !self.waiting.contains_key(&number) && !self.running.contains_key(&number)
    }

    /// The pass that runs, if it is exactly one.
    pub(super) fn only_one_running(&self) -> Option<u32> {
        let mut running = self.running.keys();
        running.next().copied().filter(|_| running.next().is_none())
    }

    fn keys_waiting(&self) -> Vec<String> {
        let mut keys: Vec<String> = self
            .waiting
            .values()
            .filter(|waiting| !waiting.may_start)
            .map(|waiting| waiting.key.clone())
            .collect();
        keys.sort();
        keys
    }

    fn first_waiting(&self, key: &str) -> Option<u32> {
        let mut waiting = self.waiting.iter();
        waiting.find(|(_, waiting)| waiting.key == key && !waiting.may_start).map(|(n, _)| *n)
    }
}

/// Ends the pass however it ends.
struct Bracket<'a> {
    engine: &'a Arc<Engine>,
    number: u32,
}

impl Drop for Bracket<'_> {
    fn drop(&mut self) {
        self.engine.change(|registry| {
            if registry.passes.is_running(self.number) {
                registry.note(Entry::PassEnded { pass: self.number });
            }
            registry.passes.end(self.number);
        });
    }
}

/// A pass that did not begin or end as the test said.
#[derive(Debug, thiserror::Error)]
#[error("failed to {attempt}: {problem}{evidence}")]
pub struct PassError {
    attempt: String,
    problem: String,
    evidence: String,
}
