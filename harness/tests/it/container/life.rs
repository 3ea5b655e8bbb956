//! A plane in containers comes up, is closed to strangers, works, and goes.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, ListParams, PostParams};
use kube::runtime::wait::await_condition;
use laggard::assets::Binary;
use laggard::plane::{Controller, Flags, StartErrorKind, Step};
use serde_json::json;
use testcontainers::bollard::Docker;
use testcontainers::bollard::models::ContainerCreateBody;
use testcontainers::bollard::query_parameters::{
    CreateContainerOptions, EventsOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveImageOptions, TagImageOptionsBuilder,
};

use super::death::Owner;
use super::{builder, docker, filter, gone, id_of, labelled};

#[tokio::test]
async fn a_plane_comes_up_and_nothing_of_it_remains() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let plane = builder().start().await?;
    println!("{:?}", plane.timings());
    let label = format!("laggard.plane={}", id_of(&docker, &plane).await?);
    assert_eq!(labelled(&docker, label.clone()).await?.len(), 3, "two servers and their files");

    let namespace = plane.namespace("life").await?;
    let maps: Api<ConfigMap> = Api::namespaced(plane.client()?, &namespace);
    let map = serde_json::from_value(json!({ "metadata": { "name": "one" } }))?;
    maps.create(&PostParams::default(), &map).await?;
    assert_eq!(maps.list(&ListParams::default()).await?.items.len(), 1);
    assert_eq!(plane.logs(), None);

    let stopped = plane.stop().await?;
    println!("{stopped:?}");
    assert!(stopped.already_ended.is_empty());
    assert_eq!(labelled(&docker, label).await?, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_server_that_ended_before_the_stop_is_named() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let plane = builder().start().await?;
    let id = id_of(&docker, &plane).await?;
    docker.kill_container(&format!("laggard-{id}-etcd"), None).await?;
    let mut ends = docker.wait_container(&format!("laggard-{id}-etcd"), None);
    let _ = futures::StreamExt::next(&mut ends).await;
    let stopped = plane.stop().await?;
    let etcd = stopped.already_ended.iter().find(|(server, _)| *server == Binary::Etcd);
    let (_, status) = etcd.context("etcd was ended and nobody noticed")?;
    assert_eq!(status, "exit status 137");
    assert!(stopped.left.is_empty());
    Ok(())
}

#[tokio::test]
async fn every_port_is_published_on_loopback_alone() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let plane = builder().controllers([Controller::GarbageCollector]).start().await?;
    let id = id_of(&docker, &plane).await?;
    let mut published = Vec::new();
    for server in ["etcd", "kube-apiserver", "kube-controller-manager"] {
        let about = docker.inspect_container(&format!("laggard-{id}-{server}"), None).await?;
        let ports = about.network_settings.and_then(|settings| settings.ports);
        for (inside, bindings) in ports.unwrap_or_default() {
            for binding in bindings.into_iter().flatten() {
                assert_eq!(binding.host_ip.as_deref(), Some("127.0.0.1"), "{server} {inside}");
                published.push(inside.clone());
            }
        }
    }
    published.sort();
    assert_eq!(published, ["2379/tcp", "6443/tcp"]);
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn the_statefulset_controller_makes_pods_unless_it_is_paused() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let plane = builder().controllers([Controller::StatefulSet]).start().await?;
    println!("{:?}", plane.timings());
    let manager = format!("laggard-{}-kube-controller-manager", id_of(&docker, &plane).await?);
    let paused = || async {
        let about = docker.inspect_container(&manager, None).await?;
        about.state.and_then(|state| state.paused).context("no state")
    };
    let namespace = plane.namespace("life").await?;
    let client = plane.client()?;
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), &namespace);
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let pod = |name| {
        let there = await_condition(pods.clone(), name, |pod: Option<&Pod>| pod.is_some());
        tokio::time::timeout(Duration::from_secs(20), there)
    };
    sets.create(&PostParams::default(), &set("one")?).await?;
    pod("one-0").await.context("waiting for one-0")??;

    plane.pause_controllers().await?;
    plane.pause_controllers().await?;
    assert!(paused().await?);
    sets.create(&PostParams::default(), &set("two")?).await?;
    let early = tokio::time::timeout(Duration::from_secs(1), pod("two-0")).await;
    assert!(early.is_err(), "a paused controller made a pod");

    plane.resume_controllers().await?;
    assert!(!paused().await?);
    pod("two-0").await.context("waiting for two-0")??;

    // What stands still can be removed, too.
    plane.pause_controllers().await?;
    let stopped = plane.stop().await?;
    assert!(stopped.already_ended.is_empty(), "{stopped:?}");
    Ok(())
}

#[tokio::test]
async fn a_start_that_fails_shows_why_and_leaves_nothing() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let wrong = || Flags::new().set("no-such-flag", "1");
    // etcd says what is wrong before it explains all its flags.
    let failures = [
        (builder().apiserver_flags(wrong()), Binary::KubeApiserver, "unknown flag: --no-such-flag"),
        (builder().etcd_flags(wrong()), Binary::Etcd, "flag provided but not defined"),
    ];
    for (builder, binary, said) in failures {
        let error = builder.start().await.expect_err("there is no such flag");
        let text = format!("{:?}", anyhow::Error::new(error).context("outside"));
        println!("{text}");
        for part in [
            "has no flag --no-such-flag",
            "--no-such-flag=1",
            "in a container of",
            "exit status",
            "logs kept in",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(text.contains(said), "{said:?} is not in\n{text}");
        let directory = kept_logs(&text)?;
        let log = std::fs::read_to_string(directory.join(format!("{binary}.log")))?;
        assert!(log.contains(said), "{log}");
        let id = directory.file_name().and_then(|name| name.to_str()).context("no name")?;
        assert_eq!(labelled(&docker, format!("laggard.plane={id}")).await?, [""; 0]);
        std::fs::remove_dir_all(&directory)?;
    }
    Ok(())
}

/// The directory that an error's text names.
fn kept_logs(text: &str) -> Result<std::path::PathBuf> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("logs kept in "));
    Ok(line.context("no directory is named")?.into())
}

#[tokio::test]
async fn a_server_that_ends_is_the_cause_and_not_the_deadline() -> Result<()> {
    let Some(_) = docker().await else { return Ok(()) };
    let flags = Flags::new().set("egress-selector-config-file", "/no-such-file");
    let failed = builder().apiserver_flags(flags).start().await;
    let error = failed.expect_err("there is no such file");
    assert!(
        matches!(error.kind(), StartErrorKind::Exited { server: Binary::KubeApiserver, .. }),
        "{error:?}"
    );
    assert!(matches!(error.step(), Step::Launch | Step::Readiness), "{error}");
    if let Some(logs) = error.logs() {
        std::fs::remove_dir_all(logs)?;
    }
    Ok(())
}

#[tokio::test]
async fn the_sweep_removes_what_a_dead_owner_left_and_nothing_else() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let plane = builder().start().await?;
    let id = id_of(&docker, &plane).await?;
    let about = docker.inspect_container(&format!("laggard-{id}-etcd"), None).await?;
    let image = about.image.context("a container of no image")?;
    let own = about.config.and_then(|config| config.labels).context("it has no labels")?;

    let mut dead = std::process::Command::new("true").spawn()?;
    let pid = dead.id();
    dead.wait()?;
    let planted = |name: &str, owner: String| {
        let mut labels = own.clone();
        labels.insert("laggard.plane".to_owned(), name.to_owned());
        labels.insert("laggard.owner".to_owned(), owner);
        let container = ContainerCreateBody {
            image: Some(image.clone()),
            labels: Some(labels),
            ..Default::default()
        };
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
        let docker = docker.clone();
        async move {
            docker.create_container(Some(options), container).await?;
            anyhow::Ok(())
        }
    };
    let (dead, alive) = (format!("sweep-dead-{id}"), format!("sweep-alive-{id}"));
    // Made, and never started: the state in which nothing else looks after a container.
    planted(&dead, format!("{pid}:1")).await?;
    planted(&alive, own["laggard.owner"].clone()).await?;

    let second = builder().start().await?;
    assert_eq!(labelled(&docker, format!("laggard.plane={dead}")).await?, [""; 0]);
    assert_eq!(labelled(&docker, format!("laggard.plane={alive}")).await?.len(), 1);
    assert_eq!(labelled(&docker, format!("laggard.plane={id}")).await?.len(), 3);

    let force = RemoveContainerOptionsBuilder::new().force(true).build();
    docker.remove_container(&alive, Some(force)).await?;
    second.stop().await?;
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn an_image_is_made_once_and_never_has_a_planes_label() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    // Whatever has to be made is made for this one.
    let first = builder().start().await?;
    let images = images_of(&docker, &id_of(&docker, &first).await?).await?;
    first.stop().await?;

    let begun = seconds_since_the_epoch()?;
    let second = builder().start().await?;
    assert_eq!(images_of(&docker, &id_of(&docker, &second).await?).await?, images);
    second.stop().await?;
    let filters = HashMap::from([("type", vec!["image"])]);
    let until = (seconds_since_the_epoch()? + 1).to_string();
    let events =
        EventsOptionsBuilder::new().since(&begun.to_string()).until(&until).filters(&filters);
    let events: Vec<_> = docker.events(Some(events.build())).try_collect().await?;
    let of_ours = events.iter().filter(|event| {
        let actor = event.actor.clone().unwrap_or_default();
        images.values().any(|image| Some(image) == actor.id.as_ref())
    });
    assert_eq!(of_ours.count(), 0, "an image was made again: {events:?}");

    for image in images.values() {
        let about = docker.inspect_image(image).await?;
        let labels = about.config.and_then(|config| config.labels).unwrap_or_default();
        assert!(!labels.keys().any(|key| key == "laggard.plane" || key == "laggard.owner"));
    }
    Ok(())
}

#[tokio::test]
async fn another_binary_makes_another_image() -> Result<()> {
    let Some(docker) = docker().await else { return Ok(()) };
    let plane = builder().start().await?;
    let images = images_of(&docker, &id_of(&docker, &plane).await?).await?;
    plane.stop().await?;
    let usual = images.get("etcd").context("there is no etcd")?;
    let assets = laggard::assets::Wanted::newest().binaries([Binary::Etcd]).get(|_| ()).await?;
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("etcd");
    // The same content, but written later: that is all that is looked at.
    std::fs::copy(assets.path(Binary::Etcd)?, &copy)?;
    let variables = [("TEST_ASSET_ETCD", copy.as_os_str())];
    let mut owner = Owner::start_with("hold", &variables)?;
    owner.says("up").await?;
    let id = owner.says("id ").await?;
    let images = images_of(&docker, &id).await?;
    let other = images.get("etcd").context("there is no etcd")?.clone();
    owner.kill()?;
    assert_ne!(&other, usual);
    gone(&docker, &format!("laggard.plane={id}")).await?;
    docker.remove_image(&other, None::<RemoveImageOptions>, None).await?;
    // The other one had taken the name.
    let name = TagImageOptionsBuilder::new().repo("laggard.local/etcd").tag("v3.7.0").build();
    docker.tag_image(usual, Some(name)).await?;
    Ok(())
}

/// The image of each server of a plane, by the server's name.
async fn images_of(docker: &Docker, id: &str) -> Result<HashMap<String, String>> {
    let label = format!("laggard.plane={id}");
    let options = ListContainersOptionsBuilder::new().filters(&filter(label)).build();
    let containers = docker.list_containers(Some(options)).await?;
    let images = containers.into_iter().filter_map(|container| {
        let name = container.names?.into_iter().next()?;
        let server = name.strip_prefix(&format!("/laggard-{id}-"))?.to_owned();
        Some((server, container.image_id?))
    });
    Ok(images.collect())
}

fn seconds_since_the_epoch() -> Result<u64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs())
}

#[test]
fn a_plane_may_be_dropped_outside_of_any_runtime_and_inside_of_another() -> Result<()> {
    let multi = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let single = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    let started_in = multi()?;
    let Some(docker) = started_in.block_on(docker()) else { return Ok(()) };
    let (first, second, ids) = started_in.block_on(async {
        let (first, second) = futures::try_join!(builder().start(), builder().start())?;
        let ids = [id_of(&docker, &first).await?, id_of(&docker, &second).await?];
        anyhow::Ok((first, second, ids))
    })?;
    drop(started_in);
    drop(first);
    let other = single()?;
    other.block_on(async move { drop(second) });
    other.block_on(async {
        for id in ids {
            gone(&docker, &format!("laggard.plane={id}")).await?;
        }
        Ok(())
    })
}

fn set(name: &str) -> Result<StatefulSet> {
    let labels = json!({ "app": name });
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": 1, "serviceName": name, "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "x", "image": "x" }] },
            },
        },
    }))?)
}
