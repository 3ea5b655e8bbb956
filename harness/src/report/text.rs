//! The failure text: enough, alone, to understand the race and to run it again.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::lines::{Line, LineKind, author, by_request, lines};
use crate::lag::model::{Action, Confirmation, Finding, Kind, Needs, Source};

/// So many lines are shown in full; beyond them the steps that explain nothing are counted only.
const SHOWN_IN_FULL: usize = 24;

/// What is wider goes on in another line, except what is to be pasted.
const WIDTH: usize = 100;

/// How a person runs the finding again.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Replay {
    /// The command, such as `cargo test image_is_never_stamped_early`; empty: none is known.
    pub command: String,
    /// The file that the token was saved in.
    pub saved: Option<String>,
    /// The page with the picture and all runs.
    #[serde(default)]
    pub page: Option<String>,
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
    let verdict = &finding.verdict;
    let shard = verdict.shard.map_or_else(String::new, |shard| format!(" (shard {shard})"));
    let found = match finding.found_in_run {
        0 => "found again by a saved token".to_owned(),
        run => format!("found in run {run} of {}{shard}", verdict.runs),
    };
    let elapsed = verdict.elapsed.as_secs_f64();
    let found = format!("{found}, {}, {elapsed:.1} s", verdict.completeness);
    let _ = write!(text, "{what}: {oracle:?}\n  {found}");
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
        let _ = write!(text, "\n{}", columns.row(line));
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
        let why = format!(
            "a watch may be late; the {stream} stream shows the same events in the same order, only later"
        );
        let _ = write!(text, "\n{}", wrapped(&format!("  legal: #{}: ", line.number), &why, 4));
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
        let list = verdict.exclusions.join(", ");
        let _ = write!(text, "\n{}", wrapped("  left out of the search: ", &list, 4));
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
    if let Some(page) = &replay.page {
        let _ = write!(text, "\n  page:   {page}");
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

/// How wide the columns of the steps are: as their longest entry, so that none runs into the next.
struct Columns {
    number: usize,
    what: usize,
    how: usize,
    target: usize,
    site: usize,
    /// Whether the outcomes are a column too: not if one of them has to go into a line of its own.
    outcomes_align: bool,
}

impl Columns {
    fn of(lines: &[&Line]) -> Self {
        let named: Vec<_> = lines.iter().copied().filter(|line| is_named(line)).collect();
        let widest = |text: fn(&Line) -> &str| {
            named.iter().map(|line| text(line).chars().count()).max().unwrap_or(0)
        };
        let mut columns = Self {
            number: lines.iter().map(|line| line.number.to_string().len() + 1).max().unwrap_or(0),
            what: widest(|line| &line.what),
            how: widest(|line| &line.how),
            target: widest(|line| &line.target),
            site: widest(|line| &line.site),
            outcomes_align: true,
        };
        columns.outcomes_align =
            named.iter().all(|line| fits(&columns.head(line), "  ", first_line(&line.outcome)));
        columns
    }

    /// One step; its outcome in another line if it would be too wide.
    fn row(&self, line: &Line) -> String {
        let mut head = self.head(line);
        if !self.outcomes_align {
            head.truncate(head.trim_end().len());
        }
        let mut outcome = line.outcome.lines();
        if fits(&head, "  ", first_line(&line.outcome)) {
            head.push_str("  ");
            head.push_str(outcome.next().unwrap_or_default());
        }
        head.truncate(head.trim_end().len());
        let indent = 2 + self.number + 2;
        for line in outcome {
            head.push('\n');
            head.push_str(&wrapped(&" ".repeat(indent), line, indent));
        }
        head
    }

    fn head(&self, line: &Line) -> String {
        let Self { number: numbers, what, how, target, site, .. } = *self;
        let number = format!("#{}", line.number);
        if is_named(line) {
            return format!(
                "  {number:<numbers$}  {:<what$}  {:<how$}  {:<target$}  {:<site$}",
                line.what, line.how, line.target, line.site
            );
        }
        let words = [&*line.what, &line.how, &line.target];
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        format!("  {number:<numbers$}  {}", words.join("  "))
    }
}

/// Whether a line is about something that has a short name. What an oracle is called, or an actor does, may be a whole
/// sentence.
fn is_named(line: &Line) -> bool {
    !matches!(line.kind, LineKind::Actor | LineKind::Fault | LineKind::Violation)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn fits(head: &str, gap: &str, tail: &str) -> bool {
    [head, gap, tail].map(|text| text.chars().count()).iter().sum::<usize>() <= WIDTH
}

/// Words behind `head` in as many lines as they need; all but the first begin with so many spaces.
fn wrapped(head: &str, words: &str, indent: usize) -> String {
    let mut text = head.to_owned();
    let mut width = text.chars().count();
    for (index, word) in words.split(' ').enumerate() {
        let length = word.chars().count();
        let space = usize::from(index > 0);
        if width + space + length > WIDTH && width > indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent));
            width = indent;
        } else if space > 0 {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += length;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::sample::{finding, flipped, held};
    use super::*;
    use crate::lag::model::{Release, Site};

    #[test]
    fn the_text_alone_explains_the_race() {
        let replay = Replay {
            command: "cargo test image_is_never_stamped_early".to_owned(),
            saved: Some("laggard-regressions/image_is_never_stamped_early.txt".to_owned()),
            page: Some("target/laggard/image_is_never_stamped_early.html".to_owned()),
        };
        let text = failure(&finding(), &replay);
        let expected = [
            "staleness race: \"stamped before rollout\"",
            "  found in run 7 of 23, exhausted within <= 2 stale reads, 0.4 s",
            "  confirmed by 2 runs from nothing, through the API, step by step the same",
            "  the all-fresh schedule passes; 1 of 1 cached read must be stale:",
            "  #1  PATCH  apply   statefulsets/n0  [apply-statefulset]  -> rv 1042 (generation 2)",
            "  #2  CACHE  get     statefulsets/n0  tasks/observe.rs:61  <- rv 1038 (generation 1), 1 event behind",
            "  #3  PATCH  status  seinodes/n0      [status]             -> rv 1043",
            "  #4  VIOLATES  stamped before rollout  ** currentImage is v2, but the pod runs v1",
            "  legal: #2: statefulsets.apps stream at position 0 of 1; held event rv 1042 MODIFIED by #1",
            "  window: the event must come at least 2.1 ms after the reply to its write",
            "  passes if: #2 is a live read (+1 request)  |  #2 waits for rv 1042",
            "  worlds: forked in etcd from one set-up",
            "  replay: LAGGARD_REPLAY='statefulsets/n0@r1:-1' cargo test image_is_never_stamped_early",
            "  saved:  laggard-regressions/image_is_never_stamped_early.txt",
            "  page:   target/laggard/image_is_never_stamped_early.html",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{text}");
    }

    #[test]
    fn a_flipped_read_says_whether_what_it_was_told_is_old() {
        let text = |finding| failure(&finding, &Replay::default());
        let old = text(flipped("1038", 1));
        assert!(old.contains("the all-fresh schedule passes; 1 of 1 cached read must be"), "{old}");
        let line = "[observe-image]\n      <- rv 1038 (generation 1), flipped: an old view\n";
        assert!(old.contains(line), "{old}");
        assert!(old.contains("legal: #2: statefulsets.apps stream at position 0 of 1"), "{old}");
        let fresh = text(flipped("1042", 2));
        assert!(!fresh.contains("must be stale"), "{fresh}");
        assert!(fresh.contains("<- rv 1042 (generation 2), flipped\n"), "{fresh}");
        assert!(!fresh.contains("legal: #2"), "{fresh}");
    }

    #[test]
    fn a_long_entry_never_runs_into_the_next_and_a_long_outcome_has_a_line_of_its_own() {
        let mut finding = finding();
        let Action::Read(read) = &mut finding.run.steps[1].action else { panic!("{finding:?}") };
        let file = format!("controllers/{}.rs", "observe_the_image_".repeat(3));
        read.site = Some(Site { file: file.clone(), line: 61, span: None });
        let Action::Violation(violation) = &mut finding.run.steps[3].action else { panic!() };
        violation.text = "the spec and the status differ:\n- v1\n+ v2".to_owned();
        let text = failure(&finding, &Replay::default());
        let rows: Vec<_> = text.lines().collect();
        let expected = [
            "  #1  PATCH  apply   statefulsets/n0  [apply-statefulset]  -> rv 1042 (generation 2)",
            &format!("  #2  CACHE  get     statefulsets/n0  {file}:61"),
            "      <- rv 1038 (generation 1), 1 event behind",
            "  #3  PATCH  status  seinodes/n0      [status]  -> rv 1043",
            "  #4  VIOLATES  stamped before rollout  ** the spec and the status differ:",
            "      - v1",
            "      + v2",
        ];
        assert_eq!(rows[4..11], expected, "{text}");
    }

    #[test]
    fn a_part_and_a_saved_token_say_where_it_was_found() {
        let mut finding = finding();
        finding.verdict.shard = Some("2/3".parse().unwrap());
        let text = failure(&finding, &Replay::default());
        assert!(text.contains("found in run 7 of 23 (shard 2/3), exhausted"), "{text}");
        finding.found_in_run = 0;
        let text = failure(&finding, &Replay::default());
        assert!(text.contains("found again by a saved token, exhausted"), "{text}");
    }

    #[test]
    fn no_line_but_the_command_is_wider_than_a_terminal() {
        let mut finding = finding();
        let oracle = "an oracle with a name that says at length what must never be seen anywhere";
        let Action::Violation(violation) = &mut finding.run.steps[3].action else { panic!() };
        violation.oracle = oracle.to_owned();
        violation.text = "what was seen, with all that one may want to know of it, ".repeat(4);
        finding.verdict.exclusions = (1..30).map(|number| format!("exclusion {number}")).collect();
        let text = failure(&finding, &Replay::default());
        for line in text.lines().filter(|line| !line.contains("replay:")) {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let list = finding.verdict.exclusions.join(", ");
        assert!(words(&text).join(" ").contains(&list), "{text}");
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
            lines[3..11],
            [
                "the all-fresh schedule passes; a stream must be held back:",
                "#1 PATCH apply statefulsets/n0 [apply-statefulset] -> rv 1042 (generation 2)",
                "#2 HOLD statefulsets 1 event (rv 1042 by #1) from here",
                "#3 PATCH status seinodes/n0 [status] -> rv 1043",
                "#4 VIOLATES stamped before rollout ** currentImage is v2, but the pod runs v1",
                "#5 RELEASE statefulsets 1 event, to rv 1042, held since #2",
                "legal: #2: a watch may be late; the statefulsets.apps stream shows the same events in the same",
                "order, only later",
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
            before.lines().skip(2).map(squeeze).collect::<Vec<_>>().join("|")
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
        read.site = Some(crate::lag::model::Site { file, line: 36, span: None });
        let text = failure(&finding, &Replay::default());
        assert!(text.contains("read_own_write.rs:36\n      <- rv 1038"), "{text}");
        let column = |start: &str, mark: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(start)).unwrap();
            line.find(mark).unwrap()
        };
        assert_eq!(column("#1", "[apply"), column("#2", "tests/"), "{text}");
    }

    #[test]
    fn a_write_that_changed_nothing_says_so() {
        let mut finding = finding();
        assert!(!failure(&finding, &Replay::default()).contains("changes nothing"));
        // The version that the object had before.
        finding.run.history[2].by = crate::lag::model::Author::SetUp;
        let text = failure(&finding, &Replay::default());
        let row = text.lines().find(|line| line.contains("PATCH  status")).unwrap();
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
