//! Templates: what every API server makes for itself in its first seconds, made once, kept, and given to etcd while
//! the next server starts.
//!
//! An API server makes its default roles and priority classes only a second after it could work. Until then nobody
//! but `system:masters` may do anything. So they are read once from a server that has made them, and a later server
//! finds them in its etcd. Copies of etcd's data directory would do the same, but need a shared file system with the
//! containers, are tied to etcd's own format, and bring along what the server of the template wrote about itself.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::Readiness;
use super::builder::PlaneBuilder;
use super::error::StartErrorKind;
use super::ready::Probe;
use crate::ask::until_allowed;
use crate::assets::{Store, StoreLock, hexadecimal};
use crate::text::chain;
use crate::world::{EtcdAddress, Keys, Registry, directory_of};

/// What a plane finds in its etcd when it starts, instead of making it.
///
/// A template is made of the first plane that needs it, whose start takes some two seconds longer, and is kept in the store of
/// binaries below `laggard/templates`. It belongs to the binaries, the flags, the gates and, where they are in it, the
/// definitions and documents; a change of any of these makes another. It never has keys, secrets or tokens.
///
/// A plane that waits for [`Readiness::Full`] needs none and takes none.
///
/// # Example
///
/// ```no_run
/// # async fn example(crd: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition) -> anyhow::Result<()> {
/// use laggard::Plane;
/// use laggard::plane::Template;
///
/// let plane = Plane::builder().crds([crd]).template(Template::Documents).start().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Template {
    /// Nothing: the server makes everything itself, after it could be used.
    Off,
    /// The default roles, those that are aggregated filled, their bindings, and the priority classes.
    #[default]
    Defaults,
    /// These, and the definitions and documents of the builder, except for kinds that the server has to admit each time:
    /// see [`PlaneBuilder::documents`].
    Documents,
}

/// Set to `off`, no plane has a template, whatever its builder says.
const VARIABLE: &str = "LAGGARD_TEMPLATE";

/// What a builder's choice comes to, after the environment.
pub(super) fn in_effect(chosen: Template) -> Result<Template, StartErrorKind> {
    match std::env::var(VARIABLE).ok().as_deref() {
        None | Some("") => Ok(chosen),
        Some("off") => Ok(Template::Off),
        Some(other) => Err(StartErrorKind::Setting {
            problem: format!(
                "{VARIABLE} is {other:?}; write \"off\", or leave it unset: which template a plane has \
                 is said by its builder"
            ),
        }),
    }
}

/// Changes whenever what is in a template does.
const FORMAT: u32 = 2;

/// As many templates are kept, the ones made last.
const KEPT: usize = 16;

/// Resources that an API server fills late.
const DEFAULTS: [&str; 5] =
    ["clusterroles", "clusterrolebindings", "roles", "rolebindings", "priorityclasses"];

/// Kinds of which an admission gives each object something that belongs to its plane: a token, an address.
const EACH_TIME: [&str; 4] = ["Secret", "Service", "APIService", "Pod"];

/// Keys that are written last: whoever has heard of these has heard of all before.
const LAST: [&str; 4] = [
    "/registry/clusterroles/system:basic-user",
    "/registry/clusterrolebindings/system:basic-user",
    "/registry/roles/kube-system/system::leader-locking-kube-scheduler",
    "/registry/rolebindings/kube-system/system::leader-locking-kube-scheduler",
];

/// A server makes its default objects within seconds.
const DEFAULTS_LIMIT: Duration = Duration::from_secs(20);

/// An etcd that an API server has begun to use takes the template in some tens of milliseconds.
const SOWN_WITHIN: Duration = Duration::from_secs(2);

/// The keys of a template, in the order in which they are written.
pub(super) struct Seed {
    keys: Vec<(String, Vec<u8>)>,
    /// Whether the builder's definitions and documents are in it.
    pub(super) has_documents: bool,
}

/// A template as a file.
#[derive(Deserialize, Serialize)]
struct Kept {
    /// What it was made from, for people.
    made_from: String,
    /// SHA-256 of what follows.
    digest: String,
    /// Keys, and values in base64.
    keys: Vec<(String, String)>,
}

impl PlaneBuilder {
    /// What the plane finds in its etcd when it starts; default [`Template::Defaults`]. The variable
    /// `LAGGARD_TEMPLATE=off` turns templates off everywhere.
    pub fn template(mut self, template: Template) -> Self {
        self.template = template;
        self
    }

    /// Objects of any kind that are there when `start` returns: applied in their order, after the definitions, by
    /// server-side apply as `laggard`. One of a namespaced kind without a namespace goes to `default`.
    ///
    /// With [`Template::Documents`] they come from the template, except for Secrets, Services, APIServices and Pods, which
    /// are made each time.
    ///
    /// # Example
    ///
    /// ```
    /// # use laggard::Plane;
    /// let namespace: kube::api::DynamicObject = serde_json::from_value(serde_json::json!({
    ///     "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "team-a" },
    /// }))?;
    /// let builder = Plane::builder().documents([namespace]);
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn documents(mut self, documents: impl IntoIterator<Item = DynamicObject>) -> Self {
        self.documents.extend(documents);
        self
    }

    /// The documents that no template has, or all others.
    pub(super) fn documents_of(&self, each_time: bool) -> Vec<&DynamicObject> {
        self.documents.iter().filter(|document| is_of_each_time(document) == each_time).collect()
    }

    /// What the start of this plane does about a template. Waits for another process that makes the same one, up to the limit,
    /// since that is over sooner than a start without it.
    pub(super) async fn plan(
        &self,
        template: Template,
        identity: Option<&str>,
        limit: Duration,
    ) -> Plan {
        if template == Template::Off || self.readiness == Readiness::Full {
            return Plan::Without;
        }
        let Some(identity) = identity else { return Plan::Without };
        let made_from = self.template_of(identity);
        let place = match Place::of(&made_from) {
            Ok(Some(place)) => place,
            Ok(None) => return Plan::Without,
            Err(error) => {
                tracing::debug!(%error, "no template: there is no store to keep it in");
                return Plan::Without;
            }
        };
        let has_documents = template == Template::Documents;
        if let Some(keys) = place.read() {
            return Plan::Sow(Seed { keys, has_documents });
        }
        let lock = place.store.lock_file(&place.name, "makes a template", &|_, _| {});
        let lock = match tokio::time::timeout(limit, lock).await {
            Ok(Ok(lock)) => lock,
            Ok(Err(error)) => {
                tracing::debug!(%error, "no template: it cannot be kept");
                return Plan::Without;
            }
            Err(_) => {
                tracing::warn!("no template: another process has been making it for {limit:?}");
                return Plan::Without;
            }
        };
        match place.read() {
            Some(keys) => Plan::Sow(Seed { keys, has_documents }),
            None => Plan::Make(Box::new(Making {
                place,
                made_from,
                has_documents,
                limit: limit.min(DEFAULTS_LIMIT),
                keys: Keys::new(),
                _lock: lock,
            })),
        }
    }

    /// All that decides what is in the template.
    fn template_of(&self, identity: &str) -> String {
        let mut text = format!(
            "format {FORMAT}; {identity}; exploring {}; {:?}; etcd {:?}; kube-apiserver {:?}",
            self.exploring,
            self.named.without_output(),
            self.etcd,
            self.apiserver,
        );
        if self.template == Template::Documents {
            let mut digest = Sha256::new();
            for definition in &self.crds {
                digest.update(json!(definition).to_string());
            }
            for document in &self.documents {
                digest.update(json!(document).to_string());
            }
            let _ = write!(text, "; documents {}", hexadecimal(&digest.finalize()));
        }
        text
    }
}

/// What a start does about a template.
pub(super) enum Plan {
    /// The server makes everything itself.
    Without,
    /// It finds this.
    Sow(Seed),
    /// There is none yet: it is made of this plane, which then waits until its server has made everything.
    Make(Box<Making>),
}

/// A template that is being made of the plane that is being started.
pub(super) struct Making {
    place: Place,
    made_from: String,
    has_documents: bool,
    limit: Duration,
    /// What was there before the documents.
    keys: Keys,
    _lock: StoreLock,
}

impl Making {
    /// Waits until the server has made its default objects, and reads them; false if they do not come in time.
    pub(super) async fn read_defaults(
        &mut self,
        probe: &Probe,
        client: &Client,
        etcd: Option<&EtcdAddress>,
    ) -> bool {
        let Some(etcd) = etcd else { return false };
        let read = async {
            probe.ready(Readiness::Full).await;
            aggregate(client).await.map_err(|error| chain(&error))?;
            Registry::read(etcd, None).await.map_err(|error| chain(&error))
        };
        let error = match tokio::time::timeout(self.limit, read).await {
            Ok(Ok(registry)) => {
                self.keys = registry.into_keys();
                return true;
            }
            Ok(Err(error)) => error,
            Err(_) => format!("not after {:?}; last: {}", self.limit, probe.last_answer()),
        };
        tracing::warn!(%error, "no template: the default objects cannot be read");
        false
    }

    /// Keeps the template. The documents that belong into it are applied by now, and no others.
    pub(super) async fn keep(self, etcd: Option<&EtcdAddress>) {
        let Some(etcd) = etcd else { return };
        if let Err(error) = self.try_to_keep(etcd).await {
            tracing::warn!(%error, "a template cannot be kept");
        }
    }

    async fn try_to_keep(self, etcd: &EtcdAddress) -> Result<(), String> {
        let mut keys = self.keys;
        let mut documents = Keys::new();
        if self.has_documents {
            let read = Registry::read(etcd, None).await.map_err(|error| chain(&error))?;
            documents = read.into_keys();
            documents.retain(|key, value| keys.get(key) != Some(value));
        }
        keys.retain(|key, _| DEFAULTS.contains(&directory_of(key)));
        keys.append(&mut documents);
        let (last, mut ordered): (Vec<_>, Vec<_>) =
            keys.into_iter().partition(|(key, _)| LAST.contains(&key.as_str()));
        let lacks = |directory| !ordered.iter().any(|(key, _)| directory_of(key) == directory);
        if last.len() != LAST.len() || DEFAULTS.into_iter().any(lacks) {
            return Err("the server does not have all default objects".to_owned());
        }
        ordered.extend(last);
        let written = self.place.write(&self.made_from, &ordered);
        written.map_err(|error| format!("{}: {error}", self.place.path().display()))
    }
}

fn is_of_each_time(document: &DynamicObject) -> bool {
    document.types.as_ref().is_some_and(|types| EACH_TIME.contains(&types.kind.as_str()))
}

/// Gives a starting etcd the keys of the template; false if that did not work, and the server has to make them. Has no limit
/// of its own.
async fn sow(seed: Option<&Seed>, etcd: Option<&EtcdAddress>) -> bool {
    let (Some(seed), Some(etcd)) = (seed, etcd) else { return false };
    let sown = crate::world::seed(etcd, &seed.keys).await;
    if let Err(error) = &sown {
        tracing::warn!(error = %chain(error), "a plane starts without its template");
    }
    sown.is_ok()
}

/// Sows while the API server comes up, of which `ready` tells; false if the template is not there. An end of `ready` that
/// is an error ends the sowing too: an etcd that has ended would be waited for in vain.
pub(super) async fn sow_until<T, E>(
    ready: impl Future<Output = Result<T, E>>,
    seed: Option<&Seed>,
    etcd: Option<&EtcdAddress>,
) -> Result<(T, bool), E> {
    let (mut ready, mut sowing) = (std::pin::pin!(ready), std::pin::pin!(sow(seed, etcd)));
    tokio::select! {
        biased;
        reached = &mut ready => {
            let reached = reached?;
            // etcd answered the API server, so it will not take long.
            let sown = tokio::time::timeout(SOWN_WITHIN, sowing).await.unwrap_or(false);
            Ok((reached, sown))
        }
        sown = &mut sowing => Ok((ready.await?, sown)),
    }
}

/// Waits until the authorizer goes by what is in the template. Has no limit of its own.
pub(super) async fn until_authorized(client: &Client) -> Result<(), StartErrorKind> {
    let everybody = json!({ "user": "laggard:anybody", "groups": ["system:authenticated"], "resourceAttributes": {
        "group": "authorization.k8s.io", "resource": "selfsubjectaccessreviews", "verb": "create",
    } });
    let scheduler = json!({ "user": "system:kube-scheduler", "resourceAttributes": {
        "group": "coordination.k8s.io", "resource": "leases", "name": "kube-scheduler", "verb": "update",
        "namespace": "kube-system",
    } });
    for spec in [everybody, scheduler] {
        let allowed = until_allowed(client, &spec, &mut serde_json::Value::Null).await;
        allowed.map_err(|error| StartErrorKind::request("ask what a user may do", error))?;
    }
    Ok(())
}

/// Fills the roles that are made of others, as the controller-manager's controller for them does, which not every
/// plane has. Source: Kubernetes, `pkg/controller/clusterroleaggregation/clusterroleaggregation_controller.go`.
async fn aggregate(client: &Client) -> Result<(), kube::Error> {
    let api: Api<ClusterRole> = Api::all(client.clone());
    loop {
        let mut roles = api.list(&ListParams::default()).await?.items;
        roles.sort_by_key(|role| role.name_any());
        let mut changed = false;
        for role in &roles {
            let Some(rules) = aggregated(role, &roles) else { continue };
            if role.rules.as_ref() == Some(&rules) || (rules.is_empty() && role.rules.is_none()) {
                continue;
            }
            changed = true;
            let patch = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": { "name": role.name_any() }, "rules": rules,
            });
            let apply = PatchParams::apply("clusterrole-aggregation-controller").force();
            api.patch(&role.name_any(), &apply, &Patch::Apply(patch)).await?;
        }
        // What is aggregated may itself be a part of others.
        if !changed {
            return Ok(());
        }
    }
}

/// The rules of a role that is made of others; `None` for one that is not.
fn aggregated(role: &ClusterRole, roles: &[ClusterRole]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_ref()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        let wanted = selector.match_labels.clone().unwrap_or_default();
        let parts = roles.iter().filter(|part| {
            let labels = part.labels();
            part.name_any() != role.name_any()
                && wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
        });
        for rule in parts.flat_map(|part| part.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(rules)
}

/// Where a template is kept.
struct Place {
    store: Store,
    name: String,
}

impl Place {
    fn of(made_from: &str) -> Result<Option<Self>, crate::assets::AssetError> {
        let Some(store) = Store::of_this_user()? else { return Ok(None) };
        let digest = hexadecimal(&Sha256::digest(made_from));
        Ok(Some(Self { store, name: format!("template-{}", &digest[..16]) }))
    }

    fn directory(&self) -> PathBuf {
        self.store.path().join("laggard/templates")
    }

    fn path(&self) -> PathBuf {
        self.directory().join(format!("{}.json", self.name))
    }

    /// What is kept, if it is whole.
    fn read(&self) -> Option<Vec<(String, Vec<u8>)>> {
        let path = self.path();
        let text = fs::read(&path).ok()?;
        let keys = parse(&text);
        if keys.is_none() {
            tracing::warn!(path = %path.display(), "a template is damaged and is made anew");
        }
        keys
    }

    /// Call it with the lock.
    fn write(&self, made_from: &str, keys: &[(String, Vec<u8>)]) -> io::Result<()> {
        let directory = self.directory();
        fs::create_dir_all(&directory)?;
        let mut file = tempfile::Builder::new().prefix("new-").tempfile_in(&directory)?;
        let keys: Vec<_> =
            keys.iter().map(|(key, value)| (key.clone(), STANDARD.encode(value))).collect();
        let kept = Kept { made_from: made_from.to_owned(), digest: digest_of(&keys), keys };
        serde_json::to_writer(&mut file, &kept)?;
        file.as_file().sync_all()?;
        file.persist(self.path()).map_err(|error| error.error)?;
        remove_old(&directory)
    }
}

/// The keys of a file, if they are as they were written.
fn parse(text: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let kept: Kept = serde_json::from_slice(text).ok()?;
    if digest_of(&kept.keys) != kept.digest {
        return None;
    }
    let decoded = |(key, value): (String, String)| Some((key, STANDARD.decode(value).ok()?));
    kept.keys.into_iter().map(decoded).collect()
}

fn digest_of(keys: &[(String, String)]) -> String {
    let mut digest = Sha256::new();
    for (key, value) in keys {
        digest.update(key);
        digest.update([0]);
        digest.update(value);
        digest.update([0]);
    }
    hexadecimal(&digest.finalize())
}

/// Removes all but those that were made last, and what a process left that ended while it wrote.
fn remove_old(directory: &Path) -> io::Result<()> {
    let mut files: Vec<_> = fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort_unstable();
    let surplus = files.len().saturating_sub(KEPT);
    for (_, path) in files.into_iter().take(surplus) {
        fs::remove_file(path)?;
    }
    Ok(())
}
