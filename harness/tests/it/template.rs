//! Templates: what is there at the first step of readiness, and what is kept for it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject};
use kube::runtime::wait::await_condition;
use kube::{Client, ResourceExt as _};
use laggard::Plane;
use laggard::assets::{Binary, Minor, Wanted};
use laggard::plane::{BackendKind, Controller, PlaneBuilder, Readiness, StartErrorKind, Template};
use rstest::rstest;
use serde_json::{Value, json};

use crate::settings::on;
use crate::world::stage::request;

const GROUP: &str = "template.test.local";
const WIDGETS: &str = "/apis/template.test.local/v1/namespaces/team/widgets";

fn widgets(field: &str) -> CustomResourceDefinition {
    serde_json::from_value(json!({
        "metadata": { "name": format!("widgets.{GROUP}") },
        "spec": {
            "group": GROUP, "scope": "Namespaced",
            "names": { "kind": "Widget", "plural": "widgets", "singular": "widget" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": { "type": "object", "properties": { "size": { "type": "string" }, field: { "type": "string" } } },
            } }],
        },
    }))
    .expect("a constant definition")
}

/// What a project brings: a namespace, what ann may do there, a custom resource, and a secret.
fn documents() -> Vec<DynamicObject> {
    let of = |document: Value| serde_json::from_value(document).expect("a constant document");
    vec![
        of(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "team" } })),
        of(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {
                "name": "widgets-view",
                "labels": { "rbac.authorization.k8s.io/aggregate-to-view": "true" },
            },
            "rules": [{ "apiGroups": [GROUP], "resources": ["widgets"], "verbs": ["get", "list"] }],
        })),
        of(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "name": "ann", "namespace": "team" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "widgets-view" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann" }],
        })),
        of(json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "Widget",
            "metadata": { "name": "first", "namespace": "team" }, "size": "s",
        })),
        of(json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": "password", "namespace": "team" },
            "stringData": { "password": "correct horse" },
        })),
    ]
}

/// A client that acts as somebody who may do what roles allow them.
fn acting_as(plane: &Plane, user: &str) -> Result<Client> {
    let mut config = plane.config().clone();
    config.auth_info.impersonate = Some(user.to_owned());
    config.auth_info.impersonate_groups = Some(vec!["system:authenticated".to_owned()]);
    Ok(Client::try_from(config)?)
}

async fn view(client: &Client) -> Result<Vec<k8s_openapi::api::rbac::v1::PolicyRule>> {
    let role = Api::<ClusterRole>::all(client.clone()).get("view").await?;
    Ok(role.rules.unwrap_or_default())
}

/// Each request is the first of its kind, right after the start, and is made once.
async fn is_complete(plane: &Plane) -> Result<()> {
    let client = plane.client()?;
    let listed = request(&acting_as(plane, "ann")?, "GET", WIDGETS, None).await?;
    ensure!(listed["items"][0]["metadata"]["name"] == "first", "{listed}");
    // The default roles: everybody may ask what they may do.
    let review = json!({ "spec": { "resourceAttributes": { "resource": "pods", "verb": "get" } } });
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    request(&acting_as(plane, "bob")?, "POST", reviews, Some(&review)).await?;
    let widget = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "Widget", "metadata": { "name": "second" }, "size": "m",
    });
    request(&client, "POST", WIDGETS, Some(&widget)).await?;
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical";
    request(&client, "GET", classes, None).await?;
    let secret = "/api/v1/namespaces/team/secrets/password";
    request(&client, "GET", secret, None).await?;
    ensure!(!view(&client).await?.is_empty());
    Ok(())
}

fn project(builder: PlaneBuilder) -> PlaneBuilder {
    builder.crds([widgets("size")]).documents(documents())
}

#[rstest]
#[tokio::test]
async fn everything_is_there_at_the_first_step(
    #[values(BackendKind::Process, BackendKind::Container)] backend: BackendKind,
    #[values(false, true)] exploring: bool,
) -> Result<()> {
    let Some(mut builder) = on(backend).await else { return Ok(()) };
    if exploring {
        builder = builder.exploring();
    }
    let builder = project(builder).template(Template::Documents);
    // The second finds what the first may have had to make.
    for _ in 0..2 {
        let plane = builder.clone().start().await?;
        let timings = plane.timings();
        ensure!(timings.readiness == Readiness::FirstStep, "{timings:?}");
        is_complete(&plane).await?;
        // The server comes to its own default objects later, and finds nothing to change.
        let before = Api::<ClusterRole>::all(plane.client()?).list(&Default::default()).await?;
        plane.moment().await?;
        let after = Api::<ClusterRole>::all(plane.client()?).list(&Default::default()).await?;
        let versions = |roles: &kube::api::ObjectList<ClusterRole>| -> Vec<_> {
            roles.iter().map(|role| (role.name_any(), role.resource_version())).collect()
        };
        ensure!(versions(&before) == versions(&after));
        plane.stop().await?;
    }
    Ok(())
}

/// Without one, users have to wait: otherwise nothing here would show anything.
#[tokio::test]
async fn without_a_template_there_are_no_default_roles_yet() -> Result<()> {
    let plane = project(Plane::builder())
        .backend(BackendKind::Process)
        .template(Template::Off)
        .start()
        .await?;
    let client = plane.client()?;
    ensure!(view(&client).await.is_err() || view(&client).await?.is_empty());
    // The documents are there nevertheless, each made through the server.
    let listed = request(&client, "GET", WIDGETS, None).await?;
    ensure!(listed["items"][0]["metadata"]["name"] == "first", "{listed}");
    plane.stop().await?;
    Ok(())
}

laggard::minors! {
    #[rstest]
    #[tokio::test]
    async fn everything_is_there_on_each_minor(minor: Minor) -> Result<()> {
        let builder = Plane::builder().kubernetes(minor).backend(BackendKind::Process);
        let plane = project(builder).template(Template::Documents).start().await?;
        is_complete(&plane).await?;
        plane.stop().await?;
        Ok(())
    }
}

laggard::minors! {
    /// The rules that we fill in are those that the controller of Kubernetes fills in, in the same order.
    #[rstest]
    #[tokio::test]
    async fn aggregated_roles_are_as_the_real_controller_makes_them(minor: Minor) -> Result<()> {
        let plane = async |template| {
            let builder = Plane::builder().kubernetes(minor).backend(BackendKind::Process);
            builder.controllers([Controller::ClusterRoleAggregation]).template(template).start().await
        };
        let (real, ours) = (plane(Template::Off).await?, plane(Template::Defaults).await?);
        let filled = Api::<ClusterRole>::all(ours.client()?).list(&Default::default()).await?;
        let aggregated = filled.into_iter().filter(|role| role.aggregation_rule.is_some());
        let mut compared = 0;
        for role in aggregated {
            ensure!(role.rules.as_ref().is_some_and(|rules| !rules.is_empty()), "{}", role.name_any());
            // The controller fills them one by one, and some of them again when a part of theirs is filled.
            let api: Api<ClusterRole> = Api::all(real.client()?);
            let name = role.name_any();
            let same = await_condition(api.clone(), &name, |it: Option<&ClusterRole>| {
                it.is_some_and(|it| it.rules == role.rules)
            });
            if tokio::time::timeout(Duration::from_secs(30), same).await.is_err() {
                let last = api.get(&name).await?;
                bail!("{name}: {}\n{}", json!(last.rules), json!(role.rules));
            }
            compared += 1;
        }
        ensure!(compared >= 3, "{compared}");
        real.stop().await?;
        ours.stop().await?;
        Ok(())
    }
}

#[rstest]
#[case::no_kind(json!({ "metadata": { "name": "x" } }), "no apiVersion, kind or name")]
#[case::no_such_kind(json!({ "apiVersion": "v1", "kind": "Pot", "metadata": { "name": "x" } }), "Pot x")]
#[tokio::test]
async fn a_document_that_is_none_is_one_error(
    #[case] document: Value,
    #[case] text: &str,
) -> Result<()> {
    let document: DynamicObject = serde_json::from_value(document)?;
    for template in [Template::Off, Template::Documents] {
        let builder = Plane::builder().backend(BackendKind::Process).template(template);
        let error =
            builder.documents([document.clone()]).start().await.err().context("it started")?;
        ensure!(matches!(error.kind(), StartErrorKind::Documents { .. }), "{error}");
        if let Some(logs) = error.logs() {
            std::fs::remove_dir_all(logs)?;
        }
        let error = format!("{:#}", anyhow::Error::from(error));
        ensure!(error.contains(text), "{error}");
    }
    Ok(())
}

/// What the child does, in the variable that says so.
const TEMPLATE: &str = "LAGGARD_TEST_TEMPLATE";

/// Starts a plane with a store of its own for its template; what it left there.
async fn kept(store: &Path, template: &'static str, field: &'static str) -> Result<Vec<PathBuf>> {
    let binaries = [Binary::Etcd, Binary::KubeApiserver];
    let assets = Wanted::newest().binaries(binaries).get(|_| ()).await?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "template::in_another_process", "--ignored"]);
    for (binary, path) in assets.iter() {
        command.env(binary.variable(), path);
    }
    command.env("XDG_DATA_HOME", store).env(TEMPLATE, field).env("LAGGARD_TEMPLATE", template);
    let ended = tokio::task::spawn_blocking(move || command.output()).await??;
    let (out, err) =
        (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    ensure!(ended.status.success(), "{out}\n{err}");
    let directory = store.join("kubebuilder-envtest/laggard/templates");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.map(|it| it.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    Ok(files)
}

#[tokio::test]
#[ignore = "run by another test, in a process of its own"]
async fn in_another_process() -> Result<()> {
    let builder = Plane::builder().backend(BackendKind::Process).template(Template::Documents);
    let plane =
        builder.crds([widgets(&std::env::var(TEMPLATE)?)]).documents(documents()).start().await?;
    if std::env::var("LAGGARD_TEMPLATE").as_deref() != Ok("off") {
        is_complete(&plane).await?;
    }
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_template_is_kept_made_anew_where_it_must_be_and_has_no_secrets() -> Result<()> {
    let store = tempfile::tempdir()?;
    let store = store.path();
    ensure!(kept(store, "off", "size").await?.is_empty());
    let refused = kept(store, "no", "size").await.expect_err("it is no choice").to_string();
    ensure!(refused.contains("LAGGARD_TEMPLATE is \"no\"; write \"off\""), "{refused}");
    let first = kept(store, "", "size").await?;
    ensure!(first.len() == 1, "{first:?}");
    let written = std::fs::read_to_string(&first[0])?;
    let made = std::fs::metadata(&first[0])?.modified()?;
    ensure!(kept(store, "", "size").await? == first);
    ensure!(std::fs::metadata(&first[0])?.modified()? == made, "it was made again");

    let parsed: Value = serde_json::from_str(&written)?;
    let mut widgets = 0;
    for key in parsed["keys"].as_array().context("no keys")? {
        let (key, value) =
            (key[0].as_str().context("no key")?, key[1].as_str().context("no value")?);
        let value = base64::engine::general_purpose::STANDARD.decode(value)?;
        let value = String::from_utf8_lossy(&value);
        ensure!(!key.contains("/secrets/") && !value.contains("correct horse"), "{key}");
        ensure!(!value.contains("PRIVATE KEY") && !value.contains("BEGIN CERTIFICATE"), "{key}");
        widgets += usize::from(key.contains("widgets"));
    }
    // The definition, the role and the object.
    ensure!(widgets == 3, "{written}");

    // Damaged: noticed, and made anew at the same place.
    let damaged = written.replacen("clusterroles/view", "clusterroles/vieW", 1);
    ensure!(damaged != written);
    std::fs::write(&first[0], &damaged)?;
    ensure!(kept(store, "", "size").await? == first);
    ensure!(std::fs::read_to_string(&first[0])? != damaged, "it was left damaged");

    // Another definition is another template.
    let both = kept(store, "", "length").await?;
    ensure!(both.len() == 2 && both.contains(&first[0]), "{both:?}");
    Ok(())
}
