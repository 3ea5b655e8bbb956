//! The images of the servers: official ones where the engine has them or can get them, else
//! images made here of the same binaries that the process backend runs.
//!
//! For each server, in this order:
//!
//! 1. an official image of the wanted version that the engine has;
//! 2. a pull of it, unless `LAGGARD_PULL=never` is set (default `missing`). Whether there is a way
//!    to the registry is seen within seconds, and not tried again in the same process;
//! 3. an image made of the binary, under a name below `laggard.local/`, so that nothing in the
//!    engine carries an official name without being it.
//!
//! The servers of Kubernetes itself come from one place, all of them, so that their versions agree.
//! A binary that its own variable names (`TEST_ASSET_KUBE_APISERVER`, …) is run as it is: whoever
//! set that meant this file. And once an image of the wanted version had to be made, no pull is
//! tried for it any more, by any process.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use testcontainers::bollard::Docker;
use testcontainers::bollard::errors::Error;
use testcontainers::bollard::query_parameters::{
    CreateImageOptionsBuilder, ListImagesOptionsBuilder,
};

use super::build;
use super::engine::{Engine, failed};
use crate::assets::{Binary, OfficialTags, Wanted};
use crate::plane::directory::hold_lock;
use crate::plane::error::StartErrorKind;
use crate::text::chain;

const OFFICIAL: &str = "registry.k8s.io";
const MADE_HERE: &str = "laggard.local";

/// A registry that can be reached has sent something by then.
const FIRST_SIGN: Duration = Duration::from_secs(5);
/// A pull in which nothing has moved for this long will not end.
const STALLED: Duration = Duration::from_secs(60);

/// The label of the file an image was made of. It is no label of a plane: reapers remove labelled
/// images too, and these are kept.
const SOURCE: &str = "laggard.source";

/// The images of a plane's servers, all of them in the engine.
#[derive(Debug)]
pub(crate) struct Images {
    engine: Engine,
    images: BTreeMap<Binary, Image>,
}

/// An image in the engine.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// The part of the reference before the last colon; `sha256` for one that is named by its id,
    /// which nobody can give to another image meanwhile.
    pub(super) name: String,
    /// The part after it.
    pub(super) tag: String,
    /// What people call it.
    pub(super) called: String,
}

impl Images {
    /// Finds, pulls or makes an image of each wanted server.
    ///
    /// The binaries are looked for (and built) only if an image has to be made. The whole has the
    /// limits of its parts: a few seconds until a registry is given up, and `wanted`'s own.
    pub(crate) async fn obtain(wanted: &Wanted) -> Result<Self, StartErrorKind> {
        let (engine, answer) = Engine::connect().await?;
        tracing::debug!(?answer, "a container engine answers");
        let pull = Pull::from_environment()?;
        let tags = wanted.official_tags()?;
        let docker = engine.docker().clone();
        let names = wanted.names().to_owned();
        let found = engine.run(async move {
            let (etcd, kubernetes): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|&binary| binary == Binary::Etcd);
            let (etcd, kubernetes) = futures::join!(
                official(&docker, &etcd, &tags, pull),
                official(&docker, &kubernetes, &tags, pull),
            );
            etcd.into_iter().chain(kubernetes).flatten().collect::<BTreeMap<_, _>>()
        });
        let attempt = "find the images of the servers";
        let mut images = found.await.map_err(|error| failed(attempt, &error))?;
        let names = wanted.names().iter().copied();
        let missing: Vec<_> = names.filter(|binary| !images.contains_key(binary)).collect();
        if !missing.is_empty() {
            // In the caller's task: dropping that ends a build of binaries.
            let assets = wanted.clone().binaries(missing).get(|_| ()).await?;
            let docker = engine.docker().clone();
            let made = engine.run(async move {
                let mut images = BTreeMap::new();
                for (binary, path) in assets.iter() {
                    images.insert(binary, made_here(&docker, binary, path).await?);
                }
                Ok(images)
            });
            images.extend(made.await.unwrap_or_else(|error| Err(failed(attempt, &error)))?);
        }
        Ok(Self { engine, images })
    }

    /// Which image it is.
    pub(crate) fn identity(&self, binary: Binary) -> Option<String> {
        self.images.get(&binary).map(|image| format!("{binary} {}:{}", image.name, image.tag))
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(super) fn of(&self, binary: Binary) -> Result<&Image, StartErrorKind> {
        self.images.get(&binary).ok_or_else(|| StartErrorKind::Engine {
            problem: format!("there is no image of {binary}; add it to what is wanted"),
        })
    }
}

/// Whether to ask registries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pull {
    Never,
    Missing,
}

impl Pull {
    pub(super) fn from_environment() -> Result<Self, StartErrorKind> {
        Self::parse(std::env::var("LAGGARD_PULL").ok().as_deref())
    }

    fn parse(text: Option<&str>) -> Result<Self, StartErrorKind> {
        match text {
            None | Some("" | "missing") => Ok(Self::Missing),
            Some("never") => Ok(Self::Never),
            Some(other) => Err(StartErrorKind::Setting {
                problem: format!("LAGGARD_PULL is {other:?}; write \"missing\" or \"never\""),
            }),
        }
    }
}

/// The official images of these binaries, if all of them are there or can be pulled.
async fn official(
    docker: &Docker,
    binaries: &[Binary],
    tags: &OfficialTags,
    pull: Pull,
) -> Option<Vec<(Binary, Image)>> {
    if binaries.iter().any(|binary| std::env::var_os(binary.variable()).is_some()) {
        return None;
    }
    let found = binaries.iter().map(|&binary| async move {
        let tag = tag(binary, tags)?;
        let name = format!("{OFFICIAL}/{binary}");
        let called = format!("{name}:{tag}");
        if has(docker, &called).await {
            return Some((binary, Image { name, tag: tag.to_owned(), called }));
        }
        // It was made here before, by some process, since it could not be pulled.
        let made = format!("{MADE_HERE}/{binary}:{}", made_here_tag(tag));
        if pull == Pull::Never || has(docker, &made).await {
            return None;
        }
        match pulled(docker, &name, tag).await {
            Ok(()) => Some((binary, Image { name, tag: tag.to_owned(), called })),
            Err(problem) => {
                tracing::info!(image = %called, %problem, "not pulled; it is made here instead");
                None
            }
        }
    });
    futures::future::join_all(found).await.into_iter().collect()
}

fn tag(binary: Binary, tags: &OfficialTags) -> Option<&str> {
    match binary {
        Binary::Etcd => tags.etcd,
        _ => tags.kubernetes.as_deref(),
    }
}

/// `3.7.0-0` is the official tag of an image of etcd, `v3.7.0` is ours.
fn made_here_tag(official: &str) -> String {
    let version = official.split('-').next().unwrap_or(official);
    format!("v{}", version.trim_start_matches('v'))
}

async fn has(docker: &Docker, reference: &str) -> bool {
    docker.inspect_image(reference).await.is_ok()
}

/// Pulls an image; the error says why there is none.
///
/// A failure is remembered for as long as this process lives.
pub(super) async fn pulled(docker: &Docker, name: &str, tag: &str) -> Result<(), String> {
    static FAILED: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let reference = format!("{name}:{tag}");
    let known = FAILED.lock().unwrap_or_else(PoisonError::into_inner).get(&reference).cloned();
    if let Some(problem) = known {
        return Err(problem);
    }
    let options = CreateImageOptionsBuilder::new().from_image(name).tag(tag).build();
    let mut progress = std::pin::pin!(docker.create_image(Some(options), None, None));
    let mut limit = FIRST_SIGN;
    let problem = loop {
        match tokio::time::timeout(limit, progress.next()).await {
            // The first line only says that it has begun.
            Ok(Some(Ok(sign))) if sign.id.is_none() || sign.progress_detail.is_none() => {}
            Ok(Some(Ok(_))) => limit = STALLED,
            Ok(Some(Err(error))) => break chain(&error),
            Ok(None) if has(docker, &reference).await => return Ok(()),
            Ok(None) => break "the pull ended, but there is no image".to_owned(),
            Err(_) => break format!("nothing came from the registry within {limit:?}"),
        }
    };
    FAILED.lock().unwrap_or_else(PoisonError::into_inner).insert(reference, problem.clone());
    Err(problem)
}

/// The image that is made of this very file; makes it if there is none.
async fn made_here(docker: &Docker, binary: Binary, path: &Path) -> Result<Image, StartErrorKind> {
    let cannot = |error| StartErrorKind::system(format!("read {}", path.display()), error);
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    // A hash would tell more and cost a second at each start; who writes a file changes its time.
    let source =
        format!("{binary}-{}-{}.{:09}", metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    if let Some(image) = made_of(docker, binary, &source).await? {
        return Ok(image);
    }
    // Twenty test processes that begin together shall make one image, not twenty.
    let lock = tokio::task::spawn_blocking(|| hold_lock("images.lock")).await;
    let _lock = lock
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
        .map_err(|error| StartErrorKind::system("lock the images of this user", error))?;
    if let Some(image) = made_of(docker, binary, &source).await? {
        return Ok(image);
    }
    let version = crate::assets::own_version(binary, path).await.map_err(|problem| {
        StartErrorKind::Engine { problem: format!("no image can be made of {binary}: {problem}") }
    })?;
    let called = format!("{MADE_HERE}/{binary}:v{version}");
    tracing::info!(image = %called, path = %path.display(), "making an image");
    build::image(docker, binary, path, &called, (SOURCE, &source)).await?;
    made_of(docker, binary, &source).await?.ok_or_else(|| StartErrorKind::Engine {
        problem: format!("the engine made {called}, but does not have it; is its disk full?"),
    })
}

async fn made_of(
    docker: &Docker,
    binary: Binary,
    source: &str,
) -> Result<Option<Image>, StartErrorKind> {
    let filters = HashMap::from([("label", vec![format!("{SOURCE}={source}")])]);
    let options = ListImagesOptionsBuilder::new().filters(&filters).build();
    let images = docker
        .list_images(Some(options))
        .await
        .map_err(|error| failed("list the engine's images", &error))?;
    Ok(images.into_iter().find_map(|image| {
        let (name, tag) = image.id.split_once(':')?;
        let called = image.repo_tags.into_iter().next();
        let called = called.unwrap_or_else(|| format!("{MADE_HERE}/{binary}"));
        Some(Image { name: name.to_owned(), tag: tag.to_owned(), called })
    }))
}

/// Reads a stream of the engine to its end; the error is the first thing that went wrong.
pub(super) async fn drain<T>(
    stream: impl futures::Stream<Item = Result<T, Error>>,
    mut on_item: impl FnMut(T),
) -> Result<(), Error> {
    let mut stream = std::pin::pin!(stream);
    while let Some(item) = stream.try_next().await? {
        on_item(item);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tags_of_images_made_here_are_versions() {
        assert_eq!(made_here_tag("3.7.0-0"), "v3.7.0");
        assert_eq!(made_here_tag("v1.37.2"), "v1.37.2");
    }

    #[test]
    fn an_unknown_way_to_pull_is_an_error_that_names_the_known_ones() {
        assert_eq!(Pull::parse(Some("never")).unwrap(), Pull::Never);
        assert_eq!(Pull::parse(None).unwrap(), Pull::Missing);
        let error = Pull::parse(Some("always")).unwrap_err().to_string();
        assert!(error.contains("\"always\"") && error.contains("\"never\""), "{error}");
    }
}
