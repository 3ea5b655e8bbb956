//! The files of a check: tokens that failed once, the page of a finding, and the results of a part.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

use super::{Report, Scenario, error::CheckError};
use crate::{
    explore::RegressionsError,
    lag::model::Shard,
    report::{Results, file_name, page},
};

/// Where they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    pub(super) off: bool,
    pub(super) regressions: Option<PathBuf>,
    pub(super) output: Option<PathBuf>,
}

impl Files {
    /// The file for the tokens of a scenario that failed once; `None` if there is no place for it.
    pub(super) fn regressions_of(&self, scenario: &Scenario) -> Option<PathBuf> {
        if self.off {
            return None;
        }
        // cargo says where the package is that it tests.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let directory = match &self.regressions {
            Some(directory) => directory.clone(),
            None => package.as_ref()?.join("laggard-regressions"),
        };
        let source = within(package.as_deref(), Path::new(scenario.file)).with_extension("");
        Some(directory.join(source).join(format!("{}.txt", file_name(&scenario.name))))
    }

    /// Writes the results of a check and its page, and notes in the report where the page is.
    ///
    /// A failure is told although its page cannot be written, with the reason.
    pub(super) fn write(&self, report: &mut Report) -> Result<(), CheckError> {
        if self.off {
            return Ok(());
        }
        let Some(directory) = self.directory() else {
            tracing::warn!(
                name = report.name,
                "there is no directory for the results: set {OUTPUT}, or Check::output"
            );
            return Ok(());
        };
        let stem = report.results().file_stem();
        report.page_file = Some(directory.join(format!("{stem}.html")).display().to_string());
        let Err(error) = write_results(&report.results(), &directory) else { return Ok(()) };
        if report.findings.is_empty() {
            return Err(error);
        }
        report.page_file = Some(error.to_string());
        Ok(())
    }

    /// Where pages and results go: as the test says, else as the environment says, else below the target directory.
    /// Only the first is taken as it is; in the others each test has a directory of its own.
    fn directory(&self) -> Option<PathBuf> {
        if let Some(directory) = &self.output {
            return Some(directory.clone());
        }
        let given = std::env::var_os(OUTPUT).filter(|value| !value.is_empty());
        Some(given.map_or_else(target, |given| Some(given.into()))?.join(test_directory()))
    }
}

/// The variable with the directory for pages and results.
const OUTPUT: &str = "LAGGARD_OUTPUT";

/// Writes `NAME.json` and `NAME.html` of these results into a directory, which is made if it is missing. Readers see
/// each file before or after, never half of it. Returns the path of the page.
///
/// # Errors
/// [`CheckError::File`] with the file that could not be written.
pub fn write_results(results: &Results, directory: &Path) -> Result<PathBuf, CheckError> {
    let stem = results.file_stem();
    let write = |ending: &str, text: &str| {
        let file = directory.join(format!("{stem}.{ending}"));
        replace(directory, &file, text).map(|()| file.clone()).map_err(|error| CheckError::File {
            attempt: format!("write {}", file.display()),
            source: error.into(),
        })
    };
    write("json", &results.to_json())?;
    write("html", &page(results))
}

fn replace(directory: &Path, file: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut new = tempfile::NamedTempFile::new_in(directory)?;
    new.write_all(text.as_bytes())?;
    // Temporary files are made for their owner alone.
    new.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    new.persist(file).map_err(|error| error.error)?;
    Ok(())
}

/// A source file as it is called inside its package. The compiler names one of a workspace relative to that, such as
/// `harness/tests/it/main.rs`, and one of another place by its whole path.
fn within(package: Option<&Path>, file: &Path) -> PathBuf {
    let package = package.unwrap_or(Path::new(""));
    // The end of the one is the beginning of the other, however deep in the workspace the package is.
    let inside = package.ancestors().find_map(|root| {
        let below = package.strip_prefix(root).ok().filter(|below| below.iter().count() > 0)?;
        file.strip_prefix(below).ok()
    });
    let file = file.strip_prefix(package).ok().or(inside).unwrap_or(file);
    file.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// `laggard` in the target directory of the test that runs.
fn target() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let deps = test.ancestors().find(|path| path.ends_with("deps"))?;
    Some(deps.parent()?.parent()?.join("laggard"))
}

/// The name of the test binary and of the test, such as `it.exploration.a_race_is_found`, as far as they are known.
fn test_directory() -> String {
    let binary = std::env::current_exe().ok();
    let binary = binary.as_deref().and_then(Path::file_stem).unwrap_or_default().to_string_lossy();
    let names = [Some(without_hash(&binary).to_owned()), test()];
    let names: Vec<_> = names.into_iter().flatten().filter(|name| !name.is_empty()).collect();
    file_name(&names.join(".").replace("::", "."))
}

/// cargo adds a hash to the names of test binaries.
fn without_hash(binary: &str) -> &str {
    match binary.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            name
        }
        _ => binary,
    }
}

/// The path of the test that runs, which libtest gives to the test's thread as its name. `None` where it gives none,
/// as with one test thread, and on threads of a runtime.
fn test() -> Option<String> {
    let thread = std::thread::current();
    let name = thread.name()?;
    let is_test = name.contains("::") || (!name.starts_with("tokio") && name != "main");
    is_test.then(|| name.to_owned())
}

/// The command that runs this test again, as far as it is known.
pub(super) fn command() -> String {
    let package = std::env::var("CARGO_PKG_NAME").ok();
    let package = package.map(|name| format!(" -p {name}")).unwrap_or_default();
    match test() {
        Some(test) => format!("cargo test{package} {test}"),
        None => format!("cargo test{package}"),
    }
}

pub(super) fn regressions(error: RegressionsError) -> CheckError {
    CheckError::File { attempt: "keep the tokens of failing runs".to_owned(), source: error.into() }
}

/// The part of the work that the environment says is ours.
pub(super) fn shard() -> Result<Option<Shard>, CheckError> {
    shard_in(|name| Some(std::env::var_os(name)?.to_string_lossy().into_owned()))
}

/// The part that these variables name: `LAGGARD_SHARD=i/n`, or those of an Indexed Job.
fn shard_in(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Shard>, CheckError> {
    const SHARD: &str = "LAGGARD_SHARD";
    const SHARDS: &str = "LAGGARD_SHARDS";
    const INDEX: &str = "JOB_COMPLETION_INDEX";
    let variable = |name| {
        let value = variable(name)?.trim().to_owned();
        (!value.is_empty()).then_some(value)
    };
    let unreadable = |variable, value: &str, problem: &str| CheckError::Variable {
        variable,
        value: value.to_owned(),
        problem: problem.to_owned(),
    };
    if let Some(text) = variable(SHARD) {
        let problem = "expected \"1/4\" for the first of four";
        return text.parse().map(Some).map_err(|_| unreadable(SHARD, &text, problem));
    }
    let Some(of) = variable(SHARDS) else { return Ok(None) };
    // Kubernetes counts the pods of an Indexed Job from 0.
    let Some(index) = variable(INDEX) else {
        let problem = "JOB_COMPLETION_INDEX is not set: is the job an Indexed Job?";
        return Err(unreadable(SHARDS, &of, problem));
    };
    let count: Option<u32> = of.parse().ok().filter(|count| *count > 0);
    let problem = "expected the number of parts, from 1";
    let count = count.ok_or_else(|| unreadable(SHARDS, &of, problem))?;
    let number: Option<u32> = index.parse::<u32>().ok().and_then(|index| index.checked_add(1));
    number.and_then(|number| Shard::new(number, count).ok()).map(Some).ok_or_else(|| {
        let problem = format!("expected a number below {SHARDS}={count}, from 0");
        unreadable(INDEX, &index, &problem)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::results;

    fn shard_of(variables: &[(&str, &str)]) -> Result<Option<Shard>, String> {
        let value = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        shard_in(value).map_err(|error| error.to_string())
    }

    #[test]
    fn the_part_is_read_from_either_form() {
        let part = |text: &str| Ok(Some(text.parse().unwrap()));
        assert_eq!(shard_of(&[]), Ok(None));
        assert_eq!(shard_of(&[("LAGGARD_SHARD", " 2/3 ")]), part("2/3"));
        assert_eq!(shard_of(&[("LAGGARD_SHARD", ""), ("LAGGARD_SHARDS", "")]), Ok(None));
        // In an Indexed Job that has nothing to do with us.
        assert_eq!(shard_of(&[("JOB_COMPLETION_INDEX", "1")]), Ok(None));
        for (index, expected) in [("0", "1/3"), ("2", "3/3")] {
            let job = [("LAGGARD_SHARDS", "3"), ("JOB_COMPLETION_INDEX", index)];
            assert_eq!(shard_of(&job), part(expected));
        }
        let both =
            [("LAGGARD_SHARD", "1/2"), ("LAGGARD_SHARDS", "9"), ("JOB_COMPLETION_INDEX", "5")];
        assert_eq!(shard_of(&both), part("1/2"));
    }

    #[test]
    fn a_part_that_cannot_be_read_is_one_clear_error() {
        let job = |shards, index| {
            shard_of(&[("LAGGARD_SHARDS", shards), ("JOB_COMPLETION_INDEX", index)]).unwrap_err()
        };
        for text in ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"] {
            assert_eq!(
                shard_of(&[("LAGGARD_SHARD", text)]).unwrap_err(),
                format!(
                    "failed to read LAGGARD_SHARD={text:?}: expected \"1/4\" for the first of four"
                )
            );
        }
        for shards in ["0", "three", "-1"] {
            let expected = "expected the number of parts, from 1";
            assert_eq!(
                job(shards, "0"),
                format!("failed to read LAGGARD_SHARDS={shards:?}: {expected}")
            );
        }
        for index in ["3", "4294967295", "-1", "x"] {
            let expected = "expected a number below LAGGARD_SHARDS=3, from 0";
            let expected = format!("failed to read JOB_COMPLETION_INDEX={index:?}: {expected}");
            assert_eq!(job("3", index), expected);
        }
        let alone = shard_of(&[("LAGGARD_SHARDS", "3")]).unwrap_err();
        assert!(
            alone.contains("JOB_COMPLETION_INDEX is not set: is the job an Indexed Job?"),
            "{alone}"
        );
    }

    #[test]
    fn scenarios_of_one_name_in_two_files_have_files_of_their_own() {
        let scenario =
            |file| Scenario { file, ..Scenario::new("a b", |_| async { Ok::<_, io::Error>(()) }) };
        assert_eq!(Scenario::new("", |_| async { Ok::<_, io::Error>(()) }).file, file!());
        let directory = Some(PathBuf::from("/r"));
        let files = Files { regressions: directory, ..Files::default() };
        let one = files.regressions_of(&scenario("tests/one.rs")).unwrap();
        assert_eq!(one, Path::new("/r/tests/one/a-b.txt"));
        assert_ne!(Some(one), files.regressions_of(&scenario("tests/two.rs")));
    }

    #[test]
    fn a_source_file_is_named_from_its_package_on() {
        for (package, file, expected) in [
            ("/w/harness", "harness/tests/it.rs", "tests/it.rs"),
            ("/w/a/harness", "a/harness/tests/it.rs", "tests/it.rs"),
            ("/w/harness", "tests/it.rs", "tests/it.rs"),
            ("/w/harness", "/w/harness/tests/it.rs", "tests/it.rs"),
            ("/w/tests", "tests/it/main.rs", "it/main.rs"),
            ("/w/harness", "/elsewhere/src/lib.rs", "elsewhere/src/lib.rs"),
            ("/w/harness", "../elsewhere/src/lib.rs", "elsewhere/src/lib.rs"),
            ("", "tests/it.rs", "tests/it.rs"),
        ] {
            assert_eq!(within(Some(Path::new(package)), Path::new(file)), Path::new(expected));
        }
        assert_eq!(within(None, Path::new("/a/b.rs")), Path::new("a/b.rs"));
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(within(Some(package), Path::new(file!())), Path::new("src/check/files.rs"));
    }

    #[test]
    fn results_are_replaced_as_a_whole_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("not/there");
        let mut results = results();
        let file = write_results(&results, &directory).unwrap();
        assert_eq!(file, directory.join("a--test-.html"));
        assert!(fs::read_to_string(&file).unwrap().contains("<h1>a &lt;test&gt;</h1>"));
        results.verdict.runs += 1;
        write_results(&results, &directory).unwrap();
        let text = fs::read_to_string(directory.join("a--test-.json")).unwrap();
        assert_eq!(Results::parse(&text).unwrap(), results);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = write_results(&results(), file.path()).unwrap_err().to_string();
        assert!(
            error.starts_with("failed to write ") && error.contains("a--test-.json: "),
            "{error}"
        );
    }

    #[test]
    fn two_tests_have_directories_of_their_own() {
        let own = test_directory();
        assert!(own.starts_with("laggard.check.files.tests.two_tests_have"), "{own}");
        assert_eq!(without_hash("it-0123456789abcdef"), "it");
        assert_eq!(without_hash("my-tool"), "my-tool");
        let other = std::thread::Builder::new().name("a::test".to_owned());
        let other = other.spawn(test_directory).unwrap().join().unwrap();
        assert_eq!(other, "laggard.a.test");
        let worker = std::thread::Builder::new().name("tokio-runtime-worker".to_owned());
        let worker = worker.spawn(test_directory).unwrap().join().unwrap();
        assert_eq!(worker, "laggard");
    }
}
