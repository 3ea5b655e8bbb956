//! The index of envtest's archives, as controller-tools publishes it and setup-envtest reads it.

use std::collections::BTreeMap;

use http::Uri;
use serde::Deserialize;

use super::checksum::Checksum;
use super::fetch::{FetchError, Fetcher};
use super::{Selector, Version, platform};

/// The real one has 80 KB.
const LIMIT_BYTES: usize = 8 << 20;

/// The archives for this kind of machine.
#[derive(Debug)]
pub(crate) struct Index {
    archives: BTreeMap<Version, Archive>,
}

/// One archive: etcd, kube-apiserver and kubectl of one version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Archive {
    pub(crate) name: String,
    link: String,
    hash: String,
}

#[derive(Deserialize)]
struct Page {
    releases: BTreeMap<String, BTreeMap<String, Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    hash: String,
    #[serde(rename = "selfLink")]
    self_link: String,
}

impl Index {
    pub(crate) async fn fetch(fetcher: &Fetcher<'_>) -> Result<Self, FetchError> {
        let url = fetcher.settings().index();
        let page = fetcher.page("the index of releases", url, LIMIT_BYTES).await?;
        let wrong = |problem: String| FetchError::WrongContent { problem };
        let text = str::from_utf8(&page).map_err(|_| wrong("it is no text".to_owned()))?;
        Self::parse(text).map_err(wrong)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let page: Page = serde_saphyr::from_str(text).map_err(|error| {
            let begins: String = text.trim_start().chars().take(40).collect();
            if begins.starts_with('<') {
                format!(
                    "it is no index of releases but a page of HTML ({begins:?}…); \
                     is there a login or a proxy in between"
                )
            } else {
                let problem = error.to_string();
                let problem = problem.lines().next().unwrap_or_default();
                format!("it is no index of releases; it begins {begins:?}, and: {problem}")
            }
        })?;
        let (os, architecture) = platform();
        let archives = page
            .releases
            .into_iter()
            .filter_map(|(version, mut archives)| {
                let name = format!("envtest-{version}-{os}-{architecture}.tar.gz");
                let Entry { hash, self_link } = archives.remove(&name)?;
                Some((version.parse().ok()?, Archive { name, link: self_link, hash }))
            })
            .collect();
        Ok(Self { archives })
    }

    /// The newest version that will do.
    pub(crate) fn newest(&self, selector: &Selector) -> Option<(Version, &Archive)> {
        self.archives
            .iter()
            .rev()
            .find(|(version, _)| selector.allows_unnamed(version))
            .map(|(version, archive)| (*version, archive))
    }

    pub(crate) fn versions(&self) -> impl Iterator<Item = Version> {
        self.archives.keys().copied()
    }
}

impl Archive {
    /// Where it is.
    pub(crate) fn url(&self, fetcher: &Fetcher<'_>) -> Result<Uri, FetchError> {
        fetcher.settings().archive(&self.name, &self.link).ok_or_else(|| FetchError::WrongContent {
            problem: format!("its link {:?} is no URL", self.link),
        })
    }

    pub(crate) fn checksum(&self) -> Result<Checksum, FetchError> {
        Checksum::parse(&self.hash).ok_or_else(|| FetchError::WrongContent {
            problem: format!("the index has no usable checksum for it: {:?}", self.hash),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(versions: &[&str]) -> String {
        let (os, architecture) = platform();
        let mut page = "releases:\n".to_owned();
        for version in versions {
            page.push_str(&format!(
                "  {version}:\n    envtest-{version}-plan9-mips.tar.gz:\n      hash: aa\n      \
                 selfLink: https://x/p\n    envtest-{version}-{os}-{architecture}.tar.gz:\n      \
                 hash: bb\n      selfLink: https://x/{version}\n"
            ));
        }
        page
    }

    #[test]
    fn the_newest_that_will_do_is_chosen_and_of_prereleases_the_named_one() {
        let index =
            Index::parse(&page(&["v1.36.0", "v1.36.2", "v1.35.0", "v1.38.0-rc.1", "odd"])).unwrap();
        let newest = |text: &str| {
            let selector: Selector = text.parse().unwrap();
            index.newest(&selector).map(|(version, archive)| (version.to_string(), &*archive.link))
        };
        assert_eq!(newest("1.36"), Some(("1.36.2".to_owned(), "https://x/v1.36.2")));
        assert_eq!(newest("<1.36.2"), Some(("1.36.0".to_owned(), "https://x/v1.36.0")));
        assert_eq!(newest("latest").unwrap().0, "1.36.2");
        assert_eq!(newest("1.38.0-rc.1").unwrap().0, "1.38.0-rc.1");
        assert_eq!(newest("1.38"), None);
    }

    #[test]
    fn other_machines_archives_are_passed_over() {
        let text = "releases:\n  v1.36.0:\n    envtest-v1.36.0-plan9-mips.tar.gz:\n      \
                    hash: aa\n      selfLink: https://x/p\n";
        assert_eq!(Index::parse(text).unwrap().versions().count(), 0);
    }

    #[test]
    fn what_is_no_index_is_refused_with_its_beginning() {
        for (text, expected) in [
            ("<!DOCTYPE html><html><body>Sign in</body></html>", "page of HTML"),
            ("<html>\n<head><title>a: b</title></head>", "page of HTML"),
            ("404: Not Found", "begins \"404: Not Found\""),
            ("", "no index"),
            ("releases: [1, 2]", "no index"),
            ("{\"message\": \"rate limit\"}", "rate limit"),
        ] {
            let problem = Index::parse(text).unwrap_err();
            assert!(problem.contains(expected), "{text:?}: {problem}");
        }
    }
}
