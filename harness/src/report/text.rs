//! The failure text: enough, alone, to understand the race and to run it again.

use std::fmt::Write as _;

use super::lines::{Line, LineKind, author, by_request, lines};
use crate::lag::model::{Action, Confirmation, Finding, Kind, Needs, Source};

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
    confirmation(&mut text, finding, &lines);
    let _ = write!(text, "\n  {}", summary(finding, &lines));
    let left_out = if lines.len() > SHOWN_IN_FULL {
        lines.iter().filter(|line| !line.kind.explains()).count()
    } else {
        0
    };
    let shown: Vec<_> = lines.iter().filter(|line| left_out == 0 || line.kind.explains()).collect();
    let columns = Columns::of(&shown);
    for line in shown {
        let _ = write!(text, "\n  {}", columns.row(line));
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
    for line in lines.iter().filter(|line| line.kind == LineKind::Hold) {
        let Action::Hold(hold) = &run.steps[line.step].action else { continue };
        let stream = run.streams.get(hold.stream).map_or_else(String::new, ToString::to_string);
        let _ = write!(
            text,
            "\n  legal: #{}: a watch may be late; the {stream} stream shows the same events in the same \
             order, only later",
            line.number,
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
    if let Some(worlds) = &finding.verdict.worlds {
        let _ = write!(text, "\n  worlds: {worlds}");
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
    if finding.needs != Needs::Staleness {
        return format!("{}:", finding.needs);
    }
    let run = &finding.run;
    let mut needed = Vec::new();
    let stale = lines.iter().filter(|line| line.kind == LineKind::StaleRead).count();
    // A flipped read is a request.
    let flipped = run.requests().filter(|(_, read)| matches!(read.source, Source::View { .. }));
    let reads = run.reads().count() + flipped.count();
    if stale > 0 {
        let noun = if reads == 1 { "read" } else { "reads" };
        needed.push(format!("{stale} of {reads} cached {noun} must be stale"));
    }
    let held = run
        .deviations()
        .filter(|chosen| chosen.alternative().cost > 0)
        .filter(|chosen| chosen.point.kind().is_staleness() && chosen.point.kind() != Kind::Read)
        .count()
        .max(lines.iter().filter(|line| line.kind == LineKind::Hold).count());
    if held > 0 || needed.is_empty() {
        let times = if held > 1 { format!(" {held} times") } else { String::new() };
        needed.push(format!("a stream must be held back{times}"));
    }
    format!("the all-fresh schedule passes; {}:", needed.join(" and "))
}

/// Whether a second look found the same: what a reader must know before the rest is worth reading.
fn confirmation(text: &mut String, finding: &Finding, lines: &[Line]) {
    let _ = match &finding.confirmed {
        Confirmation::ThroughApi { runs } => {
            let runs = if *runs == 1 { "1 run".to_owned() } else { format!("{runs} runs") };
            write!(
                text,
                "\n  confirmed by {runs} from nothing, through the API, step by step the same"
            )
        }
        Confirmation::ForkOnly => write!(
            text,
            "\n  FORK ONLY: it happens in worlds that are forked in etcd and not in one made through the \
             API with the same\n  choices. That may be a defect of laggard rather than of your code; \
             please report it",
        ),
        Confirmation::Diverged { step, first, second } => {
            let place = match lines.iter().find(|line| line.step >= *step) {
                Some(line) if line.step == *step => format!("#{}", line.number),
                Some(line) => format!("a step in front of #{}", line.number),
                None => "the end".to_owned(),
            };
            let said = |line: &str| match line {
                "" => "(the run was over)".to_owned(),
                line => line.to_owned(),
            };
            write!(
                text,
                "\n  NOT DETERMINISTIC: two runs with the same choices differ first at {place}, so the token \
                 may not replay it.\n  Time, randomness, or state that outlives a run decides there:\
                 \n    one run:   {}\n    the other: {}",
                said(first),
                said(second),
            )
        }
        // Without a second look there is nothing to say, and it is said.
        Confirmation::NotTried => write!(text, "\n  seen once: it was not run again"),
    };
}

/// How wide the columns are: as wide as what stands in them, with a least width that suits most runs.
struct Columns {
    how: usize,
    target: usize,
    site: usize,
}

impl Columns {
    fn of(lines: &[&Line]) -> Self {
        let widest = |least: usize, text: fn(&Line) -> &str| {
            // What has no text behind it may be as long as it likes.
            let ends = |line: &&&Line| !line.site.is_empty() || !line.outcome.is_empty();
            let lengths = lines.iter().filter(ends).map(|line| text(line).chars().count() + 1);
            lengths.fold(least, usize::max)
        };
        Self {
            how: widest(8, |line| &line.how),
            target: widest(30, |line| &line.target),
            site: widest(26, |line| &line.site),
        }
    }

    fn row(&self, line: &Line) -> String {
        let number = format!("#{}", line.number);
        let Self { how, target, site } = self;
        let row = format!(
            "{number:<4}{:<9}{:<how$}{:<target$}{:<site$}{}",
            line.what, line.how, line.target, line.site, line.outcome
        );
        row.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{finding, held};
    use super::*;
    use crate::lag::model::Release;

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
            "  confirmed by 2 runs from nothing, through the API, step by step the same",
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
            "  worlds: forked in etcd from one set-up",
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
    fn a_hold_is_shown_where_it_opens_and_where_it_ends() {
        let finding = held();
        let text = failure(&finding, &Replay::default());
        let lines: Vec<_> = text.lines().map(squeeze).collect();
        assert_eq!(
            lines[2..9],
            [
                "the all-fresh schedule passes; a stream must be held back:",
                "#1 PATCH apply statefulsets/n0 [apply-statefulset] -> rv 1042 (generation 2)",
                "#2 HOLD statefulsets 1 event (rv 1042 by #1) from here",
                "#3 PATCH status seinodes/n0 [status] -> rv 1043",
                "#4 VIOLATES stamped before rollout ** currentImage is v2, but the pod runs v1",
                "#5 RELEASE statefulsets 1 event, to rv 1042, held since #2",
                "legal: #2: a watch may be late; the statefulsets.apps stream shows the same events in the \
             same order, only later",
            ],
            "{text}"
        );
        let mut endless = finding.clone();
        endless.run.steps.pop();
        let text = failure(&endless, &Replay::default());
        assert!(text.contains("1 event (rv 1042 by #1) from here to the end\n"), "{text}");
    }

    #[test]
    fn a_hold_that_is_let_go_in_parts_says_what_is_left() {
        let mut finding = held();
        let Action::Hold(hold) = &mut finding.run.steps[1].action else { panic!("no hold") };
        hold.behind = 3;
        let last = finding.run.steps.pop().unwrap();
        let Action::Release(release) = last.action else { panic!("no release") };
        let events = [
            release.events.clone(),
            [release.events.clone(), release.events.clone()].concat(),
            release.events.clone(),
        ];
        for events in events {
            let part = Release { events, ..release.clone() };
            let step = crate::lag::model::Step::new(last.at, Action::Release(part));
            finding.run.steps.push(step);
        }
        let text = failure(&finding, &Replay::default());
        assert!(text.contains("3 events (the first is rv 1042 by #1) from here\n"), "{text}");
        assert!(
            text.contains("1 event, to rv 1042, held since #2; 2 events still held\n"),
            "{text}"
        );
        assert!(text.contains("2 events, to rv 1042, held since #2\n"), "{text}");
        assert_eq!(text.matches("RELEASE").count(), 2, "what is not held is not let go: {text}");
        let Action::Hold(hold) = &mut finding.run.steps[1].action else { panic!("no hold") };
        hold.first = None;
        let text = failure(&finding, &Replay::default());
        assert!(text.contains("whatever comes from here"), "{text}");
    }

    #[test]
    fn a_second_look_that_found_something_else_is_said_before_the_steps() {
        let line = |confirmed| {
            let text = failure(&Finding { confirmed, ..finding() }, &Replay::default());
            let (before, _) = text.split_once("\n  the all-fresh schedule").unwrap();
            before.lines().skip(1).map(squeeze).collect::<Vec<_>>().join("|")
        };
        assert_eq!(line(Confirmation::NotTried), "seen once: it was not run again");
        let once = line(Confirmation::ThroughApi { runs: 1 });
        assert!(once.starts_with("confirmed by 1 run from nothing"), "{once}");
        assert!(line(Confirmation::ForkOnly).starts_with("FORK ONLY: "));
        let diverged = |step, second: &str| {
            let second = second.to_owned();
            line(Confirmation::Diverged { step, first: "pass 1: a".to_owned(), second })
        };
        let text = diverged(2, "pass 1: b");
        assert!(text.starts_with("NOT DETERMINISTIC: "), "{text}");
        assert!(text.contains("differ first at #3, so the token may not"), "{text}");
        assert!(text.ends_with("|one run: pass 1: a|the other: pass 1: b"), "{text}");
        let text = diverged(9, "");
        assert!(text.contains("at the end, ") && text.ends_with("(the run was over)"), "{text}");
    }

    /// Without what only aligns.
    fn squeeze(line: &str) -> String {
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_long_name_does_not_run_into_the_next_column() {
        let mut finding = finding();
        let Action::Read(read) = &mut finding.run.steps[1].action else { panic!("no read") };
        let file = "tests/literature/read_own_write.rs".to_owned();
        read.site = Some(crate::lag::model::Site { file, line: 36 });
        let text = failure(&finding, &Replay::default());
        assert!(text.contains("read_own_write.rs:36 <- rv 1038"), "{text}");
        let column = |start: &str, mark: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(start)).unwrap();
            line.find(mark).unwrap()
        };
        assert_eq!(column("#1", "->"), column("#2", "<-"), "{text}");
    }

    #[test]
    fn a_write_that_changed_nothing_says_so() {
        let mut finding = finding();
        assert!(!failure(&finding, &Replay::default()).contains("changes nothing"));
        // The version that the object had before.
        finding.run.history[2].by = crate::lag::model::Author::SetUp;
        let text = failure(&finding, &Replay::default());
        let row = text.lines().find(|line| line.contains("PATCH    status")).unwrap();
        assert!(row.ends_with("-> rv 1043   changes nothing"), "{text}");
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
        assert!(text.lines().count() < 18, "{text}");
    }
}
