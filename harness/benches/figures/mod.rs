//! Figures: what a bench measured, beside the limits it is held to.
//!
//! A bench takes all its figures first and judges them at its end, so that one that misses its limit
//! hides no other. Each is a line of JSON in `target/bench.jsonl` and a line of a table on stdout.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

/// The figures of one bench program.
#[must_use = "they are judged by `finish`"]
pub(crate) struct Figures {
    bench: &'static str,
    figures: Vec<Figure>,
}

/// What a value is held to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    None,
    AtMost(f64),
    AtLeast(f64),
}

struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    limit: Limit,
    /// How often the limit may be missed before the bench fails: a time depends on the machine and
    /// on who else uses it, a ratio of two that were taken together does not.
    slack: f64,
}

impl Figures {
    /// The figures of the bench with this name.
    pub(crate) fn of(bench: &'static str) -> Self {
        Self { bench, figures: Vec::new() }
    }

    /// A ratio of two values that were taken side by side; missed, the bench fails.
    pub(crate) fn ratio(&mut self, name: &str, value: f64, limit: Limit) {
        self.take(name, value, "x", limit, 1.0);
    }

    /// A time in milliseconds; the bench fails beyond twice its limit.
    pub(crate) fn time(&mut self, name: &str, value: Duration, limit: Option<Duration>) {
        let limit = limit.map_or(Limit::None, |it| Limit::AtMost(milliseconds(it)));
        self.take(name, milliseconds(value), "ms", limit, 2.0);
    }

    /// A rate a second; the bench fails below half of its limit.
    pub(crate) fn rate(&mut self, name: &str, value: f64, limit: Limit) {
        self.take(name, value, "/s", limit, 2.0);
    }

    /// Anything else that is counted, such as bytes; missed, the bench fails.
    pub(crate) fn count(&mut self, name: &str, value: f64, unit: &'static str, limit: Limit) {
        self.take(name, value, unit, limit, 1.0);
    }

    fn take(&mut self, name: &str, value: f64, unit: &'static str, limit: Limit, slack: f64) {
        let name = format!("{}: {name}", self.bench);
        let figure = Figure { name, value, unit, limit, slack };
        // At once, so that what was measured is seen even if the bench then fails.
        println!("{}", figure.row());
        self.figures.push(figure);
    }

    /// Records all figures.
    ///
    /// # Errors
    ///
    /// If a figure missed its limit by more than its slack.
    pub(crate) fn finish(self) -> Result<()> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("no target")?;
        let path = target.join("bench.jsonl");
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        for figure in &self.figures {
            writeln!(file, "{}", figure.line())?;
        }
        let failed: Vec<_> =
            self.figures.iter().filter(|figure| !figure.holds(figure.slack)).collect();
        let failed: Vec<_> = failed.into_iter().map(Figure::row).collect();
        anyhow::ensure!(failed.is_empty(), "missed:\n{}", failed.join("\n"));
        Ok(())
    }
}

impl Figure {
    fn holds(&self, slack: f64) -> bool {
        match self.limit {
            Limit::None => true,
            // Not `!(>)`: what is not a number holds nothing.
            Limit::AtMost(limit) => self.value <= limit * slack,
            Limit::AtLeast(limit) => self.value >= limit / slack,
        }
    }

    fn line(&self) -> serde_json::Value {
        let (limit, bound) = match self.limit {
            Limit::None => (None, None),
            Limit::AtMost(limit) => (Some(limit), Some("at most")),
            Limit::AtLeast(limit) => (Some(limit), Some("at least")),
        };
        json!({
            "name": self.name, "value": self.value, "unit": self.unit,
            "limit": limit, "bound": bound, "ok": self.holds(1.0),
        })
    }

    fn row(&self) -> String {
        let limit = match self.limit {
            Limit::None => String::new(),
            Limit::AtMost(limit) => format!("at most {limit}"),
            Limit::AtLeast(limit) => format!("at least {limit}"),
        };
        let verdict = match (self.holds(1.0), self.holds(self.slack)) {
            (true, _) if limit.is_empty() => "",
            (true, _) => "ok",
            (false, true) => "beyond the limit",
            (false, false) => "FAILED",
        };
        let value = format!("{:.3} {}", self.value, self.unit);
        format!("{:<64} {value:>14}  {limit:<16} {verdict}", self.name)
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The middle one, and the one that nine of ten do not exceed.
pub(crate) fn spread(times: &mut [Duration]) -> (Duration, Duration) {
    (share(times, 0.5), share(times, 0.9))
}

/// The time that this share of them do not exceed.
pub(crate) fn share(times: &mut [Duration], share: f64) -> Duration {
    times.sort();
    let at = (times.len() as f64 * share) as usize;
    times.get(at).or(times.last()).copied().unwrap_or_default()
}

/// The middle one of values that are no times.
pub(crate) fn middle(values: Vec<f64>) -> f64 {
    at(values, 1, 2)
}

/// The value that nineteen of twenty do not exceed.
pub(crate) fn most(values: Vec<f64>) -> f64 {
    at(values, 19, 20)
}

/// The value behind so many parts of them, smaller ones first.
fn at(mut values: Vec<f64>, part: usize, of: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * part / of).copied().unwrap_or(f64::NAN)
}

/// Not every bench has figures of every kind, and no compiler is to warn of that.
const _: () = {
    let _ =
        (Figures::ratio, Figures::time, Figures::rate, Figures::count, spread, share, middle, most);
    let _ = (Limit::None, Limit::AtMost, Limit::AtLeast);
};
