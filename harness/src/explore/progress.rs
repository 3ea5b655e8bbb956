//! How far a search has come, for whoever watches it.

use std::time::Duration;

/// What a search has done when one of its runs is judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// How many runs were made and judged.
    pub runs: u64,
    /// How many of them violated an oracle; saved tokens that still fail are among them.
    pub failures: u64,
    /// How many runs are known of and not begun. Each of them may bring up others, so it is no forecast.
    pub left: usize,
    /// How many runs are under way.
    pub under_way: usize,
    /// What the runs of this level cost: how many stale reads, holds, steps and faults they have beyond the
    /// baseline.
    pub level: u32,
    /// The time since the start of the search, by its clock.
    pub elapsed: Duration,
}

impl Progress {
    /// Runs a second since the start; `None` before any time has passed.
    #[must_use]
    pub fn runs_per_second(&self) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64();
        // Beyond 2^53 runs the last digits do not matter.
        let runs = self.runs as f64;
        (seconds > 0.0).then(|| runs / seconds)
    }
}
