//! Versions of Kubernetes: those that can be built here, and those that a person asks for.

use std::fmt;
use std::str::FromStr;

use super::AssetError;

/// The control planes whose Go modules are pinned in this crate, oldest first.
pub(crate) const PINNED: &[Pinned] = &[
    Pinned {
        version: Version { major: 1, minor: 34, patch: 4 },
        etcd: "3.6.5",
        etcd_image: "3.6.5-0",
        go_mod: include_str!("../../go/1.34/go.mod"),
        go_sum: include_str!("../../go/1.34/go.sum"),
    },
    Pinned {
        version: Version { major: 1, minor: 35, patch: 4 },
        // Kubernetes 1.35 names 3.6.6, which the Go module proxy does not serve.
        etcd: "3.6.8",
        etcd_image: "3.6.6-0",
        go_mod: include_str!("../../go/1.35/go.mod"),
        go_sum: include_str!("../../go/1.35/go.sum"),
    },
    Pinned {
        version: Version { major: 1, minor: 36, patch: 3 },
        etcd: "3.6.8",
        etcd_image: "3.6.8-0",
        go_mod: include_str!("../../go/1.36/go.mod"),
        go_sum: include_str!("../../go/1.36/go.sum"),
    },
    Pinned {
        version: Version { major: 1, minor: 37, patch: 2 },
        etcd: "3.7.0",
        etcd_image: "3.7.0-0",
        go_mod: include_str!("../../go/1.37/go.mod"),
        go_sum: include_str!("../../go/1.37/go.sum"),
    },
];

/// One pinned control plane.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) version: Version,
    pub(crate) etcd: &'static str,
    /// The tag of the official etcd image: the version, and the build of the image, as in
    /// kubeadm's `DefaultEtcdVersion` (Kubernetes, `cmd/kubeadm/app/constants/constants.go`).
    #[cfg_attr(not(feature = "container"), expect(dead_code, reason = "for images alone"))]
    pub(crate) etcd_image: &'static str,
    pub(crate) go_mod: &'static str,
    pub(crate) go_sum: &'static str,
}

/// A released version of Kubernetes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Version {
    major: u16,
    minor: u16,
    patch: u16,
}

impl Version {
    /// The first number, always 1 so far.
    #[must_use]
    pub fn major(&self) -> u16 {
        self.major
    }

    /// The second number.
    #[must_use]
    pub fn minor(&self) -> u16 {
        self.minor
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = AssetError;

    fn from_str(text: &str) -> Result<Self, AssetError> {
        let bad = || AssetError::BadVersion { text: text.to_owned() };
        let mut numbers = text.strip_prefix('v').unwrap_or(text).split('.');
        let mut next = || numbers.next().and_then(number);
        match (next(), next(), next(), next()) {
            (Some(major), Some(minor), Some(patch), None) => Ok(Self { major, minor, patch }),
            _ => Err(bad()),
        }
    }
}

/// Which versions will do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Requirement {
    /// The caller did not say: the newest pinned one, or whatever the environment names.
    Newest,
    /// Any patch of this minor.
    Minor(u16, u16),
    /// This one.
    Exact(Version),
}

impl Requirement {
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, AssetError> {
        let Some(text) = text else { return Ok(Self::Newest) };
        let bare = text.strip_prefix('v').unwrap_or(text);
        if let Some((major, minor)) = bare.split_once('.')
            && let (Some(major), Some(minor)) = (number(major), number(minor))
        {
            return Ok(Self::Minor(major, minor));
        }
        text.parse().map(Self::Exact)
    }

    /// Whether a binary of this version will do, wherever it came from.
    pub(crate) fn allows(self, version: &Version) -> bool {
        match self {
            Self::Newest => true,
            Self::Minor(major, minor) => (version.major, version.minor) == (major, minor),
            Self::Exact(exact) => *version == exact,
        }
    }

    /// Whether a version of the store will do; there the newest means the newest that is pinned.
    pub(crate) fn allows_in_store(self, version: &Version) -> bool {
        match self {
            Self::Newest => PINNED.last().is_some_and(|pinned| {
                Self::Minor(pinned.version.major, pinned.version.minor).allows(version)
            }),
            other => other.allows(version),
        }
    }

    pub(crate) fn pinned(self) -> Option<&'static Pinned> {
        match self {
            Self::Newest => PINNED.last(),
            other => PINNED.iter().rev().find(|pinned| other.allows(&pinned.version)),
        }
    }

    pub(crate) fn buildable_version(self) -> Result<Version, AssetError> {
        self.pinned().map(|pinned| pinned.version).ok_or_else(|| AssetError::UnknownVersion {
            wanted: self.to_string(),
            known: PINNED.iter().map(|pinned| pinned.version.to_string()).collect(),
        })
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => match PINNED.last() {
                Some(pinned) => write!(f, "{}.{}", pinned.version.major, pinned.version.minor),
                None => f.write_str("any version"),
            },
            Self::Minor(major, minor) => write!(f, "{major}.{minor}"),
            Self::Exact(version) => version.fmt(f),
        }
    }
}

/// Digits only: `u16::from_str` would also take a sign.
fn number(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minor_allows_each_of_its_patches_and_nothing_else() {
        let requirement = Requirement::parse(Some("1.37")).unwrap();
        assert!(requirement.allows(&"1.37.0".parse().unwrap()));
        assert!(requirement.allows(&"v1.37.9".parse().unwrap()));
        assert!(!requirement.allows(&"1.36.2".parse().unwrap()));
        assert!(!Requirement::parse(Some("1.37.2")).unwrap().allows(&"1.37.3".parse().unwrap()));
    }

    #[test]
    fn nonsense_is_named_in_the_error() {
        for text in ["", "one", "1", "1.37.2.4", "1.+7", "1.37-beta", "latest"] {
            let error = Requirement::parse(Some(text)).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn an_unknown_version_lists_the_known_ones() {
        let error = Requirement::parse(Some("1.12")).unwrap().buildable_version().unwrap_err();
        assert!(error.to_string().contains("1.37.2"), "{error}");
    }
}
