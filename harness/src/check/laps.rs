//! Where the time of a run goes, for whoever listens.

use std::time::{Duration, Instant};

/// The parts of a run, in their order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// A world is made, and followed.
    World,
    /// The process runs.
    Process,
    /// What happened is judged.
    Judge,
    /// The world is left; it may be removed later.
    Leave,
}

/// Takes the time of each part.
pub(super) struct Laps {
    last: Instant,
    parts: [Duration; 4],
}

impl Laps {
    pub(super) fn begin() -> Self {
        Self { last: Instant::now(), parts: [Duration::ZERO; 4] }
    }

    /// A part has ended.
    pub(super) fn end(&mut self, part: Part) {
        let now = Instant::now();
        self.parts[part as usize] += now - self.last;
        self.last = now;
    }

    /// Tells those who listen to the target `laggard::run` at DEBUG; times are in microseconds.
    pub(super) fn tell(&self, namespace: &str) {
        let of =
            |part: Part| u64::try_from(self.parts[part as usize].as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(
            target: "laggard::run",
            namespace,
            world = of(Part::World),
            process = of(Part::Process),
            judge = of(Part::Judge),
            leave = of(Part::Leave),
            "a run was made"
        );
    }
}
