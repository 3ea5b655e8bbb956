//! Worlds: any moment of a namespace, kept as bytes and forked in milliseconds.
//!
//! etcd keeps every past version until it is compacted, and an object's resourceVersion *is* its
//! etcd revision. So what a namespace held at some moment can be read back, and written again under
//! another name, without asking the API server to make it anew. Every byte of a fork was written by
//! the API server itself; only the name of the namespace and the UIDs of the world's own objects
//! are others, each as long as the one before.
//!
//! - A *world* is one namespace with all its objects.
//! - A *moment* is a world at one revision: [`Worlds::moment`].
//! - A *fork* is a new world made from a moment: [`Worlds::fork`].
//! - [`Worlds::erase`] removes one.
//!
//! All of it happens below the API server, in etcd, which must be reachable ([`EtcdAddress`]).
//!
//! # What a fork is not
//!
//! - Objects without a namespace are not in it, nor are Events.
//! - Names and UIDs inside of base64 or compressed data, and digests of them, are not replaced; nor
//!   are resourceVersions that somebody wrote into an object as text.
//! - Objects that belong to the cluster, such as a Service with an address, are refused:
//!   [`WorldError::Refused`].
//! - There is no past before it: what the server answers about revisions below
//!   [`World::last_revision`] is not what the source's history shows. [`World::changes`] is.
//! - Real controllers that watch all namespaces see the kinds of a fork in any order. Pause them.

mod address;
mod background;
mod compact;
mod erase;
mod error;
mod etcd;
mod fork;
mod history;
mod key;
mod moment;
mod names;
mod owner;
mod ready;
mod registry;
mod renames;
mod rounds;
mod sentinel;
mod tap;
mod value;
mod wire;
mod written;

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

pub use address::EtcdAddress;
pub use compact::Usage;
pub use error::{EtcdError, Refusal, RefusalReason, WorldError};
pub use fork::World;
pub use key::Resource;
pub use moment::{Moment, ObjectChange};
pub use renames::Renames;
pub(crate) use renames::{candidates, fresh_uid};

use background::Background;
use compact::Compactor;
use etcd::Etcd;
pub(crate) use names::NameSet;
use names::Names;
use owner::Owner;
pub(crate) use registry::{Difference, Keys, Registry, directory_of, seed};
use tap::{Late, Listener, Tap};
pub(crate) use written::{Change, Written};

/// A process that said nothing for so long is taken for dead, unless [`Worlds::with_patience`] says
/// otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// The worlds of one etcd.
///
/// It holds one watch of all of etcd, and with it the history of every namespace whose name is one
/// of a world (see [`name`](Self::name)). Clones share it. It belongs to the runtime that it was
/// made in.
///
/// # Example
///
/// ```no_run
/// # async fn example() -> anyhow::Result<()> {
/// use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
/// use kube::api::{Api, ListParams, PostParams};
/// use laggard::Plane;
/// use laggard::world::Worlds;
/// use serde_json::{from_value, json};
///
/// let plane = Plane::builder().start().await?;
/// let worlds = Worlds::new(&plane.etcd()?).await?;
///
/// // The set-up, once, through the API server.
/// let source = worlds.name().await?;
/// let namespace: Namespace = from_value(json!({ "metadata": { "name": source } }))?;
/// Api::all(plane.client()?).create(&PostParams::default(), &namespace).await?;
/// let map: ConfigMap = from_value(json!({ "metadata": { "name": "one" } }))?;
/// let maps = Api::namespaced(plane.client()?, &source);
/// maps.create(&PostParams::default(), &map).await?;
///
/// // As many copies as are wanted, below it.
/// let moment = worlds.moment(&source).await?;
/// let world = worlds.fork(&moment).await?;
/// world.ready(&plane.client()?).await?;
/// let maps: Api<ConfigMap> = Api::namespaced(plane.client()?, world.namespace());
/// assert_eq!(maps.list(&ListParams::default()).await?.items.len(), 1);
/// worlds.erase(world).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Worlds {
    shared: Arc<Shared>,
}

/// What goes on under all clones, and what tasks in the background use.
struct Shared {
    etcd: Arc<Etcd>,
    tap: Arc<Tap>,
    owner: Owner,
    names: Names,
    background: Background,
    compactor: Compactor,
    runtime: Handle,
    /// Tasks that go on until nobody uses these worlds any more.
    attendants: Vec<AbortHandle>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Worlds {
    /// Connects to an etcd, checks that it answers, and begins to follow it. What dead
    /// owners left there is removed, as by [`sweep`](Self::sweep).
    ///
    /// # Errors
    ///
    /// [`WorldError::Etcd`], whose source says whether nothing answers there or something else.
    pub async fn new(etcd: &EtcdAddress) -> Result<Self, WorldError> {
        Self::with_patience(etcd, PATIENCE).await
    }

    /// The same, with another time after which this process is taken for dead if it says nothing:
    /// then a [`sweep`](Self::sweep) by another one removes its forks. Default 30 s, wall clock; at
    /// least one second, whole seconds.
    ///
    /// # Errors
    ///
    /// See [`new`](Self::new).
    pub async fn with_patience(etcd: &EtcdAddress, patience: Duration) -> Result<Self, WorldError> {
        let etcd = Arc::new(Etcd::connect(etcd).await?);
        let owner = Owner::register(&etcd, patience).await?;
        let (tap, background) = (Arc::new(Tap::new()), Background::default());
        let (sender, late) = mpsc::unbounded_channel();
        let follow = {
            let listener = Listener { background: background.clone(), late: sender };
            let (tap, etcd) = (tap.clone(), etcd.clone());
            async move { tap.follow(&etcd, &listener).await }
        };
        let shared = Arc::new_cyclic(|shared: &Weak<Shared>| Shared {
            etcd,
            tap,
            owner,
            names: Names::default(),
            background,
            compactor: Compactor::default(),
            runtime: Handle::current(),
            attendants: vec![
                tokio::spawn(follow).abort_handle(),
                tokio::spawn(erase_what_is_late(shared.clone(), late)).abort_handle(),
                tokio::spawn(stay_alive(shared.clone())).abort_handle(),
            ],
        });
        let worlds = Self { shared };
        worlds.sweep().await?;
        Ok(worlds)
    }

    /// A name for the namespace of a world that is made through the API server: `lw-` and eight of
    /// a-z and 0-9. No other world of this etcd has or will have it.
    ///
    /// # Errors
    ///
    /// [`WorldError::Etcd`].
    pub async fn name(&self) -> Result<String, WorldError> {
        self.shared.names.next(&self.shared.etcd).await
    }

    /// The present moment of a namespace: everything that the API server had acknowledged before
    /// this call is in it.
    ///
    /// # Errors
    ///
    /// [`WorldError::NoSuchWorld`], [`WorldError::Name`]; [`WorldError::Refused`] if the world
    /// holds, or once held, what must not be copied; [`WorldError::Compacted`];
    /// [`WorldError::Etcd`].
    pub async fn moment(&self, namespace: &str) -> Result<Moment, WorldError> {
        let revision = self.shared.etcd.revision().await?;
        self.moment_at(namespace, revision).await
    }

    /// A past moment of a namespace that still exists: after the change that has this revision, such
    /// as an object's resourceVersion.
    ///
    /// # Errors
    ///
    /// As for [`moment`](Self::moment), and [`WorldError::Future`].
    pub async fn moment_at(&self, namespace: &str, revision: i64) -> Result<Moment, WorldError> {
        if !key::is_world(namespace) {
            return Err(WorldError::Name { namespace: namespace.to_owned() });
        }
        let current = self.shared.etcd.revision().await?;
        if revision > current {
            return Err(WorldError::Future { revision, current });
        }
        self.shared.tap.reach(&self.shared.etcd, revision).await?;
        let records = self.shared.tap.history().of(namespace, revision)?;
        Moment::new(namespace, revision, records)
    }

    /// Makes a new world from a moment.
    ///
    /// When this returns, a consistent LIST through the API server is complete; for anything that
    /// is answered from its caches, [`World::ready`] waits. Dropping the future, or an error, erases
    /// what was written so far, in the background: [`settle`](Self::settle) waits for that.
    ///
    /// # Errors
    ///
    /// [`WorldError::Etcd`]; [`WorldError::Taken`].
    pub async fn fork(&self, moment: &Moment) -> Result<World, WorldError> {
        let namespace = self.name().await?;
        let (claim, claimed) = oneshot::channel();
        let (shared, moment) = (self.shared.clone(), moment.clone());
        let task = shared.background.begin();
        // In a task of its own: a request to etcd that is cut off may still be carried out, so
        // whoever writes must see the end of each before anything is erased.
        self.shared.runtime.spawn(async move {
            let _task = task;
            let mut unclaimed = Unclaimed { shared: shared.clone(), namespace: None };
            let given_up = || claim.is_closed();
            let replay = fork::replay(&shared, &moment, &namespace, &mut unclaimed, given_up);
            let answer = match replay.await {
                Ok(Some(world)) => Ok((world, unclaimed)),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            // Not taken, it goes with the guard.
            let _ = claim.send(answer);
        });
        let (world, mut unclaimed) = claimed.await.map_err(|_| WorldError::RuntimeEnded)??;
        unclaimed.namespace = None;
        Ok(world)
    }

    /// Removes a world. Stop its clients first: what they write meanwhile is removed as well, but
    /// not for ever.
    ///
    /// All objects of a resource go in one transaction, so watches that are to go on should not be
    /// open on it. Something that a client had asked for before, and the API server writes later,
    /// is removed in the background for as long as these worlds exist. Dropping the future does not
    /// stop the erasure.
    ///
    /// # Errors
    ///
    /// [`WorldError::NotEmptied`] if somebody goes on writing; [`WorldError::Etcd`].
    pub async fn erase(&self, world: World) -> Result<(), WorldError> {
        self.erase_later(world.namespace().to_owned()).await
    }

    /// Removes a world that was made through the API server, in the same way.
    ///
    /// # Errors
    ///
    /// [`WorldError::Name`] for every namespace that is no world, and as for
    /// [`erase`](Self::erase).
    pub async fn erase_namespace(&self, namespace: &str) -> Result<(), WorldError> {
        if !key::is_world(namespace) {
            return Err(WorldError::Name { namespace: namespace.to_owned() });
        }
        self.erase_later(namespace.to_owned()).await
    }

    async fn erase_later(&self, namespace: String) -> Result<(), WorldError> {
        let (shared, task) = (self.shared.clone(), self.shared.background.begin());
        let erasure = self.shared.runtime.spawn(async move {
            let _task = task;
            erase::erase(&shared, &namespace).await
        });
        erasure.await.map_err(|_| WorldError::RuntimeEnded)?
    }

    /// Removes what dead owners left of their worlds, half-made ones and whole ones, and objects
    /// that came into worlds after these had been erased. Returns the names of what it removed.
    ///
    /// An owner is dead when its [`Worlds`] are closed or dropped, or when nothing was heard of it
    /// for some time ([`with_patience`](Self::with_patience)). Worlds that were made through the
    /// API server have no owner and are never swept.
    ///
    /// # Errors
    ///
    /// [`WorldError::Etcd`]; [`WorldError::NotEmptied`].
    pub async fn sweep(&self) -> Result<Vec<String>, WorldError> {
        erase::sweep(&self.shared).await
    }

    /// Waits until nothing goes on in the background: forks that were given up are erased, and so
    /// is what was written into erased worlds up to now.
    ///
    /// # Errors
    ///
    /// [`WorldError::Etcd`]; [`WorldError::Unsettled`] after a minute.
    pub async fn settle(&self) -> Result<(), WorldError> {
        let shared = &self.shared;
        let settled = async {
            loop {
                shared.background.idle().await;
                // What was written before now is seen before the second look.
                let revision = shared.etcd.revision().await?;
                shared.tap.reach(&shared.etcd, revision).await?;
                if shared.background.is_idle() {
                    return Ok(());
                }
            }
        };
        match tokio::time::timeout(SETTLE_LIMIT, settled).await {
            Ok(result) => result,
            Err(_) => {
                Err(WorldError::Unsettled { limit: SETTLE_LIMIT, tasks: shared.background.count() })
            }
        }
    }

    /// Waits as [`settle`](Self::settle) does, and gives up the ownership of all forks that are
    /// still there: the next sweep, by whomever, removes them.
    ///
    /// Dropping the last clone does the same without waiting.
    ///
    /// # Errors
    ///
    /// As for [`settle`](Self::settle).
    pub async fn close(self) -> Result<(), WorldError> {
        self.settle().await?;
        self.shared.owner.leave(&self.shared.etcd).await
    }
}

/// What is awaited takes milliseconds, unless a great many worlds are erased at once.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// A fork that nobody has yet; it is erased when this is dropped.
#[derive(Debug)]
struct Unclaimed {
    shared: Arc<Shared>,
    namespace: Option<String>,
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        let Some(namespace) = self.namespace.take() else { return };
        let (shared, task) = (self.shared.clone(), self.shared.background.begin());
        // Does nothing if the runtime has ended; then a sweep finds the mark.
        self.shared.runtime.spawn(async move {
            let _task = task;
            if let Err(error) = erase::erase(&shared, &namespace).await {
                tracing::warn!(namespace, %error, "a fork that was given up is still there");
            }
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for attendant in &self.attendants {
            attendant.abort();
        }
        let (etcd, lease) = (self.etcd.clone(), self.owner.lease());
        self.runtime.spawn(async move {
            // Without it the lease ends by itself, later.
            if let Err(error) = etcd.revoke(lease).await {
                tracing::debug!(%error, "could not give up the ownership of worlds");
            }
        });
    }
}

/// Erases again what was written into erased worlds.
async fn erase_what_is_late(shared: Weak<Shared>, mut late: mpsc::UnboundedReceiver<Late>) {
    while let Some(Late { namespace, task }) = late.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        // Most are reported during the erasure itself, whose look has dealt with them.
        if !shared.tap.history().directories(&namespace).is_empty()
            && let Err(error) = erase::erase(&shared, &namespace).await
        {
            tracing::warn!(namespace, %error, "a late write into an erased world is still there");
        }
        drop(task);
    }
}

/// Tells etcd now and then that the owner of these worlds lives.
async fn stay_alive(shared: Weak<Shared>) {
    loop {
        let Some(interval) = shared.upgrade().map(|shared| shared.owner.interval()) else { return };
        tokio::time::sleep(interval).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = shared.owner.renew(&shared.etcd).await {
            tracing::warn!(%error, "could not tell etcd that the owner of these worlds lives");
        }
    }
}
