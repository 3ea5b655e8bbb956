//! One self-contained page with all findings and runs: no network, no script.

use std::fmt::Write as _;

use super::svg::{escape, svg};
use super::text::{Replay, failure};
use super::timeline::timeline;
use crate::lag::model::{Finding, Run, Verdict};

/// What goes on a page.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Such as the name of the test.
    pub title: &'a str,
    /// How the search ended.
    pub verdict: &'a Verdict,
    /// The failures, reduced.
    pub findings: &'a [Finding],
    /// Every run that was kept, the failing ones too.
    pub runs: &'a [Run],
}

const STYLE: &str = "\
  :root { color-scheme: light dark; }
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
         background: #ffffff; color: #1b1f24; }
  @media (prefers-color-scheme: dark) { body { background: #14181d; color: #e8eaed; } }
  pre { overflow-x: auto; font: 13px/1.45 ui-monospace, monospace; padding: .8rem 1rem;
        border: 1px solid #8886; border-radius: 6px; }
  .picture { overflow-x: auto; border: 1px solid #8886; border-radius: 6px; }
  h2 { margin-top: 2.2rem; }
  summary { cursor: pointer; padding: .3rem 0; }
  .none { opacity: .75; }";

/// The page as one HTML document.
#[must_use]
pub fn page(page: &Page<'_>) -> String {
    let title = escape(page.title);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p>{}</p>\n",
        escape(&page.verdict.to_string())
    );
    if page.findings.is_empty() {
        out.push_str("<p class=\"none\">No run violated an oracle.</p>\n");
    }
    // Writing to a String cannot fail.
    for (index, finding) in page.findings.iter().enumerate() {
        let _ = write!(
            out,
            "<h2>Finding {} of {}</h2>\n<pre>{}</pre>\n<div class=\"picture\">{}</div>\n\
             <details><summary>the timeline as text</summary><pre>{}</pre></details>\n",
            index + 1,
            page.findings.len(),
            escape(&failure(finding, &Replay::default())),
            svg(&finding.run),
            escape(&timeline(&finding.run)),
        );
    }
    if !page.runs.is_empty() {
        let _ = writeln!(out, "<h2>{} runs</h2>", page.runs.len());
    }
    for (index, run) in page.runs.iter().enumerate() {
        let choices: Vec<_> = run.deviations().map(ToString::to_string).collect();
        let choices = if choices.is_empty() { "all fresh".to_owned() } else { choices.join(" ") };
        let ended = match run.violations().next() {
            Some((_, violation)) => format!("✕ {}", violation.oracle),
            None => "✓".to_owned(),
        };
        let _ = writeln!(
            out,
            "<details><summary>run {}: {} {}</summary><pre>{}</pre></details>",
            index + 1,
            escape(&choices),
            escape(&ended),
            escape(&timeline(run)),
        );
    }
    out.push_str("</body>\n</html>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::super::sample::{finding, verdict};
    use super::*;

    #[test]
    fn the_page_has_everything_and_asks_for_nothing() {
        let finding = finding();
        let verdict = verdict();
        let runs = [finding.run.clone(), Run::new("fresh")];
        let findings = [finding];
        let html =
            page(&Page { title: "a <test>", verdict: &verdict, findings: &findings, runs: &runs });
        assert!(html.contains("<h1>a &lt;test&gt;</h1>"));
        assert!(html.contains("exhausted within &lt;= 2 stale reads"), "{html}");
        assert!(html.contains("run 2: all fresh ✓") && html.contains("✕ stamped before rollout"));
        let outside = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http") && !outside.contains("<script"), "{html}");
    }
}
