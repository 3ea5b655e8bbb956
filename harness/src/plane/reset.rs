//! Putting a plane back to a moment, without a restart.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use kube::{Client, client::ConfigExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::{Plane, PlaneError, Readiness, ready::Probe};
use crate::ask::{ask, if_found, review};
use crate::manifests::{serves_resource, tells_resource, tells_version};
use crate::world::{Difference, Registry, WorldError, directory_of};

/// What is awaited takes milliseconds; a crowded machine takes longer.
const LIMIT: Duration = Duration::from_secs(30);

/// What the server knows has no event to offer, so it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(2);

const CRDS: &str = "apiextensions.k8s.io/customresourcedefinitions";
const NAMESPACES: &str = "namespaces";

/// Roles that apply in a namespace, and those that apply everywhere, each with the bindings.
const RBAC: [(&str, &str, &str); 2] =
    [("roles", "rolebindings", "namespaces/default/"), ("clusterroles", "clusterrolebindings", "")];

/// All objects of a plane as they were at one moment: [`Plane::moment`], [`Plane::start_moment`].
///
/// It is kept in memory, secrets included; it is small (the default objects of a plane are some 0.3 MB). Clones are
/// whole copies.
#[derive(Clone, Debug)]
pub struct PlaneMoment {
    registry: Registry,
    /// The authority of the plane's server, which no other plane has.
    authority: Option<Vec<Vec<u8>>>,
}

impl PlaneMoment {
    /// How many objects there were.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.registry.len()
    }
}

/// What a [reset](Plane::reset) has done.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Reset {
    /// The keys in etcd of objects that had been made since, and are gone.
    pub deleted: Vec<String>,
    /// The keys of objects that had been changed or deleted since, and are as they were, UID included.
    pub restored: Vec<String>,
}

impl Reset {
    /// What no reset touches, in words.
    pub const LEFT_ALONE: [&str; 7] = [
        "Events",
        "leases in kube-system, and what the API server writes about itself: the Service kubernetes, its address and \
         endpoints among it",
        "APIServices of custom resources, which the API server makes and removes itself, after the definitions",
        "resource versions, which go on: an object that was put back has a new one",
        "watches that are open: they see the way back as changes",
        "whatever clients and controllers remember",
        "files: the audit log and the servers' logs",
    ];
}

impl Plane {
    /// All objects of the plane as they are now, to come back to with [`reset`](Self::reset).
    ///
    /// Waits until the API server has made what it makes for itself (the default roles, up to 1.5 s after a start at
    /// [`Readiness::FirstStep`]), since a reset would remove what comes later. Waits for 30 s at most, wall clock. Dropping
    /// the future is harmless.
    ///
    /// # Errors
    ///
    /// If etcd cannot be read, or the API server is not ready within the limit.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn example() -> anyhow::Result<()> {
    /// use k8s_openapi::api::core::v1::Namespace;
    /// use kube::Api;
    /// use laggard::Plane;
    ///
    /// let plane = Plane::builder().start().await?;
    /// let fresh = plane.moment().await?;
    /// let name = plane.namespace("mine").await?;
    /// let reset = plane.reset(&fresh).await?;
    /// assert!(reset.deleted.contains(&format!("/registry/namespaces/{name}")));
    /// assert!(Api::<Namespace>::all(plane.client()?).get_opt(&name).await?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn moment(&self) -> Result<PlaneMoment, PlaneError> {
        let attempt = "take a moment of the plane";
        self.complete().await.map_err(|error| PlaneError::new(attempt, error))?;
        self.read(attempt, None).await
    }

    /// The moment at which the start was over: with the custom resource definitions of the builder, and nothing that came
    /// later.
    ///
    /// It is read when it is asked for, from what etcd keeps of the past, which the API server forgets after five minutes
    /// or more; [`moment`](Self::moment) right after the start is good for ever.
    ///
    /// # Errors
    ///
    /// If the plane was not started with [`Readiness::Full`]: the API server was still making its own objects. If etcd
    /// has forgotten that moment, or cannot be read.
    pub async fn start_moment(&self) -> Result<PlaneMoment, PlaneError> {
        let attempt = "read the moment of the plane's start";
        let revision = self.start_revision.ok_or_else(|| {
            let why = "it was not noted: the plane was not started with Readiness::Full, so its server was still making \
                       objects of its own, or its etcd could not be asked; start it so, or name a moment with \
                       Plane::moment";
            PlaneError::new(attempt, why)
        })?;
        self.read(attempt, Some(revision)).await
    }

    /// Puts all objects back to a moment of this plane, whatever their kind: what was made since is gone at once, without
    /// finalizers and grace; what was changed or deleted is as it was. Some hundred objects take some hundred
    /// milliseconds.
    ///
    /// When it returns, the server serves and discovers the custom resources of that moment and no others, knows which namespaces there
    /// are, and its authorizer goes by the roles of that moment. Controllers of the plane are paused meanwhile; what they do
    /// afterwards about what they remember is theirs. [`Reset::LEFT_ALONE`] says what is not put back.
    ///
    /// Stop the clients that write first, and explorations: their worlds would go as well. Dropping the future leaves the
    /// plane somewhere on the way; resetting it again brings it there.
    ///
    /// # Errors
    ///
    /// If the moment is of another plane, etcd cannot be asked, somebody goes on writing, or the server does not show the
    /// moment within 30 s.
    pub async fn reset(&self, to: &PlaneMoment) -> Result<Reset, PlaneError> {
        let attempt = "reset the plane";
        if to.authority != self.config.root_cert {
            return Err(PlaneError::new(attempt, "the moment is one of another plane"));
        }
        let etcd = self.etcd()?;
        let paused = self.pause_for_reset().await?;
        let put_back = to.registry.put_back(&etcd).await;
        let shown = match &put_back {
            Ok(differences) => self.shows(differences, &to.registry).await,
            Err(_) => Ok(()),
        };
        if paused {
            self.resume_controllers().await?;
        }
        let differences = put_back.map_err(|error| PlaneError::new(attempt, error))?;
        shown.map_err(|error| PlaneError::new(attempt, error))?;
        let mut reset = Reset::default();
        for Difference { key, has, .. } in differences {
            match has {
                Some(_) => reset.restored.push(key),
                None => reset.deleted.push(key),
            }
        }
        tracing::info!(
            deleted = reset.deleted.len(),
            restored = reset.restored.len(),
            revision = to.registry.revision(),
            "a plane was put back"
        );
        Ok(reset)
    }

    async fn read(&self, attempt: &str, at: Option<i64>) -> Result<PlaneMoment, PlaneError> {
        let read: Result<_, WorldError> = Registry::read(&self.etcd()?, at).await;
        let registry = read.map_err(|error| PlaneError::new(attempt, error))?;
        Ok(PlaneMoment { registry, authority: self.config.root_cert.clone() })
    }

    /// Whether there were controllers to pause.
    async fn pause_for_reset(&self) -> Result<bool, PlaneError> {
        if self.controllers.is_empty() || *self.controllers_paused.lock().await {
            return Ok(false);
        }
        self.pause_controllers().await?;
        Ok(true)
    }

    /// Waits until the server has made its own objects.
    async fn complete(&self) -> Result<(), BoxError> {
        let Some(address) = self.backend.apiserver() else {
            return Err("it is not running".into());
        };
        let probe = Probe::new(address, self.config.rustls_client_config()?);
        let ready = tokio::time::timeout(LIMIT, probe.ready(Readiness::Full)).await;
        ready.map(drop).map_err(|_| {
            let last = probe.last_answer();
            format!("the API server is not ready after {LIMIT:?}; last: {last}").into()
        })
    }

    /// Waits until the server shows what etcd has again.
    async fn shows(&self, differences: &[Difference], now: &Registry) -> Result<(), BoxError> {
        let server = Server { client: self.client()?, deadline: Instant::now() + LIMIT };
        let of = |directory| {
            differences.iter().filter(move |difference| directory_of(&difference.key) == directory)
        };
        let mut versions = BTreeMap::new();
        for definition in of(CRDS) {
            for resource in [&definition.had, &definition.has].into_iter().flatten() {
                versions.extend(served(resource)?.into_iter().map(|it| (it.version(), false)));
            }
            server.serves(definition).await?;
        }
        // A version may have resources of other definitions, which were not changed.
        for definition in now.of(CRDS) {
            for resource in served(definition)? {
                versions.entry(resource.version()).and_modify(|told| *told = true);
            }
        }
        for ((group, version), told) in versions {
            server.tells_version(&group, &version, told).await?;
        }
        for is_there in [false, true] {
            // Whoever has heard of the last one has heard of those before.
            let last = of(NAMESPACES).rfind(|it| it.has.is_some() == is_there);
            if let Some(namespace) = last {
                server.knows(&namespace.key, is_there).await?;
            }
        }
        for (roles, bindings, place) in RBAC {
            if of(roles).chain(of(bindings)).next().is_some() {
                server.authorizes(roles, bindings, place).await?;
            }
        }
        Ok(())
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The server that is asked what it shows.
struct Server {
    client: Client,
    deadline: Instant,
}

impl Server {
    /// Until the custom resources of a definition are served and told of as it says, or not at all.
    async fn serves(&self, definition: &Difference) -> Result<(), BoxError> {
        let has = definition.has.as_deref().map_or(Ok(Vec::new()), served)?;
        let had = definition.had.as_deref().map_or(Ok(Vec::new()), served)?;
        let gone = had.into_iter().filter(|it| !has.contains(it)).map(|it| (it, false));
        // Of a changed one it cannot be told whether the change was seen.
        let back = has.iter().cloned().map(|it| (it, true));
        for (resource, served) in gone.chain(back) {
            let Resource { group, version, plural } = &resource;
            self.until(&format!("/apis/{group}/{version}/{plural}, served: {served}"), || async {
                let client = &self.client;
                Ok(serves_resource(client, group, version, plural).await? == served
                    && tells_resource(client, group, version, plural).await? == served)
            })
            .await?;
        }
        Ok(())
    }

    /// Until a version of a group is among those of the server, or is not.
    async fn tells_version(&self, group: &str, version: &str, told: bool) -> Result<(), BoxError> {
        self.until(&format!("{group}/{version} in /apis: {told}"), || async {
            Ok(tells_version(&self.client, group, version).await? == told)
        })
        .await
    }

    /// Until objects can be made in a namespace, or cannot.
    async fn knows(&self, key: &str, is_there: bool) -> Result<(), BoxError> {
        let name = key.rsplit('/').next().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{name}/configmaps?dryRun=All");
        let map = json!({ "metadata": { "generateName": "laggard-" } });
        self.until(&format!("the namespace {name}, known: {is_there}"), || async {
            let made = ask(&self.client, Method::POST, &path, Some(&map)).await;
            Ok(if_found(made)?.is_some() == is_there)
        })
        .await
    }

    /// Until the authorizer has heard of a role and a binding that come after all that was put back. They are removed
    /// again, and their removal is awaited as well.
    async fn authorizes(&self, roles: &str, bindings: &str, place: &str) -> Result<(), BoxError> {
        let name = format!("laggard-reset-{}", uuid::Uuid::new_v4().simple());
        let root = "/apis/rbac.authorization.k8s.io/v1/";
        let kind = if place.is_empty() { "ClusterRole" } else { "Role" };
        let role = json!({
            "metadata": { "name": name },
            "rules": [{ "apiGroups": ["laggard.local"], "resources": [name], "verbs": ["get"] }],
        });
        let binding = json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name }],
        });
        let spec = json!({ "user": name, "resourceAttributes": {
            "group": "laggard.local", "resource": name, "verb": "get", "namespace": "default",
        } });
        let (roles, bindings) =
            (format!("{root}{place}{roles}"), format!("{root}{place}{bindings}"));
        let client = &self.client;
        ask(client, Method::POST, &roles, Some(&role)).await?;
        ask(client, Method::POST, &bindings, Some(&binding)).await?;
        for allowed in [true, false] {
            if !allowed {
                for of in [&bindings, &roles] {
                    ask(client, Method::DELETE, &format!("{of}/{name}"), None).await?;
                }
            }
            self.until(&format!("the {kind} {name}, applied: {allowed}"), || async {
                Ok((review(client, &spec).await?["allowed"] == true) == allowed)
            })
            .await?;
        }
        Ok(())
    }

    async fn until<F>(&self, awaited: &str, mut holds: impl FnMut() -> F) -> Result<(), BoxError>
    where
        F: Future<Output = Result<bool, kube::Error>>,
    {
        loop {
            match tokio::time::timeout_at(self.deadline, holds()).await {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => tokio::time::sleep(ASK_AGAIN).await,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    return Err(
                        format!("the API server does not show {awaited} after {LIMIT:?}").into()
                    );
                }
            }
        }
    }
}

/// A custom resource, in one version.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Resource {
    group: String,
    version: String,
    plural: String,
}

impl Resource {
    fn version(&self) -> (String, String) {
        (self.group.clone(), self.version.clone())
    }
}

/// A definition as the server stores it, which is as `v1beta1`: what the reset has to know of it.
#[derive(Deserialize)]
struct StoredDefinition {
    spec: StoredSpec,
}

#[derive(Deserialize)]
struct StoredSpec {
    group: String,
    names: StoredNames,
    versions: Vec<StoredVersion>,
}

#[derive(Deserialize)]
struct StoredNames {
    plural: String,
}

#[derive(Deserialize)]
struct StoredVersion {
    name: String,
    served: bool,
}

/// What a definition, as it is stored, asks to be served.
fn served(definition: &[u8]) -> Result<Vec<Resource>, serde_json::Error> {
    let StoredDefinition { spec: StoredSpec { group, names, versions } } =
        serde_json::from_slice(definition)?;
    let served = versions.into_iter().filter(|version| version.served);
    Ok(served
        .map(|StoredVersion { name: version, .. }| Resource {
            group: group.clone(),
            version,
            plural: names.plural.clone(),
        })
        .collect())
}
