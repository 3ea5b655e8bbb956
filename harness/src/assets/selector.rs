//! Selectors: how a person says which versions of Kubernetes will do, in setup-envtest's words.

use std::fmt;
use std::str::FromStr;

use super::AssetError;
use super::version::{PINNED, Pinned, Version, number};

/// Which versions of Kubernetes will do.
///
/// | text | what it allows |
/// |---|---|
/// | `1.36.1` | this one, `1.37.0-rc.1` and its like included |
/// | `1.36`, `1.36.x`, `1.36.*` | every released patch of that minor |
/// | `~1.36.1` | 1.36.1 and the later patches of its minor |
/// | `<1.36`, `<=1.36.1` | what is older, or not newer |
/// | `latest` | the newest release that the index has; without a network, that is known here |
/// | `latest-on-disk` | the newest release in the store |
///
/// Of the versions that are there, the newest one is taken; a trailing `!` asks the index for a
/// newer one first. A pre-release is allowed by its exact name alone.
///
/// Source: setup-envtest, `versions/parse.go` of controller-runtime.
///
/// # Example
///
/// ```
/// use laggard::assets::{Selector, Version};
///
/// let selector: Selector = "~1.36.2".parse()?;
/// let version: Version = "1.36.3".parse()?;
/// assert!(selector.allows(&version));
/// # Ok::<(), laggard::assets::AssetError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Selector {
    set: Set,
    asks_index: bool,
    on_disk: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Set {
    /// The caller did not say: the newest pinned minor, or whatever the environment names.
    Unsaid,
    /// Any release.
    Released,
    /// Any patch of this minor.
    Minor(u16, u16),
    Exact(Version),
    /// This patch or a later one of its minor.
    From(Version),
    Below(Version),
    AtMost(Version),
}

impl Selector {
    /// Every version, pre-releases included.
    pub const ANY: Self = Self::UNSAID;

    pub(crate) const UNSAID: Self = Self { set: Set::Unsaid, asks_index: false, on_disk: false };

    pub(crate) fn exactly(version: Version) -> Self {
        Self { set: Set::Exact(version), ..Self::UNSAID }
    }

    pub(crate) fn parse(text: Option<&str>) -> Result<Self, AssetError> {
        text.map_or(Ok(Self::UNSAID), str::parse)
    }

    /// Whether this version will do.
    #[must_use]
    pub fn allows(&self, version: &Version) -> bool {
        let of_minor = |major, minor| version.is_release() && version.is_of_minor(major, minor);
        match self.set {
            Set::Unsaid => true,
            Set::Released => version.is_release(),
            Set::Minor(major, minor) => of_minor(major, minor),
            Set::Exact(exact) => *version == exact,
            Set::From(least) => of_minor(least.major(), least.minor()) && *version >= least,
            Set::Below(bound) => version.is_release() && *version < bound,
            Set::AtMost(bound) => version.is_release() && *version <= bound,
        }
    }

    /// Whether a version that nobody named, of the store or the index, will do: where the caller
    /// did not say, the newest minor that this crate knows.
    pub(crate) fn allows_unnamed(&self, version: &Version) -> bool {
        match (self.set, PINNED.last()) {
            (Set::Unsaid, Some(pinned)) => {
                version.is_release()
                    && version.is_of_minor(pinned.version.major(), pinned.version.minor())
            }
            _ => self.allows(version),
        }
    }

    /// Whether the index is asked although a version that will do is there.
    pub(crate) fn asks_index(&self) -> bool {
        self.asks_index
    }

    /// Whether only what is there will do.
    pub(crate) fn is_on_disk(&self) -> bool {
        self.on_disk
    }

    /// Whether the caller left it open.
    pub(crate) fn is_unsaid(&self) -> bool {
        self.set == Set::Unsaid
    }

    pub(crate) fn exact(&self) -> Option<Version> {
        match self.set {
            Set::Exact(version) => Some(version),
            _ => None,
        }
    }

    /// The newest control plane that will do and can be built.
    pub(crate) fn pinned(&self) -> Option<&'static Pinned> {
        PINNED.iter().rev().find(|pinned| self.allows_unnamed(&pinned.version))
    }
}

impl FromStr for Selector {
    type Err = AssetError;

    fn from_str(text: &str) -> Result<Self, AssetError> {
        let bad = || AssetError::BadVersion { text: text.to_owned() };
        let (bare, asks_index) = match text.strip_suffix('!') {
            Some(bare) => (bare, true),
            None => (text, false),
        };
        let set = match bare {
            "latest" => return Ok(Self { set: Set::Released, asks_index: true, on_disk: false }),
            "latest-on-disk" if !asks_index => {
                return Ok(Self { set: Set::Released, asks_index, on_disk: true });
            }
            _ => {
                if let Some(bound) = bare.strip_prefix("<=") {
                    match expression(bound).ok_or_else(bad)? {
                        Set::Minor(major, minor) => Set::Below(Version::new(
                            major,
                            minor.checked_add(1).ok_or_else(bad)?,
                            0,
                        )),
                        Set::Exact(version) => Set::AtMost(version),
                        _ => return Err(bad()),
                    }
                } else if let Some(bound) = bare.strip_prefix('<') {
                    match expression(bound).ok_or_else(bad)? {
                        Set::Minor(major, minor) => Set::Below(Version::new(major, minor, 0)),
                        Set::Exact(version) => Set::Below(version),
                        _ => return Err(bad()),
                    }
                } else if let Some(least) = bare.strip_prefix('~') {
                    match expression(least).ok_or_else(bad)? {
                        Set::Exact(version) => Set::From(version),
                        minor => minor,
                    }
                } else {
                    expression(bare).ok_or_else(bad)?
                }
            }
        };
        Ok(Self { set, asks_index, on_disk: false })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.set, PINNED.last()) {
            (Set::Unsaid, Some(pinned)) => {
                write!(f, "{}.{}", pinned.version.major(), pinned.version.minor())
            }
            (Set::Unsaid, None) => f.write_str("any version"),
            (Set::Released, _) if self.on_disk => f.write_str("latest-on-disk"),
            (Set::Released, _) => f.write_str("latest"),
            (Set::Minor(major, minor), _) => write!(f, "{major}.{minor}"),
            (Set::Exact(version), _) => version.fmt(f),
            (Set::From(version), _) => write!(f, "~{version}"),
            (Set::Below(version), _) => write!(f, "<{version}"),
            (Set::AtMost(version), _) => write!(f, "<={version}"),
        }
    }
}

/// `1.36`, `1.36.x`, `1.36.*` or a version.
fn expression(text: &str) -> Option<Set> {
    let bare = text.strip_prefix('v').unwrap_or(text);
    let series = bare.strip_suffix(".x").or_else(|| bare.strip_suffix(".*")).unwrap_or(bare);
    if let Some((major, minor)) = series.split_once('.')
        && let (Some(major), Some(minor)) = (number(major), number(minor))
    {
        return Some(Set::Minor(major, minor));
    }
    bare.parse().ok().map(Set::Exact)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of these, those that a selector allows.
    fn allowed(selector: &str) -> Vec<String> {
        let selector: Selector = selector.parse().unwrap();
        ["1.35.4", "1.36.0-rc.1", "1.36.0", "1.36.1", "1.36.3", "1.37.0-alpha.2", "1.37.0"]
            .into_iter()
            .filter(|version| selector.allows(&version.parse().unwrap()))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn each_form_allows_what_setup_envtest_says() {
        let minor = ["1.36.0", "1.36.1", "1.36.3"];
        for text in ["1.36", "v1.36", "1.36.x", "1.36.*", "1.36!", "~1.36", "~1.36.0"] {
            assert_eq!(allowed(text), minor, "{text}");
        }
        assert_eq!(allowed("1.36.1"), ["1.36.1"]);
        assert_eq!(allowed("1.36.1!"), ["1.36.1"]);
        assert_eq!(allowed("~1.36.1"), ["1.36.1", "1.36.3"]);
        assert_eq!(allowed("~1.36.2!"), ["1.36.3"]);
        assert_eq!(allowed("<1.36"), ["1.35.4"]);
        assert_eq!(allowed("<=1.36"), ["1.35.4", "1.36.0", "1.36.1", "1.36.3"]);
        assert_eq!(allowed("<1.36.1"), ["1.35.4", "1.36.0"]);
        assert_eq!(allowed("<=1.36.1"), ["1.35.4", "1.36.0", "1.36.1"]);
        for text in ["latest", "latest!", "latest-on-disk"] {
            assert_eq!(allowed(text), ["1.35.4", "1.36.0", "1.36.1", "1.36.3", "1.37.0"], "{text}");
        }
    }

    #[test]
    fn a_prerelease_is_allowed_by_its_exact_name_alone() {
        assert_eq!(allowed("1.37.0-alpha.2"), ["1.37.0-alpha.2"]);
        assert_eq!(allowed("v1.36.0-rc.1"), ["1.36.0-rc.1"]);
    }

    #[test]
    fn the_mark_and_latest_ask_the_index() {
        for (text, asks) in
            [("1.36", false), ("1.36!", true), ("latest", true), ("latest-on-disk", false)]
        {
            assert_eq!(text.parse::<Selector>().unwrap().asks_index(), asks, "{text}");
        }
    }

    #[test]
    fn nonsense_is_named_in_the_error() {
        for text in [
            "",
            "one",
            "1",
            "1.37.2.4",
            "1.+7",
            "1.37-beta",
            "newest",
            "1.x",
            "1.x.2",
            "~",
            "<",
            ">1.36",
            "~1.36.x.y",
            "!",
            "latest-on-disk!",
            "1.36.1 ",
            "<65535.65535.x.",
        ] {
            let error = text.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn where_nobody_said_a_named_version_will_do_and_of_the_others_the_newest_minor() {
        let old: Version = "1.20.0".parse().unwrap();
        let pinned = PINNED.last().unwrap().version;
        assert!(Selector::UNSAID.allows(&old));
        assert!(!Selector::UNSAID.allows_unnamed(&old));
        assert!(Selector::UNSAID.allows_unnamed(&pinned));
        assert_eq!(Selector::UNSAID.pinned().unwrap().version, pinned);
    }

    #[test]
    fn a_selector_is_shown_in_a_form_that_means_the_same() {
        for text in ["1.36", "1.36.1", "~1.36.1", "<1.36.0", "<=1.36.1", "latest"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }
}
