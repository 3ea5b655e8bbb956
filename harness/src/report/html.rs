//! One self-contained page with all findings and runs: no network, no script.

use std::fmt::Write as _;

use super::{
    KeptRun, Results,
    svg::{escape, svg},
    text::failure,
    timeline::timeline,
};

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
  .none { opacity: .75; }
  table { border-collapse: collapse; }
  th, td { padding: .1rem .8rem .1rem 0; text-align: right; font-weight: normal; }
  th:first-child { text-align: left; }";

/// The page of a check as one HTML document.
#[must_use]
pub fn page(results: &Results) -> String {
    let title = escape(&results.name);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p>{}</p>\n",
        escape(&results.verdict.to_string())
    );
    counts(&mut out, results);
    if results.verdict.failures == 0 && results.findings.is_empty() {
        out.push_str("<p class=\"none\">No run violated an oracle.</p>\n");
    }
    for text in &results.out_of_date {
        let _ = writeln!(out, "<pre>{}</pre>", escape(text));
    }
    // Writing to a String cannot fail.
    for (index, finding) in results.findings.iter().enumerate() {
        let _ = write!(
            out,
            "<h2>Finding {} of {}</h2>\n<pre>{}</pre>\n<div class=\"picture\">{}</div>\n\
             <details><summary>the timeline as text</summary><pre>{}</pre></details>\n",
            index + 1,
            results.findings.len(),
            escape(&failure(finding, &results.replay)),
            svg(&finding.run),
            escape(&timeline(&finding.run)),
        );
    }
    runs(&mut out, results);
    out.push_str("</body>\n</html>\n");
    out
}

/// How many runs there were of each cost, and where.
fn counts(out: &mut String, results: &Results) {
    let by_cost: Vec<_> = results.runs_by_cost.iter().enumerate().collect();
    if by_cost.len() > 1 {
        let header: String = by_cost.iter().map(|(cost, _)| format!("<th>{cost}</th>")).collect();
        let row: String = by_cost.iter().map(|(_, runs)| format!("<td>{runs}</td>")).collect();
        let _ = writeln!(
            out,
            "<table><tr><th>stale reads, holds, steps and faults</th>{header}</tr>\
             <tr><th>runs</th>{row}</tr></table>"
        );
    }
    if let Some(server) = &results.server {
        let _ = writeln!(out, "<p class=\"none\">Kubernetes {}</p>", escape(server));
    }
}

/// All runs that were kept, and how many were not.
fn runs(out: &mut String, results: &Results) {
    let left_out = results.left_out();
    if results.runs.is_empty() && left_out == 0 {
        return;
    }
    let shown = match (results.runs.len(), left_out) {
        (kept, 0) => format!("{kept} {}", if kept == 1 { "run" } else { "runs" }),
        (kept, left_out) => format!("{kept} runs; {left_out} more were made and are left out here"),
    };
    let _ = writeln!(out, "<h2>{shown}</h2>");
    for run in &results.runs {
        let KeptRun { number, shard, token, violated, timeline } = run;
        let number = match number {
            0 => "a saved token".to_owned(),
            number => format!("run {number}"),
        };
        let shard = shard.map_or_else(String::new, |shard| format!(" of shard {shard}"));
        let choices = if token == "fresh" { "all fresh" } else { token };
        let ended =
            violated.as_ref().map_or_else(|| "✓".to_owned(), |oracle| format!("✕ {oracle}"));
        let _ = writeln!(
            out,
            "<details><summary>{number}{shard}: {} {}</summary><pre>{}</pre></details>",
            escape(choices),
            escape(&ended),
            escape(timeline),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::results;
    use super::*;

    #[test]
    fn the_page_has_everything_and_asks_for_nothing() {
        let html = page(&results());
        assert!(html.contains("<h1>a &lt;test&gt;</h1>"));
        assert!(html.contains("exhausted within &lt;= 2 stale reads"), "{html}");
        assert!(html.contains("run 1: all fresh ✓"), "{html}");
        assert!(html.contains("run 7: statefulsets/n0@r1:-1 ✕ stamped before rollout"), "{html}");
        assert!(
            html.contains("<h2>2 runs; 21 more were made and are left out here</h2>"),
            "{html}"
        );
        assert!(html.contains("<td>1</td><td>22</td>") && html.contains("Kubernetes v1.37.2"));
        let outside = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http") && !outside.contains("<script"), "{html}");
    }
}
