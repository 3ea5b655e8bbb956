//! The steps of a run as numbered lines, which the text and the pictures share.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::lag::model::{
    Action, Author, CachedRead, Fault, Hold, Outcome, Query, Release, Representation, RequestStep,
    Run, Seen, Site, Source, StreamRecord, Verb,
};

/// One numbered line about one step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    /// The index of the step.
    pub(super) step: usize,
    /// From 1, in the order of the run.
    pub(super) number: usize,
    pub(super) kind: LineKind,
    /// `PATCH`, `CACHE`, `ACTOR`, …
    pub(super) what: String,
    /// `apply`, `get`, …
    pub(super) how: String,
    /// What it is about.
    pub(super) target: String,
    /// A place in the source, or a tracing span in brackets.
    pub(super) site: String,
    /// What came of it.
    pub(super) outcome: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LineKind {
    Write,
    LiveRead,
    FreshRead,
    StaleRead,
    /// A stream is held from here on.
    Hold,
    /// Held events are let go.
    Release,
    Actor,
    Fault,
    Violation,
}

impl LineKind {
    /// Whether a reader who wants only the race has to see it.
    pub(super) fn explains(self) -> bool {
        !matches!(self, Self::LiveRead | Self::FreshRead)
    }
}

/// The steps that somebody did: requests, reads, other actors, faults and violations; where a stream is
/// held, and where it is let go. Deliveries that held nothing back are left to the timeline.
pub(super) fn lines(run: &Run) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let mut holds = Holds::default();
    for (index, step) in run.steps.iter().enumerate() {
        let line = match &step.action {
            Action::Request(request) => of_request(run, index, request),
            Action::Read(read) => Some(of_read(run, read)),
            Action::Hold(hold) => holds.open(run, lines.len() + 1, hold),
            Action::Release(release) => holds.release(run, release),
            Action::Environment(step) => Some(Line {
                target: step.text.clone(),
                outcome: step.commits.first().map_or_else(String::new, |commit| {
                    format!("-> rv {}", commit.resource_version)
                }),
                ..blank(LineKind::Actor, "ACTOR", &step.actor)
            }),
            Action::Fault(fault) => Some(of_fault(run, fault)),
            Action::Violation(violation) => Some(Line {
                target: violation.oracle.clone(),
                outcome: format!("** {}", violation.text),
                ..blank(LineKind::Violation, "VIOLATES", "")
            }),
            _ => None,
        };
        if let Some(line) = line {
            lines.push(Line { step: index, number: lines.len() + 1, ..line });
        }
    }
    let numbers = by_request(run, &lines);
    for line in lines.iter_mut().filter(|line| line.kind == LineKind::Hold) {
        if let Action::Hold(hold) = &run.steps[line.step].action {
            let end = if holds.is_open(line.number) { " to the end" } else { "" };
            line.outcome = format!("{} from here{end}", held(run, hold, &numbers));
        }
    }
    lines
}

/// The events that a hold keeps back: `1 event (rv 1042 by #1)`.
pub(super) fn held(run: &Run, hold: &Hold, numbers: &BTreeMap<u64, usize>) -> String {
    let Some(first) = &hold.first else { return "whatever comes".to_owned() };
    let stream = run.streams.get(hold.stream).map(|stream| stream.identity.qualified_resource());
    let by = stream
        .and_then(|resource| run.change_to(&resource, &first.key, &first.resource_version))
        .map_or_else(String::new, |commit| format!(" by {}", author(&commit.by, numbers)));
    let which = if hold.behind > 1 { "the first is " } else { "" };
    format!("{} ({which}rv {}{by})", events(hold.behind.max(1)), first.resource_version)
}

/// The holds that are open.
#[derive(Default)]
struct Holds {
    /// By stream: the number of the line, and how many events are held.
    open: BTreeMap<usize, (usize, usize)>,
}

impl Holds {
    fn open(&mut self, run: &Run, number: usize, hold: &Hold) -> Option<Line> {
        let stream = run.streams.get(hold.stream)?;
        self.open.insert(hold.stream, (number, hold.behind));
        Some(Line { target: name(stream), ..blank(LineKind::Hold, "HOLD", "") })
    }

    /// A delivery that was chosen, or that lets held events go: with it the client's view moves.
    fn release(&mut self, run: &Run, release: &Release) -> Option<Line> {
        let stream = run.streams.get(release.stream)?;
        let last = release.events.last()?;
        let opened = self.open.remove(&release.stream);
        if release.point.is_none() && opened.is_none() {
            return None;
        }
        let mut since = String::new();
        if let Some((number, behind)) = opened {
            since = format!(", held since #{number}");
            if let Some(left) = behind.checked_sub(release.events.len()).filter(|left| *left > 0) {
                let _ = write!(since, "; {} still held", events(left));
                self.open.insert(release.stream, (number, left));
            }
        }
        Some(Line {
            target: name(stream),
            outcome: format!(
                "{}, to rv {}{since}",
                events(release.events.len()),
                last.resource_version
            ),
            ..blank(LineKind::Release, "RELEASE", "")
        })
    }

    fn is_open(&self, number: usize) -> bool {
        self.open.values().any(|(opened, _)| *opened == number)
    }
}

/// `statefulsets`, as the targets of requests and reads are called; `statefulsets/metadata` of a watch that triggers, and
/// `statefulsets#2` of a second one.
fn name(stream: &StreamRecord) -> String {
    let form = match stream.identity.representation {
        Representation::Metadata => "/metadata",
        _ => "",
    };
    let name = format!("{}{form}", stream.identity.resource);
    match stream.instance {
        ..=1 => name,
        instance => format!("{name}#{instance}"),
    }
}

/// The line of each request, by the request's own number.
pub(super) fn by_request(run: &Run, lines: &[Line]) -> BTreeMap<u64, usize> {
    lines
        .iter()
        .filter_map(|line| match &run.steps.get(line.step)?.action {
            Action::Request(request) => Some((request.request.number, line.number)),
            _ => None,
        })
        .collect()
}

/// Who did something, in the numbers that the reader sees.
pub(super) fn author(by: &Author, numbers: &BTreeMap<u64, usize>) -> String {
    match by {
        Author::Request(number) => match numbers.get(number) {
            Some(line) => format!("#{line}"),
            None => "an earlier request".to_owned(),
        },
        other => other.to_string(),
    }
}

fn blank(kind: LineKind, what: &str, how: &str) -> Line {
    Line {
        step: 0,
        number: 0,
        kind,
        what: what.to_owned(),
        how: how.to_owned(),
        target: String::new(),
        site: String::new(),
        outcome: String::new(),
    }
}

fn of_request(run: &Run, index: usize, step: &RequestStep) -> Option<Line> {
    let request = &step.request;
    if request.verb == Verb::Watch {
        return None; // what it delivers is in the releases
    }
    let (kind, arrow) = match (request.verb.is_write(), step.source) {
        (true, _) => (LineKind::Write, "->"),
        (false, Source::View { .. }) if run.is_stale_read(index) => (LineKind::StaleRead, "<-"),
        (false, Source::View { .. }) => (LineKind::FreshRead, "<-"),
        (false, _) => (LineKind::LiveRead, "<-"),
    };
    let (what, how) = verb(request.verb, request.subresource.as_deref());
    let listed = request.verb == Verb::List && request.outcome == Outcome::Status(200);
    let version = match step.reply.as_slice() {
        // The version of a list says nothing of what is in it.
        [] if listed => "nothing".to_owned(),
        [seen] if listed => format!("{} rv {}", seen.key.name, seen.resource_version),
        several if listed => format!("{} objects", several.len()),
        _ => request
            .resource_version_answered
            .as_deref()
            .map_or_else(|| request.outcome.to_string(), |version| format!("rv {version}")),
    };
    let name = request.name.as_deref().map_or_else(String::new, |name| format!("/{name}"));
    let note = match kind {
        LineKind::StaleRead => ", flipped: an old view",
        LineKind::FreshRead => ", flipped",
        LineKind::Write if changes_nothing(run, step) => "   changes nothing",
        _ => "",
    };
    Some(Line {
        target: format!("{}{name}", request.resource),
        site: request.span.as_deref().map_or_else(String::new, |span| format!("[{span}]")),
        outcome: format!("{arrow} {version}{}{note}", generation(&step.reply)),
        ..blank(kind, what, how)
    })
}

/// Whether the reply to a write shows a version that somebody else had made before.
fn changes_nothing(run: &Run, step: &RequestStep) -> bool {
    let request = &step.request;
    let own = Author::Request(request.number);
    let answered = |seen: &Seen| {
        let mut history = run.history.iter();
        let commit = history.find(|commit| {
            commit.key == seen.key && commit.resource_version == seen.resource_version
        });
        commit.is_some_and(|commit| commit.by != own)
    };
    !run.history.iter().any(|commit| commit.by == own)
        && !step.reply.is_empty()
        && step.reply.iter().all(answered)
}

fn verb(verb: Verb, subresource: Option<&str>) -> (&'static str, &str) {
    let (method, how) = match verb {
        Verb::Get => ("GET", "get"),
        Verb::List => ("GET", "list"),
        Verb::Create => ("POST", "create"),
        Verb::Update => ("PUT", "update"),
        Verb::Delete | Verb::DeleteCollection => ("DELETE", "delete"),
        Verb::Patch(crate::lag::model::PatchType::Apply) => ("PATCH", "apply"),
        Verb::Patch(_) => ("PATCH", "patch"),
        _ => ("OTHER", ""),
    };
    (method, subresource.unwrap_or(how))
}

fn of_read(run: &Run, read: &CachedRead) -> Line {
    let kind = if read.stale { LineKind::StaleRead } else { LineKind::FreshRead };
    let stream = run
        .streams
        .get(read.stream)
        .map_or_else(String::new, |stream| stream.identity.resource.clone());
    let (how, target) = match &read.query {
        Query::Get(key) => ("get".to_owned(), format!("{stream}/{}", key.name)),
        other => (other.to_string(), stream),
    };
    let answer = match read.answer.as_slice() {
        [] => "nothing".to_owned(),
        [seen] => format!("rv {}{}", seen.resource_version, generation(&read.answer)),
        several => format!("{} objects", several.len()),
    };
    let behind = match (read.stale, read.behind) {
        (true, behind) => format!(", {} behind", events(behind)),
        (false, _) => String::new(),
    };
    Line {
        target,
        site: read.site.as_ref().map_or_else(String::new, place),
        outcome: format!("<- {answer}{behind}"),
        ..blank(kind, "CACHE", &how)
    }
}

/// A place in the source, and the span that it was reached in. The compiler names files of a workspace relative to it, and those of other packages by their
/// whole path: of such a path the package and what is below it say enough.
fn place(site: &Site) -> String {
    let Site { file, line, span } = site;
    let span = span.as_ref().map_or_else(String::new, |span| format!(" [{span}]"));
    if !file.starts_with('/') {
        return format!("{file}:{line}{span}");
    }
    let parts: Vec<_> = file.split('/').collect();
    let is_root = |part: &&str| matches!(*part, "src" | "tests" | "examples" | "benches");
    let package =
        parts.iter().rposition(is_root).map_or(parts.len().saturating_sub(2), |at| at - 1);
    format!("{}:{line}{span}", parts[package..].join("/"))
}

fn of_fault(run: &Run, fault: &Fault) -> Line {
    let text = match fault {
        Fault::Restart => "the process ends and begins anew".to_owned(),
        Fault::RequestLost(_) => "the next request never arrives".to_owned(),
        Fault::ReplyLost(_) => "the reply is lost, although it took effect".to_owned(),
        Fault::Expired(stream) => match run.streams.get(*stream) {
            Some(stream) => {
                format!("the watch of {} expires, and its client lists anew", name(stream))
            }
            None => "a watch expires, and its client lists anew".to_owned(),
        },
    };
    Line { target: text, ..blank(LineKind::Fault, "FAULT", "") }
}

pub(super) fn events(count: usize) -> String {
    match count {
        1 => "1 event".to_owned(),
        count => format!("{count} events"),
    }
}

fn generation(seen: &[Seen]) -> String {
    match seen {
        [seen] => seen
            .generation
            .map_or_else(String::new, |generation| format!(" (generation {generation})")),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_from_its_package_on() {
        for (file, expected) in [
            ("tasks/observe.rs", "tasks/observe.rs:7"),
            ("/home/me/app/src/tasks/observe.rs", "app/src/tasks/observe.rs:7"),
            ("/home/src/app-1.2.3/tests/it/main.rs", "app-1.2.3/tests/it/main.rs:7"),
            ("/generated/a/b.rs", "a/b.rs:7"),
            ("/src/main.rs", "/src/main.rs:7"),
            ("/b.rs", "/b.rs:7"),
        ] {
            let site = Site { file: file.to_owned(), line: 7, span: None };
            assert_eq!(place(&site), expected);
            let spanned = Site { span: Some("observe-image".to_owned()), ..site };
            assert_eq!(place(&spanned), format!("{expected} [observe-image]"));
        }
    }
}
