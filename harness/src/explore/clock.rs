//! The clock of a search, handed in so that a test can turn it.

use std::time::{Duration, Instant};

/// Tells how much time has passed since some fixed moment.
pub trait Clock: Send + Sync {
    /// The time that has passed; never less than before.
    fn elapsed(&self) -> Duration;
}

/// The monotonic clock of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    started: Instant,
}

impl Stopwatch {
    /// A clock that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock for Stopwatch {
    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl<F: Fn() -> Duration + Send + Sync> Clock for F {
    fn elapsed(&self) -> Duration {
        self()
    }
}
