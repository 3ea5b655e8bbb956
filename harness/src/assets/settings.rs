//! Where assets may come from: what the builder, `LAGGARD_*` and setup-envtest's variables say.

use std::ffi::OsString;

use http::{HeaderValue, Uri};

use super::{AssetError, Binary, Version, platform};

/// setup-envtest's own (`--index`), and the only place of the archives that it knows.
const INDEX: &str =
    "https://raw.githubusercontent.com/kubernetes-sigs/controller-tools/HEAD/envtest-releases.yaml";

/// Where Kubernetes publishes its binaries.
const RELEASES: &str = "https://dl.k8s.io";

/// How far the search for assets may go.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Reach {
    /// What is there.
    Installed,
    /// What is there, and what can be built from modules that are there.
    Offline,
    Network,
}

/// What the caller set; the environment fills in the rest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chosen {
    pub(crate) offline: Option<bool>,
    pub(crate) installed_only: Option<bool>,
    pub(crate) index: Option<String>,
    pub(crate) mirror: Option<String>,
}

/// All that is needed to know what may be asked, and whom.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) reach: Reach,
    index: Uri,
    mirror: Option<Uri>,
    /// Whether somebody named a place, and would not want another one instead.
    pub(crate) is_named: bool,
    pub(crate) token: Option<HeaderValue>,
}

impl Settings {
    /// # Errors
    ///
    /// [`AssetError::BadSource`], which names the variable or the setting.
    pub(crate) fn resolve(
        chosen: &Chosen,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, AssetError> {
        let text = |name: &str| -> Result<Option<String>, AssetError> {
            match variable(name).map(OsString::into_string) {
                None => Ok(None),
                Some(Ok(value)) => Ok(Some(value).filter(|value| !value.is_empty())),
                Some(Err(_)) => Err(bad(name, "it is no text")),
            }
        };
        let switch = |name: &str| -> Result<Option<bool>, AssetError> {
            let Some(value) = text(name)? else { return Ok(None) };
            // Go's `strconv.ParseBool`, since half of the variables are setup-envtest's.
            match value.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
                _ => Err(bad(name, &format!("{value:?} is neither true nor false"))),
            }
        };
        let url = |chosen: &Option<String>, setting: &str, name: &str| match chosen {
            Some(value) => parse(setting, value).map(Some),
            None => text(name)?.map(|value| parse(name, &value)).transpose(),
        };
        let installed_only = match chosen.installed_only {
            Some(value) => value,
            None => switch("LAGGARD_INSTALLED_ONLY")?
                .map_or_else(|| switch("ENVTEST_INSTALLED_ONLY"), |value| Ok(Some(value)))?
                .unwrap_or(false),
        };
        let offline = match chosen.offline {
            Some(value) => value,
            None => switch("LAGGARD_OFFLINE")?.unwrap_or(false),
        };
        let index = url(&chosen.index, "the index", "LAGGARD_ASSETS_INDEX")?;
        let mirror = url(&chosen.mirror, "the mirror", "LAGGARD_ASSETS_MIRROR")?;
        let token = text("LAGGARD_ASSETS_TOKEN")?
            .map(|token| {
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                    .map_err(|_| bad("LAGGARD_ASSETS_TOKEN", "it does not fit into a header"))?;
                value.set_sensitive(true);
                Ok(value)
            })
            .transpose()?;
        Ok(Self {
            reach: match (installed_only, offline) {
                (true, _) => Reach::Installed,
                (false, true) => Reach::Offline,
                (false, false) => Reach::Network,
            },
            is_named: index.is_some() || mirror.is_some(),
            index: match (index, &mirror) {
                (Some(index), _) => index,
                (None, Some(mirror)) => below(mirror, "envtest-releases.yaml"),
                (None, None) => Uri::from_static(INDEX),
            },
            mirror,
            token,
        })
    }

    pub(crate) fn index(&self) -> &Uri {
        &self.index
    }

    /// The place that decides what is downloaded, for people.
    pub(crate) fn source(&self) -> &Uri {
        self.mirror.as_ref().unwrap_or(&self.index)
    }

    /// Where an archive is that the index calls `name`, and says is at `link`.
    pub(crate) fn archive(&self, name: &str, link: &str) -> Option<Uri> {
        match &self.mirror {
            Some(mirror) => Some(below(mirror, name)),
            None => against(&self.index, link),
        }
    }

    /// Where Kubernetes' own release has a binary; `None` where it has none for such machines.
    pub(crate) fn release(&self, version: &Version, binary: Binary) -> Option<Uri> {
        let (os, architecture) = platform();
        if os != "linux" {
            return None; // the servers are published for Linux alone
        }
        let path = format!("release/v{version}/bin/{os}/{architecture}/{binary}");
        match &self.mirror {
            Some(mirror) => Some(below(mirror, &path)),
            None => Some(below(&Uri::from_static(RELEASES), &path)),
        }
    }

    /// Whether the token may be sent there: to the place that somebody named, and nowhere else.
    pub(crate) fn trusts(&self, url: &Uri) -> bool {
        let same =
            |place: &Uri| (place.scheme(), place.authority()) == (url.scheme(), url.authority());
        same(&self.index) || self.mirror.as_ref().is_some_and(same)
    }
}

/// The address of `reference` as it stands in the page at `base`.
pub(crate) fn against(base: &Uri, reference: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let text = if reference.contains("://") {
        reference.to_owned()
    } else if let Some(rest) = reference.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if reference.starts_with('/') {
        format!("{scheme}://{authority}{reference}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{reference}")
    };
    let url: Uri = text.parse().ok()?;
    (matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some()).then_some(url)
}

/// `path` in the folder `base`.
fn below(base: &Uri, path: &str) -> Uri {
    let folder = base.path().trim_end_matches('/');
    against(base, &format!("{folder}/{path}")).unwrap_or_else(|| base.clone())
}

fn parse(name: &str, value: &str) -> Result<Uri, AssetError> {
    let url: Uri = value.parse().map_err(|_| bad(name, "it is no URL"))?;
    // The value is not shown: what is in front of an `@` is a secret.
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(bad(name, "it has credentials in it; LAGGARD_ASSETS_TOKEN is for these"));
    }
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
        return Err(bad(name, &format!("{value:?} is no http or https URL")));
    }
    Ok(url)
}

fn bad(name: &str, problem: &str) -> AssetError {
    AssetError::BadSource { source_name: name.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(chosen: Chosen, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        };
        Settings::resolve(&chosen, &variable).map_err(|error| error.to_string())
    }

    fn archive(settings: &Settings) -> String {
        settings.archive("e.tar.gz", "v1/e.tar.gz").unwrap().to_string()
    }

    #[test]
    fn the_builder_wins_over_our_variable_and_that_over_setup_envtests() {
        let reach = |chosen, variables: &[(&str, &str)]| resolve(chosen, variables).unwrap().reach;
        let both = [("ENVTEST_INSTALLED_ONLY", "true"), ("LAGGARD_INSTALLED_ONLY", "0")];
        assert_eq!(reach(Chosen::default(), &[]), Reach::Network);
        assert_eq!(reach(Chosen::default(), &both[..1]), Reach::Installed);
        assert_eq!(reach(Chosen::default(), &both), Reach::Network);
        let chosen = Chosen { installed_only: Some(true), ..Chosen::default() };
        assert_eq!(reach(chosen, &both), Reach::Installed);
        assert_eq!(reach(Chosen::default(), &[("LAGGARD_OFFLINE", "1")]), Reach::Offline);
        let chosen = Chosen { offline: Some(false), ..Chosen::default() };
        assert_eq!(reach(chosen, &[("LAGGARD_OFFLINE", "1")]), Reach::Network);
    }

    #[test]
    fn a_mirror_has_everything_and_an_index_says_where_the_rest_is() {
        let version = "1.36.2".parse().unwrap();
        let binary = Binary::KubeControllerManager;
        let usual = resolve(Chosen::default(), &[]).unwrap();
        assert!(!usual.is_named);
        let release = usual.release(&version, binary).unwrap().to_string();
        assert!(release.starts_with("https://dl.k8s.io/release/v1.36.2/bin/linux/"), "{release}");

        let index = [("LAGGARD_ASSETS_INDEX", "http://in.house/a/index.yaml")];
        let indexed = resolve(Chosen::default(), &index).unwrap();
        assert!(indexed.is_named);
        assert_eq!(archive(&indexed), "http://in.house/a/v1/e.tar.gz");
        assert_eq!(indexed.release(&version, binary).unwrap().to_string(), release);

        for base in ["http://in.house/a", "http://in.house/a/"] {
            let mirrored = resolve(Chosen::default(), &[("LAGGARD_ASSETS_MIRROR", base)]).unwrap();
            assert_eq!(mirrored.index().to_string(), "http://in.house/a/envtest-releases.yaml");
            assert_eq!(archive(&mirrored), "http://in.house/a/e.tar.gz");
            let release = mirrored.release(&version, binary).unwrap().to_string();
            assert!(release.starts_with("http://in.house/a/release/v1.36.2/bin/"), "{release}");
        }
    }

    #[test]
    fn a_setting_that_says_nothing_usable_is_named_and_secrets_are_not_shown() {
        for (name, value, expected) in [
            ("LAGGARD_OFFLINE", "maybe", "\"maybe\" is neither true nor false"),
            ("ENVTEST_INSTALLED_ONLY", "2", "neither"),
            ("LAGGARD_ASSETS_INDEX", "not a url", "no URL"),
            ("LAGGARD_ASSETS_MIRROR", "ftp://x/y", "no http or https URL"),
            ("LAGGARD_ASSETS_MIRROR", "/srv/mirror", "no http or https URL"),
            ("LAGGARD_ASSETS_MIRROR", "https://me:hunter2@x/y", "LAGGARD_ASSETS_TOKEN"),
            ("LAGGARD_ASSETS_TOKEN", "line\nbreak", "does not fit"),
        ] {
            let error = resolve(Chosen::default(), &[(name, value)]).unwrap_err();
            assert!(error.starts_with(name), "{error}");
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_token_goes_to_the_named_place_alone() {
        let variables = [("LAGGARD_ASSETS_MIRROR", "https://in.house/a")];
        let settings = resolve(Chosen::default(), &variables).unwrap();
        let trusts = |url: &str| settings.trusts(&url.parse().unwrap());
        assert!(trusts("https://in.house/other"));
        for url in ["http://in.house/a", "https://in.house:444/a", "https://elsewhere/a"] {
            assert!(!trusts(url), "{url}");
        }
    }

    #[test]
    fn an_address_is_read_as_it_stands_in_its_page() {
        let base = Uri::from_static("https://a.b/c/d.yaml?x=1");
        for (reference, expected) in [
            ("e", Some("https://a.b/c/e")),
            ("/e/f", Some("https://a.b/e/f")),
            ("//g/h", Some("https://g/h")),
            ("http://g:1/h?i", Some("http://g:1/h?i")),
            ("file:///etc/passwd", None),
            ("e f", None),
        ] {
            let found = against(&base, reference).map(|url| url.to_string());
            assert_eq!(found.as_deref(), expected, "{reference}");
        }
    }
}
