//! Settings of the servers: what they do, and what is said of one that does not exist.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{Api, PostParams};
use laggard::Plane;
use laggard::assets::{Binary, Minor, Wanted};
use laggard::plane::{
    AuditLevel, AuditPolicy, AuditStage, BackendKind, Controller, Flags, PlaneBuilder, Refused,
    StartErrorKind,
};
use rstest::rstest;
use serde_json::json;

/// A builder of this backend; `None` where it cannot be, which has been said.
pub(crate) async fn on(backend: BackendKind) -> Option<PlaneBuilder> {
    #[cfg(feature = "container")]
    if backend == BackendKind::Container {
        crate::container::docker().await?;
    }
    #[cfg(not(feature = "container"))]
    if backend == BackendKind::Container {
        return None;
    }
    Some(Plane::builder().backend(backend))
}

/// A start that fails since a server refuses something: what, the nearest names, all of the text.
async fn refusal_of(builder: PlaneBuilder) -> Result<(Refused, Vec<String>, String)> {
    let error = builder.start().await.err().context("it started")?;
    let StartErrorKind::Refused(refusal) = error.kind() else {
        anyhow::bail!("not refused: {:#}", anyhow::Error::from(error));
    };
    let (refused, near) = (refusal.refused().clone(), refusal.near().to_vec());
    ensure!(refusal.version().is_some(), "no version: {refusal}");
    let logs = error.logs().map(ToOwned::to_owned);
    let text = format!("{:#}", anyhow::Error::from(error));
    if let Some(logs) = logs {
        std::fs::remove_dir_all(logs)?;
    }
    Ok((refused, near, text))
}

#[rstest]
#[tokio::test]
async fn a_typo_in_a_flag_is_one_error_that_says_what_was_meant(
    #[values(BackendKind::Process, BackendKind::Container)] backend: BackendKind,
    #[values(Binary::Etcd, Binary::KubeApiserver, Binary::KubeControllerManager)] server: Binary,
) -> Result<()> {
    let Some(builder) = on(backend).await else { return Ok(()) };
    let (builder, meant) = match server {
        Binary::Etcd => (
            builder.etcd_flags(Flags::new().set("quota-backend-byte", "1")),
            "has no flag --quota-backend-byte; did you mean --quota-backend-bytes?",
        ),
        Binary::KubeApiserver => (
            builder.apiserver_flags(Flags::new().append("max-request-inflight", "7")),
            "has no flag --max-request-inflight; did you mean --max-requests-inflight",
        ),
        _ => (
            builder
                .controllers([Controller::ReplicaSet])
                .controller_manager_flags(Flags::new().set("kube_api_bursts", "7")),
            "has no flag --kube_api_bursts; did you mean --kube-api-burst?",
        ),
    };
    let (refused, near, text) = refusal_of(builder).await?;
    ensure!(matches!(refused, Refused::Flag { .. }) && !near.is_empty(), "{refused:?} {near:?}");
    ensure!(text.contains(&format!("{server} ")) && text.contains(meant), "{text}");
    // What the others were doing would only hide it.
    ensure!(text.matches("\n    command: ").count() == 1, "{text}");
    ensure!(!text.contains("last readiness answer"), "{text}");
    Ok(())
}

laggard::minors! {
    #[rstest]
    #[tokio::test]
    async fn each_minor_refuses_what_it_does_not_know(minor: Minor) -> Result<()> {
        let builder = || Plane::builder().kubernetes(minor);
        for (builder, meant) in [
            (
                builder().apiserver_flags(Flags::new().set("max-requests-inflight", "many")),
                "does not take \"many\" for --max-requests-inflight",
            ),
            (
                builder().feature_gate("APIServerIdentiti", true),
                "has no feature gate APIServerIdentiti; did you mean APIServerIdentity?",
            ),
            (builder().runtime_config("app/v1", true), "has no API app/v1; did you mean apps/v1?"),
            (builder().runtime_config("apps/v9", true), "has no API apps/v9; write"),
            (builder().runtime_config("api/gamma", true), "has no API api/gamma"),
            (
                builder().enable_admission_plugin("AlwaysPullImage"),
                "has no admission plugin AlwaysPullImage; did you mean AlwaysPullImages?",
            ),
            (
                builder().disable_admission_plugin("Podsecurty"),
                "has no admission plugin Podsecurty; did you mean PodSecurity?",
            ),
            (
                builder().etcd_flags(Flags::new().set("heartbeat-interval", "x")),
                "does not take \"x\" for --heartbeat-interval",
            ),
        ] {
            let (_, _, text) = refusal_of(builder).await?;
            ensure!(text.contains(meant), "{meant:?} is missing in:\n{text}");
            let named = [format!("kube-apiserver {minor}."), "etcd 3.".to_owned()];
            ensure!(named.iter().any(|named| text.contains(named)), "{text}");
        }
        Ok(())
    }
}

/// 1.34 has no such check.
#[tokio::test]
async fn a_gate_that_depends_on_one_that_is_off_is_told_with_it() -> Result<()> {
    let builder = Plane::builder().kubernetes("1.37").feature_gate("PodLevelResources", false);
    let (refused, _, text) = refusal_of(builder).await?;
    let Refused::FeatureGateDependency { names, needs, .. } = refused else {
        anyhow::bail!("{refused:?}");
    };
    ensure!(names.contains(&"PodLevelResourcesFixDefaulting".to_owned()), "{names:?}");
    ensure!(needs == ["PodLevelResources"], "{needs:?}");
    ensure!(
        text.contains("be on while PodLevelResources is off; turn PodLevelResources on"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn a_typo_in_a_removal_is_told_too() -> Result<()> {
    let flags = Flags::new().remove("anonymus-auth");
    let (refused, near, _) = refusal_of(Plane::builder().apiserver_flags(flags)).await?;
    ensure!(matches!(refused, Refused::Flag { ref name, .. } if name == "anonymus-auth"));
    ensure!(near == ["anonymous-auth"], "{near:?}");
    // A flag that the server has, and that nobody has set.
    let flags = Flags::new().remove("watch-cache");
    Plane::builder().apiserver_flags(flags).start().await?.stop().await?;
    Ok(())
}

laggard::minors! {
    /// `feature_gate` hands a gate to both servers, since both are made with the same ones.
    #[rstest]
    #[tokio::test]
    async fn both_servers_know_the_same_gates(minor: Minor) -> Result<()> {
        let servers = [Binary::KubeApiserver, Binary::KubeControllerManager];
        let assets = Wanted::kubernetes(minor).binaries(servers).get(|_| ()).await?;
        let mut gates = Vec::new();
        for server in servers {
            let help = std::process::Command::new(assets.path(server)?).arg("--help").output()?;
            let help = String::from_utf8(help.stdout)?;
            let mut own: Vec<_> = help
                .lines()
                .filter_map(|line| Some(line.split_once("=true|false (")?.0.trim().to_owned()))
                .collect();
            own.sort();
            ensure!(own.len() > 50, "{server}: {own:?}");
            gates.push(own);
        }
        ensure!(gates[0] == gates[1], "{gates:#?}");
        Ok(())
    }
}

#[rstest]
#[tokio::test]
async fn a_gate_and_an_api_are_on_or_off_as_was_said(
    #[values(BackendKind::Process, BackendKind::Container)] backend: BackendKind,
) -> Result<()> {
    let Some(builder) = on(backend).await else { return Ok(()) };
    let plane = builder
        // On by default, and off by default.
        .feature_gate("APIResponseCompression", false)
        .feature_gate("CoordinatedLeaderElection", true)
        .runtime_config("coordination.k8s.io/v1beta1", true)
        .runtime_config("autoscaling/v2", false)
        .controllers([Controller::ReplicaSet])
        .log_level(2)
        .start()
        .await?;
    // At that level a server logs its flags.
    if let Some(logs) = plane.logs() {
        let log = std::fs::read_to_string(logs.join("kube-controller-manager.log"))?;
        let flag = log.lines().find(|line| line.contains("FLAG: --feature-gates="));
        ensure!(flag.is_some_and(|flag| flag.contains("CoordinatedLeaderElection")), "{flag:?}");
    }
    let client = plane.client()?;
    let metrics = client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
    for (gate, value) in [("APIResponseCompression", "0"), ("CoordinatedLeaderElection", "1")] {
        let line = metrics.lines().find(|line| {
            line.starts_with("kubernetes_feature_enabled") && line.contains(&format!("\"{gate}\""))
        });
        ensure!(line.is_some_and(|line| line.ends_with(&format!(" {value}"))), "{gate}: {line:?}");
    }
    let groups = client.list_api_groups().await?.groups;
    let served: Vec<_> = groups
        .iter()
        .flat_map(|group| group.versions.iter().map(|version| version.group_version.as_str()))
        .collect();
    ensure!(served.contains(&"coordination.k8s.io/v1beta1"), "{served:?}");
    ensure!(served.contains(&"autoscaling/v1"), "{served:?}");
    ensure!(!served.contains(&"autoscaling/v2"), "{served:?}");
    plane.stop().await?;
    Ok(())
}

#[rstest]
#[tokio::test]
async fn an_admission_plugin_is_on_or_off_as_was_said(
    #[values(BackendKind::Process, BackendKind::Container)] backend: BackendKind,
) -> Result<()> {
    let Some(builder) = on(backend).await else { return Ok(()) };
    let plane = builder
        // Which turns LimitRanger off.
        .exploring()
        .enable_admission_plugin("LimitRanger")
        .enable_admission_plugin("AlwaysPullImages")
        .disable_admission_plugin("Priority")
        .start()
        .await?;
    let namespace = plane.namespace("settings").await?;
    let ranges = Api::namespaced(plane.client()?, &namespace);
    let range: k8s_openapi::api::core::v1::LimitRange = serde_json::from_value(json!({
        "metadata": { "name": "r" },
        "spec": { "limits": [{ "type": "Container", "defaultRequest": { "cpu": "7m" } }] },
    }))?;
    ranges.create(&PostParams::default(), &range).await?;
    let pod = make_pod(&plane, &namespace).await?.spec.context("no spec")?;
    let container = &pod.containers[0];
    ensure!(container.image_pull_policy.as_deref() == Some("Always"), "{container:?}");
    let requests = container.resources.as_ref().and_then(|it| it.requests.as_ref());
    ensure!(requests.is_some_and(|it| it["cpu"].0 == "7m"), "{container:?}");
    // The plugin Priority would have set it.
    ensure!(pod.priority.is_none(), "{:?}", pod.priority);
    plane.stop().await?;
    Ok(())
}

#[rstest]
#[tokio::test]
async fn a_pod_gets_its_account_where_the_controller_of_accounts_runs(
    #[values(BackendKind::Process, BackendKind::Container)] backend: BackendKind,
) -> Result<()> {
    let Some(builder) = on(backend).await else { return Ok(()) };
    let plane = builder.controllers([Controller::ServiceAccount]).start().await?;
    let namespace = plane.namespace("settings").await?;
    for namespace in [&namespace, "default"] {
        let accounts: Api<ServiceAccount> = Api::namespaced(plane.client()?, namespace);
        // At once: a server that is quick would refuse the pod before it is there.
        accounts.get("default").await?;
        let pod = make_pod(&plane, namespace).await?.spec.context("no spec")?;
        ensure!(pod.service_account_name.as_deref() == Some("default"), "{pod:?}");
        let volumes = pod.volumes.context("no token")?;
        ensure!(volumes.iter().any(|volume| volume.projected.is_some()), "{volumes:?}");
    }
    plane.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_needs_no_account_where_nobody_makes_any() -> Result<()> {
    let plane = Plane::builder().start().await?;
    let namespace = plane.namespace("settings").await?;
    let pod = make_pod(&plane, &namespace).await?.spec.context("no spec")?;
    ensure!(pod.service_account_name.is_none() && pod.volumes.is_none(), "{pod:?}");
    plane.stop().await?;
    Ok(())
}

async fn make_pod(plane: &Plane, namespace: &str) -> Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(plane.client()?, namespace);
    // With a tag: without one it is the newest, which is always pulled.
    let pod = serde_json::from_value(json!({
        "metadata": { "name": "p" },
        "spec": { "containers": [{ "name": "c", "image": "i:1" }] },
    }))?;
    Ok(pods.create(&PostParams::default(), &pod).await?)
}

#[rstest]
#[tokio::test]
async fn the_audit_log_has_what_its_policy_asks_for(
    #[values(BackendKind::Process, BackendKind::Container)] backend: BackendKind,
) -> Result<()> {
    let Some(builder) = on(backend).await else { return Ok(()) };
    let policy: AuditPolicy = "
        apiVersion: audit.k8s.io/v1
        kind: Policy
        rules:
        - level: RequestResponse
          verbs: [create]
          resources: [{ resources: [pods] }]
        - level: None
    "
    .parse()?;
    let plane = builder.audit(policy).start().await?;
    let namespace = plane.namespace("settings").await?;
    make_pod(&plane, &namespace).await?;
    let events = plane.audit_events().await?;
    let received = events.first().context("nothing is in the log")?;
    ensure!(received.stage == AuditStage::RequestReceived && received.verb == "create");
    ensure!(received.namespace.as_ref() == Some(&namespace), "{received:?}");
    ensure!(received.uri.starts_with(&format!("/api/v1/namespaces/{namespace}/pods")));
    ensure!(!received.user.is_empty() && received.code.is_none(), "{received:?}");
    // It is written after the reply, and nobody tells when.
    let complete = loop {
        let events = plane.audit_events().await?;
        ensure!(events.iter().all(|event| event.resource.as_deref() == Some("pods")));
        let mut events = events.into_iter();
        match events.find(|event| event.stage == AuditStage::ResponseComplete) {
            Some(event) => break event,
            None => tokio::task::yield_now().await,
        }
    };
    ensure!(complete.id == received.id && complete.code == Some(201), "{complete:?}");
    ensure!(complete.name.as_deref() == Some("p"), "{complete:?}");
    ensure!(complete.raw["responseObject"]["kind"] == "Pod", "{complete:?}");

    let file = plane.audit_log().map(ToOwned::to_owned);
    ensure!(file.is_some() == (backend == BackendKind::Process), "{file:?}");
    ensure!(file.as_ref().is_none_or(|file| file.is_file()), "{file:?}");
    plane.stop().await?;
    ensure!(file.is_none_or(|file| !file.exists()) || keeps_logs());
    Ok(())
}

fn keeps_logs() -> bool {
    std::env::var_os("LAGGARD_KEEP_LOGS").is_some_and(|value| value != "0")
}

#[tokio::test]
async fn without_a_policy_there_is_no_audit_log() -> Result<()> {
    let plane = Plane::builder().start().await?;
    ensure!(plane.audit_log().is_none());
    let error = plane.audit_events().await.err().context("there is one")?;
    ensure!(format!("{:#}", anyhow::Error::from(error)).contains("add `audit`"));
    plane.stop().await?;
    // And a policy that lets everything through, for the sake of the other constructor.
    let all = AuditPolicy::all(AuditLevel::Metadata);
    let plane = Plane::builder().audit(all).start().await?;
    let namespaces: Api<Namespace> = Api::all(plane.client()?);
    namespaces.get("default").await?;
    let events = plane.audit_events().await?;
    ensure!(events.iter().any(|event| event.name.as_deref() == Some("default")));
    plane.stop().await?;
    Ok(())
}

/// Says to the process which test runs in it what its builder shall be told: `none`, or a boolean.
const ATTACH: &str = "LAGGARD_TEST_ATTACH";

#[rstest]
#[case(BackendKind::Process, "true", "none", true)]
#[case(BackendKind::Process, "", "none", false)]
#[case(BackendKind::Process, "true", "false", false)]
#[case(BackendKind::Process, "", "true", true)]
#[case(BackendKind::Container, "true", "none", true)]
#[tokio::test]
async fn the_output_of_the_servers_is_shown_where_that_is_asked_for(
    #[case] backend: BackendKind,
    #[case] variable: &str,
    #[case] builder: &str,
    #[case] shown: bool,
) -> Result<()> {
    if on(backend).await.is_none() {
        return Ok(());
    }
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(["--exact", "settings::in_another_process", "--ignored"]);
    command.env("KUBEBUILDER_ATTACH_CONTROL_PLANE_OUTPUT", variable).env(ATTACH, builder);
    command.env("LAGGARD_BACKEND", backend_name(backend));
    let ended = tokio::task::spawn_blocking(move || command.output()).await??;
    let (out, err) =
        (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    ensure!(ended.status.success(), "{out}\n{err}");
    for start in ["kube-apiserver: I", "etcd: {\"level\":\"info\""] {
        let found = err.lines().any(|line| line.starts_with(start));
        ensure!(found == shown, "{start:?} in:\n{err}");
    }
    Ok(())
}

fn backend_name(backend: BackendKind) -> &'static str {
    if backend == BackendKind::Process { "process" } else { "container" }
}

#[tokio::test]
#[ignore = "run by another test, in a process of its own"]
async fn in_another_process() -> Result<()> {
    let builder = Plane::builder().log_level(2);
    let attached = std::env::var(ATTACH)?;
    let builder = match attached.as_str() {
        "none" => builder,
        given => builder.attach_output(given.parse()?),
    };
    let plane = builder.start().await?;
    if let Some(logs) = plane.logs() {
        // Shown or not, the log is a file.
        for (server, known) in [("etcd", "\"level\":\"info\""), ("kube-apiserver", "Version: v1.")]
        {
            let log = std::fs::read_to_string(logs.join(format!("{server}.log")))?;
            ensure!(log.contains(known), "{server}: {log}");
        }
    }
    plane.stop().await?;
    Ok(())
}

/// With the output attached the log comes through a thread; the error must not be ahead of it.
#[tokio::test]
async fn a_refusal_is_understood_while_the_output_is_attached() -> Result<()> {
    let flags = Flags::new().set("no-such-flag", "x");
    let builder = Plane::builder().attach_output(true).etcd_flags(flags);
    let (refused, near, text) = refusal_of(builder).await?;
    ensure!(matches!(refused, Refused::Flag { .. }) && near.is_empty(), "{refused:?} {near:?}");
    ensure!(text.contains("`etcd --help` lists"), "{text}");
    Ok(())
}
