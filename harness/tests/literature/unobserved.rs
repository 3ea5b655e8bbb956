//! An unobserved state: a process acts on having seen a pod terminate, and the view jumps over that.
//!
//! Figure 6 of Sieve (OSDI 2022): the volume of a pod is deleted by the pass that sees the pod terminate. If the pod
//! is marked and removed between two passes, or lag makes it look so, none does, and the volume stays. The fix
//! decides from what is there: no pod, no volume.

use anyhow::Result;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    api::{DeleteParams, Patch, PatchParams},
    runtime::reflector::ObjectRef,
};
use laggard::{
    check::{Actor, BoxError, Scenario, Step, World},
    lag::model::Needs,
};
use serde_json::json;

use crate::{make_maps, value, value_of};

async fn process(world: World, from_state: bool) -> Result<(), BoxError> {
    let maps = world.api::<ConfigMap>();
    let cache = world.cache::<ConfigMap>().await?;
    let pass = || async {
        let pod = cache.get(&ObjectRef::new("pod").within(world.namespace()));
        let is_over = match pod {
            Some(pod) => value(&pod, "phase").as_deref() == Some("terminating"),
            None => from_state,
        };
        if is_over {
            match maps.delete("volume", &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                deleted => drop(deleted?),
            }
        }
        let looked = Patch::Merge(json!({"data": {"looked": "yes"}}));
        maps.patch("status", &PatchParams::default(), &looked).await?;
        Ok::<(), kube::Error>(())
    };
    world.until_settled("demo", pass).await?;
    Ok(())
}

/// Lets the pod terminate, and removes it once there has been a pass.
fn kubelet() -> Actor {
    Actor::new("kubelet", |truth, acting| {
        let maps = acting.api::<ConfigMap>();
        let step: Step = match value_of(truth, "pod", "phase")?.as_str() {
            "running" => Box::pin(async move {
                let terminating = Patch::Merge(json!({"data": {"phase": "terminating"}}));
                maps.patch("pod", &PatchParams::default(), &terminating).await?;
                Ok(())
            }),
            _ if value_of(truth, "status", "looked").is_some() => Box::pin(async move {
                maps.delete("pod", &DeleteParams::default()).await?;
                Ok(())
            }),
            _ => return None,
        };
        Some(step)
    })
}

fn scenario(from_state: bool) -> Scenario {
    Scenario::new("unobserved", move |world| process(world, from_state))
        .set_up(|world| async move {
            let pod = ("pod", json!({"phase": "running"}));
            make_maps(&world, [pod, ("volume", json!({})), ("status", json!({}))]).await
        })
        .actor(kubelet())
        .after_settle("no volume without its pod", |truth| {
            truth.get::<ConfigMap>("volume").is_none() || truth.get::<ConfigMap>("pod").is_some()
        })
}

#[tokio::test]
async fn a_transition_that_no_pass_saw_leaves_a_volume_behind() -> Result<()> {
    let plane = crate::plane().await?;
    let finding = crate::found(&plane, scenario(false)).await?;
    let token = "kubelet@e1:wait";
    crate::expect(&finding, "no volume without its pod", Needs::Environment, token)?;
    crate::passes(&plane, scenario(true)).await?;
    plane.stop().await?;
    Ok(())
}
