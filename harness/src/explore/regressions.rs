//! A file of tokens that once failed, kept beside the tests and tried first.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::Token;

/// The tokens of one test that once failed, as its file holds them.
///
/// One token a line; what follows a `#` is a remark, kept as it is. The file belongs under version control.
///
/// ```
/// use laggard::explore::Regressions;
///
/// let path = std::env::temp_dir().join(format!("laggard-doc-{}.txt", std::process::id()));
/// Regressions::add(&path, &"statefulsets/n0@r2:-1".parse().unwrap(), "stamped early")?;
/// let kept = Regressions::read(&path)?;
/// assert_eq!(kept.tokens()[0].to_string(), "statefulsets/n0@r2:-1");
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), laggard::explore::RegressionsError>(())
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Regressions {
    tokens: Vec<Token>,
}

impl Regressions {
    /// Reads a file. One that does not exist holds no tokens.
    ///
    /// # Errors
    /// [`RegressionsError`] if it cannot be read, or if a line of it is no token: a token that is not
    /// understood would otherwise pass for one that no longer fails.
    pub fn read(path: &Path) -> Result<Self, RegressionsError> {
        Self::parse(path, &read_text(path)?)
    }

    /// Adds `token` to the file at its end, with a remark, and makes file and directory where they are
    /// missing. A token that is there already is not added again. Whether it was added.
    ///
    /// Readers see the file before or after, never half of it, and of two that add at once neither is lost:
    /// the file is replaced by a rename, under a lock beside it that the system frees if we are killed.
    ///
    /// # Errors
    /// [`RegressionsError`] if the file cannot be read or written, or holds what is no token.
    pub fn add(path: &Path, token: &Token, remark: &str) -> Result<bool, RegressionsError> {
        let failed = |doing| move |source| RegressionsError::io(path, doing, source);
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
        let lock = lock(path).map_err(failed("lock"))?;
        let mut text = read_text(path)?;
        if Self::parse(path, &text)?.tokens.contains(token) {
            return Ok(false);
        }
        if text.is_empty() {
            text.push_str(HEADER);
        } else if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&token.to_string());
        if !remark.is_empty() {
            text.push_str(" # ");
            text.extend(remark.chars().map(|c| if c.is_control() { ' ' } else { c }));
        }
        text.push('\n');
        let mut new = tempfile::NamedTempFile::new_in(directory).map_err(failed("write beside"))?;
        new.write_all(text.as_bytes()).map_err(failed("write beside"))?;
        new.as_file().sync_all().map_err(failed("write beside"))?;
        readable_by_all(new.as_file()).map_err(failed("write beside"))?;
        new.persist(path).map_err(|error| RegressionsError::io(path, "replace", error.error))?;
        drop(lock);
        Ok(true)
    }

    /// The tokens, in the order of the file.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    fn parse(path: &Path, text: &str) -> Result<Self, RegressionsError> {
        let mut tokens = Vec::new();
        for (index, line) in text.lines().enumerate() {
            // A subject may hold a `#` (`pods#2`), so a remark needs a space before it.
            let line = line.trim();
            let token = match line.find(" #") {
                _ if line.starts_with('#') => "",
                Some(end) => line[..end].trim(),
                None => line,
            };
            if !token.is_empty() {
                let token = token.parse::<Token>().map_err(|error| RegressionsError {
                    path: path.to_owned(),
                    doing: format!("understand line {} of", index + 1),
                    source: io::Error::new(io::ErrorKind::InvalidData, error),
                })?;
                tokens.push(token);
            }
        }
        Ok(Self { tokens })
    }
}

/// A file of tokens that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("failed to {doing} the regression file {path:?}")]
pub struct RegressionsError {
    path: PathBuf,
    doing: String,
    source: io::Error,
}

impl RegressionsError {
    fn io(path: &Path, doing: &str, source: io::Error) -> Self {
        Self { path: path.to_owned(), doing: doing.to_owned(), source }
    }
}

fn read_text(path: &Path) -> Result<String, RegressionsError> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|source| RegressionsError::io(path, "read", source)),
    }
}

/// Waits for the lock. The lock file stays: to remove it would let two processes hold different files.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(path.with_file_name(name))?;
    file.lock()?;
    Ok(file)
}

/// Temporary files are made for their owner alone; this one becomes a file of a repository.
fn readable_by_all(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

const HEADER: &str = "# Choices that once made this test fail, tried first in each run; keep the file under version control.\n";

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    fn token(text: &str) -> Token {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_added_is_read_back_once_and_remarks_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("laggard-regressions/a_test.txt");
        assert_eq!(Regressions::read(&path).unwrap(), Regressions::default());
        assert!(Regressions::add(&path, &token("pods#2/p@r1:-1"), "seen\non a\ttuesday").unwrap());
        assert!(Regressions::add(&path, &token("pods@q1..q3:-1"), "").unwrap());
        assert!(!Regressions::add(&path, &token("pods#2/p@r1:-1"), "again").unwrap());
        let read = Regressions::read(&path).unwrap();
        assert_eq!(read.tokens(), [token("pods#2/p@r1:-1"), token("pods@q1..q3:-1")]);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(HEADER), "{text}");
        assert!(text.ends_with("\npods#2/p@r1:-1 # seen on a tuesday\npods@q1..q3:-1\n"), "{text}");
    }

    #[test]
    fn a_line_that_is_no_token_is_an_error_with_its_number_and_the_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a_test.txt");
        fs::write(&path, "# a remark\npods@r1:-1\n\nnonsense").unwrap();
        let error = Regressions::read(&path).unwrap_err();
        assert!(error.to_string().contains("line 4"), "{error}");
        assert!(error.source().unwrap().to_string().contains("\"nonsense\""));
        assert!(Regressions::add(&path, &token("pods@r2:-1"), "").is_err());
        assert!(fs::read_to_string(&path).unwrap().ends_with("nonsense"));
    }

    #[test]
    fn of_many_that_add_at_once_none_is_lost_and_no_reader_sees_half_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a_test.txt");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for number in 1..=10 {
                        let token = token(&format!("pods/{thread}@r{number}:-1"));
                        Regressions::add(path, &token, "").unwrap();
                        assert!(Regressions::read(path).unwrap().tokens().contains(&token));
                    }
                });
            }
        });
        assert_eq!(Regressions::read(&path).unwrap().tokens().len(), 40);
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "the file and its lock: {left:?}");
    }
}
