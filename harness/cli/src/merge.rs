//! `laggard merge`: the parts of one check become one.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use laggard::{
    check::write_results,
    report::{Results, merge},
};

/// Joins the results in these files, and writes results and page into `out` if it is given. The text to print, and
/// whether no run failed.
pub(crate) fn run(files: &[PathBuf], out: Option<&Path>) -> anyhow::Result<(String, bool)> {
    let parts = files.iter().map(|file| Ok((file.display().to_string(), read(file)?)));
    let mut merged = merge(parts.collect::<anyhow::Result<Vec<_>>>()?)?;
    if let Some(out) = out {
        let page = out.join(format!("{}.html", merged.file_stem()));
        merged.replay.page = Some(page.display().to_string());
        write_results(&merged, out)?;
    }
    let mut text = merged.to_string();
    let passes = merged.verdict.failures == 0 && merged.findings.is_empty();
    if !passes {
        text.push_str(&format!("\n{}: fails, {}", merged.name, merged.verdict));
    }
    Ok((text, passes))
}

fn read(file: &Path) -> anyhow::Result<Results> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("failed to read {}", file.display()))?;
    Results::parse(&text).with_context(|| format!("failed to use {}", file.display()))
}
