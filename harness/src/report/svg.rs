//! The timeline as a picture: commits above, a lane a stream, and below what the code under test did.
//!
//! Nothing is told by colour alone: each kind of step has a shape and a caption, and lag is hatched.
//! The colours follow the reader's preference for a dark background.

use std::{collections::BTreeMap, fmt::Write as _};

use super::lines::{Line, LineKind, lines};
use super::timeline::{caption, lanes, standings};
use crate::lag::model::Run;

const LEFT: usize = 190;
const COLUMN: usize = 72;
const LANE: usize = 46;
const TOP: usize = 58;
const CAPTION_ROW: usize = 18;
/// No character of the font is wider, in any common monospace font of 12 px.
const CHARACTER: usize = 8;

const LEGEND: &str = "■ write  △ live read  ○ cached read  ◇ stale read  ‖ hold  ▷ release  ⬠ other actor  \
    ✕ violation; hatched: the stream is behind; shown/committed";

const STYLE: &str = "\
  .timeline { --ink: #1b1f24; --soft: #6a737d; --paper: #ffffff; --line: #0b5cad; --bad: #8a3800; }
  @media (prefers-color-scheme: dark) {
    .timeline { --ink: #e8eaed; --soft: #9aa4ae; --paper: #14181d; --line: #7ab8ff; --bad: #ffb37a; } }
  .timeline text { font: 12px ui-monospace, monospace; fill: var(--ink); }
  .timeline .soft { fill: var(--soft); }
  .timeline .bad { fill: var(--bad); font-weight: bold; }
  .timeline .paper { fill: var(--paper); }
  .timeline .grid { stroke: var(--soft); stroke-opacity: .35; }
  .timeline .shown { stroke: var(--line); stroke-width: 3; fill: none; }
  .timeline .mark { stroke: var(--ink); stroke-width: 1.6; fill: var(--paper); }
  .timeline .full { fill: var(--ink); }
  .timeline .wrong { stroke: var(--bad); stroke-width: 3; fill: none; }
  .timeline .lag { fill: url(#hatch); stroke: var(--bad); stroke-dasharray: 3 3; }
  .timeline .hatch { stroke: var(--bad); stroke-width: 1.4; }";

/// The timeline of a run as one SVG element that needs nothing else.
#[must_use]
pub fn svg(run: &Run) -> String {
    let lines = lines(run);
    let standings = standings(run);
    let lanes = lanes(run);
    // The captions are as wide as they are, however few the steps.
    let longest = lines.iter().map(|line| caption(line).chars().count()).max().unwrap_or(0);
    let words = longest.max(LEGEND.chars().count()) * CHARACTER + 24;
    let width = (LEFT + COLUMN * lines.len() + 40).max(words);
    let code = TOP + LANE * (lanes.len() + 1);
    let captions = code + LANE;
    let height = captions + CAPTION_ROW * (lines.len() + 3);
    let column = |index: usize| LEFT + COLUMN * index + COLUMN / 2;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<svg class=\"timeline\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\">\n<title>{}</title>\n<style>\n{STYLE}\n</style>\n\
         <defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><line class=\"hatch\" x1=\"0\" y1=\"0\" x2=\"0\" y2=\"6\"/></pattern></defs>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n",
        escape(&run.name),
    );
    for (index, line) in lines.iter().enumerate() {
        let x = column(index);
        let at = run.steps[line.step].at.as_secs_f64() * 1000.0;
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{captions}\"/>\
             <text class=\"soft\" x=\"{x}\" y=\"18\" text-anchor=\"middle\">{at:.1} ms</text>\
             <text x=\"{x}\" y=\"36\" text-anchor=\"middle\">#{}</text>",
            TOP - 12,
            line.number
        );
    }
    label(&mut out, TOP + LANE / 2, "server");
    for (index, (newest, count)) in commits(run, &lines) {
        let (x, y) = (column(index), TOP + LANE / 2);
        let several = if count > 1 { format!(" ×{count}") } else { String::new() };
        let _ = writeln!(
            out,
            "<circle class=\"mark full\" cx=\"{x}\" cy=\"{y}\" r=\"5\"/>\
             <text class=\"soft\" x=\"{x}\" y=\"{}\" text-anchor=\"middle\">rv {}{several}</text>",
            y - 11,
            escape(newest)
        );
    }
    for (lane, &stream) in lanes.iter().enumerate() {
        let y = TOP + LANE * (lane + 1) + LANE / 2;
        label(&mut out, y, &run.streams[stream].to_string());
        let mut at = 0;
        for late in lines.chunk_by(|a, b| {
            let is_late = |line: &Line| standings[line.step][stream].behind() > 0;
            is_late(a) == is_late(b)
        }) {
            if standings[late[0].step][stream].behind() > 0 {
                let _ = writeln!(
                    out,
                    "<rect class=\"lag\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"14\"/>",
                    column(at) - COLUMN / 2,
                    y - 7,
                    COLUMN * late.len()
                );
            }
            at += late.len();
        }
        for (index, line) in lines.iter().enumerate() {
            let standing = standings[line.step][stream];
            let x = column(index) - COLUMN / 2;
            let _ = writeln!(
                out,
                "<line class=\"shown\" x1=\"{x}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\"/>\
                 <text class=\"soft\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}/{}</text>",
                x + COLUMN,
                column(index),
                y + 20,
                standing.shown,
                standing.available
            );
        }
    }
    label(&mut out, code + LANE / 2, "code under test");
    for (index, line) in lines.iter().enumerate() {
        out.push_str(&mark(line.kind, column(index), code + LANE / 2));
    }
    for (index, line) in lines.iter().enumerate() {
        let class = match line.kind {
            LineKind::StaleRead | LineKind::Hold | LineKind::Violation => " class=\"bad\"",
            _ => "",
        };
        let _ = writeln!(
            out,
            "<text{class} x=\"12\" y=\"{}\">{}</text>",
            captions + CAPTION_ROW * (index + 1),
            escape(&caption(line))
        );
    }
    let _ = write!(
        out,
        "<text class=\"soft\" x=\"12\" y=\"{}\">{LEGEND}</text>\n</svg>",
        captions + CAPTION_ROW * (lines.len() + 2)
    );
    out
}

/// The newest version that was committed with each line, and how many were.
fn commits<'a>(run: &'a Run, lines: &[Line]) -> BTreeMap<usize, (&'a str, usize)> {
    let mut commits = BTreeMap::new();
    for commit in &run.history {
        let Some(step) = commit.step else { continue };
        let Some(index) = lines.iter().position(|line| line.step >= step) else { continue };
        let known = commits.entry(index).or_insert(("", 0));
        *known = (commit.resource_version.as_str(), known.1 + 1);
    }
    commits
}

fn label(out: &mut String, y: usize, text: &str) {
    let _ = writeln!(out, "<text x=\"12\" y=\"{}\">{}</text>", y + 4, escape(text));
}

/// A shape for each kind of step.
fn mark(kind: LineKind, x: usize, y: usize) -> String {
    let points = |class: &str, offsets: &[(i64, i64)]| {
        let at = |(dx, dy): &(i64, i64)| {
            let (x, y) = (i64::try_from(x).unwrap_or(0), i64::try_from(y).unwrap_or(0));
            format!("{},{}", x + dx, y + dy)
        };
        let points: Vec<_> = offsets.iter().map(at).collect();
        format!("<polygon class=\"{class}\" points=\"{}\"/>\n", points.join(" "))
    };
    match kind {
        LineKind::Write => points("mark full", &[(-7, -7), (7, -7), (7, 7), (-7, 7)]),
        LineKind::LiveRead => points("mark", &[(0, -8), (8, 7), (-8, 7)]),
        LineKind::FreshRead => format!("<circle class=\"mark\" cx=\"{x}\" cy=\"{y}\" r=\"7\"/>\n"),
        LineKind::StaleRead => points("mark wrong", &[(0, -10), (10, 0), (0, 10), (-10, 0)]),
        LineKind::Release => points("mark", &[(-7, -7), (8, 0), (-7, 7)]),
        LineKind::Hold => format!(
            "<path class=\"wrong\" d=\"M{} {} v16 m8 -16 v16\"/>\n",
            x.saturating_sub(4),
            y.saturating_sub(8)
        ),
        LineKind::Actor => points("mark", &[(0, -9), (9, -2), (5, 8), (-5, 8), (-9, -2)]),
        LineKind::Fault => points("mark wrong", &[(-8, -4), (8, -4), (8, 4), (-8, 4)]),
        LineKind::Violation => format!(
            "<path class=\"wrong\" d=\"M{} {} l18 18 m0 -18 l-18 18\"/>\n",
            x.saturating_sub(9),
            y.saturating_sub(9)
        ),
    }
}

/// Text as it may stand in XML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::sample::{finding, held};
    use super::*;

    #[test]
    fn lag_and_the_stale_read_are_drawn_without_relying_on_colour() {
        let picture = svg(&finding().run);
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>"));
        let late = format!("width=\"{}\" height=\"14\"", COLUMN * 4);
        assert_eq!(picture.matches("class=\"lag\"").count(), 1, "{picture}");
        assert!(picture.contains(&late), "{picture}");
        assert_eq!(picture.matches("<polygon class=\"mark wrong\"").count(), 1);
        assert!(picture.contains("rv 1042") && picture.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn a_hold_and_its_release_have_shapes_of_their_own() {
        let picture = svg(&held().run);
        assert!(picture.contains("v16 m8 -16 v16\"/>"), "{picture}");
        assert!(
            picture.contains("#2 HOLD statefulsets 1 event (rv 1042 by #1) from here<"),
            "{picture}"
        );
        let late = format!("width=\"{}\" height=\"14\"", COLUMN * 4);
        assert!(picture.contains(&late), "up to the release: {picture}");
    }

    #[test]
    fn commits_of_one_step_do_not_lie_on_one_another() {
        let mut run = finding().run;
        let mut second = run.history[1].clone();
        second.resource_version = "1044".to_owned();
        run.history.insert(2, second);
        let picture = svg(&run);
        assert!(picture.contains(">rv 1044 ×2<") && !picture.contains(">rv 1042<"), "{picture}");
    }

    #[test]
    fn names_cannot_break_out_of_the_picture() {
        let mut run = finding().run;
        run.name = "<script>&\"".to_owned();
        assert!(svg(&run).contains("<title>&lt;script&gt;&amp;&quot;</title>"));
    }
}
