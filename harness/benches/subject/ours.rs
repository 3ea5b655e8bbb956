//! The subject with a plane of laggard's. It uses what a user has, and nothing else.

use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DynamicObject, PostParams, WatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use laggard::Plane;
use laggard::plane::{BackendKind, Readiness};
use serde_json::from_value;
use tokio::sync::mpsc;

use super::{Answer, Wanted};

/// What this program is called with to be the subject.
pub(crate) const ARGUMENT: &str = "subject";

pub(crate) async fn serve() -> Result<()> {
    rustix::process::setsid().context("begin a session")?;
    let mut orders = orders();
    let wanted = orders.recv().await.context("nothing is wanted")?;
    let wanted: Wanted = serde_json::from_str(&wanted)?;
    let object = wanted.object.map(from_value::<DynamicObject>).transpose()?;

    let begun = Instant::now();
    let backend = if wanted.is_contained { BackendKind::Container } else { BackendKind::Process };
    let readiness = if wanted.is_fully_ready { Readiness::Full } else { Readiness::FirstStep };
    let plane =
        Plane::builder().backend(backend).readiness(readiness).crds(wanted.crd).start().await?;
    if let Some(object) = object {
        let types = object.types.as_ref().context("the object has no kind")?;
        let kind = GroupVersionKind::try_from(types)?;
        let resource = ApiResource::from_gvk(&kind);
        let objects: Api<DynamicObject> =
            Api::namespaced_with(plane.client()?, "default", &resource);
        objects.create(&PostParams::default(), &object).await?;
    }
    tell("up", begun.elapsed())?;

    let maps: Api<ConfigMap> = Api::namespaced(plane.client()?, "default");
    let mut watches = Vec::new();
    for _ in 0..wanted.watches {
        // It is open once the server has answered.
        watches.push(maps.watch(&WatchParams::default(), "0").await?);
    }
    orders.recv().await.context("no order to stop")?;
    let begun = Instant::now();
    plane.stop().await?;
    tell("stopped", begun.elapsed())?;
    drop(watches);
    Ok(())
}

/// The lines that are sent to this process. Where they end, it does, and the plane with it.
fn orders() -> mpsc::Receiver<String> {
    let (sender, orders) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
        std::process::exit(1);
    });
    orders
}

fn tell(what: &str, took: Duration) -> Result<()> {
    let answer = Answer { what: what.to_owned(), seconds: took.as_secs_f64() };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&answer)?)?;
    Ok(out.flush()?)
}
