//! Small pieces of text that errors are made of.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// As much of a log's end as is read to find its last lines.
const READ_BYTES: u64 = 64 * 1024;

/// An error with its causes; those of libraries often hide the one that tells something.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// The last `lines` lines of a file, each indented by four spaces.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(READ_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => last_lines(&text, lines),
        Err(error) => format!("    (could not read {}: {error})", path.display()),
    }
}

/// The last `lines` lines of a text, each indented by four spaces, and before them the first one:
/// etcd says what is wrong with a flag before its long list of those it has. Where a Go program
/// panicked, the last lines are those at the panic, of which the one before says more than the
/// stack behind.
pub(crate) fn last_lines(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let Some(first) = all.first() else { return "    (nothing)".to_owned() };
    let last = all.len().saturating_sub(lines);
    let panic = all
        .iter()
        .rposition(|line| line.starts_with("panic: ") || line.starts_with("fatal error: "));
    let skipped = panic.map_or(last, |panic| panic.saturating_sub(1).min(last));
    let shown = all[skipped..].iter().take(lines);
    let mut shown: Vec<_> = shown.map(|line| format!("    {line}")).collect();
    if skipped > 0 {
        shown.insert(0, format!("    {first}\n    …"));
    }
    shown.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept_and_empty_ones_are_not_counted() {
        assert_eq!(last_lines("a\n\nb\n\nc\n\n", 2), "    a\n    …\n    b\n    c");
        assert_eq!(last_lines("b\nc\n", 2), "    b\n    c");
        assert_eq!(last_lines("\n", 2), "    (nothing)");
    }

    #[test]
    fn of_a_panic_the_reason_is_shown_and_not_the_end_of_the_stack() {
        let log = "begun\nat work\nno space left\npanic: failed\n\ngoroutine 1:\na\nb\nc\nd\n";
        assert_eq!(
            last_lines(log, 3),
            "    begun\n    …\n    no space left\n    panic: failed\n    goroutine 1:"
        );
        assert_eq!(last_lines("panic: failed\nmain\n", 3), "    panic: failed\n    main");
    }
}
