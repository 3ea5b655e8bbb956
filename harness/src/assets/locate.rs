//! Looking for binaries: which places, in which order, and what makes one usable.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::event::OnEvent;
use super::store::{Known, Store};
use super::{AssetError, Assets, Binary, Event, Selector, Version};

/// The directory that kubebuilder's documentation installs to.
const CONVENTIONAL: &str = "/usr/local/kubebuilder/bin";

/// A binary answers `--version` within this, or it is none of ours.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

type Variables<'a> = &'a (dyn Fn(&str) -> Option<OsString> + Send + Sync);

/// One search through all places, which remembers where it looked.
pub(crate) struct Search<'a> {
    selector: &'a Selector,
    directory: Option<&'a Path>,
    store: Option<&'a Store>,
    variables: Variables<'a>,
    looked_at: Vec<String>,
}

impl<'a> Search<'a> {
    pub(crate) fn new(
        selector: &'a Selector,
        directory: Option<&'a Path>,
        store: Option<&'a Store>,
        variables: Variables<'a>,
    ) -> Self {
        Self { selector, directory, store, variables, looked_at: Vec::new() }
    }

    /// Every place that was looked at, with what was found there.
    pub(crate) fn looked_at(&self) -> &[String] {
        &self.looked_at
    }

    /// Finds what there is; the second part is what is missing.
    pub(crate) async fn find(
        &mut self,
        wanted: &[Binary],
        places: Places,
        on_event: OnEvent<'_>,
    ) -> Result<(Assets, Vec<Binary>), AssetError> {
        let mut assets = Assets::default();
        let mut missing = Vec::new();
        for &binary in wanted {
            match self.find_one(binary, places, on_event).await? {
                Some((path, version)) => {
                    on_event(Event::Found { binary, path: path.clone() });
                    assets.add(binary, path);
                    if let Some(version) = version {
                        assets.note_version(version);
                    }
                }
                None => missing.push(binary),
            }
        }
        Ok((assets, missing))
    }

    async fn find_one(
        &mut self,
        binary: Binary,
        places: Places,
        on_event: OnEvent<'_>,
    ) -> Result<Option<(PathBuf, Option<Version>)>, AssetError> {
        let variable = binary.variable();
        if let Some(value) = (self.variables)(&variable) {
            let path = PathBuf::from(&value);
            let version = self.explicit(&variable, binary, &path).await?;
            return Ok(Some((path, version)));
        }
        self.note(format!("{variable}: not set"));

        let directories = [
            ("KUBEBUILDER_ASSETS", (self.variables)("KUBEBUILDER_ASSETS").map(PathBuf::from)),
            ("the assets directory", self.directory.map(Path::to_owned)),
        ];
        for (name, directory) in directories {
            let Some(directory) = directory else {
                self.note(format!("{name}: not set"));
                continue;
            };
            let bad = |problem| bad_source(name, problem);
            if directory.as_os_str().is_empty() {
                return Err(bad("it is set but empty".to_owned()));
            }
            if !directory.is_dir() {
                return Err(bad(format!("there is no directory {}", directory.display())));
            }
            let path = directory.join(binary.name());
            // envtest's archives have no kube-controller-manager, and kubectl is a convenience.
            let optional = matches!(binary, Binary::KubeControllerManager | Binary::Kubectl);
            if optional && !path.exists() {
                self.note(format!("{name}: {} has no {binary}", directory.display()));
                continue;
            }
            let version = self.explicit(name, binary, &path).await?;
            return Ok(Some((path, version)));
        }

        if places == Places::Named {
            return Ok(None);
        }
        if let Some(found) = self.in_store(binary, on_event).await {
            return Ok(Some(found));
        }

        let path = Path::new(CONVENTIONAL).join(binary.name());
        match usable(&path) {
            Ok(()) => match self.version_of(binary, &path).await {
                Ok(version) => return Ok(Some((path, version))),
                Err(problem) => self.note(format!("{}: {problem}", path.display())),
            },
            Err(problem) => self.note(format!("{}: {problem}", path.display())),
        }
        Ok(None)
    }

    /// A place that somebody named: it works, or that is an error.
    async fn explicit(
        &self,
        name: &str,
        binary: Binary,
        path: &Path,
    ) -> Result<Option<Version>, AssetError> {
        if path.as_os_str().is_empty() {
            return Err(bad_source(name, "it is set but empty".to_owned()));
        }
        usable(path)
            .map_err(|problem| bad_source(name, format!("{}: {problem}", path.display())))?;
        self.version_of(binary, path).await.map_err(|problem| bad_source(name, problem))
    }

    async fn in_store(
        &mut self,
        binary: Binary,
        on_event: OnEvent<'_>,
    ) -> Option<(PathBuf, Option<Version>)> {
        let Some(store) = self.store else {
            self.note("the store: neither XDG_DATA_HOME nor HOME says where it is".to_owned());
            return None;
        };
        let versions: Vec<_> = store
            .versions()
            .into_iter()
            .filter(|version| self.selector.allows_unnamed(version))
            .collect();
        if versions.is_empty() {
            self.note(format!("{}: no version {}", store.path().display(), self.selector));
        }
        for version in versions {
            let path = store.file(&version, binary);
            let checked = match usable(&path) {
                Ok(()) => {
                    let store = store.clone();
                    let look = move || store.check(&version, binary);
                    match tokio::task::spawn_blocking(look).await {
                        Ok(checked) => checked,
                        Err(error) => Err(error.to_string()),
                    }
                }
                Err(problem) => Err(problem),
            };
            let problem = match checked {
                Ok(Known::AsRecorded) => return Some((path, Some(version))),
                // Somebody else put it there, perhaps in two halves: let it speak for itself.
                Ok(Known::Nothing) => match reported_version(binary, &path).await {
                    Ok(None) => return Some((path, Some(version))),
                    Ok(Some(reported)) if reported == version => {
                        return Some((path, Some(version)));
                    }
                    Ok(Some(reported)) => format!("reports version {reported}"),
                    Err(problem) => problem,
                },
                Err(problem) => problem,
            };
            if path.exists() {
                on_event(Event::Damaged { path: path.clone(), problem: problem.clone() });
            }
            self.note(format!("{}: {problem}", path.display()));
        }
        None
    }

    /// The version of a binary from outside the store, if somebody asked for a certain one.
    async fn version_of(&self, binary: Binary, path: &Path) -> Result<Option<Version>, String> {
        if self.selector.is_unsaid() {
            return Ok(None);
        }
        match reported_version(binary, path).await? {
            Some(version) if !self.selector.allows(&version) => Err(format!(
                "{} is version {version}, but {} was asked for",
                path.display(),
                self.selector
            )),
            version => Ok(version),
        }
    }

    fn note(&mut self, place: String) {
        if !self.looked_at.contains(&place) {
            self.looked_at.push(place);
        }
    }
}

/// Which places are searched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Places {
    /// Those that somebody named.
    Named,
    All,
}

fn bad_source(name: &str, problem: String) -> AssetError {
    AssetError::BadSource { source_name: name.to_owned(), problem }
}

/// A file that can be run, as far as its metadata tells.
fn usable(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    })?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if metadata.len() == 0 {
        return Err("is empty".to_owned());
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err("is not executable".to_owned());
    }
    Ok(())
}

/// The Kubernetes version that a binary says it has; `None` for etcd, which has none.
pub(super) async fn reported_version(
    binary: Binary,
    path: &Path,
) -> Result<Option<Version>, String> {
    let (command, text) = answer(binary, path).await?;
    if binary == Binary::Etcd {
        return match text.starts_with("etcd Version") {
            true => Ok(None),
            false => Err(format!("`{command}` answered {:?}, not as etcd does", first_line(&text))),
        };
    }
    text.split_whitespace()
        .find_map(|word| word.strip_prefix('v').and_then(|word| word.parse().ok()))
        .map(Some)
        .ok_or_else(|| format!("`{command}` answered {:?}, with no version", first_line(&text)))
}

/// The version that a binary says it has, etcd's own for etcd, without a `v`.
#[cfg(feature = "container")]
pub(super) async fn own_version(binary: Binary, path: &Path) -> Result<Version, String> {
    let (command, text) = answer(binary, path).await?;
    text.split_whitespace()
        .find_map(|word| word.parse().ok())
        .ok_or_else(|| format!("`{command}` answered {:?}, with no version", first_line(&text)))
}

/// The command that asks a binary for its version, and what it answers.
async fn answer(binary: Binary, path: &Path) -> Result<(String, String), String> {
    let arguments: &[&str] = match binary {
        Binary::Kubectl => &["version", "--client"],
        _ => &["--version"],
    };
    let command = format!("{} {}", path.display(), arguments.join(" "));
    let run = async {
        loop {
            let output = tokio::process::Command::new(path)
                .args(arguments)
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output()
                .await;
            match output {
                // Another thread forked while it had the file open for writing; its exec ends that.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    tokio::task::yield_now().await;
                }
                output => return output,
            }
        }
    };
    let output = match tokio::time::timeout(ANSWER_LIMIT, run).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("`{command}` does not run: {error}")),
        Err(_) => return Err(format!("`{command}` gave no answer within {ANSWER_LIMIT:?}")),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{command}` ended with {}: {}", output.status, said.trim()));
    }
    Ok((command, String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in that says it is of some version.
    fn binary_in(directory: &Path, binary: Binary, answer: &str) -> PathBuf {
        let path = directory.join(binary.name());
        fs::write(&path, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    async fn search(
        version: Option<&str>,
        store: Option<&Store>,
        variables: &[(&'static str, &Path)],
        binary: Binary,
    ) -> (Result<Option<PathBuf>, String>, Vec<String>) {
        let selector = Selector::parse(version).unwrap();
        let variables: Vec<_> =
            variables.iter().map(|(name, path)| (*name, path.as_os_str().to_owned())).collect();
        let variable = move |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
        };
        let mut search = Search::new(&selector, None, store, &variable);
        let found = search.find(&[binary], Places::All, &|_| {}).await;
        let found = found.map_err(|error| error.to_string());
        let path = found.map(|(assets, _)| assets.path(binary).ok().map(Path::to_owned));
        (path, search.looked_at)
    }

    #[tokio::test]
    async fn its_own_variable_wins_over_the_directory() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let own = binary_in(one.path(), Binary::Etcd, "etcd Version: 3.7.0");
        binary_in(two.path(), Binary::Etcd, "etcd Version: 3.6.0");
        let variables = [("TEST_ASSET_ETCD", own.as_path()), ("KUBEBUILDER_ASSETS", two.path())];
        let (found, _) = search(None, None, &variables, Binary::Etcd).await;
        assert_eq!(found, Ok(Some(own)));
    }

    #[tokio::test]
    async fn a_variable_that_names_nothing_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("kube-apiserver");
        fs::write(&empty, "").unwrap();
        for (path, expected) in [
            (Path::new(""), "it is set but empty"),
            (Path::new("/nowhere/at/all"), "there is no such file"),
            (directory.path(), "is not a file"),
            (empty.as_path(), "is empty"),
        ] {
            let variables = [("TEST_ASSET_KUBE_APISERVER", path)];
            let (found, _) = search(None, None, &variables, Binary::KubeApiserver).await;
            let error = found.unwrap_err();
            assert!(error.starts_with("TEST_ASSET_KUBE_APISERVER"), "{error}");
            assert!(error.contains(expected), "{error}");
        }
        let (found, _) =
            search(None, None, &[("KUBEBUILDER_ASSETS", Path::new(""))], Binary::Etcd).await;
        assert!(found.unwrap_err().contains("KUBEBUILDER_ASSETS"));
    }

    #[tokio::test]
    async fn another_version_than_asked_for_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = binary_in(directory.path(), Binary::KubeApiserver, "Kubernetes v1.36.1");
        let variables = [("TEST_ASSET_KUBE_APISERVER", path.as_path())];
        let (found, _) = search(Some("1.37"), None, &variables, Binary::KubeApiserver).await;
        let error = found.unwrap_err();
        assert!(error.contains("version 1.36.1, but 1.37 was asked for"), "{error}");
        let (found, _) = search(Some("1.36"), None, &variables, Binary::KubeApiserver).await;
        assert_eq!(found, Ok(Some(path)));
    }

    #[tokio::test]
    async fn a_directory_without_controller_manager_is_passed_over_for_that_one_only() {
        let directory = tempfile::tempdir().unwrap();
        let variables = [("KUBEBUILDER_ASSETS", directory.path())];
        let (found, looked_at) =
            search(None, None, &variables, Binary::KubeControllerManager).await;
        assert_eq!(found, Ok(None));
        assert!(looked_at.iter().any(|place| place.contains("has no kube-controller-manager")));
        let (found, _) = search(None, None, &variables, Binary::Etcd).await;
        assert!(found.unwrap_err().contains("there is no such file"));
    }

    #[tokio::test]
    async fn a_store_directory_of_setup_envtest_is_asked_before_it_is_used() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::at(root.path().to_owned());
        let directory = store.directory(&"1.37.2".parse().unwrap());
        fs::create_dir_all(&directory).unwrap();
        let path = binary_in(&directory, Binary::KubeApiserver, "Kubernetes v1.37.2");
        let (found, _) = search(None, Some(&store), &[], Binary::KubeApiserver).await;
        assert_eq!(found, Ok(Some(path)));
        // Half a file, as an interrupted download leaves it.
        binary_in(&directory, Binary::KubeApiserver, "");
        let (found, looked_at) = search(None, Some(&store), &[], Binary::KubeApiserver).await;
        assert_eq!(found, Ok(None));
        assert!(looked_at.iter().any(|place| place.contains("with no version")), "{looked_at:?}");
    }
}
