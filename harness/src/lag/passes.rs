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
    /// How many have come to the gate.
    made: u32,
    /// How many of them have started: passes are counted in that order.
    started: u32,
    /// By the order in which they came.
    waiting: BTreeMap<u32, Waiting>,
    /// By the order in which they started.
    running: BTreeMap<u32, Running>,
    ended: BTreeMap<String, u32>,
    /// The stretch that stands for passes which are not bracketed.
    stretch: Option<u32>,
}

#[derive(Debug)]
struct Waiting {
    key: String,
    may_start: bool,
}

#[derive(Debug)]
struct Running {
    key: String,
    came: u32,
}

impl Passes {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self(engine)
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.0
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
        let came = self.0.change(|registry| registry.passes.begin(key.clone()));
        let _bracket = Bracket { engine: Arc::clone(&self.0), came };
        self.0.wait_for_ever(|registry| registry.passes.may_start(came).then_some(())).await;
        boundary::reach_pass(&self.0, &key).await;
        self.0.change(|registry| {
            let pass = registry.passes.start(came);
            registry.note(Entry::PassStarted { pass, key });
        });
        let output = pass.await;
        boundary::catch_up(&self.0).await;
        output
    }

    /// From now on until the bracket is dropped, whatever the client does is one pass of `key`: where passes are not
    /// told apart.
    pub(crate) fn stretch(&self, key: &str) -> Bracket {
        let came = self.0.change(|registry| {
            let came = registry.passes.begin(key.to_owned());
            let pass = registry.passes.start(came);
            registry.passes.stretch = Some(pass);
            registry.note(Entry::PassStarted { pass, key: key.to_owned() });
            came
        });
        Bracket { engine: Arc::clone(&self.0), came }
    }

    /// The keys of the passes that wait at their start, in alphabetical order.
    #[must_use]
    pub fn waiting(&self) -> Vec<String> {
        self.0.look(|registry| registry.passes.keys_waiting())
    }

    /// The keys of the passes that run.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        self.0.look(|registry| registry.passes.keys_running())
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
            format!(
                "\n  waiting: {:?}\n  running: {:?}\n  ended: {:?}",
                passes.keys_waiting(),
                passes.keys_running(),
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

    /// One that was forgotten never may: its process is gone, and only has not been dropped yet.
    fn may_start(&self, came: u32) -> bool {
        self.waiting.get(&came).is_some_and(|waiting| waiting.may_start)
    }

    /// Lets one begin that has come; the number of the pass.
    fn start(&mut self, came: u32) -> u32 {
        self.started += 1;
        if let Some(Waiting { key, .. }) = self.waiting.remove(&came) {
            self.running.insert(self.started, Running { key, came });
        }
        self.started
    }

    /// The number of the pass, if it had begun.
    fn end(&mut self, came: u32) -> Option<u32> {
        self.waiting.remove(&came);
        let pass = self.running.iter().find(|(_, it)| it.came == came).map(|(pass, _)| *pass)?;
        self.stretch = self.stretch.filter(|stretch| *stretch != pass);
        if let Some(Running { key, .. }) = self.running.remove(&pass) {
            *self.ended.entry(key).or_default() += 1;
        }
        Some(pass)
    }

    fn is_over(&self, came: u32) -> bool {
        !self.waiting.contains_key(&came) && self.running.values().all(|it| it.came != came)
    }

    /// All passes are over with the process that made them; that they end is nothing that happens.
    pub(super) fn forget(&mut self) {
        self.waiting.clear();
        self.stretch = None;
        for Running { key, .. } in std::mem::take(&mut self.running).into_values() {
            *self.ended.entry(key).or_default() += 1;
        }
    }

    /// The pass that runs, if it is exactly one.
    pub(super) fn only_one_running(&self) -> Option<u32> {
        let mut running = self.running.keys();
        running.next().copied().filter(|_| running.next().is_none())
    }

    /// Whether no pass runs, nor may begin.
    pub(super) fn are_at_rest(&self) -> bool {
        self.running.keys().all(|number| Some(*number) == self.stretch)
            && self.waiting.values().all(|waiting| !waiting.may_start)
    }

    /// How many have come so far, and how many of them are over.
    pub(super) fn counts(&self) -> (u32, u32) {
        (self.made, self.ended.values().sum())
    }

    fn keys_running(&self) -> Vec<String> {
        self.running.values().map(|running| running.key.clone()).collect()
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
pub(crate) struct Bracket {
    engine: Arc<Engine>,
    came: u32,
}

impl Drop for Bracket {
    fn drop(&mut self) {
        self.engine.change(|registry| {
            let running = registry.passes.only_one_running();
            if let Some(pass) = registry.passes.end(self.came) {
                registry.note_in(running, Entry::PassEnded { pass });
            }
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
