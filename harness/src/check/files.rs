//! The files of a check: tokens that failed once, the page of a finding, and the results of a part.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Report, error::CheckError};
use crate::{explore::RegressionsError, lag::model::Shard};

/// Where they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    pub(super) off: bool,
    pub(super) regressions: Option<PathBuf>,
    pub(super) output: Option<PathBuf>,
}

impl Files {
    /// The file for the tokens of a scenario that failed once; `None` if there is no place for it.
    pub(super) fn regressions_of(&self, name: &str) -> Option<PathBuf> {
        if self.off {
            return None;
        }
        let directory = match &self.regressions {
            Some(directory) => directory.clone(),
            // cargo says where the package is that it tests.
            None => Path::new(&std::env::var_os("CARGO_MANIFEST_DIR")?).join("laggard-regressions"),
        };
        Some(directory.join(format!("{}.txt", file_name(name))))
    }

    /// Writes the page of a check that found something.
    pub(super) fn write(&self, report: &Report) -> Result<(), CheckError> {
        if self.off || (report.findings.is_empty() && self.output.is_none()) {
            return Ok(());
        }
        let Some(directory) = self.output.clone().or_else(target) else { return Ok(()) };
        let file = directory.join(format!("{}.html", file_name(&report.name)));
        let written = fs::create_dir_all(&directory).and_then(|()| fs::write(&file, report.page()));
        written.map_err(|error| CheckError::File {
            attempt: format!("write the page {}", file.display()),
            source: error.into(),
        })
    }
}

/// `laggard` in the target directory of the test that runs.
fn target() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let deps = test.ancestors().find(|path| path.ends_with("deps"))?;
    Some(deps.parent()?.parent()?.join("laggard"))
}

/// The command that runs this test again, as far as it is known.
pub(super) fn command() -> String {
    let package = std::env::var("CARGO_PKG_NAME").ok();
    let package = package.map(|name| format!(" -p {name}")).unwrap_or_default();
    match std::thread::current().name() {
        Some(test) if test.contains("::") || !test.starts_with("tokio") && test != "main" => {
            format!("cargo test{package} {test}")
        }
        _ => format!("cargo test{package}"),
    }
}

pub(super) fn regressions(error: RegressionsError) -> CheckError {
    CheckError::File { attempt: "keep the tokens of failing runs".to_owned(), source: error.into() }
}

/// The part of the work that the environment says is ours.
pub(super) fn shard() -> Result<Option<Shard>, CheckError> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let unreadable = |variable, value: &str, problem: &str| CheckError::Variable {
        variable,
        value: value.to_owned(),
        problem: problem.to_owned(),
    };
    if let Some(text) = variable("LAGGARD_SHARD") {
        let shard = text.parse().map_err(|_| {
            unreadable("LAGGARD_SHARD", &text, "expected \"1/4\" for the first of four")
        });
        return shard.map(Some);
    }
    let Some(of) = variable("LAGGARD_SHARDS") else { return Ok(None) };
    // Kubernetes counts the pods of an Indexed Job from 0.
    let Some(index) = variable("JOB_COMPLETION_INDEX") else {
        let problem = "JOB_COMPLETION_INDEX is not set: is the job an Indexed Job?";
        return Err(unreadable("LAGGARD_SHARDS", &of, problem));
    };
    let count: u32 =
        of.parse().map_err(|_| unreadable("LAGGARD_SHARDS", &of, "expected a number of parts"))?;
    let number: u32 = index
        .parse()
        .map_err(|_| unreadable("JOB_COMPLETION_INDEX", &index, "expected a number from 0"))?;
    Shard::new(number.saturating_add(1), count)
        .map(Some)
        .map_err(|_| unreadable("JOB_COMPLETION_INDEX", &index, "there are fewer parts than that"))
}

/// A name as a file may have it.
fn file_name(name: &str) -> String {
    let fits = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    name.chars().map(fits).collect()
}
