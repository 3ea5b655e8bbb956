//! A crash between two writes: a process grows a set and then its claim, and takes the set for the measure of both.
//!
//! Figures 1 and 4 of Sieve (OSDI 2022), the resize of a RabbitMQ cluster: after a crash between the two writes the set
//! has its new size, so nothing seems left to do, and the claim stays small for ever. The fix writes in the
//! other order: what is looked at is written last.

use anyhow::Result;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use laggard::{
    check::{BoxError, Scenario, World},
    lag::model::Needs,
};
use serde_json::json;

use crate::{make_maps, value, value_of};

/// Grows both, in this order, while the set is small.
async fn process(world: World, order: [&'static str; 2]) -> Result<(), BoxError> {
    let maps = world.api::<ConfigMap>();
    let pass = || async {
        if value(&maps.get("set").await?, "size").as_deref() == Some("1") {
            for name in order {
                let grown = Patch::Merge(json!({"data": {"size": "2"}}));
                maps.patch(name, &PatchParams::default(), &grown).await?;
            }
        }
        Ok::<(), kube::Error>(())
    };
    world.until_settled("demo", pass).await?;
    Ok(())
}

fn scenario(order: [&'static str; 2]) -> Scenario {
    Scenario::new("crash", move |world| process(world, order))
        .set_up(|world| async move {
            let small = || json!({"size": "1"});
            make_maps(&world, [("set", small()), ("claim", small())]).await
        })
        .with_restarts()
        .after_settle("the claim is as large as the set", |truth| {
            value_of(truth, "claim", "size") == value_of(truth, "set", "size")
        })
}

#[tokio::test]
async fn a_crash_after_the_first_write_is_found_and_the_other_order_passes() -> Result<()> {
    let plane = crate::plane().await?;
    let finding = crate::found(&plane, scenario(["set", "claim"])).await?;
    let token = "write@f1:restart";
    crate::expect(&finding, "the claim is as large as the set", Needs::Environment, token)?;
    crate::passes(&plane, scenario(["claim", "set"])).await?;
    plane.stop().await?;
    Ok(())
}
