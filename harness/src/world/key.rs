//! The keys under which an API server keeps objects, and the names of worlds.

use std::fmt::{self, Display};

/// The API server's default `--etcd-prefix`.
pub(super) const REGISTRY: &str = "/registry/";

/// Directories that are treated apart; that of most resources is their plural.
pub(super) const NAMESPACES: &str = "namespaces";
pub(super) const ROLES: &str = "roles";
pub(super) const ROLE_BINDINGS: &str = "rolebindings";
pub(super) const EVENTS: &str = "events";
pub(super) const RESOURCE_QUOTAS: &str = "resourcequotas";
pub(super) const SECRETS: &str = "secrets";
pub(super) const SERVICES: &str = "services/specs";
pub(super) const CLAIMS: &str = "persistentvolumeclaims";

/// The names of worlds begin so, and all have the same length: one can replace another in place.
pub(super) const WORLD_PREFIX: &str = "lw-";
pub(super) const WORLD_LENGTH: usize = WORLD_PREFIX.len() + 8;

/// A kind of objects, as the API server names it in its paths.
///
/// # Example
///
/// ```
/// use laggard::world::Resource;
///
/// assert_eq!(Resource::new("", "pods").to_string(), "pods");
/// assert_eq!(Resource::new("apps", "statefulsets").to_string(), "statefulsets.apps");
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub struct Resource {
    /// The API group; empty for the core group.
    pub group: String,
    /// The plural, lower case.
    pub plural: String,
}

impl Resource {
    /// The resource `plural` of an API group.
    #[must_use]
    pub fn new(group: impl Into<String>, plural: impl Into<String>) -> Self {
        Self { group: group.into(), plural: plural.into() }
    }

    /// What lives in a directory, given the API version that its objects say they have.
    pub(super) fn of(directory: &str, api_version: &str) -> Self {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        // The exceptions of k8s.io/kubernetes: pkg/kubeapiserver/default_storage_factory_builder.go.
        let plural = match directory {
            SERVICES => "services",
            "services/endpoints" => "endpoints",
            "ingress" => "ingresses",
            "controllers" => "replicationcontrollers",
            _ => directory.rsplit('/').next().unwrap_or(directory),
        };
        Self::new(group, plural)
    }
}

impl Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group.as_str() {
            "" => f.write_str(&self.plural),
            group => write!(f, "{}.{group}", self.plural),
        }
    }
}

/// The parts of a key of a namespaced object, or of a namespace itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct RegistryKey<'a> {
    /// `pods`, `services/specs`, `example.com/widgets`.
    pub(super) directory: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

impl<'a> RegistryKey<'a> {
    /// `None` for everything that belongs to no namespace.
    pub(super) fn parse(key: &'a [u8]) -> Option<Self> {
        let path = std::str::from_utf8(key).ok()?.strip_prefix(REGISTRY)?;
        let directory = directory_of(path)?;
        let rest = &path[directory.len() + 1..];
        match rest.split_once('/') {
            Some((namespace, name)) => Some(Self { directory, namespace, name }),
            None if directory == NAMESPACES => {
                Some(Self { directory, namespace: rest, name: rest })
            }
            None => None,
        }
    }
}

/// `pods`, `services/specs`, `example.com/widgets`: what the keys of one resource have in common, below the prefix.
pub(super) fn directory_of(path: &str) -> Option<&str> {
    let (first, _) = path.split_once('/')?;
    // Groups of custom resources have a dot, which no built-in resource has.
    match first.contains('.') || first == "services" {
        true => {
            let length = first.len() + 1;
            Some(&path[..length + path[length..].find('/')?])
        }
        false => Some(first),
    }
}

/// The key of the namespace object.
pub(super) fn namespace_key(namespace: &str) -> String {
    format!("{REGISTRY}{NAMESPACES}/{namespace}")
}

/// What the keys of a directory's objects in a namespace begin with.
pub(super) fn directory_prefix(directory: &str, namespace: &str) -> String {
    format!("{REGISTRY}{directory}/{namespace}/")
}

/// The key of an object.
pub(super) fn object_key(directory: &str, namespace: &str, name: &str) -> String {
    match directory {
        NAMESPACES => namespace_key(namespace),
        _ => format!("{REGISTRY}{directory}/{namespace}/{name}"),
    }
}

/// Whether a namespace can be a world.
pub(super) fn is_world(namespace: &str) -> bool {
    namespace.len() == WORLD_LENGTH
        && namespace.strip_prefix(WORLD_PREFIX).is_some_and(|rest| {
            rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        })
}

/// The name with these eight characters.
pub(super) fn world_name(start: &str, number: u32) -> String {
    let digits: Vec<u8> = base36(number.into()).collect();
    format!("{WORLD_PREFIX}{start}{}", String::from_utf8_lossy(&digits))
}

/// Four digits to the base 36, the last ones of a number.
pub(super) fn base36(number: u128) -> impl Iterator<Item = u8> {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    (0..4).rev().map(move |place| {
        let digit = number / 36_u128.pow(place) % 36;
        usize::try_from(digit).map_or(b'0', |digit| DIGITS[digit])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_apart_as_the_api_server_puts_them_together() {
        let parsed = |key: &'static str| {
            let key = RegistryKey::parse(key.as_bytes())?;
            Some((key.directory, key.namespace, key.name))
        };
        assert_eq!(parsed("/registry/pods/n/p"), Some(("pods", "n", "p")));
        assert_eq!(parsed("/registry/services/specs/n/s"), Some(("services/specs", "n", "s")));
        assert_eq!(
            parsed("/registry/example.com/widgets/n/w"),
            Some(("example.com/widgets", "n", "w"))
        );
        assert_eq!(parsed("/registry/namespaces/n"), Some(("namespaces", "n", "n")));
        assert_eq!(parsed("/registry/clusterroles/system:x"), None);
        assert_eq!(parsed("/registry/example.com/widgets/cluster-scoped"), None);
        assert_eq!(parsed("/laggard/worlds/n"), None);
        assert_eq!(parsed("compact_rev_key"), None);
    }

    #[test]
    fn every_number_has_a_name_of_its_own() {
        assert_eq!(world_name("abcd", 0), "lw-abcd0000");
        assert_eq!(world_name("abcd", 36 * 36 + 35), "lw-abcd010z");
        assert!(is_world(&world_name("zzzz", u32::MAX)));
        assert!(!is_world("lw-abcd010Z") && !is_world("lw-abcd0000x") && !is_world("default"));
    }
}
