//! `laggard merge` as a person runs it, on files as the parts of a check write them.
#![expect(clippy::unwrap_used, reason = "all of this is a test, its helpers included")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use laggard::{
    check::write_results,
    lag::model::{
        Action, Bound, Bounds, Certificate, Completeness, Confirmation, Ended, Finding, Needs, Run,
        Shard, Step, Verdict, Violation,
    },
    report::Results,
};

fn part(number: u32, failure: Option<&str>) -> Results {
    let completeness = match failure {
        Some(_) => Completeness::NotExhausted { by: Ended::Failure },
        None => Completeness::Exhausted { within: vec![Bound::StaleReads(2)] },
    };
    let verdict = Verdict {
        completeness,
        runs: 10,
        failures: u64::from(failure.is_some()),
        impossible: 0,
        redundant: 0,
        merged: 0,
        looked_again: 0,
        points: 4,
        naive: 100,
        elapsed: Duration::from_secs(2),
        shard: Some(Shard::new(number, 2).unwrap()),
        exclusions: Vec::new(),
        worlds: None,
        requests: 0,
        recalled: 0,
    };
    let mut results = Results::new("own write", verdict.clone(), Bounds::default());
    results.baseline = Some("1".to_owned());
    if let Some(text) = failure {
        let mut run = Run::new("own write");
        let violation = Violation { oracle: "never".to_owned(), text: text.to_owned() };
        run.steps.push(Step::new(Duration::ZERO, Action::Violation(violation)));
        results.findings.push(Finding {
            run,
            certificate: Certificate::default(),
            needs: Needs::Staleness,
            found_in_run: 3,
            token: format!("pods/p{number}@r1:-1"),
            repairs: Vec::new(),
            window: None,
            verdict,
            confirmed: Confirmation::NotTried,
        });
    }
    results
}

fn write(directory: &Path, results: &Results) -> PathBuf {
    write_results(results, directory).unwrap().with_extension("json")
}

fn merge(files: &[PathBuf], more: &[&str]) -> Output {
    let laggard = env!("CARGO_BIN_EXE_laggard");
    Command::new(laggard).arg("merge").args(files).args(more).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn parts_that_pass_are_one_verdict_and_one_page() {
    let directory = tempfile::tempdir().unwrap();
    let files = [1, 2].map(|number| write(directory.path(), &part(number, None)));
    assert!(files[1].ends_with("own-write.shard-2-of-2.json"), "{files:?}");
    let out = directory.path().join("merged");
    let output = merge(&files, &["--out", out.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = text(&output.stdout);
    let expected =
        "own write: passes, exhausted within <= 2 stale reads: 20 runs for 200 interleavings";
    assert!(said.starts_with(expected), "{said}");
    let merged = fs::read_to_string(out.join("own-write.json")).unwrap();
    let merged = Results::parse(&merged).unwrap();
    assert_eq!((merged.verdict.runs, merged.verdict.shard), (20, None));
    assert!(fs::read_to_string(out.join("own-write.html")).unwrap().contains("<h1>own write</h1>"));
    // The parts are as they were.
    assert_eq!(Results::parse(&fs::read_to_string(&files[0]).unwrap()).unwrap(), part(1, None));
}

#[test]
fn failures_of_any_part_are_told_and_are_status_1() {
    let directory = tempfile::tempdir().unwrap();
    let files = [part(1, None), part(2, Some("two pods"))];
    let files = files.map(|part| write(directory.path(), &part));
    let output = merge(&files, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = text(&output.stdout);
    assert!(said.contains("found in run 3 of 10 (shard 2/2)"), "{said}");
    assert!(said.contains("** two pods") && said.contains("LAGGARD_REPLAY='pods/p2@r1:-1'"));
    assert!(
        said.contains("\nown write: fails, not exhausted: stopped at the first failure: 20 runs")
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4, "only the parts' own files");
}

#[test]
fn what_is_no_set_of_parts_is_status_2_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = [1, 2].map(|number| write(directory.path(), &part(number, None)));
    let refused = |files: &[PathBuf], reason: &str| {
        let output = merge(files, &[]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = text(&output.stderr);
        assert!(said.contains(reason), "{reason:?} is missing in: {said}");
        assert!(output.stdout.is_empty(), "{output:?}");
    };
    refused(std::slice::from_ref(&one), "of 2 parts one is missing: 2");
    refused(&[one.clone(), one.clone(), two], "are both part 1/2");
    refused(&[directory.path().join("none.json")], "none.json: No such file");
    let broken = directory.path().join("broken.json");
    fs::write(&broken, "{\"format\": 1, \"name\": ").unwrap();
    refused(&[one.clone(), broken], "broken.json: failed to read as results of a check: EOF");
    let newer = directory.path().join("newer.json");
    fs::write(&newer, "{\"format\": 2}").unwrap();
    refused(&[one, newer], "they have format 2, use the version of laggard that wrote them");
    refused(&[], "required arguments");
}
