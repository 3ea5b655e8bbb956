//! The failure text: enough, alone, to understand the race and to run it again.

use std::fmt::Write as _;

use super::lines::{Line, LineKind, author, by_request, events, lines};
use crate::lag::model::{Finding, Needs};

/// So many lines are shown in full; beyond them the steps that explain nothing are counted only.
const SHOWN_IN_FULL: usize = 24;

/// How a person runs the finding again.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Replay {
    /// The command, such as `cargo test image_is_never_stamped_early`; empty: none is known.
    pub command: String,
    /// The file that the token was saved in.
    pub saved: Option<String>,
}

/// The text of a failure, several lines without a final line break.
#[must_use]
pub fn failure(finding: &Finding, replay: &Replay) -> String {
    let run = &finding.run;
    let lines = lines(run);
    let numbers = by_request(run, &lines);
    let mut text = String::new();
    let oracle = run.violations().next().map_or("", |(_, violation)| violation.oracle.as_str());
    let what = match finding.needs {
        Needs::Staleness => "staleness race",
        Needs::Environment => "race with another actor",
        _ => "failure",
    };
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "{what}: {oracle:?}   found in run {} of {}, {}, {:.1} s",
        finding.found_in_run,
        finding.verdict.runs,
        finding.verdict.completeness,
        finding.verdict.elapsed.as_secs_f64(),
    );
    let _ = write!(text, "\n  {}", summary(finding, &lines));
    let left_out = if lines.len() > SHOWN_IN_FULL {
        lines.iter().filter(|line| !line.kind.explains()).count()
    } else {
        0
    };
    for line in lines.iter().filter(|line| left_out == 0 || line.kind.explains()) {
        let _ = write!(text, "\n  {}", row(line));
    }
    if left_out > 0 {
        let _ = write!(text, "\n  ({left_out} reads that were fresh are left out)");
    }
    for view in &finding.certificate.views {
        let Some(held) = &view.held else { continue };
        let Some(line) = lines.iter().find(|line| line.step == view.step) else { continue };
        if line.kind != LineKind::StaleRead {
            continue;
        }
        let _ = write!(
            text,
            "\n  legal: #{}: {} stream at position {} of {}; held event rv {} {} by {}",
            line.number,
            view.stream,
            view.position,
            view.available,
            held.resource_version,
            held.change,
            author(&held.by, &numbers),
        );
    }
    if let Some(window) = finding.window {
        let _ = write!(
            text,
            "\n  window: the event must come at least {:.1} ms after the reply to its write",
            window.as_secs_f64() * 1000.0
        );
    }
    let repairs: Vec<_> = finding
        .repairs
        .iter()
        .filter(|repair| repair.passes)
        .filter_map(|repair| {
            let line = lines.iter().find(|line| line.step == repair.step)?;
            let cost = match repair.extra_requests {
                0 => String::new(),
                count => format!(" (+{count} {})", if count == 1 { "request" } else { "requests" }),
            };
            Some(format!("#{} {}{cost}", line.number, repair.text))
        })
        .collect();
    if !repairs.is_empty() {
        let _ = write!(text, "\n  passes if: {}", repairs.join("  |  "));
    }
    if !finding.verdict.exclusions.is_empty() {
        let _ =
            write!(text, "\n  left out of the search: {}", finding.verdict.exclusions.join(", "));
    }
    if !finding.token.is_empty() {
        let _ = write!(text, "\n  replay: LAGGARD_REPLAY='{}' {}", finding.token, replay.command);
    }
    if let Some(saved) = &replay.saved {
        let _ = write!(text, "\n  saved:  {saved}");
    }
    text
}

fn summary(finding: &Finding, lines: &[Line]) -> String {
    let reads = finding.run.reads().count();
    let stale = lines.iter().filter(|line| line.kind == LineKind::StaleRead).count();
    let holds =
        finding.run.deviations().filter(|chosen| chosen.point.kind().is_staleness()).count();
    match finding.needs {
        Needs::Staleness if stale > 0 => format!(
            "the all-fresh schedule passes; {stale} of {} must be stale:",
            if reads == 1 { "1 cached read".to_owned() } else { format!("{reads} cached reads") }
        ),
        Needs::Staleness => {
            format!("the all-fresh schedule passes; {} must be held back:", events(holds.max(1)))
        }
        needs => format!("{needs}:"),
    }
}

fn row(line: &Line) -> String {
    let number = format!("#{}", line.number);
    let row = format!(
        "{number:<4}{:<9}{:<8}{:<30}{:<26}{}",
        line.what, line.how, line.target, line.site, line.outcome
    );
    row.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::sample::finding;
    use super::*;

    #[test]
    fn the_text_alone_explains_the_race() {
        let replay = Replay {
            command: "cargo test image_is_never_stamped_early".to_owned(),
            saved: Some("laggard-regressions/image_is_never_stamped_early.txt".to_owned()),
        };
        let text = failure(&finding(), &replay);
        let expected = [
            "staleness race: \"stamped before rollout\"   found in run 7 of 23, \
             exhausted within <= 2 stale reads, 0.4 s",
            "  the all-fresh schedule passes; 1 of 1 cached read must be stale:",
            "  #1  PATCH    apply   statefulsets/n0               [apply-statefulset]       -> rv 1042 (generation 2)",
            "  #2  CACHE    get     statefulsets/n0               tasks/observe.rs:61       \
             <- rv 1038 (generation 1)   1 event behind",
            "  #3  PATCH    status  seinodes/n0                   [status]                  -> rv 1043",
            "  #4  VIOLATES         stamped before rollout                                  ** currentImage is v2, \
             but the pod runs v1",
            "  legal: #2: statefulsets.apps stream at position 0 of 1; held event rv 1042 MODIFIED by #1",
            "  window: the event must come at least 2.1 ms after the reply to its write",
            "  passes if: #2 is a live read (+1 request)  |  #2 waits for rv 1042",
            "  replay: LAGGARD_REPLAY='statefulsets/n0@r1:-1' cargo test image_is_never_stamped_early",
            "  saved:  laggard-regressions/image_is_never_stamped_early.txt",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{text}");
    }

    #[test]
    fn a_failure_that_needs_no_staleness_does_not_call_itself_a_race() {
        let mut finding = finding();
        finding.needs = Needs::Nothing;
        let text = failure(&finding, &Replay::default());
        assert!(text.starts_with("failure: "), "{text}");
        assert!(text.contains("fails with everything fresh:"), "{text}");
    }

    #[test]
    fn a_long_run_says_how_much_it_leaves_out() {
        let mut finding = finding();
        let fresh = finding.run.steps[1].clone();
        for _ in 0..40 {
            let mut step = fresh.clone();
            if let crate::lag::model::Action::Read(read) = &mut step.action {
                read.stale = false;
            }
            finding.run.steps.push(step);
        }
        let text = failure(&finding, &Replay::default());
        assert!(text.contains("(40 reads that were fresh are left out)"), "{text}");
        assert!(text.lines().count() < 16, "{text}");
    }
}
